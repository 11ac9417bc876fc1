"""Memory beyond the device: sequences swapped to the host, prefixes kept in host memory and on a drive.

A sequence that is preempted by swapping goes over the host's link; its blocks are free when the last byte is out, and
it is queued first. When there is room again it comes back the same way and decodes on, nothing is computed twice.

Blocks of prefixes that nobody uses and that are evicted go to the host in the background (they are in a buffer until
they are out), from there, least recently used first, to the drive. A prompt that starts with them waits until they
are fetched: from the drive over its link and the host's at once, at the slower one's rate.

Both directions of both links are queues (:mod:`.links`), so swaps and fetches wait for one another.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..settings import Parameter
from .links import Link, Transfer, send
from .memory import CacheBytes
from .sequence import Sequence

if TYPE_CHECKING:
    from .replica import Replica

HOST_LINKS = ("pcie", "host", "usb", "nvlink")
"""Links of a device that lead to its host's memory, the first there is."""

TIERS: dict[str, Parameter] = {
    "preempt": Parameter("recompute", "what a preempted sequence's cache is", choices=("recompute", "swap")),
    "spill": Parameter("no", "where evicted prefixes are kept", choices=("no", "host", "ssd")),
    "host_gb": Parameter(4.0, "GB of host memory per device for caches", low=0.0, high=1e6),
    "ssd_gb": Parameter(1000.0, "GB of the drive per replica for caches", low=0.0, high=1e9),
    "host_gb_s": Parameter(
        0.0, "GB/s between a device and its host each way; 0 = the device's link", low=0.0, high=1e5
    ),
    "ssd_gb_s": Parameter(3.0, "GB/s of the drive each way", low=1e-3, high=1e5),
}


@dataclass
class Extent:
    """Blocks ``low`` to ``high`` (excluded) of a prefix node's own, in some tier."""

    low: int
    high: int

    @property
    def blocks(self) -> int:
        return self.high - self.low


class Store:
    """``capacity`` blocks of prefixes, least recently used first; ``other`` of them hold something else."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.other = capacity, 0
        self.held = 0
        self.extents: OrderedDict[int, Extent] = OrderedDict()

    @property
    def free(self) -> int:
        return self.capacity - self.other - self.held

    def put(self, node: int, low: int, high: int) -> list[tuple[int, int, int]]:
        """Keep blocks of ``node``; what had to go for them: (node, low, high) each."""
        found = self.extents.pop(node, None)
        if found is not None:
            self.held -= found.blocks
            if low <= found.high and found.low <= high:  # one string of blocks; else the older ones are lost
                low, high = min(low, found.low), max(high, found.high)
        high = min(high, low + self.capacity - self.other)
        gone = self.room(high - low)
        if high > low:
            self.extents[node] = Extent(low, high)
            self.held += high - low
        return gone

    def room(self, blocks: int) -> list[tuple[int, int, int]]:
        """Make room for ``blocks``, from the ends of what was used least recently; what had to go."""
        gone = []
        while self.free < blocks and self.extents:
            node, extent = next(iter(self.extents.items()))
            out = min(extent.blocks, blocks - self.free)
            gone.append((node, extent.high - out, extent.high))
            extent.high -= out
            self.held -= out
            if not extent.blocks:
                del self.extents[node]
        return gone

    def until(self, node: int, start: int) -> int:
        """Blocks of ``node`` that are here without a gap from ``start`` on: the first one that is not."""
        extent = self.extents.get(node)
        if extent is None or not extent.low <= start < extent.high:
            return start
        return extent.high

    def touch(self, node: int) -> None:
        """``node`` was used just now."""
        if node in self.extents:
            self.extents.move_to_end(node)


class Tiers:
    """What one replica keeps beyond its devices. ``moving``: sequences whose cache is on its way out or in.

    Counts: ``out``, ``back`` sequences, ``fetched``, ``spilled`` blocks; ``waited_s`` for fetches.
    """

    def __init__(self, replica: Replica, cache: CacheBytes, settings: dict[str, Any]) -> None:
        steps = replica.steps
        self.replica, self.cache = replica, cache
        self.swaps, self.spills = settings["preempt"] == "swap", settings["spill"]
        self.block_bytes = cache(replica.pool.size * 2) - cache(replica.pool.size)
        links = [steps.device.links[name] for name in HOST_LINKS if name in steps.device.links]
        if not links and not settings["host_gb_s"]:
            raise InputError(f"device {steps.device.name}: no link to a host; give host_gb_s, or preempt=recompute")
        bandwidth = settings["host_gb_s"] * 1e9 or links[0].bandwidth.value
        latency = links[0].latency.value if links else 0.0
        sim, i = replica.simulation, replica.number
        self.host_out, self.host_in = (
            Link(sim, f"host-{way}-{i}", i, bandwidth * steps.devices, latency) for way in ("out", "in")
        )
        self.host = Store(self._blocks(settings["host_gb"] * steps.devices))
        self.drive = Store(self._blocks(settings["ssd_gb"]) if self.spills == "ssd" else 0)
        if self.spills == "ssd":
            self.drive_out, self.drive_in = (
                Link(sim, f"ssd-{way}-{i}", i, settings["ssd_gb_s"] * 1e9, 0.0) for way in ("out", "in")
            )
        if self.spills != "no":
            replica.pool.spill = self.spill
        self.moving: dict[Sequence, list[Transfer]] = {}
        self._leaving: dict[Sequence, tuple[int, dict[int, int]]] = {}
        self._coming: dict[Sequence, int] = {}
        self._failures = 0
        self.out = self.back = self.fetched = self.spilled = 0
        self.waited_s = 0.0

    def _blocks(self, gb: float) -> int:
        return int(gb * 1e9 / self.block_bytes) if self.block_bytes else 0

    @property
    def leaving(self) -> int:
        """Blocks that will be free when their copies are out."""
        return sum(blocks for blocks, _ in self._leaving.values())

    # -- swapping ------------------------------------------------------------------------------
    def swap_out(self, sequence: Sequence) -> bool:
        """Send a decoding ``sequence`` to the host; False where that is not done, or the host has no room."""
        replica = self.replica
        blocks = -(-replica.context(sequence) // replica.pool.size) if sequence.place == 2 else 0
        if not self.swaps or not blocks or blocks > self.host.capacity - self.host.other:
            return False
        self._down(self.host.room(blocks))
        self.host.other += blocks
        self._leaving[sequence] = replica.detach(sequence)
        replica.load += 1
        sequence.parked = True
        self.out += 1
        self.moving[sequence] = [send((self.host_out,), self.cache(sequence.done), self._is_out, sequence)]
        return True

    def _is_out(self, sequence: Sequence) -> None:
        del self.moving[sequence]
        blocks, used = self._leaving.pop(sequence)
        self.replica.pool.give(blocks)
        self.replica.pool.leave(used)
        self.replica.submit(sequence, front=True)

    def swap_in(self, sequence: Sequence) -> bool:
        """Bring a parked ``sequence``, the first of the queue, back; False where there is no room yet."""
        replica = self.replica
        blocks = -(-sequence.done // replica.pool.size)
        whole = -(-(sequence.done + sequence.left) // replica.pool.size)
        if min(blocks + 1, whole) > replica.pool.free - replica.grown(1):  # its next token may need one more
            return False
        replica.pool.take(blocks)
        replica.reserved += 1
        self._coming[sequence] = blocks
        self.moving[sequence] = [send((self.host_in,), self.cache(sequence.done), self._is_back, sequence)]
        return True

    def _is_back(self, sequence: Sequence) -> None:
        del self.moving[sequence]
        blocks = self._coming.pop(sequence)
        self.host.other -= blocks
        self.back += 1
        sequence.parked = False
        self.replica.enter(sequence, blocks)

    # -- prefixes ------------------------------------------------------------------------------
    def spill(self, node: int, low: int, high: int) -> None:
        """Blocks of a prefix node leave the device: to the host, and there when they have arrived."""
        self.spilled += high - low
        self._write((self.host_out,), self.host, [(node, low, high)])

    def _write(self, links: tuple[Link, ...], store: Store, pieces: list[tuple[int, int, int]]) -> None:
        def kept(piece: tuple[int, tuple[int, int, int]]) -> None:
            failures, (node, low, high) = piece
            if failures == self._failures:
                gone = store.put(node, low, high)
                if store is self.host:
                    self._down(gone)

        for piece in pieces:
            send(links, (piece[2] - piece[1]) * self.block_bytes, kept, (self._failures, piece))

    def _down(self, pieces: list[tuple[int, int, int]]) -> None:
        """What the host has no room for."""
        if self.spills == "ssd":
            self._write((self.drive_out,), self.drive, pieces)

    def beyond(self, node: int, most: int) -> tuple[int, int]:
        """Blocks of ``node``'s prefix that follow those on the device: in the host, on the drive; ``most`` in all."""
        pool = self.replica.pool
        near = far = 0
        for each in pool.chain(node):
            here, span = pool.resident(each), pool.span(each)
            if here and near + far:  # nothing behind a gap on the device
                break
            at = here
            while at < span:
                host = self.host.until(each, at)
                near += host - at
                drive = self.drive.until(each, host)
                far += drive - host
                if drive == at:
                    break
                at = drive
            if at < span:
                break
        over = max(near + far - most, 0)
        from_drive = min(over, far)
        return near - (over - from_drive), far - from_drive

    def fetch(self, sequence: Sequence, near: int, far: int) -> None:
        """Bring blocks for ``sequence``, which has a seat and blocks; its prompt goes on when they are there."""
        size, replica = self.block_bytes, self.replica
        replica.reserved += 1
        began, left = replica.simulation.now, [bool(near) + bool(far)]
        self.fetched += near + far
        for node in replica.pool.chain(sequence.node):
            self.host.touch(node)
            self.drive.touch(node)

        def part(_: Any) -> None:
            left[0] -= 1
            if not left[0]:
                self.waited_s += replica.simulation.now - began
                replica.between(lambda: self._is_here(sequence))
                replica.wake()

        transfers = []
        if near:
            transfers.append(send((self.host_in,), near * size, part))
        if far:
            transfers.append(send((self.drive_in, self.host_in), far * size, part))
        self.moving[sequence] = transfers

    def _is_here(self, sequence: Sequence) -> None:
        if self.moving.pop(sequence, None) is not None:
            self.replica.reserved -= 1
            sequence.place = 1
            self.replica.prefilling.append(sequence)

    # -- faults and counts -------------------------------------------------------------------------
    def fail(self) -> list[Sequence]:
        """The replica dies, and its host with it; the sequences that were on their way."""
        lost = list(self.moving)
        self._failures += 1
        for transfers in self.moving.values():
            for transfer in transfers:
                transfer.cancel()
        self.moving.clear()
        self._leaving.clear()
        self._coming.clear()
        self.host.other = self.host.held = self.drive.held = 0
        self.host.extents.clear()
        self.drive.extents.clear()
        return lost

    def blocks_here(self) -> int:
        """Blocks on the device of sequences on their way."""
        return (
            self.leaving
            + sum(self._coming.values())
            + sum(s.blocks for s in self.moving if s not in self._leaving and s not in self._coming)
        )

    def seats_here(self) -> int:
        """Seats of sequences on their way in."""
        return len(self.moving) - len(self._leaving)


def described(replicas: list[Replica]) -> dict[str, Any]:
    """What the tiers of ``replicas`` did, together; nothing where there are none."""
    tiers = [r.tiers for r in replicas if r.tiers is not None]
    if not tiers:
        return {}
    return {
        "tiers": {
            "swapped_out": sum(t.out for t in tiers), "swapped_in": sum(t.back for t in tiers),
            "spilled_blocks": sum(t.spilled for t in tiers), "fetched_blocks": sum(t.fetched for t in tiers),
            "fetch_s": sum(t.waited_s for t in tiers), "host_blocks": sum(t.host.capacity for t in tiers),
            "drive_blocks": sum(t.drive.capacity for t in tiers),
            "host_link_busy_s": sum(t.host_out.busy_s + t.host_in.busy_s for t in tiers),
        }
    }  # fmt: skip
