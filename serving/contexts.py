"""Context rows of a trace on a device, tabulated: attention of decoding batches and of prompts in chunks.

Tables are filled when first asked for: batches by the group (:data:`GROUP`, above :data:`EXACT_BATCH` an octave) at
all knots up to an octave of contexts (:func:`.curves.knots`), chunks of all lengths after one number of cached tokens.
Sequences of a batch have contexts of every remainder, so what a kernel rounds up to whole tiles of keys is averaged
over :data:`TILE` keys around each knot.

Uneven batches: the device's model is asked with a longest sequence :data:`LONGER` tokens above the mean
(``attrs["longer"]`` of the attention), a distance which a decode step does not change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from ..hw.cost import OperatorModel
from ..hw.event import busy_of
from ..workloads.compiled import CompiledTrace, Row
from .curves import Curve, integral, knots

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Prepared = Callable[[CompiledTrace], OperatorModel]
"""The device's model of a trace."""

TILE = 128
"""Keys of the longest tile that kernels round a context up to."""
SAMPLES = (np.arange(4) + 0.5) / 4 - 0.5
"""Where around a knot costs are sampled, in tiles."""
LONGER = (0.0, *(256.0 * 2**k for k in range(9)))
"""Tokens by which the longest context exceeds the mean, at which curves are kept."""
EXACT_BATCH, GROUP, PER_OCTAVE = 32, 8, 16
"""Decoding batches are evaluated one by one up to the first, so many at a time; then so many per doubling."""
COLUMNS = 8
"""Numbers of cached tokens that chunks are evaluated after at a time."""
REACH = 2048
"""Contexts up to which decoding is evaluated at first; further ones by the octave."""


@dataclass(frozen=True)
class Part:
    """Seconds and joules (dynamic) of some rows of one pass on one device, repetitions counted; (points,).

    ``busy_s``: seconds for which they occupy each resource that was asked for, (resources, points).
    """

    time_s: Array
    energy_j: Array
    busy_s: Array = field(default_factory=lambda: np.zeros((0, 0)))


class Rows:
    """Some rows of a compiled trace under its device's model. ``resources``: whose occupation is asked for."""

    def __init__(
        self, compiled: CompiledTrace, model: OperatorModel, mask: Mask, resources: tuple[str, ...] = ()
    ) -> None:
        self.compiled, self.model, self.mask, self.resources = compiled, model, mask, resources

    def at(self, b: npt.ArrayLike, q: npt.ArrayLike, c: npt.ArrayLike) -> Part:
        """At points (batch, query, context) that broadcast to (points,)."""
        costs = self.model.rows(self.compiled.basis_at(b, q, c))
        counts = self.compiled.counts[self.mask]
        energy = sum((e[self.mask] for e in costs.energy_j.values()), np.zeros_like(costs.time_s[self.mask]))
        if not self.resources:
            return Part(counts @ costs.time_s[self.mask], counts @ energy)
        found = busy_of(costs, self.model.reasons)
        busy = [counts @ found[r][self.mask] if r in found else np.zeros(energy.shape[1]) for r in self.resources]
        return Part(counts @ costs.time_s[self.mask], counts @ energy, np.stack(busy))

    def alone(self, prepared: Prepared) -> Rows | None:
        """The same rows as a trace of their own, which is quicker; None where rows depend on others of the trace."""
        kept = replace(
            self.compiled,
            rows=tuple(r for r, here in zip(self.compiled.rows, self.mask, strict=True) if here),
            coefficients={name: matrix[self.mask] for name, matrix in self.compiled.coefficients.items()},
            counts=self.compiled.counts[self.mask],
        )
        try:
            rows = Rows(kept, prepared(kept), np.ones(len(kept.rows), dtype=bool), self.resources)
        except KeyError:  # a model that looks for every operator of the trace
            return None
        points = np.array([1.0, 3.0, 1.0]), np.array([1.0, 1.0, 200.0]), np.array([100.0, 700.0, 50.0])
        mine, theirs = self.at(*points), rows.at(*points)
        same = np.allclose(mine.time_s, theirs.time_s, rtol=1e-12) and np.allclose(mine.energy_j, theirs.energy_j)
        return rows if same else None


class Increase(Rows):
    """What a context adds to a pass: all rows less the others at no cached tokens. For models whose rows share what
    they wait for (operators fused into one), where the rows that depend on contexts are not all that does."""

    def at(self, b: npt.ArrayLike, q: npt.ArrayLike, c: npt.ArrayLike) -> Part:
        """At points (batch, query, context) that broadcast to (points,)."""
        everything = Rows(self.compiled, self.model, np.ones_like(self.mask), self.resources).at(b, q, c)
        others = Rows(self.compiled, self.model, ~self.mask, self.resources).at(
            b, q, np.zeros_like(np.asarray(c, dtype=float))
        )
        return Part(
            everything.time_s - others.time_s, everything.energy_j - others.energy_j, everything.busy_s - others.busy_s
        )


class ContextTable:
    """Seconds and joules of the context rows (``mask``) of one pass, up to ``longest`` tokens.

    ``query``: new tokens of each sequence of a decode step (more than one where a draft's proposals are verified).
    ``resources``: whose occupation is kept too. ``rows``: what is tabulated; ``at``: the knots, up to ``reach``.
    """

    def __init__(
        self, compiled: CompiledTrace, model: OperatorModel, mask: Mask, prepared: Prepared, longest: int,
        query: int = 1, resources: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self._prepared, self._any, self._longest, self._query = prepared, bool(mask.any()), longest, float(query)
        self.rows = Rows(compiled, model, mask, resources)
        if self._any:
            self.rows = self.rows.alone(prepared) or Increase(compiled, model, mask, resources)
        lengths = np.unique(np.round(np.concatenate([np.arange(1, 17), 2 ** np.arange(4, 24, 0.125)])))
        self._lengths: list[float] = lengths[: max(int(np.searchsorted(lengths, longest)) + 1, 2)].tolist()
        self._cached: list[float] = knots(longest).tolist()
        self._rows_of: dict[float, Rows] = {0.0: self.rows}
        self._columns: dict[int, tuple[list[float], ...]] = {}
        self._chunks: dict[tuple[int, int], tuple[float, ...]] = {}
        self._blocks: dict[tuple[float, int], Array] = {}
        self._extend(min(longest, REACH))

    def _extend(self, reach: float) -> None:
        """Evaluate decoding up to ``reach`` tokens from now on: the same knots and more."""
        self.reach = reach
        self.at = knots(int(reach))
        self._knots: list[float] = self.at.tolist()
        self._curves: dict[int, Curve] = {}
        self._occupied: dict[int, Array] = {}
        self._start: tuple[int, float, float] | None = None
        self._before = self._weight = 0.0
        self._low: Curve
        self._high: Curve

    def reach_to(self, context: float) -> None:
        """See that knots go as far as ``context``, or as they may."""
        while context > self.reach and self.reach < self._longest:
            self._extend(min(2 * self.reach, self._longest))

    @cached_property
    def launch_s(self) -> float:
        """Seconds of launches of all context rows: further groups of sequences in one call repeat none."""
        costs = self.rows.model.rows(self.rows.compiled.basis_at(1.0, 1.0, 1.0))
        return float(self.rows.compiled.counts[self.rows.mask] @ costs.launch_s[self.rows.mask, 0])

    # -- decoding ----------------------------------------------------------------------------
    def decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """Seconds of ``steps`` decode steps of ``n`` sequences: the first has ``mean`` cached tokens on average and
        ``mean + longer`` at most."""
        x = mean + steps - 0.5
        if x > self.reach:
            self.reach_to(x)
        at = self._knots
        if self._start != (n, mean, longer):  # a run's length is asked for several times
            level, self._weight = self.level(longer)
            self._low, self._high = self._curve(n, level), self._curve(n, level + 1 if self._weight else level)
            self._start = n, mean, longer
            self._before = integral(at, self._low, self._high, self._weight, mean - 0.5)
        return integral(at, self._low, self._high, self._weight, x) - self._before

    def decode_j(self, n: int, mean: Array) -> Array:
        """Dynamic joules of one decode step of ``n`` sequences at mean contexts, (N,)."""
        (e0, e1), w = self._pair(n, 0, 2)
        return np.interp(mean, self.at, e0 + w * (e1 - e0))

    def knot_times(self, n: int, level: int) -> Array:
        """Seconds of a decode step of ``n`` sequences at the mean contexts ``at``, the longest :data:`LONGER` [level]
        above the mean; (knots,)."""
        (t0, t1), w = self._pair(n, level, 1)
        return np.asarray(t0 + w * (t1 - t0))

    def knot_busy(self, n: int) -> Array:
        """Seconds for which a decode step of ``n`` sequences occupies each resource, (resources, knots)."""
        found = self._occupied.get(n)
        if found is None:
            pairs = [self._pair(n, 0, 3 + i) for i in range(len(self.rows.resources))]
            found = self._occupied[n] = np.stack([b0 + w * (b1 - b0) for (b0, b1), w in pairs])
        return found

    def decode_busy(self, n: int, mean: float) -> Array:
        """Seconds for which a decode step of ``n`` sequences at ``mean`` occupies each resource, (resources,)."""
        self.reach_to(mean)
        found = self.knot_busy(n)
        i = min(max(bisect_right(self._knots, mean) - 1, 0), len(self._knots) - 2)
        w = (mean - self._knots[i]) / (self._knots[i + 1] - self._knots[i])
        return np.asarray(found[:, i] + w * (found[:, i + 1] - found[:, i]))

    def along(self, low: Curve, high: Curve, weight: float, mean: float, steps: int) -> float:
        """Sum over ``steps`` steps from ``mean`` on of what lies between two curves over ``at``."""
        first = integral(self._knots, low, high, weight, mean - 0.5)
        return integral(self._knots, low, high, weight, mean + steps - 0.5) - first

    def _curve(self, n: int, level: int) -> Curve:
        key = n * len(LONGER) + level
        found = self._curves.get(key)
        if found is None:
            (t0, t1), w = self._pair(n, level, 1)
            found = self._curves[key] = Curve(self.at, t0 + w * (t1 - t0))
        return found

    def _pair(self, n: int, level: int, which: int) -> tuple[tuple[Array, Array], float]:
        """The evaluated batches around ``n``, and the weight of the upper: seconds (1), joules (2) or seconds of a
        resource (from 3) at the knots."""
        if n <= EXACT_BATCH:
            first = (n - 1) // GROUP * GROUP + 1
            nodes = np.arange(first, first + GROUP, dtype=float)
        else:
            octave = int(np.ceil(np.log2(n / EXACT_BATCH))) - 1
            nodes = _nodes(octave)
        values = self._block(nodes, level)
        i = min(int(np.searchsorted(nodes, n, side="right")) - 1, nodes.size - 2)
        weight = float((n - nodes[i]) / (nodes[i + 1] - nodes[i]))
        return (values[which - 1, i], values[which - 1, i + 1]), weight

    def _block(self, nodes: Array, level: int) -> Array:
        """Seconds, joules and seconds of each resource of batches of ``nodes`` sequences at the knots;
        (2 + resources, nodes, knots)."""
        key = float(nodes[0]), level
        known, parts = self._blocks.get(key), 2 + len(self.rows.resources)
        if known is None:
            known = np.zeros((parts, nodes.size, 0))
        elif known.shape[2] == self.at.size:
            return known
        elif known.shape[2]:
            known = known[:, :, :-1]  # the knot beyond the end is not one of the longer table
        at = self.at[known.shape[2] :]
        if self._any:
            part = self._sampled(self._of(LONGER[level]), nodes, at)
            more = np.stack([part.time_s, part.energy_j, *part.busy_s]).reshape(parts, nodes.size, at.size)
        else:
            more = np.zeros((parts, nodes.size, at.size))
        found = self._blocks[key] = np.concatenate([known, more], axis=2)
        return found

    def _sampled(self, rows: Rows, nodes: Array, at: Array) -> Part:
        """Means over a tile of keys around each context (up to one tile as it is); (nodes × contexts,)."""
        short, long = at[at <= TILE], at[at > TILE]
        c = np.concatenate([np.maximum(short, 0.0), (long[:, None] + TILE * SAMPLES).ravel()])
        part = rows.at(np.repeat(nodes, c.size), self._query, np.tile(c, nodes.size))

        def mean(values: Array) -> Array:
            values = values.reshape(nodes.size, c.size)
            sampled = values[:, short.size :].reshape(nodes.size, long.size, SAMPLES.size).mean(axis=2)
            return np.concatenate([values[:, : short.size], sampled], axis=1).ravel()

        busy = [mean(x) for x in part.busy_s]
        return Part(mean(part.time_s), mean(part.energy_j), np.stack(busy) if busy else part.busy_s)

    def level(self, longer: float) -> tuple[int, float]:
        """Index into :data:`LONGER`, and the weight of the next."""
        if longer <= 0 or not self.uneven_matters:
            return 0, 0.0
        i = bisect_right(LONGER, longer) - 1
        if i > len(LONGER) - 2:
            return len(LONGER) - 2, 1.0
        low = LONGER[i]
        return i, (longer - low) / (LONGER[i + 1] - low)

    @cached_property
    def uneven_matters(self) -> bool:
        """Whether the device's model tells a batch with a long sequence from an even one."""
        if not self._any:
            return False
        points = np.array([4.0, 16.0, 64.0]), 1.0, 1024.0
        return bool(np.any(np.abs(self._of(4096.0).at(*points).time_s / self.rows.at(*points).time_s - 1) > 1e-6))

    def _of(self, longer: float) -> Rows:
        """The rows where the longest sequence of a batch has ``longer`` tokens more than the mean."""
        if longer not in self._rows_of:
            compiled = replace(self.rows.compiled, rows=tuple(_uneven(row, longer) for row in self.rows.compiled.rows))
            self._rows_of[longer] = type(self.rows)(
                compiled, self._prepared(compiled), self.rows.mask, self.rows.resources
            )
        return self._rows_of[longer]

    # -- chunks ------------------------------------------------------------------------------
    def chunk(self, query: int, cached: int) -> tuple[float, ...]:
        """Seconds, dynamic joules and seconds of each resource of ``query`` new tokens of one sequence after
        ``cached``."""
        found = self._chunks.get((query, cached))
        if found is None:
            at, lengths = self._cached, self._lengths
            i = min(max(bisect_right(at, cached) - 1, 0), len(at) - 2)
            j = min(max(bisect_right(lengths, query) - 1, 0), len(lengths) - 2)
            w = (cached - at[i]) / (at[i + 1] - at[i])
            v = (query - lengths[j]) / (lengths[j + 1] - lengths[j])
            low = self._column(i)
            high = self._column(i + 1) if w else low
            first, second = ([x[j] + v * (x[j + 1] - x[j]) for x in column] for column in (low, high))
            if len(self._chunks) > 1 << 20:
                self._chunks.clear()
            found = self._chunks[query, cached] = tuple([x + w * (y - x) for x, y in zip(first, second, strict=True)])
        return found

    def _column(self, i: int) -> tuple[list[float], ...]:
        """Seconds, joules and seconds of each resource of all lengths after the ``i``-th number of cached tokens; its
        neighbours come along."""
        if i not in self._columns:
            group = (
                range(i, i + 1)
                if i < 2
                else range(max(i - i % COLUMNS, 2), min(i - i % COLUMNS + COLUMNS, len(self._cached)))
            )
            size = len(self._lengths)
            c = np.repeat(np.maximum([self._cached[j] for j in group], 0.0), size)
            q = np.tile(self._lengths, len(group))
            parts = np.zeros((2 + len(self.rows.resources), len(group), size))
            if self._any:
                part = self.rows.at(1.0, q, c)
                parts = np.stack([part.time_s, part.energy_j, *part.busy_s]).reshape(parts.shape)
            for k, j in enumerate(group):
                self._columns[j] = tuple(parts[:, k].tolist())
        return self._columns[i]


@cache
def _nodes(octave: int) -> Array:
    """The batches that are evaluated of an octave above :data:`EXACT_BATCH`."""
    return np.unique(np.round(EXACT_BATCH * 2**octave * (1 + np.arange(PER_OCTAVE + 1) / PER_OCTAVE)))


def _uneven(row: Row, longer: float) -> Row:
    if row.operator.kind != "attention":
        return row
    return replace(row, operator=row.operator.model_copy(update={"attrs": {**row.operator.attrs, "longer": longer}}))
