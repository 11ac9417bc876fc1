"""vLLM's kernel tables of two cards: what is read, what is refused, and the figures of the fitted models."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from tokenfab.errors import InputError
from tokenfab.hw.card import Card, card_of, constants_of
from tokenfab.hw.devices import load_device
from tokenfab.hw.elementwise import ElementwiseConstants, elementwise_time, stream_time
from tokenfab.hw.sampler import BYTES_PER_LOGIT, START_S, sampler_time
from tokenfab.hw.spec import parse_device
from tokenfab.validation import vllm_kernels, vllm_steps, vllm_tables
from tokenfab.validation.vllm_kernels import BOUNDS, Model, before, changed, errors, fitted, mape, model_of

CARDS = list(vllm_tables.FOLDERS)
CARD = Card(sms=100, clock_hz=1e9, matrix_flops=1e14, dram_bytes_s=1e12, l2_bytes=1e8, l2_bytes_s=np.inf)
HELD = ElementwiseConstants(1e-6, 1e-12, 1e4, 0.8, 0.5, 0.4, cache_share=0.5, cache_speedup=4.0)


# -- hw ---------------------------------------------------------------------------------------------
def test_operands_that_l2_holds_come_from_it() -> None:
    """50 MB are held: all of 40 MB, half of 100 MB; a norm's footprint is half its operands, read 1.5 times."""
    assert float(stream_time("activation", 40e6, CARD, HELD)) == pytest.approx(40e6 / 4e12)
    assert float(stream_time("activation", 100e6, CARD, HELD)) == pytest.approx(50e6 / 4e12 + 50e6 / 0.5e12)
    assert float(stream_time("norm", 100e6, CARD, HELD)) == pytest.approx(1.5 * 100e6 / 4e12)
    assert float(stream_time("norm", 200e6, CARD, HELD)) == pytest.approx(1.5 * (100e6 / 4e12 + 100e6 / 0.5e12))
    assert float(elementwise_time("rope", 100, 1e6, CARD, HELD)) == pytest.approx(1e-6 + 100e6 / 4e12)


def test_a_file_that_says_nothing_of_l2_streams_from_dram() -> None:
    bare = ElementwiseConstants(1e-6, 1e-12, 1e4, 0.8, 0.5, 0.4)
    assert float(stream_time("activation", 1e6, CARD, bare)) == pytest.approx(1e6 / 0.5e12)
    held = load_device("a100-80g-sxm")
    assert constants_of(held, "elementwise", ElementwiseConstants).cache_share == 0


def test_the_sampler_by_hand() -> None:
    """Ten bytes a logit, four of which L2 is to hold: 125 sequences of 100,000 fill its 50 MB, 250 half of theirs."""
    took = sampler_time([0, 125, 250], 1e5, CARD, HELD)
    moved = 125 * 1e5 * BYTES_PER_LOGIT
    assert took == pytest.approx([0, START_S + moved / 4e12, START_S + moved / 4e12 + moved / 0.8e12])


def test_the_clock_a_card_runs_at_scales_its_rate() -> None:
    card = card_of(load_device("rtx-4090"))
    assert card.clock_hz == pytest.approx(2785e6, abs=1e6)
    assert card.boost == pytest.approx(card.clock_hz / 2520e6)
    assert card.matrix_flops == pytest.approx(165.2e12 * card.boost)
    assert card_of(load_device("a100-80g-sxm")).boost == 1


def test_a_boost_below_the_clock_is_refused() -> None:
    text, file = vllm_kernels._plain("a100-80g-sxm")
    boost = '[compute]\nboost = { value = "1 GHz", source = "derived: x" }'
    with pytest.raises(InputError, match=r"compute\.boost 1 GHz is below the clock; accepted: 1410 MHz or more"):
        parse_device(text.replace("[compute]", boost).encode(), file, vllm_kernels.find_architecture)


# -- tables -----------------------------------------------------------------------------------------
def planted(folder, **files) -> None:
    """Tables of an RTX 4090, text by name."""
    place = folder / "llmservingsim/profiler/perf/RTX4090/meta-llama/Llama-3.1-8B/bf16/tp1"
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))


HEAD = "layer,sequences,time_us\nlm_head,1,1096.93\n"


def test_rows_are_read_in_seconds_with_their_place(tmp_path) -> None:
    planted(tmp_path, dense="layer,tokens,time_us\nact_fn,1,2.5\nqkv_proj,2,50\n", per_sequence=HEAD)
    rows = vllm_tables.read_layers(tmp_path, "rtx-4090")
    assert list(rows.layer) == ["act_fn", "qkv_proj", "lm_head"]
    assert rows.seconds == pytest.approx([2.5e-6, 5e-5, 1.09693e-3])
    assert list(rows.row) == [0, 1, 0]
    assert list(rows.half(odd=True).layer) == ["qkv_proj"]


@pytest.mark.parametrize(
    ("dense", "told"),
    [
        ("layer,tokens,time_us\nact_fn,1,0\n", "row 0: time_us '0'; accepted: microseconds above 0"),
        ("layer,tokens,time_us\nact_fn,1,nan\n", "time_us 'nan'"),
        ("layer,tokens,time_us\nact_fn,1,x\n", "time_us 'x'"),
        ("layer,tokens,time_us\nact_fn,-1,2\n", "tokens '-1'; accepted: a whole number of at least 1"),
        ("layer,tokens,time_us\nact_fn,1.5,2\n", "tokens '1.5'"),
        ("layer,tokens,time_us\nact_fn,1,2\nact_fn,1,2\n", "act_fn of 1 tokens is there twice"),
        ("layer,tokens,time_us\nmoe,1,2\n", "moe of 1 tokens is none of act_fn, down_proj"),
        ("layer,tokens\nact_fn,1\n", "no column 'time_us' there"),
        ("layer,tokens,time_us\n", "no rows there"),
        ("layer,tokens,time_us\nact_fn,1\n", "not a table of measured kernels"),
    ],
)
def test_a_row_that_is_none_is_one_line(tmp_path, dense, told) -> None:
    planted(tmp_path, dense=dense, per_sequence=HEAD)
    with pytest.raises(InputError) as refused:
        vllm_tables.read_layers(tmp_path, "rtx-4090")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_table_that_is_not_there_is_named(tmp_path) -> None:
    assert vllm_tables.devices_there(tmp_path) == []
    with pytest.raises(InputError, match="no tables of rtx-4090 there"):
        vllm_tables.read_batches(tmp_path, "rtx-4090")
    planted(tmp_path)
    assert vllm_tables.devices_there(tmp_path) == ["rtx-4090"]
    with pytest.raises(InputError, match=r"attention.csv.gz: there is none"):
        vllm_tables.read_batches(tmp_path, "rtx-4090")


# -- fitting ----------------------------------------------------------------------------------------
def test_a_fit_finds_the_constants_that_made_the_times() -> None:
    """Times by the model itself: the clock and two shares come back, from others, and bounds hold."""
    start = model_of(before("rtx-4090"))
    made = changed(changed(start, "gemm", {"boost": 1.08, "dram_share": 0.91}), "elementwise", {"launch_s": 3e-6})
    assert made.card.matrix_flops == pytest.approx(1.08 * start.card.matrix_flops)
    tokens = 2.0 ** np.arange(12)
    names = np.repeat(["gate_up_proj", "o_proj"], 12)
    rows = vllm_tables.Layers(names, np.tile(tokens, 2), np.zeros(24), np.arange(24))
    kernels = vllm_kernels.gemm_kernels(load_device("rtx-4090"))[1]
    seconds = vllm_kernels.predict_linear(rows, made, kernels)[0]

    def loss(model: Model) -> float:
        return vllm_kernels._error(vllm_kernels.predict_linear(rows, model, kernels)[0], seconds)

    found = fitted(start, "gemm", ("boost", "dram_share"), loss)
    assert (found.card.boost, found.gemm.dram_share) == pytest.approx((1.08, 0.91), rel=1e-3)


def test_the_files_without_this_modules_numbers_are_their_architectures() -> None:
    plain = before("rtx-4090")
    assert plain.compute.boost is None
    assert plain.kernels["gemm"]["library"] == "cublas-ampere"
    assert plain.kernels["gemm"]["dram_share"].source.startswith("architecture default")
    assert plain.intervals["vector"].low.value == 0.58
    # What the architecture lacks, and nothing that is not marked, is missing.
    assert "row_bytes_per_clock" in plain.kernels["elementwise"]


@pytest.mark.parametrize("name", CARDS)
def test_constants_lie_within_their_bounds(name) -> None:
    model = model_of(load_device(name))
    for family, names in vllm_kernels.NAMES.items():
        for constant in names:
            low, high, meaning = BOUNDS[family][constant]
            assert low <= getattr(getattr(model, family), constant) <= high
            assert meaning


# -- measured ---------------------------------------------------------------------------------------
FIGURES = {
    "rtx-4090": {
        "linear": 0.028, "elementwise": 0.150, "sampler": 0.065, "prefill": 0.020, "decode": 0.059, "mixed": 0.054,
        "skewed": 0.066,
    },
    "rtx-pro-6000": {
        "linear": 0.049, "elementwise": 0.111, "sampler": 0.038, "prefill": 0.037, "decode": 0.040, "mixed": 0.049,
        "skewed": 0.078,
    },
}  # fmt: skip
"""MAPE on odd rows, as docs/gpu-model.md has them."""


@pytest.mark.parametrize("name", CARDS)
def test_measured_figures(truth, name) -> None:
    found = errors(truth, name)
    assert {suite: mape(e) for suite, e in found.items()} == pytest.approx(FIGURES[name], abs=0.0006)
    assert [e.ratio.size for e in found.values()] == [
        324, 380, 20, *((48, 49, 4224) if name == "rtx-4090" else (117, 85, 9480)), 6504,
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), [("rtx-4090", (0.052, -0.001)), ("rtx-pro-6000", (0.042, -0.007))])
def test_decoding_sequences_of_two_lengths_which_nobody_fitted(truth, name, expected) -> None:
    rows = vllm_tables.read_skewed(truth, name)
    rows = rows.pick(rows.query == 0)
    wrong = vllm_kernels.batch_parts(rows, model_of(load_device(name))).seconds / rows.seconds - 1
    assert wrong.size == 327
    assert (np.abs(wrong).mean(), wrong.mean()) == pytest.approx(expected, abs=0.0006)


@pytest.mark.parametrize("name", CARDS)
def test_skewed_times_are_of_three_forwards(truth, name) -> None:
    repeats = vllm_tables.skew_repeats(truth, name)
    assert repeats.size == 13006
    assert np.median(repeats) == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize(("name", "decode", "prefill"), [("rtx-4090", 0.018, 0.017), ("rtx-pro-6000", 0.013, 0.013)])
def test_whole_steps(truth, name, decode, prefill) -> None:
    steps = vllm_steps.steps(truth, name)
    kinds = steps.batches.classes()
    for kind, expected in (("decode", decode), ("prefill", prefill)):
        some = steps.pick(kinds[kind])
        assert np.abs(some.kernels / some.measured - 1).mean() == pytest.approx(expected, abs=0.0006)
        assert np.abs(some.trace / some.measured - 1).mean() < 0.055
    assert np.isnan(steps.pick(kinds["mixed"]).trace).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_the_catalogues_constants_are_those_that_the_fit_finds(truth, name) -> None:
    text = vllm_kernels.device_text(truth, name, vllm_kernels.fit(truth, name))
    again = model_of(parse_device(text.encode(), name, vllm_kernels.find_architecture))
    assert again == model_of(load_device(name))
