"""``place``: the best placement of a request on a node, with its bound, its baselines and its replay, as a document."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import __version__
from ..errors import InputError
from ..hw.estimate import Request
from ..workloads.trace import Trace
from .baselines import evaluate_all, singles
from .build import build
from .dynamic import chain, lagrange
from .elastic import Binding, binding
from .eliminate import TooWideError
from .ilp import solve_flat
from .node import Network, build_node, tier
from .options import QUALITY, Built
from .patterns import solve_patterns
from .pictures import copies, links, schedule
from .problem import Choice, Evaluation, Objective, Problem, all_allowed, evaluate, flat, unflatten
from .quality import menu
from .replay import Replay, replay, replay_stream
from .solver import available

SMALL = 40
"""Operators (all layers) up to which the whole program is solved operator by operator."""
LIMITS = {"ttft": "prefill", "tpot": "decode"}
"""Serving's names of metrics."""


@dataclass(frozen=True)
class Solution:
    """``status``: "optimal" (the gap asked for is closed), "feasible" (time ran out before), "infeasible" (proven), or
    "unknown" (nothing found, nothing proven). ``baselines``: name → evaluation, or nothing where it found none."""

    status: str
    layers: list[Choice] | None
    value: float
    bound: float
    baselines: dict[str, Evaluation | None]
    binding: Binding | None
    solve_s: float

    @property
    def gap(self) -> float:
        """(value − bound) / value."""
        return max(0.0, (self.value - self.bound) / abs(self.value)) if np.isfinite(self.value) and self.value else 0.0


def solve(problem: Problem, *, time_limit: float = 10.0, gap: float = 0.005, solver: str | None = None) -> Solution:
    """The best placement found within ``time_limit`` CPU seconds, never worse than any baseline, and its bound.

    Layers that repeat are solved by patterns, small problems operator by operator, large ones under prices first and
    then operator by operator.
    """
    began = time.process_time()
    if solver is not None and solver not in available():
        raise InputError(f"--solver {solver[:40]}: not available; accepted here: {', '.join(available())}")
    alone = singles(problem)
    others = evaluate_all(problem)
    seen = {name: evaluate(problem, layers) for name, layers in alone.items()}
    baselines: dict[str, Evaluation | None] = {}
    fitting = [e for name, e in seen.items() if e.feasible and "|" not in name]
    baselines["best_single"] = min(fitting, key=lambda e: e.value) if fitting else None
    for name, found in others.items():
        evaluation = evaluate(problem, found) if found is not None else None
        baselines[name] = evaluation if evaluation is not None and evaluation.feasible else None
    seeds = [*alone.values(), *(x for x in others.values() if x is not None)]
    if (free := chain(problem)) is not None:
        seeds.append(free)
    if not (seeds := [s for s in seeds if all_allowed(problem, s)]):
        nowhere = np.inf
        return Solution("infeasible", None, nowhere, nowhere, baselines, None, time.process_time() - began)
    feasible = [(e.value, i) for i, s in enumerate(seeds) if (e := evaluate(problem, s)).feasible]
    value, bound, layers = np.inf, -np.inf, None
    why: Binding | None = None
    if feasible:
        value, i = min(feasible)
        layers = list(seeds[i])

    def left() -> float:
        return max(0.5, time_limit - (time.process_time() - began))

    operators = sum(len(problem.blocks[b].operators) for b in problem.order)
    repeats = len(problem.order) > len(set(problem.order))
    if operators <= SMALL or not repeats:
        if operators > SMALL:
            try:
                priced = lagrange(problem, time_limit=0.3 * left(), gap=gap, known=value)
                bound = priced.bound
                if priced.layers is not None and priced.value < value:
                    value, layers = priced.value, priced.layers
            except TooWideError:
                pass
        if layers is None or value - bound > gap * abs(value):
            start = tuple(k for layer in layers for k in layer) if layers is not None else None
            choice, outcome = solve_flat(flat(problem), time_limit=left(), gap=gap / 2, solver=solver, start=start)
            bound = max(bound, outcome.bound)
            if choice is not None:
                found = unflatten(problem, choice)
                evaluation = evaluate(problem, found)
                if evaluation.feasible and evaluation.value < value:
                    value, layers = evaluation.value, found
    else:
        if layers is None:
            why = binding(problem, seeds, time_limit=left())
            if why is not None and not why.exceeded:
                seeds.append(why.layers)
        if why is None or not why.proven:
            counted = solve_patterns(problem, seeds, time_limit=left(), gap=gap, solver=solver)
            bound = counted.bound
            if counted.layers is not None and counted.value < value:
                value, layers = counted.value, counted.layers
            if layers is not None and value - bound > gap * abs(value):
                priced = lagrange(
                    problem, time_limit=left(), gap=gap, known=value, pool=counted.pool, limits=counted.limits
                )
                bound = max(bound, priced.bound)
                if priced.layers is not None and priced.value < value:
                    value, layers = priced.value, priced.layers
    if layers is None:
        why = why or binding(problem, seeds, time_limit=time_limit)
        status = "infeasible" if why is None or why.proven else "unknown"
    else:
        bound = min(bound, value)
        status = "optimal" if value - bound <= gap * abs(value) + 1e-12 else "feasible"
    return Solution(status, layers, value, bound, baselines, why, time.process_time() - began)


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """``tpot=0.05,energy=100`` as metric → bound (of ``bits``: the least). Raises ``InputError``."""
    accepted = ("latency", "throughput", "energy", "cost", *LIMITS, *QUALITY)
    found = {}
    for item in (part for text in texts for part in text.split(",") if part):
        name, _, number = item.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if name not in accepted or not 0 < value < float("inf"):
            raise InputError(f"--limit {item[:60]}: accepted: NAME=NUMBER above 0, NAME one of {', '.join(accepted)}")
        found[LIMITS.get(name, name)] = value
    return found


def parse_objective(text: str) -> dict[str, float]:
    """``latency`` or ``latency=1,cost=1000`` as metric → weight. Raises ``InputError``."""
    accepted = ("latency", "throughput", "energy", "cost", "loss", *LIMITS)
    weights = {}
    for item in filter(None, text.split(",")):
        name, equals, number = item.partition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = -1.0
        if name not in accepted or not 0 < weight < float("inf"):
            raise InputError(
                f"--objective {item[:60]}: accepted: {', '.join(accepted)}, or weights as latency=1,cost=1000"
            )
        weights[LIMITS.get(name, name)] = weight
    if not weights:
        raise InputError(f"--objective: accepted: {', '.join(accepted)}, or weights as latency=1,cost=1000")
    return weights


def parse_pins(texts: Sequence[str]) -> dict[str, str]:
    """``attention.qkv=h100-sxm`` and such as operator → place. Raises ``InputError``."""
    found = {}
    for text in texts:
        name, equals, where = text.partition("=")
        if not (name and equals and where):
            raise InputError(f"--pin {text[:60]}: accepted: OPERATOR=DEVICE or OPERATOR=PREFILL|DECODE")
        if name in found:
            raise InputError(f"--pin {name} is given twice")
        found[name] = where
    return found


def place(
    trace: Trace, devices: Sequence[str], request: Request, *, networks: Sequence[Network] = (),
    objective: str = "latency",
    limits: Sequence[str] = (), pins: Mapping[str, str] | None = None, together: Sequence[Sequence[str]] = (),
    split: bool = True, move: bool = True, time_limit: float = 10.0, gap: float = 0.005, solver: str | None = None,
    formats: Sequence[str] = (), sensitivity: Mapping[str, float] | None = None,
    watch: Callable[[Built, Replay], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Place ``trace`` on ``devices`` and say all about it; see :func:`document`. ``formats``: what weights may be
    stored in, which takes a limit on ``loss`` or ``bits``, or ``loss`` in the objective; ``sensitivity``: of
    BLOCK.OPERATOR, the weight of its loss. ``watch`` is given the whole replay, of which the document keeps a
    part."""
    if not 0 <= gap < 1:
        raise InputError(f"--gap {gap}: accepted: 0 to 1")
    if not 0 < time_limit <= 86400:
        raise InputError(f"--time-limit {time_limit}: accepted: above 0, to 86400 seconds")
    node = build_node(devices, networks, trace)
    weights, bounds = parse_objective(objective), parse_limits(limits)
    quality = {name: bounds.pop(name) for name in QUALITY if name in bounds}
    asked = [*quality, *(name for name in weights if name == "loss")]
    if asked and not formats:
        raise InputError(f"{asked[0]} is of formats; accepted with --formats fp16,int8,int4-g128 or others")
    if formats and not asked:
        raise InputError("--formats: the narrowest would always do; accepted with --limit bits=N or loss=N, or "
                         "--objective with loss")  # fmt: skip
    built = build(
        trace, node, request, Objective(weights, bounds), split=split, move=move, pins=pins, together=together,
        formats=menu(trace, formats, sensitivity) if formats else None, quality=quality,
    )  # fmt: skip
    solution = solve(built.problem, time_limit=time_limit, gap=gap, solver=solver)
    return document(built, solution, objective, watch)


def document(
    built: Built, solution: Solution, objective: str, watch: Callable[[Built, Replay], None] | None = None
) -> dict[str, Any]:
    """The promised keys, and what pictures need: ``patterns``, ``memory``, ``links``, ``replay`` with its schedule."""
    problem = built.problem
    out: dict[str, Any] = {
        "schema": "tokenfab.placement", "version": 1, "tokenfab": __version__, "model": built.trace.model,
        "applied": list(built.trace.applied),
        "devices": [e.name for e in built.node.engines],
        "request": {"batch": built.request.batch, "prompt": built.request.prompt, "output": built.request.output},
        "objective": objective, "limits": {**problem.objective.limits, **built.quality}, "status": solution.status,
        "value": solution.value, "bound": solution.bound, "gap": solution.gap, "solve_s": solution.solve_s,
        "baselines": {name: None if e is None else e.value for name, e in solution.baselines.items()},
        "notes": list(built.node.notes),
    }  # fmt: skip
    if solution.layers is None:
        exceeded = solution.binding.exceeded if solution.binding else {}
        out |= {"value": None, "gap": None, "assignment": {}, "transfers": [], "reason": _reason(solution),
                "exceeded": {name: list(pair) for name, pair in exceeded.items()}}  # fmt: skip
        return out
    layers = solution.layers
    evaluation = evaluate(problem, layers)
    played = replay(problem, layers)
    if watch is not None:
        watch(built, played)
    out["metrics"] = {k: v for k, v in evaluation.metrics.items() if k != "loss" or built.menu is not None}
    if built.menu is not None:
        out["formats"] = chosen_formats(built, layers)
    out["assignment"] = _assignment(built, layers)
    out["patterns"] = _patterns(built, layers)
    out["transfers"] = traffic(built, layers)
    out["links"] = links(built, out["transfers"])
    out["memory"] = memory(built, layers)
    out["busy_s"] = dict(zip(problem.resources, map(float, evaluation.totals.busy_s), strict=True))
    out["replay"] = _replayed(problem, layers, evaluation, played) | {"schedule": schedule(built, layers, played)}
    return out


def _reason(solution: Solution) -> str:
    if solution.binding is None:
        return "some operator runs on no device as it is pinned"
    proof = "" if solution.binding.proven else " (not proven: no placement was found in time)"
    return f"the placement that exceeds least: {solution.binding.reason()}{proof}"


def _layer_names(built: Built) -> list[str]:
    count: dict[int, int] = {}
    names = []
    for b in built.problem.order:
        number = count.get(b, 0)
        count[b] = number + 1
        name = built.problem.blocks[b].name
        names.append(f"{name}.{number}" if built.problem.order.count(b) > 1 else name)
    return names


def _assignment(built: Built, layers: Sequence[Choice]) -> dict[str, str]:
    problem, found = built.problem, {}
    for name, b, choice in zip(_layer_names(built), problem.order, layers, strict=True):
        for piece, op, k in zip(built.pieces[b], problem.blocks[b].operators, choice, strict=True):
            for inner in piece.operators:
                found[f"{name}.{inner.name}"] = op.options[k]
    return found


def _patterns(built: Built, layers: Sequence[Choice]) -> list[dict[str, Any]]:
    counts: dict[tuple[int, Choice], int] = {}
    for b, choice in zip(built.problem.order, layers, strict=True):
        counts[b, choice] = counts.get((b, choice), 0) + 1
    found = []
    for (b, choice), n in counts.items():
        block = built.problem.blocks[b]
        rows = [
            {"name": op.name, "kind": piece.kind, "place": op.options[k],
             "prefill_s": float(op.time_s[k, 0]), "decode_s": float(op.time_s[k, 2]),
             **({"format": op.formats[k]} if op.formats else {})}
            for op, piece, k in zip(block.operators, built.pieces[b], choice, strict=True)
        ]  # fmt: skip
        found.append({"block": block.name, "layers": n, "operators": rows})
    return found


def chosen_formats(built: Built, layers: Sequence[Choice]) -> dict[str, Any]:
    """``names`` to choose from; ``bits`` per weight on average and the ``loss``, both over the matrices with a choice;
    ``chosen``: BLOCK.OPERATOR → format → layers."""
    assert built.menu is not None
    problem = built.problem
    chosen: dict[str, dict[str, int]] = {}
    narrowing = loss = 0.0
    for b, choice in zip(problem.order, layers, strict=True):
        block = problem.blocks[b]
        for j, (op, k) in enumerate(zip(block.operators, choice, strict=True)):
            if op.formats:
                counts = chosen.setdefault(f"{block.name}.{op.name}", {})
                counts[op.formats[k]] = counts.get(op.formats[k], 0) + 1
                narrowing += float(built.narrowing[b][j][k])
                loss += float(op.losses[k])
    return {"names": list(built.menu.names), "bits": built.menu.widest - narrowing, "loss": loss, "chosen": chosen}


def traffic(built: Built, layers: Sequence[Choice]) -> list[dict[str, Any]]:
    """Bytes of a whole request between engines, by phase."""
    problem, n = built.problem, len(built.node.engines)
    total = np.zeros((len(problem.phases), n, n))
    entry: Choice | None = None
    before = -1
    for b, choice in zip(problem.order, layers, strict=True):
        block, joints = problem.blocks[b], built.joints[b]
        for edge, sizes in zip(block.edges, built.sizes[b], strict=True):
            if edge.source < 0:
                assert entry is not None
                source = built.joints[before][problem.blocks[before].output][entry[problem.blocks[before].output]]
            else:
                source = joints[edge.source][choice[edge.source]]
            target = joints[edge.target][choice[edge.target]]
            if sizes[0]:
                total[0] += built.transfers.between(source.prefill, target.prefill, sizes[0]).bytes
            if sizes[2]:
                total[2] += built.transfers.between(source.decode, target.decode, sizes[2]).bytes
        for j, k in enumerate(choice):
            joint = joints[j][k]
            if (prompt := built.prompt_cache[b][j]) and joint.prefill != joint.decode:
                total[1] += built.transfers.cache(joint.prefill, joint.decode, prompt).bytes
        entry, before = choice, b
    names = [e.name for e in built.node.engines]
    return [
        {
            "phase": problem.phases[f],
            "from": names[a],
            "to": names[b],
            "bytes": float(total[f, a, b] * problem.repeats[f]),
        }
        for f, a, b in zip(*np.nonzero(total * problem.repeats[:, None, None]), strict=True)
    ]


def memory(built: Built, layers: Sequence[Choice]) -> list[dict[str, Any]]:
    """Who holds what: bytes of weights (of which ``replicated_bytes`` lie in another memory too), caches and reserve in
    each memory, and the level of the device file that it is."""
    problem = built.problem
    weights, caches = np.zeros(len(built.node.pools)), np.zeros(len(built.node.pools))
    for b, choice in zip(problem.order, layers, strict=True):
        for j, k in enumerate(choice):
            weights += built.weights[b][j][k]
            caches += built.caches[b][j][k]
    twice = copies(built, layers)
    return [
        {"device": pool, "tier": tier(built.node, m), "weights_bytes": float(w), "replicated_bytes": float(twice[m]),
         "kv_bytes": float(c), "reserve_bytes": built.reserve, "capacity_bytes": float(built.node.capacity[m])}
        for m, (pool, w, c) in enumerate(zip(built.node.pools, weights, caches, strict=True))
    ]  # fmt: skip


def _replayed(problem: Problem, layers: Sequence[Choice], evaluation: Evaluation, played: Replay) -> dict[str, Any]:
    predicted = evaluation.metrics["latency"]
    stream = None
    if "throughput" in problem.objective.weights:
        found = replay_stream(problem, layers, len(problem.phases) - 1)
        stream = {"flights": found.flights, "passes": found.passes, "decode_s_per_pass": found.steady_s,
                  "filling_included_s": found.whole_s, "alone_s": found.alone_s,
                  "busiest_resource_s": found.busiest_s}  # fmt: skip
    return {
        "predicted_s": predicted, "replayed_s": played.latency_s, "ratio": played.latency_s / predicted,
        "phases": dict(zip(problem.phases, played.path_s, strict=True)),
        "stream": stream,
    }  # fmt: skip
