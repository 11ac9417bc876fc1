"""Dense and sparse (SqueezeLLM): a codebook of 2^B numbers per output channel, and the largest weights apart.

Channels are rows; their centres are k-means' in one dimension, in binary16. With ``-sP``, P % of the tensor's weights,
those of the largest magnitude, are in compressed sparse rows: binary16 values, columns (16 bits, 32 for more than 65536
columns), and where each row starts (32 bits). They are left out of the clusters, and replace what the dense part has in
their places. Left out: the weighting by sensitivity, which needs gradients.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np

from ...errors import InputError
from ._kmeans import cluster_numbers
from .base import Fields, Format, Section
from .bits import Floats, from_half, half, nearest_codes
from .unstructured import column_bits, largest


@dataclass(frozen=True)
class DenseAndSparse(Format):
    """``share`` of the weights is kept in binary16."""

    bits: int
    share: Fraction
    description = "non-uniform codebook per channel; P % of the weights, the largest, apart in binary16 (CSR)"
    source = "Kim et al., SqueezeLLM, arXiv:2306.07629, section 4"
    spelling = "squeezeB[-sP]"
    pattern = re.compile(r"squeeze(?P<bits>[2-8])(?:-s(?P<share>[0-9]{1,2}(?:\.[0-9]{1,4})?))?")
    examples = ("squeeze3", "squeeze3-s0.45", "squeeze4", "squeeze4-s0.45")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        share = Fraction(found["share"] or 0) / 100
        if found["share"] and not share:
            raise InputError(f"{found[0]}: a share of 0 is {found[0].partition('-')[0]}")
        return cls(found[0], int(found["bits"]), share)

    @property
    def settles(self) -> bool:  # type: ignore[override]
        """Rounded weights have as many equals as there are, so that others may be the largest."""
        return not self.share

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        dense = Section("codes", self.bits, (rows, k)), Section("book", 16, (rows, 2**self.bits))
        if not self.share:
            return dense
        kept = round(self.share * rows * k)
        return (
            *dense, Section("values", 16, (kept,)), Section("columns", column_bits(k), (kept,)),
            Section("starts", 32, (rows + 1,)),
        )  # fmt: skip

    def encode(self, matrix: Floats) -> Fields:
        rows, k = matrix.shape
        apart = largest(np.abs(matrix), round(self.share * rows * k))
        book = half(np.stack([cluster_numbers(m[~a], 2**self.bits) for m, a in zip(matrix, apart, strict=True)]))
        codes = np.stack([nearest_codes(m, c) for m, c in zip(matrix, from_half(book), strict=True)])
        fields = {"codes": codes, "book": book}
        if self.share:
            starts = np.concatenate([[0], np.cumsum(apart.sum(1))])
            fields |= {"values": half(matrix[apart]), "columns": np.nonzero(apart)[1], "starts": starts}
        return fields

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        found = np.take_along_axis(from_half(fields["book"]), fields["codes"], axis=1)
        if self.share:
            found[np.repeat(np.arange(rows), np.diff(fields["starts"])), fields["columns"]] = from_half(
                fields["values"]
            )
        return found


FORMATS = (DenseAndSparse,)
