"""Cycle model of the LUT tensor unit: exact where nothing stalls (the tests compare it with the RTL).

A plane, one bit of K·N weights, is one cycle. The table of the next K activations is made meanwhile, so a tile
of M rows, N columns and k inputs takes W · ceil(k / K) cycles for W-bit weights; its results leave
COLUMNS columns per cycle while the next tile is computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import ceil, log2

from ...errors import InputError
from ..parameters import Count, Parameter, Parameters, Rule, Shape, ceil_div, complete, larger, positive, power_of_two

DESCRIPTION = "tensor core that multiplies by table lookup, one weight bit per cycle (LUT Tensor Core)"

PARAMETERS = {
    "M": Parameter(2, "rows of a tile: activation vectors", (1, 2, 3, 4)),
    "N": Parameter(64, "columns of a tile: outputs", (1, 2, 4, 8, 16)),
    "K": Parameter(4, "activations of a table", (2, 3, 4, 5)),
    "ACT_WIDTH": Parameter(8, "bits of an activation; 16 is binary16", (2, 4, 8, 16, 16, 16)),
    "MAX_BITS": Parameter(8, "most bits of a weight", (1, 2, 4, 5, 8)),
    "COLUMNS": Parameter(8, "columns of a beat of results", (1, 2, 4, 8)),
    "GUARD": Parameter(0, "bits kept below a binary16 significand", (0, 0, 3, 10, 29)),
    "TABLE_WIDTH": Parameter(0, "bits to which a table entry is rounded, 0 for all", (0, 0, 8, 12)),
    "HALF": Parameter(0, "1 for results in binary16", (0, 0, 1)),
    "ACC_WIDTH": Parameter(32, "bits of an accumulator, saturating", (16, 20, 32, 48, 56, 64, 80)),
}


def entry_bits(p: Mapping[str, int]) -> int:
    """Bits of an exact table entry."""
    return (12 + p["GUARD"] if p["ACT_WIDTH"] == 16 else p["ACT_WIDTH"]) + ceil(log2(p["K"]))


def group_bits(p: Mapping[str, int]) -> int:
    """Bits of the sum of a group where the accumulator adds it: the least legal ``ACC_WIDTH``."""
    return (p["TABLE_WIDTH"] or entry_bits(p)) + p["MAX_BITS"] + (29 if p["ACT_WIDTH"] == 16 else 0)


def _table_width_fits(p: Mapping[str, int]) -> bool:
    return p["TABLE_WIDTH"] == 0 or (p["ACT_WIDTH"] == 16 and 4 <= p["TABLE_WIDTH"] <= entry_bits(p))


RULES = (
    Rule("M", "M must be from 1 to 8", lambda p: 1 <= p["M"] <= 8),
    Rule("N", "N must be a power of two from 1 to 128", lambda p: power_of_two(p["N"], 1, 128)),
    Rule("K", "K must be from 2 to 6", lambda p: 2 <= p["K"] <= 6),
    Rule(
        "ACT_WIDTH",
        "ACT_WIDTH must be from 2 to 8, or 16 for binary16",
        lambda p: 2 <= p["ACT_WIDTH"] <= 8 or p["ACT_WIDTH"] == 16,
    ),
    Rule("MAX_BITS", "MAX_BITS must be from 1 to 8", lambda p: 1 <= p["MAX_BITS"] <= 8),
    Rule(
        "COLUMNS", "COLUMNS must be a power of two from 1 to N", lambda p: power_of_two(p["COLUMNS"], 1, p["N"])
    ),
    Rule(
        "GUARD",
        "GUARD must be from 0 to 29, and 0 unless ACT_WIDTH is 16",
        lambda p: 0 <= p["GUARD"] <= (29 if p["ACT_WIDTH"] == 16 else 0),
    ),
    Rule(
        "TABLE_WIDTH",
        "TABLE_WIDTH must be 0, or with ACT_WIDTH = 16 from 4 to 12 + GUARD + log2(K)",
        _table_width_fits,
    ),
    Rule(
        "HALF",
        "HALF must be 0 or 1, and 0 unless ACT_WIDTH is 16",
        lambda p: 0 <= p["HALF"] <= int(p["ACT_WIDTH"] == 16),
    ),
    Rule(
        "ACC_WIDTH",
        "ACC_WIDTH must be from entry + MAX_BITS (+ 29 with binary16) to 80",
        lambda p: group_bits(p) <= p["ACC_WIDTH"] <= 80,
    ),
)  # fmt: skip

TABLE_CYCLES = 2
"""From the cycle that takes a group's activations to the one that takes its first plane."""
RESULT_CYCLES = 4
"""From the cycle that takes a tile's last plane to the one that offers its first results."""


def check(parameters: Mapping[str, int]) -> Parameters:
    """``parameters`` completed with defaults; raises ``InputError`` with the words of the RTL's own check."""
    return complete("lut_tensor_unit", PARAMETERS, RULES, parameters)


def tile(format: Mapping[str, str], config: Mapping[str, int]) -> tuple[int, int]:
    """(m, n) of the outputs that are computed at a time; arguments as of :func:`cycles`."""
    p = check(config)
    return p["M"], p["N"]


def tiles(shape: Shape, config: Mapping[str, int]) -> Count:
    """Tiles of a product of ``shape`` (m, n, k); a tile runs over all of k."""
    return ceil_div(shape["m"], config["M"]) * ceil_div(shape["n"], config["N"])


def planes(shape: Shape, format: Mapping[str, str], config: Mapping[str, int]) -> Count:
    """Planes of one tile, a cycle each; arguments as of :func:`cycles`."""
    return ceil_div(shape["k"], config["K"]) * weight_bits(format.get("weight", "int4"), config)


def weight_bits(weight: str, config: Mapping[str, int]) -> int:
    """Bits of ``weight`` (``"int4"``; ``"odd1"`` for -1 and +1). Raises ``InputError`` beyond MAX_BITS."""
    found = re.fullmatch(r"(?:int|odd)([1-8])", weight)
    if found is None or int(found[1]) > config["MAX_BITS"]:
        raise InputError(f"lut_tensor_unit: weight {weight!r}: accepted: int or odd, of 1 to {config['MAX_BITS']} bits")
    return int(found[1])


def cycles(shape: Shape, format: Mapping[str, str], config: Mapping[str, int]) -> Count:
    """Cycles of a product, from the one that takes the first input to the one that gives the last result, both counted.

    ``shape``: ``m`` activation vectors, ``n`` outputs of each, ``k`` inputs. ``format``: ``weight`` (``"int1"`` to
    ``"int8"``, two's complement; ``"odd1"`` to ``"odd8"``, odd numbers; ``"int4"`` when missing), ``activation``
    (``"fp16"`` with ACT_WIDTH = 16, else ``"int2"`` up to the width; the unit's own when missing). ``config``:
    parameters of the unit; what is missing has its default. Exact when neither side stalls. Raises
    ``InputError`` on what the unit cannot do.
    """
    p = check(config)
    accepted = ["fp16"] if p["ACT_WIDTH"] == 16 else [f"int{b}" for b in range(2, p["ACT_WIDTH"] + 1)]
    activation = format.get("activation", accepted[-1])
    if activation not in accepted:
        raise InputError(f"lut_tensor_unit: activation {activation!r}: accepted: {', '.join(accepted)}")
    positive("lut_tensor_unit", shape, "m", "n", "k")
    beats = p["N"] // p["COLUMNS"]
    one = planes(shape, format, p)
    return TABLE_CYCLES + one + (tiles(shape, p) - 1) * larger(one, beats) + RESULT_CYCLES - 1 + beats
