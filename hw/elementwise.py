"""Element-wise kernels of a GPU: norms, rotary embedding, gated activations, adds, copies.

A kernel streams its operands, or works row by row: one block of threads per token, two of which share
a multiprocessor, so that rows pass in whole waves:

    time   = launch + max(waves · (row + row bytes / port), bytes / (share · DRAM))
    waves  = ⌈rows / (2 · multiprocessors)⌉, none for kernels that work on flat arrays
    port   = row_bytes_per_clock · clock, of one block

Serving engines' norms and activations load one 16-bit number at a time and reach about half of the DRAM
bandwidth (``row_share``); the rotary embedding reads pairs a half row apart (``rotate_share``); flat
arrays are loaded in wide words (``stream_share``). A norm reads its input twice: for the sum of squares,
and to scale. Constants: ``python -m tokenfab.validation.layers``; kernels: vLLM, csrc/layernorm_kernels.cu,
pos_encoding_kernels.cu, activation_kernels.cu (one block per token, at most 1024 threads).

Between kernels of a layer a large L2 keeps what the one before wrote. Where a file says how much of it
(``cache_share``) and how fast (``cache_speedup``, over DRAM), the share that is still there comes from it:

    held   = min(1, cache_share · L2 / footprint)
    stream = bytes · (held / (cache_speedup · DRAM) + (1 − held) / (share · DRAM))

and the footprint is the operands', half of that for norms and rotary embeddings, which work in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .card import Card, constants_of
from .spec import Device

Array = npt.NDArray[np.float64]

BLOCKS_PER_SM = 2
"""Of 1024 threads on a multiprocessor that holds 2048."""
NORM_PASSES = 1.5
"""Bytes that a norm moves, over its operands read and written once."""


@dataclass(frozen=True)
class ElementwiseConstants:
    """What is fitted per architecture; meaning and bounds in :data:`BOUNDS`."""

    launch_s: float
    row_s: float
    row_bytes_per_clock: float
    stream_share: float
    row_share: float
    rotate_share: float
    cache_share: float = 0.0
    cache_speedup: float = 1.0


BOUNDS: dict[str, tuple[float, float, str]] = {
    "launch_s": (1e-7, 2e-5, "launch, start and end of a kernel"),
    "row_s": (1e-9, 1e-5, "start of a block, its reduction and its end"),
    "row_bytes_per_clock": (0.5, 64.0, "bytes that one block moves per clock"),
    "stream_share": (0.2, 1.0, "share of the DRAM bandwidth of kernels on flat arrays"),
    "row_share": (0.1, 1.0, "share of the DRAM bandwidth of norms and activations"),
    "rotate_share": (0.1, 1.0, "share of the DRAM bandwidth of the rotary embedding"),
}
"""Bounds in the constants' units, and meaning."""
OPTIONAL: dict[str, tuple[float, float, str]] = {
    "cache_share": (0.01, 1.0, "share of L2 that still holds what the kernel before wrote; none where a file has none"),
    "cache_speedup": (1.0, 10.0, "rate of operands that L2 holds, over the DRAM bandwidth"),
}
"""The same of constants that a file may leave out."""
IN_PLACE = frozenset({"norm", "rope"})
"""Kinds that write where they read."""

SHARES = {"norm": "row_share", "activation": "row_share", "rope": "rotate_share"}
"""Operator kinds that work row by row, and their share; all others stream."""


def elementwise_constants(device: Device) -> ElementwiseConstants:
    """The constants of ``device``. Raises ``InputError`` for what its file lacks."""
    return constants_of(device, "elementwise", ElementwiseConstants)


def bandwidth(kind: str, card: Card, c: ElementwiseConstants) -> float:
    """Bytes per second, of operands moved once, that kernels of ``kind`` reach."""
    share: float = getattr(c, SHARES.get(kind, "stream_share"))
    return card.dram_bytes_s * share / (NORM_PASSES if kind == "norm" else 1.0)


def row_time(kind: str, rows: Array, row_bytes: Array | float, card: Card, c: ElementwiseConstants) -> Array:
    """Seconds that ``rows`` tokens of ``row_bytes`` each take in whole waves; zero for kinds that stream."""
    if kind not in SHARES:
        return np.zeros(np.broadcast_shapes(np.shape(rows), np.shape(row_bytes)))
    moved = np.asarray(row_bytes) * (NORM_PASSES if kind == "norm" else 1.0)
    waves = np.ceil(np.asarray(rows) / (BLOCKS_PER_SM * card.sms) - 1e-9)
    return np.asarray(waves * (c.row_s + moved / (c.row_bytes_per_clock * card.clock_hz)))


def stream_time(
    kind: str, moved: npt.ArrayLike, card: Card, c: ElementwiseConstants, reused: float | None = None
) -> Array:
    """Seconds beyond its launch in which a kernel of ``kind`` streams ``moved`` bytes, operands once each.

    ``reused``: footprint over ``moved``; a half for kinds of :data:`IN_PLACE` and one for others unless given.
    """
    operands = np.asarray(moved, np.float64)
    from_dram = operands / bandwidth(kind, card, c)
    if not c.cache_share:
        return np.asarray(from_dram)
    footprint = operands * (reused or (0.5 if kind in IN_PLACE else 1.0))
    held = np.minimum(1.0, c.cache_share * card.l2_bytes / np.maximum(footprint, 1.0))
    passes = NORM_PASSES if kind == "norm" else 1.0
    return np.asarray(held * operands * passes / (c.cache_speedup * card.dram_bytes_s) + (1 - held) * from_dram)


def elementwise_time(
    kind: str, rows: npt.ArrayLike, row_bytes: npt.ArrayLike, card: Card, c: ElementwiseConstants
) -> Array:
    """Seconds of an element-wise kernel of operator ``kind`` over ``rows`` tokens; arrays broadcast.

    ``row_bytes``: operands read and written, once each, per token.
    """
    r, width = np.asarray(rows, np.float64), np.asarray(row_bytes, np.float64)
    return np.asarray(c.launch_s + np.maximum(row_time(kind, r, width, card, c), stream_time(kind, r * width, card, c)))
