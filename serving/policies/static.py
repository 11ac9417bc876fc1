"""Static batches: requests join and leave together, as engines did before scheduling per iteration.

A batch starts when ``batch`` requests wait or the first of them has waited for ``timeout_s``. Its prompts are computed
in one iteration, then everybody decodes until the longest answer is written. Whoever is done before keeps its seat and
is computed like the others; all answers are returned at the end:

    T = prefill(prompts) + Σ_{i < max output − 1} decode(batch, contexts + i)

With ``padding`` prompts are as long as the longest of the batch. Room in the cache is taken at the start, for the
longest prompt and the longest answer each.
"""

from __future__ import annotations

from heapq import nsmallest
from typing import ClassVar

from ...settings import Parameter
from ..replica import Replica
from ..scheduling import Plan, Schedule
from ..sequence import Sequence
from . import ORDER, ROUTE, Policy

PRECISION_S = 1e-9
"""Waiting ends this early: a clock of sums of durations need not hit a moment exactly."""


class Batches(Schedule):
    """See the module. ``batch``: sequences of a full batch, at most the engine's seats."""

    together = True

    def __init__(self, order: str, batch: int, timeout_s: float, padding: bool) -> None:
        self.order, self.batch, self.timeout_s, self.padding = order, batch, timeout_s, padding
        self._timed = self._called = False

    def plan(self, replica: Replica) -> Plan | None:
        if replica.batch:
            return Plan()
        if not replica.waiting:
            return None
        full = min(self.batch or replica.seats, replica.seats)
        first = nsmallest(full, replica.waiting)
        if len(first) < full:
            arrivals = replica.simulation.outcome.arrival_s
            due = min(arrivals[s.index] for _, _, s in first) + self.timeout_s
            wait = due - replica.simulation.now
            # A timer even where nobody has to wait: who arrives at the same moment belongs to the batch.
            if wait > PRECISION_S or not self._called:
                if not self._timed:
                    self._timed = True
                    replica.simulation.after(max(wait, 0.0), self._call, replica)
                return None
        self._called = False
        members, whole = self._members(replica, [s for _, _, s in first])
        prompt = max(s.prompt for s in members)
        plan = Plan(decode=False)
        for sequence in members:
            if self.padding:
                sequence.prompt = prompt
            admitted = replica.admit(whole)
            assert admitted is sequence  # counted above
            plan.chunks.append((sequence, sequence.todo))
        return plan

    def _call(self, replica: Replica) -> None:
        """The time is up."""
        self._timed, self._called = False, True
        replica.wake()
        self._called = False

    @staticmethod
    def _members(replica: Replica, first: list[Sequence]) -> tuple[list[Sequence], int]:
        """As many of the first as find room at the longest of them, and that length in tokens."""
        size, count, prompt, left = replica.pool.size, 0, 0, 0
        for sequence in first:
            longer = max(prompt, sequence.prompt), max(left, sequence.left)
            if count and -(-sum(longer) // size) * (count + 1) > replica.pool.free:
                break
            prompt, left = longer
            count += 1
        return first[:count], prompt + left

    def interrupts(self, replica: Replica) -> bool:
        return False


class Static(Policy):
    """See :class:`Batches`."""

    name = "static"
    description = "request-level batches: wait for a full batch, decode until its longest answer is written"
    source = "as FasterTransformer behind Triton's dynamic batcher; described in Yu et al., Orca, OSDI 2022, section 2"
    parameters: ClassVar[dict[str, Parameter]] = {
        "batch": Parameter(8, "requests of a batch; 0 = the engine's seats", low=0, high=1e6),
        "timeout_s": Parameter(0.0, "longest wait for a full batch, seconds", low=0.0, high=1e6),
        "padding": Parameter("longest", "prompts of a batch: as long as its longest, or as they are",
                             choices=("longest", "none")),
        "order": ORDER,
        "route": ROUTE,
    }  # fmt: skip
    caches_prefixes = False

    def schedule(self, role: str = "") -> Schedule:
        s = self.settings
        return Batches(s["order"], int(s["batch"]), float(s["timeout_s"]), s["padding"] == "longest")


POLICY = Static
