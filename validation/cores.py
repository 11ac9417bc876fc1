"""CPUs with some of their cores at work: what decoding speeds by number of threads are compared with."""

from __future__ import annotations

from functools import lru_cache

from ..errors import InputError
from ..hw.cost import cost
from ..hw.devices import load_device
from ..hw.spec import Device
from ..hw.units import Quantity
from ..workloads.load import load_trace
from ..workloads.techniques import apply_techniques
from ..workloads.trace import Trace


def with_cores(device: Device, count: int) -> Device:
    """``device`` with ``count`` of its cores at work; DRAM and power stay. Raises ``InputError`` for more."""
    share = count / device.compute.units.value
    if not 0 < share <= 1:
        raise InputError(f"{count} threads: {device.name} has {device.compute.units.text} cores")

    def scaled(q: Quantity) -> Quantity:
        return q.model_copy(update={"value": q.value * share})

    engines = {place: {f: scaled(rate) for f, rate in rates.items()} for place, rates in device.engines.items()}
    compute = device.compute.model_copy(update={"units": scaled(device.compute.units)})
    return device.model_copy(update={"engines": engines, "compute": compute})


def decode_rate_of_cores(
    model: str, device: str, cores: int, context: int, apply: str = ""
) -> tuple[float, float, float]:
    """tokens per second of one sequence, decoding on so many cores of a CPU"""
    found = cost(_traced(model, apply), with_cores(load_device(device), cores), 1, 1, context)
    return 1 / float(found.latency_s[0]), 1 / float(found.high_s[0]), 1 / float(found.low_s[0])


@lru_cache(maxsize=8)
def _traced(model: str, apply: str) -> Trace:
    """Captured once for all numbers of cores."""
    return apply_techniques(load_trace(model), [apply] if apply else [])


FIGURES = {"decode_rate_of_cores": decode_rate_of_cores}
