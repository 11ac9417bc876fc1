"""One run of a module on the ``meta`` device, written down operator by operator.

A :class:`Recorder` is a ``TorchFunctionMode``: it sees every torch call before it is decomposed, so
``F.linear`` is one matmul and ``ops.attention`` one attention. Views cost nothing and only pass
their producer on. Identical layers are run once: a later layer with the same structure and the
same input shapes is replaced by empty outputs of the first one's shapes.

Sizes here are plain integers; :mod:`.capture` runs a module at several points and finds the
expressions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

FORMATS = {
    torch.float64: ("fp64", 64), torch.float32: ("fp32", 32), torch.float16: ("fp16", 16),
    torch.bfloat16: ("bf16", 16), torch.float8_e4m3fn: ("fp8", 8), torch.float8_e5m2: ("fp8", 8),
    torch.int64: ("int64", 64), torch.int32: ("int32", 32), torch.int16: ("int16", 16),
    torch.int8: ("int8", 8), torch.uint8: ("uint8", 8), torch.bool: ("bool", 8),
}  # fmt: skip
POINTWISE = frozenset({"norm", "rope", "activation", "elementwise"})

# Layout only: engines choose layouts so that these move no data.
_LAYOUT = {"reshape", "contiguous", "clone", "flatten", "view", "expand", "repeat_interleave", "unflatten", "detach"}
_MATMULS = {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"}
_ACTIVATIONS = {"silu", "gelu", "relu", "sigmoid", "tanh", "softplus", "relu_", "silu_", "mish", "hardswish", "leaky_relu"}
_CREATIONS = {"new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like", "full_like", "new_tensor"}
_REDUCTIONS = {"sum", "mean", "pow", "var", "amax", "max", "min", "norm", "logsumexp", "cumsum", "topk", "argmax", "any", "all"}
_INDEX_ATTRIBUTES = {"layer_idx", "layer_id", "layer_index", "layer_number", "idx"}


class CaptureError(Exception):
    """The module did something a trace cannot hold; the text names the operation or module."""


@dataclass(eq=False)
class Root:
    """What a tensor and all its views stand for: who made it, and which role it has."""

    name: str
    role: str
    producer: RawOp | None
    format: str
    bits: float
    rotary: bool = False


@dataclass
class RawTensor:
    root: Root
    shape: tuple[int, ...]
    key: tuple[Any, ...]
    touched: int | None = None


@dataclass(eq=False)
class RawOp:
    """An operator with integer sizes. ``flops`` is set for pointwise work; formulas give the others."""

    name: str
    kind: str
    scope: str
    format: str
    sizes: dict[str, int]
    reads: list[RawTensor]
    writes: list[RawTensor]
    flops: int = 0
    attrs: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass
class RawBlock:
    signature: object
    operators: list[RawOp]
    output: RawOp | None = None
    result: Any = None
    prefix: str = ""


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


class Recorder(TorchFunctionMode):
    """Use as ``with recorder.watch(model): model(...)``; then read ``blocks`` and ``order``."""

    def __init__(self, repeats: bool = True) -> None:
        super().__init__()
        self.blocks: list[RawBlock] = []
        self.order: list[int] = []
        self._share_layers = repeats
        self._by_signature: dict[object, int] = {}
        self._roots: dict[int, Root] = {}
        self._kept: list[Any] = []
        self._scopes: list[tuple[str, str]] = []
        self._names: dict[int, str] = {}
        self._current: RawBlock | None = None
        self._inside_layer = False

    # -- running ---------------------------------------------------------------------------
    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[Recorder]:
        """Follow ``model``: know its weights by name, its modules by path, its layers by structure."""
        for name, parameter in model.named_parameters():
            fmt, bits = FORMATS[parameter.dtype]
            self._remember(parameter, Root(name, "weight", None, fmt, bits))
        for name, buffer in model.named_buffers():
            fmt, bits = FORMATS[buffer.dtype]
            self._remember(buffer, Root(name, "index", None, fmt, bits))
        self._names = {id(m): n for n, m in model.named_modules()}
        layers = list(outer_layers(model))
        for layer in layers:
            layer.forward = self._layer_forward(layer, layer.forward)  # type: ignore[method-assign]
        enter = nn.modules.module.register_module_forward_pre_hook(self._enter)
        leave = nn.modules.module.register_module_forward_hook(self._leave, always_call=True)
        try:
            with torch.no_grad(), self:
                yield self
        finally:
            enter.remove()
            leave.remove()
            for layer in layers:
                del layer.forward
        self._close_stem()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._scopes.append((self._names.get(id(module), ""), type(module).__name__))

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if self._scopes:
            self._scopes.pop()

    def _layer_forward(self, layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._inside_layer:
                return forward(*args, **kwargs)
            self._close_stem()
            signature = (structure(layer), _shapes((args, kwargs)))
            known = self._by_signature.get(signature) if self._share_layers else None
            if known is not None:
                self.order.append(known)
                return self._like(self.blocks[known].result)
            block = self._current = RawBlock(signature, [], prefix=self._names[id(layer)])
            self._inside_layer = True
            try:
                block.result = forward(*args, **kwargs)
            finally:
                self._inside_layer, self._current = False, None
            block.output = self._producer_of(block.result) or (block.operators[-1] if block.operators else None)
            self._by_signature[signature] = len(self.blocks)
            self.order.append(len(self.blocks))
            self.blocks.append(block)
            block.result = self._like(block.result)
            return block.result

        return run

    def _like(self, result: Any) -> Any:
        """Fresh outputs of the same shapes, made by nobody inside the next block."""

        def fresh(t: Any) -> Any:
            if not isinstance(t, torch.Tensor):
                return t
            with torch._C.DisableTorchFunction():
                copy = torch.empty(t.shape, dtype=t.dtype, device=t.device)
            return self.adopt(copy, "hidden", "activation", None)

        return pytree.tree_map(fresh, result)

    def _producer_of(self, result: Any) -> RawOp | None:
        for t in pytree.tree_leaves(result):
            if isinstance(t, torch.Tensor) and (root := self._roots.get(id(t))) and root.producer:
                return root.producer
        return None

    def _close_stem(self) -> None:
        """End the run of operators outside any layer (embedding, final norm and head)."""
        block, self._current = self._current, None
        if block and block.operators:
            block.output = block.operators[-1]
            self.order.append(len(self.blocks))
            self.blocks.append(block)

    # -- writing down ----------------------------------------------------------------------
    @property
    def scope(self) -> str:
        return self._scopes[-1][0] if self._scopes else ""

    @property
    def scope_class(self) -> str:
        return self._scopes[-1][1] if self._scopes else ""

    def adopt(self, t: torch.Tensor, name: str, role: str, producer: RawOp | None, rotary: bool = False) -> torch.Tensor:
        """Make ``t`` a tensor of its own right."""
        fmt, bits = FORMATS.get(t.dtype, (str(t.dtype).removeprefix("torch."), t.element_size() * 8))
        self._remember(t, Root(name, role, producer, fmt, bits, rotary))
        return t

    def _remember(self, t: torch.Tensor, root: Root) -> None:
        self._roots[id(t)] = root
        self._kept.append(t)

    def root(self, t: torch.Tensor) -> Root:
        found = self._roots.get(id(t))
        if found is None:
            self.adopt(t, "input", "activation" if t.is_floating_point() else "index", None)
            found = self._roots[id(t)]
        return found

    def operand(self, t: torch.Tensor, touched: int | None = None) -> RawTensor:
        """``t`` as an operand: broadcast dimensions (stride 0) are read once."""
        strides = t.stride()
        shape = tuple(1 if s == 0 else n for n, s in zip(t.shape, strides, strict=True))
        return RawTensor(self.root(t), shape, (t.storage_offset(), tuple(t.shape), strides), touched)

    def record(
        self, kind: str, name: str, fmt: torch.dtype | str, sizes: dict[str, int], reads: list[torch.Tensor | RawTensor],
        writes: list[torch.Tensor], *, flops: int = 0, write_role: str = "activation", **attrs: str | int | float | bool,
    ) -> RawOp:  # fmt: skip
        """Append an operator and make it the producer of ``writes``."""
        if self._current is None:
            self._current = RawBlock(None, [])
        op_format = fmt if isinstance(fmt, str) else FORMATS[fmt][0]
        operands = [r if isinstance(r, RawTensor) else self.operand(r) for r in reads]
        op = RawOp(name, kind, self.scope, op_format, sizes, operands, [], flops, dict(attrs))
        rotary = kind == "rope"
        for t in writes:
            self.adopt(t, name, write_role, op, rotary)
            op.writes.append(self.operand(t))
        self._current.operators.append(op)
        return op

    def label(self, what: str) -> str:
        """Name of an operator: the module it runs in, and what it is."""
        return ".".join(p for p in (self.scope, what) if p)

    # -- torch calls -----------------------------------------------------------------------
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        kind = getattr(func, "kind", None)
        if kind is not None:
            bound = inspect.signature(func).bind(*args, **kwargs)
            bound.apply_defaults()
            return COMPOSITES[kind](self, func, dict(bound.arguments))
        if func is F.scaled_dot_product_attention:
            bound_sdpa = dict(zip(("q", "k", "v", "mask"), args, strict=False))
            bound_sdpa |= {{"query": "q", "key": "k", "value": "v", "attn_mask": "mask"}.get(k, k): v for k, v in kwargs.items()}
            return COMPOSITES["attention"](self, func, bound_sdpa)
        if func is F.embedding:
            return COMPOSITES["embedding"](self, func, {"ids": args[0], "table": args[1] if len(args) > 1 else kwargs["weight"]})
        try:
            out = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            where = self.scope or "the model"
            raise CaptureError(f"{where}: {name} needs tensor values, which a shape-only run does not have ({error})") from error
        inputs = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if not inputs or name == "__get__" and not isinstance(out, torch.Tensor):
            return out
        if func is F.linear:
            self._linear(args, kwargs, out)
        elif name in _MATMULS and not _is_rotary(self.scope_class):
            self._matmul(name, inputs, out)
        else:
            self._generic(name, inputs, out)
        return out

    def _linear(self, args: Any, kwargs: Any, out: torch.Tensor) -> None:
        x, weight, bias = (*args, *(kwargs[k] for k in ("weight", "bias") if k in kwargs), None, None)[:3]
        name = self.root(weight).name.removesuffix(".weight") if self.root(weight).role == "weight" else self.label("matmul")
        kind = "router" if _is_router(self.scope_class) else "matmul"
        sizes = {"m": x.numel() // max(x.shape[-1], 1), "n": weight.shape[0], "k": weight.shape[1]}
        reads: list[torch.Tensor | RawTensor] = [x, weight, *([bias] if bias is not None else [])]
        self.record(kind, name, x.dtype, sizes, reads, [out])

    def _matmul(self, name: str, inputs: list[torch.Tensor], out: torch.Tensor) -> None:
        weights = [t for t in inputs if self.root(t).role == "weight" and t.dim() >= 2]
        left, right = (inputs[-2], inputs[-1]) if len(inputs) >= 2 else (inputs[0], inputs[0])
        label = self.root(weights[0]).name.removesuffix(".weight") if weights else self.label("matmul")
        if name == "einsum":
            raise CaptureError(f"{self.scope or 'the model'}: einsum is not an operator a trace knows")
        k, n = left.shape[-1], out.shape[-1]
        sizes = {"m": out.numel() // max(n, 1), "n": n, "k": k}
        if not weights or weights[0].dim() > 2:
            rows = out.shape[-2] if out.dim() > 1 else 1
            sizes |= {"m": rows, "batch": out.numel() // max(n * rows, 1)}
        self.record("matmul", label, left.dtype, sizes, list(inputs), [out])

    def _generic(self, name: str, inputs: list[torch.Tensor], out: Any) -> None:
        outputs = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        if name in _CREATIONS:
            for t in outputs:
                self.adopt(t, name, "activation" if t.is_floating_point() else "index", None)
            return
        in_place = name.endswith("_") and not name.endswith("__") or name.startswith("__i") and name != "__invert__"
        storages = {_storage(t): t for t in inputs}
        fresh = []
        for t in outputs:
            source = storages.get(_storage(t))
            if name in _LAYOUT or (source is not None and not in_place and name != "__setitem__"):
                origin = self.root(source if source is not None else inputs[0])
                if id(t) not in self._roots:
                    self._remember(t, origin)
            else:
                fresh.append(t)
        if not fresh:
            return
        if all(not t.is_floating_point() for t in fresh) and all(self.root(t).role == "index" for t in inputs):
            for t in fresh:  # position arithmetic: a few integers, on no engine's path
                self.adopt(t, name, "index", None)
            return
        rotary = _is_rotary(self.scope_class) or any(self.root(t).rotary for t in inputs)
        kind = "elementwise"
        if "norm" in self.scope_class.lower() or name in ("layer_norm", "rms_norm", "softmax"):
            kind = "norm"
        elif rotary:
            kind = "rope"
        elif name in _ACTIVATIONS:
            kind = "activation"
        elements = inputs[0].numel() if name in _REDUCTIONS else sum(t.numel() for t in fresh)
        self.record(kind, self.label(kind), fresh[0].dtype, {"elements": elements}, list(inputs), fresh, flops=elements)


def outer_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Elements of every ``ModuleList`` that is not itself inside another list's element."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from outer_layers(child)


_structures: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()


def structure(module: nn.Module) -> object:
    """What two modules must share to run the same operators: classes, weights and plain settings."""
    if module in _structures:
        return _structures[module]
    parts: list[object] = []
    for path, m in module.named_modules():
        settings = tuple(
            (k, v)
            for k, v in sorted(vars(m).items())
            if not k.startswith("_") and k not in _INDEX_ATTRIBUTES and isinstance(v, int | float | str | bool | None)
        )
        weights = tuple((n, tuple(p.shape), p.dtype) for n, p in m.named_parameters(recurse=False))
        parts.append((path, type(m).__qualname__, settings, weights))
    _structures[module] = tuple(parts)
    return _structures[module]


def _shapes(tree: Any) -> object:
    """Shapes of the tensors and the flags among a call's arguments (integers are layer numbers)."""
    return tuple(
        tuple(x.shape) if isinstance(x, torch.Tensor) else x if isinstance(x, bool | str | None) else type(x).__name__
        for x in pytree.tree_leaves(tree)
    )


def _storage(t: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return int(t.untyped_storage()._cdata)


def _is_rotary(class_name: str) -> bool:
    return "rotary" in class_name.lower() or "rope" in class_name.lower()


def _is_router(class_name: str) -> bool:
    lower = class_name.lower()
    return "router" in lower or lower.endswith(("gate", "gating"))
