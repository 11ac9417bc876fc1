"""Kernels of one set of weights over many batch sizes: each size computed once, then looked up.

A sweep asks for the same few weight matrices, and experts, at a million points. Up to :data:`EXACT` rows every
whole m has an entry of its own, filled when first asked for; beyond, m lies between geometric nodes and time
between theirs on a line: so large a result has many waves of tiles, and time is nearly linear in m.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .card import Card
from .gemm import Array, GemmConstants, GemmKernels, Index, gemm_time
from .moe import MoeConstants, MoeKernels, moe_bound, moe_time

EXACT = 8192
"""Largest m with an entry of its own."""
PER_OCTAVE = 64
"""Nodes from one power of two to the next, beyond."""
OCTAVES = 60
"""Beyond EXACT·2^60 rows, time goes on in proportion."""


_BEYOND = EXACT * 2.0 ** (np.arange(1, PER_OCTAVE * OCTAVES + 1) / PER_OCTAVE)
NODES = np.concatenate([np.arange(1.0, EXACT + 1), np.round(_BEYOND)])
"""Sizes that have an entry."""

Place = tuple[npt.NDArray[np.intp], Array | None]
"""Index into :data:`NODES` of sizes, and how far they are on to the next node; ``None``: none is between nodes."""


def place(m: Array) -> Place:
    """Where each m ≥ 1 is among the nodes."""
    if not m.size or m.max() <= EXACT:
        return np.ceil(m).astype(np.intp) - 1, None
    above = EXACT - 1 + np.floor(PER_OCTAVE * np.log2(np.maximum(m, EXACT) / EXACT))
    index = np.minimum(np.where(m <= EXACT, np.ceil(m) - 1, above).astype(np.intp), NODES.size - 2)
    left, right = NODES[index], NODES[index + 1]
    return index, np.where(m > EXACT, (m - left) / (right - left), 0.0)


class SizeTable:
    """Seconds, and an index that says what bounds them, by m; safe to share between threads."""

    def __init__(self, compute: Callable[[Array], tuple[Array, Index]]) -> None:
        self._compute = compute
        self._seconds = np.full(NODES.size, np.nan)
        self._bound = np.zeros(NODES.size, np.intp)

    def __call__(self, m: Array) -> tuple[Array, Index]:
        """Seconds and index of each m ≥ 1, a fraction of a row being a row."""
        return self.at(place(m))

    def at(self, where: Place) -> tuple[Array, Index]:
        """The same of sizes that were looked up before; tables of all weights share their places."""
        index, beyond = where
        self._fill(index)
        seconds = self._seconds[index]
        if beyond is not None:
            self._fill(index + (beyond > 0))
            # Where nothing is beyond the left node its right one may not be filled in.
            right = np.where(beyond > 0, self._seconds[index + 1], seconds)
            seconds = seconds + (right - seconds) * beyond
        return seconds, self._bound[index]

    def _fill(self, index: npt.NDArray[np.intp]) -> None:
        absent = np.isnan(self._seconds[index])
        if absent.any():
            # Marked and listed, which sorts them too: np.unique would import numpy.ma, for as long as a table takes.
            asked = np.zeros(NODES.size, bool)
            asked[index[absent]] = True
            new = np.flatnonzero(asked)
            # The index first: whoever sees the time filled in may read it.
            seconds, self._bound[new] = self._compute(NODES[new])
            self._seconds[new] = seconds


@lru_cache(maxsize=512)
def gemm_table(
    n: float, k: float, card: Card, constants: GemmConstants, kernels: GemmKernels,
    *, rate: float, bits: float = 16, weight_bits: float = 16, out_bits: float = 16, batch: float = 1,
) -> SizeTable:  # fmt: skip
    """GEMMs of these weights by m, index into :data:`.gemm.LIMITS`; shared by everyone who asks.

    Arguments as in :func:`.gemm.gemm_time`.
    """

    def compute(m: Array) -> tuple[Array, Index]:
        return gemm_time(
            m, n, k, card, constants, kernels,
            rate=rate, bits=bits, weight_bits=weight_bits, out_bits=out_bits, batch=batch,
        )  # fmt: skip

    return SizeTable(compute)


@lru_cache(maxsize=128)
def experts_table(
    hidden: float, inter: float, experts: float, top_k: float, card: Card, gemm_constants: GemmConstants,
    constants: MoeConstants, kernels: MoeKernels, *, rate: float, bits: float, weight_bits: float, gated: bool,
    imbalance: float = 0.0,
) -> SizeTable:  # fmt: skip
    """Fused experts by tokens, 1: DRAM is slower than the arithmetic, 0: it is not.

    Arguments as in :func:`.moe.moe_time`.
    """

    def compute(tokens: Array) -> tuple[Array, Index]:
        seconds = moe_time(
            tokens, hidden, inter, experts, top_k, card, gemm_constants, constants,
            kernels=kernels, rate=rate, bits=bits, weight_bits=weight_bits, gated=gated, imbalance=imbalance,
        )  # fmt: skip
        arithmetic, stream = moe_bound(
            tokens, hidden, inter, experts, top_k, card,
            rate=rate, weight_bits=weight_bits, gated=gated, imbalance=imbalance,
        )  # fmt: skip
        return np.maximum(seconds, np.maximum(arithmetic, stream)), (stream > arithmetic).astype(np.intp)

    return SizeTable(compute)
