"""The table of what the mapper must show: its rows are commands, its bars bite, its parts add up."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tokenfab.cli import run
from tokenfab.mapping import __main__ as main
from tokenfab.mapping import shown
from tokenfab.mapping.problem import Objective
from tokenfab.mapping.trials import place_case
from tokenfab.workloads.load import load_trace


def test_a_row_is_what_the_command_answers(capsys):
    command = "-m opt-125m -d h100-sxm -d h20 --batch 4 --prompt 64 --output 16 --objective cost --no-split"
    assert run(["place", "--json", *command.split()]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    ours = shown.run(command)
    for key in ("value", "bound", "assignment", "baselines", "metrics"):
        assert ours[key] == document[key]


def test_every_command_of_the_table_is_one_of_tokenfab_place(capsys, monkeypatch):
    """Options are read alike: the command line hands the same request to the same function."""
    seen: list[tuple[Any, ...]] = []

    def place(trace, devices, request, **options):
        key = (trace.model, trace.applied, tuple(devices), request, options["objective"], tuple(options["limits"]),
               options["split"], tuple(options["formats"]))  # fmt: skip
        seen.append(key)
        raise KeyError

    small = load_trace("opt-125m")

    def renamed(name):
        return small.model_copy(update={"model": name})

    monkeypatch.setattr("tokenfab.workloads.load.load_trace", renamed)
    monkeypatch.setattr(shown, "load_trace", renamed)
    monkeypatch.setattr("tokenfab.mapping.place.place", place)
    monkeypatch.setattr(shown, "place", place)
    commands = [f"-m {m} {n}" for m in shown.MODELS for n in shown.NODES.values()]
    commands += [*(r.command for r in shown.RULES), *shown.INFEASIBLE]
    for command in commands:
        with pytest.raises(KeyError):
            shown.run.__wrapped__(command)
        with pytest.raises(KeyError):
            run(["place", "--json", *command.split()])
        assert seen[-1] == seen[-2], command
    assert len(seen) == 2 * len(commands)


def test_ten_trials_of_each_kind_are_equal_and_a_wrong_optimum_is_seen(monkeypatch):
    rows = list(shown.trials(10))
    assert [row.met for row in rows] == [True, True]
    assert all("10 equal" in row.found for row in rows)
    off = shown._held("off", lambda seed: replace(place_case(2), objective=Objective({"cost": 1.0 + seed})), 2)
    assert off.met  # another objective, still the optimum
    monkeypatch.setattr(shown, "try_everything", lambda problem: (1e-3, None))
    assert not shown._held("wrong", place_case, 3).met


def test_a_node_row_tells_gap_baselines_and_replay_and_misses_where_it_must(monkeypatch):
    document = {
        "value": 2.0, "gap": 0.004, "solve_s": 1.0, "replay": {"ratio": 1.001},
        "baselines": {"best_single": None, "greedy": 2.2, "heft": 2.0, "chain": 2.1},
    }  # fmt: skip
    monkeypatch.setattr(shown, "run", lambda command: document)
    *rows, beaten = shown.nodes()
    assert len(rows) == 2 * len(shown.NODES)
    assert all(r.met for r in (*rows, beaten))
    assert "greedy +10.0%" in rows[0].found
    assert "best single –" in rows[0].found
    assert "replayed 0.10% longer" in rows[0].found
    for wrong in ({"gap": 0.011}, {"solve_s": 10.1}, {"baselines": {"greedy": 1.9}}, {"replay": {"ratio": 0.99}}):
        monkeypatch.setattr(shown, "run", lambda command, wrong=wrong: document | wrong)
        assert not next(shown.nodes()).met
    monkeypatch.setattr(shown, "run", lambda command: document | {"baselines": {"greedy": 2.001}})
    assert not list(shown.nodes())[-1].met  # within the gap: not beaten


def test_where_layers_run_is_counted():
    def layer(n: int, place: str) -> dict[str, Any]:
        return {"block": "layer", "layers": n, "operators": [{"name": "mlp", "place": place}]}

    document = {"patterns": [layer(3, "h20#0:4+h20#1:4"), layer(2, "h100-sxm | h20"), layer(1, "h100-sxm:4+h20:4")]}
    assert shown.kept(document, "mlp", "h20", "h20") == (3, 6)
    assert shown.kept(document, "mlp", "h100", "h20") == (2, 6)
    assert shown.kept(document, "mlp", "+h100", "+h20") == (3, 6)
    assert shown.kept(document, "mlp", "", "h20") == (5, 6)
    assert shown.kept(document, "other", "h20", "h20") == (0, 0)


def test_rules_miss_where_layers_do_not_keep_them(monkeypatch):
    monkeypatch.setattr(shown, "RULES", shown.RULES[1:2])
    monkeypatch.setattr(shown, "_over", lambda document, name: "+0.0%")
    places = {"mlp": "h100-sxm | duplex", "attention.attention": "h100-sxm | duplex", "attention.qkv": "h100-sxm"}
    for change, met in (({}, True), ({"mlp": "h100-sxm"}, False), ({"attention.qkv": "duplex"}, False)):
        operators = [{"name": n, "place": p} for n, p in (places | change).items()]
        document = {"patterns": [{"block": "layer", "layers": 32, "operators": operators}], "gap": 0.0,
                    "replay": {"stream": None}}  # fmt: skip
        monkeypatch.setattr(shown, "run", lambda command, document=document: document)
        assert [r.met for r in shown.rules()] == [met]


def test_the_command_prints_and_exits_by_what_was_met(capsys, monkeypatch):
    for met, code in ((True, 0), (False, 1)):
        monkeypatch.setitem(shown.SECTIONS, "rules", lambda met=met: iter([shown.Row("what", "found", met)]))
        monkeypatch.setattr("sys.argv", ["mapping", "--show", "rules"])
        with pytest.raises(SystemExit) as left:
            main.main()
        assert left.value.code == code
        assert ("MISS  what" in capsys.readouterr().out) is not met
    monkeypatch.setattr("sys.argv", ["mapping", "--show", "rule"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 2
    assert "accepted: all, trials" in capsys.readouterr().err
