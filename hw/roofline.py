"""Roofline cost model of TPUs, and what those of GPUs (:mod:`.gpu`) and CPUs (:mod:`.lut_cpu`) build on.

Per operator execution (Williams et al., CACM 52(4), 2009, with launch time added):

    time = launch + max(compute, dram, dequantisation, network)

    compute        FLOPs / (rate of the number format × achievable share of it)
    dram           bytes moved / (DRAM bandwidth × achievable share of it); attention has shares and
                   a launch time of its own (its kernels synchronise more and reduce at the end)
    dequantisation 2 operations per weight stored narrower than the arithmetic / vector rate
    network        collectives only, start included, see :mod:`.collective`

Matmuls, attention and experts run on the matrix engine, everything else on the vector engine. The
achievable shares and the launch time are the device file's ``[model]`` table, fitted or assumed, with
their source. Left out: tile and wave quantisation, L2 reuse, overlap between operators.

Energy: static power over the whole time, DRAM energy and transport energy per bit moved, and
arithmetic energy per FLOP such that arithmetic at the achievable rate draws the rated power:
e(format) = (TDP − static) / (rate(format) × achievable share). Where the parts together would exceed
the rated power, the card's power management holds it there, and the dynamic parts shrink alike.
Static power and transport energy were fitted on servers (``validation/power.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..workloads.compiled import CompiledTrace, Row
from ..workloads.expr_functions import Array
from ..workloads.trace import Operator
from .collective import collective_time
from .cost import Errors, RowCosts
from .moe import kernels_name
from .spec import Device, Interval
from .units import number_format

KINDS = ("tpu",)
MATRIX_KINDS = frozenset({"matmul", "attention", "experts", "router"})
DEQUANTISATION_FLOPS = 2
"""Operations per narrow weight: one multiply by the scale, one add of the zero point."""
Index = npt.NDArray[np.intp]
RESOURCES = ("compute", "dram", "dequantisation", "network")


@dataclass(frozen=True)
class Collective:
    """A row that crosses links: its bytes over the trace's basis, and seconds of so many bytes."""

    row: int
    size: Array
    time_s: Callable[[Array | float], Array]


@dataclass(frozen=True)
class RooflineModel:
    """Coefficients of resource times over the trace's basis; built by :func:`prepare`."""

    reasons: tuple[str, ...]
    static_power_w: float
    power_interval: tuple[float, float]
    low: Array
    high: Array
    errors: Errors
    matrix: Array
    collectives: tuple[Collective, ...]
    launch: Array
    energy: dict[str, Array]
    dynamic_limit_w: float

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`."""
        times = self.resources(basis)
        overlapped, bound = longest(times)
        launch = np.broadcast_to(self.launch[:, None], overlapped.shape)
        time = overlapped + launch
        busy = dict(zip(self.reasons, times, strict=True))
        return RowCosts(time, launch, bound, bound, self.energies(basis, time), busy)

    def resources(self, basis: Array) -> Array:
        """Seconds that each row keeps each resource busy: (reasons, rows, points)."""
        times = (self.matrix @ basis).reshape(len(self.reasons), self.launch.size, basis.shape[1])
        for c in self.collectives:
            times[self.reasons.index("network"), c.row] = c.time_s(c.size @ basis)
        return times

    def energies(self, basis: Array, time: Array) -> dict[str, Array]:
        """Joules by part of rows that take ``time`` seconds: power beyond the rated one is not drawn."""
        return within_power({part: m @ basis for part, m in self.energy.items()}, self.dynamic_limit_w * time)


def longest(times: Array) -> tuple[Array, Index]:
    """Seconds of what takes longest, and its index into the reasons: (rows, points) each."""
    if len(times) == 2:  # comparing is five times as fast as searching
        return np.maximum(times[0], times[1]), (times[1] > times[0]).astype(np.intp)
    return np.max(times, axis=0), np.argmax(times, axis=0)


def within_power(energy: dict[str, Array], limit_j: Array) -> dict[str, Array]:
    """Joules by part, all of them shrunk alike where together they exceed ``limit_j``, what may be drawn meanwhile."""
    drawn: Array = reduce(np.add, energy.values())  # np.sum would copy all parts into one array first
    if (drawn <= limit_j).all():
        return energy
    share = np.divide(limit_j, drawn, out=np.ones_like(drawn), where=drawn > limit_j)
    return {part: joules * share for part, joules in energy.items()}


def prepare(compiled: CompiledTrace, device: Device) -> RooflineModel:
    """Resource times of every row on ``device``. Raises ``InputError`` for what the device lacks."""
    coefficients, rows = compiled.coefficients, compiled.rows
    constants, dram = device.model, device.dram
    dynamic_w, static_w = _power(device)
    vector_rate = device.rate("fp32", engine="vector")[1].value * constants.vector_efficiency.value

    moved = coefficients["weight_bytes"] + coefficients["kv_bytes"] + coefficients["activation_bytes"]
    compute, streams, launch = np.empty_like(moved), np.empty_like(moved), np.empty(len(rows))
    compute_energy = np.empty_like(moved)
    collectives = []
    for i, row in enumerate(rows):
        peak = _rate(row, device)
        of_rate, of_bandwidth, launch[i] = _shares(row, device)
        compute[i] = coefficients["flops"][i] / (peak * of_rate)
        streams[i] = moved[i] / (dram.bandwidth.value * of_bandwidth)
        compute_energy[i] = coefficients["flops"][i] * dynamic_w / (peak * of_rate)
        if row.operator.kind == "collective":
            launch[i] = 0.0  # the collective's own start is in its time
            collectives.append(collective_of(i, compiled, device))
    times = {
        "compute": compute,
        "dram": streams,
        "dequantisation": coefficients["weight_elements"] * (DEQUANTISATION_FLOPS / vector_rate),
        "network": np.zeros_like(moved),
    }
    used = {"compute": True, "dram": True, "network": bool(collectives)}
    reasons = tuple(r for r in RESOURCES if used.get(r) or times[r].any())
    low, high = sides(compiled, device, reasons)
    return RooflineModel(
        reasons=reasons,
        static_power_w=static_w,
        power_interval=power_interval(device),
        low=low,
        high=high,
        errors=errors_of(compiled, device),
        matrix=np.concatenate([times[r] for r in reasons]),
        collectives=tuple(collectives),
        launch=launch,
        energy={
            "compute": compute_energy,
            "dram": moved * 8 * dram_energy(device),
            "transport": moved * 8 * (constants.transport_energy.value if constants.transport_energy else 0.0),
        },
        dynamic_limit_w=dynamic_w,
    )


def collective_of(row: int, compiled: CompiledTrace, device: Device) -> Collective:
    """The collective that row ``row`` is, over ``device``'s links. Raises ``InputError`` for a link that is missing."""
    op = compiled.rows[row].operator
    world = round(op.dims["world"].constant or 1)
    time_s = partial(collective_time, str(op.attrs["collective"]), world=world, device=device)
    time_s(0.0)  # a link that is missing shows now
    return Collective(row, compiled.vector(op.dims["bytes"]), time_s)


def _rate(row: Row, device: Device) -> float:
    engine = "matrix" if row.operator.kind in MATRIX_KINDS else "vector"
    fmt = row.operator.format if engine == "matrix" else "fp32"
    return device.rate(fmt, engine=engine)[1].value


def _shares(row: Row, device: Device) -> tuple[float, float, float]:
    """Achievable share of the rate, of DRAM bandwidth, and launch seconds of a row's kernels."""
    m, kind = device.model, row.operator.kind
    if kind == "attention":
        streams, launch = m.attention_memory_efficiency or m.memory_efficiency, m.attention_launch or m.launch
        return m.attention_efficiency.value, streams.value, launch.value
    compute = m.matmul_efficiency if kind in MATRIX_KINDS else m.vector_efficiency
    return compute.value, m.memory_efficiency.value, m.launch.value


def family(op: Operator) -> str:
    """Operators whose errors go together: matmul, attention, latent, experts, network or vector."""
    if op.kind == "attention":
        return "latent" if "latent_dim" in op.dims else "attention"
    if op.kind in MATRIX_KINDS:
        return "experts" if op.kind == "experts" else "matmul"
    return "network" if op.kind == "collective" else "vector"


def interval(op: Operator, reason: str, device: Device) -> Interval:
    """Interval of ``op`` where ``reason`` (or its start: ``small``) binds it.

    Raises ``InputError`` where the device has none.
    """
    group = family(op)
    whole = {"latent": "attention", "experts": "matmul"}.get(group, group)
    regimes = _narrow(op) if "gemm" in device.kernels else []
    regimes += [f"{group}_{reason}", group, f"{whole}_{'compute' if reason == 'compute' else 'dram'}"]
    for regime in regimes:
        if regime in device.intervals:
            return device.intervals[regime]
    missing = regimes[-1] if whole in ("attention", "matmul") else group
    raise InputError(f"device {device.name}: intervals.{missing} is missing; no estimate without an interval")


def sides(compiled: CompiledTrace, device: Device, regimes: Sequence[str]) -> tuple[Array, Array]:
    """Lower and upper ends of the intervals of every row in each of ``regimes``: (regimes, rows) each.

    Raises ``InputError`` where the device has none.
    """
    held = [[interval(row.operator, regime, device) for row in compiled.rows] for regime in regimes]
    low, high = (np.array([[getattr(x, side).value for x in line] for line in held]) for side in ("low", "high"))
    return low, high


def _narrow(op: Operator) -> list[str]:
    """Regimes of products by weights stored in few bits: the experts' own kernels (:func:`.moe.kernels_name`), else
    ``narrow`` where the weights are narrower than the arithmetic, whose kernels nobody measured."""
    if op.kind not in ("matmul", "experts") or not op.weights:
        return []
    arithmetic, stored = number_format(op.format).bits, float(op.weights[0].bits)
    own = kernels_name(arithmetic, stored) if op.kind == "experts" else "experts"
    return ([own] if own != "experts" else []) + (["narrow"] if stored < arithmetic else [])


def errors_of(compiled: CompiledTrace, device: Device) -> Errors:
    """How the errors of the rows go together on ``device``."""
    within, across = device.model.correlation, device.model.correlation_across
    rho = within.value if within else 1.0
    return Errors(tuple(family(row.operator) for row in compiled.rows), rho, min(across.value, rho) if across else rho)


def _power(device: Device) -> tuple[float, float]:
    """Watts of everything but the static part at the rated power, and static watts while kernels run."""
    share = device.model.static_share.value if device.model.static_share else 0.0
    static = max(device.power.idle.value, share * device.power.tdp.value)
    return device.power.tdp.value - static, static


def power_interval(device: Device) -> tuple[float, float]:
    """Measured over predicted energy, 5 % and 95 % quantile. Raises ``InputError`` where the device has none."""
    interval = device.intervals.get("power")
    if interval is None:
        raise InputError(f"device {device.name}: intervals.power is missing; no estimate without an interval")
    return interval.low.value, interval.high.value


def dram_energy(device: Device) -> float:
    """Joules per bit moved to or from DRAM. Raises ``InputError`` when the device file does not say."""
    if device.dram.energy is None:
        raise InputError(
            f"device {device.name}: memory.dram.energy is missing; the energy of a bit moved cannot be told"
        )
    return device.dram.energy.value
