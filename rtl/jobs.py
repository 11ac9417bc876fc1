"""What ``tokenfab rtl`` does: test, compare with the cycle model, synthesise. Rows for the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from ..errors import InputError
from .area import area, find_liberty
from .flow import Run, build, run
from .parameters import Parameters, draw
from .simulators import SIMULATORS, check_simulator
from .units import Unit

Row = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")
CYCLES_TEST = "cycles_equal_the_model"
"""The cocotb test every unit has: random cases through RTL, golden model and cycle model."""
DRAWN = 4
"""Random parameter sets, besides those of the recipe, over which random cases are spread."""


def test_rows(units: Sequence[Unit], simulators: Sequence[str], step: Callable[[str], None]) -> list[Row]:
    """Run all tests of ``units`` with all their parameter sets; one row per unit and simulator.

    ``tests`` and ``failed`` count tests over parameter sets; ``failures`` says which and why. Raises
    ``InputError`` when a simulator is missing.
    """
    simulators = simulators or SIMULATORS
    for name in simulators:
        check_simulator(name)
    jobs = [(unit, name, parameters) for unit in units for name in simulators for parameters in unit.sets()]

    def job(what: tuple[Unit, str, Parameters]) -> Run:
        unit, name, parameters = what
        done = run(unit, name, parameters)
        step(f"{unit.name} on {name}")
        return done

    rows: dict[tuple[str, str], Row] = {}
    for done in everywhere(job, jobs):
        empty = {"unit": done.unit, "simulator": done.simulator, "tests": 0, "failed": 0, "failures": []}
        row = rows.setdefault((done.unit, done.simulator), empty)
        row["tests"] += len(done.tests)
        row["failed"] += len(done.failed)
        row["failures"] += [
            {
                "test": test,
                "message": message,
                "parameters": done.parameters,
                "log": str(done.folder / "simulation.log"),
            }
            for test, message in done.failed.items()
        ]
    return list(rows.values())


def cycles_rows(units: Sequence[Unit], simulator: str, cases: int, seed: int, step: Callable[[str], None]) -> list[Row]:
    """Random cases of every unit through RTL and models; a mismatch is a wrong value or a wrong number of cycles.

    Cases are spread over the recipe's parameter sets and ``DRAWN`` random ones. A case that never ended
    counts as a mismatch. Raises ``InputError`` when the simulator is missing or ``cases`` is not positive.
    """
    if cases < 1:
        raise InputError(f"--cases {cases}: at least 1")
    check_simulator(simulator)
    rows = []
    for unit in units:
        random = Random(f"{seed} {unit.name}")
        sets = unit.sets() + [draw(unit.parameters, unit.check, random) for _ in range(DRAWN)]
        shares = [cases // len(sets) + (i < cases % len(sets)) for i in range(len(sets))]
        jobs = [(unit, parameters, share) for parameters, share in zip(sets, shares, strict=True) if share]

        def job(what: tuple[Unit, Parameters, int]) -> Run:
            unit, parameters, share = what
            done = run(unit, simulator, parameters, tests=CYCLES_TEST, seed=seed, cases=share)
            step(f"{unit.name}: {share} cases")
            return done

        found = [(done, case) for done in everywhere(job, jobs) for case in done.document("cases") or []]
        values = [case for _, case in found if not case["values_equal"]]
        times = [case for _, case in found if case["cycles_rtl"] != case["cycles_model"]]
        wrong = [(d, c) for d, c in found if not c["values_equal"] or c["cycles_rtl"] != c["cycles_model"]]
        rows.append({
            "unit": unit.name, "cases": cases, "mismatches": len(wrong) + cases - len(found),
            "value_mismatches": len(values), "cycle_mismatches": len(times), "unfinished": cases - len(found),
            "parameter_sets": len(jobs), "simulator": simulator, "seed": seed,
            "first": {"parameters": wrong[0][0].parameters, **wrong[0][1]} if wrong else None,
        })  # fmt: skip
    return rows


def area_rows(units: Sequence[Unit], liberty: Path | None, step: Callable[[str], None]) -> list[Row]:
    """One row per unit and parameter set of its ``[[area]]`` tables; see :func:`.area.area`."""
    library = find_liberty(liberty)
    jobs = [(unit, parameters) for unit in units for parameters in unit.sets("area")]

    def job(what: tuple[Unit, Parameters]) -> Row:
        done = area(*what, library)
        step(what[0].name)
        return done

    return list(everywhere(job, jobs))


def refusal(unit: Unit, simulator: str, parameters: Parameters) -> str:
    """What the simulator says to parameters that the RTL must refuse; empty when it builds them all the same."""
    try:
        build(unit, simulator, parameters)
    except RuntimeError as error:
        return str(error)
    return ""


def everywhere(job: Callable[[T], R], jobs: Sequence[T]) -> Iterator[R]:
    """``job`` of every one of ``jobs``, in order, on all processors: the work is in processes that threads wait for."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(job, jobs)
