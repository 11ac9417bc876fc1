"""Floating-point numbers of 4 to 8 bits with a scale per group.

A code is sign, exponent field e of E bits, mantissa field m of M bits; with the bias 2^(E-1) - 1 it stands for

    ± 2^(e - bias) · (1 + m / 2^M)     and for     ± 2^(1 - bias) · m / 2^M     where e = 0

FP4 (e2m1), FP6 (e3m2, e2m3) and FP8 as in the OCP Microscaling and 8-bit floating point specifications: e4m3 has no
infinities and one NaN, so that it ends at 448; e5m2 has both and ends at 57344. Codes of what is no number are never
made, nor is that of -0; to read them is to read 0. The scale is the greatest magnitude over the format's greatest,
in binary16; rounding is to nearest, ties to even.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np

from ...errors import InputError
from .base import ScaledGrid
from .bits import GROUP, Floats, group_of

KINDS = {"fp4": (2, 1), "fp6-e3m2": (3, 2), "fp6-e2m3": (2, 3), "fp8-e4m3": (4, 3), "fp8-e5m2": (5, 2)}
"""Bits of exponent and mantissa."""
_NOT_NUMBERS = {"fp8-e4m3": 1, "fp8-e5m2": 4}
"""Codes at the upper end, without sign, that are infinities or NaN."""


@cache
def values_of(kind: str) -> Floats:
    """The value of every code of ``kind``; 0 for -0 and for what is no number. Raises ``InputError`` on other kinds."""
    if kind not in KINDS:
        raise InputError(f"{kind} is not one of {', '.join(KINDS)}")
    exponent_bits, mantissa_bits = KINDS[kind]
    code = np.arange(2 ** (exponent_bits + mantissa_bits))
    field, fraction = code >> mantissa_bits, (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
    size = np.ldexp(fraction + (field > 0), np.maximum(field, 1) - (2 ** (exponent_bits - 1) - 1))
    size = np.where(code >= code.size - _NOT_NUMBERS.get(kind, 0), 0.0, size)
    values = np.concatenate([size, -size]) + 0.0
    values.flags.writeable = False
    return values


@dataclass(frozen=True)
class Minifloat(ScaledGrid):
    """``kind`` is one of :data:`KINDS`."""

    kind: str
    description = "small floating-point numbers, binary16 scale per group"
    source = "OCP Microscaling Formats (MX) 1.0, section 5.3; OCP 8-bit Floating Point (OFP8) 1.0"
    spelling = "fp4|fp6-e3m2|fp6-e2m3|fp8-e4m3|fp8-e5m2, then [-gN|-tensor]"
    pattern = re.compile(f"(?P<kind>{'|'.join(KINDS)})" + GROUP)
    examples = ("fp4-g128", "fp6-e3m2-g128", "fp6-e2m3-g128", "fp8-e4m3", "fp8-e5m2", "fp8-e4m3-tensor")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], 1 + sum(KINDS[found["kind"]]), group_of(found), found["kind"])

    @property
    def values(self) -> Floats:
        return values_of(self.kind)


FORMATS = (Minifloat,)
