"""Lookup tensor cores: peaks, a product by hand, what stays the GPU's, the laws, and gates against the paper."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw import gates
from tokenfab.hw.array import Product, engine_of, peak
from tokenfab.hw.array import prepare as prepare_arrays
from tokenfab.hw.card import card_of
from tokenfab.hw.cost import cost
from tokenfab.hw.devices import load_device
from tokenfab.hw.die import area_of, price_of
from tokenfab.hw.estimate import Request, estimate
from tokenfab.hw.gemm import CUBLAS_AMPERE, CUBLAS_HOPPER, CUTLASS_FP8, gemm_kernels, gemm_time
from tokenfab.hw.hourly import HOURS_OF_LIFE, USD_PER_KWH
from tokenfab.hw.lut import card_view, larger_tiles, lookup_of, prepare
from tokenfab.workloads.compiled import compile_trace
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace

NAME = "a100-lut-tensor-core"


@functools.cache
def narrow(bits: int = 2, model: str = "opt-125m") -> Trace:
    return apply_techniques(load_trace(model), [f"weight-only:bits={bits}"])


def seconds_of(trace: Trace, device, point) -> dict[str, float]:
    compiled = compile_trace(trace)
    found = cost(compiled, device, *point, detail=True).operator_time_s
    assert found is not None
    return {row.names[0]: float(found[i, 0]) / row.count for i, row in enumerate(compiled.rows)}


def test_peaks_are_the_papers():
    """1248 and 2496 TOP/s at two bits (section 4.4), twice that at one, half at four."""
    for name, at_two in ((NAME, 1248e12), (f"{NAME}-8x", 2496e12)):
        device = load_device(name)
        for bits, factor in ((1, 2), (2, 1), (4, 0.5)):
            trace = narrow(bits)
            assert peak(trace, device)[1] == pytest.approx(at_two * factor, rel=1e-3)


@pytest.mark.parametrize(("name", "count"), [(NAME, 1728), (f"{NAME}-8x", 3456)])
def test_arrays_take_area_and_cost_money(name, count):
    """Table 2's array in 7 nm, so many times, on the A100's die; the A100's price by the cost of the parts."""
    device, a100 = load_device(name), load_device("a100-80g-sxm")
    each = 11991.29e-6 * 15.3 / 96.3
    assert device.arrays.area.value == pytest.approx(each, rel=1e-4)
    area, before = area_of(device), area_of(a100)
    assert area.parts["arrays"] == pytest.approx(count * each, rel=1e-4)
    assert area.total == pytest.approx(826 + count * each, rel=1e-5)
    for part in before.parts:
        assert area.parts[part] == pytest.approx(before.parts[part], abs=0.01), part
    costs = [sum(x for part, x in price_of(d).parts.items() if part != "margin") for d in (device, a100)]
    assert costs[0] > costs[1]
    assert price_of(device).total == pytest.approx(15000 * costs[0] / costs[1], abs=1)


def test_the_gpu_is_bought_once():
    """A GPU with arrays is no second GPU: its price alone, over four years, and electricity."""
    result = estimate(narrow(), load_device(NAME), Request(1, 64, 8))
    hourly, basis = result.hourly_usd
    assert basis.startswith("bought")
    assert hourly == pytest.approx(15024 / HOURS_OF_LIFE + result.energy_j / result.latency_s / 1000 * USD_PER_KWH)


def test_a_product_is_a_gemm_at_the_arrays_rate():
    """Llama-2-7B's output projection of 2048 tokens, 2-bit weights: tiles twice as large, at 1247 TFLOP/s."""
    device = load_device(NAME)
    found = seconds_of(narrow(2, "llama-2-7b"), device, (1, 2048, 0))["layer.attention.output"]
    card = card_view(device)
    constants, kernels = gemm_kernels(card)
    rate = 2 * 256 * 1728 * 1.41e9
    bits = 2 + 16 / 128
    expected, _ = gemm_time(
        2048, 4096, 4096, card_of(card), constants, larger_tiles(kernels, 2), rate=rate, bits=16, weight_bits=bits
    )
    assert found == pytest.approx(float(expected), rel=1e-6)
    assert found > 2 * 2048 * 4096**2 / rate


def test_the_arrays_own_cycles_bind_where_they_are_few():
    whole = load_device(NAME)
    few = whole.model_copy(update={"arrays": whole.arrays.model_copy(update={"per_unit": None})})
    trace = narrow(2, "llama-2-7b")
    engine = engine_of(few)
    compiled = compile_trace(trace)
    i = next(i for i, row in enumerate(compiled.rows) if "layer.attention.output" in row.names)
    lookup = lookup_of(i, compiled.rows[i], engine, few)
    one = np.ones(1, dtype=np.int64)
    seconds = engine.cost(Product(one, 2048 * one, 4096 * one, 4096 * one), lookup.work)[0][0]
    found = seconds_of(trace, few, (1, 2048, 0))["layer.attention.output"]
    assert found >= seconds
    assert seconds == pytest.approx(2048 * 4096**2 / (256 * 108 * 1.41e9), rel=0.03)


def test_everything_else_is_the_gpus():
    """16-bit models take the card's own time and energy; of a narrow one all but the products of weights."""
    a100, device, wide = load_device("a100-80g-sxm"), load_device(NAME), load_trace("opt-125m")
    points = ([1, 8], [512, 1], [0, 800])
    ours, own = cost(wide, device, *points), cost(wide, a100, *points)
    assert ours.latency_s == pytest.approx(own.latency_s, rel=1e-12)
    assert ours.energy_j == pytest.approx(own.energy_j, rel=1e-12)
    narrow_here, narrow_there = (seconds_of(narrow(), d, (1, 512, 0)) for d in (device, a100))
    for name, seconds in narrow_here.items():
        if name.endswith((".qkv", ".output", ".up", ".down")):
            assert seconds != narrow_there[name]
        else:
            assert seconds == pytest.approx(narrow_there[name]), name


def test_without_a_host_it_is_arrays():
    bitmod = load_device("bitmod").model_copy(update={"kind": "lut"})
    trace = compile_trace(apply_techniques(load_trace("opt-125m"), ["weight-only:head=1", "kv-quant:bits=4"]))
    assert type(prepare(trace, bitmod)) is type(prepare_arrays(trace, bitmod))


def test_larger_registers_hold_larger_tiles():
    tiles = set(larger_tiles(CUBLAS_AMPERE, 2).tiles)
    assert {(256, 256), (128, 512), (512, 128)} <= tiles
    assert set(CUBLAS_AMPERE.tiles) <= tiles
    assert max(bm * bn for bm, bn in tiles) == 2 * 128 * 256
    assert larger_tiles(CUBLAS_HOPPER, 1) is CUBLAS_HOPPER
    assert larger_tiles(CUTLASS_FP8, 2) is CUTLASS_FP8  # dispatched by m alone: its tiles are its own


POINTS = st.tuples(st.integers(1, 64), st.integers(1, 700), st.integers(0, 4000))


@given(POINTS, st.sampled_from(["arrays", "bandwidth", "bits"]), st.integers(1, 20), st.integers(1, 6))
def test_more_arrays_bandwidth_or_fewer_bits_never_slow(point, what, some, factor):
    device, slow, fast = load_device(NAME), narrow(4), narrow(4)
    if what == "bits":
        slow, fast, before, after = narrow(4), narrow(2), device, device
    else:

        def of(value):
            if what == "arrays":
                many = device.arrays.per_unit.model_copy(update={"value": float(value)})
                return device.model_copy(update={"arrays": device.arrays.model_copy(update={"per_unit": many})})
            wide = device.dram.bandwidth.model_copy(update={"value": 1e11 * value})
            dram = device.dram.model_copy(update={"bandwidth": wide})
            return device.model_copy(update={"memory": device.memory | {"dram": dram}})

        before, after = of(some), of(some * factor)
    one, two = cost(slow, before, *point), cost(fast, after, *point)
    assert two.latency_s[0] <= one.latency_s[0] * (1 + 1e-6)
    assert one.latency_s[0] >= float(slow.total("bytes")(*point)) / before.dram.bandwidth.value
    assert one.energy_j[0] == pytest.approx(sum(v[0] for v in one.energy_parts_j.values()))
    assert sum(v[0] for v in one.bound.values()) == pytest.approx(1, abs=1e-9)
    assert one.low_s[0] < one.latency_s[0] < one.high_s[0]


def test_what_cannot_be_is_said():
    device = load_device(NAME)
    cases = [
        (device.model_copy(update={"host": load_device("tpu-v5e")}), "its host must be a GPU"),
        (device.model_copy(update={"engines": {"vector": device.engines["vector"]}}), r"engines\.matrix is missing"),
        (device.model_copy(update={"arrays": None}), r"a lut device needs \[arrays\]"),
    ]
    for broken, words in cases:
        with pytest.raises(InputError, match=words):
            cost(narrow(), broken, 1, 1, 1)


# -- gates ----------------------------------------------------------------------------------------------
def test_gates_by_hand():
    """8 x 8 bits: 64 AND, 35 + 14 full and 7 half adders; a lane: 8 bits of one of 8, its sign, a 32-bit adder."""
    assert gates.multiplier(8) == pytest.approx(64 * 1.33 + 49 * 5 + 7 * 3.33)
    assert gates.selection(2) == pytest.approx(1.67)
    assert gates.selection(8) == pytest.approx(4 * 1.67 + 3 * 1.165)
    lane = 8 * gates.selection(8) + 8 * 2.33 + 32 * 5
    assert gates.lookup_array() == pytest.approx(128 * lane + 64 * gates.lines(3) + 2 * 8 * 8 * 4)
    assert gates.lookup_mac(2) == pytest.approx(2 * gates.lookup_mac(1))
    assert gates.lookup_mac(1) == pytest.approx(gates.lookup_array() / 512)


@given(st.integers(2, 24), st.integers(1, 8), st.integers(2, 6))
def test_gates_grow_with_bits(bits, more, group):
    assert gates.multiplier(bits + more) > gates.multiplier(bits)
    assert gates.float_mac(bits + more) > gates.float_mac(bits)
    assert gates.lookup_array(group=group, entry=bits + more) > gates.lookup_array(group=group, entry=bits)
    for extra in ("floats", "conventional", "negated", "tables"):
        assert gates.lookup_array(group=4, entry=bits + 6, **{extra: True}) > gates.lookup_array(
            group=4, entry=bits + 6
        )
