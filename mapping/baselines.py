"""What a mapper must beat: one device for all, greedy, the chain's optimum without capacities, HEFT.

All return options per layer, or nothing where they end in no feasible placement. They see the same problem as the
exact mapper: the same options, capacities and limits on memory (limits on metrics are looked at afterwards).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .dynamic import between_costs, chain, own_costs, repair, sum_weights
from .problem import INPUT, Array, Choice, Operator, Problem, all_allowed, flat, unflatten

Layers = list[Choice]


def singles(problem: Problem) -> dict[str, Layers]:
    """Placements that use one place everywhere, by its name, where all operators have it and may take it; where there
    are formats, each of them (``PLACE @ FORMAT``), and the cheapest mix that fits (``PLACE @ mixed``)."""
    operators = [op for b in sorted(set(problem.order)) for op in problem.blocks[b].operators]
    formats = list(dict.fromkeys(f for op in operators for f in op.formats if "|" not in f))
    found = {}
    for name in dict.fromkeys(problem.blocks[problem.order[0]].operators[0].options):
        if not all(name in op.options for op in operators):
            continue
        for format_ in formats or [""]:
            layers = [tuple(_at(op, name, format_) for op in problem.blocks[b].operators) for b in problem.order]
            if all_allowed(problem, layers):
                found[f"{name} @ {format_}" if formats else name] = layers
        if formats and (mixed := _mixed(problem, name)) is not None:
            found[f"{name} @ mixed"] = mixed
    return found


def _at(op: Operator, place: str, format_: str) -> int:
    """The option of ``place`` in ``format_``, or where there is none such the one that loses least."""
    here = [k for k, name in enumerate(op.options) if name == place]
    return min(here, key=lambda k: (not op.formats or op.formats[k] != format_, op.losses[k]))


def _mixed(problem: Problem, place: str) -> Layers | None:
    """The best formats at one place, as :func:`.dynamic.repair` makes them fit."""
    blocks = tuple(
        replace(b, operators=tuple(
            replace(op, allowed=op.allowed & np.array([name == place for name in op.options])) for op in b.operators
        )) for b in problem.blocks
    )  # fmt: skip
    only = replace(problem, blocks=blocks)
    free = chain(only)
    return None if free is None else repair(only, free)


def greedy(problem: Problem) -> Layers | None:
    """In order of execution, the option that adds least, with its transfers, and still fits."""
    prices = sum_weights(problem)
    tables = {b: (own_costs(problem, problem.blocks[b], prices), between_costs(problem, problem.blocks[b], prices))
              for b in set(problem.order)}  # fmt: skip
    left = problem.capacity * (1 + 1e-12)
    layers: Layers = []
    entry = 0
    for b in problem.order:
        block, (own, between) = problem.blocks[b], tables[b]
        choice: list[int] = []
        places: list[int] = []
        for j, op in enumerate(block.operators):
            added = own[j].copy()
            for e in block.entering[j]:
                source = block.edges[e].source
                added += between[e][entry if source == INPUT else places[source]][op.place]
            added[(op.memory > left).any(axis=1)] = np.inf
            k = int(np.argmin(added))
            if not np.isfinite(added[k]):
                return None
            choice.append(k)
            places.append(int(op.place[k]))
            left = left - op.memory[k]
        layers.append(tuple(choice))
        entry = block.exit(layers[-1])
    return layers


def heft(problem: Problem) -> Layers | None:
    """Heterogeneous earliest finish time (Topcuoglu, Hariri, Wu, IEEE TPDS 13(3), 2002), with memory.

    Operators by upward rank (mean time + mean transfer + the largest rank after), each on the option on which it
    finishes first, its engines being free and its bytes fitting. Times are those of the phases, weighted as the
    objective weighs paths (or by repeats, where it weighs none).
    """
    whole = flat(problem)
    (block,) = whole.blocks
    weights = problem.path_weights if problem.path_weights.any() else problem.repeats
    times = [np.where(op.allowed, op.time_s @ weights, np.inf) for op in block.operators]
    delays = [np.where(e.allowed, e.delay_s @ weights, np.inf) for e in block.edges]
    rank = np.zeros(len(block.operators))
    leaving: list[list[int]] = [[] for _ in block.operators]
    for e, edge in enumerate(block.edges):
        leaving[edge.source].append(e)
    for i in range(len(block.operators) - 1, -1, -1):
        after = [_mean(delays[e]) + rank[block.edges[e].target] for e in leaving[i]]
        rank[i] = _mean(times[i]) + max(after, default=0.0)
    order = sorted(range(len(rank)), key=lambda i: (-rank[i], i))
    free = np.zeros(len(problem.resources))
    left = problem.capacity * (1 + 1e-12)
    finish, choice = np.zeros(len(rank)), [-1] * len(rank)
    for i in order:
        op = block.operators[i]
        if any(choice[block.edges[e].source] < 0 for e in block.entering[i]):
            return None  # a tie of ranks turned an edge round; ranks fall along edges otherwise
        ready = np.zeros(len(op.options))
        for e in block.entering[i]:
            s = block.edges[e].source
            ready = np.maximum(ready, finish[s] + delays[e][block.operators[s].place[choice[s]]][op.place])
        busy = np.asarray(op.busy_s.any(axis=1))
        start = np.maximum(ready, np.where(busy, free, 0.0).max(axis=1, initial=0.0))
        end = start + times[i]
        end[(op.memory > left).any(axis=1)] = np.inf
        k = int(np.argmin(end))
        if not np.isfinite(end[k]):
            return None
        choice[i], finish[i] = k, end[k]
        free[busy[k]] = end[k]
        left = left - op.memory[k]
    return unflatten(problem, tuple(choice))


def _mean(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else 0.0


def evaluate_all(problem: Problem) -> dict[str, Sequence[Choice] | None]:
    """All baselines by name: the layers they choose, or nothing."""
    found: dict[str, Sequence[Choice] | None] = {"greedy": greedy(problem), "heft": heft(problem)}
    free = chain(problem)
    found["chain"] = None if free is None else repair(problem, free)
    return found
