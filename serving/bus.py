"""The link between hosts and devices, shared: by replicas on one host, by layers that are read ahead, by swaps.

A host's link has two directions; each serves whoever wants it, nobody more than is wanted (max–min fair):

    an iteration wants the seconds of link that its layers read or write, over the seconds that it takes alone
    a transfer of caches (:mod:`.tiers`) wants all it can be sent at, to a drive no more than the drive takes

Where they want more together than there is, who wants more than the level λ gets λ: a transfer is sent at λ of the
rate, an iteration goes on as if the link were 1 / λ as fast (:class:`.streamed.StreamedSteps`), whatever of it is left.
So an iteration that computes longer than it reads does not notice; one that waits for its layers does. Shares change
when an iteration or a transfer begins or ends, in the middle of iterations too; therefore replicas on a bus take decode
steps one by one. The link is as wide as the devices of one replica have it.

Left out: drives and the host's memory, which every replica has to itself; waves within an iteration (who reads early
and who late in it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import InputError
from .links import Link
from .pipeline import Pipeline
from .replica import Replica
from .scheduling import Plan
from .streamed import ALONE, EventSteps, StreamedSteps

if TYPE_CHECKING:
    from .cluster import Cluster
    from .simulation import Simulation

WAYS = (0, 1)
"""Into the devices, and out of them."""
NARROW = 1e6
"""A link so many times slower than alone, by which iterations tell what they take of it."""
NEAR = 1e-12
"""Relative difference of two times that are the same."""


class Work:
    """An iteration that runs: ``wants`` of the link each way alone, ``left`` of it at the last change, ``since`` when,
    at shares under which it takes ``whole_s``."""

    def __init__(self, replica: Replica, plan: Plan, start: float) -> None:
        self.replica, self.plan, self.start, self.since = replica, plan, start, start
        self.slower, self.left = ALONE, 1.0
        self.whole_s = self.seconds(ALONE)
        self.wants = tuple(min(self.taken(way) / self.whole_s, 1.0) if self.whole_s else 0.0 for way in WAYS)

    @property
    def end(self) -> float:
        """When it is over, at the shares of now."""
        return self.since + self.left * self.whole_s

    @property
    def runs(self) -> bool:
        """Whether the replica still runs it."""
        return self.replica.up and self.replica._plan is self.plan

    def seconds(self, slower: tuple[float, float]) -> float:
        """What it takes whole where the link is so much slower each way."""
        steps = self.replica.steps
        if isinstance(steps, StreamedSteps):
            steps = steps.at(slower)
        return self.replica._seconds(self.plan, steps) / self.replica.speed + self.plan.extra_s

    def taken(self, way: int) -> float:
        """Seconds of link it takes: what it would take per unit of slowness if the link were all that counts."""
        if not isinstance(self.replica.steps, StreamedSteps):
            return 0.0
        return self.seconds((NARROW, 1.0) if way == 0 else (1.0, NARROW)) / NARROW

    def share(self, slower: tuple[float, float], now: float) -> bool:
        """Go on at other shares; whether they are others."""
        if slower == self.slower:
            return False
        if self.whole_s:
            self.left = max(self.left - (now - self.since) / self.whole_s, 0.0)
        self.since, self.slower, self.whole_s = now, slower, self.seconds(slower)
        return True


class Seat(Pipeline):
    """A replica's place on a bus, in the place of a pipeline of one stage."""

    def __init__(self, bus: Bus, replica: Replica) -> None:
        super().__init__(1)
        self.bus, self.replica = bus, replica

    def enter(self, now: float, seconds: float) -> float:
        """When the iteration that begins ``now`` is over if no share changes."""
        return self.bus.begin(self, now)


class Bus:
    """One host's link and the replicas on it."""

    def __init__(self, simulation: Simulation, replicas: Sequence[Replica]) -> None:
        self.simulation = simulation
        self.works: dict[Seat, Work] = {}
        self.links: tuple[list[Link], list[Link]] = ([], [])
        self._given: dict[Link, float] = {}
        for replica in replicas:
            replica.pipeline = Seat(self, replica)
            if replica.tiers is not None:
                for way, link in zip(WAYS, (replica.tiers.host_in, replica.tiers.host_out), strict=True):
                    self.links[way].append(link)
                    link.watch = self.shared

    def begin(self, seat: Seat, now: float) -> float:
        """An iteration of ``seat``'s replica begins; when it is over."""
        self._over(seat)
        plan = seat.replica._plan
        assert plan is not None  # it has just been planned
        work = self.works[seat] = Work(seat.replica, plan, now)
        self.shared(beginning=work)
        self._alarm(work)
        return work.end

    def _alarm(self, work: Work) -> None:
        self.simulation.after(max(work.end - self.simulation.now, 0.0), self._check)

    def _check(self, _: object) -> None:
        now = self.simulation.now
        over = [s for s, w in self.works.items() if not w.runs or w.end <= now * (1 + NEAR)]
        for seat in over:
            self._over(seat)
        if over:
            self.shared()

    def _over(self, seat: Seat) -> None:
        work = self.works.pop(seat, None)
        if work is not None:
            seat.work_s += self.simulation.now - work.start

    def shared(self, beginning: Work | None = None) -> None:
        """Divide the link anew among those who want it now."""
        now = self.simulation.now
        works = [w for w in self.works.values() if w.runs]
        slower: dict[Work, list[float]] = {w: [1.0, 1.0] for w in works}
        for way in WAYS:
            going = [link for link in self.links[way] if link.queue and link.queue[0].started]
            wants = [w.wants[way] for w in works] + [_wanted(link) for link in going]
            level = fair_level(wants)
            for w in works:
                if w.wants[way] > level:
                    slower[w][way] = 1 / level
            for link, want in zip(going, wants[len(works) :], strict=True):
                self._give(link, level if want > level else 1.0)
        for w in works:
            if w.share((slower[w][0], slower[w][1]), now) and w is not beginning:
                w.replica._lasts(w.start, w.end - w.start, now)
                self._alarm(w)

    def _give(self, link: Link, share: float) -> None:
        before = self._given.get(link, 1.0)
        if share != before:
            self._given[link] = share
            link.slow(share)
            if before != 1.0:
                link.mend(before)


def _wanted(link: Link) -> float:
    """Share of ``link`` that the transfer on it can use: all, or what the slowest of its other links takes."""
    others = [other.rate for other in link.queue[0].links if other is not link]
    return min([1.0, *(rate / link.bandwidth for rate in others)])


def fair_level(wants: Sequence[float]) -> float:
    """The most that anybody gets of 1 which all share so that nobody gets more than is wanted, and who gets less gets
    as much as anybody; at least 1 where there is enough."""
    left, level = 1.0, 1.0
    rising = sorted(w for w in wants if w > 0)
    if sum(rising) <= 1:
        return 1.0
    for i, want in enumerate(rising):
        level = left / (len(rising) - i)
        if want > level:
            break
        left -= want
    return level


def shared_hosts(simulation: Simulation, cluster: Cluster) -> list[Bus]:
    """Put the replicas of ``simulation`` on their hosts' links where these are contended for: ``cluster.per_host`` of
    them on each, or one that reads layers ahead and moves caches. Raises ``InputError`` where the level does not know
    of links, or the policy's iterations are not those of the event level."""
    replicas = simulation.replicas
    if cluster.level == "closed":
        if cluster.per_host > 1:
            raise InputError(f"--per-host {cluster.per_host} with --level closed: accepted with --level event")
        return []
    others = [r for r in replicas if not isinstance(r.steps, EventSteps)]
    if others:
        raise InputError(
            f"policy {simulation.policy.name}: it costs iterations of its own, in closed form; accepted: --level closed"
        )
    reading = [r for r in replicas if isinstance(r.steps, StreamedSteps)]
    if cluster.per_host == 1 and not any(r.tiers is not None for r in reading):
        return []
    if cluster.parallel.pp > 1:
        raise InputError(f"{cluster.parallel}: a pipeline on a shared link is not modelled; accepted: --parallel tp=N")
    if not reading and not any(r.tiers is not None for r in replicas):
        raise InputError(
            f"--per-host {cluster.per_host}: nothing passes the host's link; accepted with --apply offload:…, or a "
            "policy with preempt=swap or spill=host"
        )
    size = cluster.per_host
    return [Bus(simulation, replicas[i : i + size]) for i in range(0, len(replicas), size)]
