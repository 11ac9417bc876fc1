"""The functions a size expression may hold, evaluated on arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]


def expected_distinct(experts: npt.ArrayLike, k: npt.ArrayLike, tokens: npt.ArrayLike) -> Array:
    """Expected distinct experts touched by ``tokens`` tokens with ``k`` different experts each.

    Under uniform routing one token misses a given expert with probability 1 − k/E, independently
    of the others, so an expert stays untouched with probability (1 − k/E)^n; linearity of
    expectation gives E·(1 − (1 − k/E)^n). Skewed routing touches fewer.
    """
    e, kk, n = (np.asarray(x, dtype=float) for x in (experts, k, tokens))
    miss = np.clip(1.0 - kk / e, 0.0, 1.0)
    return np.asarray(e * (1.0 - np.power(miss, np.maximum(n, 0.0))))


def round_up(x: Array) -> Array:
    """Rounded up, but for what the rounding of a division left above a whole number."""
    whole = np.rint(x)
    return np.asarray(np.where(np.abs(x - whole) <= 1e-9 * np.maximum(np.abs(x), 1.0), whole, np.ceil(x)))


FUNCTIONS: Mapping[str, tuple[int, Callable[..., Array]]] = {
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "ceil": (1, round_up),
    "distinct": (3, expected_distinct),
}
"""Name → number of arguments, and the function on arrays."""
