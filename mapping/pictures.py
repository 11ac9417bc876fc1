"""What pictures of a placement need: which weights lie twice, what each link carries, what runs when.

A replay of 80 layers has thousands of spans. A document keeps of each phase what each lane (engine or port) works by
operator kind, in the whole pass and layer by layer (at most :data:`STRETCHES`, else a few layers together), and every
span of a few layers only, with their number and how many layers are placed like them: its size is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .node import Node
from .options import Built, Joint
from .problem import Array, Choice
from .replay import Replay, Span
from .spreads import Spread

STRETCHES = 100
"""Most stretches of a pass: each is of whole layers, so that no beat of layers against stretches is seen."""
WINDOW = 2
"""Layers of which all spans are kept."""
FEW = 150
"""Spans of a phase up to which all are kept."""
TRANSFER = "transfer"
"""Kind of what links do."""
Label = tuple[int, str, str]
"""Number of the layer, what runs, its kind."""


def copies(built: Built, layers: Sequence[Choice]) -> Array:
    """Bytes of weights in each memory of which another memory has a copy, (M,).

    An operator whose memories together hold more than it once has copies: of a memory's part f what the others leave
    open, max(0, 1 − Σ f of the others), lies only there.
    """
    total = np.zeros(len(built.node.pools))
    for b, choice in zip(built.problem.order, layers, strict=True):
        for j, k in enumerate(choice):
            held = built.weights[b][j][k]
            parts = fractions(built.node, built.joints[b][j][k])
            alone = np.maximum(0.0, 1.0 - (parts.sum() - parts))
            total += held * np.where(parts > 0, 1.0 - np.minimum(1.0, alone / np.maximum(parts, 1e-300)), 0.0)
    return total


def fractions(node: Node, joint: Joint) -> Array:
    """The part of an operator's weights that each memory holds for prefill and decode together, (M,)."""

    def parts(spread: Spread) -> Array:
        out = np.zeros(len(node.pools))
        for a in spread.engines:
            out[node.engines[a].pool] += spread.fraction(a)
        return np.minimum(out, 1.0)

    first, second = parts(joint.prefill), parts(joint.decode)
    if joint.prefill == joint.decode or np.array_equal(first, second):
        return first
    return np.minimum(first + second, 1.0)


def links(built: Built, traffic: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every direct way between two memories: bytes/s and seconds of its file, bytes and busy seconds of a request.

    ``busy_s`` = bytes / bandwidth; those that leave by one port add up to its busy seconds. Engines that work from one
    memory need no link.
    """
    names = [e.name for e in built.node.engines]
    moved: Counter[tuple[str, str]] = Counter()
    for t in traffic:
        moved[t["from"], t["to"]] += t["bytes"]
    found = []
    for a, row in zip(names, built.node.routes, strict=True):
        for b, route in zip(names, row, strict=True):
            if route is None:
                continue
            carried = float(moved[a, b])
            found.append(
                {"from": a, "to": b, "network": built.node.ports[route.out].removeprefix(f"{a} ").removesuffix(" out"),
                 "bandwidth_bytes_s": route.bytes_s, "latency_s": route.latency_s, "bytes": carried,
                 "busy_s": carried / route.bytes_s}
            )  # fmt: skip
    return found


def labels(built: Built) -> dict[str, Label]:
    """What the replay calls an operator (``NUMBER.BLOCK.OPERATOR``) → its layer's number, its name, its kind."""
    found = {}
    for number, b in enumerate(built.problem.order):
        block = built.problem.blocks[b]
        for piece, op in zip(built.pieces[b], block.operators, strict=True):
            found[f"{number}.{block.name}.{op.name}"] = (number, op.name, piece.kind)
    return found


def label(span: Span, known: Mapping[str, Label], engines: int, resources: Mapping[str, int]) -> Label:
    """What ``span`` is, for a picture. A transfer belongs to the layer that waits for it."""
    source, arrow, target = span.what.partition(" → ")
    number, name, kind = known[target or source]
    if arrow:
        return number, f"{known[source][1]} → {name}", TRANSFER
    return (number, f"cache of {name}", TRANSFER) if resources[span.resource] >= engines else (number, name, kind)


def schedule(built: Built, layers: Sequence[Choice], played: Replay) -> list[dict[str, Any]]:
    """Per phase that takes time: what works when, in a bounded number of numbers (see the module's text)."""
    problem = built.problem
    known, resources = labels(built), {r: i for i, r in enumerate(problem.resources)}
    first, count, alike = _window(built, layers)
    out = []
    for phase, seconds, repeats in zip(problem.phases, played.path_s, problem.repeats, strict=True):
        spans = [(s, label(s, known, len(built.node.engines), resources)) for s in played.spans if s.phase == phase]
        if not (spans and seconds and repeats):
            continue
        spans.sort(key=lambda x: (resources[x[0].resource], x[0].start_s))
        edges = _edges([(number, s.start_s) for s, (number, _, _) in spans], len(problem.order), seconds)
        busy: dict[str, dict[str, float]] = {}
        whole: dict[str, dict[str, Array]] = {}
        for s, (_, _, kind) in spans:
            lane, bins = busy.setdefault(s.resource, {}), whole.setdefault(s.resource, {})
            lane[kind] = lane.get(kind, 0.0) + s.end_s - s.start_s
            _spread_over(bins.setdefault(kind, np.zeros(len(edges) - 1)), edges, s.start_s, s.end_s)
        chosen = range(len(problem.order)) if len(spans) <= FEW else range(first, first + count)
        inside = [s for s, (number, _, _) in spans if number in chosen]
        start, end = min((s.start_s for s in inside), default=0.0), max((s.end_s for s in inside), default=0.0)
        out.append({
            "phase": phase, "seconds": seconds, "repeats": float(repeats), "layers": len(problem.order),
            "busy_s": busy, "edges_s": edges.tolist(),
            "whole": {lane: {k: [round(float(x), 4) for x in v] for k, v in bins.items()}
                      for lane, bins in whole.items()},
            "window": {"first": chosen.start, "layers": len(chosen), "alike": alike if len(spans) > FEW else None,
                       "start_s": start, "end_s": end},
            "spans": [[s.resource, number, name, kind, s.start_s, s.end_s] for s, (number, name, kind) in spans
                      if s.end_s > start and s.start_s < end],
        })  # fmt: skip
    return out


def _window(built: Built, layers: Sequence[Choice]) -> tuple[int, int, int]:
    """The layers to show in full: the first's number, how many, and how many layers are placed as it is.

    In the middle of the longest stretch of the placement that most layers have.
    """
    placed = list(zip(built.problem.order, layers, strict=True))
    commonest, alike = Counter(placed).most_common(1)[0]
    runs: list[tuple[int, int]] = []
    for i, one in enumerate(placed):
        if one == commonest:
            if runs and sum(runs[-1]) == i:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((i, 1))
    start, length = max(runs, key=lambda r: r[1])
    count = min(WINDOW, len(placed))
    return min(start + max(0, length - count) // 2, len(placed) - count), count, alike


def _edges(starts: Sequence[tuple[int, float]], layers: int, seconds: float) -> Array:
    """Where stretches of whole layers begin, and the end of the pass: rising seconds from 0."""
    each = -(-layers // STRETCHES)
    first: dict[int, float] = {}
    for number, start in starts:
        first[number // each] = min(first.get(number // each, start), start)
    inner = np.array([first[i] for i in sorted(first)])
    return np.unique(np.concatenate([[0.0], inner[(inner > 0) & (inner < seconds)], [seconds]]))


def _spread_over(shares: Array, edges: Array, start: float, end: float) -> None:
    """Add to each stretch the share of it that lies between ``start`` and ``end``."""
    i, j = int(np.searchsorted(edges, start, "right")) - 1, int(np.searchsorted(edges, end, "left"))
    i, j = max(0, i), min(j, len(shares))
    low, high = edges[i:j], edges[i + 1 : j + 1]
    shares[i:j] += np.maximum(0.0, np.minimum(end, high) - np.maximum(start, low)) / (high - low)
