"""N:M sparsity: at most N of M consecutive weights are not zero, stored with their places in the block.

Pruned and compressed by :mod:`tokenfab.kernels.sparse`. Values are binary16, or (``-int8``, ``-int4``) integers with
one binary16 scale per row, the row's greatest magnitude over 127 or 7. A place has ⌈log2 M⌉ bits: 2:4 in binary16 is 9
bits per weight. A row is filled up to whole blocks with zeros.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ...errors import InputError
from .. import sparse
from .base import Fields, Format, Section
from .bits import Floats, from_half, half, safe


@dataclass(frozen=True)
class Structured(Format):
    """``n`` of ``m`` stay; ``bits`` of a value, 16 for binary16."""

    n: int
    m: int
    bits: int
    description = "N:M sparsity: N of M consecutive weights and their places; binary16, or integers with a row's scale"
    source = "Mishra et al., arXiv:2104.08378 (2:4); FlightLLM, arXiv:2401.03868, section 3.2 (N:16)"
    spelling = "N:M[-int8|-int4]"
    pattern = re.compile(r"(?P<n>[1-9][0-9]?):(?P<m>[1-9][0-9]?)(?:-int(?P<bits>[48]))?")
    examples = ("2:4", "2:4-int8", "2:4-int4", "1:4", "4:16-int8", "8:16")
    settles: ClassVar[bool] = True

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        n, m = int(found["n"]), int(found["m"])
        sparse.check_pattern(n, m)
        if m > 64:
            raise InputError(f"{found[0]}: blocks of at most 64")
        return cls(found[0], n, m, int(found["bits"] or 16))

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        kept = rows, -(-k // self.m) * self.n
        scales = (Section("scales", 16, (rows, 1)),) if self.bits < 16 else ()
        return Section("codes", self.bits, kept), Section("places", (self.m - 1).bit_length(), kept), *scales

    def encode(self, matrix: Floats) -> Fields:
        padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % self.m)))
        patterns = half(padded)
        # Magnitudes of binary16 are in the order of their patterns, so the integer functions sort and keep them.
        signed = np.where(patterns >> 15, -(patterns & 0x7FFF), patterns)
        kept = sparse.prune(signed, self.n, self.m)
        if self.bits == 16:
            stored = sparse.compress(kept, self.n, self.m)
            size = np.abs(stored.values)
            return {"codes": size | (stored.values < 0).astype(np.int64) << 15, "places": stored.index}
        top = 2 ** (self.bits - 1) - 1
        left = np.where(kept != 0, padded, 0.0)
        scales = half(np.abs(left).max(axis=1, keepdims=True) / top)
        codes = np.clip(np.rint(left / safe(from_half(scales))), -top, top).astype(np.int64)
        stored = sparse.compress(codes, self.n, self.m)
        return {"codes": stored.values & (2 * top + 1), "places": stored.index, "scales": scales}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        if self.bits < 16:
            whole = sparse.decompress(self.compressed(fields, k))[:, :k]
            return np.asarray(whole * from_half(fields["scales"]))
        found = np.zeros((rows, -(-k // self.m) * self.m))
        block = np.arange(fields["codes"].shape[1]) // self.n
        np.add.at(found, (np.arange(rows)[:, None], fields["places"] + block * self.m), from_half(fields["codes"]))
        return found[:, :k]

    def compressed(self, fields: Fields, k: int) -> sparse.Compressed:
        """Integer weights as :mod:`tokenfab.kernels.sparse` takes them for its products, without their scales."""
        half_range = 1 << (self.bits - 1)
        values = (fields["codes"] ^ half_range) - half_range
        return sparse.Compressed(values, fields["places"], self.n, self.m, -(-k // self.m) * self.m)


FORMATS = (Structured,)
