"""ANT's types: integers, powers of two, flint between them, and the best of the three per group.

All have a sign and V = B - 1 bits of magnitude, and one binary16 scale per group: greatest magnitude over the type's.

    int     0 … 2^V - 1
    pot     0 and 2^(c - 1) for the code c
    flint   codes below 2^(V-1) are integers; of the others, with z zeros before the first one of the V - 1 lower bits
            and the V - 2 - z bits m after it:  2^(V-1+z) · (1 + m / 2^(V-2-z)),   and 2^(2V-2) where all are zero

For V = 3: 0 1 2 3 4 6 8 16. ``antB`` takes, group by group, the type of least squared error, the first of equals, and
keeps it in 2 bits. Left out: ANT's search for the scale that clips best, and its float type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from .base import Fields, Format, ScaledGrid, Section
from .bits import GROUP, Floats, from_half, group_of, groups_shape, half, nearest_codes, over_groups, safe, spread

TYPES = ("int", "flint", "pot")
"""In the order of their selectors."""


def flint_magnitude(code: int, bits: int) -> int:
    """The magnitude that ``code`` stands for in flint of ``bits`` bits without the sign."""
    top = 1 << (bits - 1)
    rest = code & (top - 1)
    if code < top:
        return code
    if not rest:
        return 1 << (2 * bits - 2)
    mantissa_bits = rest.bit_length() - 1
    return (1 << (2 * bits - 3 - mantissa_bits)) * rest >> mantissa_bits


def values_of(kind: str, bits: int) -> Floats:
    """The value of every code of ``bits`` bits, sign first; ``kind`` is one of :data:`TYPES`."""
    codes = range(1 << (bits - 1))
    if kind == "flint":
        sizes = [flint_magnitude(c, bits - 1) for c in codes]
    else:
        sizes = [(1 << c) >> 1 for c in codes] if kind == "pot" else list(codes)
    found = np.array(sizes, np.float64)
    return np.concatenate([found, -found]) + 0.0


@dataclass(frozen=True)
class OneType(ScaledGrid):
    """Flint, or powers of two; ANT's integers are :mod:`.integer`'s with a sign bit."""

    kind: str
    description = "ANT's flint, or signed powers of two, binary16 scale per group"
    source = "Guo et al., ANT, MICRO 2022, arXiv:2208.14286, section IV"
    spelling = "flintB|potB, then [-gN|-tensor]"
    pattern = re.compile(r"(?P<kind>flint|pot)(?P<bits>[3-6])" + GROUP)
    examples = ("flint4-g128", "pot4-g128")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], int(found["bits"]), group_of(found), found["kind"])

    @property
    def values(self) -> Floats:
        return values_of(self.kind, self.bits)


@dataclass(frozen=True)
class Adaptive(Format):
    """int, flint or pot, chosen per group by squared error."""

    bits: int
    group: int
    description = "ANT: int, flint or power of two, chosen per group; binary16 scale, 2-bit choice"
    source = OneType.source
    spelling = "antB[-gN|-tensor]"
    pattern = re.compile(r"ant(?P<bits>[3-6])" + GROUP)
    examples = ("ant4-g128", "ant4", "ant4-tensor")
    settles: ClassVar[bool] = True

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], int(found["bits"]), group_of(found))

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        shape = groups_shape(rows, k, self.group)
        return Section("codes", self.bits, (rows, k)), Section("scales", 16, shape), Section("types", 2, shape)

    def encode(self, matrix: Floats) -> Fields:
        most = over_groups(np.maximum, np.abs(matrix), self.group)
        scales, codes, errors = [], [], []
        for kind in TYPES:
            values = values_of(kind, self.bits)
            scales.append(half(most / values.max()))
            each = spread(from_half(scales[-1]), matrix.shape, self.group)
            codes.append(nearest_codes(matrix / safe(each), values))
            errors.append(over_groups(np.add, np.square(values[codes[-1]] * each - matrix), self.group))
        types = np.argmin(np.stack(errors), axis=0).astype(np.int64)
        chosen = spread(types, matrix.shape, self.group)
        return {
            "codes": np.choose(chosen, codes), "scales": np.choose(types, scales), "types": types,
        }  # fmt: skip

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        table = np.stack([values_of(kind, self.bits) for kind in (*TYPES, TYPES[0])])  # the choice 3 is never made
        value = table[spread(fields["types"], (rows, k), self.group), fields["codes"]]
        return np.asarray(value * spread(from_half(fields["scales"]), (rows, k), self.group))


FORMATS = (OneType, Adaptive)
