"""Layers read ahead of their operators: by hand, in the limits, against the recurrence, and what memory they take."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hw_storage import device

from tokenfab.errors import InputError
from tokenfab.hw.ahead import Stretch, lone, most_ahead, schedule_s, stretches_of
from tokenfab.hw.cost import cost, prepare
from tokenfab.hw.devices import load_device
from tokenfab.hw.estimate import Request, estimate, memory_fit
from tokenfab.hw.event import EventLevel, simulate_pass
from tokenfab.hw.event_machine import TICKS, Layer, Task, simulate
from tokenfab.hw.spec import Device
from tokenfab.serving.engine import EngineProfile
from tokenfab.serving.memory import kv_memory
from tokenfab.workloads.compiled import CompiledTrace, compile_trace
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace

LAYER_BYTES = (4 * 4096**2 + 2 * 4096 * 16384) * 2
"""Matrices of one layer of OPT-6.7B in 16 bits."""
HEAD_BYTES = 50272 * 4096 * 2
ALL_BYTES = 32 * LAYER_BYTES + HEAD_BYTES


@functools.cache
def trace(model: str, *techniques: str) -> Trace:
    return apply_techniques(load_trace(model), techniques)


def compiled(*techniques: str, model: str = "opt-6.7b") -> CompiledTrace:
    return compile_trace(trace(model, *techniques))


def event_s(card: Device, point: tuple[float, float, float], *techniques: str) -> float:
    return float(EventLevel()(compiled(*techniques), card, *point).latency_s[0])


def closed_s(card: Device, point: tuple[float, float, float], *techniques: str) -> float:
    return float(cost(compiled(*techniques), card, *point).latency_s[0])


def read(seconds: float, latency: float = 0.0, place: str = "far flash") -> Task:
    return Task.of(0, place, 0.0, seconds + latency, {place: seconds})


def work(seconds: float) -> Task:
    return Task.of(0, "op", 0.0, seconds, {"compute": seconds})


# -- layers by hand --------------------------------------------------------------------------------------
@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize(("compute", "reading"), [(3e-3, 1e-3), (1e-3, 3e-3), (2e-3, 2e-3)])
def test_the_first_reads_show_then_the_longer_of_both(ahead, compute, reading):
    """X + (L − 1) · max(C, X) + C."""
    expected = reading + 11 * max(compute, reading) + compute
    played = simulate([[Layer((work(compute),), (read(reading),), (), ahead)] * 12]).finish[0] / TICKS
    assert played == pytest.approx(expected, rel=1e-9)
    layers = Stretch(12, np.array([compute]), {"far flash": np.array([reading])})
    assert schedule_s([layers], ahead)[0] == pytest.approx(expected, rel=1e-12)


def test_more_buffers_help_where_layers_differ():
    """A layer of 4 ms of reads after two of 1 ms: a third buffer lets it be read while both are computed."""
    layers = [(2e-3, 1e-3), (2e-3, 1e-3), (2e-3, 4e-3)] * 4
    found = {}
    for ahead in (1, 2):
        played = [Layer((work(c),), (read(x),), (), ahead) for c, x in layers]
        found[ahead] = simulate([played]).finish[0] / TICKS
        stretches = [Stretch(1, np.array([c]), {"far flash": np.array([x])}) for c, x in layers]
        assert schedule_s(stretches, ahead)[0] == pytest.approx(found[ahead], rel=1e-9)
    # One ahead: read j begins when j − 2 is done. 1 + 2, then rounds of 4 + 2 + 2 less what is read beside.
    assert found[2] < found[1]
    assert found[2] == pytest.approx(1e-3 + 12 * 2e-3 + 1e-3, rel=0.1)  # reads take 24 ms in all, as the operators do


def test_a_layer_writes_behind_and_the_pass_ends_when_all_is_out():
    """Writes of 3 ms against 1 ms of operators: with two buffers the third layer waits for the first one's write."""
    write = Task.of(0, "far flash", 0.0, 3e-3, {"link out": 3e-3})
    layers = [Layer((work(1e-3),), (), (write,), 1)] * 5
    assert simulate([layers]).finish[0] / TICKS == pytest.approx(1e-3 + 5 * 3e-3, rel=1e-9)
    stretch = Stretch(5, np.array([1e-3]), {}, {"link out": np.array([3e-3])})
    assert schedule_s([stretch], 1)[0] == pytest.approx(1e-3 + 5 * 3e-3)
    assert simulate([layers]).ends[0][2] / TICKS == pytest.approx(1e-3 + 3e-3 + 1e-3)


def test_two_tiers_share_the_link_and_not_their_drives():
    """Two drives of 1 ms a layer over a link that takes 0.8 ms for each: 1.6 ms a layer, not 1 and not 2."""
    reads = tuple(Task.of(0, p, 0.0, 1e-3, {p: 1e-3, "link": 0.8e-3}) for p in ("far dram", "far flash"))
    played = simulate([[Layer((work(1e-4),), reads, (), 1)] * 30]).finish[0] / TICKS
    assert played == pytest.approx(30 * 1.6e-3, rel=0.02)
    assert played >= 30 * 1.6e-3


PARTS = st.tuples(st.integers(1, 6), st.floats(0, 2e-3), st.floats(1e-5, 1e-3), st.floats(1e-5, 1e-3))


@settings(max_examples=15, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=2), st.integers(1, 3), st.floats(0.3, 3))
def test_the_recurrence_is_the_simulation_of_one_tier_over_a_link(parts, ahead, wider):
    layers, stretches = [], []
    for times, compute, tier, _ in parts:
        link = tier * wider
        task = Task.of(0, "far flash", 0.0, max(tier, link), {"far flash": tier, "link": link})
        layers += [Layer((work(compute),), (task,) if task.stages else (), (), ahead)] * times
        taken = {"far flash": np.array([max(tier, link)]), "link": np.array([link])}
        stretches.append(Stretch(times, np.array([compute]), taken))
    played = simulate([layers]).finish[0] / TICKS
    assert schedule_s(stretches, ahead)[0] == pytest.approx(played, rel=0.01, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=3), st.integers(1, 3), st.floats(1, 4))
def test_a_faster_tier_more_buffers_or_faster_operators_are_never_slower(parts, ahead, faster):
    def total(a: int, compute: float = 1.0, reading: float = 1.0) -> float:
        stretches = [
            Stretch(n, np.array([c * compute]), {"far flash": np.array([x * reading])}, {"link out": np.array([w])})
            for n, c, x, w in parts
        ]
        return float(schedule_s(stretches, a)[0])

    base = total(ahead)
    for other in (total(ahead + 1), total(ahead, 1 / faster), total(ahead, 1, 1 / faster)):
        assert other <= base * (1 + 1e-12)
    busy = [sum(n * part[i] for n, *part in parts) for i in range(3)]
    assert base >= max(busy) * (1 - 1e-12)


# -- devices: limits -------------------------------------------------------------------------------------
PREFILL, DECODE = (1.0, 128.0, 0.0), (1.0, 1.0, 200.0)


@pytest.mark.parametrize("point", [PREFILL, DECODE])
def test_tiers_without_end_are_as_if_nothing_were_far(point):
    card = device(host='host = "a6000"', rate=1e6, link=1e6, latency=1e-6)
    near = event_s(card, point)
    told = "offload:what=weights" + (",kv=1" if point == DECODE else "")  # what is written goes at a rate of its own
    assert event_s(card, point, told) == pytest.approx(near, rel=0.005)
    assert near == pytest.approx(closed_s(card, point), rel=0.01)


@pytest.mark.parametrize("point", [PREFILL, DECODE])
def test_operators_without_end_leave_bytes_over_bandwidth(point):
    """A drive of 1 MB/s behind a fast card: the operators are nothing beside it."""
    card = device(host='host = "a6000"', rate=1e-3, latency=1e-6)
    assert event_s(card, point, "offload:what=weights") == pytest.approx(ALL_BYTES / 1e6, rel=1e-3)


@pytest.mark.parametrize("point", [PREFILL, DECODE, (16.0, 1.0, 900.0)])
@pytest.mark.parametrize("name", ["m1-max-flash", "rtx-4090-ssd", "a6000-ssd"])
def test_without_reads_ahead_it_is_the_closed_form(name, point):
    card = load_device(name)
    for overlap in (0, 1):
        told = f"offload:what=weights,kv=1,ahead=0,overlap={overlap}"
        assert 1 - 1e-9 <= event_s(card, point, told) / closed_s(card, point, told) <= 1.01
    assert closed_s(card, point, "offload:what=weights") == closed_s(card, point, "offload:what=weights,ahead=3")


def test_a_laptop_hides_its_arithmetic_behind_its_flash():
    """6 GB/s of flash against 13.8 GB/s of operators: 3.2 s a token one after another, the reads' 2.2 s beside."""
    card = load_device("m1-max-flash")
    reading = ALL_BYTES / 6e9
    near = closed_s(card, DECODE)
    assert closed_s(card, DECODE, "offload:what=weights") == pytest.approx(reading + near, rel=0.01)
    assert event_s(card, DECODE, "offload:what=weights") == pytest.approx(reading + near / 33, rel=0.01)
    assert event_s(card, (64.0, 1.0, 1000.0), "offload:what=weights") == pytest.approx(
        LAYER_BYTES / 6e9 + closed_s(card, (64.0, 1.0, 1000.0)), rel=0.01
    )


def test_what_fires_is_not_read_ahead():
    """Neurons that fire and experts that are chosen are known when the operator is reached."""
    sparse = ("activation-sparsity:active=0.03,predictor=0.0194", "offload:what=ffn,miss=0.8,cached=0.24,bundle=1")
    card = load_device("m1-max-flash")
    assert event_s(card, DECODE, *sparse) == pytest.approx(closed_s(card, DECODE, *sparse), rel=0.01)
    experts = compiled("offload:what=weights", model="mixtral-8x7b")
    ahead = {
        row.operator.kind: row.operator.attrs["ahead"] for row in experts.rows if "far_weights" in row.operator.attrs
    }
    assert ahead == {"matmul": 1, "experts": 0}


CASES = (
    ("opt-6.7b", "a6000-ssd", "offload:what=weights,kv=1"),
    ("opt-6.7b", "rtx-4090-ssd", "offload:what=weights,ahead=2"),
    ("opt-6.7b", "m1-max-flash", "offload:what=weights,kv=0.5,ahead=3"),
    ("opt-6.7b", "t4-ssd", "offload:what=weights,deep=0.4,kv=1,kv_deep=0.5"),
    ("opt-13b", "instinfer-csd", "offload:what=weights"),
)  # fmt: skip


@pytest.mark.parametrize(("model", "name", "told"), CASES)
def test_sampled_repetitions_and_the_recurrence_are_the_whole_simulation(model, name, told):
    made, found = prepare(compiled(told, model=model), load_device(name))
    for point in ((16.0, 1.0, 200.0), (32.0, 512.0, 0.0)):
        rows = found.rows(made.basis_at(*point))
        whole = simulate_pass(made, rows, found.reasons, 0, repetitions=99)
        sampled = simulate_pass(made, rows, found.reasons, 0)
        assert sampled.seconds == pytest.approx(whole.seconds, rel=0.006)
        recurrence = schedule_s(stretches_of(made, lone(rows, found.reasons)), most_ahead(made))[0]
        assert recurrence == pytest.approx(whole.seconds, rel=0.01)
        assert whole.seconds >= max(whole.busy_s.values()) * (1 - 1e-9)
        assert whole.rows_s.sum() <= whole.seconds * (1 + 1e-9)


def test_weights_and_cache_contend_for_the_link():
    """Weights from the host's memory, the cache from a drive: each has its tier, the link passes both."""
    card, point = load_device("a6000-ssd"), (64.0, 1.0, 1000.0)
    link = 7e9 * 0.9
    cache = 64 * 1000 * 2 * 4096 * 2 * 32
    level = EventLevel()
    both = level(compiled("offload:what=weights,kv=1"), card, *point)
    assert level.passes[point].busy_s["link"] == pytest.approx((ALL_BYTES + cache) / link, rel=1e-3)
    assert level.passes[point].busy_s["far flash"] == pytest.approx(cache / 7e9 + cache / 1000 / 2.5e9, rel=1e-3)
    assert both.latency_s[0] == pytest.approx((ALL_BYTES + cache) / link, rel=0.01)
    alone = [event_s(card, point, told) for told in ("offload:what=weights", "offload:what=none,kv=1")]
    assert max(alone) < both.latency_s[0] < sum(alone)
    assert sum(float(s[0]) for s in both.bound.values()) == pytest.approx(1)
    assert both.low_s[0] < both.latency_s[0] < both.high_s[0]


def test_streams_that_read_everything_twice_take_twice_as_long():
    card = load_device("a6000-ssd")
    one, two = (
        float(EventLevel(n)(compiled("offload:what=weights"), card, *DECODE).latency_s[0]) for n in (1, 2)
    )  # fmt: skip
    assert two == pytest.approx(2 * one, rel=0.01)


# -- memory ----------------------------------------------------------------------------------------------
def test_buffers_take_room_in_fast_memory():
    card, request = load_device("a6000-ssd"), Request(4, 100, 28)
    cache = 4 * 128 * 2 * 4096 * 2  # of one layer
    none = memory_fit(trace("opt-6.7b", "offload:what=weights,kv=1,ahead=0"), card, request)
    assert none.buffer_bytes == 0
    for ahead in (1, 3):
        fit = memory_fit(trace("opt-6.7b", f"offload:what=weights,miss=0.5,kv=0.5,ahead={ahead}"), card, request)
        # The head, one matrix, is larger than a layer's half, and there is one of it.
        weights = max((ahead + 1) * LAYER_BYTES / 2, HEAD_BYTES / 2)
        assert fit.buffer_bytes == pytest.approx(weights + (ahead + 1) * cache / 2)
        assert fit.needed_bytes == pytest.approx(
            fit.weights_bytes + fit.kv_bytes + fit.activation_bytes + fit.buffer_bytes
        )
    held = {h.level.name: h.bytes for h in fit.levels if h.level.device == "a6000"}["dram"]
    assert held["weights"] - none.levels[-1].bytes["weights"] == pytest.approx(weights, rel=1e-6)
    near = load_device("a6000")
    assert memory_fit(trace("opt-6.7b", "offload:what=weights,kv=1"), near, request).buffer_bytes == 0


def test_served_caches_have_the_room_that_buffers_leave():
    """Of a cache that is far, two layers of 32 are in fast memory: it bounds the blocks there."""
    card, profile = load_device("a6000-ssd"), EngineProfile()
    found = {
        ahead: kv_memory(trace("opt-6.7b", f"offload:what=none,kv=1,ahead={ahead}"), card, profile) for ahead in (0, 1)
    }
    token = 2 * 4096 * 2 * 32
    assert found[0].token_bytes == pytest.approx(token)
    assert found[1].token_bytes == pytest.approx(token * (1 + 2 / 32))
    fast = 0.9 * card.host.dram.usable - found[1].weights_bytes - found[1].activation_bytes
    assert found[1].blocks == int(fast / (token * 2 / 32 * 16))
    assert found[0].blocks == int(0.9 * 2e12 / (token * 16))


def test_a_second_tier_takes_its_share():
    card, request = load_device("t4-ssd"), Request(1, 100, 28)
    fit = memory_fit(trace("opt-6.7b", "offload:what=weights,deep=0.25,kv=1,kv_deep=1"), card, request)
    held = {h.level.name: h.bytes for h in fit.levels if h.level.device == "t4-ssd"}
    layers = 32 * LAYER_BYTES  # the head's matrix is the embedding's, which is near
    assert held["dram"]["far-weights"] == pytest.approx(0.75 * layers, rel=1e-6)
    assert held["flash"]["far-weights"] == pytest.approx(0.25 * layers, rel=1e-6)
    assert held["flash"]["far-kv"] == pytest.approx(fit.kv_bytes)
    level = EventLevel()
    level(compiled("offload:what=weights,deep=0.25"), card, *DECODE)
    busy = level.passes[DECODE].busy_s
    assert busy["far flash"] == pytest.approx(0.25 * ALL_BYTES / 2e9)
    assert busy["far dram"] == pytest.approx(0.75 * ALL_BYTES / 80e9)
    assert busy["link"] == pytest.approx(ALL_BYTES / (12.89 * 2**30))
    assert level.passes[DECODE].seconds == pytest.approx(busy["far flash"], rel=0.02)  # the longest of the three
    with pytest.raises(InputError, match="one level holds far-weights"):
        estimate(trace("opt-6.7b", "offload:what=weights,deep=0.5"), load_device("rtx-4090-ssd"), request)
