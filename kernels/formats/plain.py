"""Numbers as they are: binary32, binary16, bfloat16, rounded to nearest even. What other formats are compared with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ...errors import InputError
from .base import Fields, Format, Section
from .bits import Floats, from_half, from_single, half, single

BITS = {"fp32": 32, "fp16": 16, "bf16": 16}


@dataclass(frozen=True)
class Plain(Format):
    """One pattern per number, nothing beside."""

    description = "binary32, binary16, bfloat16: nothing shared"
    source = "IEEE 754-2019; bfloat16: the upper half of binary32"
    spelling = "fp32|fp16|bf16"
    pattern = re.compile("|".join(BITS))
    examples = tuple(BITS)
    settles: ClassVar[bool] = True

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0])

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        return (Section("codes", BITS[self.name], (rows, k)),)

    def encode(self, matrix: Floats) -> Fields:
        if self.name == "fp16":
            return {"codes": half(matrix)}
        if self.name == "fp32":
            return {"codes": single(matrix)}
        # Rounded once, from binary64: 8 bits of significand; bfloat16's exponents are binary32's.
        exponent = np.maximum(np.frexp(matrix)[1] - 1, -126)
        rounded = np.ldexp(np.rint(np.ldexp(matrix, 7 - exponent)), exponent - 7)
        codes = single(rounded) >> 16
        if (codes & 0x7FFF >= 0x7F80).any():
            raise InputError(f"a number of magnitude {np.abs(matrix).max():.4g} is beyond bfloat16")
        return {"codes": codes}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        codes = fields["codes"]
        return from_half(codes) if self.name == "fp16" else from_single(codes << 16 * (self.name == "bf16"))


FORMATS = (Plain,)
