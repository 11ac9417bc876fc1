"""draft"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .card import Card
from .gemm import LOAD_BYTES_PER_CLOCK, PANEL_SHARE, GemmConstants

Array = npt.NDArray[np.float64]

POINTS = 32
"""Quantiles of the popularity of experts that stand for all of them."""
CHUNK = 512


@dataclass(frozen=True)
class MoeKernels:
    """Facts of a library's fused-experts kernels, not fitted.

    ``tiles``: (rows, columns, row tiles that share a panel of weights); each is used up to as many
    tokens as ``up_to`` says, times the experts of the device where ``per_expert``. ``naive``: without expert
    parallelism, every pair gets a tile of its own as long as there are this many times fewer pairs than
    experts (0: never). ``gather``: all routed rows pass through activation and sum, also those of experts
    that are on other devices.
    """

    tiles: tuple[tuple[int, int, int, int], ...]
    up_to: tuple[float, ...]
    per_expert: bool = False
    pairs: bool = False
    naive: float = 4
    tuned: tuple[tuple[int,int,int,int],...] = ((16,64,128,1),(32,128,128,1),(64,128,64,16),(64,256,64,16),(128,128,64,16),(128,256,64,16))


TRITON_0_14 = MoeKernels(((16, 32, 64, 1), (64, 64, 32, 8)), (1, np.inf), per_expert=True)
TRITON_0_24 = MoeKernels(((16, 64,128, 1), (32, 64,128, 1), (32, 128,64, 1), (64, 128,64, 1), (128, 128,64, 16)), (32, 64, 96, 512, np.inf))


@dataclass(frozen=True)
class MoeConstants:
    """What is fitted per kernel and architecture; meaning and bounds in :data:`BOUNDS`."""

    overhead_s: float
    overlap: float
    rate_share: float
    stream_share: float
    load_share: float
    row_s: float


BOUNDS: dict[str, tuple[float, float, str]] = {
    "overhead_s": (1e-6, 2e-4, "fixed"),
    "overlap": (0.01, 1.0, "hidden"),
    "rate_share": (0.05, 1.0, "share of matrix rate"),
    "stream_share": (0.05, 1.0, "share of DRAM bandwidth"),
    "load_share": (0.05, 1.0, "share of port"),
    "row_s": (1e-13, 1e-7, "x"),
}
assert tuple(BOUNDS) == tuple(f.name for f in fields(MoeConstants))


def route(tokens: Array, experts: Array, top_k: Array, ep: Array, imbalance: Array, lumped=False) -> tuple[Array, Array]:
    """Rows that each expert of the busiest device gets, and how many experts get that many: (POINTS + 1, N) each."""
    v = (np.arange(POINTS)[:, None] + 0.5) / POINTS
    u, w = 1 - (1 - v) ** 2, 2 * (1 - v) / POINTS
    w = np.broadcast_to(w / w.sum(), (POINTS, tokens.size))
    local = experts / ep
    pairs = tokens * top_k
    many = pairs > experts
    low, high = np.where(many, 1.0, 0.01), np.where(many, np.maximum(0.8 * tokens, 1.0), 2.0)
    power = 1 - np.where(np.abs(imbalance - 1) < 1e-3, 1.001, imbalance)
    a, b = low**power, high**power
    x = (a + (b - a) * u) ** (1 / power)
    x = np.where(imbalance > 0, x, 1.0)
    mean = (w * x).sum(0)
    n = pairs / experts * x / mean
    n = np.where(imbalance > 0, np.minimum(np.rint(n), tokens), np.floor(n))
    lack = pairs / experts - (w * n).sum(0)
    # busiest rank: tilt
    from scipy.special import ndtri
    normal = np.maximum(ndtri((ep - 0.375) / (ep + 0.25)), 0) ** 2 / 2
    need = (normal + np.maximum(np.log(ep) - normal, 0) / local) / local
    todo = np.flatnonzero((need > 1e-9) & (imbalance > 0))
    if todo.size:
        score = x[:, todo] / x[-1, todo]
        base = w[:, todo]
        lo, hi = np.zeros(todo.size), np.full(todo.size, 300.0)
        for _ in range(18):
            t = 0.5 * (lo + hi)
            e = base * np.exp(t * (score - 1))
            z = e.sum(0)
            p = e / z
            kl = t * (p * (score - 1)).sum(0) - np.log(z)
            lo, hi = np.where(kl < need[todo], t, lo), np.where(kl < need[todo], hi, t)
        w = w.copy()
        w[:, todo] = p
    empty = (w * (n < 1)).sum(0)
    new = np.clip(lack, 0.0, empty)
    rest = lack - new
    taken = np.maximum((w * n).sum(0), 1e-9)
    n = np.where(rest < 0, n * np.maximum(1 + rest / taken, 0), n + np.where(n > 0, rest / np.maximum(1 - empty, 1e-9), 0))
    w = w * local
    if lumped:
        new = np.minimum(new * experts, empty * local)
    else:
        new = new * local
    new = np.maximum(new, 1 - (n * w).sum(0))
    w = np.where(n > 0, w, 0)
    return np.concatenate([n, np.ones((1, tokens.size))]), np.concatenate([w, new[None]])


def moe_time(tokens, hidden, inter, experts, top_k, card, gemm_constants, moe_constants, kernels, *, gated=True, bits=16,
             weight_bits=None, ep=1, imbalance=0.0, rate=None, warm=False, parts=False, lumped=False, tuned=False):
    arrays = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (tokens, hidden, inter, experts, top_k, ep, imbalance, gated)))
    T, h, i, E, k, ep, al, ga = (x.ravel() for x in arrays)
    c, g = moe_constants, gemm_constants
    n, w = route(T, E, k, ep, al, lumped)
    local = E / ep
    ab, wb = bits / 8, (weight_bits or bits) / 8
    sms, dram = card.sms, card.dram_bytes_s
    rate = rate or card.matrix_flops
    pairs = T * k
    mine = (n * w).sum(0)
    active = w.sum(0)
    active = np.where((kernels.naive > 0) & (ep == 1) & (pairs * kernels.naive <= E), pairs, active)
    size = T * local**-0.0
    key = pairs / E if kernels.pairs else (T / local if kernels.per_expert else T)
    fixed = np.searchsorted(np.array(kernels.up_to), key, side="left")
    tuned = np.broadcast_to(np.asarray(tuned, bool), arrays[0].shape).ravel()
    naive = (kernels.naive > 0) & (ep == 1) & (pairs * kernels.naive <= E)
    port = LOAD_BYTES_PER_CLOCK * card.clock_hz
    kept = max(card.l2_bytes * g.cache_share, 1.0)
    touched = active * h * i * (ga + 2) * wb + pairs * (h + 2 * i) * 2
    miss = np.clip((touched - kept) / (0.5 * kept), 0, 1)
    moved = 2 * (pairs * (2 * h + (ga + 1) * i + (ga + 2) * i) + 2 * T * h)
    elem = moved * miss / (dram * g.dram_share)

    def gemms(at, tile):
        bm, bn, bk, group = tile
        tiles_e = np.ceil(n[:, at] / bm)
        tiles = (tiles_e * w[:, at]).sum(0)
        tiles = np.where(naive[at], pairs[at], tiles)
        out = 0.0
        for cols, depth in (((1 + ga[at]) * i[at], h[at]), (h[at], i[at])):
            odd = np.where(depth % 16 != 0, 8.0, 1.0)
            kk = np.ceil(depth / bk) * bk
            per_sm = tiles * np.ceil(cols / bn) / sms
            waves, busy = np.maximum(per_sm, 1.0), np.minimum(per_sm, 1.0)
            compute = waves * bm * bn * kk * 2 * sms / (rate * c.rate_share)
            rows = np.minimum(mine[at] / tiles, bm)
            load = waves * (rows * ab + bn * wb) * kk / (port * c.load_share) * odd
            together = np.maximum(group, sms * bn / cols)
            fits = cols * depth * wb <= PANEL_SHARE * card.l2_bytes
            reads = np.where(fits, active[at], (np.maximum(tiles_e / together, 1) * w[:, at]).sum(0))
            reads = np.where(naive[at], pairs[at], reads)
            stream = reads * cols * depth * wb * (miss[at] if warm else 1.0) / np.minimum(dram * c.stream_share, busy * sms * port * c.load_share)
            stream = stream + np.sqrt(stream * g.dram_tail_s)
            work = np.maximum(compute, load)
            out = out + np.maximum(work, stream) + (1 - c.overlap) * np.minimum(work, stream)
        return out

    total = np.full(T.size, np.inf)
    for j, tile in enumerate(kernels.tiles):
        at = np.flatnonzero(~tuned & (fixed == j))
        if at.size:
            total[at] = gemms(at, tile)
    at = np.flatnonzero(tuned)
    if at.size:
        for tile in kernels.tuned:
            total[at] = np.minimum(total[at], gemms(at, tile))
    total += c.overhead_s * np.where(naive, 0.75, 1.0) + elem + c.row_s * pairs
    tiles = 0
    per = []
    if parts:
        return total, per, moved * miss / (dram * g.dram_share), mine, active, tiles
    return total.reshape(arrays[0].shape)
