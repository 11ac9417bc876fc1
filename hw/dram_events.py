"""The commands of :mod:`.dram` one by one: a discrete-event model of one channel's banks, and the rules they keep.

A sequencer opens sets of rows (``activates`` commands under tRRD and tFAW), sends the columns to the units one per
interval, and closes them; ``interleave`` sets are worked in turn and wait for one another's columns only. Moves cross
the bus before or beside the columns. Refresh comes due every tREFI and waits until the banks are closed. A host that
reads the same banks waits for a set to close, opens a row of its own, reads, and closes it; the units wait meanwhile:
a bank has one row buffer.

Where nothing contends the cycles are those of :func:`.dram.train`, which the tests hold. :func:`broken_rules` says of
any log of commands which timing rule it breaks first.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import simpy

from .dram import Geometry, Timing

Process = Generator[simpy.Event, Any, None]
WINDOW = 4
"""Activates that may fall into one tFAW."""


class Command(NamedTuple):
    """``name``: ACT, COL, PRE, REF; ``who``: "units" or "host"; ``banks``: the set, −1 for all."""

    cycle: float
    name: str
    who: str
    banks: int


@dataclass(frozen=True)
class HostReads:
    """A host that reads ``columns`` columns of one set's row every ``period`` cycles, the sets in turn."""

    period: float
    columns: int


@dataclass
class Outcome:
    """``cycles`` until the last set was closed; the log; per host read its wait and work, in cycles."""

    cycles: float = 0.0
    log: list[Command] = field(default_factory=list)
    host_cycles: list[float] = field(default_factory=list)


@dataclass
class _Channel:
    """State that commands share: banks of every set, the units, the bus, and when rows were last opened."""

    env: simpy.Environment
    geometry: Geometry
    timing: Timing
    stretch: float
    outcome: Outcome
    banks: list[simpy.Resource]
    units: simpy.Resource
    bus: simpy.Resource
    opener: simpy.Resource
    acts: list[float] = field(default_factory=list)

    def say(self, name: str, who: str, banks: int) -> None:
        self.outcome.log.append(Command(self.env.now, name, who, banks))

    def activate(self, who: str, banks: int) -> Process:
        """One activate, as soon as tRRD and tFAW allow."""
        t, now = self.timing, self.env.now
        after_last = [self.acts[-1] + t.rrd] if self.acts else []
        in_window = [self.acts[-WINDOW] + t.faw] if len(self.acts) >= WINDOW else []
        at = max([now, *after_last, *in_window])
        self.acts.append(at)
        yield self.env.timeout(at - now)
        self.say("ACT", who, banks)

    def close(self, who: str, banks: int, opened: float, last: float) -> Process:
        """Precharge as soon as tRAS and tRTP allow, and tRP."""
        at = max(opened + self.timing.ras, last + self.timing.rtp, self.env.now)
        yield self.env.timeout(at - self.env.now)
        self.say("PRE", who, banks)
        yield self.env.timeout(self.timing.rp)

    def work(self, banks: int, columns: int, turn: simpy.Event, next_turn: simpy.Event) -> Process:
        """One set: opened, its columns when it is its turn, closed."""
        t = self.timing
        with self.banks[banks].request() as held:
            yield held
            with self.opener.request() as mine:
                yield mine
                for _ in range(self.geometry.activates):
                    yield from self.activate("units", banks)
            opened = self.env.now
            yield self.env.timeout(t.rcd)
            yield turn
            units = self.units.request()
            yield units
            for i in range(columns):
                self.say("COL", "units", banks)
                if i + 1 < columns:
                    yield self.env.timeout(t.ccd * self.stretch)
            yield self.env.timeout(t.ccd * (self.stretch - 1))
            self.env.process(self.free(units, next_turn))
            yield from self.close("units", banks, opened, self.env.now)

    def free(self, units: Any, next_turn: simpy.Event) -> Process:
        """The units take the last column too, while its row may be closed."""
        yield self.env.timeout(self.timing.ccd)
        self.units.release(units)
        next_turn.succeed()

    def read(self, banks: int, columns: int) -> Process:
        """One read of the host, in a bank of a set."""
        arrived, t = self.env.now, self.timing
        with self.banks[banks].request() as held:
            yield held
            with self.opener.request() as mine:
                yield mine
                yield from self.activate("host", banks)
            opened = self.env.now
            yield self.env.timeout(t.rcd)
            with self.bus.request() as bus:
                yield bus
                for _ in range(columns):
                    self.say("COL", "host", banks)
                    yield self.env.timeout(t.ccd_s)
            self.outcome.host_cycles.append(self.env.now - arrived)
            yield from self.close("host", banks, opened, self.env.now - t.ccd_s)


def simulate(
    trains: Sequence[int],
    geometry: Geometry,
    timing: Timing,
    *,
    moves: Sequence[float] = (),
    double_buffer: bool = False,
    stretch: float = 1.0,
    refresh: bool = True,
    host: HostReads | None = None,
) -> Outcome:
    """Commands of ``trains``: each so many column commands, one train after another.

    ``moves``: cycles on the bus that belong to each train (none where shorter), before it, or beside it with
    ``double_buffer``. ``stretch``: intervals per column. ``host``: reads that contend. Deterministic.
    """
    env, outcome = simpy.Environment(), Outcome()
    sets = [simpy.Resource(env) for _ in range(geometry.interleave)]
    channel = _Channel(
        env, geometry, timing, stretch, outcome, sets, simpy.Resource(env), simpy.Resource(env), simpy.Resource(env)
    )  # fmt: skip
    finished = env.process(_sequence(channel, trains, moves, double_buffer))
    if refresh:
        env.process(_refreshes(channel))
    if host is not None:
        env.process(_host(channel, host))
    env.run(until=finished)
    outcome.cycles = env.now
    return outcome


def _sequence(channel: _Channel, trains: Sequence[int], moves: Sequence[float], double_buffer: bool) -> Process:
    env = channel.env
    for i, columns in enumerate(trains):
        moving = moves[i] if i < len(moves) else 0.0
        parts = [env.process(_train(channel, columns))] if double_buffer or not moving else []
        if moving:
            bus = env.process(_move(channel, moving))
            yield bus if not double_buffer else simpy.AllOf(env, [bus, *parts])
        if not parts:
            parts = [env.process(_train(channel, columns))]
        yield simpy.AllOf(env, parts)


def _move(channel: _Channel, cycles: float) -> Process:
    with channel.bus.request() as bus:
        yield bus
        yield channel.env.timeout(cycles)


def _train(channel: _Channel, columns: int) -> Process:
    """All sets of one train: each starts as soon as its banks are free, and gets the units in its turn."""
    env, full = channel.env, channel.geometry.columns
    sizes = [full] * (columns // full) + ([columns % full] if columns % full else [])
    turn = env.event()
    turn.succeed()
    running = []
    for i, size in enumerate(sizes):
        following = env.event()
        running.append(env.process(channel.work(i % len(channel.banks), size, turn, following)))
        turn = following
        if i + 1 >= len(channel.banks):
            yield running[i + 1 - len(channel.banks)]  # what these banks do next waits until they are closed
    yield simpy.AllOf(env, running)


def _refreshes(channel: _Channel) -> Process:
    """A refresh comes due every tREFI, however late the last one was."""
    env, t = channel.env, channel.timing
    count = 0
    while True:
        count += 1
        yield env.timeout(max(count * t.refi - env.now, 0.0))
        requests = [banks.request() for banks in channel.banks]
        yield simpy.AllOf(env, requests)
        channel.say("REF", "units", -1)
        yield env.timeout(t.rfc)
        for banks, request in zip(channel.banks, requests, strict=True):
            banks.release(request)


def _host(channel: _Channel, host: HostReads) -> Process:
    count = 0
    while True:
        yield channel.env.timeout(host.period)
        channel.env.process(channel.read(count % len(channel.banks), host.columns))
        count += 1


def broken_rules(log: Sequence[Command], timing: Timing, stretch: float = 1.0) -> list[str]:
    """Timing rules that a log breaks, in words, with the cycle; empty where it keeps them all."""
    t, found = timing, []
    acts = [c.cycle for c in log if c.name == "ACT"]
    for i, at in enumerate(acts):
        if i and at - acts[i - 1] < t.rrd:
            found.append(f"{at:g}: ACT {at - acts[i - 1]:g} after the last, tRRD is {t.rrd:g}")
        if i >= WINDOW and at - acts[i - WINDOW] < t.faw:
            found.append(f"{at:g}: five ACT within {at - acts[i - WINDOW]:g}, tFAW is {t.faw:g}")
    for banks in sorted({c.banks for c in log if c.banks >= 0}):
        opened = closed = last = float("-inf")
        for c in (x for x in log if x.banks in (banks, -1)):
            since = {"ACT": c.cycle - closed, "COL": c.cycle - opened, "PRE": c.cycle - opened, "REF": c.cycle - closed}
            least = {"ACT": t.rp, "COL": t.rcd, "PRE": t.ras, "REF": t.rp}[c.name]
            if since[c.name] < least:
                found.append(
                    f"{c.cycle:g}: {c.name} {since[c.name]:g} after the row was opened or closed, not {least:g}"
                )
            if c.name == "PRE" and c.cycle - last < t.rtp:
                found.append(f"{c.cycle:g}: PRE {c.cycle - last:g} after a column, tRTP is {t.rtp:g}")
            opened, closed = (c.cycle if c.name == n else x for n, x in (("ACT", opened), ("PRE", closed)))
            closed = c.cycle + t.rfc - t.rp if c.name == "REF" else closed
            last = c.cycle if c.name == "COL" else last
    for who, least in (("units", t.ccd * stretch), ("host", t.ccd_s)):
        columns = [c.cycle for c in log if c.name == "COL" and c.who == who]
        found += [f"{b:g}: COL {b - a:g} after the last, not {least:g}" for a, b in pairwise(columns) if b - a < least]
    return found
