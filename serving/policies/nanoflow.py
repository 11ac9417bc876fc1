"""NanoFlow: parts of a batch overlap, one computing while others load or communicate."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...settings import Parameter
from ..nano import NanoSteps
from ..scheduling import Schedule
from ..steps import StepModel
from . import ORDER, ROUTE, Policy
from .vllm import TokenBudget


class NanoFlow(Policy):
    """Chunked prompts beside decoding sequences up to a budget (vLLM's schedule), in iterations of
    :mod:`..nano`. The budget is NanoFlow's dense batch."""

    name = "nanoflow"
    description = "nano-batches: within an iteration, compute, memory and network of its parts overlap"
    source = "Zhu et al., arXiv:2408.12757, sections 3 and 4"
    parameters: ClassVar[dict[str, Parameter]] = {
        "most": Parameter(4, "most nano-batches of an iteration; the quickest number is taken", low=1, high=64),
        "budget": Parameter(2048, "tokens of an iteration; 0 = the engine's", low=0, high=1e6),
        "order": ORDER,
        "route": ROUTE,
    }

    def schedule(self, role: str = "") -> Schedule:
        return TokenBudget(self.settings["order"], int(self.settings["budget"]))

    def step_model(self) -> StepModel:
        c, most = self.cluster, int(self.settings["most"])
        key = ("nanoflow", id(c.trace), id(c.device), c.parallel, most)
        return c.made(key, lambda: NanoSteps(c.trace, c.device, c.parallel, c.profile, c.longest, most))

    def result(self) -> dict[str, Any]:
        """``tokens_per_s`` counts prompts too, as the paper does; of all devices and of one."""
        tokens = 0.0
        for replica in self.simulation.replicas:
            c = replica.runs.columns()
            tokens += float(np.where(c.tokens > 0, c.tokens, c.decoding * c.steps).sum())
        rate = tokens / self.simulation.now if self.simulation.now else 0.0
        devices = sum(r.steps.devices for r in self.simulation.replicas)
        return {"nanoflow": {"tokens_per_s": rate, "tokens_per_s_and_device": rate / devices}}


POLICY = NanoFlow
