"""The discrete-event counterpart of the closed form: operators occupy resources tile by tile, streams contend.

The same device file and the same cost model (:mod:`.cost`), other arithmetic on top. A row says for how long one
execution occupies each resource (``RowCosts.busy_s``). Here an execution is cut into tiles that pass through its
resources one after another, movers first and arithmetic last, with two buffers between any two of them, so that the
next tile is loaded while this one is computed:

    stream ── launch ─▶ │ dram │▷▷│ l2 │▷▷│ compute │ ─ tail ─▶ next operator        (▷▷ two buffers)

    launch   the stream waits, nobody else does
    tiles    ⌈(Σ busy − max busy) / (1 % of max busy)⌉, 8 to 128: a lone pipeline fills in a hundredth of its time
    tail     what the closed form takes beyond this pipeline when it is alone (latencies that occupy nothing)

Each resource serves one at a time, in the order of asking (ties: the order of the streams). Beside others a tile asks
again after every turn of half a mean tile, so that long tiles do not crowd out short ones. Alone, an execution
takes max(closed form, pipeline), so one stream is never faster than the closed form and at most its fill slower. With
several streams, independent copies of one request that arrive together, one computes while another loads, and what
they cost each other is waiting. Time is counted in whole femtoseconds; nothing is random.

Sampling: repetitions of a block are alike, so one stream runs one of them, several run :data:`REPETITIONS` and the
rest take what these took after the first; decode steps are simulated at :data:`SAMPLES` contexts, and the ratio to
the closed form is interpolated between.

Left out: sharing inside a resource (row buffers, cache capacity, registers), which makes the gain from several
streams an upper bound; the upper end of their interval is one after another.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..workloads.compiled import CompiledTrace
from ..workloads.expr_functions import Array
from .cost import Costs, OperatorModel, RowCosts, cost, prepare, rated_power
from .spec import Device

TICKS = 10**15
"""Per second: femtoseconds, so that a tile's length is a whole number to one part in a million."""
LAST = ("vector", "dequantisation", "compute")
"""Resources that do arithmetic, which a tile reaches last; all others move it."""
BUFFERS = 2
FILL = 0.01
TILES = (8, 128)
REPETITIONS = 4
SAMPLES = 3
TURN = 0.5
MOST_STREAMS = 64
MOST_RECORDED = 200_000
"""Slices of a timeline."""

Event = Generator[Any, Any, None]


@dataclass(frozen=True)
class Task:
    """One operator execution in ticks: ``stages`` are (resource, ticks) in the order a tile passes them."""

    row: int
    name: str
    launch: int
    stages: tuple[tuple[str, int], ...]
    tiles: int
    tail: int

    @classmethod
    def of(cls, row: int, name: str, launch_s: float, overlapped_s: float, busy_s: dict[str, float]) -> Task:
        """The task that alone takes launch + max(overlapped, its pipeline). ``busy_s`` may be empty: then the
        execution occupies nothing that another could want."""
        ordered = sorted((name for name, s in busy_s.items() if s > 0), key=_place)
        stages = tuple((name, max(round(busy_s[name] * TICKS), 1)) for name in ordered)
        tiles = tiles_of([ticks for _, ticks in stages])
        overlapped = round(overlapped_s * TICKS)
        tail = max(overlapped - pipeline_ticks([ticks for _, ticks in stages], tiles), 0)
        return cls(row, name, round(launch_s * TICKS), stages, tiles, tail)

    @property
    def alone(self) -> int:
        """Ticks of it where nobody else is."""
        return self.launch + pipeline_ticks([ticks for _, ticks in self.stages], self.tiles) + self.tail


def _place(resource: str) -> tuple[int, str]:
    return (LAST.index(resource) + 1, "") if resource in LAST else (0, resource)


def tiles_of(stages: Sequence[int]) -> int:
    """Tiles of an execution whose stages take so many ticks."""
    longest = max(stages, default=0)
    beside = sum(stages) - longest
    wanted = -(-beside // max(int(longest * FILL), 1)) if longest else 1
    return int(min(max(wanted, TILES[0]), TILES[1]))


def lengths(ticks: int, tiles: int) -> list[int]:
    """Ticks of each tile; their sum is ``ticks``."""
    return [(i + 1) * ticks // tiles - i * ticks // tiles for i in range(tiles)]


def pipeline_ticks(stages: Sequence[int], tiles: int) -> int:
    """Ticks of a lone pipeline: end(s, i) = length + max(end(s−1, i), end(s, i−1), end(s+1, i−2))."""
    if not stages:
        return 0
    each = [lengths(ticks, tiles) for ticks in stages]
    last = [[0] * len(stages) for _ in range(BUFFERS)]
    for i in range(tiles):
        ends: list[int] = []
        for s in range(len(stages)):
            room = last[-BUFFERS][s + 1] if s + 1 < len(stages) else 0
            ends.append(each[s][i] + max(ends[-1] if ends else 0, last[-1][s], room))
        last = [*last[1:], ends]
    return last[-1][-1]


@dataclass
class Slice:
    """What a timeline shows: ``track`` is a stream or a resource; times in ticks."""

    track: str
    name: str
    start: int
    length: int


@dataclass
class Run:
    """One simulation: ticks at which each stream finished each of its executions, and what was recorded."""

    ends: list[list[int]]
    waited: list[int]
    slices: list[Slice] = field(default_factory=list)


def simulate(streams: Sequence[Sequence[Task]], *, record: bool = False, background: int = 0) -> Run:
    """Run the streams beside one another on one set of resources, all from tick 0.

    The last ``background`` of them start over whenever they are done, until the others are.
    """
    import simpy

    env = simpy.Environment()
    resources: dict[str, simpy.Resource] = {
        name: simpy.Resource(env) for name in sorted({name for tasks in streams for t in tasks for name, _ in t.stages})
    }
    run = Run([[] for _ in streams], [0] * len(streams))
    first_behind = len(streams) - background
    quantum = _quanta(streams)

    def now() -> int:
        return int(env.now)

    def keep(track: str, name: str, start: int) -> None:
        if record and len(run.slices) < MOST_RECORDED:
            run.slices.append(Slice(track, name, start, now() - start))

    def stage(i: int, task: Task, s: int, buffers: list[Any]) -> Event:
        name, ticks = task.stages[s]
        for length in lengths(ticks, task.tiles):
            if s > 0:
                yield buffers[s - 1][1].get(1)
            if s + 1 < len(task.stages):
                yield buffers[s][0].get(1)
            while length:
                asked = now()
                with resources[name].request() as turn:
                    yield turn
                    run.waited[i] += now() - asked
                    began = now()
                    turn_length = min(length, quantum[name]) if len(streams) > 1 else length
                    yield env.timeout(turn_length)
                length -= turn_length
                keep(name, f"{i}: {task.name}", began)
            if s > 0:
                yield buffers[s - 1][0].put(1)
            if s + 1 < len(task.stages):
                yield buffers[s][1].put(1)

    def stream(i: int, tasks: Sequence[Task]) -> Event:
        for task in tasks if i < first_behind else cycle(tasks):
            began = now()
            if task.launch:
                yield env.timeout(task.launch)
            if task.stages:
                buffers = [
                    (simpy.Container(env, BUFFERS, init=BUFFERS), simpy.Container(env, BUFFERS))
                    for _ in task.stages[1:]
                ]
                yield env.all_of([env.process(stage(i, task, s, buffers)) for s in range(len(task.stages))])
            if task.tail:
                yield env.timeout(task.tail)
            run.ends[i].append(now())
            keep(f"stream {i}", task.name, began)

    started = [env.process(stream(i, tasks)) for i, tasks in enumerate(streams)]
    env.run(until=env.all_of(started[:first_behind]))
    return run


def _quanta(streams: Sequence[Sequence[Task]]) -> dict[str, int]:
    """Ticks that a tile holds a resource at a time while others want it: :data:`TURN` of a mean tile's."""
    busy: dict[str, int] = {}
    tiles: dict[str, int] = {}
    for task in (task for tasks in streams for task in tasks):
        for name, ticks in task.stages:
            busy[name] = busy.get(name, 0) + ticks
            tiles[name] = tiles.get(name, 0) + task.tiles
    return {name: max(int(TURN * busy[name] / tiles[name]), 1) for name in busy}


@dataclass(frozen=True)
class Pass:
    """One forward pass of every stream at one point.

    ``seconds`` until the last stream is done, ``alone_s`` of one stream by itself, ``closed_s`` of the closed form;
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
    schedule: tuple[Task, ...] = ()
    slices: tuple[Slice, ...] = ()


def simulate_pass(
    compiled: CompiledTrace, rows: RowCosts, reasons: Sequence[str], at: int, streams: int = 1,
    *, repetitions: int | None = None, record: bool = False,
) -> Pass:  # fmt: skip
    """The pass of ``rows``, a model's costs at several points, at the point ``at``.

    ``repetitions``: how many of a block's are simulated (all that there are if fewer); without it one for one stream
    and :data:`REPETITIONS` for several.
    """
    tasks = [_task(compiled, rows, reasons, i, at) for i in range(len(compiled.rows))]
    place = {name: i for i, row in enumerate(compiled.rows) for name in row.names}
    blocks = {b.name: b for b in compiled.trace.blocks}
    most = repetitions or (1 if streams == 1 else REPETITIONS)
    runs: list[tuple[list[Task], int, int]] = []
    for name, times in compiled.trace.order:
        body = [replace(tasks[place[f"{name}.{op.name}"]], name=f"{name}.{op.name}") for op in blocks[name].operators]
        runs.append((body, min(times, most), times))
    schedule = [task for body, simulated, _ in runs for task in body * simulated]
    run = simulate([schedule] * streams, record=record)
    finish, waited, rows_s = [], [], np.zeros(len(tasks))
    for i in range(streams):
        end, wait = _extrapolated(run.ends[i], runs, rows_s), run.waited[i]
        finish.append(end)
        waited.append(wait * end / max(run.ends[i][-1], 1))
    busy = {name: float(compiled.counts @ seconds[:, at]) * streams for name, seconds in busy_of(rows, reasons).items()}
    alone = sum(t.alone * row.count for t, row in zip(tasks, compiled.rows, strict=True)) / TICKS
    return Pass(
        seconds=max(max(finish) / TICKS, *busy.values(), alone) if streams > 1 else max(finish) / TICKS,
        alone_s=alone,
        closed_s=float(compiled.counts @ rows.time_s[:, at]),
        busy_s={name: s for name, s in busy.items() if s > 0},
        waited_s=sum(waited) / streams / TICKS,
        rows_s=rows_s / streams / TICKS,
        schedule=tuple(schedule),
        slices=tuple(run.slices),
    )


def _extrapolated(ends: list[int], runs: list[tuple[list[Task], int, int]], rows_s: Array) -> float:
    """Ticks of a whole pass; adds to ``rows_s`` the ticks of each row."""
    at, before, total = 0, 0, 0.0
    for body, simulated, times in runs:
        spans = []
        for _ in range(simulated):
            mine = [end - begin for begin, end in zip([before, *ends[at : at + len(body) - 1]],
                                                      ends[at : at + len(body)], strict=True)]  # fmt: skip
            spans.append(mine)
            at += len(body)
            before = ends[at - 1]
        steady = spans[1:] or spans
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
    elapsed = run.ends[0][-1]
    alone = sum(task.alone for task in prompt.schedule)
    each = [task.alone for task in decode.schedule]
    done = sum(sum(each) * (len(ends) // len(each)) + sum(each[: len(ends) % len(each)]) for ends in run.ends[1:])
    return {
        "prompt_slowdown": elapsed / alone,
        "decode_slowdown": elapsed * (streams - 1) / done if done else float(streams),
        "gain": (alone + done) / elapsed,
    }


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
        low, high = closed.low_s * ratio, np.maximum(closed.high_s * ratio, closed.high_s * n)
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
