"""Arrays of 4-bit outlier-victim pairs against other numbers of elements of other widths, clock and DRAM alike.

The unit is the pair decoder with its multipliers of ``rtl/`` (device ``olive``), in arrays of 16 × 16 4-bit elements;
products of 8-bit operands take four of them. What designs are compared, with how many elements each at one area, is
for the caller to say (``systems/olive.toml``).
"""

from __future__ import annotations

from functools import lru_cache

from ..errors import InputError
from ..hw.cost import cost
from ..hw.devices import load_device
from ..hw.iso import iso_area, iso_bandwidth
from ..hw.spec import Device
from ..workloads.load import load_trace
from ..workloads.techniques import apply_techniques
from ..workloads.trace import Trace

SIDE = 16
"""Rows and columns of an array, in 4-bit elements."""
WIDTHS = (4, 8)


def pair_arrays(elements: int, bits: int, clock_hz: float, bytes_s: float) -> Device:
    """Arrays of ``elements`` 4-bit elements in all that take ``bits``-bit operands.

    Raises ``InputError`` for a width the unit has not, and fewer elements than one array has.
    """
    if bits not in WIDTHS:
        raise InputError(f"pairs of {bits} bits; accepted: {' or '.join(map(str, WIDTHS))}")
    device = load_device("olive")
    arrays, clock = device.arrays, device.compute.clock
    assert arrays is not None
    assert arrays.area is not None
    name = f"ovp{bits}"
    sizes = {
        key: q.model_copy(update={"value": float(SIDE), "text": str(SIDE)}) for key, q in arrays.parameters.items()
    }
    changed = device.model_copy(update={
        "arrays": arrays.model_copy(update={
            "parameters": sizes, "weights": {f"int{bits}": name}, "activations": {"fp16": name, "bf16": name},
        }),
        "compute": device.compute.model_copy(update={
            "clock": clock.model_copy(update={"value": clock_hz, "text": f"{clock_hz / 1e6:g} MHz"}),
        }),
    })  # fmt: skip
    return iso_bandwidth(iso_area(changed, elements / SIDE**2 * arrays.area.value), bytes_s)


def pair_arrays_speed(
    model: str, batch: int, prompt: int, elements: int, bits: int, over_elements: int, over_bits: int,
    clock_mhz: float, bandwidth_gb_s: float,
) -> float:  # fmt: skip
    """speed of a prompt on arrays of so many 4-bit outlier-victim pairs' elements and operands of so many bits over
    that on ``over_elements`` and ``over_bits``"""

    def seconds(number: int, width: int) -> float:
        device = pair_arrays(number, width, clock_mhz * 1e6, bandwidth_gb_s * 1e9)
        return float(cost(_traced(model, width), device, batch, prompt, 0).latency_s[0])

    return seconds(over_elements, over_bits) / seconds(elements, bits)


@lru_cache(maxsize=8)
def _traced(model: str, bits: int) -> Trace:
    """Captured once for all designs that it is asked of."""
    return apply_techniques(load_trace(model), [f"weight-only:bits={bits},head=1", f"kv-quant:bits={bits}"])


FIGURES = {"pair_arrays_speed": pair_arrays_speed}
