"""GEMMs of one weight matrix over many batch sizes: each size computed once, then looked up.

A sweep asks for the same few weight matrices at a million points. Up to :data:`EXACT` rows every whole m has
an entry of its own, filled when first asked for; beyond, m lies between geometric nodes and time between
theirs on a line: so large a C has many waves of tiles, and time is nearly linear in m.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .card import Card
from .gemm import Array, GemmConstants, GemmKernels, Index, gemm_time

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


class GemmTable:
    """Seconds and limit by m for one (n, k) on one card; safe to share between threads."""

    def __init__(
        self, n: float, k: float, card: Card, constants: GemmConstants, kernels: GemmKernels,
        *, rate: float, bits: float, weight_bits: float, out_bits: float, batch: float,
    ) -> None:  # fmt: skip
        self._arguments = (n, k, card, constants, kernels)
        self._options = {"rate": rate, "bits": bits, "weight_bits": weight_bits, "out_bits": out_bits, "batch": batch}
        self._seconds = np.full(NODES.size, np.nan)
        self._limit = np.zeros(NODES.size, np.intp)

    def __call__(self, m: Array) -> tuple[Array, Index]:
        """Seconds and index into :data:`.gemm.LIMITS` of each m ≥ 1, a fraction of a row being a row."""
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
        return seconds, self._limit[index]

    def _fill(self, index: npt.NDArray[np.intp]) -> None:
        new = np.unique(index[np.isnan(self._seconds[index])])
        if new.size:
            # The limit first: whoever sees the time filled in may read it.
            seconds, self._limit[new] = gemm_time(NODES[new], *self._arguments, **self._options)  # type: ignore[arg-type]
            self._seconds[new] = seconds


@lru_cache(maxsize=512)
def gemm_table(
    n: float, k: float, card: Card, constants: GemmConstants, kernels: GemmKernels,
    *, rate: float, bits: float = 16, weight_bits: float = 16, out_bits: float = 16, batch: float = 1,
) -> GemmTable:  # fmt: skip
    """The table of these weights, shared by everyone who asks; arguments as in :func:`.gemm.gemm_time`."""
    return GemmTable(
        n, k, card, constants, kernels, rate=rate, bits=bits, weight_bits=weight_bits, out_bits=out_bits, batch=batch
    )
