"""SARATHI: prompts in chunks of one size, decoding sequences riding along."""

from __future__ import annotations

from typing import ClassVar

from ...settings import Parameter
from ..scheduling import Schedule
from ..tiers import TIERS
from . import MOST, ORDER, ROUTE, Policy
from .vllm import TokenBudget


class Sarathi(Policy):
    """A small budget that a chunk fills up beside the decoding sequences, in whole tiles of the GEMM kernels."""

    name = "sarathi"
    description = "chunked prefill: every iteration has one chunk's tokens, decoding sequences among them"
    source = "Agrawal et al., arXiv:2308.16369, sections 4.1 to 4.3"
    parameters: ClassVar[dict[str, Parameter]] = {
        "chunk": Parameter(512, "tokens of an iteration", low=1, high=1e6),
        "tile": Parameter(
            128, "an iteration's tokens are a multiple of it where a chunk can be cut to that", low=1, high=4096
        ),
        "most": MOST,
        "order": ORDER,
        "route": ROUTE,
        **TIERS,
    }

    def schedule(self, role: str = "") -> Schedule:
        return TokenBudget(self.settings["order"], int(self.settings["chunk"]), int(self.settings["tile"]))


POLICY = Sarathi
