"""Does a placement say what it promises: the document, the command, formats under a budget, experts by affinity."""

from __future__ import annotations

import functools
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenfab.cli import run
from tokenfab.errors import InputError
from tokenfab.hw.estimate import Request
from tokenfab.mapping.experts import crossing, place_experts
from tokenfab.mapping.formats import choose_formats
from tokenfab.mapping.place import parse_limits, parse_objective, parse_pins, place
from tokenfab.mapping.quality import gaussian_error
from tokenfab.workloads.load import load_trace

trace = functools.cache(load_trace)


@functools.cache
def placed() -> dict[str, Any]:
    return place(trace("llama-2-70b"), ["h100-sxm", "h20:2"], Request(16, 512, 128))


# -- what a document holds -------------------------------------------------------------------------
def test_the_document_adds_up():
    found = placed()
    assert sum(p["layers"] for p in found["patterns"]) == 82
    assert len(found["assignment"]) == 1 + 80 * 12 + 2
    for held in found["memory"]:
        used = held["weights_bytes"] + held["kv_bytes"] + held["reserve_bytes"]
        assert used <= held["capacity_bytes"] * (1 + 1e-9)
    assert sum(h["weights_bytes"] for h in found["memory"]) >= trace("llama-2-70b").weights_bytes * (1 - 1e-9)
    cache = trace("llama-2-70b").kv_bytes_per_token * 16 * (512 + 128)
    assert sum(h["kv_bytes"] for h in found["memory"]) >= cache * (1 - 1e-9)
    assert found["value"] == pytest.approx(found["metrics"]["latency"])
    assert {t["phase"] for t in found["transfers"]} <= {"prefill", "handover", "decode"}
    json.dumps(found, allow_nan=False)


def command(*arguments: str) -> int:
    return run(["place", "--json", *arguments])


def test_the_command_keeps_its_promises(capsys, tmp_path: Path):
    file = tmp_path / "placement.json"
    assert command("--model", "llama-2-7b", "--device", "h100-sxm", "--device", "h20", "-o", str(file)) == 0
    document = json.loads(capsys.readouterr().out)
    promised = {"objective", "value", "bound", "gap", "status", "assignment", "transfers", "baselines", "solve_s"}
    assert promised <= set(document)
    assert {"best_single", "greedy"} <= set(document["baselines"])
    assert json.loads(file.read_text()) == document
    assert run(["place", "--model", "llama-2-7b", "--device", "h100-sxm", "--device", "h20"]) == 0
    assert "replayed event by event" in capsys.readouterr().out


def test_what_does_not_fit_says_which_memory_and_by_how_much(capsys):
    assert command("--model", "llama-2-70b", "--device", "h100-sxm", "--device", "l4") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "infeasible"
    assert "h100-sxm" in document["reason"]
    assert "GB needed" in document["reason"]
    assert run(["place", "--model", "llama-2-70b", "--device", "l4"]) == 1
    assert "infeasible" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "speed"), "latency"), (("--limit", "tpot"), "NAME=NUMBER"),
        (("--pin", "head"), "OPERATOR=DEVICE"), (("--limit", "ttft=-1"), "above 0"), (("--solver", "gurobi"), "highs"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line(capsys, arguments, message):
    assert command("--model", "llama-2-7b", "--device", "h100-sxm", *arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_texts_of_options_are_read():
    assert parse_limits(["tpot=0.05,energy=100", "ttft=2"]) == {"decode": 0.05, "energy": 100.0, "prefill": 2.0}
    assert parse_objective("latency=1,cost=1000") == {"latency": 1.0, "cost": 1000.0}
    assert parse_pins(["head=h20|h100"]) == {"head": "h20|h100"}


# -- formats and experts ---------------------------------------------------------------------------
def test_formats_under_a_budget_follow_sensitivities_and_beat_one_format_for_all():
    """Two matrices must give up two bits each for one to gain four: worth it from a ratio of 20 on."""
    facts = {"wide": (8.0, 0.001), "mid": (4.0, 0.01), "narrow": (2.0, 0.1)}
    model = trace("opt-125m")
    keys = sorted({f"{b.name}.{op.name}" for b in model.blocks for op in b.operators
                   for w in op.weights if len(w.shape) > 1})  # fmt: skip
    elements = sum(float(w.elements.constant or 0) * b.repeat for b in model.blocks for op in b.operators
                   for w in op.weights if len(w.shape) > 1)  # fmt: skip
    sensitivity = {key: 1.0 + 30 * i for i, key in enumerate(keys)}
    found = choose_formats(model, list(facts), elements * 4 / 8, sensitivity=sensitivity, error_of=facts.__getitem__)
    assert found.bytes <= elements * 4 / 8 * (1 + 1e-9)
    assert found.solution.gap <= 0.01
    uniform = sum(
        sensitivity[f"{b.name}.{op.name}"] * float(w.elements.constant or 0) * b.repeat * 0.01
        for b in model.blocks for op in b.operators for w in op.weights if len(w.shape) > 1
    )  # fmt: skip
    assert found.error < 0.9 * uniform
    most, least = max(keys, key=sensitivity.__getitem__), min(keys, key=sensitivity.__getitem__)
    assert set(found.chosen[most]) <= {"wide", "mid"}
    assert found.solution.bound <= found.error * (1 + 1e-9)
    assert least in found.chosen
    with pytest.raises(InputError, match="narrowest"):
        choose_formats(model, list(facts), elements * 1.9 / 8, error_of=facts.__getitem__)
    with pytest.raises(InputError, match="unknown matrix"):
        choose_formats(model, list(facts), elements, sensitivity={"x": 1.0}, error_of=facts.__getitem__)


def test_a_formats_error_on_normal_numbers_falls_with_its_bits():
    found = [gaussian_error(f"int{b}-g128") for b in (2, 3, 4, 8)]
    assert [round(bits) for bits, _ in found] == [2, 3, 4, 8]
    errors = [error for _, error in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < errors[0]


def test_experts_that_belong_together_are_put_together():
    """A permutation hidden in the affinities, with noise, is found again: what crosses is the noise's part."""
    rng = np.random.default_rng(0)
    hidden = [rng.permutation(8) for _ in range(3)]
    tables = []
    for a, b in pairwise(hidden):
        table = np.full((8, 8), 0.002)
        for k in range(8):
            table[a[k], b[k]] = 1.0
        tables.append(table)
    found = place_experts(tables, 4)
    assert found.crossing == pytest.approx(2 * (64 - 8 * 2) * 0.002)
    assert found.bound <= found.crossing <= found.consecutive
    assert all(sorted(layer) == sorted(list(range(4)) * 2) for layer in found.devices)
    assert found.crossing == pytest.approx(crossing(tables, found.devices))
    for wrong, message in (([], "square"), ([np.ones((3, 2))], "square"), ([-np.ones((4, 4))], "at least 0")):
        with pytest.raises(InputError, match=message):
            place_experts(wrong, 2)
    with pytest.raises(InputError, match="divisor"):
        place_experts([np.ones((4, 4))], 3)
