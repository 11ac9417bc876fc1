"""Facts of a GPU that kernel models share, read from its device file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .spec import Device


@dataclass(frozen=True)
class Card:
    """Facts of a card: dense 16-bit matrix rate in FLOP/s, bandwidths in byte/s, sizes in bytes."""

    sms: int
    clock_hz: float
    matrix_flops: float
    dram_bytes_s: float
    l2_bytes: float
    l2_bytes_s: float


def card_of(device: Device) -> Card:
    """The facts of a device file that kernel models need; an L2 that it does not state bounds nothing."""
    l2 = device.memory.get("l2")
    return Card(
        sms=int(device.compute.units.value),
        clock_hz=device.compute.clock.value,
        matrix_flops=device.rate("bf16")[1].value,
        dram_bytes_s=device.dram.bandwidth.value,
        l2_bytes=l2.capacity.value if l2 else 0.0,
        l2_bytes_s=l2.bandwidth.value if l2 and l2.bandwidth else np.inf,
    )
