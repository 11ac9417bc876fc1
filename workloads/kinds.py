"""What an operator of each kind must hold, so that a trace that loads can also be costed.

Checked when an operator is made, from a capture or from a file: sizes it is known by, operands it
must have, and that no size is negative or without bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .expr import Expr

if TYPE_CHECKING:
    from .trace import Operator

COLLECTIVES = ("all_reduce", "all_gather", "send")
LOAD_MOST = 1e6
"""Largest attribute that says how uneven a load is (``techniques/load.py``)."""


@dataclass(frozen=True)
class Rule:
    """``dims`` must be there and ``optional`` may be; those in ``numbers`` are constants of at least 1."""

    dims: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_POINTWISE = Rule(("elements",))
_MATMUL = Rule(("m", "n", "k"), optional=("batch",))
RULES: Mapping[str, Rule] = {
    "matmul": _MATMUL,
    "router": _MATMUL,
    "attention": Rule(
        ("batch", "query", "kv", "heads", "kv_heads", "head_dim", "value_dim"),
        numbers=("heads", "kv_heads", "head_dim", "value_dim", "window", "latent_dim", "latent_value"),
        optional=("window", "latent_dim", "latent_value"),
    ),
    "experts": Rule(("tokens", "experts", "top_k", "hidden", "inner"), numbers=("experts", "top_k", "hidden", "inner")),
    "kv_append": Rule(("batch", "tokens", "row_elements"), numbers=("row_elements", "window"), optional=("window",)),
    "collective": Rule(("bytes", "world"), numbers=("world",)),
    "scan": Rule(("elements", "state"), numbers=("state",)),
    **dict.fromkeys(("norm", "rope", "activation", "elementwise", "embedding", "convolution", "copy"), _POINTWISE),
}
_PROBES = tuple(np.array(x, dtype=float) for x in zip((1, 1, 0), (1, 1, 4095), (3, 5, 7), (64, 2048, 0), strict=True))
_LARGEST = 1e30


def problem(op: Operator) -> str | None:
    """What is wrong with ``op``, in words, or ``None``."""
    rule = RULES[op.kind]
    if missing := [d for d in rule.dims if d not in op.dims]:
        return f"a {op.kind} needs the size {missing[0]}; its dims are {', '.join(rule.dims)}"
    if foreign := [d for d in op.dims if d not in rule.dims + rule.optional]:
        return f"a {op.kind} has no size {foreign[0][:40]!r}; accepted: {', '.join(rule.dims + rule.optional)}"
    for name in rule.numbers:
        if name in op.dims and not _is_count(op.dims[name]):
            return f"{name} = {_short(op.dims[name])}; accepted: a number of at least 1"
    return _operands(op) or _sizes(op)


def _operands(op: Operator) -> str | None:
    for w in op.weights:
        if any(s.constant is None for s in w.shape):
            return f"weight {w.name} has the shape ({', '.join(map(_short, w.shape))}); accepted: numbers"
    cached = [t for t in (*op.reads, *op.writes) if t.role == "kv"]
    if op.kind in ("attention", "kv_append") and any(len(t.shape) != 4 for t in cached):
        return "keys and values have four axes: batch, kv_heads, tokens, head_dim"
    if op.kind == "kv_append" and not any(t.role == "kv" for t in op.writes):
        return "a kv_append writes a tensor of role kv"
    if op.kind == "experts":
        if not isinstance(op.attrs.get("gated"), bool):
            return "experts need the attribute gated, true or false"
        if (op.dims["top_k"].constant or 0) > (op.dims["experts"].constant or 0):
            return f"top_k = {op.dims['top_k']} of {op.dims['experts']} experts"
    for name, least, most in (("imbalance", 0, LOAD_MOST), ("skew", 1, LOAD_MOST), ("longer", 0, _LARGEST)):
        value = op.attrs.get(name, least)
        if isinstance(value, bool | str) or not least <= value <= most:
            return f"the attribute {name} is {value!r}; accepted: a number from {least} to {most:g}"
    if op.kind == "collective":
        if op.attrs.get("collective") not in COLLECTIVES:
            return f"a collective needs the attribute collective; accepted: {', '.join(COLLECTIVES)}"
    elif not op.writes:
        return f"a {op.kind} writes at least one tensor"
    return None


def _sizes(op: Operator) -> str | None:
    """No size may be negative or beyond 1e30, at single-token, small and large points."""
    tensors = (*op.reads, *op.writes)
    sizes = [("flops", op.flops), *op.dims.items()]
    sizes += [(f"shape of {t.name}", s) for t in tensors for s in t.shape if s.constant is None or s.constant < 0]
    sizes += [(f"bytes of {t.name}", t.bytes) for t in tensors]
    sizes += [(f"elements of {t.name}", t.elements) for t in tensors if t.touched is not None]
    for what, size in sizes:
        with np.errstate(all="ignore"):
            values = size(*_PROBES)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= _LARGEST):
            worst = values.min() if values.min() < 0 else values.max()
            return f"{what} = {_short(size)} comes to {worst:g}; accepted: 0 to {_LARGEST:g} wherever b, q ≥ 1, c ≥ 0"
    return None


def _is_count(size: Expr) -> bool:
    value = size.constant
    return value is not None and value >= 1


def _short(size: Expr) -> str:
    text = str(size)
    return text if len(text) <= 60 else text[:59] + "…"
