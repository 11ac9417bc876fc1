"""Parallelism: one device's share of a trace, with the collectives that sharing costs.

Tensor parallelism follows Megatron-LM (arXiv:1909.08053, section 3): a matmul whose input every device
holds is split by output columns, one whose input is already split is split by reduction rows and
followed by an all-reduce; what lies between works on its share. The rule needs only the graph, so
it serves any captured model. Pipeline parallelism divides the layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from .expr import Expr, ceil_div, expr
from .formulas import attention_flops, experts_flops, matmul_flops
from .trace import Block, Operator, Tensor, Trace


@dataclass(frozen=True)
class Parallel:
    """Devices = tp × pp × dp: tensor, pipeline and data (replica) parallel degrees."""

    tp: int = 1
    pp: int = 1
    dp: int = 1

    @property
    def devices(self) -> int:
        return self.tp * self.pp * self.dp

    def __str__(self) -> str:
        return ",".join(f"{k}={v}" for k, v in (("tp", self.tp), ("pp", self.pp), ("dp", self.dp)) if v > 1) or "one device"


ONE_DEVICE = Parallel()


def parse_parallel(text: str | None, count: int | None) -> Parallel:
    """``tp=4,pp=2`` and a device count as :class:`Parallel`.

    Without ``text``, ``count`` devices share every layer (tp = count). Without ``count`` it is the
    product. A count that is a multiple of tp × pp adds replicas. Raises ``InputError`` otherwise.
    """
    degrees = {"tp": 1, "pp": 1, "dp": 1}
    for item in filter(None, (text or "").split(",")):
        key, _, value = item.partition("=")
        if key not in degrees or not value.isdecimal() or not 1 <= int(value) <= 4096:
            raise InputError(f"--parallel: {item!r}; accepted: tp=N, pp=N, dp=N with N from 1 to 4096, joined by commas")
        degrees[key] = int(value)
    if count is not None and not 1 <= count <= 65536:
        raise InputError(f"--count: {count}; accepted: 1 to 65536")
    if not text:
        return Parallel(tp=count or 1)
    product = degrees["tp"] * degrees["pp"] * degrees["dp"]
    if count is not None and count % product:
        raise InputError(f"--count {count} is not a multiple of {product} (= {text})")
    if count is not None:
        degrees["dp"] *= count // product
    return Parallel(**degrees)


def tensor_parallel(trace: Trace, world: int) -> Trace:
    """What each of ``world`` devices computes, with all-reduces; ``trace`` itself when ``world`` is 1.

    Raises ``InputError`` when the model has fewer query heads than devices.
    """
    if world == 1:
        return trace
    blocks = tuple(_share_block(b, world, trace.model) for b in trace.blocks)
    return trace.model_copy(update={"blocks": blocks, "applied": (*trace.applied, f"tensor-parallel:world={world}")})


def _share_block(block: Block, world: int, model: str) -> Block:
    """Walk the graph once; ``split`` holds the operators whose outputs are divided over devices."""
    split: set[str] = set()
    renamed: dict[str, str] = {}
    operators: list[Operator] = []
    for op in block.operators:
        sharded_input = any(d in split for d in op.deps)
        deps = tuple(renamed.get(d, d) for d in op.deps)
        op = op.model_copy(update={"deps": deps})
        if op.kind == "matmul" and op.weights and "batch" not in op.dims:
            if sharded_input:
                operators.append(_split_rows(op, world))
                operators.append(_collective(op, "all_reduce", world))
                renamed[op.name] = operators[-1].name
            else:
                operators.append(_split_columns(op, world))
                split.add(op.name)
        elif op.kind == "experts":
            operators.append(_split_experts(op, world))
            operators.append(_collective(op, "all_reduce", world))
            renamed[op.name] = operators[-1].name
        elif sharded_input:
            operators.append(_share(op, world, model))
            split.add(op.name)
        else:
            operators.append(op)
    output = block.output
    if output in split:  # the head: every device needs the whole row of logits to sample from
        last = next(op for op in block.operators if op.name == output)
        operators.append(_collective(last, "all_gather", world))
        output = operators[-1].name
    return block.model_copy(update={"operators": tuple(operators), "output": renamed.get(output, output)})


def _split_columns(op: Operator, world: int) -> Operator:
    n = ceil_div(op.dims["n"], world)
    weights = {w.name for w in op.weights}
    reads = tuple(_cut(t, 0, world) if t.name in weights else t for t in op.reads)
    dims = {**op.dims, "n": n}
    writes = tuple(_cut(t, len(t.shape) - 1, world) for t in op.writes)
    return op.model_copy(update={"dims": dims, "flops": matmul_flops(dims["m"], n, dims["k"]), "reads": reads, "writes": writes})


def _split_rows(op: Operator, world: int) -> Operator:
    k = ceil_div(op.dims["k"], world)
    reads = []
    for t in op.reads:
        rank = len(t.shape)
        whole = t.role == "weight" and rank < 2
        reads.append(t if whole else _cut(t, rank - 1, world))
    dims = {**op.dims, "k": k}
    return op.model_copy(update={"dims": dims, "flops": matmul_flops(dims["m"], dims["n"], k), "reads": tuple(reads)})


def _split_experts(op: Operator, world: int) -> Operator:
    """Each expert's inner dimension is divided: every device holds a slice of every expert."""
    inner = ceil_div(op.dims["inner"], world)
    reads = []
    for t in op.reads:
        if t.role == "weight" and len(t.shape) == 3:
            axis = 2 if t.shape[2] == op.dims["inner"] else 1
            t = _cut(t, axis, world)
        reads.append(t)
    d = {**op.dims, "inner": inner}
    flops = experts_flops(d["tokens"], d["top_k"], d["hidden"], inner, bool(op.attrs["gated"]))
    return op.model_copy(update={"dims": d, "flops": flops, "reads": tuple(reads)})


def _share(op: Operator, world: int, model: str) -> Operator:
    """An operator between split matmuls: its heads, or its elements, are divided."""
    if op.kind == "attention":
        heads = op.dims["heads"].constant or 1
        if heads < world:
            raise InputError(f"{model}: {heads:g} attention heads cannot be divided over {world} devices")
        return _share_attention(op, world)
    if op.kind == "kv_append":
        row = op.dims["row_elements"]
        heads = op.writes[0].shape[1]
        share = ceil_div(heads, world)
        ratio = (share.constant or 1) / (heads.constant or 1)
        reads = tuple(_cut(t, 1, world) for t in op.reads)
        writes = tuple(_cut(t, 1, world) for t in op.writes)
        return op.model_copy(update={"dims": {**op.dims, "row_elements": row * ratio}, "reads": reads, "writes": writes})
    dims = {k: v / world for k, v in op.dims.items()}
    reads = tuple(t if t.role == "weight" else _thin(t, world) for t in op.reads)
    writes = tuple(_thin(t, world) for t in op.writes)
    return op.model_copy(update={"dims": dims, "flops": op.flops / world, "reads": reads, "writes": writes})


def _share_attention(op: Operator, world: int) -> Operator:
    d = dict(op.dims)
    d["heads"], d["kv_heads"] = ceil_div(d["heads"], world), ceil_div(d["kv_heads"], world)
    flops = attention_flops(d["batch"], d["heads"], d["query"], d["kv"], d["head_dim"], d["value_dim"], d.get("window"))
    reads = tuple(_cut(t, 1, world) for t in op.reads)
    writes = tuple(_cut(t, 1, world) if len(t.shape) == 4 else _thin(t, world) for t in op.writes)
    return op.model_copy(update={"dims": d, "flops": flops, "reads": reads, "writes": writes})


def _cut(t: Tensor, axis: int, world: int) -> Tensor:
    """``t`` with ``axis`` divided (rounded up); its touched elements shrink in proportion."""
    size = t.shape[axis]
    part = ceil_div(size, world)
    shape = (*t.shape[:axis], part, *t.shape[axis + 1 :])
    touched = t.touched
    if touched is not None:
        whole = size.constant
        touched = touched * ((part.constant or 1) / whole) if whole else touched / world
    return t.model_copy(update={"shape": shape, "touched": touched})


def _thin(t: Tensor, world: int) -> Tensor:
    """``t`` with its elements divided, along whichever axis holds the heads or channels."""
    for axis in range(len(t.shape) - 1, -1, -1):
        size = t.shape[axis].constant
        if size and size % world == 0 and size > 1:
            return _cut(t, axis, world)
    return t.model_copy(update={"touched": (t.elements if t.touched is None else t.touched) / world})


def _collective(op: Operator, collective: str, world: int) -> Operator:
    """The exchange after ``op``: of its whole result, in the format it was written."""
    result = op.writes[0]
    size: Expr = result.stored_bytes
    return Operator(
        name=f"{op.name}.{collective}", kind="collective", format=op.format, deps=(op.name,),
        dims={"bytes": size, "world": expr(world)}, flops=expr(0), reads=(), writes=(), attrs={"collective": collective},
    )  # fmt: skip


def stage_blocks(trace: Trace, stages: int) -> list[dict[str, int]]:
    """Layers per pipeline stage: how often each block runs in each stage, stages as even as layers allow.

    Raises ``InputError`` when there are fewer layers than stages.
    """
    sequence = [name for name, times in trace.order for _ in range(times)]
    repeated = {b.name for b in trace.blocks if b.repeat > 1} or {b.name for b in trace.blocks}
    layers = [i for i, name in enumerate(sequence) if name in repeated]
    if len(layers) < stages:
        raise InputError(f"{trace.model}: {len(layers)} layers cannot be divided over {stages} pipeline stages")
    shares: list[dict[str, int]] = [{} for _ in range(stages)]
    for i, name in enumerate(sequence):
        before = sum(1 for j in layers if j < i) if name not in repeated else layers.index(i)
        stage = min(before * stages // len(layers), stages - 1)
        shares[stage][name] = shares[stage].get(name, 0) + 1
    return shares


