"""Which operators of a block are its feed-forward network, read off the graph: no names are looked at."""

from __future__ import annotations

from dataclasses import dataclass

from .trace import Block, Operator

_BETWEEN = ("activation", "elementwise")


@dataclass(frozen=True)
class FeedForward:
    """``part`` is "up" (gate included), "down" or "experts"; ``inner`` the neurons (of one expert), ``rows`` how many
    vectors of the hidden size belong to a neuron (2: up and down; 3: with a gate)."""

    part: str
    inner: float
    rows: int


def feed_forward(block: Block) -> dict[str, FeedForward]:
    """Operator name → its place in the feed-forward network.

    A product that an activation function leads to, through element-wise operators alone, is "down" if it takes as
    many inputs as the activation has neurons; products that lead to the activation, or to what is multiplied with
    it, are "up". Products without weights, and those of attention, are not among them.
    """
    found: dict[str, FeedForward] = {}
    for op in block.operators:
        if op.kind == "experts":
            found[op.name] = FeedForward("experts", op.dims["inner"].constant or 1, 3 if op.attrs["gated"] else 2)
        elif op.kind == "activation":
            found |= _around(op, block)
    return found


def _around(activation: Operator, block: Block) -> dict[str, FeedForward]:
    operators = {op.name: op for op in block.operators}
    between, downs = {activation.name}, []
    for op in block.operators:
        if not between & set(op.deps):
            continue
        if op.kind in _BETWEEN:
            between.add(op.name)
        elif _is_projection(op):
            downs.append(op)
    before = {d for name in between for d in operators[name].deps} - between
    ups = [operators[d] for d in before if _is_projection(operators[d])]
    if len(downs) != 1 or not ups:
        return {}
    inner = downs[0].dims["k"].constant or 1
    wide = sum(up.dims["n"].constant or 0 for up in ups)
    if not inner or wide % inner:
        return {}
    rows = round(wide / inner) + 1
    return {up.name: FeedForward("up", inner, rows) for up in ups} | {downs[0].name: FeedForward("down", inner, rows)}


def _is_projection(op: Operator) -> bool:
    return op.kind == "matmul" and bool(op.weights) and "batch" not in op.dims
