"""CPUs: the roofline (:mod:`.roofline`), and kernels that multiply by weights of 1 to 4 bits without dequantising them.

A device file says in [parameters] what its vector unit does and which kernels it has:

    vector_bytes        bytes of a vector register
    vector_pipes        vector instructions per clock and core
    shuffles_per_clock  of these, byte shuffles (table lookups: tbl, vpshufb)
    lookup_ops          vector instructions per vector of lookups; given: it has lookup kernels
    unpack_ops          vector instructions per vector of unpacked weights; given: it has integer kernels, which
                        multiply unpacked weights by 8-bit activations at the int8 rate
    core_bandwidth      DRAM bandwidth that one core can draw

Products by such weights take the kernel that is quickest at that point: dequantise and multiply (as the roofline
has it), lookup, or integer. Lookup (T-MAC, EuroSys 2025, arXiv:2407.00088): one lookup replaces 4 weights' products
with one bit plane of them, so

    lookups = M N K · bits / 4
    rate    = cores · clock · vector_bytes · min(shuffles_per_clock, vector_pipes / lookup_ops)
    tables  = M K / 4 tables of 16 entries, TABLE_OPS vector instructions per vector of entries at work (2 bytes each)
    time    = max(bytes / bandwidth, (lookups / rate + tables) / achievable share)

    integer = max(bytes / bandwidth, (2 M N K / int8 rate + N K · unpack_ops / (vector_bytes · pipes · clock)) / share)

The share is the device's for matrix products, whatever the kernel. Left out: loads, which issue beside vector
instructions on the cores described here; the end of each group, widening and scales (of kernels/cpu, some 30
instructions per 64 outputs beside 176 · bits of lookups at a group of 128: 17 % at 1 bit, 4 % at 4); the way of
unpacked weights through the first cache; what threads wait for one another beyond the launch time. Energy: the
arithmetic draws the rated power as long as it takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from ..workloads.compiled import CompiledTrace, Row
from ..workloads.expr import expr
from ..workloads.expr_functions import Array
from . import roofline
from .cost import RowCosts
from .parameters import parameter
from .roofline import Index, RooflineModel, within_power
from .spec import Device

KINDS = ("cpu",)
QUAD = 4
"""Weights of one lookup."""
TABLE_OPS = 10
"""Vector instructions per vector of 16-bit table entries: 3 signed sums of a spread-out activation (spread, multiply,
add), and the rounding to 8 bits; counted in ``kernels/cpu/emit.py``."""
MOST_BITS = 4
REASON = "lookup"
PARAMETERS = ("vector_bytes", "vector_pipes", "shuffles_per_clock")


@dataclass(frozen=True)
class LowBitModel(RooflineModel):
    """A roofline whose rows ``narrow`` may do their arithmetic otherwise.

    ``other`` (kernels, narrow rows, basis) are seconds of arithmetic of the other kernels, ``names`` the reason
    each of them is a case of.
    """

    narrow: Index
    names: tuple[str, ...]
    other: Array

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`. Lookups and arithmetic keep the same units busy."""
        found = super().rows(basis)
        busy = dict(found.busy_s)
        if REASON in busy:
            busy["compute"] = busy["compute"] + busy.pop(REASON)
        return replace(found, busy_s=busy)

    def resources(self, basis: Array) -> Array:
        """See :meth:`.roofline.RooflineModel.resources`."""
        return self._chosen(basis)[0]

    def energies(self, basis: Array, time: Array) -> dict[str, Array]:
        """See :meth:`.roofline.RooflineModel.energies`."""
        _, seconds = self._chosen(basis)
        energy = {part: m @ basis for part, m in self.energy.items()}
        taken = energy["compute"][self.narrow]
        energy["compute"][self.narrow] = np.where(np.isnan(seconds), taken, seconds * self.dynamic_limit_w)
        return within_power(energy, self.dynamic_limit_w * time)

    def _chosen(self, basis: Array) -> tuple[Array, Array]:
        """Seconds (reasons, rows, points), and those of the kernel taken by narrow rows (NaN: the roofline's)."""
        times = super().resources(basis)
        arithmetic = [self.reasons.index(r) for r in ("compute", "dequantisation") if r in self.reasons]
        least = np.max(times[np.array(arithmetic)[:, None], self.narrow], axis=0)
        taken = np.full_like(least, np.nan)
        for name, coefficients in zip(self.names, self.other, strict=True):
            seconds = coefficients @ basis
            better = seconds < least
            least = np.where(better, seconds, least)
            taken = np.where(better, seconds, taken)
            for i, reason in enumerate(self.reasons):
                if reason in (REASON, "compute", "dequantisation"):
                    here = times[i, self.narrow]
                    times[i, self.narrow] = np.where(better, seconds if reason == name else 0.0, here)
        return times, taken


def prepare(compiled: CompiledTrace, device: Device) -> RooflineModel:
    """Resource times of every row on ``device``. Raises ``InputError`` for what the device lacks."""
    device = _with_bandwidth_of_cores(device)
    base = roofline.prepare(compiled, device)
    kernels = [name for name, key in ((REASON, "lookup_ops"), ("compute", "unpack_ops")) if key in device.parameters]
    planes = {i: bits for i, row in enumerate(compiled.rows) if (bits := code_bits(row))}
    if not kernels or not planes:
        return base
    for key in PARAMETERS:
        parameter(device, key)  # what is missing shows now, by its name
    share = device.model.matmul_efficiency.value
    flops, elements = compiled.coefficients["flops"], compiled.coefficients["weight_elements"]
    other = []
    for name in kernels:
        rows = []
        for i, bits in planes.items():
            if name == REASON:
                reads = compiled.rows[i].operator.reads
                inputs = sum((t.elements for t in reads if t.role == "activation"), start=expr(0))
                seconds = flops[i] / 2 * bits / QUAD / lookup_rate(device) + compiled.vector(inputs) * table_s(device)
            else:
                seconds = flops[i] / device.rate("int8")[1].value + elements[i] * unpack_s(device)
            rows.append(seconds / share)
        other.append(rows)
    narrow = np.array(list(planes), dtype=np.intp)
    reasons = (*base.reasons, REASON) if REASON in kernels else base.reasons
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
    if REASON in kernels:
        as_compute = base.reasons.index("compute")
        fields["matrix"] = np.concatenate([base.matrix, np.zeros_like(flops)])
        fields["low"], fields["high"] = (np.vstack([x, x[as_compute]]) for x in (base.low, base.high))
    fields["reasons"] = reasons
    return LowBitModel(**fields, narrow=narrow, names=tuple(kernels), other=np.array(other))


def lookup_rate(device: Device) -> float:
    """Lookups per second of all cores: M N K · bits / 4 are needed."""
    per_clock = min(parameter(device, "shuffles_per_clock"),
                    parameter(device, "vector_pipes") / parameter(device, "lookup_ops"))  # fmt: skip
    return _vector_clock(device) * per_clock


def table_s(device: Device) -> float:
    """Seconds per activation to make tables: a fourth of 16 entries of 2 bytes."""
    return 16 / QUAD * 2 * TABLE_OPS / (_vector_clock(device) * parameter(device, "vector_pipes"))


def unpack_s(device: Device) -> float:
    """Seconds per weight to unpack it to a byte."""
    return parameter(device, "unpack_ops") / (_vector_clock(device) * parameter(device, "vector_pipes"))


def code_bits(row: Row) -> int:
    """Bits of the codes of a product's weights if low-bit kernels take them, else 0."""
    op = row.operator
    if op.kind not in ("matmul", "experts") or not op.weights:
        return 0
    label = op.weights[0].format
    found = re.fullmatch(r"int(\d)(-g\d+)?", label)
    bits = 2 if label == "ternary" else int(found[1]) if found else 0
    return bits if bits <= MOST_BITS else 0


def _with_bandwidth_of_cores(device: Device) -> Device:
    """``device`` with no more DRAM bandwidth than its cores can draw together."""
    per_core, dram = device.parameters.get("core_bandwidth"), device.dram
    if per_core is None:
        return device
    share = device.model.memory_efficiency.value  # the limit is of what arrives
    least = min(dram.bandwidth.value, per_core.value * device.compute.units.value / share)
    drawn = dram.model_copy(update={"bandwidth": dram.bandwidth.model_copy(update={"value": least})})
    return device.model_copy(update={"memory": {**device.memory, "dram": drawn}})


def _vector_clock(device: Device) -> float:
    """Bytes per second that one vector instruction per clock of every core works on."""
    return device.compute.units.value * device.compute.clock.value * parameter(device, "vector_bytes")
