"""Policies: who computes what, when and where. One module each, found by being here and defining ``POLICY``.

On the command line a policy is ``name:key=value,key=value``, e.g. ``sarathi:chunk=512,order=shortest``. A policy of
one's own is a subclass of :class:`Policy` in a module of this folder: nothing else lists them.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import InputError, unknown_name
from ...settings import Parameter, Value, read_settings
from ..blocks import BlockPool
from ..memory import CacheBytes, KvMemory, kv_memory
from ..pipeline import Pipeline
from ..replica import Replica
from ..scheduling import ORDERS, Plan, Schedule
from ..sequence import Sequence
from ..steps import StepModel
from ..tiers import Tiers, described

if TYPE_CHECKING:
    from ..cluster import Cluster
    from ..simulation import Simulation

ORDER = Parameter("fcfs", "who of the waiting comes first", choices=tuple(ORDERS))
ROUTE = Parameter("least", "which replica a request goes to", choices=("least", "tokens", "turns"))
"""The one with the fewest requests, or with the fewest prompt tokens to compute (of those, requests), or in turns."""
ADMIT = Parameter("prompt", "room that a request has to find: its prompt's, or its whole length's",
                  choices=("prompt", "whole"))  # fmt: skip
MOST = Parameter(0, "sequences of a batch at a time, at most the engine's; 0 = the engine's", low=0, high=1e6)
"""A replica has one batch, one with pipeline stages as many as it has stages."""
PROMPTS = Parameter(
    "here", "where prompts are computed; elsewhere: their caches come along", choices=("here", "elsewhere")
)
"""Elsewhere, at no cost here: all but a prompt's last token is cached when the request arrives. Whoever is preempted
computes it again here."""


class Policy:
    """A schedule per replica, and what holds replicas together. ``settings`` are checked against ``parameters``.

    Subclasses set the class attributes and override what they change; everything has a default but :meth:`schedule`.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    source: ClassVar[str]
    parameters: ClassVar[dict[str, Parameter]] = {}
    kind: ClassVar[type[Replica]] = Replica
    caches_prefixes: ClassVar[bool] = True

    def __init__(self, cluster: Cluster, **settings: Value) -> None:
        self.cluster = cluster
        self.settings: dict[str, Any] = {key: p.default for key, p in self.parameters.items()} | settings
        self.simulation: Simulation
        self.memory: dict[str, KvMemory] = {}
        self._turn = 0

    # -- what there is ---------------------------------------------------------------------------
    def schedule(self, role: str = "") -> Schedule:
        """A new schedule for a replica of ``role``."""
        raise NotImplementedError

    def build(self, simulation: Simulation) -> list[Replica]:
        """The replicas, numbered from 0."""
        self.simulation = simulation
        steps = self.step_model()
        return [lane for number in range(self.cluster.replicas) for lane in self.lanes(number, steps)]

    def lanes(self, number: int, steps: StepModel, role: str = "") -> list[Replica]:
        """Replica ``number``: one, or as many batches as its pipeline has stages, numbered in a row."""
        stages = steps.parallel.pp
        if stages == 1:
            return [self.replica(number, steps, role)]
        pipeline = Pipeline(stages)
        lanes = [self.replica(number * stages + i, steps, role) for i in range(stages)]
        for lane in lanes:
            lane.pipeline = pipeline
        return lanes

    def step_model(self) -> StepModel:
        """Times of iterations of a replica."""
        return self.cluster.steps()

    def replica(self, number: int, steps: StepModel, role: str = "") -> Replica:
        """A replica whose blocks are what its device's memory leaves."""
        if role not in self.memory:
            self.memory[role] = self.cluster.blocks or self.room(steps)
        memory, log = self.memory[role], self.simulation.log
        reuse = self.cluster.prefix_caching and self.caches_prefixes
        shared = (log.prefix_tokens, log.prefix_parent) if reuse and log.prefix_tokens.size else ()
        stages = steps.parallel.pp
        pool = BlockPool(memory.blocks // stages, memory.block, *shared)
        pool.keeps = bool(reuse and steps.profile.keeps)
        seats = max(memory.seats // stages, 1)
        if self.parameters.get("most") is MOST and self.settings["most"]:
            seats = min(seats, int(self.settings["most"]))
        replica = self.kind(self.simulation, number, steps, pool, self.schedule(role), seats, role)
        if self.settings.get("preempt") == "swap" or self.settings.get("spill", "no") != "no":
            replica.tiers = Tiers(replica, CacheBytes(self.cluster.trace), self.settings)
        return replica

    def unstaged(self) -> None:
        """Raise ``InputError`` where replicas are pipelines, whose stages this policy does not know."""
        if self.cluster.parallel.pp > 1:
            raise InputError(f"policy {self.name}: replicas with pipeline stages; accepted: --parallel tp=N,dp=N")

    def room(self, steps: StepModel) -> KvMemory:
        """Blocks and seats of a replica. Raises ``InputError`` where its devices have none."""
        return kv_memory(steps.share, steps.device, steps.profile, steps.parallel.pp)

    # -- what happens --------------------------------------------------------------------------------
    def begin(self, simulation: Simulation) -> None:
        """Called once, before the first request: the place to start periodic work."""

    def route(self, sequence: Sequence) -> Replica | None:
        """The replica that ``sequence`` goes to; None while there is none."""
        if self.settings.get("prompts") == "elsewhere":
            sequence.brought = sequence.prompt - 1
        return self.choose([r for r in self.simulation.replicas if r.up], sequence)

    def choose(self, replicas: list[Replica], sequence: Sequence) -> Replica | None:
        """One of ``replicas`` by the setting ``route`` (:data:`ROUTE`)."""
        if len(replicas) < 2:
            return replicas[0] if replicas else None
        route = self.settings.get("route", "least")
        if route == "turns":
            self._turn += 1
            return replicas[self._turn % len(replicas)]
        return min(replicas, key=_queue if route == "tokens" else _load)

    def prefilled(self, replica: Replica, sequence: Sequence) -> bool:
        """``sequence`` has its first token at ``replica``; True: it goes on elsewhere, which is this policy's doing."""
        return False

    def computing(self, replica: Replica, plan: Plan, seconds: float) -> None:
        """``replica`` begins an iteration with chunks, which ends in ``seconds``."""

    def iterated(self, replica: Replica) -> None:
        """An iteration of ``replica`` has ended."""

    def capacity(self, replica: Replica) -> int:
        """KV blocks that a request which goes to ``replica`` may fill."""
        return replica.pool.total

    def failed(self, replica: Replica) -> list[Sequence]:
        """``replica`` has gone down; the sequences that are lost with it beyond those in it, to start over."""
        return []

    def recovered(self, replica: Replica) -> None:
        """``replica`` is back, empty."""

    def result(self) -> dict[str, Any]:
        """What this policy adds to a result document."""
        return described(self.simulation.replicas)


def _load(replica: Replica) -> int:
    return replica.load


def _queue(replica: Replica) -> tuple[int, int]:
    """Tokens of prompts that wait or are being computed, and requests."""
    waiting = sum([s.todo for _, _, s in replica.waiting]) + sum([s.todo for s in replica.prefilling])
    return waiting, replica.load


@cache
def policies() -> dict[str, type[Policy]]:
    """All policies by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        policy: type[Policy] = importlib.import_module(f"{__name__}.{module.name}").POLICY
        found[policy.name] = policy
    return dict(sorted(found.items()))


def parse_policy(text: str) -> tuple[type[Policy], dict[str, Value]]:
    """``name:key=value,…`` as a policy and its settings. Raises ``InputError`` for what is not known or accepted."""
    name, _, settings = text.partition(":")
    known = policies()
    if name not in known:
        raise unknown_name("policy", name, known)
    return known[name], read_settings("policy", name, known[name].parameters, settings)


__all__ = ["ADMIT", "MOST", "ORDER", "PROMPTS", "ROUTE", "Parameter", "Policy", "Value", "parse_policy", "policies"]
