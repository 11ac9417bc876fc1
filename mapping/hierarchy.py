"""Memory levels above an array of multiply-accumulators: what a tiling is made for.

A :class:`Hierarchy` is a chain of memory levels, the outermost first, that ends in an :class:`Array`.
:func:`hierarchy_of` reads one from a device: its DRAM, the levels on the chip that its file gives, and its
arithmetic. Units: bytes, bytes/s, joules per bit, multiply-accumulates (MAC) per second, watts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isqrt

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..hw.array import KINDS as ARRAY_KINDS
from ..hw.array import engine_of
from ..hw.gemm import K_STEP, LIBRARIES, LOAD_BYTES_PER_CLOCK, TILES, GemmKernels, gemm_kernels
from ..hw.roofline import dram_energy
from ..hw.spec import Device, Memory
from ..hw.units import number_format
from ..rtl.areas import macs_per_cycle

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
ROLES = ("input", "weight", "output")
"""What an operand is: attention's keys and values take the place of weights."""
STATIONARY = ("output", "weight", "input")
"""The operand that an array holds while the others pass through it."""


@dataclass(frozen=True)
class Buffer:
    """One memory of a level: capacity (bytes), energy per bit read or written (J), the roles that it holds."""

    capacity_bytes: float
    energy_j_bit: float = 0.0
    roles: tuple[str, ...] = ROLES


@dataclass(frozen=True)
class Level:
    """One or several buffers, each role in exactly one; ``bandwidth_bytes_s`` is of the port that serves the next
    level inwards (or the array), both directions and all roles together; infinite where it bounds nothing."""

    name: str
    buffers: tuple[Buffer, ...]
    bandwidth_bytes_s: float = inf

    def __post_init__(self) -> None:
        held = sorted(role for buffer in self.buffers for role in buffer.roles)
        if held != sorted(ROLES):
            raise InputError(f"level {self.name}: its buffers hold {', '.join(held)}; accepted: each of "
                             f"{', '.join(ROLES)} once")  # fmt: skip
        if not min(self.bandwidth_bytes_s, *(b.capacity_bytes for b in self.buffers)) > 0:
            raise InputError(f"level {self.name}: bandwidth and capacities must be positive")
        if min(b.energy_j_bit for b in self.buffers) < 0:
            raise InputError(f"level {self.name}: an energy per bit is negative")

    def energy(self, role: str) -> float:
        """Joules per bit of ``role`` read or written here."""
        return next(b.energy_j_bit for b in self.buffers if role in b.roles)


@dataclass(frozen=True)
class Array:
    """``count`` arrays that together do ``macs_s`` multiply-accumulates per second.

    An array works on blocks of m × n × k, one of ``blocks`` (the tiling chooses which), and holds the operand
    ``stationary`` while the blocks of one tile pass. ``keeps_scores``: attention's scores stay in its registers
    between the two products. ``mac_j`` joules per multiply-accumulate of a block, idle lanes included;
    ``vector_ops_s`` and ``vector_j`` rate and energy of element-wise operations (softmax). ``tile_s``, of an array
    that holds outputs, gives the seconds of ``rounds`` blocks of outputs one after another, each of ``depth`` inputs,
    start and end of the pipeline included; without it a block takes its MACs over the rate. Not ``whole_rounds``:
    blocks are cut so that the last round is as full as the others (stream-K, persistent kernels).
    """

    blocks: tuple[tuple[int, int, int], ...]
    macs_s: float
    count: int = 1
    stationary: str = "output"
    mac_j: float = 0.0
    keeps_scores: bool = False
    vector_ops_s: float = inf
    vector_j: float = 0.0
    tile_s: Callable[[Ints, Ints], Floats] | None = None
    whole_rounds: bool = True

    def __post_init__(self) -> None:
        if self.stationary not in STATIONARY:
            raise InputError(f"array: {self.stationary!r} cannot be stationary; accepted: {', '.join(STATIONARY)}")
        sizes = [x for block in self.blocks for x in block]
        if not self.blocks or min(sizes) < 1 or self.count < 1 or not self.macs_s > 0 or not self.vector_ops_s > 0:
            raise InputError("array: blocks, count and rates must be positive")


@dataclass(frozen=True)
class Hierarchy:
    """``levels`` outermost first; the outermost holds the operands before and after, the others tiles of them.
    ``static_w`` is drawn all the time."""

    name: str
    levels: tuple[Level, ...]
    array: Array
    static_w: float = 0.0

    def __post_init__(self) -> None:
        if len(self.levels) < 2:
            raise InputError(f"hierarchy {self.name}: a tiling needs a memory level between DRAM and the array")


def hierarchy_of(device: Device, *, format: str = "fp16", weight_format: str | None = None) -> Hierarchy:
    """What ``device`` offers a product in ``format`` with weights stored as ``weight_format`` (as ``format``
    unless given).

    Shares of the rates that are reached are the device file's, see :func:`_shares`. Raises InputError for a device
    without a memory level on the chip, without an energy per bit of DRAM, or whose engines do not take the formats.
    What GPUs, TPUs and CPUs are taken for: ``docs/tiling.md``.
    """
    weights = weight_format or format
    if device.kind in ARRAY_KINDS:
        return _of_arrays(device, format, weights)
    if device.kind not in ("gpu", "tpu", "cpu"):
        raise InputError(f"device {device.name}: no tiling for its kind, {device.kind}; "
                         f"accepted: gpu, tpu, cpu, {', '.join(ARRAY_KINDS)}")  # fmt: skip
    number_format(weights)
    constants, power = device.model, device.power
    shares = _shares(device, format)
    rate = device.rate(format)[1].value * shares.rate / 2
    share = constants.static_share.value if constants.static_share else 0.0
    static = max(power.idle.value, share * power.tdp.value)
    transport = constants.transport_energy.value if constants.transport_energy else 0.0
    dram = _level("dram", device.dram, device.dram.bandwidth.value * shares.dram,
                  dram_energy(device) + transport)  # fmt: skip
    inner = [
        _level(
            name,
            memory,
            shares.ports.get(name, memory.bandwidth.value if memory.bandwidth else inf),
            float(memory.energy or 0.0),
        )
        for name, memory in sorted(device.memory.items(), key=lambda item: _depth(*item))
        if name != "dram"
    ]
    if not inner:
        raise InputError(f"device {device.name}: its file gives no memory level on the chip; a tiling needs one")
    library, together = _library(device)
    array = Array(
        blocks=_blocks(device, format), macs_s=rate, count=max(1, int(device.compute.units.value) // together),
        stationary="weight" if device.kind == "tpu" else "output", mac_j=(power.tdp.value - static) / rate,
        keeps_scores=device.kind == "gpu",
        vector_ops_s=device.rate("fp32", "vector")[1].value * constants.vector_efficiency.value,
        whole_rounds=library is None or library.quantised,
    )  # fmt: skip
    return Hierarchy(device.name, (dram, *inner), array, static)


@dataclass(frozen=True)
class _Shares:
    """Shares of the arithmetic rate and of the DRAM bandwidth that are reached; bandwidths (bytes/s) of levels whose
    ports were measured."""

    rate: float
    dram: float
    ports: dict[str, float]


def _shares(device: Device, format: str) -> _Shares:
    """Of a GPU's 16-bit arithmetic, the constants of its GEMM kernels that say the same of the same hardware: the rate
    that the power limit sustains, the share of DRAM, of L2 what all multiprocessors together load at 64 bytes per
    clock each (:mod:`..hw.gemm`). Else ``matmul_efficiency``, ``memory_efficiency`` and the file's bandwidths."""
    if device.kind == "gpu" and number_format(format).bits == 16 and "gemm" in device.kernels:
        kernels = gemm_kernels(device)[0]
        port = LOAD_BYTES_PER_CLOCK * device.compute.clock.value * device.compute.units.value
        return _Shares(kernels.sustained, kernels.dram_share, {"l2": port * kernels.l2_share})
    return _Shares(device.model.matmul_efficiency.value, device.model.memory_efficiency.value, {})


def _level(name: str, memory: Memory, bandwidth: float, energy: float) -> Level:
    return Level(name, (Buffer(memory.usable, energy),), bandwidth)


def _depth(name: str, memory: Memory) -> tuple[float, float]:
    """Sorts levels from the outermost: caches by their number, others by capacity."""
    number = re.fullmatch(r"l([1-9])", name)
    return (-float(number[1]) if number else -10.0), -memory.capacity.value


def _blocks(device: Device, format: str) -> tuple[tuple[int, int, int], ...]:
    """Blocks of one multiprocessor, core or array.

    A GPU's are the tiles of its GEMM library (:mod:`..hw.gemm`), k in steps of 32; where the blocks of a cluster
    share what they load, the cluster's, side by side either way. Elsewhere the arithmetic of a unit is taken as one
    square array: as many MACs per clock as the rate says.
    """
    if device.kind == "gpu":
        library, share = _library(device)
        both = {(m * c, n * share // c, K_STEP) for m, n in (library.tiles if library else TILES) for c in (1, share)}
        return tuple(sorted(both))
    clock, units = device.compute.clock.value, device.compute.units.value
    side = max(1, isqrt(round(device.rate(format)[1].value / 2 / clock / units)))
    return ((1, side, side),) if device.kind == "tpu" else ((side, side, 1),)


def _library(device: Device) -> tuple[GemmKernels | None, int]:
    """The GEMM library that a GPU's file names, and how many multiprocessors share what they load."""
    library = LIBRARIES.get(str(device.kernels.get("gemm", {}).get("library")))
    return library, round(library.multicast) if library else 1


def _of_arrays(device: Device, format: str, weights: str) -> Hierarchy:
    """A device of arrays of a hardware unit: its tile of outputs stays, operands come from a buffer each."""
    engine, arrays = engine_of(device), device.arrays
    assert arrays is not None  # engine_of refuses a device without them
    taken = {"weight": arrays.weights.get(weights, weights), "activation": arrays.activations.get(format, format)}
    held = {"weights": ("weight",), "activations": ("input", "output")}
    missing = [name for name in held if name not in device.memory]
    if missing:
        raise InputError(
            f"device {device.name}: memory.{missing[0]} is missing; a tiling needs buffers of the arrays' own"
        )
    try:
        rows, columns = engine.unit.tile(taken, engine.config)
        rate = macs_per_cycle(engine.unit, engine.config, taken) * engine.count * engine.clock_hz
    except InputError as error:
        raise InputError(f"device {device.name}: {error}") from None
    buffers = tuple(
        Buffer(device.memory[name].usable, float(device.memory[name].energy or 0.0), roles)
        for name, roles in held.items()
    )

    def tile_s(rounds: Ints, depth: Ints) -> Floats:
        shape = {"m": rows, "n": columns * rounds, "k": depth}
        return np.asarray(engine.unit.cycles(shape, taken, engine.config)) / engine.clock_hz

    vector = device.rate("fp32", "vector")[1].value * device.model.vector_efficiency.value
    bandwidth = device.dram.bandwidth.value * device.model.memory_efficiency.value
    array = Array(
        ((rows, columns, 1),), rate, engine.count, "output", engine.power_w * engine.count / rate,
        vector_ops_s=vector, vector_j=float(device.parameters.get("vector_energy") or 0.0),
        tile_s=tile_s,
    )  # fmt: skip
    dram = _level("dram", device.dram, bandwidth, dram_energy(device))
    return Hierarchy(device.name, (dram, Level("buffers", buffers)), array, device.power.idle.value)
