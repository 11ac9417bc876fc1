"""Cycle model of the outlier-victim pair tile: exact where nothing stalls (the tests compare it with the RTL).

A beat takes the next two values along k of every row and column and lasts two cycles, so an element
multiplies once per cycle. In the 8-bit mode four elements make one product per cycle.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import InputError
from ..parameters import Count, Parameter, Parameters, Rule, Shape, ceil_div, complete, larger, positive

DESCRIPTION = "systolic tile with outlier-victim pair decoders on two edges (OliVe)"

PARAMETERS = {
    "ROWS": Parameter(4, "rows of elements, each one activation vector (two rows for 8 bits)", (2, 3, 4, 6)),
    "COLS": Parameter(4, "columns of elements, each one output (two columns for 8 bits)", (2, 3, 4, 6)),
    "WIDE": Parameter(1, "1: with the 8-bit mode", (0, 1)),
    "DECODE_REG": Parameter(0, "1: a register behind the decoders", (0, 1)),
    "ACC_WIDTH": Parameter(32, "bits of accumulators and results, which wrap around", (31, 32, 36, 40)),
}


def _side(p: Mapping[str, int], name: str) -> bool:
    return 2 <= p[name] <= 16 and (p["WIDE"] == 0 or p[name] % 2 == 0)


RULES = (
    Rule("WIDE", "WIDE must be 0 or 1", lambda p: p["WIDE"] in (0, 1)),
    Rule("ROWS", "ROWS must be from 2 to 16, and even with WIDE = 1", lambda p: _side(p, "ROWS")),
    Rule("COLS", "COLS must be from 2 to 16, and even with WIDE = 1", lambda p: _side(p, "COLS")),
    Rule("DECODE_REG", "DECODE_REG must be 0 or 1", lambda p: p["DECODE_REG"] in (0, 1)),
    Rule("ACC_WIDTH", "ACC_WIDTH must be from 31 to 40", lambda p: 31 <= p["ACC_WIDTH"] <= 40),
)


def check(parameters: Mapping[str, int]) -> Parameters:
    """``parameters`` completed with defaults; raises ``InputError`` with the words of the RTL's own check."""
    return complete("ovp_decoder", PARAMETERS, RULES, parameters)


def latency(config: Mapping[str, int]) -> int:
    """Cycles from the one that takes the last beat of a tile to the one that offers its last row.

    Of a tile of at least ``ROWS`` beats; a shorter one may have to wait for the one before.
    """
    p = check(config)
    return p["COLS"] + 4 + p["DECODE_REG"] + 2 * (p["ROWS"] - 1)


def tile(format: Mapping[str, str], config: Mapping[str, int]) -> tuple[int, int]:
    """(m, n) of the outputs that are computed at a time; arguments and errors as of :func:`cycles`."""
    p = check(config)
    weight, activation = (format.get(side, "ovp4") for side in ("weight", "activation"))
    accepted = ("ovp4", "ovp8") if p["WIDE"] else ("ovp4",)
    if weight != activation or weight not in accepted:
        raise InputError(
            f"ovp_decoder: accepted: weights and activations both {' or both '.join(accepted)}; got {dict(format)}"
        )
    side = 2 if weight == "ovp8" else 1
    return p["ROWS"] // side, p["COLS"] // side


def tiles(shape: Shape, format: Mapping[str, str], config: Mapping[str, int]) -> tuple[Count, Count]:
    """(tiles, beats of each) of a product; arguments as of :func:`cycles`."""
    rows, columns = tile(format, config)
    positive("ovp_decoder", shape, "m", "n", "k")
    return ceil_div(shape["m"], rows) * ceil_div(shape["n"], columns), ceil_div(shape["k"], 2)


def cycles(shape: Shape, format: Mapping[str, str], config: Mapping[str, int]) -> Count:
    """Cycles of a product, from the one that takes the first beat to the one that gives the last row, both counted.

    ``shape``: ``m`` activation vectors, ``n`` outputs of each, ``k`` inputs. ``format``: ``weight`` and
    ``activation``, both ``"ovp4"`` (default) or both ``"ovp8"`` (OVP pairs of 4 or 8 bits). ``config``:
    parameters of the unit; what is missing has its default.

    All tiles are run one after another, with k padded to whole pairs: 2 cycles per beat, but at least 2 ``ROWS``
    cycles from tile to tile, in which the results of the one before leave. Exact when neither side stalls;
    operands are at the port when wanted. Raises ``InputError`` on what the unit cannot do.
    """
    p = check(config)
    count, beats = tiles(shape, format, p)
    return 2 * beats + 2 * (count - 1) * larger(beats, p["ROWS"]) + latency(p) - 1
