"""What models of several kinds are made of: intervals and static power, collectives, rates that are reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from ..workloads.compiled import CompiledTrace
from ..workloads.expr_functions import Array
from .cost import Errors
from .roofline import Collective, collective_of, errors_of, power_interval, sides
from .spec import Device


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """The part of a :class:`.cost.OperatorModel` that says how sure it is, and the watts drawn whatever is done."""

    low: Array
    high: Array
    errors: Errors
    static_power_w: float
    power_interval: tuple[float, float]


class CertaintyFields(TypedDict):
    """:class:`Certainty`'s, by name."""

    low: Array
    high: Array
    errors: Errors
    static_power_w: float
    power_interval: tuple[float, float]


def certainty(compiled: CompiledTrace, device: Device, regimes: Sequence[str]) -> CertaintyFields:
    """Intervals of all rows in each of ``regimes``, and idle power, as ``device``'s file has them.

    Raises ``InputError`` where the device has no interval for a row.
    """
    low, high = sides(compiled, device, regimes)
    return CertaintyFields(
        low=low, high=high, errors=errors_of(compiled, device), static_power_w=device.power.idle.value,
        power_interval=power_interval(device),
    )  # fmt: skip


def collectives_of(compiled: CompiledTrace, device: Device) -> tuple[Collective, ...]:
    """All rows of ``compiled`` that cross links. Raises ``InputError`` for a link that is missing."""
    rows = enumerate(compiled.rows)
    return tuple(collective_of(i, compiled, device) for i, row in rows if row.operator.kind == "collective")


def network_s(collectives: Sequence[Collective], basis: Array, rows: int) -> Array:
    """Seconds that each of so many rows occupies the links, (rows, points)."""
    seconds = np.zeros((rows, basis.shape[1]))
    for c in collectives:
        seconds[c.row] = c.time_s(c.size @ basis)
    return seconds


def launches(compiled: CompiledTrace, device: Device) -> Array:
    """Seconds before each row starts, (rows,); a collective's own start is in its time."""
    start = device.model.launch.value
    return np.array([0.0 if row.operator.kind == "collective" else start for row in compiled.rows])


def dram_rate(device: Device) -> float:
    """Bytes/s that streams reach."""
    return device.dram.bandwidth.value * device.model.memory_efficiency.value


def vector_rate(device: Device) -> float:
    """FLOP/s that element-wise work reaches. Raises ``InputError`` without a vector engine."""
    return device.rate("fp32", engine="vector")[1].value * device.model.vector_efficiency.value
