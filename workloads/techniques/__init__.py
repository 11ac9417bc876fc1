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

from ...errors import InputError, unknown_name
from ..trace import Trace


@dataclass(frozen=True)
class Parameter:
    """One setting: its default, what it means, and the values it accepts.

    ``unless`` names a parameter that takes its place: where that one is given, this one may not be, and means nothing.
    """

    default: int | float | str
    meaning: str
    choices: tuple[int | float | str, ...] = ()
    low: float = float("-inf")
    high: float = float("inf")
    unless: str = ""

    def read(self, technique: str, key: str, text: str) -> int | float | str:
        """``text`` as a value of this parameter's type. Raises ``InputError`` with what is accepted."""
        where = f"technique {technique}: {key}"
        shown = text if len(text) <= 40 else text[:39] + "…"
        value: int | float | str = text
        if not isinstance(self.default, str):
            kind = type(self.default)
            try:
                value = kind(text)
            except ValueError:
                raise InputError(f"{where}: {shown!r} is not a{'n integer' if kind is int else ' number'}") from None
            if not self.low <= value <= self.high:
                raise InputError(f"{where}: {shown} is out of range; accepted: {self.low:g} to {self.high:g}")
        if self.choices and value not in self.choices:
            raise InputError(f"{where}: {shown!r}; accepted: {', '.join(map(str, self.choices))}")
        return value


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
        given: dict[str, int | float | str] = {}
        for item in filter(None, settings.split(",")):
            key, equals, text = item.partition("=")
            if key not in technique.parameters:
                raise unknown_name(f"parameter of technique {name}", key, technique.parameters)
            if not equals:
                raise InputError(
                    f"technique {name}: {key} needs a value, as in {key}={technique.parameters[key].default}"
                )
            given[key] = technique.parameters[key].read(name, key, text)
        replaced = {key for key, p in technique.parameters.items() if given.get(p.unless)}
        for key in sorted(replaced & set(given)):
            other = technique.parameters[key].unless
            raise InputError(f"technique {name}: {key} is part of {other}={given[other]}; give one of the two")
        values = {key: p.default for key, p in technique.parameters.items()} | given
        changed = technique.apply(trace, **values)
        told = ",".join(f"{k}={v}" for k, v in values.items() if k not in replaced and v != "")
        label = name + (":" + told if told else "")
        if changed.blocks == trace.blocks:
            label += " (no effect)"
        trace = changed.model_copy(update={"applied": (*trace.applied, label)})
    return trace
