"""Shipped traces: equal to fresh captures, taken only while they are current, and enough to start without torch."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tokenfab
from tokenfab.errors import InputError
from tokenfab.models.config import load_config, model_names
from tokenfab.models.vit_config import VITS
from tokenfab.workloads import load, shipped
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.trace import Trace

PACKAGE = Path(tokenfab.__file__).parent
TRACES = PACKAGE / "workloads" / "traces"
AGAIN = "the shipped traces are not current: run `make traces` and commit workloads/traces"
NAMES = [*model_names(), *VITS]
HEAVY = ("torch", "sympy", "scipy", "matplotlib", "pulp", "transformers")


def config_of(name):
    return VITS.get(name) or load_config(name)


def but_for_torch(trace: Trace) -> Trace:
    """``trace`` without the version of torch that captured it."""
    capture = re.sub(r"torch [^ ]+ on meta", "torch on meta", str(trace.provenance["capture"]))
    return trace.model_copy(update={"provenance": {**trace.provenance, "capture": capture, "tokenfab": ""}})


# -- current ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_trace_is_what_a_fresh_capture_gives(name):
    assert (TRACES / f"{name}.json").is_file(), AGAIN
    read = Trace.load(TRACES / f"{name}.json")
    fresh = shipped.as_shipped(load_trace(name, fresh=True))
    # A release that changed nothing here ships what an earlier one captured.
    fresh.provenance["capture"] = str(fresh.provenance["capture"]).replace(
        f"tokenfab {fresh.provenance['tokenfab']}", f"tokenfab {read.provenance['tokenfab']}"
    )
    assert but_for_torch(read) == but_for_torch(fresh), AGAIN
    assert read.provenance["config_sha256"] == config_of(name).digest, AGAIN


def test_every_preset_is_shipped_and_nothing_else():
    assert {f.name for f in TRACES.iterdir()} == {f"{name}.json" for name in NAMES} | {"sources.toml"}, AGAIN


def test_the_sources_are_those_that_the_traces_were_made_from():
    recorded = tomllib.loads((TRACES / "sources.toml").read_text(encoding="utf-8"))
    assert recorded == {"sources_sha256": shipped.sources_digest()}, AGAIN


def test_the_sources_are_all_modules_that_a_capture_can_import():
    found, ahead = set(), ["workloads/capture.py", "workloads/vision.py", "models/vit.py"]
    while ahead:
        source = ahead.pop()
        if source in found:
            continue
        found.add(source)
        room = PACKAGE / Path(source).parent
        for node in ast.walk(ast.parse((PACKAGE / source).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = room if node.level == 1 else room.parent
                named = [node.module.replace(".", "/")] if node.module else [a.name for a in node.names]
                files = [folder / f"{name}.py" for name in named]
                ahead += [f.relative_to(PACKAGE).as_posix() for f in files if f.is_file() and f.parent != PACKAGE]
    assert found == set(shipped.SOURCES)


# -- taken, and not --------------------------------------------------------------------------------
@pytest.fixture
def kept():
    """No trace is kept from or for other tests."""
    cached = load._shipped_or_captured, shipped.sources_digest
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def captured(trace: Trace) -> bool:
    """Whether ``trace`` was captured by this process."""
    return "capture_s" in trace.provenance


def test_a_preset_and_a_vision_model_are_shipped(kept):
    for name in ("opt-125m", "edge-moe-tiny"):
        trace = load_trace(name)
        assert not captured(trace)
        assert re.search(r"torch \S+ on meta.*; shipped with tokenfab \d", str(trace.provenance["capture"]))
        assert trace.model == name


def test_a_fresh_trace_is_captured(kept):
    assert captured(load_trace("opt-125m", fresh=True))
    assert not captured(load_trace("opt-125m"))  # the fresh one does not take its place


def test_a_preset_file_is_captured_unless_it_says_what_the_preset_says(kept, tmp_path):
    preset = (PACKAGE / "models" / "presets" / "opt-125m.toml").read_text(encoding="utf-8")
    same, wider = tmp_path / "same.toml", tmp_path / "wider.toml"
    same.write_text(preset, encoding="utf-8")
    wider.write_text(preset.replace("inner = 3072", "inner = 4096"), encoding="utf-8")
    assert load_trace(str(same)) == load_trace("opt-125m")
    trace = load_trace(str(wider))
    assert captured(trace)
    assert trace.parameters - load_trace("opt-125m").parameters == 12 * 1024 * (2 * 768 + 1)  # two matrices and a bias


def test_a_changed_source_makes_it_capture(kept, monkeypatch):
    monkeypatch.setattr(shipped, "SOURCES", shipped.SOURCES[1:])
    assert captured(load_trace("opt-125m"))


def test_without_its_sources_an_installation_captures(kept, monkeypatch):
    monkeypatch.setattr(shipped, "SOURCES", ("models/nothing.py",))
    assert shipped.sources_digest() == ""
    assert shipped.shipped_trace(load_config("opt-125m")) is None


@pytest.mark.parametrize("name", ["../traces/opt-125m", "opt-125m.json", "sources", "mine", "opt-125m\0"])
def test_a_name_from_a_file_is_never_a_path(name):
    assert shipped.shipped_trace(load_config("opt-125m").model_copy(update={"name": name})) is None


def test_a_damaged_trace_is_named(kept, monkeypatch, tmp_path):
    folder = tmp_path / "workloads"
    shutil.copytree(TRACES, folder / "traces")
    file = folder / "traces" / "opt-125m.json"
    file.write_bytes(file.read_bytes()[:-9])
    digest, config = shipped.sources_digest(), load_config("opt-125m")
    monkeypatch.setattr(shipped, "sources_digest", lambda: digest)
    monkeypatch.setattr(shipped.resources, "files", lambda _: folder)
    with pytest.raises(InputError, match=r"opt-125m\.json: not a complete JSON document"):
        shipped.shipped_trace(config)


# -- files and start -------------------------------------------------------------------------------
def test_a_file_holds_an_operator_per_line_and_nothing_that_varies():
    trace = load_trace("opt-125m")
    text = shipped.file_text(trace)
    assert text == (TRACES / "opt-125m.json").read_text(encoding="utf-8")
    assert "capture_s" not in text
    lines = text.splitlines()
    assert len(lines) == 1 + len(list(trace.operators()))
    assert [re.match(r'\{"name":"([^"]+)"', line)[1] for line in lines[1:]] == [op.name for op, _ in trace.operators()]


def test_estimating_a_preset_imports_neither_torch_nor_another_heavy_library():
    """What the start costs is imports: a library that is not there costs nothing, on any machine."""
    devices = ("a100-80g-sxm", "attacc-bank", "a100-lut-tensor-core", "ant", "sn40l", "xeon-2s")
    asked = [f"llama-2-7b --device {d}" for d in devices]
    asked += ["mixtral-8x7b --device h100-sxm", "llama-2-70b --device h100-sxm --count 4 --apply weight-only:bits=4",
              "llama-2-7b --device u280-flightllm --apply mixed-precision:head=1 --apply kv-quant"]  # fmt: skip
    lines = [f"estimate --quiet --model {words}" for words in asked]
    code = f"""
import sys
from tokenfab.cli import run
print(*(run(line.split()) for line in {lines}))
print(*(name for name in {HEAVY} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    codes, heavy = done.stdout.splitlines()
    assert (codes.split(), heavy) == (["0"] * len(lines), ""), done.stderr
