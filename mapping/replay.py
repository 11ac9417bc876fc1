"""A placement replayed event by event: engines run one operator at a time, ports carry one transfer at a time.

The prediction lets transfers of different edges pass at the same time; here they queue for their ports, and operators
for their engines. So replayed ≥ predicted, equal where nothing contends. Several requests may be in flight: then
what a pass takes in the steady state is held against the busiest resource's seconds. There the pass that began first
goes first wherever several wait. First come, first served would let all batches advance alike: they stay together,
wait for one device together and leave the others idle (a closed queueing network bunches; ``docs/mapping.md`` has the
figures).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .problem import Choice, Problem, flat


@dataclass(frozen=True)
class Span:
    """A resource at work: ``what`` is an operator, or SOURCE → TARGET of a transfer."""

    resource: str
    what: str
    phase: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Stream:
    """Passes of several batches in ``flights``: seconds per pass in the steady state and with filling and draining
    (``whole_s``), of one pass alone, and the seconds that the busiest resource works per pass: no pass takes less."""

    flights: int
    passes: int
    steady_s: float
    whole_s: float
    alone_s: float
    busiest_s: float


@dataclass(frozen=True)
class Replay:
    """``path_s`` of each phase, ``latency_s`` of a request with all repeats, and what ran when in each phase."""

    path_s: tuple[float, ...]
    latency_s: float
    spans: tuple[Span, ...]


def replay(problem: Problem, layers: Sequence[Choice]) -> Replay:
    """One request alone: each phase once, times its repeats."""
    choice = tuple(k for layer in layers for k in layer)
    paths: list[float] = []
    spans: list[Span] = []
    for f in range(len(problem.phases)):
        env, run = _world(problem, choice, f, spans)
        env.run(until=env.process(run()))
        paths.append(float(env.now))
    return Replay(tuple(paths), float(problem.repeats @ np.array(paths)), tuple(spans))


def replay_stream(
    problem: Problem, layers: Sequence[Choice], phase: int, flights: int | None = None, rounds: int = 4
) -> Stream:
    """A stream of passes of one phase: ``flights`` batches in flight (nothing: twice as many as could keep the busiest
    resource at work if they never met), each making ``rounds`` passes, 3 or more. Steady is what lies between the first
    and the last pass of as many as are in flight: known to about one pass of these."""
    choice = tuple(k for layer in layers for k in layer)
    (block,) = flat(problem).blocks
    places = block.places(choice)
    busy = np.sum([op.busy_s[k, phase] for op, k in zip(block.operators, choice, strict=True)], axis=0)
    for e in block.edges:
        busy = busy + e.busy_s[places[e.source], places[e.target], phase]
    busiest = float(busy.max(initial=0.0))
    env, run = _world(problem, choice, phase, None)
    env.run(until=env.process(run()))
    alone = float(env.now)
    if flights is None:
        flights = 2 * math.ceil(alone / busiest) if busiest else 1
    env, run = _world(problem, choice, phase, None)
    begun = itertools.count()
    ends: list[float] = []

    def one() -> Generator[Any, Any, None]:
        for _ in range(rounds):
            yield env.process(run(next(begun)))
            ends.append(float(env.now))

    env.run(until=env.all_of([env.process(one()) for _ in range(flights)]))
    passes = flights * rounds
    steady = (ends[passes - flights - 1] - ends[flights - 1]) / (passes - 2 * flights)
    return Stream(flights, passes, steady, ends[-1] / passes, alone, busiest)


def _world(problem: Problem, choice: Choice, phase: int, spans: list[Span] | None):  # type: ignore[no-untyped-def]
    """An environment, and a process that makes one pass of ``phase``; of several, that of least rank goes first."""
    import simpy

    (block,) = flat(problem).blocks
    places = block.places(choice)
    env = simpy.Environment()
    servers = [simpy.PriorityResource(env) for _ in problem.resources]

    def hold(server: int, seconds: float, what: str, rank: int) -> Generator[Any, Any, None]:
        with servers[server].request(priority=rank) as turn:
            yield turn
            start = env.now
            yield env.timeout(seconds)
            if spans is not None:
                spans.append(Span(problem.resources[server], what, problem.phases[phase], start, env.now))

    def together(busy: Any, seconds: float, what: str, rank: int) -> Generator[Any, Any, None]:
        """All resources that are busy, each for its seconds; what ``seconds`` is longer than these comes after."""
        held = [hold(int(r), float(busy[r]), what, rank) for r in np.nonzero(busy)[0]]
        if len(held) == 1:
            yield from held[0]
        elif held:
            yield env.all_of([env.process(one) for one in held])
        rest = seconds - float(busy.max(initial=0.0))
        if rest > 0:
            yield env.timeout(rest)

    def run(rank: int = 0) -> Generator[Any, Any, None]:
        done = [env.event() for _ in choice]

        def arrive(e: int) -> Generator[Any, Any, None]:
            edge = block.edges[e]
            yield done[edge.source]
            at = places[edge.source], places[edge.target], phase
            names = block.operators[edge.source].name, block.operators[edge.target].name
            yield from together(edge.busy_s[at], float(edge.delay_s[at]), " → ".join(names), rank)

        def arrival(e: int) -> Any:
            """The event that edge ``e`` has brought all: its source's end, where nothing moves."""
            edge = block.edges[e]
            moves = edge.delay_s[places[edge.source], places[edge.target], phase]
            return env.process(arrive(e)) if moves else done[edge.source]

        def execute(j: int, k: int) -> Generator[Any, Any, None]:
            if block.entering[j]:
                yield env.all_of([arrival(e) for e in block.entering[j]])
            op = block.operators[j]
            yield from together(op.busy_s[k, phase], float(op.time_s[k, phase]), op.name, rank)
            done[j].succeed()

        yield env.all_of([env.process(execute(j, k)) for j, k in enumerate(choice)])

    return env, run
