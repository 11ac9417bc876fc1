"""The processor at hand as a device: what the kernels' instruction set says, and what is measured on the spot."""

from __future__ import annotations

import platform
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..hw.cost import cost
from ..hw.devices import find_architecture
from ..hw.spec import Device, parse_device
from ..workloads.expr import B, Q, expr
from ..workloads.trace import Block, Operator, Tensor, Trace

STREAM_BYTES = 128 * 2**20
LATENCY_CLOCKS = 4
"""Clocks of one multiplication (3) and one addition (1) that wait for one another, on x86 processors since 2010."""
UNITS = {"avx512": (64, 2, 1, 64), "avx2": (32, 3, 1, 32 / 3)}
"""Bytes of a vector, vector instructions and shuffles per clock, products of bytes per instruction."""
KERNEL_PARAMETERS = {
    "lut": 'lookup_ops = { value = 5.5, source = "derived: per vector of lookups 1.5 take nibbles out, 1 looks up, 3 '
           'add bytes to 16-bit sums (kernels/cpu/emit.py)" }',
    "dot": 'unpack_ops = { value = 2, source = "derived: a shift and a mask per vector (kernels/cpu/emit.py)" }',
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What was found: ``clock_hz`` by timing dependent instructions, ``stream`` bytes/s by threads, reading."""

    model: str
    isa: str
    cores: int
    clock_hz: float
    l3_bytes: int
    stream: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"model": self.model, "isa": self.isa, "cores": self.cores, "clock_hz": self.clock_hz,
                "l3_bytes": self.l3_bytes, "stream_bytes_s": {str(k): v for k, v in self.stream.items()}}  # fmt: skip


def find_machine(isa: str, cores: int, threads: list[int]) -> Machine:
    """Measure this machine: some 0.3 s per number of threads."""
    return Machine(_model(), isa, cores, measure_clock(), l3_bytes(), {t: measure_stream(t) for t in threads})


def _model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def l3_bytes() -> int:
    """Bytes of the last cache, 0 where the system does not say."""
    found = re.fullmatch(r"(\d+)K", _text("/sys/devices/system/cpu/cpu0/cache/index3/size").strip())
    return int(found[1]) * 1024 if found else 0


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@cache
def _loops() -> tuple[Any, Any]:
    numba = import_module("numba")

    def chain(n: int) -> Any:
        x = np.uint64(3)
        for i in range(n):
            x = x * x + np.uint64(i)
        return x

    def total(values: Any) -> Any:
        t = np.float32(0)
        for i in range(values.size):
            t += values[i]
        return t

    return numba.njit("uint64(int64)", nogil=True)(chain), numba.njit("float32(float32[::1])", nogil=True,
                                                                      fastmath=True)(total)  # fmt: skip


def measure_clock() -> float:
    """Hertz, by dependent multiplications and additions; best of five."""
    chain, n = _loops()[0], 2_000_000
    return LATENCY_CLOCKS * n / min(_timed(lambda: chain(n)) for _ in range(5))


def measure_stream(threads: int) -> float:
    """Bytes per second that ``threads`` read from memory together; best of seven."""
    total = _loops()[1]
    values = np.ones(max(STREAM_BYTES, 2 * l3_bytes()) // 4, np.float32)
    parts = np.array_split(values, threads)

    def read() -> None:
        others = [threading.Thread(target=total, args=(p,)) for p in parts[1:]]
        for other in others:
            other.start()
        total(parts[0])
        for other in others:
            other.join()

    return float(values.nbytes / min(_timed(read, threads) for _ in range(7)))


def clock_of(threads: int) -> Callable[[], float]:
    """What times are read from: the thread's own CPU if there is one, for others may run beside; else the wall's."""
    return time.thread_time if threads == 1 else time.perf_counter


def _timed(run: Callable[[], object], threads: int = 1) -> float:
    clock = clock_of(threads)
    start = clock()
    run()
    return clock() - start


def device_of(machine: Machine, layout: str, threads: int, start_s: float) -> Device | None:
    """``threads`` cores with the kernels of one layout; ``None`` for an instruction set that has no model.

    ``start_s``: seconds of the smallest product, measured.
    """
    if machine.isa not in UNITS:
        return None
    wide, pipes, shuffles, products = UNITS[machine.isa]
    clocks = machine.clock_hz * threads
    hint = f"assumed: Intel's cores with {machine.isa}"
    text = f'''
name = "this-cpu"
description = "The processor at hand"
kind = "cpu"
vendor = "unknown"
year = 2025
[sources]
run = "measured in this run"
[engines.vector]
fp32 = {{ value = "{clocks * pipes * wide / 4 * 2 / 1e9:.6g} GFLOP/s", source = "derived: fused multiply-adds" }}
int8 = {{ value = "{clocks * pipes * products * 2 / 1e9:.6g} GOP/s", source = "derived: byte products" }}
[compute]
units = {{ value = {threads}, source = "run" }}
clock = {{ value = "{machine.clock_hz / 1e6:.6g} MHz", source = "run" }}
[parameters]
vector_bytes = {{ value = {wide}, source = "{hint}" }}
vector_pipes = {{ value = {pipes}, source = "{hint}" }}
shuffles_per_clock = {{ value = {shuffles}, source = "{hint}" }}
{KERNEL_PARAMETERS[layout]}
[memory.dram]
capacity = {{ value = "1 GiB", source = "assumed: not used" }}
bandwidth = {{ value = "{machine.stream[threads] / 1e9:.6g} GB/s", source = "run" }}
energy = {{ value = "15 pJ/bit", source = "assumed: not used" }}
[power]
tdp = {{ value = "100 W", source = "assumed: not used" }}
idle = {{ value = "10 W", source = "assumed: not used" }}
[model]
matmul_efficiency = {{ value = 0.8, source = "assumed: as the Cortex-A76, hand-written kernels" }}
attention_efficiency = {{ value = 0.6, source = "assumed: not used" }}
vector_efficiency = {{ value = 0.7, source = "assumed: as the Cortex-A76" }}
memory_efficiency = {{ value = 1, source = "derived: the bandwidth is what a stream reached" }}
launch = {{ value = "{start_s * 1e6:.6g} us", source = "run" }}
link_efficiency = {{ value = 0.8, source = "assumed: not used" }}
'''
    return parse_device(text.encode(), "this machine", find_architecture)


def predict(device: Device, tokens: int, n: int, k: int, bits: int, weight_bytes: int) -> tuple[float, float, float]:
    """Seconds of one product by ``bits``-bit weights that take ``weight_bytes``, and their 90 % interval."""
    stored = weight_bytes * 8 / (n * k)
    m = B * Q
    x = Tensor(name="x", shape=(m, expr(k)), role="activation", format="fp32", bits=32)
    w = Tensor(name="w", shape=(expr(n), expr(k)), role="weight", format=f"int{bits}", bits=stored)
    y = Tensor(name="y", shape=(m, expr(n)), role="activation", format="fp32", bits=32)
    product = Operator(name="product", kind="matmul", format="fp32", dims={"m": m, "n": expr(n), "k": expr(k)},
                       flops=m * (2 * n * k), reads=(x, w), writes=(y,))  # fmt: skip
    block = Block(name="layer", repeat=1, operators=(product,), output="product")
    trace = Trace(model="product", format="fp32", hidden=k, vocabulary=n, blocks=(block,), order=(("layer", 1),))
    found = cost(trace, device, tokens, 1, 0)
    return float(found.latency_s[0]), float(found.low_s[0]), float(found.high_s[0])
