"""The fused-experts model: cases by hand, laws over random shapes, and the error on measured layers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.card import Card
from tokenfab.hw.gemm import GemmConstants
from tokenfab.hw.moe import BOUNDS, MARLIN, TRITON_0_14, TRITON_0_24, MoeConstants, MoeKernels, moe_time
from tokenfab.hw.routing import route
from tokenfab.validation.moe import AMPERE, CARDS, GEMM, HOPPER, SUITES, fit, mape, predict, read_moe

A100, H100 = CARDS["a100-80g-sxm"], CARDS["h100-sxm"]
DENSE_AMPERE, DENSE_HOPPER = GEMM["a100-80g-sxm"], GEMM["h100-sxm"]
CARD = Card(sms=100, clock_hz=1e9, matrix_flops=1e14, dram_bytes_s=1e12, l2_bytes=4e7, l2_bytes_s=4e12)
PLAIN = GemmConstants(1000, 1.0, 1e-15, 1.0, 1.0, 0.1, 1.0, 1e-6, 1.0, 1.0, 1.0, 1.0)
IDEAL = MoeConstants(1e-5, 1e-12, 1.0, 1.0, 1e-3, 1.0)
ONE_TILE = MoeKernels(((64, 64, 64),), (np.inf,))
SMOOTH = MoeKernels(((1, 64, 64),), (np.inf,))
CASES = st.sampled_from([(A100, DENSE_AMPERE, AMPERE, TRITON_0_14), (H100, DENSE_HOPPER, HOPPER, TRITON_0_24)])
SHAPE = st.tuples(st.integers(1, 20000), st.integers(1, 8192), st.integers(1, 8192), st.sampled_from([8, 60, 128, 384]))
LOAD = st.sampled_from([0.0, 0.7, 1.0, 1.01, 1.2, 2.0])


def seconds(tokens: float, hidden: float, inter: float, experts: float, top_k: float, **options: Any) -> float:
    """Of a card and a kernel without friction."""
    return float(moe_time(tokens, hidden, inter, experts, top_k, CARD, PLAIN, IDEAL, **{"kernels": ONE_TILE} | options))


def loads(tokens: float, experts: float, top_k: float, ep: float = 1, imbalance: float = 0.0) -> tuple[float, ...]:
    """Experts with rows, rows, and tiles of 16 rows, on the busiest device."""
    rows, count = route(*(np.array([float(x)]) for x in (tokens, experts, top_k, ep, imbalance)))
    return float(count.sum()), float((rows * count).sum()), float((np.ceil(rows / 16) * count).sum())


# -- routing ----------------------------------------------------------------------------------------
def test_balanced_routing_by_hand() -> None:
    assert loads(1, 8, 2) == pytest.approx((2, 2, 2))  # two experts with one row each
    assert loads(64, 8, 2) == pytest.approx((8, 128, 8))
    assert loads(65, 8, 2) == pytest.approx((8, 130, 10))  # 16.25 rows: a quarter of the experts have 17
    assert loads(64, 8, 2, ep=4) == pytest.approx((2, 32, 2))
    assert loads(1, 256, 8, ep=256) == pytest.approx((1, 1, 1))  # the busiest device has a row


def _drawn(tokens: int, experts: int, top_k: int, ep: int, alpha: float, rng: np.random.Generator) -> list[float]:
    """One draw as the benchmark makes it: (experts with rows, rows, tiles of 16) of the busiest device."""
    low, high = (1, 0.8 * tokens) if tokens * top_k > experts else (0.01, 2)
    a, b = low ** (1 - alpha), high ** (1 - alpha)
    x = (a + (b - a) * rng.random(experts)) ** (1 / (1 - alpha))
    n = np.minimum(np.rint(x / x.sum() * tokens * top_k), tokens).reshape(ep, -1)
    left, rank = int(tokens * top_k - n.sum()), 0
    while left:
        mine = n[rank % ep]
        i = np.argmin(mine) if left > 0 else np.argmax(mine)
        if 0 <= mine[i] + np.sign(left) <= tokens:
            mine[i] += np.sign(left)
            left -= int(np.sign(left))
        rank += 1
    busiest = n[n.sum(1).argmax()]
    return [float((busiest > 0).sum()), float(busiest.sum()), float(np.ceil(busiest / 16).sum())]


@pytest.mark.parametrize(("experts", "top_k", "ep"), [(128, 8, 1), (128, 8, 8), (256, 8, 64), (8, 2, 1), (8, 2, 8)])
@pytest.mark.parametrize("tokens", [4, 64, 1024])
def test_uneven_routing_is_what_draws_tend_to(experts: int, top_k: int, ep: int, tokens: int) -> None:
    rng = np.random.default_rng(7)
    drawn = np.mean([_drawn(tokens, experts, top_k, ep, 1.2, rng) for _ in range(40)], axis=0)
    assert loads(tokens, experts, top_k, ep, 1.2) == pytest.approx(drawn, rel=0.22, abs=1.1)


@given(SHAPE, LOAD, st.sampled_from([1, 2, 4]))
def test_routing_conserves_rows(shape: tuple[int, int, int, int], imbalance: float, ep: int) -> None:
    """One device has every row; the busiest of several no less than its share and no more than all."""
    tokens, _, _, experts = shape
    top_k = 2
    active, rows, tiles = loads(tokens, experts, top_k, ep, imbalance)
    if ep == 1:
        assert rows == pytest.approx(tokens * top_k)
    assert tokens * top_k / ep * (1 - 1e-9) <= rows <= tokens * top_k * (1 + 1e-9) or rows == pytest.approx(1)
    assert 1 - 1e-9 <= active <= experts / ep + 1e-9
    assert active - 1e-9 <= tiles


def test_imbalance_leaves_experts_without_rows_and_loads_one_device() -> None:
    even, uneven = loads(16, 256, 8), loads(16, 256, 8, imbalance=1.2)
    assert even[0] == pytest.approx(128)
    assert 70 < uneven[0] < 100
    assert loads(4096, 256, 8, 8, 1.2)[1] > 1.3 * 4096 * 8 / 8


def test_lumped_rows_go_to_one_device() -> None:
    one = [np.array([float(x)]) for x in (1, 256, 8, 16, 1.01)]
    assert route(*one)[1].sum() == pytest.approx(1)
    assert route(*one, lumped=True)[1].sum() == pytest.approx(8)


# -- time -------------------------------------------------------------------------------------------
def test_compute_by_hand() -> None:
    """One expert, 6400 rows of 4096 × 4096 in 64 × 64 tiles: 100 × 128 and 100 × 64 of them, all full."""
    first, second = 2 * 6400 * 8192 * 4096 / 1e14, 2 * 6400 * 4096 * 4096 / 1e14
    moved = 2 * (6400 * (2 * 4096 + 5 * 4096) + 2 * 6400 * 4096)
    hand = 1e-5 + 6400e-12 + moved / 1e12 + first + second
    assert seconds(6400, 4096, 4096, 1, 1) == pytest.approx(hand, rel=1e-9)


def test_loading_by_hand() -> None:
    """The same where arithmetic is free: each of 100 multiprocessors loads 128 and 64 tiles through 64 GB/s."""
    free = replace(CARD, matrix_flops=1e30, dram_bytes_s=1e18)
    away = 1 - 4e7 / (6400 * 4096 * 2)  # of the tokens, and of the rows between the GEMMs: as many
    tile = (64 * (1 + 1e-3 * away) + 64) * 2 * 4096 / 64e9
    t = float(moe_time(6400, 4096, 4096, 1, 1, free, PLAIN, IDEAL, kernels=ONE_TILE))
    assert t == pytest.approx(1e-5 + 6400e-12 + (128 + 64) * tile, rel=1e-6)


def test_weights_by_hand() -> None:
    """One token, two of eight experts: the weights of two experts through DRAM, nothing else shows."""
    weights = 2 * 3 * 4096 * 14336 * 2 / 1e12
    moved = 2 * (2 * (2 * 4096 + 5 * 14336) + 2 * 4096) / 1e12
    assert seconds(1, 4096, 14336, 8, 2, kernels=SMOOTH) == pytest.approx(1e-5 + 2e-12 + moved + weights, rel=1e-5)
    assert seconds(1, 4096, 14336, 8, 2, kernels=SMOOTH, gated=False) == pytest.approx(1e-5 + weights * 2 / 3, rel=2e-3)
    assert seconds(1, 4096, 14336, 8, 2, kernels=SMOOTH, weight_bits=4) == pytest.approx(1e-5 + weights / 4, rel=3e-3)


def test_overlap_is_what_hides_of_the_shorter() -> None:
    half = replace(IDEAL, overlap=0.5)
    bare = 1e-5 + 64e-12

    def work(c: MoeConstants, card: Card = CARD) -> float:
        return float(moe_time(64, 4096, 14336, 1, 1, card, PLAIN, c, kernels=ONE_TILE)) - bare

    fast = replace(CARD, dram_bytes_s=1e18)
    assert work(half) == pytest.approx(work(IDEAL) + 0.5 * work(IDEAL, fast), rel=0.01)


def test_tiles_by_tokens_by_experts_and_by_rows() -> None:
    two = MoeKernels(((16, 64, 64), (64, 64, 64)), (32, np.inf))
    small, big = replace(two, tiles=two.tiles[:1], up_to=(np.inf,)), replace(two, tiles=two.tiles[1:], up_to=(np.inf,))

    fast = replace(CARD, dram_bytes_s=1e18)  # so that padding shows

    def of(tokens: int, kernels: MoeKernels) -> float:
        return float(moe_time(tokens, 1024, 1024, 16, 2, fast, PLAIN, IDEAL, kernels=kernels))

    assert of(32, two) == of(32, small) != of(32, big)
    assert of(33, two) == of(33, big)
    assert of(33, replace(two, by="experts")) == of(33, small)  # 33 / 16 experts
    assert of(300, replace(two, by="rows")) == of(300, big)  # 37.5 rows each
    assert of(100, replace(two, by="rows")) == of(100, small)


def test_tuned_takes_the_fastest_tile() -> None:
    t = [
        moe_time(n, 4096, 3584, 8, 2, A100, DENSE_AMPERE, AMPERE, kernels=TRITON_0_14, tuned=[False, True])
        for n in (32, 4096)
    ]
    assert all(tuned < default for default, tuned in t)


def test_rows_of_other_devices_cost_unless_own_rows() -> None:
    everything, own = (
        seconds(8192, 4096, 1024, 64, 8, ep=64, kernels=replace(ONE_TILE, own_rows=o)) for o in (False, True)
    )
    assert everything > 2 * own


def test_a_depth_that_16_does_not_divide_is_loaded_by_the_element() -> None:
    assert seconds(4096, 4096, 1000, 8, 2) > 1.5 * seconds(4096, 4096, 1008, 8, 2)


def test_pairs_are_not_sorted_while_there_are_few() -> None:
    naive = replace(ONE_TILE, naive=4)
    assert seconds(4, 512, 512, 128, 8, kernels=naive) == pytest.approx(
        seconds(4, 512, 512, 128, 8) - 0.25e-5, rel=1e-3
    )
    assert seconds(5, 512, 512, 128, 8, kernels=naive) == seconds(5, 512, 512, 128, 8)
    assert seconds(4, 512, 512, 128, 8, kernels=naive, ep=2) == seconds(4, 512, 512, 128, 8, ep=2)


def test_warm_weights_are_not_read() -> None:
    def of(width: int, warm: bool) -> float:
        return seconds(1, width, width, 4, 1, kernels=SMOOTH, warm=warm)

    assert of(2048, True) < of(2048, False) - 1e-5
    assert of(8192, True) == of(8192, False)


def test_shapes_broadcast() -> None:
    tokens, ep = np.array([1, 64, 4096])[:, None], np.array([1, 8])
    t = moe_time(tokens, 2048, 768, 128, 8, H100, DENSE_HOPPER, HOPPER, ep=ep, imbalance=1.2)
    assert t.shape == (3, 2)
    alone = moe_time(4096, 2048, 768, 128, 8, H100, DENSE_HOPPER, HOPPER, ep=8, imbalance=1.2)
    assert alone == pytest.approx(t[2, 1], rel=1e-12)
    assert moe_time([], 2048, 768, 128, 8, H100, DENSE_HOPPER, HOPPER).shape == (0,)
    assert moe_time(np.arange(1, 5001), 64, 64, 8, 2, H100, DENSE_HOPPER, HOPPER).shape == (5000,)


@pytest.mark.parametrize(("bad", "options"), [
    ((0, 1, 1, 8, 2), {}), ((1, 1, -1, 8, 2), {}), ((1, float("nan"), 1, 8, 2), {}), ((1, 1, 1, 8, 9), {}),
    ((1, 1, 1, 8, 2), {"ep": 16}), ((1, 1, 1, 8, 2), {"ep": 0}), ((1, 1, 1, 8, 2), {"imbalance": -1}),
])  # fmt: skip
def test_sizes_are_checked(bad: tuple[float, ...], options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"experts: .*must") as error:
        moe_time(*bad, A100, DENSE_AMPERE, AMPERE, **options)  # type: ignore[misc, arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suite", SUITES)
def test_constants_are_within_bounds(suite: str) -> None:
    for name, (low, high, _) in BOUNDS.items():
        assert low <= getattr(SUITES[suite].constants, name) <= high, name


Case = tuple[Card, GemmConstants, MoeConstants, MoeKernels]


@given(CASES, SHAPE, LOAD, st.sampled_from([1, 4, 8]), st.booleans())
def test_never_below_the_roofline(
    case: Case, shape: tuple[int, int, int, int], imbalance: float, ep: int, tuned: bool
) -> None:
    """The arithmetic of the busiest device's rows, and the weights of the experts that have some."""
    card, inherited, constants, kernels = case
    tokens, hidden, inter, experts = shape
    ep = ep if experts % ep == 0 else 1
    active, rows, _ = loads(tokens, experts, 4, ep, imbalance)
    t = moe_time(
        tokens, hidden, inter, experts, 4, card, inherited, constants,
        kernels=kernels, ep=ep, imbalance=imbalance, tuned=tuned,
    )  # fmt: skip
    assert np.isfinite(t)
    assert t >= 6 * rows * hidden * inter / card.matrix_flops
    assert t >= 6 * active * hidden * inter / card.dram_bytes_s


@given(SHAPE, st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(0, 300))
def test_more_tokens_or_experts_per_token_take_longer(
    shape: tuple[int, int, int, int], ep: int, top_k: int, more: int
) -> None:
    """Of one tile and balanced, up to the gain of more tiles to read DRAM with."""
    tokens, hidden, inter, experts = shape
    t, later, wider = (
        seconds(n, hidden, inter, experts, k, ep=ep)
        for n, k in ((tokens, top_k), (tokens + more, top_k), (tokens, top_k + 1))
    )
    assert later >= 0.9 * t
    assert wider >= 0.9 * t


@given(CASES, SHAPE, LOAD)
def test_more_tokens_take_longer_up_to_a_better_tile(
    case: Case, shape: tuple[int, int, int, int], imbalance: float
) -> None:
    card, inherited, constants, kernels = case
    tokens, hidden, inter, experts = shape
    t, twice = moe_time(
        [tokens, 4 * tokens],
        hidden,
        inter,
        experts,
        2,
        card,
        inherited,
        constants,
        kernels=kernels,
        imbalance=imbalance,
    )
    assert twice >= 0.75 * t


@given(CASES, SHAPE, LOAD, st.floats(1.0, 4.0))
def test_better_cards_are_not_slower(
    case: Case, shape: tuple[int, int, int, int], imbalance: float, factor: float
) -> None:
    card, inherited, constants, kernels = case
    tokens, hidden, inter, experts = shape

    def of(c: Card) -> float:
        time_ = moe_time(
            tokens, hidden, inter, experts, 2, c, inherited, constants, kernels=kernels, imbalance=imbalance
        )
        return float(time_)

    for name in ("matrix_flops", "dram_bytes_s", "l2_bytes", "clock_hz"):
        assert of(replace(card, **{name: getattr(card, name) * factor})) <= of(card) * (1 + 1e-9), name


@given(SHAPE, LOAD, st.sampled_from([2, 4]))
def test_more_devices_are_not_slower(shape: tuple[int, int, int, int], imbalance: float, ep: int) -> None:
    tokens, hidden, inter, experts = shape
    alone, together = (seconds(tokens, hidden, inter, experts, 2, ep=n, imbalance=imbalance) for n in (1, ep))
    assert together <= alone * 1.01


def test_two_hundred_thousand_a_second() -> None:
    """A tenth of it is the bar here: machines that test are shared."""
    tokens = np.tile(np.arange(1, 513), 80)
    moe_time(tokens[:4096], 4096, 1536, 128, 8, H100, DENSE_HOPPER, HOPPER, imbalance=1.01)
    start = time.process_time()
    moe_time(tokens, 4096, 1536, 128, 8, H100, DENSE_HOPPER, HOPPER, imbalance=1.01)
    assert tokens.size / (time.process_time() - start) > 2e4


# -- measurements -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("suite", "rows", "limit"), [
    ("bf16-a100", 6360, 0.086), ("bf16-h100", 16253, 0.089), ("fp8-block-triton", 5988, 0.082),
    ("fp8-block-cutlass", 9234, 0.106), ("fp8-cutlass", 14418, 0.137), ("int4-marlin", 1053, 0.136),
    ("mxfp4-marlin", 972, 0.115), ("mxfp4-triton", 1944, 0.145),
])  # fmt: skip
def test_odd_rows(truth: Path, suite: str, rows: int, limit: float) -> None:
    table = read_moe(truth, suite)
    assert table.seconds.size + table.dropped == rows
    odd = table.rows(slice(1, None, 2))
    assert mape(predict(odd, suite), odd) < limit


@pytest.mark.parametrize(
    ("ours", "other", "limit"), [("bf16-a100", "bf16-h100", 0.18), ("bf16-h100", "bf16-a100", 0.21)]
)
def test_constants_of_the_other_card(truth: Path, ours: str, other: str, limit: float) -> None:
    odd = read_moe(truth, other).rows(slice(1, None, 2))
    assert mape(predict(odd, other, SUITES[ours].constants), odd) < limit


def test_models_that_were_not_fitted(truth: Path) -> None:
    """Fitted on every second model, tested on the others."""
    rows = read_moe(truth, "bf16-a100")
    model = rows.hidden * 1e6 + rows.experts * 1e3 + rows.top_k
    held = np.isin(model, np.unique(model)[::2])
    constants = fit(rows.rows(~held), "bf16-a100")
    assert mape(predict(rows.rows(held), "bf16-a100", constants), rows.rows(held)) < 0.11


def test_constants_are_those_of_the_fit(truth: Path) -> None:
    even = read_moe(truth, "mxfp4-triton").rows(slice(0, None, 2))
    again = fit(even, "mxfp4-triton")
    assert mape(predict(even, "mxfp4-triton", again), even) == pytest.approx(
        mape(predict(even, "mxfp4-triton"), even), abs=0.002
    )


def _table(folder: Path, rows: list[str]) -> Path:
    import gzip

    place = folder / "aiconfigurator" / "a100_sxm" / "moe" / "vllm_0.14.0"
    place.mkdir(parents=True)
    head = ("kernel_source,moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,"
            "distribution,latency")  # fmt: skip
    with gzip.open(place / "moe_perf.csv.gz", "wt") as file:
        file.write("\n".join([head, *rows]) + "\n")
    return folder


def test_rows_that_cannot_be_true_are_dropped(tmp_path: Path) -> None:
    """A time of zero, no tokens, and 0.7 GB of weights in a hundredth of their time; other types are not read."""
    start = "vllm_fused_moe,bfloat16,"
    truth = _table(tmp_path, [
        start + "1,4096,14336,2,8,1,1,power_law_1.01,0.454", start + "1,4096,14336,2,8,2,1,balanced,0",
        start + "0,4096,14336,2,8,1,1,balanced,0.4", start + "1,4096,14336,2,8,1,1,balanced,0.004",
        "vllm_fused_moe,fp8,1,4096,14336,2,8,1,1,balanced,0.4",
    ])  # fmt: skip
    rows = read_moe(truth, "bf16-a100")
    assert rows.dropped == 3
    assert [float(x[0]) for x in (rows.tokens, rows.inter, rows.imbalance, rows.gated)] == [1, 14336, 1.01, 1]
    assert rows.seconds == pytest.approx([0.454e-3])


def test_missing_table_and_unknown_suite_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"moe_perf\.csv\.gz"):
        read_moe(tmp_path, "bf16-h100")
    with pytest.raises(InputError, match=r"unknown suite 'bf16'.*bf16-a100"):
        read_moe(tmp_path, "bf16")


def test_every_suite_knows_its_card() -> None:
    assert {s.device for s in SUITES.values()} == set(CARDS) == set(GEMM)
    assert MARLIN.up_to[0] == 7.2
