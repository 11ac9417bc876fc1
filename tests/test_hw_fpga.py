"""FPGA designs: by hand, against the published simulator's output, resources of the part, programs, the laws."""

from __future__ import annotations

import functools
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.cost import cost
from tokenfab.hw.devices import device_files, find_architecture, load_device
from tokenfab.hw.estimate import Request, estimate
from tokenfab.hw.fpga import peak
from tokenfab.hw.fpga_design import blocks, buffer_bytes, design_of, resource_lines, resources
from tokenfab.hw.fpga_experts import expert_memory
from tokenfab.hw.fpga_placement import placement
from tokenfab.hw.fpga_program import instructions, program_bytes
from tokenfab.hw.result import estimate_document, lines
from tokenfab.hw.spec import Device, parse_device
from tokenfab.models.vit_config import vit_config
from tokenfab.rtl.units import load_unit
from tokenfab.workloads.compiled import compile_trace
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace
from tokenfab.workloads.vision import capture_vision, flops_saved

NARROW = ("weight-only:group=0,head=1", "kv-quant:bits=8,scale_bits=0")
PAPER = ("mixed-precision:head=1", "sparsity:pattern=blocks,m=16,density=0.8,where=qkv", "kv-quant:bits=8")
NAMES = ("u280-flightllm", "vhk158-flightllm", "zcu104-m3vit")


@functools.cache
def traced(*techniques: str, model: str = "llama-2-7b") -> Trace:
    return apply_techniques(load_trace(model), list(techniques))


@functools.cache
def text_of(name: str) -> str:
    return device_files()[name].read_text(encoding="utf-8")


@functools.cache
def changed(name: str = "vhk158-flightllm", **values: str) -> Device:
    """A catalogue device with numbers replaced: ``key = "text"``, the key as its line begins."""
    lines = text_of(name).splitlines()
    for key, text in values.items():
        hits = [i for i, line in enumerate(lines) if line.startswith(f"{key} = {{")]
        line = f'{key} = {{ value = "{text}", source = "assumed: test" }}'
        if key == "launch":  # the architecture's
            lines += ["[model]", line]
            continue
        assert hits, key
        lines[hits[0]] = line
    return parse_device("\n".join(lines).encode(), f"{name}.toml", find_architecture)


def times(model: Trace, card: Device, b: float, q: float, c: float) -> dict[str, float]:
    compiled = compile_trace(model)
    found = cost(compiled, card, b, q, c, detail=True).operator_time_s
    assert found is not None
    return {name: float(found[i, 0]) / row.count for i, row in enumerate(compiled.rows) for name in row.names}


# -- by hand ---------------------------------------------------------------------------------------------
def test_decoding_a_projection_takes_its_tiles_cycles_behind_the_first_load():
    """Llama-2-7B's down projection on the VHK158: 8 tiles of 512 outputs on 4 regions, 64 chains of 8 outputs each."""
    unit, config = load_unit("sparse_dsp_chain"), {"LANES": 16, "PACK": 2}
    cycles = unit.cycles({"m": 1, "n": 8 * 2, "k": 11008}, {"weight": "int4"}, config)
    assert cycles == 16 * 688 + 14
    channel = 819.2e9 / 32
    gather = 11008 / (channel * 0.35)  # one vector, one channel across regions
    split = ceil(2 * 512 * 11008 / (2 << 20))  # half of 2 MiB per instruction
    assert split == 6
    first = 4 * 512 * 11008 / split * 0.5 / (819.2e9 * 0.7)
    found = times(traced(*NARROW), load_device("vhk158-flightllm"), 1, 1, 1000)["layer.mlp.down"]
    assert found == pytest.approx(0.1e-6 + gather + first + cycles / 225e6, rel=1e-9)


def test_decoding_a_projection_streams_its_weights_where_that_is_longer():
    """The U280 feeds three regions by 24 of 32 channels; what is left after the stream is the last instruction."""
    found = times(traced(*NARROW), load_device("u280-flightllm"), 1, 1, 1000)["layer.attention.output"]
    stream = 4096 * 4096 / 2 / (460e9 * 24 / 32 * 0.7)
    cycles = 8 * ceil(8 / 3) * 256 + 14  # 8 outputs of a chain, three tiles for the busiest region
    last = cycles / (ceil(8 / 3) * 2) / 225e6  # two instructions per tile: 2 MiB at 8 bits by halves
    gather = 4096 / (460e9 / 32 * 0.35)
    assert found == pytest.approx(0.1e-6 + gather + stream + last, rel=1e-9)


def test_a_prompt_takes_matrix_instructions():
    """128 tokens x 16 outputs each, 8 results per chain: 4096 products per clock and region."""
    found = times(traced(*NARROW), load_device("vhk158-flightllm"), 1, 128, 0)["layer.attention.output"]
    cycles = 128 * 4096 * 4096 / 4096 / 4 + 14
    first = 4 * 16 * 4096 * 0.5 / (819.2e9 * 0.7)
    gather = 2 * 4096 / (819.2e9 / 32 * 0.35)
    assert found == pytest.approx(0.1e-6 + gather + first + cycles / 225e6, rel=1e-9)


@pytest.mark.parametrize(("setting", "share"), [
    ("n=8,m=16", 1 / 2), ("n=2,m=4", 1 / 2), ("n=4,m=16", 1 / 4), ("n=2,m=16", 1 / 8), ("n=1,m=16", 1 / 8),
    ("n=3,m=4", 1), ("pattern=blocks,m=16,density=0.75", 0.75), ("pattern=blocks,m=16,density=0.3125", 0.3125),
    ("pattern=unstructured,density=0.25", 1), ("pattern=group,m=8,density=0.5", 1),
])  # fmt: skip
def test_chains_skip_what_their_modes_hold(setting: str, share: float):
    """A prompt, bound by chains: 3:4 runs dense, 1:16 as 2:16, what has no mode dense."""
    card = changed(bandwidth="100 TB/s")
    drain = 14 / 225e6
    dense, sparse = (
        times(traced(*NARROW, *more), card, 1, 128, 0)["layer.attention.output"]
        for more in ((), (f"sparsity:{setting}",))
    )
    exposed = dense - 4096 * 8 * 16 / 225e6 - drain  # the same loads and launch
    assert (sparse - drain) / (dense - drain) == pytest.approx(share, rel=0.01)
    assert exposed < 0.02 * dense


def test_a_region_gathers_nothing_where_it_is_alone():
    one = times(traced(*NARROW), load_device("zcu104-m3vit"), 1, 1, 0)["layer.attention.output"]
    stream = 4096 * 4096 / 2 / (19.2e9 * 0.85)
    assert stream < one < stream * 1.03


def test_activations_spill_beyond_what_stays_on_the_chip():
    """4.5 MiB at 8 bits stay; of 1024 tokens' rotation 24 MiB are read and written, across channels."""
    card = load_device("vhk158-flightllm")
    crossing = 819.2e9 * 0.35
    stays, spills = (times(traced(*NARROW), card, 1, q, 0)["layer.attention.rope"] for q in (128, 1024))
    lanes = 2 * 4096 / (16 * 4 * 225e6)
    assert stays == pytest.approx(128 * lanes + 0.1e-6, rel=1e-9)
    slow = changed(element_lanes="65536")
    bound = times(traced(*NARROW), slow, 1, 1024, 0)["layer.attention.rope"]
    assert bound == pytest.approx((1024 * 4 * 4096 - 4.5 * 2**20) / crossing + 0.1e-6, rel=1e-9)
    assert spills == pytest.approx(1024 * lanes + 0.1e-6, rel=1e-9)


def test_what_hbm_does_not_hold_streams_from_ddr():
    """Llama-2-13B at 8 bits: 13 GB, of which 8 GiB are in HBM; DDR has a tenth of its bandwidth."""
    wide = traced("weight-only:bits=8,group=0,head=1", "kv-quant", model="llama-2-13b")
    card, roomy = load_device("u280-flightllm"), changed("u280-flightllm", capacity="64 GiB")
    over = 1 - 8 * 2**30 / (wide.weights_bytes + float(wide.cache_bytes()(1, 0, 1)))
    slow, fast = (float(cost(wide, d, 1, 1, 0).latency_s[0]) for d in (card, roomy))
    moved = float(wide.total("bytes")(1, 1, 0))
    assert slow == pytest.approx(moved * over / (38.4e9 * 0.7), rel=0.05)
    assert fast == pytest.approx(moved / (460e9 * 0.75 * 0.7), rel=0.08)


# -- formats ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("techniques", "message"), [
    ((), "multiplies fp16 by fp16"),
    (("weight-only:head=1",), "try --apply kv-quant"),
    (("weight-only:bits=4", "kv-quant"), "head.head multiplies fp16 by fp16"),
])  # fmt: skip
def test_what_the_chains_do_not_take_is_refused(techniques: tuple[str, ...], message: str):
    with pytest.raises(InputError, match=message):
        cost(traced(*techniques), load_device("u280-flightllm"), 1, 1, 0)


def test_the_peak_is_two_products_per_slice_and_clock():
    for name, chains in (("u280-flightllm", 384), ("vhk158-flightllm", 512)):
        words, rate = peak(traced(*NARROW), load_device(name))
        assert (words, rate) == ("int4 by int8", pytest.approx(2 * chains * 32 * 225e6))


# -- resources -------------------------------------------------------------------------------------------
def test_the_resources_of_flightllm_are_those_of_its_buffers_and_chains():
    found = {kind: use.used for kind, use in resources(load_device("u280-flightllm")).items()}
    assert found["dsp"] == 384 * 16 * 2 // 2 + 3 * 67
    assert found["uram"] == 3 * 128 * 2  # 4096 x 128 bit: two blocks of 72 bit
    assert found["bram"] == 3 * (29 + 128 * 2 + 15 + 58) + 180  # 256 and 128 bit in blocks of 9; 512 x 128 bit
    assert found["lut"] == 384 * 16 * 8 * 2 * 4 + 3 * 40_000 + 100_000
    assert found["ff"] == 384 * 16 * (3.5 * 24 + 24) + 3 * 60_000 + 150_000
    assert buffer_bytes(load_device("u280-flightllm"), "weights") == 8 << 20


@pytest.mark.parametrize(("depth", "width", "count"), [
    (512, 72, 1), (513, 72, 2), (512, 73, 2), (1024, 36, 1), (4096, 9, 1), (4096, 10, 2), (32768, 1, 1), (1, 1, 1),
])  # fmt: skip
def test_block_rams_are_counted_in_their_best_mode(depth: int, width: int, count: int):
    from tokenfab.hw.fpga_design import BLOCK_RAM

    assert blocks(depth, width, BLOCK_RAM) == count


@pytest.mark.parametrize("name", NAMES)
def test_every_design_fits_its_part(name: str):
    assert all(0 < use.used <= use.available for use in resources(load_device(name)).values())
    assert "DSP" in resource_lines(load_device(name))[0]


@pytest.mark.parametrize(("changes", "message"), [
    ({"part_dsp": "6344"}, r"1 DSP too many \(6,345 of 6,344\)"),
    ({"part_uram": "767"}, r"1 URAM too many \(768 of 767\)"),
    ({"part_lut": "613215", "part_ff": "1000"}, r"1 LUT too many .*; 992,552 FF too many"),
    ({"clock": "800 MHz"}, "25 MHz above what the part's DSP slices reach"),
    ({"units": "385"}, "385 chains in 3 regions"),
    ({"weight_channels": "25"}, "25 of 32 channels for 3 regions"),
    ({"weight_channels": "33"}, "33 of 32 channels"),
    ({"matrix_outputs": "3"}, "128 x 3 outputs"),
    ({"vector_chains": "1.5"}, "vector_chains 1.5; accepted: a whole number"),
])  # fmt: skip
def test_a_design_that_does_not_fit_says_what_is_over_and_by_how_much(changes: dict[str, str], message: str):
    with pytest.raises(InputError, match=message) as caught:
        design_of(changed("u280-flightllm", **changes))
    assert "\n" not in str(caught.value)


def test_a_design_that_just_fits_is_taken():
    assert design_of(changed("u280-flightllm", part_dsp="6345", part_uram="768", clock="775 MHz")).regions == 3


def test_two_products_per_slice_would_not_fit_the_versal():
    """The published simulator's 4 x 4096 products per clock need three products in one DSP58."""
    with pytest.raises(InputError, match=r"1,068 DSP too many \(8,460 of 7,392\)"):
        design_of(changed("vhk158-flightllm", products_per_dsp="2"))


# -- against what was published ----------------------------------------------------------------------------
def test_the_published_pair_contradicts_itself():
    """55 token/s of 3.5 bits use 37 % of the bandwidth; 65.9 % would be 98 token/s."""
    peak_bytes_s = load_device("u280-flightllm").dram.bandwidth.value
    moved = float(traced("mixed-precision:average=3.5,widest=8,head=1", "kv-quant:bits=8").total("bytes")(1, 1, 384))
    assert 55 * moved / peak_bytes_s == pytest.approx(0.372, abs=0.001)
    assert 0.659 * peak_bytes_s / moved == pytest.approx(97.5, abs=0.1)


def test_activations_through_hbm_would_cost_a_decode_step_two_thousandths():
    card = load_device("u280-flightllm")
    level = card.memory["activations"]
    none = level.model_copy(update={"capacity": level.capacity.model_copy(update={"value": 1.0})})
    spilled = card.model_copy(update={"memory": card.memory | {"activations": none}})
    kept, through = (cost(traced(*PAPER), d, 1, 1, 384).latency_s[0] for d in (card, spilled))
    assert through / kept == pytest.approx(1.002, abs=0.001)


def test_vector_instructions_are_those_of_the_published_compiler_to_four_percent():
    compiled = compile_trace(traced())
    found = instructions(compiled, load_device("vhk158-flightllm"), np.array([144.0, 1024, 2032]), decode=True)[:, 0]
    assert found == pytest.approx([8830, 9854, 11902], rel=0.04)
    assert np.diff(found) == pytest.approx([1024, 2048], rel=1e-12)  # attention: one more per head and 512 keys


def test_programs_shrink_from_terabytes_to_gigabytes():
    card = load_device("u280-flightllm")
    found = program_bytes(traced(), card, 2048)
    assert 1e12 < found.each_length < 3e12
    assert 1e9 < found.shared < 1e10
    assert found.ranges == pytest.approx(3 * found.shared)
    assert found.saving == pytest.approx(362.5, rel=0.01)
    exact = changed("u280-flightllm", vector_range="1", matrix_range="1")
    alone = program_bytes(traced(), exact, 64)
    assert alone.each_length == pytest.approx(alone.ranges, rel=1e-12)  # a range of one length shares nothing


def test_a_longer_range_never_needs_more():
    card = load_device("u280-flightllm")
    sizes = [program_bytes(traced(), changed("u280-flightllm", vector_range=r), 1024).shared for r in ("8", "16", "64")]
    assert sizes == sorted(sizes, reverse=True)
    assert program_bytes(traced(), card, 1024).shared < program_bytes(traced(), card, 2048).shared


# -- placement ---------------------------------------------------------------------------------------------
def test_weights_and_cache_lie_in_the_channels_that_feed_the_chains():
    model = traced(*NARROW)
    places = {(p.data, p.where): p for p in placement(model, load_device("u280-flightllm"), 1, 1, 384)}
    weights = places["weights", "HBM"]
    assert (weights.size, weights.channels) == (model.weights_bytes, 24)
    assert weights.bytes_s == pytest.approx(460e9 * 24 / 32 * 0.7)
    assert places["KV cache", "HBM"].size == pytest.approx(385 * 2 * 32 * 4096)
    assert places["activations", "chip"].size == 4096 + 32000  # the head, at 8 bits
    assert places["programs", "DDR"].size > 1e9
    assert ("weights", "DDR") not in places


def test_what_hbm_has_no_room_for_lies_in_ddr():
    wide = traced("weight-only:bits=8,group=0,head=1", "kv-quant", model="llama-2-13b")
    places = [p for p in placement(wide, load_device("u280-flightllm"), 1, 512, 0) if p.data in ("weights", "KV cache")]
    assert sum(p.size for p in places if p.where == "HBM") == pytest.approx(8 * 2**30)
    held = wide.weights_bytes + float(wide.cache_bytes()(1, 0, 512))
    assert sum(p.size for p in places) == pytest.approx(held)


def test_a_long_prompts_activations_spill():
    places = {
        (p.data, p.where): p.size for p in placement(traced(*NARROW), load_device("vhk158-flightllm"), 1, 1024, 0)
    }
    assert places["activations", "chip"] == 4.5 * 2**20
    assert places["activations", "HBM"] == 1024 * (22016 + 11008) - 4.5 * 2**20  # gate and up to their product


# -- experts -----------------------------------------------------------------------------------------------
@functools.cache
def vision(name: str = "m3vit-small", *techniques: str) -> Trace:
    return apply_techniques(capture_vision(name), ["weight-only:bits=8,group=0,head=1", *techniques])


def test_experts_by_expert_are_loaded_once_and_by_token_with_every_use():
    config = vit_config("m3vit-small")
    queued, loaded = vision(), vision("m3vit-small", "expert-order:by=token")
    each = 2 * config.hidden * config.expert_inner
    moved = [float(t.total("bytes")(1, config.tokens, 0)) for t in (queued, loaded)]
    uses = config.tokens * config.top_k - config.experts  # with so many tokens every expert is routed to
    assert moved[1] - moved[0] == pytest.approx(config.layers // 2 * uses * each, rel=1e-9)


def test_by_token_loads_and_products_take_turns():
    card, config = load_device("zcu104-m3vit"), vit_config("m3vit-small")
    found = times(vision("m3vit-small", "expert-order:by=token"), card, 1, config.tokens, 0)["layer1.experts"]
    uses = config.tokens * config.top_k
    stream = uses * 2 * 384 * 384 / (19.2e9 * 0.85)
    tiles = uses * ceil(384 / 128)
    compute = 2 * (8 * tiles * (384 // 16) + 14) / 300e6
    tokens = config.tokens * (2 * 384 + 2 * config.top_k)  # in and out, index and weight of each choice
    spilled = (tokens - 640 * 1024) / (19.2e9 * 0.85)
    assert found == pytest.approx(stream + spilled + compute + 0.1e-6, rel=1e-9)


def test_two_buffers_hold_two_experts():
    config = vit_config("m3vit-small")
    found = expert_memory(vision(), 1, config.tokens)
    expert, tokens = 2 * 384 * 384, config.tokens * 3 * 384
    assert found.all_held == pytest.approx(16 * expert + tokens)
    assert found.double_buffered == pytest.approx(2 * expert + tokens)
    assert found.saving == pytest.approx(3.092, rel=1e-3)
    with pytest.raises(InputError, match="has no experts"):
        expert_memory(traced(), 1, 1)


def test_one_tasks_path_takes_a_part_of_the_flops_of_all_experts():
    """6 of 12 layers: 16 experts of 1 x hidden for a token or 4; five tasks' encoders are five times one."""
    one = flops_saved("m3vit-small", 1)
    assert one == pytest.approx(39.3, abs=0.1)
    assert 100 - flops_saved("m3vit-small", 5) == pytest.approx((100 - one) / 5)


def test_reordering_saves_energy_and_time_on_the_zcu104():
    card, image = load_device("zcu104-m3vit"), (1, vit_config("m3vit-small").tokens, 0)
    queued, loaded = (cost(t, card, *image) for t in (vision(), vision("m3vit-small", "expert-order:by=token")))
    assert loaded.energy_j[0] / queued.energy_j[0] > 3
    assert loaded.latency_s[0] / queued.latency_s[0] > 3


# -- documents ---------------------------------------------------------------------------------------------
def test_an_estimate_says_what_the_design_takes_of_its_part():
    card = load_device("u280-flightllm")
    model = traced(*NARROW)
    document = estimate_document(estimate(model, card, Request(1, 16, 4)), model)
    assert any("6,345 of 9,024 DSP (70%)" in line for line in document["provenance"])
    assert document["device"]["peak_format"] == "int4 by int8"
    assert "placement" not in document
    explained = estimate_document(estimate(model, card, Request(1, 16, 4), explain=True), model, explain=True)
    places = {(p["data"], p["where"]): p["size"] for p in explained["placement"]}
    assert places["weights", "HBM"] == model.weights_bytes
    printed = f"placement: {model.weights_bytes / 1e6:.4g} MB of weights in HBM, 24 channels, 241.5 GB/s"
    assert printed in lines(explained, True)
    assert "price: 7500 usd" in lines(explained, True)


# -- laws --------------------------------------------------------------------------------------------------
FEW = settings(max_examples=20)
CARDS = st.sampled_from(["u280-flightllm", "vhk158-flightllm"])
MODELS = st.sampled_from([NARROW, PAPER, (*NARROW, "sparsity:n=4,m=16")])
POINTS = st.tuples(st.integers(1, 16), st.integers(1, 300), st.integers(0, 2000))
FASTER = st.sampled_from([
    {"bandwidth": "2 TB/s"}, {"clock": "450 MHz"}, {"element_lanes": "64"}, {"cross_channel": "0.7"},
    {"dequantisation_lanes": "4096"}, {"launch": "1 ns"}, {"capacity": "64 GiB"},
])  # fmt: skip


@FEW
@given(CARDS, MODELS, POINTS, FASTER)
def test_faster_hardware_is_never_slower(name, techniques, point, better) -> None:
    model = traced(*techniques)
    slow, fast = (cost(model, d, *point).latency_s[0] for d in (load_device(name), changed(name, **better)))
    assert fast <= slow * (1 + 1e-9)


@FEW
@given(CARDS, MODELS, POINTS)
def test_time_is_never_below_the_roofline_and_energy_is_the_sum_of_parts(name, techniques, point) -> None:
    model, card = traced(*techniques), load_device(name)
    found = cost(model, card, *point)
    compiled = compile_trace(model)
    basis = compiled.basis_at(*point)
    streamed = compiled.counts @ (compiled.quantity("weight_bytes", basis) + compiled.quantity("kv_bytes", basis))
    assert found.latency_s[0] >= streamed[0] / card.dram.bandwidth.value
    done = sum(
        row.count * float(row.operator.flops(*point)) * float(row.operator.attrs.get("density", 1))
        for row in compiled.rows if row.operator.kind == "matmul"
    )  # fmt: skip
    assert found.latency_s[0] >= done / peak(model, card)[1] * (1 - 1e-9)
    assert found.energy_j[0] == pytest.approx(sum(v[0] for v in found.energy_parts_j.values()))
    assert all(v[0] >= 0 for v in found.energy_parts_j.values())
    assert sum(v[0] for v in found.bound.values()) == pytest.approx(1, abs=1e-9)
    assert found.low_s[0] <= found.latency_s[0] <= found.high_s[0]


@FEW
@given(CARDS, POINTS)
def test_no_resource_is_busy_for_longer_than_the_overlapped_part(name, point) -> None:
    from tokenfab.hw.cost import prepare

    compiled, model = prepare(traced(*NARROW), load_device(name))
    rows = model.rows(compiled.basis_at(*point))
    for busy in rows.busy_s.values():
        assert (busy <= (rows.time_s - rows.launch_s) * (1 + 1e-9)).all()


@FEW
@given(POINTS, st.integers(2, 6))
def test_splitting_a_batch_of_decoding_sequences_is_never_faster(point, parts) -> None:
    """Of prompts it can be, by a ten-thousandth: what spills in one piece stays on the chip in several. And where the
    whole batch's cache does not fit HBM, which the U280's 8 GiB do not."""
    b, _, c = point
    whole, part = cost(traced(*NARROW), load_device("vhk158-flightllm"), [b * parts, b], 1, c).latency_s
    assert parts * part >= whole * (1 - 1e-9)


@FEW
@given(POINTS)
def test_sparser_weights_are_never_slower(point) -> None:
    card = load_device("u280-flightllm")
    settings = ("n=16,m=16", "pattern=blocks,m=16,density=0.8", "n=8,m=16", "n=4,m=16", "n=2,m=16")
    found = [cost(traced(*NARROW, f"sparsity:{s}"), card, *point).latency_s[0] for s in settings]
    assert all(b <= a * (1 + 1e-9) for a, b in pairwise(found))
