"""The machine of the discrete-event level: tiles of tasks, resources in turns, reads that run ahead of their layers.

A task's tiles pass through its resources, movers first and arithmetic last, with two buffers between any two of them.
Each resource serves one at a time, in the order of asking (ties: the order of the streams). Beside others a tile asks
again after every turn of half a mean tile, so that long tiles do not crowd out short ones. Time is counted in whole
femtoseconds; nothing is random.

A :class:`Layer` is a repetition of a block. What it reads from slow tiers is a task of its own, played by a loader per
tier and stream beside the stream's operators:

    loader    read j   after read j − 1, and when layer j − 1 − ahead is done, whose buffer it takes
    stream    layer j  after layer j − 1, when its reads are there, and what layer j − 1 − ahead wrote is out
    writer    write j  when layer j is done; a pass ends when all is out

Loaders, writers and streams wait for one another at the tiers and links that they share. The first byte of a read is
later by its latency, which occupies nothing: the next read is under way meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from typing import Any

TICKS = 10**15
"""Per second: femtoseconds, so that a tile's length is a whole number to one part in a million."""
LAST = ("vector", "dequantisation", "compute")
"""Resources that do arithmetic, which a tile reaches last; all others move it."""
BUFFERS = 2
FILL = 0.01
TILES = (8, 128)
TURN = 0.5
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

    @cached_property
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


@dataclass(frozen=True)
class Layer:
    """Operators of one repetition of a block, what they read ahead (a task per tier), what they write behind."""

    tasks: tuple[Task, ...]
    reads: tuple[Task, ...] = ()
    writes: tuple[Task, ...] = ()
    ahead: int = 0

    @property
    def moved(self) -> set[str]:
        """Resources that its reads and writes occupy."""
        return {name for task in (*self.reads, *self.writes) for name, _ in task.stages}


@dataclass
class Run:
    """One simulation: ticks at which each stream finished each of its executions, at which its last write was out,
    for how long it waited, and what was recorded."""

    ends: list[list[int]]
    finish: list[int]
    waited: list[int]
    slices: list[Slice] = field(default_factory=list)


def simulate(streams: Sequence[Sequence[Task | Layer]], *, record: bool = False, background: int = 0) -> Run:
    """Run the streams beside one another on one set of resources, all from tick 0.

    The last ``background`` of them start over whenever they are done, until the others are.
    """
    layers = [[x if isinstance(x, Layer) else Layer((x,)) for x in stream] for stream in streams]
    return _Machine(layers, record).run(len(streams) - background)


class _Machine:
    """Resources and the processes that occupy them."""

    def __init__(self, streams: list[list[Layer]], record: bool) -> None:
        import simpy

        self.env, self.container = simpy.Environment(), simpy.Container
        self.streams, self.record = streams, record
        self.tasks = [t for layers in streams for x in layers for t in (*x.tasks, *x.reads, *x.writes)]
        names = sorted({name for t in self.tasks for name, _ in t.stages})
        self.resources = {name: simpy.Resource(self.env) for name in names}
        moved = {name for layers in streams for x in layers for name in x.moved}
        self.contended = set(names) if len(streams) > 1 else moved
        self.quantum = _quanta(self.tasks)
        self.result = Run([[] for _ in streams], [0] * len(streams), [0] * len(streams))

    @property
    def now(self) -> int:
        return int(self.env.now)

    def run(self, foreground: int) -> Run:
        started = []
        for i in range(len(self.streams)):
            stream = _Stream(self, i, forever=i >= foreground)
            started.append(self.env.process(stream.compute()))
            for place in sorted({task.name for layer in self.streams[i] for task in layer.reads}):
                self.env.process(stream.load(place))
        self.env.run(until=self.env.all_of(started[:foreground]))
        return self.result

    def keep(self, track: str, name: str, start: int) -> None:
        if self.record and len(self.result.slices) < MOST_RECORDED:
            self.result.slices.append(Slice(track, name, start, self.now - start))

    def pipeline(self, i: int, task: Task, behind: Sequence[Any] = ()) -> list[Any]:
        """The processes of all stages of ``task``, each ``behind`` the same stage of a task before."""
        buffers = [
            (self.container(self.env, BUFFERS, init=BUFFERS), self.container(self.env, BUFFERS))
            for _ in task.stages[1:]
        ]
        before = [*behind, *[None] * len(task.stages)]
        return [self.env.process(self.stage(i, task, s, buffers, before[s])) for s in range(len(task.stages))]

    def execute(self, i: int, task: Task) -> Event:
        """``task`` from beginning to end."""
        env = self.env
        if not self.record and not any(name in self.contended for name, _ in task.stages):
            if task.alone:
                yield env.timeout(task.alone)
            return
        if task.launch:
            yield env.timeout(task.launch)
        if task.stages:
            yield env.all_of(self.pipeline(i, task))
        if task.tail:
            yield env.timeout(task.tail)

    def stage(self, i: int, task: Task, s: int, buffers: list[Any], before: Any) -> Event:
        env = self.env
        if before is not None:
            yield before
        name, ticks = task.stages[s]
        for length in lengths(ticks, task.tiles):
            if s > 0:
                yield buffers[s - 1][1].get(1)
            if s + 1 < len(task.stages):
                yield buffers[s][0].get(1)
            while length:
                asked = self.now
                with self.resources[name].request() as turn:
                    yield turn
                    self.result.waited[i] += self.now - asked
                    began = self.now
                    turn_length = min(length, self.quantum[name]) if name in self.contended else length
                    yield env.timeout(turn_length)
                length -= turn_length
                self.keep(name, f"{i}: {task.name}", began)
            if s > 0:
                yield buffers[s - 1][0].put(1)
            if s + 1 < len(task.stages):
                yield buffers[s][1].put(1)


class _Stream:
    """One stream's operators, loaders and writers. Events by the layer's place in the stream."""

    def __init__(self, machine: _Machine, i: int, forever: bool) -> None:
        self.machine, self.i, self.forever = machine, i, forever
        self.layers = machine.streams[i]
        event: Callable[[], Any] = machine.env.event
        self.done: dict[int, Any] = defaultdict(event)
        self.written: dict[int, Any] = defaultdict(event)
        self.read: dict[tuple[int, str], Any] = defaultdict(event)
        self.writing: dict[str, list[Any]] = defaultdict(list)

    def order(self) -> Any:
        return enumerate(cycle(self.layers) if self.forever else self.layers)

    def compute(self) -> Event:
        machine, i = self.machine, self.i
        env, result = machine.env, machine.result
        for j, layer in self.order():
            for task in layer.reads:
                yield self.read[j, task.name]
            if layer.ahead and j > layer.ahead:
                yield self.written[j - 1 - layer.ahead]
            for task in layer.tasks:
                began = machine.now
                yield from machine.execute(i, task)
                result.ends[i].append(machine.now)
                machine.keep(f"stream {i}", task.name, began)
            self.done[j].succeed()
            if layer.writes:
                env.process(self.write(j, layer))
            else:
                self.written[j].succeed()
        yield env.all_of([self.written[j] for j in range(len(self.layers))])
        result.finish[i] = machine.now

    def load(self, place: str) -> Event:
        """Reads from one tier, one after another: the next begins when this one has left the first of its stages."""
        machine = self.machine
        stages: list[Any] = []
        for j, layer in self.order():
            for task in (t for t in layer.reads if t.name == place):
                if j > layer.ahead:
                    yield self.done[j - 1 - layer.ahead]
                stages = machine.pipeline(self.i, task, stages)
                machine.env.process(self.arrive(j, task, stages))
                yield stages[0]

    def arrive(self, j: int, task: Task, stages: list[Any]) -> Event:
        yield self.machine.env.all_of(stages)
        if task.tail:
            yield self.machine.env.timeout(task.tail)
        self.read[j, task.name].succeed()

    def write(self, j: int, layer: Layer) -> Event:
        machine = self.machine
        for task in layer.writes:
            self.writing[task.name] = machine.pipeline(self.i, task, self.writing[task.name])
        yield machine.env.all_of([p for task in layer.writes for p in self.writing[task.name]])
        self.written[j].succeed()


def _quanta(all_tasks: Sequence[Task]) -> dict[str, int]:
    """Ticks that a tile holds a resource at a time while others want it: :data:`TURN` of a mean tile's."""
    busy: dict[str, int] = {}
    tiles: dict[str, int] = {}
    for task in all_tasks:
        for name, ticks in task.stages:
            busy[name] = busy.get(name, 0) + ticks
            tiles[name] = tiles.get(name, 0) + task.tiles
    return {name: max(int(TURN * busy[name] / tiles[name]), 1) for name in busy}
