"""Cycle model of the bit-serial array: exact where nothing stalls (the tests compare it with the RTL).

A beat gives every element ``LANES`` products and lasts as many cycles as its weights have terms. The groups of
all output tiles follow one another. After a group its scale (8 cycles, one per bit) and the sum over the columns
(a cycle per row) are hidden behind the next group, unless that one is shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2

from ...errors import InputError
from ..parameters import Count, Parameter, Parameters, Rule, Shape, ceil_div, complete, larger, positive

DESCRIPTION = "array of bit-serial elements for INT4 to INT8 and FP3, FP4 weights with special values (BitMoD)"

PARAMETERS = {
    "ROWS": Parameter(8, "activation vectors at a time", (1, 2, 3, 4)),
    "COLS": Parameter(8, "outputs at a time", (1, 2, 3, 4)),
    "LANES": Parameter(4, "products per element and cycle", (1, 2, 4, 8)),
    "GUARD": Parameter(3, "bits below the significands when lanes are aligned", (1, 3, 4, 8)),
    "EXTRA": Parameter(2, "bits below those in the accumulators", (1, 2, 4, 9)),
    "ACC_WIDTH": Parameter(26, "bits of a group's accumulator, saturating", (20, 26, 32, 40)),
    "SUM_WIDTH": Parameter(48, "bits of a column's accumulator and the output, saturating", (34, 40, 48, 64)),
}

RULES = (
    Rule("ROWS", "ROWS must be from 1 to 64", lambda p: 1 <= p["ROWS"] <= 64),
    Rule("COLS", "COLS must be from 1 to 64", lambda p: 1 <= p["COLS"] <= 64),
    Rule("LANES", "LANES must be 1, 2, 4 or 8", lambda p: p["LANES"] in (1, 2, 4, 8)),
    Rule("GUARD", "GUARD must be from 1 to 8", lambda p: 1 <= p["GUARD"] <= 8),
    Rule(
        "EXTRA",
        "EXTRA must be from 1 to 16, and GUARD + EXTRA at least 5",
        lambda p: 1 <= p["EXTRA"] <= 16 and p["GUARD"] + p["EXTRA"] >= 5,
    ),
    Rule(
        "ACC_WIDTH",
        "ACC_WIDTH must be from 12 + GUARD + EXTRA + log2(LANES) to 48",
        lambda p: 12 + p["GUARD"] + p["EXTRA"] + log2(p["LANES"]) <= p["ACC_WIDTH"] <= 48,
    ),
    Rule(
        "SUM_WIDTH",
        "SUM_WIDTH must be from ACC_WIDTH + 8 to 64",
        lambda p: p["ACC_WIDTH"] + 8 <= p["SUM_WIDTH"] <= 64,
    ),
)

TERMS = {"int4": 2, "int5": 3, "int6": 3, "int8": 4, "fp3": 2, "fp4": 2}
"""Cycles of a beat by type of weight: half the bits, rounded up (BitMoD, section IV)."""
SCALE_BITS = 8
"""Bits of a group's scale: cycles of its bit-serial multiplication."""


def check(parameters: Mapping[str, int]) -> Parameters:
    """``parameters`` completed with defaults; raises ``InputError`` with the words of the RTL's own check."""
    return complete("bit_serial_pe", PARAMETERS, RULES, parameters)


def group_cycles(shape: Shape, format: Mapping[str, str], config: Mapping[str, int]) -> tuple[Count, Count, Count]:
    """(whole groups of one output tile, cycles of each, cycles of the rest); arguments as of :func:`cycles`.

    The rest, 0 cycles where there is none, is the last group where ``group`` does not divide ``k``.
    """
    p = check(config)
    weight, activation = format.get("weight", "int8"), format.get("activation", "fp16")
    if weight not in TERMS or activation not in ("fp16", "int8"):
        raise InputError(
            f"bit_serial_pe: accepted: fp16 or int8 activations, weights {', '.join(TERMS)}; got {dict(format)}"
        )
    size = {"group": 128} | dict(shape)
    positive("bit_serial_pe", size, "m", "n", "k", "group")
    whole, rest = size["k"] // size["group"], size["k"] % size["group"]
    return whole, ceil_div(size["group"], p["LANES"]) * TERMS[weight], ceil_div(rest, p["LANES"]) * TERMS[weight]


def latency(config: Mapping[str, int]) -> int:
    """Cycles from the last one of a dot product's last beat, in which it takes no other, to the last result."""
    return SCALE_BITS + 3 + check(config)["ROWS"]


def tile(format: Mapping[str, str], config: Mapping[str, int]) -> tuple[int, int]:
    """(m, n) of the outputs that are computed at a time; arguments as of :func:`cycles`."""
    p = check(config)
    return p["ROWS"], p["COLS"]


def cycles(shape: Shape, format: Mapping[str, str], config: Mapping[str, int]) -> Count:
    """Cycles of a product, from the one that takes the first beat to the one that gives the last result, both counted.

    ``shape``: ``m`` activation vectors, ``n`` outputs of each, ``k`` inputs, ``group`` inputs that share a scale
    (128 unless told). ``format``: ``weight`` (a key of ``TERMS``, ``"int8"`` unless told), ``activation`` (``"fp16"``
    or ``"int8"``). ``config``: parameters of the unit; what is missing has its default. Tiles of ROWS x COLS
    outputs follow one another. A group ends at least ``ROWS + 9`` cycles after the one before it.
    Exact when neither side stalls. Raises ``InputError`` on what the unit cannot do.
    """
    p = check(config)
    whole, length, rest = group_cycles(shape, format, p)
    tiles = ceil_div(shape["m"], p["ROWS"]) * ceil_div(shape["n"], p["COLS"])
    shadow = SCALE_BITS + 1 + p["ROWS"]
    hidden = tiles * (whole * larger(length, shadow) + larger(rest, shadow) * (rest > 0))
    first = length * (whole > 0) + rest * (whole == 0)
    return hidden - larger(first, shadow) + first + 1 + latency(p)
