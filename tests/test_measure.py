"""``tokenfab measure``: its tables through the readers of validation/, its refusals."""

from __future__ import annotations

import csv
import gzip
import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tokenfab.errors import InputError
from tokenfab.validation import measure as module
from tokenfab.validation.attention import read_calls
from tokenfab.validation.gemm import read_gemm
from tokenfab.validation.kernels import COPIES, read_kernels, table_path
from tokenfab.validation.measure import COLUMNS, Machine, measure, slug
from tokenfab.validation.shapes import Attention, Gemm, shapes

TABLES = {
    "gemm": "gemm/torch_9.8.7+test/gemm_perf.csv.gz",
    "context_attention": "attention/torch_9.8.7+test/context_attention_perf.csv.gz",
    "generation_attention": "attention/torch_9.8.7+test/generation_attention_perf.csv.gz",
}
CPU = Machine("cpu", 'Some "fast", CPU', "9.8.7+test", ("bfloat16", "float32"), 1e9, ("two threads",))


class Clock:
    """Time that passes only when something says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def by_size(call, copies) -> float:
    """A timer that runs the kernel once and says 2.5 ms."""
    call(copies - 1)
    return 0.0025


def table(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def quick(out: Path, **changes):
    return measure(out, **{"name": "my_card", "quick": True, "machine": CPU, "timer": by_size} | changes)


# -- what is measured ------------------------------------------------------------------------------
def test_work_and_memory_by_hand():
    gemm = Gemm("bfloat16", 3, 5, 7)
    assert (gemm.flops, gemm.moved) == (2 * 3 * 5 * 7, 2 * (3 * 7 + 5 * 7 + 3 * 5))
    assert gemm.held == gemm.moved + 2 * 5 * (5 * 7)
    prefill, decode = Attention("float32", 2, 10, 10, 8, 4, 16), Attention("float32", 2, 1, 64, 8, 4, 16)
    assert (prefill.table, decode.table) == ("context_attention", "generation_attention")
    assert prefill.flops == 4 * 2 * 8 * 16 * (10 * 11 / 2)
    assert decode.moved == 4 * 2 * 16 * (2 * 8 + 2 * 4 * 64)


def test_the_grid_on_cuda_and_on_a_cpu():
    cuda = shapes("cuda", ["gemm", "attention"], ["bfloat16"])
    gemms = [s for s in cuda if isinstance(s, Gemm)]
    assert {s.m for s in gemms} == {2**p for p in range(14)}  # 1 to 8192
    assert {(4096, 4096), (57344, 8192)} <= {(s.n, s.k) for s in gemms}
    decode = [s for s in cuda if s.table == "generation_attention"]
    assert (min(s.kv for s in decode), max(s.kv for s in decode)) == (64, 65536)
    assert any(s.heads != s.kv_heads for s in decode)
    assert len(set(cuda)) == len(cuda)
    assert {s.table for s in shapes("cpu", ["attention"], ["float32"])} == {"context_attention", "generation_attention"}
    assert len(shapes("cuda", ["gemm", "attention"], ["bfloat16"], quick=True)) < 20
    assert max(s.held for s in shapes("cpu", ["gemm", "attention"], ["float32"])) < 1e9


def test_a_kernel_computes_what_it_says():
    """Six different weights; attention that is causal, with groups of queries on one key."""
    import torch

    fill = module._filler("cpu")
    call = Gemm("float32", 3, 4, 5).call(fill)
    results = [call(number) for number in range(COPIES)]
    assert all(r.shape == (3, 4) for r in results)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(results, 2))
    seen = []
    attention = Attention("float32", 1, 6, 6, 4, 2, 8).call(lambda *given: seen.append(fill(*given)) or seen[-1])(0)
    q, (k, v) = seen[0], seen[1].unbind()
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
    assert torch.allclose(attention, scores.softmax(-1) @ v, atol=1e-5)


def test_operands_longer_than_the_random_block_repeat_it(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 10)
    made = module._filler("cpu")("float32", 5, 7).flatten()
    assert made[:5].tolist() == made[30:].tolist() == made[10:15].tolist()
    assert len(set(made[:10].tolist())) == 10


# -- layout ----------------------------------------------------------------------------------------
def test_layout_columns_and_milliseconds(tmp_path):
    document = quick(tmp_path)
    folder = tmp_path / "aiconfigurator" / "my_card"
    assert {str(folder / file) for file in TABLES.values()} == set(document["files"])
    assert document["measured"] == sum(len(table(folder / file)) for file in TABLES.values())
    for name, file in TABLES.items():
        rows = table(folder / file)
        assert tuple(rows[0]) == COLUMNS[name]
        for row in rows:
            assert float(row["latency"]) == 2.5
            assert (row["framework"], row["version"], row["op_name"]) == ("TORCH", "9.8.7+test", name)
            assert row["device"] == CPU.device  # quotes and commas and all
    gemms = table(folder / TABLES["gemm"])
    assert {row["gemm_dtype"] for row in gemms} == {"bfloat16", "float32"}
    assert {row["kernel_source"] for row in gemms} == {"torch.nn.functional.linear"}
    assert all(row["kernel_source"].startswith("torch_sdpa_") for row in table(folder / TABLES["context_attention"]))
    notes = (tmp_path / "NOTES.md").read_text(encoding="utf-8")
    for said in ("my_card", "torch_9.8.7+test", CPU.device, "two threads", "MILLISECONDS", document["utc"], "bfloat16"):
        assert said in notes
    assert document["utc"].endswith("+00:00")


def test_columns_are_those_of_the_measured_tables(truth):
    for name in COLUMNS:
        path = table_path(truth, "h100-sxm", "gemm" if name == "gemm" else "attention", f"{name}_perf.csv.gz")
        with gzip.open(path, "rt", newline="") as file:
            assert tuple(next(csv.reader(file))) == COLUMNS[name]


@pytest.mark.parametrize("name", ["my_card", "a100-80g-sxm", "rtx-4090"])
def test_the_readers_find_what_was_measured(tmp_path, name):
    """Under a folder's name, under a device's whose folder has another, and under a catalogue's."""
    quick(tmp_path, name=name)
    planned = shapes("cpu", ["gemm", "attention"], ["bfloat16"], quick=True)
    rows = read_gemm(tmp_path, name)
    assert rows.seconds.tolist() == [0.0025] * 6
    assert list(zip(rows.m, rows.n, rows.k, strict=True)) == [
        (s.m, s.n, s.k) for s in planned if isinstance(s, Gemm)
    ]  # fmt: skip
    assert read_gemm(tmp_path, name, "float32").m.size == 6
    for phase, kind in (("prefill", "context_attention"), ("decode", "generation_attention")):
        calls, asked = read_calls(tmp_path, name, phase), [s for s in planned if s.table == kind]
        assert calls.seconds == pytest.approx(0.0025)
        assert calls.dropped == 0
        assert list(zip(calls.batch, calls.query, calls.kv, calls.heads, calls.kv_heads, strict=True)) == [
            (s.batch, s.query, s.kv, s.heads, s.kv_heads) for s in asked
        ]  # fmt: skip
        kernels = read_kernels(tmp_path, name, f"attention-{phase}")
        assert kernels.flops.tolist() == [s.flops for s in asked]
        assert kernels.bytes.tolist() == [s.moved for s in asked]
    assert read_kernels(tmp_path, name, "gemm-bf16").source == "torch_9.8.7+test/gemm_perf.csv.gz"


def test_vllms_table_comes_before_pytorchs_and_newer_before_older(tmp_path):
    folder = tmp_path / "aiconfigurator" / "c" / "gemm"
    for version in ("torch_2.9.1+cpu", "torch_2.10.0"):
        (folder / version).mkdir(parents=True)
        (folder / version / "gemm_perf.csv.gz").touch()
    assert table_path(tmp_path, "c", "gemm", "gemm_perf.csv.gz").parent.name == "torch_2.10.0"
    (folder / "vllm_0.1").mkdir()
    (folder / "vllm_0.1" / "gemm_perf.csv.gz").touch()
    assert table_path(tmp_path, "c", "gemm", "gemm_perf.csv.gz").parent.name == "vllm_0.1"
    with pytest.raises(InputError, match=r"no trtllm_\*/gemm_perf.csv.gz there"):
        table_path(tmp_path, "c", "gemm", "gemm_perf.csv.gz", ("trtllm",))


def test_a_table_without_rows_of_a_suite_is_one_line(tmp_path):
    quick(tmp_path, machine=Machine("cpu", "c", "1", ("float32",), 1e9, ()))
    with pytest.raises(InputError, match=r"gemm_perf.csv.gz: no rows of gemm-bf16"):
        read_kernels(tmp_path, "my_card", "gemm-bf16")
    with pytest.raises(InputError, match=r"perf.csv.gz: no rows with bfloat16"):
        read_calls(tmp_path, "my_card", "decode")
    assert read_gemm(tmp_path, "my_card").m.size == 0


def test_rows_of_a_card_nobody_knows_are_dropped_only_without_size_or_time(tmp_path):
    quick(tmp_path)
    path = table_path(tmp_path, "my_card", "attention", "context_attention_perf.csv.gz")
    rows = table(path)
    rows[0]["latency"] = "0"
    rows[1]["latency"] = "1e-9"
    path.write_bytes(module._csv(tuple(rows[0]), rows))
    calls = read_calls(tmp_path, "my_card", "prefill")
    assert (calls.dropped, calls.seconds.tolist()) == (1, [1e-12])


# -- what it does with a machine -------------------------------------------------------------------
def test_a_small_card_leaves_out_what_it_has_no_room_for(tmp_path, monkeypatch):
    """The grid of CUDA, its memory and its folder, on operands that lie on the CPU."""
    monkeypatch.setattr(module, "_filler", lambda kind, make=module._filler: make("cpu"))
    card = Machine("cuda", "NVIDIA GeForce RTX 4090", "9.8.7+test", ("bfloat16",), 3e7, ())
    document = quick(tmp_path, name=None, quick=False, machine=card)
    planned = shapes("cuda", ["gemm", "attention"], ["bfloat16"])
    assert document["name"] == "nvidia-geforce-rtx-4090"
    assert document["measured"] == sum(s.held <= 0.8 * 3e7 for s in planned) > 20
    assert document["left_out"] == {"needs more than 80% of the memory": len(planned) - document["measured"]}
    notes = (tmp_path / "NOTES.md").read_text(encoding="utf-8")
    assert "CUDA graph" in notes
    assert "shapes left out: needs more than 80% of the memory" in notes


def test_validate_holds_the_tables_of_a_known_card_against_its_models(tokenfab, tmp_path, monkeypatch):
    """All shapes of CUDA, on operands without memory, in 1.5 times what an A100's peaks allow, and a launch."""
    import torch

    order = []  # what a shape's kernel is asked for, its times know
    monkeypatch.setattr(module, "_filler", lambda kind: lambda dtype, *shape: torch.empty(shape, device="meta"))
    for kind in (Gemm, Attention):
        call = kind.call
        monkeypatch.setattr(kind, "call", lambda self, fill, call=call: order.append(self) or call(self, fill))
    card = Machine("cuda", "NVIDIA A100-SXM4-80GB", "9.8.7+test", ("bfloat16",), 8e10, ())

    def timer(call, copies):
        return 5e-6 + 1.5 * max(order[-1].flops / 312e12, order[-1].moved / 2e12)

    document = measure(tmp_path, name="a100-80g-sxm", machine=card, timer=timer)
    assert document["name"] == "a100_sxm"
    suites = ["gemm-bf16", "attention-prefill", "attention-decode"]
    answer = tokenfab("validate", *suites, "--truth", tmp_path, "--json")
    assert answer.code == 1  # no card is like this; what counts is that each model was held against all rows
    rows = {(s["suite"], s["model"], s["mode"]): s for s in answer.json["suites"]}
    for suite, table_name in zip(suites, COLUMNS, strict=True):
        of = [t["rows"] for t in document["tables"] if t["table"] == table_name]
        assert rows[suite, "roofline", "calibrated"]["n"] == of[0] // 2
        assert rows[suite, "kernel", "calibrated"]["mape"] < 1  # seconds for milliseconds would be 0.999 or 1000
        assert abs(rows[suite, "roofline", "calibrated"]["bias"]) < 1


def test_a_kernel_that_fails_is_left_out_and_named_and_none_at_all_is_one_line(tmp_path):
    import torch

    def timer(call, copies):
        if copies == COPIES:
            raise RuntimeError("no such kernel\nfor this device")
        raise torch.cuda.OutOfMemoryError("tried to allocate 17 bytes")

    with pytest.raises(InputError, match=r"nothing could be measured on .*: (no such kernel|out of memory)$"):
        quick(tmp_path, timer=timer)
    assert list(tmp_path.iterdir()) == []
    document = quick(tmp_path, timer=lambda call, copies: by_size(call, copies) if copies == 1 else timer(call, copies))
    assert document["left_out"] == {"no such kernel": 12}
    assert not any("gemm" in file for file in document["files"])


def test_the_cuda_device_is_described(monkeypatch):
    import torch

    answers = {
        "is_available": True, "get_device_capability": (7, 5), "mem_get_info": (5, 9), "get_device_name": "Tesla T4",
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    machine = module.this_machine()
    assert (machine.kind, machine.device, machine.memory) == ("cuda", "Tesla T4", 5)
    assert machine.dtypes == ("bfloat16",)
    assert any("emulation" in fact for fact in machine.facts)


@pytest.mark.parametrize(
    ("device", "folder"),
    [
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"),
        ("Intel(R) Core(TM) i7 CPU @ 2.50GHz", "intel-core-i7-cpu-2-50ghz"),
        ("../../etc", "etc"),
        ("龍", "device"),
        ("x" * 200, "x" * 80),
    ],
)
def test_a_devices_name_becomes_a_folders(device, folder):
    assert slug(device) == folder
    assert module.NAME.fullmatch(folder)


@pytest.mark.parametrize(("load", "said"), [(0.9, False), (1.1, True)])
def test_other_work_on_the_cpu_is_said(tokenfab, tmp_path, monkeypatch, load, said):
    monkeypatch.setattr(module, "this_machine", lambda: CPU)
    monkeypatch.setattr(module, "cpu_timer", by_size)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    answer = tokenfab("measure", "--out", tmp_path, "--quick", "--suite", "gemm")
    line = f"load average {load} on 4 processors before the run: other work ran"
    assert (line in answer.out) is said
    assert (line in (tmp_path / "NOTES.md").read_text(encoding="utf-8")) is said


# -- budget ----------------------------------------------------------------------------------------
def test_a_budget_stops_between_shapes_and_writes_what_there_is(tmp_path):
    clock = Clock()

    def timer(call, copies):
        clock.now += 1.0
        return 0.001

    document = quick(tmp_path, timer=timer, clock=clock, seconds=6.5)
    total = len(shapes("cpu", ["gemm", "attention"], CPU.dtypes, quick=True))
    assert (document["measured"], document["not_reached"]) == (7, total - 7)
    rows = [row for file in document["files"] for row in table(Path(file))]
    assert len(rows) == 7
    assert len(document["files"]) > 1  # a sample of the tables, not the first one's rows
    assert {row.get("gemm_dtype") or row["attn_dtype"] for row in rows} == {"bfloat16", "float32"}
    assert f"{total - 7} shapes not reached" in (tmp_path / "NOTES.md").read_text(encoding="utf-8")
    assert quick(tmp_path / "least", timer=timer, clock=clock, seconds=1e-9)["measured"] == 1
    assert quick(tmp_path / "all", timer=timer, clock=clock)["not_reached"] == 0


# -- the command -----------------------------------------------------------------------------------
def test_a_quick_run_on_this_cpu(tokenfab, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    start = time.perf_counter()
    answer = tokenfab("measure", "--out", tmp_path / "m", "--device-name", "here", "--quick", "--json")
    assert time.perf_counter() - start < 30  # five seconds, on a machine that does nothing else
    assert (answer.code, answer.err) == (0, "")
    document = answer.json
    assert {
        "name",
        "device",
        "kind",
        "torch",
        "files",
        "notes",
        "tables",
        "measured",
        "not_reached",
        "left_out",
    } <= set(document)
    assert (document["name"], document["kind"], document["not_reached"]) == ("here", "cpu", 0)
    assert document["command"].startswith("tokenfab measure --out ")
    rows = read_gemm(tmp_path / "m", "here", "float32")
    assert rows.m.size == 6
    assert np.all((rows.seconds > 1e-7) & (rows.seconds < 10))
    rate = 2 * rows.m * rows.n * rows.k / rows.seconds
    assert np.all(rate < 1e15)  # seconds taken for milliseconds would be a thousand times too fast
    for t in document["tables"]:
        assert 0 < t["shortest_s"] <= t["longest_s"]
        assert t["most_flops_s"] > 1e6
    assert {p.name for p in (tmp_path / "m").rglob("*") if p.is_file()} == {
        "NOTES.md", "gemm_perf.csv.gz", "context_attention_perf.csv.gz", "generation_attention_perf.csv.gz",
    }  # fmt: skip


def test_the_text_names_tables_and_files_and_quiet_says_nothing(tokenfab, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "this_machine", lambda: CPU)
    monkeypatch.setattr(module, "cpu_timer", by_size)
    answer = tokenfab("measure", "--out", tmp_path, "--quick", "--suite", "gemm")
    assert answer.code == 0
    assert "2.50 ms" in answer.out
    assert "gemm_perf.csv.gz" in answer.out
    assert "attention" not in answer.out
    assert "attention" not in (tmp_path / "NOTES.md").read_text(encoding="utf-8")
    answer = tokenfab("measure", "--out", tmp_path, "--quick", "--suite", "attention", "--seconds", "1e-9", "--quiet")
    assert answer == (0, "", "")


def test_tables_that_are_there_are_kept_unless_forced(tokenfab, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "this_machine", lambda: CPU)
    monkeypatch.setattr(module, "cpu_timer", by_size)
    command = ["measure", "--out", tmp_path, "--quick", "--device-name", "one", "--suite", "gemm", "--quiet"]
    assert tokenfab(*command).code == 0
    (file,) = tmp_path.rglob("*.gz")
    file.write_bytes(b"mine")
    notes = (tmp_path / "NOTES.md").read_text(encoding="utf-8")
    refused = tokenfab(*command)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "there already; --force replaces it" in refused.err
    assert file.read_bytes() == b"mine"
    assert (tmp_path / "NOTES.md").read_text(encoding="utf-8") == notes
    # Another device, and another suite of this one, stand beside it; the notes are a log.
    assert tokenfab(*command[:5], "two", *command[6:]).code == 0
    assert tokenfab(*command[:-2], "attention", "--quiet").code == 0
    assert file.read_bytes() == b"mine"
    assert tokenfab(*command, "--force").code == 0
    assert len(table(file)) == 12
    text = (tmp_path / "NOTES.md").read_text(encoding="utf-8")
    assert text.startswith(notes)
    assert [line.split(",")[0] for line in text.splitlines() if line.startswith("## ")] == [
        "## one", "## two", "## one", "## one",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device-name", "a/b"], "--device-name 'a/b': accepted: at most 80 of letters, digits"),
        (["--device-name", ".."], "--device-name '..': accepted"),
        (["--device-name", "../up"], "--device-name '../up': accepted"),
        (["--device-name", "a\\b"], "accepted: at most 80"),
        (["--device-name", ""], "--device-name '': accepted"),
        (["--device-name", "a\nb"], "accepted: at most 80"),
        (["--device-name", "a\n"], "accepted: at most 80"),
        (["--device-name", "x" * 81], "accepted: at most 80"),
        (["--suite", "gem"], "unknown suite 'gem'; did you mean gemm?"),
        (["--seconds", "0"], "--seconds 0: accepted: a number above 0"),
        (["--seconds", "-1"], "--seconds -1: accepted"),
        (["--seconds", "nan"], "--seconds nan: accepted"),
        (["--seconds", "soon"], "--seconds"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(tokenfab, tmp_path, options, words):
    answer = tokenfab("measure", "--out", tmp_path / "m", *options)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert words in answer.err
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_nothing_is_measured(tokenfab, tmp_path, monkeypatch):
    def timer(call, copies):
        raise AssertionError("measured before looking")

    monkeypatch.setattr(module, "cpu_timer", timer)
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        answer = tokenfab("measure", "--out", out, "--quick")
        assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
        assert "is a file" in answer.err
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    answer = tokenfab("measure", "--out", tmp_path / "new", "--quick")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "no permission" in answer.err


def test_notes_that_cannot_be_read_are_told_before_anything_is_measured(tmp_path):
    def timer(call, copies):
        raise AssertionError("measured before reading")

    (tmp_path / "NOTES.md").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"NOTES.md: cannot be read"):
        quick(tmp_path, timer=timer)
    assert [p.name for p in tmp_path.iterdir()] == ["NOTES.md"]
