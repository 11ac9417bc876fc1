"""Ternary weights (BitNet b1.58): -1, 0 or 1 times the mean magnitude of the tensor, two bits each or five in a byte.

    w = s · t,   s = mean |w| in binary16,   t = w / s rounded to nearest even, -1 … 1

``ternary``: t + 1 in two bits. ``ternary-p5``: five t + 1 of a row as digits of base 3, the first the lowest, in a
byte, which has 243 of its 256 values in use: 1.6 bits. A row is filled up to whole bytes with t = 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from .base import Fields, Format, Section
from .bits import TENSOR, Floats, from_half, groups_shape, half, over_groups, safe, spread

TRITS = 5
_POWERS = 3 ** np.arange(TRITS)


@dataclass(frozen=True)
class Ternary(Format):
    """``group`` weights share a scale; ``dense``: whether five are stored in a byte."""

    group: int
    dense: bool
    description = "ternary: -1, 0, 1 times the mean magnitude; 2 bits each, or five in a byte (-p5)"
    source = "Ma et al., The Era of 1-bit LLMs, arXiv:2402.17764, section 2; five in a byte: 3^5 = 243"
    spelling = "ternary[-p5][-gN|-row]"
    pattern = re.compile(r"ternary(?P<dense>-p5)?(?:-(?P<group>g[1-9][0-9]{0,4}|row))?")
    examples = ("ternary", "ternary-p5", "ternary-row", "ternary-g128")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        text = found["group"]
        group = TENSOR if text is None else 0 if text == "row" else int(text[1:])
        return cls(found[0], group, found["dense"] is not None)

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        codes = Section("codes", 8, (rows, -(-k // TRITS))) if self.dense else Section("codes", 2, (rows, k))
        return codes, Section("scales", 16, groups_shape(rows, k, self.group))

    def encode(self, matrix: Floats) -> Fields:
        sizes = over_groups(np.add, np.ones_like(matrix), self.group)
        scales = half(over_groups(np.add, np.abs(matrix), self.group) / sizes)
        each = spread(safe(from_half(scales)), matrix.shape, self.group)
        digits = np.clip(np.rint(matrix / each), -1, 1).astype(np.int64) + 1
        if self.dense:
            rows, k = digits.shape
            digits = np.pad(digits, ((0, 0), (0, -k % TRITS)), constant_values=1).reshape(rows, -1, TRITS) @ _POWERS
        return {"codes": digits, "scales": scales}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        return np.asarray(self.trits(fields, k) * spread(from_half(fields["scales"]), (rows, k), self.group))

    def trits(self, fields: Fields, k: int) -> Floats:
        """-1, 0 and 1 of every weight, (rows, k). Codes that are never made (3; from 243) are read as digits."""
        codes = fields["codes"]
        if self.dense:
            codes = (codes[..., None] // _POWERS % 3).reshape(codes.shape[0], -1)[:, :k]
        return codes.astype(np.float64) - 1


FORMATS = (Ternary,)
