"""Square millimetres and dollars of a device, by parts.

    dies per wafer   N = π d² / 4A − π d / √(2A)           (de Vries, IEEE Trans. Semicond. Manuf. 18(1), 2005)
    yield            Y = (1 + A · D · (1 − r) / α)^−α      (negative binomial: Stapper, IBM J. R&D 27(6), 1983)
                     r: share of the die whose defects are tolerated, because spare units can take over
    die              wafer price / (N · Y)

    price = dies + memory (GB × price per GB) + package (interposer per mm² with HBM, flip chip else)
            + board (per watt of rated power) + margin

The price that a device file states is the total, and the margin is what remains; where it states none, the total is
cost / (1 − gross margin). The area that a device file states is the total, and what the parts do not explain remains:

    arithmetic   multiply-adds of the matrix engine at its 16-bit rate, and of the vector engine in fp32
    arrays       as many as there are × the area of one as its designers give it, else of the RTL (:mod:`.array`)
    cores        of GPUs: registers, local memory, schedulers, crossbar and spare units, so much per unit
    sram         on-chip memory levels × mm² per MiB
    memory, links   interfaces, in proportion to bandwidth

Numbers and their sources: ``processes/silicon.toml``. Left out: masks and design (spread over an unknown volume),
test, dies that are sold with less of them working.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .array import array_area, arrays_count
from .components import memory, silicon, tables
from .spec import Device

LARGEST_SRAM = 4 * 2**30
"""Bytes; a larger level is no SRAM."""
MAC_PROCESS, CORE_PROCESS = "TSMC 28 nm", "TSMC 7 nm"
"""Processes that the areas of a multiply-add and of a core were taken in."""
SIGNIFICANDS = (24 / 11) ** 2
"""Area of an fp32 multiply-add over that of an fp16 one: multipliers grow with the square of the significand."""
UNEXPLAINED = "unexplained: stated area less the parts, negative where the stated area leaves parts out"


@dataclass(frozen=True)
class Parts:
    """A total, its parts by name (they sum to it), where the total comes from, and a note on the parts."""

    total: float
    parts: dict[str, float]
    source: str
    note: str | None = None


def dies_per_wafer(area_mm2: float, diameter_mm: float = 300.0) -> float:
    """Whole dies of ``area_mm2`` on a round wafer, on average over its alignment.

    Raises ``InputError`` for a die that does not fit.
    """
    found = math.pi * diameter_mm**2 / 4 / area_mm2 - math.pi * diameter_mm / math.sqrt(2 * area_mm2)
    if found < 1:
        raise InputError(f"a die of {area_mm2:g} mm2 does not fit on a wafer of {diameter_mm:g} mm")
    return found


def die_yield(area_mm2: float, defects_per_cm2: float, cluster: float = 3.0, tolerated: float = 0.0) -> float:
    """Share of dies that work, by the negative binomial model; ``tolerated`` of the area may have defects."""
    return float((1 + area_mm2 / 100 * defects_per_cm2 * (1 - tolerated) / cluster) ** -cluster)


def murphy_yield(area_mm2: float, defects_per_cm2: float) -> float:
    """Share of dies that work, by Murphy's model: ((1 − e^−AD) / AD)²."""
    x = area_mm2 / 100 * defects_per_cm2
    return ((1 - math.exp(-x)) / x) ** 2 if x > 1e-9 else 1.0


def die_cost(area_mm2: float, process: str | None, tolerated: float = 0.0) -> float:
    """US dollars of one working die. Raises ``InputError`` for an unknown process or a die beyond the reticle."""
    entry, package = silicon(process), tables("silicon")["package"]
    if area_mm2 > package["reticle"].value:
        raise InputError(
            f"a die of {area_mm2:g} mm2 exceeds the reticle of {package['reticle'].value:g} mm2; "
            "die.count says how many dies share the area"
        )
    good = die_yield(area_mm2, entry["defects_per_cm2"].value, entry["cluster"].value, tolerated)
    return entry["wafer_price"].value / (dies_per_wafer(area_mm2, package["wafer_diameter"].value) * good)


def explained_area(device: Device) -> dict[str, float]:
    """mm² of the parts that a device file's rates and capacities ask for. Raises ``InputError`` without a process."""
    entry, area = silicon(device.die.process if device.die else None), tables("silicon")["area"]
    parts: dict[str, float] = {}
    shrunk = {n: silicon(n)["logic_density"].value / entry["logic_density"].value for n in (MAC_PROCESS, CORE_PROCESS)}
    mac = area["mac"].value * shrunk[MAC_PROCESS]
    parts["arithmetic"] = (_lanes(device, "matrix") + _lanes(device, "vector") * SIGNIFICANDS) * mac
    parts["arrays"] = _arrays(device)
    if device.kind == "gpu" or takes_hosts_place(device):
        parts["cores"] = device.compute.units.value * area["core"].value * shrunk[CORE_PROCESS]
    parts["sram"] = sum(
        level.capacity.value / 2**20 * entry["sram"].value
        for name, level in device.memory.items()
        if name != "dram" and level.capacity.value < LARGEST_SRAM and "DRAM" not in (level.technology or "").upper()
    )
    kind = "hbm_stack" if _stacked(device) else "ddr_channel"
    parts["memory"] = device.dram.bandwidth.value / area[f"{kind}_bandwidth"].value * area[kind].value
    parts["links"] = sum(x.bandwidth.value for x in device.links.values()) / 1e9 * area["link_per_gb"].value
    return {name: mm2 for name, mm2 in parts.items() if mm2 > 0}


def takes_hosts_place(device: Device) -> bool:
    """Whether ``device`` is its host with something added (lookup arrays in a GPU), not a device beside it."""
    return device.kind == "lut" and device.host is not None


def _lanes(device: Device, engine: str) -> float:
    """Multiply-adds per clock of an engine: in 16 bits of the matrix engine, in fp32 of the vector engine."""
    rates = device.engines.get(engine, {})
    wanted = ("fp16", "bf16") if engine == "matrix" else ("fp32",)
    return max((rates[f].value for f in wanted if f in rates), default=0.0) / 2 / device.compute.clock.value


def _arrays(device: Device) -> float:
    """mm² of the arrays, of this RTL in the first formats that the device file names; 0 where nothing tells it."""
    if device.arrays is None:
        return 0.0
    weight, activation = (
        next(iter(device.arrays.weights.values()), "int8"),
        next(iter(device.arrays.activations.values()), "fp16"),
    )
    try:
        return array_area(device, {"weight": weight, "activation": activation}) * arrays_count(device)
    except InputError:
        return 0.0


def _stacked(device: Device) -> bool:
    return (device.dram.technology or "").upper().startswith("HBM")


def area_of(device: Device) -> Parts:
    """mm² of ``device`` by parts; ``unexplained`` is what the stated area has beyond them (:data:`UNEXPLAINED`).

    Raises ``InputError`` where the device file says no area or a process nobody knows.
    """
    if device.die is None:
        raise InputError(f"device {device.name}: die.area is missing; the area cannot be told")
    parts = explained_area(device)
    total = device.die.area.value
    return Parts(total, parts | {"unexplained": total - sum(parts.values())}, device.die.area.source, UNEXPLAINED)


def price_of(device: Device) -> Parts:
    """US dollars of ``device`` by parts, dies to margin. Raises ``InputError`` where its area or process is unknown."""
    if device.die is None:
        raise InputError(f"device {device.name}: die.area is missing; the cost of its silicon cannot be told")
    die, package = device.die, tables("silicon")["package"]
    count = die.count.value if die.count else 1.0
    tolerated = die.redundant.value if die.redundant else 0.0
    parts = {
        "dies": count * die_cost(die.area.value / count, die.process, tolerated),
        "memory": device.dram.capacity.value / 1e9 * memory(device.dram.technology)["price_per_gb"].value,
        "package": die.area.value * package["interposer"].value
        if _stacked(device)
        else count * package["flip_chip"].value,
        "board": device.power.tdp.value * package["board_per_watt"].value,
    }
    cost = sum(parts.values())
    if device.price.purchase is not None:
        total, source = device.price.purchase.value, device.price.purchase.source
    else:
        margin = package["gross_margin"]
        total = cost / (1 - margin.value)
        source = f"derived: cost of its parts / (1 - gross margin of {margin.value:g}, {margin.source})"
    return Parts(total, parts | {"margin": total - cost}, source)


def area_document(device: Device) -> dict[str, Any]:
    """:func:`area_of` for a document; without an area, why there is none."""
    return _document(area_of, device, "mm2") | {"process": device.die.process if device.die else None}


def price_document(device: Device) -> dict[str, Any]:
    """:func:`price_of` for a document; where the parts cannot be told, the stated price and why."""
    found = _document(price_of, device, "usd")
    if found["total_usd"] is None and device.price.purchase is not None:
        found |= {"total_usd": device.price.purchase.value, "source": device.price.purchase.source}
    return found


def _document(of: Callable[[Device], Parts], device: Device, unit: str) -> dict[str, Any]:
    try:
        found = of(device)
    except InputError as error:
        return {f"total_{unit}": None, f"parts_{unit}": {}, "source": None, "note": None, "reason": str(error)}
    told = {"source": found.source, "note": found.note, "reason": None}
    return {f"total_{unit}": found.total, f"parts_{unit}": found.parts} | told
