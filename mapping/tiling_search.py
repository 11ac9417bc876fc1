"""The best tiling: best-first branch and bound over divisors, a whole level's choices at a time.

A node has fixed the tiles of the outer levels. Its children are all tiles of the next level that divide the last
one and fit, times the dimension of the innermost loop, times the sets of roles that are buffered doubly, as numpy
arrays. Five things make the space small, none of which loses an optimum:

- of the six orders at a level only the innermost loop of more than one step matters: the loops between levels form
  one nest, and an operand stays only while the innermost run of loops does not index it. A node carries that run:
  its dimension and its number of steps;
- buffering one more role doubly never costs time, so only sets to which none can be added are tried;
- the time of the levels outside is max(x + a, b) of the time x inside, and such functions compose: a node is
  (a, b, energy);
- of two nodes with the same tile and the same run, one that is no better in a, b and energy is dropped;
- bounds. With innermost dimension d, the operand that d does not index is brought at least size[d] / tile[d]
  times to any level further in, whatever happens there; what the others are brought is at least the minimum over
  smaller tiles that fit, kept in a table per level and d. So is the array's work, with the transfers of one tile
  over each port outside it, which come before or after.

The search ends when no node's bound is below the best tiling found, which is the proof, or at the time limit; then
the smallest open bound is returned with the answer.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import comb, inf, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .hierarchy import ROLES, Floats, Hierarchy, Ints
from .nest import Mapping, Tile
from .products import Sizes, Tiled

OBJECTIVES = ("time", "energy", "product")
ROUNDING = 1e-9
"""Relative difference below which a bound counts as reached."""
SETS = tuple(frozenset(s) for n in range(len(ROLES) + 1) for s in itertools.combinations(ROLES, n))
"""Sets of roles that may be buffered doubly."""
MANY = 12
"""Divisors of a size that needs no padding."""
LARGEST = 1 << 20
"""Tiles of one grid; more are refused."""

Run = tuple[int, int]
Bools = npt.NDArray[np.bool_]


def score(objective: str, time_s: Any, energy_j: Any) -> Any:
    """Seconds, joules or joule-seconds, of numbers or arrays."""
    return {"time": lambda: time_s, "energy": lambda: energy_j, "product": lambda: time_s * energy_j}[objective]()


def divisors(size: int) -> list[int]:
    """Ascending."""
    low = [d for d in range(1, int(size**0.5) + 1) if size % d == 0]
    return sorted({*low, *(size // d for d in low)})


def padded_sizes(size: int, padding: float) -> list[int]:
    """``size``; where it has fewer than :data:`MANY` divisors, also two of the sizes up to ``size · (1 + padding)``:
    the next that has as many, and the next multiple of the largest power of two that allows one."""
    largest, found = int(size * (1 + padding)), {size}
    if len(divisors(size)) < MANY:
        found |= set(itertools.islice((s for s in range(size + 1, largest + 1) if len(divisors(s)) >= MANY), 1))
        powers = (2**i for i in range(size.bit_length(), 0, -1))
        found |= set(itertools.islice((up for p in powers if size < (up := -(-size // p) * p) <= largest), 1))
    return sorted(found)


def num_chains(size: int, levels: int) -> int:
    """Chains t₁ | size, t₂ | t₁, … of ``levels`` tiles: the product over primes of C(exponent + levels, levels)."""
    total, prime = 1, 2
    while size > 1:
        exponent = 0
        while size % prime == 0:
            size, exponent = size // prime, exponent + 1
        total *= comb(exponent + levels, levels)
        prime = prime + 1 if prime * prime <= size else max(size, prime + 1)
    return total


@dataclass(frozen=True)
class Found:
    """The best mapping, its score, a bound below which no mapping of the space scores, and the work it took.

    ``candidates``: mappings in the space (tiles × 6 orders and 8 sets per level × blocks × padded sizes), fitting
    or not; ``evaluated``: rows that were costed; ``expanded``: nodes.
    """

    mapping: Mapping
    score: float
    bound: float
    candidates: int
    evaluated: int
    expanded: int
    seconds: float


@dataclass(eq=False)
class _Grid:
    """All tiles of one padded size and block, flattened (G, 3), with what depends on a tile alone."""

    operator: Tiled
    hierarchy: Hierarchy
    sizes: Sizes
    block: Sizes
    cache: dict[int, npt.NDArray[np.intp]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        op, levels = self.operator, self.hierarchy.levels
        self.operands = op.operands
        self.divisors = [np.array(divisors(s), np.int64) for s in self.sizes]
        self.shape = tuple(len(d) for d in self.divisors)
        if prod(self.shape) > LARGEST:
            raise InputError(f"sizes {self.sizes} have {prod(self.shape)} tiles; accepted: at most {LARGEST}")
        mesh = np.meshgrid(*self.divisors, indexing="ij")
        self.tiles: Ints = np.stack([x.ravel() for x in mesh], axis=1)
        self.divides = [[np.flatnonzero(t % d == 0) for t in d] for d in self.divisors]
        self.points = [float(prod(self.sizes[d] for d in o.dims)) for o in self.operands]
        self.held = [self.tiles[:, list(o.dims)].prod(axis=1) * 1.0 for o in self.operands]
        last = len(levels) - 1
        scratch = op.scratch_bits(self.tiles, self.hierarchy.array)
        self.sets = [self._maximal(i, scratch if i == last else 0 * scratch) for i in range(1, last + 1)]
        self.fits: list[Bools] = [np.logical_or.reduce(sets) for sets in self.sets]
        if not all(fits[0] for fits in self.fits):
            level = next(i for i, fits in enumerate(self.fits, 1) if not fits[0])
            raise InputError(f"{self.hierarchy.name}: not even one point of {'×'.join(map(str, self.sizes))} fits its "
                             f"level {levels[level].name}")  # fmt: skip
        work = op.array_work(self.tiles, self.sizes, self.hierarchy.array, self.block)
        bits = sum(work.bits.values())
        self.array_s: Floats = np.maximum(work.seconds, bits / 8 / levels[-1].bandwidth_bytes_s)
        self.array_j: Floats = work.joules + sum(b * levels[-1].energy(r) for r, b in work.bits.items())
        self.array_j_bound = self._smallest(self.array_j, last)
        self.joules_bit = [
            [levels[i - 1].energy(o.role) + levels[i].energy(o.role) for o in self.operands] for i in range(1, last + 1)
        ]
        self.second_bits = [1 / (levels[i - 1].bandwidth_bytes_s * 8) for i in range(1, last + 1)]
        first = sum(held * o.bits for held, o in zip(self.held, self.operands, strict=True))
        self.array_s_bound = [
            self._smallest(self.array_s + first * sum(self.second_bits[i:]), last) for i in range(last)
        ]
        self.tables = [[self._others(i, d) for d in range(3)] for i in range(1, last + 1)]

    def _maximal(self, level: int, scratch: Floats) -> list[Bools]:
        """For each of SETS, the tiles at which it fits and no larger one does."""
        fitting: dict[frozenset[str], Bools] = {}
        for double in SETS:
            fit = np.ones(len(self.tiles), np.bool_)
            for buffer in self.hierarchy.levels[level].buffers:
                bits = scratch * ("output" in buffer.roles)
                for operand, held in zip(self.operands, self.held, strict=True):
                    if operand.role in buffer.roles:
                        bits = bits + held * operand.held_bits * (2 if operand.role in double else 1)
                fit &= bits / 8 <= buffer.capacity_bytes
            fitting[double] = fit
        larger = {s: [fitting[s | {role}] for role in ROLES if role not in s] for s in SETS}
        return [fitting[s] & ~np.logical_or.reduce([*larger[s], np.zeros_like(fitting[s])]) for s in SETS]

    def _smallest(self, values: Floats, level: int) -> Floats:
        """Minimum of ``values`` over tiles that fit ``level`` and are nowhere larger."""
        grid = np.where(self.fits[level - 1], values, inf).reshape(self.shape)
        for axis in range(3):
            grid = np.minimum.accumulate(grid, axis=axis)
        return np.asarray(grid.ravel())

    def _others(self, level: int, dim: int) -> tuple[Floats, Floats]:
        """Least (bits, joules) over the boundary into ``level`` of operands that ``dim`` indexes."""
        bits, joules = np.zeros(len(self.tiles)), np.zeros(len(self.tiles))
        for operand, points, energy in zip(self.operands, self.points, self.joules_bit[level - 1], strict=True):
            if operand.reuse_dim != dim:
                r = operand.reuse_dim
                moved = operand.moved_bits(points, self.sizes[r] / self.tiles[:, r] if r is not None else 1.0)
                bits, joules = bits + moved, joules + moved * energy
        return self._smallest(bits, level), self._smallest(joules, level)

    def inside(self, level: int, at: npt.NDArray[np.intp], dims: Ints, steps: Ints) -> tuple[Floats, Floats]:
        """Bounds (seconds, joules) on all that lies inside ``level``, whose tiles are ``at`` and whose innermost run
        of loops is ``steps`` of ``dims``."""
        seconds, joules = self.array_s_bound[level][at], self.array_j_bound[at]
        for inner in range(level, len(self.tables)):
            least_bits, least_joules = np.full(len(at), inf), np.full(len(at), inf)
            for d in range(3):
                count = self.sizes[d] / self.tiles[at, d] / np.where(dims == d, steps, 1)
                bits, energy = (table[at] for table in self.tables[inner][d])
                for operand, points, each in zip(self.operands, self.points, self.joules_bit[inner], strict=True):
                    if operand.reuse_dim == d:
                        moved = operand.moved_bits(points, count)
                        bits, energy = bits + moved, energy + moved * each
                least_bits, least_joules = np.minimum(least_bits, bits), np.minimum(least_joules, energy)
            seconds, joules = np.maximum(seconds, least_bits * self.second_bits[inner]), joules + least_joules
        return seconds, joules

    def below(self, parent: int) -> npt.NDArray[np.intp]:
        """Indices of the tiles that divide tile ``parent``."""
        if parent not in self.cache:
            place = np.unravel_index(parent, self.shape)
            each = [self.divides[axis][int(i)] for axis, i in enumerate(place)]
            self.cache[parent] = np.ravel_multi_index(np.ix_(*each), self.shape).ravel()
        return self.cache[parent]


@dataclass(frozen=True, eq=False)
class _Node:
    """Outer levels fixed: time is max(x + a, b) of the time x inside; ``choice`` is (tile, dimension of the innermost
    run, set) of its last level."""

    grid: _Grid
    level: int
    tile: int
    run: Run
    a: float = 0.0
    b: float = 0.0
    joules: float = 0.0
    choice: tuple[int, int, int] = (0, 0, 0)
    parent: _Node | None = None


@dataclass(eq=False)
class _Rows:
    """Children of a node as columns; ``bound`` is filled in, ascending, once they are kept."""

    node: _Node
    at: npt.NDArray[np.intp]
    dims: Ints
    steps: Ints
    sets: Ints
    a: Floats
    b: Floats
    joules: Floats
    bound: Floats

    def kept(self, rows: npt.NDArray[np.intp], bound: Floats) -> _Rows:
        """Those rows, with their bounds."""
        return _Rows(
            self.node, self.at[rows], self.dims[rows], self.steps[rows], self.sets[rows], self.a[rows], self.b[rows],
            self.joules[rows], bound[rows],
        )  # fmt: skip

    def child(self, row: int) -> _Node:
        """The node of one row."""
        at, dim = int(self.at[row]), int(self.dims[row])
        return _Node(
            self.node.grid, self.node.level + 1, at, (dim, int(self.steps[row])), float(self.a[row]),
            float(self.b[row]), float(self.joules[row]), (at, dim, int(self.sets[row])), self.node,
        )  # fmt: skip


def _expand(node: _Node) -> tuple[_Rows, int]:
    """All children of ``node``, bounds not filled in, and how many there are."""
    grid, level = node.grid, node.level  # the level to fill is level + 1, at index `level` of the lists
    below = grid.below(node.tile)
    below = below[grid.fits[level][below]]
    counts = grid.tiles[node.tile] // grid.tiles[below]
    chosen: list[tuple[npt.NDArray[np.intp], Ints, Ints]] = []
    still = np.flatnonzero(counts.prod(axis=1) == 1)
    for d in range(3):
        moving = np.flatnonzero(counts[:, d] > 1)
        alone = counts[moving].prod(axis=1) == counts[moving, d]
        steps = counts[moving, d] * np.where(alone & (node.run[0] == d), node.run[1], 1)
        chosen.append((below[moving], np.full(len(moving), d), steps))
    chosen.append((below[still], np.full(len(still), node.run[0]), np.full(len(still), node.run[1])))
    at, dims, steps = (np.concatenate(column) for column in zip(*chosen, strict=True))

    joules = np.full(len(at), node.joules)
    moved = {role: np.zeros(len(at)) for role in ROLES}
    first = {role: np.zeros(len(at)) for role in ROLES}
    second = grid.second_bits[level]
    for operand, points, held, energy in zip(
        grid.operands, grid.points, grid.held, grid.joules_bit[level], strict=True
    ):
        r = operand.reuse_dim
        visits = 1.0 if r is None else grid.sizes[r] / grid.tiles[at, r] / np.where(dims == r, steps, 1)
        bits = operand.moved_bits(points, visits)
        joules += bits * energy
        moved[operand.role] += bits * second
        first[operand.role] += held[at] * operand.bits * second

    sets: list[tuple[Ints, Floats, Floats, Ints]] = []
    for number, double in enumerate(SETS):
        rows = np.flatnonzero(grid.sets[level][number][at])
        both, fill = np.zeros(len(rows)), np.zeros(len(rows))
        for role in ROLES:
            both += moved[role][rows]
            fill += (first if role in double else moved)[role][rows]
        sets.append((np.full(len(rows), number), node.a + fill, np.maximum(both + node.a, node.b), rows))
    used, a, b, rows = (np.concatenate(column) for column in zip(*sets, strict=True))
    every = _Rows(node, at[rows], dims[rows], steps[rows], used, a, b, joules[rows], np.empty(0))
    return every, len(rows)


def dominated(costs: tuple[float, ...], others: Iterable[tuple[float, ...]]) -> bool:
    """Whether one of ``others`` is no greater in any of the ``costs``."""
    return any(all(x <= y for x, y in zip(other, costs, strict=True)) for other in others)


def search(
    operator: Tiled,
    hierarchy: Hierarchy,
    objective: str = "time",
    *,
    padding: float = 0.0,
    time_limit_s: float = inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Found:
    """The mapping of least ``objective`` (:data:`OBJECTIVES`), with the bound that proves it.

    Raises InputError for an unknown objective, a negative padding, and where nothing fits.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"objective {objective!r}; accepted: {', '.join(OBJECTIVES)}")
    if not 0 <= padding <= 1:
        raise InputError(f"padding {padding}; accepted: a share between 0 and 1")
    start = clock()
    depth, static = len(hierarchy.levels) - 1, hierarchy.static_w
    tie = itertools.count()
    heap: list[tuple[float, int, _Rows | _Node, int]] = []
    candidates = 0
    m, n, k = (padded_sizes(size, padding) for size in operator.sizes)
    for sizes in itertools.product(m, n, k):
        held = sum(o.held_bits / 8 * prod(sizes[d] for d in o.dims) for o in operator.operands)
        if held > sum(b.capacity_bytes for b in hierarchy.levels[0].buffers):
            raise InputError(f"{hierarchy.name}: {held:.4g} bytes of operands exceed its {hierarchy.levels[0].name}")
        candidates += prod(num_chains(s, depth) for s in sizes) * (6 * len(SETS)) ** depth * len(hierarchy.array.blocks)
        for block in hierarchy.array.blocks:
            grid = _Grid(operator, hierarchy, sizes, block)
            root = _Node(grid, 0, len(grid.tiles) - 1, (0, 1))
            whole = np.array([root.tile])
            seconds, joules = grid.inside(0, whole, np.zeros(1, np.int64), np.ones(1, np.int64))
            bound = float(score(objective, seconds, joules + static * seconds)[0])
            heapq.heappush(heap, (bound, next(tie), root, 0))
    best, best_node, evaluated, expanded = inf, None, 0, 0
    seen: dict[tuple[_Grid, int, int, Run], list[tuple[float, float, float]]] = {}
    while heap:
        bound, _, holder, row = heap[0]
        if bound >= best * (1 - ROUNDING) or (best < inf and clock() - start > time_limit_s):
            break
        if isinstance(holder, _Node):
            heapq.heappop(heap)
            node = holder
        else:
            node = holder.child(row)
            if row + 1 < len(holder.bound):
                heapq.heapreplace(heap, (float(holder.bound[row + 1]), next(tie), holder, row + 1))
            else:
                heapq.heappop(heap)
        others = seen.setdefault((node.grid, node.level, node.tile, node.run), [])
        if dominated((node.a, node.b, node.joules), others):
            continue
        others.append((node.a, node.b, node.joules))
        rows, number = _expand(node)
        expanded, evaluated = expanded + 1, evaluated + number
        level = node.level + 1
        if level == depth:
            seconds, joules = node.grid.array_s[rows.at], node.grid.array_j[rows.at]
        else:
            seconds, joules = node.grid.inside(level, rows.at, rows.dims, rows.steps)
        seconds = np.maximum(seconds + rows.a, rows.b)
        joules = rows.joules + joules + static * seconds
        value = score(objective, seconds, joules)
        if level == depth:
            least = value.min()
            if least < best * (1 - ROUNDING):
                near = np.flatnonzero(value <= least * (1 + ROUNDING))  # of equals, the better by time · energy
                row = int(near[np.argmin((seconds * joules)[near])])
                best, best_node = float(value[row]), rows.child(row)
            continue
        keep = np.flatnonzero(value < best * (1 - ROUNDING))
        if len(keep):
            keep = keep[np.argsort(value[keep], kind="stable")]
            heapq.heappush(heap, (float(value[keep[0]]), next(tie), rows.kept(keep, value), 0))
    assert best_node is not None  # a tile of one point fits every level
    bound = min(best, heap[0][0]) if heap else best
    if bound >= best * (1 - ROUNDING):
        bound = best
    return Found(_mapping(best_node), best, bound, candidates, evaluated, expanded, clock() - start)


def _mapping(node: _Node) -> Mapping:
    """The loop nest of a leaf. Of the two outer loops of a level the order does not matter."""
    grid, tiles = node.grid, []
    while node.parent is not None:
        at, dim, number = node.choice
        outer = [d for d in range(3) if d != dim]
        m, n, k = (int(x) for x in grid.tiles[at])
        tiles.append(Tile((m, n, k), (outer[0], outer[1], dim), SETS[number]))
        node = node.parent
    return Mapping(grid.sizes, tuple(reversed(tiles)), grid.block)
