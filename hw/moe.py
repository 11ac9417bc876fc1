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

    tiles: tuple[tuple[int, int, int], ...]
    up_to: tuple[float, ...]
    per_expert: bool = False
    pairs: bool = False
    naive: float = 4


TRITON_0_14 = MoeKernels(((16, 32, 1), (64, 64, 8)), (1, np.inf), per_expert=True)
TRITON_0_24 = MoeKernels(((16, 64, 1), (32, 64, 1), (32, 128, 1), (64, 128, 1), (128, 128, 16)), (32, 64, 96, 512, np.inf))


@dataclass(frozen=True)
class MoeConstants:
    """What is fitted per kernel and architecture; meaning and bounds in :data:`BOUNDS`."""

    overhead_s: float
    overlap: float
    rate_share: float
    stream_share: float
    load_share: float
    step_s: float


BOUNDS: dict[str, tuple[float, float, str]] = {
    "overhead_s": (1e-6, 2e-4, "fixed"),
    "overlap": (0.01, 1.0, "hidden"),
    "rate_share": (0.05, 1.0, "share of matrix rate"),
    "stream_share": (0.05, 1.0, "share of DRAM bandwidth"),
    "load_share": (0.05, 1.0, "share of port"),
    "step_s": (1e-9, 1e-5, "latency of a step"),
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
             weight_bits=None, ep=1, imbalance=0.0, rate=None, warm=False, parts=False, lumped=False):
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
    size = T * local**-0.0
    key = pairs / E if kernels.pairs else (T / local if kernels.per_expert else T)
    which = np.searchsorted(np.array(kernels.up_to), key, side="left")
    bm, bn, group = (np.array([t[j] for t in kernels.tiles], float)[which] for j in (0, 1, 2))
    tiles_e = np.ceil(n / bm)
    tiles = (tiles_e * w).sum(0)
    naive = (kernels.naive > 0) & (ep == 1) & (pairs * kernels.naive <= E)
    tiles, active = np.where(naive, pairs, tiles), np.where(naive, pairs, active)
    port = LOAD_BYTES_PER_CLOCK * card.clock_hz
    total = np.zeros(T.size)
    up = 1 + ga
    flop = 2 * mine * h * i * (up + 1)
    per = []
    kept = max(card.l2_bytes * g.cache_share, 1.0)
    touched = active * h * i * (up + 1) * wb + pairs * (h + 2 * i) * 2
    miss = np.clip((touched - kept) / (0.5 * kept), 0, 1)
    weight_miss = miss if warm else 1.0
    # traffic between kernels
    moved = 2 * (pairs * (2 * h + up * i + (up + 1) * i) + 2 * T * h)
    for cols, depth in ((up * i, h), (h, i)):
        blocks = tiles * np.ceil(cols / bn)
        per_sm = blocks / sms
        waves = np.maximum(per_sm, 1.0)
        compute = waves * bm * bn * depth * 2 * sms / (rate * c.rate_share)
        busy = np.minimum(per_sm, 1.0)
        load = waves * (bm * ab + bn * wb) * depth * np.maximum(1 / (port * c.load_share), busy / (port * g.l2_share))
        together = np.maximum(group, sms * bn / cols)
        fits = cols * depth * wb <= PANEL_SHARE * card.l2_bytes
        reads = np.where(fits, active, (np.maximum(tiles_e / together, 1) * w).sum(0))
        reads = np.where(naive, pairs, reads)
        stream = reads * cols * depth * wb * weight_miss / np.minimum(dram * c.stream_share, busy * sms * port * c.load_share)
        stream = stream + np.sqrt(stream * g.dram_tail_s)
        ideal = 2 * mine * cols * depth / rate
        pw = ideal * (1 + (1 / g.sustained - 1) * ideal / (ideal + g.throttle_s))
        occ = np.minimum(8, np.floor(160e3 / (3 * (bm + bn) * 64 * ab)))
        lat = np.maximum(1, per_sm / occ) * (depth / 64 + 2) * c.step_s
        work = np.maximum(np.maximum(compute, load), pw)
        t = np.maximum(work, stream) + (1 - c.overlap) * np.minimum(work, stream)
        t = (t**8 + lat**8)**.125
        per.append((compute, load, stream, lat))
        total += t
    total += c.overhead_s + moved * miss / (dram * g.dram_share)
    if parts:
        return total, per, moved * miss / (dram * g.dram_share), mine, active, tiles
    return total.reshape(arrays[0].shape)
