"""Orca: scheduling per iteration, caches reserved at their longest."""

from __future__ import annotations

from typing import ClassVar

from ...settings import Parameter
from ..replica import Replica
from ..scheduling import Plan, Schedule
from . import MOST, ORDER, ROUTE, Policy


class Iteration(Schedule):
    """Whole prompts join the decoding sequences of an iteration; each holds room for its longest cache from the start.

    ``known``: the room is that of the request's true length, else of the longest the model allows. ``batch``: tokens of
    prompts that join together, a longer one alone; 0: no limit.
    """

    def __init__(self, order: str, known: bool, batch: int = 0) -> None:
        self.order, self.known, self.batch = order, known, batch

    def plan(self, replica: Replica) -> Plan | None:
        plan, tokens = Plan(), 0
        while (first := replica.peek()) is not None:
            if self.batch and plan.chunks and tokens + first.todo > self.batch:
                break
            whole = first.prompt + first.left
            if not self.known:
                whole = max(whole, min(replica.steps.longest, replica.pool.total * replica.pool.size))
            sequence = replica.admit(whole)
            if sequence is None:
                break
            plan.chunks.append((sequence, sequence.todo))
            tokens += sequence.todo
        return plan if plan.chunks or replica.decoding else None


class Orca(Policy):
    """See :class:`Iteration`."""

    name = "orca"
    description = "continuous batching: requests join and leave between iterations, caches reserved whole"
    source = "Yu et al., Orca, OSDI 2022, sections 3 and 4.2"
    parameters: ClassVar[dict[str, Parameter]] = {
        "most": MOST,
        "batch": Parameter(0, "tokens of prompts that join together, or one prompt; 0 = no limit", low=0, high=1e6),
        "reserve": Parameter("known", "room for the true length, or the model's longest", choices=("known", "longest")),
        "order": ORDER,
        "route": ROUTE,
    }

    def schedule(self, role: str = "") -> Schedule:
        s = self.settings
        return Iteration(s["order"], s["reserve"] == "known", int(s["batch"]))


POLICY = Orca
