"""Unstructured and group sparsity: the largest weights of a tensor in binary16, and where they are.

``sparseP-…`` sets P % of the weights to zero, those of least magnitude; of equals the first stay. Where they are:

    bitmap   one bit per weight
    csr      columns (16 bits, 32 for more than 65536 columns) and where each row starts (32 bits)
    csl      tiles of 256 × 64 (Flash-LLM): 16 bits of place in the tile, row first; where each tile starts (32 bits)

``sparseP-vN`` sets P % of the groups of N consecutive weights to zero, those of the least sum of squares: one bit per
group. How many are kept follows from the shape, so weights that are zero may be among them. Left out: what Flash-LLM
fills tiles up with so that threads read 128 bits at a time, at most 3 words per tile and thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .base import Fields, Format, Section
from .bits import Floats, Integers, from_half, half

TILE = (256, 64)


def largest(sizes: Floats, count: int) -> npt.NDArray[np.bool_]:
    """Where the ``count`` largest of ``sizes`` are, same shape; of equals the first."""
    found = np.zeros(sizes.size, np.bool_)
    found[np.argsort(-sizes.reshape(-1), kind="stable")[:count]] = True
    return found.reshape(sizes.shape)


def column_bits(k: int) -> int:
    """Bits of a stored column."""
    return 16 if k <= 1 << 16 else 32


def num_kept(elements: int, percent: int) -> int:
    """How many of ``elements`` stay when ``percent`` of them go, to the nearest, halves upwards."""
    return (elements * (100 - percent) + 50) // 100


@dataclass(frozen=True)
class Unstructured(Format):
    """``percent`` of the weights are zero; ``index`` is bitmap, csr or csl."""

    percent: int
    index: str
    description = "unstructured sparsity: P % zero; binary16 values and a bitmap, rows (CSR) or tiles (tiled CSL)"
    source = "Xia et al., Flash-LLM, VLDB 2024, arXiv:2309.10285, section 4 (tiled CSL)"
    spelling = "sparseP-bitmap|csr|csl"
    pattern = re.compile(r"sparse(?P<percent>[0-9]{1,2})-(?P<index>bitmap|csr|csl)")
    examples = ("sparse80-bitmap", "sparse80-csr", "sparse80-csl")
    settles: ClassVar[bool] = True

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], int(found["percent"]), found["index"])

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        values = Section("values", 16, (num_kept(rows * k, self.percent),))
        if self.index == "bitmap":
            return values, Section("bitmap", 1, (rows, k))
        if self.index == "csr":
            return values, Section("columns", column_bits(k), values.shape), Section("starts", 32, (rows + 1,))
        tiles = -(-rows // TILE[0]) * -(-k // TILE[1])
        return values, Section("places", 16, values.shape), Section("starts", 32, (tiles + 1,))

    def encode(self, matrix: Floats) -> Fields:
        kept = largest(np.abs(matrix), num_kept(matrix.size, self.percent))
        row, column = np.nonzero(kept)
        if self.index == "bitmap":
            return {"values": half(matrix[kept]), "bitmap": kept.astype(np.int64)}
        if self.index == "csr":
            return {"values": half(matrix[kept]), "columns": column, "starts": _starts(row, matrix.shape[0])}
        across = -(-matrix.shape[1] // TILE[1])
        tile, place = row // TILE[0] * across + column // TILE[1], row % TILE[0] * TILE[1] + column % TILE[1]
        order = np.lexsort((place, tile))
        starts = _starts(tile, -(-matrix.shape[0] // TILE[0]) * across)
        return {"values": half(matrix[row, column][order]), "places": place[order], "starts": starts}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        found, values = np.zeros((rows, k)), from_half(fields["values"])
        if self.index == "bitmap":
            if int(fields["bitmap"].sum()) != values.size:
                raise InputError(f"{self.name}: a bitmap of {fields['bitmap'].sum()} for {values.size} weights")
            found[fields["bitmap"] == 1] = values
        elif self.index == "csr":
            found[_owners(fields["starts"]), fields["columns"]] = values
        else:
            tile, across, place = _owners(fields["starts"]), -(-k // TILE[1]), fields["places"]
            row = tile // across * TILE[0] + place // TILE[1]
            found[row, tile % across * TILE[1] + place % TILE[1]] = values
        return found


@dataclass(frozen=True)
class Grouped(Format):
    """``percent`` of the groups of ``length`` weights are zero; the last group of a row is filled up with zeros."""

    percent: int
    length: int
    description = "group sparsity: P % of the groups of N consecutive weights are zero; binary16 values and a bitmap"
    source = "Wen et al., Structured Sparsity Learning, arXiv:1608.03665 (groups); one bit per group"
    spelling = "sparseP-vN"
    pattern = re.compile(r"sparse(?P<percent>[0-9]{1,2})-v(?P<length>[1-9][0-9]{0,3})")
    examples = ("sparse80-v8",)
    settles: ClassVar[bool] = True

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], int(found["percent"]), int(found["length"]))

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        shape = rows, -(-k // self.length)
        kept = num_kept(shape[0] * shape[1], self.percent)
        return Section("values", 16, (kept, self.length)), Section("bitmap", 1, shape)

    def encode(self, matrix: Floats) -> Fields:
        rows, k = matrix.shape
        # Groups are compared as they are stored, so that they come in the same order again.
        stored = from_half(half(np.pad(matrix, ((0, 0), (0, -k % self.length))))).reshape(rows, -1, self.length)
        kept = largest(np.square(stored).sum(-1), num_kept(stored.shape[0] * stored.shape[1], self.percent))
        return {"values": half(stored[kept]), "bitmap": kept.astype(np.int64)}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        bitmap = fields["bitmap"] == 1
        if int(bitmap.sum()) != len(fields["values"]):
            raise InputError(f"{self.name}: a bitmap of {bitmap.sum()} for {len(fields['values'])} groups")
        found = np.zeros((*bitmap.shape, self.length))
        found[bitmap] = from_half(fields["values"])
        return found.reshape(rows, -1)[:, :k]


def _starts(owner: Integers, count: int) -> Integers:
    """Where each owner's entries start, and where the last one's end."""
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=count))]).astype(np.int64)


def _owners(starts: Integers) -> npt.NDArray[Any]:
    return np.repeat(np.arange(starts.size - 1), np.diff(starts))


FORMATS = (Unstructured, Grouped)
