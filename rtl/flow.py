"""Build a unit and run its cocotb tests: one folder per simulator, parameter set and version of the sources.

Folders lie below ``build_root()``, outside the package. A build is made once and used again; a run always
runs. Both are done under a lock, so that several test processes may ask for the same one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .simulators import check_simulator, prepare_environment
from .units import ROOM, Unit

SIMULATION_LIMIT_S = 600
"""Seconds after which a simulation is ended."""
NOT_RUN = "Regression stopped after"
"""How cocotb's message for a test begins that it left out because others had failed."""


@dataclass(frozen=True)
class Run:
    """What one simulation answered: names of its tests, messages of those that failed, and its folder.

    ``folder`` holds the log, ``results.xml``, and what the bench wrote (``functional.json``, ``cases.json``;
    with coverage ``coverage.dat``).
    """

    unit: str
    simulator: str
    parameters: Mapping[str, int]
    tests: list[str]
    failed: dict[str, str]
    folder: Path = field(repr=False)

    def document(self, name: str) -> Any:
        """What the bench wrote as ``name``.json; None when it wrote nothing."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def build_root() -> Path:
    """Folder for builds: ``TOKENFAB_RTL_BUILD``, else ``.build/rtl`` of a checkout, else the user's cache."""
    if given := os.environ.get("TOKENFAB_RTL_BUILD"):
        return Path(given).resolve()
    if (ROOM.parent / "pyproject.toml").is_file():
        return ROOM.parent / ".build" / "rtl"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenfab" / "rtl"


def verdict_file(*key: Any) -> Path:
    """Where the answer of a long job is kept, by all that decides it: ``TOKENFAB_RTL_CACHE``, else the user's cache.

    Not beside the builds: a fresh checkout of the same sources has the same verdicts.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TOKENFAB_RTL_CACHE") or Path(cache, "tokenfab", "rtl")) / f"{_hash(key)}.json"


def build(
    unit: Unit, simulator: str, parameters: Mapping[str, int], *, coverage: bool = False, folder: Path | None = None,
    sources: list[Path] | None = None,
) -> Path:  # fmt: skip
    """Build ``unit`` with ``parameters``, unless that was done; returns the folder.

    ``coverage`` adds Verilator's line and toggle coverage. ``sources`` replaces the unit's own (mutants).
    Parameters are not checked here, so that a test can see the RTL refuse them. Raises ``InputError`` when
    the simulator is missing, ``RuntimeError`` with the end of its log when it refuses the sources.
    """
    check_simulator(simulator)
    prepare_environment()
    files = sources or unit.sources
    folder = folder or _folder(unit, simulator, parameters, coverage, files)
    with locked(folder):
        if not (folder / "built").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _build(unit, simulator, parameters, coverage, folder, files)
            (folder / "built").touch()
    return folder


def run(
    unit: Unit, simulator: str, parameters: Mapping[str, int], *, tests: str | None = None, seed: int = 1,
    cases: int | None = None, coverage: bool = False, built: Path | None = None, session: str | None = None,
    most_failures: int = 0,
) -> Run:  # fmt: skip
    """Run the unit's cocotb tests (those whose names match the pattern ``tests``) and read their results.

    ``cases``: how many random cases tests with cases try. Within one ``session`` (any text) the same run is
    run once: who asks later gets its results. After ``most_failures`` failed tests (0: never) the rest are not
    run. Raises as :func:`build`, and ``RuntimeError`` when the simulation ends without results.
    """
    folder = built or build(unit, simulator, parameters, coverage=coverage)
    name = "run" + (f"-{_hash([tests, seed, cases])}" if (tests, seed, cases) != (None, 1, None) else "")
    here = folder / name
    with locked(here):
        marker = here / "session"
        if not (session and marker.is_file() and marker.read_text(encoding="utf-8") == session):
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir(parents=True)
            _simulate(unit, simulator, parameters, folder, here, tests, seed, cases, most_failures)
            if session:
                marker.write_text(session, encoding="utf-8")
        names, failed = read_results(here / "results.xml", here / "simulation.log")
    return Run(unit.name, simulator, dict(parameters), names, failed, here)


def read_results(results: Path, log: Path) -> tuple[list[str], dict[str, str]]:
    """Names of the tests that ran, and messages of those that failed.

    Raises ``RuntimeError`` with the end of the log when there are no results: no news is bad news.
    """
    try:
        cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        cases = []
    ran = [case for case in cases if case.find("skipped") is None]
    if not ran:
        raise RuntimeError(f"the simulation ended without results:\n{_tail(log)}")
    failed: dict[str, str] = {}
    for case in list(ran):
        for fault in (*case.findall("failure"), *case.findall("error")):
            message = (fault.get("error_msg") or fault.get("message") or fault.text or "failed").strip()
            if message.startswith(NOT_RUN):
                ran.remove(case)
            else:
                failed[case.get("name", "?")] = message
    return [case.get("name", "?") for case in ran], failed


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else is in ``folder`` meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _folder(unit: Unit, simulator: str, parameters: Mapping[str, int], coverage: bool, sources: list[Path]) -> Path:
    texts = [p.read_text(encoding="utf-8") for p in (*sources, *sorted(ROOM.glob("*.svh")))]
    kind = f"{simulator}-coverage" if coverage else simulator
    key = [sorted(parameters.items()), texts, _arguments(simulator, coverage), sys.version_info[:2]]
    return build_root() / unit.name / f"{kind}-{_hash(key)}"


def _arguments(simulator: str, coverage: bool) -> list[str]:
    """What both simulators and Verilator alone are told at a build."""
    verilator = ["-CFLAGS", "-O0"]  # compiling takes longer than simulating
    verilator += ["--coverage-line", "--coverage-toggle"] if coverage else []
    return [f"-I{ROOM}", *(verilator if simulator == "verilator" else [])]


def _hash(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _tail(log: Path, lines: int = 12) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "(no log)"
    return "\n".join(text.splitlines()[-lines:])


def _runner(simulator: str) -> Any:
    from cocotb_tools.runner import get_runner

    runner = get_runner(simulator)
    runner.log.setLevel("ERROR")
    return runner


def _build(
    unit: Unit, simulator: str, parameters: Mapping[str, int], coverage: bool, folder: Path, sources: list[Path]
) -> None:
    log = folder / "build.log"
    try:
        _runner(simulator).build(
            sources=sources, hdl_toplevel=unit.top, parameters=parameters, build_dir=folder,
            build_args=_arguments(simulator, coverage),
            cwd=folder, timescale=("1ns", "1ps"), always=True, log_file=log,
        )  # fmt: skip
    except (RuntimeError, SystemExit):
        raise RuntimeError(f"{unit.name} does not build with {dict(parameters)}:\n{_tail(log, 30)}") from None


def _simulate(
    unit: Unit, simulator: str, parameters: Mapping[str, int], folder: Path, here: Path, tests: str | None,
    seed: int, cases: int | None, most_failures: int,
) -> None:  # fmt: skip
    environment = {
        "TOKENFAB_RTL_PARAMETERS": json.dumps(dict(parameters)), "TOKENFAB_RTL_SEED": str(seed),
        "TOKENFAB_RTL_RUN": str(here), "COCOTB_ANSI_OUTPUT": "0",
        "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "COCOTB_MAX_FAILURES": str(most_failures),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # cocotb wants pytest's assertions only
    }  # fmt: skip
    if cases is not None:
        environment["TOKENFAB_RTL_CASES"] = str(cases)
    if shutil.which("timeout"):
        environment["SIM_CMD_PREFIX"] = f"timeout -k 5 {SIMULATION_LIMIT_S}"
    # A failed test or a crash is read from the results; the runner's own verdict depends on who calls it.
    with contextlib.suppress(RuntimeError, SystemExit):
        _runner(simulator).test(
            test_module=unit.test_module, hdl_toplevel=unit.top, hdl_toplevel_lang="verilog", build_dir=folder,
            test_dir=here, parameters=parameters, results_xml=str(here / "results.xml"), seed=seed,
            test_filter=tests, extra_env=environment, timescale=("1ns", "1ps"), log_file=here / "simulation.log",
        )  # fmt: skip
