"""From a PyTorch module to a :class:`Trace`.

The module runs on the ``meta`` device (shapes only: no weights, no arithmetic) at the points of
:mod:`.interpolation`, which give every size as a polynomial in batch, query and context. A size of
any other form stops the capture with the operator's name: no trace is ever approximate.

Why not symbolic shapes (``ShapeEnv``)? They give the same sizes, but cost two seconds of imports,
and silently specialise on guards where module code branches on a size.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from pydantic import ValidationError
from torch import nn

from .. import __version__
from ..errors import InputError
from ..files import first_problem
from ..models.config import ModelConfig, load_config
from ..models.decoder import KVCache, build
from . import operators as _operators  # noqa: F401 - registers the composite operators
from .eager_attention import drop_unread, fold_attention
from .expr import Expr, expr, function
from .formulas import attended_tokens, attention_flops, experts_flops, matmul_flops
from .interpolation import Point, interpolate, points_for
from .pointwise import fuse_pointwise
from .raw import CaptureError, RawOp, RawTensor
from .recorder import Recorder
from .trace import Block, Kind, Operator, Role, Tensor, Trace

Run = Callable[[Recorder, Point], None]


@dataclass(frozen=True)
class Subject:
    """A module that can be run at a point, and what a trace says about it."""

    name: str
    format: str
    hidden: int
    vocabulary: int
    max_context: int | None
    module: nn.Module
    run: Run
    parameters: int
    origin: str
    digest: str


@dataclass(frozen=True)
class _Slot:
    """A fused run: operators with dependencies, per block, and the order of blocks."""

    blocks: list[tuple[list[tuple[RawOp, list[int]]], int, str]]
    order: list[int]


def capture(model: str | ModelConfig, *, share_layers: bool = True) -> Trace:
    """Capture one of our models: a preset's name, a preset file, or a configuration.

    Raises ``InputError`` for an unknown name or a broken preset. ``share_layers=False`` runs every
    layer instead of each distinct one once (same trace, slower; the tests compare the two).
    """
    config = model if isinstance(model, ModelConfig) else load_config(model)
    return capture_subject(our_subject(config), share_layers=share_layers)


def our_subject(config: ModelConfig) -> Subject:
    """A reference decoder on the ``meta`` device, with how to run it at a point."""
    module = build(config, device="meta")
    dtype = next(module.parameters()).dtype

    def run(recorder: Recorder, point: Point) -> None:
        batch, query, context = point
        cache = KVCache.empty(config, batch, context=context, device="meta", dtype=dtype)
        tokens = torch.empty(batch, query, dtype=torch.int64, device="meta")
        with recorder.watch(module):
            module(tokens, cache)

    return Subject(
        config.name, config.format, config.hidden, config.vocabulary, config.max_context, module, run,
        count_parameters(module), f"tokenfab.models, torch {torch.__version__} on meta", config.digest,
    )  # fmt: skip


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def capture_subject(subject: Subject, *, share_layers: bool = True) -> Trace:
    """Capture any subject. Raises ``InputError`` with the operator that cannot be expressed."""
    started = time.process_time()
    points = points_for(subject.max_context)
    runs = [_run(subject, point, share_layers) for point in points]
    first = runs[0]
    shape = _outline(first)
    for run, point in zip(runs, points, strict=True):
        if _outline(run) != shape:
            raise InputError(
                f"{subject.name}: runs different operators at batch, query, context {points[0]} and {point}; "
                "its structure depends on a size, which a trace cannot hold"
            )
    names = _block_names(first)
    blocks = []
    for i, (ops, output, prefix) in enumerate(first.blocks):
        versions = [[op for op, _ in run.blocks[i][0]] for run in runs]

        def size(values: list[int], what: str) -> Expr:
            return interpolate(values, points, f"{subject.name}: {what}")

        try:
            built = _build_block(names[i], versions, [deps for _, deps in ops], prefix, size)
        except ValidationError as error:
            raise InputError(f"{subject.name}: {first_problem(error).removeprefix('document: ')}") from error
        blocks.append(
            Block(name=names[i], repeat=first.order.count(i), operators=tuple(built), output=built[output].name)
        )
    order = tuple((names[i], len(list(group))) for i, group in itertools.groupby(first.order))
    trace = Trace(
        model=subject.name, format=subject.format, hidden=subject.hidden, vocabulary=subject.vocabulary,
        max_context=subject.max_context, blocks=tuple(blocks), order=order,
        provenance={
            "capture": subject.origin, "tokenfab": __version__, "config_sha256": subject.digest,
            "capture_s": round(time.process_time() - started, 3),
        },
    )  # fmt: skip
    if share_layers and trace.parameters != subject.parameters:
        raise InputError(
            f"{subject.name}: the captured operators hold {trace.parameters} of {subject.parameters} parameters; "
            f"{_unused(subject, first)} is not used by a pass over text, or in a way the capture does not see"
        )
    return trace


def _run(subject: Subject, point: Point, share_layers: bool) -> _Slot:
    recorder = Recorder(repeats=share_layers)
    try:
        subject.run(recorder, point)
    except CaptureError as error:
        raise InputError(f"{subject.name}: {error}") from error
    if not recorder.blocks:
        raise InputError(f"{subject.name}: no operator was seen; is it a module that computes?")
    for block in recorder.blocks:
        fold_attention(block)
    drop_unread(recorder.blocks)
    read_by = [{id(r.root) for op in block.operators for r in op.reads} for block in recorder.blocks]
    fused = []
    for i, block in enumerate(recorder.blocks):
        later = set().union(*(read for j, read in enumerate(read_by) if j != i))
        ops, output = fuse_pointwise(block, later)
        fused.append((ops, output, block.prefix))
    return _Slot(fused, recorder.order)


def _unused(subject: Subject, run: _Slot) -> str:
    """The first parameter that no operator reads, in its own layer or in one alike."""

    def alike(name: str) -> str:
        return re.sub(r"\d+", "*", name)

    read = {alike(t.root.name) for ops, _, _ in run.blocks for op, _ in ops for t in op.reads}
    return next((n for n, _ in subject.module.named_parameters() if alike(n) not in read), "one of them")


def _outline(run: _Slot) -> object:
    """Everything of a run but its sizes."""

    def of(op: RawOp) -> object:
        tensors = tuple((len(t.shape), t.root.role, t.touched is None) for t in (*op.reads, *op.writes))
        return op.name, op.kind, op.format, tuple(op.sizes), tuple(sorted(op.attrs.items())), len(op.reads), tensors

    return run.order, [([(of(op), deps) for op, deps in ops], out) for ops, out, _ in run.blocks]


def _block_names(run: _Slot) -> list[str]:
    """embed … layer … head; layer kinds are numbered when there are several."""
    layers = [i for i, (_, _, prefix) in enumerate(run.blocks) if prefix]
    names = []
    for i, (_, _, prefix) in enumerate(run.blocks):
        if prefix:
            names.append("layer" if len(layers) == 1 else f"layer{layers.index(i)}")
        elif layers and i < layers[0]:
            names.append("embed")
        elif layers and run.order.index(i) > max(run.order.index(j) for j in layers):
            names.append("head")
        else:
            names.append(f"stem{i}")
    return names


Size = Callable[[list[int], str], Expr]


def _build_block(
    block: str, versions: list[list[RawOp]], deps: list[list[int]], prefix: str, size: Size
) -> list[Operator]:
    """Operators of one block, from its runs at all points."""
    names = _unique([_relative(op.name, prefix) for op in versions[0]])
    built = []
    for i, raw in enumerate(versions[0]):
        at = [v[i] for v in versions]
        dims = {k: size([o.sizes[k] for o in at], f"{names[i]}: {k}") for k in raw.sizes}
        flops = _flops(raw, dims, size([o.flops for o in at], f"{names[i]}: flops"))
        reads = tuple(_tensor([o.reads[j] for o in at], size, raw, dims, block, prefix) for j in range(len(raw.reads)))
        writes = tuple(
            _tensor([o.writes[j] for o in at], size, raw, dims, block, prefix) for j in range(len(raw.writes))
        )
        built.append(
            Operator(
                name=names[i], kind=cast(Kind, raw.kind), format=raw.format, dims=dims, flops=flops, reads=reads,
                writes=writes, deps=tuple(names[d] for d in deps[i]), attrs=raw.attrs,
            )
        )  # fmt: skip
    return built


def _tensor(
    versions: list[RawTensor], size: Size, op: RawOp, dims: dict[str, Expr], block: str, prefix: str
) -> Tensor:  # fmt: skip
    """One operand; experts and windowed KV caches are touched in part."""
    first = versions[0]
    shape = tuple(size([v.shape[j] for v in versions], f"{op.name}: shape") for j in range(len(first.shape)))
    touched = None if first.touched is None else size([v.touched or 0 for v in versions], f"{op.name}: touched")
    root = first.root
    if op.kind == "experts" and root.role == "weight":
        per_expert = expr(1)
        for s in shape[1:]:
            per_expert = per_expert * s
        touched = function("distinct", dims["experts"], dims["top_k"], dims["tokens"]) * per_expert
    if op.kind == "attention" and root.role == "kv" and "window" in dims:
        rows = attended_tokens(dims["query"], dims["kv"], dims["window"])
        touched = shape[0] * shape[1] * rows * shape[3]
    own = root.name if root.shared else _relative(root.name, prefix)
    name = f"{block}.{own}" if own != root.name and root.role == "weight" else own
    return Tensor(
        name=name, shape=shape, role=cast(Role, root.role), format=root.format, bits=root.bits, touched=touched
    )


def _flops(op: RawOp, dims: dict[str, Expr], pointwise: Expr) -> Expr:
    if op.kind in ("matmul", "router"):
        return matmul_flops(dims["m"], dims["n"], dims["k"], dims.get("batch", 1))
    if op.kind == "attention":
        return attention_flops(**dims)
    if op.kind == "experts":
        return experts_flops(dims["tokens"], dims["top_k"], dims["hidden"], dims["inner"], bool(op.attrs["gated"]))
    return pointwise


def _relative(name: str, prefix: str) -> str:
    return name.removeprefix(prefix + ".") if prefix else name


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return out
