"""Bits and bytes of number formats: packing, binary16 and binary32 as integers, groups of a row, nearest codes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ROW, TENSOR = 0, -1
"""Group sizes that stand for a whole row (an output channel) and for the whole tensor."""
GROUP = r"(?:-(?P<group>g[1-9][0-9]{0,4}|tensor))?"
"""How the end of a format's name says its group."""
_CHUNK = 1 << 16


def group_of(found: re.Match[str]) -> int:
    """The group that a name with :data:`GROUP` in it says: a number of weights, :data:`ROW` or :data:`TENSOR`."""
    text = found["group"]
    return ROW if text is None else TENSOR if text == "tensor" else int(text[1:])


# -- packing ----------------------------------------------------------------------------------------
def num_bytes(bits: int, count: int) -> int:
    """Bytes of ``count`` integers of ``bits`` bits one after another, filled up to a whole byte."""
    return -(-bits * count // 8)


def pack_bits(values: Integers, bits: int) -> bytes:
    """``values`` (0 to 2^bits - 1) one after another, the lowest bit of each first, into bytes from their lowest bit.

    Raises ``InputError`` on a value that ``bits`` bits do not hold.
    """
    flat = np.ascontiguousarray(values, np.int64).reshape(-1)
    if flat.size and not (flat.min() >= 0 and flat.max() < 1 << bits):
        raise InputError(f"values from {flat.min()} to {flat.max()} do not fit in {bits} bits")
    if bits in (8, 16, 32):
        return flat.astype(f"<u{bits // 8}").tobytes()
    places = np.arange(bits)
    chunks = (flat[i : i + _CHUNK, None] >> places & 1 for i in range(0, flat.size, _CHUNK))
    return b"".join(np.packbits(c.astype(np.uint8).reshape(-1), bitorder="little").tobytes() for c in chunks)


def unpack_bits(data: bytes, bits: int, count: int) -> Integers:
    """The inverse of :func:`pack_bits`. Raises ``InputError`` on bytes of another length, and on a filling not zero."""
    if len(data) != num_bytes(bits, count):
        raise InputError(f"{count} integers of {bits} bits are {num_bytes(bits, count)} bytes, not {len(data)}")
    if bits in (8, 16, 32):
        return np.frombuffer(data, f"<u{bits // 8}").astype(np.int64)
    found = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if found[bits * count :].any():
        raise InputError("the bits that fill up the last byte must be zero")
    out = np.zeros(count, np.int64)
    for place in range(bits):
        out |= found[place : bits * count : bits].astype(np.int64) << place
    return out


# -- stored numbers ---------------------------------------------------------------------------------
def half(values: npt.ArrayLike) -> Integers:
    """Bit patterns of ``values`` in binary16, to nearest even. Raises ``InputError`` beyond its range."""
    return _patterns(values, np.float16, np.uint16, "binary16")


def single(values: npt.ArrayLike) -> Integers:
    """Bit patterns of ``values`` in binary32, as :func:`half`."""
    return _patterns(values, np.float32, np.uint32, "binary32")


def from_half(patterns: Integers) -> Floats:
    """The numbers of binary16 patterns."""
    return patterns.astype(np.uint16).view(np.float16).astype(np.float64)


def from_single(patterns: Integers) -> Floats:
    """The numbers of binary32 patterns."""
    return patterns.astype(np.uint32).view(np.float32).astype(np.float64)


def _patterns(values: npt.ArrayLike, kind: Any, pattern: Any, name: str) -> Integers:
    given = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        found = np.asarray(given.astype(kind))
    if not np.isfinite(found).all():
        raise InputError(f"a number of magnitude {np.abs(given).max():.4g} is beyond {name}")
    return np.asarray((found + kind(0)).view(pattern), np.int64)  # -0 becomes +0


# -- groups -----------------------------------------------------------------------------------------
def groups_shape(rows: int, k: int, group: int) -> tuple[int, int]:
    """Shape of what a matrix (rows, k) has one of per group: (rows, ⌈k / group⌉), (rows, 1), or (1, 1)."""
    return (1, 1) if group == TENSOR else (rows, -(-k // (group or k)))


def over_groups(ufunc: np.ufunc, matrix: npt.NDArray[Any], group: int) -> npt.NDArray[Any]:
    """``ufunc`` (np.add, np.maximum, …) over every group of ``matrix``; the last group of a row may be shorter."""
    if group == TENSOR:
        return np.asarray(ufunc.reduce(matrix, axis=None)).reshape(1, 1)
    return np.asarray(ufunc.reduceat(matrix, np.arange(0, matrix.shape[1], group or matrix.shape[1]), axis=1))


def spread(per_group: npt.NDArray[Any], shape: Sequence[int], group: int) -> npt.NDArray[Any]:
    """A number per group as one per element of a matrix of ``shape``, (rows, k)."""
    if group == TENSOR:
        return np.broadcast_to(per_group, tuple(shape))
    return np.asarray(np.repeat(per_group, group or shape[1], axis=1)[:, : shape[1]])


def nearest_codes(scaled: Floats, values: Floats) -> Integers:
    """Codes of the values nearest to ``scaled``: ``values[code]``.

    Of two equally near the one with the even code, the lesser where both are. Values that occur twice keep the
    first code.
    """
    values, codes = np.unique(values, return_index=True)
    between = (values[1:] + values[:-1]) / 2
    place = np.searchsorted(between, scaled, side="left")
    odd = codes[place] % 2 == 1
    tie = scaled == np.append(between, np.nan)[place]
    return np.asarray(codes[place + (odd & tie)], np.int64)


def safe(scale: Floats) -> Floats:
    """``scale`` to divide by: 1 where it is 0."""
    return np.asarray(np.where(scale > 0, scale, 1.0))
