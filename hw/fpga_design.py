"""An FPGA design as its device file describes it: chains, buffers, channels, and what they take of the part.

The part is divided into ``regions`` (super logic regions) of equal content; each holds ``compute.units`` / regions
chains of a unit of ``rtl/`` (``[arrays]``), buffers, and the element-wise engine. Two arrangements of a region's
chains are taken from the design: *vector* (``vector_chains`` chains with weights of their own, ``vector_outputs``
outputs per instruction) and *matrix* (all chains; ``matrix_tokens`` × ``matrix_outputs`` per instruction).

    DSP    lanes · packed products / products per DSP slice, of all chains, + ``region_dsp`` per region
    BRAM   banks of a buffer × 36-Kbit blocks of a bank of its depth and width, + ``region_bram``, ``shell_bram``
    URAM   the same with blocks of 4096 × 72 bit, for the weights
    LUT    lanes · (8 bit · packed vectors · LUTs of a multiplexer over a block) + ``region_lut``, ``shell_lut``
    FF     lanes · (delay of weight and activations to the lane's place in its cascade + its registers) + the same

A multiplexer of M inputs takes M/4 LUTs and the slice's own F7 and F8 multiplexers (UG574). Left out: LUTs that
routing and control sets make unusable, so a design near 100 % need not route.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..rtl.units import Unit, load_unit
from ..workloads.expr import Expr
from ..workloads.trace import Operator
from .parameters import parameter, whole
from .spec import Device

BLOCK_RAM = ((512, 72), (1024, 36), (2048, 18), (4096, 9), (8192, 4), (16384, 2), (32768, 1))
"""Depth and width of one 36-Kbit block RAM in its modes (UG573)."""
ULTRA_RAM = ((4096, 72),)
"""Depth and width of one UltraRAM (UG573)."""
BUFFERS = {"weights": ("uram", ULTRA_RAM), "inputs": ("bram", BLOCK_RAM), "outputs": ("bram", BLOCK_RAM),
           "indices": ("bram", BLOCK_RAM)}  # fmt: skip
"""Buffers of a region by name: which resource holds them, and the modes of its blocks."""
RESOURCES = ("dsp", "bram", "uram", "lut", "ff")
ACTIVATION_BITS = 8
OUTPUT_REGISTERS = 24
"""Flip-flops of a lane beyond its delay line: index (log2 M), valid and mode bits, registers before the DSP."""


@dataclass(frozen=True)
class Use:
    """Of one resource: how much the design takes, and how much the part has."""

    used: int
    available: int

    @property
    def share(self) -> float:
        return self.used / self.available


@dataclass(frozen=True)
class Design:
    """What the cost model needs of the design. ``chains`` are those of one region; sizes in bytes, rates per second.

    ``stream_bytes_s`` and ``crossing_bytes_s``: what the channels that feed the weight buffers give within a region
    and across regions; ``gather_bytes_s``: one channel across regions, on which a vector is exchanged.
    """

    unit: Unit
    config: dict[str, int]
    regions: int
    chains: int
    clock_hz: float
    vector_chains: int
    vector_outputs: int
    matrix_tokens: int
    matrix_outputs: int
    vector_buffer: float
    weight_buffer: float
    resident: float
    element_lanes: int
    dequantisation_lanes: int
    stream_bytes_s: float
    crossing_bytes_s: float
    gather_bytes_s: float

    @property
    def outputs_per_chain(self) -> int:
        """Outputs that one chain computes of a vector instruction."""
        return -(-self.vector_outputs // self.vector_chains)


def design_of(device: Device) -> Design:
    """The design of ``device``.

    Raises ``InputError`` for what its file lacks, parameters its unit refuses, chains that do not divide into
    regions, a clock above the part's, and a design that needs more than the part has.
    """
    arrays = device.arrays
    if arrays is None:
        raise InputError(f"device {device.name}: an fpga device needs [arrays], the unit its chains are")
    try:
        unit = load_unit(arrays.unit)
        config = unit.check({name.upper(): round(q.value) for name, q in arrays.parameters.items()})
    except InputError as error:
        raise InputError(f"device {device.name}: arrays: {error}") from None
    count, regions = round(device.compute.units.value), whole(device, "regions")
    if count % regions:
        raise InputError(f"device {device.name}: {count} chains in {regions} regions; accepted: the same in each")
    clock, fastest = device.compute.clock.value, parameter(device, "part_clock")
    if clock > fastest:
        raise InputError(
            f"device {device.name}: compute.clock {clock / 1e6:g} MHz is {(clock - fastest) / 1e6:g} MHz above what "
            f"the part's DSP slices reach; accepted: at most {fastest / 1e6:g} MHz"
        )
    channels, fed = whole(device, "channels"), whole(device, "weight_channels")
    if fed > channels or fed % regions:
        raise InputError(
            f"device {device.name}: parameters.weight_channels {fed} of {channels} channels for {regions} regions; "
            "accepted: the same number in each region, at most all"
        )
    channel = device.dram.bandwidth.value / channels
    same, across = device.model.memory_efficiency.value, parameter(device, "cross_channel")
    tokens, outputs, chains = whole(device, "matrix_tokens"), whole(device, "matrix_outputs"), count // regions
    pack = unit.tile({"weight": "int8", "activation": "int8"}, config)[0]
    if tokens * outputs % (chains * pack):
        raise InputError(
            f"device {device.name}: {tokens} x {outputs} outputs of a matrix instruction by {chains} chains of {pack}; "
            "accepted: a multiple"
        )
    check_fit(device, resources(device))
    held = device.memory.get("activations")
    return Design(
        unit=unit, config=config, regions=regions, chains=chains, clock_hz=clock,
        vector_chains=min(whole(device, "vector_chains"), chains), vector_outputs=whole(device, "vector_outputs"),
        matrix_tokens=tokens, matrix_outputs=outputs, vector_buffer=parameter(device, "vector_buffer"),
        weight_buffer=buffer_bytes(device, "weights"), resident=held.capacity.value if held else 0.0,
        element_lanes=whole(device, "element_lanes"), dequantisation_lanes=whole(device, "dequantisation_lanes"),
        stream_bytes_s=fed * channel * same, crossing_bytes_s=fed * channel * across, gather_bytes_s=channel * across,
    )  # fmt: skip


def resources(device: Device) -> dict[str, Use]:
    """What the design of ``device`` takes of its part, by resource: DSP slices, block RAMs (36 Kbit), UltraRAMs,
    LUTs, flip-flops. Raises ``InputError`` for what the file lacks; a design too large is told by :func:`check_fit`."""
    if device.arrays is None:
        raise InputError(f"device {device.name}: an fpga device needs [arrays], the unit its chains are")
    config = load_unit(device.arrays.unit).check(
        {name.upper(): round(q.value) for name, q in device.arrays.parameters.items()}
    )
    lanes = round(device.compute.units.value) * config["LANES"]
    pack, block, segment = config["PACK"], config["M"], config["SEGMENT"]
    regions = whole(device, "regions")
    products = lanes * pack
    per_lane = {
        "dsp": 0.0,
        "lut": ACTIVATION_BITS * pack * max(block / 4, 1),
        "ff": (segment - 1) / 2 * (config["WEIGHT_WIDTH"] + ACTIVATION_BITS * pack) + OUTPUT_REGISTERS,
    }
    used = {kind: round(lanes * per_lane.get(kind, 0.0)) for kind in RESOURCES}
    used["dsp"] += -(-products // whole(device, "products_per_dsp"))
    for name, (kind, modes) in BUFFERS.items():
        banks, depth, width = _bank(device, name)
        used[kind] += regions * banks * blocks(depth, width, modes)
    for kind in RESOURCES:
        used[kind] += regions * _optional(device, f"region_{kind}") + _optional(device, f"shell_{kind}")
    return {kind: Use(used[kind], whole(device, f"part_{kind}")) for kind in RESOURCES}


def check_fit(device: Device, uses: dict[str, Use]) -> None:
    """Raises ``InputError`` that says of which resources the design takes how much more than the part has."""
    over = [f"{use.used - use.available:,} {kind.upper()} too many ({use.used:,} of {use.available:,})"
            for kind, use in uses.items() if use.used > use.available]  # fmt: skip
    if over:
        raise InputError(f"device {device.name}: the design does not fit its part: {'; '.join(over)}")


def resource_lines(device: Device) -> list[str]:
    """The resources as one line of provenance: ``design takes 6,345 of 9,024 DSP (70 %), …``."""
    parts = [f"{u.used:,} of {u.available:,} {kind.upper()} ({u.share:.0%})" for kind, u in resources(device).items()]
    return [f"design takes {', '.join(parts)}"]


def blocks(depth: int, width_bits: int, modes: tuple[tuple[int, int], ...]) -> int:
    """Fewest RAM blocks that hold ``depth`` words of ``width_bits``, all in one of the block's ``modes``."""
    return min(-(-depth // deep) * -(-width_bits // wide) for deep, wide in modes)


def buffer_bytes(device: Device, name: str) -> float:
    """Bytes of the buffer ``name`` of one region."""
    banks, depth, width = _bank(device, name)
    return banks * depth * width / 8


def _bank(device: Device, name: str) -> tuple[int, int, int]:
    """Banks of a region's buffer, words of a bank, bits of a word."""
    width = parameter(device, f"{name}_width") * 8
    return whole(device, f"{name}_banks"), whole(device, f"{name}_depth"), round(width)


def activation_bytes(op: Operator) -> Expr:
    """Bytes of activations that ``op`` reads and writes, as the chip keeps them: at 8 bits where they are wider."""
    kept = (t for t in (*op.reads, *op.writes) if t.role in ("activation", "index"))
    return sum((t.bytes * min(ACTIVATION_BITS / t.bits, 1.0) for t in kept), op.flops * 0)


def _optional(device: Device, name: str) -> int:
    return whole(device, name) if name in device.parameters else 0
