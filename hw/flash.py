"""Flash in closed form: a drive as software sees it, and the chips inside it.

**Outside** (:class:`Drive`). Reads of ``chunk`` contiguous bytes, ``depth`` of them outstanding (operational laws of a
closed system, Denning and Buzen, Computing Surveys 10(3), 1978):

    seconds per read = max(command + chunk / stream, (latency + chunk / sequential) / depth)

    command     what every read costs one after another: the submitting core, the controller's mapping
    stream      bytes/s of data behind it, one after another likewise
    latency     from the command to the first byte: the array's read time, controller, link; hidden by depth
    sequential  bytes/s of the largest reads: the interface or the channels, whichever is less

Small reads are bound by commands, a shallow queue by latency, large reads by the stream. :func:`command_and_stream`
solves two of them from measured points.

**Inside** (:class:`Nand`). C channels with D dies each; a die is taken for its array read (tR) and until its page has
left over the channel (no cache read), the channel for command and transfer x = command + page / channel rate:

    pages per second and channel = min(1 / x, D / (tR + x))
    n pages on one channel:  T(n) = max(tR + n·x, ⌊(n−1)/D⌋·(tR + x) + tR + (n − D·⌊(n−1)/D⌋)·x)

exact when pages are dealt out evenly and everything is asked for at once; :mod:`.flash_event` plays the same drive
event by event, contention included. Left out: garbage collection, read disturb and retries, wear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..workloads.expr_functions import Array
from .parameters import parameter, whole
from .spec import Device, Memory

WHOLE = float("inf")
"""Chunk of a read that is sequential from beginning to end."""


@dataclass(frozen=True)
class Drive:
    """Read and write of a flash device from outside: seconds, bytes/s; see the module."""

    latency_s: float
    depth: float
    command_s: float
    stream_bytes_s: float
    sequential_bytes_s: float
    write_bytes_s: float
    read_j: float = 0.0
    write_j: float = 0.0

    def read_s(self, chunk: npt.ArrayLike, depth: float | None = None) -> Array:
        """Seconds per read of ``chunk`` bytes, any shape, with ``depth`` outstanding (the drive's where not given)."""
        size = np.asarray(chunk, dtype=float)
        waiting = (self.latency_s + size / self.sequential_bytes_s) / (self.depth if depth is None else depth)
        return np.asarray(np.maximum(self.command_s + size / self.stream_bytes_s, waiting))

    def bandwidth(self, chunk: npt.ArrayLike, depth: float | None = None) -> Array:
        """Bytes/s of reads of ``chunk`` bytes; never above the sequential rate."""
        size = np.asarray(chunk, dtype=float)
        return np.asarray(np.minimum(size / self.read_s(size, depth), self.sequential_bytes_s))

    def load_s(self, size: npt.ArrayLike, chunk: float = WHOLE) -> Array:
        """Seconds to read ``size`` bytes, in reads of ``chunk`` bytes; the first byte is waited for."""
        total = np.asarray(size, dtype=float)
        flow = total / (self.sequential_bytes_s if np.isinf(chunk) else self.bandwidth(chunk))
        return np.asarray(np.where(total > 0, self.latency_s + flow, 0.0))

    def store_s(self, size: npt.ArrayLike) -> Array:
        """Seconds to write ``size`` bytes, sequentially."""
        return np.asarray(np.asarray(size, dtype=float) / self.write_bytes_s)


def drive_of(device: Device, level: Memory, *, prefix: str = "flash") -> Drive:
    """The drive behind ``level``. Parameters of the file: ``PREFIX_depth``, ``_command``, ``_stream``, ``_write``; what
    is not said is no limit (a depth of 1, no cost of commands). Raises ``InputError`` without a bandwidth."""
    if level.bandwidth is None:
        raise InputError(f"device {device.name}: the memory level that is read from has no bandwidth")
    bandwidth = level.bandwidth.value
    energy = level.energy.value if level.energy else 0.0

    def said(name: str, default: float) -> float:
        return parameter(device, f"{prefix}_{name}", default)

    return Drive(
        latency_s=level.latency.value if level.latency else 0.0,
        depth=said("depth", 1.0), command_s=said("command", 0.0), stream_bytes_s=said("stream", bandwidth),
        sequential_bytes_s=bandwidth, write_bytes_s=said("write", bandwidth),
        read_j=energy, write_j=said("write_energy", energy),
    )  # fmt: skip


def command_and_stream(small: tuple[float, float], large: tuple[float, float]) -> tuple[float, float]:
    """(command seconds, stream bytes/s) from two measured random reads (chunk in bytes, bytes/s), queue full.

    Two equations command + chunk / stream = chunk / rate. Raises ``InputError`` where no positive pair solves them.
    """
    (a, rate_a), (b, rate_b) = small, large
    if not 0 < a < b:
        raise InputError(f"chunks of {a:g} and {b:g} bytes; accepted: the smaller first, above 0")
    slope = (b / rate_b - a / rate_a) / (b - a)
    command = a / rate_a - a * slope
    if slope <= 0 or command < 0:
        raise InputError("reads that cost no time per byte, or less than none per command, are no drive's")
    return command, 1 / slope


@dataclass(frozen=True)
class Nand:
    """Channels and dies of a drive; seconds and bytes."""

    channels: int
    dies: int
    page_bytes: float
    read_s: float
    channel_bytes_s: float
    command_s: float = 0.0

    def __post_init__(self) -> None:
        if min(self.channels, self.dies, self.page_bytes, self.channel_bytes_s) <= 0 or min(self.read_s, 0) < 0:
            raise InputError("a drive has channels, dies, pages and a channel rate above 0, and no negative read time")

    @property
    def transfer_s(self) -> float:
        """Seconds for which a page takes the channel."""
        return self.command_s + self.page_bytes / self.channel_bytes_s

    @property
    def bandwidth(self) -> float:
        """Bytes/s of all channels, all dies busy."""
        x = self.transfer_s
        return self.channels * self.page_bytes * min(1 / x, self.dies / (self.read_s + x))

    def bandwidth_at(self, depth: float) -> float:
        """Bytes/s with ``depth`` pages outstanding, spread evenly."""
        return min(self.bandwidth, depth * self.page_bytes / (self.read_s + self.transfer_s))

    def pages_s(self, pages: npt.ArrayLike) -> Array:
        """Seconds for ``pages`` pages asked for at once, dealt out evenly over channels and dies."""
        n = np.ceil(np.asarray(pages, dtype=float) / self.channels)
        rounds = np.floor(np.maximum(n - 1, 0) / self.dies)
        x, cycle = self.transfer_s, self.read_s + self.transfer_s
        by_dies = rounds * cycle + self.read_s + (n - rounds * self.dies) * x
        return np.asarray(np.where(n > 0, np.maximum(self.read_s + n * x, by_dies), 0.0))


def nand_of(device: Device) -> Nand:
    """The chips inside ``device``, from its [parameters]. Raises ``InputError`` for what is missing."""
    channels, dies = whole(device, "channels"), whole(device, "dies_per_channel")
    page, read, rate = (parameter(device, name) for name in ("page", "page_read", "channel_rate"))
    return Nand(channels, dies, page, read, rate, parameter(device, "page_command", 0.0))
