"""Gates of tensor cores, counted from cells: what a multiply-accumulate costs by table lookup and by multiplier.

A dot product of ``lanes`` (4) products per cycle with its accumulating adder, in gates of a NAND2, per product and
cycle. Sums leave for the register file every cycle (as a tensor core's do), so that no result register is counted, of
any of them; operands arrive registered but for the table, which is the lookup unit's own.

    integer     (multiplier + tree + adder / lanes): a Dadda array of AND gates, full and half adders, a ripple of
                its last row; 32-bit sums
    float       multiplier of significands, exponents added and compared, products aligned to the largest, one tree;
                then the addend is aligned, added, normalised and rounded once for all lanes
    lookup      a lane per row and column: an AND-OR selection of one of 2^(K−1) entries, its sign, and the adder;
                K products of one bit of weight per cycle, so W of a lane's cycles for W bits. Integer
                activations: a 32-bit adder. Floats: tables have a scale each, so that the lane adds floats
    conventional lookup: 2^K entries, no sign; indices negated in place; tables made by the unit itself

Cells: Oklahoma State University's osu018 library, the one of ``rtl/areas.json``, areas over its NAND2's. Adders
are ripples of full adders: faster ones cost more, alike everywhere. Left out: wires, clock tree, buffers, control.
Sources: gate counts of a Dadda multiplier, L. Dadda, Alta Frequenza 34 (1965): N² AND, N² − 4N + 3 full and N − 1
half adders, 2N − 2 bits of last row; the lookup unit, LUT Tensor Core, arXiv:2408.06003, sections 3.1 and 4.1.
"""

from __future__ import annotations

import re
from math import ceil, log2
from typing import Final

from ..errors import unknown_name

FULL_ADDER: Final = 5.0
HALF_ADDER: Final = 3.33
MUX: Final = 2.0
XOR: Final = 2.33
AND: Final = 1.33
AOI22: Final = 1.67
NAND3: Final = 1.5
INVERTER: Final = 0.67
REGISTER: Final = 4.0
"""A D flip-flop. All in gates of a NAND2: FAX1, HAX1, MUX2X1, XOR2X1, AND2X1, AOI22X1, NAND3X1, INVX1, DFFPOSX1."""
LANES: Final = 4
INTEGER_SUM: Final = 32
"""Bits of an integer tensor core's sums."""
FLOAT_SUM: Final = 28
"""Bits in which floats are added: 24 of a binary32 significand and guard, round, sticky and carry."""
EXPONENT: Final = 8


def multiplier(bits: int) -> float:
    """Gates of an unsigned multiplier of two numbers of ``bits`` ≥ 2 bits (signed ones differ by a few inverters)."""
    full = bits * bits - 4 * bits + 3 + 2 * bits - 2
    return bits * bits * AND + max(full, 0) * FULL_ADDER + (bits - 1) * HALF_ADDER


def integer_mac(bits: int = 8, lanes: int = LANES) -> float:
    """Gates per product and cycle of a dot product of integers of ``bits`` bits."""
    tree = (lanes - 1) * (2 * bits + log2(lanes) / 2) * FULL_ADDER
    return multiplier(bits) + (tree + INTEGER_SUM * FULL_ADDER) / lanes


def shifter(bits: int) -> float:
    """Gates of a shift of ``bits`` bits by any amount: a multiplexer per bit and stage."""
    return bits * ceil(log2(bits)) * MUX


def float_adder(bits: int = FLOAT_SUM) -> float:
    """Gates of one float added to another: align, negate, add, count leading zeros, normalise, exponent, round."""
    zeros = bits * (AND + MUX)  # a tree of pairs: one flag and one bit of the count for each
    rest = EXPONENT * 2 * FULL_ADDER + bits * HALF_ADDER
    return shifter(bits) + bits * XOR + bits * FULL_ADDER + zeros + shifter(bits) + rest


def float_mac(significand: int = 11, exponent: int = 5, lanes: int = LANES) -> float:
    """Gates per product and cycle of a dot product of floats; ``significand`` bits with the hidden one."""
    exponents = (exponent + 1) * (3 * FULL_ADDER + MUX)  # add, compare with the largest, subtract from it
    align = shifter(FLOAT_SUM) + FLOAT_SUM * XOR
    tree = (lanes - 1) * FLOAT_SUM * FULL_ADDER / lanes
    return multiplier(significand) + exponents + align + tree + float_adder() / lanes


def selection(entries: int) -> float:
    """Gates per bit of one of ``entries`` by lines of which one is high: pairs of AND-OR, then a tree."""
    return entries / 2 * AOI22 + (entries / 2 - 1) * (1 + AND) / 2


def lines(index: int) -> float:
    """Gates that make 2^``index`` lines of an index."""
    return (1 << index) * (NAND3 * max(index - 1, 1) / 2 + INVERTER)


def lookup_array(
    rows: int = 2, columns: int = 64, group: int = 4, entry: int = 8, *, floats: bool = False,
    conventional: bool = False, negated: bool = False, tables: bool = False,
) -> float:  # fmt: skip
    """Gates of a lookup unit of ``rows`` x ``columns`` lanes that takes ``group`` activations a cycle.

    ``entry``: bits of an entry of the table. ``floats``: activations are. ``conventional``: all 2^group entries
    instead of half of them and a sign. ``negated``: indices are negated in the unit, not offline. ``tables``: the
    unit makes its tables, by ``group`` + 2^(group−1) adders a row.
    """
    index = group if conventional else group - 1
    add = float_adder() if floats else INTEGER_SUM * FULL_ADDER
    lane = entry * selection(1 << index) + (0.0 if conventional else entry * XOR) + add
    per_column = lines(index) + (index * XOR if negated else 0.0)
    table = rows * (1 << index) * entry * REGISTER
    making = rows * (group + (1 << index)) * (entry + 2) * FULL_ADDER if tables else 0.0
    return rows * columns * lane + columns * per_column + table + making


def lookup_mac(weight_bits: float, *, floats: bool = False) -> float:
    """Gates per product and cycle of :func:`lookup_array`, which takes ``weight_bits`` cycles for a product."""
    rows, columns, group = 2, 64, 4
    return lookup_array(rows, columns, group, floats=floats) * weight_bits / (rows * columns * group)


def density_ratio(of: str, over: str) -> float:
    """products per cycle and area of one dot-product unit over those of another (``fp16``, ``fp8``, ``int8``,
    ``lut-w2a8`` of integers, ``lut-w1a16`` of floats): gates of the other over gates of the one"""
    return unit_gates(over) / unit_gates(of)


def table_step(of: str, over: str) -> float:
    """gates of one array of lookup lanes over those of another: ``conventional`` tables of all entries, ``symmetric``
    ones of half, ``offline`` without negation of indices, ``shared`` without making the tables"""
    return table_gates(of) / table_gates(over)


def unit_gates(name: str) -> float:
    """Gates per product and cycle of a dot-product unit by name. Raises ``InputError`` for one that is not known."""
    known = {"fp16": float_mac(), "fp8": float_mac(4, 4), "int8": integer_mac()}
    if name in known:
        return known[name]
    found = re.fullmatch(r"lut-w([1-8])a(8|16)", name)
    if found is None:
        raise unknown_name("unit", name, [*known, "lut-w2a8", "lut-w1a16"])
    return lookup_mac(int(found[1]), floats=found[2] == "16")


def table_gates(name: str) -> float:
    """Gates of an array of lookup lanes by what it has done to its tables. Raises ``InputError`` for an unknown one."""
    known = {
        "conventional": {"conventional": True, "negated": True, "tables": True},
        "symmetric": {"negated": True, "tables": True}, "offline": {"tables": True}, "shared": {},
    }  # fmt: skip
    if name not in known:
        raise unknown_name("lookup array", name, known)
    return lookup_array(**known[name])


FIGURES: Final = {"density_ratio": density_ratio, "table_step": table_step}
