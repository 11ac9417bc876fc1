"""What the arrays of a unit do per cycle, and their area per operation, as cost models use them.

The ratios of ``areas.json`` were made by :mod:`.compare` from the RTL; reading them needs no tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from ..errors import InputError
from .parameters import Parameters
from .units import ROOM, Unit

Row = dict[str, Any]
AREAS = ROOM / "areas.json"
TILES = 64
"""Tiles of a long product, each way."""
INPUTS = 61_440
"""Inputs of a long product: a multiple of 2, 3, 4, 5, 8 and 128, so that no beat is ragged."""


def macs_per_cycle(unit: Unit, parameters: Parameters, format: Mapping[str, Any]) -> float:
    """Multiply-accumulates per cycle of a product that goes on: products of zeros that are skipped count too."""
    words = {key: format[key] for key in ("weight", "activation", "sparsity") if key in format}
    rows, columns = unit.tile(words, parameters)
    once = {"m": TILES * rows, "n": TILES * columns, "k": INPUTS}
    more = unit.cycles(once | {"m": 2 * once["m"]}, words, parameters) - unit.cycles(once, words, parameters)
    return float(once["m"] * once["n"] * once["k"] / more)


@cache
def kept_areas() -> tuple[Row, ...]:
    """The rows of ``areas.json``: unit, formats, parameters, ``gates_per_mac`` and ``relative``."""
    return tuple(json.loads(AREAS.read_text(encoding="utf-8"))["rows"])


def relative_area(unit: str, format: Mapping[str, str], parameters: Mapping[str, int] | None = None) -> float:
    """Area of one multiply-accumulate per cycle in ``unit`` over that of the baseline's (binary16 by binary16).

    ``format``: ``weight``, ``activation``, ``sparsity``, as of the unit's ``cycles``. Of several arrays that were
    compared the one that shares most values with ``parameters``. Raises ``InputError`` for a pair that nobody compared.
    """
    rows = [row for row in kept_areas() if row["unit"] == unit]
    fitting = [row for row in rows if all(row.get(key) == value for key, value in format.items())]
    if fitting:
        wanted = dict(parameters or {}).items()
        return float(max(fitting, key=lambda row: len(wanted & row["parameters"].items()))["relative"])
    have = ", ".join(f"{row['weight']} by {row['activation']}" for row in rows) or "nothing"
    raise InputError(f"no area of {unit} for {' by '.join(format.values())}; compared: {have}")
