"""The placement as an integer linear program, operator by operator.

    x[i, k] ∈ {0, 1}     operator i takes option k                     Σₖ x[i, k] = 1
    y[e, p, q] ≥ 0       edge e = (i, j) sees the places p and q       Σ_q y[e, p, q] = Σ_{k at p} x[i, k], and so for j
    finish[j, f] ≥ finish[i, f] + Σ delay[e, p, q, f]·y[e, p, q] + Σ time[j, l, f]·x[j, l]
    path[f] ≥ finish[j, f]          bottleneck ≥ busy seconds of each resource
    Σ memory[i, k, m]·x[i, k] ≤ capacity[m]          metric ≤ limit

The y need not be integer: with x they are. This is the *extended* formulation of products of binaries (the local
polytope; Schlesinger 1976), integral on trees; the textbook's z ≥ x + y − 1 lets a relaxation split every operator in
halves and pay no transfer at all, and never closes (``docs/mapping.md`` has both, measured).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pulp

from .problem import INPUT, Choice, Problem, arrivals, block_totals, scaled
from .solver import Outcome, solve_model


@dataclass
class Model:
    """A PuLP model with its variables at hand."""

    lp: Any
    x: list[list[Any]]
    y: dict[int, list[list[Any]]]
    finish: dict[tuple[int, int], Any]
    path: list[Any]
    bottleneck: Any | None
    slack: dict[str, Any]


def formulate(problem: Problem, *, elastic: bool = False, tight: bool = True, relaxed: bool = False) -> Model:
    """The model of a problem of one block (:func:`.problem.flat`).

    ``elastic``: capacities and limits may be exceeded, and the objective is by how much in all (each as a share of
    itself). ``tight=False`` writes z ≥ x + y − 1 instead of the extended formulation, to be compared. ``relaxed``:
    the linear relaxation.
    """
    (block,) = problem.blocks
    kind = pulp.LpContinuous if relaxed else pulp.LpInteger
    lp = pulp.LpProblem("placement", pulp.LpMinimize)
    phases = range(len(problem.phases))
    x = [
        [lp.add_variable(f"x_{i}_{k}", 0, 1 if op.allowed[k] else 0, kind) for k in range(len(op.options))]
        for i, op in enumerate(block.operators)
    ]
    for i, row in enumerate(x):
        lp += pulp.lpSum(row) == 1, f"one_{i}"
    y: dict[int, list[list[Any]]] = {}
    for e, edge in enumerate(block.edges):
        if edge.source == INPUT or (edge.allowed.all() and not (edge.delay_s.any() or edge.busy_s.any()
                                    or edge.energy_j.any() or edge.cost_usd.any())):  # fmt: skip
            continue
        a, b = ([pulp.lpSum(v for v, p in zip(x[i], block.operators[i].place, strict=True) if p == place)
                 for place in range(block.operators[i].places)] for i in (edge.source, edge.target))  # fmt: skip
        y[e] = [[lp.add_variable(f"y_{e}_{k}_{m}", 0, None if edge.allowed[k, m] else 0) for m in range(len(b))]
                for k in range(len(a))]  # fmt: skip
        if tight:
            for k, v in enumerate(a):
                lp += pulp.lpSum(y[e][k]) == v, f"from_{e}_{k}"
            for m, v in enumerate(b):
                lp += pulp.lpSum(row[m] for row in y[e]) == v, f"to_{e}_{m}"
        else:
            for k, v in enumerate(a):
                for m, w in enumerate(b):
                    lp += y[e][k][m] >= v + w - 1, f"both_{e}_{k}_{m}"

    def chosen(values: list[list[Any]]) -> Any:
        """Σ values[i][k] · x[i][k], zeros left out."""
        return pulp.lpSum(c * v for row, vs in zip(values, x, strict=True) for c, v in zip(row, vs, strict=True) if c)

    def crossed(e: int, values: Any) -> list[Any]:
        return [float(values[k, m]) * y[e][k][m] for k, m in zip(*np.nonzero(values), strict=True)] if e in y else []

    w, limits = problem.objective.weights, problem.objective.limits
    timed = bool(problem.path_weights.any()) or any(name in limits for name in ("latency", "energy", *problem.phases))
    finish: dict[tuple[int, int], Any] = {}
    path = [lp.add_variable(f"path_{f}", 0) for f in phases]
    for f in phases if timed else ():
        for j, op in enumerate(block.operators):
            finish[j, f] = lp.add_variable(f"finish_{j}_{f}", 0)
            own = pulp.lpSum(float(c) * v for c, v in zip(op.time_s[:, f], x[j], strict=True) if c)
            lp += finish[j, f] >= own, f"alone_{j}_{f}"
            for e in block.entering[j]:
                edge = block.edges[e]
                if edge.source != INPUT:
                    delay = pulp.lpSum(crossed(e, edge.delay_s[:, :, f]))
                    lp += finish[j, f] >= finish[edge.source, f] + delay + own, f"after_{e}_{f}"
            lp += path[f] >= finish[j, f], f"path_{j}_{f}"
    latency = pulp.lpSum(float(n) * p for n, p in zip(problem.repeats, path, strict=True))
    energy = chosen([list(map(float, op.energy_j)) for op in block.operators]) + pulp.lpSum(
        t for e, edge in enumerate(block.edges) for t in crossed(e, edge.energy_j)
    ) + problem.idle_w * latency  # fmt: skip
    cost = chosen([list(map(float, op.cost_usd)) for op in block.operators]) + pulp.lpSum(
        t for e, edge in enumerate(block.edges) for t in crossed(e, edge.cost_usd)
    )
    bottleneck = None
    if w.get("throughput") or "throughput" in limits:
        bottleneck = lp.add_variable("bottleneck", 0)
        for r in range(len(problem.resources)):
            terms = [
                float(c) * v for op, vs in zip(block.operators, x, strict=True)
                for c, v in zip(op.busy_s[:, :, r] @ problem.repeats, vs, strict=True) if c
            ]  # fmt: skip
            for e, edge in enumerate(block.edges):
                terms += crossed(e, edge.busy_s[:, :, :, r] @ problem.repeats)
            lp += bottleneck >= pulp.lpSum(terms), f"busy_{r}"
    loss = chosen([list(map(float, op.losses)) for op in block.operators])
    metrics = {"latency": latency, "throughput": bottleneck, "energy": energy, "cost": cost, "loss": loss,
               **dict(zip(problem.phases, path, strict=True))}  # fmt: skip
    slack: dict[str, Any] = {}

    def spare(name: str) -> Any:
        if not elastic:
            return 0
        slack[name] = lp.add_variable(f"slack_{len(slack)}", 0)
        return slack[name]

    for m, (pool, capacity) in enumerate(zip(problem.pools, problem.capacity, strict=True)):
        scale = max(float(capacity), 1.0)
        used = chosen([[float(v) / scale for v in op.memory[:, m]] for op in block.operators])
        lp += used <= float(capacity) / scale + spare(pool), f"capacity_{m}"
    for name, limit in limits.items():
        lp += metrics[name] * (1 / limit) <= 1 + spare(name), f"limit_{name}"
    value = pulp.lpSum(weight * metrics[name] for name, weight in w.items() if weight)
    lp.setObjective(pulp.lpSum(slack.values()) if elastic else value)
    return Model(lp, x, y, finish, path, bottleneck, slack)


def solve_flat(
    problem: Problem, *, time_limit: float = 60.0, gap: float = 0.0, solver: str | None = None,
    start: Choice | None = None, tight: bool = True,
) -> tuple[Choice | None, Outcome]:  # fmt: skip
    """The best options of a one-block problem that the solver finds in time, and its outcome."""
    small, unit = scaled(problem)
    model = formulate(small, tight=tight)
    values = _values(small, model, start) if start is not None and tight else None
    outcome = solve_model(model.lp, time_limit=time_limit, gap=gap, solver=solver, start=values)
    outcome = replace(outcome, value=outcome.value * unit, bound=outcome.bound * unit)
    return (_choice(model) if outcome.found else None), outcome


def _choice(model: Model) -> Choice:
    return tuple(max(range(len(row)), key=lambda k: row[k].varValue or 0.0) for row in model.x)


def _values(problem: Problem, model: Model, choice: Choice) -> dict[Any, float]:
    """Values of all variables for a placement, to start a solver from."""
    (block,) = problem.blocks
    places = block.places(choice)
    values: dict[Any, float] = {row[k]: 1.0 for row, k in zip(model.x, choice, strict=True)}
    for e, table in model.y.items():
        edge = block.edges[e]
        values[table[places[edge.source]][places[edge.target]]] = 1.0
    _, finish = arrivals(block, 0, choice, len(problem.phases))
    values |= {v: float(finish[j, f]) for (j, f), v in model.finish.items()}
    if model.finish:
        values |= {v: float(t) for v, t in zip(model.path, finish.max(axis=0), strict=True)}
    if model.bottleneck is not None:
        values[model.bottleneck] = float(block_totals(problem, block, 0, choice).busy_s.max())
    return values
