"""Mixed-precision products by table lookup (LUT Tensor Core, ISCA 2025, arXiv:2408.06003), to the last bit.

K activations are turned into a table of their signed sums, and one bit of K weights looks one sum up:

    two's complement   2 w + 1 = Σ_i 2^i s_i      s_i = ±1: bit i of w as a sign, that of the top bit turned round
    odd weights            u   = Σ_i 2^i s_i      1 bit: -1, +1; 2 bits: -3, -1, 1, 3; …
    so                 Σ_k w_k a_k = (Σ_i 2^i L_i - Σ_k a_k) / 2,   L_i = Σ_k s_ik a_k,

exactly: the constant Σ_k a_k is the table's entry for "all signs plus", and the difference is even. Since
L is odd in its signs the table holds only the sums with +a_(K-1), 2^(K-1) of them:

    T[j] = a_(K-1) + Σ_{i<K-1} (bit i of j ? a_i : -a_i)       a code is (negative, j): L = negative ? -T[j] : T[j]

and the turning of the index bits, where a_(K-1) counts negatively, is done to the weights beforehand.

binary16 activations are aligned to the greatest exponent of their K (zeros and subnormals count as exponent
field 1), keep ``guard`` bits below the significand and lose the rest towards zero; from there on all is
integer. Group sums are shifted to one fixed point and added there, so that no sum of exponents can
overflow; at the end one rounding, to nearest, ties to even, makes binary32 or binary16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
FLOAT = 16
"""``activation_bits`` that stand for binary16."""


@dataclass(frozen=True)
class LutFormat:
    """Numbers of a lookup unit.

    ``k``: activations of a table, 2 to 6. ``activation_bits``: 2 to 8 for signed integers, 16 for binary16.
    ``accumulator_bits``: 2 to 80; it saturates. For binary16 only: ``guard`` bits kept below the significand, 0 to 29;
    ``table_bits``: bits to which entries are rounded, 0 for all; ``half``: results in binary16, else binary32.
    """

    k: int = 4
    activation_bits: int = 8
    accumulator_bits: int = 32
    guard: int = 0
    table_bits: int = 0
    half: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.k <= 6:
            raise InputError(f"k = {self.k}: a table is made of 2 to 6 activations")
        if not (2 <= self.activation_bits <= 8 or self.is_float):
            raise InputError(f"activation_bits = {self.activation_bits}: 2 to 8, or 16 for binary16")
        if not 2 <= self.accumulator_bits <= 80:
            raise InputError(f"accumulator_bits = {self.accumulator_bits}: 2 to 80")
        if not self.is_float and (self.guard or self.table_bits or self.half):
            raise InputError("guard, table_bits and half are for binary16 activations")
        if not 0 <= self.guard <= 29:
            raise InputError(f"guard = {self.guard}: 0 to 29")
        if self.table_bits and not 4 <= self.table_bits <= self.entry_bits:
            raise InputError(f"table_bits = {self.table_bits}: 0, or 4 to {self.entry_bits}")

    @property
    def is_float(self) -> bool:
        """Whether activations are binary16."""
        return self.activation_bits == FLOAT

    @property
    def entry_bits(self) -> int:
        """Bits of an exact table entry, signed."""
        return (12 + self.guard if self.is_float else self.activation_bits) + ceil(log2(self.k))

    @property
    def dropped(self) -> int:
        """Bits that rounding takes from an entry."""
        return self.entry_bits - self.table_bits if self.table_bits else 0

    @property
    def unit(self) -> int:
        """The accumulator counts in 2^unit: 0 for integers."""
        return self.dropped - 24 - self.guard if self.is_float else 0


@dataclass(frozen=True)
class Group:
    """K inputs of a tile: ``activations`` (m, K), integers or bit patterns of binary16; ``weights`` (n, K).

    Weights are two's complement of ``bits`` bits, or, with ``odd``, odd numbers from 1 - 2^bits to 2^bits - 1.
    """

    activations: Integers
    weights: Integers
    bits: int
    odd: bool = False


@dataclass(frozen=True)
class Tile:
    """Results of a tile.

    ``results`` (m, n): integers, or bit patterns of binary32 or binary16. ``overflow`` (m, n): the accumulator
    met a bound, or a binary16 result became infinite. ``invalid`` (m,): an activation was infinite or NaN,
    so that all results of the row are NaN.
    """

    results: Integers
    overflow: Flags
    invalid: Flags


@dataclass(frozen=True)
class Quantised:
    """Quantised weights: ``values`` (n, k) times ``scales`` (n, k / group), each for its group of the row."""

    values: Integers
    scales: npt.NDArray[np.float64]
    bits: int
    odd: bool

    def dequantised(self) -> npt.NDArray[np.float64]:
        """The weights these stand for, (n, k)."""
        group = self.values.shape[1] // self.scales.shape[1]
        return np.repeat(self.scales, group, axis=1) * self.values


# -- weights ---------------------------------------------------------------------------------------
def quantise(weights: npt.ArrayLike, bits: int, group: int) -> Quantised:
    """``weights`` (n, k) as ``bits``-bit integers, one scale per ``group`` of a row, symmetric about zero.

    From 2 bits on: two's complement without its least value, scale = max |w| / (2^(bits-1) - 1), to
    nearest. 1 bit: odd, ±1, scale = mean |w| (the least square error, XNOR-Net, arXiv:1603.05279). A group of
    zeros has scale 0. Raises ``InputError`` on bits beyond 1 to 8, on what is not finite, and when k is no
    multiple of the group.
    """
    _check_bits(bits)
    matrix = np.asarray(weights, np.float64)
    if matrix.ndim != 2 or group < 1 or matrix.shape[1] % group:
        raise InputError(f"weights have shape {matrix.shape}; wanted (rows, a multiple of the group, {group})")
    if not np.isfinite(matrix).all():
        raise InputError("weights must be finite")
    blocks = matrix.reshape(matrix.shape[0], -1, group)
    if bits == 1:
        scales = np.abs(blocks).mean(-1)
        values = np.where(blocks >= 0, 1, -1)
    else:
        scales = np.abs(blocks).max(-1) / (2 ** (bits - 1) - 1)
        values = np.rint(blocks / np.where(scales > 0, scales, 1.0)[..., None]).astype(np.int64)
    return Quantised(values.reshape(matrix.shape), scales, bits, bits == 1)


def codes(weights: npt.ArrayLike, bits: int, odd: bool = False) -> Integers:
    """Codes of ``weights`` (n, K), top bit first: (bits, n).

    A code is the index of a table entry, and 2^(K-1) more where the entry is to be negated. Raises
    ``InputError`` on a weight that ``bits`` bits do not hold, and on what is no matrix of whole numbers.
    """
    _check_bits(bits)
    matrix = _whole("weights", weights)
    signed = matrix if odd else 2 * matrix + 1
    if (signed % 2 == 0).any() or (np.abs(signed) >= 2**bits).any():
        kind = "odd numbers" if odd else "two's complement"
        raise InputError(f"weights from {matrix.min()} to {matrix.max()} are not all {kind} of {bits} bits")
    raised = (signed + 2**bits - 1) // 2  # bit i is set where s_i = +1
    plus = raised[None] >> np.arange(bits - 1, -1, -1)[:, None, None] & 1  # bits, n, K
    last = plus.shape[-1] - 1
    same = (plus == plus[..., last:]).astype(np.int64)  # counts as a_(K-1) does
    negative = 1 - plus[..., last]
    return np.asarray((same[..., :last] << np.arange(last)).sum(-1) + (negative << last), np.int64)


# -- activations and tables ------------------------------------------------------------------------
def align(patterns: npt.ArrayLike, guard: int) -> tuple[Integers, Integers, Flags]:
    """binary16 ``patterns`` (m, K) as integers times 2^(exponent - 24 - guard), exponent 0 to 29, one per row.

    A significand keeps ``guard`` bits below its own; what alignment shifts out beyond them is cut off (towards
    zero). Infinities and NaN count as zero and set the row's flag. Returns values (m, K), exponents, flags (m,).
    """
    words = np.asarray(patterns, np.int64)
    field, fraction = words >> 10 & 31, words & 1023
    special = field == 31
    significand = np.where(special, 0, fraction + 1024 * (field > 0))
    exponent = np.where(special | (field == 0), 1, field)
    top = exponent.max(-1)
    size = (significand << guard) >> (top[:, None] - exponent)
    return np.where(words >> 15 & 1, -size, size), top - 1, special.any(-1)


def half_table(values: npt.ArrayLike, dropped: int = 0) -> Integers:
    """The 2^(K-1) sums T[j] of ``values`` (m, K): (m, 2^(K-1)).

    Entries lose ``dropped`` bits, to nearest, halves upwards; the one sum that then needs a bit more than the
    rest becomes the greatest number that does not.
    """
    numbers = np.asarray(values, np.int64)
    last = numbers.shape[-1] - 1
    signs = 2 * (np.arange(2**last)[:, None] >> np.arange(last) & 1) - 1
    sums = numbers[:, last:] + numbers[:, :last] @ signs.T
    return np.asarray((sums + (1 << dropped >> 1)) >> dropped, np.int64)


def group_sums(table: Integers, group_codes: Integers, odd: bool) -> Integers:
    """What one table (m, 2^(K-1)) and the codes (bits, n) of its weights make: (m, n).

    Two's complement sums are halved, downwards where rounded entries leave an odd number.
    """
    entries = table.shape[1]
    total = np.zeros((table.shape[0], group_codes.shape[1]), np.int64)
    for plane in group_codes:
        found = table[:, plane % entries]
        total = 2 * total + np.where(plane >= entries, -found, found)
    return total if odd else (total - table[:, -1:]) >> 1


# -- tiles -----------------------------------------------------------------------------------------
def lut_tile(groups: Sequence[Group], format: LutFormat) -> Tile:
    """Sum of the products of ``groups``, in their order, as the lookup unit computes it.

    Raises ``InputError`` on activations or weights that the format does not hold, on shapes that differ, and
    without groups.
    """
    if not groups:
        raise InputError("a tile has one group at least")
    high = 2 ** (format.accumulator_bits - 1) - 1
    # Python integers where 64 bits might not do: for the total, or for what a group adds to it.
    added = format.entry_bits + 8 + (29 if format.is_float else 0)
    kind: Any = np.int64 if max(format.accumulator_bits, added) <= 62 else object
    shape = (groups[0].activations.shape[0], groups[0].weights.shape[0])
    total = np.zeros(shape, kind)
    overflow, invalid = np.zeros(shape, np.bool_), np.zeros(shape[0], np.bool_)
    for group in groups:
        _check_group(group, shape, format)
        values, exponents = group.activations, np.zeros(shape[0], np.int64)
        if format.is_float:
            values, exponents, special = align(group.activations, format.guard)
            invalid |= special
        table = half_table(values, format.dropped)
        if format.dropped:
            table = np.minimum(table, 2 ** (format.table_bits - 1) - 1)
        sums = group_sums(table, codes(group.weights, group.bits, group.odd), group.odd)
        exact = total + (sums.astype(kind) << exponents.astype(kind)[:, None])
        total = np.minimum(np.maximum(exact, -high - 1), high)
        overflow |= (total != exact).astype(np.bool_)
    if format.is_float:
        return _rounded(total, overflow, invalid, format)
    return Tile(total, overflow, invalid)


def lut_matmul(
    activations: npt.ArrayLike, weights: npt.ArrayLike, bits: int, format: LutFormat, odd: bool = False
) -> Tile:
    """``activations`` (m, k) times the transpose of ``weights`` (n, k); see :func:`lut_tile`.

    Activations are integers, or floating-point numbers that are first rounded to binary16. k that is no
    multiple of ``format.k`` is filled up with zero activations. Raises as :func:`lut_tile`.
    """
    acts, matrix = np.asarray(activations), _whole("weights", weights)
    if acts.ndim != 2 or acts.shape[1] != matrix.shape[1] or not acts.size:
        raise InputError(f"activations have shape {acts.shape}, weights {matrix.shape}: wanted (m, k) and (n, k)")
    if format.is_float:
        with np.errstate(over="ignore"):  # beyond 65504 is infinity, which the result then says
            acts = acts.astype(np.float16).view(np.uint16)
    else:
        acts = _whole("activations", acts)
    more = ((0, 0), (0, -acts.shape[1] % format.k))
    acts = np.pad(acts.astype(np.int64), more)
    matrix = np.pad(matrix, more, constant_values=int(odd))
    cuts = range(0, acts.shape[1], format.k)
    return lut_tile([Group(acts[:, i : i + format.k], matrix[:, i : i + format.k], bits, odd) for i in cuts], format)


def as_floats(tile: Tile, format: LutFormat) -> npt.NDArray[Any]:
    """Results of a binary16 tile as numpy's float32 or, with ``format.half``, float16."""
    if format.half:
        return tile.results.astype(np.uint16).view(np.float16)
    return tile.results.astype(np.uint32).view(np.float32)


def alignment_error(activations: npt.ArrayLike, weights: npt.ArrayLike, format: LutFormat) -> npt.NDArray[np.float64]:
    """Bound (m, n) on how far alignment alone takes an unsaturated FP16 product from the exact one.

    Σ over groups of 2^(exponent - 24 - guard) Σ_k |w_k|, (m, k) and (n, k) as in :func:`lut_matmul`, k a
    multiple of ``format.k``. The final rounding, and rounding of entries, come on top.
    """
    acts = np.asarray(activations, np.float16).view(np.uint16).astype(np.int64)
    size = np.abs(np.asarray(weights, np.float64))
    bound = np.zeros((acts.shape[0], size.shape[0]))
    for i in range(0, acts.shape[1], format.k):
        exponents = align(acts[:, i : i + format.k], format.guard)[1]
        bound += np.exp2(exponents - 24.0 - format.guard)[:, None] * size[:, i : i + format.k].sum(-1)
    return bound


def round_to_binary(total: int, unit: int, half: bool) -> tuple[int, bool]:
    """Bit pattern of ``total`` · 2^``unit`` in binary16 (``half``) or binary32, and whether it became infinite.

    To nearest, ties to even; subnormals are kept; zero is +0.
    """
    fraction, bias = (10, 15) if half else (23, 127)
    sign = int(total < 0) << (15 if half else 31)
    size, lowest = abs(total), 1 - bias
    if not size:
        return 0, False
    exponent = max(size.bit_length() - 1 + unit, lowest)
    shift = exponent - fraction - unit
    if shift > 0:
        kept, rest, tie = size >> shift, size & ((1 << shift) - 1), 1 << (shift - 1)
        kept += rest > tie or (rest == tie and kept & 1)
    else:
        kept = size << -shift
    pattern = ((exponent - lowest) << fraction) + kept  # the leading one of a normal number adds 1 to the field
    infinite = (2 * bias + 1) << fraction
    return sign | min(pattern, infinite), pattern >= infinite


def _rounded(total: npt.NDArray[Any], overflow: Flags, invalid: Flags, format: LutFormat) -> Tile:
    results = np.zeros(total.shape, np.int64)
    flags = overflow.copy()
    for place in np.ndindex(total.shape):
        results[place], infinite = round_to_binary(int(total[place]), format.unit, format.half)
        flags[place] |= infinite
    results[invalid] = 0x7E00 if format.half else 0x7FC00000
    flags[invalid] = False
    return Tile(results, flags, invalid)


def _whole(name: str, numbers: npt.ArrayLike) -> Integers:
    matrix = np.asarray(numbers)
    if matrix.ndim != 2 or not matrix.size or not np.issubdtype(matrix.dtype, np.integer):
        raise InputError(f"{name} have shape {matrix.shape} and type {matrix.dtype}; wanted a matrix of whole numbers")
    return matrix.astype(np.int64)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise InputError(f"weights of {bits} bits: 1 to 8")


def _check_group(group: Group, shape: tuple[int, int], format: LutFormat) -> None:
    if (group.activations.shape, group.weights.shape) != ((shape[0], format.k), (shape[1], format.k)):
        raise InputError(
            f"a group has activations {group.activations.shape} and weights {group.weights.shape}; "
            f"wanted {(shape[0], format.k)} and {(shape[1], format.k)}"
        )
    low, high = (0, 0xFFFF) if format.is_float else (-(2 ** (format.activation_bits - 1)),) * 2
    high = high if format.is_float else -low - 1
    if group.activations.min() < low or group.activations.max() > high:
        raise InputError(f"activations from {group.activations.min()} to {group.activations.max()}: {low} to {high}")
