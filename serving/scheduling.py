"""Schedules of one replica: what its next iteration computes.

A schedule is a subclass of :class:`Schedule` with one method, :meth:`Schedule.plan`, called between iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .sequence import Sequence

if TYPE_CHECKING:
    from .replica import Replica


@dataclass(slots=True)
class Plan:
    """An iteration: ``chunks`` are (sequence, tokens of its prompt); ``decode`` whether decoding sequences get a token.

    A plan without chunks is repeated for ``most`` steps at most, or until something can change it. ``extra_s`` is added
    to the first iteration (cache blocks swapped in or out, other work), ``extra_j`` are the joules of a device in it; a
    plan may be nothing else. ``proposals``: tokens that a draft proposes to each decoding sequence, where it does.
    """

    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    decode: bool = True
    most: int = 1 << 30
    extra_s: float = 0.0
    extra_j: float = 0.0
    proposals: int = 0
    _parts: tuple[list[tuple[int, int]], int] | None = None

    def parts(self) -> tuple[list[tuple[int, int]], int]:
        """Chunks as (tokens, cached tokens), and how many of them end their prompt; as they were when first asked."""
        if self._parts is None:
            chunks = [(tokens, s.done) for s, tokens in self.chunks]
            ends = 0
            for s, tokens in self.chunks:
                ends += tokens == s.prompt - s.done
            self._parts = chunks, ends
        return self._parts


Key = Callable[[float, int, int, int], tuple[float, ...]]

ORDERS: dict[str, Key] = {
    "fcfs": lambda arrival, priority, prompt, output: (arrival,),
    "priority": lambda arrival, priority, prompt, output: (priority, arrival),
    "shortest": lambda arrival, priority, prompt, output: (prompt + output, arrival),
    "shortest-prompt": lambda arrival, priority, prompt, output: (prompt, arrival),
}
"""Who of the waiting comes first: the least key."""


class Schedule:
    """Base of schedules. ``order`` is one of :data:`ORDERS`. ``together``: who is admitted is decided for a batch, and
    a sequence whose answer is written keeps its seat, computed as before, until those of all others are."""

    order = "fcfs"
    together = False

    def plan(self, replica: Replica) -> Plan | None:
        """The next iteration of ``replica``; None where there is nothing to do. May admit, preempt and reject."""
        raise NotImplementedError

    def interrupts(self, replica: Replica) -> bool:
        """Whether a request that arrives now could change a running plan of decode steps."""
        pool = replica.pool
        return pool.held < pool.total and replica.has_seat()

    def limit(self, replica: Replica) -> int:
        """Most tokens of an iteration."""
        return replica.profile.budget
