"""One run of a module on the ``meta`` device, written down operator by operator.

A :class:`Recorder` is a ``TorchFunctionMode``: it sees every torch call before it is decomposed, so
``F.linear`` is one matmul and ``ops.attention`` one attention. Views cost nothing and only pass
their producer on. Identical layers are run once: a later layer with the same structure and the
same input shapes is replaced by empty outputs of the first one's shapes.

Sizes here are plain integers; :mod:`.capture` runs a module at several points and finds the
expressions. How plain torch calls are written down is in :mod:`.calls`, composite ones in
:mod:`.operators`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .calls import record_call
from .layers import outer_layers, shapes, shared_parameters, structure
from .raw import CaptureError, RawBlock, RawOp, RawTensor, Root, format_of


class Recorder(TorchFunctionMode):
    """Use as ``with recorder.watch(model): model(...)``; then read ``blocks`` and ``order``."""

    def __init__(self, repeats: bool = True) -> None:
        super().__init__()
        self.blocks: list[RawBlock] = []
        self.order: list[int] = []
        self.modules: dict[str, nn.Module] = {}
        self._share_layers = repeats
        self._by_signature: dict[object, int] = {}
        self._roots: dict[int, Root] = {}
        self._kept: list[Any] = []
        self._scopes: list[tuple[str, str]] = []
        self._names: dict[int, str] = {}
        self._ran: set[int] = set()
        self._current: RawBlock | None = None
        self._result: Any = None
        self._inside_layer = False

    # -- running ---------------------------------------------------------------------------
    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[Recorder]:
        """Follow ``model``: know its weights by name, its modules by path, its layers by structure."""
        layers = list(outer_layers(model))
        shared = shared_parameters(layers)
        for name, parameter in model.named_parameters():
            fmt, bits = format_of(parameter.dtype)
            root = Root(name, "weight", None, fmt, bits, shared=id(parameter) in shared, whole=tuple(parameter.shape))
            self._remember(parameter, root)
        for name, buffer in model.named_buffers():
            fmt, bits = format_of(buffer.dtype)
            self._remember(buffer, Root(name, "index", None, fmt, bits))
        self.modules = dict(model.named_modules())
        self._names = {id(m): n for n, m in self.modules.items()}
        for layer in layers:
            alone = any(id(p) in shared for p in layer.parameters())
            layer.forward = self._layer_forward(layer, layer.forward, alone)
        enter = nn.modules.module.register_module_forward_pre_hook(self._enter)
        leave = nn.modules.module.register_module_forward_hook(self._leave, always_call=True)
        try:
            with torch.no_grad(), self:
                yield self
        finally:
            enter.remove()
            leave.remove()
            for layer in layers:
                layer.__dict__.pop("forward", None)
        self._close_stem(self._result)

    def _enter(self, module: nn.Module, args: Any) -> None:
        name = self._names.get(id(module), self.scope)  # made on the spot: part of what runs it
        self._scopes.append((name, type(module).__name__))

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if self._scopes:
            self._scopes.pop()
        if not self._scopes:
            self._result = result

    def _layer_forward(self, layer: nn.Module, forward: Callable[..., Any], alone: bool) -> Callable[..., Any]:
        """``alone``: the layer shares weights with another, so it is never another's repeat."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._inside_layer:
                return forward(*args, **kwargs)
            if id(layer) in self._ran:
                name = self._names[id(layer)]
                raise CaptureError(
                    f"{name}: runs more than once in a pass; looped layers are not something a trace holds"
                )
            self._ran.add(id(layer))
            self._close_stem((args, kwargs))
            signature = (structure(layer), shapes((args, kwargs)))
            known = self._by_signature.get(signature) if self._share_layers and not alone else None
            if known is not None:
                self.order.append(known)
                return self._like(self.blocks[known].result)
            block = self._current = RawBlock([], prefix=self._names[id(layer)])
            self._inside_layer = True
            try:
                block.result = forward(*args, **kwargs)
            finally:
                self._inside_layer, self._current = False, None
            block.output = self._producer_of(block.result, block)
            if not alone:
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

    def _producer_of(self, result: Any, block: RawBlock) -> RawOp | None:
        """The operator of ``block`` that made ``result``, or the last one."""
        for t in pytree.tree_leaves(result):
            if isinstance(t, torch.Tensor) and (root := self._roots.get(id(t))) and root.producer in block.operators:
                return root.producer
        return block.operators[-1] if block.operators else None

    def _close_stem(self, result: Any) -> None:
        """End the run of operators outside any layer (embedding, final norm and head) that led to ``result``."""
        block, self._current = self._current, None
        if block and block.operators:
            block.output = self._producer_of(result, block)
            self.order.append(len(self.blocks))
            self.blocks.append(block)

    # -- writing down ----------------------------------------------------------------------
    @property
    def scope(self) -> str:
        """Path of the module that runs now."""
        return self._scopes[-1][0] if self._scopes else ""

    @property
    def scope_class(self) -> str:
        """Name of its class."""
        return self._scopes[-1][1] if self._scopes else ""

    def adopt(
        self, t: torch.Tensor, name: str, role: str, producer: RawOp | None, rotary: bool = False
    ) -> torch.Tensor:
        """Make ``t`` a tensor of its own right."""
        fmt, bits = format_of(t.dtype)
        self._remember(t, Root(name, role, producer, fmt, bits, rotary))
        return t

    def alias(self, t: torch.Tensor, origin: Root) -> None:
        """Make ``t`` a view of what ``origin`` stands for, unless it is something already."""
        if id(t) not in self._roots:
            self._remember(t, origin)

    def stand_in(self, origin: Root, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """A tensor of another shape that stands for what ``origin`` does."""
        with torch._C.DisableTorchFunction():
            t = torch.empty(shape, dtype=like.dtype, device=like.device)
        self._remember(t, origin)
        return t

    def _remember(self, t: torch.Tensor, root: Root) -> None:
        self._roots[id(t)] = root
        self._kept.append(t)

    def root(self, t: torch.Tensor) -> Root:
        """What ``t`` stands for; a tensor nobody was seen to make is an input."""
        found = self._roots.get(id(t))
        if found is None:
            self.adopt(t, "input", "activation" if t.is_floating_point() else "index", None)
            found = self._roots[id(t)]
        return found

    def operand(self, t: torch.Tensor, touched: int | None = None) -> RawTensor:
        """``t`` as an operand: broadcast dimensions (stride 0) are read once, of a weight what is sliced out."""
        root, strides = self.root(t), t.stride()
        shape = tuple(1 if s == 0 else n for n, s in zip(t.shape, strides, strict=True))
        key = (t.storage_offset(), tuple(t.shape), strides)
        if root.whole is not None and math.prod(shape) < math.prod(root.whole):
            shape, touched = root.whole, math.prod(shape) if touched is None else touched
        return RawTensor(root, shape, key, touched)

    def record(
        self, kind: str, name: str, fmt: torch.dtype | str, sizes: dict[str, int],
        reads: list[torch.Tensor | RawTensor], writes: list[torch.Tensor], *, flops: int = 0,
        write_role: str = "activation", **attrs: str | int | float | bool,
    ) -> RawOp:  # fmt: skip
        """Append an operator and make it the producer of ``writes``."""
        if self._current is None:
            self._current = RawBlock([])
        op_format = fmt if isinstance(fmt, str) else format_of(fmt)[0]
        operands = [r if isinstance(r, RawTensor) else self.operand(r) for r in reads]
        op = RawOp(name, kind, self.scope, op_format, sizes, operands, [], flops, dict(attrs))
        rotary = kind == "rope"
        for t in writes:
            self.adopt(t, name, write_role, op, rotary)
            op.writes.append(self.operand(t))
        self._current.operators.append(op)
        return op

    def keep_state(self, op: RawOp, name: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """Let ``op`` read and rewrite a recurrent state of ``shape``; returns what it wrote."""
        for operands, producer in ((op.reads, None), (op.writes, op)):
            with torch._C.DisableTorchFunction():
                state = torch.empty(shape, dtype=dtype, device="meta")
            operands.append(self.operand(self.adopt(state, name, "state", producer)))
        return state

    def label(self, what: str) -> str:
        """Name of an operator: the module it runs in, and what it is."""
        return ".".join(p for p in (self.scope, what) if p)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return record_call(self, func, args, kwargs or {})
