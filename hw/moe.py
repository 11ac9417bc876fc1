"""Fused experts on a GPU: routed rows, padded to tiles, through two grouped GEMMs.

Each of T tokens goes to k of E experts; expert e gets n_e rows, which a library sorts and pads to tiles of
bm rows. On the busiest of ep devices, with E/ep experts of its own:

    balanced       n_e = T·k/E, to one row (the rows of the fraction are spread over the experts)
    imbalance α    n_e ∝ x_e, where x is drawn with density x^−α from [1, 0.8·T], or [0.01, 2] where T·k ≤ E;
                   rounded, at most T; the rows that rounding leaves over go one each to empty experts
    busiest rank   the same law, tilted by e^{θx} until its divergence from the original, per expert, is
                   D/g, where g = E/ep, D = z²/2 + (ln ep − z²/2)/g and z is the normal score of the largest
                   of ep (ln ep is Chernoff's bound on one in ep; z²/2 what a sum of many reaches)

    active = Σ P(n_e > 0)      tiles = Σ ⌈n_e/bm⌉      (sums are over 32 quantiles of x, not over experts)

The two GEMMs, (2·)inter × hidden and hidden × inter, run one after the other. With w = max(1, tiles ·
⌈N/bn⌉ / P) waves on P multiprocessors, busy = min(1, tiles · ⌈N/bn⌉ / P), kk = K up to the tile's step in
depth, and rows = min(bm, rows/tile):

    work     max(w · 2·bm·bn·kk / (rate_share · rate/P),  w · (rows+bn)·kk·bytes / (load_share · port))
    stream   t + √(t · dram_tail), t = reads·N·K·bytes / min(stream_share · DRAM, busy·P·load_share·port);
             reads = active, or Σ tiles_e / max(group, P·bn/N) where an expert's weights outgrow half of L2
    gemm     max(work, stream) + (1 − overlap) · min(work, stream)

around them, launches and sorting (``overhead_s``), and what every routed row costs: ``row_s`` each, and its
traffic between the kernels at the GEMM's share of DRAM where L2 does not hold it (routed rows of experts that
are elsewhere are zeroed and summed too, unless ``own_rows``). A K that is no multiple of 16 elements cannot
be loaded 16 bytes at a time: 8 times as many loads. Everything else is inherited from the card's GEMM.

Sources: vLLM, model_executor/layers/fused_moe (moe_align_block_size, default tiles, tuned tiles, one tile
per pair where T·k·4 ≤ E); popularity: NVIDIA aiconfigurator, collector/helper.py; tilting: Cramér's theorem.
The constants are fitted by ``python -m tokenfab.validation.moe``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .card import Card
from .gemm import LOAD_BYTES_PER_CLOCK, PANEL_SHARE, GemmConstants

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Tile = tuple[int, int, int, int]

POINTS = 32
"""Quantiles of the popularity of experts, denser towards the popular ones."""
NAIVE_OVERHEAD = 0.75
"""Six of eight kernels are left where rows need no sorting."""
ALIGNED = 16
"""Elements that K must be a multiple of to be loaded 16 bytes at a time."""
UNALIGNED = 8.0
"""Loads of one 16-bit element in place of one of 16 bytes."""
TILTS = 6
"""Newton steps for the busiest device; more change no estimate by a thousandth."""
STEEPEST = 1e3
CHUNK = 1024
"""Shapes worked on at once, so that intermediate arrays stay in the processor's cache."""


@dataclass(frozen=True)
class MoeKernels:
    """Facts of a library's fused-experts kernels, not fitted.

    ``tiles``: rows, columns, depth of a step, and row tiles that share a panel of weights. Each is used
    up to ``up_to``, in tokens (``by`` "tokens"), tokens per expert of the device ("experts") or routed rows
    per expert ("rows"). ``tuned``: tiles of which the fastest is used for shapes that were measured once.
    ``naive``: pairs are not sorted, each has a tile, while there are this many times fewer than experts, on
    one device (0: always sorted). ``own_rows``: rows of other devices' experts cost nothing. ``pad``:
    inter is padded to a multiple of this.
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
    stream_share: float
    overlap: float


BOUNDS: dict[str, tuple[float, float, str]] = {
    "overhead_s": (5e-6, 2e-4, "launches, routing and sorting, whatever the size"),
    "row_s": (1e-12, 1e-7, "routing, sorting, activation and sum of one routed row, beyond its traffic"),
    "rate_share": (0.02, 1.0, "share of the matrix rate that the main loop reaches"),
    "load_share": (0.05, 1.0, "share of its port to L2 that one multiprocessor reaches"),
    "stream_share": (0.1, 1.0, "share of the DRAM bandwidth at which weights arrive"),
    "overlap": (0.01, 1.0, "share of the shorter of work and stream that hides behind the longer"),
}
"""Bounds in the constants' units, and meaning."""
assert tuple(BOUNDS) == tuple(f.name for f in fields(MoeConstants))

INF = float("inf")
TUNED = ((16, 64, 128, 1), (32, 128, 128, 1), (64, 128, 64, 16), (64, 256, 64, 16), (128, 128, 64, 16),
         (128, 256, 64, 16))  # fmt: skip
"""Tiles that vLLM's tuned files choose from."""
TRITON_0_14 = MoeKernels(((16, 32, 64, 1), (64, 64, 32, 8)), (1, INF), "experts", TUNED, naive=4)
"""vLLM 0.14, 16-bit."""
TRITON_0_24 = MoeKernels(
    ((16, 64, 128, 1), (32, 64, 128, 1), (32, 128, 64, 1), (64, 128, 64, 1), (128, 128, 64, 16)),
    (32, 64, 96, 512, INF), "tokens", TUNED, naive=4,
)  # fmt: skip
"""vLLM 0.24, 16-bit."""
TRITON_FP8_BLOCK = MoeKernels(((16, 128, 128, 1), (64, 128, 128, 32)), (64, INF), naive=4)
"""vLLM 0.24, weights and activations of 8 bits with a scale per 128 × 128."""
CUTLASS_FP8_BLOCK = MoeKernels(((64, 128, 128, 16),), (INF,), own_rows=True)
"""FlashInfer's grouped GEMM, scales per block."""
CUTLASS_FP8 = MoeKernels(((128, 16, 128, 1),), (INF,), own_rows=True)
"""FlashInfer's grouped GEMM, one scale per tensor; the columns are those of swapped operands."""
MARLIN = MoeKernels(
    ((8, 256, 64, 1), (16, 128, 64, 1), (32, 128, 64, 1), (48, 128, 64, 1), (64, 128, 64, 1)),
    (0.9 * 8, 0.9 * 16, 0.9 * 32, 0.9 * 48, INF), "rows",
)  # fmt: skip
"""4-bit weights, 16-bit arithmetic: the smallest tile that its rows fill to nine tenths."""
TRITON_MXFP4 = MoeKernels(
    ((16, 256, 128, 8), (32, 256, 128, 8), (64, 256, 128, 8), (128, 256, 128, 8)), (8, 16, 32, INF), "rows",
    own_rows=True, pad=64,
)  # fmt: skip
"""OpenAI's Triton kernels, 4-bit weights, 16-bit arithmetic."""


def route(
    tokens: Array, experts: Array, top_k: Array, ep: Array, imbalance: Array, *, lumped: bool = False
) -> tuple[Array, Array]:
    """Rows per expert on the busiest device, and how many experts get that many: (POINTS + 1, N) each, from (N,).

    ``lumped``: the rows that rounding leaves over all go to the busiest device, as in the benchmark of
    vLLM 0.14, and not evenly to all.
    """
    mean, local = tokens * top_k / experts, experts / ep
    v = (np.arange(POINTS)[:, None] + 0.5) / POINTS
    density = 2 * (1 - v) / POINTS  # of quantiles 1 − (1 − v)²
    rows = np.repeat(np.floor(mean)[None], POINTS, axis=0)
    more = mean - rows[0]  # share of the experts that get one row more than the others
    extra = rows[0] + 1
    weight = density * (1 - more)
    uneven = np.flatnonzero(imbalance > 0)
    if uneven.size:
        t, average = tokens[uneven], mean[uneven]
        x = _popular(1 - (1 - v) ** 2, t, average > 1, imbalance[uneven])
        n = np.minimum(np.rint(average * x / (density * x).sum(0)), t)
        left = average - (density * n).sum(0)
        w = _busiest(density, x / x[-1], ep[uneven], local[uneven])
        empty = (w * (n < 1)).sum(0)
        first = np.clip(left * (ep[uneven] if lumped else 1), 0.0, empty)
        rest = np.minimum(left, np.maximum(left - empty, 0.0))
        n *= np.maximum(1 + rest / np.maximum((w * n).sum(0), 1e-9), 0.0)
        rows[:, uneven], weight[:, uneven], more[uneven], extra[uneven] = n, w, first, 1.0
    weight = np.where(rows > 0, weight * local, 0.0)
    more = more * local
    more += np.maximum(1 - (weight * rows).sum(0) - more * extra, 0.0) / extra  # at least one row
    return np.concatenate([rows, extra[None]]), np.concatenate([weight, more[None]])


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
    from the call before. ``lumped``: see :func:`route`. Raises ``InputError`` for a size that is not positive,
    more experts per token than there are, devices that outnumber experts, or a negative imbalance.
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
    seconds = np.empty(sizes.shape[1])
    for start in range(0, sizes.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        seconds[part] = _chunk(
            sizes[:, part],
            card,
            gemm_constants,
            moe_constants,
            kernels,
            rate or card.matrix_flops,
            widths,
            warm,
            lumped,
        )
    return seconds.reshape(shape)


def _popular(quantile: Array, tokens: Array, many: npt.NDArray[np.bool_], exponent: Array) -> Array:
    """Popularity at each quantile (POINTS, 1), not normalised: (POINTS, N)."""
    low, high = np.where(many, 1.0, 0.01), np.where(many, np.maximum(0.8 * tokens, 1 + 1e-9), 2.0)
    power = 1 - np.where(np.abs(exponent - 1) < 1e-3, 1.001, exponent)
    a, b = low**power, high**power
    return np.asarray((a + (b - a) * quantile) ** (1 / power))


def _busiest(density: Array, score: Array, ep: Array, local: Array) -> Array:
    """Weights of the quantiles (POINTS, N) on the busiest device, which sum to 1 over them."""
    sizes, back = np.unique(ep, return_inverse=True)
    half = np.array(
        [max(NormalDist().inv_cdf((s - 0.375) / (s + 0.25)), 0.0) ** 2 / 2 if s > 1 else 0.0 for s in sizes]
    )
    normal = half[back]
    need = np.clip((normal + (np.log(ep) - normal) / local) / local, 1e-12, -0.9 * np.log(density[-1, 0]))
    spread = (density * score**2).sum(0) - (density * score).sum(0) ** 2
    tilt = np.sqrt(2 * need / np.maximum(spread, 1e-12))
    for _ in range(TILTS):  # Newton: the divergence grows by tilt × variance
        e = density * np.exp(tilt * (score - 1))
        total = e.sum(0)
        p = e / total
        first = (p * (score - 1)).sum(0)
        variance = (p * (score - 1) ** 2).sum(0) - first**2
        short = need - (tilt * first - np.log(total))
        tilt = np.clip(tilt + short / np.maximum(tilt * variance, 1e-12), tilt / 3, tilt * 3)
        tilt = np.minimum(tilt, STEEPEST)
    return np.asarray(p)


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
        bm, bn, step, group = tile
        per_expert = np.ceil(rows[:, at] / bm)
        tiles = np.where(naive[at], pairs[at], (per_expert * count[:, at]).sum(0))
        filled = np.minimum(mine[at] / tiles, bm)
        total = np.zeros(at.size)
        for n, k in ((ups[at] * inter[at], hidden[at]), (hidden[at], inter[at])):
            kk = np.ceil(k / step) * step
            per_sm = tiles * np.ceil(n / bn) / card.sms
            waves, busy = np.maximum(per_sm, 1.0), np.minimum(per_sm, 1.0)
            compute = waves * (2 * bm * bn * card.sms / (rate * c.rate_share)) * kk
            load = waves * (filled * widths[0] + bn * widths[1]) * kk / port * np.where(k % ALIGNED, UNALIGNED, 1.0)
            together = np.maximum(group, card.sms * bn / n)
            again = (np.maximum(per_expert / together, 1.0) * count[:, at]).sum(0)
            once = naive[at] | (n * k * widths[1] <= PANEL_SHARE * card.l2_bytes)
            read = np.where(once, active[at], again) * n * k * widths[1] * (missing[at] if warm else 1.0)
            stream = read / np.minimum(card.dram_bytes_s * c.stream_share, busy * card.sms * port)
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
