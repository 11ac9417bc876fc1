"""GEMM on a GPU: what the best tiled kernel must compute, load, move and write back.

C(m, n) = A(m, k) · B(k, n), a linear layer with weights B. A library cuts C into tiles of bm × bn, one
per thread block, and k into S parts (split-K) where tiles alone would leave multiprocessors idle. With
T = ⌈m/bm⌉·⌈n/bn⌉·S blocks of depth kk = ⌈k/S⌉ (in steps of 32) on P multiprocessors, w waves
(``GemmKernels.quantised``: ⌈T/P⌉, else max(1, T/P)) and a port of 64 B/clk × multicast into each:

    compute  w · 2·bm·bn·kk / (rate/P)
    load     w · (bm+bn)·kk·bytes / r, r = min(load_share · port, l2_share · port · P/busy)
    depth    w · kk · depth_clocks · bytes/2
    dram     t + √(t · dram_tail), t = bytes / min(dram_share · DRAM / beside, busy · load_share · port);
             bytes: operands that are not in L2, re-read per wave where a panel outgrows half of L2;
             beside = (rows held / fewest rows of a tile)^row_fade
    power    t · (1 + (1/sustained − 1) · t/(t + throttle)), t = 2·m·n·k / rate
    fill     w · (bm+bn)·min(kk, pipeline)·bytes / r
    time   = launch + (compute⁸ + load⁸ + depth⁸ + dram⁸ + power⁸)^⅛ + fill
             + writeback · bytes(C) / (dram_share · DRAM) + [S > 1] (split + 4·m·n·S / (split_share · DRAM))

and the estimate is the smallest time over tiles × splits, which a library's heuristic seeks. The eighth
power mean is a maximum with rounded corners: loading, arithmetic and DRAM overlap almost perfectly. C is
written by an epilogue that the main loop does not hide, so it adds; so do the loads that fill the pipeline of
a tile before its first product. A small tile waits for memory's latency at each step, whatever its bytes:
that is its depth. Nothing here is a table of shapes.

Sources: tiles, waves, split-K: NVIDIA, Matrix Multiplication Background User's Guide (tile and wave
quantisation); soft waves: Osama et al., Stream-K, PPoPP 2023; 64 B/clk: NVIDIA A100 white paper (5120 B/clk
over its crossbar); √t: the slowest of many randomly loaded channels is late by the spread of a sum;
pipelines: NVIDIA, CUTLASS, efficient_gemm.md (stages of cp.async; persistent warp-specialised kernels).
``beside``: a tile's operands share the multiprocessor's memory, so that the more rows of A it holds, the fewer bytes of
weights are on their way, and a stream that many loads must keep up gets slower. Rows held: m rounded up to a power of
two between those of the smallest and the tallest tile. Measured times step at 16, 32, 64 and 128 rows.
The constants are fitted by ``python -m tokenfab.validation.gemm``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .card import Card, constants_of, library_of
from .spec import Device

Array = npt.NDArray[np.float64]
Array32 = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]

LOAD_BYTES_PER_CLOCK = 64
"""From L2 into one multiprocessor."""
K_STEP = 32
"""Depth of k that a main loop advances by, in elements; kk is rounded up to it."""
PANEL_SHARE = 0.5
"""Share of L2 that the narrower operand may fill and still be read from DRAM only once."""
PARTIAL_BYTES = 4
"""Split-K keeps its partial sums in fp32."""
LIMITS = ("launch", "compute", "load", "dram", "power", "write", "split")
"""What an estimate can be bound by; :func:`gemm_time` returns indices into this."""
CHUNK = 1024
"""Shapes worked on at once, so that intermediate arrays stay in the processor's cache."""


@dataclass(frozen=True)
class GemmKernels:
    """What a library's kernels look like: facts of its generation, not fitted.

    ``multicast``: blocks of a cluster that share what they load (Hopper's TMA multicast; 1 before).
    ``quantised``: blocks run in whole waves. Hopper's kernels are persistent and come in tiles in steps
    of 8, so that the last wave is as full as the others. ``pipeline``: elements of k that a block loads before
    its first product, its stages times their depth; none where warps of their own load ahead, tile after tile.
    ``up_to``: largest m of each tile, for a
    library that dispatches by m (each tile is used from just above the previous limit); empty: the fastest.
    """

    tiles: tuple[tuple[int, int], ...]
    splits: tuple[int, ...]
    multicast: float
    quantised: bool
    pipeline: float = 0.0
    up_to: tuple[float, ...] = ()


TILES = ((16, 64), (32, 64), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
SPLITS = (1, 2, 3, 4, 6, 8, 16)
CUBLAS_AMPERE = GemmKernels(TILES, SPLITS, multicast=1, quantised=True, pipeline=96)
CUBLAS_HOPPER = GemmKernels(TILES, SPLITS, multicast=2, quantised=False)
CUTLASS_FP8 = GemmKernels(
    ((16, 64), (32, 64), (64, 128), (128, 128)), (1,), multicast=2, quantised=True, up_to=(16, 64, 128, np.inf)
)
"""vLLM's per-tensor 8-bit kernels on Hopper: the tile is chosen by m alone, and k is never split."""
CUBLAS_BLACKWELL = GemmKernels((*TILES, (256, 256)), SPLITS, multicast=2, quantised=False)
"""Two multiprocessors share a tile (NVIDIA, CUTLASS, blackwell_functionality.md: cta_group::2)."""
LIBRARIES = {
    "cublas-ampere": CUBLAS_AMPERE, "cublas-hopper": CUBLAS_HOPPER, "cublas-blackwell": CUBLAS_BLACKWELL,
    "cutlass-hopper": CUTLASS_FP8,
}  # fmt: skip
"""By the name that ``[kernels.gemm] library`` of a device file gives."""


@dataclass(frozen=True)
class GemmConstants:
    """What is fitted per architecture; meaning and bounds in :data:`BOUNDS`."""

    launch_clocks: float
    dram_share: float
    dram_tail_s: float
    load_share: float
    l2_share: float
    depth_clocks: float
    writeback: float
    split_s: float
    split_share: float
    cache_share: float
    sustained: float
    throttle_s: float
    row_fade: float = 0.0


BOUNDS: dict[str, tuple[float, float, str]] = {
    "launch_clocks": (1e3, 1e4, "launch, start and end of one kernel within a CUDA graph"),
    "dram_share": (0.5, 1.0, "share of the DRAM bandwidth that a very long stream reaches"),
    "dram_tail_s": (1e-9, 1e-5, "a stream of t seconds ends √(t × this) late"),
    "load_share": (0.1, 1.0, "share of its port that one multiprocessor reaches when it loads operands"),
    "l2_share": (0.1, 1.0, "share of all ports together that L2 serves when every multiprocessor loads"),
    "depth_clocks": (0.1, 50.0, "clocks that two bytes of k take at least: latency over the loads in flight"),
    "writeback": (0.1, 2.0, "time to write C, over its bytes at the DRAM rate reached; not overlapped"),
    "split_s": (1e-7, 5e-6, "fixed cost of split-K: a second kernel or a cleared buffer, and the wait between"),
    "split_share": (0.2, 10.0, "rate of writing and adding partial sums (mostly in L2), over the DRAM bandwidth"),
    "cache_share": (0.05, 1.0, "share of L2 that keeps operands from one kernel to the next"),
    "sustained": (0.4, 1.0, "share of the rate that the power limit leaves in the long run"),
    "throttle_s": (1e-5, 1e-1, "arithmetic much shorter than this runs at full clock, much longer at the sustained"),
}
"""Bounds in the constants' units, and meaning."""
OPTIONAL: dict[str, tuple[float, float, str]] = {
    "row_fade": (0.001, 0.5, "power of the rows held by which a stream from DRAM is slower; 0 where a file has none"),
}
"""The same of constants that a file may leave out."""
assert (*BOUNDS, *OPTIONAL) == tuple(f.name for f in fields(GemmConstants))


@dataclass(frozen=True)
class EightBit:
    """What 8-bit operands add; meaning and bounds in :data:`EIGHT_BIT_BOUNDS`."""

    rate_share: float
    quantise_row_s: float


EIGHT_BIT_BOUNDS: dict[str, tuple[float, float, str]] = {
    "rate_share": (0.3, 1.0, "share of the 8-bit rate that the kernels reach"),
    "quantise_row_s": (1e-10, 2e-8, "rounding one row of activations, over all places of the card"),
}
"""Bounds in the constants' units, and meaning."""


def gemm_kernels(device: Device) -> tuple[GemmConstants, GemmKernels]:
    """Constants and library of 16-bit GEMMs on ``device``. Raises ``InputError`` for what its file lacks."""
    return constants_of(device, "gemm", GemmConstants), library_of(device, "gemm", LIBRARIES)


def gemm_kernels_8bit(device: Device) -> tuple[EightBit, GemmKernels]:
    """What differs for operands of 8 bits. Raises ``InputError`` for what the file lacks."""
    return constants_of(device, "gemm_8bit", EightBit), library_of(device, "gemm_8bit", LIBRARIES)


def gemm_time(
    m: npt.ArrayLike,
    n: npt.ArrayLike,
    k: npt.ArrayLike,
    card: Card,
    constants: GemmConstants,
    kernels: GemmKernels,
    *,
    rate: float | None = None,
    bits: float = 16,
    weight_bits: float | None = None,
    out_bits: float = 16,
    batch: npt.ArrayLike = 1,
    copies: float | None = None,
) -> tuple[Array, Index]:
    """Seconds of each GEMM, and what bound it as an index into :data:`LIMITS`; shapes broadcast.

    ``rate``: peak FLOP/s of the arithmetic (the card's 16-bit rate unless given). ``bits`` of A,
    ``weight_bits`` of B (as A unless given), ``out_bits`` of C. ``batch`` independent GEMMs share one
    launch. ``copies``: weights of this shape that a benchmark cycles through, which decides whether they
    outlive one another in L2; None: weights come from DRAM. A and C stay in L2 between kernels where they
    fit. Never below the roofline of ``rate`` and the DRAM bandwidth (with ``copies``: of the operands that
    come from DRAM). Inside, float32. Raises ``InputError`` for a size that is not positive.
    """
    arrays = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (m, n, k, batch)))
    shape = arrays[0].shape
    sizes = np.stack([x.ravel() for x in arrays])
    if not np.all(sizes > 0):
        raise InputError("gemm: m, n, k and batch must be positive")
    widths = np.array([bits, bits if weight_bits is None else weight_bits, out_bits]) / 8
    seconds, limit = np.empty(sizes.shape[1]), np.empty(sizes.shape[1], np.intp)
    for start in range(0, sizes.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        seconds[part], limit[part] = _chunk(
            sizes[:, part], card, constants, kernels, rate or card.matrix_flops, widths, copies
        )
    return seconds.reshape(shape), limit.reshape(shape)


def quantise_time(m: npt.ArrayLike, k: npt.ArrayLike, card: Card, constants: GemmConstants, *, row_s: float) -> Array:
    """Seconds of the kernel that rounds 16-bit activations (m, k) to 8 bits with a given scale.

    One block per row: ``row_s`` is the time a block keeps its place, over all places of the card.
    """
    rows = np.asarray(m, np.float64)
    moved = 3.0 * rows * np.asarray(k, np.float64)
    launch = constants.launch_clocks / card.clock_hz
    return np.asarray(launch + row_s * rows + moved / (constants.dram_share * card.dram_bytes_s))


def _chunk(
    sizes: Array,
    card: Card,
    c: GemmConstants,
    kernels: GemmKernels,
    rate: float,
    widths: Array,
    copies: float | None,
) -> tuple[Array, Index]:
    """The formulas of the module text over (tile, split, shape), and the minimum over the first two."""
    f = np.float32
    m, n, k, batch = sizes
    bm, bn = (np.array([t[i] for t in kernels.tiles], f)[:, None, None] for i in (0, 1))
    split = np.array(kernels.splits, f)[None, :, None]
    launch_s = c.launch_clocks / card.clock_hz
    sms, dram = card.sms, card.dram_bytes_s * c.dram_share
    port = LOAD_BYTES_PER_CLOCK * card.clock_hz * kernels.multicast

    # Per shape, in seconds and float64.
    a_bytes, b_bytes, c_bytes = batch * m * k * widths[0], batch * k * n * widths[1], batch * m * n * widths[2]
    touched = a_bytes + b_bytes + c_bytes
    kept = max(card.l2_bytes * c.cache_share, 1.0)
    from_dram = a_bytes * _missing(touched, kept)
    from_dram += b_bytes if copies is None else b_bytes * _missing(touched + (copies - 1) * b_bytes, kept)
    ideal = 2 * batch * m * n * k / rate
    power = ideal * (1 + (1 / c.sustained - 1) * ideal / (ideal + c.throttle_s))
    write = c.writeback * c_bytes / dram
    partial = PARTIAL_BYTES * batch * m * n / (c.split_share * card.dram_bytes_s)

    # From here on float32, in units of each shape's roofline so that eighth powers stay in range.
    unit = np.maximum(np.maximum(ideal, touched / card.dram_bytes_s), 1e-9)
    one = (1 / unit).astype(f)
    m32, n32, k32 = m.astype(f), n.astype(f), k.astype(f)
    rows, columns = np.ceil(m32 / bm), np.ceil(n32 / bn)
    blocks = rows * columns * batch.astype(f)
    # One wave is the most nearly square group of tiles, high × wide; it reads `high` panels of A and `wide` of B.
    together = np.minimum(blocks, f(sms))
    wide = np.clip(np.sqrt(together * (bm / bn)), f(1), columns)
    high = np.clip(together / wide, f(1), rows)
    waves_read = blocks / (high * wide) * (high * (bm * f(widths[0])) + wide * (bn * f(widths[1]))) * k32
    fits = np.minimum(m * widths[0], n * widths[1]) * k <= (PANEL_SHARE * card.l2_bytes or np.inf)
    read = np.maximum(np.where(fits, f(0), waves_read), from_dram.astype(f)) * one

    heights = [t[0] for t in kernels.tiles]
    held = np.clip(2.0 ** np.ceil(np.log2(m)), min(heights), max(heights))
    beside = ((held / min(heights)) ** c.row_fade).astype(f)

    depth = np.ceil(k32 / split * f(1 / K_STEP)) * f(K_STEP)
    per_sm = blocks * split * f(1 / sms)
    busy = np.minimum(per_sm, f(1))
    waves = np.maximum(np.ceil(per_sm) if kernels.quantised else per_sm, f(1))
    filling = waves * (np.minimum(depth, f(kernels.pipeline)) * one)
    waves *= depth * one
    compute = waves * (bm * bn * f(2 * sms / rate))
    load = np.maximum(busy * f(1 / (port * c.l2_share)), f(1 / (port * c.load_share)))
    load *= bm * f(widths[0]) + bn * f(widths[1])
    filling *= load
    load *= waves
    stream = np.maximum(beside * f(1 / dram), f(1 / (sms * port * c.load_share)) / busy)
    stream *= read
    late = stream * (f(c.dram_tail_s) * one)
    stream += np.sqrt(late, out=late)
    total = _eighth(compute)
    total += _eighth(load)
    total += _eighth(stream)
    total += _eighth(waves * f(c.depth_clocks / card.clock_hz * widths[0] / 2))
    total += _eighth((power / unit).astype(f))
    for _ in range(3):
        np.sqrt(total, out=total)
    total += filling
    total += np.where(split > 1, f(c.split_s) * one + split * (partial / unit).astype(f), f(0))

    if kernels.up_to:
        above = np.array((0.0, *kernels.up_to))[:, None, None]
        total = np.where((m > above[:-1]) & (m <= above[1:]), total, f(np.inf))

    flat = total.reshape(-1, m.size)
    best = np.argmin(flat, axis=0)
    at = (best // split.size, best % split.size, np.arange(m.size))
    from_dram_at_least = touched if copies is None else from_dram
    seconds = np.maximum(launch_s + total[at] * unit + write, np.maximum(ideal, from_dram_at_least / card.dram_bytes_s))
    parts = [x[at] * unit for x in (compute, load, stream)]
    splitting = np.where(at[1] > 0, c.split_s, 0.0)
    return seconds, np.argmax(np.stack([np.full(m.size, launch_s), *parts, power, write, splitting]), axis=0)


def _missing(touched: Array, kept: float) -> Array:
    """Share of an operand that has left L2 when ``touched`` bytes were used since: 0 to 1 in between."""
    return np.clip((touched - kept) / (0.5 * kept), 0.0, 1.0)


def _eighth(x: Array32) -> Array32:
    with np.errstate(over="ignore"):  # a hopeless tile; another one wins
        x = x * x
        x *= x
        x *= x
    return x
