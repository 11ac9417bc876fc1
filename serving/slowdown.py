"""Latencies over those of the same request alone, and limits of their quantiles.

A request alone on a replica that has nothing else to do takes, by the replica's own step model,

    time to first token    one iteration of its whole prompt
    time per token         decode steps at its own contexts, over their number
    end to end             both

Slowdowns are what a run made of these, over them. Limits of p50, p90 and p99, as Splitwise has them (ISCA 2024,
table VI): ``ttft=2/3/6,tpot=1.25/1.5/5,e2e=1.25/1.5/5``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..hw.devices import load_device
from ..workloads.request_log import RequestLog
from .cluster import Cluster
from .engine import load_profile
from .metrics import QUANTILES, SLO_KEYS, Latencies, spread
from .simulation import Simulation

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Slowdowns:
    """``limits``: of ``ttft``, ``tpot``, ``e2e`` those of the quantiles p50, p90, p99; fewer than three: the first.

    ``device``, ``engine``: where the request alone runs, in as many devices as the replicas that are judged; nothing:
    the cluster's own.
    """

    limits: Mapping[str, tuple[float, ...]]
    device: str = ""
    engine: str = ""

    def alone(self, log: RequestLog, cluster: Cluster) -> dict[str, Array]:
        """Seconds of each of the N requests of ``log`` alone, by measure; NaN per token where there is only one."""
        if self.device or self.engine:
            cluster = replace(
                cluster,
                device=_device(self.device) if self.device else cluster.device,
                profile=_profile(self.engine) if self.engine else cluster.profile,
            )
        steps = cluster.steps()
        first = np.array([steps.mixed_s([(q, 0)], 1, 0, 0.0, 0.0) for q in log.prompt.tolist()])
        left = log.output - 1
        rest = np.array(
            [
                steps.decode_s(1, float(q), 0.0, k) if k else 0.0
                for q, k in zip(log.prompt.tolist(), left.tolist(), strict=True)
            ]
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"ttft": first, "tpot": np.where(left > 0, rest / left, np.nan), "e2e": first + rest}

    def of(self, simulation: Simulation, alone: Mapping[str, Array]) -> dict[str, Array]:
        """Slowdowns of each request: infinite where it did not finish, NaN where it has no such time."""
        lat = Latencies.of(simulation)
        found = {}
        for key in SLO_KEYS:
            missing = np.where(np.isnan(alone[key]), np.nan, np.inf)
            found[key] = np.where(lat.finished, getattr(lat, f"{key}_s") / alone[key], missing)
        return found

    def attained(self, simulation: Simulation, alone: Mapping[str, Array]) -> float:
        """Of all limits, the least share of requests within it over its quantile, at most 1: 1 where all hold."""
        return self._kept(self.of(simulation, alone))

    def _kept(self, found: Mapping[str, Array]) -> float:
        """:meth:`attained` of slowdowns."""
        least = 1.0
        for key, limits in self.limits.items():
            values = found[key][~np.isnan(found[key])]
            for limit, quantile in zip(limits, QUANTILES.values(), strict=False):
                if values.size:
                    least = min(least, float((values <= limit).mean()) / quantile)
        return least

    def told(self, simulation: Simulation, alone: Mapping[str, Array]) -> dict[str, Any]:
        """For a result document: mean and quantiles by measure, the limits, and whether all hold."""
        found = self.of(simulation, alone)
        return {
            "limits": {key: list(x) for key, x in self.limits.items()}, "device": self.device, "engine": self.engine,
            "held": self._kept(found) >= 1, **{key: spread(x) for key, x in found.items()},
        }  # fmt: skip


# Loaded once, as a cluster keeps its tables of step times by the device and the profile that it was given.
_device, _profile = cache(load_device), cache(load_profile)


def parse_slowdowns(text: str | None) -> Slowdowns | None:
    """``ttft=2/3/6,tpot=1.25/1.5/5`` with ``;DEVICE`` and ``;ENGINE`` after it where the request alone runs elsewhere.

    Raises ``InputError``.
    """
    if not text:
        return None
    limits, *where = text.split(";")
    found: dict[str, tuple[float, ...]] = {}
    for item in filter(None, limits.split(",")):
        key, _, values = item.partition("=")
        try:
            numbers = tuple(float(x) for x in values.split("/"))
        except ValueError:
            numbers = (0.0,)
        rising = numbers[0] > 0 and all(a <= b for a, b in pairwise((*numbers, sys.float_info.max)))
        if key not in SLO_KEYS or key in found or len(numbers) > len(QUANTILES) or not rising:
            raise InputError(f"slowdown: {item!r}; accepted: {', '.join(SLO_KEYS)} once each, as ttft=2/3/6: limits of "
                             f"{', '.join(QUANTILES)}")  # fmt: skip
        found[key] = numbers
    if not found or len(where) > 2:
        raise InputError(f"slowdown: {text!r}; accepted: limits, and after semicolons a device and an engine, as in "
                         "ttft=2/3/6;a100-80g-sxm;ideal")  # fmt: skip
    return Slowdowns(found, *where)
