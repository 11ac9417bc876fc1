"""The outlier-victim pair format: against its definition, code by code, and the cycle model by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.kernels.ovp import (
    BIAS_LIMIT,
    EXPONENT_LIMIT,
    FORMATS,
    OVP4,
    OVP8,
    choose_bias,
    complementary_bias,
    decode,
    decode_parts,
    fit,
    operand_parts,
    outlier_magnitudes,
    pack,
    quantise,
    threshold,
    tile_matmul,
    unpack,
)  # fmt: skip
from tokenfab.rtl.ovp_decoder.cycles import check, cycles, latency, tiles

formats = st.sampled_from([OVP4, OVP8])
both = pytest.mark.parametrize("form", [OVP4, OVP8], ids=lambda f: f.name)


def by_definition(own: int, other: int, bits: int, mantissa: int, bias: int) -> int:
    """A value as the format defines it, in words of another kind: bit strings."""
    mark = "1" + "0" * (bits - 1)
    text, beside = f"{own:0{bits}b}", f"{other:0{bits}b}"
    if text == mark:
        return 0
    if beside != mark:
        return int(text, 2) - (1 << bits if text[0] == "1" else 0)
    if "1" not in text[1:]:
        return 0
    exponent = min(int(text[1 : bits - mantissa], 2) + bias, 11)
    return (-1) ** int(text[0]) * int("1" + text[bits - mantissa :], 2) * 2**exponent


def some_codes(seed: int, form, rows: int, k: int) -> np.ndarray:
    """Random codes with an identifier in about a third of the pairs."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2 * form.identifier, (rows, k))
    codes[rng.random(codes.shape) < 0.2] = form.identifier
    return codes


# -- decoding ---------------------------------------------------------------------------------------
def test_every_byte_decodes_as_defined_with_every_bias():
    for bias in range(BIAS_LIMIT + 1):
        data = np.arange(256, dtype=np.uint8)[:, None]
        expected = [
            [by_definition(b & 15, b >> 4, 4, 1, bias), by_definition(b >> 4, b & 15, 4, 1, bias)] for b in range(256)
        ]
        assert decode(unpack(data, OVP4), OVP4, bias).tolist() == expected


@pytest.mark.parametrize("bias", [0, 4, 15])
def test_every_pair_of_bytes_decodes_as_defined(bias):
    own, other = (axis.ravel() for axis in np.meshgrid(np.arange(256), [0, 1, 64, 127, 128, 129, 255]))
    pairs = np.stack([own, other], axis=1)
    expected = [[by_definition(a, b, 8, 3, bias), by_definition(b, a, 8, 3, bias)] for a, b in pairs.tolist()]
    assert decode(pairs, OVP8, bias).tolist() == expected
    assert decode(pairs[:, ::-1], OVP8, bias)[:, ::-1].tolist() == expected


def test_the_outliers_beyond_int4_are_those_of_the_paper():
    assert list(outlier_magnitudes(OVP4, 2)) == [12, 16, 24, 32, 48, 64, 96]
    assert decode([[c, 8] for c in range(1, 8)], OVP4, 2)[:, 0].tolist() == [12, 16, 24, 32, 48, 64, 96]
    assert decode([[8, 15], [15, 8], [7, 9]], OVP4, 2).tolist() == [[0, -96], [-96, 0], [7, -7]]
    assert (complementary_bias(OVP4), complementary_bias(OVP8)) == (2, 4)
    assert threshold(OVP4, 2) == 9.5
    found = list(outlier_magnitudes(OVP8, 4))
    assert (found[0], found[-1], len(found)) == (9 << 4, 15 << 11, 8 * 8 - 1)
    assert found[-1] < 2**15


def test_a_bias_that_leaves_them_among_the_integers_offers_only_outliers_beyond():
    assert outlier_magnitudes(OVP4, 0) == {8: 4, 12: 5, 16: 6, 24: 7}  # not 3, 4 and 6, codes 1 to 3
    assert list(outlier_magnitudes(OVP4, 1)) == [8, 12, 16, 24, 32, 48]
    assert threshold(OVP4, 1) == (7 + 8) / 2
    assert outlier_magnitudes(OVP4, 12) == {}


@given(formats, st.integers(0, BIAS_LIMIT), st.integers(0, 2**32))
def test_parts_of_an_operand_fit_a_multiplier_and_add_up_to_the_value(form, bias, seed):
    codes = some_codes(seed, form, 3, 16)
    exponent, integer = operand_parts(codes, form, bias)
    assert exponent.shape == integer.shape == (form.bits // 4, 3, 16)
    assert ((integer << exponent).sum(axis=0) == decode(codes, form, bias)).all()
    assert exponent.max() <= EXPONENT_LIMIT
    assert np.abs(integer).max() <= (7 if form is OVP4 else 15)
    assert (decode_parts(codes, form, bias)[0] >= 0).all()


@given(formats, st.integers(0, 2**32))
def test_packing_is_undone_by_unpacking(form, seed):
    codes = some_codes(seed, form, 3, 10)
    data = pack(codes, form)
    assert (data.dtype, data.shape) == (np.uint8, (3, 10 * form.bits // 8))
    assert (unpack(data, form) == codes).all()
    assert (pack(unpack(data, form), form) == data).all()


def test_the_first_value_of_a_byte_is_in_its_low_half():
    assert pack([[0x7, 0x8, 0x1, 0xF]], OVP4).tolist() == [[0x87, 0xF1]]
    assert pack([[0x12, 0x80]], OVP8).tolist() == [[0x12, 0x80]]


# -- quantising -------------------------------------------------------------------------------------
def test_pairs_by_hand():
    values = [[1.4, -3.6, 20.0, 3.0, 0.2, -90.0, 30.0, -13.0, 40.0, 40.0, 500.0, 9.5, 9.6, 0.0]]
    back = decode(quantise(values, OVP4, 1.0, 2), OVP4, 2)
    #   two integers; outlier first; second; larger of two; of equal ones the first; last outlier; threshold
    assert back.tolist() == [[1, -4, 16, 0, 0, -96, 32, 0, 32, 0, 96, 0, 12, 0]]
    assert decode(quantise([[9.5, 9.5]], OVP4, 1.0, 2), OVP4, 2).tolist() == [[7, 7]]
    assert quantise([[20.0, 3.0, -0.4, -90.0]], OVP4, 1.0, 2).tolist() == [[0b0010, 0b1000, 0b1000, 0b1111]]
    assert decode(quantise([[2.0, -60.0]], OVP4, 2.0, 2), OVP4, 2).tolist() == [[0, -32]]


def heavy(seed: int, rows: int = 4, k: int = 32) -> np.ndarray:
    """Values with a few per cent of outliers, as language models have them."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, k)) * np.where(rng.random((rows, k)) < 0.15, 20.0, 2.0)


@given(formats, st.integers(0, 8), st.floats(0.05, 4.0), st.integers(0, 2**32))
def test_an_outlier_is_never_lost_and_its_victim_is_zero(form, bias, scale, seed):
    values = heavy(seed)
    back = decode(quantise(values, form, scale, bias), form, bias)
    sizes = np.abs(values / scale).reshape(-1, 2)
    outliers = sizes > threshold(form, bias)
    grid = np.array([*range(form.top + 1), *outlier_magnitudes(form, bias)])
    for size, got, big, sign in zip(sizes, back.reshape(-1, 2), outliers, np.sign(values).reshape(-1, 2), strict=True):
        nearest = [np.abs(grid - s).min() for s in size]
        kept = [0, 1] if not big.any() else [int(size[1] > size[0])]
        for place in (0, 1):
            if place in kept:
                assert abs(abs(int(got[place])) - size[place]) == pytest.approx(nearest[place], abs=1e-9)
                assert got[place] * sign[place] >= 0
            else:
                assert got[place] == 0
        if big.any():
            assert abs(int(got[kept[0]])) > form.top


@given(formats, st.integers(0, 11), st.integers(0, 2**32))
def test_what_the_format_can_hold_survives_exactly(form, bias, seed):
    values = decode(some_codes(seed, form, 4, 20), form, bias)
    grid = [*range(form.top + 1), *outlier_magnitudes(form, bias)]  # without those of an exponent beyond the limit
    values = np.where(np.isin(np.abs(values), grid), values, 0)
    codes = quantise(values * 0.37, form, 0.37, bias)
    assert (decode(codes, form, bias) == values).all()


@given(st.integers(0, 2**32))
def test_the_chosen_bias_is_the_best_and_beats_integers_alone(seed):
    values = heavy(seed, 8, 64)
    scale = float(3 * values.std() / 7)

    def error(bias: int) -> float:
        return float(np.square(decode(quantise(values, OVP4, scale, bias), OVP4, bias) * scale - values).sum())

    chosen = choose_bias(values, OVP4, scale)
    assert error(chosen) == min(error(b) for b in range(EXPONENT_LIMIT + 1))
    assert all(error(b) > error(chosen) for b in range(chosen))


def test_the_bias_follows_the_outliers():
    small = [[12.0, 0.0, 1.0, 2.0]]
    large = [[8.0 * 96, 0.0, 1.0, 2.0]]
    assert choose_bias(small, OVP4, 1.0) < choose_bias(large, OVP4, 1.0) == 5


# -- the product ------------------------------------------------------------------------------------
@given(formats, st.integers(0, 2), st.integers(0, 2), st.integers(1, 8), st.integers(0, 2**32))
def test_without_a_flag_the_tile_computes_the_matrix_product(form, act_bias, weight_bias, pairs, seed):
    acts, weights = some_codes(seed, form, 3, 2 * pairs), some_codes(seed + 1, form, 5, 2 * pairs)
    exact = decode(acts, form, act_bias) @ decode(weights, form, weight_bias).T
    sums, flags = tile_matmul(acts, weights, form, (act_bias, weight_bias), 40)
    assert not flags.any()
    assert (sums == exact).all()


@given(formats, st.sampled_from([31, 32]), st.integers(1, 30), st.integers(0, 2**32))
def test_with_a_flag_the_sum_is_right_modulo_two_to_the_width(form, bits, pairs, seed):
    acts, weights = some_codes(seed, form, 2, 2 * pairs), some_codes(seed + 1, form, 2, 2 * pairs)
    acts[0], weights[0] = [form.top, form.identifier] * pairs, [form.top, form.identifier] * pairs
    exact = decode(acts, form, 15) @ decode(weights, form, 15).T
    sums, flags = tile_matmul(acts, weights, form, (15, 15), bits)
    assert ((sums - exact) % 2**bits == 0).all()
    assert ((sums == exact) | flags).all()
    assert exact[0, 0] == (225 if form is OVP8 else 9) * 2**22 * pairs
    assert flags[0, 0] == (exact[0, 0] >= 2 ** (bits - 1))


def test_the_flag_of_one_element_and_of_the_sum_of_four_by_hand():
    pair = [OVP8.top, OVP8.identifier]  # 15 * 2^11 with bias 4 or more
    for count, bits, wrapped in ((1, 31, False), (2, 31, True), (2, 32, False), (3, 32, True)):
        sums, flags = tile_matmul([pair * count], [pair * count], OVP8, (15, 15), bits)
        assert flags.tolist() == [[wrapped]]
        assert sums.tolist() == [[225 * 2**22 * count - (2**bits if wrapped else 0)]]
    # 15 * 2^11 * 127 * n: 88 % of it in the element of the high half of 127; 2^30 is n = 275.2
    for count, wrapped in ((275, False), (276, True)):
        acts, weights = [[63, 128] * count], [[127, 0] * count]
        assert 15 * 2**11 * 112 * count < 2**30
        sums, flags = tile_matmul(acts, weights, OVP8, (4, 4), 31)
        assert flags.tolist() == [[wrapped]]
        assert sums.tolist() == [[15 * 2**11 * 127 * count - (2**31 if wrapped else 0)]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: decode([[1, 2, 3]], OVP4, 2), "even number of columns"),
        (lambda: decode([[1, 16]], OVP4, 2), "ovp4: codes must be from 0 to 15"),
        (lambda: decode([[-1, 0]], OVP8, 2), "ovp8: codes must be from 0 to 255"),
        (lambda: decode([[1, 2]], OVP4, 16), "bias must be from 0 to 15; it is 16"),
        (lambda: quantise([[1.0]], OVP4, 1.0, 2), r"shape \(1, 1\)"),
        (lambda: quantise([1.0, 2.0], OVP4, 1.0, 2), r"shape \(2,\)"),
        (lambda: quantise([[1.0, np.nan]], OVP4, 1.0, 2), "finite"),
        (lambda: quantise([[1.0, 2.0]], OVP4, 0.0, 2), "scale must be a positive number"),
        (lambda: quantise([[1.0, 2.0]], OVP4, 1.0, 12), "leaves no outliers"),
        (lambda: tile_matmul([[1, 2]], [[1, 2, 3, 4]], OVP4, (2, 2), 32), "2 inputs, weights 4"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


# -- cycles -----------------------------------------------------------------------------------------
def test_cycles_by_hand():
    p = check({})
    one = {"m": 1, "n": 1, "k": 1}
    # take 0, decode the pair 1 and 2, element (0, 0) drains behind 4; row 3, column 3: 6 skew, 3 up; output 1
    assert latency(p) == 4 + 4 + 2 * 3
    assert cycles(one, {}, p) == 15
    assert cycles(one, {}, {"DECODE_REG": 1}) == 16
    whole = {"m": 8, "n": 8, "k": 64}
    assert tiles(whole, {}, p) == (4, 32)
    assert cycles(whole, {}, p) == 4 * 64 + 13
    assert cycles(whole | {"k": 63}, {}, p) == 4 * 64 + 13
    assert cycles(whole | {"k": 2}, {}, p) == 2 + 3 * 8 + 13  # short tiles wait for the rows of the one before
    wide = {"weight": "ovp8", "activation": "ovp8"}
    assert tiles(whole, wide, p) == (16, 32)
    assert cycles(whole, wide, p) == 16 * 64 + 13


@given(st.integers(1, 64), st.integers(1, 64), st.integers(4, 500))
def test_eight_bits_take_four_times_as_long(m, n, k):
    shape = {"m": 4 * m, "n": 4 * n, "k": k}
    p = check({})
    wide = {"weight": "ovp8", "activation": "ovp8"}
    assert tiles(shape, wide, p)[0] == 4 * tiles(shape, {}, p)[0]
    if k >= 8:
        products = 16 * m * n * (k + k % 2)
        assert cycles(shape, {}, p) == products // 16 + 13
        assert cycles(shape, wide, p) == 4 * products // 16 + 13


@pytest.mark.parametrize(
    ("shape", "format", "config", "words"),
    [
        ({"m": 1, "n": 0, "k": 1}, {}, {}, "n must be at least 1"),
        ({"m": 1, "n": 1, "k": 1}, {"weight": "ovp8", "activation": "ovp8"}, {"WIDE": 0}, "both ovp4; got"),
        ({"m": 1, "n": 1, "k": 1}, {"weight": "ovp8"}, {}, "both ovp4 or both ovp8"),
        ({"m": 1, "n": 1, "k": 1}, {"weight": "int4", "activation": "int4"}, {}, "both ovp4"),
        ({"m": 1, "n": 1, "k": 1}, {}, {"ROWS": 3}, "even with WIDE = 1"),
    ],
)
def test_the_cycle_model_refuses_what_the_unit_cannot_do(shape, format, config, words):
    with pytest.raises(InputError, match=words):
        cycles(shape, format, config)


def test_formats_are_found_by_their_names():
    assert {name: form.bits for name, form in FORMATS.items()} == {"ovp4": 4, "ovp8": 8}


# -- fitting -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("form", "factor"), [(OVP4, 20), (OVP8, 1)])
def test_fitting_a_tensor_with_outliers_beats_scaling_to_its_greatest(form, factor):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((32, 64))
    values[::4, 5] *= 15
    found = fit(values, form)
    assert found.bias == complementary_bias(form)
    assert (found.codes == quantise(values, form, found.scale, found.bias)).all()
    error, plain = (
        np.square(decode(quantise(values, form, scale, found.bias), form, found.bias) * scale - values).sum()
        for scale in (found.scale, np.abs(values).max() / form.top)
    )
    assert error < plain / factor
    assert (found.codes == form.identifier).any()


def test_fitting_keeps_integers_of_their_scale_and_refuses_zeros():
    values = np.arange(-7, 7).reshape(1, 14) * 0.25
    found = fit(values, OVP4)
    assert found.scale == pytest.approx(0.25)
    assert decode(found.codes, OVP4, found.bias).tolist() == [[*range(-7, 7)]]
    with pytest.raises(InputError, match="all zero"):
        fit(np.zeros((1, 2)), OVP4)
