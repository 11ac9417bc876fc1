"""Parameters of a hardware unit: their meaning, what is accepted, and the refusal of all else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

import numpy as np

from ..errors import InputError, unknown_name

Parameters = dict[str, int]
Count: TypeAlias = Any
"""An ``int``, or an integer array: a cycle model answers for one product or for many at once."""
Shape: TypeAlias = Mapping[str, Any]
"""Sizes of a product by name (``m``, ``n``, ``k``), each a :data:`Count`; arrays broadcast."""


@dataclass(frozen=True)
class Parameter:
    """A SystemVerilog parameter: its default, what it means, and the values that a random choice draws from."""

    default: int
    meaning: str
    choices: tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """What must hold between parameters. ``words`` are those of the SystemVerilog check, without the unit's name.

    ``parameter`` is the one the check names.
    """

    parameter: str
    words: str
    holds: Callable[[Mapping[str, int]], bool]


def complete(
    unit: str, known: Mapping[str, Parameter], rules: tuple[Rule, ...], given: Mapping[str, int]
) -> Parameters:
    """``given`` with the defaults of the rest, when every rule holds.

    Raises ``InputError`` on an unknown name, on a value that is no whole number, and on a broken rule, with
    the rule's words. Rules are tried in order: a later one may rely on an earlier one.
    """
    for name, value in given.items():
        if name not in known:
            raise unknown_name(f"parameter of {unit}", name, known)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{unit}: {name} must be a whole number, not {value!r}")
    full = {name: parameter.default for name, parameter in known.items()} | dict(given)
    for rule in rules:
        if not rule.holds(full):
            raise InputError(f"{unit}: {rule.words}; {rule.parameter} is {full[rule.parameter]}")
    return full


def draw(
    known: Mapping[str, Parameter], check: Callable[[Mapping[str, int]], Parameters], random: Random
) -> Parameters:
    """A random legal choice among the ``choices`` of all parameters."""
    while True:
        try:
            return check({name: random.choice(parameter.choices) for name, parameter in known.items()})
        except InputError:
            continue


def positive(unit: str, shape: Shape, *names: str) -> None:
    """Raises ``InputError`` where a size of ``shape`` is below 1."""
    for name in names:
        least = np.min(shape[name]) if np.size(shape[name]) else 1
        if least < 1:
            raise InputError(f"{unit}: {name} must be at least 1; it is {least}")


def ceil_div(total: Count, part: int) -> Count:
    """How many parts hold ``total``, the last one perhaps not full."""
    return -(-total // part)


def larger(a: Count, b: Count) -> Count:
    """The larger one, element by element where there are arrays."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else np.maximum(a, b)


def power_of_two(value: int, low: int, high: int) -> bool:
    """Whether ``value`` is a power of two from ``low`` to ``high``."""
    return low <= value <= high and value & (value - 1) == 0
