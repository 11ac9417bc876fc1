"""The same silicon, the same memory: devices of arrays changed so that they can be compared.

A comparison of accelerators holds area or bandwidth (or both) equal and lets the number of arrays follow. Both
functions return a changed copy of a device whose changed numbers say so (``derived: …``); nothing else is touched,
so buffers, clocks and the formats a unit takes stay those of the design.

    arrays = ⌊area / area of one⌋, at least 1; where a unit of the device holds several, as many in each
    rated power and die move by the arrays added or taken away

Area of one array: what its designers give (``arrays.area``), else of this RTL, which needs a pair of formats that
was compared (``tokenfab rtl area --compare``) and ``arrays.mac_area``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ..errors import InputError, unknown_name
from .array import array_area, arrays_count
from .spec import Device
from .units import KEYS, Quantity, measure

CHANGES = {"area": "die.area", "bandwidth": "memory.dram.bandwidth"}
"""What a name may change, and the key whose values it takes."""


def iso_area(device: Device, area_mm2: float, format: Mapping[str, str] | None = None) -> Device:
    """``device`` with as many arrays as ``area_mm2`` holds. ``format``: of the unit, for the area of this RTL.

    Raises ``InputError`` for an area that does not hold one array, and where the area of one cannot be told.
    """
    each = array_area(device, format)
    arrays, count = device.arrays, arrays_count(device)
    assert arrays is not None  # array_area refused it otherwise
    places = device.compute.units.value if arrays.per_unit else 1.0
    least = each * places
    units = int(area_mm2 / least * (1 + 1e-12))
    if units < 1:
        raise InputError(
            f"device {device.name}: its arrays take {least:.4g} mm2 at least; accepted: no less, not {area_mm2:g}"
        )
    more = units * places - count
    why = f"derived: {units * places:g} arrays of {each:.4g} mm2 within {area_mm2:g} mm2, for {count}"
    tdp = max(device.power.tdp.value + more * arrays.power.value, device.power.idle.value)
    many = _count(units, why)
    changes: dict[str, object] = {
        "power": device.power.model_copy(update={"tdp": _changed(device.power.tdp, tdp, f"{tdp:.4g} W", why)}),
    }
    if arrays.per_unit:
        changes["arrays"] = arrays.model_copy(update={"per_unit": many})
    else:
        changes["compute"] = device.compute.model_copy(update={"units": many})
    if device.die is not None:
        size = max(device.die.area.value + more * each, units * places * each)
        changes["die"] = device.die.model_copy(update={"area": _changed(device.die.area, size, f"{size:.4g} mm2", why)})
    return _copy(device, changes, why)


def iso_bandwidth(device: Device, bytes_s: float) -> Device:
    """``device`` with a DRAM of ``bytes_s``; its energy per bit stays. Raises ``InputError`` unless positive."""
    if not 0 < bytes_s < float("inf"):
        raise InputError(f"device {device.name}: a bandwidth of {bytes_s:g} B/s; accepted: a positive number")
    dram = device.dram
    why = f"derived: {bytes_s / 1e9:g} GB/s as those it is compared with, for {dram.bandwidth.text}"
    watts = (bytes_s - dram.bandwidth.value) * 8 * (dram.energy.value if dram.energy else 0.0)
    tdp = max(device.power.tdp.value + watts, device.power.idle.value)
    changed = dram.model_copy(update={"bandwidth": _changed(dram.bandwidth, bytes_s, f"{bytes_s / 1e9:g} GB/s", why)})
    power = device.power.model_copy(update={"tdp": _changed(device.power.tdp, tdp, f"{tdp:.4g} W", why)})
    return _copy(device, {"memory": device.memory | {"dram": changed}, "power": power}, why)


def resized(device: Device, changes: str) -> Device:
    """``device`` with ``changes`` such as ``area=1.5mm2,bandwidth=32GB/s``, which its name and description then tell.

    Raises ``InputError`` for another word, one given twice, a value without its unit, an area for a device without
    arrays, and as :func:`iso_area` and :func:`iso_bandwidth` do.
    """
    whole, told = device, {}
    for change in changes.split(","):
        name, _, text = change.partition("=")
        if name not in CHANGES:
            raise unknown_name("change of a device", name[:80], CHANGES, "such as bitmod@area=3mm2")
        if name in told:
            raise InputError(f"{whole.name}@{changes[:80]}: {name} is given twice; accepted: once")
        if name == "area" and device.arrays is None:
            raise InputError(
                f"{whole.name}@{change[:80]}: only devices made of arrays ([arrays] in their file) take an area"
            )
        key = KEYS[CHANGES[name]]
        try:
            value, _, shown = measure(text, key)
        except ValueError as error:
            raise InputError(f"{device.name}@{change[:80]}: {error}; accepted: {key.accepted}") from None
        device = iso_area(device, value) if name == "area" else iso_bandwidth(device, value)
        told[name] = f"{arrays_count(device)} arrays in {shown}" if name == "area" else f"DRAM of {shown}"
    said = f"{whole.description}; here {', '.join(told.values())}"
    return device.model_copy(update={"name": f"{whole.name}@{''.join(changes.split())}", "description": said})


def _copy(device: Device, changes: dict[str, object], why: str) -> Device:
    digest = hashlib.sha256(f"{device.digest} {why}".encode()).hexdigest()
    return device.model_copy(update=changes | {"digest": digest})


def _count(value: int, why: str) -> Quantity:
    return Quantity(value=float(value), unit="1", text=str(value), source=why)


def _changed(before: Quantity, value: float, text: str, why: str) -> Quantity:
    return before.model_copy(update={"value": value, "text": text, "source": why})
