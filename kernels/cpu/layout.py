"""How low-bit weights lie in memory, so that one vector instruction serves 16 or 64 outputs at once.

Outputs stand side by side in blocks of 64, and a block's weights lie in the order in which they are used: group by
group along k, so that a product reads one stream. Two layouts:

    dot   lanes of 32 bits are outputs. 64 bytes hold 16 outputs; bits i·b … of byte 4·o + j are weight 4·i + j
          of a run of 32 / b weights (b = 8, 4 or 2 bits of a byte to a weight), unsigned: w + 2^(b-1), or for 1 bit
          (w + 1) / 2. Four such vectors make the block's 64 outputs.
    lut   bytes are outputs, in the order 0, 32, 1, 33, …, and one bit plane at a time. The low nibble of a byte
          is the code of 4 weights (:func:`tokenfab.kernels.lut.codes`), the high nibble that of the next 4.

A scale belongs to one output and one group of k, in binary16 or binary32. Outputs are filled up to a multiple of
64; k is a multiple of the group, as :func:`tokenfab.kernels.lut.quantise` asks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..lut import Quantised, codes

BLOCK = 64
"""Outputs that stand side by side."""
GROUPS = (32, 64, 128)
"""Weights of a row that may share a scale. Sums of one bit plane over more would not fit in 16 bits."""
BITS = (1, 2, 3, 4)
LAYOUTS = ("dot", "lut")
QUAD = 4
"""Weights of one code, and bytes of a lane."""
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Packed:
    """Weights (n, k) laid out for a kernel; :func:`pack` makes them.

    ``data`` (blocks, groups, bytes of a group), ``scales`` (blocks, groups, 64). ``odd``: weights are odd numbers
    (±1 for 1 bit) instead of two's complement. ``quantised`` are the weights they were made of, scales as stored.
    """

    data: Bytes
    scales: npt.NDArray[np.float16] | npt.NDArray[np.float32]
    quantised: Quantised
    group: int
    layout: str

    @property
    def bits(self) -> int:
        return self.quantised.bits

    @property
    def odd(self) -> bool:
        return self.quantised.odd

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs, without what was added."""
        n, k = self.quantised.values.shape
        return n, k

    @property
    def groups(self) -> int:
        return int(self.data.shape[1])

    @property
    def half(self) -> bool:
        """Whether scales are binary16."""
        return self.scales.dtype == np.float16

    @property
    def nbytes(self) -> int:
        """Bytes that a product by one vector reads: weights and scales."""
        return self.data.nbytes + self.scales.nbytes


def stored_bits(bits: int, layout: str) -> int:
    """Bits that a weight takes: its own, but four for three-bit weights in the dot layout."""
    return 4 if bits == 3 and layout == "dot" else bits


def pack(weights: Quantised, layout: str = "dot", half: bool = True) -> Packed:
    """Lay out quantised ``weights`` (n, k).

    ``half``: scales are rounded to binary16, else to binary32. Raises ``InputError`` for a layout, a number of bits
    or a group that no kernel has, for odd weights of more than 1 bit in the dot layout, and for scales beyond
    binary16.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r}; accepted: {', '.join(LAYOUTS)}")
    if weights.bits not in BITS:
        raise InputError(f"{weights.bits} bits: fast kernels are for {BITS[0]} to {BITS[-1]}")
    n, k = weights.values.shape
    count = weights.scales.shape[1]
    if not count or k % count or k // count not in GROUPS:
        raise InputError(f"{k} weights in {count} groups: accepted are groups of {', '.join(map(str, GROUPS))}")
    if layout == "dot" and weights.odd and weights.bits != 1:
        raise InputError("odd weights of more than 1 bit have the lut layout only")
    group = k // count
    with np.errstate(over="ignore"):
        scales = weights.scales.astype(np.float16 if half else np.float32)
    if not np.isfinite(scales).all():
        raise InputError("a scale is beyond binary16; pack with binary32 scales")
    stored = Quantised(weights.values, scales.astype(np.float64), weights.bits, weights.odd)
    more = -n % BLOCK
    values = np.pad(weights.values, ((0, more), (0, 0)), constant_values=int(weights.odd))
    blocks = values.reshape(-1, BLOCK, count, group)
    data = _lut_data(blocks, weights) if layout == "lut" else _dot_data(blocks, weights)
    side = np.pad(scales, ((0, more), (0, 0))).reshape(-1, BLOCK, count).transpose(0, 2, 1)
    return Packed(data, np.ascontiguousarray(side), stored, group, layout)


def _dot_data(blocks: npt.NDArray[np.int64], weights: Quantised) -> Bytes:
    """(blocks, 64, groups, group) → (blocks, groups, bytes)."""
    bits = stored_bits(weights.bits, "dot")
    raised = (blocks + 1) // 2 if weights.odd else blocks + 2 ** (weights.bits - 1)
    b, _, g, group = blocks.shape
    per = 8 // bits
    # block, 4 vectors, 16 outputs, groups, runs, places of a byte, 4 bytes of a lane
    split = raised.reshape(b, 4, 16, g, group // (QUAD * per), per, QUAD).astype(np.uint8)
    joined = np.bitwise_or.reduce(split << (bits * np.arange(per, dtype=np.uint8))[:, None], axis=5)
    return np.ascontiguousarray(joined.transpose(0, 3, 4, 1, 2, 5)).reshape(b, g, -1)


def _lut_data(blocks: npt.NDArray[np.int64], weights: Quantised) -> Bytes:
    """(blocks, 64, groups, group) → (blocks, groups, bytes)."""
    b, _, g, group = blocks.shape
    found = codes(blocks.reshape(-1, QUAD), weights.bits, weights.odd)[::-1]  # lowest bit first
    # planes, blocks, half of the outputs, 32 outputs, groups, pairs of quads, nibbles
    nibbles = found.reshape(weights.bits, b, 2, 32, g, group // (2 * QUAD), 2).astype(np.uint8)
    joined = nibbles[..., 0] | nibbles[..., 1] << 4
    return np.ascontiguousarray(joined.transpose(1, 4, 5, 0, 3, 2)).reshape(b, g, -1)
