"""What the mapper must show, run and printed: ``python -m tokenfab.mapping --show all``.

Every row of a node, a rule or an infeasible request is a command of ``tokenfab place``; its options are read here as
they are there, and the answer comes from the same function. A row that misses its bar says so.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..hw.estimate import Request
from ..workloads.load import load_trace
from ..workloads.techniques import apply_techniques
from .place import place, solve
from .problem import Problem, evaluate
from .synthetic import PER_LAYER, layer_graph
from .trials import format_case, place_case, try_everything

TRIALS = {"places": (place_case, 210), "places and formats": (format_case, 240)}
"""Random problems held against trying everything: by seed, and how many."""
NODES = {
    "H100 + 2 memory-rich cards": "-d h100-sxm -d h20:2 --batch 16",
    "xPU + Logic-PIM": "-d duplex-logic-pim:2 --batch 16",
    "GPU + FPGA": "-d a100-40g-sxm -d u280-flightllm --apply mixed-precision:average=4,head=1 --prompt 128",
    "GPU + computational storage": "-d h100-sxm:2 -d instinfer-csd --batch 16",
    "GPU + dataflow": "-d h100-sxm -d sn40l --batch 16",
    "GPU + bank PIM": "-d h100-sxm -d attacc-bank --batch 16",
}
MODELS = ("llama-2-70b", "mixtral-8x7b")
GAP, SECONDS = 0.01, 10.0
"""Relative gap and CPU seconds within which a node is solved."""
GENERAL = ((16, 8, 1), (16, 8, 2))
"""Layers of eight operators, devices, seed."""
GENERAL_GAP, GENERAL_SECONDS = 0.05, 60.0
BETTER = 3
"""Nodes on which greedy must be beaten."""


@dataclass(frozen=True)
class Rule:
    """A published rule: what it says, the command, and per operator of a layer the device (a prefix of its name) of its
    prefill and of its decode, which at least ``share`` of the layers must keep; "" is any."""

    name: str
    says: str
    command: str
    places: dict[str, tuple[str, str]]
    share: float = 1.0


RULES = (
    Rule("Lamina", "attention on memory-rich devices, large batches",
         "-m llama-2-70b -d h100-sxm -d h20:2 --batch 128 --prompt 1024 --output 256 --objective throughput --no-split",
         {"attention.attention": ("h20", "h20")}),
    Rule("Duplex", "experts and attention: xPU at prefill, Logic-PIM at decode",
         "-m mixtral-8x7b -d duplex-logic-pim:2 --batch 16",
         {"mlp": ("h100", "duplex"), "attention.attention": ("h100", "duplex"), "attention.qkv": ("h100", "h100")}),
    Rule("Splitwise", "prompts on fast machines, tokens on cheap ones",
         "-m llama-2-70b -d h100-sxm:2 -d a100-80g-sxm:2 --batch 16 --prompt 1024 --output 1024 --objective cost",
         dict.fromkeys(("attention.qkv", "attention.attention", "mlp.gate_up", "mlp.down"), ("h100", "a100"))),
    Rule("InstInfer", "attention in the drive where caches fit nowhere else",
         "-m opt-13b -d instinfer-csd --batch 64 --prompt 1024 --output 512",
         {"attention.attention": ("+instinfer-csd", "+instinfer-csd"), "mlp.down": ("a6000", "a6000")}),
)  # fmt: skip
INFEASIBLE = {
    "-m llama-2-70b -d h100-sxm -d l4": "GB needed",
    "-m llama-2-70b -d h100-sxm:2 --limit tpot=0.001": "decode",
    "-m llama-2-70b -d h100-sxm --formats fp16,int8 --limit bits=12": "h100-sxm",
}
"""Commands that have no answer, and what the reason must name."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what was run, what came out, and whether it met its bar."""

    what: str
    found: str
    met: bool


@functools.cache
def run(command: str) -> dict[str, Any]:
    """The document of ``tokenfab place COMMAND``."""
    parser = argparse.ArgumentParser(prog="tokenfab place", allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-d", "--device", action="append", required=True)
    for name, default in (("batch", 1), ("prompt", 512), ("output", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--apply", action="append", default=[])
    parser.add_argument("--objective", default="latency")
    parser.add_argument("--limit", action="append", default=[])
    parser.add_argument("--formats", default="")
    parser.add_argument("--no-split", action="store_true")
    o = parser.parse_args(shlex.split(command))
    return place(
        apply_techniques(load_trace(o.model), o.apply), o.device, Request(o.batch, o.prompt, o.output),
        objective=o.objective, limits=o.limit, split=not o.no_split, formats=[f for f in o.formats.split(",") if f],
    )  # fmt: skip


def trials(count: int | None = None) -> Iterator[Row]:
    """Random problems against trying everything. ``count``: of each kind (nothing: all)."""
    for name, (case, most) in TRIALS.items():
        yield _held(name, case, min(count or most, most))


def _held(name: str, case: Callable[[int], Problem], count: int) -> Row:
    began, equal, infeasible = time.process_time(), 0, 0
    for seed in range(count):
        problem = case(seed)
        best = try_everything(problem)[0]
        found = solve(problem, gap=0.0, time_limit=20)
        if not np.isfinite(best):
            infeasible += 1
            equal += found.status == "infeasible"
        elif found.layers is not None and evaluate(problem, found.layers).feasible:
            worse = any(b is not None and found.value > b.value * (1 + 1e-9) + 1e-9 for b in found.baselines.values())
            equal += abs(found.value - best) <= 1e-6 * abs(best) + 1e-9 and not worse
    spent = time.process_time() - began
    told = f"{equal} equal ({infeasible} of them infeasible both ways), {spent:.0f} CPU s"
    return Row(f"{count} random problems, {name}", told, equal == count)


def _over(document: dict[str, Any], name: str) -> str:
    value = document["baselines"][name]
    return "–" if value is None else f"{value / document['value'] - 1:+.1%}"


def nodes(titles: Iterable[str] = NODES, models: Iterable[str] = MODELS) -> Iterator[Row]:
    """Mixed nodes: gap, CPU seconds, baselines, replay; last, on how many nodes greedy is beaten."""
    beaten: dict[str, float] = {}
    for model in models:
        for title in titles:
            command = f"-m {model} {NODES[title]}"
            d = run(command)
            never_worse = all(v is None or d["value"] <= v * (1 + 1e-9) for v in d["baselines"].values())
            greedy = d["baselines"]["greedy"]
            if greedy is not None and greedy > d["value"] * (1 + max(d["gap"], 1e-3)):
                beaten[title] = max(beaten.get(title, 0.0), greedy / d["value"] - 1)
            over = ", ".join(f"{name.replace('_', ' ')} {_over(d, name)}" for name in d["baselines"])
            yield Row(
                f"place {command}",
                f"{d['value']:.4g} s, gap {d['gap']:.2%}, {d['solve_s']:.1f} CPU s; {over}; "
                f"replayed {abs(d['replay']['ratio'] - 1):.2%} longer",
                d["gap"] <= GAP and d["solve_s"] <= SECONDS and never_worse and d["replay"]["ratio"] >= 1 - 1e-9,
            )
    told = ", ".join(f"{title} {by:.1%}" for title, by in beaten.items())
    yield Row("greedy is worse by more than the gap", f"on {len(beaten)} nodes: {told}", len(beaten) >= BETTER)


def general(seconds: float = GENERAL_SECONDS) -> Iterator[Row]:
    """Synthetic graphs whose memories bind."""
    for layers, devices, seed in GENERAL:
        found = solve(layer_graph(layers, devices, seed), time_limit=seconds, gap=GENERAL_GAP)
        greedy = found.baselines["greedy"]
        over = "–" if greedy is None else f"{greedy.value / found.value - 1:+.1%}"
        yield Row(f"{layers * PER_LAYER} operators, {devices} devices, seed {seed}",
                  f"{found.value:.2f}, gap {found.gap:.2%}, {found.solve_s:.1f} CPU s; greedy {over}",
                  found.gap <= GENERAL_GAP and found.solve_s <= seconds)  # fmt: skip


def kept(document: dict[str, Any], operator: str, prefill: str, decode: str) -> tuple[int, int]:
    """Of how many layers ``operator`` runs where it should; and of how many there are."""
    found = total = 0
    for pattern in document["patterns"]:
        for o in pattern["operators"]:
            if pattern["block"] != "layer" or o["name"] != operator:
                continue
            first, _, second = o["place"].partition(" | ")
            total += pattern["layers"]
            if _is_at(first, prefill) and _is_at(second or first, decode):
                found += pattern["layers"]
    return found, total


def _is_at(place_: str, device: str) -> bool:
    """Whether all engines of a place begin with ``device``; with a + before it: whether one does."""
    engines = [part.partition(":")[0] for part in place_.split("+")]
    wanted = device.removeprefix("+")
    return (any if device.startswith("+") else all)(e.startswith(wanted) for e in engines)


def rules() -> Iterator[Row]:
    """Published rules, found again."""
    for rule in RULES:
        d = run(rule.command)
        counts = {o: kept(d, o, *where) for o, where in rule.places.items()}
        told = ", ".join(f"{o} {n}/{total}" for o, (n, total) in counts.items())
        stream = d["replay"]["stream"]
        more = "" if stream is None else (
            f"; a stream of {stream['flights']} batches: a decode pass every "
            f"{stream['decode_s_per_pass'] / stream['busiest_resource_s']:.2f} × the busiest resource's seconds"
        )  # fmt: skip
        yield Row(
            f"{rule.name} ({rule.says}): place {rule.command}",
            f"layers that keep it: {told}; greedy {_over(d, 'greedy')}, gap {d['gap']:.2%}{more}",
            all(total and n >= rule.share * total for n, total in counts.values()),
        )


def infeasible() -> Iterator[Row]:
    """Requests that fit nowhere: the command exits with 1 and names what binds."""
    for command, named in INFEASIBLE.items():
        d = run(command)
        reason = d.get("reason", f"value {d['value']}")
        yield Row(f"place {command}", f"{d['status']}: {reason}", d["status"] == "infeasible" and named in reason)


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    "trials": trials, "nodes": nodes, "general": general, "rules": rules, "infeasible": infeasible,
}  # fmt: skip


def show(names: Iterable[str]) -> bool:
    """Print sections; whether every row met its bar."""
    fine = True
    for name in names:
        print(f"\n{name}")
        for row in SECTIONS[name]():
            print(f"  {'ok  ' if row.met else 'MISS'}  {row.what}\n        {row.found}", flush=True)
            fine = fine and row.met
    return fine
