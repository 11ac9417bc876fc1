"""Vector codebooks (VPTQ): V consecutive weights are the index of one of K vectors, which the tensor shares.

Centres are those of k-means, seeded, in binary16; ``-rR`` adds a second codebook of R vectors for what the first
leaves over. Bits per weight: ⌈log2 K⌉ / V (and ⌈log2 R⌉ / V) and the codebooks, 16 V (K + R) bits for the tensor. A
last vector that goes beyond its row is filled up with zeros. Left out: VPTQ's weighting by second derivatives, its
channel groups and outlier codebooks, which need activations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from ...errors import InputError
from ._kmeans import cluster_vectors, nearest_vectors
from .base import Fields, Format, Section
from .bits import Floats, from_half, half


@dataclass(frozen=True)
class Vectors(Format):
    """``length`` of a vector; ``centres`` of the codebook, ``residual`` (or 0) of the second."""

    length: int
    centres: int
    residual: int
    seed: int = 0
    description = "vector codebook: V weights are one index of K binary16 vectors (and one of R for the rest)"
    source = "Liu et al., VPTQ, arXiv:2409.17066, section 3 (k-means without weighting)"
    spelling = "vptq-vV-kK[-rR]"
    pattern = re.compile(r"vptq-v(?P<v>[1-9][0-9]?)-k(?P<k>[1-9][0-9]{0,4})(?:-r(?P<r>[1-9][0-9]{0,4}))?")
    examples = ("vptq-v4-k256", "vptq-v8-k256", "vptq-v8-k256-r256")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        counts = [int(found[x] or 0) for x in ("k", "r")]
        if counts[0] < 2 or counts[1] == 1 or max(counts) > 65536:
            raise InputError(f"{found[0]}: a codebook has 2 to 65536 vectors")
        return cls(found[0], int(found["v"]), *counts)

    @property
    def settles(self) -> bool:  # type: ignore[override]
        """Two codebooks are found one after the other, so their sum is not found again."""
        return not self.residual

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        places = rows, -(-k // self.length)
        return tuple(
            section
            for index, book, count in self._books()
            for section in (
                Section(index, (count - 1).bit_length(), places), Section(book, 16, (count, self.length)),
            )
        )  # fmt: skip

    def encode(self, matrix: Floats) -> Fields:
        rows, k = matrix.shape
        left = np.pad(matrix, ((0, 0), (0, -k % self.length))).reshape(-1, self.length)
        fields = {}
        for index, book, count in self._books():
            fields[book] = half(cluster_vectors(left, count, self.seed))
            centres = from_half(fields[book])
            found = nearest_vectors(left, centres)
            fields[index] = found.reshape(rows, -1)
            left = left - centres[found]
        return fields

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        vectors = sum(from_half(fields[book])[fields[index] % count] for index, book, count in self._books())
        return np.asarray(vectors).reshape(rows, -1)[:, :k]

    def _books(self) -> list[tuple[str, str, int]]:
        """Section of indices, section of vectors and number of vectors, of each codebook."""
        return [("codes", "book", self.centres), ("rest", "rest book", self.residual)][: 2 if self.residual else 1]


FORMATS = (Vectors,)
