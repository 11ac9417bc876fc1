"""Products by table lookup: the golden model against direct products, exact fractions and numpy's own rounding."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.kernels.lut import (
    Group,
    LutFormat,
    align,
    alignment_error,
    as_floats,
    codes,
    half_table,
    lut_matmul,
    lut_tile,
    quantise,
    round_to_binary,
)
from tokenfab.rtl.lut_tensor_unit.cycles import check, cycles, group_bits, planes, tiles

seeds = st.integers(0, 2**32)
half_words = st.integers(0, 0xFFFF).filter(lambda w: w >> 10 & 31 != 31)


def weights_of(rng: np.random.Generator, shape: tuple[int, int], bits: int, odd: bool) -> np.ndarray:
    drawn = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
    return 2 * drawn + 1 if odd else drawn


def halves(rng: np.random.Generator, shape: tuple[int, int], spread: int = 10) -> np.ndarray:
    return (rng.normal(size=shape) * np.exp2(rng.integers(-spread, spread + 1, shape))).astype(np.float16)


# -- the algebra -----------------------------------------------------------------------------------
@given(st.integers(2, 6), st.integers(2, 8), st.integers(1, 8), st.booleans(), st.integers(1, 40), seeds)
def test_lookups_make_the_matrix_product(k, act_bits, bits, odd, inputs, seed):
    rng = np.random.default_rng(seed)
    acts = rng.integers(-(2 ** (act_bits - 1)), 2 ** (act_bits - 1), (3, inputs))
    weights = weights_of(rng, (5, inputs), bits, odd)
    tile = lut_matmul(acts, weights, bits, LutFormat(k, act_bits), odd)
    assert (tile.results == acts @ weights.T).all()
    assert not tile.overflow.any()
    assert not tile.invalid.any()


@given(st.integers(1, 8), seeds)
def test_the_constant_is_exact_at_the_ends(bits, seed):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rng = np.random.default_rng(seed)
    acts, weights = rng.choice((-128, 127), (4, 8)), rng.choice((low, high), (4, 8))
    assert (lut_matmul(acts, weights, bits, LutFormat()).results == acts @ weights.T).all()


def test_codes_by_hand():
    # 2 bits, w = -2, -1, 0, 1: 2 w + 1 = -3, -1, 1, 3 = (--), (-+), (+-), (++), top bit first
    weights = [[-2, -1, 0, 1]]
    top, low = codes(weights, 2)
    # top: - - + +: the last counts +, like input 2 only: index 0b100; low: - + - +: like input 1: 0b010
    assert (top.tolist(), low.tolist()) == ([0b0100], [0b0010])
    # the last one -: index turned round, entry negated
    assert codes([[1, 1, 0, -1]], 2).tolist() == [[0b1000], [0b0011]]
    assert codes([[1, -1, -1, -1]], 1, True).tolist() == [[0b1110]]


def test_the_half_table_by_hand_and_its_rounding():
    assert half_table([[1, 10, 100]]).tolist() == [[89, 91, 109, 111]]
    assert half_table([[1, 10, 100]], 1).tolist() == [[45, 46, 55, 56]]  # halves upwards
    assert half_table([[-1, -10, -100]], 1).tolist() == [[-44, -45, -54, -55]]


@given(st.integers(2, 6), st.integers(2, 8), seeds)
def test_an_entry_has_the_bits_it_is_said_to_have(k, act_bits, seed):
    acts = np.random.default_rng(seed).choice((-(2 ** (act_bits - 1)), 2 ** (act_bits - 1) - 1), (4, k))
    bits = LutFormat(k, act_bits).entry_bits
    assert half_table(acts).shape == (4, 2 ** (k - 1))
    assert half_table(acts).min() >= -(2 ** (bits - 1))
    assert half_table(acts).max() < 2 ** (bits - 1)


def test_the_accumulator_saturates_group_by_group():
    group = Group(np.full((1, 2), 127), np.full((1, 2), 1), 2)
    back = Group(np.full((1, 2), 127), np.full((1, 2), -1), 2)
    form = LutFormat(2, 8, accumulator_bits=10)
    assert lut_tile([group] * 2, form).results.tolist() == [[508]]
    assert not lut_tile([group] * 2, form).overflow.any()
    tile = lut_tile([group, group, group, back], form)
    assert (tile.results.tolist(), tile.overflow.tolist()) == ([[511 - 254]], [[True]])
    assert lut_tile([back, back, back, group], form).results.tolist() == [[-512 + 254]]


def test_a_group_wider_than_64_bits_saturates_too():
    form = LutFormat(4, 16, accumulator_bits=60, guard=29)
    group = Group(np.full((1, 4), 0x7BFF), np.full((1, 4), 127), 8)
    tile = lut_tile([group], form)  # 4 · 127 · 65504 in units of 2^-53 needs 78 bits
    assert as_floats(tile, form).tolist() == [[2.0**59 / 2.0**53]]
    assert tile.overflow.tolist() == [[True]]


# -- quantisers ------------------------------------------------------------------------------------
@given(st.integers(1, 8), st.sampled_from([2, 4, 8]), seeds)
def test_quantised_weights_are_near_and_symmetric(bits, group, seed):
    weights = np.random.default_rng(seed).normal(size=(3, 16))
    found = quantise(weights, bits, group)
    assert found.scales.shape == (3, 16 // group)
    assert (quantise(-weights, bits, group).values == -found.values).all()
    codes(found.values, bits, found.odd)  # held by that many bits
    if bits > 1:
        assert (np.abs(found.dequantised() - weights) <= np.repeat(found.scales, group, 1) / 2 + 1e-12).all()
        assert (np.abs(found.values).reshape(3, -1, group).max(-1) == 2 ** (bits - 1) - 1).all()
    else:
        assert (
            np.abs(found.dequantised()) == np.repeat(np.abs(weights).reshape(3, -1, group).mean(-1), group, 1)
        ).all()


def test_zeros_are_quantised_to_zero():
    found = quantise(np.zeros((1, 4)), 4, 4)
    assert (found.values.tolist(), found.scales.tolist()) == ([[0] * 4], [[0.0]])


# -- binary16 --------------------------------------------------------------------------------------
@given(st.lists(half_words, min_size=4, max_size=4))
def test_with_29_guard_bits_alignment_is_exact(words):
    values, exponents, special = align([words], 29)
    numbers = np.array(words, np.uint16).view(np.float16)
    wanted = [Fraction(float(x)) for x in numbers]
    assert [Fraction(int(v)) * Fraction(2) ** (int(exponents[0]) - 53) for v in values[0]] == wanted
    assert not special[0]


@given(st.lists(half_words, min_size=4, max_size=4), st.integers(0, 28))
def test_alignment_cuts_off_less_than_one_unit_towards_zero(words, guard):
    values, exponents, _ = align([words], guard)
    unit = Fraction(2) ** (int(exponents[0]) - 24 - guard)
    for word, value in zip(words, values[0], strict=True):
        exact = Fraction(float(np.array(word, np.uint16).view(np.float16)))
        assert 0 <= abs(exact) - abs(int(value)) * unit < unit
        assert value == 0 or (value < 0) == (exact < 0)


def test_zeros_and_subnormals_do_not_move_the_others():
    assert align([[0x8000, 0x0001, 0x0400, 0x07FF]], 0)[0].tolist() == [[0, 1, 1024, 2047]]
    values, exponents, _ = align([[0, 0x3C01, 0x8000, 0]], 0)
    assert (values.tolist(), exponents.tolist()) == ([[0, 1025, 0, 0]], [14])
    assert align([[0, 0, 0, 0x8000]], 3)[1].tolist() == [0]


@given(st.integers(1, 8), st.booleans(), st.integers(1, 30), st.integers(0, 8), seeds)
def test_fp16_products_are_within_the_stated_error(bits, odd, inputs, guard, seed):
    rng = np.random.default_rng(seed)
    acts, weights = halves(rng, (3, 4 * inputs)), weights_of(rng, (5, 4 * inputs), bits, odd)
    assume(np.isfinite(acts).all())
    form = LutFormat(4, 16, accumulator_bits=80, guard=guard)
    exact = acts.astype(np.float64) @ weights.T  # exact: 40 + 8 + 7 bits at most, less in fact
    found = as_floats(lut_matmul(acts, weights, bits, form, odd), form)
    error = np.abs(found - exact)
    assert (error <= alignment_error(acts, weights, form) + np.spacing(np.abs(found)) / 2).all()


@given(st.integers(1, 8), st.integers(1, 10), seeds)
def test_with_29_guard_bits_the_product_is_the_rounded_exact_one(bits, inputs, seed):
    rng = np.random.default_rng(seed)
    acts, weights = halves(rng, (2, 4 * inputs), 4), weights_of(rng, (3, 4 * inputs), bits, False)
    exact = acts.astype(np.float64) @ weights.T
    for half in (False, True):
        form = LutFormat(4, 16, accumulator_bits=80, guard=29, half=half)
        with np.errstate(over="ignore"):
            wanted = exact.astype(np.float16 if half else np.float32)
        tile = lut_matmul(acts, weights, bits, form)
        assert (as_floats(tile, form) == wanted).all()
        assert (tile.overflow == np.isinf(wanted)).all()


@given(st.integers(1, 8), st.integers(8, 14), seeds)
def test_rounded_tables_are_within_one_unit_for_each_lookup(bits, table_bits, seed):
    rng = np.random.default_rng(seed)
    acts, weights = halves(rng, (3, 4), 2), weights_of(rng, (5, 4), bits, False)
    form = LutFormat(4, 16, accumulator_bits=80, table_bits=table_bits)
    exact = acts.astype(np.float64) @ weights.T
    found = as_floats(lut_matmul(acts, weights, bits, form), form)
    exponents = align(acts.view(np.uint16), 0)[1]
    unit = np.exp2(exponents + float(form.unit))[:, None]  # of an entry
    bound = alignment_error(acts, weights, form) + unit * (2 ** (bits - 1) + 0.5) + np.spacing(np.abs(found)) / 2
    assert (np.abs(found - exact) <= bound).all()


def test_infinity_nan_and_overflow_are_said():
    form = LutFormat(4, 16, accumulator_bits=64, half=True)
    tile = lut_matmul(
        [[np.inf, 0, 0, 0], [1, 2, 3, 4], [65504, 0, 0, 0], [-65504, 0, 0, 0]], [[1, 0, 0, 0], [2, 0, 0, 0]], 3, form
    )
    assert tile.invalid.tolist() == [True, False, False, False]
    values = as_floats(tile, form)
    assert np.isnan(values[0]).all()
    assert values[1:].tolist() == [[1, 2], [65504, np.inf], [-65504, -np.inf]]
    assert tile.overflow.tolist() == [[False, False], [False, False], [False, True], [False, True]]
    assert lut_matmul([[0.0, -0.0]], [[-1, -1]], 1, form).results.tolist() == [[0]]
    assert lut_matmul([[1e6, 0]], [[1, 1]], 2, form).invalid.tolist() == [True]  # beyond binary16


@given(st.integers(-(2**50), 2**50), st.integers(-70, 20))
def test_rounding_is_that_of_numpy(total, unit):
    exact = np.float64(total) * np.float64(2.0) ** unit
    with np.errstate(over="ignore"):
        for half, kind, word in ((True, np.float16, np.uint16), (False, np.float32, np.uint32)):
            pattern, infinite = round_to_binary(total, unit, half)
            assert pattern == int(kind(exact).view(word))
            assert infinite == np.isinf(kind(exact))


def test_rounding_at_the_edge_of_binary16():
    assert round_to_binary(65519, 0, True) == (0x7BFF, False)
    assert round_to_binary(65520, 0, True) == (0x7C00, True)
    assert round_to_binary(-65520, 0, True) == (0xFC00, True)
    assert round_to_binary(1, -25, True) == (0, False)  # a tie, to even
    assert round_to_binary(3, -25, True) == (2, False)
    assert round_to_binary(2047, -25, True) == (0x0400, False)  # the greatest subnormal rounds to the least normal


# -- refusals --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LutFormat(k=7), "2 to 6 activations"),
        (lambda: LutFormat(activation_bits=12), "16 for binary16"),
        (lambda: LutFormat(guard=1), "are for binary16"),
        (lambda: LutFormat(activation_bits=16, guard=30), "0 to 29"),
        (lambda: LutFormat(activation_bits=16, table_bits=15), "0, or 4 to 14"),
        (lambda: LutFormat(accumulator_bits=81), "2 to 80"),
        (lambda: codes([[0.5, 1.0]], 2), "wanted a matrix of whole numbers"),
        (lambda: codes([0, 1], 2), "wanted a matrix of whole numbers"),
        (lambda: lut_matmul([[0.5, 1.0]], [[1, 1]], 2, LutFormat()), "activations have shape .* of whole numbers"),
        (lambda: lut_tile([], LutFormat()), "one group at least"),
        (lambda: quantise([[1.0, np.nan]], 4, 2), "must be finite"),
        (lambda: codes([[2, 0]], 2), "not all two's complement of 2 bits"),
        (lambda: codes([[2, 1]], 2, True), "not all odd numbers of 2 bits"),
        (lambda: codes([[0]], 9), "9 bits: 1 to 8"),
        (lambda: quantise([[1.0, 2.0, 3.0]], 4, 2), "a multiple of the group, 2"),
        (lambda: lut_matmul([[128, 0]], [[1, 1]], 2, LutFormat()), "-128 to 127"),
        (lambda: lut_matmul([[1, 0]], [[1]], 2, LutFormat()), r"wanted \(m, k\) and \(n, k\)"),
        (
            lambda: lut_tile([Group(np.ones((1, 3), int), np.ones((1, 4), int), 2)], LutFormat()),
            "a group has activations",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


# -- cycles ----------------------------------------------------------------------------------------
def test_cycles_by_hand():
    p = check({})
    one = {"m": 1, "n": 1, "k": 1}
    # activations in cycle 0, planes in 2 and 3, results offered from 7 on: 8 beats, the last in cycle 14
    assert cycles(one, {"weight": "int2"}, p) == 15
    whole = {"m": 2, "n": 4096, "k": 4096}
    assert tiles(whole, p) == 64
    assert planes(whole, {"weight": "int4"}, p) == 4096
    assert cycles(whole, {"weight": "int4"}, p) == 64 * 4096 + 13
    assert cycles(whole, {"weight": "odd1"}, p) == 64 * 1024 + 13
    # short tiles wait for their results: 8 beats for each, 2 planes
    assert cycles(one | {"m": 20, "k": 8}, {"weight": "int1"}, p) == 2 + 2 + 9 * 8 + 3 + 8
    assert group_bits(p) == 18
    assert group_bits(check({"ACT_WIDTH": 16, "GUARD": 3, "ACC_WIDTH": 64})) == 17 + 8 + 29


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 300), st.integers(1, 500))
def test_cycles_are_in_proportion_to_weight_bits_where_tiles_are_long(bits, m, n, k):
    p = check({"COLUMNS": 64})
    shape = {"m": m, "n": n, "k": k}
    rest = cycles(shape, {"weight": "int1"}, p) - tiles(shape, p) * planes(shape, {"weight": "int1"}, p)
    assert (
        cycles(shape, {"weight": f"int{bits}"}, p)
        == bits * tiles(shape, p) * planes(shape, {"weight": "int1"}, p) + rest
    )


@pytest.mark.parametrize(
    ("shape", "format", "config", "words"),
    [
        ({"m": 0, "n": 1, "k": 1}, {}, {}, "m must be at least 1"),
        ({"m": 1, "n": 1, "k": 1}, {"weight": "int5"}, {"MAX_BITS": 4}, "of 1 to 4 bits"),
        ({"m": 1, "n": 1, "k": 1}, {"weight": "fp4"}, {}, "int or odd"),
        ({"m": 1, "n": 1, "k": 1}, {"activation": "fp16"}, {}, "accepted: int2, int3"),
        ({"m": 1, "n": 1, "k": 1}, {"activation": "int8"}, {"ACT_WIDTH": 16, "ACC_WIDTH": 64}, "accepted: fp16"),
        ({"m": 1, "n": 1, "k": 1}, {}, {"N": 3}, "N must be a power of two"),
    ],
)
def test_the_cycle_model_refuses_what_the_unit_cannot_do(shape, format, config, words):
    with pytest.raises(InputError, match=words):
        cycles(shape, format, config)
