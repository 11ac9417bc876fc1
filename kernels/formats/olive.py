"""OliVe's outlier-victim pairs, as :mod:`tokenfab.kernels.ovp` makes and reads them, with their bytes.

A tensor has one binary32 scale and the bias that puts outliers just beyond the normal values, which the format fixes.
The scale is searched for as :func:`tokenfab.kernels.ovp.fit` does, then rounded to binary32, then codes are made. A
last column without a neighbour is paired with a zero, which is stored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from .. import ovp
from .base import Fields, Format, Section
from .bits import Floats, from_single, single


@dataclass(frozen=True)
class OutlierVictimPairs(Format):
    """``form`` is one of :data:`tokenfab.kernels.ovp.FORMATS`."""

    form: ovp.Format
    description = "OliVe: an outlier takes the place of its neighbour, the victim; one scale per tensor"
    source = "Guo et al., OliVe, ISCA 2023, arXiv:2304.07493, section 3"
    spelling = "ovp4|ovp8"
    pattern = re.compile("|".join(ovp.FORMATS))
    examples = tuple(ovp.FORMATS)

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], ovp.FORMATS[found[0]])

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        return Section("codes", self.form.bits, (rows, k + k % 2)), Section("scale", 32, (1,))

    def encode(self, matrix: Floats) -> Fields:
        even = np.pad(matrix, ((0, 0), (0, matrix.shape[1] % 2)))
        scale = single([ovp.fit(even, self.form).scale if even.any() else 1.0])
        codes = ovp.quantise(even, self.form, max(float(from_single(scale)[0]), 2.0**-149), self._bias)
        return {"codes": codes, "scale": scale}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        return np.asarray(ovp.decode(fields["codes"], self.form, self._bias)[:, :k] * from_single(fields["scale"]))

    @property
    def _bias(self) -> int:
        return ovp.complementary_bias(self.form)


FORMATS = (OutlierVictimPairs,)
