"""A request log and a cluster from what a user asks for by name."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..hw.devices import load_device
from ..workloads.load import load_trace
from ..workloads.parallel import Parallel, parse_parallel
from ..workloads.request_log import RequestLog
from ..workloads.requests import parse_requests
from ..workloads.techniques import apply_techniques
from .cluster import Cluster
from .engine import load_profile

LEVELS = ("closed", "event")
"""Which model answers: the closed form, or the simulation (docs/event-level.md)."""


def asked(
    model: str, device: str, requests: str, *, apply: Sequence[str] = (), count: int | None = None,
    parallel: str | None = None, engine: str = "ideal", seed: int = 0, skip_bad: bool = False,
    level: str = "closed", per_host: int = 1,
) -> tuple[RequestLog, Cluster]:  # fmt: skip
    """What the options of ``tokenfab serve`` name. Raises ``InputError`` for what is not known or accepted.

    A model without a longest context takes the longest request.
    """
    if level not in LEVELS:
        raise InputError(f"--level {level}: accepted: {', '.join(LEVELS)}")
    degrees = parse_parallel(parallel, count)
    if not 1 <= per_host <= degrees.dp:
        raise InputError(f"--per-host {per_host}: accepted: 1 to {degrees.dp}, the replicas (--count)")
    log = parse_requests(requests, seed=seed, skip_bad=skip_bad)
    trace = apply_techniques(load_trace(model), apply)
    longest = trace.max_context or int((log.prompt + log.output).max())
    stages = Parallel(degrees.tp, degrees.pp)
    cluster = Cluster(
        trace, load_device(device), stages, degrees.dp, load_profile(engine), longest, level=level, per_host=per_host
    )
    return log, cluster
