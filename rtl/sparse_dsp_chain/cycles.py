"""Cycle model of the sparse DSP chain: exact where nothing stalls (the tests compare it with the RTL).

A beat is one cycle and takes ``LANES`` stored weights, so it covers ``LANES * M / N`` inputs of a dot
product, for ``PACK`` activation vectors at once: N:M sparsity is M/N times as fast as dense, up to M/N_MIN.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2

from ...errors import InputError
from ..parameters import Count, Parameter, Parameters, Rule, Shape, ceil_div, complete, positive, power_of_two

DESCRIPTION = "chain of DSP48 slices that skips the zeros of N:M sparse weights (FlightLLM)"

PARAMETERS = {
    "LANES": Parameter(16, "slices, each one multiplication per cycle and vector", (2, 4, 8, 16)),
    "M": Parameter(16, "inputs of a block of N:M sparsity", (2, 4, 8, 16)),
    "N_MIN": Parameter(2, "fewest weights stored per block", (1, 2, 4, 8, 16)),
    "SEGMENT": Parameter(8, "slices of one PCIN-PCOUT cascade", (1, 2, 4, 8, 16)),
    "PACK": Parameter(2, "activation vectors that share a beat's weights", (1, 2)),
    "WEIGHT_WIDTH": Parameter(8, "bits of a weight", (4, 8)),
    "ACC_WIDTH": Parameter(32, "bits of accumulator and output, saturating", (20, 24, 32, 40, 48)),
}

RULES = (
    Rule("LANES", "LANES must be a power of two from 2 to 64", lambda p: power_of_two(p["LANES"], 2, 64)),
    Rule("M", "M must be 2, 4, 8 or 16 and at most LANES", lambda p: power_of_two(p["M"], 2, min(16, p["LANES"]))),
    Rule("N_MIN", "N_MIN must be a power of two from 1 to M", lambda p: power_of_two(p["N_MIN"], 1, p["M"])),
    Rule("PACK", "PACK must be 1 or 2", lambda p: p["PACK"] in (1, 2)),
    Rule("WEIGHT_WIDTH", "WEIGHT_WIDTH must be 4 or 8", lambda p: p["WEIGHT_WIDTH"] in (4, 8)),
    Rule(
        "SEGMENT",
        "SEGMENT must be a power of two from 1 to LANES",
        lambda p: power_of_two(p["SEGMENT"], 1, p["LANES"]),
    ),
    Rule(
        "SEGMENT",
        "SEGMENT must be at most 8 with PACK = 2 and WEIGHT_WIDTH = 8",
        lambda p: p["PACK"] == 1 or p["WEIGHT_WIDTH"] == 4 or p["SEGMENT"] <= 8,
    ),
    Rule(
        "ACC_WIDTH",
        "ACC_WIDTH must be from 8 + WEIGHT_WIDTH + log2(LANES) to 48",
        lambda p: 8 + p["WEIGHT_WIDTH"] + log2(p["LANES"]) <= p["ACC_WIDTH"] <= 48,
    ),
)


def check(parameters: Mapping[str, int]) -> Parameters:
    """``parameters`` completed with defaults; raises ``InputError`` with the words of the RTL's own check."""
    return complete("sparse_dsp_chain", PARAMETERS, RULES, parameters)


def stored_per_block(sparsity: str, config: Mapping[str, int]) -> int:
    """Weights the chain stores per block of ``config["M"]`` for weights of ``sparsity`` (``"2:4"``; ``"dense"``).

    The least power of two that holds every block the pattern allows, at least ``N_MIN``. A pattern's own
    block may be smaller than M (2:4 is one kind of 8:16). Raises ``InputError`` on another text, and when
    M is no multiple of the pattern's block.
    """
    m = config["M"]
    if sparsity == "dense":
        return m
    parts = sparsity.split(":")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 4 for part in parts):
        raise InputError(f"sparsity {sparsity!r}: accepted: dense, or N:M as 2:4")
    kept, block = int(parts[0]), int(parts[1])
    if not 1 <= kept <= block or m % block:
        raise InputError(f"sparsity {sparsity}: N must be from 1 to M, and M must divide the chain's block of {m}")
    stored = config["N_MIN"]
    while stored * block < kept * m:
        stored *= 2
    return stored


def latency(config: Mapping[str, int]) -> int:
    """Cycles from the one that takes the last beat of a dot product to the one that offers its result."""
    p = check(config)
    return p["SEGMENT"] + 5 + int(log2(p["LANES"] // p["SEGMENT"]))


def beats(shape: Shape, format: Mapping[str, str], config: Mapping[str, int]) -> Count:
    """Beats of a product; arguments as of :func:`cycles`."""
    p = check(config)
    accepted = ("int4", "int8") if p["WEIGHT_WIDTH"] == 8 else ("int4",)
    if format.get("weight", "int8") not in accepted or format.get("activation", "int8") != "int8":
        raise InputError(f"sparse_dsp_chain: accepted: int8 activations, weights {' or '.join(accepted)}; got {format}")
    positive("sparse_dsp_chain", shape, "m", "n", "k")
    covered = p["LANES"] * p["M"] // stored_per_block(format.get("sparsity", "dense"), p)
    return ceil_div(shape["m"], p["PACK"]) * shape["n"] * ceil_div(shape["k"], covered)


def tile(format: Mapping[str, str], config: Mapping[str, int]) -> tuple[int, int]:
    """(m, n) of the outputs that are computed at a time; arguments as of :func:`cycles`."""
    return check(config)["PACK"], 1


def cycles(shape: Shape, format: Mapping[str, str], config: Mapping[str, int]) -> Count:
    """Cycles of a product, from the one that takes the first beat to the one that gives the last result, both counted.

    ``shape``: ``m`` activation vectors, ``n`` outputs of each, ``k`` inputs. ``format``: ``weight`` (``"int8"`` or
    ``"int4"``), ``activation`` (``"int8"``), ``sparsity`` (``"dense"`` or ``"N:M"``). ``config``: parameters of the
    unit; what is missing has its default. Exact when neither side stalls; weights and activations are at the
    port when wanted. Raises ``InputError`` on what the unit cannot do.
    """
    return beats(shape, format, config) + latency(config)
