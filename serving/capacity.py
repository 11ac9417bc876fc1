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
from .slowdown import Slowdowns

STEP = 1.1
"""First step of the search, up or down; every further one is the square of the one before, to a doubling at most."""
WIDEST = 2.0**20
"""How far from the log's own rate it goes."""
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
    log: RequestLog, cluster: Cluster, policy: str, slo: Mapping[str, float], share: float = 0.9, seed: int = 0,
    slowdowns: Slowdowns | None = None,
) -> Capacity:  # fmt: skip
    """Scale the arrivals of ``log`` until ``share`` of its requests just keep ``slo``, and all limits of ``slowdowns``
    just hold (then :attr:`Capacity.attained` is at most :meth:`.Slowdowns.attained` of ``share``).

    Attainment falls with the rate but for noise of single requests; the answer is a rate that held beside one within
    1 % that did not, or 0 where a millionth of the log's own rate does not hold. Raises ``InputError`` where no limit
    is given, or arrivals are all at once.
    """
    if not slo and slowdowns is None:
        raise InputError("a capacity needs limits, as --slo ttft=0.5,tpot=0.05 or --slowdown ttft=2/3/6")
    if not 0 < share <= 1:
        raise InputError(f"share of requests within their limits: {share}; accepted: above 0, to 1")
    if log.rate == float("inf"):
        raise InputError("a capacity needs arrivals over time: these requests come at once")
    runs = 0
    alone = slowdowns.alone(log, cluster) if slowdowns else {}
    last = 0.0
    """Mean seconds of an answer in the last run that held."""

    def attained(rate: float) -> float:
        nonlocal runs, last
        runs += 1
        simulation = simulate(at_rate(log, rate), cluster, policy, seed=seed)
        latencies = Latencies.of(simulation)
        found = float(latencies.within(slo).mean()) if slo else 1.0
        if slowdowns:
            found = min(found, share * slowdowns.attained(simulation, alone))
        if found >= share:
            last = float(np.nanmean(latencies.e2e_s))
        return found

    low = high = log.rate
    held = attained(low)
    step = STEP
    if held >= share:
        while low < WIDEST * log.rate:
            high = step * low
            if (here := attained(high)) < share:
                break
            low, held, step = high, here, min(step * step, 2.0)
        else:
            note = "the limits hold even where all come at once: these requests are too few to find a rate"
            return Capacity(low, None, held, runs, note)
    else:
        while low > log.rate / WIDEST:
            high, low = low, low / step
            if (held := attained(low)) >= share:
                break
            step = min(step * step, 2.0)
        else:
            return Capacity(0.0, low, held, runs, "no rate holds the limits: wider ones, or more devices")
    while high / low > 1 + TOLERANCE:
        middle = (low * high) ** 0.5
        here = attained(middle)
        if here >= share:
            low, held = middle, here
        else:
            high = middle
    span = (len(log) - 1) / low
    few = f"the requests last {span:.3g} s, answers {last:.3g} s: more requests would find a lower rate"
    return Capacity(low, high, held, runs, few if span < LONG * last else "")
