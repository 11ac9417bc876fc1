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

Reads whose bytes are known beforehand (``ahead`` layers in the trace) are also told apart from their rows
(:attr:`.cost.RowCosts.staged`), for the discrete-event level, which schedules them (:mod:`.ahead`). Of a role that
two levels hold, the trace says the share of the second (``deep``).

Energy: joules per bit of the level; base and host are static at idle, what the base draws beyond while it works is
the part ``active``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..workloads.compiled import CompiledTrace, Row
from ..workloads.expr_functions import Array
from .cost import Errors, Move, OperatorModel, RowCosts
from .flash import WHOLE, Drive, drive_of
from .parts import dram_rate
from .spec import Device, Memory
from .tiers import FAR_MARKS

LINK = "link"
"""What the way between host and device is called where rows say what they occupy (:mod:`.split` too)."""


@dataclass(frozen=True)
class Path:
    """A slow tier and the way to it: ``drive`` as seen over the link, ``own`` as it is; infinite ``link_bytes_s`` where
    it is the device's own. ``place``: what the tier is called where rows say what they occupy."""

    place: str
    drive: Drive
    own: Drive
    link_bytes_s: float = WHOLE


@dataclass(frozen=True)
class Transfer:
    """What row ``row`` moves over ``path``: ``size`` in bytes over the basis times ``share``.

    ``context``: (cached tokens, all tokens) over the basis where only the cached part is far. ``write``: it is stored.
    ``ahead``: layers by which it may run ahead; 0: not before its row, and where ``overlap``, beside it.
    """

    row: int
    path: Path
    size: Array
    share: float
    chunk: float = WHOLE
    overlap: bool = False
    copies: float = 0.0
    context: tuple[Array, Array] | None = None
    write: bool = False
    ahead: int = 0

    def seconds(self, moved: Array) -> Array:
        """Seconds in which ``moved`` bytes pass the whole path."""
        drive = self.path.drive
        return drive.store_s(moved) if self.write else drive.load_s(moved, self.chunk)

    def stages(self, moved: Array) -> dict[str, Array]:
        """Seconds for which they occupy the tier and the link."""
        own = self.path.own
        if self.write:
            found = {self.path.place: own.store_s(moved)}
        else:
            rate = own.sequential_bytes_s if self.chunk == WHOLE else float(own.bandwidth(self.chunk))
            found = {self.path.place: moved / rate}
        if self.path.link_bytes_s != WHOLE:
            found[LINK + " out" if self.write else LINK] = moved / self.path.link_bytes_s
        return found

    def move(self, moved: Array) -> Move:
        """It as the discrete-event level sees it."""
        latency = 0.0 if self.write else self.path.drive.latency_s
        return Move(self.row, self.path.place, self.stages(moved), latency, self.write)

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
        sizes = [t.bytes(basis) for t in self.transfers]
        moves = tuple(t.move(moved) for t, moved in zip(self.transfers, sizes, strict=True) if t.ahead)
        if not moves:
            return self._joined(base, sizes)
        return replace(self._joined(base, sizes), staged=self._joined(base, sizes, staged=True), moves=moves)

    def _joined(self, base: RowCosts, sizes: list[Array], *, staged: bool = False) -> RowCosts:
        """``base`` with the transfers; ``staged``: the times without those that run ahead."""
        arithmetic = base.time_s - base.launch_s
        io, copy = np.zeros_like(arithmetic), np.zeros_like(arithmetic)
        joules, hidden = np.zeros_like(arithmetic), np.zeros(arithmetic.shape[0], dtype=bool)
        places: dict[str, Array] = {}
        for t, moved in zip(self.transfers, sizes, strict=True):
            copy[t.row] += moved * t.copies / self.fast_bytes_s
            joules[t.row] += moved * 8 * (t.path.drive.write_j if t.write else t.path.drive.read_j)
            if staged and t.ahead:
                continue
            io[t.row] += t.seconds(moved)
            hidden[t.row] |= t.overlap
            if staged:
                for place, seconds in t.stages(moved).items():
                    places.setdefault(place, np.zeros_like(arithmetic))[t.row] += seconds
        spent = arithmetic + copy
        overlapped = np.where(hidden[:, None], np.maximum(spent, io), spent + io)
        parts = np.stack([arithmetic, io, copy])
        largest = np.argmax(parts, axis=0)
        n, n_regimes = len(self.base.reasons), self.base.low.shape[0]
        energy = dict(base.energy_j)
        busy = {"dram": np.zeros_like(copy)} | base.busy_s | (places if staged else {"storage": io})
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


def paths_of(device: Device, role: str) -> list[Path]:
    """The levels that hold ``role`` and the ways to them, in the order of the device file."""
    return [path_of(device, name) for name, level in device.memory.items() if role in level.roles]


def path_of(device: Device, name: str) -> Path:
    """Level ``name`` as seen from where the arithmetic is: behind ``links.pcie`` where the device has a host.

    What ``[parameters]`` says of a drive has the level's name in front (``flash_depth``)."""
    drive = drive_of(device, device.memory[name], prefix=name)
    place = f"far {name}"
    if device.host is None:
        return Path(place, drive, drive)
    if "pcie" not in device.links:
        raise InputError(f"device {device.name}: links.pcie is missing; it is the way to the host {device.host.name}")
    link = device.links["pcie"]
    rate = link.bandwidth.value * device.model.link_efficiency.value
    seen = replace(
        drive, latency_s=drive.latency_s + link.latency.value,
        stream_bytes_s=min(drive.stream_bytes_s, rate), sequential_bytes_s=min(drive.sequential_bytes_s, rate),
        write_bytes_s=min(drive.write_bytes_s, rate),
    )  # fmt: skip
    return Path(place, seen, drive, rate)


def transfers_of(compiled: CompiledTrace, device: Device) -> list[Transfer]:
    """What the rows of ``compiled`` move from or to the levels of ``device`` that hold what is far. Marks of a role
    that no level holds are left alone: it is near. Raises ``InputError`` for a share of a second level where there is
    one level."""
    paths = {role: paths_of(device, role) for role, *_ in FAR_MARKS}
    found: list[Transfer] = []
    for i, row in enumerate(compiled.rows):
        attrs = row.operator.attrs
        for role, mark, deep in FAR_MARKS:
            share = float(attrs.get(mark, 0.0))
            if not paths[role] or share <= 0:
                continue
            for path, part in _divided(paths[role], float(attrs.get(deep, 0.0)), device, role):
                if role == "far-weights":
                    found.append(_weights(i, row, compiled, path, share * part))
                else:
                    found.append(cache_transfer(i, row, compiled, path, share * part))
    return found


def _divided(paths: list[Path], deep: float, device: Device, role: str) -> list[tuple[Path, float]]:
    if deep and len(paths) < 2:
        raise InputError(f"device {device.name}: one level holds {role}; accepted: no share of a second one (deep)")
    return [(path, part) for path, part in zip(paths, (1 - deep, deep), strict=False) if part > 0]


def _weights(i: int, row: Row, compiled: CompiledTrace, path: Path, share: float) -> Transfer:
    attrs, size = row.operator.attrs, np.zeros(len(compiled.basis))
    for w in row.operator.weights:
        if len(w.shape) > 1:
            size += compiled.vector(w.bytes)
    chunk, ahead = float(attrs["chunk"]) or WHOLE, int(attrs.get("ahead", 0))
    return Transfer(i, path, size, share, chunk, bool(attrs["overlap"]), float(attrs["copies"]), ahead=ahead)


def cache_transfer(i: int, row: Row, compiled: CompiledTrace, path: Path, share: float) -> Transfer:
    """The far part of the cache that row ``i``, an attention or its append, reads or writes."""
    op = row.operator
    overlap, ahead = bool(op.attrs.get("overlap", 0)), int(op.attrs.get("ahead", 0))
    size = compiled.coefficients["kv_bytes"][i]
    if op.kind == "kv_append":
        return Transfer(i, path, size, share, overlap=overlap, write=True, ahead=ahead)
    kv, query = op.dims["kv"], op.dims["query"]
    context, share = (compiled.vector(kv - query), compiled.vector(kv)), share * float(op.attrs.get("overfetch", 1.0))
    return Transfer(i, path, size, share, overlap=overlap, context=context, ahead=ahead)


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
