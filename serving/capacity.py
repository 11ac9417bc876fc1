"""The highest request rate at which enough requests keep their limits, by bisection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..workloads.request_log import RequestLog
from .cluster import Cluster
from .metrics import Latencies
from .run import simulate

WIDEST = 20
"""Doublings that the search starts with, up or down."""
LONG = 10
"""Mean times of an answer that a log should last, or its start and end count too much."""
TOLERANCE = 0.01
"""Relative width of the interval that the search ends with."""


@dataclass(frozen=True)
class Capacity:
    """``rate`` in requests per second of the whole cluster, the highest that held (0: none); ``next`` the lowest that
    did not (``None``: all held).

    ``attained`` share of the requests within their limits at ``rate``; ``runs`` simulations made; ``note``: why the
    answer is none, or not to be trusted.
    """

    rate: float
    next: float | None
    attained: float
    runs: int
    note: str = ""


def at_rate(log: RequestLog, rate: float) -> RequestLog:
    """``log`` with its arrivals closer together or further apart, to ``rate`` requests per second on average."""
    factor = log.rate / rate
    return replace(log, arrival_s=log.arrival_s * factor)


def capacity(
    log: RequestLog, cluster: Cluster, policy: str, slo: Mapping[str, float], share: float = 0.9, seed: int = 0
) -> Capacity:
    """Scale the arrivals of ``log`` until ``share`` of its requests just keep ``slo``.

    Attainment falls with the rate but for noise of single requests; the answer is a rate that held beside one within
    1 % that did not, or 0 where a millionth of the log's own rate does not hold. Raises ``InputError`` where no limit
    is given, or arrivals are all at once.
    """
    if not slo:
        raise InputError("a capacity needs limits, as --slo ttft=0.5,tpot=0.05")
    if not 0 < share <= 1:
        raise InputError(f"share of requests within their limits: {share}; accepted: above 0, to 1")
    if log.rate == float("inf"):
        raise InputError("a capacity needs arrivals over time: these requests come at once")
    runs = 0

    def attained(rate: float) -> float:
        nonlocal runs
        runs += 1
        return float(Latencies.of(simulate(at_rate(log, rate), cluster, policy, seed=seed)).within(slo).mean())

    low = high = log.rate
    held = attained(low)
    if held >= share:
        for _ in range(WIDEST):
            high = 2 * low
            if (here := attained(high)) < share:
                break
            low, held = high, here
        else:
            note = "the limits hold even where all come at once: these requests are too few to find a rate"
            return Capacity(low, None, held, runs, note)
    else:
        for _ in range(WIDEST):
            high, low = low, low / 2
            if (held := attained(low)) >= share:
                break
        else:
            return Capacity(0.0, low, held, runs, "no rate holds the limits: wider ones, or more devices")
    while high / low > 1 + TOLERANCE:
        middle = (low * high) ** 0.5
        here = attained(middle)
        if here >= share:
            low, held = middle, here
        else:
            high = middle
    answers_s = float(np.nanmean(Latencies.of(simulate(at_rate(log, low), cluster, policy, seed=seed)).e2e_s))
    span = (len(log) - 1) / low
    few = f"the requests last {span:.3g} s, answers {answers_s:.3g} s: more requests would find a lower rate"
    return Capacity(low, high, held, runs, few if span < LONG * answers_s else "")
