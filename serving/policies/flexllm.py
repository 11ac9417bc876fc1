"""FlexLLM: fine-tuning fills what inference leaves of an iteration's time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...settings import Parameter
from ..memory import KvMemory, kv_memory
from ..replica import Replica
from ..scheduling import Plan, Schedule
from ..steps import StepModel
from ..tuning import TuningSteps
from . import ORDER, ROUTE, Policy
from .vllm import TokenBudget

if TYPE_CHECKING:
    from ..simulation import Simulation


class CoServing(TokenBudget):
    """vLLM's schedule, and beside it the longest window of a training sequence with which the iteration ends within
    ``limit_s``. Where inference has nothing to do, training goes on alone, in iterations within the limit.

    ``tokens`` have been forward and backward, ``sequences`` of training are done, ``over`` iterations took longer than
    the limit by inference alone, ``windows`` iterations had one, ``alone`` of them nothing else.
    """

    def __init__(self, order: str, budget: int, limit_s: float, length: int) -> None:
        super().__init__(order, budget)
        self.limit_s, self.length = limit_s, length
        self.tokens = self.sequences = self.over = self.windows = self.alone = 0
        self._done, self._back = 0, False
        self._running = 0

    def plan(self, replica: Replica) -> Plan | None:
        if self._running:  # an iteration that never ended: what was kept for the backward pass is lost
            self._running, self._done, self._back = 0, 0, False
        plan = super().plan(replica)
        if plan is None and not replica.simulation.busy:
            return None
        plan = plan or Plan(decode=False)
        plan.most = 1
        steps = replica.steps
        assert isinstance(steps, TuningSteps)
        n = replica.batch if plan.decode else 0
        chunks, ends = plan.parts()
        mean, longer = (replica.mean, replica.longer) if n else (0.0, 0.0)
        before = 0.0
        if chunks:
            before = steps.mixed_s(chunks, ends, n, mean, longer)
        elif n:
            before = steps.decode_s(n, mean, longer)
        tokens = n + sum(q for q, _ in chunks)

        def position(window: int) -> int:
            return self.length - self._done - window if self._back else self._done

        def seconds(window: int) -> float:
            return steps.beside_s(chunks, ends, n, mean, longer, window, position(window), self._back) / replica.speed

        self.over += before / replica.speed > self.limit_s
        low, high = 0, min(self.length - self._done, max(self.limit(replica) - tokens, 0))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if seconds(middle) <= self.limit_s else (low, middle - 1)
        if not low:
            return plan if tokens else None
        self._running = low
        plan.extra_s = max(seconds(low) - before / replica.speed, 0.0)
        plan.extra_j = steps.window_j(tokens, ends + n, low, position(low), self._back)
        self.windows += 1
        self.alone += not tokens
        return plan

    def ended(self) -> None:
        """The iteration is over, its window computed."""
        window, self._running = self._running, 0
        self._done += window
        self.tokens += window * self._back
        if self._done == self.length:
            self.sequences += self._back
            self._done, self._back = 0, not self._back


class FlexLlm(Policy):
    """See :class:`CoServing` and :mod:`..tuning`."""

    name = "flexllm"
    description = "fine-tuning beside inference: training tokens fill an iteration up to a limit on its time"
    source = "Oliaro et al., FlexLLM, arXiv:2402.18789, sections 5 and 6"
    parameters: ClassVar[dict[str, Parameter]] = {
        "limit_s": Parameter(0.05, "longest iteration with training in it, seconds", low=1e-6, high=1e3),
        "length": Parameter(1024, "tokens of a training sequence", low=1, high=1e6),
        "rank": Parameter(16, "rank of the adapters", low=1, high=4096),
        "backward": Parameter(1.0, "a linear layer's backward over its forward work: 1 = weights frozen, 2 = trained",
                              low=1.0, high=2.0),
        "budget": Parameter(0, "most tokens of an iteration, training's too; 0 = the engine's", low=0, high=1e6),
        "order": ORDER,
        "route": ROUTE,
    }  # fmt: skip

    def schedule(self, role: str = "") -> Schedule:
        s = self.settings
        return CoServing(s["order"], int(s["budget"]), float(s["limit_s"]), int(s["length"]))

    def step_model(self) -> StepModel:
        c, rank, frozen = self.cluster, int(self.settings["rank"]), float(self.settings["backward"])
        longest = max(c.longest or c.trace.max_context or 0, int(self.settings["length"])) or None
        key = ("flexllm", id(c.trace), id(c.device), c.parallel, rank, frozen, longest)
        return c.made(key, lambda: TuningSteps(c.trace, c.device, c.parallel, c.profile, longest, rank, frozen))

    def room(self, steps: StepModel) -> KvMemory:
        assert isinstance(steps, TuningSteps)
        kept = steps.profile.reserved_bytes + steps.kept_bytes(int(self.settings["length"])) / steps.parallel.pp
        return kv_memory(steps.share, steps.device, replace(steps.profile, reserved_bytes=kept), steps.parallel.pp)

    def begin(self, simulation: Simulation) -> None:
        for replica in simulation.replicas:  # training waits for no request
            replica.wake()

    def iterated(self, replica: Replica) -> None:
        assert isinstance(replica.schedule, CoServing)
        replica.schedule.ended()

    def result(self) -> dict[str, Any]:
        found = [r.schedule for r in self.simulation.replicas if isinstance(r.schedule, CoServing)]
        tokens, sequences, over, windows, alone = (
            sum(getattr(s, x) for s in found) for x in ("tokens", "sequences", "over", "windows", "alone")
        )
        now, steps = self.simulation.now, self.simulation.replicas[0].steps
        assert isinstance(steps, TuningSteps)
        return {
            "tuning": {
                "tokens": tokens, "tokens_per_s": tokens / now if now else 0.0, "sequences": sequences,
                "iterations_with_training": windows, "of_these_without_inference": alone,
                "iterations_over_limit": over, "kept_bytes": steps.kept_bytes(int(self.settings["length"])),
                "adapter_parameters": steps.adapter_parameters * steps.parallel.tp,
            }
        }  # fmt: skip


POLICY = FlexLlm
