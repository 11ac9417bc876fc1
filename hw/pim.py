"""Processing in or under memory: a host, and units near its DRAM banks that take products and attention.

:mod:`.dram` says how long a train of commands takes, :mod:`.pim_unit` which commands an operator needs, :mod:`.split`
who does it, :mod:`.dram_events` the same commands one by one. A device of this kind names its host. Without a link
called ``host`` the banks are the host's own memory (its [memory.dram] is the device's); with one they are a memory of
their own, which keys and values are written to over the link; what the device file says lies in it (``holds``) and the
host reads crosses that link (:mod:`.crossing`).

[parameters] of the rule: ``near_attention``, ``near_experts``, ``near_matmul`` (1): kinds of operators that may run
near memory; ``near_intensity``: FLOP per byte below which they do (left out: wherever it is faster); ``divide``: host
and units share an operator; ``exclusive``: while units work, the host cannot read; ``reach``: bytes of the banks that
have units (left out: all). Of operators that may run near memory, in the order of the trace, those have their weights
in reach that find room there (each for all its layers), then keys and values where they find room at a point; the rest
runs on the host.

    time = launch + operator's commands [+ link]          launch: a controller starts the units

Energy, beside the host's: [parameters] ``activate_energy`` per row opened in one bank, ``column_energy`` per bit from
banks to units, ``mac_energy`` per operation (two in a multiply-accumulate), ``move_energy`` per bit over a channel's
bus. The device's rated and idle power are of host and units together; its
price is its own, the host's beside it.

Left out: softmax where the host does it (its time is that of its own element-wise kernels, overlapped), rows of other
operators in the same banks, ECC on chip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..workloads.compiled import CompiledTrace
from ..workloads.expr import Expr
from ..workloads.expr_functions import Array
from ..workloads.trace import Operator, Tensor
from .cost import RowCosts
from .cost import prepare as model_of
from .crossing import crossing_model
from .parameters import flag, parameter
from .parts import Certainty
from .pim_unit import Spent, Unit, unit_of
from .roofline import errors_of, interval, power_interval
from .spec import Device
from .split import Link, Mask, Rule, SplitModel, split_model
from .tiers import levels

KINDS = ("pim",)
REASONS = ("columns", "rows", "moves")
NEAR_KINDS = ("matmul", "attention", "experts")
_RULE_FLAGS = (*(f"near_{kind}" for kind in NEAR_KINDS), "divide", "exclusive")
_CAST = {"bf16": "fp16", "fp16": "bf16"}

At = Callable[[Expr], Array]
Work = Callable[[At], Spent]


@dataclass(frozen=True)
class Energies:
    """Joules per row opened, per bit read, per operation, per bit moved."""

    activate: float
    column: float
    operation: float
    move: float

    def parts(self, spent: Spent) -> dict[str, Array]:
        """Joules by part."""
        return {
            "activate": spent.rows * self.activate, "dram": spent.read_bytes * 8 * self.column,
            "compute": 2 * spent.macs * self.operation, "move": spent.moved_bytes * 8 * self.move,
        }  # fmt: skip


@dataclass(frozen=True)
class PimModel(Certainty):
    """The units alone (:class:`.split.NearModel`); rows that they do not take are infinitely slow.

    ``kv_room_bytes``: what the weights in reach of the units leave for keys and values."""

    compiled: CompiledTrace
    work: dict[int, Work]
    launch_s: dict[int, float]
    energies: Energies
    kv_room_bytes: float
    reasons: tuple[str, ...] = REASONS

    @property
    def takes(self) -> Mask:
        """(rows,): which rows have work that the units do."""
        return np.array([i in self.work for i in range(len(self.compiled.rows))], dtype=bool)

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`."""
        shape = len(self.compiled.rows), basis.shape[1]
        time, launch, bound = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape, dtype=np.intp)
        banks = np.zeros(shape)
        energy = {part: np.zeros(shape) for part in ("activate", "dram", "compute", "move")}

        def at(size: Expr) -> Array:
            return np.asarray(self.compiled.vector(size) @ basis)

        room = np.full(basis.shape[1], self.kv_room_bytes)
        for i, work in self.work.items():
            spent, here = work(at), True
            if self.compiled.rows[i].operator.kind == "attention":
                cache = self.compiled.quantity("kv_bytes", basis)[i] * self.compiled.rows[i].count
                here = cache <= room
                room = room - np.where(here, cache, 0.0)
            launch[i] = self.launch_s[i]
            time[i], banks[i] = np.where(here, launch[i] + spent.seconds, np.inf), spent.seconds
            rest = spent.seconds - np.maximum(spent.column_s, spent.move_s)
            bound[i] = np.argmax([spent.column_s, np.minimum(rest, spent.seconds), spent.move_s], axis=0)
            for part, joules in self.energies.parts(spent).items():
                energy[part][i] = joules
        return RowCosts(time, launch, bound, np.zeros_like(bound), energy, {"banks": banks})


def prepare(compiled: CompiledTrace, device: Device) -> SplitModel:
    """Host and units together. Raises ``InputError`` for what the device or its host lacks."""
    host = host_of(device)
    link, rule, ours = device.links.get("host"), rule_of(device), model_of(compiled, host)[1]
    if link:
        roles = [role for level in levels(device) if level.device == device.name for role in level.roles]
        ours = crossing_model(
            compiled, ours, device, roles, bytes_s=link.bandwidth.value * device.model.link_efficiency.value,
            energy_j=parameter(device, "link_energy", 0.0), blocks=("near banks",) if rule.exclusive else (),
        )  # fmt: skip
    return split_model(
        compiled, ours, pim_model(compiled, device), rule=rule,
        device=device.model_copy(update={"host": host}),
        link=Link(link.latency.value, link.bandwidth.value, parameter(device, "link_energy", 0.0)) if link else Link(),
    )  # fmt: skip


def constants(device: Device) -> list[str]:
    """What the times of ``device`` rest on, a line each. Raises ``InputError`` for what its file lacks."""
    unit, stall = unit_of(device), device.parameters.get("stall")
    lines = [
        f"units take the cycles of DRAM commands: {unit.timing.clock_s * 1e9:.3g} ns a cycle, a column every "
        f"{unit.timing.ccd:g}; no silicon was measured",
        f"stall {stall.text}: {stall.source}" if stall else "stall 1: nothing fitted",
    ]
    if link := device.links.get("host"):
        share = device.model.link_efficiency
        lines.append(
            f"what the host reads of the device's memory crosses {link.bandwidth.text} at {share.text}: {share.source}"
        )
    if reach := device.parameters.get("reach"):
        lines.append(f"units reach {reach.text} of the memory: {reach.source}")
    return lines


def host_of(device: Device) -> Device:
    """The host, with the device's banks as its memory where they are. Raises ``InputError`` where there is none."""
    if device.host is None:
        raise InputError(
            f'device {device.name}: host is missing; a pim device works beside one, e.g. host = "h100-sxm"'
        )
    if "host" in device.links:
        return device.host
    dram, own = device.dram, device.host.dram
    dram = dram if dram.energy else dram.model_copy(update={"energy": own.energy})
    return device.host.model_copy(update={"memory": {**device.host.memory, "dram": dram}})


def rule_of(device: Device) -> Rule:
    """Who does what, as [parameters] say. Raises ``InputError`` where no kind may run near memory, for a ``near_…``
    that is none, and for a flag that is not 1."""
    accepted = (*_RULE_FLAGS[: len(NEAR_KINDS)], "near_intensity")
    for name in device.parameters:
        if name.startswith("near_") and name not in accepted:
            raise InputError(f"device {device.name}: parameters.{name}; accepted: {', '.join(accepted)}")
    for name in _RULE_FLAGS:
        flag(device, name)
    kinds = frozenset(kind for kind in NEAR_KINDS if f"near_{kind}" in device.parameters)
    if not kinds:
        named = ", ".join(f"near_{kind}" for kind in NEAR_KINDS)
        raise InputError(f"device {device.name}: nothing runs near memory; accepted: one of {named} in [parameters]")
    must = frozenset({"kv_append"}) if "host" in device.links and "attention" in kinds else frozenset()
    by_intensity = "near_intensity" in device.parameters
    return Rule(
        "intensity" if by_intensity else "fastest", kinds | must, parameter(device, "near_intensity", 0.0),
        divide=flag(device, "divide"), exclusive=flag(device, "exclusive"), must=must,
    )  # fmt: skip


def pim_model(compiled: CompiledTrace, device: Device) -> PimModel:
    """What the units of ``device`` do of every row. Raises ``InputError`` for what the device file lacks."""
    unit, rule = unit_of(device), rule_of(device)
    work, launch, room = {}, {}, parameter(device, "reach", np.inf)
    for i, row in enumerate(compiled.rows):
        op = row.operator
        if op.kind in rule.kinds and _takes(op, device):
            held = sum(w.stored_bytes.constant or 0.0 for w in op.weights if len(w.shape) > 1) * row.count
            if held > room:
                continue
            room -= held
            work[i] = _WORK[op.kind](op, unit)
            launch[i] = 0.0 if op.kind == "kv_append" else device.model.launch.value
    sides = [
        interval(row.operator, "dram", device) if i in work and row.operator.kind != "kv_append" else None
        for i, row in enumerate(compiled.rows)
    ]
    host_idle = device.host.power.idle.value if device.host else 0.0
    return PimModel(
        compiled, work, launch,
        Energies(*(parameter(device, f"{name}_energy") for name in ("activate", "column", "mac", "move"))),
        kv_room_bytes=room,
        low=np.array([[x.low.value if x else 1.0 for x in sides]]),
        high=np.array([[x.high.value if x else 1.0 for x in sides]]),
        errors=errors_of(compiled, device), static_power_w=max(device.power.idle.value - host_idle, 0.0),
        power_interval=power_interval(device),
    )  # fmt: skip


def _takes(op: Operator, device: Device) -> bool:
    """Whether the units have the formats of an operator's arithmetic and of what lies in the banks."""
    if op.kind == "kv_append":
        return True
    if "latent_dim" in op.dims:
        return False
    held = _second(op)
    if held is None:
        return False
    rates = device.engines.get("matrix", {})
    return all(name in rates or _CAST.get(name, "") in rates for name in (op.format, held.format.partition("-g")[0]))


def _second(op: Operator) -> Tensor | None:
    """The operand that lies in the banks: weights, or cached keys and values; None where neither does."""
    return next((t for role in ("weight", "kv") for t in op.reads if t.role == role and len(t.shape) > 1), None)


def _bytes(op: Operator) -> tuple[float, float]:
    """Bytes per element of what lies in the banks, and of activations."""
    held = _second(op)
    activation = next((t.bits for t in op.reads if t.role == "activation"), 16.0)
    return (held.bits if held else 16.0) / 8, activation / 8


def _matmul(op: Operator, unit: Unit) -> Work:
    sizes, count = [op.dims[name] for name in ("n", "k", "m")], op.dims.get("batch")
    each, activation = _bytes(op)

    def work(at: At) -> Spent:
        n, k, m = (at(size) for size in sizes)
        return unit.product(n, k, m, each, activation).times(at(count) if count is not None else np.ones_like(n))

    return work


def _attention(op: Operator, unit: Unit) -> Work:
    d, (each, activation) = op.dims, _bytes(op)
    heads, kv_heads, head_dim, value_dim = (
        d[name].constant or 1 for name in ("heads", "kv_heads", "head_dim", "value_dim")
    )

    def work(at: At) -> Spent:
        batch, query = at(d["batch"]), at(d["query"])
        attended = at(op.flops) / (2 * heads * (head_dim + value_dim)) / batch / query  # tokens a query sees, mean
        vectors = np.maximum(np.round(query * heads / kv_heads, 6), 1)
        return unit.attention(batch * kv_heads, attended, (head_dim, value_dim), vectors, each, activation)

    return work


def _experts(op: Operator, unit: Unit) -> Work:
    d, (each, activation) = op.dims, _bytes(op)
    hidden, inner, experts, top_k = (d[name].constant or 1 for name in ("hidden", "inner", "experts", "top_k"))
    first, up = op.weights[0], inner * (2 if op.attrs["gated"] else 1)
    share = (first.elements.constant or 1) / experts

    def work(at: At) -> Spent:
        tokens = at(d["tokens"])
        busy = np.minimum(at(first.touched) / share if first.touched is not None else experts + 0 * tokens, experts)
        vectors = np.maximum(np.round(tokens * top_k / busy, 6), 1)
        both = [unit.product(n + 0 * tokens, k + 0 * tokens, vectors, each, activation)
                for n, k in ((up, hidden), (hidden, inner))]  # fmt: skip
        return both[0].plus(both[1]).times(busy)

    return work


def _append(op: Operator, unit: Unit) -> Work:
    """New keys and values cross the channels' buses."""
    size = op.moved("kv")

    def work(at: At) -> Spent:
        moved = at(size)
        cycles, zero = unit.moves(moved / unit.geometry.channels), np.zeros_like(moved)
        return Spent(unit.seconds(cycles), zero, cycles * unit.timing.clock_s, zero, moved / unit.geometry.row_bytes,
                     moved, zero)  # fmt: skip

    return work


_WORK: dict[str, Callable[[Operator, Unit], Work]] = {
    "matmul": _matmul, "attention": _attention, "experts": _experts, "kv_append": _append,
}  # fmt: skip
