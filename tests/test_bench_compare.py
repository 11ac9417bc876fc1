"""``make bench`` fails when a hot path got slower than its yardstick allows, and only then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def compare(folder: Path, yardstick: float, times: dict[str, float], *options: str):
    """Run the script on a result in which the yardstick took ``yardstick`` seconds."""
    info = {"yardstick": "python", "yardsticks_s": {"python": yardstick, "arrays": 1e9}}
    entries = [{"name": name, "stats": {"min": seconds}, "extra_info": info} for name, seconds in times.items()]
    (folder / "result.json").write_text(json.dumps({"benchmarks": entries}), encoding="utf-8")
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), *options, "result.json", "baseline.json"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a baseline: the benchmark takes twice the yardstick's time."""
    assert compare(tmp_path, 1.0, {"test_path": 2.0}, "--write").returncode == 0
    return tmp_path


def test_a_slower_machine_is_not_a_slower_program(folder):
    assert compare(folder, 10.0, {"test_path": 20.0}).returncode == 0


@pytest.mark.parametrize(("seconds", "code"), [(3.2, 0), (3.3, 1)])
def test_both_sides_of_the_limit(folder, seconds, code):
    assert compare(folder, 1.0, {"test_path": seconds}).returncode == code


def test_a_benchmark_that_was_not_run_fails(folder):
    done = compare(folder, 1.0, {})
    assert done.returncode == 1
    assert "was not run" in done.stderr


def test_a_new_benchmark_is_shown_and_passes(folder):
    done = compare(folder, 1.0, {"test_path": 2.0, "test_other": 1.0})
    assert done.returncode == 0
    assert "new" in done.stdout


def test_the_committed_baseline_covers_the_committed_benchmarks():
    names = set(json.loads((ROOT / "benchmarks" / "baseline.json").read_text(encoding="utf-8")))
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "benchmarks").glob("bench_*.py")]
    missing = {name for name in names if not any(f"def {name}(" in source for source in sources)}
    assert missing == set()
