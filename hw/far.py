"""Reads from a slow tier, over any model of the arithmetic: flash, a drive over PCIe, DDR behind HBM.

A trace marks what is far (``techniques/offload.py``, ``techniques/composition.py``), a device file names the level
that holds it (``holds = "far-weights, far-kv"``). Per operator, A being the seconds of its arithmetic as the base
model has them, without the launch:

    I = bytes × miss / bandwidth(chunk)          :class:`.flash.Drive`; the link to the host caps it
    K = bytes × miss × copies / fast bandwidth   rows that a managed cache takes in
    time = launch + A + I + K                    what is read must be there first
    time = launch + max(A + K, I)                reads beside the arithmetic of the same operator (``overlap``)

Bytes: the weights that a pass touches; of a far KV cache the context (keys of the new tokens are at hand), and the
new rows, written. Pages fetched for the sake of a part of them (``overfetch``) count whole.

Left out: reads ahead for the next operator (a predictor needs the input of its network; for weights that are read
whatever the input is, ``overlap`` hides as much as their own arithmetic, and the rest of a layer could hide more).

Energy: joules per bit of the level; base and host are static at idle, what the base draws beyond while it works is
the part ``active``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..workloads.compiled import CompiledTrace, Row
from ..workloads.expr_functions import Array
from .cost import Errors, OperatorModel, RowCosts
from .flash import WHOLE, Drive, drive_of
from .parts import dram_rate
from .spec import Device, Memory

FAR_ROLES = ("far-weights", "far-kv")


@dataclass(frozen=True)
class Transfer:
    """What row ``row`` moves to or from ``drive``: ``size`` in bytes over the basis times ``share``.

    ``context``: (cached tokens, all tokens) over the basis where only the cached part is far. ``write``: it is stored.
    """

    row: int
    drive: Drive
    size: Array
    share: float
    chunk: float = WHOLE
    overlap: bool = False
    copies: float = 0.0
    context: tuple[Array, Array] | None = None
    write: bool = False

    def bytes(self, basis: Array) -> Array:
        """Bytes at points, (points,)."""
        moved = np.asarray(self.size @ basis) * self.share
        if self.context is None:
            return moved
        cached, every = (x @ basis for x in self.context)
        return np.asarray(moved * np.divide(cached, every, out=np.zeros_like(moved), where=every > 0))


@dataclass(frozen=True)
class FarModel:
    """See :class:`.cost.OperatorModel`; ``base`` does the arithmetic."""

    base: OperatorModel
    transfers: tuple[Transfer, ...]
    fast_bytes_s: float
    idle_w: float
    base_idle_w: float
    reasons: tuple[str, ...]
    low: Array
    high: Array

    @property
    def static_power_w(self) -> float:
        return self.base_idle_w + self.idle_w

    @property
    def power_interval(self) -> tuple[float, float]:
        return self.base.power_interval

    @property
    def errors(self) -> Errors:
        return self.base.errors

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`."""
        base = self.base.rows(basis)
        arithmetic = base.time_s - base.launch_s
        io, copy = np.zeros_like(arithmetic), np.zeros_like(arithmetic)
        joules, hidden = np.zeros_like(arithmetic), np.zeros(arithmetic.shape[0], dtype=bool)
        for t in self.transfers:
            moved = t.bytes(basis)
            io[t.row] += t.drive.store_s(moved) if t.write else t.drive.load_s(moved, t.chunk)
            copy[t.row] += moved * t.copies / self.fast_bytes_s
            joules[t.row] += moved * 8 * (t.drive.write_j if t.write else t.drive.read_j)
            hidden[t.row] |= t.overlap
        spent = arithmetic + copy
        overlapped = np.where(hidden[:, None], np.maximum(spent, io), spent + io)
        parts = np.stack([arithmetic, io, copy])
        largest = np.argmax(parts, axis=0)
        n, n_regimes = len(self.base.reasons), self.base.low.shape[0]
        energy = dict(base.energy_j)
        busy = {"dram": np.zeros_like(copy)} | base.busy_s | {"storage": io}
        busy["dram"] = busy["dram"] + copy  # what comes into the cache passes the fast memory
        energy["active"] = energy.get("active", 0.0) + (self.base.static_power_w - self.base_idle_w) * base.time_s
        energy["storage"] = energy.get("storage", 0.0) + joules
        return RowCosts(
            time_s=overlapped + base.launch_s, launch_s=base.launch_s,
            bound=np.where(largest == 0, base.bound, n + largest - 1),
            regime=np.where(largest == 0, base.regime, n_regimes),
            energy_j=energy, busy_s=busy,
        )  # fmt: skip


def level_of(device: Device, role: str) -> Memory | None:
    """The first level of ``device`` that holds ``role``."""
    return next((level for level in device.memory.values() if role in level.roles), None)


def path_of(device: Device, level: Memory) -> Drive:
    """``level`` as seen from where the arithmetic is: behind ``links.pcie`` where the device has a host."""
    drive = drive_of(device, level)
    if device.host is None:
        return drive
    if "pcie" not in device.links:
        raise InputError(f"device {device.name}: links.pcie is missing; it is the way to the host {device.host.name}")
    link = device.links["pcie"]
    rate = link.bandwidth.value * device.model.link_efficiency.value
    return replace(
        drive, latency_s=drive.latency_s + link.latency.value,
        stream_bytes_s=min(drive.stream_bytes_s, rate), sequential_bytes_s=min(drive.sequential_bytes_s, rate),
        write_bytes_s=min(drive.write_bytes_s, rate),
    )  # fmt: skip


def transfers_of(compiled: CompiledTrace, device: Device) -> list[Transfer]:
    """What the rows of ``compiled`` move from or to the levels of ``device`` that hold what is far. Marks of a role
    that no level holds are left alone: it is near."""
    drives = {role: path_of(device, level) for role in FAR_ROLES if (level := level_of(device, role)) is not None}
    found: list[Transfer] = []
    for i, row in enumerate(compiled.rows):
        attrs = row.operator.attrs
        if "far-weights" in drives and float(attrs.get("far_weights", 0.0)) > 0:
            found.append(_weights(i, row, compiled, drives["far-weights"]))
        if "far-kv" in drives and float(attrs.get("far_kv", 0.0)) > 0:
            found.append(cache_transfer(i, row, compiled, drives["far-kv"], float(attrs["far_kv"])))
    return found


def _weights(i: int, row: Row, compiled: CompiledTrace, drive: Drive) -> Transfer:
    attrs, size = row.operator.attrs, np.zeros(len(compiled.basis))
    for w in row.operator.weights:
        if len(w.shape) > 1:
            size += compiled.vector(w.bytes)
    chunk, share = float(attrs["chunk"]) or WHOLE, float(attrs["far_weights"])
    return Transfer(i, drive, size, share, chunk, bool(attrs["overlap"]), float(attrs["copies"]))


def cache_transfer(i: int, row: Row, compiled: CompiledTrace, drive: Drive, share: float) -> Transfer:
    """The far part of the cache that row ``i``, an attention or its append, reads or writes."""
    op = row.operator
    overlap = bool(op.attrs.get("overlap", 0))
    size = compiled.coefficients["kv_bytes"][i]
    if op.kind == "kv_append":
        return Transfer(i, drive, size, share, overlap=overlap, write=True)
    kv, query = op.dims["kv"], op.dims["query"]
    context = compiled.vector(kv - query), compiled.vector(kv)
    return Transfer(i, drive, size, share * float(op.attrs.get("overfetch", 1.0)), overlap=overlap, context=context)


def far_model(
    base: OperatorModel,
    device: Device,
    transfers: list[Transfer],
    *,
    alone: bool = True,
) -> OperatorModel:
    """``base`` with the reads and writes of ``transfers``; ``base`` itself where nothing is far.

    ``alone``: the static power of the slow tier, and that of the base beyond idle, are told here; else by whoever
    joins this model with another (:mod:`.split`). Raises ``InputError`` where the device file has no interval for them.
    """
    if not transfers:
        return base
    interval = device.intervals.get("storage")
    if interval is None:
        raise InputError(f"device {device.name}: intervals.storage is missing; no estimate without an interval")
    worker = device.host or device
    width = base.low.shape[1]
    return FarModel(
        base=base, transfers=tuple(transfers),
        fast_bytes_s=dram_rate(worker),
        idle_w=device.power.idle.value if device.host is not None and alone else 0.0,
        base_idle_w=min(worker.power.idle.value, base.static_power_w) if alone else base.static_power_w,
        reasons=(*base.reasons, "storage", "copy"),
        low=np.concatenate([base.low, np.full((1, width), interval.low.value)]),
        high=np.concatenate([base.high, np.full((1, width), interval.high.value)]),
    )  # fmt: skip
