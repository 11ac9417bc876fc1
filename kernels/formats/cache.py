"""Key and value caches (KIVI): integers with a scale and an offset, keys in groups along tokens, values along channels.

    w = s · q + z       z = min w,   s = (max w - min w) / (2^B - 1),   both binary16, then q = (w - z) / s, rounded

A cache is (tokens, channels) or (…, tokens, channels), flattened to rows of channels. ``key…``: N tokens of one channel
share s and z, since keys have outlying channels; without N all tokens do. ``value…``: N channels of one token do;
without N the whole head vector. Left out: KIVI's latest tokens (128 of them), which stay in 16 bits: at a context of c
tokens they add 128 / c · (16 - B) bits per element. Other caches need no format of their own: ``fp8-e4m3-tensor``,
``int8``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from .base import Fields, Format, Section
from .bits import Floats, from_half, groups_shape, half, over_groups, safe, spread


@dataclass(frozen=True)
class Cache(Format):
    """``keys``: whether groups lie along tokens; ``group`` of them, 0 for all."""

    bits: int
    group: int
    keys: bool
    description = "KV cache: keys in groups of tokens per channel, values in groups of channels per token"
    source = "Liu et al., KIVI, arXiv:2402.02750, section 3"
    spelling = "keyB[-gN]|valueB[-gN]"
    pattern = re.compile(r"(?P<part>key|value)(?P<bits>[2-8])(?:-g(?P<group>[1-9][0-9]{0,4}))?")
    examples = ("key2-g32", "value2-g32", "key4-g32", "value4-g32", "key8-g32", "value8")

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0], int(found["bits"]), int(found["group"] or 0), found["part"] == "key")

    def layout(self, rows: int, k: int) -> tuple[Section, ...]:
        lanes = (k, rows) if self.keys else (rows, k)
        shape = groups_shape(*lanes, self.group)
        return Section("codes", self.bits, lanes), Section("scales", 16, shape), Section("offsets", 16, shape)

    def encode(self, matrix: Floats) -> Fields:
        lanes = matrix.T if self.keys else matrix
        low, high = (over_groups(f, lanes, self.group) for f in (np.minimum, np.maximum))
        scales, offsets = half((high - low) / (2**self.bits - 1)), half(low)
        scale, offset = (spread(x, lanes.shape, self.group) for x in (safe(from_half(scales)), from_half(offsets)))
        codes = np.clip(np.rint((lanes - offset) / scale), 0, 2**self.bits - 1).astype(np.int64)
        return {"codes": codes, "scales": scales, "offsets": offsets}

    def decode(self, fields: Fields, rows: int, k: int) -> Floats:
        lanes = fields["codes"].shape
        scale, offset = (spread(from_half(fields[x]), lanes, self.group) for x in ("scales", "offsets"))
        found = np.asarray(fields["codes"] * scale + offset)
        return found.T if self.keys else found


FORMATS = (Cache,)
