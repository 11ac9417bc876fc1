"""What every test may ask for: the measured data, and a hypothesis profile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
TRUTH = Path(os.environ.get("TOKENFAB_TRUTH") or ROOT.parent / "shared" / "truth")
ABSENT = "measured data absent"
NO_TOOL = "RTL tool missing"

# xdist fills the cores with processes; threads inside them would only fight. Read when torch starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# ci: the same examples every time, so that a red run can be repeated. dev: new ones each time.
# Nor is it red because others had the cores while examples were drawn.
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("dev", deadline=None, max_examples=60, print_blob=True)
settings.register_profile("deep", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def _skip_without_truth() -> None:
    if not TRUTH.is_dir():
        pytest.skip(f"{ABSENT}: no folder {TRUTH}; set TOKENFAB_TRUTH")


@pytest.fixture(scope="session")
def truth() -> Path:
    """Folder with the measured data; the test is skipped, and the summary says so, where it is absent."""
    _skip_without_truth()
    return TRUTH


class Answer(NamedTuple):
    """What a command line answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def _as_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """xdist tells its workers how wide the terminal is; what a test sees does not depend on that."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def tokenfab(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command line in this process: ``tokenfab("models", "--json")``."""
    from tokenfab.cli import run

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama-2-7B, captured once, as a trace file."""
    from tokenfab.workloads.load import load_trace

    path = tmp_path_factory.mktemp("trace") / "llama-2-7b.json"
    load_trace("llama-2-7b").save(path)
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for ``truth`` is a truth test, marked or not: ``-m 'not truth'`` leaves it out."""
    for item in items:
        if "truth" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.truth)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that is only marked is skipped like one that asks for the fixture."""
    if item.get_closest_marker("truth"):
        _skip_without_truth()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly how many tests could not be held against measurements."""
    skipped = [r for r in terminalreporter.getreports("skipped") if ABSENT in str(r.longrepr)]
    if skipped:
        terminalreporter.section("MEASURED DATA ABSENT", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests skipped: there is no folder {TRUTH}.")
        terminalreporter.line("Nothing was checked against measurements; set TOKENFAB_TRUTH to where they are.")
    lacking = sorted(
        {str(r.longrepr[-1]) for r in terminalreporter.getreports("skipped") if NO_TOOL in str(r.longrepr)}
    )
    if lacking:
        terminalreporter.section("RTL TOOLS MISSING", sep="!", red=True, bold=True)
        for line in lacking:
            terminalreporter.line(line.partition(f"{NO_TOOL}: ")[2])
