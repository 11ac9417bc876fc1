"""The optimum of a placement problem, one placement after another."""

from __future__ import annotations

import itertools

import numpy as np

from tokenfab.mapping.problem import Choice, Problem, evaluate


def brute_force(problem: Problem) -> tuple[float, list[Choice] | None]:
    """The least value of all feasible placements, and one that has it."""
    best: tuple[float, list[Choice] | None] = (np.inf, None)
    each = [
        [c for c in itertools.product(*(range(len(op.options)) for op in problem.blocks[b].operators))
         if all(op.allowed[k] for op, k in zip(problem.blocks[b].operators, c, strict=True))]
        for b in problem.order
    ]  # fmt: skip
    for layers in itertools.product(*each):
        found = evaluate(problem, layers)
        if found.feasible and found.value < best[0]:
            best = (found.value, list(layers))
    return best
