"""Runs of a system that are streams of requests on the serving simulator, and what a claim may ask of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import InputError, unknown_name
from ..serving.asked import asked
from ..serving.capacity import Capacity, capacity
from ..serving.cluster import Cluster
from ..serving.outcome import FINISHED
from ..serving.run import parse_slo, serve
from ..serving.slowdown import parse_slowdowns
from ..workloads.request_log import RequestLog
from ..workloads.trace import Trace
from .metrics import Value
from .spec import Run


class Served:
    """A run on the serving simulator: by key, the document of ``tokenfab serve``. Each of its parts is computed when a
    claim first asks for it. ``shared``: clusters of earlier runs, whose tables of step times runs alike go on with."""

    def __init__(self, run: Run, shared: dict[object, Cluster] | None = None) -> None:
        self.run, self.shared = run, {} if shared is None else shared

    def __getitem__(self, key: str) -> Any:
        return self.document[key]

    @cached_property
    def asked(self) -> tuple[RequestLog, Cluster]:
        """The requests, and what serves them."""
        run = self.run
        log, cluster = asked(
            run.model, run.device, run.requests or "", apply=run.apply, count=run.count, parallel=run.parallel,
            engine=run.engine, seed=run.seed, level=run.level,
        )  # fmt: skip
        key = run.model, run.apply, run.device, cluster.parallel, run.engine, cluster.longest, run.level
        return log, replace(self.shared.setdefault(key, cluster), replicas=cluster.replicas)

    @cached_property
    def document(self) -> dict[str, Any]:
        """The document of ``tokenfab serve``, and ``weight_flops`` of all tokens of finished requests, prompts' and
        answers'."""
        run, (log, cluster) = self.run, self.asked
        document, simulation = serve(log, cluster, run.policy, slo=parse_slo(run.slo), seed=run.seed, interval=run.ends)
        finished = np.frombuffer(bytes(simulation.outcome.state), dtype=np.uint8) == FINISHED
        flops = weight_flops(cluster.trace)
        return document | {"weight_flops": float((log.prompt + log.output)[finished].sum()) * flops}

    @cached_property
    def capacity(self) -> Capacity:
        """The highest rate at which ``share`` of the requests keep ``slo``, and ``slowdown`` holds."""
        run = self.run
        if run.share is None:
            raise InputError("served_capacity needs a run with share, and slo or slowdown")
        slowdowns = parse_slowdowns(run.slowdown)
        return capacity(*self.asked, run.policy, parse_slo(run.slo), run.share, run.seed, slowdowns)


class Part(Served):
    """``whole``, with the latencies and the goodput (:data:`OF_CLASS`) of the requests of one class, which have no
    interval. Raises ``InputError`` where no request is of that class."""

    def __init__(self, whole: Served, name: str) -> None:
        super().__init__(whole.run, whole.shared)
        found = {part["class"]: part for part in whole["classes"]}
        if name not in found:
            raise unknown_name("class of requests", name, found)
        self.document = {**whole.document, **found[name], "interval": None}


def weight_flops(trace: Trace) -> float:
    """FLOPs of a token's products by weights, the head's too: two per parameter that it meets."""
    products = (op.flops * count for op, count in trace.operators() if op.kind in ("matmul", "experts"))
    return sum(float(flops(1.0, 1.0, 0.0)) for flops in products)


def _told(document: Served, path: str) -> Value:
    """A figure of the document by its path, with the document's interval where it has one; not a number where the ends
    of the interval were not run."""
    value: Any = document.document
    for key in path.split("."):
        if key not in value:
            raise InputError(f"policy {document['policy']['name']} says nothing of {path}")
        value = value[key]
    if value is None:
        raise InputError(f"nothing finished: {path} cannot be told")
    low, high = (document.document.get("interval") or {}).get(path, (math.nan, math.nan))
    return Value(float(value), float(low), float(high))


def _sent(document: Served, key: str) -> float:
    found = document.document.get("disaggregation", {}).get(key)
    if found is None:
        raise InputError("no cache was sent; accepted: a run with policy splitwise")
    return float(found)


def _capacity(served: Served) -> Value:
    found = served.capacity
    return Value(found.rate, found.rate, max(found.next or found.rate, found.rate))


SERVED: dict[str, tuple[str, Callable[[Served], Value]]] = {
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
    "served_transfer_s": (
        "mean seconds that a request waits for its cache on the way to another replica",
        lambda d: Value.exact(_sent(d, "visible_s")),
    ),
    "served_transfer_share": (
        "the same over the seconds of its prompt",
        lambda d: Value.exact(_sent(d, "visible_share_of_prompt")),
    ),
    "served_mean_batch": (
        "sequences of a decoding iteration, on average over time",
        lambda d: _told(d, "utilisation.mean_batch"),
    ),
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
