"""The discrete-event counterpart of the closed form: operators occupy resources tile by tile, streams contend.

The same device file and the same cost model (:mod:`.cost`), other arithmetic on top. A row says for how long one
execution occupies each resource (``RowCosts.busy_s``). Here an execution is cut into tiles that pass through its
resources one after another, movers first and arithmetic last, with two buffers between any two of them, so that the
next tile is loaded while this one is computed:

    stream ── launch ─▶ │ dram │▷▷│ l2 │▷▷│ compute │ ─ tail ─▶ next operator        (▷▷ two buffers)

    launch   the stream waits, nobody else does
    tiles    ⌈(Σ busy − max busy) / (1 % of max busy)⌉, 8 to 128: a lone pipeline fills in a hundredth of its time
    tail     what the closed form takes beyond this pipeline when it is alone (latencies that occupy nothing)

Alone, an execution takes max(closed form, pipeline), so one stream is never faster than the closed form and at most
its fill slower. With several streams, independent copies of one request that arrive together, one computes while
another loads, and what they cost each other is waiting (:mod:`.event_machine`).

What the rows read ahead of their layers, and write behind them (:attr:`.cost.RowCosts.moves`), is scheduled on its
own: then a pass may be shorter than the closed form, which hides no more than an operator's own arithmetic.

Sampling: repetitions of a block are alike, so one stream runs one of them, several run :data:`REPETITIONS` and the
rest take what these took after the first (after the buffers are full, where something is read ahead); decode steps are
simulated at :data:`SAMPLES` contexts, and the ratio to the closed form is interpolated between.

Left out: sharing inside a resource (row buffers, cache capacity, registers), which makes the gain from several
streams an upper bound; the upper end of their interval is one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..workloads.compiled import CompiledTrace
from ..workloads.expr_functions import Array
from .cost import Costs, Move, OperatorModel, RowCosts, cost, prepare, rated_power
from .event_machine import TICKS, Layer, Run, Slice, Task, simulate
from .spec import Device

REPETITIONS = 4
SETTLED = 12
"""Repetitions simulated after the buffers of what is read ahead are full."""
SAMPLES = 3
MOST_STREAMS = 64


@dataclass(frozen=True)
class Pass:
    """One forward pass of every stream at one point.

    ``seconds`` until the last stream is done and has written all, ``alone_s`` of one by itself, ``closed_s`` of the
    closed form;
    ``busy_s`` is how long all streams together occupy each resource, ``waited_s`` what a stream waited for its
    turns (stages of one pipeline wait at the same time, so it may exceed the pass), ``rows_s`` of each row with its
    count, a mean over streams; ``slices`` of the repetitions that were simulated. ``schedule`` is what one stream
    does, with as many repetitions of a block as were simulated.
    """

    seconds: float
    alone_s: float
    closed_s: float
    busy_s: dict[str, float]
    waited_s: float
    rows_s: npt.NDArray[np.float64]
    schedule: tuple[Layer, ...] = ()
    repetitions: int = 1
    slices: tuple[Slice, ...] = ()


def simulate_pass(
    compiled: CompiledTrace, rows: RowCosts, reasons: Sequence[str], at: int, streams: int = 1,
    *, repetitions: int | None = None, record: bool = False,
) -> Pass:  # fmt: skip
    """The pass of ``rows``, a model's costs at several points, at the point ``at``.

    ``repetitions``: how many of a block's are simulated (all that there are if fewer); without it one for one stream
    and :data:`REPETITIONS` for several.
    """
    staged = rows.staged or rows
    tasks = [_task(compiled, staged, reasons, i, at) for i in range(len(compiled.rows))]
    place = {name: i for i, row in enumerate(compiled.rows) for name in row.names}
    blocks = {b.name: b for b in compiled.trace.blocks}
    ahead = max((int(row.operator.attrs.get("ahead", 0)) for row in compiled.rows), default=0) if rows.moves else 0
    most = repetitions or (1 if streams == 1 else REPETITIONS)
    if rows.moves:
        most = max(most, 2 * ahead + 2 + SETTLED)
    runs: list[tuple[Layer, int, int]] = []
    for name, times in compiled.trace.order:
        mine = [(place[f"{name}.{op.name}"], f"{name}.{op.name}") for op in blocks[name].operators]
        body = tuple(replace(tasks[i], name=full) for i, full in mine)
        here = [m for i, _ in mine for m in rows.moves if m.row == i]
        reads, writes = (_moved([m for m in here if m.write == w], at) for w in (False, True))
        runs.append((Layer(body, reads, writes, ahead), min(times, most), times))
    schedule = [layer for layer, simulated, _ in runs for _ in range(simulated)]
    run = simulate([schedule] * streams, record=record)
    finish, waited, rows_s = [], [], np.zeros(len(tasks))
    for i in range(streams):
        settled = slice(ahead + 2, -ahead) if rows.moves else slice(1, None)
        end, wait = _extrapolated(run.ends[i], runs, rows_s, settled), run.waited[i]
        finish.append(end + run.finish[i] - run.ends[i][-1])
        waited.append(wait * end / max(run.ends[i][-1], 1))
    busy = {name: float(compiled.counts @ seconds[:, at]) for name, seconds in busy_of(staged, reasons).items()}
    for move in rows.moves:
        for name, seconds in move.stages.items():
            busy[name] = busy.get(name, 0.0) + float(seconds[at]) * compiled.rows[move.row].count
    if not rows.moves:
        alone = sum(t.alone * row.count for t, row in zip(tasks, compiled.rows, strict=True)) / TICKS
    else:
        alone = finish[0] / TICKS if streams == 1 else simulate_pass(compiled, rows, reasons, at).seconds
    end_s = max(finish) / TICKS
    return Pass(
        seconds=max(end_s, *(s * streams for s in busy.values()), alone) if streams > 1 else end_s,
        alone_s=alone,
        closed_s=float(compiled.counts @ rows.time_s[:, at]),
        busy_s={name: s * streams for name, s in busy.items() if s > 0},
        waited_s=sum(waited) / streams / TICKS,
        rows_s=rows_s / streams / TICKS,
        schedule=tuple(schedule),
        repetitions=most,
        slices=tuple(run.slices),
    )


def _moved(moves: Sequence[Move], at: int) -> tuple[Task, ...]:
    """What ``moves``, those of one layer, read or write at the point ``at``: a task for every tier."""
    found = []
    for place in dict.fromkeys(m.place for m in moves):
        here = [m for m in moves if m.place == place]
        stages = {name: sum(float(m.stages[name][at]) for m in here) for name in here[0].stages}
        if any(stages.values()):
            seconds = max(stages.values()) + max(m.latency_s for m in here)
            found.append(Task.of(here[0].row, place, 0.0, seconds, stages))
    return tuple(found)


def _extrapolated(ends: list[int], runs: list[tuple[Layer, int, int]], rows_s: Array, settled: slice) -> float:
    """Ticks of one stream with all repetitions: those that were not simulated take what the ``settled`` ones of the
    simulated took, operator by operator. Adds each row's ticks to ``rows_s``."""
    total, at = 0.0, 0
    before = 0
    for layer, simulated, times in runs:
        body = layer.tasks
        spans: list[list[int]] = []
        for _ in range(simulated):
            spans.append([])
            for _ in body:
                spans[-1].append(ends[at] - before)
                before, at = ends[at], at + 1
        steady = spans[settled] or spans
        for k, task in enumerate(body):
            each = sum(s[k] for s in steady) / len(steady)
            ticks = sum(s[k] for s in spans) + (times - simulated) * each
            rows_s[task.row] += ticks
            total += ticks
    return total


def prompt_beside_decode(prompt: Pass, decode: Pass, streams: int) -> dict[str, float]:
    """One stream reads its prompt while the others decode: how much slower each is than alone (``slowdown``), and how
    much faster all of it is than one after another (``gain``). Of the simulated repetitions of the prompt's blocks."""
    run = simulate([prompt.schedule, *[decode.schedule] * (streams - 1)], background=streams - 1)
    elapsed = run.finish[0]
    alone = simulate([prompt.schedule]).finish[0]
    each = _spans(simulate([decode.schedule]))
    done = sum(sum(each) * (len(ends) // len(each)) + sum(each[: len(ends) % len(each)]) for ends in run.ends[1:])
    return {
        "prompt_slowdown": elapsed / alone,
        "decode_slowdown": elapsed * (streams - 1) / done if done else float(streams),
        "gain": (alone + done) / elapsed,
    }


def _spans(run: Run) -> list[int]:
    """Ticks of each execution of a lone stream, what it waited for included."""
    ends = run.ends[0]
    return [end - before for end, before in zip(ends, [0, *ends[:-1]], strict=True)]


def busy_of(rows: RowCosts, reasons: Sequence[str]) -> dict[str, Array]:
    """Seconds that each row occupies each resource; where a model reports none, what bound it all the time."""
    if rows.busy_s:
        return rows.busy_s
    overlapped = rows.time_s - rows.launch_s
    return {reason: np.where(rows.bound == i, overlapped, 0.0) for i, reason in enumerate(reasons)}


def _task(compiled: CompiledTrace, rows: RowCosts, reasons: Sequence[str], i: int, at: int) -> Task:
    launch = float(rows.launch_s[i, at])
    overlapped = float(rows.time_s[i, at]) - launch
    busy = {name: min(float(s[i, at]), overlapped) for name, s in busy_of(rows, reasons).items()}
    return Task.of(i, compiled.rows[i].names[0], launch, overlapped, busy)


@dataclass
class EventLevel:
    """Passes by simulation: takes the place of :func:`.cost.cost` in :func:`.estimate.estimate`.

    ``streams`` requests run beside one another; latency is until the last one is done, energy is of all of them.
    ``passes`` keeps what was simulated, by (batch, query, context); ``record`` keeps their timelines too.
    """

    streams: int = 1
    record: bool = False
    passes: dict[tuple[float, float, float], Pass] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.streams <= MOST_STREAMS:
            raise InputError(f"--streams {self.streams}: accepted: 1 to {MOST_STREAMS}")

    def __call__(
        self, trace: CompiledTrace, device: Device, b: npt.ArrayLike, q: npt.ArrayLike, c: npt.ArrayLike,
        *, detail: bool = False,
    ) -> Costs:  # fmt: skip
        """Costs of passes at points (P,): the closed form's, times what the simulation makes of them."""
        closed = cost(trace, device, b, q, c, detail=detail)
        points = np.broadcast_arrays(*(np.atleast_1d(np.asarray(x, dtype=float)) for x in (b, q, c)))
        if not closed.latency_s.size:
            return closed
        compiled, model = prepare(trace, device)
        chosen = np.unique(np.round(np.linspace(0, closed.latency_s.size - 1, SAMPLES)).astype(int))
        rows = model.rows(compiled.basis_at(*(p[chosen] for p in points)))
        found = []
        for k, i in enumerate(chosen):
            key = (float(points[0][i]), float(points[1][i]), float(points[2][i]))
            if key not in self.passes:
                keep = self.record and closed.latency_s.size == 1
                self.passes[key] = simulate_pass(compiled, rows, model.reasons, k, self.streams, record=keep)
            found.append(self.passes[key])
        ratio = np.interp(np.arange(closed.latency_s.size), chosen, [p.seconds / p.closed_s for p in found])
        return self._costs(closed, ratio, device, model, found[0].rows_s if detail else None)

    def _costs(self, closed: Costs, ratio: Array, device: Device, model: OperatorModel, rows_s: Array | None) -> Costs:
        n, latency, power = self.streams, closed.latency_s * ratio, model.static_power_w
        low, high = closed.low_s * ratio, closed.high_s * ratio
        if n > 1:
            high = np.maximum(high, closed.high_s * n)
        parts = {name: joules * n for name, joules in closed.energy_parts_j.items() if name != "static"}
        dynamic = np.sum(list(parts.values()), axis=0)
        if n > 1:  # as in the closed form: what the rated power does not allow is not drawn
            alone = np.sum([j for name, j in closed.energy_parts_j.items() if name != "static"], axis=0)
            limit = np.maximum((rated_power(device)[0] - power) * latency, alone * ratio)
            within = np.minimum(1.0, limit / np.maximum(dynamic, 1e-300))
            parts = {name: joules * within for name, joules in parts.items()}
            dynamic = dynamic * within
        parts["static"] = power * latency
        bound = {reason: share / ratio for reason, share in closed.bound.items()}
        bound["waiting"] = np.maximum(1 - 1 / ratio, 0.0)
        if (ratio < 1).any():  # reads that ran ahead: what is left of them is waited for
            hidden = np.minimum(np.maximum(1 / ratio - 1, 0.0), bound.get("storage", 0.0))
            bound["storage"] = bound.get("storage", np.zeros_like(ratio)) - hidden
            whole = np.sum(list(bound.values()), axis=0)
            bound = {reason: share / whole for reason, share in bound.items()}
        if rows_s is not None:  # the last stream's end is the pass's: its rows are stretched to fill it
            rows_s = np.repeat(rows_s[:, None], ratio.size, 1)
            scale = {p: v[0] / max(closed.energy_parts_j[p][0], 1e-300) for p, v in parts.items() if p != "static"}
            rows_j = {p: j * scale[p] for p, j in closed.operator_energy_j.items() if p != "static"}
            rows_j["static"] = power * rows_s * (latency / rows_s.sum(axis=0))
            closed = replace(closed, operator_time_s=rows_s, operator_energy_j=rows_j)
        return replace(
            closed, latency_s=latency, low_s=low, high_s=high, bound=bound, energy_parts_j=parts,
            energy_low_j=(dynamic + power * low) * model.power_interval[0],
            energy_high_j=(dynamic + power * high) * model.power_interval[1],
        )  # fmt: skip
