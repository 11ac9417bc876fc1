"""Block floating formats of tensor units: OCP microscaling (MX), and NVFP4.

MX: 32 elements share X = 2^(⌊log2 max |w|⌋ - emax) in e8m0, one byte, the exponent plus 127; emax is the exponent of
the element format's greatest value (2 for e2m1, 2 and 4 for e2m3 and e3m2, 8 and 15 for e4m3 and e5m2, 0 for int8,
whose elements are q / 64, |q| ≤ 127). Elements are w / X to nearest, ties to even, and end at the greatest value.
A block of zeros has the least X. The byte 255, which stands for NaN, is never made.

NVFP4: 16 elements of e2m1 share a scale in e4m3, times one binary32 number t of the tensor: t = max |w| / (448 · 6),
the block's scale is max |w| / 6 / t to nearest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from .base import Fields, Format, Section
from .bits import TENSOR, Floats, from_single, groups_shape, nearest_codes, over_groups, safe, single, spread
from .minifloat import KINDS, values_of

BLOCK, NV_BLOCK = 32, 16
_ELEMENTS = {"mx" + kind: kind for kind in KINDS} | {"mxint8": "int8"}


@dataclass(frozen=True)
class Microscaling(Format):
    """``element`` is a kind of :mod:`.minifloat`, or ``int8``."""

    element: str
    description = "microscaling: 32 elements share a power of two (e8m0)"
    source = "OCP Microscaling Formats (MX) 1.0, sections 5 and 6.3"
    spelling = "mxfp4|mxfp6-e3m2|mxfp6-e2m3|mxfp8-e4m3|mxfp8-e5m2|mxint8"
    pattern = re.compile("|".join(_ELEMENTS))
    examples = tuple(_ELEMENTS)
    settles: ClassVar[bool] = True

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], _ELEMENTS[found[0]])

    @property
    def values(self) -> Floats:
        """The value of every code of an element."""
        if self.element != "int8":
            return values_of(self.element)
        whole = (np.arange(256) ^ 128) - 128
        return np.where(whole == -128, 0, whole) / 64

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        bits = len(self.values).bit_length() - 1
        return Section("codes", bits, (rows, k)), Section("scales", 8, groups_shape(rows, k, BLOCK))

    def encode(self, matrix: Floats) -> Fields:
        most = over_groups(np.maximum, np.abs(matrix), BLOCK)
        emax = int(np.frexp(self.values.max())[1]) - 1
        exponent = np.where(most > 0, np.frexp(most)[1].astype(np.int64) - 1 - emax, -127)
        scales = np.clip(exponent, -127, 127) + 127
        scaled = np.ldexp(matrix, 127 - spread(scales, matrix.shape, BLOCK))
        return {"codes": nearest_codes(scaled, self.values), "scales": scales}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        return np.asarray(np.ldexp(self.values[fields["codes"]], spread(fields["scales"], (rows, k), BLOCK) - 127))


@dataclass(frozen=True)
class NvFp4(Format):
    """e2m1 in blocks of 16, scales in e4m3, a binary32 number per tensor."""

    description = "NVFP4: 16 elements of e2m1 share a scale in e4m3, the tensor a binary32 number"
    source = "NVIDIA, Introducing NVFP4 for Efficient and Accurate Low-Precision Inference, 2025"
    spelling = "nvfp4"
    pattern = re.compile("nvfp4")
    examples = ("nvfp4",)
    settles: ClassVar[bool] = True

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0])

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        return (
            Section("codes", 4, (rows, k)), Section("scales", 8, groups_shape(rows, k, NV_BLOCK)),
            Section("tensor", 32, groups_shape(rows, k, TENSOR)),
        )  # fmt: skip

    def encode(self, matrix: Floats) -> Fields:
        values, wide = values_of("fp4"), values_of("fp8-e4m3")
        tensor = single(over_groups(np.maximum, np.abs(matrix), TENSOR) / (values.max() * wide.max()))
        unit = safe(from_single(tensor))
        scales = nearest_codes(over_groups(np.maximum, np.abs(matrix), NV_BLOCK) / values.max() / unit, wide)
        each = spread(safe(wide[scales]), matrix.shape, NV_BLOCK)
        return {"codes": nearest_codes(matrix / each / unit, values), "scales": scales, "tensor": tensor}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        scale = values_of("fp8-e4m3")[fields["scales"]] * from_single(fields["tensor"])
        return np.asarray(values_of("fp4")[fields["codes"]] * spread(scale, (rows, k), NV_BLOCK))


FORMATS = (Microscaling, NvFp4)
