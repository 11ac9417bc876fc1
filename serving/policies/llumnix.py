"""Llumnix: requests move between instances while they run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import InputError
from ...settings import Parameter
from ..instances import DRAINING, ON, Instances, each
from ..links import Network, Transfer
from ..memory import CacheBytes
from ..replica import Replica
from ..scheduling import ORDERS, Schedule
from ..sequence import Sequence
from . import Policy
from .vllm import TokenBudget

if TYPE_CHECKING:
    from ..simulation import Simulation


@dataclass(eq=False)
class Migration:
    """``sequence`` on its way from ``source`` to ``target``, where ``blocks`` are held for it.

    ``sent`` tokens of its cache are there after ``stages`` copies; ``entry``: its line at the source, another one where
    it was thrown out meanwhile. ``held``: what the source keeps of it, since ``stopped_s``, when it stood still.
    """

    sequence: Sequence
    source: Replica
    target: Replica
    entry: object
    blocks: int
    sent: int = 0
    stages: int = 0
    transfer: Transfer | None = None
    held: tuple[int, dict[int, int]] | None = None
    stopped_s: float = 0.0


class Llumnix(Policy):
    """Load by virtual usage, and requests that migrate from loaded to free instances.

    An instance's *freeness* is the number of steps its batch can still take,

        F = (M − Σ V) / B        tokens of cache, of virtual usages, sequences in the batch

    where a sequence's virtual usage V is what it holds, the first of the queue uses what it asks for, urgent requests
    (priority below 0) together ``headroom`` of the memory beside what they hold, and an instance that is to be shut
    down uses more than everything. Requests go to the freest instance, where all who wait count, as they do when
    instances are started and shut down (:class:`..instances.Instances`). Every ``period`` seconds the least free
    instances below ``low`` are paired with the freest above ``high``, and each pair moves its least urgent, shortest
    sequence: copies of what is cached, then of what was cached meanwhile, while it goes on; with ``last`` tokens or
    fewer to go it stands still for the last copy.
    """

    name = "llumnix"
    description = "load balancing over instances by migrating requests while they run; priorities; scaling"
    source = "Sun et al., Llumnix, OSDI 2024, sections 4.1 to 4.4"
    parameters: ClassVar[dict[str, Parameter]] = {
        "migrate": Parameter("yes", "whether requests migrate", choices=("yes", "no")),
        "period": Parameter(0.1, "seconds from one pairing to the next", low=1e-3, high=1e6),
        "low": Parameter(30.0, "freeness below which an instance sends requests away", low=-1e9, high=1e9),
        "high": Parameter(100.0, "freeness above which it takes them", low=-1e9, high=1e9),
        "last": Parameter(16, "tokens left for the last copy, at most", low=1, high=1e6),
        "headroom": Parameter(0.5, "share of an instance kept free beside urgent requests", low=0.0, high=1.0),
        "least": Parameter(0, "instances that always run; 0 = all, no scaling", low=0, high=1e6),
        "grow": Parameter(160.0, "freeness of all together below which an instance is started", low=-1e9, high=1e9),
        "shrink": Parameter(960.0, "freeness of the rest above which one is shut down", low=-1e9, high=1e9),
        "window": Parameter(5.0, "seconds for which that has to last", low=0.0, high=1e6),
        "start": Parameter(10.0, "seconds that an instance takes to start", low=0.0, high=1e6),
        "network": Parameter(0.0, "GB/s of an instance each way; 0 = its devices' links", low=0.0, high=1e5),
        "agree": Parameter(0.0, "seconds in which two instances agree on a copy", low=0.0, high=10.0),
        "order": Parameter("priority", "who of the waiting comes first", choices=tuple(ORDERS)),
    }

    def build(self, simulation: Simulation) -> list[Replica]:
        self.unstaged()
        replicas = super().build(simulation)
        s = self.settings
        if s["least"] > len(replicas) or s["shrink"] <= s["grow"]:
            raise InputError(
                f"policy llumnix: least={s['least']}, grow={s['grow']:g}, shrink={s['shrink']:g}; accepted: least up "
                f"to the {len(replicas)} replicas, grow below shrink"
            )
        self.network = Network(simulation, replicas, s["network"], s["agree"]) if s["migrate"] == "yes" else None
        self.cache = CacheBytes(self.cluster.trace)
        self.urgent = [0] * len(replicas)
        self._mixed = bool((simulation.log.priority < 0).any())
        self.instances = Instances(simulation, replicas, s)
        self.active: list[Migration] = []
        self.counts: Counter[str] = Counter()
        self.stalls: list[float] = []
        self.bytes = 0.0
        return replicas

    def schedule(self, role: str = "") -> Schedule:
        return TokenBudget(self.settings["order"])

    def begin(self, simulation: Simulation) -> None:
        simulation.every(self.settings["period"], self._tick)

    # -- load ------------------------------------------------------------------------------------
    def freeness(self, replica: Replica) -> float:
        """Steps that the batch of ``replica`` can take until its memory is virtually full; less than 0 where it is."""
        if self.instances.state[replica.number] == DRAINING:
            return float("-inf")
        room = self._room(replica)
        first = replica.peek()
        if first is not None:
            room -= self._asked(replica, first)
        return room * replica.pool.size / max(self._batch(replica), 1)

    def whole(self, replica: Replica, urgent: bool = False) -> tuple[float, int]:
        """Tokens of cache that all who wait at ``replica`` would leave, and sequences there, those that wait too: what
        requests are sent by, and instances started and shut down by. To an ``urgent`` one, what is kept beside urgent
        requests is room like any other."""
        room = replica.free() if urgent else self._room(replica)
        room -= sum(self._asked(replica, s) for _, _, s in replica.waiting)
        return room * replica.pool.size, self._batch(replica) + len(replica.waiting)

    def _room(self, replica: Replica) -> float:
        """Free blocks, less those kept beside urgent requests."""
        kept = self.settings["headroom"] * replica.pool.total if self.urgent[replica.number] else 0.0
        return replica.free() - kept

    @staticmethod
    def _batch(replica: Replica) -> int:
        return len(replica.decoding) + len(replica.prefilling) + replica.reserved

    @staticmethod
    def _asked(replica: Replica, sequence: Sequence) -> int:
        """Blocks that a sequence which waits asks for."""
        return -(-(sequence.done if sequence.parked else sequence.todo) // replica.pool.size)

    def route(self, sequence: Sequence) -> Replica | None:
        there = [r for r in self.simulation.replicas if r.up and self.instances.state[r.number] == ON]
        there = there or [r for r in self.simulation.replicas if r.up and self.instances.state[r.number] == DRAINING]
        urgent = self._mixed and bool(self.simulation.log.priority[sequence.index] < 0)
        best = max(there, key=lambda r: (each(*self.whole(r, urgent)), -r.load, -r.number), default=None)
        if best is not None and urgent:
            self.urgent[best.number] += 1
        return best

    def _tick(self) -> None:
        replicas = self.simulation.replicas
        if self._mixed:
            urgent = self.simulation.log.priority < 0
            for r in replicas:
                here = [s for _, _, s in r.decoding] + r.prefilling + r.entering + [s for _, _, s in r.waiting]
                self.urgent[r.number] = sum(bool(urgent[s.index]) for s in here)
        self.instances.tick(self.whole)
        if self.network is not None:
            self._pair([r for r in replicas if r.up])

    # -- migration -------------------------------------------------------------------------------
    def _pair(self, replicas: list[Replica]) -> None:
        s, state = self.settings, self.instances.state
        taken = {r for m in self.active for r in (m.source, m.target)}
        free = {r: self.freeness(r) for r in replicas if r not in taken}
        sources = sorted((r for r, f in free.items() if f < s["low"] and r.decoding), key=lambda r: (free[r], r.number))
        targets = sorted(
            (r for r, f in free.items() if f > s["high"] and state[r.number] == ON), key=lambda r: (-free[r], r.number)
        )
        for source, target in zip(sources, targets, strict=False):
            sequence = self._chosen(source)
            migration = Migration(sequence, source, target, sequence.entry, 0)
            self.active.append(migration)
            source.between(lambda m=migration: self._stage(m))  # type: ignore[misc]

    def _chosen(self, replica: Replica) -> Sequence:
        """The least urgent, shortest sequence of those that decode."""
        priority = self.simulation.log.priority
        return min((s for _, _, s in replica.decoding), key=lambda s: (-int(priority[s.index]), s.base, s.index))

    def _stage(self, m: Migration) -> None:
        """Between two iterations of the source: the next copy begins."""
        s, source = m.sequence, m.source
        if m not in self.active:
            return
        if s.home is not source or s.entry is not m.entry:  # it has ended, or was thrown out
            self._drop(m)
            return
        context = source.context(s)
        blocks = -(-context // source.pool.size)
        if not (m.target.hold(blocks - m.blocks) if m.blocks else m.target.reserve(blocks)):
            self._drop(m)
            return
        m.blocks = blocks
        size = self.cache(context) - (self.cache(m.sent) if m.stages else 0.0)
        last = context - m.sent <= self.settings["last"]
        m.sent = context
        m.stages += 1
        self.bytes += size
        if last:
            m.held = source.detach(s)
            m.stopped_s = self.simulation.now
        assert self.network is not None
        m.transfer = self.network.send(source, m.target, size, self._arrived, m)

    def _arrived(self, m: Migration) -> None:
        if m.held is None:
            m.source.between(lambda: self._stage(m))
            return
        self.active.remove(m)
        self.counts["migrations"] += 1
        self.counts["stages"] += m.stages
        self.stalls.append(self.simulation.now - m.stopped_s)
        m.source.let_go(m.held)
        m.target.enter(m.sequence, m.blocks)

    def _drop(self, m: Migration) -> None:
        self.active.remove(m)
        self.counts["aborted"] += 1
        if m.transfer is not None:
            m.transfer.cancel()
        if m.blocks and m.target.up:
            m.target.cancel(m.blocks)

    def failed(self, replica: Replica) -> list[Sequence]:
        """Migrations from and to ``replica`` are void; a sequence that stood still for its last copy starts over."""
        lost = []
        for m in [m for m in self.active if replica in (m.source, m.target)]:
            self._drop(m)
            if m.held is not None:
                if m.source is not replica:
                    m.source.let_go(m.held)
                m.sequence.prompt, m.sequence.done = m.sequence.done + 1, 0
                lost.append(m.sequence)
        return lost

    def result(self) -> dict[str, Any]:
        stalls = self.stalls
        return {
            "migration": {
                "migrations": self.counts["migrations"], "aborted": self.counts["aborted"],
                "stages": self.counts["stages"] / len(stalls) if stalls else None, "bytes": self.bytes,
                "stall_s": {"mean": sum(stalls) / len(stalls), "max": max(stalls)} if stalls else None,
                **self.instances.result(),
            }
        }  # fmt: skip


POLICY = Llumnix
