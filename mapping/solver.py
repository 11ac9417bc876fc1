"""The one place that chooses and runs a solver: HiGHS through ``highspy``, or CBC as shipped with PuLP.

PuLP says "Optimal" of a run that ran out of time; what was found is in ``sol_status``, and even that calls a run
without any solution "integer feasible". So values are checked here before they are believed. OR-tools must never be
imported beside ``highspy``: both bring a library of one name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulp

from ..errors import InputError

SOLVERS = ("highs", "cbc")
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Outcome:
    """What a run ended with: ``status`` "optimal", "feasible" (out of time), "infeasible" or "nothing" (no solution
    in time). ``bound`` is what the solver proved (−∞ where it says nothing)."""

    status: str
    value: float
    bound: float
    seconds: float

    @property
    def found(self) -> bool:
        return self.status in ("optimal", "feasible")


def available() -> list[str]:
    """Solvers that can run here, best first."""
    names = {"highs": "HiGHS", "cbc": "PULP_CBC_CMD"}
    there = set(pulp.listSolvers(onlyAvailable=True))
    return [s for s in SOLVERS if names[s] in there]


def solve_model(
    model: Any,
    *,
    time_limit: float,
    gap: float = 0.0,
    solver: str | None = None,
    start: Mapping[Any, float] | None = None,
) -> Outcome:
    """Solve a PuLP model (minimisation). ``gap``: relative, at which to stop; ``start``: values to begin from (HiGHS).

    Raises ``InputError`` for a solver that is not there.
    """
    names = available()
    chosen = solver or (names[0] if names else "")
    if chosen not in names:
        raise InputError(f"solver {solver or 'any'}: not available; accepted here: {', '.join(names) or 'none'}")
    began = _spent()
    run = _highs(time_limit, gap, start) if chosen == "highs" else _cbc(time_limit, gap)
    model.solve(run)
    seconds = _spent() - began
    bound = -math.inf
    integer = any(v.cat == pulp.LpInteger for v in model.variables())
    if chosen == "highs":
        info = model.solverModel.getInfo()
        if integer:
            bound = float(info.mip_dual_bound)
            if model.objective.constant:
                bound += model.objective.constant
        has_solution = info.primal_solution_status == 2
    else:
        has_solution = model.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
    if model.status == pulp.LpStatusInfeasible or model.sol_status == pulp.LpSolutionInfeasible:
        return Outcome("infeasible", math.inf, math.inf, seconds)
    if not has_solution or not _satisfied(model):
        return Outcome("nothing", math.inf, bound, seconds)
    value = float(pulp.value(model.objective) or 0.0)
    optimal = model.sol_status == pulp.LpSolutionOptimal
    if optimal and (not integer or bound == -math.inf):
        bound = value if gap == 0 or not integer else value - abs(value) * gap
    return Outcome("optimal" if optimal else "feasible", value, min(bound, value), seconds)


def _spent() -> float:
    """CPU seconds of this process and of those it waited for: CBC runs in one of its own."""
    return sum(os.times()[:4])


def _satisfied(model: Any) -> bool:
    """Whether all variables have values, whole where they must be: a time-out may leave neither."""
    for v in model.variables():
        if v.varValue is None or not math.isfinite(v.varValue):
            return False
        if v.cat == pulp.LpInteger and abs(v.varValue - round(v.varValue)) > 1e-4:
            return False
    return True


def _cbc(time_limit: float, gap: float) -> Any:
    # by the path of the one that comes with PuLP: its own class for it goes with PuLP 4, and says so at every call
    path = pulp.PULP_CBC_CMD.pulp_cbc_path
    return pulp.COIN_CMD(path=path, msg=False, timeLimit=max(1, math.ceil(time_limit)), gapRel=gap, threads=1)


def _highs(time_limit: float, gap: float, start: Mapping[Any, float] | None) -> Any:
    class Started(pulp.HiGHS):  # type: ignore[misc]
        def callSolver(self, lp: Any) -> None:  # noqa: N802
            if start:
                import highspy

                solution = highspy.HighsSolution()
                solution.col_value = [float(start.get(v, 0.0)) for v in lp.variables()]
                lp.solverModel.setSolution(solution)
            lp.solverModel.run()

    return Started(
        msg=False, timeLimit=max(0.1, time_limit), gapRel=gap, threads=1, mip_feasibility_tolerance=1e-8,
        primal_feasibility_tolerance=1e-8, dual_feasibility_tolerance=1e-8,
    )  # fmt: skip
