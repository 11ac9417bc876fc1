"""Energy of the components: of one operation by number format and process, of a bit in SRAM or DRAM.

    multiply   e = e₁ (s / s₁)^p through the two quoted points of its class: floating point by significand (11 and 24
               bits), integers by width (8 and 32)
    add        likewise, by width (16 and 32, 8 and 32)
    sram       per bit, by capacity: through 32 KiB and 1 MiB
    process    × E(node) / E(45 nm), E from Stillmaker and Baas's fits at the nominal voltage, interpolated in log–log

Numbers and their sources: ``processes/operations.toml``. What an operation costs beyond its circuit (operands from
registers, instruction, wires) is not in it, so arithmetic by this count is a floor under what a whole chip draws; cost
models take their energies from the device file, and this module says how much of that is arithmetic proper.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from ..errors import InputError
from ..workloads.compiled import CompiledTrace
from .components import silicon, tables
from .roofline import MATRIX_KINDS
from .spec import Device
from .units import number_format


def _through(x: float, x1: float, y1: float, x2: float, y2: float) -> float:
    """The power law through (x1, y1) and (x2, y2), at x."""
    return float(y1 * (x / x1) ** (math.log(y2 / y1) / math.log(x2 / x1)))


def _quoted(name: str) -> float:
    return float(tables("operations")["operations"][name].value)


def multiply_energy(format: str) -> float:
    """Joules of one multiplication at 45 nm. Raises ``InputError`` for a name that is no format."""
    f = number_format(format)
    if f.kind == "float":
        return _through(f.mantissa + 1, 11, _quoted("fp16_multiply"), 24, _quoted("fp32_multiply"))
    return _through(f.bits, 8, _quoted("int8_multiply"), 32, _quoted("int32_multiply"))


def add_energy(format: str) -> float:
    """Joules of one addition at 45 nm. Raises ``InputError`` for a name that is no format."""
    f = number_format(format)
    if f.kind == "float":
        return _through(f.bits, 16, _quoted("fp16_add"), 32, _quoted("fp32_add"))
    return _through(f.bits, 8, _quoted("int8_add"), 32, _quoted("int32_add"))


def scaling(node_nm: float) -> float:
    """Energy of an operation at ``node_nm`` over its energy at 45 nm."""
    points = sorted((q["node"].value, q["energy"].value) for q in tables("operations")["scaling"].values())
    at45 = dict(points)[45]
    for (low, e_low), (high, e_high) in pairwise(points):
        if node_nm <= high or high == points[-1][0]:
            return _through(node_nm, low, e_low, high, e_high) / float(at45)
    raise AssertionError("no points")


def mac_energy(format: str, node_nm: float, accumulate: str | None = None) -> float:
    """Joules of a multiply-add in ``format``, added up in ``accumulate`` (fp32 or int32 where it is not said)."""
    wide = accumulate or ("fp32" if number_format(format).kind == "float" else "int32")
    return (multiply_energy(format) + add_energy(wide)) * scaling(node_nm)


def sram_energy(capacity_bytes: float, node_nm: float = 45.0) -> float:
    """Joules per bit read from an SRAM of so many bytes (one bank of them)."""
    found = _through(capacity_bytes, 2**15, _quoted("sram_32k"), 2**20, _quoted("sram_1m"))
    return found * scaling(node_nm)


def arithmetic_floor(compiled: CompiledTrace, device: Device, point: tuple[float, float, float]) -> float:
    """Joules that the circuits of the arithmetic alone take for one pass at ``point`` (batch, query, context).

    Raises ``InputError`` where the device's process is unknown.
    """
    node = silicon(device.die.process if device.die else None)["node"].value
    flops = compiled.quantity("flops", compiled.basis_at(*point))[:, 0]
    total = 0.0
    for row, operations in zip(compiled.rows, flops, strict=True):
        used = device.rate(row.operator.format)[0] if row.operator.kind in MATRIX_KINDS else "fp32"
        total += operations / 2 * row.count * mac_energy(used, node)
    return float(total)


def energy_document(
    compiled: CompiledTrace, device: Device, points: dict[str, tuple[float, float, float]]
) -> dict[str, Any]:
    """Energies of the components beside an estimate: per multiply-add by format, per bit of DRAM, and the floor of
    the arithmetic in each of ``points``; without a known process, why not."""
    try:
        node = silicon(device.die.process if device.die else None)["node"].value
        floor = {name: arithmetic_floor(compiled, device, point) for name, point in points.items()}
    except InputError as error:
        return {"node_nm": None, "mac_j": {}, "arithmetic_floor_j": {}, "reason": str(error)}
    formats = sorted({f for rates in device.engines.values() for f in rates if number_format(f).kind != "mixed"})
    mac = {f: mac_energy(f, node) for f in formats if number_format(f).mantissa or number_format(f).kind == "int"}
    return {"node_nm": node, "mac_j": mac, "arithmetic_floor_j": floor, "reason": None}
