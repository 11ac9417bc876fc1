"""What a number format is: sections of integers of fixed widths, and how a tensor becomes them and comes back."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log10, prod
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .bits import (
    Floats,
    Integers,
    from_half,
    groups_shape,
    half,
    nearest_codes,
    num_bytes,
    over_groups,
    pack_bits,
    safe,
    spread,
    unpack_bits,
)

Fields = Mapping[str, Integers]


@dataclass(frozen=True)
class Section:
    """One part of a packed tensor: integers of ``bits`` bits each, of ``shape``, filled up to a whole byte."""

    name: str
    bits: int
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the section."""
        return num_bytes(self.bits, prod(self.shape))


@dataclass(frozen=True, eq=False)
class Quantised:
    """A tensor of ``shape`` in a format: one array of integers per section (codes, scales as bit patterns, …)."""

    format: Format
    shape: tuple[int, ...]
    fields: Fields


@dataclass(frozen=True)
class Error:
    """How far a tensor in a format is from the tensor.

    ``sqnr_db``: 10 log10(Σ w² / Σ (w - ŵ)²), infinite where nothing is lost; ``max_error``: greatest |w - ŵ|.
    """

    sqnr_db: float
    max_error: float


@dataclass(frozen=True)
class Format(ABC):
    """A number format for tensors of finite numbers.

    Contract. A tensor (…, k) is taken as a matrix (rows, k), the last axis being the reduction; groups lie along it.
    :meth:`layout` gives the sections of a matrix by its shape alone; :meth:`encode` fills them; :meth:`decode` makes
    numbers from nothing else. So packed bytes say everything but the shape, and bits per weight need no tensor.
    ``settles``: quantising what was dequantised gives the same numbers again (scales being normal numbers).
    """

    name: str
    description: ClassVar[str]
    source: ClassVar[str]
    spelling: ClassVar[str]
    """How its names are written; B, N, … stand for numbers."""
    pattern: ClassVar[re.Pattern[str]]
    examples: ClassVar[Sequence[str]]
    settles: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def named(cls, found: re.Match[str]) -> Self:
        """The format whose name matched ``pattern``. Raises ``InputError`` on numbers that make no format."""

    @abstractmethod
    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        """Sections of a matrix (rows, k), in the order in which they are packed."""

    @abstractmethod
    def encode(self, matrix: Floats) -> Fields:
        """The sections' integers for ``matrix`` (rows, k). Raises ``InputError`` where a scale is beyond its type."""

    @abstractmethod
    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        """The matrix (rows, k) that sections stand for."""

    # -- for callers ---------------------------------------------------------------------------------
    def quantise(self, tensor: npt.ArrayLike) -> Quantised:
        """``tensor`` (…, k) in this format. Raises ``InputError`` on what is empty or not finite."""
        numbers = np.asarray(tensor, np.float64)
        if not numbers.ndim or not numbers.size or not np.isfinite(numbers).all():
            raise InputError(f"a tensor of shape {numbers.shape}; wanted finite numbers, (…, k)")
        fields = self.encode(numbers.reshape(-1, numbers.shape[-1]))
        wanted = {s.name: s.shape for s in self.layout(*_matrix(numbers.shape))}
        assert {name: f.shape for name, f in fields.items()} == wanted, (self.name, wanted)
        return Quantised(self, numbers.shape, fields)

    def dequantise(self, stored: Quantised) -> Floats:
        """The numbers that ``stored`` stands for, of its shape."""
        return self.decode(stored.fields, *_matrix(stored.shape)).reshape(stored.shape)

    def pack(self, stored: Quantised) -> bytes:
        """The sections of ``stored`` one after another."""
        sections = self.layout(*_matrix(stored.shape))
        return b"".join(pack_bits(stored.fields[s.name], s.bits) for s in sections)

    def unpack(self, data: bytes, shape: Sequence[int]) -> Quantised:
        """The inverse of :meth:`pack`. Raises ``InputError`` on bytes that do not make a tensor of ``shape``."""
        sections = self.layout(*_matrix(shape))
        if len(data) != (total := sum(s.bytes for s in sections)):
            raise InputError(f"{self.name}: a tensor of shape {tuple(shape)} has {total} bytes, not {len(data)}")
        fields, at = {}, 0
        for s in sections:
            fields[s.name] = unpack_bits(data[at : at + s.bytes], s.bits, prod(s.shape)).reshape(s.shape)
            at += s.bytes
        return Quantised(self, tuple(shape), fields)

    def bits_per_weight(self, shape: Sequence[int]) -> float:
        """Bits per element of a tensor of ``shape``, scales, indices, codebooks and filled-up bytes included.

        Equal to 8 · len(pack) / elements.
        """
        return 8 * sum(s.bytes for s in self.layout(*_matrix(shape))) / prod(shape)

    def error(self, tensor: npt.ArrayLike) -> Error:
        """What the format loses on ``tensor``; raises as :meth:`quantise`."""
        numbers = np.asarray(tensor, np.float64)
        difference = self.dequantise(self.quantise(numbers)) - numbers
        noise, signal = float(np.square(difference).sum()), float(np.square(numbers).sum())
        sqnr = inf if not noise else 10 * log10(signal / noise)
        return Error(sqnr, float(np.abs(difference).max()))


@dataclass(frozen=True)
class ScaledGrid(Format):
    """A format of one table of values and one binary16 scale per group: w = scale · value[code].

    ``bits`` of a code; ``group`` weights share a scale (:data:`~.bits.ROW`, :data:`~.bits.TENSOR`). The scale is the
    greatest magnitude of the group over that of the table, rounded to binary16; codes are those of the nearest values.
    """

    bits: int
    group: int
    settles: ClassVar[bool] = True

    @property
    @abstractmethod
    def values(self) -> Floats:
        """The value of every code, (2^bits,); codes that are not used repeat a value."""

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        return Section("codes", self.bits, (rows, k)), Section("scales", 16, groups_shape(rows, k, self.group))

    def scales(self, matrix: Floats) -> Floats:
        """The scale of every group, before it is rounded."""
        return np.asarray(over_groups(np.maximum, np.abs(matrix), self.group) / np.abs(self.values).max())

    def encode(self, matrix: Floats) -> Fields:
        scales = half(self.scales(matrix))
        each = spread(safe(from_half(scales)), matrix.shape, self.group)
        return {"codes": nearest_codes(matrix / each, self.values), "scales": scales}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        return np.asarray(self.values[fields["codes"]] * spread(from_half(fields["scales"]), (rows, k), self.group))


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    if not shape or min(shape) < 1:
        raise InputError(f"a tensor of shape {tuple(shape)}; wanted (…, k), none of them 0")
    return prod(shape[:-1]), shape[-1]
