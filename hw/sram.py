"""SRAM by size, banks, width of the port and process: energy of a read and of a write, area.

A buffer of B bits a bank, b banks, w bits a port, in a process of F nanometres at V volts:

    cell      146 F² with one port, and half as much again for each further port (wires both ways)
    area      cells / share, share of the area that cells take
    side      √area: the way of an H-tree from the buffer's edge to a bank and back, on average
    bitline   C = rows · (cell height · c_wire + drain); rows = 2^⌊log2 √B⌋, at most 256
    columns   √B: the cells of a row that a read precharges and senses, whatever the port's width

    read   = routed · c_wire · V² · side · w / 2            data, half of the bits change
           + sensed · columns · (C · V · swing + sense)     bitlines and sense amplifiers of a row
           + wordline + decoder
    write  = routed · c_wire · V² · side · w / 2
           + written · C · V² · w                           full swing of the written columns
           + wordline + decoder

Physics gives the form; four factors are fitted (:data:`FIT`), since how CACTI splits a bank, repeats its wires and
precharges is a search of its own: on three of six buffers of 512 KiB, 8 banks, 28 nm (ports of 192, 288 and 512
bits; ``python -m tokenfab.validation.sram`` prints the fit and the other three). What that cannot tell is how energy
goes with capacity and process: Horowitz's three points at 45 nm are printed beside it. Leakage is left out.

Sources: form, Wilton and Jouppi, CACTI, IEEE JSSC 31(5), 1996; 146 F² and the cell's aspect of 1.46, Muralimanohar et
al., CACTI 6.0, HPL-2009-85; wire capacitance 0.2 fF/µm at every node, Ho, Mai, Horowitz, Proc. IEEE 89(4), 2001.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log2, sqrt

from ..errors import InputError

WIRE_F = 0.2e-12
"""Farads per millimetre of wire."""
CELL_F2 = 146.0
ASPECT = 1.46
MOST_ROWS = 256
SWING = 0.15
"""Volts by which a bitline falls until it is sensed."""
DRAIN_F = 2.5e-18
"""Farads of a drain on a bitline, or a gate on a wordline, per nanometre of F: 1 fF/µm of width, 2.5 F wide."""
SENSE_F = 5e-15
"""Farads of a sense amplifier, charged once."""
VOLTS = {45: 1.0, 40: 1.0, 32: 0.9, 28: 0.9, 22: 0.85, 16: 0.8, 14: 0.8, 12: 0.8, 10: 0.75, 7: 0.7, 5: 0.65}
"""Supply by process, nanometres: ITRS high performance to 22 nm, foundries' nominal below (recalled)."""


@dataclass(frozen=True)
class Factors:
    """What is fitted: multiples of the form's four parts."""

    routed: float
    sensed: float
    written: float
    share: float


FIT = Factors(routed=0.8177, sensed=7.111, written=3.083, share=0.4665)
"""A factor of 7 on a row that is sensed: CACTI works on several subarrays at once, and this form on one."""


@dataclass(frozen=True)
class Sram:
    """A buffer: joules of one read and one write of the whole port, mm², and parts of a read in joules."""

    read_j: float
    write_j: float
    area_mm2: float
    parts_j: dict[str, float]


def sram(
    capacity_bytes: float,
    width_bits: float,
    *,
    banks: int = 1,
    ports: int = 1,
    node_nm: float = 28,
    factors: Factors = FIT,
) -> Sram:
    """The buffer. ``ports``: of a cell, 2 for one that reads and writes at once. Raises ``InputError`` for a size that
    is not positive, a port wider than a bank, and a process that is not between 5 and 45 nm."""
    if min(capacity_bytes, width_bits, banks, ports) <= 0:
        raise InputError("sram: capacity, width, banks and ports must be positive")
    bank_bits = capacity_bytes * 8 / banks
    if width_bits > bank_bits:
        raise InputError(f"sram: a port of {width_bits:g} bits is wider than a bank of {bank_bits:g}")
    volts, feature = supply(node_nm), node_nm * 1e-6  # mm
    cell = CELL_F2 * feature**2 * (1 + 0.5 * (ports - 1))
    height, breadth = sqrt(cell / ASPECT), sqrt(cell * ASPECT)
    area = capacity_bytes * 8 * cell / factors.share
    rows = min(2 ** floor(log2(max(sqrt(bank_bits), 1))), MOST_ROWS)
    columns = sqrt(bank_bits)
    transistor = DRAIN_F * node_nm
    bitline = rows * (_wire(height) + transistor)
    wordline = columns * (_wire(breadth) + 2 * transistor) * volts**2
    address = (log2(bank_bits) + log2(banks)) * _wire(sqrt(area)) * volts**2
    route = factors.routed * _wire(sqrt(area)) * volts**2 * width_bits / 2
    sense = factors.sensed * columns * (bitline * volts * SWING + SENSE_F * volts**2)
    write = factors.written * bitline * volts**2 * width_bits
    parts = {"route": route, "bitlines": sense, "wordline": wordline, "decoder": address}
    return Sram(sum(parts.values()), route + write + wordline + address, area, parts)


def supply(node_nm: float) -> float:
    """Volts of a process, on a line between those of :data:`VOLTS`. Raises ``InputError`` outside of them."""
    nodes = sorted(VOLTS)
    if not nodes[0] <= node_nm <= nodes[-1]:
        raise InputError(f"sram: a process of {node_nm:g} nm; accepted: {nodes[0]} to {nodes[-1]}")
    above = next(n for n in nodes if n >= node_nm)
    below = max(n for n in nodes if n <= node_nm)
    if above == below:
        return VOLTS[above]
    return VOLTS[below] + (VOLTS[above] - VOLTS[below]) * (node_nm - below) / (above - below)


def _wire(length_mm: float) -> float:
    """Farads of a wire."""
    return WIRE_F * length_mm
