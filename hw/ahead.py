"""A pass whose layers are read from slow tiers ahead of time, as a recurrence: what the event level takes alone.

Layers in a row, each with C seconds of operators, and for every resource r of the ways to the slow tiers Rᵣ seconds of
reads and Wᵣ of writes. Reads of layer j may begin when layer j − 1 − a is done (``ahead`` a ≥ 1: there are a + 1
buffers), tiers and links work through layers in order:

    readᵣ(j)  = max(readᵣ(j − 1), done(j − 1 − a)) + Rᵣ
    start(j)  = max(done(j − 1), maxᵣ readᵣ(j) + latency, written(j − 1 − a))
    done(j)   = start(j) + C
    writtenᵣ(j) = max(what r did before, done(j)) + Wᵣ          the pass ends when everything is out

For L like layers, X = maxᵣ Rᵣ, no latency and nothing to write, that is X + (L − 1) · max(C, X) + C: the first reads
show, then the longer of both. Compute without time leaves the bytes over the bandwidth, reads without time the
operators; ``ahead=0``, where every operator waits for its own reads, is the closed form's sum.

:func:`lone` is the event level's time of rows that nothing contends with, for tables of many points; tests hold both to
the simulation. Where operators use a link themselves (``demand``: neurons that fire, activations on their way to memory
units) while reads that run ahead are on it, both get half of it until one is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..workloads.compiled import CompiledTrace
from ..workloads.expr_functions import Array
from .cost import Errors, Move, OperatorModel, RowCosts
from .event import busy_of
from .event_machine import FILL, TILES


@dataclass(frozen=True)
class Stretch:
    """``times`` layers alike: seconds (points,) of operators, and of each resource that they read, write and, in the
    middle of their own operators, ``demand``."""

    times: int
    compute_s: Array
    reads: dict[str, Array] = field(default_factory=dict)
    writes: dict[str, Array] = field(default_factory=dict)
    demand: dict[str, Array] = field(default_factory=dict)
    latency_s: float = 0.0


def schedule_s(stretches: Sequence[Stretch], ahead: int) -> Array:
    """Seconds of a pass over ``stretches`` in their order, (points,)."""
    if stretches[0].compute_s.size == 1:
        return np.array([_schedule(stretches, ahead, lambda x: float(x.item()), max, min)])
    return np.asarray(_schedule(stretches, ahead, lambda x: x, np.maximum, np.minimum))


def _schedule(
    stretches: Sequence[Stretch], ahead: int, of: Callable[[Array], Any], larger: Callable[[Any, Any], Any],
    smaller: Callable[[Any, Any], Any],
) -> Any:  # fmt: skip
    """:func:`schedule_s` on arrays, or on numbers (``of`` makes them), which is quicker for one point."""

    def told(part: dict[str, Array]) -> list[tuple[str, Any]]:
        return [(name, of(s)) for name, s in part.items() if (s > 0).any()]

    layers = [
        layer
        for x in stretches
        for layer in [(of(x.compute_s), x.latency_s, told(x.reads), told(x.writes), told(x.demand))] * x.times
    ]
    free: dict[str, Any] = {}
    done: list[Any] = []
    written: list[Any] = []
    arrived: list[Any] = []

    def occupy(parts: list[tuple[str, Any]], since: Any) -> Any:
        end: Any = 0.0
        for name, s in parts:
            free[name] = larger(free.get(name, 0.0), since) + s
            end = larger(end, free[name])
        return end

    for j, (compute, _, _, writes, demand) in enumerate(layers):
        while len(arrived) < min(j + 1 + ahead, len(layers)):
            k = len(arrived)
            there = occupy(layers[k][2], done[k - 1 - ahead] if k > ahead else 0.0)
            arrived.append(there + layers[k][1] if layers[k][2] else 0.0)
        start = larger(done[-1] if done else 0.0, arrived[j])
        if j > ahead:
            start = larger(start, written[j - 1 - ahead])
        both: Any = 0.0
        for name, s in demand:
            both = larger(both, smaller(free.get(name, 0.0) - start, s))
        occupy(demand, start)
        done.append(start + compute + both)
        written.append(larger(occupy(writes, done[-1]), done[-1]))
    end = done[-1]
    for each in written[-1 - ahead :]:
        end = larger(end, each)
    return end


def lone(rows: RowCosts, reasons: Sequence[str]) -> RowCosts:
    """``rows`` with the times that the event level takes of each alone; without those that run ahead, where there are
    such. A pipeline of stages b in n tiles takes Σ b / n + (n − 1) · max b / n."""
    found = rows.staged or rows
    overlapped = found.time_s - found.launch_s
    stages = np.stack([np.minimum(s, overlapped) for s in busy_of(found, reasons).values()])
    longest, total = stages.max(axis=0), stages.sum(axis=0)
    beside = np.divide(total - longest, FILL * longest, out=np.zeros_like(total), where=longest > 0)
    tiles = np.clip(np.ceil(beside), *TILES)
    pipeline = total / tiles + (tiles - 1) / tiles * longest
    return replace(found, time_s=found.launch_s + np.maximum(overlapped, pipeline), moves=rows.moves, staged=None)


@dataclass(frozen=True)
class LoneModel:
    """See :class:`.cost.OperatorModel`: ``base`` at the event level, row by row."""

    base: OperatorModel

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.base.reasons

    @property
    def static_power_w(self) -> float:
        return self.base.static_power_w

    @property
    def power_interval(self) -> tuple[float, float]:
        return self.base.power_interval

    @property
    def low(self) -> Array:
        return self.base.low

    @property
    def high(self) -> Array:
        return self.base.high

    @property
    def errors(self) -> Errors:
        return self.base.errors

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`; ``moves`` are not in the rows' times."""
        return lone(self.base.rows(basis), self.base.reasons)


@dataclass(frozen=True)
class Block:
    """A block of a trace in the order of its pass: rows and how often one repetition has each."""

    times: int
    rows: dict[int, int]


def blocks_of(compiled: CompiledTrace) -> list[Block]:
    """The runs of blocks of a pass."""
    place = {name: i for i, row in enumerate(compiled.rows) for name in row.names}
    blocks = {b.name: b for b in compiled.trace.blocks}
    found = []
    for name, times in compiled.trace.order:
        rows: dict[int, int] = {}
        for op in blocks[name].operators:
            i = place[f"{name}.{op.name}"]
            rows[i] = rows.get(i, 0) + 1
        found.append(Block(times, rows))
    return found


def most_ahead(compiled: CompiledTrace) -> int:
    """Layers by which reads of ``compiled`` run ahead where they do."""
    return max((int(row.operator.attrs.get("ahead", 0)) for row in compiled.rows), default=0)


def moved(moves: Sequence[Move], block: Block, *, write: bool) -> tuple[dict[str, Array], float]:
    """Seconds by resource that one repetition of ``block`` reads or writes of ``moves``, and the first byte's.

    Between a tier and the link are small buffers only, so a read takes its tier for as long as the link, if longer.
    """
    found: dict[str, Array] = {}
    latency = 0.0
    for move in moves:
        if move.row in block.rows and move.write == write:
            latency = max(latency, move.latency_s)
            longest = np.max(list(move.stages.values()), axis=0)
            for name, seconds in move.stages.items():
                taken = longest if name == move.place and not write else seconds
                found[name] = found.get(name, 0.0) + taken * block.rows[move.row]
    return found, latency


def demanded(rows: RowCosts, moves: Sequence[Move], block: Block) -> dict[str, Array]:
    """Seconds for which ``block``'s operators themselves occupy what ``moves`` pass."""
    names = sorted({name for move in moves for name in move.stages} & set(rows.busy_s))
    found = {r: np.sum([rows.busy_s[r][i] * n for i, n in block.rows.items()], axis=0) for r in names}
    return {r: s for r, s in found.items() if s.any()}


def stretches_of(compiled: CompiledTrace, rows: RowCosts) -> list[Stretch]:
    """The pass of ``rows``, what :func:`lone` says of them, for :func:`schedule_s`."""
    found = []
    for block in blocks_of(compiled):
        compute = np.sum([rows.time_s[i] * n for i, n in block.rows.items()], axis=0)
        reads, latency = moved(rows.moves, block, write=False)
        writes, _ = moved(rows.moves, block, write=True)
        found.append(Stretch(block.times, compute, reads, writes, demanded(rows, rows.moves, block), latency))
    return found
