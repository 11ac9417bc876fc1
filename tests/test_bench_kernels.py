"""Does ``tokenfab bench kernels`` measure what it says, say what it did not, and compare like with like?"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed: the bench of kernels was NOT tested")

from tokenfab import cli
from tokenfab.errors import InputError
from tokenfab.kernels.cpu import compiled
from tokenfab.validation import bench_kernels, this_cpu
from tokenfab.validation.bench_kernels import BARS, RIVAL_BITS, Contender, bench, measure, num_copies, random_weights
from tokenfab.validation.onnx_model import matmul_chain

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.fixture
def small(monkeypatch):
    """Little memory gone through, so that a run takes a second."""
    monkeypatch.setattr(bench_kernels, "ROTATED", 100_000)
    monkeypatch.setattr(bench_kernels, "SAMPLE_S", 1e-4)
    monkeypatch.setattr(bench_kernels, "l3_bytes", lambda: 0)
    monkeypatch.setattr(this_cpu, "l3_bytes", lambda: 0)
    monkeypatch.setattr(this_cpu, "STREAM_BYTES", 2**20)


def test_the_document_has_a_row_for_every_combination(small):
    document = bench("2,1", "1,3", "1", 256, repeats=3)
    assert [(r["bits"], r["tokens"], r["threads"]) for r in document["rows"]] == [
        (1, 1, 1),
        (1, 3, 1),
        (2, 1, 1),
        (2, 3, 1),
    ]
    assert document["size"] == 256
    assert document["group"] == 128
    assert document["repeats"] == 3
    machine = document["machine"]
    assert machine["clock_hz"] > 1e8
    assert set(machine["stream_bytes_s"]) == {"1"}
    assert machine["isa"]
    for row in document["rows"]:
        kernels = {"lut", "dot"} if row["tokens"] == 1 else {"dot"}
        assert set(row["measured"]) & {"lut", "dot"} == kernels
        assert row["kernel"] in kernels
        assert row["seconds"] == min(row["measured"][k]["median_s"] for k in kernels)
        for m in row["measured"].values():
            assert 0 < m["best_s"] <= m["median_s"]
            assert m["spread_s"][0] <= m["median_s"] <= m["spread_s"][1]
        if "onnxruntime" in row["measured"]:
            assert row["ratio"] == row["seconds"] / row["measured"]["onnxruntime"]["median_s"]
            assert row["met"] == (row["ratio"] <= BARS[row["bits"]])
        for kernel in kernels:
            guess = row["measured"][kernel]
            if guess["predicted_s"] is not None:
                assert guess["interval_s"][0] < guess["predicted_s"] < guess["interval_s"][1]
    json.dumps(document)


def test_absent_libraries_are_said_and_nothing_is_compared(small, monkeypatch):
    monkeypatch.setattr(bench_kernels, "_library", lambda name: None)
    document = bench("4", "1", "1", 128, repeats=1)
    assert [set(r["measured"]) for r in document["rows"]] == [{"lut", "dot"}]
    assert document["rows"][0]["ratio"] is None
    assert document["rows"][0]["met"] is None
    assert len(document["not_compared"]) == 2
    assert "NOTHING is compared" in document["not_compared"][0]


def test_a_busy_machine_is_said(small, monkeypatch):
    streams = {1: 10e9, 2: 3e9}
    machine = this_cpu.Machine("a processor", "avx512", 2, 2e9, 0, streams)
    monkeypatch.setattr(bench_kernels, "find_machine", lambda *given: machine)
    monkeypatch.setattr(bench_kernels, "_library", lambda name: None)
    monkeypatch.setattr(bench_kernels.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert "2 threads read less than 1" in bench("4", "1", "1,2", 128, repeats=1)["disturbed"][0]
    streams[2] = 12e9
    assert bench("4", "1", "1,2", 128, repeats=1)["disturbed"] == []


def test_contenders_take_turns(monkeypatch):
    order = []
    seconds = measure([Contender(n, lambda n=n: order.append(n), 4) for n in "abc"], 1, 3)
    assert order == list("abcabcabc")
    assert {n: len(v) for n, v in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    now = iter([0.0, 8.0, 8.0, 12.0])
    monkeypatch.setattr(bench_kernels, "clock_of", lambda threads: lambda: next(now))
    assert measure([Contender("a", lambda: None, 4)], 1, 2) == {"a": [2.0, 1.0]}  # of one product


def test_weights_gone_through_exceed_the_cache(monkeypatch):
    monkeypatch.setattr(bench_kernels, "l3_bytes", lambda: 32 * 2**20)
    assert num_copies(2.1e6) == 48
    assert num_copies(60e6) == 2
    monkeypatch.setattr(bench_kernels, "l3_bytes", lambda: 384 * 2**20)
    assert num_copies(2**20) == 768


@pytest.mark.parametrize("bits", [2, 4])
def test_the_hand_written_model_computes_what_onnx_runtime_says_it_does(bits):
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: its model was NOT tested")
    rng, n, block = np.random.default_rng(0), 256, 128
    codes = rng.integers(0, 2**bits, (2, n, n))
    scales = rng.uniform(0.5, 1, (2, n, n // block)).astype(np.float32)
    per = 8 // bits
    shifts = np.arange(per) * bits
    packed = np.bitwise_or.reduce(codes.reshape(2, n, n // block, -1, per) << shifts, axis=-1).astype(np.uint8)
    model = matmul_chain(list(zip(packed, scales, strict=True)), n=n, bits=bits, block=block, accuracy_level=4)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = rng.standard_normal((3, n)).astype(np.float32)
    (found,) = session.run(None, {"x0": x})
    expected = x.astype(np.float64)
    for layer in range(2):
        weights = (codes[layer] - 2 ** (bits - 1)) * np.repeat(scales[layer], block, axis=1)
        expected = expected @ weights.T
    assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 0.02


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_random_layers_keep_the_size_of_what_goes_through(bits):
    weights = random_weights(np.random.default_rng(1), bits, 512)
    x = np.random.default_rng(2).standard_normal(512)
    assert 0.7 < np.sqrt(((weights.dequantised() @ x) ** 2).mean()) < 1.4
    assert RIVAL_BITS[bits] >= bits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("5", "1", "1"), "--bits: '5' is not accepted; accepted: 1 to 4"),
        (("", "1", "1"), "--bits: '' is not accepted"),
        (("2", "0", "1"), "--tokens: '0' is not accepted; accepted: 1 to 4096"),
        (("2", "1", "100000"), "--threads: '100000' is not accepted"),
        (("2", "1", "1", 100), "--size 100: accepted: a multiple of 128"),
    ],
)
def test_wrong_questions_get_one_line(arguments, message):
    with pytest.raises(InputError, match=message):
        bench(*arguments)
    with pytest.raises(InputError, match="--repeats 0"):
        bench("2", "1", "1", 128, repeats=0)


def test_the_command_prints_a_table_and_json(small, capsys):
    line = ["bench", "kernels", "--bits", "2", "--tokens", "1", "--threads", "1", "--size", "128", "--repeats", "1"]
    assert cli.run([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"].startswith("tokenfab bench kernels")
    assert len(document["rows"]) == 1
    assert cli.run(line) == 0
    text = capsys.readouterr().out
    assert "meas./pred." in text
    assert "128 × 128, groups of 128, median of 1" in text
    assert cli.run([*line, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_without_numba_one_line_says_what_to_install(monkeypatch, capsys):
    compiled.instruction_sets.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    try:
        assert cli.run(["bench", "kernels"]) == 2
    finally:
        compiled.instruction_sets.cache_clear()
    captured = capsys.readouterr()
    assert captured.err == "tokenfab: numba is not installed; install tokenfab[kernels]\n"
    assert captured.out == ""


@pytest.mark.slow
@pytest.mark.skipif("TOKENFAB_BENCH" not in os.environ, reason="wants quiet cores for a minute; set TOKENFAB_BENCH")
@pytest.mark.skipif("onnxruntime" not in sys.modules and not __import__("importlib.util").util.find_spec("onnxruntime"),
                    reason="onnxruntime is not installed: speeds were NOT compared")  # fmt: skip
def test_kernels_are_as_fast_as_asked_beside_onnx_runtime():
    """At most its time at 1 and 2 bits, 1.2 times at 4: medians of interleaved runs, one and two threads."""
    if compiled.instruction_sets()[0] != "avx512":
        pytest.skip("the bars are for processors with AVX-512 VNNI: speeds were NOT compared")
    threads = "1,2" if CORES > 1 else "1"
    document = bench("1,2,4", "1,8,64", threads, 4096, repeats=5)
    missed = [(r["bits"], r["tokens"], r["threads"], r["ratio"]) for r in document["rows"] if not r["met"]]
    assert missed == []
    assert len(document["rows"]) == 9 * len(threads.split(","))
