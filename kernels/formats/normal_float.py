"""NormalFloat (QLoRA): levels that hold equal shares of a normal distribution, in blocks scaled by their greatest.

The levels of B bits: with d = (1/2^(B+1) + 1/(2^(B+1) - 2)) / 2, quantiles of the standard normal distribution at
2^(B-1) + 1 evenly spaced points from 1/2 to 1 - d and at 2^(B-1) points from d to 1/2 (zero counted once), over the
greatest of them; -1, 0 and 1 are among them. A block's absolute maximum is kept in binary32; with double
quantisation, ``-dq``, as 8-bit floating point (e4m3) of its difference from the tensor's mean of them, 256 blocks
sharing a binary32 scale.

QLoRA says "8-bit floats" of the second scales; its code has a table of its own there, which differs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Self

import numpy as np

from .base import Fields, Format, Section
from .bits import Floats, from_single, groups_shape, nearest_codes, over_groups, safe, single, spread
from .minifloat import values_of

SECOND = 256
"""Blocks that share a scale of scales."""


@cache
def levels(bits: int) -> Floats:
    """The 2^bits levels, ascending; the code is the place."""
    least = (1 / 2 ** (bits + 1) + 1 / (2 ** (bits + 1) - 2)) / 2
    quantile = np.vectorize(NormalDist().inv_cdf)
    above = quantile(np.linspace(1 - least, 0.5, 2 ** (bits - 1) + 1)[:-1])
    below = quantile(np.linspace(least, 0.5, 2 ** (bits - 1))[:-1])
    found = np.sort(np.concatenate([below, [0.0], above])) / above[0]
    found[0] = -1.0  # by symmetry, to the last bit
    found.flags.writeable = False
    return np.asarray(found)


@dataclass(frozen=True)
class NormalFloat(Format):
    """``double``: whether scales are quantised too."""

    bits: int
    block: int
    double: bool
    description = "NormalFloat: levels of equal probability, absolute maximum per block (quantised: -dq)"
    source = "Dettmers et al., QLoRA, arXiv:2305.14314, section 3 and appendix E"
    spelling = "nfB-bN[-dq]"
    pattern = re.compile(r"nf(?P<bits>[34])-b(?P<block>[1-9][0-9]{0,4})(?P<double>-dq)?")
    examples = ("nf3-b64", "nf4-b64", "nf4-b64-dq", "nf4-b128")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], int(found["bits"]), int(found["block"]), found["double"] is not None)

    @property
    def settles(self) -> bool:  # type: ignore[override]
        """Quantised scales change once more: their mean does."""
        return not self.double

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        shape = groups_shape(rows, k, self.block)
        codes = Section("codes", self.bits, (rows, k))
        if not self.double:
            return codes, Section("most", 32, shape)
        seconds = -(-shape[0] * shape[1] // SECOND)
        return codes, Section("most", 8, shape), Section("second", 32, (seconds,)), Section("mean", 32, (1,))

    def encode(self, matrix: Floats) -> Fields:
        most = over_groups(np.maximum, np.abs(matrix), self.block)
        fields = self._twice(most) if self.double else {"most": single(most)}
        each = spread(safe(self._most(fields)), matrix.shape, self.block)
        return {"codes": nearest_codes(matrix / each, levels(self.bits)), **fields}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        return np.asarray(levels(self.bits)[fields["codes"]] * spread(self._most(fields), (rows, k), self.block))

    def _twice(self, most: Floats) -> Fields:
        grid, flat = values_of("fp8-e4m3"), most.reshape(1, -1)
        mean = single([flat.mean()])
        flat = flat - from_single(mean)
        second = single(over_groups(np.maximum, np.abs(flat), SECOND) / grid.max())
        codes = nearest_codes(flat / spread(safe(from_single(second)), flat.shape, SECOND), grid)
        return {"most": codes.reshape(most.shape), "second": second.reshape(-1), "mean": mean}

    def _most(self, fields: Fields) -> Floats:
        if not self.double:
            return from_single(fields["most"])
        value = values_of("fp8-e4m3")[fields["most"]]
        scale = spread(from_single(fields["second"])[None], (1, value.size), SECOND).reshape(value.shape)
        return np.asarray(np.maximum(value * scale + from_single(fields["mean"]), 0.0))


FORMATS = (NormalFloat,)
