"""What a run of a simulation amounts to: latencies, rates, goodput, energy, power, cost, KV occupancy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .outcome import FINISHED, REJECTED, Column
from .replica import Replica
from .simulation import Simulation

Array = npt.NDArray[np.float64]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
SLO_KEYS = ("ttft", "tpot", "e2e")
PER_CENT = np.arange(101) / 100
POWER_POINTS = 200
"""Points of power over time in a result."""


@dataclass(frozen=True)
class Latencies:
    """Seconds of the N requests, NaN where they have none: to the first token, per following token, in all."""

    ttft_s: Array
    tpot_s: Array
    e2e_s: Array
    finished: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, simulation: Simulation) -> Latencies:
        """``tpot`` = (last token − first token) / (tokens − 1), as engines report it."""
        o = simulation.outcome
        arrival, first, last, end = (np.array(x) for x in (o.arrival_s, o.first_s, o.last_s, o.finish_s))
        written = np.array(o.written, dtype=float)
        with np.errstate(invalid="ignore", divide="ignore"):
            tpot = np.where(written > 1, (last - first) / (written - 1), np.nan)
        return cls(first - arrival, tpot, end - arrival, np.frombuffer(bytes(o.state), dtype=np.uint8) == FINISHED)

    def within(self, slo: Mapping[str, float]) -> npt.NDArray[np.bool_]:
        """Which requests finished within every limit of ``slo`` (``ttft``, ``tpot``, ``e2e``; seconds)."""
        ok = self.finished.copy()
        for key, limit in slo.items():
            values: Array = getattr(self, f"{key}_s")
            ok &= ~(values > limit)  # a single token has no time per token, and breaks no limit
        return ok


def spread(values: Array, weights: Array | None = None) -> dict[str, float | None]:
    """Mean and quantiles of what is a number; quantiles are of the sample (no interpolation where weighted)."""
    if weights is None:
        return _spread_and_cdf(values)[0]
    here = np.isfinite(values)
    values, weights = values[here], weights[here]
    if not values.size:
        return {"mean": None, **dict.fromkeys(QUANTILES)}
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    at = np.searchsorted(total, np.array(list(QUANTILES.values())) * total[-1])
    found = values[order[at]].tolist()
    return {"mean": float((values * weights).sum() / total[-1]), **dict(zip(QUANTILES, found, strict=True))}


@dataclass(frozen=True)
class Energy:
    """Joules of a replica: dynamic, static while it works, idle while it is switched on; and its watts over time,
    at bins of ``bin_s``."""

    dynamic_j: float
    static_j: float
    idle_j: float
    busy_s: float
    power_w: Array

    @property
    def total_j(self) -> float:
        return self.dynamic_j + self.static_j + self.idle_j


def energy_of(replica: Replica, end_s: float, bins: int = POWER_POINTS) -> Energy:
    """What ``replica`` drew from 0 to ``end_s``."""
    c, steps = replica.runs.columns(), replica.steps
    n, tokens, ends = (x.astype(np.int64) for x in (c.decoding, c.tokens, c.ends))
    mixed = tokens > 0
    joules, static = np.zeros(n.size), np.full(n.size, steps.static_w)
    first = np.arange(n.size)
    lasts = [start for start, _ in replica.shifts[1:]] + [n.size]
    for (start, at), last in zip(replica.shifts, lasts, strict=True):
        here = (first >= start) & (first < last)
        a, b = here & ~mixed, here & mixed
        joules[a] = at.decode_j(n[a], c.mean[a]) * c.steps[a] + c.chunk_j[a] * at.parallel.tp
        joules[b] = at.mixed_j(tokens[b], ends[b], n[b], c.mean[b], c.chunk_j[b])
        static[here] = at.static_w
    joules *= replica.energy_scale
    # As many batches pass through a pipeline as it has stages: each stands for one stage's devices.
    pipeline, idle_w = replica.pipeline, steps.idle_w
    busy = float(c.duration_s.sum()) if pipeline is None else pipeline.work_s / pipeline.stages
    edges = np.linspace(0.0, max(end_s, 1e-12), bins + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        above = np.where(c.duration_s > 0, joules / c.duration_s, 0.0)
        if c.duration_s.size:
            working = min(busy / float(c.duration_s.sum()), 1.0)
            above += (static - idle_w) * working
            static *= working
    power = _binned(c, above, edges) + idle_w
    off = np.zeros(edges.size)
    for since, until in replica.away:
        off += np.clip(edges, since, until) - since
    power -= np.diff(off) / np.diff(edges) * idle_w
    idle_s = end_s - busy - float(off[-1])
    if idle_s < 1e-9 * end_s:  # nothing but rounding is left of a run that never waited
        idle_s = 0.0
    if end_s <= 0:
        power[:] = 0.0
    return Energy(float(joules.sum()), float(static @ c.duration_s), idle_w * idle_s, busy, power)


def _binned(c: Column, values: Array, edges: Array) -> Array:
    """Means over time, between ``edges``, of what has ``values`` during the runs ``c`` and is 0 between them."""
    # The integral up to each edge: whole runs before it, and the part of the run it falls into.
    before = np.concatenate([[0.0], np.cumsum(values * c.duration_s)])
    i = np.searchsorted(c.start_s, edges, side="right") - 1
    inside = np.zeros(edges.size)
    if values.size:
        inside = np.where(i >= 0, np.minimum(edges - c.start_s[i], c.duration_s[i]) * values[i], 0.0)
    return np.asarray(np.diff(before[np.maximum(i, 0)] + inside) / np.diff(edges))


def devices_of(replica: Replica) -> int:
    """Devices that ``replica`` stands for: its own, or its part of a pipeline's."""
    return replica.steps.devices // (1 if replica.pipeline is None else replica.pipeline.stages)


def metrics(simulation: Simulation, slo: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The figures of a finished run, as promised in the result document; seconds, joules, US dollars."""
    o, log, replicas = simulation.outcome, simulation.log, simulation.replicas
    lat = Latencies.of(simulation)
    state = np.frombuffer(bytes(o.state), dtype=np.uint8)
    finishes, arrivals = np.array(o.finish_s), np.array(o.arrival_s)
    end = float(np.nanmax(finishes)) if lat.finished.any() else float(simulation.now)
    span = end - float(np.nanmin(arrivals)) if np.isfinite(arrivals).any() else 0.0
    tokens = int(np.array(o.written).sum())
    flat = [r.gaps.columns() for r in replicas]
    gaps, counts = (np.concatenate(x) if x else np.zeros(0) for x in zip(*flat, strict=True))
    energies = [energy_of(r, end) for r in replicas]
    total = sum(e.total_j for e in energies)
    power = np.sum([e.power_w for e in energies], axis=0)
    devices = sum(devices_of(r) for r in replicas)
    hourly = [
        r.steps.hourly_usd(e.total_j / end if end else 0.0, r.steps.devices // devices_of(r))
        for r, e in zip(replicas, energies, strict=True)
    ]
    usd = None if any(h is None for h in hourly) else sum(h[0] for h in hourly if h)
    ok = lat.within(slo or {})
    latencies = {f"{key}_s": _spread_and_cdf(getattr(lat, f"{key}_s")) for key in SLO_KEYS}
    told = {key: summary for key, (summary, _) in latencies.items()}
    document: dict[str, Any] = {
        "requests": {
            "submitted": len(log), "finished": int(lat.finished.sum()), "rejected": int((state == REJECTED).sum()),
        },
        "ttft_s": told["ttft_s"], "tpot_s": told["tpot_s"], "itl_s": spread(gaps, counts), "e2e_s": told["e2e_s"],
        "queue_s": spread(np.array(o.scheduled_s) - arrivals),
        "throughput_tokens_per_s": tokens / span if span else 0.0,
        "throughput_requests_per_s": int(lat.finished.sum()) / span if span else 0.0,
        "goodput_requests_per_s": int(ok.sum()) / span if span else 0.0,
        "slo": {"limits": dict(slo or {}), "attained": float(ok.mean()) if len(log) else 0.0},
        "energy_j": {
            "dynamic": sum(e.dynamic_j for e in energies), "static": sum(e.static_j for e in energies),
            "idle": sum(e.idle_j for e in energies), "total": total,
        },
        "energy_per_token_j": total / tokens if tokens else None,
        "power_w": {
            "mean": total / end if end else 0.0, "peak": float(power.max()), "bin_s": end / POWER_POINTS,
            "series": np.round(power, 3).tolist(),
        },
        "usd_per_hour": usd,
        "cost_usd_per_mtoken": usd * end / 3600 / tokens * 1e6 if usd is not None and tokens else None,
        "utilisation": {
            "busy": float(np.mean([e.busy_s for e in energies])) / end if end else 0.0, "devices": devices,
            "mean_batch": _mean_batch(replicas),
        },
        "kv_blocks": {
            "total": sum(r.pool.total for r in replicas), "peak": sum(r.pool.peak for r in replicas),
            "block_tokens": replicas[0].pool.size, "per_replica": replicas[0].pool.total,
            "occupancy_mean": _occupancy(replicas, end), "cached_tokens": int(np.array(o.cached).sum()),
        },
        "series": _series(replicas, end, _waited(arrivals, np.array(o.scheduled_s))),
        "cdf": {key: quantiles for key, (_, quantiles) in latencies.items()},
        "preemptions": int(np.array(o.preemptions).sum()),
        "iterations": int(sum(r.runs.columns().steps.sum() for r in replicas)),
        "simulated_s": end,
        "rejections": _reasons(o.reasons),
        "classes": _classes(simulation, lat, ok, span, told),
    }  # fmt: skip
    return document


def _mean_batch(replicas: list[Replica]) -> float:
    """Decoding sequences of an iteration, on average over time."""
    columns = [r.runs.columns() for r in replicas]
    time = sum(float(c.duration_s.sum()) for c in columns)
    return sum(float((c.duration_s * c.decoding).sum()) for c in columns) / time if time else 0.0


def _occupancy(replicas: list[Replica], end_s: float) -> float:
    """Share of the KV blocks that sequences hold, on average over time."""
    held = sum(float((c.duration_s * c.held).sum()) for c in (r.runs.columns() for r in replicas))
    total = sum(r.pool.total for r in replicas)
    return held / (total * end_s) if end_s and total else 0.0


def _waited(arrivals: Array, scheduled: Array) -> Callable[[Array], Array]:
    """Seconds that requests have waited for their first admission, together, up to each of some times."""
    here = np.isfinite(scheduled)
    came, went = np.sort(arrivals[here]), np.sort(scheduled[here])

    def since(events: Array, at: Array) -> Array:
        before = np.searchsorted(events, at)
        return np.asarray(before * at - np.concatenate([[0.0], np.cumsum(events)])[before])

    return lambda at: since(came, at) - since(went, at)


def _series(replicas: list[Replica], end_s: float, waited: Callable[[Array], Array]) -> dict[str, Any]:
    """Over time, at :data:`POWER_POINTS` bins: sequences decoding, requests waiting for their first admission, KV
    blocks held, of all replicas. Time means."""
    edges = np.linspace(0.0, max(end_s, 1e-12), POWER_POINTS + 1)
    waiting = np.maximum(np.diff(waited(edges)) / np.diff(edges), 0.0)  # nothing but rounding is below
    found: dict[str, Any] = {"bin_s": end_s / POWER_POINTS, "waiting": np.round(waiting, 4).tolist()}
    for name in ("decoding", "held"):
        total = np.zeros(POWER_POINTS)
        for replica in replicas:
            c = replica.runs.columns()
            total += _binned(c, getattr(c, name), edges)
        found[name] = np.round(total, 4).tolist()
    return found


def _spread_and_cdf(values: Array) -> tuple[dict[str, float | None], list[float]]:
    """Mean and some quantiles of what is a number, and its quantiles at 0, 1, … 100 %."""
    values = values[np.isfinite(values)]
    if not values.size:
        return {"mean": None, **dict.fromkeys(QUANTILES)}, []
    found = np.quantile(values, PER_CENT).tolist()
    return {"mean": float(values.mean())} | {key: found[round(100 * q)] for key, q in QUANTILES.items()}, found


def _reasons(reasons: Mapping[int, str]) -> list[dict[str, Any]]:
    """Rejections, the first ten."""
    return [{"request": i, "reason": reasons[i]} for i in sorted(reasons)[:10]]


def _classes(
    simulation: Simulation, lat: Latencies, ok: npt.NDArray[np.bool_], span: float, told: Mapping[str, Any]
) -> list[dict[str, Any]]:  # fmt: skip
    """Figures of each class of requests; ``told``: those of all, where all are of one."""
    log = simulation.log
    found = []
    for k, name in enumerate(log.classes):
        here = log.klass == k
        if here.any():
            found.append({
                "class": name, "requests": int(here.sum()), "finished": int((lat.finished & here).sum()),
                **(told if here.all() else {key: spread(getattr(lat, key)[here]) for key in told}),
                "attained": float(ok[here].mean()),
                "goodput_requests_per_s": float((ok & here).sum()) / span if span else 0.0,
            })  # fmt: skip
    return found
