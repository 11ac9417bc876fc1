"""Links between replicas and to memory beyond them: bytes queue, are sent at a bandwidth that faults change, arrive.

A transfer may hold several links (the sender's way out, the receiver's way in). It starts when it is the first of the
queue of each, is sent at the slowest one's rate, and arrives the longest one's latency after its last byte was sent:

    arrival = start + bytes / min(bandwidth · factor) + max(latency)

Queues are filled in the order of calls, so the first transfer of all is the first of each of its queues, and no two
wait for each other. While a factor changes, what is on its way keeps what was sent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..hw.spec import Device

if TYPE_CHECKING:
    from .replica import Replica
    from .simulation import Simulation

BETWEEN_HOSTS = ("infiniband", "ethernet", "pcie")
"""Links of a device that lead to other hosts, the first there is: a network card hangs off the host's bus."""


class Link:
    """A way of ``bandwidth`` bytes/s and ``latency_s`` seconds, in one direction, first come first served.

    ``sent_bytes`` and ``busy_s``: what passed, and for how long the link was taken. Known to faults by ``name``; the
    ``owner`` is the number of the replica whose link it is; ``watch`` is called whenever a transfer begins or ends.
    """

    def __init__(self, simulation: Simulation, name: str, owner: int, bandwidth: float, latency_s: float) -> None:
        self.simulation, self.name, self.owner = simulation, name, owner
        self.bandwidth, self.latency_s = bandwidth, latency_s
        self.queue: deque[Transfer] = deque()
        self.factors: list[float] = []
        self.watch: Callable[[], None] | None = None
        self.sent_bytes = 0.0
        self.busy_s = 0.0
        simulation.links.append(self)

    @property
    def rate(self) -> float:
        """Bytes per second now; 0 where a fault has cut the link."""
        return self.bandwidth * math.prod(self.factors)

    def slow(self, factor: float) -> None:
        """From now on ``factor`` of the bandwidth, beside other faults."""
        self._change(lambda: self.factors.append(factor))

    def mend(self, factor: float) -> None:
        """The fault of ``factor`` is over."""
        self._change(lambda: self.factors.remove(factor))

    def _change(self, edit: Callable[[], None]) -> None:
        head = self.queue[0] if self.queue and self.queue[0].started else None
        if head is not None:
            head.settle()
        edit()
        if head is not None:
            head.proceed()


class Transfer:
    """Bytes on their way over ``links``; ``call(value)`` when they are there, unless :meth:`cancel` comes first."""

    __slots__ = ("_since", "_start", "_version", "call", "left", "links", "over", "size", "started", "value")

    def __init__(self, links: tuple[Link, ...], size: float, call: Callable[[Any], None], value: Any) -> None:
        self.links, self.size, self.left, self.call, self.value = links, size, size, call, value
        self.started = self.over = False
        self._since = self._start = 0.0
        self._version = 0

    @property
    def _now(self) -> float:
        return self.links[0].simulation.now

    @property
    def rate(self) -> float:
        """Bytes per second that the links allow now."""
        return min(link.rate for link in self.links)

    def begin(self) -> None:
        """Start, if it is the first everywhere."""
        if not self.started and all(link.queue[0] is self for link in self.links):
            self.started = True
            self._since = self._start = self._now
            self.proceed()
            self._tell()

    def settle(self) -> None:
        """Take off what was sent since the rate changed last."""
        self.left = max(self.left - (self._now - self._since) * self.rate, 0.0)
        self._since = self._now

    def proceed(self) -> None:
        """Send the rest at the rate of now; a cut link waits for its repair."""
        self._version += 1
        rate = self.rate
        if rate > 0:
            self.links[0].simulation.after(self.left / rate, self._sent, self._version)

    def _sent(self, version: int) -> None:
        if version != self._version or self.over:
            return
        self._leave(self.size)
        self.links[0].simulation.after(max(link.latency_s for link in self.links), self._arrived)

    def _arrived(self, _: Any) -> None:
        if not self.over:
            self.over = True
            self.call(self.value)

    def _leave(self, sent: float) -> None:
        """Free the links for those behind."""
        self._version += 1
        heads = []
        for link in self.links:
            if self.started:
                link.busy_s += self._now - self._start
            link.sent_bytes += sent
            link.queue.remove(self)
            heads += [link.queue[0]] if link.queue else []
        for head in heads:
            head.begin()
        self._tell()

    def _tell(self) -> None:
        for link in self.links:
            if link.watch is not None:
                link.watch()

    def cancel(self) -> None:
        """An end of it is gone: nothing arrives, and the links are free."""
        if self.over:
            return
        self.over = True
        if any(self in link.queue for link in self.links):
            if self.started:
                self.settle()
            self._leave(self.size - self.left)


def send(links: tuple[Link, ...], size: float, call: Callable[[Any], None], value: Any = None) -> Transfer:
    """Queue ``size`` bytes on ``links``; ``call(value)`` when the last has arrived."""
    transfer = Transfer(links, size, call, value)
    for link in links:
        link.queue.append(transfer)
    transfer.begin()
    return transfer


class Network:
    """A way out and a way in for every one of ``replicas``: ``gb_s`` GB/s each, or what their devices have.

    ``agree_s``: seconds in which the two ends agree on a transfer, beside the link's latency.

    Raises ``InputError`` for devices without a link to other hosts.
    """

    def __init__(
        self, simulation: Simulation, replicas: Sequence[Replica], gb_s: float = 0.0, agree_s: float = 0.0
    ) -> None:  # fmt: skip
        self.out, self.into = [], []
        for r in replicas:
            bandwidth, latency = way_out(r.steps.device, r.steps.devices, gb_s)
            latency += agree_s
            self.out.append(Link(simulation, f"nic-out-{r.number}", r.number, bandwidth, latency))
            self.into.append(Link(simulation, f"nic-in-{r.number}", r.number, bandwidth, latency))

    def rate(self, source: Replica, target: Replica) -> float:
        """Bytes/s between two replicas now, where nothing else is sent."""
        return min(self.out[source.number].rate, self.into[target.number].rate)

    def send(
        self, source: Replica, target: Replica, size: float, call: Callable[[Any], None], value: Any = None
    ) -> Transfer:
        """Queue ``size`` bytes; ``call(value)`` when the last has arrived."""
        return send((self.out[source.number], self.into[target.number]), size, call, value)

    def busiest(self, now: float) -> float:
        """Share of the time until ``now`` for which the busiest way was taken."""
        return max(link.busy_s for link in (*self.out, *self.into)) / now if now else 0.0


def way_out(device: Device, devices: int, gb_s: float = 0.0) -> tuple[float, float]:
    """(bytes/s each way, seconds of latency) from ``devices`` devices to other hosts: ``gb_s`` GB/s together where
    that is given, else the link of each device that leads there. Raises ``InputError`` where there is none."""
    found = [device.links[name] for name in BETWEEN_HOSTS if name in device.links]
    if not found and not gb_s:
        raise InputError(
            f"device {device.name}: no link to other hosts ({', '.join(BETWEEN_HOSTS)}); give network=GB/s"
        )
    latency = found[0].latency.value if found else 0.0
    return (gb_s * 1e9 if gb_s else found[0].bandwidth.value * devices), latency
