"""What requests are served with: a model, devices, an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..hw.spec import Device
from ..workloads.parallel import ONE_DEVICE, Parallel
from ..workloads.trace import Trace
from .engine import EngineProfile
from .memory import KvMemory


@dataclass(frozen=True)
class Cluster:
    """``replicas`` engines, each on ``parallel.tp`` × ``parallel.pp`` devices of one kind.

    ``others``: further devices by role, for policies that use several kinds. ``blocks``: KV blocks where they are given
    and not counted from memory. ``longest``: tokens of the longest request.
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
