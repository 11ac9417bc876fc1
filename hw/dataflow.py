"""Dataflow devices: a block's operators laid out side by side on the chip, results passed on without memory.

Reconfigurable dataflow units (SambaNova SN40L, arXiv:2405.07518): compute and memory tiles (PCUs, PMUs) with routing
between them, large distributed SRAM, HBM, and DDR behind it. A *section* is what is on the chip at once: a block of
the trace whole, or cut into runs of operators whose weights fit in SRAM together, whichever is faster at a point; one
operator where the trace says ``unfused``. Its operators form a pipeline that tokens stream through:

    time = launch + max(Σ compute, (Σ weights × passes + Σ KV + activations at its edges) / HBM bandwidth)
         + Σ network

    Σ compute   FLOPs / (rate × achievable share): the units are dealt out in proportion to the work
    edges       activations that a section takes from or gives to others; inside, they stay in SRAM
    passes      1 where the section's weights fit in SRAM beside two tokens' results (double buffers): tokens stream
                past them. Else weights stream past the tokens, ⌈tokens / t⌉ times, t being how many tokens' results
                SRAM holds twice. The cheaper where both go
    launch      once per section: by the sequencer on the chip (``model.launch``), or by the host where the trace
                says so (``parameters.software_launch``)

A row's time is its part of what bounds its section, so that rows add up to sections. Rows that several blocks share
take the mean over their executions. Activations of a token are the largest operands of the section's operators,
all of them at once. Unfused operators: every operand through HBM, and a launch each.

With a ``ddr`` level that holds far weights, :mod:`.far` adds what is read from it (models of a composition of experts).
Energy: HBM per bit, arithmetic such that the achievable rate draws the rated power, idle power all the time; together
no more than the rated power.
Left out: that whole tiles are dealt out (1 of 1040 units), what a pipeline takes to fill and drain, routing conflicts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..workloads.compiled import CompiledTrace
from ..workloads.expr import Expr, expr
from ..workloads.expr_functions import Array, round_up
from ..workloads.trace import Block, Operator
from .cost import OperatorModel, RowCosts
from .far import far_model, transfers_of
from .parameters import parameter
from .parts import Certainty, certainty, collectives_of, dram_rate, network_s
from .roofline import MATRIX_KINDS, Collective, dram_energy, within_power
from .spec import Device

KINDS = ("dataflow",)
REASONS = ("compute", "dram", "network")


@dataclass(frozen=True)
class Section:
    """Operators on the chip at once, run ``count`` times a pass. Matrices are over the basis.

    ``uses``: executions of each row in one run. ``edges``: bytes in and out of it; ``tokens`` and ``live``: tokens of a
    run, and bytes of all its operators' results (of all tokens); ``resident``: bytes of its weights (a number).
    """

    count: int
    uses: Array
    edges: Array
    tokens: Array
    live: Array
    resident: float
    launch_s: float


Partition = tuple[Section, ...]


@dataclass(frozen=True)
class DataflowModel(Certainty):
    """See :class:`.cost.OperatorModel`; built by :func:`prepare`. ``blocks``: ways in which each can be cut."""

    compiled: CompiledTrace
    blocks: tuple[tuple[Partition, ...], ...]
    compute: Array
    weights: Array
    kv: Array
    collectives: tuple[Collective, ...]
    sram_bytes: float
    dram_bytes_s: float
    dram_j: float
    compute_w: float
    reasons: tuple[str, ...] = REASONS

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`."""
        shape = (len(self.compiled.rows), basis.shape[1])
        compute = self.compute @ basis
        total, moved, by_dram, launch = (np.zeros(shape) for _ in range(4))
        for block in self.blocks:
            best = self._fastest(block, compute, basis)
            for sum_, part in zip((total, moved, by_dram, launch), best, strict=True):
                sum_ += part
        counts = self.compiled.counts[:, None]
        overlapped, moved, launch = total / counts, moved / counts, launch / counts
        bound = (by_dram > total / 2).astype(np.intp)
        network = network_s(self.collectives, basis, len(self.compiled.rows))
        bound = np.where(network > overlapped, REASONS.index("network"), bound)
        overlapped = overlapped + network
        drawn = {"compute": compute * self.compute_w, "dram": moved * 8 * self.dram_j}
        energy = within_power(drawn, self.compute_w * (overlapped + launch))
        busy = {
            "compute": np.minimum(compute, overlapped), "dram": np.minimum(moved / self.dram_bytes_s, overlapped),
            "network": network,
        }  # fmt: skip
        return RowCosts(overlapped + launch, launch, bound, bound, energy, busy)

    def _fastest(self, block: tuple[Partition, ...], compute: Array, basis: Array) -> Array:
        """Of the block's partitions the fastest at each point: (time, bytes, time bound by memory, launch) of all its
        executions, (4, rows, points)."""
        best, least = None, None
        for partition in block:
            found = np.zeros((4, *compute.shape))
            for section in partition:
                times, bytes_, bound = self._section(section, compute, basis)
                executions = section.uses[:, None] * section.count
                found += np.stack([executions * x for x in (times, bytes_, times * bound)] + [
                    np.broadcast_to(executions * section.launch_s / section.uses.sum(), times.shape)
                ])  # fmt: skip
            seconds = found[0].sum(axis=0) + found[3].sum(axis=0)
            if best is None or least is None:
                best, least = found, seconds
            else:
                best, least = np.where(seconds < least, found, best), np.minimum(seconds, least)
        assert best is not None
        return best

    def _section(self, section: Section, compute: Array, basis: Array) -> tuple[Array, Array, Array]:
        """Per row and run of the section: seconds and bytes, (rows, points), and whether memory binds, (points,)."""
        uses = section.uses[:, None]
        again = self.passes(section, basis)
        moved = self.weights @ basis * again + self.kv @ basis
        inside = (uses * moved).sum(axis=0)
        edges = section.edges @ basis
        memory = (inside + edges) / self.dram_bytes_s
        arithmetic = (uses * compute).sum(axis=0)
        bound = memory > arithmetic
        # Bytes at the edges go with the rows in proportion to their own bytes (to their number where there are none).
        executions = section.uses.sum()
        own = np.divide(moved, inside, out=np.broadcast_to(1 / executions, moved.shape).copy(), where=inside > 0)
        bytes_ = moved + own * edges
        return np.where(bound, bytes_ / self.dram_bytes_s, compute), bytes_, bound

    def passes(self, section: Section, basis: Array) -> Array:
        """How often the section's weights are read in a run, (points,): 1 or more."""
        tokens = np.maximum(section.tokens @ basis, 1)
        per_token = np.maximum(section.live @ basis / tokens, 1)
        stays = section.resident + 2 * per_token <= self.sram_bytes
        at_once = np.maximum(np.floor(self.sram_bytes / (2 * per_token)), 1)
        return np.asarray(np.where(stays, 1.0, round_up(tokens / at_once)))

    def intensity(self, basis: Array) -> Array:
        """FLOP per byte of memory, of a whole pass, (points,)."""
        compute = self.compute @ basis
        moved = np.sum([self._fastest(block, compute, basis)[1] for block in self.blocks], axis=(0, 1))
        return np.asarray(self.compiled.counts @ (self.compiled.coefficients["flops"] @ basis) / moved)


def prepare(compiled: CompiledTrace, device: Device) -> OperatorModel:
    """The model of a dataflow device. Raises ``InputError`` for what the device lacks."""
    return far_model(dataflow_model(compiled, device), device, transfers_of(compiled, device))


def dataflow_model(compiled: CompiledTrace, device: Device) -> DataflowModel:
    """The chip without its slow tier; see :func:`prepare`."""
    if "sram" not in device.memory:
        raise InputError(f"device {device.name}: memory.sram is missing; fused operators pass results through it")
    m, rows = device.model, compiled.rows
    compute = np.zeros_like(compiled.coefficients["flops"])
    for i, row in enumerate(rows):
        matrix = row.operator.kind in MATRIX_KINDS
        rate = device.rate(row.operator.format if matrix else "fp32", engine="matrix" if matrix else "vector")[1].value
        share = m.attention_efficiency if row.operator.kind == "attention" else m.matmul_efficiency
        compute[i] = compiled.coefficients["flops"][i] / (rate * (share if matrix else m.vector_efficiency).value)
    place = {name: i for i, row in enumerate(rows) for name in row.names}
    sram = device.memory["sram"].usable
    blocks = tuple(_partitions(block, place, compiled, device, sram) for block in compiled.trace.blocks)
    return DataflowModel(
        compiled=compiled, blocks=blocks, compute=compute,
        weights=compiled.coefficients["weight_bytes"], kv=compiled.coefficients["kv_bytes"],
        collectives=collectives_of(compiled, device), sram_bytes=sram,
        dram_bytes_s=dram_rate(device), dram_j=dram_energy(device),
        compute_w=device.power.tdp.value - device.power.idle.value,
        **certainty(compiled, device, REASONS),
    )  # fmt: skip


Place = dict[str, int]


def _partitions(
    block: Block, place: Place, compiled: CompiledTrace, device: Device, sram: float
) -> tuple[Partition, ...]:
    """The ways to cut a block: whole, and into runs whose weights fit in SRAM. ``fused = false`` cuts around an
    operator in both."""
    ways = []
    for limit in (float("inf"), sram):
        groups: list[list[Operator]] = []
        held, alone = 0.0, True
        for op in block.operators:
            size = sum((w.stored_bytes.constant or 0.0) for w in op.weights)
            apart = not op.attrs.get("fused", True)
            if apart or alone or held + size > limit:
                groups.append([])
                held = 0.0
            groups[-1].append(op)
            held, alone = held + size, apart
        ways.append(groups)
    if len(ways[0]) == len(ways[1]):
        ways = ways[:1]
    return tuple(tuple(_section(g, block, place, compiled, device) for g in groups) for groups in ways)


def _section(group: list[Operator], block: Block, place: Place, compiled: CompiledTrace, device: Device) -> Section:
    uses = np.zeros(len(compiled.rows))
    for op in group:
        uses[place[f"{block.name}.{op.name}"]] += 1
    return Section(
        count=block.repeat, uses=uses, edges=compiled.vector(_edges(group, block)),
        tokens=compiled.vector(_tokens(group)), live=compiled.vector(_live(group)),
        resident=sum((w.stored_bytes.constant or 0.0) for op in group for w in op.weights),
        launch_s=_launch(group[0], device),
    )  # fmt: skip


def _edges(group: list[Operator], block: Block) -> Expr:
    """Bytes of activations that the section takes from outside, each once, and gives to it (what nobody in the
    block reads, too). An operator that reads a tensor's shape twice reads two slices of it."""
    total, taken = expr(0), set()
    names = {op.name for op in group}
    outside = {d for op in block.operators if op.name not in names for d in op.deps}
    inner = {d for op in group for d in op.deps} - outside
    for op in group:
        for i, t in enumerate(op.reads):
            inside = t.name in names and t.name in op.deps  # a name may be of the block before, too
            slice_ = t.name, t.shape, sum((x.name, x.shape) == (t.name, t.shape) for x in op.reads[:i])
            if t.role in ("activation", "index") and not inside and slice_ not in taken:
                taken.add(slice_)
                total = total + t.bytes
        if op.name not in inner or op.name == block.output:
            total = total + sum((t.bytes for t in op.writes if t.role in ("activation", "index")), expr(0))
    return total


def _tokens(group: list[Operator]) -> Expr:
    """Tokens that stream through the section: of its first product, else of what it writes."""
    for op in group:
        for name in ("m", "tokens"):
            if name in op.dims and op.kind != "kv_append":
                return op.dims[name]
    return expr(1)


def _live(group: list[Operator]) -> Expr:
    """Bytes of all results of the section's operators, for all tokens."""
    return sum((t.bytes for op in group for t in op.writes if t.role in ("activation", "index")), expr(0))


def _launch(op: Operator, device: Device) -> float:
    if op.attrs.get("launch", "hardware") == "hardware":
        return device.model.launch.value
    return parameter(device, "software_launch")
