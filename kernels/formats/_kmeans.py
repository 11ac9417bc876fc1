"""Clusters of vectors, and of the numbers of one row: seeded, or without chance, so that formats are reproducible."""

from __future__ import annotations

import numpy as np

from .bits import Floats, Integers

ROUNDS = {"vectors": 15, "numbers": 100}
"""Rounds of Lloyd's algorithm; it ends before when nothing moves."""


def nearest_vectors(vectors: Floats, centres: Floats) -> Integers:
    """Index of the centre nearest to each of ``vectors`` (n, d), the least of equals."""
    found = np.empty(len(vectors), np.int64)
    step = max(1, (1 << 22) // len(centres))
    squares = np.square(centres).sum(1)
    for i in range(0, len(vectors), step):
        found[i : i + step] = np.argmin(squares - 2 * (vectors[i : i + step] @ centres.T), axis=1)
    return found


def cluster_vectors(vectors: Floats, count: int, seed: int) -> Floats:
    """``count`` centres (count, d) of ``vectors`` by Lloyd's algorithm from as many of them, drawn with ``seed``.

    Where there are no more than ``count`` different vectors, those, filled up with the first. A centre that no vector
    is nearest to stays where it is.
    """
    different = np.unique(vectors, axis=0)
    if len(different) <= count:
        return np.concatenate([different, np.repeat(different[:1], count - len(different), axis=0)])
    centres = different[np.sort(np.random.default_rng(seed).choice(len(different), count, replace=False))]
    before = np.full(len(vectors), -1)
    for _ in range(ROUNDS["vectors"]):
        index = nearest_vectors(vectors, centres)
        if (index == before).all():
            break
        before = index
        sizes = np.bincount(index, minlength=count)
        sums = np.stack([np.bincount(index, column, count) for column in vectors.T], axis=1)
        centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
    return centres


def cluster_numbers(numbers: Floats, count: int) -> Floats:
    """``count`` centres of ``numbers`` (n,), ascending, by Lloyd's algorithm, without chance.

    It starts from the levels of a fine quantiser of least squared error, which are as dense as the cube root of the
    numbers' density (Panter and Dite, 1951): evenly spaced in the sum of the gaps' (2/3)th powers. Where there are no
    more than ``count`` different numbers, those, filled up with the last.
    """
    ordered = np.sort(numbers)
    different = np.unique(ordered)
    if len(different) <= count:
        return np.pad(different, (0, count - len(different)), mode="edge") if len(different) else np.zeros(count)
    levels = np.concatenate([[0.0], np.cumsum(np.diff(different) ** (2 / 3))])
    centres = np.interp((np.arange(count) + 0.5) / count * levels[-1], levels, different)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(ROUNDS["numbers"]):
        ends = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(ordered)]])
        sizes = np.diff(ends)
        moved = np.where(sizes > 0, (sums[ends[1:]] - sums[ends[:-1]]) / np.maximum(sizes, 1), centres)
        if (moved == centres).all():
            break
        centres = moved
    return np.sort(centres)
