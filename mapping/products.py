"""What is tiled: a matrix product, and attention as two products fused over tiles of keys.

Both have three dimensions, and an operand is indexed by some of them (:class:`Operand`). What an array reads
from the last memory level for every tile is each product's own: :meth:`Matmul.array_work`,
:meth:`Attention.array_work`. Sizes are in elements; widths in bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import InputError
from .hierarchy import Array, Floats, Ints

Sizes = tuple[int, int, int]
SOFTMAX_OPERATIONS = 5
"""Per score: subtract the maximum, exponential, sum, and twice a share for maximum and division."""


@dataclass(frozen=True)
class Operand:
    """``dims`` index it (0, 1, 2). ``bits`` per point of those dimensions, as it is moved; an output's partial sums
    have ``partial_bits`` instead, which is also what it occupies."""

    name: str
    role: str
    dims: tuple[int, ...]
    bits: float
    partial_bits: float = 0.0

    @property
    def held_bits(self) -> float:
        """Bits per point that it occupies in a buffer."""
        return max(self.bits, self.partial_bits)

    @property
    def reuse_dim(self) -> int | None:
        """The dimension whose steps leave it where it is; none where every dimension indexes it."""
        return next((d for d in range(3) if d not in self.dims), None)

    def moved_bits(self, points: Any, visits: Any) -> Any:
        """Bits over a boundary when each of ``points`` is brought ``visits`` times: an input is read every time;
        an output leaves after each visit, and what was left unfinished is read again at the next."""
        if self.role == "output":
            return points * ((visits - 1) * 2 * self.partial_bits + self.bits)
        return points * visits * self.bits


@dataclass(frozen=True)
class ArrayWork:
    """Of a whole operator, for each tile of the last memory level: seconds of arithmetic, joules of arithmetic,
    bits by role between the last level and the array."""

    seconds: Floats
    joules: Floats
    bits: dict[str, Floats]


class Tiled(Protocol):
    """An operator that can be tiled."""

    @property
    def dims(self) -> tuple[str, str, str]:
        """Names of the three dimensions."""

    @property
    def sizes(self) -> Sizes:
        """Their sizes."""

    @property
    def operands(self) -> tuple[Operand, ...]:
        """What is moved."""

    def scratch_bits(self, tiles: Ints, array: Array) -> Floats:
        """Bits of intermediate results that a tile (G, 3) needs beside its operands in the last memory level."""

    def array_work(self, tiles: Ints, sizes: Sizes, array: Array, block: Sizes) -> ArrayWork:
        """What the array does when the last memory level holds ``tiles`` (G, 3) of an operator of ``sizes``."""


def _positive(what: str, *sizes: float) -> None:
    if min(sizes) <= 0:
        raise InputError(f"{what}: a size or width of {min(sizes)}; accepted: positive numbers")


def _ceil(x: Ints, y: int) -> Ints:
    return -(-x // y)


def _visits(m: Ints, n: Ints, k: Ints, array: Array, block: Sizes) -> tuple[Ints, Ints, Ints]:
    """How often a product of tiles m × n × k passes its left operand, right operand and result to the array."""
    rows, columns, depth = _ceil(m, block[0]), _ceil(n, block[1]), _ceil(k, block[2])
    one = np.ones_like(rows)
    return {
        "output": (columns, rows, one), "weight": (columns, one, depth), "input": (one, rows, depth),
    }[array.stationary]  # fmt: skip


def _rounds(m: Ints, n: Ints, k: Ints, array: Array, block: Sizes, products: Ints | int = 1) -> tuple[Floats, Floats]:
    """(seconds, MACs of all blocks) of ``products`` products of tiles m × n × k.

    The blocks of the stationary operand are dealt to the arrays in whole rounds; one round lasts as long as the
    blocks of the third dimension, one after another.
    """
    rows, columns, depth = _ceil(m, block[0]), _ceil(n, block[1]), _ceil(k, block[2])
    held, steps = {
        "output": (rows * columns, depth), "weight": (columns * depth, rows), "input": (rows * depth, columns),
    }[array.stationary]  # fmt: skip
    macs = float(block[0] * block[1] * block[2])
    held = held * products
    rounds = _ceil(held, array.count)
    all_macs = np.asarray(held * steps * macs, np.float64)
    if array.tile_s is not None and array.stationary == "output":
        return array.tile_s(rounds, k), all_macs
    if not array.whole_rounds:
        rounds = np.maximum(held / array.count, 1.0)
    return np.asarray(rounds * steps * (macs * array.count / array.macs_s), np.float64), all_macs


@dataclass(frozen=True)
class Matmul:
    """C(m, n) = A(m, k) · B(k, n): inputs, weights, outputs and partial sums of the given widths."""

    m: int
    n: int
    k: int
    input_bits: float = 16.0
    weight_bits: float = 16.0
    output_bits: float = 16.0
    partial_bits: float = 32.0

    def __post_init__(self) -> None:
        _positive("matmul", self.m, self.n, self.k, self.input_bits, self.weight_bits, self.output_bits,
                  self.partial_bits)  # fmt: skip

    @property
    def dims(self) -> tuple[str, str, str]:
        """Names of the dimensions."""
        return "m", "n", "k"

    @property
    def sizes(self) -> Sizes:
        """m, n, k."""
        return self.m, self.n, self.k

    @property
    def operands(self) -> tuple[Operand, ...]:
        """A, B, C."""
        return (
            Operand("A", "input", (0, 2), self.input_bits),
            Operand("B", "weight", (1, 2), self.weight_bits),
            Operand("C", "output", (0, 1), self.output_bits, self.partial_bits),
        )

    def scratch_bits(self, tiles: Ints, array: Array) -> Floats:
        """None."""
        return np.zeros(len(tiles))

    def array_work(self, tiles: Ints, sizes: Sizes, array: Array, block: Sizes) -> ArrayWork:
        """See :class:`Tiled`. The array keeps nothing from one tile to the next."""
        m, n, k = tiles.T
        counts = np.asarray(sizes, np.int64) // tiles
        a, b, c = _visits(m, n, k, array, block)
        seconds, macs = _rounds(m, n, k, array, block)
        every = counts.prod(axis=1)
        left, right, result = self.operands
        return ArrayWork(
            seconds * every, macs * every * array.mac_j,
            {
                "input": left.moved_bits(float(sizes[0] * sizes[2]), counts[:, 1] * a),
                "weight": right.moved_bits(float(sizes[1] * sizes[2]), counts[:, 0] * b),
                "output": result.moved_bits(float(sizes[0] * sizes[1]), counts[:, 2] * c),
            },
        )  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """``heads`` independent softmax(Q(q, head_dim) · K(s, head_dim)ᵀ) · V(s, value_dim), tile by tile of q and s.

    Scores are never written to an outer level; a query's running maximum and sum (``state_bits`` together) stay
    with its partial output (Dao et al., FlashAttention, NeurIPS 2022, algorithm 1). ``heads``: heads of keys times
    sequences; the query heads that share one are further queries. Causal masks: give the mean number of keys that
    a query sees. ``cache_bits``: of keys and values.
    """

    heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int | None = None
    input_bits: float = 16.0
    cache_bits: float = 16.0
    output_bits: float = 16.0
    partial_bits: float = 32.0
    score_bits: float = 16.0
    state_bits: float = 64.0

    def __post_init__(self) -> None:
        _positive("attention", self.heads, self.queries, self.keys, self.head_dim, self.value, self.input_bits,
                  self.cache_bits, self.output_bits, self.partial_bits, self.score_bits, self.state_bits)  # fmt: skip

    @property
    def value(self) -> int:
        """Width of a value, the keys' unless given."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def dims(self) -> tuple[str, str, str]:
        """Names of the dimensions."""
        return "h", "q", "s"

    @property
    def sizes(self) -> Sizes:
        """heads, queries, keys."""
        return self.heads, self.queries, self.keys

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Q, K, V, O."""
        return (
            Operand("Q", "input", (0, 1), self.head_dim * self.input_bits),
            Operand("K", "weight", (0, 2), self.head_dim * self.cache_bits),
            Operand("V", "weight", (0, 2), self.value * self.cache_bits),
            Operand("O", "output", (0, 1), self.value * self.output_bits,
                    self.value * self.partial_bits + self.state_bits),
        )  # fmt: skip

    def scratch_bits(self, tiles: Ints, array: Array) -> Floats:
        """The scores of a tile, unless the array keeps them."""
        return np.zeros(len(tiles)) if array.keeps_scores else tiles.prod(axis=1) * self.score_bits

    def array_work(self, tiles: Ints, sizes: Sizes, array: Array, block: Sizes) -> ArrayWork:
        """See :class:`Tiled`. Scores pass through the last memory level unless the array keeps them; a partial
        output is rescaled for every tile of keys."""
        h, q, s = tiles.T
        counts = np.asarray(sizes, np.int64) // tiles
        dim, value = (np.full_like(q, x) for x in (self.head_dim, self.value))
        first = _visits(q, s, dim, array, block)
        second = _visits(q, value, s, array, block)
        times = [_rounds(q, s, dim, array, block, h), _rounds(q, value, s, array, block, h)]
        every = counts.prod(axis=1)
        queries, _, values, result = self.operands
        query_points, key_points = float(sizes[0] * sizes[1]), float(sizes[0] * sizes[2])
        scores = query_points * sizes[2]
        vector = scores * SOFTMAX_OPERATIONS + query_points * 2 * self.value * counts[:, 2]
        if array.keeps_scores:
            score_bits: Floats | float = 0.0
            rows = _ceil(q, block[0])
            k_visits, v_visits, q_visits, o_visits = (
                counts[:, 1] * rows,
                counts[:, 1] * rows,
                counts[:, 2],
                counts[:, 2],
            )
        else:  # partial sums of scores are as wide as those of outputs
            unfinished = (first[2] - 1) * 2 * self.partial_bits + self.score_bits
            score_bits = scores * (unfinished + second[0] * self.score_bits)
            k_visits, v_visits = counts[:, 1] * first[1], counts[:, 1] * second[1]
            q_visits, o_visits = counts[:, 2] * first[0], counts[:, 2] * second[2]
        keys = self.operands[1].moved_bits(key_points, k_visits)
        matrix = (times[0][0] + times[1][0]) * every
        return ArrayWork(
            np.maximum(matrix, vector / array.vector_ops_s),
            (times[0][1] + times[1][1]) * every * array.mac_j + vector * array.vector_j,
            {
                "input": queries.moved_bits(query_points, q_visits),
                "weight": keys + values.moved_bits(key_points, v_visits),
                "output": result.moved_bits(query_points, o_visits) + score_bits,
            },
        )  # fmt: skip
