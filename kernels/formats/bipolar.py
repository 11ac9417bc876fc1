"""Bipolar integers: odd numbers, whose every bit counts +1 or -1, with a scale per group.

    w = s · Σ_i 2^i s_i,   s_i = ±1:   for B bits the odd numbers from 1 - 2^B to 2^B - 1

the ``odd`` weights of :mod:`tokenfab.kernels.lut`. There is no zero. B = 1: the sign (+ for 0) times the mean
magnitude, of least squared error (XNOR-Net); from 2 bits on s = max |w| / (2^B - 1). Scales are rounded to
binary16 before codes are made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from .base import Fields, ScaledGrid
from .bits import GROUP, Floats, group_of, over_groups


@dataclass(frozen=True)
class Bipolar(ScaledGrid):
    """The code of u is (u + 2^B - 1) / 2: bit i is set where s_i is +1."""

    description = "bipolar integers: odd numbers, each bit +1 or -1; binary16 scale per group"
    source = "Bipolar-INT: APT-LLM, arXiv:2508.19087; 1 bit: Rastegari et al., XNOR-Net, arXiv:1603.05279"
    spelling = "bipolarB[-gN|-tensor]"
    pattern = re.compile(r"bipolar(?P<bits>[1-8])" + GROUP)
    examples = ("bipolar1-g128", "bipolar2-g128", "bipolar3-g128", "bipolar4-g128")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], int(found["bits"]), group_of(found))

    @property
    def values(self) -> Floats:
        return np.asarray(2.0 * np.arange(2**self.bits) - (2**self.bits - 1))

    def encode(self, matrix: Floats) -> Fields:
        fields = super().encode(matrix)
        return fields if self.bits > 1 else {**fields, "codes": (matrix >= 0).astype(np.int64)}

    def scales(self, matrix: Floats) -> Floats:
        if self.bits > 1:
            return super().scales(matrix)
        sizes = over_groups(np.add, np.ones_like(matrix), self.group)
        return np.asarray(over_groups(np.add, np.abs(matrix), self.group) / sizes)


FORMATS = (Bipolar,)
