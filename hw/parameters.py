"""Numbers of a device file's [parameters], which only the device's kind understands."""

from __future__ import annotations

from ..errors import InputError
from .spec import Device


def parameter(device: Device, name: str, default: float | None = None) -> float:
    """A number of [parameters] in base units. Raises ``InputError`` where it is missing and has no default."""
    if name in device.parameters:
        return device.parameters[name].value
    if default is None:
        raise InputError(f"device {device.name}: parameters.{name} is missing; a {device.kind} device needs it")
    return default


def whole(device: Device, name: str, default: int | None = None) -> int:
    """The parameter ``name``, a whole number of at least 1. Raises ``InputError`` where it is none."""
    value = parameter(device, name, default)
    if value < 1 or value != round(value):
        raise InputError(f"device {device.name}: parameters.{name} {value:g}; accepted: a whole number of at least 1")
    return round(value)


def flag(device: Device, name: str) -> bool:
    """Whether [parameters] have ``name``. Raises ``InputError`` where it is there with a value other than 1."""
    if name not in device.parameters:
        return False
    if (value := device.parameters[name].value) != 1:
        raise InputError(f"device {device.name}: parameters.{name} {value:g}; accepted: 1, or leave it out")
    return True
