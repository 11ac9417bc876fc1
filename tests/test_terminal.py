"""Can a person read it? At 80 columns and at 120, in a pipe, with the digits that the answer has."""

from __future__ import annotations

import io
import re
import time

import pytest

from tokenfab.hw.devices import device_names, load_device
from tokenfab.hw.estimate import Request, estimate
from tokenfab.hw.result import estimate_document
from tokenfab.reports import terminal
from tokenfab.reports.blocks import Table
from tokenfab.reports.reproduction import build
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.parallel import Parallel
from tokenfab.workloads.trace import Trace

FILES = {"report": "out/report.pdf", "html": "out/report.html", "pages": 12, "wall_s": 12.34, "refused": {}}

WIDE = [name for name in device_names() if not load_device(name).arrays]
"""Devices that take a 16-bit model."""


@pytest.fixture(scope="module")
def trace(trace_file) -> Trace:
    return load_trace(str(trace_file))


@pytest.fixture(scope="module")
def documents(trace) -> list[dict]:
    """A study of every device of the catalogue."""
    return [estimate_document(estimate(trace, load_device(n), Request(), explain=True), trace) for n in WIDE]


@pytest.fixture(params=[80, 120])
def width(request, monkeypatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


@pytest.fixture
def printed(capsys):
    """What a function prints, in lines."""

    def call(function, *arguments) -> list[str]:
        capsys.readouterr()
        function(*arguments)
        return capsys.readouterr().out.split("\n")[:-1]

    return call


def test_an_exact_figure_has_no_interval(printed, monkeypatch):
    """ "5.26–5.26" tells nobody anything; the page of the same rows writes a dash too."""
    monkeypatch.setenv("COLUMNS", "200")
    row = {"system": "s", "claim": "exact", "source": "", "paper": 5.0, "model": 5.26, "interval": [5.26, 5.26],
           "ratio": 1.052, "status": "within-10%", "reason": ""}  # fmt: skip
    rows = [row, row | {"claim": "told", "interval": [5.1, 5.4]}]
    lines = printed(terminal.reproduction, rows)
    exact, told = (next(x.split() for x in lines if name in x) for name in ("exact", "told"))
    assert exact[3:6] == ["5.26", "–", "1.05"]
    assert told[3:6] == ["5.26", "5.1–5.4", "1.05"]
    cells = next(b for part in build(rows) for b in part.blocks if isinstance(b, Table)).rows
    assert [r[5].text for r in cells] == ["–", "5.1–5.4"]


# -- numbers ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00123, "s", "1.23 ms"), (0.99951, "s", "1.00 s"), (5.8e-3, "s", "5.80 ms"), (1771.2, "s", "1,770 s"),
        (13.476831232e9, "B", "13.5 GB"), (0, "B", "0 B"), (549, "J", "549 J"), (1340, "J", "1.34 kJ"),
        (999.6e6, "B", "1.00 GB"), (524288, "B", "524 kB"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_a_prefix(value, unit, text):
    assert terminal.si(value, unit) == text


def test_an_interval_has_one_unit():
    assert terminal.span([5.8e-3, 14.31e-3], "s") == "5.80–14.3 ms"
    assert terminal.span([0.8051, 1.944], "s") == "0.805–1.94 s"
    assert terminal.span([1440.2, 3061], "s") == "1,440–3,060 s"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0783, "0.0783"), (82.24, "82.2"), (99.94, "99.9"), (99.96, "100"), (1021.3, "1,021"), (0, "0")],
)
def test_rates_have_three_digits_and_whole_ones_from_a_hundred_on(value, text):
    assert terminal.number(value) == text


# -- an estimate -----------------------------------------------------------------------------------
def test_an_estimate_keeps_its_table_whole_and_says_how_sure_it_is(documents, printed, width):
    lines = printed(terminal.estimate_summary, documents[WIDE.index("h100-sxm")], False)
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line != line.rstrip()] == []
    table = [line for line in lines if re.match(r" {10}|prefill |decode step |total ", line)]
    header, *rows = [line for line in table if "bound by" not in line]
    assert re.split(r"\s{2,}", header.strip()) == ["time", "90 % interval", "energy", "90 % interval"]
    amount, interval = r"[\d.,]+ [mkµ]?{}", r"[\d.,]+–[\d.,]+ [mkµ]?{}"
    pattern = r"\s+".join([amount.format("s"), interval.format("s"), amount.format("J"), interval.format("J")])
    assert len(rows) == 3
    assert all(re.fullmatch(rf"(prefill|decode step|total)\s+{pattern}", row) for row in rows)
    assert len({len(line) for line in (header, *rows)}) == 1  # right-aligned to one edge
    text = " ".join(lines)
    for words in ("llama-2-7b on 1 × NVIDIA H100", "prefill bound by ", "decode step bound by ", "tokens/s", "fits"):
        assert words in text


def test_what_does_not_fit_is_said_in_capitals_with_what_is_missing(documents, printed, width):
    document = documents[WIDE.index("raspberry-pi-5")]
    missing = terminal.si(document["memory"]["missing_bytes"], "B")
    text = " ".join(printed(terminal.estimate_summary, document, False))
    assert f"DOES NOT FIT, {missing} missing; the times are of a device that had the room" in text


def test_several_devices_are_named_with_their_degrees(trace, printed):
    found = estimate(trace, load_device("l4"), Request(), Parallel(tp=2), explain=True)
    text = "\n".join(printed(terminal.estimate_summary, estimate_document(found, trace, explain=True), True))
    assert "llama-2-7b on 2 × NVIDIA L4 24 GB (tp=2): batch 1, 512 prompt + 128 output tokens" in text
    assert "memory of the fullest device: " in text
    shares = [float(s) for s in re.findall(r"([\d.]+) %  \w", text.split("\nprefill\n")[1].split("\ndecode\n")[0])]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert re.search(r"^layer\.mlp\.down\.all_reduce .* network$|all_reduce .* network$", text, re.MULTILINE)


def test_a_device_without_a_price_says_so(documents, printed):
    total = documents[0]["total"] | {"cost_usd_per_mtoken": None, "cost_basis": None}
    assert "no price known" in " ".join(printed(terminal.estimate_summary, documents[0] | {"total": total}, False))


# -- a study ---------------------------------------------------------------------------------------
def test_a_study_has_one_line_per_device_fastest_first_unfit_last(documents, printed, width):
    lines = printed(terminal.study_summary, documents, FILES)
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if re.match(r"\d+× ", line)]
    assert len(rows) == len(documents)
    fits = [line for line in rows if "*" not in line]
    unfit = [line for line in rows if "*" in line]
    assert rows == fits + unfit
    named = [line for line in lines if line.startswith("*")]
    assert [line.split(":")[0][1:] for line in named] == [row.split("*")[0] for row in unfit]
    assert all("DOES NOT FIT" in line for line in named)
    order = sorted((d for d in documents if d["memory"]["fits"]), key=lambda d: -d["total"]["tokens_per_s"])
    assert [row.split()[1] for row in fits] == [d["device"]["name"] for d in order]
    assert rows[0].count("–") == (2 if width >= terminal.ROOMY else 1)  # intervals of time, and of energy
    assert lines[-1] == "out/report.pdf: 12 pages; the same as out/report.html; 12.3 s"


def test_in_a_pipe_nothing_is_wrapped(documents, printed):
    lines = printed(terminal.study_summary, documents, FILES)
    assert [line for line in lines if line.endswith(" ")] == []
    assert len(lines) == 2 + 1 + len(documents) + sum(not d["memory"]["fits"] for d in documents) + 2
    assert "\x1b" not in "".join(lines)


# -- one thing -------------------------------------------------------------------------------------
def test_a_device_shows_each_source_once(printed, width):
    lines = printed(terminal.fields, load_device("l4").to_dict())
    assert max(map(len, lines)) <= width
    start = next(i for i, line in enumerate(lines) if line.endswith("sources"))
    marks = re.findall(r"\[\d+\]$", "\n".join(lines[:start]), re.MULTILINE)
    listed = re.findall(r"^\[\d+\]", "\n".join(lines[start:]), re.MULTILINE)
    assert set(marks) == set(listed)
    assert len(listed) == len(set(listed)) < len(marks)


def test_markup_in_a_name_is_printed_as_it_is(printed):
    assert printed(terminal.say, "[bold]x[/bold] :smile:") == ["[bold]x[/bold] :smile:"]
    assert printed(terminal.fields, {"a": {"b": [1, 2]}, "c": "[red]"})[1:] == ["a.b    [1, 2]", "c      [red]"]


def test_an_empty_list_says_so(printed):
    assert printed(terminal.listing, "models", [])[0] == "0 models"


def test_a_trace_shows_every_operator(tokenfab, trace_file, width):
    lines = tokenfab("trace", trace_file, "--query", 512).out.split("\n")
    assert max(map(len, lines)) <= width
    assert "6,738,415,616 parameters, 13.5 GB of weights, 524 kB of KV cache per token" in " ".join(lines)
    rows = [line.split() for line in lines if line.startswith(("embed ", "layer ", "head "))]
    assert len(rows) == 15
    assert ["layer", "mlp.gate_up", "matmul", "32"] in [row[:4] for row in rows]


def test_progress_is_silent_when_asked_and_when_nobody_looks(capsys):
    for silent in (True, False):
        with terminal.progress(silent) as step:
            step("working")
    assert capsys.readouterr() == ("", "")


def test_progress_names_the_step_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", screen)
    with terminal.progress(False) as step:
        step("working on [it]")
        time.sleep(0.3)  # it is drawn some ten times a second
    assert "working on [it]" in screen.getvalue()
