"""In which formats a model's matrices may be stored, and what each costs in quality.

A format is a name of :mod:`tokenfab.kernels.formats`; an operator in it is what the technique ``weight-only`` makes of
it, the output head included. Quality is told in two ways, both over the matrices that some format of the list narrows:

    bits = Σ elements · bits / Σ elements                                                       more is better
    loss = Σ sensitivity · elements · relative squared error / Σ sensitivity · elements         less is better

The error is that of the format on normal numbers, 0 for a matrix left as the model has it. Without measured
sensitivities, all 1, it sees widths and sizes, not the model's weights: a proxy to weigh formats by, not a perplexity.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, unknown_name
from ..kernels.formats import load_format
from ..workloads.techniques import apply_techniques
from ..workloads.trace import Operator, Trace

SAMPLE = (64, 4096)
"""Normal numbers on which a format's error is taken (rows, columns), and the seed below."""
SEED = 1
MOST_FORMATS = 8


@dataclass(frozen=True)
class Variant:
    """An operator in one format. ``loss`` and ``narrowing`` (the widest format's bits less its own) are one layer's
    part of the model's means."""

    name: str
    operator: Operator
    loss: float
    narrowing: float


@dataclass(frozen=True)
class Menu:
    """``variants``: (block, operator) → what it may be, one per distinct operator, for those that some format narrows.
    ``widest``: the most bits that any of them has."""

    names: tuple[str, ...]
    variants: Mapping[tuple[str, str], tuple[Variant, ...]]
    widest: float


@cache
def gaussian_error(name: str) -> tuple[float, float]:
    """Bits per element of a format, and its relative squared error on normal numbers. Raises ``InputError``."""
    weights = np.random.default_rng(SEED).standard_normal(SAMPLE)
    format_ = load_format(name)
    restored = format_.dequantise(format_.quantise(weights))
    return float(format_.bits_per_weight(SAMPLE)), float(((restored - weights) ** 2).sum() / (weights**2).sum())


def menu(trace: Trace, names: Sequence[str], sensitivity: Mapping[str, float] | None = None) -> Menu:
    """What every matrix of ``trace`` may be stored in. ``sensitivity``: BLOCK.OPERATOR → weight of its error (else 1).

    Raises ``InputError`` for unknown, repeated or too many names, and where no format narrows anything.
    """
    if not names or len(set(names)) < len(names) or len(names) > MOST_FORMATS:
        raise InputError(f"--formats: accepted: 1 to {MOST_FORMATS} different names, as fp16,int8,int4-g128")
    stored = {name: apply_techniques(trace, [f"weight-only:format={name},head=1"]) for name in names}
    given = {(b.name, op.name): (b.repeat, op) for b in trace.blocks for op in b.operators}
    changed = {name: {(b.name, op.name): op for b in t.blocks for op in b.operators} for name, t in stored.items()}
    narrowed = [key for key, (_, op) in given.items() if any(made[key] != op for made in changed.values())]
    if not narrowed:
        raise InputError(f"--formats {','.join(names)}: none is narrower than what {trace.model} is stored in")
    known = {f"{block}.{op}" for block, op in narrowed}
    weights = dict(sensitivity or {})
    if unknown := sorted(set(weights) - known):
        raise unknown_name("matrix", unknown[0], known)
    if any(not 0 <= w < float("inf") for w in weights.values()):
        raise InputError("sensitivity: accepted: numbers of at least 0")
    elements = {key: _matrices(given[key][1])[0] for key in narrowed}
    counted = sum(given[key][0] * elements[key] for key in narrowed)
    weighed = sum(given[key][0] * elements[key] * weights.get(".".join(key), 1.0) for key in narrowed)
    if not weighed:
        raise InputError("sensitivity: accepted: one of them above 0")
    bits = {(key, name): _matrices(made[key])[1] for name, made in changed.items() for key in narrowed}
    widest = max(bits.values())
    variants: dict[tuple[str, str], tuple[Variant, ...]] = {}
    for key in narrowed:
        found: list[Variant] = []
        for name in names:
            op = changed[name][key]
            error = 0.0 if op == given[key][1] else gaussian_error(name)[1]
            if any(op == v.operator for v in found):
                continue
            loss = weights.get(".".join(key), 1.0) * elements[key] * error / weighed
            found.append(Variant(name, op, loss, (widest - bits[key, name]) * elements[key] / counted))
        variants[key] = tuple(found)
    return Menu(tuple(names), variants, widest)


def read_sensitivity(path: Path) -> dict[str, float]:
    """A TOML file of BLOCK.OPERATOR = number, dots as tables or names in quotes. Raises ``InputError``, one line."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None

    def leaves(table: Mapping[str, Any], before: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for key, value in table.items():
            if isinstance(value, dict):
                found |= leaves(value, f"{before}{key}.")
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{before}{key}"] = float(value)
            else:
                raise InputError(f"{path}: {before}{key}: accepted: a number")
        return found

    return leaves(raw, "")


def _matrices(op: Operator) -> tuple[float, float]:
    """Elements of an operator's matrices, and their mean bits."""
    rank = 3 if op.kind == "experts" else 2
    matrices = [w for w in op.weights if len(w.shape) >= rank]
    elements = sum(float(w.elements.constant or 0) for w in matrices)
    return elements, sum(float(w.elements.constant or 0) * w.bits for w in matrices) / elements
