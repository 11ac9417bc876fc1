"""Does the simulation agree with the closed form where nothing contends, and say what contention costs elsewhere?"""

from __future__ import annotations

import functools
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.cli import run
from tokenfab.errors import InputError
from tokenfab.hw.cost import cost, prepare
from tokenfab.hw.devices import device_names, load_device
from tokenfab.hw.estimate import Request, estimate
from tokenfab.hw.event import EventLevel, prompt_beside_decode, simulate_pass
from tokenfab.hw.event_machine import TICKS, TILES, Task, lengths, pipeline_ticks, simulate, tiles_of
from tokenfab.hw.result import estimate_document
from tokenfab.hw.roofline import prepare as roofline
from tokenfab.workloads.compiled import CompiledTrace, compile_trace
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.parallel import Parallel
from tokenfab.workloads.techniques import apply_techniques

POINTS = ((1.0, 512.0, 0.0), (1.0, 1.0, 575.0), (16.0, 1.0, 2000.0))
MODELS = ("llama-2-7b", "opt-125m")
NARROW = ["weight-only:bits=4,head=1", "kv-quant:bits=4"]


@functools.cache
def compiled(model: str, narrow: bool = False) -> CompiledTrace:
    trace = load_trace(model)
    return compile_trace(apply_techniques(trace, NARROW) if narrow else trace)


def task(launch: int = 0, tail: int = 0, **busy: int) -> Task:
    stages = tuple(busy.items())
    return Task(0, "op", launch, stages, tiles_of([t for _, t in stages]), tail)


# -- the pipeline by hand --------------------------------------------------------------------------
def test_tiles_pass_through_their_resources_one_after_another():
    """n tiles of a, then b: the first passes both, each further one takes the longer of the two."""
    for a, b, n in ((100, 100, 10), (100, 50, 10), (30, 90, 30), (7, 7, 1)):
        assert pipeline_ticks([a * n, b * n], n) == a + b + (n - 1) * max(a, b)
    assert pipeline_ticks([], 8) == 0
    assert pipeline_ticks([1000], 8) == 1000


def test_tiles_are_as_many_as_keep_the_fill_at_a_hundredth():
    assert tiles_of([1_000_000]) == TILES[0]
    assert tiles_of([1_000_000, 200_000]) == 20
    assert tiles_of([1_000_000, 1_000_000]) == 100
    assert tiles_of([1_000_000] * 4) == TILES[1]
    assert sum(lengths(1001, 7)) == 1001


OPERATORS = st.tuples(st.integers(0, 50), st.lists(st.integers(1, 3000), max_size=3), st.integers(0, 50))


@settings(max_examples=40, deadline=None)
@given(st.lists(OPERATORS, min_size=1, max_size=4))
def test_a_lone_stream_takes_what_the_recurrence_says(operators):
    tasks = [
        task(launch, tail, **dict(zip(("dram", "l2", "compute"), stages, strict=False)))
        for launch, stages, tail in operators
    ]
    expected = [t.launch + pipeline_ticks([x for _, x in t.stages], t.tiles) + t.tail for t in tasks]
    found = simulate([tasks])
    assert found.ends == [list(np.cumsum(expected))]
    assert found.waited == [0]


def test_streams_that_want_different_resources_do_not_meet():
    found = simulate([[task(dram=1000)], [task(compute=900)]])
    assert found.ends == [[1000], [900]]
    assert found.waited == [0, 0]


def test_streams_that_want_the_same_resource_share_it():
    """Two pipelines of equal length on one resource: both are done after the sum, and launches are nobody's."""
    found = simulate([[task(dram=1000)], [task(dram=1000)]])
    assert max(e[-1] for e in found.ends) == 2000
    assert min(e[-1] for e in found.ends) > 1900  # turns alternate, so neither is done early
    launched = simulate([[task(launch=500, dram=1000)], [task(launch=500, dram=1000)]])
    assert max(e[-1] for e in launched.ends) == 2500


def test_one_stream_loads_while_the_other_computes():
    """Load 100 then compute 100, one tile each way: two streams take 1.5 of one alone, not 2."""
    tasks = [Task(0, "op", 0, (("dram", 100), ("compute", 100)), 1, 0)]
    assert simulate([tasks]).ends == [[200]]
    both = simulate([tasks, tasks])
    assert max(e[-1] for e in both.ends) <= 350
    assert max(e[-1] for e in both.ends) >= 300


PAIRS = st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=4))
def test_no_resource_does_more_than_its_time_and_the_same_input_gives_the_same_answer(streams):
    tasks = [[task(dram=a, compute=b) for a, b in one] for one in streams]
    found = simulate(tasks)
    end = max(e[-1] for e in found.ends)
    for which in (0, 1):
        assert end >= sum(t.stages[which][1] for one in tasks for t in one)
    assert end >= max(sum(t.alone for t in one) for one in tasks)
    assert simulate(tasks) == found


# -- against the closed form -----------------------------------------------------------------------
@pytest.mark.parametrize("name", device_names())
def test_one_stream_agrees_with_the_closed_form_within_one_percent(name):
    device, held = load_device(name), 0
    for model in MODELS:
        for narrow in (False, True):
            try:
                level = EventLevel()
                for b, q, c in POINTS:
                    closed = cost(compiled(model, narrow), device, b, q, c)
                    event = level(compiled(model, narrow), device, b, q, c)
                    ratio = float(event.latency_s[0] / closed.latency_s[0])
                    assert 1 - 1e-6 <= ratio <= 1.01, (model, narrow, b, q, c)
                held += 1
                break
            except InputError:  # formats that the device does not take
                continue
    assert held == len(MODELS) or (held and device.kind not in ("gpu", "tpu", "cpu"))


def test_rows_of_gpus_and_rooflines_say_what_they_occupy():
    """Never longer than the overlapped part; of a roofline the bound resource is busy for all of it."""
    for name in ("h100-sxm", "tpu-v5e", "bitmod"):
        device = load_device(name)
        trace = compiled("llama-2-7b", narrow=name == "bitmod")
        _, model = prepare(trace, device)
        rows = model.rows(trace.basis_at(*zip(*POINTS, strict=True)))
        overlapped = rows.time_s - rows.launch_s
        assert {"compute", "dram"} <= set(rows.busy_s)
        assert all((s <= overlapped * (1 + 1e-12)).all() for s in rows.busy_s.values())
        if name == "tpu-v5e":
            assert np.allclose(np.max(list(rows.busy_s.values()), axis=0), overlapped, rtol=1e-12)
    card = load_device("h100-sxm")
    _, model = prepare(compiled("llama-2-7b"), card)
    basis = compiled("llama-2-7b").basis_at(1, 512, 0)
    base = roofline(compiled("llama-2-7b"), card).rows(basis)
    rows = model.rows(basis)
    gate = next(i for i, r in enumerate(compiled("llama-2-7b").rows) if "layer.mlp.gate_up" in r.names)
    least = min(base.busy_s["compute"][gate, 0], (rows.time_s - rows.launch_s)[gate, 0])
    assert rows.busy_s["compute"][gate, 0] == pytest.approx(least)


# -- contention ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["h100-sxm", "xeon-2s", "bitmod"])
def test_streams_cost_each_other_time_but_no_more_than_waiting_in_line(name):
    device, trace = load_device(name), compiled("llama-2-7b", narrow=name == "bitmod")
    alone = EventLevel()
    for point in POINTS[:2]:
        one = alone(trace, device, *point)
        previous = 0.0
        for n in (2, 3):
            level = EventLevel(n)
            together = level(trace, device, *point)
            found = level.passes[point]
            assert one.latency_s[0] < together.latency_s[0] <= n * one.latency_s[0] * 1.01
            assert together.latency_s[0] >= max(found.busy_s.values())
            assert found.busy_s["dram"] == pytest.approx(n * alone.passes[point].busy_s["dram"])
            assert together.latency_s[0] > previous
            previous = float(together.latency_s[0])
            assert sum(float(s[0]) for s in together.bound.values()) == pytest.approx(1)
            assert together.low_s[0] < together.latency_s[0] < together.high_s[0]


def test_sampled_repetitions_stand_for_all_of_them():
    """One stream: exactly. Several: nearly, while operators are longer than their launches (docs/event-level.md)."""
    device = load_device("h100-sxm")
    for name, n, near in (("opt-125m", 1, 1e-9), ("llama-2-7b", 2, 0.02)):
        trace = compiled(name)
        _, model = prepare(trace, device)
        rows = model.rows(trace.basis_at(*POINTS[1]))
        sampled = simulate_pass(trace, rows, model.reasons, 0, n)
        full = simulate_pass(trace, rows, model.reasons, 0, n, repetitions=32)
        assert sampled.seconds == pytest.approx(full.seconds, rel=near)


def test_a_prompt_and_decoding_streams_overlap():
    """They want different things, so both together are faster than one after the other."""
    level, device, trace = EventLevel(2), load_device("h100-sxm"), compiled("llama-2-7b")
    for point in POINTS[:2]:
        level(trace, device, *point)
    found = prompt_beside_decode(level.passes[POINTS[0]], level.passes[POINTS[1]], 2)
    assert 1.1 < found["gain"] < 2
    assert found["prompt_slowdown"] > 1
    assert found["decode_slowdown"] > 1
    shares = 1 / found["prompt_slowdown"] + 1 / found["decode_slowdown"]
    assert found["gain"] == pytest.approx(shares, rel=0.02)  # the work done per second is the sum of both rates


# -- whole estimates -------------------------------------------------------------------------------
def test_energy_and_tokens_are_of_all_streams():
    trace, card, request = load_trace("llama-2-7b"), load_device("h100-sxm"), Request(2, 128, 9)
    one = estimate(trace, card, request, explain=True, level=EventLevel())
    level = EventLevel(3)
    three = estimate(trace, card, request, explain=True, level=level, streams=3)
    assert three.tokens == 3 * one.tokens
    assert three.tokens_per_s == pytest.approx(3 * 2 * 9 / three.latency_s)
    assert three.decode.bytes == 3 * one.decode.bytes
    for phase in ("prefill", "decode"):
        a, b = getattr(one, phase), getattr(three, phase)
        assert b.energy_j == pytest.approx(sum(b.energy_parts_j.values()))
        assert b.energy_parts_j["dram"] <= 3 * a.energy_parts_j["dram"] * (1 + 1e-9)
        assert b.energy_parts_j["static"] == pytest.approx(a.energy_parts_j["static"] * b.latency_s / a.latency_s)
        assert b.energy_j <= card.power.tdp.value * b.latency_s * (1 + 1e-9)
        mine = [o for o in three.operators if o.phase == phase]
        assert sum(o.energy_j for o in mine) == pytest.approx(b.energy_j)
    assert three.memory.kv_bytes == 3 * one.memory.kv_bytes
    assert three.memory.weights_bytes == one.memory.weights_bytes
    found = estimate_document(three, trace, event=level)["event"]
    assert found["contention"]["decode"]["slowdown"] * found["contention"]["decode"]["gain"] == pytest.approx(3)
    assert found["sampling"]["decode_contexts"] == [128.0, 131.5, 132.0, 135.0]


def test_the_rated_power_that_streams_share_is_that_of_drive_and_host():
    """The drive is rated at 25 W, the card beside it at 300 W: dynamic energy of streams is not cut to either."""
    compiled = compile_trace(load_trace("opt-125m"))
    card = load_device("instinfer-csd")
    assert card.host is not None
    alone = cost(compiled, card, 4, 1, 256)
    both = EventLevel(2)(compiled, card, 4, 1, 256)
    dynamic = [sum(j[0] for name, j in x.energy_parts_j.items() if name != "static") for x in (alone, both)]
    allowed = (card.power.tdp.value + card.host.power.tdp.value) * both.latency_s[0] - both.energy_parts_j["static"][0]
    assert dynamic[1] == pytest.approx(min(2 * dynamic[0], allowed))
    assert dynamic[1] > 1.5 * dynamic[0]


def test_streams_are_refused_where_they_mean_nothing():
    trace, card = load_trace("llama-2-7b"), load_device("h100-sxm")
    with pytest.raises(InputError, match="--streams 2 with pp=2"):
        estimate(trace, card, Request(2), Parallel(pp=2), level=EventLevel(2), streams=2)
    for n in (0, 65):
        with pytest.raises(InputError, match=f"--streams {n}: accepted: 1 to 64"):
            EventLevel(n)


def test_the_command_writes_a_document_and_a_timeline(tmp_path, capsys):
    file = tmp_path / "timeline.json"
    arguments = ["estimate", "--model", "opt-125m", "--device", "h100-sxm", "--level", "event", "--prompt", "64"]
    assert run([*arguments, "--output", "4", "--streams", "2", "--timeline", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["level"] == "event"
    assert document["event"]["streams"] == document["request"]["streams"] == 2
    assert 0 < document["event"]["utilisation"]["decode"]["dram"] <= 1
    events = json.loads(file.read_text())["traceEvents"]
    tracks = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"stream 0", "stream 1", "dram", "compute"} <= tracks
    slices = [e for e in events if e["ph"] == "X" and e["pid"] == 2]
    dram = {e["tid"] for e in events if e["name"] == "thread_name" and e["args"]["name"] == "dram" and e["pid"] == 2}
    turns = sorted((e["ts"], e["dur"]) for e in slices if e["tid"] in dram)
    assert all(b[0] >= a[0] + a[1] - 1e-6 for a, b in pairwise(turns))  # one at a time
    assert run([*arguments, "--output", "4"]) == 0
    assert "in use dram" in capsys.readouterr().out


def test_ticks_resolve_the_shortest_tile():
    assert Task.of(0, "x", 1e-6, 2e-6, {"dram": 2e-6}).alone == round(3e-6 * TICKS)
    assert Task.of(0, "x", 0.0, 0.0, {}).alone == 0
