"""Techniques: functions Trace → Trace with the field's own parameters.

One module each; a module is found by being here and defining ``TECHNIQUE``. On the command line a
technique is ``name:key=value,key=value``, e.g. ``weight-only:bits=4,group=128``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from ...errors import unknown_name
from ...settings import Parameter, read_settings, replaced
from ..trace import Trace

__all__ = ["Parameter", "Technique", "apply_techniques", "techniques"]


@dataclass(frozen=True)
class Technique:
    """A named rewrite of a trace. ``apply`` takes the trace and the parameters by name."""

    name: str
    description: str
    source: str
    parameters: dict[str, Parameter]
    apply: Callable[..., Trace]


@cache
def techniques() -> dict[str, Technique]:
    """All techniques by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        technique = importlib.import_module(f"{__name__}.{module.name}").TECHNIQUE
        found[technique.name] = technique
    return dict(sorted(found.items()))


def apply_techniques(trace: Trace, specs: Sequence[str]) -> Trace:
    """Apply ``name:key=value,…`` texts in order. Raises ``InputError`` for unknown names or values."""
    for spec in specs:
        name, _, settings = spec.partition(":")
        known = techniques()
        if name not in known:
            raise unknown_name("technique", name, known)
        technique = known[name]
        given = read_settings("technique", name, technique.parameters, settings)
        hidden = replaced(technique.parameters, given)
        values = {key: p.default for key, p in technique.parameters.items()} | given
        changed = technique.apply(trace, **values)
        told = ",".join(f"{k}={v}" for k, v in values.items() if k not in hidden and v != "")
        label = name + (":" + told if told else "")
        if changed.blocks == trace.blocks and changed.max_context == trace.max_context:
            label += " (no effect)"
        trace = changed.model_copy(update={"applied": (*trace.applied, label)})
    return trace
