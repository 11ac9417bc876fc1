"""Storage devices: by hand, against what was published, the laws, and what lives where."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw import roofline
from tokenfab.hw.cost import cost, prepare
from tokenfab.hw.devices import find_architecture, load_device
from tokenfab.hw.estimate import Request, estimate, memory_fit
from tokenfab.hw.far import FarModel
from tokenfab.hw.flash import nand_of
from tokenfab.hw.spec import Device, parse_device
from tokenfab.hw.split import SplitModel
from tokenfab.hw.tiers import Level, fill, levels
from tokenfab.workloads.compiled import CompiledTrace, compile_trace
from tokenfab.workloads.expr import Expr
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace

TEMPLATE = """
name = "round"
description = "a device with round numbers"
kind = "storage"
vendor = "nobody"
architecture = "flash-soc"
year = 2026
{host}
[engines.matrix]
fp16 = {{ value = "10 TFLOP/s", source = "assumed: test" }}
[engines.vector]
fp32 = {{ value = "1 TFLOP/s", source = "assumed: test" }}
[compute]
units = {{ value = 1, source = "assumed: test" }}
clock = {{ value = "1 GHz", source = "assumed: test" }}
[memory.dram]
{dram_holds}
capacity = {{ value = "{dram} GB", source = "assumed: test" }}
bandwidth = {{ value = "{dram_rate} GB/s", source = "assumed: test" }}
[memory.flash]
holds = "{holds}"
capacity = {{ value = "1 TB", source = "assumed: test" }}
bandwidth = {{ value = "{rate} GB/s", source = "assumed: test" }}
latency = {{ value = "{latency} us", source = "assumed: test" }}
energy = {{ value = "50 pJ/bit", source = "assumed: test" }}
[links.pcie]
bandwidth = {{ value = "{link} GB/s", source = "assumed: test" }}
latency = {{ value = "10 us", source = "assumed: test" }}
topology = "host"
[power]
tdp = {{ value = "100 W", source = "assumed: test" }}
idle = {{ value = "1 W", source = "assumed: test" }}
[model]
memory_efficiency = {{ value = 1, source = "assumed: test" }}
link_efficiency = {{ value = 1, source = "assumed: test" }}
[parameters]
flash_command = {{ value = "{command} us", source = "assumed: test" }}
flash_depth = {{ value = 64, source = "assumed: test" }}
flash_write = {{ value = "1 GB/s", source = "assumed: test" }}
{parameters}
"""
ROUND = {
    "host": "", "holds": "far-weights, far-kv", "dram_holds": "", "dram": 64, "dram_rate": 100, "rate": 5,
    "latency": 100, "link": 4, "command": 1, "parameters": "",
}  # fmt: skip
CSD = """
channels = { value = 8, source = "assumed: test" }
channel_rate = { value = "1 GB/s", source = "assumed: test" }
page = { value = "4096 B", source = "assumed: test" }
page_read = { value = "50 us", source = "assumed: test" }
dies_per_channel = { value = 64, source = "assumed: test" }
channel_share = { value = 1, source = "assumed: test" }
attention_units = { value = 8, source = "assumed: test" }
gemv_rate = { value = "100 GFLOP/s", source = "assumed: test" }
softmax_rate = { value = "10 GOP/s", source = "assumed: test" }
filter_rate = { value = "5 GB/s", source = "assumed: test" }
"""


def device(**changes: object) -> Device:
    text = TEMPLATE.format(**(ROUND | changes))
    return parse_device(text.encode(), "round.toml", find_architecture, load_device)


def csd(**changes: object) -> Device:
    return device(host='host = "a6000"', holds="kv", parameters=CSD, **changes)


@functools.cache
def trace(model: str, *techniques: str) -> Trace:
    return apply_techniques(load_trace(model), techniques)


def rows(model: Trace, card: Device, b: float, q: float, c: float) -> dict[str, float]:
    compiled = compile_trace(model)
    found = cost(compiled, card, b, q, c, detail=True).operator_time_s
    assert found is not None
    return {name: float(found[i, 0]) / row.count for i, row in enumerate(compiled.rows) for name in row.names}


# -- by hand --------------------------------------------------------------------------------------------
def test_weights_on_demand_are_read_before_they_are_used():
    """OPT-6.7B's first FFN matrix, 4096 x 16384 in fp16: 134 MB from flash, then 134 MB from memory."""
    card = device()
    found = rows(trace("opt-6.7b", "offload:what=weights"), card, 1, 1, 100)["layer.mlp.up"]
    matrix = 4096 * 16384 * 2
    memory = (matrix + 16384 * 2 + (4096 + 16384) * 2) / 100e9  # bias, input and output too
    assert found == pytest.approx(10e-6 + memory + 100e-6 + matrix / 5e9, rel=1e-9)


def test_overlap_hides_the_shorter_of_reading_and_arithmetic():
    card = device()
    matrix = 4096 * 16384 * 2
    found = rows(trace("opt-6.7b", "offload:what=weights,overlap=1"), card, 1, 1, 100)["layer.mlp.up"]
    assert found == pytest.approx(10e-6 + 100e-6 + matrix / 5e9, rel=1e-9)


def test_neurons_that_fire_are_read_in_bundles_and_managed():
    """3 % of the neurons, 80 % of them missed, in reads of 16 KB: 1 us and 3.3 us each, against 5 us for latency."""
    techniques = "activation-sparsity:active=0.03,predictor=0", "offload:what=ffn,miss=0.8,bundle=1,managed=1"
    found = rows(trace("opt-6.7b", *techniques), device(), 1, 1, 100)["layer.mlp.down"]
    touched = 0.03 * 4096 * 16384 * 2
    missed = 0.8 * touched
    memory = (touched + 4096 * 2 + (4096 + 16384) * 2 + 4 * missed) / 100e9
    flash = 100e-6 + missed / 16384 * (1e-6 + 16384 / 5e9)
    assert found == pytest.approx(10e-6 + memory + flash, rel=1e-9)
    traced = compile_trace(trace("opt-6.7b", *techniques))
    place = next(i for i, row in enumerate(traced.rows) if "layer.mlp.down" in row.names)
    busy = prepare(traced, device())[1].rows(traced.basis_at(1, 1, 100)).busy_s
    assert busy["dram"][place, 0] == pytest.approx(memory, rel=1e-9), "what is copied passes the memory too"
    assert busy["storage"][place, 0] == pytest.approx(flash, rel=1e-9)


def test_tokens_of_a_batch_touch_the_union_of_their_neurons():
    sparse = trace("opt-6.7b", "activation-sparsity:active=0.1,predictor=0")
    up = next(op for op, _ in sparse.operators() if op.name == "mlp.up")
    dense = next(op for op, _ in trace("opt-6.7b").operators() if op.name == "mlp.up")
    for b in (1, 2, 16):
        assert float(up.weights[0].bytes(b, 1, 9)) / float(dense.weights[0].bytes(b, 1, 9)) == pytest.approx(1 - 0.9**b)
        assert float(up.flops(b, 1, 9)) == pytest.approx(0.1 * float(dense.flops(b, 1, 9)))
    assert float(up.flops(1, 64, 0)) == float(dense.flops(1, 64, 0)), "prompts are dense"


def test_a_far_cache_is_fetched_over_the_link_but_for_the_new_tokens():
    card = device(host='host = "a6000"', rate=100, holds="far-kv")
    near, far = trace("opt-13b"), trace("opt-13b", "offload:what=none,kv=1")
    context = 4 * 1000 * 2 * 5120 * 2  # batch, tokens, keys and values, channels, bytes
    found = [rows(t, card, 4, 1, 1000)["layer.attention.attention"] for t in (near, far)]
    assert found[1] - found[0] == pytest.approx(110e-6 + context / 4e9, rel=1e-6)
    prompt = [rows(t, card, 4, 256, 0)["layer.attention.attention"] for t in (near, far)]
    assert prompt[0] == pytest.approx(prompt[1]), "there is no context yet"


def test_attention_in_the_drive_is_bound_by_its_channels():
    card = csd()
    assert nand_of(card).bandwidth == pytest.approx(8e9)
    found = rows(trace("opt-13b"), card, 4, 1, 1000)["layer.attention.attention"]
    context = 4 * 1000 * 2 * 5120 * 2
    link = 10e-6 + 4 * 2 * 5120 * 2 / 4e9  # queries in, results out
    assert found == pytest.approx(10e-6 + 50e-6 + context / 8e9 + link, rel=1e-6)


def test_attention_runs_where_it_ends_first():
    """With slow channels inside and a fast link, the host fetches the cache; a prompt is the host's anyway."""
    slow = CSD.replace('"1 GB/s"', '"0.1 GB/s"')
    model = trace("opt-13b")
    compiled = compile_trace(model)
    i = next(i for i, r in enumerate(compiled.rows) if r.operator.kind == "attention")
    card = device(host='host = "a6000"', holds="kv", parameters=slow, rate=100, link=30)
    for use, point, near in ((csd(), (4, 1, 1000), True), (card, (4, 1, 1000), False), (csd(), (4, 512, 0), False)):
        prepared = prepare(compiled, use)[1]
        assert isinstance(prepared, SplitModel)
        bound = prepared.rows(compiled.basis_at(*point)).bound[i, 0]
        assert prepared.reasons[bound].startswith("near ") is near


@pytest.mark.parametrize(
    ("name", "rate", "reason"),
    [
        ("gemv_rate", "500 MFLOP/s", "near gemv"), ("softmax_rate", "1 MOP/s", "near softmax"),
        ("filter_rate", "500 MB/s", "near filter"),
    ],
)  # fmt: skip
def test_each_unit_of_the_drive_can_bind(name: str, rate: str, reason: str):
    slow = f'{name} = {{ value = "{rate}", source = "assumed: test" }}'
    lines = [slow if line.startswith(name) else line for line in CSD.splitlines()]
    card = device(host='host = "a6000"', holds="kv", parameters="\n".join(lines), link=0.1)
    found = cost(trace("opt-13b"), card, 1, 1, 1000).bound
    assert max(found, key=lambda r: float(found[r][0])) == reason


def test_sparse_attention_reads_an_eighth_and_pages_make_it_a_quarter():
    card, point = csd(), (16, 1, 1536)
    dense, eighth, pages = (
        rows(trace("opt-13b", *t), card, *point)["layer.attention.attention"]
        for t in ((), ("sparse-attention",), ("sparse-attention:overfetch=2",))
    )
    fixed = 10e-6 + 50e-6 + 10e-6 + 16 * 2 * 5120 * 2 / 4e9
    assert (dense - fixed) / (eighth - fixed) == pytest.approx(8, rel=1e-6)
    assert (dense - fixed) / (pages - fixed) == pytest.approx(4, rel=1e-6)


def test_a_second_copy_of_keys_is_stored_and_written():
    once, twice = trace("opt-13b"), trace("opt-13b", "sparse-attention:key_copies=2")
    assert twice.kv_bytes_per_token == pytest.approx(1.5 * once.kv_bytes_per_token)
    assert once.kv_bytes_per_token == 40 * 2 * 5120 * 2  # 0.78 MiB per token


# -- against what was published -------------------------------------------------------------------------
def test_llm_in_a_flash_on_the_laptop():
    """arXiv:2312.11514: naive 3182 ms (fitted), with flash techniques 669 ms, of which 105 ms are reads."""
    card, request = load_device("m1-max-flash"), Request(1, 128, 256)
    naive = estimate(trace("opt-6.7b", "offload:what=weights"), card, request)
    assert naive.decode.latency_s == pytest.approx(3.182, rel=0.02)
    sparse = "activation-sparsity:active=0.03,predictor=0.0194"
    flash = trace("opt-6.7b", sparse, "offload:what=ffn,miss=0.8,cached=0.24,bundle=1,managed=1")
    found = estimate(flash, card, request)
    assert found.decode.latency_s == pytest.approx(0.669, rel=0.20)  # 17 % below
    compiled = compile_trace(flash)
    model = prepare(compiled, card)[1]
    assert isinstance(model, FarModel)
    busy = model.rows(compiled.basis_at(1, 1, 256)).busy_s["storage"][:, 0] @ compiled.counts
    assert busy == pytest.approx(0.105, rel=0.05)
    copies = sum(float(t.bytes(compiled.basis_at(1, 1, 256))[0]) * t.copies * 32 for t in model.transfers)
    assert copies / model.fast_bytes_s == pytest.approx(0.057, rel=0.10)
    resident = found.memory.levels[1].bytes["weights"] / flash.weights_bytes
    assert resident == pytest.approx(0.521, abs=0.02)


@pytest.mark.parametrize(
    ("model", "shares", "published", "error"),
    [
        ("mixtral-8x7b", "miss=0.035,cached=0.5", 11.68, 0.10),
        ("mixtral-8x7b", "miss=0.035,cached=0.5", 9.96, 0.10),
        ("mixtral-8x7b", "miss=1,cached=0.016", 2.13, 0.10),
        ("mistral-7b", "miss=0.06,cached=0.5", 11.1, 0.02),  # fitted
    ],
)
def test_powerinfer2_on_the_phone(model: str, shares: str, published: float, error: float):
    """arXiv:2406.06282, tokens/s of TurboSparse-Mixtral with 19 GB, with half of the FFN in flash, with 7 GB (a cache
    smaller than what one token touches, so that nothing is found in it), and of Bamboo-7B."""
    techniques = (
        "activation-sparsity:active=0.1,predictor=0.1", "weight-only:bits=4,group=32,head=1",
        f"offload:what=ffn,{shares},bundle=1,overlap=1",
    )  # fmt: skip
    found = estimate(trace(model, *techniques), load_device("phone-powerinfer2"), Request(1, 128, 256))
    assert 1 / found.decode.latency_s == pytest.approx(published, rel=error)
    assert found.memory.fits


def test_instinfer_over_a_drive_that_only_stores():
    """arXiv:2409.04992: up to 11.1 times FlexGen. Reading an eighth inside the drive gives 8.5 over a drive read at the
    rate of its link; with pages fetched for half of their content 4.7. What is left to 11.1 is FlexGen's own: it would
    have to reach 4.8 GB/s of its drive."""
    csd_, ssd = load_device("instinfer-csd"), load_device("a6000-ssd")
    request = Request(64, 1024, 1024)
    base = estimate(trace("opt-13b", "offload:what=none,kv=1,overlap=1"), ssd, request)
    dense, eighth, pages = (
        estimate(trace("opt-13b", *t), csd_, request)
        for t in ((), ("sparse-attention:key_copies=2",), ("sparse-attention:key_copies=2,overfetch=2",))
    )
    gains = [e.tokens_per_s / base.tokens_per_s for e in (dense, eighth, pages)]
    assert gains[0] == pytest.approx(7.66 / 6.3, rel=0.02)
    assert 4.5 < gains[2] < 5.0
    assert 8.0 < gains[1] < 9.0
    assert pages.memory.fits
    assert base.memory.fits


# -- laws -----------------------------------------------------------------------------------------------
FLASH = ("activation-sparsity:active=0.1", "offload:what=ffn,miss=0.5,cached=0.3,bundle=1,managed=1,kv=1")
points = st.tuples(st.sampled_from([1, 3, 16]), st.sampled_from([1, 7, 128]), st.sampled_from([0, 100, 1500]))


@functools.cache
def compiled_trace(*techniques: str) -> CompiledTrace:
    return compile_trace(trace("opt-1.3b", *techniques))


@functools.cache
def total_bytes(*techniques: str) -> Expr:
    return trace("opt-1.3b", *techniques).total("bytes")


@settings(max_examples=24)
@given(points, st.sampled_from(["rate", "dram_rate", "link"]), st.floats(1.01, 8), st.booleans())
def test_more_bandwidth_is_never_slower(point, key: str, more: float, hosted: bool):
    make, model = (csd, compiled_trace()) if hosted else (device, compiled_trace(*FLASH))
    slow, fast = make(), make(**{key: ROUND[key] * more})  # type: ignore[operator]
    assert cost(model, fast, *point).latency_s <= cost(model, slow, *point).latency_s * (1 + 1e-12)


@settings(max_examples=24)
@given(points, st.sampled_from(["latency", "command"]), st.floats(0.05, 0.99))
def test_less_latency_is_never_slower(point, key: str, less: float):
    model = compiled_trace(*FLASH)
    fast = device(**{key: ROUND[key] * less})  # type: ignore[operator]
    assert cost(model, fast, *point).latency_s <= cost(model, device(), *point).latency_s * (1 + 1e-12)


@settings(max_examples=24)
@given(points, st.booleans())
def test_time_is_never_below_the_arithmetic_and_busy_never_above_time(point, overlap: bool):
    marks = FLASH[0], FLASH[1] + f",overlap={int(overlap)}"
    compiled = compiled_trace(*marks)
    basis = compiled.basis_at(*point)
    far, near = prepare(compiled, device())[1].rows(basis), roofline.prepare(compiled, device()).rows(basis)
    assert (far.time_s >= near.time_s * (1 - 1e-12)).all()
    assert all((busy <= (far.time_s - far.launch_s) * (1 + 1e-9)).all() for busy in far.busy_s.values())


@settings(max_examples=20)
@given(st.integers(1, 16), st.integers(1, 16), st.sampled_from([0.01, 0.3, 1.0]))
def test_splitting_a_batch_never_reads_less(one: int, other: int, active: float):
    total = total_bytes(f"activation-sparsity:active={active}")
    moved = [float(total(b, 1, 100)) for b in (one, other, one + other)]
    assert moved[0] + moved[1] >= moved[2] * (1 - 1e-12)


@settings(max_examples=12)
@given(points)
def test_energy_is_the_sum_of_its_parts_and_reads_are_in_it(point):
    found = cost(compiled_trace(*FLASH), device(), *point)
    assert float(found.energy_j[0]) == pytest.approx(sum(float(v[0]) for v in found.energy_parts_j.values()))
    assert float(found.energy_parts_j["storage"][0]) > 0
    assert float(found.energy_low_j[0]) <= float(found.energy_j[0]) <= float(found.energy_high_j[0])


def test_marks_are_ignored_where_no_level_holds_what_is_far():
    plain, marked = trace("opt-1.3b"), trace("opt-1.3b", "offload:what=weights,kv=1")
    for card in (device(holds="kv"), load_device("h100-sxm")):
        assert np.array_equal(cost(marked, card, 2, 1, 100).latency_s, cost(plain, card, 2, 1, 100).latency_s)


# -- what lives where -----------------------------------------------------------------------------------
def test_every_role_lives_somewhere():
    one = levels(load_device("h100-sxm"))
    assert [(x.name, x.roles) for x in one] == [("dram", ("weights", "kv", "activations"))]
    drive = levels(load_device("instinfer-csd"))
    assert [(x.device, x.name) for x in drive[:2]] == [("instinfer-csd", "dram"), ("instinfer-csd", "flash")]
    assert (drive[2].device, drive[2].name) == ("a6000", "dram")
    assert drive[1].roles == ("kv",)
    assert drive[2].roles == ("weights", "activations")


def test_what_is_missing_is_told_where():
    places = (Level("d", "fast", 10.0, ("weights", "kv")), Level("d", "slow", 100.0, ("kv", "far-weights")))
    held = fill(places, {"weights": 8, "kv": 50, "far-weights": 20})
    assert [h.bytes for h in held] == [{"kv": 10.0, "weights": 8}, {"kv": 40.0, "far-weights": 20}]
    assert [h.missing_bytes for h in held] == [8, 0]
    near = fill(places[:1], {"weights": 2, "far-weights": 20})
    assert near[0].missing_bytes == 12, "what nobody holds far is near"


def test_memory_is_checked_level_by_level():
    marks = "activation-sparsity:active=0.1,predictor=0", "offload:what=ffn,miss=0.5,cached=0.25,bundle=1"
    sparse = trace("opt-6.7b", *marks)
    ffn = 32 * 2 * 4096 * 16384 * 2
    for room, short in ((8, 0.0), (4, 1.0)):
        fit = memory_fit(sparse, device(dram=room), Request(1, 128, 128))
        flash, dram = (next(h for h in fit.levels if h.level.name == name) for name in ("flash", "dram"))
        assert flash.bytes == {"far-weights": ffn}
        assert dram.bytes["weights"] == pytest.approx(fit.weights_bytes - ffn * 0.75)
        assert (fit.missing_bytes > 0) == bool(short) == (not fit.fits)
        assert flash.missing_bytes == 0
        assert dram.missing_bytes == fit.missing_bytes
    one = memory_fit(sparse, load_device("a6000"), Request(1, 128, 128)).levels[0]
    assert one.bytes["weights"] == sparse.weights_bytes, "without a slow tier nothing is cached a second time"
    whole = memory_fit(trace("opt-6.7b"), device(dram=8), Request(1, 128, 128))
    assert whole.levels[-1].level.name == "dram"
    assert not whole.fits


def test_a_cache_in_the_drive_takes_no_room_on_the_host():
    fit = memory_fit(trace("opt-13b"), load_device("instinfer-csd"), Request(256, 1024, 1024))
    assert fit.fits
    assert fit.kv_bytes > 48 * 2**30
    alone = memory_fit(trace("opt-13b"), load_device("a6000"), Request(256, 1024, 1024))
    assert not alone.fits


def test_an_ordinary_device_answers_as_before():
    fit = memory_fit(trace("opt-13b"), load_device("a6000"), Request(2, 100, 100))
    assert fit.capacity_bytes == 48 * 2**30
    assert fit.needed_bytes == pytest.approx(sum(fit.levels[0].bytes.values()))
    assert fit.missing_bytes == max(0, fit.needed_bytes - fit.capacity_bytes)


# -- what is refused ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holds": "weights, books"}, "role in holds 'books'"),
        ({"host": 'host = "a6000"', "holds": "kv"}, "parameters.attention_units is missing"),
        (
            {"host": 'host = "a6000"', "holds": "kv", "parameters": CSD.replace("page_read", "page_wait")},
            "parameters.page_read",
        ),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        prepare(trace("opt-1.3b"), device(**changes))
    assert "\n" not in str(caught.value)


def test_a_host_needs_a_link():
    text = TEMPLATE.format(**(ROUND | {"host": 'host = "a6000"'})).replace("[links.pcie]", "[links.other]")
    card = parse_device(text.encode(), "round.toml", find_architecture, load_device)
    with pytest.raises(InputError, match=r"links\.pcie is missing"):
        prepare(trace("opt-1.3b", "offload:what=weights"), card)


def test_a_cache_near_banks_of_its_own_leaves_weights_to_the_host():
    """AttAcc's memory holds the cache, the GPU's the weights; Duplex's logic is under the memory that holds both."""
    apart = levels(load_device("attacc-bank"))
    assert [(x.device, x.roles) for x in apart] == [("attacc-bank", ("kv",)), ("a100-hbm3", ("weights", "activations"))]
    one = levels(load_device("duplex-logic-pim"))
    assert [(x.device, x.roles) for x in one] == [("duplex-logic-pim", ("weights", "kv", "activations"))]
