"""Context rows of a trace on a device, tabulated: attention of decoding batches and of prompts in chunks.

Tables are filled a block at a time, when first asked for: batches of an octave at all knots (:func:`.curves.knots`),
chunks of all lengths after one number of cached tokens. Sequences of a batch have contexts of every remainder, so
what a kernel rounds up to whole tiles of keys is averaged over :data:`TILE` keys around each knot.

Skewed batches: the device's model is asked with the longest sequence ``skew`` times the mean (``attrs["skew"]`` of the
attention). Kept are curves for a longest context :data:`LONGER` tokens above the mean, a distance which a decode
step does not change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..hw.cost import OperatorModel, prepare
from ..hw.event import busy_of
from ..hw.spec import Device
from ..workloads.compiled import CompiledTrace, Row
from .curves import Curve, knots

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

TILE = 128
"""Keys of the longest tile that kernels round a context up to."""
SAMPLES = (np.arange(4) + 0.5) / 4 - 0.5
"""Where around a knot costs are sampled, in tiles."""
SKEWS = np.array([1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 64.0])
"""Longest over mean context at which skewed batches are evaluated."""
LONGER = (0.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)
"""Tokens by which the longest context exceeds the mean, at which curves are kept."""
EXACT_BATCH, PER_OCTAVE = 32, 16
"""Decoding batches are evaluated one by one up to the first, then so many per doubling."""


@dataclass(frozen=True)
class Part:
    """Seconds and joules (dynamic) of some rows of one pass on one device, repetitions counted; (points,).

    ``busy_s``: seconds for which they occupy each resource that was asked for, (resources, points).
    """

    time_s: Array
    energy_j: Array
    busy_s: Array


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
        busy = np.zeros((len(self.resources), costs.time_s.shape[1]))
        if self.resources:
            found = busy_of(costs, self.model.reasons)
            for i, name in enumerate(self.resources):
                busy[i] = counts @ found[name][self.mask] if name in found else 0.0
        return Part(counts @ costs.time_s[self.mask], counts @ energy, busy)

    def alone(self, device: Device) -> Rows:
        """The same rows as a trace of their own, which is quicker where the model's rows do not depend on others."""
        kept = replace(
            self.compiled,
            rows=tuple(r for r, here in zip(self.compiled.rows, self.mask, strict=True) if here),
            coefficients={name: matrix[self.mask] for name, matrix in self.compiled.coefficients.items()},
            counts=self.compiled.counts[self.mask],
        )
        rows = Rows(kept, prepare(kept, device)[1], np.ones(len(kept.rows), dtype=bool), self.resources)
        points = np.array([1.0, 3.0, 1.0]), np.array([1.0, 1.0, 200.0]), np.array([100.0, 700.0, 50.0])
        mine, theirs = self.at(*points), rows.at(*points)
        same = np.allclose(mine.time_s, theirs.time_s, rtol=1e-12) and np.allclose(mine.energy_j, theirs.energy_j)
        return rows if same else self


class ContextTable:
    """Seconds and joules of the context rows (``mask``) of one pass, up to ``longest`` tokens.

    ``query``: new tokens of each sequence of a decode step (more than one where a draft's proposals are verified).
    ``resources``: whose occupation is kept too. ``rows``: what is tabulated.
    """

    def __init__(
        self, compiled: CompiledTrace, model: OperatorModel, mask: Mask, device: Device, longest: int, query: int = 1,
        resources: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self._device, self._any, self._query = device, bool(mask.any()), float(query)
        self.rows = Rows(compiled, model, mask, resources)
        if self._any:
            self.rows = self.rows.alone(device)
        self.at = knots(longest)
        lengths = np.unique(np.round(np.concatenate([np.arange(1, 17), 2 ** np.arange(4, 24, 0.125)])))
        self._lengths = lengths[: int(np.searchsorted(lengths, longest)) + 1]
        self._skewed: dict[float, Rows] = {1.0: self.rows}
        self._blocks: dict[tuple[int, int], tuple[Array, ...]] = {}
        self._occupied: dict[int, Array] = {}
        self._curves: dict[tuple[int, int], Curve] = {}
        self._columns: dict[int, tuple[Array, ...]] = {}
        self._chunks: dict[tuple[int, int], tuple[float, ...]] = {}

    @cached_property
    def launch_s(self) -> float:
        """Seconds of launches of all context rows: further groups of sequences in one call repeat none."""
        costs = self.rows.model.rows(self.rows.compiled.basis_at(1.0, 1.0, 1.0))
        return float(self.rows.compiled.counts[self.rows.mask] @ costs.launch_s[self.rows.mask, 0])

    # -- decoding ----------------------------------------------------------------------------
    def decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """Seconds of ``steps`` decode steps of ``n`` sequences: the first has ``mean`` cached tokens on average and
        ``mean + longer`` at most."""
        level, weight = self.level(longer)
        total = self._curve(n, level).steps(mean, steps)
        if weight:
            total += weight * (self._curve(n, level + 1).steps(mean, steps) - total)
        return total

    def decode_j(self, n: int, mean: Array) -> Array:
        """Dynamic joules of one decode step of ``n`` sequences at mean contexts, (N,)."""
        (e0, e1), w = self._pair(n, 0, 2)
        return np.interp(mean, self.at, e0 + w * (e1 - e0))

    def knot_times(self, n: int, longer: float) -> Array:
        """Seconds of a decode step of ``n`` sequences at the mean contexts ``at``, (knots,)."""
        level, weight = self.level(longer)
        (t0, t1), w = self._pair(n, level, 1)
        found = t0 + w * (t1 - t0)
        if weight:
            (t0, t1), w = self._pair(n, level + 1, 1)
            found = found + weight * (t0 + w * (t1 - t0) - found)
        return found

    def knot_busy(self, n: int) -> Array:
        """Seconds for which a decode step of ``n`` sequences occupies each resource, (resources, knots)."""
        found = []
        for i in range(len(self.rows.resources)):
            (b0, b1), w = self._pair(n, 0, 3 + i)
            found.append(b0 + w * (b1 - b0))
        return np.stack(found)

    def decode_busy(self, n: int, mean: float) -> Array:
        """Seconds for which a decode step of ``n`` sequences at ``mean`` occupies each resource, (resources,)."""
        found = self._occupied.get(n)
        if found is None:
            found = self._occupied[n] = self.knot_busy(n)
        i = min(max(int(np.searchsorted(self.at, mean, side="right")) - 1, 0), self.at.size - 2)
        w = (mean - self.at[i]) / (self.at[i + 1] - self.at[i])
        return np.asarray(found[:, i] + w * (found[:, i + 1] - found[:, i]))

    def _curve(self, n: int, level: int) -> Curve:
        found = self._curves.get((n, level))
        if found is None:
            (t0, t1), w = self._pair(n, level, 1)
            found = self._curves[n, level] = Curve(self.at, t0 + w * (t1 - t0))
        return found

    def _pair(self, n: int, level: int, which: int) -> tuple[tuple[Array, Array], float]:
        """The evaluated batches around ``n``, and the weight of the upper: seconds (1), joules (2) or seconds of a
        resource (from 3) at the knots."""
        octave = max(int(np.ceil(np.log2(n / EXACT_BATCH))), 0) if n > EXACT_BATCH else 0
        if (octave, level) not in self._blocks:
            self._blocks[octave, level] = self._block(octave, level)
        block = self._blocks[octave, level]
        nodes, values = block[0], block[which]
        i = min(int(np.searchsorted(nodes, n, side="right")) - 1, nodes.size - 2)
        return (values[i], values[i + 1]), float((n - nodes[i]) / (nodes[i + 1] - nodes[i]))

    def _block(self, octave: int, level: int) -> tuple[Array, ...]:
        """Batches of an octave, ascending: (nodes,), and seconds, joules and seconds of each resource at the knots,
        (nodes, knots)."""
        if octave:
            nodes = np.unique(np.round(EXACT_BATCH * 2 ** (octave - 1) * (1 + np.arange(PER_OCTAVE + 1) / PER_OCTAVE)))
        else:
            nodes = np.arange(1.0, EXACT_BATCH + 1)
        shape = nodes.size, self.at.size
        if not self._any:
            return nodes, *(np.zeros(shape) for _ in range(2 + len(self.rows.resources)))
        even = self._sampled(self.rows, nodes)
        time = even.time_s.reshape(shape)
        if level:
            at = np.maximum(self.at, 1.0)
            ratio = np.minimum(1 + LONGER[level] / at[None, :], nodes[:, None])
            here = SKEWS[: int(np.searchsorted(SKEWS, ratio.max())) + 1]
            times = np.stack([self._sampled(self._of(skew), nodes).time_s.reshape(shape) for skew in here])
            i = np.clip(np.searchsorted(here, ratio, side="right") - 1, 0, max(here.size - 2, 0))
            j = np.minimum(i + 1, here.size - 1)
            w = np.where(j > i, (ratio - here[i]) / np.where(j > i, here[j] - here[i], 1.0), 0.0).clip(0, 1)
            low = np.take_along_axis(times, i[None], axis=0)[0]
            time = low + w * (np.take_along_axis(times, j[None], axis=0)[0] - low)
        return nodes, time, even.energy_j.reshape(shape), *(busy.reshape(shape) for busy in even.busy_s)

    def _sampled(self, rows: Rows, nodes: Array) -> Part:
        """Means over a tile of keys around each knot (below one tile as it is); (nodes × knots,)."""
        around = self.at[:, None] + np.where(self.at[:, None] > TILE, TILE * SAMPLES, 0.0)
        n = np.broadcast_to(nodes[:, None, None], (nodes.size, *around.shape))
        c = np.broadcast_to(np.maximum(around, 0.0), n.shape)
        part = rows.at(n.ravel(), self._query, c.ravel())
        time, energy = (x.reshape(n.shape).mean(axis=2).ravel() for x in (part.time_s, part.energy_j))
        busy = part.busy_s.reshape(len(rows.resources), *n.shape).mean(axis=3).reshape(len(rows.resources), time.size)
        return Part(time, energy, busy)

    def level(self, longer: float) -> tuple[int, float]:
        """Index into :data:`LONGER`, and the weight of the next."""
        if longer <= 0 or not self.skew_matters:
            return 0, 0.0
        i = 0
        while i + 2 < len(LONGER) and longer >= LONGER[i + 1]:
            i += 1
        return i, min((longer - LONGER[i]) / (LONGER[i + 1] - LONGER[i]), 1.0)

    @cached_property
    def skew_matters(self) -> bool:
        """Whether the device's model tells a skewed batch from an even one."""
        if not self._any:
            return False
        points = np.array([4.0, 16.0, 64.0]), 1.0, 1024.0
        return bool(np.any(np.abs(self._of(8.0).at(*points).time_s / self.rows.at(*points).time_s - 1) > 1e-6))

    def _of(self, skew: float) -> Rows:
        """The rows where the longest sequence of a batch has ``skew`` times the mean context."""
        if skew not in self._skewed:
            compiled = replace(
                self.rows.compiled, rows=tuple(_with_skew(row, float(skew)) for row in self.rows.compiled.rows)
            )
            model = prepare(compiled, self._device)[1]
            self._skewed[skew] = Rows(compiled, model, self.rows.mask, self.rows.resources)
        return self._skewed[skew]

    # -- chunks ------------------------------------------------------------------------------
    def chunk(self, query: int, cached: int) -> tuple[float, ...]:
        """Seconds, dynamic joules and seconds of each resource of ``query`` new tokens of one sequence after
        ``cached``."""
        found = self._chunks.get((query, cached))
        if found is None:
            i = int(np.searchsorted(self.at, cached, side="right")) - 1
            i = min(max(i, 0), self.at.size - 2)
            w = float((cached - self.at[i]) / (self.at[i + 1] - self.at[i]))
            low = self._column(i)
            high = self._column(i + 1) if w else low
            if len(self._chunks) > 1 << 20:
                self._chunks.clear()
            found = self._chunks[query, cached] = tuple(
                float((1 - w) * np.interp(query, self._lengths, x) + w * np.interp(query, self._lengths, y))
                for x, y in zip(low, high, strict=True)
            )
        return found

    def _column(self, i: int) -> tuple[Array, ...]:
        if i not in self._columns:
            if self._any:
                part = self.rows.at(1.0, self._lengths, float(max(self.at[i], 0.0)))
                self._columns[i] = part.time_s, part.energy_j, *part.busy_s
            else:
                self._columns[i] = (np.zeros_like(self._lengths),) * (2 + len(self.rows.resources))
        return self._columns[i]


def _with_skew(row: Row, skew: float) -> Row:
    if row.operator.kind != "attention":
        return row
    return replace(row, operator=row.operator.model_copy(update={"attrs": {**row.operator.attrs, "skew": skew}}))
