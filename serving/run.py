"""``serve``: a request log on a cluster under a policy, as a result document."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import __version__
from ..errors import InputError
from ..workloads.request_log import RequestLog
from .bus import shared_hosts
from .cluster import Cluster
from .engine import EngineProfile
from .faults import Fault, LinkFault
from .metrics import SLO_KEYS, metrics
from .policies import Policy, parse_policy
from .simulation import Simulation

SCHEMA, VERSION = "tokenfab.serve", 1


def simulate(
    log: RequestLog, cluster: Cluster, policy: str, *, seed: int = 0, faults: Sequence[Fault | LinkFault] = (),
    longest_jump: int = 1 << 30, until_s: float | None = None,
) -> Simulation:  # fmt: skip
    """A finished simulation. Raises ``InputError`` for what the policy, the devices or the log do not allow."""
    kind, settings = parse_policy(policy)
    simulation = Simulation(
        log, kind(cluster, **settings), longest=cluster.longest, seed=seed, faults=faults, longest_jump=longest_jump,
        until_s=until_s,
    )  # fmt: skip
    shared_hosts(simulation, cluster)
    return simulation.done()


def serve(
    log: RequestLog, cluster: Cluster, policy: str, *, slo: Mapping[str, float] | None = None, seed: int = 0,
    faults: Sequence[Fault | LinkFault] = (), interval: bool = True,
) -> tuple[dict[str, Any], Simulation]:  # fmt: skip
    """Simulate, and describe what happened: the document of ``tokenfab serve``, and the simulation behind it.

    With ``interval``, the run is repeated with every iteration at the low and at the high end of the cost model's 90 %
    interval; what came out of these runs is each figure's interval. ``wall_s`` is of the first run alone.
    """
    start = time.perf_counter()
    simulation = simulate(log, cluster, policy, seed=seed, faults=faults)
    figures = simulation.policy.result()
    document = {
        "schema": SCHEMA, "version": VERSION, "tokenfab": __version__, "model": cluster.trace.model,
        "applied": list(cluster.trace.applied), "device": cluster.device.name, "parallel": str(cluster.parallel),
        "replicas": cluster.replicas, "policy": described(simulation.policy), "engine": cluster.profile.name,
        "profile": profiled(cluster.profile), "level": cluster.level, "per_host": cluster.per_host,
        "workload": {"source": log.source, "requests": len(log), "left_out": list(log.left_out)},
        **metrics(simulation, slo), **figures, "policy_figures": list(figures),
        "memory": {role or "replica": _memory(m) for role, m in simulation.policy.memory.items()},
        "seed": seed,
    }  # fmt: skip
    document["wall_s"] = time.perf_counter() - start
    if interval:
        ends = []
        for slower in ends_of(simulation):
            other = simulate(log, replace(cluster, slower=slower), policy, seed=seed, faults=faults)
            ends.append({**metrics(other, slo), **other.policy.result()})
        document["interval"] = _interval(document, ends)
    return document, simulation


INTERVALS = (
    *((key, q) for key in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s") for q in ("mean", "p50", "p90", "p99")),
    ("throughput_tokens_per_s",), ("throughput_requests_per_s",), ("goodput_requests_per_s",), ("slo", "attained"),
    ("energy_per_token_j",), ("cost_usd_per_mtoken",), ("power_w", "mean"), ("power_w", "peak"),
    ("utilisation", "busy"), ("utilisation", "mean_batch"), ("kv_blocks", "peak"), ("kv_blocks", "occupancy_mean"),
    ("preemptions",), ("simulated_s",),
)  # fmt: skip
"""Figures that a result gives an interval of."""
OF_POLICIES = (("migration", "instances_mean"), ("power_capping", "peak_share"), ("tuning", "tokens_per_s"))
"""And of what a policy tells beside them."""


def ends_of(simulation: Simulation) -> list[tuple[float, float]]:
    """Factors on decode and mixed iterations at the low and at the high end, at what the run computed on average."""
    found = []
    replica = max(simulation.replicas, key=lambda r: len(r.runs))
    c = replica.runs.columns()
    weight = c.duration_s * (c.decoding > 0)
    n, mean = (float((weight * x).sum() / weight.sum()) if weight.sum() else 1.0 for x in (c.decoding, c.mean))
    chunk = (c.tokens - c.decoding)[c.tokens > 0]
    decode, mixed = replica.steps.interval(n, mean, float(chunk.mean()) if chunk.size else 1.0)
    for i in range(2):
        found.append((decode[i], mixed[i]))
    return found


def _interval(document: Mapping[str, Any], ends: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Least and largest of the three runs, by the figure's path joined by dots."""
    found = {}
    for path in (*INTERVALS, *OF_POLICIES):
        values = []
        for each in (document, *ends):
            value: Any = each
            for key in path:
                value = value[key] if value is not None and key in value else None
            values.append(value)
        if all(v is not None for v in values):
            found[".".join(path)] = [min(values), max(values)]
    return found


def described(policy: Policy) -> dict[str, Any]:
    """A policy and its settings."""
    return {"name": policy.name, "source": policy.source, **policy.settings}


def profiled(profile: EngineProfile) -> dict[str, Any]:
    """What an engine's file says: its numbers, each with its source."""
    numbers = {key: {"value": getattr(profile, key), "source": source} for key, source in profile.sources.items()}
    return {"description": profile.description, "numbers": numbers}


def parse_slo(text: str | None) -> dict[str, float]:
    """``ttft=0.5,tpot=0.05`` in seconds. Raises ``InputError``."""
    found: dict[str, float] = {}
    for item in filter(None, (text or "").split(",")):
        key, _, value = item.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = -1.0
        if key not in SLO_KEYS or not 0 < limit < 1e9 or key in found:
            raise InputError(f"--slo: {item!r}; accepted: {', '.join(SLO_KEYS)} once each, as ttft=0.5 (seconds)")
        found[key] = limit
    return found


def _memory(memory: Any) -> dict[str, float]:
    return {
        "blocks": memory.blocks, "block_tokens": memory.block, "weights_bytes": memory.weights_bytes,
        "activation_bytes": memory.activation_bytes, "reserved_bytes": memory.reserved_bytes,
        "kv_bytes": memory.kv_bytes, "kv_bytes_per_token": memory.token_bytes, "seats": memory.seats,
    }  # fmt: skip
