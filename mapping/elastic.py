"""Why nothing fits: the least by which capacities and limits would have to give way.

Every capacity and limit gets a slack, in shares of itself, and their sum is made as small as it can be. If the
smallest is above zero no placement is feasible, and its slacks name what binds and by how much; the solver's word
"infeasible" names nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .ilp import formulate
from .patterns import solve_patterns
from .problem import Choice, Problem, evaluate, flat, scaled, unflatten
from .solver import solve_model

SURE = 1e-6
"""Relative excess from which a bound proves that nothing fits."""


@dataclass(frozen=True)
class Binding:
    """``total``: the least sum of relative excesses that was found, ``bound`` what was proven of it; ``exceeded``: pool
    or metric → (used, allowed) of the placement that exceeds least; ``layers``: that placement."""

    total: float
    bound: float
    exceeded: dict[str, tuple[float, float]]
    layers: list[Choice]

    @property
    def proven(self) -> bool:
        """Whether nothing can fit."""
        return self.bound > SURE

    def reason(self) -> str:
        """One line: what binds, and by how much."""
        worst = sorted(self.exceeded.items(), key=lambda x: x[1][0] / max(x[1][1], 1e-30), reverse=True)
        parts = [
            f"{name}: {_amount(name, used)} needed, {_amount(name, allowed)} allowed" for name, (used, allowed) in worst
        ]
        return "; ".join(parts) or "nothing is exceeded"


def _amount(name: str, value: float) -> str:
    if name == "loss":
        return f"{value / 1e12:.4g}"
    if name == "bits":
        return f"{value / 1e9:.4g} per weight below the widest format"
    if name == "energy":
        return f"{value:.4g} J"
    if name == "cost":
        return f"{value:.4g} USD"
    seconds = name in ("latency", "throughput", "prefill", "handover", "decode")
    return f"{value:.4g} s" if seconds else f"{value / 1e9:.2f} GB"


def binding(problem: Problem, seeds: Sequence[Sequence[Choice]], *, time_limit: float = 10.0) -> Binding | None:
    """The least excess, by patterns where layers repeat, else by the whole program. Nothing where no placement is
    allowed at all, whatever the capacities."""
    if len(problem.order) > 1:
        found = solve_patterns(problem, seeds, time_limit=time_limit, elastic=True)
        layers, bound = found.layers, found.bound
    else:
        whole = flat(scaled(problem)[0])
        model = formulate(whole, elastic=True)
        outcome = solve_model(model.lp, time_limit=time_limit)
        layers, bound = None, outcome.bound
        if outcome.found:
            choice = tuple(max(range(len(row)), key=lambda k: row[k].varValue or 0.0) for row in model.x)
            layers = unflatten(problem, choice)
    if layers is None:
        return None
    exceeded = evaluate(problem, layers).exceeded
    total = sum(max(0.0, used / max(allowed, 1e-30) - 1) for used, allowed in exceeded.values())
    return Binding(total, min(bound, total), exceeded, layers)
