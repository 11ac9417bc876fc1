"""Which modules of a model are its layers, and which of them are alike.

Two layers are alike when they run the same operators on the same sizes: same classes, same weight
shapes, same whole-number, text and truth settings. Layer numbers and real-valued settings (dropout,
scales, depth-dependent constants) change no size and are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils import _pytree as pytree

_INDEX = re.compile(r"(^|_)(idx|id|index|layer_number|layer_num)$")
_structures: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()


def outer_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Elements of every ``ModuleList`` that is not itself inside another list's element."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from outer_layers(child)


def structure(module: nn.Module) -> object:
    """What two modules must share to run the same operators."""
    if module not in _structures:
        parts: list[object] = []
        for path, m in module.named_modules():
            settings = tuple((k, v) for k, v in sorted(vars(m).items()) if _is_setting(k, v))
            weights = tuple((n, tuple(p.shape), p.dtype) for n, p in m.named_parameters(recurse=False))
            parts.append((path, type(m).__qualname__, str(settings), weights))
        _structures[module] = tuple(parts)
    return _structures[module]


def _is_setting(name: str, value: object) -> bool:
    if name.startswith("_") or _INDEX.search(name):
        return False
    if isinstance(value, list | tuple):
        return all(_is_setting("", v) for v in value)
    return isinstance(value, int | str | bool | None)


def shared_parameters(layers: list[nn.Module]) -> set[int]:
    """``id`` of every parameter that more than one of ``layers`` holds."""
    count = Counter(i for layer in layers for i in {id(p) for p in layer.parameters()})
    return {i for i, n in count.items() if n > 1}


def shapes(tree: Any) -> object:
    """Shapes of the tensors and the flags among a call's arguments (integers are layer numbers)."""
    return tuple(
        tuple(x.shape) if isinstance(x, torch.Tensor) else x if isinstance(x, bool | str | None) else type(x).__name__
        for x in pytree.tree_leaves(tree)
    )
