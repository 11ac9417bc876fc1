"""Runs of a system that are streams of requests on the serving simulator, and what a claim may ask of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InputError, unknown_name
from ..serving.asked import asked
from ..serving.capacity import capacity
from ..serving.outcome import FINISHED
from ..serving.run import parse_slo, serve
from ..workloads.trace import Trace
from .metrics import Value
from .spec import Run

Document = dict[str, Any]


def run_served(run: Run) -> Document:
    """The document of ``tokenfab serve`` for ``run``, with ``capacity`` where it gives limits and a ``share``, and
    ``weight_flops`` of all tokens of finished requests, prompts' and answers'."""
    log, cluster = asked(
        run.model, run.device, run.requests or "", apply=run.apply, count=run.count, parallel=run.parallel,
        engine=run.engine, seed=run.seed,
    )  # fmt: skip
    limits = parse_slo(run.slo)
    document, simulation = serve(log, cluster, run.policy, slo=limits, seed=run.seed, interval=run.ends)
    finished = np.frombuffer(bytes(simulation.outcome.state), dtype=np.uint8) == FINISHED
    document["weight_flops"] = float((log.prompt + log.output)[finished].sum()) * weight_flops(cluster.trace)
    if run.share is not None:
        document["capacity"] = capacity(log, cluster, run.policy, limits, run.share, run.seed)
    return document


def part_of(document: Document, name: str) -> Document:
    """``document`` with the latencies and the goodput (:data:`OF_CLASS`) of the requests of one class, which have no
    interval. Raises ``InputError`` where no request is of that class.
    """
    found = {part["class"]: part for part in document["classes"]}
    if name not in found:
        raise unknown_name("class of requests", name, found)
    return {**document, **found[name], "interval": None}


def weight_flops(trace: Trace) -> float:
    """FLOPs of a token's products by weights, the head's too: two per parameter that it meets."""
    products = (op.flops * count for op, count in trace.operators() if op.kind in ("matmul", "experts"))
    return sum(float(flops(1.0, 1.0, 0.0)) for flops in products)


def _told(document: Document, path: str) -> Value:
    """A figure of the document by its path, with the document's interval where it has one; not a number where the
    ends of the interval were not run."""
    value: Any = document
    for key in path.split("."):
        if key not in value:
            raise InputError(f"policy {document['policy']['name']} says nothing of {path}")
        value = value[key]
    if value is None:
        raise InputError(f"nothing finished: {path} cannot be told")
    low, high = (document.get("interval") or {}).get(path, (math.nan, math.nan))
    return Value(float(value), float(low), float(high))


def _capacity(document: Document) -> Value:
    found = document.get("capacity")
    if found is None:
        raise InputError("served_capacity needs a run with slo and share")
    return Value(found.rate, found.rate, max(found.next or found.rate, found.rate))


SERVED: dict[str, tuple[str, Callable[[Document], Value]]] = {
    "served_tokens_per_s": ("tokens written per second", lambda d: _told(d, "throughput_tokens_per_s")),
    "served_speed": ("1 / seconds until all requests are answered", lambda d: _told(d, "simulated_s").inverse()),
    "served_goodput": ("requests per second within their limits", lambda d: _told(d, "goodput_requests_per_s")),
    "served_tokens_per_s_per_device": (
        "tokens written per second and device",
        lambda d: _scaled(_told(d, "throughput_tokens_per_s"), 1 / d["utilisation"]["devices"]),
    ),
    "served_flops_per_s_per_device": (
        "two operations per weight that a token meets, of prompts and answers, per second and device",
        lambda d: _scaled(_told(d, "simulated_s").inverse(d["weight_flops"]), 1 / d["utilisation"]["devices"]),
    ),
    "served_tokens_per_usd": (
        "tokens written per US dollar",
        lambda d: _told(d, "cost_usd_per_mtoken").inverse(1e6),
    ),
    "served_tokens_per_joule": ("tokens written per joule", lambda d: _told(d, "energy_per_token_j").inverse()),
    "served_ttft_s": ("mean seconds to the first token", lambda d: _told(d, "ttft_s.mean")),
    "served_ttft_p99_s": ("99 % quantile of the seconds to the first token", lambda d: _told(d, "ttft_s.p99")),
    "served_tpot_s": ("mean seconds per following token", lambda d: _told(d, "tpot_s.mean")),
    "served_tpot_p99_s": ("99 % quantile of the seconds per following token", lambda d: _told(d, "tpot_s.p99")),
    "served_e2e_s": ("mean seconds to the last token", lambda d: _told(d, "e2e_s.mean")),
    "served_e2e_p99_s": ("99 % quantile of the seconds to the last token", lambda d: _told(d, "e2e_s.p99")),
    "served_e2e_p50_s": ("median of the seconds to the last token", lambda d: _told(d, "e2e_s.p50")),
    "served_instances": (
        "instances that run, on average over time, under a policy that starts and stops them",
        lambda d: _told(d, "migration.instances_mean"),
    ),
    "served_power_peak": (
        "highest reading of a row's power over what is provisioned",
        lambda d: _told(d, "power_capping.peak_share"),
    ),
    "served_without_brake": (
        "share of the time without the powerbrake",
        lambda d: Value.exact(1 - _told(d, "power_capping.level_s.brake").value / d["simulated_s"]),
    ),
    "served_training_tokens_per_s": (
        "tokens per second that fine-tuning has brought forward and back",
        lambda d: _told(d, "tuning.tokens_per_s"),
    ),
    "served_capacity": ("highest rate of requests that keeps the limits, per second", _capacity),
    "served_bubbles": (
        "share of their time in which the devices wait",
        lambda d: Value.exact(1 - d["utilisation"]["busy"]),
    ),
    "served_bubble_s": (
        "seconds that a device waits per request",
        lambda d: _scaled(_told(d, "simulated_s"), (1 - d["utilisation"]["busy"]) / d["requests"]["finished"]),
    ),
}
"""Name → what it is, and how it is told of a serving document."""


OF_CLASS = (
    "served_goodput",
    *(name for name in SERVED if name.startswith(("served_ttft", "served_tpot", "served_e2e"))),
)
"""What can be told of one class of requests."""


def _scaled(value: Value, by: float) -> Value:
    return Value(value.value * by, value.low * by, value.high * by)
