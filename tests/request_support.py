"""What tests of generated requests hold numbers against: how far they may scatter."""

from __future__ import annotations

import math

import numpy as np

N = 40_000


def within(found: float, expected: float, deviation: float) -> None:
    """Four standard deviations: one sound generator in 16,000 would miss it, and the seeds are fixed."""
    assert abs(found - expected) < 4 * deviation, (found, expected, deviation)


def kolmogorov(values: np.ndarray, share) -> float:
    """√n times the largest distance of the empirical distribution from ``share``; above 2.2 once in 10,000."""
    x = np.sort(values)
    at = np.array([share(v) for v in x.tolist()])
    k = np.arange(len(x))
    return float(np.maximum(at - k / len(x), (k + 1) / len(x) - at).max() * math.sqrt(len(x)))
