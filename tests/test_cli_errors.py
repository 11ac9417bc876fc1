"""Is wrong input told in one line that helps? Exit code 2, nothing on stdout, no traceback, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tokenfab.hw
from tokenfab.cli import run

CATALOG = Path(str(tokenfab.hw.__file__)).parent / "catalog"


@pytest.fixture
def refused(tokenfab):
    """Runs a command line that must be refused; returns its one line."""

    def call(*arguments: object) -> str:
        code, out, err = tokenfab(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("tokenfab: ")
        assert err.count("\n") == 1
        assert len(err) < 1500
        return err.removeprefix("tokenfab: ").removesuffix("\n")

    return call


# -- names -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trace", "lama-2-7b"], "unknown model 'lama-2-7b'; did you mean llama-2-7b"),
        (["models", "llama2-7b"], "unknown model 'llama2-7b'; did you mean llama-2-7b?"),
        (["estimate", "-m", "opt", "-d", "l4"], "unknown model 'opt'; did you mean opt-1.3b, opt-125m, "),
        (["study", "nothing-like-it", "-o", "out"], "unknown model 'nothing-like-it'; known: bitnet-b1.58-3b, "),
        (["devices", "a100"], "unknown device 'a100'; did you mean a100-40g-sxm, a100-80g-sxm, a100-hbm3, "),
        (["estimate", "-m", "opt-125m", "-d", "RTX4090"], "unknown device 'RTX4090'; did you mean rtx-4090, "),
        (["study", "opt-125m", "-d", "h10-sxm", "-o", "out"], "unknown device 'h10-sxm'; did you mean h100-sxm?"),
        (["techniques", "weightonly"], "unknown technique 'weightonly'; did you mean weight-only?"),
        (["trace", "opt-125m", "--apply", "awq"], "unknown technique 'awq'; known: activation-sparsity, composition, "),
        (["estimat"], "unknown command 'estimat'; did you mean estimate?"),
        (["studdy", "llama-2-7b"], "unknown command 'studdy'; did you mean study?"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(refused, arguments, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(*arguments).startswith(line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("weight-only:bit=4", ["unknown parameter of technique weight-only 'bit'", "did you mean bits"]),
        ("weight-only:bits", ["bits needs a value", "bits=4"]),
        ("weight-only:bits=x", ["technique weight-only: bits", "'x' is not an integer"]),
        ("weight-only:bits=9", ["9 is out of range; accepted: 1 to 8"]),
        ("weight-only:bits=nan", ["'nan' is not an integer"]),
        ("weight-only:head=2", ["accepted: 0, 1"]),
        ("kv-quant:bits=0", ["technique kv-quant: bits: 0 is out of range; accepted: 1 to 8"]),
        ("", ["unknown technique ''", "known: "]),
    ],
)
def test_a_wrong_parameter_of_a_technique_is_told_with_what_is_accepted(refused, trace_file, spec, words):
    line = refused("estimate", "-m", trace_file, "-d", "l4", "--apply", spec)
    assert all(word in line for word in words)


# -- numbers ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "0"], ["batch", "0", "accepted: 1 to 1e9"]),
        (["--batch", "-1"], ["batch", "-1", "accepted: 1 to 1e9"]),
        (["--batch", "1000000001"], ["batch", "accepted: 1 to 1e9"]),
        (["--batch", "9" * 40], ["batch", "accepted: 1 to 1e9"]),
        (["--batch", "nan"], ["--batch", "integer"]),
        (["--batch", "1.5"], ["--batch", "integer"]),
        (["--batch", "inf"], ["--batch", "integer"]),
        (["--prompt", "0"], ["prompt", "accepted: 1 to"]),
        (["--output", "0"], ["output", "accepted: 1 to"]),
        (["--prompt", "4000", "--output", "97"], ["4000 + output 97 = 4097 tokens exceed the 4096 of llama-2-7b"]),
        (["--count", "0"], ["--count", "0", "accepted: 1 to"]),
        (["--count", "-2"], ["--count", "-2", "accepted: 1 to"]),
        (["--count", "64"], ["llama-2-7b: 32 attention heads cannot be divided over 64 devices"]),
        (["--count", "3", "--parallel", "tp=2"], ["--count 3 is not a multiple of 2 (= tp=2)"]),
        (["--parallel", "tp=0"], ["--parallel: 'tp=0'; accepted: tp=N, pp=N, dp=N"]),
        (["--parallel", "tp=nan"], ["'tp=nan'; accepted"]),
        (["--parallel", "ep=2"], ["'ep=2'; accepted"]),
        (["--parallel", "tp"], ["'tp'; accepted"]),
        (["--parallel", "pp=33"], ["32 layers cannot be divided over 33 pipeline stages"]),
        (["--level", "rtl"], ["--level rtl: accepted: closed, event"]),
        (["--streams", "2"], ["--streams 2 with --level closed"]),
        (["--level", "event", "--streams", "0"], ["--streams 0: accepted: 1 to 64"]),
        (["--batchh", "2"], ["--batchh", "--batch"]),
        (["--batch"], ["--batch", "argument"]),
        (["surplus"], ["surplus"]),
    ],
)
def test_a_number_out_of_range_is_told_with_the_range(refused, trace_file, options, words):
    line = refused("estimate", "-m", trace_file, "-d", "h100-sxm", *options)
    assert all(word in line for word in words), line


def test_both_sides_of_the_longest_context(tokenfab, refused, trace_file):
    assert tokenfab("trace", trace_file, "--query", 1, "--context", 4095, "--quiet").code == 0
    line = refused("trace", trace_file, "--query", 1, "--context", 4096)
    assert "context 4096 + query 1 = 4097 tokens exceed the 4096 of llama-2-7b" in line


@pytest.mark.parametrize(
    "missing", [["estimate", "-d", "l4"], ["estimate", "-m", "opt-125m"], ["report", "x"], ["trace"]]
)
def test_what_is_missing_is_named(refused, missing):
    assert refused(*missing).startswith("Missing ")


# -- files that are read ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot be read", "No such file"]),
        (b"", ["not a complete JSON document"]),
        (b"{", ["not a complete JSON document"]),
        (b"\xff\xfe\x00", ["not UTF-8"]),
        (b"[1, 2]", ["not a tokenfab trace"]),
        (b'{"schema": "someone.else", "version": 1}', ["not a tokenfab trace"]),
        (b'{"schema": "tokenfab.trace", "version": 2}', ["trace version 2; this release reads version 1"]),
        (b'{"schema": "tokenfab.trace", "version": 1, "model": NaN}', ["NaN is not a number a trace may hold"]),
    ],
)
def test_what_is_no_trace_is_refused(refused, tmp_path, content, words):
    file = tmp_path / "some.json"
    if content is not None:
        file.write_bytes(content)
    for command in (["trace", file], ["estimate", "-m", file, "-d", "l4"], ["study", file, "-o", tmp_path / "out"]):
        line = refused(*command)
        assert line.startswith(f"{file}: ")
        assert all(word in line for word in words)
    assert not (tmp_path / "out").exists()


def test_a_truncated_trace_is_refused(refused, trace_file, tmp_path):
    file = tmp_path / "half.json"
    file.write_text(trace_file.read_text()[:5000])
    assert f"{file}: not a complete JSON document" in refused("trace", file)


def test_a_trace_with_sizes_that_no_number_holds_is_refused(refused, trace_file, tmp_path):
    document = json.loads(trace_file.read_text())
    for operator in document["blocks"][1]["operators"]:
        if operator["kind"] == "norm":
            operator["flops"] = "1e300*b**3"
    (tmp_path / "huge.json").write_text(json.dumps(document))
    for command in (["trace", tmp_path / "huge.json"], ["estimate", "-m", tmp_path / "huge.json", "-d", "l4"]):
        assert "operator attention_norm.norm: flops = 1e+300*b**3" in refused(*command)


DAMAGES = [
    ('bandwidth = { value = "600 GB/s", source = "aggregator" }', "", "memory.dram.bandwidth: missing; accepted: "),
    ('"600 GB/s"', '"-600 GB/s"', "memory.dram.bandwidth: -600 GB/s is out of range; accepted: "),
    ('"600 GB/s"', '"0 GB/s"', "memory.dram.bandwidth: 0 GB/s is out of range; accepted: "),
    ('"600 GB/s"', "nan", "memory.dram.bandwidth: nan"),
    ('"600 GB/s"', "600", "memory.dram.bandwidth: 600 has no unit; accepted: "),
    ('"600 GB/s"', '"600 GW"', "memory.dram.bandwidth: 600 GW is not a bandwidth"),
    ('"600 GB/s"', '"1e300 GB/s"', "memory.dram.bandwidth: 1e300 GB/s is out of range; accepted: "),
    ("[memory.dram]", "[memory.drum]", "memory.drum.bandwidth"),
    ("[power]", "[powr]", "unknown key 'powr'; did you mean power?"),
    ('source = "aggregator" }', 'source = "nowhere" }', "source nowhere is unknown; accepted: "),
    ('kind = "gpu"', 'kind = "abacus"', "kind: abacus is not accepted; accepted: one of gpu, tpu, cpu"),
    ('kind = "gpu"', 'kind = "dataflow"', "device a10: memory.sram is missing; fused operators pass"),
    ('architecture = "ampere-consumer"', 'architecture = "ampree"', "unknown architecture 'ampree'; did you mean am"),
    ("[engines.matrix]", "[engines.matrix", "not TOML: "),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), DAMAGES)
def test_a_damaged_device_file_is_told_with_file_key_and_range(refused, trace_file, tmp_path, old, new, words):
    text = (CATALOG / "a10.toml").read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new), encoding="utf-8")
    line = refused("estimate", "-m", trace_file, "-d", file)
    if words == "memory.drum.bandwidth":  # a level of one's own; the one that is needed is missing
        words = "memory.dram.capacity: missing"
    assert words in line
    assert line.startswith((f"{file}: ", "device a10: "))


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"#" * (1 << 20) + b"##"])
def test_what_is_no_device_file_is_refused(refused, tmp_path, content):
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    assert refused("devices", file).startswith(f"{file}: ")
    assert refused("devices", tmp_path).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"%PDF-1.4", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"schema": "tokenfab.trace", "version": 1}', "schema is 'tokenfab.trace'"),
        (b'{"schema": "tokenfab.estimate", "version": 7}', "version is 7"),
        (b'{"schema": "tokenfab.estimate", "version": 1}', "tokenfab: Field required"),
        (b'{"schema": "tokenfab.study", "version": 1, "estimates": []}', "estimates is not a list of estimates"),
    ],
)
def test_what_is_no_result_is_refused(refused, tmp_path, content, words):
    file = tmp_path / "result.json"
    if content is not None:
        file.write_bytes(content)
    line = refused("report", file, "-o", tmp_path / "r.pdf")
    assert line.startswith(f"{file}: ")
    assert words in line
    assert "accepted: " in line
    assert not (tmp_path / "r.pdf").exists()


# -- files that are written ------------------------------------------------------------------------
def test_an_output_that_cannot_be_written_is_refused(refused, trace_file, tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    command = ["estimate", "-m", trace_file, "-d", "l4", "-o"]
    assert refused(*command, folder) == f"{folder}: cannot be written: Is a directory"
    assert refused(*command, file / "x.json").startswith(f"{file}/x.json: cannot be written: ")
    assert refused("trace", trace_file, "-o", folder).startswith(f"{folder}: cannot be written")
    assert refused("study", trace_file, "-o", file).startswith(
        f"{file}: cannot be written: is a file; accepted: a folder"
    )
    assert file.read_text() == "mine"
    assert list(folder.iterdir()) == []


def test_a_report_goes_into_a_pdf(refused, tokenfab, trace_file, tmp_path):
    tokenfab("estimate", "-m", trace_file, "-d", "l4", "-o", tmp_path / "r.json")
    assert "accepted: a file name that ends in .pdf" in refused("report", tmp_path / "r.json", "-o", tmp_path / "r.txt")


# -- other ends ------------------------------------------------------------------------------------
def test_an_interruption_is_no_wrong_input_and_leaves_the_old_file(tokenfab, monkeypatch, trace_file, tmp_path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "t.json").write_text("old")
    monkeypatch.setattr("os.replace", interrupt)
    code, out, err = tokenfab("trace", trace_file, "-o", tmp_path / "t.json")
    assert (code, out, err.strip()) == (130, "", "tokenfab: interrupted")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("t.json", "old")]


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("tokenfab.models.config.model_names", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(["models"])


def test_a_degree_given_twice_is_refused(refused):
    line = refused("estimate", "--model", "llama-2-7b", "--device", "h100-sxm", "--parallel", "tp=2,tp=4")
    assert line == "--parallel: tp is given twice"
