"""Fusion of pointwise torch calls into operators.

Modules written for clarity spell a norm as six torch calls; no engine runs six kernels. Calls that
work element by element join their producer when both are the same sort of work, so that a trace
holds one norm, one rope, one activation.
"""

from __future__ import annotations

import heapq
import math
import re

from .raw import POINTWISE, RawBlock, RawOp, RawTensor

Fused = list[tuple[RawOp, list[int]]]
_PLAIN = frozenset({"elementwise", "activation"})


def fuse_pointwise(block: RawBlock, used_later: set[int]) -> tuple[Fused, int]:
    """Operators of ``block`` with their dependencies (positions in the list), and the output's position.

    ``used_later`` holds the ``id`` of every root that another block reads, so that those stay written.
    """
    groups: list[list[RawOp]] = []
    parents: list[set[int]] = []
    home: dict[int, int] = {}
    for op in block.operators:
        above = {home[id(r.root.producer)] for r in op.reads if id(r.root.producer) in home}
        host = _host(op, groups, above, parents)
        if host is None:
            host = len(groups)
            groups.append([])
            parents.append(set())
        groups[host].append(op)
        parents[host] |= above - {host}
        home[id(op)] = host
    _absorb(groups, parents, home, block)
    order = [g for g in _execution_order(parents) if groups[g]]
    place = {g: i for i, g in enumerate(order)}
    fused = [(_merge(groups[g], used_later, block), sorted(place[p] for p in parents[g])) for g in order]
    return fused, place[home[id(block.output)]]


def _absorb(groups: list[list[RawOp]], parents: list[set[int]], home: dict[int, int], block: RawBlock) -> None:
    """Pointwise work that only one other such group reads is part of it: halves to be rotated, half an activation."""
    for g, group in enumerate(groups):
        readers = [h for h, above in enumerate(parents) if g in above]
        if len(readers) != 1 or block.output in group or not {op.kind for op in group} <= _PLAIN:
            continue
        reader = readers[0]
        kinds = {op.kind for op in groups[reader]}
        if kinds <= _PLAIN or "rope" in kinds:
            groups[reader] = group + groups[reader]
            parents[reader] = (parents[reader] | parents[g]) - {g}
            home.update((id(op), reader) for op in group)
            groups[g], parents[g] = [], set()


def _host(op: RawOp, groups: list[list[RawOp]], above: set[int], parents: list[set[int]]) -> int | None:
    """The group ``op`` can join: the same sort of work, and no path leaves the group and comes back."""
    if op.kind not in POINTWISE:
        return None
    candidates = range(len(groups) - 1, -1, -1) if op.kind == "rope" else sorted(above, reverse=True)
    for g in candidates:
        if _alike(groups[g][0], op) and not any(_is_above(g, p, parents) for p in above - {g}):
            return g
    return None


def _alike(first: RawOp, op: RawOp) -> bool:
    if first.kind not in POINTWISE:
        return False
    if "norm" in (first.kind, op.kind):
        return first.kind == op.kind and first.scope == op.scope
    return (first.kind == "rope") == (op.kind == "rope")


def _is_above(g: int, below: int, parents: list[set[int]]) -> bool:
    pending, seen = [below], {below}
    while pending:
        for p in parents[pending.pop()]:
            if p == g:
                return True
            if p not in seen:
                seen.add(p)
                pending.append(p)
    return False


def _execution_order(parents: list[set[int]]) -> list[int]:
    """Each group after its parents, otherwise in the order they began."""
    missing = [len(p) for p in parents]
    children: list[list[int]] = [[] for _ in parents]
    for g, above in enumerate(parents):
        for p in above:
            children[p].append(g)
    ready = [g for g, n in enumerate(missing) if n == 0]
    order = []
    while ready:
        g = heapq.heappop(ready)
        order.append(g)
        for child in children[g]:
            missing[child] -= 1
            if missing[child] == 0:
                heapq.heappush(ready, child)
    return order


def _merge(group: list[RawOp], used_later: set[int], block: RawBlock) -> RawOp:
    """One operator for a group: reads what comes from outside once, writes what outsiders read."""
    if len(group) == 1:
        return group[0]
    members = {id(op) for op in group}
    inside = {id(t.root) for op in group for t in op.writes}
    reads = _once([r for op in group for r in op.reads if id(r.root) not in inside])
    wanted = {id(r.root) for op in block.operators if id(op) not in members for r in op.reads} | used_later
    if block.output is not None and id(block.output) in members:
        wanted |= {id(t.root) for t in block.output.writes}
    writes = [t for op in group for t in op.writes if id(t.root) in wanted] or group[-1].writes
    kind = next((k for k in ("norm", "rope", "activation") if any(op.kind == k for op in group)), "elementwise")
    name = re.sub(r"(norm|rope|activation|elementwise)$", kind, group[0].name)
    elements = sum(math.prod(t.shape) for t in writes)
    flops = sum(op.flops for op in group)
    return RawOp(name, kind, group[0].scope, group[0].format, {"elements": elements}, reads, writes, flops)


def _once(reads: list[RawTensor]) -> list[RawTensor]:
    """Each operand once: the same view again, and a view inside another of the same tensor, cost nothing."""
    kept: list[RawTensor] = []
    for r in reads:
        if any(r.root is k.root and _inside(r, k) for k in kept):
            continue
        kept = [k for k in kept if not (r.root is k.root and _inside(k, r))] + [r]
    return kept


def _inside(inner: RawTensor, outer: RawTensor) -> bool:
    """Whether one strided view holds no element that the other lacks (views of one layout only)."""
    (start, shape, strides), (first, extents, steps) = inner.key, outer.key
    if inner.key == outer.key:
        return True
    ahead = start - first
    if strides != steps or ahead < 0 or inner.touched is not None or outer.touched is not None:
        return False
    for axis in sorted(range(len(steps)), key=lambda a: -steps[a]):
        if steps[axis]:
            at, ahead = divmod(ahead, steps[axis])
            if at + shape[axis] > extents[axis]:
                return False
    return bool(ahead == 0)
