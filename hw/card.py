"""Facts of a GPU that kernel models share, read from its device file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

import numpy as np

from ..errors import InputError, unknown_name
from .spec import Device
from .units import Quantity

Constants = TypeVar("Constants")
Library = TypeVar("Library")


@dataclass(frozen=True)
class Card:
    """Facts of a card: dense 16-bit matrix rate in FLOP/s, bandwidths in byte/s, sizes in bytes.

    Clock and rate are those the card runs at: ``boost`` times what its file quotes.
    """

    sms: int
    clock_hz: float
    matrix_flops: float
    dram_bytes_s: float
    l2_bytes: float
    l2_bytes_s: float
    boost: float = 1.0


def card_of(device: Device) -> Card:
    """The facts of a device file that kernel models need; an L2 that it does not state bounds nothing."""
    l2, quoted = device.memory.get("l2"), device.compute.clock.value
    boost = device.compute.boost.value / quoted if device.compute.boost else 1.0
    return Card(
        sms=int(device.compute.units.value),
        clock_hz=quoted * boost,
        matrix_flops=device.rate("bf16")[1].value * boost,
        dram_bytes_s=device.dram.bandwidth.value,
        l2_bytes=l2.capacity.value if l2 else 0.0,
        l2_bytes_s=l2.bandwidth.value if l2 and l2.bandwidth else np.inf,
        boost=boost,
    )


def constants_of(device: Device, family: str, cls: type[Constants]) -> Constants:
    """The numbers of ``[kernels.FAMILY]`` as ``cls``, whose fields may end in ``_s`` (seconds).

    Raises ``InputError`` for one that neither the device file nor its architecture has, nor ``cls`` a value for.
    """
    held, values = device.kernels.get(family, {}), {}
    for field in fields(cls):  # type: ignore[arg-type]
        key = field.name.removesuffix("_s")
        quantity = held.get(key)
        if quantity is None and field.default is not MISSING:
            continue
        if not isinstance(quantity, Quantity):
            raise InputError(f"device {device.name}: kernels.{family}.{key} is missing")
        values[field.name] = quantity.value
    return cls(**values)


def library_of(device: Device, family: str, libraries: Mapping[str, Library]) -> Library:
    """The library that ``[kernels.FAMILY]`` names. Raises ``InputError`` where it names none that is known."""
    name: Any = device.kernels.get(family, {}).get("library")
    if name not in libraries:
        raise unknown_name(f"kernels.{family}.library", str(name), libraries, f"device {device.name}")
    return libraries[name]
