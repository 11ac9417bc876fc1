"""``python -m tokenfab.mapping``: how far each way to solve gets on a synthetic layer graph, and in what CPU time; with
``--show``, what the mapper must show: exit code 1 where a row misses its bar."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from .baselines import evaluate_all
from .dynamic import chain, lagrange
from .ilp import solve_flat
from .place import solve
from .problem import Problem, evaluate
from .shown import SECTIONS, show
from .solver import available
from .synthetic import PER_LAYER, layer_graph


def compare(problem: Problem, seconds: float, methods: list[str]) -> None:
    """Print value, bound, gap and CPU seconds of each method."""
    print(f"{'method':34}{'value':>10}{'bound':>10}{'gap':>9}{'CPU s':>8}")

    def row(name: str, value: float, bound: float, spent: float) -> None:
        gap = f"{1 - bound / value:8.2%}" if np.isfinite(value) and np.isfinite(bound) else "       –"
        print(f"{name:34}{value:10.3f}{bound:10.3f}{gap:>9}{spent:8.2f}".replace("inf", "  –"), flush=True)

    for name, found in evaluate_all(problem).items():
        row(f"{name} (baseline)", evaluate(problem, found).value if found else np.inf, -np.inf, 0.0)
    for method in methods:
        began = time.process_time()
        if method == "free":
            layers = chain(problem)
            value = evaluate(problem, layers).value if layers else np.inf
            row("dynamic programming, no capacities", value, value, time.process_time() - began)
        elif method == "prices":
            answer = lagrange(problem, time_limit=seconds)
            row("prices on memory and repair", answer.value, answer.bound, time.process_time() - began)
        elif method == "all":
            solution = solve(problem, time_limit=seconds)
            row("prices, then HiGHS", solution.value, solution.bound, solution.solve_s)
        else:
            solver, _, form = method.partition("-")
            _, outcome = solve_flat(problem, time_limit=seconds, solver=solver, tight=form != "weak")
            row(f"{solver}, {'z ≥ x + y − 1' if form == 'weak' else 'extended formulation'}", outcome.value,
                outcome.bound, outcome.seconds)  # fmt: skip


def main() -> None:
    """Command line; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m tokenfab.mapping", description=__doc__)
    parser.add_argument("--layers", type=int, default=8, help=f"of {PER_LAYER} operators each")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of each method")
    methods = ["free", "prices", "all", *available(), *(f"{s}-weak" for s in available())]
    parser.add_argument("--methods", default="free,prices,all", help=f"of {','.join(methods)}")
    parser.add_argument("--show", default="", help=f"all, or some of {','.join(SECTIONS)}: run these instead")
    given = parser.parse_args()
    if given.show:
        names = list(SECTIONS) if given.show == "all" else given.show.split(",")
        if unknown := set(names) - set(SECTIONS):
            parser.error(f"--show {sorted(unknown)[0]}: accepted: all, {', '.join(SECTIONS)}")
        sys.exit(0 if show(names) else 1)
    problem = layer_graph(given.layers, given.devices, given.seed)
    print(f"{given.layers * PER_LAYER} operators, {given.devices} devices, seed {given.seed}")
    compare(problem, given.seconds, [m for m in given.methods.split(",") if m in methods])


if __name__ == "__main__":
    main()
