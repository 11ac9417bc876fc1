"""Fused experts on a GPU: routed rows, padded to tiles, through two grouped GEMMs.

:mod:`tokenfab.hw.routing` says how many rows n_e each expert of the busiest device gets. A library sorts
them by expert and pads them to tiles of bm rows, Σ ⌈n_e/bm⌉ in all. The two GEMMs, hidden to (2·)inter and
inter to hidden, run one after the other. One with N columns of depth K, in tiles of bm × bn and steps of
depth that make K up to kk, needs max(1, b) waves on P multiprocessors of rate/P FLOP/s and a port of 64 B/clk
each, b = tiles·⌈N/bn⌉/P; a tile has r rows that are not padding:

    compute  waves · 2·bm·bn·kk / (rate_share · rate/P)
    load     waves · (r·(1 + gather·away) + bn)·kk·bytes / (load_share · port) · [K % 16] 8
             away = max(0, 1 − L2/A), A: bytes that the r rows are gathered from
    stream   t + √(t · dram_tail), t = active·K·N·bytes / min(DRAM, min(1, b)·P·load_share·port)
    gemm     max(compute, load, stream) + (1 − overlap) · min(max(compute, load), stream)
    time     overhead + row_s·R + traffic(R)/(dram_share · DRAM) + gemm₁ + gemm₂

R: routed rows T·k, also those of experts that are elsewhere (they are zeroed and summed too) unless
``own_rows``; traffic(R): what they write and read between the kernels, where L2 does not hold it. Padding
is not loaded, but computed. A K that is no multiple of 16 elements is loaded by the element, not 16 bytes at
a time. dram_share, dram_tail and the share of L2 that keeps data come from the card's GEMM constants.

Sources: vLLM, model_executor/layers/fused_moe (moe_align_block_size; default and tuned tiles; a tile for each
pair where 4·T·k ≤ E); vectorised loads: Triton specialises integer arguments that 16 divides.
The constants are fitted by ``python -m tokenfab.validation.moe``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .card import Card, constants_of, library_of
from .gemm import LOAD_BYTES_PER_CLOCK, GemmConstants
from .routing import route
from .spec import Device

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Tile = tuple[int, int, int]

NAIVE_OVERHEAD = 0.75
"""Six of eight kernels are left where rows need no sorting."""
ALIGNED = 16
"""Elements that K must be a multiple of to be loaded 16 bytes at a time."""
NARROW = 4.5
"""Bits of a weight, its scale included, up to which 4-bit kernels take it."""
UNALIGNED = 8.0
"""Loads of one 16-bit element in place of one of 16 bytes."""
CHUNK = 4096
"""Shapes worked on at once, so that intermediate arrays stay in the processor's cache."""


@dataclass(frozen=True)
class MoeKernels:
    """Facts of a library's fused-experts kernels, not fitted.

    ``tiles``: rows, columns and depth of a step. Each is used up to ``up_to``, in tokens (``by`` "tokens"),
    tokens per expert of the device ("experts") or routed rows per expert ("rows"). ``tuned``: tiles of which
    the fastest is used for shapes that the library was tuned for. ``naive``: pairs are not sorted, each has a
    tile, while there are this many times fewer than experts, on one device (0: always sorted). ``own_rows``:
    rows of other devices' experts cost nothing. ``pad``: inter is padded to a multiple of this.
    """

    tiles: tuple[Tile, ...]
    up_to: tuple[float, ...]
    by: str = "tokens"
    tuned: tuple[Tile, ...] = ()
    naive: float = 0
    own_rows: bool = False
    pad: int = 1


@dataclass(frozen=True)
class MoeConstants:
    """What is fitted per kernel and architecture; meaning and bounds in :data:`BOUNDS`."""

    overhead_s: float
    row_s: float
    rate_share: float
    load_share: float
    gather: float
    overlap: float


BOUNDS: dict[str, tuple[float, float, str]] = {
    "overhead_s": (5e-6, 2e-4, "launches, routing and sorting, whatever the size"),
    "row_s": (1e-12, 1e-7, "routing, sorting, activation and sum of one routed row, beyond its traffic"),
    "rate_share": (0.02, 1.0, "share of the matrix rate that the main loop reaches"),
    "load_share": (0.05, 1.0, "share of its port to L2 that one multiprocessor reaches"),
    "gather": (1e-3, 10.0, "extra time to load a row of activations that L2 does not hold, over one that it does"),
    "overlap": (0.01, 1.0, "share of the shorter of work and stream that hides behind the longer"),
}
"""Bounds in the constants' units, and meaning."""
assert tuple(BOUNDS) == tuple(f.name for f in fields(MoeConstants))

INF = float("inf")
TUNED = ((16, 64, 128), (32, 128, 128), (64, 128, 64), (64, 256, 64), (128, 128, 64),
         (128, 256, 64))  # fmt: skip
"""Tiles that vLLM's tuned files choose from."""
TRITON_0_14 = MoeKernels(((16, 32, 64), (64, 64, 32)), (1, INF), "experts", TUNED, naive=4)
"""vLLM 0.14, 16-bit."""
TRITON_0_24 = MoeKernels(
    ((16, 64, 128), (32, 64, 128), (32, 128, 64), (64, 128, 64), (128, 128, 64)),
    (32, 64, 96, 512, INF), "tokens", TUNED, naive=4,
)  # fmt: skip
"""vLLM 0.24, 16-bit."""
TRITON_FP8_BLOCK = MoeKernels(((16, 128, 128), (64, 128, 128)), (64, INF), naive=4)
"""vLLM 0.24, weights and activations of 8 bits with a scale per 128 × 128."""
CUTLASS_FP8_BLOCK = MoeKernels(((64, 128, 128),), (INF,), own_rows=True)
"""FlashInfer's grouped GEMM, scales per block."""
CUTLASS_FP8 = MoeKernels(((256, 16, 128),), (INF,), own_rows=True)
"""FlashInfer's grouped GEMM, one scale per tensor. Its tile was not looked up but tried: 256 rows, narrow columns."""
MARLIN = MoeKernels(
    ((8, 256, 64), (16, 128, 64), (32, 128, 64), (48, 128, 64), (64, 128, 64)),
    (0.9 * 8, 0.9 * 16, 0.9 * 32, 0.9 * 48, INF), "rows",
)  # fmt: skip
"""4-bit weights, 16-bit arithmetic: the smallest tile that its rows fill to nine tenths."""
TRITON_MXFP4 = MoeKernels(
    ((16, 256, 128), (32, 256, 128), (64, 256, 128), (128, 256, 128)), (16, 32, 64, INF), "rows",
    own_rows=True, pad=64,
)  # fmt: skip
"""OpenAI's Triton kernels, 4-bit weights, 16-bit arithmetic."""

LIBRARIES = {
    "triton-0.14": TRITON_0_14, "triton-0.24": TRITON_0_24, "triton-8bit-block": TRITON_FP8_BLOCK, "marlin": MARLIN,
}  # fmt: skip
"""By the name that ``[kernels.experts] library`` of a device file gives."""


def moe_kernels(device: Device, bits: float = 16, weight_bits: float = 16) -> tuple[MoeConstants, MoeKernels]:
    """Constants and library for arithmetic of ``bits`` on weights of ``weight_bits``.

    The 16-bit ones where ``device`` has no others. Raises ``InputError`` for what its file lacks.
    """
    name = kernels_name(bits, weight_bits)
    family = name if name in device.kernels else "experts"
    return constants_of(device, family, MoeConstants), library_of(device, family, LIBRARIES)


def kernels_name(bits: float, weight_bits: float) -> str:
    """Section of a device file with the kernels for arithmetic of ``bits`` on weights of ``weight_bits``."""
    return "experts_8bit" if bits <= 8 else "experts_4bit" if weight_bits <= NARROW else "experts"


def moe_bound(
    tokens: Array,
    hidden: float,
    inter: float,
    experts: float,
    top_k: float,
    card: Card,
    *,
    rate: float,
    weight_bits: float,
    gated: bool,
    imbalance: float = 0.0,
) -> tuple[Array, Array]:
    """Seconds of the arithmetic at ``rate`` FLOP/s, and of reading the weights of the experts that have rows."""
    sizes = np.broadcast_arrays(tokens, *(np.float64(x) for x in (experts, top_k, 1, imbalance)))
    weights = hidden * inter * (3 if gated else 2)
    active = route(*sizes)[1].sum(0)
    return 2 * tokens * top_k * weights / rate, active * weights * weight_bits / 8 / card.dram_bytes_s


def moe_time(
    tokens: npt.ArrayLike,
    hidden: npt.ArrayLike,
    inter: npt.ArrayLike,
    experts: npt.ArrayLike,
    top_k: npt.ArrayLike,
    card: Card,
    gemm_constants: GemmConstants,
    moe_constants: MoeConstants,
    *,
    kernels: MoeKernels = TRITON_0_24,
    gated: npt.ArrayLike = True,
    bits: float = 16,
    weight_bits: float | None = None,
    ep: npt.ArrayLike = 1,
    imbalance: npt.ArrayLike = 0.0,
    tuned: npt.ArrayLike = False,
    rate: float | None = None,
    warm: bool = False,
    lumped: bool = False,
) -> Array:
    """Seconds of the fused experts of one layer, on the busiest of ``ep`` devices; all arrays broadcast.

    ``inter``: width of an expert on this device (divided by the tensor parallel size). ``experts``: of the
    layer, on all devices. ``gated``: the first GEMM is twice as wide. ``bits`` of activations,
    ``weight_bits`` of weights (as activations unless given); ``rate``: FLOP/s of the arithmetic (the card's
    16-bit rate unless given). ``imbalance``: exponent of the popularity of experts, 0 for balanced.
    ``tuned``: the library was tuned for this shape. ``warm``: weights that fit in L2 are still there
    from the call before. ``lumped``: see :func:`tokenfab.hw.routing.route`. Raises ``InputError`` for a size
    that is not positive, more experts per token than there are, devices that outnumber experts, or a negative
    imbalance.
    """
    given = (tokens, hidden, inter, experts, top_k, ep, imbalance, gated, tuned)
    arrays = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in given))
    shape = arrays[0].shape
    sizes = np.stack([x.ravel() for x in arrays])
    if not (np.all(sizes[:6] > 0) and np.all(np.isfinite(sizes))):
        raise InputError("experts: tokens, hidden, inter, experts, top_k and ep must be positive")
    if np.any(sizes[4] > sizes[3]) or np.any(sizes[5] > sizes[3]) or np.any(sizes[6] < 0):
        raise InputError("experts: top_k and ep must not exceed the experts, and imbalance not be negative")
    widths = bits / 8, (bits if weight_bits is None else weight_bits) / 8
    rate = rate or card.matrix_flops
    seconds = np.empty(sizes.shape[1])
    for start in range(0, sizes.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        seconds[part] = _chunk(
            sizes[:, part], card, gemm_constants, moe_constants, kernels, rate, widths, warm, lumped
        )  # fmt: skip
    return seconds.reshape(shape)


def _chunk(
    sizes: Array,
    card: Card,
    g: GemmConstants,
    c: MoeConstants,
    kernels: MoeKernels,
    rate: float,
    widths: tuple[float, float],
    warm: bool,
    lumped: bool,
) -> Array:
    """The formulas of the module text over shapes (9, N)."""
    tokens, hidden, inter, experts, top_k, ep, imbalance, gated, tuned = sizes
    inter = np.ceil(inter / kernels.pad) * kernels.pad
    ups = 1 + (gated > 0)
    rows, count = route(tokens, experts, top_k, ep, imbalance, lumped=lumped)
    pairs, mine = tokens * top_k, (rows * count).sum(0)
    naive = (kernels.naive > 0) & (ep == 1) & (pairs * kernels.naive <= experts)
    active = np.where(naive, pairs, count.sum(0))

    passed = mine if kernels.own_rows else pairs
    kept = max(card.l2_bytes * g.cache_share, 1.0)
    touched = active * hidden * inter * (ups + 1) * widths[1] + passed * (hidden + 2 * inter) * 2
    missing = np.clip((touched - kept) / (0.5 * kept), 0.0, 1.0)
    # First GEMM out, activation in and out, second GEMM out, sum in; tokens in and out. All in 16 bits.
    moved = 2 * (passed * (2 * hidden + (2 * ups + 1) * inter) + 2 * tokens * hidden)
    fixed = c.overhead_s * np.where(naive, NAIVE_OVERHEAD, 1.0)
    around = fixed + c.row_s * passed + moved * missing / (card.dram_bytes_s * g.dram_share)

    port = LOAD_BYTES_PER_CLOCK * card.clock_hz * c.load_share

    def gemms(at: Index, tile: Tile) -> Array:
        bm, bn, step = tile
        of_expert = rows.take(at, axis=1)
        of_expert *= 1 / bm
        np.ceil(of_expert, out=of_expert)
        of_expert *= count.take(at, axis=1)
        tiles = np.where(naive[at], pairs[at], of_expert.sum(0))
        filled = np.minimum(mine[at] / tiles, bm)
        total = np.zeros(at.size)
        for n, k, held in ((ups[at] * inter[at], hidden[at], tokens[at]), (hidden[at], inter[at], passed[at])):
            kk = np.ceil(k / step) * step
            per_sm = tiles * np.ceil(n / bn) / card.sms
            waves, busy = np.maximum(per_sm, 1.0), np.minimum(per_sm, 1.0)
            compute = waves * (2 * bm * bn * card.sms / (rate * c.rate_share)) * kk
            away = np.maximum(1 - card.l2_bytes / (held * k * widths[0]), 0.0)
            loaded = filled * widths[0] * (1 + c.gather * away) + bn * widths[1]
            load = waves * loaded * kk / port * np.where(k % ALIGNED, UNALIGNED, 1.0)
            read = active[at] * n * k * widths[1] * (missing[at] if warm else 1.0)
            stream = read / np.minimum(card.dram_bytes_s, busy * card.sms * port)
            stream += np.sqrt(stream * g.dram_tail_s)
            work = np.maximum(compute, load)
            total += np.maximum(work, stream) + (1 - c.overlap) * np.minimum(work, stream)
        return total

    by = {"tokens": tokens, "experts": tokens * ep / experts, "rows": pairs / experts}[kernels.by]
    which = np.searchsorted(np.array(kernels.up_to), by)
    best = (tuned > 0) & (len(kernels.tuned) > 0)
    seconds = np.full(tokens.size, INF)
    for tile, used in [
        *((t, ~best & (which == i)) for i, t in enumerate(kernels.tiles)),
        *((t, best) for t in kernels.tuned),
    ]:
        at = np.flatnonzero(used)
        if at.size:
            seconds[at] = np.minimum(seconds[at], gemms(at, tile))
    return np.asarray(seconds + around)
