"""What requests are served with: a model, devices, an engine."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import TypeVar, cast

from ..hw.frequency import Clock
from ..hw.spec import Device
from ..workloads.parallel import ONE_DEVICE, Parallel
from ..workloads.trace import Trace
from .engine import EngineProfile
from .memory import KvMemory
from .steps import StepModel
from .streamed import event_steps

Model = TypeVar("Model", bound=StepModel)


@dataclass(frozen=True)
class Cluster:
    """``replicas`` engines, each on ``parallel.tp`` × ``parallel.pp`` devices of one kind.

    ``others``: further devices by role, for policies that use several kinds. ``blocks``: KV blocks where they are
    given and not counted from memory. ``longest``: tokens of the longest request. ``slower``: factors on the devices'
    times of decode and of mixed iterations, for the ends of an interval. ``level``: closed or event. ``per_host``:
    replicas whose devices share the link to one host, as wide as that of one replica's devices.
    """

    trace: Trace
    device: Device
    parallel: Parallel = ONE_DEVICE
    replicas: int = 1
    profile: EngineProfile = field(default_factory=EngineProfile)
    longest: int | None = None
    blocks: KvMemory | None = None
    prefix_caching: bool = True
    others: tuple[Device, ...] = ()
    slower: tuple[float, float] = (1.0, 1.0)
    level: str = "closed"
    per_host: int = 1
    _made: dict[object, StepModel] = field(default_factory=dict, repr=False, compare=False)

    def steps(
        self, trace: Trace | None = None, device: Device | None = None, parallel: Parallel | None = None,
        clock: Clock | None = None,
    ) -> StepModel:  # fmt: skip
        """Times of iterations of a replica, of this cluster's model, device and degrees where none are given,
        at the rated clock."""
        trace, device, parallel = trace or self.trace, device or self.device, parallel or self.parallel
        key = (id(trace), id(device), parallel, clock, self.level)
        kind = event_steps if self.level == "event" else StepModel
        return self.made(key, lambda: kind(trace, device, parallel, self.profile, self.longest, clock))

    def made(self, key: object, make: Callable[[], Model]) -> Model:
        """What ``make`` makes for ``key``: once, for copies of this cluster too, as tables fill while they are used."""
        key = (key, id(self.profile), self.longest)
        if key not in self._made:
            self._made[key] = make()
        made = copy(self._made[key])
        made.slower = self.slower
        return cast(Model, made)
