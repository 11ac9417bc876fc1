"""Which replicas run: started where the rest is loaded, shut down where it is not, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .replica import Replica

if TYPE_CHECKING:
    from .simulation import Simulation

OFF, STARTING, ON, DRAINING = range(4)
Room = Callable[[Replica], tuple[float, int]]
"""Tokens of cache that are free at an instance (fewer than 0: asked for beyond it), and sequences there."""


def each(tokens: float, sequences: int) -> float:
    """Free tokens per sequence: steps that they can all take."""
    return tokens / max(sequences, 1)


class Instances:
    """States of replicas. ``settings``: ``least`` instances always run (0: all do). One more is started, which takes
    ``start`` seconds, when the freeness of all that run was below ``grow`` for ``window`` seconds: their free tokens
    over their sequences, all taken together, so that one empty instance does not hide that the others are full. The
    one with the fewest requests is drained, then shut down, when the rest would have had more than ``shrink`` without
    its memory and with its requests."""

    def __init__(self, simulation: Simulation, replicas: list[Replica], settings: Mapping[str, Any]) -> None:
        self.simulation, self.replicas, self.settings = simulation, replicas, settings
        self.least = int(settings["least"]) or len(replicas)
        self.state = [ON if i < self.least else OFF for i in range(len(replicas))]
        self._since: list[float | None] = [0.0 if s == ON else None for s in self.state]
        self._hours = [0.0] * len(replicas)
        self._loaded_s: float | None = None
        self._idle_s: float | None = None
        self.started = self.stopped = 0
        for r, state in zip(replicas, self.state, strict=True):
            if state == OFF:
                r.away.append([0.0, float("inf")])

    def tick(self, room: Room) -> None:
        """Look at the load, and start or drain at most one instance."""
        if self.least == len(self.replicas):
            return
        now, s = self.simulation.now, self.settings
        for r in self.replicas:
            if self.state[r.number] == DRAINING and r.up and not r.load and not r.reserved and not r.busy:
                self._stop(r)
        running = [r for r in self.replicas if self.state[r.number] == ON and r.up]
        tokens, sequences = (sum(x) for x in zip(*map(room, running), strict=True)) if running else (0.0, 0)
        loaded = not running or each(tokens, sequences) < s["grow"]
        self._loaded_s = (now if self._loaded_s is None else self._loaded_s) if loaded else None
        idle = False
        if len(running) > self.least:
            last = min(running, key=lambda r: (r.load, -r.number))
            idle = each(tokens - last.pool.total * last.pool.size, sequences) > s["shrink"]
        self._idle_s = (now if self._idle_s is None else self._idle_s) if idle else None
        if self._loaded_s is not None and now - self._loaded_s >= s["window"]:
            self._grow()
            self._loaded_s = None
        elif self._idle_s is not None and now - self._idle_s >= s["window"]:
            self.state[last.number] = DRAINING
            self._idle_s = None

    def _grow(self) -> None:
        draining = [r for r in self.replicas if self.state[r.number] == DRAINING]
        if draining:  # still there: it stays
            self.state[draining[0].number] = ON
            return
        away = [r for r in self.replicas if self.state[r.number] == OFF]
        if away:
            r = away[0]
            self.state[r.number], self._since[r.number] = STARTING, self.simulation.now
            r.away[-1][1] = self.simulation.now
            self.started += 1
            self.simulation.after(self.settings["start"], self._running, r)

    def _running(self, replica: Replica) -> None:
        self.state[replica.number] = ON
        self.simulation.rehouse()

    def _stop(self, replica: Replica) -> None:
        i, now = replica.number, self.simulation.now
        since = self._since[i]
        assert since is not None  # it ran
        self.state[i], self._since[i] = OFF, None
        self._hours[i] += (now - since) / 3600
        self.stopped += 1
        replica.away.append([now, float("inf")])

    def result(self) -> dict[str, Any]:
        """Hours that instances ran or started for, their mean number, and how many were started and shut down."""
        now = self.simulation.now
        hours = sum(self._hours) + sum((now - s) / 3600 for s in self._since if s is not None)
        return {
            "instance_hours": hours, "instances_mean": hours * 3600 / now if now else None,
            "started": self.started, "shut_down": self.stopped,
        }  # fmt: skip
