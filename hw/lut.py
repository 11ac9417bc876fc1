"""Lookup-table tensor cores: alone as arrays, or in a GPU beside the tensor cores that it has.

Without a host a device of this kind is one of arrays (:mod:`.array`). With a GPU as ``host`` it is that GPU, the
device file's own numbers in the place of its, whose products of narrow weights run on arrays of a lookup unit in its
multiprocessors; everything else (16-bit products, attention, element-wise kernels) is the GPU's (:mod:`.gpu`):

    rate      = 2 · multiply-accumulates of an array per cycle · arrays · clock, by the unit's cycle model: one cycle
                per bit of a weight
    seconds   = max(GEMM of :mod:`.gemm` at that rate, cycles of the arrays' tiles / clock)

So a product is fed as the GPU's own GEMMs are: same tiles, loads from L2, DRAM, launch and write-back, with the
weights as narrow as they are stored; nothing is dequantised. Tables are made in the unit, beside its products.
``parameters.registers`` is the
register file over the host's: sums of a tile lie there, so twice as many hold a tile twice as large, which halves
one operand's loads. Operands are loaded in the width of the arithmetic. Energy of those products: the arrays'
power while they work; what registers and shared memory take to feed them is not known and left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..rtl.areas import macs_per_cycle
from ..workloads.compiled import CompiledTrace, Row
from ..workloads.expr import expr
from ..workloads.expr_functions import Array
from . import array, gpu
from .array import ArrayModel, Engine, Product, Work, engine_of, work_of
from .card import card_of
from .gemm import GemmKernels, gemm_kernels
from .gemm_table import gemm_table
from .gpu import Answer, GpuModel, Kernel, Points, reason_of_limit
from .parameters import parameter
from .spec import Device
from .units import number_format

KINDS = ("lut",)
ONE = expr(1)
peak, constants = array.peak, array.constants


@dataclass(frozen=True)
class Lookup:
    """A product on the arrays: its row, what the arrays take it as, and FLOP/s of all arrays in those formats."""

    row: int
    work: Work
    rate: float


def prepare(compiled: CompiledTrace, device: Device) -> ArrayModel | GpuModel:
    """What every row does on ``device``. Raises ``InputError`` for what it or its host lacks."""
    if device.host is None:
        return array.prepare(compiled, device)
    card, engine = card_view(device), engine_of(device)
    base = gpu.prepare(compiled, card)
    rows = [found for i, row in enumerate(compiled.rows) if (found := lookup_of(i, row, engine, device)) is not None]
    return _with_arrays(base, compiled, card, engine, rows)


def card_view(device: Device) -> Device:
    """The GPU that ``device`` is without its arrays: its own numbers, and its host's kernels and constants.

    Raises ``InputError`` for a host that is no GPU, and a device without a matrix engine.
    """
    host = device.host
    if host is None or host.kind not in gpu.KINDS:
        raise InputError(f"device {device.name}: its host must be a GPU")
    if "matrix" not in device.engines:
        raise InputError(f"device {device.name}: engines.matrix is missing; the arrays take no 16-bit products")
    fields = type(device.model).model_fields
    model = {name: value for name in fields if (value := getattr(device.model, name) or getattr(host.model, name))}
    return device.model_copy(
        update={
            "kind": host.kind, "arrays": None, "kernels": host.kernels | device.kernels,
            "intervals": host.intervals | device.intervals, "model": device.model.model_copy(update=model),
        }
    )  # fmt: skip


def lookup_of(i: int, row: Row, engine: Engine, device: Device) -> Lookup | None:
    """How the arrays do a row: a product of stored weights in formats that the unit takes, else None."""
    op = row.operator
    if op.kind != "matmul" or not op.weights or op.weights[0].bits >= 16:
        return None
    work = work_of(i, row, engine, device)
    if work is None:
        return None
    rate = 2 * macs_per_cycle(engine.unit, engine.config, work.format) * engine.count * engine.clock_hz
    return Lookup(i, work, rate)


def _with_arrays(
    base: GpuModel, compiled: CompiledTrace, card: Device, engine: Engine, lookups: list[Lookup]
) -> GpuModel:
    """``base`` with the rows of ``lookups`` on the arrays: kernels of their own, no dequantisation, other energy."""
    ours = {lookup.row for lookup in lookups}
    roof = base.base
    times = roof.matrix.reshape(len(roof.reasons), len(compiled.rows), -1).copy()
    compute_j = roof.energy["compute"].copy()
    for lookup in lookups:
        if "dequantisation" in roof.reasons:
            times[roof.reasons.index("dequantisation"), lookup.row] = 0.0
        of_one = lookup.rate / engine.count
        compute_j[lookup.row] = compiled.coefficients["flops"][lookup.row] * engine.power_w / of_one
    kernels = [k for k in base.kernels if k.row not in ours]
    kernels += [_kernel(lookup, compiled, card, engine) for lookup in lookups]
    launch = base.launch.copy()
    for kernel in kernels:
        launch[kernel.row] = kernel.launch_s
    changed = replace(roof, matrix=times.reshape(roof.matrix.shape), energy=roof.energy | {"compute": compute_j})
    return replace(base, base=changed, kernels=tuple(kernels), launch=launch)


def larger_tiles(kernels: GemmKernels, registers: float) -> GemmKernels:
    """``kernels`` with the tiles that a register file ``registers`` times as large holds: twice as wide, or high,
    as one of theirs, and no larger than so many times their largest."""
    most = registers * max(bm * bn for bm, bn in kernels.tiles)
    tiles = dict.fromkeys(kernels.tiles)
    for bm, bn in kernels.tiles:
        tiles |= dict.fromkeys(t for t in ((bm, 2 * bn), (2 * bm, bn)) if t[0] * t[1] <= most)
    return replace(kernels, tiles=tuple(tiles)) if registers > 1 and not kernels.up_to else kernels


def _kernel(lookup: Lookup, compiled: CompiledTrace, device: Device, engine: Engine) -> Kernel:
    registers = parameter(device, "registers", 1.0)
    op, work, card = compiled.rows[lookup.row].operator, lookup.work, card_of(device)
    constants, kernels = gemm_kernels(device)
    kernels = larger_tiles(kernels, registers)
    launch_s = constants.launch_clocks / card.clock_hz
    n, k, batch = (op.dims.get(name, ONE).constant for name in ("n", "k", "batch"))
    if n is None or k is None or batch is None:
        raise InputError(f"device {device.name}: {op.name} has weights whose size depends on the batch")
    bits = min(work.activation_bits, float(number_format(op.format).bits))
    out = next((float(t.bits) for t in op.writes if t.role == "activation"), 16.0)
    table = gemm_table(
        n, k, card, constants, kernels, rate=lookup.rate, bits=bits, weight_bits=work.weight_bits,
        out_bits=out, batch=batch,
    )  # fmt: skip

    def cycles(at: Points) -> Array:
        total = np.zeros(())
        for product in work.products(at):
            total = total + _seconds(engine, product, work)
        return total

    def time(at: Points) -> Answer:
        seconds, limit = table.at(at.place(op.dims["m"]))
        arrays = cycles(at)
        slower = arrays > seconds - launch_s
        return np.maximum(seconds - launch_s, arrays), np.where(slower, 0, reason_of_limit(limit))

    return Kernel(lookup.row, launch_s, time)


def _seconds(engine: Engine, product: Product, work: Work) -> Array:
    """Seconds of the arrays alone, operands at hand."""
    return engine.cost(product, work)[0]
