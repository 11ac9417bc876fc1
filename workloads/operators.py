"""How each composite operator of ``models.ops`` (and its counterpart elsewhere) is written down.

A handler gets the call's arguments by name, returns the outputs (``meta`` tensors) and records one
operator with integer sizes. Supplying the outputs keeps capture away from masks and expert loops,
whose shapes depend on tensor values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .calls import composite
from .raw import RawTensor
from .recorder import Recorder

Call = dict[str, Any]


def _empty(like: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


@composite("embedding")
def record_embedding(recorder: Recorder, func: Callable[..., Any], call: Call) -> torch.Tensor:
    """Rows of a table: only the rows looked up are read."""
    ids, table = call["ids"], call["table"]
    out = _empty(table, *ids.shape, table.shape[1])
    name = recorder.root(table).name.removesuffix(".weight")
    rows = recorder.operand(table, touched=out.numel())
    recorder.record("embedding", name, table.dtype, {"elements": out.numel()}, [ids, rows], [out])
    return out


@composite("rms_norm", "layer_norm")
def record_norm(recorder: Recorder, func: Callable[..., Any], call: Call) -> torch.Tensor:
    """RMS or layer norm: about 4 and 7 operations per element (square, sum, scale, weight; mean, bias)."""
    x = call["x"]
    out = torch.empty_like(x)
    per_element = 7 if call.get("bias") is not None else 4
    reads = [t for t in (x, call.get("weight"), call.get("bias")) if t is not None]
    name = recorder.label("norm")
    recorder.record("norm", name, x.dtype, {"elements": x.numel()}, reads, [out], flops=per_element * x.numel())
    return out


@composite("rope")
def record_rope(recorder: Recorder, func: Callable[..., Any], call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of queries and keys in one pass: 3 operations per element."""
    q, k = call["q"], call["k"]
    out = torch.empty_like(q), torch.empty_like(k)
    n = q.numel() + k.numel()
    recorder.record("rope", recorder.label("rope"), q.dtype, {"elements": n}, [q, k], list(out), flops=3 * n)
    return out


@composite("kv_append")
def record_kv_append(recorder: Recorder, func: Callable[..., Any], call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """New K and V rows go to the cache; what is cached already stays where it is."""
    past_k, _past_v, k, v = call["past_k"], call["past_v"], call["k"], call["v"]
    batch, heads, query, _ = k.shape
    past = 0 if past_k is None else past_k.shape[2]
    out = _empty(k, batch, heads, past + query, k.shape[3]), _empty(v, batch, v.shape[1], past + query, v.shape[3])
    row = heads * k.shape[3] + v.shape[1] * v.shape[3]
    window = {"window": int(call["window"])} if call.get("window") else {}
    sizes = {"batch": batch, "tokens": query, "row_elements": row} | window
    op = recorder.record("kv_append", recorder.label("kv_append"), k.dtype, sizes, [k, v], list(out), write_role="kv")
    for t, new in zip(op.writes, (k, v), strict=True):
        t.touched = new.numel()
    return out


@composite("attention")
def record_attention(recorder: Recorder, func: Callable[..., Any], call: Call) -> torch.Tensor:
    """Causal attention over the cache; the score matrix stays on chip."""
    q, k, v = call["q"], call["k"], call["v"]
    batch, heads, query, head_dim = q.shape
    kv, value_dim = k.shape[2], v.shape[3]
    out = _empty(q, batch, heads, query, value_dim)
    window = {"window": int(call["window"])} if call.get("window") else {}
    sizes = {
        "batch": batch, "query": query, "kv": kv, "heads": heads, "kv_heads": k.shape[1],
        "head_dim": head_dim, "value_dim": value_dim,
    } | window  # fmt: skip
    recorder.record("attention", recorder.label("attention"), q.dtype, sizes, [q, k, v], [out])
    appended = recorder.root(k).producer
    if window and appended is not None and appended.kind == "kv_append":
        appended.sizes |= window  # a cache needs to hold no more than the window
    return out


@composite("activation", "gated_activation")
def record_activation(recorder: Recorder, func: Callable[..., Any], call: Call) -> torch.Tensor:
    """Activation function, gated (halves the width) or not: about 5 operations per output element."""
    gated = "gate_up" in call
    x = call["gate_up"] if gated else call["x"]
    out = _empty(x, *x.shape[:-1], x.shape[-1] // 2 if gated else x.shape[-1])
    n = out.numel()
    recorder.record("activation", recorder.label("activation"), x.dtype, {"elements": n}, [x], [out], flops=5 * n)
    return out


@composite("add")
def record_elementwise(recorder: Recorder, func: Callable[..., Any], call: Call) -> torch.Tensor:
    """Addition of a residual: one operation per element."""
    x, y = call["x"], call["y"]
    out = torch.empty_like(x)
    name = recorder.label("add")
    recorder.record("elementwise", name, x.dtype, {"elements": x.numel()}, [x, y], [out], flops=x.numel())
    return out


@composite("route")
def record_router(recorder: Recorder, func: Callable[..., Any], call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert scores and the choice of ``top_k``: a thin matmul; the choice itself is a few comparisons."""
    x, weight, top_k = call["x"], call["weight"], int(call["top_k"])
    out = _empty(x, x.shape[0], top_k, dtype=torch.int64), _empty(x, x.shape[0], top_k)
    sizes = {"m": x.shape[0], "n": weight.shape[0], "k": weight.shape[1]}
    name = recorder.root(weight).name.removesuffix(".weight")
    recorder.record("router", name, x.dtype, sizes, [x, weight], list(out), top_k=top_k)
    return out


@composite("experts")
def record_experts(recorder: Recorder, func: Callable[..., Any], call: Call) -> torch.Tensor:
    """Routed feed-forward experts, as one grouped operator over the experts that are touched."""
    w_in, w_out = call["w_in"], call["w_out"]
    inner = w_out.shape[2]
    operands = [call["x"], call["indices"], call["weights"]]
    return record_expert_group(recorder, operands, [w_in, w_out], inner, gated=w_in.shape[1] == 2 * inner)


def record_expert_group(
    recorder: Recorder, operands: list[torch.Tensor], weights: Sequence[torch.Tensor], inner: int, gated: bool,
    top_k: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """The record shared by our experts and ``transformers``' (weights stacked over experts first).

    ``operands``: tokens, then the chosen indices (…, top_k), then whatever else is read.
    """
    x, indices = operands[0], operands[1]
    out = torch.empty_like(x)
    sizes = {
        "tokens": x.numel() // x.shape[-1], "experts": weights[0].shape[0],
        "top_k": indices.shape[-1] if top_k is None else top_k, "hidden": x.shape[-1], "inner": inner,
    }  # fmt: skip
    name = recorder.label("") or "experts"
    recorder.record("experts", name, x.dtype, sizes, [*operands, *weights], [out], gated=gated)
    return out


@composite("bit_linear")
def record_bit_linear(recorder: Recorder, func: Callable[..., Any], call: Call) -> torch.Tensor:
    """Ternary weights against INT8 activations (BitNet b1.58): weights are stored at 2 bits."""
    x, weight = call["x"], call["weight"]
    out = _empty(x, *x.shape[:-1], weight.shape[0])
    root = recorder.root(weight)
    root.format, root.bits = "ternary", 2
    sizes = {"m": x.numel() // x.shape[-1], "n": weight.shape[0], "k": weight.shape[1]}
    reads: list[torch.Tensor | RawTensor] = [x, weight]
    recorder.record("matmul", root.name.removesuffix(".weight"), "int8", sizes, reads, [out])
    return out
