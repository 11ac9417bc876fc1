"""Lines between measured rows: by hand, and never beyond them. On measured data: test_validate.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.validation.attention import Calls
from tokenfab.validation.gemm import Measured
from tokenfab.validation.suites import Comparison, _between
from tokenfab.validation.tables import Points, Table, attention_points, gemm_points


def gemms(*rows: tuple[float, float, float, float]) -> Measured:
    return Measured(*np.array(rows, float).T)


ROWS = gemms((1, 64, 64, 2), (100, 64, 64, 5), (300, 64, 64, 6), (100, 64, 128, 9), (8, 32, 32, 1), (8, 32, 32, 3))


def ask(*points: tuple[float, float, float]) -> tuple[list[float], list[bool]]:
    rows = gemms(*((m, n, k, 0.0) for m, n, k in points))
    seconds, inside = Table(gemm_points(ROWS), ROWS.seconds).seconds(gemm_points(rows))
    return seconds.tolist(), inside.tolist()


def test_lines_by_hand() -> None:
    """From 5 s at m = 100 to 6 s at m = 300: a quarter of the way is 5.25 s. On a measured m: that row."""
    seconds, inside = ask((150, 64, 64), (300, 64, 64), (34, 64, 64), (1, 64, 64), (8, 32, 32), (100, 64, 128))
    assert seconds == pytest.approx([5.25, 6, 3, 2, 2, 9])  # two rows of one shape: their mean
    assert all(inside)


@pytest.mark.parametrize(
    "outside", [(301, 64, 64), (0.5, 64, 64), (100, 64, 65), (100, 65, 64), (99, 64, 128), (9, 32, 32)]
)
def test_beyond_the_measured_sizes_and_between_shapes_there_is_no_answer(outside) -> None:
    seconds, inside = ask(outside, (100, 64, 64))
    assert inside == [False, True]
    assert np.isnan(seconds[0])
    assert seconds[1] == 5


def test_a_table_without_rows_answers_nothing() -> None:
    empty = Table(Points(np.empty((0, 2)), np.empty(0)), np.empty(0))
    assert not empty.seconds(gemm_points(ROWS))[1].any()
    assert empty.left_out()[0].size == 0


def test_rows_left_out_are_those_with_a_neighbour_on_both_sides() -> None:
    """Only m = 100 of 64 × 64 has two: 2 s at 1 and 6 s at 300, so 2 + 4 · 99/299 s there."""
    measured, line = Table(gemm_points(ROWS), ROWS.seconds).left_out()
    assert measured.tolist() == [5]
    assert line == pytest.approx([2 + 4 * 99 / 299])


points = st.lists(
    st.tuples(st.sampled_from([0.5, 1, 2]), st.integers(1, 50), st.floats(0.1, 10)), min_size=1, max_size=30
)


@given(points, st.lists(st.tuples(st.sampled_from([0.5, 1, 3]), st.floats(0, 60)), min_size=1, max_size=20))
def test_never_beyond_the_neighbours(rows, asked) -> None:
    """An answer is there exactly between the least and the largest size of the shape, and lies between the two
    neighbours' times; order and company of the questions do not matter."""
    shape, size, seconds = (np.array(x, float) for x in zip(*rows, strict=True))
    table = Table(Points(shape[:, None], size), seconds)
    shapes, sizes = (np.array(x, float) for x in zip(*asked, strict=True))
    answer, inside = table.seconds(Points(shapes[:, None], sizes))
    for i, (s, x) in enumerate(asked):
        own = size[shape == s]
        assert inside[i] == bool(own.size and own.min() <= x <= own.max())
        if inside[i]:
            below, above = own[own <= x].max(), own[own >= x].min()
            means = [seconds[(shape == s) & (size == y)].mean() for y in (below, above)]
            assert min(means) * (1 - 1e-9) <= answer[i] <= max(means) * (1 + 1e-9)
        else:
            assert np.isnan(answer[i])
        alone = table.seconds(Points(np.array([[s]]), np.array([x])))[0]
        assert np.array_equal(alone, answer[i : i + 1], equal_nan=True)


def calls(phase: str, query: float, kv: float, **changes: float) -> Calls:
    of = {"batch": 2, "heads": 8, "kv_heads": 2, "head_dim": 64, "window": 0, "seconds": 1} | changes
    arrays = {name: np.array([value], float) for name, value in of.items()}
    return Calls(phase, query=np.array([query], float), kv=np.array([kv], float), bits=16, **arrays)


def test_attention_is_of_one_shape_and_prefill_goes_by_pairs() -> None:
    """3 queries that see 1, 2 and 3 keys: 6 pairs; behind 4 cached ones 5 + 6 + 7 = 18, and another shape."""
    alone, behind = (attention_points(calls("prefill", 3, kv)) for kv in (3, 7))
    assert (alone.size.tolist(), behind.size.tolist()) == ([6], [18])
    assert alone.shape.tolist() == [[2, 8, 2, 64, 0]]
    assert behind.shape.tolist() == [[2, 8, 2, 64, 4]]
    decode = attention_points(calls("decode", 1, 100))
    assert (decode.size.tolist(), decode.shape.tolist()) == ([100], [[2, 8, 2, 64]])
    for name in ("batch", "heads", "kv_heads", "head_dim"):
        assert attention_points(calls("decode", 1, 100, **{name: 16})).shape.tolist() != decode.shape.tolist()


def test_outside_is_the_models_time_with_the_models_interval() -> None:
    """21 even rows on the line t = m but every other one 10 % slow; one odd row inside, one beyond."""
    m = np.arange(1.0, 26.0)
    even = Measured(m, 0 * m, 0 * m, m * np.where(m % 2 == 0, 1.1, 1.0))
    odd = Measured(np.array([2.5, 26.0]), np.zeros(2), np.zeros(2), np.array([2.5, 26.0]))
    model = Comparison(
        "gemm-bf16", "h100-sxm", "kernel", "calibrated", "", odd.seconds, np.array([7.0, 8.0]),
        np.array([0.5, 0.6]), np.array([1.5, 1.6]),
    )  # fmt: skip
    found = _between(model, Table(gemm_points(even), even.seconds), gemm_points(odd))
    assert (found.mode, found.inside) == ("measured", 1)
    assert found.predicted == pytest.approx([(2.2 + 3) / 2, 8])
    assert found.low is not None
    assert found.high is not None
    # A row of even m lies 1.1 over its neighbours' line, one of odd m 1/1.1 under it.
    assert (found.low[0], found.high[0]) == pytest.approx((1 / 1.1, 1.1), rel=1e-3)
    assert (found.low[1], found.high[1]) == (0.6, 1.6)
    assert found.summary()["inside"] == 1
    few = _between(model, Table(gemm_points(even.rows(slice(0, 10))), even.seconds[:10]), gemm_points(odd))
    assert few.low is not None
    assert few.low.tolist() == [0.5, 0.6]  # quantiles of eight rows are no interval
    assert replace(found, device="l40s").summary()["coverage_met"] is None
