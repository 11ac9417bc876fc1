"""SmartSpec: speculative decoding whose length follows the load."""

from __future__ import annotations

from typing import Any, ClassVar

from ...errors import InputError
from ...settings import Parameter
from ...workloads.load import load_trace
from ..memory import KvMemory, beside
from ..replica import Replica
from ..scheduling import Plan, Schedule
from ..speculation import SpeculativeReplica, SpeculativeSteps, expected_tokens
from ..steps import StepModel
from . import ORDER, ROUTE, Policy
from .vllm import TokenBudget

CHOSEN = -1
"""Setting ``gamma``: chosen in every iteration."""


class Speculation(TokenBudget):
    """vLLM's schedule, in rounds of ``gamma`` proposals, or of as many as promise the highest goodput,

        argmax_γ  n E(γ) / seconds of a round of γ        γ = 0 … ``most``

    of the sequences that decode. A round's positions count against the budget; where blocks are short, γ shrinks.
    """

    def __init__(self, order: str, budget: int, acceptance: float, gamma: int, most: int) -> None:
        super().__init__(order, budget)
        self.acceptance, self.gamma, self.most = acceptance, gamma, most
        self._proposals = 0

    def limit(self, replica: Replica) -> int:
        return super().limit(replica) - self._proposals * len(replica.decoding)

    def plan(self, replica: Replica) -> Plan | None:
        assert isinstance(replica, SpeculativeReplica)
        self._proposals = 0
        if replica.decoding:
            fits = super().limit(replica) // len(replica.decoding) - 1
            self._proposals = min(self._chosen(replica) if self.gamma == CHOSEN else self.gamma, max(fits, 0))
        plan = super().plan(replica)
        if plan is not None and replica.decoding:
            plan.proposals = self._proposals
            while plan.proposals and replica.grown(plan.proposals + 1) > replica.pool.free:
                plan.proposals -= 1
            if self.gamma == CHOSEN or plan.proposals < self.gamma:
                plan.most = 1  # the next iteration chooses anew
        return plan

    def _chosen(self, replica: SpeculativeReplica) -> int:
        n, mean, longer = len(replica.decoding), replica.mean, replica.longer
        steps: SpeculativeSteps = replica.steps

        def goodput(gamma: int) -> float:
            seconds = steps.round_s((), 0, n, mean, longer, gamma, replica.missed)
            return n * expected_tokens(self.acceptance, gamma) / seconds

        return max(range(self.most + 1), key=lambda gamma: (goodput(gamma), -gamma))


class SmartSpec(Policy):
    """See :class:`Speculation` and :mod:`..speculation`."""

    name = "smartspec"
    description = "speculative decoding: as many proposals as the load allows, verified in the iteration"
    source = "Liu et al., arXiv:2406.14066, section 4; acceptance: Leviathan et al., arXiv:2211.17192"
    parameters: ClassVar[dict[str, Parameter]] = {
        "draft": Parameter("none", "model that proposes: a preset; none = looked up in the prompt, at no cost"),
        "draft_tp": Parameter(0, "devices that share the draft; 0 = as the model", low=0, high=4096),
        "acceptance": Parameter(0.7, "probability that a proposal stays", low=0.0, high=1.0),
        "gamma": Parameter(CHOSEN, "proposals of a round; -1 = chosen by goodput", low=CHOSEN, high=64),
        "most": Parameter(8, "most proposals that are considered", low=1, high=64),
        "budget": Parameter(0, "most tokens of an iteration; 0 = the engine's", low=0, high=1e6),
        "order": ORDER,
        "route": ROUTE,
    }

    @property
    def speculates(self) -> bool:
        """Whether anybody proposes."""
        return bool(self.settings["gamma"] != 0)

    def schedule(self, role: str = "") -> Schedule:
        s = self.settings
        if not self.speculates:
            return TokenBudget(s["order"], int(s["budget"]))
        return Speculation(s["order"], int(s["budget"]), float(s["acceptance"]), int(s["gamma"]), int(s["most"]))

    def step_model(self) -> StepModel:
        c = self.cluster
        if not self.speculates:
            return c.steps()
        name, tp = str(self.settings["draft"]), int(self.settings["draft_tp"]) or c.parallel.tp
        if tp > c.parallel.tp * c.parallel.pp:
            raise InputError(f"policy smartspec: draft_tp: {tp} devices of {c.parallel.tp * c.parallel.pp}")
        draft = load_trace(name) if name != "none" else None
        key = ("smartspec", id(c.trace), id(c.device), c.parallel, name, tp)
        return c.made(
            key, lambda: SpeculativeSteps(c.trace, c.device, c.parallel, c.profile, c.longest, draft, tp)
        )  # fmt: skip

    def room(self, steps: StepModel) -> KvMemory:
        memory = super().room(steps)
        if isinstance(steps, SpeculativeSteps) and steps.draft is not None:
            return beside(memory, steps.draft.share, self.cluster.trace.model)
        return memory

    def replica(self, number: int, steps: StepModel, role: str = "") -> Replica:
        if not self.speculates:
            return super().replica(number, steps, role)
        replica = super().replica(number, steps, role)
        assert isinstance(replica, SpeculativeReplica)
        replica.acceptance = float(self.settings["acceptance"])
        return replica

    @property
    def kind(self) -> type[Replica]:  # type: ignore[override]
        return SpeculativeReplica if self.speculates else Replica

    def result(self) -> dict[str, Any]:
        found = [r for r in self.simulation.replicas if isinstance(r, SpeculativeReplica)]
        rounds, sequences, proposed, accepted = (
            sum(getattr(r, x) for r in found) for x in ("rounds", "sequences", "proposed", "accepted")
        )
        return {
            "speculation": {
                "rounds": rounds, "proposed": proposed, "accepted": accepted,
                "mean_proposals": proposed / sequences if sequences else 0.0,
                "tokens_per_sequence": (accepted + sequences) / sequences if sequences else 1.0,
            }
        }  # fmt: skip


POLICY = SmartSpec
