"""How many rows each expert of a mixture gets, on the busiest device, as an expectation.

Each of T tokens goes to k of E experts; a device of ep holds g = E/ep of them. With m = T·k/E rows an expert:

    balanced       ⌊m⌋ rows, and one more for the fraction m − ⌊m⌋ of the experts
    imbalance α    m·x/⟨x⟩ rows, rounded, at most T, where popularity x has density x^−α on [1, 0.8·T], or on
                   [0.01, 2] where m ≤ 1; rows that rounding leaves over go one each to experts without any
    busiest of ep  the same law with its density tilted by e^{θx}, until its divergence from the original is
                   D/g with D = z²/2 + (ln ep − z²/2)/g, where z is the normal score of the largest of ep

The law is held as ``POINTS`` quantiles of x, so that distinct experts Σ P(n > 0) and padded tiles Σ ⌈n/bm⌉
are sums over quantiles and not over experts. Tilting: by Cramér's theorem g experts together are as busy as
the tilted law says with probability about e^−gD, so one rank in ep has gD = ln ep (Chernoff's bound, right for
g = 1, where the largest of ep draws is sought); a sum of many experts is normal, and its largest of ep lies z
deviations out, which is z²/2.

Source of the popularity: NVIDIA aiconfigurator, collector/helper.py (what its tables of measured layers were
driven with); it counts the draws of a few layers, here is what they tend to.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

POINTS = 24
"""Quantiles of the popularity of experts, denser towards the popular ones."""
TILTS = 5
"""Newton steps for the busiest device; more change no estimate of the tables by a thousandth."""
STEEPEST = 1e3
"""Tilt at which all weight is on the most popular quantile."""


def route(
    tokens: Array, experts: Array, top_k: Array, ep: Array, imbalance: Array, *, lumped: bool = False
) -> tuple[Array, Array]:
    """Rows per expert on the busiest device, and how many experts get that many: (POINTS + 1, N) each, from (N,).

    ``lumped``: the rows that rounding leaves over all go to the busiest device, as in the benchmark of
    vLLM 0.14, and not evenly to all. The busiest device has one row at least.
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
        w = np.repeat(density, t.size, axis=1)
        apart = np.flatnonzero(ep[uneven] > 1)
        if apart.size:
            w[:, apart] = _busiest(density, (x / x[-1])[:, apart], ep[uneven][apart], local[uneven][apart])
        empty = (w * (n < 1)).sum(0)
        first = np.clip(left * (ep[uneven] if lumped else 1), 0.0, empty)
        rest = np.minimum(left, np.maximum(left - empty, 0.0))
        n *= np.maximum(1 + rest / np.maximum((w * n).sum(0), 1e-9), 0.0)
        rows[:, uneven], weight[:, uneven], more[uneven], extra[uneven] = n, w, first, 1.0
    weight = np.where(rows > 0, weight * local, 0.0)
    more = more * local
    more += np.maximum(1 - (weight * rows).sum(0) - more * extra, 0.0) / extra
    return np.concatenate([rows, extra[None]]), np.concatenate([weight, more[None]])


def _popular(quantile: Array, tokens: Array, many: npt.NDArray[np.bool_], exponent: Array) -> Array:
    """Popularity at each quantile (POINTS, 1), not normalised: (POINTS, N)."""
    low, high = np.where(many, 1.0, 0.01), np.where(many, np.maximum(0.8 * tokens, 1 + 1e-9), 2.0)
    power = 1 - np.where(np.abs(exponent - 1) < 1e-3, 1.001, exponent)
    a, b = low**power, high**power
    return np.asarray((a + (b - a) * quantile) ** (1 / power))


def _busiest(density: Array, score: Array, ep: Array, local: Array) -> Array:
    """Weights of the quantiles (POINTS, N) on the busiest device; they sum to 1 over the quantiles."""
    sizes, back = np.unique(ep, return_inverse=True)
    far = np.array([NormalDist().inv_cdf((s - 0.375) / (s + 0.25)) for s in sizes])  # Blom's normal scores
    normal = (far**2 / 2)[back]
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
