"""Orca: scheduling per iteration, caches reserved at their longest."""

from __future__ import annotations

from typing import ClassVar

from ...settings import Parameter
from ..replica import Replica
from ..scheduling import Plan, Schedule
from . import MOST, ORDER, ROUTE, Policy


class Iteration(Schedule):
    """Whole prompts join the decoding sequences of an iteration; each holds room for its longest cache from the start.

    ``known``: the room is that of the request's true length, else of the longest the model allows.
    """

    def __init__(self, order: str, known: bool) -> None:
        self.order, self.known = order, known

    def plan(self, replica: Replica) -> Plan | None:
        plan = Plan()
        while (first := replica.peek()) is not None:
            whole = first.prompt + first.left
            if not self.known:
                whole = max(whole, min(replica.steps.longest, replica.pool.total * replica.pool.size))
            sequence = replica.admit(whole)
            if sequence is None:
                break
            plan.chunks.append((sequence, sequence.prompt - sequence.done))
        return plan if plan.chunks or replica.decoding else None


class Orca(Policy):
    """See :class:`Iteration`."""

    name = "orca"
    description = "continuous batching: requests join and leave between iterations, caches reserved whole"
    source = "Yu et al., Orca, OSDI 2022, sections 3 and 4.2"
    parameters: ClassVar[dict[str, Parameter]] = {
        "most": MOST,
        "reserve": Parameter("known", "room for the true length, or the model's longest", choices=("known", "longest")),
        "order": ORDER,
        "route": ROUTE,
    }

    def schedule(self, role: str = "") -> Schedule:
        return Iteration(self.settings["order"], self.settings["reserve"] == "known")


POLICY = Orca
