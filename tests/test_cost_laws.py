"""Is the cost right? Hand values on a device with round numbers, and the laws on random devices."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.collective import collective_time
from tokenfab.hw.cost import CHUNK, cost, kind_modules, rated_power
from tokenfab.hw.devices import device_names, find_architecture, load_device
from tokenfab.hw.pim_unit import unit_of
from tokenfab.hw.spec import Device, parse_device
from tokenfab.hw.units import DEVICE_KINDS
from tokenfab.workloads.capture import capture
from tokenfab.workloads.parallel import tensor_parallel
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace

TEMPLATE = """
name = "round"
description = "a device with round numbers"
kind = "{kind}"
vendor = "nobody"
year = 2026
[engines.matrix]
fp16 = {{ value = "{rate} TFLOP/s", source = "assumed: test" }}
[engines.vector]
fp32 = {{ value = "{vector} TFLOP/s", source = "assumed: test" }}
[compute]
units = {{ value = 1, source = "assumed: test" }}
clock = {{ value = "1 GHz", source = "assumed: test" }}
[memory.dram]
capacity = {{ value = "80 GiB", source = "assumed: test" }}
bandwidth = {{ value = "{bandwidth} GB/s", source = "assumed: test" }}
energy = {{ value = "4 pJ/bit", source = "assumed: test" }}
[links.ring]
bandwidth = {{ value = "{link} GB/s", source = "assumed: test" }}
latency = {{ value = "{hop} us", source = "assumed: test" }}
[power]
tdp = {{ value = "{tdp} W", source = "assumed: test" }}
idle = {{ value = "60 W", source = "assumed: test" }}
[model]
matmul_efficiency = {{ value = 1, source = "assumed: test" }}
attention_efficiency = {{ value = 1, source = "assumed: test" }}
attention_memory_efficiency = {{ value = 1, source = "assumed: test" }}
attention_launch = {{ value = "{launch} us", source = "assumed: test" }}
vector_efficiency = {{ value = 1, source = "assumed: test" }}
memory_efficiency = {{ value = 1, source = "assumed: test" }}
launch = {{ value = "{launch} us", source = "assumed: test" }}
link_efficiency = {{ value = 1, source = "assumed: test" }}
"""
ROUND = {
    "rate": 100.0,
    "vector": 10.0,
    "bandwidth": 1000.0,
    "link": 100.0,
    "hop": 1.0,
    "launch": 5.0,
    "tdp": 400.0,
    "kind": "tpu",
}


def device(**changes: object) -> Device:
    return parse_device(TEMPLATE.format(**(ROUND | changes)).encode(), "round.toml", find_architecture)


@functools.cache
def trace(model: str = "llama-2-7b") -> Trace:
    return capture(model)


def operator_times(costs, compiled_rows):
    return {row.names: costs.operator_time_s[i, 0] for i, row in enumerate(compiled_rows)}


def test_decode_of_one_token_is_the_hand_computed_roofline() -> None:
    """Llama-2-7B, batch 1, context 1023, 100 TFLOP/s and 1 TB/s: every operator is bound by bytes."""
    layers, d, inner, vocabulary, kv = 32, 4096, 11008, 32000, 1024
    matmuls = layers * 2 * (d * 3 * d + d * d + d * 2 * inner + inner * d) + 2 * d * vocabulary
    activations = layers * 2 * (d + 3 * d + d + d + d + 2 * inner + inner + d) + 2 * (d + vocabulary)
    attention = layers * 2 * (2 * d * kv + 2 * d)
    norms = layers * 2 * 2 * (2 * d + d) + 2 * (2 * d + d)
    ropes = layers * 2 * 4 * d  # q and k, in and out
    appends = layers * 2 * 4 * d
    adds = layers * 2 * 2 * 3 * d
    acts = layers * 2 * 3 * inner
    embedding = 2 * 2 * d + 8  # the row out and in, and the token's 8-byte index
    moved = matmuls + activations + attention + norms + ropes + appends + adds + acts + embedding
    kernels = 12 * layers + 3
    costs = cost(trace(), device(), 1, 1, 1023)
    assert costs.latency_s[0] == pytest.approx(moved / 1e12 + kernels * 5e-6, rel=1e-12)
    assert costs.bound["launch"][0] == pytest.approx(kernels * 5e-6 / costs.latency_s[0])
    assert costs.bound["dram"][0] == pytest.approx(moved / 1e12 / costs.latency_s[0])
    assert costs.bound["compute"][0] == 0


def test_large_prefill_is_bound_by_arithmetic() -> None:
    costs = cost(trace(), device(bandwidth=1e6, vector=1e6, launch=1e-6, tdp=1e5), 8, 2048, 0)
    tokens, d, inner = 8 * 2048, 4096, 11008
    matmuls = 2 * tokens * 32 * (4 * d * d + 3 * d * inner) + 2 * 8 * d * 32000
    attention = 4 * 8 * 32 * d * (2048 * 2049 / 2)
    bound = (matmuls + attention) / 100e12
    assert costs.latency_s[0] == pytest.approx(bound, rel=2e-3)
    assert costs.bound["compute"][0] > 0.99


def test_bandwidth_is_decimal() -> None:
    """A peer reads GB/s as GiB/s and is 7.4 % too fast at everything bound by memory."""
    one = cost(trace(), device(launch=1e-6, rate=1e5, vector=1e5), 1, 1, 100)
    moved = float(trace().total("bytes")(1, 1, 100))
    assert one.latency_s[0] == pytest.approx(moved / 1e12, rel=1e-3)
    assert abs(one.latency_s[0] / (moved / (1000 * 2**30)) - 1) > 0.07


def test_energy_of_a_compute_bound_second_is_the_rated_power() -> None:
    """At peak arithmetic and peak bandwidth together the device draws its TDP, by construction."""
    costs = cost(trace(), device(), 8, 2048, 0)
    power = costs.energy_j[0] / costs.latency_s[0]
    assert 60 < power <= 400
    decode = cost(trace(), device(), 1, 1, 100)
    dram = float(trace().total("bytes")(1, 1, 100)) * 8 * 4e-12
    assert decode.energy_parts_j["dram"][0] == pytest.approx(dram, rel=1e-12)
    assert decode.energy_parts_j["static"][0] == pytest.approx(0.296 * 400 * decode.latency_s[0])


def test_collectives_by_hand() -> None:
    launch, ring = 5e-6, 7 / 8 * 8e6 / 100e9
    assert collective_time("all_reduce", 8e6, 8, device()) == pytest.approx(launch + 6e-6 + 2 * ring)  # 2·log2(8) hops
    assert collective_time("all_gather", 8e6, 8, device()) == pytest.approx(launch + 3e-6 + ring)
    assert collective_time("send", 8e6, 8, device()) == pytest.approx(launch + 1e-6 + 8e6 / 100e9)


def test_tensor_parallel_adds_two_all_reduces_a_layer_and_a_gather() -> None:
    shared = tensor_parallel(trace(), 4)
    costs = cost(shared, device(), 1, 1, 100)
    volume = 2 * 4096 * 2  # one token's hidden state in fp16, there and back
    reduces = 64 * (volume * 3 / 4 / 100e9 + 4e-6 + 5e-6)  # their launch included
    gather = 2 * 32000 * 3 / 4 / 100e9 + 2e-6 + 5e-6
    assert costs.bound["network"][0] * costs.latency_s[0] == pytest.approx(reduces + gather, rel=1e-9)


def test_narrow_weights_cost_their_dequantisation() -> None:
    narrow = apply_techniques(trace(), ["weight-only:bits=4,group=128"])
    slow_vector = cost(narrow, device(vector=0.1), 1, 1, 100)
    elements = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert slow_vector.bound["dequantisation"][0] * slow_vector.latency_s[0] == pytest.approx(2 * elements / 0.1e12)
    fast = cost(narrow, device(vector=1e6), 1, 1, 100)
    assert fast.latency_s[0] < cost(trace(), device(vector=1e6), 1, 1, 100).latency_s[0] / 2


def test_chunks_join_without_a_seam() -> None:
    contexts = np.arange(CHUNK + 3)
    whole = cost(trace(), device(), 2, 1, contexts, detail=True)
    single = cost(trace(), device(), 2, 1, contexts[-1])
    assert whole.latency_s.shape == (CHUNK + 3,)
    assert whole.latency_s[-1] == pytest.approx(single.latency_s[0], rel=1e-12)
    assert whole.operator_time_s is not None
    np.testing.assert_allclose(whole.operator_time_s.sum(axis=0), whole.latency_s, rtol=1e-12)


def test_no_points_give_empty_arrays() -> None:
    assert cost(trace(), device(), [], 1, 1).latency_s.shape == (0,)


@pytest.mark.parametrize(
    ("point", "message"),
    [((0, 1, 0), "batch"), ((1, 0, 0), "query"), ((1, 1, -1), "context"), ((float("nan"), 1, 1), "batch")],
)
def test_impossible_points_are_refused(point: tuple[float, float, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cost(trace(), device(), *point)


def test_a_kind_without_a_model_says_which_have_one() -> None:
    odd = device().model_copy(update={"kind": "abacus"})
    with pytest.raises(InputError, match=r"no cost model for kind 'abacus'; modelled: .*gpu"):
        cost(trace(), odd, 1, 1, 0)


MODELS = st.sampled_from(["llama-2-7b", "mixtral-8x7b", "opt-1.3b", "mistral-7b", "bitnet-b1.58-3b"])
POINTS = st.tuples(st.integers(1, 256), st.integers(1, 4096), st.integers(0, 30000))
SIZES = st.fixed_dictionaries(
    {
        "rate": st.floats(1, 5000), "vector": st.floats(0.5, 200), "bandwidth": st.floats(20, 9000),
        "link": st.floats(1, 1000), "hop": st.floats(0.1, 20), "launch": st.floats(0.1, 50),
        "kind": st.sampled_from(["tpu", "gpu"]),
    }
)  # fmt: skip


def _powered(sizes: dict[str, float | str]) -> Device:
    """Rated power high enough for any random bandwidth."""
    text = TEMPLATE.format(**{k: v if isinstance(v, str) else round(v, 6) for k, v in sizes.items()}, tdp=900)
    return parse_device(text.encode(), "random.toml", find_architecture)


@given(MODELS, SIZES, POINTS, st.sampled_from(["rate", "vector", "bandwidth", "link"]), st.floats(1, 20))
def test_more_of_anything_never_slows(model, sizes, point, key, factor) -> None:
    shared = tensor_parallel(trace(model), 2)
    before = cost(shared, _powered(sizes), *point)
    more = {**sizes, key: min(sizes[key] * factor, 9000 if key == "bandwidth" else 1e6)}
    assert cost(shared, _powered(more), *point).latency_s[0] <= before.latency_s[0] * (1 + 1e-9)


@given(MODELS, SIZES, POINTS, st.sampled_from(["hop", "launch"]), st.floats(0.05, 1))
def test_less_latency_never_slows(model, sizes, point, key, factor) -> None:
    shared = tensor_parallel(trace(model), 2)
    before = cost(shared, _powered(sizes), *point)
    less = {**sizes, key: max(sizes[key] * factor, 1e-3)}
    assert cost(shared, _powered(less), *point).latency_s[0] <= before.latency_s[0] * (1 + 1e-9)


@given(MODELS, SIZES, POINTS)
def test_time_is_never_below_the_roofline(model, sizes, point) -> None:
    card = _powered(sizes)
    t = trace(model)
    costs = cost(t, card, *point)
    peak = max(card.rate("fp16")[1].value, card.rate("fp32", engine="vector")[1].value)
    flops, moved = float(t.total("flops")(*point)), float(t.total("bytes")(*point))
    assert costs.latency_s[0] >= max(flops / peak, moved / card.dram.bandwidth.value) * (1 - 1e-9)


@given(MODELS, SIZES, POINTS)
def test_parts_sum_to_the_whole(model, sizes, point) -> None:
    costs = cost(trace(model), _powered(sizes), *point)
    assert sum(v[0] for v in costs.bound.values()) == pytest.approx(1, abs=1e-9)
    assert costs.energy_j[0] == pytest.approx(sum(v[0] for v in costs.energy_parts_j.values()))
    assert all(v[0] >= 0 for v in costs.energy_parts_j.values())
    assert costs.low_s[0] <= costs.latency_s[0] <= costs.high_s[0]


@given(MODELS, POINTS, st.integers(2, 8))
def test_splitting_a_batch_never_moves_fewer_bytes(model, point, parts) -> None:
    b, q, c = point
    moved = trace(model).total("bytes")
    assert parts * float(moved(b, q, c)) >= float(moved(parts * b, q, c)) * (1 - 1e-9)


@given(MODELS, POINTS)
def test_longer_contexts_and_larger_batches_never_cost_less(model, point) -> None:
    b, q, c = point
    costs = cost(trace(model), device(), [b, b + 1, b], [q, q, q], [c, c, c + 1])
    assert costs.latency_s[1] >= costs.latency_s[0] * (1 - 1e-12)
    assert costs.latency_s[2] >= costs.latency_s[0] * (1 - 1e-12)


def test_every_kind_that_a_file_may_name_is_modelled() -> None:
    assert set(kind_modules()) == set(DEVICE_KINDS)


@pytest.mark.parametrize("name", device_names())
def test_every_catalogue_device_costs_a_model(name: str) -> None:
    card = load_device(name)
    model = apply_techniques(trace(), ["weight-only:head=1", "kv-quant:bits=4"]) if card.arrays else trace()
    costs = cost(model, card, [1, 8], [512, 1], [0, 512])
    moved = model.total("bytes")([1, 8], [512, 1], [0, 512])
    machines = [m for m in (card, card.host) if m is not None]
    fastest = max(level.bandwidth.value for m in machines for level in m.memory.values() if level.bandwidth)
    if card.kind == "pim":  # units read their banks beside what the bus carries
        fastest += unit_of(card).peak_bytes_s()
    assert (costs.latency_s >= moved / fastest).all()
    assert (costs.low_s < costs.latency_s).all()
    assert (costs.high_s > costs.latency_s).all()
    power = costs.energy_j / costs.latency_s
    assert (power <= rated_power(card)[0] * 1.0001).all()
