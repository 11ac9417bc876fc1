"""Iterations at the event level: rows as the discrete-event level times them alone, layers read ahead on a schedule.

One replica's iteration is one stream of the event level, in which nothing contends unless something is read ahead of
its layer. So :class:`EventSteps` fills the same tables as the closed form from :func:`tokenfab.hw.ahead.lone`, and
:class:`StreamedSteps`, for models with reads that run ahead, costs each iteration as the schedule of its layers
(:func:`tokenfab.hw.ahead.schedule_s`): a decode step at the knots of the context table, lines between, so that steps
at once equal steps one by one; iterations with chunks one by one.

The operators' seconds are those of the tables, divided over the blocks of a pass as at the iteration's mean; what is
read of a cache goes by the cached tokens of the iteration together (of a model with a window: as if one sequence had
them all).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np

from ..hw.ahead import LoneModel, Stretch, blocks_of, demanded, most_ahead, moved
from ..hw.ahead import schedule_s as schedule
from ..hw.cost import OperatorModel, RowCosts, prepare
from ..hw.far import LINK
from ..hw.frequency import Clock
from ..hw.spec import Device
from ..workloads.compiled import CompiledTrace, compile_trace
from ..workloads.parallel import ONE_DEVICE, Parallel, tensor_parallel
from ..workloads.trace import Trace
from .contexts import Array
from .curves import Curve
from .engine import EngineProfile
from .steps import StepModel, sorts

ALONE = (1.0, 1.0)
"""How much slower the link to the host is than alone, in and out."""
MOST_KEPT = 4096
"""Curves and iterations that are remembered."""


class EventSteps(StepModel):
    """:class:`.steps.StepModel` whose rows take what the event level says of each alone."""

    def _prepared(self, compiled: CompiledTrace) -> OperatorModel:
        return LoneModel(super()._prepared(compiled))


class StreamedSteps(EventSteps):
    """:class:`EventSteps` of a model whose layers are read ahead. ``link_slower``: see :data:`ALONE`."""

    def __init__(
        self, trace: Trace, device: Device, parallel: Parallel = ONE_DEVICE, profile: EngineProfile | None = None,
        longest: int | None = None, clock: Clock | None = None,
    ) -> None:  # fmt: skip
        super().__init__(trace, device, parallel, profile, longest, clock)
        self.link_slower = ALONE
        self._blocks = blocks_of(self._compiled)
        self._ahead = most_ahead(self._compiled)
        self._sorts = sorts(self._compiled)
        self._curves: dict[Any, Curve] = {}
        self._rows_of: dict[Any, RowCosts] = {}
        self._mixed_s: dict[Any, float] = {}

    def at(self, link_slower: tuple[float, float]) -> StreamedSteps:
        """The same where the link to the host is so much slower; tables are shared."""
        found = copy(self)
        found.link_slower = link_slower
        return found

    def decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """See :class:`.steps.StepModel`."""
        return self.hosted_s(n, steps, lambda k: self.device_decode_s(n, mean, longer, k))

    def device_decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """See :class:`.steps.StepModel`."""
        table = self.contexts
        table.reach_to(mean + steps - 0.5)
        level, weight = table.level(longer)
        low, high = self._curve(n, level), self._curve(n, level + 1 if weight else level)
        return table.along(low, high, weight, mean, steps) + self.hop_s(n) * steps

    def _curve(self, n: int, level: int) -> Curve:
        """Seconds of a decode step of ``n`` sequences at the knots of the context table."""
        at = self.contexts.at
        key = n, level, at.size, self.link_slower
        found = self._curves.get(key)
        if found is None:
            rows = self._rows(float(n), 1.0, np.maximum(at, 0.0), (n, at.size))
            fixed = np.full(at.size, self._decode_tokens.time(self.profile.padded(n)))
            token, sequence, _ = self._sorts
            parts = [(token | sequence, fixed), (self._sorts[2], self.contexts.knot_times(n, level))]
            found = _kept(self._curves, key, Curve(at, self._scheduled(rows, parts)))
        return found

    def device_mixed_s(
        self, chunks: Sequence[tuple[int, int]], ends: int, n: int, mean: float, longer: float
    ) -> float:  # fmt: skip
        """See :class:`.steps.StepModel`."""
        tokens, cached = n, n * mean
        for q, c in chunks:
            tokens += q
            cached += c
        key = tokens, cached, ends + n, longer, tuple(chunks), self.link_slower
        found = self._mixed_s.get(key)
        if found is None:
            rows = self._rows(1.0, float(tokens), np.array([cached]), (tokens, cached, ""))
            token, sequence, context = self._sorts
            seconds = (
                self._mixed_tokens.time(self.profile.padded(tokens)),
                self._sequences.time(ends + n) if ends + n else 0.0,
                self.contexts_s(chunks, n, mean, longer),
            )
            parts = [(m, np.array([s])) for m, s in zip((token, sequence, context), seconds, strict=True)]
            found = _kept(self._mixed_s, key, float(self._scheduled(rows, parts)[0]))
        return found + self.hop_s(tokens)

    def _rows(self, b: float, q: float, c: Array, key: Any) -> RowCosts:
        found = self._rows_of.get(key)
        if found is None:
            found = _kept(self._rows_of, key, self.model.rows(self._compiled.basis_at(b, q, c)))
        return found

    def _scheduled(self, rows: RowCosts, parts: Sequence[tuple[Any, Array]]) -> Array:
        """Seconds of a pass in which the rows of each mask of ``parts`` take so many together, (points,)."""
        counts = self._compiled.counts
        factors = np.zeros_like(rows.time_s)
        beside = np.zeros(rows.time_s.shape[1])
        for mask, seconds in parts:
            told = counts[mask] @ rows.time_s[mask]
            factors[mask] = np.divide(seconds, told, out=np.zeros_like(told), where=told > 0)
            beside += np.where(told > 0, 0.0, seconds)
        time = rows.time_s * factors
        stretches = []
        for block in self._blocks:
            compute = np.sum([time[i] * count for i, count in block.rows.items()], axis=0)
            reads, latency = moved(rows.moves, block, write=False)
            writes, _ = moved(rows.moves, block, write=True)
            demand = demanded(rows, rows.moves, block)
            for name, slower in zip((LINK, LINK + " out"), self.link_slower, strict=True):
                compute = compute + (slower - 1) * demand.get(name, 0.0)
            reads, writes, demand = (self._slowed(part) for part in (reads, writes, demand))
            stretches.append(Stretch(block.times, compute, reads, writes, demand, latency))
        return schedule(stretches, self._ahead) + beside

    def _slowed(self, part: dict[str, Array]) -> dict[str, Array]:
        slower = dict(zip((LINK, LINK + " out"), self.link_slower, strict=True))
        return {name: seconds * slower.get(name, 1.0) for name, seconds in part.items()}


def event_steps(
    trace: Trace, device: Device, parallel: Parallel, profile: EngineProfile, longest: int | None, clock: Clock | None
) -> StepModel:  # fmt: skip
    """Times of iterations at the event level, of whichever sort the model and the device need."""
    compiled, model = prepare(compile_trace(tensor_parallel(trace, parallel.tp)), device)
    streams = bool(model.rows(compiled.basis_at(1.0, 1.0, 1.0)).moves)
    return (StreamedSteps if streams else EventSteps)(trace, device, parallel, profile, longest, clock)


def _kept(known: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(known) >= MOST_KEPT:
        known.clear()
    known[key] = value
    return value
