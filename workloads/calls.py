"""How plain torch calls are written down: matmuls, views, and everything that works by element."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch.utils import _pytree as pytree

from .raw import CaptureError, RawTensor

if TYPE_CHECKING:
    from .recorder import Recorder

# Layout only: engines choose layouts so that these move no data.
_LAYOUT = frozenset({
    "reshape", "contiguous", "clone", "flatten", "view", "expand", "repeat", "repeat_interleave", "unflatten", "detach",
})  # fmt: skip
_MATMULS = frozenset({"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm"})
_ACTIVATIONS = frozenset({
    "silu", "gelu", "relu", "sigmoid", "tanh", "softplus", "relu_", "silu_", "mish", "hardswish", "leaky_relu", "elu",
})  # fmt: skip
_CREATIONS = frozenset({
    "new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like", "full_like",
    "new_tensor",
})  # fmt: skip
_GATHERS = frozenset({"__getitem__", "gather", "index_select", "take_along_dim"})
_CASTS = frozenset({"to", "float", "half", "bfloat16", "type", "type_as"})
_REDUCTIONS = frozenset({
    "sum", "mean", "pow", "var", "amax", "max", "min", "norm", "logsumexp", "cumsum", "topk", "argmax", "any", "all",
})  # fmt: skip

Handler = Callable[["Recorder", Callable[..., Any], dict[str, Any]], Any]
COMPOSITES: dict[str, Handler] = {}


def composite(*names: str) -> Callable[[Handler], Handler]:
    """Register how calls of the composite operators ``names`` (of ``models.ops``) are written down."""

    def register(handler: Handler) -> Handler:
        for name in names:
            if name in COMPOSITES:
                raise ValueError(f"two handlers for operator {name}")
            COMPOSITES[name] = handler
        return handler

    return register


def record_call(recorder: Recorder, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run ``func`` (or its handler) and write it down. Raises ``CaptureError`` where it needs values."""
    name = getattr(func, "__name__", "")
    kind = getattr(func, "kind", None)
    if kind is not None:
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        return COMPOSITES[kind](recorder, func, dict(bound.arguments))
    if func in _TORCH_COMPOSITES:
        handler, names = _TORCH_COMPOSITES[func]
        return COMPOSITES[handler](recorder, func, _by_name(names, args, kwargs))
    if name == "__contains__":  # ids looked through for padding: there is none
        return False
    try:
        out = func(*args, **kwargs)
    except (NotImplementedError, RuntimeError) as error:
        where = recorder.scope or "the model"
        raise CaptureError(f"{where}: {name} cannot be run on shapes alone ({error})") from error
    inputs = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    if not inputs or (name == "__get__" and not isinstance(out, torch.Tensor)):
        return out
    if func is F.linear:
        _linear(recorder, args, kwargs, out)
    elif func is torch.conv1d:
        _conv1d(recorder, _by_name(_CONV1D, args, kwargs), out)
    elif name == "einsum":
        _einsum(recorder, args, inputs, out)
    elif name in _MATMULS and not is_rotary(recorder.scope_class):
        _matmul(recorder, inputs, out)
    else:
        _generic(recorder, name, inputs, out)
    return out


_CONV1D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TORCH_COMPOSITES: dict[Any, tuple[str, dict[str, str]]] = {
    F.scaled_dot_product_attention: ("attention", {"query": "q", "key": "k", "value": "v", "attn_mask": "mask"}),
    F.embedding: ("embedding", {"input": "ids", "weight": "table"}),
    F.layer_norm: ("layer_norm", {"input": "x", "normalized_shape": "shape", "weight": "weight", "bias": "bias"}),
    F.rms_norm: ("rms_norm", {"input": "x", "normalized_shape": "shape", "weight": "weight"}),
}


def _by_name(names: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A torch call's arguments by name; ``names`` may translate them."""
    called = dict(zip(names, args, strict=False)) | kwargs
    return {names[k] if isinstance(names, dict) and k in names else k: v for k, v in called.items()}


# -- matmuls -----------------------------------------------------------------------------------
def _linear(recorder: Recorder, args: Any, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    call = _by_name(("input", "weight", "bias"), args, kwargs)
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    root = recorder.root(weight)
    name = root.name.removesuffix(".weight") if root.role == "weight" else recorder.label("matmul")
    kind = "router" if _is_router(recorder) else "matmul"
    sizes = {"m": x.numel() // max(x.shape[-1], 1), "n": weight.shape[0], "k": weight.shape[1]}
    reads: list[torch.Tensor | RawTensor] = [x, weight, *([bias] if bias is not None else [])]
    recorder.record(kind, name, x.dtype, sizes, reads, [out])


def _matmul(recorder: Recorder, inputs: list[torch.Tensor], out: torch.Tensor) -> None:
    left, right = (inputs[-2], inputs[-1]) if len(inputs) >= 2 else (inputs[0], inputs[0])
    k, n = left.shape[-1], out.shape[-1] if right.dim() > 1 else 1
    if recorder.root(left).role == "weight" and left.dim() == 2 and right.dim() > 1:  # W·X: its rows are the outputs
        label = recorder.root(left).name.removesuffix(".weight")
        sizes = {"m": out.numel() // left.shape[0], "n": left.shape[0], "k": k}
        recorder.record("matmul", label, right.dtype, sizes, list(inputs), [out])
        return
    _record_matmul(recorder, inputs, out, rows=out.shape[-2] if out.dim() > 1 else 1, n=n, k=k)


def _record_matmul(
    recorder: Recorder, inputs: list[torch.Tensor], out: torch.Tensor, rows: int, n: int, k: int
) -> None:
    """A product; without a two-dimensional weight it is a batch of them."""
    weights = [t for t in inputs if recorder.root(t).role == "weight" and t.dim() >= 2]
    label = recorder.root(weights[0]).name.removesuffix(".weight") if weights else recorder.label("matmul")
    sizes = {"m": out.numel() // max(n, 1), "n": n, "k": k}
    if not weights or weights[0].dim() > 2:
        sizes |= {"m": rows, "batch": out.numel() // max(n * rows, 1)}
    recorder.record("matmul", label, inputs[-1].dtype, sizes, list(inputs), [out])


def _einsum(recorder: Recorder, args: Any, inputs: list[torch.Tensor], out: torch.Tensor) -> None:
    """A contraction of two operands: indices of both and the result are a batch, of both alone the sum."""
    where = recorder.scope or "the model"
    equation = args[0].replace(" ", "") if args and isinstance(args[0], str) else ""
    terms, arrow, result = equation.partition("->")
    left, comma, right = terms.partition(",")
    plain = (left + right + result).isalpha()
    if not (arrow and comma and plain and len(inputs) == 2):
        raise CaptureError(f"{where}: einsum {equation or 'without a text'!r} is not an operator a trace knows")
    extent = dict(zip(left + right, (*inputs[0].shape, *inputs[1].shape), strict=True))

    def size(indices: set[str]) -> int:
        return math.prod(extent[i] for i in indices)

    batch, summed = set(left) & set(right) & set(result), (set(left) & set(right)) - set(result)
    if not summed:
        _generic(recorder, "einsum", inputs, out)
        return
    _record_matmul(
        recorder, inputs, out, rows=size(set(left) & set(result) - batch),
        n=size(set(right) & set(result) - batch), k=size(summed),
    )  # fmt: skip


def _conv1d(recorder: Recorder, call: dict[str, Any], out: torch.Tensor) -> None:
    """A convolution along the tokens. A causal one keeps the last inputs of each channel as its state."""
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    width, per_group = weight.shape[-1], weight.shape[1]
    outputs = out.shape[0] * out.shape[1] * min(out.shape[2], x.shape[2])  # what pads the end is cut off
    reads: list[torch.Tensor | RawTensor] = [x, weight, *([bias] if bias is not None else [])]
    name = recorder.root(weight).name.removesuffix(".weight")
    flops = 2 * width * per_group * outputs
    op = recorder.record("convolution", name, x.dtype, {"elements": outputs}, reads, [out], flops=flops)
    op.writes[0].touched = outputs
    if width > 1:
        recorder.keep_state(op, "conv_state", x.dtype, x.shape[0], x.shape[1], width)


# -- everything else ---------------------------------------------------------------------------
def _generic(recorder: Recorder, name: str, inputs: list[torch.Tensor], out: Any) -> None:
    outputs = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
    if name in _CREATIONS:
        for t in outputs:
            recorder.adopt(t, name, "activation" if t.is_floating_point() else "index", None)
        return
    if name == "__setitem__":
        outputs = inputs[:1]
    in_place = (
        (name.endswith("_") and not name.endswith("__"))
        or (name.startswith("__i") and name != "__invert__")
        or name == "__setitem__"
    )
    if name in _CASTS and recorder.root(inputs[0]).role == "kv":  # attention reads the cache as it is stored
        for t in outputs:
            recorder.alias(t, recorder.root(inputs[0]))
        return
    storages = {_storage(t): t for t in inputs}
    fresh = []
    for t in outputs:
        source = storages.get(_storage(t))
        if name in _LAYOUT or (source is not None and not in_place):
            recorder.alias(t, recorder.root(source if source is not None else inputs[0]))
        else:
            fresh.append(t)
    if not fresh:
        return
    if all(not t.is_floating_point() for t in fresh) and all(recorder.root(t).role == "index" for t in inputs):
        for t in fresh:  # position arithmetic: a few integers, on no engine's path
            recorder.adopt(t, name, "index", None)
        return
    rotary = is_rotary(recorder.scope_class) or any(recorder.root(t).rotary for t in inputs)
    kind = "elementwise"
    if "norm" in recorder.scope_class.lower() or name in ("layer_norm", "rms_norm", "softmax"):
        kind = "norm"
    elif rotary:
        kind = "rope"
    elif name in _ACTIVATIONS:
        kind = "activation"
    elements = inputs[0].numel() if name in _REDUCTIONS else sum(t.numel() for t in fresh)
    if name == "__setitem__":
        elements = min(elements, inputs[-1].numel())
    reads: list[torch.Tensor | RawTensor] = list(inputs)
    if name in _GATHERS and len(inputs) > 1:  # only what is looked up is read
        reads[0] = recorder.operand(inputs[0], touched=min(elements, inputs[0].numel()))
    recorder.record(kind, recorder.label(kind), fresh[0].dtype, {"elements": elements}, reads, fresh, flops=elements)


def _storage(t: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return int(t.untyped_storage()._cdata)


def is_rotary(class_name: str) -> bool:
    """Whether a module of this class turns queries and keys by their position."""
    return "rotary" in class_name.lower() or "rope" in class_name.lower()


def _is_router(recorder: Recorder) -> bool:
    """Whether the running module scores experts: by its class, or as the gate beside a module of experts."""
    lower = recorder.scope_class.lower()
    if "router" in lower or lower.endswith(("gate", "gating")):
        return True
    parent, _, own = recorder.scope.rpartition(".")
    return own in ("gate", "router") and hasattr(recorder.modules.get(parent), "experts")
