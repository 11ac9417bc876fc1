"""Devices of arrays: by hand, against the layers of a published simulator, every unit of ``rtl/``, and the laws."""

from __future__ import annotations

import csv
import functools
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.array import Product, Work, arrays_area, engine_of, peak, prepare
from tokenfab.hw.cost import cost
from tokenfab.hw.devices import find_architecture, load_device
from tokenfab.hw.spec import Device, parse_device
from tokenfab.rtl.areas import relative_area
from tokenfab.rtl.units import load_unit, unit_names
from tokenfab.workloads.compiled import compile_trace
from tokenfab.workloads.expr import expr
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.rewrite import map_operators
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Operator, Trace

FORMATS = {  # of the unit: what a trace of 4-bit weights and cache runs as
    "bit_serial_pe": ("fp4", "fp16"), "fp16_mac": ("fp16", "fp16"), "lut_tensor_unit": ("int4", "int8"),
    "ovp_decoder": ("ovp4", "ovp4"), "sparse_dsp_chain": ("int4", "int8"),
}  # fmt: skip
TEMPLATE = """
name = "round"
description = "arrays with round numbers"
kind = "systolic"
vendor = "nobody"
architecture = "array"
year = 2026
{engines}
[engines.vector]
fp32 = {{ value = "100 GFLOP/s", source = "assumed: test" }}
[arrays]
unit = "{unit}"
power = {{ value = "10 mW", source = "assumed: test" }}
mac_area = {{ value = "2000 um2", source = "assumed: test" }}
[arrays.weights]
int4 = "{weight}"
fp16 = "{wide}"
[arrays.activations]
fp16 = "{activation}"
bf16 = "{activation}"
{parameters}
[compute]
units = {{ value = {arrays}, source = "assumed: test" }}
clock = {{ value = "{clock} MHz", source = "assumed: test" }}
[memory.dram]
capacity = {{ value = "80 GiB", source = "assumed: test" }}
bandwidth = {{ value = "{bandwidth} GB/s", source = "assumed: test" }}
[memory.weights]
capacity = {{ value = "{buffer} KiB", source = "assumed: test" }}
energy = {{ value = "0.2 pJ/bit", source = "assumed: test" }}
[memory.activations]
capacity = {{ value = "{buffer} KiB", source = "assumed: test" }}
energy = {{ value = "0.1 pJ/bit", source = "assumed: test" }}
[power]
tdp = {{ value = "900 W", source = "assumed: test" }}
idle = {{ value = "1 W", source = "assumed: test" }}
[parameters]
vector_energy = {{ value = "1 pJ/op", source = "assumed: test" }}
"""
ROUND = {
    "unit": "bit_serial_pe", "arrays": 16, "clock": 1000, "bandwidth": 32, "buffer": 512, "parameters": "",
    "engines": "", "wide": "fp16",
}  # fmt: skip
SIMULATED = "accel/bitmod_sim_e445a5f_layers.csv"


def device(**changes: object) -> Device:
    values = ROUND | changes
    weight, activation = FORMATS.get(str(values["unit"]), ("", ""))
    text = TEMPLATE.format(**({"weight": weight, "activation": activation} | values))
    return parse_device(text.encode(), "round.toml", find_architecture)


@functools.cache
def narrow(model: str = "llama-2-7b", bits: int = 4) -> Trace:
    return apply_techniques(
        load_trace(model), [f"weight-only:bits={bits},scale_bits=8,head=1", f"kv-quant:bits={bits}"]
    )


def times(model: Trace, card: Device, b: float, q: float, c: float) -> dict[str, float]:
    compiled = compile_trace(model)
    found = cost(compiled, card, b, q, c, detail=True).operator_time_s
    assert found is not None
    return {name: float(found[i, 0]) / row.count for i, row in enumerate(compiled.rows) for name in row.names}


# -- by hand --------------------------------------------------------------------------------------------
def test_a_layer_takes_the_cycles_of_its_share_of_tiles():
    """Llama-2-7B's output projection, 256 tokens on 16 arrays of 8 x 8: 32 x 512 tiles, 1024 for each array."""
    card = device(bandwidth=100_000)
    found = times(narrow(), card, 1, 256, 0)["layer.attention.output"]
    unit = load_unit("bit_serial_pe")
    cycles = unit.cycles({"m": 8, "n": 8 * 1024, "k": 4096}, {"weight": "fp4"}, {})
    assert cycles == 1024 * 4096 // 4 * 2 + 20
    assert found == pytest.approx(cycles / 1e9 + 0.5e-6, rel=1e-12)


def test_decoding_streams_the_weights():
    card = device()
    found = times(narrow(), card, 1, 1, 1000)["layer.attention.output"]
    moved = 4096 * 4096 * Fraction(65, 16) / 8 + 2 * 4096 * 2  # 4 bits and 8 per 128; input and output
    assert found == pytest.approx(float(moved) / (32e9 * 0.9) + 0.5e-6, rel=1e-12)


def test_attention_is_two_products_per_head_of_keys():
    """Llama-3-8B decodes with 4 query heads per head of keys, 8 of those: 8 x ⌈4 / 8⌉ rows of tiles."""
    card = device(bandwidth=100_000)
    found = times(narrow("llama-3-8b"), card, 2, 1, 999)["layer.attention.attention"]
    unit = load_unit("bit_serial_pe")
    scores = unit.cycles({"m": 8, "n": 8 * ceil(2 * 8 * 125 / 16), "k": 128}, {"weight": "fp4"}, {})
    values = unit.cycles({"m": 8, "n": 8 * ceil(2 * 8 * 16 / 16), "k": 1000}, {"weight": "fp4"}, {})
    softmax = 5 * 2 * 32 * 1000 / (100e9 * 0.7)
    assert found == pytest.approx((scores + values) / 1e9 + 0.5e-6, rel=1e-9)
    assert softmax < (scores + values) / 1e9


def test_experts_are_products_of_those_routed_to():
    card = device(bandwidth=100_000)
    found = times(narrow("mixtral-8x7b"), card, 1, 1, 0)["layer.mlp"]
    unit = load_unit("bit_serial_pe")
    up = unit.cycles({"m": 8, "n": 8 * ceil(2 * 2 * 14336 / 8 / 16), "k": 4096}, {"weight": "fp4"}, {})
    down = unit.cycles({"m": 8, "n": 8 * ceil(2 * 4096 / 8 / 16), "k": 14336}, {"weight": "fp4"}, {})
    assert found == pytest.approx((up + down) / 1e9 + 0.5e-6, rel=1e-9)


def test_what_fits_no_buffer_is_fetched_again():
    """2 MiB of inputs and 8.1 MiB of weights by buffers of 512 KiB: weights four times beats inputs seventeen times."""
    card = device()
    engine = engine_of(card)
    work = Work(0, lambda at: [], {"weight": "fp4", "activation": "fp16"}, 4.0625, 16.0)
    one = np.ones(1, dtype=np.int64)
    weights = 4096 * 4096 * 4.0625 / 8
    assert engine.cost(Product(one, 256 * one, 4096 * one, 4096 * one), work)[3] == pytest.approx(3 * weights)
    assert engine.cost(Product(one, 64 * one, 4096 * one, 4096 * one), work)[3] == 0  # the inputs fit
    tall = 17 * one  # one input more than fits beside 2 MiB vectors: 17 times the weights, or twice the inputs
    wide = engine.cost(Product(one, tall, 4096 * one, 16384 * one), work)[3]
    assert wide == pytest.approx(min(1 * 4 * weights, 64 * 17 * 16384 * 2))


def test_without_a_buffer_nothing_is_fetched_again():
    whole = load_device("bitmod")
    bare = whole.model_copy(update={"memory": {"dram": whole.memory["dram"]}})
    costs = cost(narrow(), bare, [1, 1], [256, 1], [0, 256])
    moved = narrow().total("bytes")([1, 1], [256, 1], [0, 256])
    assert (costs.latency_s >= moved / whole.dram.bandwidth.value).all()
    assert costs.energy_parts_j["dram"] == pytest.approx(moved * 8 * 18.75e-12)
    assert (cost(narrow(), whole, [1, 1], [256, 1], [0, 256]).latency_s >= costs.latency_s).all()


def test_a_short_group_shows_its_scale():
    """Groups of 16 end every 8 cycles, which does not hide the 8 of the scale and the rows of the drain."""
    short = apply_techniques(load_trace("llama-2-7b"), ["weight-only:head=1,group=16", "kv-quant:bits=4"])
    found = times(short, device(bandwidth=100_000), 1, 256, 0)["layer.attention.output"]
    unit = load_unit("bit_serial_pe")
    cycles = unit.cycles({"m": 8, "n": 8 * 1024, "k": 4096, "group": 16}, {"weight": "fp4"}, {})
    assert cycles > 2 * 1024 * 4096 // 4 * 2
    assert found == pytest.approx(cycles / 1e9 + 0.5e-6, rel=1e-12)


@pytest.mark.parametrize("arrays", [1, 16, 17, 300])
def test_energy_of_the_arrays_is_that_of_the_tiles(arrays):
    """17 tiles draw the power of 17 tiles, however they are dealt out; fill and drain are once per array's share."""
    engine = engine_of(device(arrays=arrays))
    work = Work(0, lambda at: [], {"weight": "fp4", "activation": "fp16"}, 4.0625, 16.0)
    one = np.ones(1, dtype=np.int64)
    joules = engine.cost(Product(one, 8 * one, 17 * 8 * one, 4096 * one), work)[1]
    assert joules[0] == pytest.approx(0.010 * 17 * 2048e-9, rel=0.012)


# -- a published simulator ----------------------------------------------------------------------------
def test_bitmod_layers_take_the_published_cycles(truth):
    """Linear layers of Llama-2-7B, 6-bit weights, 256 tokens: compute and DRAM cycles of BitMoD's simulator."""
    path = truth / SIMULATED
    engine = engine_of(load_device("bitmod"))
    work = Work(0, lambda at: [], {"weight": "int6", "activation": "fp16"}, 6.0625, 16.0)
    seen = 0
    for row in csv.DictReader(path.read_text().splitlines()):
        if (row["accel"], row["phase"], row["model"]) != ("BitMoDLL", "prefill", "Llama-2-7B") or "attn_" in row[
            "layer"
        ]:
            continue
        n, k = (int(x) for x in row["w_dim"].strip("[]").split(",")[1:])
        sizes = [np.array([x]) for x in (1, 256, n, k)]
        seconds, _, _, again = engine.cost(Product(*sizes), work)
        assert seconds[0] * 1e9 == pytest.approx(float(row["compute_cycles"]), rel=2e-4), row["layer"]
        moved = n * k * 6.0625 / 8 + 256 * (n + k) * 2 + again[0]
        assert moved / 32 == pytest.approx(float(row["dram_cycles"]), rel=2e-3), row["layer"]
        seen += 1
    assert seen == 8


def test_the_peak_is_that_of_the_fastest_pair_of_formats():
    """16 x 64 elements of 4 lanes at 1 GHz: two cycles for 4 bits, three for 6 (cache: 8 bits, four)."""
    assert peak(narrow(), load_device("bitmod")) == ("fp4 by fp16", pytest.approx(2 * 16 * 64 * 4 / 2 * 1e9))
    six = apply_techniques(load_trace("llama-2-7b"), ["weight-only:bits=6,head=1", "kv-quant:bits=8"])
    assert peak(six, load_device("bitmod")) == ("int6 by fp16", pytest.approx(2 * 16 * 64 * 4 / 3 * 1e9))


def test_arrays_are_their_operations_times_the_ratio_of_the_rtl():
    """BitMoD: 16 x 128 multiply-accumulates per cycle. The paper's tiles are 1.59 mm2; docs/rtl.md says why."""
    fp4 = {"weight": "fp4", "activation": "fp16"}
    area = arrays_area(load_device("bitmod"), fp4)
    assert area == pytest.approx(16 * 128 * relative_area("bit_serial_pe", fp4) * 1968.7e-6, rel=1e-12)
    assert 1 < area / (16 * 0.099509) < 1.7
    assert arrays_area(device(arrays=32), fp4) == pytest.approx(2 * arrays_area(device(), fp4))


@pytest.mark.parametrize(
    ("name", "format", "same_as", "cache"),
    [
        ("bitmod", "bitmod-fp3-g128", "fp3", 8), ("bitmod", "bitmod-fp4-g128", "fp4", 8),
        ("bitmod", "bitmod-int6-g128", "int6", 8), ("ant", "ant4-g128", "fp16", 8), ("ant", "ant3-tensor", "fp16", 8),
        ("olive", "ovp4", "ovp4", 4),
    ],
)  # fmt: skip
def test_arrays_take_formats_by_their_own_names(name, format, same_as, cache):
    """As what the unit takes a stored format, and that all products of a model run on it."""
    card = load_device(name)
    trace = apply_techniques(load_trace("opt-125m"), [f"weight-only:format={format},head=1", f"kv-quant:bits={cache}"])
    compiled = compile_trace(trace)
    work = [w for w in prepare(compiled, card).work if compiled.rows[w.row].operator.kind == "matmul"]
    assert len(work) >= 5
    assert {w.format["weight"] for w in work} == {same_as}
    assert cost(compiled, card, 1, 64, 0).latency_s[0] > float(trace.total("bytes")(1, 64, 0)) / 32e9


# -- every unit, and the laws ---------------------------------------------------------------------------
@pytest.mark.parametrize("unit", unit_names())
def test_every_unit_costs_a_model(unit):
    card = device(unit=unit)
    model = load_trace("llama-2-7b") if FORMATS[unit][0] == "fp16" else narrow()
    compiled = compile_trace(model)
    costs = cost(compiled, card, [1, 8], [512, 1], [0, 512], detail=True)
    moved = model.total("bytes")([1, 8], [512, 1], [0, 512])
    assert (costs.latency_s >= moved / card.dram.bandwidth.value).all()
    engine, fmt = engine_of(card), dict(zip(("weight", "activation"), FORMATS[unit], strict=True))
    rows, columns = engine.unit.tile(fmt, engine.config)
    i = next(i for i, row in enumerate(compiled.rows) if "layer.attention.output" in row.names)
    tiles = ceil(512 / rows) * ceil(4096 / columns)
    cycles = engine.unit.cycles({"m": rows, "n": columns * ceil(tiles / 16), "k": 4096}, fmt, engine.config)
    assert costs.operator_time_s is not None
    assert costs.operator_time_s[i, 0] / compiled.rows[i].count >= cycles / 1e9
    assert prepare(compiled, card).engine.unit.name == unit


POINTS = st.tuples(st.integers(1, 64), st.integers(1, 700), st.integers(0, 4000))


@given(POINTS, st.sampled_from(["arrays", "clock", "bandwidth", "buffer"]), st.integers(1, 40), st.integers(1, 9))
def test_more_of_anything_never_slows(point, key, some, factor):
    few = {"arrays": some, "clock": 100 * some, "bandwidth": 10 * some, "buffer": 16 * some}[key]
    before = cost(narrow("llama-3-8b"), device(**{key: few}), *point)
    after = cost(narrow("llama-3-8b"), device(**{key: few * factor}), *point)
    assert after.latency_s[0] <= before.latency_s[0] * (1 + 1e-9)


@given(POINTS, st.sampled_from(["llama-3-8b", "mixtral-8x7b", "opt-1.3b"]))
def test_time_and_energy_are_whole(point, model):
    t, card = narrow(model), device()
    costs = cost(t, card, *point)
    assert sum(v[0] for v in costs.bound.values()) == pytest.approx(1, abs=1e-9)
    assert costs.energy_j[0] == pytest.approx(sum(v[0] for v in costs.energy_parts_j.values()))
    assert set(costs.energy_parts_j) == {"compute", "sram", "dram", "static"}
    assert costs.low_s[0] < costs.latency_s[0] < costs.high_s[0]
    moved = float(t.total("bytes")(*point))
    assert costs.latency_s[0] >= moved / 32e9
    assert costs.energy_parts_j["dram"][0] >= moved * 8 * 18.75e-12 * (1 - 1e-9)
    b, q, c = point
    larger = cost(t, card, [b + 1, b], [q, q], [c, c + 64])
    assert (larger.latency_s >= costs.latency_s[0] * (1 - 1e-12)).all()


def test_a_matrix_engine_takes_what_the_arrays_do_not():
    engines = '[engines.matrix]\nfp16 = { value = "10 TFLOP/s", source = "assumed: test" }'
    wide = load_trace("llama-2-7b")
    found = times(wide, device(engines=engines, bandwidth=100_000), 1, 256, 0)
    assert found["layer.attention.output"] == pytest.approx(2 * 256 * 4096**2 / 10e12 + 0.5e-6)


def latent() -> Trace:
    """A model whose attention is marked as one in latent space."""

    def mark(op: Operator) -> Operator:
        sizes = op.dims | {"latent_dim": expr(576), "latent_value": expr(512)}
        return op.model_copy(update={"dims": sizes}) if op.kind == "attention" else op

    return map_operators(narrow(), mark)


# -- errors ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        (lambda: load_trace("llama-2-7b"), {}, r"attention.qkv multiplies fp16 by fp16: .*try --apply weight-only"),
        (lambda: apply_techniques(load_trace("llama-2-7b"), ["weight-only:head=1"]), {}, "attention.*--apply kv-quant"),
        (lambda: narrow(bits=1), {}, r"fp16 by int1-g128: bit_serial_pe: accepted: .*; \[arrays.weights\] and"),
        (narrow, {"unit": "bit-serial", "weight": "fp4", "activation": "fp16"},
         r"device round: arrays\.unit: unknown unit 'bit-serial'"),
        (narrow, {"parameters": '[arrays.parameters]\nrows = { value = 65, source = "assumed: test" }'},
         "device round: arrays.parameters: bit_serial_pe: ROWS must be from 1 to 64; ROWS is 65"),
        (narrow, {"parameters": '[arrays.parameters]\nwidth = { value = 6, source = "assumed: test" }'},
         "unknown parameter of bit_serial_pe 'WIDTH'"),
        (lambda: latent(), {}, "attention.attention multiplies .* no product for attention in latent space"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(model, changes, words):
    with pytest.raises(InputError, match=words):
        cost(model(), device(**changes), 1, 1, 1)


def test_a_device_of_no_arrays_is_refused():
    text = (load_device("bitmod"),)[0].model_copy(update={"arrays": None})
    with pytest.raises(InputError, match=r"device bitmod: a bit-serial device needs \[arrays\]"):
        cost(narrow(), text, 1, 1, 1)
    bare = load_device("bitmod").model_copy(update={"parameters": {}})
    with pytest.raises(InputError, match=r"device bitmod: parameters\.vector_energy is missing"):
        cost(narrow(), bare, 1, 1, 1)
    assert load_device("bitmod").arrays is not None
    unpriced = load_device("bitmod").arrays.model_copy(update={"mac_area": None})
    with pytest.raises(InputError, match=r"arrays\.mac_area is missing"):
        arrays_area(load_device("bitmod").model_copy(update={"arrays": unpriced}), {})
