"""Paper beside model: runs a system's requests and holds each claim against what the models say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from ..errors import InputError, unknown_name
from ..hw.cost import cost
from ..hw.devices import load_device
from ..hw.estimate import Estimate, Request, estimate
from ..hw.event import EventLevel
from ..serving.cluster import Cluster
from ..workloads.load import load_trace
from ..workloads.parallel import parse_parallel
from ..workloads.techniques import apply_techniques
from ..workloads.trace import Trace
from .metrics import Value, at_level, known_figures, known_metrics, mean
from .served import OF_CLASS, SERVED, Part, Served
from .spec import Claim, Run, System

NEAR, FAR = 0.10, 0.25
"""Distances up to which a claim is ``within-10%`` and ``within-25%``."""
STATUSES = ("within-10%", "within-25%", "off", "not-modelled")


def reproduce(system: System, step: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Each claim of ``system`` as a row with the promised keys.

    ``ratio`` is model over paper, ``interval`` the model's 90 % (``None`` where it was not asked for). ``step`` is told
    of each run. Raises ``InputError`` for a run that cannot be estimated or a metric that is not known, naming the
    system and the claim.
    """
    done: dict[Run, tuple[Estimate, Trace] | Served] = {}
    shared: dict[object, Cluster] = {}
    rows = []
    for claim in system.claims:
        row: dict[str, Any] = {"system": system.name, "claim": claim.claim, "paper": claim.paper}
        if claim.not_modelled is not None:
            row |= {"model": None, "ratio": None, "interval": None, "status": "not-modelled"}
            rows.append(row | {"reason": claim.not_modelled, "source": claim.source, "metric": None, "runs": []})
            continue
        try:
            value = _value(claim, system, done, shared, step)
        except InputError as error:
            raise InputError(f"system {system.name}, claim {claim.claim!r}: {error}") from None
        paper = claim.paper or 1.0
        asked = [run for names in (claim.of, claim.over) for run in system.runs_of(names)]
        rows.append(
            row
            | {
                "model": value.value, "ratio": value.value / paper,
                "interval": None if math.isnan(value.low) else [value.low, value.high],
                "status": status(value.value / paper), "reason": claim.reason, "source": claim.source,
                "metric": claim.metric or claim.figure, "runs": [run.command for run in asked],
            }
        )  # fmt: skip
    return rows


def status(ratio: float) -> str:
    """How far a model is from the paper, ``ratio`` being model over paper."""
    for distance, word in zip((NEAR, FAR), STATUSES, strict=False):
        if 1 - distance <= ratio <= 1 + distance:
            return word
    return "off"


def _value(
    claim: Claim,
    system: System,
    done: dict[Run, tuple[Estimate, Trace] | Served],
    shared: dict[object, Cluster],
    step: Callable[[str], None],
) -> Value:
    if claim.figure is not None:
        figures = known_figures()
        if claim.figure not in figures:
            raise unknown_name("figure", claim.figure, figures)
        step(f"{system.name}: {claim.figure}")
        function = figures[claim.figure][1]
        try:
            inspect.signature(function).bind(**claim.arguments)
        except TypeError as error:
            raise InputError(f"figure {claim.figure}: {error}; accepted: {inspect.signature(function)}") from None
        return _whole(function(**claim.arguments))
    metrics = known_metrics()

    def of(run: Run, name: str) -> Value:
        if name not in metrics and name not in SERVED:
            raise unknown_name("metric", name, [*metrics, *SERVED])
        if (run.requests is not None) != (name in SERVED):
            raise InputError(f"metric {name}: a run with requests has the metrics {', '.join(SERVED)}, others have not")
        if claim.of_class is not None and name not in OF_CLASS:
            raise InputError(f"metric {name}: not told of a class; accepted: {', '.join(OF_CLASS)}")
        if run not in done:
            step(f"{system.name}: {run.model} on {run.device}")
            done[run] = Served(run, shared) if run.requests is not None else _run(run)
        found = done[run]
        if isinstance(found, Served):
            return SERVED[name][1](found if claim.of_class is None else Part(found, claim.of_class))
        return _whole(metrics[name][1](*found))

    name = claim.metric or ""
    values = [of(run, name) for run in system.runs_of(claim.of)]
    base = [of(run, name) for run in system.runs_of(claim.over)]
    if claim.at:
        other, level = next(iter(claim.at.items()))
        curves = [(names, found) for names, found in ((claim.of, values), (claim.over, base)) if found]
        read = [at_level([of(run, other).value for run in system.runs_of(n)], found, level) for n, found in curves]
        return read[0].over(read[1]) if base else read[0]
    if base:
        values = [v.over(b) for v, b in zip(values, base * (len(values) // len(base)), strict=True)]
        if claim.gain:
            values = [Value(*(x - 1 for x in v)) for v in values]
    return mean(values, claim.mean) if claim.mean else values[0]


def _whole(value: tuple[float, float, float] | float) -> Value:
    """A value with its interval, given as three numbers or as one that is exact."""
    return Value(*value) if isinstance(value, tuple) else Value.exact(value)


def _run(run: Run) -> tuple[Estimate, Trace]:
    trace = apply_techniques(load_trace(run.model), list(run.apply))
    request = Request(run.batch, run.prompt, run.output)
    degrees = parse_parallel(run.parallel, run.count)
    level = EventLevel() if run.level == "event" else cost
    return estimate(trace, load_device(run.device), request, degrees, explain=True, level=level), trace
