"""The GEMM model: cases by hand, laws over random shapes, and the error on measured kernels."""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.card import Card
from tokenfab.hw.gemm import (
    BOUNDS,
    CUBLAS_AMPERE,
    CUBLAS_HOPPER,
    LIMITS,
    GemmConstants,
    GemmKernels,
    gemm_time,
    quantise_time,
)
from tokenfab.validation.gemm import (
    CARDS,
    CONSTANTS,
    EIGHT_BIT,
    KERNELS,
    fit,
    large,
    mape,
    predict,
    predict_fp8,
    read_gemm,
)

AMPERE, HOPPER = CONSTANTS["a100-80g-sxm"], CONSTANTS["h100-sxm"]

A100, H100 = CARDS["a100-80g-sxm"], CARDS["h100-sxm"]
CARD = Card(sms=100, clock_hz=1e9, matrix_flops=1e14, dram_bytes_s=1e12, l2_bytes=4e7, l2_bytes_s=4e12)
IDEAL = GemmConstants(1000, 1.0, 1e-15, 1.0, 1.0, 0.1, 1.0, 1e-6, 1.0, 1.0, 1.0, 1.0)
ONE_TILE = GemmKernels(((128, 128),), (1,), multicast=1, quantised=True)
SIZE = st.integers(1, 20000)
CASES = st.sampled_from([(A100, AMPERE, CUBLAS_AMPERE), (H100, HOPPER, CUBLAS_HOPPER)])


def seconds(m: float, n: float, k: float, kernels: GemmKernels = ONE_TILE, **options: float) -> float:
    return float(gemm_time(m, n, k, CARD, IDEAL, kernels, **options)[0])  # type: ignore[arg-type]


def test_one_tile_by_hand() -> None:
    """One block on one multiprocessor: 2·128·128·16384 FLOP at 1 TFLOP/s beside 256·16384·2 bytes at 64 GB/s."""
    compute, load = 2 * 128 * 128 * 16384 / 1e12, 256 * 16384 * 2 / 64e9
    dram = 128 * 16384 * 2 / 64e9  # weights, through one port; the activations stay in L2
    together = (compute**8 + load**8 + dram**8) ** (1 / 8)
    assert seconds(128, 128, 16384) == pytest.approx(1e-6 + together + 128 * 128 * 2 / 1e12, rel=1e-3)
    assert gemm_time(128, 128, 16384, CARD, IDEAL, ONE_TILE)[1] == LIMITS.index("compute")


def test_waves_by_hand() -> None:
    """100 tiles are one wave, 101 are two; where the last wave is soft, 1.01."""
    card = replace(CARD, dram_bytes_s=1e15)

    def work(n: float, kernels: GemmKernels) -> float:
        return float(gemm_time(128, n, 65536, card, IDEAL, kernels)[0]) - 1e-6

    wave = 2 * 128 * 128 * 65536 / 1e12
    full = wave * 2 ** (1 / 8)  # of tiles and of the card: the same, so the corner rounds
    assert work(12800, ONE_TILE) == pytest.approx(full, rel=1e-3)
    assert work(12801, ONE_TILE) == pytest.approx(2 * wave, rel=1e-3)
    soft = replace(ONE_TILE, quantised=False)
    assert work(12928, soft) == pytest.approx(1.01 * full, rel=1e-3)


def test_the_first_loads_of_a_tile_are_waited_for() -> None:
    """Two waves of 128 × 128 tiles wait twice for 96 of k: 256 rows and columns of 2 bytes at 64 GB/s."""
    staged = replace(ONE_TILE, pipeline=96)
    waited = seconds(128, 12801, 4096, staged) - seconds(128, 12801, 4096)
    assert waited == pytest.approx(2 * 256 * 96 * 2 / 64e9, rel=1e-3)
    assert seconds(128, 128, 32, staged) - seconds(128, 128, 32) == pytest.approx(256 * 32 * 2 / 64e9, rel=1e-3)


def test_a_small_tile_waits_for_latency_at_each_step() -> None:
    """20 clocks per element of k; a tile of 16 × 64 would load it in 2.5. Half as long for elements of 8 bits."""
    small = replace(ONE_TILE, tiles=((16, 64),))
    slow = replace(IDEAL, depth_clocks=20.0)

    def time(bits: float) -> float:
        return float(gemm_time(16, 64, 65536, CARD, slow, small, bits=bits, rate=1e16)[0])

    assert time(16) == pytest.approx(1e-6 + 65536 * 20e-9, rel=1e-3)
    assert time(8) == pytest.approx(1e-6 + 65536 * 10e-9, rel=1e-3)


@pytest.mark.parametrize(("m", "held"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (128, 128), (5000, 128)])
def test_weights_stream_slower_beside_more_rows(m: int, held: int) -> None:
    """A stream is held up by √(rows held / 16), m rounded up to a power of two between the tiles' 16 and 128 rows."""
    tiles = replace(ONE_TILE, tiles=((16, 128), (128, 128)))
    n, k = 128 * 100, 8192  # a column of tiles a multiprocessor

    def stream(constants: GemmConstants) -> float:
        return float(gemm_time(m, n, k, CARD, constants, tiles, rate=1e20)[0])

    free = replace(IDEAL, writeback=1e-9, launch_clocks=1e-9, load_share=1e6, l2_share=1e6, depth_clocks=1e-9)
    # Without it nothing is sooner than all bytes at DRAM's rate, activations too, which is 1.6 % more at 128 rows.
    assert stream(replace(free, row_fade=0.5)) == pytest.approx((held / 16) ** 0.5 * stream(free), rel=0.02)


def test_split_k_fills_the_card() -> None:
    alone, split = seconds(128, 128, 65536), seconds(128, 128, 65536, replace(ONE_TILE, splits=(1, 16)))
    assert split < alone / 5
    assert split > 1e-6 + IDEAL.split_s


def test_tiles_by_m() -> None:
    by_m = replace(ONE_TILE, tiles=((64, 64), (128, 128)), up_to=(64, np.inf))
    small, big = replace(ONE_TILE, tiles=((64, 64),)), replace(ONE_TILE, tiles=((128, 128),))
    assert seconds(64, 512, 4096, by_m) == seconds(64, 512, 4096, small)
    assert seconds(65, 512, 4096, by_m) == seconds(65, 512, 4096, big)


def test_weights_that_stay_in_cache_are_not_read() -> None:
    def time(n: int, k: int, copies: float | None) -> float:
        return float(gemm_time(16, n, k, H100, HOPPER, CUBLAS_HOPPER, copies=copies)[0])

    assert time(1024, 2048, 6) < time(1024, 2048, None)
    assert time(8192, 8192, 6) == time(8192, 8192, None)


def test_narrow_weights_are_faster_and_more_batches_slower() -> None:
    wide, narrow = (gemm_time(1, 8192, 8192, A100, AMPERE, CUBLAS_AMPERE, weight_bits=bits)[0] for bits in (16.0, 4.0))
    assert narrow < 0.6 * wide
    assert seconds(512, 4096, 4096, batch=4) > 3 * seconds(512, 4096, 4096)


def test_shapes_broadcast() -> None:
    t, limit = gemm_time(np.arange(1, 4)[:, None], 512, np.array([64, 4096]), A100, AMPERE, CUBLAS_AMPERE)
    assert t.shape == limit.shape == (3, 2)
    assert gemm_time(np.arange(1, 2000), 512, 64, A100, AMPERE, CUBLAS_AMPERE)[0][2] == t[2, 0]


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, -1, 1), (1, 1, float("nan"))])
def test_sizes_must_be_positive(bad: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="positive"):
        gemm_time(*bad, A100, AMPERE, CUBLAS_AMPERE)


@pytest.mark.parametrize("constants", [AMPERE, HOPPER])
def test_constants_are_within_bounds(constants: GemmConstants) -> None:
    for name, (low, high, _) in BOUNDS.items():
        assert low <= getattr(constants, name) <= high, name


@given(CASES, SIZE, SIZE, SIZE)
def test_never_below_the_roofline(case: tuple[Card, GemmConstants, GemmKernels], m: int, n: int, k: int) -> None:
    card, constants, kernels = case
    t = gemm_time(m, n, k, card, constants, kernels)[0]
    assert t >= 2 * m * n * k / card.matrix_flops
    assert t >= 2 * (m * k + k * n + m * n) / card.dram_bytes_s
    assert np.isfinite(t)


@given(CASES, SIZE, SIZE, SIZE)
def test_more_rows_take_longer(case: tuple[Card, GemmConstants, GemmKernels], m: int, n: int, k: int) -> None:
    """Up to the drop where a taller tile, or more blocks to read DRAM with, come into reach."""
    t = gemm_time(np.arange(m, m + 130), n, k, *case)[0]
    assert np.all(t[1:] >= t[:-1] * 0.95)


@given(CASES, SIZE, SIZE, SIZE, st.floats(1.0, 4.0))
def test_better_cards_are_not_slower(
    case: tuple[Card, GemmConstants, GemmKernels], m: int, n: int, k: int, factor: float
) -> None:
    card, constants, kernels = case
    t = gemm_time(m, n, k, card, constants, kernels)[0] * (1 + 1e-5)
    for name in ("matrix_flops", "dram_bytes_s", "l2_bytes", "clock_hz"):
        better = replace(card, **{name: getattr(card, name) * factor})
        assert gemm_time(m, n, k, better, constants, kernels)[0] <= t, name


@given(SIZE, SIZE)
def test_rounding_activations_moves_three_bytes_each(m: int, k: int) -> None:
    t = quantise_time(m, k, CARD, IDEAL, row_s=1e-9)
    assert t == pytest.approx(1e-6 + m * 1e-9 + 3 * m * k / 1e12)


@pytest.mark.parametrize(("device", "constants", "all_rows", "of_layers"), [
    ("a100-80g-sxm", AMPERE, 0.070, 0.058), ("h100-sxm", HOPPER, 0.058, 0.056),
])  # fmt: skip
def test_odd_rows(truth: Path, device: str, constants: GemmConstants, all_rows: float, of_layers: float) -> None:
    odd = read_gemm(truth, device).rows(slice(1, None, 2))
    predicted = predict(odd, CARDS[device], constants, KERNELS[device])
    assert mape(predicted, odd) < all_rows
    assert mape(predicted[large(odd)], odd.rows(large(odd))) < of_layers


def test_odd_rows_fp8(truth: Path) -> None:
    odd = read_gemm(truth, "h100-sxm", "fp8").rows(slice(1, None, 2))
    assert mape(predict_fp8(odd, H100, HOPPER, EIGHT_BIT), odd) < 0.105


@pytest.mark.parametrize(("constants", "device"), [(AMPERE, "h100-sxm"), (HOPPER, "a100-80g-sxm")])
def test_other_architecture(truth: Path, constants: GemmConstants, device: str) -> None:
    odd = read_gemm(truth, device).rows(slice(1, None, 2))
    assert mape(predict(odd, CARDS[device], constants, KERNELS[device]), odd) < 0.135


def test_constants_are_those_of_the_fit(truth: Path) -> None:
    even = read_gemm(truth, "a100-80g-sxm").rows(slice(0, None, 2))
    again = fit(even, A100, CUBLAS_AMPERE)
    assert mape(predict(even, A100, again, CUBLAS_AMPERE), even) == pytest.approx(
        mape(predict(even, A100, AMPERE, CUBLAS_AMPERE), even), abs=0.002
    )


def test_missing_table_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gemm_perf\.csv\.gz"):
        read_gemm(tmp_path, "h100-sxm")


def test_rows_that_cannot_be_true_are_dropped_and_counted(tmp_path: Path) -> None:
    """Zero; faster than 989.4 TFLOP/s; operands faster than 5.5 TB/s; then one at each limit, and fp8."""
    arithmetic, through_l2 = 2 * 4096**3 / 989.4e12 * 1e3, 2 * (1 * 8192 + 8192**2 + 8192) / 5.5e12 * 1e3
    rows = [
        ("bfloat16", 0, 64, 64, 1), ("bfloat16", 64, 64, 64, 0), ("bfloat16", 64, 64, 64, "nan"),
        ("bfloat16", 4096, 4096, 4096, 0.99 * arithmetic), ("bfloat16", 1, 8192, 8192, 0.99 * through_l2),
        ("bfloat16", 4096, 4096, 4096, 1.01 * arithmetic), ("bfloat16", 1, 8192, 8192, 1.01 * through_l2),
        ("fp8", 4096, 4096, 4096, 0.6 * arithmetic),
    ]  # fmt: skip
    path = tmp_path / "aiconfigurator/h100_sxm/gemm/vllm_1.0/gemm_perf.csv.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([("gemm_dtype", "m", "n", "k", "latency"), *rows])
    found = read_gemm(tmp_path, "h100-sxm")
    assert (found.m.tolist(), found.dropped) == ([4096, 1], 5)
    assert read_gemm(tmp_path, "h100-sxm", "fp8").m.size == 1
