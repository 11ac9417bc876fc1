"""``tokenfab validate``: its arithmetic by hand, its exit codes, and the figures on measured data."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tokenfab.reports import terminal
from tokenfab.validation import collectives
from tokenfab.validation.kernels import FOLDERS
from tokenfab.validation.suites import BARS, Comparison, intervals_by_size, validate

ROOT = Path(__file__).resolve().parents[1]
KEYS = {
    "suite", "device", "source", "n", "mape", "bias", "coverage90",  # the contract
    "model", "mode", "p90", "dropped", "bar", "met", "coverage_met", "inside",
}  # fmt: skip


def comparison(**changes) -> Comparison:
    """Rows in tens: nine 10 % short of the measured second, one right; an interval that holds the nine."""
    predicted = np.array(([0.9] * 9 + [1.0]) * 10)
    ends = {"low": np.full(100, 1.05), "high": np.full(100, 1.2)}
    ready = Comparison(
        "gemm-bf16", "h100-sxm", "kernel", "calibrated", "by hand", np.ones(100), predicted, **ends, dropped=3
    )  # fmt: skip
    return dataclasses.replace(ready, **changes)


def test_errors_by_hand() -> None:
    found = comparison().summary()
    assert set(found) == KEYS
    assert found["mape"] == pytest.approx(0.09)
    assert found["bias"] == pytest.approx(0.9 * np.log(0.9))
    assert found["p90"] == pytest.approx(0.1)
    assert found["coverage90"] == pytest.approx(0.9)
    assert (found["n"], found["dropped"], found["bar"], found["met"], found["coverage_met"]) == (
        100,
        3,
        0.06,
        False,
        True,
    )


def test_bars_and_coverage_are_met_or_missed() -> None:
    right = comparison(predicted=np.ones(100)).summary()
    assert (right["met"], right["coverage_met"], right["coverage90"]) == (True, False, 0)  # 1 is below 1.05
    everything = comparison(low=np.zeros(100)).summary()
    assert (everything["coverage90"], everything["coverage_met"]) == (1, False)
    borrowed = comparison(mode="physics").summary()
    assert (borrowed["coverage90"], borrowed["coverage_met"], borrowed["bar"]) == (pytest.approx(0.9), None, 0.15)
    cousin = comparison(mode="physics", device="h200-sxm").summary()
    assert cousin["bar"] == 0.09
    none = comparison(low=None, high=None).summary()
    assert (none["coverage90"], none["coverage_met"]) == (None, None)
    assert comparison(model="roofline").summary()["met"] is None
    unseen = comparison(mode="unseen").summary()
    assert (unseen["coverage90"], unseen["coverage_met"]) == (pytest.approx(0.9), None)


@pytest.mark.parametrize(("rows", "judged"), [(59, None), (60, False)])
def test_a_coverage_of_few_rows_is_not_judged(rows, judged) -> None:
    one = np.ones(rows)
    few = comparison(measured=one, predicted=one, low=0 * one, high=2 * one).summary()
    assert (few["coverage90"], few["coverage_met"]) == (1, judged)


def test_intervals_are_quantiles_of_a_quarter() -> None:
    """Four sizes of 100 rows each; measured over predicted is uniform from 1 to the size's own end."""
    size = np.repeat([1.0, 2.0, 3.0, 4.0], 100)
    ratio = 1 + np.tile(np.linspace(0, 1, 100), 4) * size
    low, high = intervals_by_size((ratio * size, size), np.array([0.5, 4.0, 9.0]))
    assert low == pytest.approx([1.05, 1.2, 1.2])
    assert high == pytest.approx([1.95, 4.8, 4.8])


# -- the command ------------------------------------------------------------------------------------
def planted(folder, factors) -> None:
    """NCCL's table of an A100 as the model has it, times ``factors`` in turn."""
    sizes = np.repeat(2.0 ** np.arange(10, 30), 10)
    n = np.full(sizes.size, 8.0)
    rows = collectives.Measured("a100-80g-sxm", np.full(sizes.size, "all_gather"), n, sizes, np.ones(sizes.size))
    seconds = collectives.predict(rows) * np.resize(factors, sizes.size)
    path = folder / "aiconfigurator/a100_sxm/comm/nccl_1.0/nccl_perf.csv.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", newline="") as file:
        table = csv.writer(file)
        table.writerow(["op_name", "nccl_dtype", "num_gpus", "message_size", "latency"])
        table.writerows(["all_gather", "int8", 8, int(s), t * 1e3] for s, t in zip(sizes, seconds, strict=True))


def test_a_table_within_its_bars_ends_with_zero_unless_the_interval_is_off(tokenfab, tmp_path) -> None:
    """Odd rows: one in five right, the others 1.1 times as long; then nine in ten right, one 1.3 times as long."""
    planted(tmp_path, [1, 1, 1, 1.1, 1, 1.1, 1, 1.1, 1, 1.1])
    picture = tmp_path / "out.pdf"
    done = tokenfab("validate", "all-reduce", "--truth", str(tmp_path), "--json", "-o", str(picture))
    document = json.loads(done.out)
    (row,) = document["suites"]
    assert set(row) == KEYS
    assert (row["suite"], row["device"], row["n"]) == ("all-reduce", "a100-80g-sxm", 100)
    assert row["mape"] == pytest.approx(0.8 * (1 - 1 / 1.1), abs=1e-6)
    assert row["bias"] == pytest.approx(-0.8 * np.log(1.1), abs=1e-6)
    assert row["coverage90"] == 1
    assert done.code == 1  # an interval that holds everything is no 90 % interval
    assert picture.read_bytes().startswith(b"%PDF")
    assert len(document["skipped"]) == 1
    assert "h100" in document["skipped"][0]

    other = tmp_path / "other"
    planted(other, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1.3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    done = tokenfab("validate", "all-reduce", "--truth", str(other))
    assert done.code == 0
    assert "12% met" in done.out
    assert "skipped: all-reduce on h100-sxm" in done.out


def test_a_missed_bar_ends_with_one_and_is_named(tokenfab, tmp_path) -> None:
    planted(tmp_path, [2])
    done = tokenfab("validate", "all-reduce", "--truth", str(tmp_path))
    assert done.code == 1
    assert "missed: all-reduce on a100-80g-sxm, collectives, calibrated: 50.00% is above 12%" in done.out


def test_wrong_names_and_empty_folders_are_one_line(tokenfab, tmp_path) -> None:
    for arguments, text in (
        (["gemm-bf17"], "unknown suite 'gemm-bf17'; did you mean gemm-bf16"),
        (["layers"], "no measurements of layers there; --truth names their folder"),
    ):
        done = tokenfab("validate", *arguments, "--truth", str(tmp_path))
        assert done.code == 2
        assert done.out == ""
        assert text in done.err
        assert done.err.count("\n") == 1


def test_a_table_that_cannot_be_read_is_named_and_ends_with_one(tokenfab, tmp_path) -> None:
    """Alone it is an error; beside others it is named first, and the exit code is 1."""
    planted(tmp_path, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1.3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    broken = tmp_path / "aiconfigurator/a100_sxm/gemm/vllm_1.0/gemm_perf.csv.gz"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no gzip")
    done = tokenfab("validate", "gemm-bf16", "--truth", str(tmp_path))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "gemm_perf.csv.gz: not a table of measured kernels" in done.err
    done = tokenfab("validate", "all-reduce", "gemm-bf16", "--truth", str(tmp_path), "--json")
    assert done.code == 1
    assert done.json["skipped"][0].startswith("cannot be read: ")
    assert [row["suite"] for row in done.json["suites"]] == ["all-reduce"]


def test_an_output_that_cannot_be_written_is_said_before_anything_is_compared(tokenfab, tmp_path) -> None:
    done = tokenfab("validate", "--truth", str(tmp_path), "-o", str(tmp_path))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "Is a directory" in done.err


@pytest.fixture(scope="module")
def everything(truth):
    """All suites on the measurements."""
    return validate(truth, [])


def test_every_bar_is_of_a_suite_that_exists(everything) -> None:
    assert set(BARS) <= {(c.suite, c.device, c.model, c.mode) for c in everything[0]}


def test_measured_figures(everything) -> None:
    """What docs/cli.md prints, and what misses its bar (theirs are held by their own tests)."""
    found, skipped = everything
    rows = {(c.suite, c.device, c.model, c.mode): c.summary() for c in found}
    assert not skipped
    assert [key for key, row in rows.items() if row["met"] is False] == [
        ("prompt", "a100-80g-sxm", "kernel", "run"),
        ("prompt", "h100-sxm", "kernel", "run"),
        ("llmcompass-matmul", "a100-80g-sxm", "kernel", "library"),
    ]
    own = {key: row for key, row in rows.items() if key[3] not in ("physics", "library") and key[2] != "roofline"}
    assert len(own) == 21 + 8 + 6 + 3 + 12 + 2 + 6
    assert {key[:2] for key, row in own.items() if not row["coverage_met"]} == {
        ("sampler", "rtx-4090"), ("sampler", "rtx-pro-6000"), ("attention-prefill", "rtx-4090"),
        ("attention-decode", "rtx-4090"), ("attention-skewed", "rtx-4090"), ("attention-skewed", "rtx-pro-6000"),
        *((f"serving-{name}", device) for name in ("ttft", "tpot", "e2e") for device in ("rtx-4090", "rtx-pro-6000")),
    }  # fmt: skip
    assert not any(row["coverage_met"] is False for row in own.values())  # few rows, or nobody's
    borrowed = [row for row in rows.values() if row["mode"] == "physics" and row["device"] in FOLDERS]
    assert all(0.85 <= row["coverage90"] <= 0.99 for row in borrowed)
    for key, mape in {
        ("gemm-bf16", "a100-80g-sxm", "kernel", "calibrated"): 0.0696,
        ("engine", "a100-80g-sxm", "kernel", "run"): 0.036,
        ("engine", "h100-sxm", "kernel", "run"): 0.019,
        ("serving-e2e", "rtx-4090", "kernel", "run"): 0.034,
        ("serving-ttft", "rtx-pro-6000", "kernel", "run"): 0.044,
        ("serving-e2e", "rtx-pro-6000", "kernel", "run"): 0.019,
        ("serving-e2e", "rtx-4090", "kernel", "physics"): 0.205,
        ("serving-e2e", "rtx-pro-6000", "kernel", "physics"): 0.119,
        ("gemm-bf16", "h100-sxm", "kernel", "calibrated"): 0.0567,
        ("gemm-bf16", "a100-80g-sxm", "kernel", "physics"): 0.105,
        ("gemm-bf16", "h100-sxm", "kernel", "physics"): 0.121,
        ("gemm-fp8", "h100-sxm", "kernel", "calibrated"): 0.0977,
        ("attention-prefill", "a100-80g-sxm", "kernel", "calibrated"): 0.050,
        ("attention-decode", "h100-sxm", "kernel", "calibrated"): 0.081,
        ("moe", "a100-80g-sxm", "kernel", "calibrated"): 0.085,
        ("moe", "h100-sxm", "kernel", "calibrated"): 0.087,
        ("moe", "a100-80g-sxm", "kernel", "physics"): 0.201,
        ("moe", "h100-sxm", "kernel", "physics"): 0.169,
        ("moe-fp8-block-triton", "h100-sxm", "kernel", "calibrated"): 0.080,
        ("moe-int4-marlin", "h100-sxm", "kernel", "calibrated"): 0.133,
        ("all-reduce", "h100-sxm", "collectives", "calibrated"): 0.070,
        ("layers", "a100-80g-sxm", "kernel", "calibrated"): 0.1017,
        ("layers", "a100-80g-sxm", "kernel", "run"): 0.0818,
        ("whole-layers", "a100-80g-sxm", "kernel", "run"): 0.0398,
        ("gemm-bf16", "a100-80g-sxm", "kernel", "measured"): 0.0767,
        ("gemm-bf16", "h100-sxm", "kernel", "measured"): 0.0533,
        ("attention-prefill", "a100-80g-sxm", "kernel", "measured"): 0.0842,
        ("attention-prefill", "h100-sxm", "kernel", "measured"): 0.1041,
        ("attention-decode", "a100-80g-sxm", "kernel", "measured"): 0.0470,
        ("attention-decode", "h100-sxm", "kernel", "measured"): 0.0492,
    }.items():
        assert rows[key]["mape"] == pytest.approx(mape, abs=0.0007), key
    inside = {(key[0], key[1]): row["inside"] for key, row in rows.items() if row["mode"] == "measured"}
    assert inside == {
        ("gemm-bf16", "a100-80g-sxm"): 3753, ("gemm-bf16", "h100-sxm"): 17019,
        ("attention-prefill", "a100-80g-sxm"): 2007, ("attention-prefill", "h100-sxm"): 4582,
        ("attention-decode", "a100-80g-sxm"): 2025, ("attention-decode", "h100-sxm"): 6474,
    }  # fmt: skip
    assert all(row["inside"] is None for row in rows.values() if row["mode"] != "measured")


def test_the_tables_in_the_docs_are_those_that_the_command_prints(everything, capsys) -> None:
    """README: ``| suite | device | mode | kernels | MAPE % | covers % | roofline % |``; docs/cli.md: the terminal."""
    found, skipped = everything
    rows = {(c.suite, c.device, c.model, c.mode): c.summary() for c in found}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = re.findall(
        r"^\| `([\w-]+)` \| ([\w-]+) \| (\w+) \| ([\d,]+) \| ([\d.]+) % \| ([\d.]+) % \|", readme, re.MULTILINE
    )
    assert len(told) == len([key for key in rows if key[2] != "roofline"])
    for suite, device, mode, n, mape, covers in told:
        row = rows[suite, device, "collectives" if suite == "all-reduce" else "kernel", mode]
        assert (f"{row['n']:,}", f"{row['mape']:.1%}", f"{row['coverage90']:.1%}") == (n, f"{mape}%", f"{covers}%")
    document = {"suites": list(rows.values()), "skipped": skipped, "command": ""}
    terminal.validation_summary(document)
    printed = capsys.readouterr().out
    shown = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for line in filter(None, map(str.strip, printed.splitlines())):
        assert line in shown
