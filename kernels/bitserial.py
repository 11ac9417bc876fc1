"""Bit-serial products of low-bit weights: their terms, quantisers, and the sums as an array of elements makes them.

BitMoD (Chen et al., HPCA 2025, arXiv:2411.11745) writes a weight as a few signed powers of two, one per cycle:
Booth digits of radix 4 for integers, the ones of the significand for FP3 and FP4, whose redundant -0 is a
special value chosen per group. Weights of one row and group share a scale, an 8-bit number times a step of the row.

The sums are bit-exact, with these rules. Lanes: significands with ``guard`` bits below them, shifted right to
the greatest exponent of the lanes that are not zero, towards zero; added exactly. Accumulators of a group and
of a column: mantissa and exponent, the greatest ever added; the lesser operand is shifted right towards minus
infinity; the mantissa saturates. Times the scale: exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError, unknown_name

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BITS = {"int4": 4, "int5": 5, "int6": 6, "int8": 8, "fp3": 3, "fp4": 4}
"""Types of weights and the bits of their codes."""
BASIC = {"fp3": (0.0, 1.0, 2.0, 4.0), "fp4": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)}
"""Magnitudes by code without sign."""
SPECIAL = {"fp3": (3.0, -3.0, 6.0, -6.0), "fp4": (5.0, -5.0, 8.0, -8.0)}
"""What the code of -0 means, by the group's choice: bit 0 is the sign, bit 1 the far one."""
SCALE_TOP = 255
INT8_EXPONENT = 22
BIAS = 26
"""A significand with exponent e stands for significand * 2^(e - BIAS) once weight and activation are added."""


# -- weights as terms -------------------------------------------------------------------------------
def num_terms(format: str) -> int:
    """Terms of a weight, which is cycles per weight: half the bits, rounded up."""
    return (_bits(format) + 1) // 2


def decode(codes: npt.ArrayLike, format: str, special: npt.ArrayLike = 0) -> Floats:
    """Values of weight ``codes``; ``special`` (which broadcasts) is the choice of each one's group, 0 to 3."""
    code = _checked_codes(codes, format)
    bits = _bits(format)
    if format not in BASIC:
        half = 1 << (bits - 1)
        return ((code ^ half) - half).astype(np.float64)
    negative, magnitude = code >> (bits - 1), code & ((1 << (bits - 1)) - 1)
    value = np.asarray(BASIC[format])[magnitude] * np.where(negative, -1.0, 1.0)
    found: Floats = np.where(
        (negative == 1) & (magnitude == 0), np.asarray(SPECIAL[format])[np.asarray(special)], value
    )
    return found


def terms(codes: npt.ArrayLike, format: str, special: npt.ArrayLike = 0) -> tuple[Integers, Integers]:
    """Signs (-1, 0, 1) and exponents of the terms of every code, last axis ``num_terms``.

    A weight is the sum of sign * 2^(exponent - 1). Exponents of zero terms are 0.
    """
    value = decode(codes, format, special)
    count = num_terms(format)
    signs = np.zeros((*value.shape, count), np.int64)
    exponents = np.zeros_like(signs)
    if format in BASIC:
        left = np.abs(2 * value).astype(np.int64)
        for t in range(count):
            signs[..., t] = np.where(left > 0, np.sign(value), 0)
            exponents[..., t] = np.frexp(np.maximum(left, 1))[1] - 1  # the leading one
            left -= np.where(left > 0, 1 << exponents[..., t], 0)
    else:
        shifted = value.astype(np.int64) << 1
        for t in range(count):
            three = (shifted >> (2 * t)) & 7
            digit = (three & 1) + (three >> 1 & 1) - 2 * (three >> 2)
            signs[..., t] = np.sign(digit)
            exponents[..., t] = np.where(digit != 0, 2 * t + np.abs(digit), 0)
    return signs, exponents


# -- quantisers -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Quantised:
    """A matrix (rows, k) of low-bit weights in groups along k.

    ``codes`` (rows, k); ``scale`` (rows, groups), 1 to 255; ``special`` (rows, groups), 0 to 3 (0 for integers);
    ``step`` (rows,): a weight stands for value * scale * step.
    """

    codes: Integers
    scale: Integers
    special: Integers
    step: Floats
    format: str
    group: int

    def values(self) -> Floats:
        """What the weights stand for, (rows, k)."""
        group = np.arange(self.codes.shape[1]) // self.group
        value = decode(self.codes, self.format, self.special[:, group])
        return value * self.scale[:, group] * self.step[:, None]


def quantise(weights: npt.ArrayLike, format: str, group: int = 128) -> Quantised:
    """``weights`` (rows, k), rounded to ``format`` in groups of ``group``; the last one may be shorter.

    The scale of a group is the least at which no weight lies beyond the ends of the type's values; the ends of
    integers are ±(2^(bits-1) - 1). FP3 and FP4 try all four special values and take that of least squared
    error, the first of equals. Then scales are rounded to 1 … 255 times the row's step, its greatest scale
    / 255, and codes are made with those. Rounding is to nearest; of two values equally near the lesser is
    taken, and for integers the even one. Raises ``InputError`` on what is no finite matrix, and on an unknown format.
    """
    matrix = np.asarray(weights, np.float64)
    _bits(format)
    if matrix.ndim != 2 or 0 in matrix.shape or not np.isfinite(matrix).all():
        raise InputError(f"weights have shape {matrix.shape}; wanted finite numbers, (rows, k)")
    if group < 1:
        raise InputError(f"group {group}: at least 1")
    rows, k = matrix.shape
    groups = -(-k // group)
    padded = np.pad(matrix, ((0, 0), (0, groups * group - k))).reshape(rows, groups, group)
    special = choose_special(padded, format)
    exact = _least_scale(padded, format, special)
    step = exact.max(axis=1) / SCALE_TOP
    step = np.where(step > 0, step, 1.0)
    scale = np.clip(np.rint(exact / step[:, None]), 1, SCALE_TOP).astype(np.int64)
    codes = _nearest(padded / (scale * step[:, None])[..., None], format, special)
    return Quantised(codes.reshape(rows, -1)[:, :k], scale, special, step, format, group)


def choose_special(groups: Floats, format: str) -> Integers:
    """Best special value (0 to 3) of each of ``groups`` (…, group), by squared error with its exact scale."""
    if format not in BASIC:
        return np.zeros(groups.shape[:-1], np.int64)
    errors = []
    for choice in range(4):
        special = np.full(groups.shape[:-1], choice)
        scale = _least_scale(groups, format, special)[..., None]
        safe = np.where(scale > 0, scale, 1.0)
        value = decode(_nearest(groups / safe, format, special), format, special[..., None]) * safe
        errors.append(np.square(value - groups).sum(axis=-1))
    best: Integers = np.argmin(np.stack(errors), axis=0).astype(np.int64)
    return best


def _ends(format: str, special: Integers) -> tuple[Floats, Floats]:
    """Least and greatest value of a type, by special value."""
    if format not in BASIC:
        top = np.full(special.shape, 2.0 ** (_bits(format) - 1) - 1)
        return -top, top
    value = np.asarray(SPECIAL[format])[special]
    return np.minimum(value, -BASIC[format][-1]), np.maximum(value, BASIC[format][-1])


def _least_scale(groups: Floats, format: str, special: Integers) -> Floats:
    low, high = _ends(format, special)
    scale: Floats = np.maximum(np.maximum(groups.max(axis=-1), 0) / high, np.minimum(groups.min(axis=-1), 0) / low)
    return scale


def _nearest(scaled: Floats, format: str, special: Integers) -> Integers:
    """Codes of the values nearest to ``scaled`` (…, group)."""
    bits = _bits(format)
    if format not in BASIC:
        half = 1 << (bits - 1)
        return np.clip(np.rint(scaled), -half, half - 1).astype(np.int64) & (2 * half - 1)
    found = np.zeros(scaled.shape, np.int64)
    for choice in range(4):
        value = decode(np.arange(1 << bits), format, choice)
        order = np.argsort(value, kind="stable")
        between = (value[order][1:] + value[order][:-1]) / 2
        here = special == choice
        found[here] = order[np.searchsorted(between, scaled[here])]
    return found


# -- activations and sums ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Widths:
    """Widths of the array: parameters of the same names in ``rtl/bit_serial_pe``."""

    lanes: int = 4
    guard: int = 3
    extra: int = 2
    acc_width: int = 26
    sum_width: int = 48


@dataclass(frozen=True)
class Sums:
    """Dot products (tokens, rows) as the array gives them.

    The number is ``mantissa * 2^(exponent - 26 - guard - extra)``. ``overflow``: an accumulator met a bound.
    ``invalid`` (tokens,): an activation was an infinity or a NaN and counted as 0.
    """

    mantissa: Integers
    exponent: Integers
    overflow: Bools
    invalid: Bools
    widths: Widths

    def values(self) -> Floats:
        """The numbers as float64 (rounded where a mantissa has more than 53 bits)."""
        shift = self.exponent - BIAS - self.widths.guard - self.widths.extra
        return np.ldexp(self.mantissa.astype(np.float64), shift)


def decode_activations(acts: npt.ArrayLike, int8: bool) -> tuple[Integers, Integers, Bools]:
    """Signed significands, exponents and "is an infinity or a NaN" of activations.

    FP16: bits (0 to 65535) as integers; subnormal numbers are exact. INT8: integers -128 to 127. The number is
    significand * 2^(exponent - 25).
    """
    given = np.asarray(acts, np.int64)
    low, high = (-128, 127) if int8 else (0, 65535)
    if given.size and not (low <= given.min() and given.max() <= high):
        raise InputError(f"activations must be from {low} to {high}")
    if int8:
        return given << 3, np.full(given.shape, INT8_EXPONENT), np.zeros(given.shape, np.bool_)
    field, fraction = given >> 10 & 31, given & 1023
    invalid = field == 31
    significand = np.where(invalid, 0, fraction + ((field > 0) << 10))
    return np.where(given >> 15, -significand, significand), np.maximum(field, 1), invalid


def bitserial_dot(acts: npt.ArrayLike, weights: Quantised, int8: bool = False, widths: Widths | None = None) -> Sums:
    """``acts`` (tokens, k) times the transpose of ``weights`` (rows, k), with their scales but not their steps.

    ``acts``: bits of FP16, or INT8 where ``int8``. The last beat of a group is filled up with zeros. Raises
    ``InputError`` on shapes that do not fit.
    """
    w = widths or Widths()
    significand, exponent, invalid = decode_activations(acts, int8)
    if significand.ndim != 2 or significand.shape[1] != weights.codes.shape[1]:
        raise InputError(f"activations have shape {significand.shape}; the weights {weights.codes.shape}")
    groups = np.arange(weights.codes.shape[1]) // weights.group
    signs, powers = terms(weights.codes, weights.format, weights.special[:, groups])
    shape = (significand.shape[0], weights.codes.shape[0])
    total = (np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.bool_))
    for g in range(weights.scale.shape[1]):
        acc = (np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.bool_))
        end = min((g + 1) * weights.group, weights.codes.shape[1])
        for first in range(g * weights.group, end, w.lanes):
            beat = slice(first, min(first + w.lanes, end))
            for t in range(signs.shape[2]):
                lanes = (significand[:, None, beat] * signs[None, :, beat, t],
                         exponent[:, None, beat] + powers[None, :, beat, t])  # fmt: skip
                mantissa, greatest = _add_lanes(*lanes, w.guard)
                acc = _add(acc, mantissa << w.extra, greatest, w.acc_width)
        scaled = acc[0] * weights.scale[None, :, g]
        total = _add((total[0], total[1], total[2] | acc[2]), scaled, acc[1], w.sum_width)
    return Sums(*total, np.asarray(invalid.any(axis=1)), w)


def _add_lanes(product: Integers, exponent: Integers, guard: int) -> tuple[Integers, Integers]:
    """Sum over the last axis at the greatest exponent of what is not zero; lanes are cut towards zero."""
    exponent = np.where(product != 0, exponent, 0)
    greatest = exponent.max(axis=-1)
    cut = (np.abs(product) << guard) >> (greatest[..., None] - exponent)
    return (np.sign(product) * cut).sum(axis=-1), greatest


def _add(
    acc: tuple[Integers, Integers, Bools], mantissa: Integers, exponent: Integers, width: int
) -> tuple[Integers, Integers, Bools]:
    """``acc`` (mantissa, exponent, overflow) plus a number, at the greater exponent, saturating at ``width`` bits."""
    greater = np.maximum(acc[1], exponent)
    a, b = acc[0] >> (greater - acc[1]), mantissa >> (greater - exponent)
    # Halves are added first: the sum of two numbers of 64 bits needs 65.
    half = (a >> 1) + (b >> 1) + (a & b & 1)
    bound = 1 << (width - 2)
    low_bit = (a ^ b) & 1
    up, down = half >= bound, half < -bound
    exact = np.where(up | down, 0, 2 * np.clip(half, -bound, bound - 1) + low_bit)
    top = (1 << (width - 1)) - 1
    return np.where(up, top, np.where(down, -top - 1, exact)), greater, acc[2] | up | down


def _bits(format: str) -> int:
    if format not in BITS:
        raise unknown_name("weight format", format, BITS)
    return BITS[format]


def _checked_codes(codes: npt.ArrayLike, format: str) -> Integers:
    code = np.asarray(codes, np.int64)
    if code.size and not (code.min() >= 0 and code.max() < 1 << _bits(format)):
        raise InputError(f"codes of {format} must be from 0 to {(1 << _bits(format)) - 1}")
    return code
