"""What the tests of units share: skipping, loudly, where a simulator or Yosys is missing."""

from __future__ import annotations

import os

import pytest

from tokenfab.rtl.simulators import SIMULATORS, simulator_problem
from tokenfab.rtl.units import load_unit, unit_names
from tokenfab.rtl.yosys import pyosys_problem

UNITS = unit_names()
MISSING = "RTL tool missing"
SESSION = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"alone {os.getpid()}"
"""One run of pytest, all its processes: a simulation that several tests ask for is run once."""


def need_simulator(name: str) -> None:
    """Skip, saying how to get it, where simulator ``name`` is missing."""
    if problem := simulator_problem(name):
        pytest.skip(f"{MISSING}: {problem}")


def need_yosys() -> None:
    """Skip where pyosys is missing."""
    if problem := pyosys_problem():
        pytest.skip(f"{MISSING}: {problem}")


def sets(kind: str = "test") -> list:
    """(unit, number) of every parameter set of every unit."""
    return [pytest.param(n, i, id=f"{n}-{i}") for n in UNITS for i in range(len(load_unit(n).recipe.get(kind, [])))]


both_simulators = pytest.mark.parametrize("simulator", SIMULATORS)
