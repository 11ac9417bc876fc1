"""Do the documents say what the program prints? Every example in them is run, and every link and name is looked up."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import time
from pathlib import Path

import pytest

from tokenfab.hw.devices import device_names, load_device

ROOT = Path(__file__).resolve().parents[1]


def script(name: str):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw_examples = script("draw_examples")
EXAMPLES = {
    f"{d.name}: {command}": output for d in draw_examples.DOCUMENTS for command, output in draw_examples.examples(d)
}


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_prints_what_the_document_says(example, tmp_path, monkeypatch):
    """When it does not, and the program is right: ``make docs``."""
    monkeypatch.setenv("COLUMNS", os.environ.get("COLUMNS", ""))  # put back afterwards
    with contextlib.chdir(tmp_path):
        assert draw_examples.printed(example.split(": ", 1)[1]) == EXAMPLES[example]


def test_the_documents_have_examples_of_the_main_commands():
    commands = {example.split(": ", 1)[1].split()[1] for example in EXAMPLES}
    assert {"study", "estimate", "trace", "devices", "techniques"} <= commands
    assert all(output.strip() for output in EXAMPLES.values())


@pytest.mark.slow
def test_the_main_job_makes_six_pages_on_six_gpus_within_a_minute_of_cpu(tokenfab, tmp_path):
    start = time.process_time()
    answer = tokenfab("study", "llama-2-7b", "-o", tmp_path / "out", "--json").json
    assert time.process_time() - start < 60
    assert answer["pages"] >= 6
    estimates = json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))["estimates"]
    assert len({e["device"]["name"] for e in estimates if e["device"]["kind"] == "gpu"}) >= 6


def test_the_readme_lists_the_catalogue_by_kind():
    rows = re.findall(r"^\| ([\w-]+) \| (`.*`) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name: kind for kind, names in rows for name in re.findall(r"`([^`]+)`", names)}
    assert listed == {name: load_device(name).kind for name in device_names()}


def test_the_readmes_first_screen_shows_two_commands_and_the_picture():
    first = (ROOT / "README.md").read_text(encoding="utf-8")[:900]
    assert "    make study" in first
    assert "    make test" in first
    assert "(docs/img/report.png)" in first
    assert 20_000 < (ROOT / "docs" / "img" / "report.png").stat().st_size < 300_000


@pytest.mark.parametrize(
    "document", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name
)
def test_what_a_document_points_to_is_there(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (document.parent / target).exists(), target
    for path in re.findall(r"`((?:tests|hw|workloads|models|reports|validation|docs|benchmarks)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).is_file(), path
