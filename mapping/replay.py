"""A placement replayed event by event: engines run one operator at a time, ports carry one transfer at a time.

The prediction lets transfers of different edges pass at the same time; here they queue for their ports, and operators
for their engines. So replayed ≥ predicted, equal where nothing contends. Several requests may be in flight: then what
a request takes in the steady state is held against the busiest resource's seconds.
"""

from __future__ import annotations

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
    problem: Problem, layers: Sequence[Choice], phase: int, flights: int = 6, rounds: int = 3
) -> tuple[float, float]:
    """Seconds per pass of one phase with ``flights`` batches in flight, each making ``rounds`` passes, filling and
    draining included; and the seconds that the busiest resource works per pass, which it cannot fall below."""
    choice = tuple(k for layer in layers for k in layer)
    env, run = _world(problem, choice, phase, None)

    def one() -> Generator[Any, Any, None]:
        for _ in range(rounds):
            yield env.process(run())

    env.run(until=env.all_of([env.process(one()) for _ in range(flights)]))
    (block,) = flat(problem).blocks
    places = block.places(choice)
    busy = np.sum([op.busy_s[k, phase] for op, k in zip(block.operators, choice, strict=True)], axis=0)
    for e in block.edges:
        busy = busy + e.busy_s[places[e.source], places[e.target], phase]
    return float(env.now) / (flights * rounds), float(busy.max(initial=0.0))


def _world(problem: Problem, choice: Choice, phase: int, spans: list[Span] | None):  # type: ignore[no-untyped-def]
    """An environment, and a process that makes one pass of ``phase``."""
    import simpy

    (block,) = flat(problem).blocks
    places = block.places(choice)
    env = simpy.Environment()
    servers = [simpy.Resource(env) for _ in problem.resources]

    def hold(server: int, seconds: float, what: str) -> Generator[Any, Any, None]:
        with servers[server].request() as turn:
            yield turn
            start = env.now
            yield env.timeout(seconds)
            if spans is not None:
                spans.append(Span(problem.resources[server], what, problem.phases[phase], start, env.now))

    def together(busy: Any, seconds: float, what: str) -> Generator[Any, Any, None]:
        """All resources that are busy, each for its seconds; what ``seconds`` is longer than these comes after."""
        yield env.all_of([env.process(hold(int(r), float(busy[r]), what)) for r in np.nonzero(busy)[0]])
        rest = seconds - float(busy.max(initial=0.0))
        if rest > 0:
            yield env.timeout(rest)

    def run() -> Generator[Any, Any, None]:
        done = [env.event() for _ in choice]

        def arrive(e: int) -> Generator[Any, Any, None]:
            edge = block.edges[e]
            yield done[edge.source]
            at = places[edge.source], places[edge.target], phase
            if edge.delay_s[at]:
                names = block.operators[edge.source].name, block.operators[edge.target].name
                yield from together(edge.busy_s[at], float(edge.delay_s[at]), " → ".join(names))

        def execute(j: int, k: int) -> Generator[Any, Any, None]:
            if block.entering[j]:
                yield env.all_of([env.process(arrive(e)) for e in block.entering[j]])
            op = block.operators[j]
            yield from together(op.busy_s[k, phase], float(op.time_s[k, phase]), op.name)
            done[j].succeed()

        yield env.all_of([env.process(execute(j, k)) for j, k in enumerate(choice)])

    return env, run
