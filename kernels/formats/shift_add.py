"""Binary bases with power-of-two scales (ShiftAddLLM): a weight is a few shifts, added or subtracted.

    w = Σ_i a_i b_i,   b_i = ±1 per weight,   a_i a power of two (or 0) per group and base

As ShiftAddLLM: binary-coding quantisation by turns (Xu et al.), from the greedy start a_i = mean |r|, b_i = sign r, r
being what is left; then, ``TURNS`` times, a by least squares for the b, b by search of all 2^q sums for the a; at last
a to the nearest power of two in its logarithm and b searched once more. An exponent has one byte: 2^(code - 127), 0 for
the code 0. Left out: the errors of outputs, which need activations, and bits that differ from layer to layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from .base import Fields, Format, Section
from .bits import Floats, Integers, groups_shape

TURNS = 15
_ROWS = 4096
"""Groups that are made at a time: the search holds 2^q numbers per weight."""


@dataclass(frozen=True)
class ShiftAdd(Format):
    """``bases`` per weight; ``group`` weights share their scales."""

    bases: int
    group: int
    description = "binary bases with power-of-two scales per group (shift-add)"
    source = "You et al., ShiftAddLLM, arXiv:2406.05981, section 4; Xu et al., arXiv:1802.00150"
    spelling = "shiftaddQ-gN"
    pattern = re.compile(r"shiftadd(?P<bases>[1-4])-g(?P<group>[1-9][0-9]{0,4})")
    examples = ("shiftadd2-g128", "shiftadd3-g128", "shiftadd4-g128")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], int(found["bases"]), int(found["group"]))

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        groups = groups_shape(rows, k, self.group)
        return Section("codes", self.bases, (rows, k)), Section("exponents", 8, (*groups, self.bases))

    def encode(self, matrix: Floats) -> Fields:
        rows, k = matrix.shape
        groups = groups_shape(rows, k, self.group)
        more = ((0, 0), (0, groups[1] * self.group - k))
        blocks = np.pad(matrix, more).reshape(-1, self.group)
        real = np.pad(np.ones_like(matrix), more).reshape(-1, self.group)
        made = [self._blocks(blocks[i : i + _ROWS], real[i : i + _ROWS]) for i in range(0, len(blocks), _ROWS)]
        codes = np.concatenate([codes for codes, _ in made]).reshape(rows, -1)[:, :k]
        return {"codes": codes, "exponents": np.concatenate([e for _, e in made]).reshape(*groups, self.bases)}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        scales = np.repeat(_powers(fields["exponents"]), self.group, axis=1)[:, :k]
        return np.asarray((_signs(fields["codes"], self.bases) * scales).sum(-1))

    def _blocks(self, blocks: Floats, real: Floats) -> tuple[Integers, Integers]:
        """Codes (groups, group) and exponents (groups, bases) of ``blocks``; ``real`` is 0 where one is filled up."""
        left, scales, signs = blocks.copy(), np.zeros((len(blocks), self.bases)), np.zeros((*blocks.shape, self.bases))
        for i in range(self.bases):
            scales[:, i] = (np.abs(left) * real).sum(1) / real.sum(1)
            signs[..., i] = np.where(left >= 0, 1, -1)
            left -= scales[:, i, None] * signs[..., i]
        for _ in range(TURNS):
            weighted = signs * real[..., None]
            gram = np.einsum("rgi,rgj->rij", weighted, signs)
            scales = np.einsum("rij,rgj,rg->ri", np.linalg.pinv(gram, hermitian=True), weighted, blocks)
            scales = np.abs(scales)  # the search turns signs that this turned
            signs = _signs(self._nearest(blocks, scales), self.bases)
        with np.errstate(divide="ignore"):
            exponents = np.where(scales > 2.0**-126, np.clip(np.rint(np.log2(scales)), -126, 128) + 127, 0)
        exponents = exponents.astype(np.int64)
        return self._nearest(blocks, _powers(exponents)), exponents

    def _nearest(self, blocks: Floats, scales: Floats) -> Integers:
        """Codes of the sums nearest to every weight, the least of equals."""
        sums = scales @ _signs(np.arange(2**self.bases), self.bases).T  # (groups, 2^bases)
        return np.asarray(np.argmin(np.abs(blocks[..., None] - sums[:, None]), axis=-1), np.int64)


def _signs(codes: Integers, bases: int) -> Floats:
    """b_i of codes, last axis ``bases``: +1 where bit i is set."""
    return np.asarray(2.0 * (codes[..., None] >> np.arange(bases) & 1) - 1)


def _powers(exponents: Integers) -> Floats:
    return np.asarray(np.where(exponents > 0, np.ldexp(1.0, exponents - 127), 0.0))


FORMATS = (ShiftAdd,)
