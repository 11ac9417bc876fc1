"""Operators called one by one: what is read, times by hand, errors on measured ones, and pages of few rows."""

from __future__ import annotations

import numpy as np
import pytest

from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.hw.elementwise import elementwise_constants, elementwise_time
from tokenfab.hw.gemm import gemm_kernels, gemm_time
from tokenfab.reports.accuracy import FEW, accuracy_pdf
from tokenfab.validation import llmcompass
from tokenfab.validation.intervals import unmeasured
from tokenfab.validation.suites import Comparison, validate

PREFILL, DECODE = llmcompass.LAYERS
HELD = load_device(llmcompass.DEVICE)


def write(folder, file: str, text: str) -> None:
    (folder / "llmcompass").mkdir(exist_ok=True)
    (folder / "llmcompass" / file).write_text(text, encoding="utf-8")


def gemm(m: float, n: float, k: float, batch: float = 1) -> float:
    constants, library = gemm_kernels(HELD)
    return float(gemm_time(m, n, k, llmcompass.CARD, constants, library, batch=batch, copies=1)[0])


def test_what_is_read_by_hand(tmp_path) -> None:
    """A time in ms with its unit; elements per nanosecond; no line break at the end."""
    write(tmp_path, "ab__matmul_A100.csv", "64, 128, 256, 0.0296ms, 2.2700Tflops\n8, 16, 32, 1.5ms, 1e-3Tflops")
    write(tmp_path, "cf__softmax_A100.csv", "4096, 32, 10.0")
    write(tmp_path, "g__gelu_A100.csv", "1024, 0.02")
    found = llmcompass.read_calls(tmp_path, "matmul")
    assert (found.m.tolist(), found.n.tolist(), found.k.tolist()) == ([64, 8], [128, 16], [256, 32])
    assert found.seconds == pytest.approx([29.6e-6, 1.5e-3])
    assert found.name == ["64 × 128 × 256", "8 × 16 × 32"]
    softmax = llmcompass.read_calls(tmp_path, "softmax")
    assert (softmax.m[0], softmax.n[0], softmax.seconds[0]) == (4096, 32, pytest.approx(13.1072e-6))
    gelu = llmcompass.read_calls(tmp_path, "gelu")
    assert (gelu.m[0], gelu.n[0], gelu.seconds[0]) == (1024, 1, pytest.approx(51.2e-6))


def test_wrong_files_are_one_line(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no llmcompass/ab__matmul_A100\.csv there"):
        llmcompass.read_calls(tmp_path, "matmul")
    for row, text in (("64, many", "a row of numbers"), ("64, 0", "numbers above 0")):
        write(tmp_path, "g__gelu_A100.csv", row)
        with pytest.raises(InputError, match=text):
            llmcompass.read_calls(tmp_path, "gelu")
    write(tmp_path, PREFILL, "1\n2\n3")
    with pytest.raises(InputError, match="3 rows, not 12"):
        llmcompass.read_layer(tmp_path, PREFILL)
    assert not list(llmcompass.compare(tmp_path, "h100-sxm"))


def test_a_layers_operators_by_hand(tmp_path) -> None:
    """GPT-3 on 4 GPUs: 24 heads of 128 each and 12288 of the inner 49152; both norms and all-reduces are one time."""
    for file in llmcompass.LAYERS:
        write(tmp_path, file, "\n".join(str(i + 1) for i in range(12)))
    prefill, decode = (llmcompass.read_layer(tmp_path, file) for file in llmcompass.LAYERS)
    assert prefill.name == ["QKV", "QK", "AV", "Wo", "W1", "W2", "softmax", "LN_MHA", "GeLU", "AR_MHA"]
    assert prefill.seconds.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]
    flops = 2 * prefill.calls * prefill.batch * prefill.m * prefill.n * prefill.k
    tokens, hidden = 8 * 2048, 12288
    assert flops[:6].tolist() == [
        6 * tokens * hidden * hidden / 4, 2 * tokens * 2048 * hidden / 4, 2 * tokens * 2048 * hidden / 4,
        2 * tokens * hidden * hidden / 4, 2 * tokens * hidden * hidden, 2 * tokens * hidden * hidden,
    ]  # fmt: skip
    assert (prefill.m * prefill.n)[6:9].tolist() == [8 * 24 * 2048 * 2048, tokens * hidden, tokens * hidden]
    assert prefill.m[9] == tokens * hidden * 2
    assert (decode.m[0], decode.batch[1], decode.m[1], decode.n[1], decode.k[2]) == (8, 192, 1, 3073, 3073)


def test_times_by_hand(tmp_path) -> None:
    """The stated call and the kernel; three calls for QKV; none for the all-reduce."""
    write(tmp_path, PREFILL, "\n".join(["1"] * 12))
    calls = llmcompass.read_layer(tmp_path, PREFILL)
    seconds, low, high = (dict(zip(calls.name, x, strict=True)) for x in llmcompass.predict(calls))
    flat = elementwise_constants(HELD)

    def stream(m: float, row_bytes: float) -> float:
        return float(elementwise_time("elementwise", m, row_bytes, llmcompass.CARD, flat))

    assert seconds["QKV"] == pytest.approx(3 * (gemm(16384, 3072, 12288) + 21e-6))
    assert seconds["AV"] == pytest.approx(gemm(2048, 128, 2048, 192) + 21e-6)
    assert seconds["softmax"] == pytest.approx(
        stream(192 * 2048, 4 * 2 * 2048) + 12e-6
    )  # read three times, written once
    assert seconds["LN_MHA"] == pytest.approx(stream(16384, 4 * 12288) + 45e-6)
    assert seconds["GeLU"] == pytest.approx(stream(16384, 4 * 12288) + 45e-6)
    assert 1.5 * 16384 * 12288 * 2 / seconds["AR_MHA"] == pytest.approx(0.71 * 300e9, rel=0.01)  # busiest link
    vector, network = unmeasured()["vector"], unmeasured()["network"]
    assert vector.high.value > HELD.intervals["vector"].high.value
    assert (low["GeLU"], high["GeLU"]) == (vector.low.value, vector.high.value)
    assert (low["AR_MHA"], high["AR_MHA"]) == (network.low.value, network.high.value)


def test_long_rows_of_softmax_are_read_three_times(tmp_path) -> None:
    """1024 elements stay in registers: 2 + 2 bytes each; 1025 do not: 6 + 2."""
    write(tmp_path, "cf__softmax_A100.csv", "65536, 1024, 10.0\n65536, 1025, 10.0")
    short, long = llmcompass.predict(llmcompass.read_calls(tmp_path, "softmax"))[0]
    per_byte = 1 / (elementwise_constants(HELD).stream_share * llmcompass.CARD.dram_bytes_s)
    assert long - short == pytest.approx(65536 * (8 * 1025 - 4 * 1024) * per_byte)


def test_short_messages_are_the_librarys_not_the_engines(tmp_path) -> None:
    """196,608 bytes: the engine's own kernel would take 8 µs."""
    write(tmp_path, DECODE, "\n".join(["1"] * 12))
    calls = llmcompass.read_layer(tmp_path, DECODE)
    assert calls.m[-1] == 196608
    assert llmcompass.predict(calls)[0][-1] == pytest.approx(19.8e-6, rel=0.01)


def test_measured_figures(truth) -> None:
    """What docs/gpu-model.md tells: nothing is fitted, 7 % is missed, and the tables' own times miss by more."""
    found, skipped = validate(truth, ["llmcompass"])
    assert not skipped
    rows = {c.suite.removeprefix("llmcompass-"): c.summary() for c in found}
    told = {
        "matmul": (20, 0.081), "softmax": (22, 0.066), "layernorm": (22, 0.104), "gelu": (20, 0.054),
        "prefill": (10, 0.096), "decode": (10, 0.168),
    }  # fmt: skip
    assert {name: row["n"] for name, row in rows.items()} == {name: n for name, (n, _) in told.items()}
    assert [row["mape"] for row in rows.values()] == pytest.approx([mape for _, mape in told.values()], abs=0.002)
    assert rows["matmul"]["met"] is False
    calls = llmcompass.read_calls(truth, "matmul")
    table, took = llmcompass.tables(truth, calls), dict(zip(calls.name, calls.seconds, strict=True))
    assert len(table) == 17
    assert np.mean([abs(table[name] / took[name] - 1) for name in table]) == pytest.approx(0.090, abs=0.001)
    same = [f"{m} × 12288 × 12288" for m in (256, 512, 1024, 2048, 4096, 8192)]
    assert [table[name] / took[name] for name in same] == pytest.approx([1] * 6, abs=0.02)  # the stated call is right
    seconds, off = llmcompass.predict(calls)[0], {}
    for name, predicted, took in zip(calls.name, seconds, calls.seconds, strict=True):
        off[name] = predicted / took - 1
    assert off["64 × 12288 × 12288"] == pytest.approx(0.213, abs=0.005)  # streams weights at 0.88 of the DRAM rate
    assert all(0 < error < 0.07 for name, error in off.items() if not name.startswith("8192") and int(name[:3]) > 128)


@pytest.mark.parametrize("n", [1, FEW])
def test_pages_of_few_rows(n) -> None:
    """One row, and as few as have a band; times within one power of ten."""
    measured = np.linspace(1e-3, 2e-3, n)
    sides = np.full(n, 0.9), np.full(n, 1.1)
    few = Comparison("llmcompass-gelu", llmcompass.DEVICE, "kernel", "library", "by hand", measured, measured, *sides)
    assert accuracy_pdf([few], "test").startswith(b"%PDF")
