"""Which data of a model lies where on an FPGA board, and how fast it is read from there: as :mod:`.fpga` costs it.

Weights and KV cache lie in the HBM channels that feed the weight buffers, each region's share in its own; what HBM
does not hold lies in DDR. Activations stay on the chip; of the operator with the most, what does not fit goes through
HBM, across regions. Programs lie in DDR where there is one (FlightLLM, arXiv:2401.03868, section 4.3: small and
rarely read), else in HBM.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..workloads.trace import Trace
from .fpga_design import activation_bytes, design_of
from .fpga_program import program_bytes
from .parameters import whole
from .spec import Device


@dataclass(frozen=True)
class Placed:
    """``size`` bytes of some data in one place; ``channels`` it is spread over, 0 on the chip, and bytes per second of
    all of them as used (0 where the model does not count the time)."""

    data: str
    where: str
    channels: int
    size: float
    bytes_s: float


def placement(trace: Trace, device: Device, batch: float, query: float, context: float) -> list[Placed]:
    """Where the data of a pass over ``query`` tokens after ``context`` lies.

    Raises ``InputError`` for what the device file lacks; what fits nowhere is listed as in HBM, as if that were larger.
    """
    design, ddr = design_of(device), device.memory.get("ddr")
    fed = whole(device, "weight_channels")
    room, places = device.dram.usable, []
    sizes = {"KV cache": float(trace.cache_bytes()(batch, 0, context + query)), "weights": trace.weights_bytes}
    over = max(sum(sizes.values()) - room, 0.0) / sum(sizes.values()) if ddr else 0.0
    for data, size in sizes.items():
        places.append(Placed(data, "HBM", fed, size * (1 - over), design.stream_bytes_s))
        if over and ddr and ddr.bandwidth:
            rate = ddr.bandwidth.value * device.model.memory_efficiency.value
            places.append(Placed(data, "DDR", 1, size * over, rate))
    most = max(float(activation_bytes(op)(batch, query, context)) for op, _ in trace.operators())
    places.append(Placed("activations", "chip", 0, min(most, design.resident), 0.0))
    if most > design.resident:
        places.append(Placed("activations", "HBM", fed, most - design.resident, design.crossing_bytes_s))
    if "load_size" in device.parameters:
        longest = trace.max_context or round(context + query)
        size = program_bytes(trace, device, longest).shared
        places.append(Placed("programs", "DDR" if ddr else "HBM", 1, size, 0.0))
    return places
