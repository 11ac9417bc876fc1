"""BitMoD's weights: FP3 or FP4 with a special value chosen per group, or integers, and an 8-bit scale per group.

As :mod:`tokenfab.kernels.bitserial` makes and reads them; here they are given their bytes. A row has one binary32
number, a group 8 bits of scale and, for FP3 and FP4, 2 bits that say which special value -0 stands for: ±3 or ±6, and
±5 or ±8. (The paper counts the scale but not these 2 bits: 3.0625 and 4.0625 bits per weight.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from .. import bitserial
from .base import Fields, Format, Section
from .bits import Floats, from_single, groups_shape, single


@dataclass(frozen=True)
class BitMod(Format):
    """``kind`` is a type of weights of :mod:`tokenfab.kernels.bitserial`; ``group`` weights share a scale."""

    kind: str
    group: int
    description = "BitMoD: FP3/FP4 with a special value per group (or integers), 8-bit scale per group"
    source = "Chen et al., BitMoD, HPCA 2025, arXiv:2411.11745, section III"
    spelling = "bitmod-fp3|fp4|int4|int5|int6|int8-gN"
    pattern = re.compile(f"bitmod-(?P<kind>{'|'.join(bitserial.BITS)})-g(?P<group>[1-9][0-9]{{0,4}})")
    examples = ("bitmod-fp3-g128", "bitmod-fp4-g128", "bitmod-int6-g128")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], found["kind"], int(found["group"]))

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        shape = groups_shape(rows, k, self.group)
        choice = (Section("special", 2, shape),) if self.kind in bitserial.SPECIAL else ()
        codes = Section("codes", bitserial.BITS[self.kind], (rows, k))
        return codes, Section("scales", 8, shape), *choice, Section("steps", 32, (rows,))

    def encode(self, matrix: Floats) -> Fields:
        found = bitserial.quantise(matrix, self.kind, self.group)
        choice = {"special": found.special} if self.kind in bitserial.SPECIAL else {}
        return {"codes": found.codes, "scales": found.scale, **choice, "steps": single(found.step)}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        return self.weights(fields).values()

    def weights(self, fields: Fields) -> bitserial.Quantised:
        """The same weights as :mod:`tokenfab.kernels.bitserial` takes them for its products."""
        special = fields.get("special", np.zeros_like(fields["scales"]))
        steps = from_single(fields["steps"])
        return bitserial.Quantised(fields["codes"], fields["scales"], special, steps, self.kind, self.group)


FORMATS = (BitMod,)
