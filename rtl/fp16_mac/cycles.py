"""Cycle model of the binary16 multiply-accumulate array: exact where nothing stalls (tests hold it to the RTL).

A beat gives every element ``LANES`` products and takes one cycle. Tiles of ROWS x COLS outputs follow one another;
the rows of one leave while the next one goes in.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import InputError
from ..parameters import Count, Parameter, Parameters, Rule, Shape, ceil_div, complete, larger, positive

DESCRIPTION = "array of conventional multiply-accumulate elements: binary16 products, binary32 sums"

PARAMETERS = {
    "ROWS": Parameter(8, "activation vectors at a time", (1, 2, 3)),
    "COLS": Parameter(8, "outputs at a time", (1, 2)),
    "LANES": Parameter(1, "products per element and cycle", (1, 2, 4, 8)),
    "GUARD": Parameter(3, "bits below the products when lanes are aligned", (3, 8)),
    "FRACTION": Parameter(10, "bits of the operands' fractions: 10 binary16, 2 FP8 (E5M2)", (2, 3, 7, 10)),
}

RULES = (
    Rule("ROWS", "ROWS must be from 1 to 64", lambda p: 1 <= p["ROWS"] <= 64),
    Rule("COLS", "COLS must be from 1 to 64", lambda p: 1 <= p["COLS"] <= 64),
    Rule("LANES", "LANES must be 1, 2, 4 or 8", lambda p: p["LANES"] in (1, 2, 4, 8)),
    Rule("GUARD", "GUARD must be from 0 to 8", lambda p: 0 <= p["GUARD"] <= 8),
    Rule("FRACTION", "FRACTION must be from 2 to 10", lambda p: 2 <= p["FRACTION"] <= 10),
)


def check(parameters: Mapping[str, int]) -> Parameters:
    """``parameters`` completed with defaults; raises ``InputError`` with the words of the RTL's own check."""
    return complete("fp16_mac", PARAMETERS, RULES, parameters)


def latency(config: Mapping[str, int]) -> int:
    """Cycles from the one that takes the last beat of a dot product to the one that offers its first row."""
    return 3 if check(config)["LANES"] == 1 else 4


def tile(format: Mapping[str, str], config: Mapping[str, int]) -> tuple[int, int]:
    """(m, n) of the outputs that are computed at a time; arguments as of :func:`cycles`."""
    p = check(config)
    return p["ROWS"], p["COLS"]


def cycles(shape: Shape, format: Mapping[str, str], config: Mapping[str, int]) -> Count:
    """Cycles of a product, from the one that takes the first beat to the one that gives the last result, both counted.

    ``shape``: ``m`` activation vectors, ``n`` outputs of each, ``k`` inputs. ``format``: ``weight`` and
    ``activation``, both ``"fp16"``, with ``FRACTION = 2`` ``"e5m2"``, and so on. ``config``: parameters of the unit;
    what is missing has its default. Tiles of ROWS x COLS outputs follow one another; one ends at least ``ROWS + 1``
    cycles after the one before it. Exact when neither side stalls. Raises ``InputError`` on what the unit cannot do.
    """
    p = check(config)
    name = "fp16" if p["FRACTION"] == 10 else f"e5m{p['FRACTION']}"
    wanted = {"weight": name, "activation": name}
    if wanted | dict(format) != wanted:
        raise InputError(f"fp16_mac: accepted: {name} weights and activations; got {dict(format)}")
    positive("fp16_mac", shape, "m", "n", "k")
    beats = ceil_div(shape["k"], p["LANES"])
    tiles = ceil_div(shape["m"], p["ROWS"]) * ceil_div(shape["n"], p["COLS"])
    return beats + (tiles - 1) * larger(beats, p["ROWS"] + 1) + latency(p) + p["ROWS"] - 1
