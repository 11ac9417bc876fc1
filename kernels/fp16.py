"""Dot products of binary16 numbers with a binary32 accumulator, as conventional multiply-accumulate units make them.

Bit-exact, in integers, with these rules. Products are exact. In every step the products of ``lanes`` inputs are
aligned to the greatest exponent among those that are not zero (the sum of the operands' exponents, subnormals' being
1), with ``guard`` bits kept below the products' own, cut towards zero, and added exactly; one lane needs no alignment.
The sum is added to the accumulator, a binary32 number that starts at +0, and rounded to nearest, ties to even: one
rounding per step. Nothing underflows (all is a multiple of 2^-48) or overflows: a step adds less than 2^35, and from
2^59 on that is less than half a unit in the accumulator's last place. Operands may have a shorter fraction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NAN, INFINITY = 0x7FC00000, 0x7F800000
"""binary32: the NaN that is always given, and the positive infinity."""
TOP = 33
"""Bits to which operands of the accumulator's addition are normalised: the widest sum, 22 + 8 + log2(8)."""
SPAN = 28
"""Places by which they are aligned exactly; beyond, what is lost is one sticky bit."""


@dataclass(frozen=True)
class Numbers:
    """Decoded numbers: (-1)^minus * significand * 2^(exponent - 15 - fraction), where they are finite.

    The significand of what is not finite is 0.
    """

    minus: Bools
    significand: Integers
    exponent: Integers
    infinite: Bools
    nan: Bools

    @property
    def signed(self) -> Integers:
        """Significands with their signs."""
        return np.where(self.minus, -self.significand, self.significand)

    @property
    def zero(self) -> Bools:
        """Whether a number is a zero."""
        return np.asarray((self.significand == 0) & ~self.infinite & ~self.nan)


def decode(numbers: npt.ArrayLike, fraction: int = 10) -> Numbers:
    """Numbers from their bits: sign, exponent of 5 bits, ``fraction`` bits (2 to 10), as in IEEE 754.

    Raises ``InputError`` on what is no such bits.
    """
    if not 2 <= fraction <= 10:
        raise InputError(f"fraction {fraction}: wanted 2 to 10 bits")
    given = np.asarray(numbers)
    top = (1 << (fraction + 6)) - 1
    if given.dtype.kind not in "iu" or (given.size and not (given.min() >= 0 and given.max() <= top)):
        raise InputError(f"numbers with {fraction} bits of fraction are given as their bits: 0 to {top}")
    bits = given.astype(np.int64)
    field, rest = bits >> fraction & 31, bits & ((1 << fraction) - 1)
    size = np.where(field == 31, 0, rest + ((field > 0) << fraction))
    special = field == 31
    return Numbers(bits >> (fraction + 5) == 1, size, np.maximum(field, 1), special & (rest == 0), special & (rest > 0))


def mac_dot(
    acts: npt.ArrayLike, weights: npt.ArrayLike, lanes: int = 1, guard: int = 3, fraction: int = 10
) -> npt.NDArray[np.uint32]:
    """``acts`` (m, k) times the transpose of ``weights`` (n, k), bits of binary16: (m, n) bits of binary32.

    ``lanes``: 1, 2, 4 or 8 products per step; the last step is filled up with zeros. ``guard``: 0 to 8, without
    meaning for one lane. ``fraction``: bits of the operands' fractions, 2 (FP8, E5M2) to 10 (binary16). Raises
    ``InputError`` on other values and on shapes that do not fit.
    """
    if lanes not in (1, 2, 4, 8) or not 0 <= guard <= 8:
        raise InputError(f"lanes {lanes}, guard {guard}: wanted 1, 2, 4 or 8 lanes and a guard from 0 to 8")
    a, w = decode(acts, fraction), decode(weights, fraction)
    if a.zero.ndim != 2 or w.zero.ndim != 2 or a.zero.shape[1] != w.zero.shape[1]:
        raise InputError(f"activations have shape {a.zero.shape}, weights {w.zero.shape}; wanted (m, k) and (n, k)")
    left, right = a.signed, w.signed
    value = np.zeros((left.shape[0], right.shape[0]), np.int64)
    place = np.zeros_like(value)
    for first in range(0, left.shape[1], lanes):
        beat = slice(first, first + lanes)
        products = left[:, None, beat] * right[None, :, beat]
        exponents = a.exponent[:, None, beat] + w.exponent[None, :, beat]
        term, greatest = add_lanes(products, exponents, guard if lanes > 1 else 0)
        value, place = add_rounded(value, place, term, greatest - (guard if lanes > 1 else 0) - 2 * (15 + fraction))
    found = np.ldexp(value.astype(np.float64), place).astype(np.float32).view(np.uint32)
    return _with_special(found, a, w)


def add_lanes(products: Integers, exponents: Integers, guard: int) -> tuple[Integers, Integers]:
    """Sum of ``products`` * 2^``exponents`` over the last axis: (value, exponent) of value * 2^(exponent - guard)."""
    exponents = np.where(products != 0, exponents, 0)
    greatest = exponents.max(axis=-1)
    cut = (np.abs(products) << guard) >> np.minimum(greatest[..., None] - exponents, 63)
    return (np.sign(products) * cut).sum(axis=-1), greatest


def add_rounded(a: Integers, a_place: Integers, b: Integers, b_place: Integers) -> tuple[Integers, Integers]:
    """a * 2^a_place + b * 2^b_place, rounded to 24 bits, to nearest, ties to even; both below 2^33 in magnitude.

    Returns (value, place) with a value of at most 24 bits (or 2^24).
    """
    a, a_place = _normalised(a, a_place)
    b, b_place = _normalised(b, b_place)
    swap = b_place > a_place
    high, low = np.where(swap, b, a), np.where(swap, a, b)
    place = np.maximum(a_place, b_place)
    distance = np.abs(a_place - b_place)
    beyond = np.clip(distance - SPAN, 0, 62)
    size = np.abs(low) << (SPAN - np.minimum(distance, SPAN))
    lost = (size & ((1 << beyond) - 1)) != 0
    total = (high << SPAN) + np.sign(low) * (size >> beyond | lost)
    place = place - SPAN
    magnitude = np.abs(total)
    drop = np.maximum(_bit_length(magnitude) - 24, 0)
    half = (1 << drop) >> 1
    kept, rest = magnitude >> drop, magnitude & ((1 << drop) - 1)
    kept += (rest > half) | ((rest == half) & (drop > 0) & (kept & 1 == 1))
    return np.sign(total) * kept, np.where(kept > 0, place + drop, 0)


def _normalised(value: Integers, place: Integers) -> tuple[Integers, Integers]:
    """The same numbers with ``TOP`` bits; zeros far below all others."""
    shift = TOP - _bit_length(np.abs(value))
    return value << shift, np.where(value != 0, place - shift, -1000)


def _bit_length(value: Integers) -> Integers:
    """Bits of numbers that are not negative; float64 holds either half of them exactly."""
    upper = value >> 31
    length = np.where(upper > 0, np.frexp(upper.astype(np.float64))[1] + 31, np.frexp(value.astype(np.float64))[1])
    return length.astype(np.int64)


def _with_special(found: npt.NDArray[np.uint32], a: Numbers, w: Numbers) -> npt.NDArray[np.uint32]:
    """``found`` with infinities and NaNs where operands bring them, by IEEE 754; the order of terms does not matter."""
    if not any(x.any() for x in (a.infinite, a.nan, w.infinite, w.nan)):
        return found

    def some(x: Bools, y: Bools) -> Bools:
        """Whether some k has x in the activation and y in the weight, (m, n)."""
        return np.asarray(x.astype(np.float32) @ y.astype(np.float32).T > 0)

    nan = np.any(a.nan, axis=1, keepdims=True) | np.any(w.nan, axis=1, keepdims=True).T
    nan |= some(a.infinite, w.zero) | some(a.zero, w.infinite)
    signs = [np.zeros_like(nan), np.zeros_like(nan)]  # positive and negative infinities
    for a_minus in (0, 1):
        for w_minus in (0, 1):
            x, y = a.minus == a_minus, w.minus == w_minus
            signs[a_minus ^ w_minus] |= some(a.infinite & x, y) | some(x, w.infinite & y)
    plus, minus = signs
    found = np.where(plus, INFINITY, np.where(minus, INFINITY | 1 << 31, found))
    return np.where(nan | (plus & minus), NAN, found).astype(np.uint32)
