"""Outlier-victim pairs (OVP): quantiser, bit layout, decoder and matrix product of OliVe's number format.

OliVe (Guo et al., ISCA 2023, arXiv:2304.07493) stores values in pairs along the reduction. A pair of
normal values is two integers. An outlier takes its neighbour's place: the neighbour, the victim, becomes
zero and holds the *identifier*, the code of the most negative integer (1000 in 4 bits, 1000 0000 in 8);
the outlier's own code is then an *abfloat*, sign, exponent field e, mantissa field f of F bits:

    value = ± (2^F + f) · 2^min(e + bias, 11)      and 0 where e and f are both 0

with a bias per tensor that puts outliers beyond the integers: 12 … 96 beyond int4 with E2M1 and bias 2.
That range, the code 0 that stands for no outlier, and the choice of the nearest value of either kind are
as in the authors' ``clevercool/ANT-Quantization``, ``olive_quantization/antquant/quant_modules.py``.
Different here: of two outliers in a pair the larger stays (there the first), 8-bit outliers are E4M3
as in the paper (there E2M5), and exponents end at 11, so that every value is below 2^15 in magnitude.

Matrices have shape (rows, k), pairs are columns 2j and 2j + 1. Integers are exact throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Integers = npt.NDArray[np.int64]
EXPONENT_LIMIT = 11
"""Greatest exponent of a decoded value; a greater sum of field and bias is taken as this one."""
BIAS_LIMIT = 15
"""Greatest bias: it has four bits."""


@dataclass(frozen=True)
class Format:
    """An OVP format: ``bits`` of a code, of which ``mantissa_bits`` are an abfloat's mantissa field."""

    name: str
    bits: int
    mantissa_bits: int

    @property
    def identifier(self) -> int:
        """The code that marks a victim."""
        return 1 << (self.bits - 1)

    @property
    def top(self) -> int:
        """The greatest normal value; the least is its negative."""
        return self.identifier - 1


OVP4 = Format("ovp4", 4, 1)
"""int4 without -8; outliers E2M1."""
OVP8 = Format("ovp8", 8, 3)
"""int8 without -128; outliers E4M3."""
FORMATS = {form.name: form for form in (OVP4, OVP8)}


# -- decoding ----------------------------------------------------------------------------------------
def decode_parts(codes: npt.ArrayLike, form: Format, bias: int) -> tuple[Integers, Integers]:
    """(exponent, signed integer) of every code, shape of ``codes``: a value is integer · 2^exponent.

    Normal values have exponent 0, victims are 0 · 2^0. A pair of two identifiers is two zeros: the first is
    a victim, and the second is then an abfloat with both fields 0. Raises ``InputError`` on codes of other
    than an even number of columns, on codes that ``form`` does not have, and on a bias beyond 0 … 15.
    """
    words = _checked(codes, form)
    _check_bias(bias)
    field = words & form.top
    exponent = np.minimum((field >> form.mantissa_bits) + bias, EXPONENT_LIMIT)
    magnitude = (1 << form.mantissa_bits) + (field & ((1 << form.mantissa_bits) - 1))
    signed = np.where(words >= form.identifier, -magnitude, magnitude)
    normal = np.where(words >= form.identifier, words - 2 * form.identifier, words)
    beside_victim = _swapped(words) == form.identifier
    outlier = beside_victim & (field != 0)
    integer = np.where(outlier, signed, np.where(beside_victim | (words == form.identifier), 0, normal))
    return np.where(outlier, exponent, 0), integer


def decode(codes: npt.ArrayLike, form: Format, bias: int) -> Integers:
    """Values of ``codes``, same shape; raises as :func:`decode_parts`."""
    exponent, integer = decode_parts(codes, form, bias)
    return integer << exponent


# -- quantising --------------------------------------------------------------------------------------
def outlier_magnitudes(form: Format, bias: int) -> dict[int, int]:
    """The outliers a quantiser may choose: magnitude → code without sign, ascending.

    Those beyond the normal values, with exponents up to the limit. Empty when the bias leaves none.
    """
    _check_bias(bias)
    fields = [f for f in range(1, form.identifier) if (f >> form.mantissa_bits) + bias <= EXPONENT_LIMIT]
    one = 1 << form.mantissa_bits
    values = {(one + (f & (one - 1))) << ((f >> form.mantissa_bits) + bias): f for f in fields}
    return {value: code for value, code in values.items() if value > form.top}


def complementary_bias(form: Format) -> int:
    """The least bias that puts every outlier beyond the normal values: 2 for 4 bits, 4 for 8 bits."""
    least = (1 << form.mantissa_bits) + 1
    return next(bias for bias in range(BIAS_LIMIT + 1) if least << bias > form.top)


def threshold(form: Format, bias: int) -> float:
    """Magnitude, in units of the scale, beyond which a value is an outlier: halfway from int to abfloat.

    9.5 for 4 bits and bias 2: 7 is the greatest integer, 12 the least outlier. Raises ``InputError`` when
    the bias leaves no outliers.
    """
    found = outlier_magnitudes(form, bias)
    if not found:
        raise InputError(f"{form.name}: bias {bias} leaves no outliers; accepted: 0 to {EXPONENT_LIMIT}")
    return (form.top + min(found)) / 2


def quantise(values: npt.ArrayLike, form: Format, scale: float, bias: int) -> Integers:
    """Codes of ``values`` (rows, k): every one is the nearest of the format's to value / scale, pair by pair.

    Of two equally near the smaller magnitude is taken; beyond the last outlier the last. In a pair

    - two normal values are two integers;
    - an outlier and a normal value: the outlier stays, the normal value becomes the victim;
    - two outliers: the one of larger magnitude stays (of equal ones the first), the other becomes the victim.

    Raises ``InputError`` when k is odd, when a value is not finite, when the scale is not positive, and
    when the bias leaves no outliers.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 2 or numbers.shape[1] % 2:
        raise InputError(f"values have shape {numbers.shape}; wanted (rows, an even number)")
    if not np.isfinite(numbers).all():
        raise InputError("values must be finite")
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(f"scale must be a positive number; it is {scale}")
    limit = threshold(form, bias)
    found = outlier_magnitudes(form, bias)
    grid = np.array([*range(form.top + 1), *found], np.float64)
    sizes = np.abs(numbers / scale)
    place = np.searchsorted((grid[1:] + grid[:-1]) / 2, sizes, side="left")
    negative = numbers < 0
    normal = np.where(negative, -place, place) & (2 * form.identifier - 1)
    field = np.array([0] * (form.top + 1) + [*found.values()], np.int64)[place]
    as_float = field + np.where(negative, form.identifier, 0)

    first, second = (sizes[:, i::2] for i in (0, 1))
    keep_first = (first > limit) & (first >= second)
    keep_second = (second > limit) & ~keep_first
    codes = np.empty(numbers.shape, np.int64)
    for i, kept, lost in ((0, keep_first, keep_second), (1, keep_second, keep_first)):
        codes[:, i::2] = np.where(kept, as_float[:, i::2], np.where(lost, form.identifier, normal[:, i::2]))
    return codes


def choose_bias(values: npt.ArrayLike, form: Format, scale: float) -> int:
    """The bias, 0 … 11, with the least squared error of :func:`quantise`; of equal ones the least.

    Raises ``InputError`` as :func:`quantise`.
    """
    numbers = np.asarray(values, np.float64)
    errors = []
    for bias in range(EXPONENT_LIMIT + 1):
        if outlier_magnitudes(form, bias):
            back = decode(quantise(numbers, form, scale, bias), form, bias) * scale
            errors.append((float(np.square(back - numbers).sum()), bias))
    return min(errors)[1]


@dataclass(frozen=True)
class Quantised:
    """A tensor in pairs: a value of ``codes`` (rows, k), decoded with ``bias``, times ``scale``."""

    codes: Integers
    scale: float
    bias: int


def fit(values: npt.ArrayLike, form: Format, steps: int = 48) -> Quantised:
    """``values`` (rows, k) with the complementary bias and the one scale of least squared error.

    As OliVe does (section 3.4 and its code) the scale is searched for: ``steps`` of them, evenly spaced in
    proportion, from the one that maps the greatest outlier to the greatest magnitude (or a twentieth of the next,
    if that is greater) up to the one at which the greatest magnitude is the greatest normal value. Raises
    ``InputError`` as :func:`quantise`, and when all values are zero.
    """
    numbers = np.asarray(values, np.float64)
    bias = complementary_bias(form)
    most = float(np.abs(numbers).max(initial=0))
    if not most:
        raise InputError("values are all zero: they have no scale")
    last = max(outlier_magnitudes(form, bias))
    found = []
    for scale in np.geomspace(max(most / last, most / form.top / 20), most / form.top, steps).tolist():
        codes = quantise(numbers, form, scale, bias)
        found.append((float(np.square(decode(codes, form, bias) * scale - numbers).sum()), scale, codes))
    _, scale, codes = min(found, key=lambda each: each[:2])
    return Quantised(codes, scale, bias)


# -- bit layout --------------------------------------------------------------------------------------
def pack(codes: npt.ArrayLike, form: Format) -> npt.NDArray[np.uint8]:
    """Bytes (rows, k · bits / 8) of ``codes`` (rows, k): 4-bit pairs as one byte, the first in its low half.

    Raises ``InputError`` as :func:`decode_parts` on codes.
    """
    words = _checked(codes, form)
    joined = words if form.bits == 8 else words[..., ::2] | words[..., 1::2] << 4
    return joined.astype(np.uint8)


def unpack(data: npt.ArrayLike, form: Format) -> Integers:
    """Codes of bytes; the inverse of :func:`pack`."""
    words = np.asarray(data, np.uint8).astype(np.int64)
    if form.bits == 8:
        return words
    return np.stack([words & 15, words >> 4], axis=-1).reshape(*words.shape[:-1], -1)


# -- the product -------------------------------------------------------------------------------------
def operand_parts(codes: npt.ArrayLike, form: Format, bias: int) -> tuple[Integers, Integers]:
    """What 4-bit multipliers are given, (parts, rows, k) exponents and integers: one part for 4 bits, two for 8.

    An 8-bit integer is its high half, signed, with exponent 4, and its low half, unsigned; an 8-bit
    outlier has all in the low part, ± (8 + f) with its exponent. The parts of a value add up to it.
    """
    exponent, integer = decode_parts(codes, form, bias)
    if form.bits == 4:
        return exponent[None], integer[None]
    beside_victim = _swapped(np.asarray(codes, np.int64)) == form.identifier
    high = np.where(beside_victim, 0, integer >> 4)
    low = np.where(beside_victim, integer, integer & 15)
    return np.stack([np.full_like(exponent, 4), exponent]), np.stack([high, low])


def tile_matmul(
    activations: npt.ArrayLike, weights: npt.ArrayLike, form: Format, biases: tuple[int, int], accumulator_bits: int
) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Codes (m, k) times the transpose of codes (n, k), as the systolic tile computes it: (sums, flags), (m, n).

    Every pair of operand parts has an accumulator of ``accumulator_bits`` (one for 4 bits, four for 8), which
    adds along k and wraps around; at the end they are added. A flag is set when some accumulator wrapped
    on its way or the final sum does not fit: without it the sum is exact, with it right modulo
    2^accumulator_bits. ``biases``: of activations, of weights. Raises ``InputError`` as :func:`decode_parts`
    and when the k differ.
    """
    acts = operand_parts(activations, form, biases[0])
    outs = operand_parts(weights, form, biases[1])
    if acts[0].shape[-1] != outs[0].shape[-1]:
        raise InputError(f"activations have {acts[0].shape[-1]} inputs, weights {outs[0].shape[-1]}")
    exact = np.zeros((acts[0].shape[1], outs[0].shape[1]), np.int64)
    flags = np.zeros(exact.shape, np.bool_)
    total = exact.copy()
    for a in range(len(acts[0])):
        for w in range(len(outs[0])):
            terms = (acts[1][a] << acts[0][a])[:, None, :] * (outs[1][w] << outs[0][w])[None]
            running = np.zeros(exact.shape, np.int64)
            for step in range(terms.shape[-1]):
                wider = running + terms[..., step]
                running = _wrapped(wider, accumulator_bits)
                flags |= wider != running
            total += running
    wrapped = _wrapped(total, accumulator_bits)
    return wrapped, flags | (wrapped != total)


def _wrapped(sums: Integers, bits: int) -> Integers:
    """``sums`` modulo 2^bits, signed."""
    half = 1 << (bits - 1)
    return np.asarray(((sums + half) & (2 * half - 1)) - half, np.int64)


def _swapped(words: Integers) -> Integers:
    """The neighbour of every code."""
    return words.reshape(-1, 2)[:, ::-1].reshape(words.shape)


def _check_bias(bias: int) -> None:
    if not 0 <= bias <= BIAS_LIMIT:
        raise InputError(f"bias must be from 0 to {BIAS_LIMIT}; it is {bias}")


def _checked(codes: npt.ArrayLike, form: Format) -> Integers:
    words = np.asarray(codes, np.int64)
    if words.ndim < 1 or words.shape[-1] % 2:
        raise InputError(f"codes have shape {words.shape}; wanted an even number of columns")
    if words.size and not (words.min() >= 0 and words.max() < 2 * form.identifier):
        raise InputError(f"{form.name}: codes must be from 0 to {2 * form.identifier - 1}")
    return words
