"""Fuzzing what commands read: whatever is done to a file, the answer is a document or one line, never a traceback."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokenfab.hw
from tokenfab.cli import run

CATALOG = Path(str(tokenfab.hw.__file__)).parent / "catalog"
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

ODD = st.sampled_from(
    [None, True, 0, -1, 1, 2**31, 10**18, 10**400, 0.5, 1e308, -0.0, "", "b", "-b", "q*c", "b**99", "1/0", "min(b, c)",
     "nan", "x" * 300, "\ud800", "\x1b[31m", [], {}, [1], "matmul", "attention", "experts", "collective", "fp8", "int3"]
)  # fmt: skip


def command(*arguments: object) -> tuple[int, str, str]:
    """Run a command line here; an exception that is no answer goes through."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


def check(answer: tuple[int, str, str], is_json: bool) -> None:
    code, out, err = answer
    assert code in (0, 2)
    if code == 2:
        assert out == ""
        assert err.startswith("tokenfab: ")
        assert err.count("\n") == 1
        assert err[:-1].isprintable()
    elif is_json:
        assert all(math.isfinite(n) for n in numbers(json.loads(out)))


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, inner in items for p in ((*path, key), *places(inner, (*path, key)))]


def mutated(document: Any, data: st.DataObject) -> Any:
    """A copy of ``document`` with one to three things deleted, replaced, doubled or exchanged."""
    changed = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        found = places(changed)
        if not found:
            break
        *path, last = data.draw(st.sampled_from(found))
        node = changed
        for key in path:
            node = node[key]
        action = data.draw(st.sampled_from(["delete", "replace", "scale", "swap", "double"]))
        if action == "delete":
            del node[last]
        elif action == "replace":
            node[last] = data.draw(ODD)
        elif action == "scale" and isinstance(node[last], int | float):
            node[last] = node[last] * data.draw(st.sampled_from([-1, 0, 1e-9, 3, 1e9, 1e30]))
        elif action == "swap":
            other = changed
            for key in data.draw(st.sampled_from(found)):
                other = other[key]
            node[last] = copy.deepcopy(other)
        elif isinstance(node, list):
            node.append(copy.deepcopy(node[last]))
    return changed


@pytest.fixture(scope="module")
def files(tmp_path_factory, trace_file) -> dict[str, Any]:
    """Valid documents of each kind, by name."""
    folder = tmp_path_factory.mktemp("fuzz")
    assert (
        run(["estimate", "-m", str(trace_file), "-d", "l4", "--output", "4", "-o", str(folder / "r.json"), "--quiet"])
        == 0
    )
    result = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    study = {"schema": "tokenfab.study", "version": 1, "estimates": [result]}
    return {"trace": json.loads(trace_file.read_text()), "result": result, "study": study, "folder": folder}


@SHARED
@given(data=st.data())
def test_estimating_a_mutated_trace(files, data):
    file = files["folder"] / "trace.json"
    file.write_text(json.dumps(mutated(files["trace"], data)))
    device = data.draw(st.sampled_from(["h100-sxm", "tpu-v5e", "p40"]))
    more = data.draw(
        st.sampled_from(
            [(), ("--count", 2), ("--parallel", "pp=2"), ("--apply", "weight-only"), ("--apply", "kv-quant")]
        )
    )
    request = ("--prompt", 32, "--output", 4)
    check(command("estimate", "-m", file, "-d", device, *request, *more, "--explain", "--json"), True)
    check(command("estimate", "-m", file, "-d", device, *request, *more, "--explain"), False)


@SHARED
@given(data=st.data())
def test_reading_a_mutated_trace(files, data):
    file = files["folder"] / "trace.json"
    file.write_text(json.dumps(mutated(files["trace"], data)))
    check(command("trace", file, "--query", 7, "--json"), True)
    check(command("trace", file, "--query", 7), False)


@SHARED
@given(at=st.integers(0, 20_000), inserted=st.binary(max_size=20), length=st.integers(0, 20))
def test_reading_a_trace_with_bytes_changed(files, trace_file, at, inserted, length):
    content, file = trace_file.read_bytes(), files["folder"] / "trace.json"
    at %= len(content)
    file.write_bytes(content[:at] + inserted + content[at + length :])
    check(command("trace", file, "--json"), True)


@SHARED
@given(data=st.data())
def test_estimating_on_a_mutated_device(files, trace_file, data):
    lines = (CATALOG / "a10.toml").read_text(encoding="utf-8").splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(lines) - 1))
        action = data.draw(st.sampled_from(["delete", "double", "edit", "number"]))
        if action == "delete" and len(lines) > 1:
            del lines[i]
        elif action == "double":
            lines.insert(i, lines[i])
        elif action == "edit":
            at = data.draw(st.integers(0, len(lines[i])))
            lines[i] = (
                lines[i][:at] + data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=4)) + lines[i][at:]
            )
        else:
            value = data.draw(st.sampled_from(["0", "-1", "nan", "inf", "1e300", "0.5", "1 B", "1 PB/s", "true"]))
            lines[i] = lines[i].split("=")[0] + f'= {{ value = "{value}", source = "assumed: fuzz" }}'
    file = files["folder"] / "device.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    check(command("estimate", "-m", trace_file, "-d", file, "--output", 4, "--count", 2, "--json"), True)
    check(command("devices", file), False)


@SHARED
@given(data=st.data(), kind=st.sampled_from(["result", "study"]))
def test_reporting_a_mutated_result(files, data, kind, monkeypatch):
    """Up to the drawing, which the reports' own tests fuzz."""
    monkeypatch.setattr("tokenfab.reports.pdf.render", lambda *_: (b"%PDF", 1))
    monkeypatch.setattr("tokenfab.reports.html.render", lambda *_: ("<html>", 1))
    file = files["folder"] / "result.json"
    file.write_text(json.dumps(mutated(files[kind], data)))
    check(command("report", file, "-o", files["folder"] / "r.pdf", "--json"), True)


WORDS = ["trace", "estimate", "devices", "--json", "-m", "-d", "l4", "--count", "-1", "", "--", "-", "x", "--help"]


@SHARED
@given(arguments=st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=6))
def test_any_command_line(monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    check(command(*arguments), False)
