"""Formats and places at once: against trying everything, against formats applied beforehand, and as a command."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mapping_support import brute_force

from tokenfab.cli import run
from tokenfab.errors import InputError
from tokenfab.hw.estimate import Request
from tokenfab.kernels.formats import load_format
from tokenfab.mapping.baselines import singles
from tokenfab.mapping.build import build
from tokenfab.mapping.node import build_node
from tokenfab.mapping.place import place, solve
from tokenfab.mapping.problem import Objective, Problem, evaluate
from tokenfab.mapping.quality import gaussian_error, menu, read_sensitivity
from tokenfab.mapping.trials import FORMAT_OBJECTIVES, random_problem, try_everything
from tokenfab.mapping.trials import format_case as case
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques

trace = functools.cache(load_trace)
REQUEST = Request(4, 256, 65)
FORMATS = ("fp16", "int8", "int4-g128")


# -- is it the optimum -----------------------------------------------------------------------------
@pytest.mark.parametrize("chunk", range(12))
def test_the_value_is_that_of_trying_everything(chunk):
    """240 random problems of operators on devices in formats: equal value in each, or named infeasible."""
    for seed in range(20 * chunk, 20 * chunk + 20):
        problem = case(seed)
        best = try_everything(problem)[0]
        found = solve(problem, gap=0.0, time_limit=20)
        if np.isfinite(best):
            assert found.layers is not None, seed
            assert found.value == pytest.approx(best, rel=1e-6, abs=1e-9), seed
            assert evaluate(problem, found.layers).feasible, seed
            assert found.bound <= best * (1 + 1e-6) + 1e-9, seed
            assert all(b is None or found.value <= b.value * (1 + 1e-9) + 1e-9 for b in found.baselines.values()), seed
        else:
            assert found.status == "infeasible", seed


def test_the_random_problems_are_of_all_kinds():
    """Some fit nowhere; in most the formats are mixed; and limits on quality cost something."""
    feasible = mixed = bound = 0
    for seed in range(40):
        problem = case(seed)
        best, choice = try_everything(problem)
        feasible += np.isfinite(best)
        if choice is None:
            continue
        ops = problem.blocks[0].operators
        mixed += len({op.formats[k] for op, k in zip(ops, choice, strict=True)}) > 1
        if "loss" in problem.pools:
            free = replace(problem, capacity=np.where([p == "loss" for p in problem.pools], 1e9, problem.capacity))
            bound += best > try_everything(free)[0] * (1 + 1e-9)
    assert 25 <= feasible < 40
    assert mixed >= 12
    assert bound >= 6


@pytest.mark.parametrize("seed", range(6))
def test_trying_everything_at_once_is_trying_one_by_one(seed):
    """Two independent ways to evaluate: arrays over all choices, and the problem's own sums."""
    problem = replace(random_problem(seed, 3, 2, formats=2, phases=2), objective=FORMAT_OBJECTIVES[seed % 5])
    assert try_everything(problem)[0] == pytest.approx(brute_force(problem)[0], rel=1e-12)


def test_many_like_layers_with_formats_close_the_gap():
    """Sixty like layers: memory and quality bind, so that counts of patterns with other formats are mixed."""
    problem = random_problem(4, 2, 2, formats=2, layered=True, objective=Objective())
    layers = 60
    sizes = np.array([op.memory for op in problem.blocks[1].operators]).max(axis=(1, 2)).sum() * layers
    problem = replace(problem, order=(0, *[1] * layers, 2), capacity=np.array([0.4, 0.4]) * sizes)
    found = solve(problem, gap=0.002)
    assert found.layers is not None
    assert found.gap < 0.015
    assert len(set(found.layers[1:-1])) > 1


# -- what formats are ------------------------------------------------------------------------------
@functools.cache
def built(formats: tuple[str, ...], devices: tuple[str, ...] = ("h100-sxm", "h20"), **quality: float):
    one = trace("llama-2-7b")
    return build(one, build_node(devices, (), one), REQUEST, Objective(), formats=menu(one, formats), quality=quality)


@pytest.mark.parametrize("name", ["int4-g128"])
def test_one_format_everywhere_is_the_technique_applied_beforehand(name):
    stored = apply_techniques(trace("llama-2-7b"), [f"weight-only:format={name},head=1"])
    before = build(stored, build_node(["h100-sxm", "h20"], (), stored), REQUEST, Objective())
    inside = built(FORMATS)
    for where in ("h100-sxm", "h20", "h100-sxm | h20"):
        a = evaluate(before.problem, singles(before.problem)[where])
        b = evaluate(inside.problem, singles(inside.problem)[f"{where} @ {name}"])
        assert a.metrics["latency"] == pytest.approx(b.metrics["latency"], rel=1e-12)
        assert a.metrics["energy"] == pytest.approx(b.metrics["energy"], rel=1e-12)
        assert a.totals.memory == pytest.approx(b.totals.memory, rel=1e-12)
        assert b.metrics["loss"] == pytest.approx(gaussian_error(name)[1], rel=1e-9)
    one = evaluate(inside.problem, singles(inside.problem)["h20 @ fp16"])
    assert one.metrics["loss"] == 0
    plain = build(trace("llama-2-7b"), build_node(["h100-sxm", "h20"]), REQUEST, Objective())
    alone = evaluate(plain.problem, singles(plain.problem)["h20"])
    assert one.metrics["latency"] == pytest.approx(alone.metrics["latency"], rel=1e-12)


def test_a_weight_that_both_phases_read_has_one_format_and_others_may_have_two():
    problem = built(FORMATS).problem
    layer = next(b for b in problem.blocks if b.name == "layer")
    gate = next(op for op in layer.operators if op.name == "mlp.gate_up")
    shared = {f for o, f in zip(gate.options, gate.formats, strict=True) if o in ("h100-sxm", "h100-sxm:4+h20:4")}
    apart = {f for o, f in zip(gate.options, gate.formats, strict=True) if o == "h100-sxm | h20"}
    assert shared == set(FORMATS)
    assert apart == {a if a == b else f"{a}|{b}" for a in FORMATS for b in FORMATS}
    k = next(i for i, (o, f) in enumerate(zip(gate.options, gate.formats, strict=True))
             if o == "h100-sxm | h20" and f == "fp16|int4-g128")  # fmt: skip
    elements = 22016 * 4096
    assert gate.memory[k] == pytest.approx([elements * 2, elements * 4.125 / 8])  # int4-g128: 4 + 16/128 bits
    total = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    assert gate.losses[k] == pytest.approx(gaussian_error("int4-g128")[1] * elements / total)  # of the worse
    assert {op.name for op in layer.operators if op.formats} == {
        "attention.qkv", "attention.output", "mlp.gate_up", "mlp.down"
    }  # fmt: skip
    norm = next(op for op in layer.operators if op.name == "mlp_norm.norm")
    assert norm.at is None
    into = next(e for e in layer.edges if layer.operators[e.target].name == "mlp.gate_up")
    assert into.delay_s.shape[1] == gate.places < len(gate.options)  # edges do not tell formats apart


@pytest.mark.parametrize("bits", [10.0])
def test_a_limit_on_bits_is_kept_and_used_up(bits):
    found = place(trace("llama-2-7b"), ["h100-sxm", "h20"], REQUEST, formats=FORMATS, limits=[f"bits={bits}"], gap=1e-3)
    assert found["formats"]["bits"] >= bits * (1 - 1e-9)
    assert found["formats"]["bits"] <= bits + 0.4  # more would be slower
    assert found["limits"] == {"bits": bits}
    assert [m["device"] for m in found["memory"]] == ["h100-sxm", "h20"]
    elements = 0.0
    for name, counts in found["formats"]["chosen"].items():
        block, _, op = name.partition(".")
        b = next(b for b in trace("llama-2-7b").blocks if b.name == block)
        shape = next(o for o in b.operators if o.name == op).weights[0].shape
        each = [int(x.constant or 0) for x in shape]
        assert sum(counts.values()) == b.repeat
        for f, layers in counts.items():
            worse = min(load_format(x).bits_per_weight(each) for x in f.split("|"))
            elements += layers * each[0] * each[1] * worse
    total = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    assert elements / total == pytest.approx(found["formats"]["bits"], rel=1e-9)


def limited(bits: float) -> Problem:
    """The built problem with another limit on bits: another capacity of its last pool."""
    one = built(FORMATS, bits=6.0)
    assert one.problem.pools[-1] == "bits"
    assert one.menu is not None
    assert one.problem.capacity[-1] == pytest.approx(1e9 * (one.menu.widest - 6.0))
    return replace(one.problem, capacity=np.append(one.problem.capacity[:-1], 1e9 * (one.menu.widest - bits)))


def test_choosing_at_once_is_no_worse_than_one_format_and_narrower_is_faster():
    values = [solve(limited(bits)).value for bits in (16, 8, 6, 4.2)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 1.4 * values[-1]
    uniform = solve(built(("int8",), bits=8.0).problem)
    assert values[1] <= uniform.value * 1.005


def test_least_loss_within_a_limit_on_the_decode_step():
    """Quality as the objective: as wide as a token time allows, and everything wide where there is no limit."""
    problem = built(FORMATS).problem
    free = solve(replace(problem, objective=Objective({"loss": 1.0})))
    assert free.layers is not None
    assert free.value == 0
    tpot = 0.8 * min(evaluate(problem, x).metrics["decode"] for n, x in singles(problem).items() if n.endswith("fp16"))
    found = solve(replace(problem, objective=Objective({"loss": 1.0}, {"decode": tpot})))
    assert found.layers is not None
    seen = evaluate(problem, found.layers).metrics
    assert seen["decode"] <= tpot * (1 + 1e-9)
    assert found.value == pytest.approx(seen["loss"])
    assert 0 <= found.value < gaussian_error("int8")[1]
    assert found.gap <= 0.01


def test_sensitive_matrices_stay_wide():
    even = menu(trace("llama-2-7b"), FORMATS)
    one = menu(trace("llama-2-7b"), FORMATS, {"layer.mlp.down": 100.0})
    down = ("layer", "mlp.down")
    ratio = one.variants[down][2].loss / one.variants["layer", "mlp.gate_up"][2].loss
    assert ratio == pytest.approx(100 * even.variants[down][2].loss / even.variants["layer", "mlp.gate_up"][2].loss)
    found = place(trace("llama-2-7b"), ["h100-sxm", "h20"], REQUEST, formats=FORMATS, limits=["loss=0.003"],
                  sensitivity={"layer.mlp.down": 100.0})  # fmt: skip
    assert found["formats"]["loss"] <= 0.003 * (1 + 1e-9)
    wide = found["formats"]["chosen"]["layer.mlp.down"]
    narrow = sum(n for f, n in wide.items() if "int4" in f)
    other = found["formats"]["chosen"]["layer.mlp.gate_up"]
    assert narrow < 8
    assert sum(n for f, n in other.items() if "int4" in f) >= narrow + 8


def test_no_format_that_fits_is_named_with_its_excess():
    """The memory and the limit on bits cannot both be kept: one is named; with fewer bits it fits."""
    one = trace("llama-2-7b")
    tiny = build(
        one, build_node(["l4"], (), one), REQUEST, Objective(), formats=menu(one, FORMATS), quality={"bits": 6}
    )
    problem = replace(tiny.problem, capacity=tiny.problem.capacity * [0.22, 1])  # 5.4 GB: no room for six bits
    found = solve(problem)
    assert found.status == "infeasible"
    assert found.binding is not None
    assert found.binding.proven
    assert set(found.binding.exceeded) <= {"l4", "bits"}
    assert solve(replace(problem, capacity=problem.capacity * [1, 1.4])).status == "optimal"  # 4.2 bits: room


def test_an_engine_that_does_not_take_a_format_leaves_it_to_the_others():
    """Logic-PIM multiplies 16 bits: what is stored narrow runs on the processor, what stays wide near memory."""
    found = place(trace("mixtral-8x7b"), ["duplex-logic-pim:2"], Request(16, 512, 128), formats=FORMATS,
                  limits=["bits=12"])  # fmt: skip
    assert found["status"] == "optimal"
    assert found["formats"]["bits"] >= 12 * (1 - 1e-9)
    near = [o for p in found["patterns"] for o in p["operators"] if "duplex" in o["place"] and "format" in o]
    assert near
    assert {o["format"] for o in near if o["place"].startswith("duplex")} <= {"fp16"}
    assert all(o["format"] in ("fp16", "int8|fp16", "int4-g128|fp16") for o in near)


# -- the command -----------------------------------------------------------------------------------
def command(*arguments: str) -> int:
    return run(["place", "--json", "--model", "llama-2-7b", "--device", "h100-sxm", "--device", "h20", *arguments])


def test_the_command_takes_formats_pins_and_sensitivities(capsys, tmp_path):
    file = tmp_path / "weights.toml"
    file.write_text('[layer]\n"mlp.down" = 4.0\n[layer.attention]\noutput = 2\n')
    assert read_sensitivity(file) == {"layer.mlp.down": 4.0, "layer.attention.output": 2.0}
    assert command("--formats", "fp16,int8,int4-g128", "--limit", "bits=7", "--pin", "head=h20@fp16",
                   "--pin", "attention.qkv=@int8", "--sensitivity", str(file)) == 0  # fmt: skip
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["formats"]["chosen"]["head.head"] == {"fp16": 1}
    assert document["assignment"]["head.head"] == "h20"
    assert document["formats"]["chosen"]["layer.attention.qkv"] == {"int8": 32}
    assert {"names", "bits", "loss", "chosen"} <= set(document["formats"])
    assert run(["place", "-m", "llama-2-7b", "-d", "h100-sxm", "--formats", "int8,int4", "--limit", "bits=5"]) == 0
    text = capsys.readouterr().out
    assert "bits per weight on average" in text
    assert "h100-sxm in int" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--formats", "fp16,int8"), "narrowest would always do"),
        (("--limit", "bits=8"), "accepted with --formats"),
        (("--objective", "loss"), "accepted with --formats"),
        (("--formats", "fp16,int5x", "--limit", "bits=8"), "int5x"),
        (("--formats", "int8,int8", "--limit", "bits=8"), "different names"),
        (("--formats", "fp16", "--limit", "bits=8"), "none is narrower"),
        (("--formats", "int8,int4", "--limit", "bits=12"), "the widest of the formats"),
        (("--formats", "int8,int4", "--limit", "bits=5", "--pin", "head=@fp16"), "no such format"),
        (("--pin", "head=@fp16"), "see --formats"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line(capsys, arguments, message):
    assert command(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_wrong_sensitivities_are_refused(tmp_path):
    for wrong, message in (({"x": 1.0}, "unknown matrix"), ({"layer.mlp.down": -1.0}, "at least 0")):
        with pytest.raises(InputError, match=message):
            menu(trace("llama-2-7b"), FORMATS, wrong)
    file = tmp_path / "weights.toml"
    for text, message in (("x = 'y'", "accepted: a number"), ("x =", "TOML")):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_sensitivity(file)
