"""Tensor parallelism: one device's share of a trace, with the collectives that sharing costs.

After Megatron-LM (arXiv:1909.08053, section 3): a matmul whose input every device holds is split by
output columns, one whose input is already split is split by reduction rows and followed by an
all-reduce; what lies between works on its share. The rule needs only the graph, so it serves any
captured model. Around attention the split is by heads: each device holds ⌈heads/world⌉ query heads
and ⌈kv_heads/world⌉ key/value heads, so with fewer key/value heads than devices they are replicated,
as vLLM and Megatron do. Where nothing divides evenly the share is the fullest device's.

Replicated: embeddings, norms, routers, low-rank projections (those that only feed the projections
before attention), and gates narrower than the number of devices. Experts are split inside, each
device holding a slice of every expert; an operator with the attribute ``divided`` has its weights'
second axis divided. Left out: the reduction that a norm over split channels needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InputError
from .expr import Expr, ceil_div, expr
from .formulas import attention_flops, experts_flops, matmul_flops
from .trace import Block, Operator, Tensor, Trace

_POINTWISE = frozenset({"norm", "rope", "activation", "elementwise"})


def tensor_parallel(trace: Trace, world: int) -> Trace:
    """What each of ``world`` devices computes, with all-reduces; ``trace`` itself when ``world`` is 1.

    Raises ``InputError`` when the model has fewer query heads than devices, or is a share already.
    """
    if world == 1:
        return trace
    if any(op.kind == "collective" for op, _ in trace.operators()):
        raise InputError(f"{trace.model}: is one device's share already and cannot be divided again")
    for op, _ in trace.operators():
        if op.kind == "attention" and (heads := op.dims["heads"].constant or 0) < world:
            raise InputError(f"{trace.model}: {heads:g} attention heads cannot be divided over {world} devices")
    blocks = tuple(_share_block(b, world) for b in trace.blocks)
    return trace.model_copy(update={"blocks": blocks, "applied": (*trace.applied, f"tensor-parallel:world={world}")})


@dataclass(frozen=True)
class _Layout:
    """How tensors are divided in one stretch of a layer: by heads around attention, else evenly."""

    world: int
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0

    @classmethod
    def around(cls, attention: Operator | None, world: int) -> _Layout:
        if attention is None:
            return cls(world)
        sizes = (attention.dims[k].constant for k in ("heads", "kv_heads", "head_dim", "value_dim"))
        return cls(world, *(int(s or 0) for s in sizes))

    def share_heads(self, count: int) -> int:
        return -(-count // self.world)

    def width(self, n: float) -> float:
        """Share of a last axis of ``n``: queries, keys, values, or several of them side by side."""
        h, hk, hd, vd = self.heads, self.kv_heads, self.head_dim, self.value_dim
        kv_share = self.share_heads(hk)
        queries, keys_and_values = self.share_heads(h) * hd, kv_share * (hd + vd)
        known = {hk * hd: kv_share * hd, hk * vd: kv_share * vd, hk * (hd + vd): keys_and_values}
        known[h * hd + hk * (hd + vd)] = queries + keys_and_values
        if h and n in known:
            return known[int(n)]
        if h and n % h == 0:
            return self.share_heads(h) * (n // h)
        return math.ceil(n / self.world)

    def cut(self, t: Tensor) -> Tensor:
        """``t`` divided along the axis that holds the heads or channels; what has no batch stays whole."""
        if not t.shape or t.role == "index" or (t.role == "activation" and not _depends_on_batch(t)):
            return t
        for axis in (1, 2) if len(t.shape) == 4 and self.heads else ():
            size = int(t.shape[axis].constant or 0)
            if size in (self.heads, self.kv_heads) and (size > 1 or t.role == "kv"):
                return _resized(t, axis, self.share_heads(size))
        if t.role in ("kv", "state", "weight"):  # batch, heads or channels, …; weights: channels, …
            axis = min(0 if t.role == "weight" else 1, len(t.shape) - 1)
            return _resized(t, axis, math.ceil((t.shape[axis].constant or 1) / self.world))
        if last := t.shape[-1].constant:
            return _resized(t, len(t.shape) - 1, self.width(last))
        return t.model_copy(update={"touched": (t.elements if t.touched is None else t.touched) / self.world})


def _share_block(block: Block, world: int) -> Block:
    """Walk the graph once; ``split`` holds the operators whose outputs are divided, and how."""
    graph = _Graph(block)
    split: dict[str, _Layout] = {}
    renamed: dict[str, str] = {}
    operators: list[Operator] = []

    def reduced(op: Operator, share: Operator) -> None:
        operators.extend((share, _collective(op, "all_reduce", world)))
        renamed[op.name] = operators[-1].name

    for original in block.operators:
        op = original.model_copy(update={"deps": tuple(renamed.get(d, d) for d in original.deps)})
        layouts = [split[d] for d in op.deps if d in split]
        layout = max(layouts, key=lambda x: x.heads, default=None)
        if op.attrs.get("divided"):
            operators.append(_divided(op, world))
        elif op.kind == "experts":
            reduced(original, _split_experts(op, world))
        elif _is_projection(op):
            if layout is not None:
                reduced(original, _split_rows(op, layout))
            elif graph.is_low_rank(op) or (op.dims["n"].constant or world) < world:
                operators.append(op)
            else:
                split[op.name] = _Layout.around(graph.attention_after(op), world)
                operators.append(_split_columns(op, split[op.name]))
        elif layout is not None and op.kind not in ("router", "embedding"):
            if op.kind == "attention":
                layout = _Layout.around(op, world)
            split[op.name] = layout
            operators.append(_share(op, layout))
        else:
            operators.append(op)
    output = block.output
    if output in split:  # the head: every device needs the whole row of logits to sample from
        last = next(op for op in block.operators if op.name == output)
        operators.append(_collective(last, "all_gather", world))
        output = operators[-1].name
    return block.model_copy(update={"operators": tuple(operators), "output": renamed.get(output, output)})


class _Graph:
    """What each operator of a block leads to through pointwise work alone."""

    def __init__(self, block: Block) -> None:
        self._operators = {op.name: op for op in block.operators}
        self._readers: dict[str, list[Operator]] = {op.name: [] for op in block.operators}
        for op in block.operators:
            for d in op.deps:
                self._readers[d].append(op)

    def _leads_to(self, op: Operator, through: frozenset[str] = _POINTWISE) -> Iterator[Operator]:
        pending, seen = [op.name], {op.name}
        while pending:
            for reader in self._readers[pending.pop()]:
                if reader.name not in seen:
                    seen.add(reader.name)
                    yield reader
                    if reader.kind in through:
                        pending.append(reader.name)

    def attention_after(self, op: Operator) -> Operator | None:
        """The attention that ``op`` makes queries, keys or values for."""
        return next((x for x in self._leads_to(op, _POINTWISE | {"kv_append"}) if x.kind == "attention"), None)

    def is_low_rank(self, op: Operator) -> bool:
        """Whether ``op`` feeds a projection that feeds attention (q_a and kv_a of latent attention)."""
        return any(_is_projection(x) and self.attention_after(x) is not None for x in self._leads_to(op))


def _is_projection(op: Operator) -> bool:
    return op.kind == "matmul" and bool(op.weights) and "batch" not in op.dims


def _divided(op: Operator, world: int) -> Operator:
    """Work on weights that the devices hold evenly shared, without an exchange (models that wait elsewhere)."""
    reads = tuple(_resized(t, 1, (t.shape[1].constant or 1) / world) if t.role == "weight" else t for t in op.reads)
    dims = {name: size / world for name, size in op.dims.items()}
    return op.model_copy(update={"reads": reads, "dims": dims, "flops": op.flops / world})


def _split_columns(op: Operator, layout: _Layout) -> Operator:
    k = op.dims["k"]
    reads = [_along(t, _column_axis(t, k), layout) if t.role == "weight" else t for t in op.reads]
    matrices = [(w, r) for w, r in zip(op.reads, reads, strict=True) if w.role == "weight" and len(w.shape) > 1]
    n = expr(0)
    for whole, part in matrices:
        n = n + part.shape[_column_axis(whole, k)]
    if sum(w.shape[_column_axis(w, k)].constant or 0 for w, _ in matrices) != op.dims["n"].constant:
        n = expr(layout.width(op.dims["n"].constant or 1))  # a slice of a larger weight
    writes = tuple(_along(t, _output_axis(t, op.dims["n"]), layout) for t in op.writes)
    dims = {**op.dims, "n": n}
    return op.model_copy(
        update={"dims": dims, "flops": matmul_flops(dims["m"], n, k), "reads": tuple(reads), "writes": writes}
    )


def _split_rows(op: Operator, layout: _Layout) -> Operator:
    k = op.dims["k"]
    share = expr(layout.width(k.constant or 1))
    reads = []
    for t in op.reads:
        if t.role == "weight":
            reads.append(t if len(t.shape) < 2 else _along(t, 1 - _column_axis(t, k), layout))
        else:
            reads.append(_along(t, len(t.shape) - 1, layout))
    flops = matmul_flops(op.dims["m"], op.dims["n"], share)
    return op.model_copy(update={"dims": {**op.dims, "k": share}, "flops": flops, "reads": tuple(reads)})


def _column_axis(weight: Tensor, k: Expr) -> int:
    """The axis of outputs: 0 for (n, k) matrices and biases, 1 for (k, n) ones."""
    return 0 if len(weight.shape) < 2 or weight.shape[1] == k else 1


def _output_axis(t: Tensor, n: Expr) -> int:
    """The axis of outputs in a result: the last, but for a weight on the left."""
    last = len(t.shape) - 1
    return next((a for a in range(last, 0, -1) if t.shape[a] == n), last)


def _split_experts(op: Operator, world: int) -> Operator:
    """Each expert's inner dimension is divided: every device holds a slice of every expert."""
    inner, hidden = ceil_div(op.dims["inner"], world), op.dims["hidden"]
    reads = []
    for t in op.reads:
        if t.role == "weight" and len(t.shape) > 1 and not (len(t.shape) == 2 and t.shape[1] == hidden):
            axis = 2 if len(t.shape) == 3 and t.shape[1] == hidden else 1
            t = _resized(t, axis, math.ceil((t.shape[axis].constant or 1) / world))
        reads.append(t)
    d = {**op.dims, "inner": inner}
    flops = experts_flops(d["tokens"], d["top_k"], d["hidden"], inner, bool(op.attrs["gated"]))
    return op.model_copy(update={"dims": d, "flops": flops, "reads": tuple(reads)})


def _share(op: Operator, layout: _Layout) -> Operator:
    """An operator between split matmuls: its heads, or its elements, are divided."""
    own = op.kind in ("scan", "convolution", "attention")  # their weights go by channel or head, norms' do not
    reads = tuple(layout.cut(t) if own or t.role != "weight" else t for t in op.reads)
    writes = tuple(layout.cut(t) for t in op.writes)
    share = op.model_copy(update={"reads": reads, "writes": writes})
    if op.kind == "attention":
        dims = op.dims | {k: expr(layout.share_heads(int(op.dims[k].constant or 1))) for k in ("heads", "kv_heads")}
        return share.model_copy(update={"dims": dims, "flops": attention_flops(**dims)})
    if op.kind == "kv_append":
        row = sum((t.shape[1].constant or 1) * (t.shape[3].constant or 1) for t in writes if t.role == "kv")
        return share.model_copy(update={"dims": op.dims | {"row_elements": expr(row)}})
    ratio = _elements(writes) / _elements(op.writes)
    dims = {k: v * ratio if k in ("elements", "batch") else v for k, v in op.dims.items()}
    return share.model_copy(update={"dims": dims, "flops": op.flops * ratio})


def _elements(tensors: tuple[Tensor, ...]) -> float:
    return sum(float((t.elements if t.touched is None else t.touched)(1, 1, 1)) for t in tensors if t.role != "state")


def _along(t: Tensor, axis: int, layout: _Layout) -> Tensor:
    size = t.shape[axis].constant if t.shape else None
    return t if size is None else _resized(t, axis, layout.width(size))


def _resized(t: Tensor, axis: int, part: float) -> Tensor:
    """``t`` with ``axis`` cut to ``part``; its touched elements shrink in proportion."""
    whole = t.shape[axis].constant
    shape = (*t.shape[:axis], expr(part), *t.shape[axis + 1 :])
    touched = t.touched if t.touched is None or not whole else t.touched * (part / whole)
    return t.model_copy(update={"shape": shape, "touched": touched})


def _depends_on_batch(t: Tensor) -> bool:
    size = t.elements if t.touched is None else t.touched
    return any(atom.name == "b" for monomial, _ in size.terms for atom, _ in monomial)


def _collective(op: Operator, collective: str, world: int) -> Operator:
    """The exchange after ``op``: of its whole result, in the format it was written."""
    return Operator(
        name=f"{op.name[:180]}.{collective}", kind="collective", format=op.format, deps=(op.name,),
        dims={"bytes": op.writes[0].stored_bytes, "world": expr(world)}, flops=expr(0), reads=(), writes=(),
        attrs={"collective": collective},
    )  # fmt: skip
