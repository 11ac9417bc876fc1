"""Settings of things chosen by name on the command line: ``name:key=value,key=value``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import InputError, unknown_name

Value = int | float | str


@dataclass(frozen=True)
class Parameter:
    """One setting: its default, what it means, and the values it accepts.

    ``unless`` names a parameter that takes its place: where that one is given, this one may not be, and means nothing.
    """

    default: Value
    meaning: str
    choices: tuple[Value, ...] = ()
    low: float = float("-inf")
    high: float = float("inf")
    unless: str = ""

    def read(self, owner: str, key: str, text: str) -> Value:
        """``text`` as a value of this parameter's type. Raises ``InputError`` with what ``owner`` accepts."""
        where = f"{owner}: {key}"
        shown = text if len(text) <= 40 else text[:39] + "…"
        value: Value = text
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


def read_settings(sort: str, name: str, parameters: Mapping[str, Parameter], settings: str) -> dict[str, Value]:
    """What ``key=value,…`` gives of ``parameters`` to the ``sort`` of thing called ``name``.

    Raises ``InputError`` for unknown keys, values that are not accepted, and two settings that exclude each other.
    """
    given: dict[str, Value] = {}
    for item in filter(None, settings.split(",")):
        key, equals, text = item.partition("=")
        if key not in parameters:
            raise unknown_name(f"parameter of {sort} {name}", key, parameters)
        if not equals:
            raise InputError(f"{sort} {name}: {key} needs a value, as in {key}={parameters[key].default}")
        if key in given:
            raise InputError(f"{sort} {name}: {key} is given twice")
        given[key] = parameters[key].read(f"{sort} {name}", key, text)
    for key in sorted(replaced(parameters, given) & set(given)):
        other = parameters[key].unless
        raise InputError(f"{sort} {name}: {key} is part of {other}={given[other]}; give one of the two")
    return given


def replaced(parameters: Mapping[str, Parameter], given: Mapping[str, Value]) -> set[str]:
    """Parameters that another one's value takes the place of."""
    return {key for key, p in parameters.items() if given.get(p.unless)}
