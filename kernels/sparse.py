"""N:M sparse integer matrices: pruning, compression, and the product as a chain of DSP slices computes it.

N:M sparsity keeps at most N values in every block of M consecutive ones (Mishra et al.,
arXiv:2104.08378, for 2:4; FlightLLM, arXiv:2401.03868, 3.2, for N:16). Blocks lie along the last axis,
the reduction. All arithmetic is on integers and exact, except where a bound is said to saturate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Compressed:
    """A matrix with N:M sparsity, without its zeros.

    ``values[r, i]`` is a stored weight and ``index[r, i]`` its place, 0 … m - 1, in block ``i // n`` of
    row ``r``. Unused places hold weight 0. ``k`` is the width of the matrix, a multiple of ``m``.
    """

    values: Integers
    index: Integers
    n: int
    m: int
    k: int


def check_pattern(n: int, m: int) -> None:
    """Raise ``InputError`` unless ``n:m`` is a pattern: 1 ≤ n ≤ m."""
    if not 1 <= n <= m:
        raise InputError(f"sparsity {n}:{m}: N must be from 1 to M")


def prune(weights: npt.ArrayLike, n: int, m: int) -> Integers:
    """``weights`` (rows, k) with all but the ``n`` of largest magnitude in every block of ``m`` set to zero.

    Of equal magnitudes the first stays. Raises ``InputError`` when k is no multiple of m.
    """
    blocks = _blocks(weights, n, m)
    order = np.argsort(-np.abs(blocks), axis=-1, kind="stable")
    kept = blocks.copy()
    np.put_along_axis(kept, order[..., n:], 0, axis=-1)
    return kept.reshape(blocks.shape[0], -1)


def compress(weights: npt.ArrayLike, n: int, m: int) -> Compressed:
    """The stored form of ``weights`` (rows, k): ``n`` weights and indices per block of ``m``, in order.

    A block with fewer than ``n`` non-zeros is filled up with zeros from its first places. Raises
    ``InputError`` when a block has more than ``n``, or when k is no multiple of m.
    """
    blocks = _blocks(weights, n, m)
    most = int(np.count_nonzero(blocks, axis=-1).max(initial=0))
    if most > n:
        raise InputError(f"sparsity {n}:{m}: a block has {most} non-zeros; prune first")
    index = np.sort(np.argsort(blocks == 0, axis=-1, kind="stable")[..., :n], axis=-1)
    rows, k = blocks.shape[0], blocks.shape[1] * m
    values = np.take_along_axis(blocks, index, axis=-1)
    return Compressed(values.reshape(rows, -1), index.reshape(rows, -1), n, m, k)


def decompress(stored: Compressed) -> Integers:
    """The matrix (rows, k) of a compressed one. What several entries put in one place is added."""
    rows = stored.values.shape[0]
    matrix = np.zeros((rows, stored.k), np.int64)
    np.add.at(matrix, (np.arange(rows)[:, None], _places(stored)), stored.values)
    return matrix


def chain_dot(
    activations: npt.ArrayLike, stored: Compressed, lanes: int, accumulator_bits: int
) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """``activations`` (tokens, k) times the transpose of ``stored`` (rows, k), as a chain of ``lanes`` slices does.

    Every ``lanes`` stored weights are one beat. The sum over a beat is exact; the accumulator adds beat
    after beat and saturates at ``accumulator_bits`` bits, signed, each time. Returns the sums and
    whether a bound was met on the way, both (tokens, rows). Raises ``InputError`` on shapes that do
    not fit.
    """
    acts = np.asarray(activations, np.int64)
    if acts.ndim != 2 or acts.shape[1] != stored.k:
        raise InputError(f"activations have shape {acts.shape}; the weights have {stored.k} inputs")
    count = stored.values.shape[1]
    products = acts[:, _places(stored)] * stored.values  # tokens, rows, stored weights
    high = 2 ** (accumulator_bits - 1) - 1
    total = np.zeros(products.shape[:2], np.int64)
    met = np.zeros(products.shape[:2], np.bool_)
    for first in range(0, count, lanes):
        exact = total + products[:, :, first : first + lanes].sum(axis=-1)
        total = np.clip(exact, -high - 1, high)
        met |= total != exact
    return total, met


def _places(stored: Compressed) -> Integers:
    """Column of every stored weight, (rows, stored weights)."""
    block = np.arange(stored.values.shape[1]) // stored.n
    return stored.index + block * stored.m


def _blocks(weights: npt.ArrayLike, n: int, m: int) -> Integers:
    check_pattern(n, m)
    matrix = np.asarray(weights, np.int64)
    if matrix.ndim != 2 or matrix.shape[1] % m:
        raise InputError(f"weights have shape {matrix.shape}; wanted (rows, a multiple of {m})")
    return matrix.reshape(matrix.shape[0], -1, m)
