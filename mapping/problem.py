"""A placement problem as plain data, and what a placement is worth; nothing here knows of models or devices.

A pass runs *blocks* one after another; a block is a DAG of *operators*, listed in an order that respects it.
Every operator takes one of its *options* (on which engines, in which shares, in which format). A request runs
each of F *phases* (prefill, handover, decode), phase f ``repeats[f]`` times; an option is chosen once and says
what it takes in each. R *resources* (engines, ports of links) are busy, M *pools* (memories, and whatever else has a
capacity) are filled. Options of one *place* differ in what the operator takes by itself, as formats do, and edges do
not tell them apart: tables of edges are over places.

    finish[j] = max over edges i → j (finish[i] + delay[i, j]) + time[j]      within a block, from its input on
    path[f]   = sum over blocks of the latest finish                          blocks meet in one operator: its output
    latency   = sum over f of repeats[f] · path[f]
    throughput = max over resources of the seconds they are busy per request  (the pipeline's bottleneck)
    energy    = energy of operators and edges + idle_w · latency
    cost      = dollars of operators and edges
    loss      = of operators: what formats cost in quality, in a unit of the caller's
    <phase>   = path[f], by the phase's name

Less is better of every metric. A value is a weighted sum of metrics; limits bound metrics; pools have capacities.
All times are seconds, energies joules, memories bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]
Choice = tuple[int, ...]
"""Options of one block's operators."""
METRICS = ("latency", "throughput", "energy", "cost", "loss")
INPUT = -1
"""Source of an edge that comes from the output of the block before."""
ROUNDING = 1e-9
"""Relative excess of a capacity or a limit that is taken for rounding."""


@dataclass(frozen=True)
class Operator:
    """One operator with K options: ``time_s`` (K, F), ``busy_s`` (K, F, R), ``energy_j``, ``cost_usd`` (K,) of a
    whole request, ``memory`` (K, M), ``allowed`` (K,). ``at`` (K,): the place of each option, numbers from 0 on without
    a gap (nothing: every option is a place of its own); ``formats`` names what options of one place differ in;
    ``loss`` (K,), nothing: 0."""

    name: str
    options: tuple[str, ...]
    time_s: Array
    busy_s: Array
    energy_j: Array
    cost_usd: Array
    memory: Array
    allowed: Mask
    at: Index | None = None
    formats: tuple[str, ...] = ()
    loss: Array | None = None

    @cached_property
    def place(self) -> Index:
        """(K,): the place of each option."""
        return np.arange(len(self.options)) if self.at is None else self.at

    @cached_property
    def places(self) -> int:
        """How many places there are."""
        return int(self.place.max()) + 1

    @cached_property
    def losses(self) -> Array:
        """(K,): the loss of each option."""
        return np.zeros(len(self.options)) if self.loss is None else self.loss

    def best_at(self, values: Array) -> tuple[Array, Index]:
        """Of ``values`` (K,) the least at each place, and the option that has it."""
        if self.at is None:
            return values, self.place
        order = np.lexsort((values, self.at))
        first = order[np.searchsorted(self.at[order], np.arange(self.places))]
        return values[first], first


@dataclass(frozen=True)
class Edge:
    """``source`` (or :data:`INPUT`) must finish before ``target`` starts. Between Ps and Pt places: ``delay_s``
    (Ps, Pt, F), ``busy_s`` (Ps, Pt, F, R), ``energy_j`` and ``cost_usd`` (Ps, Pt) of a whole request, ``allowed``
    (Ps, Pt)."""

    source: int
    target: int
    delay_s: Array
    busy_s: Array
    energy_j: Array
    cost_usd: Array
    allowed: Mask


@dataclass(frozen=True)
class Block:
    """Operators in an order that respects ``edges``. ``output`` feeds the next block."""

    name: str
    operators: tuple[Operator, ...]
    edges: tuple[Edge, ...]
    output: int

    @cached_property
    def entering(self) -> tuple[tuple[int, ...], ...]:
        """Per operator the indices of the edges into it."""
        found: list[list[int]] = [[] for _ in self.operators]
        for e, edge in enumerate(self.edges):
            found[edge.target].append(e)
        return tuple(tuple(x) for x in found)

    def places(self, choice: Choice) -> Choice:
        """The place of each operator's option."""
        return tuple(int(op.place[k]) for op, k in zip(self.operators, choice, strict=True))

    def exit(self, choice: Choice) -> int:
        """The place of the output: where the next block is entered."""
        return int(self.operators[self.output].place[choice[self.output]])


@dataclass(frozen=True)
class Objective:
    """``weights`` of metrics whose sum is the value (others weigh nothing), ``limits`` of metrics."""

    weights: Mapping[str, float] = field(default_factory=lambda: {"latency": 1.0})
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """See the module's text. ``order`` lists the block that each layer runs. The first has no input and is run once;
    every other takes its input from the output of the layer before, whatever block that runs: outputs that feed one
    block have one list of places."""

    phases: tuple[str, ...]
    repeats: Array
    resources: tuple[str, ...]
    pools: tuple[str, ...]
    capacity: Array
    idle_w: float
    blocks: tuple[Block, ...]
    order: tuple[int, ...]
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self) -> None:
        for name in (*self.objective.weights, *self.objective.limits):
            if name not in self.metrics:
                raise InputError(f"unknown metric {name[:40]!r}; accepted: {', '.join(self.metrics)}")
        if not any(w > 0 for w in self.objective.weights.values()) or min(self.objective.weights.values()) < 0:
            raise InputError("an objective needs weights of at least 0, one of them above")
        first = self.blocks[self.order[0]]
        if any(e.source == INPUT for e in first.edges) or self.order[0] in self.order[1:]:
            raise ValueError(f"block {first.name}: the first layer has no input and is run once")
        for a, b in zip(self.order, self.order[1:], strict=False):
            before, block = self.blocks[a], self.blocks[b]
            width = before.operators[before.output].places
            inputs = [e for e in block.edges if e.source == INPUT]
            if not inputs or any(e.delay_s.shape[0] != width for e in inputs):
                raise ValueError(f"block {block.name}: its input edges do not fit the output of {before.name}")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics: the four, and the path of each phase."""
        return (*METRICS, *self.phases)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Stretches of one block in the order: (block, how many layers)."""
        found: list[tuple[int, int]] = []
        for b in self.order:
            if found and found[-1][0] == b:
                found[-1] = (b, found[-1][1] + 1)
            else:
                found.append((b, 1))
        return found

    @cached_property
    def path_weights(self) -> Array:
        """(F,): what a second of each phase's path adds to the value."""
        w = self.objective.weights
        through_latency = w.get("latency", 0.0) + w.get("energy", 0.0) * self.idle_w
        return np.array([through_latency * n + w.get(p, 0.0) for p, n in zip(self.phases, self.repeats, strict=True)])


@dataclass(frozen=True)
class Totals:
    """Sums over a block or a placement: ``path_s`` (F,), ``busy_s`` (R,) of a whole request, ``memory`` (M,)."""

    path_s: Array
    busy_s: Array
    energy_j: float
    cost_usd: float
    memory: Array
    loss: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.path_s + other.path_s, self.busy_s + other.busy_s, self.energy_j + other.energy_j,
            self.cost_usd + other.cost_usd, self.memory + other.memory, self.loss + other.loss,
        )  # fmt: skip


def nothing(problem: Problem) -> Totals:
    """Totals of no block."""
    return Totals(
        np.zeros(len(problem.phases)), np.zeros(len(problem.resources)), 0.0, 0.0, np.zeros(len(problem.pools))
    )


def arrivals(block: Block, entry: int, choice: Choice, phases: int) -> tuple[Array, Array]:
    """When each operator starts and finishes, seconds after the block's input was there: (operators, F) each."""
    start, finish = np.zeros((len(choice), phases)), np.empty((len(choice), phases))
    places = block.places(choice)
    for j, k in enumerate(choice):
        for e in block.entering[j]:
            edge = block.edges[e]
            if edge.source == INPUT:
                ready = edge.delay_s[entry, places[j]]
            else:
                ready = finish[edge.source] + edge.delay_s[places[edge.source], places[j]]
            np.maximum(start[j], ready, out=start[j])
        finish[j] = start[j] + block.operators[j].time_s[k]
    return start, finish


def longest_path(block: Block, entry: int, choice: Choice, phase: int, phases: int) -> tuple[list[int], list[int]]:
    """Operators and edges of a longest path of a phase through the block."""
    _, finish = arrivals(block, entry, choice, phases)
    places = block.places(choice)
    j = int(np.argmax(finish[:, phase]))
    nodes, edges = [j], []
    while j != INPUT:
        best = None
        for e in block.entering[j]:
            edge = block.edges[e]
            row = entry if edge.source == INPUT else places[edge.source]
            before = 0.0 if edge.source == INPUT else finish[edge.source, phase]
            ready = before + edge.delay_s[row, places[j], phase]
            if best is None or ready > best[0]:
                best = (ready, e)
        if best is None:
            break
        edges.append(best[1])
        j = block.edges[best[1]].source
        if j != INPUT:
            nodes.append(j)
    return nodes, edges


def block_totals(problem: Problem, block: Block, entry: int, choice: Choice) -> Totals:
    """What one pass through ``block`` takes. ``entry``: place of the output of the block before (any, if none)."""
    _, finish = arrivals(block, entry, choice, len(problem.phases))
    places = block.places(choice)
    busy = np.zeros((len(problem.phases), len(problem.resources)))
    energy = cost = loss = 0.0
    memory = np.zeros(len(problem.pools))
    for op, k in zip(block.operators, choice, strict=True):
        busy += op.busy_s[k]
        energy += float(op.energy_j[k])
        cost += float(op.cost_usd[k])
        loss += float(op.losses[k])
        memory += op.memory[k]
    for edge in block.edges:
        at = (entry if edge.source == INPUT else places[edge.source], places[edge.target])
        busy += edge.busy_s[at]
        energy += float(edge.energy_j[at])
        cost += float(edge.cost_usd[at])
    return Totals(finish.max(axis=0), problem.repeats @ busy, energy, cost, memory, loss)


def is_allowed(block: Block, entry: int, choice: Choice) -> bool:
    """Whether all options, and all pairs of places along edges, are allowed."""
    places = block.places(choice)
    if not all(op.allowed[k] for op, k in zip(block.operators, choice, strict=True)):
        return False
    return all(e.allowed[entry if e.source == INPUT else places[e.source], places[e.target]] for e in block.edges)


def all_allowed(problem: Problem, layers: Sequence[Choice]) -> bool:
    """Whether no layer takes an option, or a pair of options along an edge, that is not allowed."""
    entry = 0
    for b, choice in zip(problem.order, layers, strict=True):
        if not is_allowed(problem.blocks[b], entry, choice):
            return False
        entry = problem.blocks[b].exit(choice)
    return True


@dataclass(frozen=True)
class Evaluation:
    """A placement's metrics, its value, and what it exceeds: pool or limit → (used, allowed)."""

    metrics: dict[str, float]
    value: float
    totals: Totals
    exceeded: dict[str, tuple[float, float]]

    @property
    def feasible(self) -> bool:
        return not self.exceeded


def metrics_of(problem: Problem, totals: Totals) -> dict[str, float]:
    """All metrics of a whole placement's totals."""
    latency = float(problem.repeats @ totals.path_s)
    return {
        "latency": latency,
        "throughput": float(totals.busy_s.max(initial=0.0)),
        "energy": totals.energy_j + problem.idle_w * latency,
        "cost": totals.cost_usd,
        "loss": totals.loss,
        **{p: float(s) for p, s in zip(problem.phases, totals.path_s, strict=True)},
    }


def evaluate(problem: Problem, layers: Sequence[Choice]) -> Evaluation:
    """Metrics, value and excess of the placement that gives layer i the options ``layers[i]``."""
    totals, entry = nothing(problem), 0
    known: dict[tuple[int, int, Choice], Totals] = {}
    exceeded: dict[str, tuple[float, float]] = {}
    for number, (b, choice) in enumerate(zip(problem.order, layers, strict=True)):
        block = problem.blocks[b]
        key = (b, entry, choice)
        if key not in known:
            known[key] = block_totals(problem, block, entry, choice)
            if not is_allowed(block, entry, choice):
                exceeded[f"layer {number}"] = (1.0, 0.0)
        totals = totals + known[key]
        entry = block.exit(choice)
    metrics = metrics_of(problem, totals)
    for pool, used, capacity in zip(problem.pools, totals.memory, problem.capacity, strict=True):
        if used > capacity * (1 + ROUNDING) + ROUNDING:
            exceeded[pool] = (float(used), float(capacity))
    for name, limit in problem.objective.limits.items():
        if metrics[name] > limit * (1 + ROUNDING):
            exceeded[name] = (metrics[name], limit)
    return Evaluation(metrics, value_of(problem, metrics), totals, exceeded)


def value_of(problem: Problem, metrics: Mapping[str, float]) -> float:
    """The weighted sum of metrics that the objective asks for."""
    return sum(weight * metrics[name] for name, weight in problem.objective.weights.items())


def flat(problem: Problem) -> Problem:
    """The same problem as one block, every layer's operators on their own: names become ``NUMBER.BLOCK.OPERATOR``."""
    operators: list[Operator] = []
    edges: list[Edge] = []
    output = INPUT
    for number, b in enumerate(problem.order):
        block, offset = problem.blocks[b], len(operators)
        operators += [_renamed(op, f"{number}.{block.name}.{op.name}") for op in block.operators]
        for e in block.edges:
            source = output if e.source == INPUT else e.source + offset
            if source == INPUT:
                continue  # the first block has no input
            edges.append(Edge(source, e.target + offset, e.delay_s, e.busy_s, e.energy_j, e.cost_usd, e.allowed))
        output = block.output + offset
    whole = Block("all", tuple(operators), tuple(edges), output)
    return Problem(
        problem.phases, problem.repeats, problem.resources, problem.pools, problem.capacity, problem.idle_w,
        (whole,), (0,), problem.objective,
    )  # fmt: skip


def unflatten(problem: Problem, choice: Choice) -> list[Choice]:
    """Options of :func:`flat`'s one block as options of every layer of ``problem``."""
    layers, at = [], 0
    for b in problem.order:
        n = len(problem.blocks[b].operators)
        layers.append(choice[at : at + n])
        at += n
    return layers


def _renamed(op: Operator, name: str) -> Operator:
    return replace(op, name=name)


def scaled(problem: Problem) -> tuple[Problem, float]:
    """The problem in units in which its numbers are near 1, as solvers want them, and what a unit of its value is.

    Solvers compare with absolute tolerances: a step of 10 µs would be lost in them.
    """

    def least(pick: Callable[[Operator], Array]) -> float:
        total = 0.0
        for b in problem.order:
            for op in problem.blocks[b].operators:
                values = pick(op)[op.allowed]
                total += float(values.max(initial=0.0))
        return total or 1.0

    second = least(lambda op: op.time_s @ problem.repeats)
    joule = least(lambda op: op.energy_j) + problem.idle_w * second
    dollar = least(lambda op: op.cost_usd)
    lost = least(lambda op: op.losses)
    unit = {"latency": second, "throughput": second, "energy": joule, "cost": dollar, "loss": lost} | dict.fromkeys(
        problem.phases, second
    )
    value = sum(w * unit[name] for name, w in problem.objective.weights.items())
    weights = {name: w * unit[name] / value for name, w in problem.objective.weights.items()}
    limits = {name: limit / unit[name] for name, limit in problem.objective.limits.items()}
    blocks = tuple(
        replace(
            b,
            operators=tuple(
                replace(op, time_s=op.time_s / second, busy_s=op.busy_s / second, energy_j=op.energy_j / joule,
                        cost_usd=op.cost_usd / dollar, loss=None if op.loss is None else op.loss / lost)
                for op in b.operators
            ),
            edges=tuple(
                replace(e, delay_s=e.delay_s / second, busy_s=e.busy_s / second, energy_j=e.energy_j / joule,
                        cost_usd=e.cost_usd / dollar)
                for e in b.edges
            ),
        )
        for b in problem.blocks
    )  # fmt: skip
    small = replace(
        problem, blocks=blocks, idle_w=problem.idle_w * second / joule, objective=Objective(weights, limits)
    )
    return small, value
