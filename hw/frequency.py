"""A GPU below its rated clock: what of its time and power goes with the clock.

At a share f of the clock, and v of the voltage, of which the rated ones are 1:

    with f      arithmetic rates, what crosses the multiprocessors and the L2, launches counted in clocks
    unchanged   DRAM, links, host
    energy      of arithmetic and of transport on the chip × v²; of DRAM unchanged
    static      idle + (static − idle) · f · v²      clocks run and leak less, what waits stays
    sustained   share of the (lower) rate that the rated power leaves: min(1, sustained / (f · v²))

A voltage follows the clock down to a least one: v(f) = 1 − (1 − floor) · (1 − f) / (1 − knee) until ``knee``, then
``floor``. Dynamic power ∝ f v²: the textbook law of CMOS circuits (Weste and Harris, CMOS VLSI Design, section 5.2).
Both are assumed where nobody has measured a card: :data:`FLOOR` and :data:`KNEE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from .cost import OperatorModel
from .gpu import GpuModel
from .roofline import RooflineModel
from .spec import Device
from .units import Quantity

FLOOR = 0.7
"""Least voltage over the rated one (assumed: 0.7 V of 1 V, recalled of 7 nm parts)."""
KNEE = 0.64
"""Share of the clock down to which the voltage falls (assumed: 900 of 1410 MHz, recalled)."""


@dataclass(frozen=True)
class Clock:
    """``share`` of the rated clock, 0 to 1, and the ``voltage`` it needs over the rated one."""

    share: float
    voltage: float

    @classmethod
    def at(cls, share: float, floor: float = FLOOR, knee: float = KNEE) -> Clock:
        """The voltage of ``share`` by the law above. Raises ``InputError`` for shares outside 0 (excluded) to 1."""
        if not 0 < share <= 1:
            raise InputError(f"clock of {share:g} of the rated one; accepted: above 0, up to 1")
        return cls(share, max(1 - (1 - floor) * (1 - share) / (1 - knee), floor))

    @property
    def power(self) -> float:
        """Dynamic power of the same circuits over that at the rated clock."""
        return self.share * self.voltage**2


def slowed(device: Device, clock: Clock) -> Device:
    """``device`` with the rates that ``clock`` leaves. Raises ``InputError`` for what is no GPU."""
    if device.kind != "gpu":
        raise InputError(f"device {device.name}: clocks are modelled for GPUs, not for kind {device.kind}")

    def less(quantity: Quantity, factor: float) -> Quantity:
        text = f"{factor:.4g} x {quantity.text}"
        return quantity.model_copy(update={"value": quantity.value * factor, "text": text})

    memory = dict(device.memory)
    l2 = memory.get("l2")
    if l2 is not None and l2.bandwidth is not None:
        memory["l2"] = l2.model_copy(update={"bandwidth": less(l2.bandwidth, clock.share)})
    kernels: dict[str, Mapping[str, Any]] = dict(device.kernels)
    gemm = dict(kernels.get("gemm", {}))
    sustained = gemm.get("sustained")
    if isinstance(sustained, Quantity):
        gemm["sustained"] = less(sustained, min(1 / clock.power, 1 / sustained.value))
        kernels["gemm"] = gemm
    engines = {
        name: {fmt: less(rate, clock.share) for fmt, rate in rates.items()} for name, rates in device.engines.items()
    }
    compute = device.compute.model_copy(update={"clock": less(device.compute.clock, clock.share)})
    return device.model_copy(update={"engines": engines, "compute": compute, "memory": memory, "kernels": kernels})


def scaled(model: OperatorModel, device: Device, clock: Clock) -> OperatorModel:
    """``model`` of a slowed ``device`` with the energies and the static power of ``clock``."""
    base = model.base if isinstance(model, GpuModel) else model
    if not isinstance(base, RooflineModel):
        raise InputError(f"device {device.name}: clocks are modelled for GPUs, not for kind {device.kind}")
    idle = device.power.idle.value
    static = idle + (base.static_power_w - idle) * clock.power
    # The roofline divides the rated power by the slowed rate; what an operation takes goes with v² alone.
    factors = {"compute": clock.power, "transport": clock.voltage**2}
    energy = {part: matrix * factors.get(part, 1.0) for part, matrix in base.energy.items()}
    slow = replace(base, static_power_w=static, energy=energy, dynamic_limit_w=device.power.tdp.value - static)
    return replace(model, base=slow) if isinstance(model, GpuModel) else slow
