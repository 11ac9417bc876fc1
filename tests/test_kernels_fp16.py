"""Binary16 products in binary32 sums: the golden model against fractions and float arithmetic; cycles by formula."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.kernels.fp16 import INFINITY, NAN, add_rounded, decode, mac_dot
from tokenfab.rtl.fp16_mac.cycles import cycles, latency

ONE, TOP, TINY, INF = 0x3C00, 0x7BFF, 0x0001, 0x7C00
MINUS = 1 << 31
EDGES = (0, TINY, 0x03FF, 0x0400, ONE, ONE + 1, TOP)
seeds = st.integers(0, 2**32)
wide, places = st.integers(-(2**33) + 1, 2**33 - 1), st.integers(-90, 40)


def finite(rng, shape, fraction=10):
    """Bits of finite numbers: of every exponent, of size about 1, or at the format's edges."""
    kind = rng.integers(0, 3)
    if kind == 0:
        bits = rng.normal(size=shape).astype(np.float16).view(np.uint16)
    elif kind == 1:
        bits = rng.choice(EDGES, shape) | rng.integers(0, 2, shape) << 15
    else:
        bits = rng.integers(0, 65536, shape)
    bits = bits.astype(np.int64) >> (10 - fraction)
    return np.where(bits >> fraction & 31 == 31, bits ^ (1 << fraction), bits)


def as_fraction(bits, fraction=10):
    """A finite number as a fraction, by way of binary16."""
    return Fraction(float(np.uint16(int(bits) << (10 - fraction)).view(np.float16)))


def rounded(value, bits=24):
    """``value`` with ``bits`` bits, to nearest, ties to even (``round`` of a fraction does that)."""
    if not value:
        return value
    place = math.floor(math.log2(abs(value))) - bits + 1
    place += abs(value) >= Fraction(2) ** (place + bits)  # where the logarithm was rounded
    place -= abs(value) < Fraction(2) ** (place + bits - 1)
    unit = Fraction(2) ** place
    return round(value / unit) * unit


def by_fractions(acts, weights, lanes, guard, fraction=10):
    """One dot product by the rules, in fractions."""
    total = Fraction(0)
    for first in range(0, len(acts), lanes):
        pairs = [(a, w) for a, w in zip(acts[first : first + lanes], weights[first : first + lanes], strict=True)]
        products = [as_fraction(a, fraction) * as_fraction(w, fraction) for a, w in pairs]
        if lanes > 1:
            exponents = [sum(max(int(x) >> fraction & 31, 1) for x in pair) for pair in pairs]
            tops = [e for e, p in zip(exponents, products, strict=True) if p]
            unit = Fraction(2) ** (max(tops, default=0) - 30 - 2 * fraction - guard)
            products = [math.trunc(p / unit) * unit for p in products]
        total = rounded(total + sum(products))
    return total


def values(bits):
    return np.asarray(bits, np.uint32).view(np.float32).astype(np.float64)


# -- against fractions ------------------------------------------------------------------------------
@given(seeds, st.sampled_from((1, 2, 4, 8)), st.integers(0, 8), st.sampled_from((10, 10, 7, 3, 2)))
def test_sums_equal_those_in_fractions(seed, lanes, guard, fraction):
    rng = np.random.default_rng(seed)
    m, n, k = rng.integers(1, 4), rng.integers(1, 4), rng.integers(1, 40)
    acts, weights = finite(rng, (m, k), fraction), finite(rng, (n, k), fraction)
    found = values(mac_dot(acts, weights, lanes, guard, fraction))
    for i in range(m):
        for j in range(n):
            assert Fraction(found[i, j]) == by_fractions(acts[i], weights[j], lanes, guard, fraction)


@given(wide, places, wide, places)
def test_an_addition_is_rounded_once(a, a_place, b, b_place):
    value, place = add_rounded(*(np.array([x]) for x in (a, a_place, b, b_place)))
    assert abs(value[0]) <= 2**24
    assert int(value[0]) * Fraction(2) ** int(place[0]) == rounded(
        a * Fraction(2) ** a_place + b * Fraction(2) ** b_place
    )


@pytest.mark.parametrize("gap", [*range(22, 34), 60, 90])
@pytest.mark.parametrize("high", [2**33 - 1, 2**32, 2**32 + 2**8, 2**32 + 3 * 2**8, 2**32 - 2**7])
@pytest.mark.parametrize("low", [1, -1, 2**33 - 1, 1 - 2**33, 2**32 + 1])
def test_what_is_far_below_still_breaks_ties(high, low, gap):
    value, place = add_rounded(*(np.array([x]) for x in (high, 0, low, -gap)))
    assert int(value[0]) * Fraction(2) ** int(place[0]) == rounded(high + low * Fraction(2) ** -gap)


# -- against floating-point arithmetic --------------------------------------------------------------
def test_one_lane_is_a_fused_multiply_add():
    """Where float64 holds the sum exactly, its rounding to float32 is the only one."""
    rng = np.random.default_rng(5)
    acts, weights = (rng.normal(size=(8, 300)).astype(np.float16) for _ in range(2))
    acts, weights = acts * (np.abs(acts) > 2**-4), weights * (np.abs(weights) > 2**-4)  # multiples of 2^-28, below 2^12
    total = np.zeros((8, 8), np.float32)
    for k in range(300):
        exact = total.astype(np.float64) + np.multiply.outer(acts[:, k].astype(np.float64), weights[:, k])
        total = exact.astype(np.float32)
    assert (mac_dot(acts.view(np.uint16), weights.view(np.uint16)) == total.view(np.uint32)).all()


@pytest.mark.parametrize(("lanes", "guard"), [(2, 3), (4, 3), (8, 0), (8, 8)])
def test_lanes_lose_less_than_the_last_guard_bit_each(lanes, guard):
    """Against the exact sum: per step half a unit of the sum, and per lane one unit of the alignment."""
    rng = np.random.default_rng(6)
    acts, weights = rng.normal(size=(4, 256)).astype(np.float16), rng.normal(size=(5, 256)).astype(np.float16)
    exact = acts.astype(np.float64) @ weights.astype(np.float64).T
    found = values(mac_dot(acts.view(np.uint16), weights.view(np.uint16), lanes, guard))
    tops = np.abs(acts.astype(np.float64))[:, None] * np.abs(weights.astype(np.float64))[None]
    units = tops.reshape(4, 5, -1, lanes).max(axis=-1).sum(axis=-1) * 2.0 ** (-20 - guard)
    sums = np.cumsum(acts[:, None].astype(float) * weights[None], axis=-1)
    steps = 256 / lanes * np.abs(sums).max(axis=-1) * 2.0**-23
    assert (np.abs(found - exact) <= (lanes - 1) * units + steps).all()
    assert np.abs(found - exact).max() > 0


def test_a_large_product_is_near_the_exact_one():
    rng = np.random.default_rng(7)
    acts, weights = rng.normal(size=(64, 256)).astype(np.float16), rng.normal(size=(256, 256)).astype(np.float16)
    exact = acts.astype(np.float64) @ weights.astype(np.float64).T
    found = values(mac_dot(acts.view(np.uint16), weights.view(np.uint16), 4))
    assert np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)) < 4e-7


# -- special values and extremes --------------------------------------------------------------------
@pytest.mark.parametrize("lanes", [1, 2, 8])
@given(seed=seeds)
@settings(max_examples=60)
def test_infinities_and_nans_are_those_of_floating_point_arithmetic(lanes, seed):
    rng = np.random.default_rng(seed)
    acts, weights = finite(rng, (3, 9)), finite(rng, (3, 9))
    special = np.array([INF, INF | 1 << 15, 0x7E00, 0xFC01, INF, INF])
    acts = np.where(rng.random((3, 9)) < 0.06, rng.choice(special, (3, 9)), acts)
    weights = np.where(rng.random((3, 9)) < 0.06, rng.choice(special, (3, 9)), weights)
    found = mac_dot(acts, weights, lanes)
    a, w = (x.astype(np.uint16).view(np.float16).astype(np.float64) for x in (acts, weights))
    with np.errstate(invalid="ignore"):
        wanted = (a[:, None] * w[None]).sum(axis=-1)
    assert ((found == NAN) == np.isnan(wanted)).all()
    assert ((found == INFINITY) == (wanted == np.inf)).all()
    assert ((found == INFINITY | MINUS) == (wanted == -np.inf)).all()


def test_a_zero_is_always_positive():
    for pairs in ([(0x8000, ONE)], [(0x8000, TINY)] * 3, [(ONE, ONE), (ONE, ONE | 1 << 15)], [(0, 0)]):
        acts, weights = np.array([[a for a, _ in pairs]]), np.array([[w for _, w in pairs]])
        for lanes in (1, 2):
            assert mac_dot(acts, weights, lanes).tolist() == [[0]]


def test_the_least_and_the_greatest_products():
    assert values(mac_dot([[TINY]], [[TINY]]))[0, 0] == 2.0**-48
    assert values(mac_dot([[TOP]], [[TOP]]))[0, 0] == 65504.0**2
    assert values(mac_dot([[TINY, TOP]], [[TINY, TOP | 1 << 15]]))[0, 0] == -(65504.0**2)
    assert values(mac_dot(np.full((1, 16), TOP), np.full((1, 16), TOP), 8))[0, 0] == 65504.0**2 * 16


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_the_accumulator_stays_where_it_is_below_2_to_the_60(lanes):
    """From 2^59 on the greatest sum of a step is below half a unit: no length overflows."""
    term = lanes * 2047**2
    assert term << 10 < 1 << 35
    for start in (1 << 23, (1 << 24) - 1):
        value, place = add_rounded(np.array([start]), np.array([59 - 23]), np.array([term]), np.array([10]))
        assert (value[0], place[0]) == (start, 59 - 23)
    value, place = add_rounded(np.array([1 << 23]), np.array([30]), np.array([term]), np.array([10]))
    assert value[0] > 1 << 23  # far below it grows


def test_subnormals_and_every_other_number_decode_exactly():
    bits = np.arange(65536)
    numbers = decode(bits)
    value = bits.astype(np.uint16).view(np.float16).astype(np.float64)
    assert (numbers.infinite == np.isinf(value)).all()
    assert (numbers.nan == np.isnan(value)).all()
    ok = np.isfinite(value)
    assert (np.ldexp(numbers.signed.astype(np.float64), numbers.exponent - 25)[ok] == value[ok]).all()
    assert (numbers.zero == (value == 0)).all()


@pytest.mark.parametrize("fraction", [2, 3, 7])
def test_a_shorter_format_is_binary16_without_its_last_bits(fraction):
    bits = np.arange(1 << (fraction + 6))
    short, full = decode(bits, fraction), decode(bits << (10 - fraction))
    assert (short.signed << (10 - fraction) == full.signed).all()
    for name in ("minus", "exponent", "infinite", "nan"):
        assert (getattr(short, name) == getattr(full, name)).all()


# -- refusals, cycles -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([[1]], [[1]], 3), "1, 2, 4 or 8 lanes"),
        (([[1]], [[1]], 2, 9), "guard from 0 to 8"),
        (([[1]], [[1]], 1, 3, 11), "2 to 10 bits"),
        (([[1, 2]], [[1]]), "wanted \\(m, k\\) and \\(n, k\\)"),
        (([1], [[1]]), "wanted \\(m, k\\) and \\(n, k\\)"),
        (([[65536]], [[1]]), "0 to 65535"),
        (([[-1]], [[1]]), "0 to 65535"),
        (([[1.0]], [[1]]), "as their bits"),
        (([[256]], [[1]], 1, 3, 2), "0 to 255"),
    ],
)
def test_what_is_no_product_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        mac_dot(*arguments)


def test_cycles_by_hand():
    config = {"ROWS": 4, "COLS": 2, "LANES": 4}
    assert (latency({}), latency(config)) == (3, 4)
    # 16 beats, then 4 cycles to the first row (the last beat's own not counted), 3 more rows
    assert cycles({"m": 4, "n": 2, "k": 64}, {}, config) == 16 + 4 + 3
    assert cycles({"m": 5, "n": 5, "k": 64}, {"weight": "fp16"}, config) == 6 * 16 + 4 + 3
    assert cycles({"m": 5, "n": 5, "k": 9}, {}, config) == 3 + 5 * 5 + 4 + 3  # the rows of a tile take longer than it
    assert cycles({"m": 1, "n": 1, "k": 1}, {"activation": "e5m2"}, {"FRACTION": 2, "ROWS": 1}) == 1 + 3


@pytest.mark.parametrize(
    ("shape", "format", "words"),
    [
        ({"m": 0, "n": 1, "k": 1}, {}, "m must be at least 1; it is 0"),
        ({"m": 1, "n": 1, "k": 1}, {"weight": "int4"}, "accepted: fp16 weights"),
        ({"m": 1, "n": 1, "k": 1}, {"sparsity": "2:4"}, "accepted: fp16 weights"),
    ],
)
def test_what_the_unit_cannot_do_is_refused(shape, format, words):
    with pytest.raises(InputError, match=words):
        cycles(shape, format, {})
