"""Integers of 2 to 8 bits with a scale per group, symmetric or with a zero point.

    symmetric    w = s · q          q from -(2^(B-1) - 1) to 2^(B-1) - 1      s = max |w| / (2^(B-1) - 1)
    asymmetric   w = s · (q - z)    q, z from 0 to 2^B - 1                    s = (max(w, 0) - min(w, 0)) / (2^B - 1)
                                                                              z = -min(w, 0) / s, rounded

Scales are rounded to binary16 before codes are made; codes are rounded to nearest even and end at the grid's ends. Left
out: the search for scales (AWQ) and the compensation of errors from column to column (GPTQ), which need activations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from .base import Fields, Format, ScaledGrid, Section
from .bits import GROUP, Floats, from_half, group_of, groups_shape, half, over_groups, safe, spread

SOURCE = "AWQ, arXiv:2306.00978; GPTQ, arXiv:2210.17323"


@dataclass(frozen=True)
class Symmetric(ScaledGrid):
    """Two's complement without its least value, times a scale. The code of that value is read as it, never made."""

    description = "integers, symmetric, binary16 scale per group"
    source = SOURCE
    spelling = "intB[-gN|-tensor]"
    pattern = re.compile(r"int(?P<bits>[2-8])" + GROUP)
    examples = ("int2-g128", "int3-g128", "int4-g128", "int4", "int4-tensor", "int5-g128", "int6-g128", "int7-g128",
                "int8-g128", "int8", "int8-tensor")  # fmt: skip

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], int(found["bits"]), group_of(found))

    @property
    def values(self) -> Floats:
        half_range = 1 << (self.bits - 1)
        return np.asarray((np.arange(2 * half_range) ^ half_range) - half_range, np.float64)

    def scales(self, matrix: Floats) -> Floats:
        return np.asarray(over_groups(np.maximum, np.abs(matrix), self.group) / (2 ** (self.bits - 1) - 1))

    def encode(self, matrix: Floats) -> Fields:
        scales = half(self.scales(matrix))
        top = 2 ** (self.bits - 1) - 1
        whole = np.rint(matrix / spread(safe(from_half(scales)), matrix.shape, self.group))
        return {"codes": np.clip(whole, -top, top).astype(np.int64) & (2 * top + 1), "scales": scales}


@dataclass(frozen=True)
class Asymmetric(Format):
    """Unsigned integers less a zero point of as many bits, times a scale; zero is a value of every group."""

    bits: int
    group: int
    description = "integers, asymmetric, binary16 scale and B-bit zero point per group"
    source = SOURCE
    spelling = "intB-asym[-gN|-tensor]"
    pattern = re.compile(r"int(?P<bits>[2-8])-asym" + GROUP)
    examples = ("int2-asym-g128", "int3-asym-g128", "int4-asym-g128", "int8-asym-g128")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], int(found["bits"]), group_of(found))

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        shape = groups_shape(rows, k, self.group)
        return (
            Section("codes", self.bits, (rows, k)), Section("scales", 16, shape), Section("zeros", self.bits, shape),
        )  # fmt: skip

    def encode(self, matrix: Floats) -> Fields:
        top = 2**self.bits - 1
        low = over_groups(np.minimum, np.minimum(matrix, 0), self.group)
        high = over_groups(np.maximum, np.maximum(matrix, 0), self.group)
        scales = half((high - low) / top)
        scale = safe(from_half(scales))
        zeros = np.clip(np.rint(-low / scale), 0, top).astype(np.int64)
        places = np.rint(matrix / spread(scale, matrix.shape, self.group)) + spread(zeros, matrix.shape, self.group)
        return {"codes": np.clip(places, 0, top).astype(np.int64), "scales": scales, "zeros": zeros}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        scale, zero = (spread(x, (rows, k), self.group) for x in (from_half(fields["scales"]), fields["zeros"]))
        return np.asarray((fields["codes"] - zero) * scale)


FORMATS = (Symmetric, Asymmetric)
