"""vLLM's schedule since version 1: one budget of tokens per iteration, decoding sequences first."""

from __future__ import annotations

from typing import ClassVar

from ...settings import Parameter
from ..replica import Replica
from ..scheduling import Plan, Schedule
from ..sequence import Sequence
from ..tiers import TIERS
from . import ADMIT, MOST, ORDER, PROMPTS, ROUTE, Policy


class TokenBudget(Schedule):
    """Every running sequence gets its tokens first, then prompts in chunks until ``budget`` is spent.

    Blocks are taken as caches grow; where there are none left, the sequence that was admitted last is preempted.
    ``tile``: where a chunk does not end its prompt, it is cut so that the iteration's tokens, decoding sequences'
    too, are a multiple of it. ``whole``: who is admitted holds room for its whole length from the start.
    """

    def __init__(self, order: str = "fcfs", budget: int = 0, tile: int = 1, whole: bool = False) -> None:
        self.order, self.budget, self.tile, self.whole = order, budget, tile, whole

    def limit(self, replica: Replica) -> int:
        return self.budget or replica.profile.budget

    def plan(self, replica: Replica) -> Plan | None:
        pool = replica.pool
        preempted = replica.short(pool.total - pool.held) and self._make_room(replica)
        if replica.tiers is not None and replica.leaving and replica.short(pool.free):
            return None  # until what is on its way out has left room
        if not (replica.waiting or replica.prefilling):
            return Plan() if replica.decoding else None
        left = self.limit(replica) - len(replica.decoding)
        plan = Plan(most=1 if preempted else 1 << 30)  # the next iteration may admit again
        for sequence in replica.prefilling:
            left -= self._chunk(replica, plan, sequence, left)
        while left > 0 and replica.waiting and not preempted and (admitted := self._admit(replica)) is not None:
            left -= self._chunk(replica, plan, admitted, left)
        return plan if plan.chunks or replica.decoding else None

    def _admit(self, replica: Replica) -> Sequence | None:
        if not self.whole:
            return replica.admit()
        first = replica.peek()
        return replica.admit(None if first is None else first.prompt + first.left)

    def _chunk(self, replica: Replica, plan: Plan, sequence: Sequence, left: int) -> int:
        tokens = sequence.prompt - sequence.done
        if tokens > left:
            tokens = left
            if self.tile > 1:
                over = self.limit(replica) % self.tile  # all that is left is used: this is beyond the last whole tile
                tokens -= over if tokens > over else 0
        if tokens <= 0:
            return 0
        plan.chunks.append((sequence, tokens))
        return tokens

    @staticmethod
    def _make_room(replica: Replica) -> bool:
        """Preempt until the next token of everybody has room; whether anybody had to go."""
        preempted = False
        while replica.decoding and replica.short(replica.pool.free + replica.leaving):
            youngest = replica.youngest()
            assert youngest is not None  # somebody decodes
            replica.preempt(youngest)
            preempted = True
        return preempted


class Vllm(Policy):
    """See :class:`TokenBudget`."""

    name = "vllm"
    description = "token budget per iteration: decoding sequences first, prompts in chunks; recomputes or swaps"
    source = "vLLM V1, vllm/v1/core/sched/scheduler.py; paging: Kwon et al., SOSP 2023"
    parameters: ClassVar[dict[str, Parameter]] = {
        "budget": Parameter(0, "most tokens of an iteration; 0 = the engine's", low=0, high=1e6),
        "most": MOST,
        "prompts": PROMPTS,
        "admit": ADMIT,
        "order": ORDER,
        "route": ROUTE,
        **TIERS,
    }

    def schedule(self, role: str = "") -> Schedule:
        s = self.settings
        return TokenBudget(s["order"], int(s["budget"]), whole=s["admit"] == "whole")


POLICY = Vllm
