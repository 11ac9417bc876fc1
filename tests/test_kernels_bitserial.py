"""The bit-serial array: terms, quantisers and sums against hand values and a model in fractions; cycles by formula."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtl_support import need_simulator

from tokenfab.errors import InputError
from tokenfab.kernels.bitserial import (
    BITS,
    Quantised,
    Widths,
    bitserial_dot,
    choose_special,
    decode,
    decode_activations,
    num_terms,
    quantise,
    terms,
)  # fmt: skip
from tokenfab.rtl.bit_serial_pe.cycles import TERMS, check, cycles, group_cycles
from tokenfab.rtl.bit_serial_pe.speed import measure

GRIDS = {"fp3": [0, 1, 2, 4, -1, -2, -4], "fp4": [s * v for s in (1, -1) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]}
SPECIALS = {"fp3": [3, -3, 6, -6], "fp4": [5, -5, 8, -8]}
FLOATS = ("fp3", "fp4")
seeds = st.integers(0, 2**32)


def plain(codes, format="int8", scale=1, special=0, group=128):
    """Weights from codes, without a quantiser."""
    codes = np.asarray(codes)
    shape = (codes.shape[0], -(-codes.shape[1] // group))
    return Quantised(codes, np.full(shape, scale), np.full(shape, special), np.ones(shape[0]), format, group)


def bits_of(values):
    return np.asarray(values, np.float16).view(np.uint16).astype(np.int64)


# -- terms ------------------------------------------------------------------------------------------
def test_a_weight_takes_as_many_terms_as_published():
    assert TERMS == {"fp3": 2, "fp4": 2, "int4": 2, "int5": 3, "int6": 3, "int8": 4}
    assert {format: num_terms(format) for format in BITS} == TERMS


@pytest.mark.parametrize("format", BITS)
@pytest.mark.parametrize("special", range(4))
def test_every_code_is_the_sum_of_its_terms(format, special):
    codes = np.arange(1 << BITS[format])
    signs, exponents = terms(codes, format, special)
    assert signs.shape == (len(codes), num_terms(format))
    assert set(np.unique(signs)) == {-1, 0, 1}
    assert (exponents.min() >= 0, exponents.max() <= 8) == (True, True)
    value = (signs * 2.0 ** (exponents - 1)).sum(axis=-1)
    assert value.tolist() == decode(codes, format, special).tolist()


def test_values_of_codes_by_hand():
    assert decode([0, 1, 7, 8, 15], "int4").tolist() == [0, 1, 7, -8, -1]
    assert decode([15, 16, 31], "int5").tolist() == [15, -16, -1]
    assert decode(range(8), "fp3", 3).tolist() == [0, 1, 2, 4, -6, -1, -2, -4]
    assert decode(range(16), "fp4", 0).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 5, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert [decode([8], "fp4", s).item() for s in range(4)] == [5, -5, 8, -8]
    assert [decode([4], "fp3", s).item() for s in range(4)] == [3, -3, 6, -6]


def test_terms_by_hand():
    signs, exponents = terms([0x5B], "int8")  # 91 = 64 + 32 - 4 - 1 = 1·64 + 2·16 - 1·4 - 1
    assert (signs.tolist(), exponents.tolist()) == ([[-1, -1, 1, 1]], [[1, 3, 6, 7]])
    signs, exponents = terms([8], "fp4", 0)  # 5 = 4 + 1
    assert (signs.tolist(), exponents.tolist()) == ([[1, 1]], [[3, 1]])


# -- quantisers -------------------------------------------------------------------------------------
def test_int4_by_hand():
    q = quantise([[7.0, -3.4, 0.5, 1.5, -7.0, 0.0]], "int4", 6)
    assert (q.scale.tolist(), q.step.tolist()) == ([[255]], [7 / 7 / 255])
    assert decode(q.codes, "int4").tolist() == [[7, -3, 0, 2, -7, 0]]  # a tie goes to the even one
    two = quantise([[14.0, 0.0, 7.0, -7.0]], "int4", 2)
    assert two.scale.tolist() == [[255, 128]]  # 1 / (2 / 255) = 127.5, to the even one
    assert decode(two.codes, "int4").tolist() == [[7, 0, 7, -7]]


@pytest.mark.parametrize("format", FLOATS)
@pytest.mark.parametrize("special", range(4))
def test_a_group_with_a_special_value_is_kept_exactly(format, special):
    values = np.array([[*GRIDS[format], SPECIALS[format][special]]])
    q = quantise(values / 4, format, values.size)
    assert q.special.tolist() == [[special]]
    assert q.values() == pytest.approx(values / 4, rel=1e-15)


def brute_force(group, format):
    """Least squared error over the special values, weight by weight, value by value."""
    errors = []
    for special in SPECIALS[format]:
        grid = [*GRIDS[format], special]
        scale = max(max(max(group), 0) / max(grid), min(min(group), 0) / min(grid))
        errors.append(sum(min((w - scale * v) ** 2 for v in grid) for w in group))
    return errors


@pytest.mark.parametrize("format", FLOATS)
@given(seed=seeds, size=st.sampled_from([8, 32, 128]), skew=st.floats(-0.5, 0.5))
@settings(max_examples=25, deadline=None)
def test_the_special_value_is_that_of_least_error(format, seed, size, skew):
    group = np.random.default_rng(seed).standard_normal(size) + skew
    errors = brute_force(group.tolist(), format)
    chosen = choose_special(group[None], format)[0]
    assert errors[chosen] == pytest.approx(min(errors), rel=1e-9)


def test_all_special_values_are_chosen_for_random_weights():
    q = quantise(np.random.default_rng(1).standard_normal((4, 32 * 128)), "fp4")
    assert (np.bincount(q.special.ravel(), minlength=4) > 10).all()


@pytest.mark.parametrize("format", BITS)
@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_no_weight_is_further_off_than_half_the_widest_gap(format, seed):
    weights = np.random.default_rng(seed).standard_normal((3, 40))
    q = quantise(weights, format, 40)  # one group: its scale is exact
    value = np.sort(decode(np.arange(1 << BITS[format]), format, 0)) if format in FLOATS else np.arange(2.0)
    gap = np.diff(value).max() if format in FLOATS else 1.0
    widest = {"fp3": 2.0, "fp4": 2.0}.get(format, gap)
    assert (np.abs(q.values() - weights) <= (widest / 2 + 1e-9) * (q.scale * q.step[:, None])).all()


def test_zeros_and_short_groups():
    q = quantise(np.zeros((2, 5)), "fp3", 4)
    assert (q.values() == 0).all()
    assert q.scale.shape == (2, 2)
    some = quantise([[1.0, 2.0, 3.0, 0.0, 4.0]], "int8", 4)
    assert some.values() == pytest.approx(np.array([[1, 2, 3, 0, 4]]), abs=4 / 127 / 2)


# -- sums -------------------------------------------------------------------------------------------
def slow_dot(act_bits, weights, w):
    """One dot product in whole numbers and fractions, rule by rule as the RTL's headers state them."""

    def add(acc, exponent, m, e, width):
        top = max(exponent, e)
        total = floor(Fraction(acc, 2 ** (top - exponent))) + floor(Fraction(m, 2 ** (top - e)))
        kept = min(max(total, -(2 ** (width - 1))), 2 ** (width - 1) - 1)
        return kept, top, kept != total

    signs, powers = terms(
        weights.codes[0], weights.format, np.repeat(weights.special[0], weights.group)[: len(act_bits)]
    )
    total, total_e, met = 0, 0, False
    for g in range(weights.scale.shape[1]):
        acc, acc_e = 0, 0
        inside = range(g * weights.group, min((g + 1) * weights.group, len(act_bits)))
        for first in inside[:: w.lanes]:
            for t in range(signs.shape[1]):
                lanes = []
                for i in range(first, min(first + w.lanes, inside.stop)):
                    field, fraction = act_bits[i] >> 10 & 31, act_bits[i] & 1023
                    m = fraction + 1024 * (field > 0)
                    sign = int(signs[i, t]) * (-1 if act_bits[i] >> 15 else 1)
                    if m and sign and field < 31:
                        lanes.append((sign, m, max(field, 1) + int(powers[i, t])))
                top = max((e for _, _, e in lanes), default=0)
                cut = sum(s * floor(Fraction(m * 2**w.guard, 2 ** (top - e))) for s, m, e in lanes)
                acc, acc_e, over = add(acc, acc_e, cut << w.extra, top, w.acc_width)
                met |= over
        total, total_e, over = add(total, total_e, acc * int(weights.scale[0, g]), acc_e, w.sum_width)
        met |= over
    return total, total_e, met


@given(
    seed=seeds, format=st.sampled_from(list(BITS)), lanes=st.sampled_from([1, 2, 4, 8]), guard=st.integers(1, 8),
    extra=st.integers(4, 9), more=st.sampled_from([0, 2, 12]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_sums_follow_the_rules(seed, format, lanes, guard, extra, more):
    rng = np.random.default_rng(seed)
    acc_width = 12 + guard + extra + lanes.bit_length() - 1 + more
    w = Widths(lanes, guard, extra, acc_width, min(acc_width + 8 + more // 2, 64))
    k, group = int(rng.integers(1, 70)), int(rng.integers(1, 5)) * lanes
    act = rng.integers(0, 65536, k)
    groups = (1, -(-k // group))
    codes, special = rng.integers(0, 1 << BITS[format], (1, k)), rng.integers(0, 4, groups)
    weights = Quantised(codes, rng.integers(0, 256, groups), special, np.ones(1), format, group)
    got = bitserial_dot(act[None], weights, widths=w)
    assert (got.mantissa.item(), got.exponent.item(), got.overflow.item()) == slow_dot(act.tolist(), weights, w)
    assert got.invalid.item() == bool((act >> 10 & 31 == 31).any())


@given(seed=seeds, format=st.sampled_from(list(BITS)))
@settings(max_examples=40, deadline=None)
def test_int8_activations_give_the_exact_product(seed, format):
    rng = np.random.default_rng(seed)
    acts = rng.integers(-128, 128, (3, 300))
    codes, special = rng.integers(0, 1 << BITS[format], (4, 300)), rng.integers(0, 4, (4, 3))
    weights = Quantised(codes, rng.integers(0, 256, (4, 3)), special, np.ones(4), format, 128)
    sums = bitserial_dot(acts, weights, int8=True)
    assert (sums.values() == acts @ weights.values().T).all()
    assert not sums.overflow.any()


def test_the_default_accumulator_holds_any_group_of_128():
    for value in (65504.0, -65504.0):  # the greatest FP16, times -128 in INT8: the greatest terms
        sums = bitserial_dot(bits_of([[value] * 128]), plain([[0x80] * 128]))
        assert not sums.overflow.any()
        assert sums.values().item() == -value * 128 * 128
    worst = 128 * 2047 * 32  # every cycle's four lanes at their greatest: 32 beats of four terms
    assert worst * 4 == 33_538_048 < 2**25


def test_fp16_products_are_near_the_exact_ones():
    rng = np.random.default_rng(2)
    acts = rng.standard_normal((8, 1024)).astype(np.float16)
    weights = quantise(rng.standard_normal((16, 1024)), "fp4")
    exact = acts.astype(float) @ (weights.values() / weights.step[:, None]).T
    off = bitserial_dot(bits_of(acts), weights).values() - exact
    assert np.sqrt((off**2).mean() / (exact**2).mean()) < 1e-3


def test_activations_by_hand():
    significand, exponent, invalid = decode_activations([0x0001, 0x83FF, 0x0400, 0xC000, 0x7C00, 0x7E01], int8=False)
    assert significand.tolist() == [1, -1023, 1024, -1024, 0, 0]
    assert exponent.tolist() == [1, 1, 1, 16, 31, 31]
    assert invalid.tolist() == [False, False, False, False, True, True]
    significand, exponent, _ = decode_activations([-128, 127, 0], int8=True)
    assert (significand * 2.0 ** (exponent - 25)).tolist() == [-128, 127, 0]


def test_an_accumulator_saturates_and_comes_back():
    w = Widths(lanes=1, guard=3, extra=2, acc_width=17, sum_width=25)  # one full lane is 2047·32 of 65536
    weights = plain([[1, 1, 15]], "int4", group=3)
    sums = bitserial_dot(bits_of([[65504.0, 65504.0, 65504.0]]), weights, widths=w)
    assert (sums.mantissa.item(), sums.overflow.item()) == (65535 - 2047 * 32, True)
    sums = bitserial_dot(bits_of([[-65504.0, -65504.0, -65504.0]]), weights, widths=w)
    assert (sums.mantissa.item(), sums.overflow.item()) == (-65536 + 2047 * 32, True)


# -- cycles -----------------------------------------------------------------------------------------
def test_cycles_by_hand():
    p = check({})
    fp4 = {"weight": "fp4"}
    assert group_cycles({"m": 1, "n": 1, "k": 300}, fp4, p) == (2, 64, 22)  # 128 inputs: 32 beats of 2 cycles
    assert cycles({"m": 1, "n": 1, "k": 4}, fp4, p) == 2 + 1 + 3 + 8 + 8
    assert cycles({"m": 8, "n": 8, "k": 4096}, fp4, p) == 32 * 64 + 20  # scales are hidden
    assert cycles({"m": 9, "n": 17, "k": 4096}, fp4, p) == 2 * 3 * 32 * 64 + 20
    # groups of 16 take 8 cycles, less than the 17 of a scale and eight rows
    assert cycles({"m": 8, "n": 8, "k": 64, "group": 16}, fp4, p) == 8 + 3 * 17 + 20


@pytest.mark.parametrize("weight", TERMS)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 40))
@settings(max_examples=10)
def test_with_groups_of_128_no_cycle_is_lost(weight, m, n, groups):
    shape = {"m": m, "n": n, "k": 128 * groups}
    tiles = -(-m // 8) * -(-n // 8)
    assert cycles(shape, {"weight": weight}, {}) == tiles * groups * 32 * (BITS[weight] + 1 >> 1) + 20


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cycles({"m": 1, "n": 0, "k": 1}, {}, {}), "n must be at least 1"),
        (lambda: cycles({"m": 1, "n": 1, "k": 1, "group": 0}, {}, {}), "group must be at least 1"),
        (lambda: cycles({"m": 1, "n": 1, "k": 1}, {"weight": "int7"}, {}), "accepted: fp16 or int8 activations"),
        (lambda: cycles({"m": 1, "n": 1, "k": 1}, {}, {"EXTRA": 1}), "GUARD \\+ EXTRA at least 5"),
        (lambda: quantise([[1.0]], "fp5"), "unknown weight format 'fp5'"),
        (lambda: quantise([[np.nan]], "fp4"), "wanted finite numbers"),
        (lambda: quantise([[1.0]], "fp4", 0), "group 0: at least 1"),
        (lambda: decode([8], "fp3"), "codes of fp3 must be from 0 to 7"),
        (lambda: decode_activations([128], True), "activations must be from -128 to 127"),
        (lambda: bitserial_dot([[1, 2]], plain([[1]])), "activations have shape"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


# -- speed ------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_an_array_of_256_elements_simulates_20_000_cycles_a_second():
    need_simulator("verilator")
    found = measure(16, 16)
    assert found["values_equal"]
    assert found["cycles"] == found["cycles_model"] == 8 * 16 * 64 + 28
    assert found["cycles_per_cpu_s"] >= 20_000
