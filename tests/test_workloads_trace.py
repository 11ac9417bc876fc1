"""Trace files: what is written reads back equal, and whatever else is in a file is refused in one line."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tokenfab import models as presets
from tokenfab.errors import InputError
from tokenfab.models.config import load_config
from tokenfab.workloads.capture import capture
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.parallel import tensor_parallel
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace, check_point
from tokenfab.workloads.trace_schema import main, schema_text

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "trace.schema.json"


@cache
def trace_of(name: str) -> Trace:
    return capture(name)


@cache
def small() -> Trace:
    """Every kind of operand in few operators: experts, a window, grouped heads."""
    fields = {"hidden": 64, "layers": 2, "heads": 8, "kv_heads": 2, "head_dim": 8, "inner": 96, "window": 100}
    return capture(load_config("mixtral-8x7b").model_copy(update=fields))


# -- round trip --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["llama-2-7b", "mixtral-8x7b", "qwen2-7b"])
def test_what_techniques_and_sharing_make_reads_back_equal(name, tmp_path):
    changed = apply_techniques(trace_of(name), ["weight-only:bits=3,group=64", "kv-quant", "fuse-projections"])
    changed = tensor_parallel(changed, 8)
    changed.save(tmp_path / "t.json")
    assert Trace.load(tmp_path / "t.json") == changed


def test_a_name_a_preset_file_and_a_trace_file_are_three_ways_to_one_trace(tmp_path):
    own = tmp_path / "own.toml"
    own.write_bytes((Path(presets.__file__).parent / "presets" / "opt-125m.toml").read_bytes())
    trace_of("opt-125m").save(tmp_path / "t.json")
    blocks = trace_of("opt-125m").blocks
    for model in ("opt-125m", str(own), str(tmp_path / "t.json")):
        assert load_trace(model).blocks == blocks
    with pytest.raises(InputError, match="unknown model 'opt-125'"):
        load_trace("opt-125")


def test_the_published_schema_is_that_of_this_release(tmp_path, capsys):
    assert SCHEMA.read_text(encoding="utf-8") == schema_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))
    assert main([str(tmp_path / "s.json")]) == 0
    assert main([]) == 0
    assert capsys.readouterr().out == (tmp_path / "s.json").read_text(encoding="utf-8")


def test_a_file_without_a_version_breaks_the_schema():
    document = json.loads(small().to_json())
    del document["version"]
    with pytest.raises(jsonschema.ValidationError, match="'version' is a required property"):
        jsonschema.validate(document, json.loads(schema_text()))


# -- files that are none -----------------------------------------------------------------------------
def refusal(tmp_path: Path, content: bytes | str) -> str:
    """The one line with which ``content`` is refused; it begins with the file's name."""
    path = tmp_path / "t.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        Trace.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 500 + len(str(path))
    return text.removeprefix(f"{path}: ")


WHOLE = '{"schema": "tokenfab.trace", "version": %s}'
NO_TRACES = {
    "empty": (b"", "not a complete JSON document"), "truncated": (b'{"schema": "tok', "not a complete JSON document"),
    "binary": (b"\xff\xfe\x00", "not UTF-8 text"), "list": (b"[]", "not a tokenfab trace"),
    "number": (b"7", "not a tokenfab trace"), "foreign": (b'{"nodes": []}', 'its "schema" is not "tokenfab.trace"'),
    "no version": (b'{"schema": "tokenfab.trace"}', "trace version None; this release reads version 1"),
    "newer": (WHOLE % 2, "trace version 2; this release reads version 1"),
    "true": (WHOLE % "true", "trace version True"), "text": (WHOLE % '"1"', "trace version '1'"),
    "huge version": (WHOLE % json.dumps(["x" * 9999]), "trace version ['xxx"),
    "nothing more": (WHOLE % 1, "model: Field required (and 5 more)"),
    "nan": ('{"schema": NaN}', "NaN is not a number"), "deep": ("[" * 100_000, "not a complete JSON document"),
    "digits": ('{"schema": ' + "1" * 5000 + "}", "not a complete JSON document"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TRACES)
def test_a_file_that_is_no_trace_is_refused(name, tmp_path):
    content, message = NO_TRACES[name]
    assert message in refusal(tmp_path, content)


def test_missing_files_folders_and_giants_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"none.json: cannot be read: No such file or directory; a trace file"):
        Trace.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        Trace.load(tmp_path)
    with pytest.raises(InputError, match="cannot be read: embedded null"):
        Trace.load("a\0b")
    monkeypatch.setattr("tokenfab.workloads.trace.MAX_FILE_BYTES", 1 << 20)
    assert refusal(tmp_path, b" " * (1 << 20) + b"{}") == "larger than 1 MiB, which no trace is"


# -- contents that could not be costed ---------------------------------------------------------------
def operator(document: dict, kind: str) -> dict:
    return next(op for b in document["blocks"] for op in b["operators"] if op["kind"] == kind)


def put(kind: str, *path: Any, value: Any = None, drop: bool = False):
    """A change of one operator of ``kind`` in a trace document."""

    def change(document: dict) -> None:
        node = operator(document, kind)
        for key in path[:-1]:
            node = node[key]
        if drop:
            del node[path[-1]]
        else:
            node[path[-1]] = value

    return change


def also(block: int, **fields: Any):
    return lambda document: document["blocks"][block].update(fields)


def top(**fields: Any):
    return lambda document: document.update(fields)


BAD = {
    "no m": (put("matmul", "dims", "m", drop=True), "a matmul needs the size m; its dims are m, n, k"),
    "more dims": (put("norm", "dims", "width", value=3), "a norm has no size 'width'; accepted: elements"),
    "no row": (put("kv_append", "dims", "row_elements", drop=True), "a kv_append needs the size row_elements"),
    "no cache": (put("kv_append", "writes", value=[]), "a kv_append writes a tensor of role kv"),
    "flat cache": (put("kv_append", "writes", 0, "shape", value=["b", 64]), "keys and values have four axes"),
    "no gate": (put("experts", "attrs", value={}), "experts need the attribute gated"),
    "number gate": (put("experts", "attrs", value={"gated": 1}), "experts need the attribute gated"),
    "many k": (put("experts", "dims", "top_k", value=9), "top_k = 9 of 8 experts"),
    "half experts": (put("experts", "dims", "experts", value=0.5), "experts = 0.5; accepted: a number of at least 1"),
    "growing heads": (put("attention", "dims", "heads", value="b"), "heads = b; accepted: a number of at least 1"),
    "no window": (put("attention", "dims", "window", value=0), "window = 0; accepted: a number of at least 1"),
    "negative": (put("norm", "flops", value=-1), "flops = -1 comes to -1; accepted: 0 to 1e+30"),
    "shrinking": (put("norm", "dims", "elements", value="7 - q"), "elements = -q + 7 comes to -2041"),
    "endless": (put("norm", "flops", value="1e28*b*q*c"), "flops = 1e+28*b*c*q comes to"),
    "negative shape": (put("norm", "writes", 0, "shape", value=["b", -3, -4]), "shape of attention_norm.norm = -3"),
    "endless cache": (put("kv_append", "writes", 0, "shape", 1, value="1e30"), "elements of attention.kv_append = "),
    "no bits": (put("norm", "writes", 0, "bits", value=0), "bits: Input should be greater than 0"),
    "infinite bits": (put("norm", "writes", 0, "bits", value=1e999), "not a complete JSON document"),
    "weight": (put("matmul", "reads", 1, "shape", value=["b", 64]), "has the shape (b, 64); accepted: numbers"),
    "no output": (put("norm", "writes", value=[]), "a norm writes at least one tensor"),
    "unknown kind": (put("norm", "kind", value="magic"), "kind: Input should be 'matmul', 'attention'"),
    "wrong kind": (put("norm", "kind", value="scan"), "a scan needs the size state"),
    "unknown role": (put("norm", "reads", 0, "role", value="magic"), "role: Input should be 'activation', 'weight'"),
    "no name": (put("norm", "name", value=""), "name: String should have at least 1 character"),
    "long name": (put("norm", "name", value="x" * 201), "name: String should have at most 200 characters"),
    "late": (put("norm", "deps", value=["mlp"]), "attention_norm.norm depends on mlp, which does not precede it"),
    "own": (put("norm", "deps", value=["attention_norm.norm"]), "depends on attention_norm.norm, which does not"),
    "unknown dep": (put("norm", "deps", value=["nobody"]), "depends on nobody, which does not precede it"),
    "twice": (put("rope", "name", value="attention.qkv"), "operator attention.qkv appears twice"),
    "bad text": (put("norm", "flops", value="__import__('os')"), "not an expression"),
    "truth": (put("norm", "flops", value=True), "a size is a number or an expression, not bool"),
    "null": (put("norm", "flops", value=None), "a size is a number or an expression, not NoneType"),
    "no repeat": (also(1, repeat=0), "repeat: Input should be greater than or equal to 1"),
    "negative repeat": (also(1, repeat=-2), "repeat: Input should be greater than or equal to 1"),
    "other repeat": (also(1, repeat=3), "block layer repeats 3 times but order runs it 2 times"),
    "output": (also(1, output="nobody"), "block layer: output nobody is not one of its operators"),
    "no operators": (also(1, operators=[]), "is not one of its operators"),
    "same name": (also(1, name="embed"), "two blocks have one name"),
    "order": (top(order=[["embed", 1], ["nobody", 2], ["head", 1]]), "order names the unknown block nobody"),
    "no blocks": (top(blocks=[], order=[]), "blocks: Tuple should have at least 1 item"),
    "key": (top(colour="red"), "colour: Extra inputs are not permitted"),
    "hidden": (top(hidden=0), "hidden: Input should be greater than or equal to 1"),
    "huge": (top(vocabulary=10**300), "vocabulary: Input should be less than or equal to 2147483647"),
    "order times": (top(order=[["embed", 1], ["layer", 10**9], ["head", 1]]), "order runs it 1000000000 times"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_contents_that_could_not_be_costed_are_refused_with_their_place(name, tmp_path):
    change, message = BAD[name]
    document = json.loads(small().to_json())
    change(document)
    assert message in refusal(tmp_path, json.dumps(document))


def test_a_collective_says_which():
    shared = json.loads(tensor_parallel(small(), 2).to_json())
    operator(shared, "collective")["attrs"] = {"collective": "gossip"}
    with pytest.raises(ValueError, match="accepted: all_reduce, all_gather, send"):
        Trace.model_validate(shared)


def test_more_layers_than_any_model_has_are_refused(tmp_path):
    document = json.loads(small().to_json())
    document["blocks"][1]["repeat"] = 100_000
    document["order"][1] = ["layer", 100_000]
    assert "100002 blocks are run; accepted: at most 100000" in refusal(tmp_path, json.dumps(document))


# -- points ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("point", "message"),
    [
        ((0, 1, 0), "batch 0; accepted: 1 to 1e9"), ((1, 0, 0), "query 0; accepted: 1 to 1e9"),
        ((1, 1, -1), "context -1; accepted: 0 to 1e9"), ((float("nan"), 1, 0), "batch nan; accepted"),
        ((1, 1e10, 0), "query 1e+10; accepted"), ((1, 1, 4096), "context 4096 + query 1 = 4097 tokens exceed the 4096"),
    ],
)  # fmt: skip
def test_a_point_out_of_range_is_refused_and_the_last_one_within_is_not(point, message):
    with pytest.raises(InputError) as caught:
        check_point(trace_of("llama-2-7b"), *point)
    assert message in str(caught.value)
    check_point(trace_of("llama-2-7b"), 1, 1, 4095)
