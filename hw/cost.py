"""``cost(trace, device)``: time, what bound it, energy and interval, at any number of points at once.

A device kind is one module of this room that defines ``KINDS`` (the kinds it models) and
``prepare(compiled, device) -> OperatorModel``. The engine here evaluates it in chunks, so that
memory stays bounded however many points are asked for, and adds up operators.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..workloads.compiled import CompiledTrace, compile_trace
from ..workloads.expr_functions import Array
from ..workloads.trace import Trace
from .spec import Device

CHUNK = 2048
"""Points evaluated at a time: the working set (rows × points) stays in a core's cache."""


PARALLEL_FROM = 8
"""Chunks from which threads pay off."""


@dataclass(frozen=True)
class RowCosts:
    """Costs of one execution of each row at some points; all arrays are (rows, points).

    ``time_s`` = overlapped part + ``launch_s``; ``bound`` indexes the model's ``reasons`` by what
    set the overlapped part, ``regime`` its intervals; ``energy_j`` holds the dynamic energy by part.
    ``busy_s`` says for how long a row occupies each resource that others may want too (by the resource's
    name, never longer than the overlapped part): what the discrete-event level lets operators contend for.
    ``staged``, where rows read ahead of their layer: the same rows without what they read and write so, ``moves``.
    """

    time_s: Array
    launch_s: Array
    bound: npt.NDArray[np.intp]
    regime: npt.NDArray[np.intp]
    energy_j: dict[str, Array]
    busy_s: dict[str, Array] = field(default_factory=dict)
    staged: RowCosts | None = None
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True)
class Move:
    """What row ``row`` reads from a slow tier before its layer begins, or writes there when it is done (``write``).

    Per execution, at the points of the costs: ``stages`` are seconds for which it occupies the tier (named by
    ``place``) and the way to it; the first byte takes ``latency_s`` more, in which it occupies nothing.
    """

    row: int
    place: str
    stages: dict[str, Array]
    latency_s: float = 0.0
    write: bool = False


@dataclass(frozen=True)
class Errors:
    """How errors of rows go together: ``families`` names each row's, ``within`` is the correlation of two
    rows of one family, ``across`` of rows of different ones; a row's repetitions are all off alike.

    With half-widths h of the rows' 90 % intervals, the sum's is √(Σᵢ Σⱼ ρᵢⱼ hᵢ hⱼ), as for jointly normal errors.
    """

    families: tuple[str, ...]
    within: float = 1.0
    across: float = 1.0

    def compose(self, half: Array) -> Array:
        """Half-width of the sum of rows: (rows, points) → (points,)."""
        total = self.across * half.sum(axis=0) ** 2
        if self.within > self.across:
            for name in sorted(set(self.families)):
                here = [f == name for f in self.families]
                total += (self.within - self.across) * half[here].sum(axis=0) ** 2
        if self.within < 1:
            total += (1 - self.within) * (half**2).sum(axis=0)
        return np.asarray(np.sqrt(total))


class OperatorModel(Protocol):
    """A device kind's view of one compiled trace.

    ``low`` and ``high`` are (regimes, rows): measured over predicted time, 5 % and 95 % quantiles, of
    a row in the regime.
    """

    @property
    def reasons(self) -> tuple[str, ...]: ...
    @property
    def static_power_w(self) -> float: ...
    @property
    def power_interval(self) -> tuple[float, float]: ...
    @property
    def low(self) -> Array: ...
    @property
    def high(self) -> Array: ...
    @property
    def errors(self) -> Errors: ...

    def rows(self, basis: Array) -> RowCosts:
        """Costs of every row at the points whose monomials are ``basis`` (monomials, points)."""


@dataclass(frozen=True)
class Costs:
    """One forward pass at P points. ``bound`` gives each reason's share of the time (they sum to 1).

    ``low_s`` and ``high_s`` are the 90 % interval of ``latency_s``. ``energy_j`` is the sum of
    ``energy_parts_j``; in its interval the dynamic part is as it is, the static part lasts as long as
    the time's interval says, and both are off by the power constants' interval. ``operator_time_s``,
    ``operator_bound`` and ``operator_energy_j`` (by part) are (rows, P) with the repeat count included,
    present when asked for.
    """

    latency_s: Array
    low_s: Array
    high_s: Array
    bound: dict[str, Array]
    energy_parts_j: dict[str, Array]
    energy_low_j: Array
    energy_high_j: Array
    operator_time_s: Array | None = None
    operator_bound: npt.NDArray[np.intp] | None = None
    operator_energy_j: dict[str, Array] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def energy_j(self) -> Array:
        return np.asarray(np.sum(list(self.energy_parts_j.values()), axis=0))


Prepare = Callable[[CompiledTrace, Device], OperatorModel]


@cache
def kind_modules() -> dict[str, Any]:
    """Device kind → the module of this room that models it.

    Beside ``prepare`` a module may define ``peak(trace, device)``, the format and FLOP/s of its fastest engine for the
    trace (else the matrix rate, of the host where there is one), and ``constants(device)``, lines that say what its
    times rest on, and ``placement(trace, device, batch, query, context)``, where data lies. ``HOST_APART = True`` says
    that the power in a device file of its kinds is without the host's. ``mixed_attention(compiled, device)`` gives a
    function of the seconds of attention where chunks of prompts and decoding sequences share a call, or ``None``;
    ``sampling(device, vocabulary)`` one of the seconds of choosing tokens for a number of sequences.
    """
    found: dict[str, Any] = {}
    package = __package__ or "tokenfab.hw"
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if info.name == __name__.rpartition(".")[2]:
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        for kind in getattr(module, "KINDS", ()):
            if kind in found:
                raise ValueError(f"two modules model the device kind {kind}")
            found[kind] = module
    return found


def kind_models() -> dict[str, Prepare]:
    """Device kind → the ``prepare`` of the module that models it."""
    return {kind: module.prepare for kind, module in kind_modules().items()}


def rated_power(device: Device) -> tuple[float, float]:
    """Rated and idle watts of ``device``, with its host's where its kind's device files leave those to the host's."""
    rated, idle = device.power.tdp.value, device.power.idle.value
    if device.host is not None and getattr(kind_modules().get(device.kind), "HOST_APART", False):
        return rated + device.host.power.tdp.value, idle + device.host.power.idle.value
    return rated, idle


def prepare(trace: Trace | CompiledTrace, device: Device) -> tuple[CompiledTrace, OperatorModel]:
    """Compile ``trace`` for ``device``. Raises ``InputError`` when no model covers the device's kind."""
    compiled = trace if isinstance(trace, CompiledTrace) else compile_trace(trace)
    model = kind_models().get(device.kind)
    if model is None:
        raise InputError(
            f"device {device.name}: no cost model for kind {device.kind!r}; modelled: {', '.join(kind_models())}"
        )
    return compiled, model(compiled, device)


def cost(
    trace: Trace | CompiledTrace,
    device: Device,
    b: npt.ArrayLike,
    q: npt.ArrayLike,
    c: npt.ArrayLike,
    *,
    detail: bool = False,
) -> Costs:
    """Cost of one forward pass at points (batch, query, context), arrays that broadcast to (P,).

    ``detail=True`` also returns per-operator times. Raises ``InputError`` for points that are not
    finite, a batch or query below 1 or a context below 0.
    """
    compiled, model = prepare(trace, device)
    points = np.broadcast_arrays(*(np.atleast_1d(np.asarray(x, dtype=float)) for x in (b, q, c)))
    for name, values, least in zip(("batch", "query", "context"), points, (1, 1, 0), strict=True):
        if values.size and not (np.isfinite(values).all() and values.min() >= least):
            raise InputError(f"{name} must be a number of at least {least}")
    windows = [slice(start, start + CHUNK) for start in range(0, points[0].size, CHUNK)]

    def evaluate(window: slice) -> Costs:
        return _costs(compiled, model, compiled.basis_at(*(p[window] for p in points)), detail)

    if len(windows) < PARALLEL_FROM:
        return _joined([evaluate(w) for w in windows], model.reasons)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of the interpreter lock
        return _joined(list(pool.map(evaluate, windows)), model.reasons)


def _costs(compiled: CompiledTrace, model: OperatorModel, basis: Array, detail: bool) -> Costs:
    rows = model.rows(basis)
    counts = compiled.counts
    latency = counts @ rows.time_s
    launch = counts @ rows.launch_s
    overlapped = rows.time_s - rows.launch_s
    bound = {}
    for i, reason in enumerate(model.reasons):
        here = rows.bound == i
        bound[reason] = counts @ (overlapped * here) / latency if here.any() else np.zeros_like(latency)
    bound["launch"] = launch / latency
    regime = rows.regime * counts.size + np.arange(counts.size)[:, None]
    energy = {part: counts @ e for part, e in rows.energy_j.items()}
    dynamic = np.sum(list(energy.values()), axis=0)
    energy["static"] = model.static_power_w * latency
    once = counts[:, None] * rows.time_s
    low = latency - model.errors.compose(once * (1 - model.low.take(regime)))
    high = latency + model.errors.compose(once * (model.high.take(regime) - 1))
    return Costs(
        latency_s=latency,
        low_s=low,
        high_s=high,
        bound=bound,
        energy_parts_j=energy,
        energy_low_j=(dynamic + model.static_power_w * low) * model.power_interval[0],
        energy_high_j=(dynamic + model.static_power_w * high) * model.power_interval[1],
        operator_time_s=counts[:, None] * rows.time_s if detail else None,
        operator_bound=np.where(rows.launch_s > overlapped, len(model.reasons), rows.bound) if detail else None,
        operator_energy_j=_operator_energy(rows, once, model.static_power_w, counts) if detail else {},
    )


def _operator_energy(rows: RowCosts, time_s: Array, static_w: float, counts: Array) -> dict[str, Array]:
    dynamic = {part: counts[:, None] * joules for part, joules in rows.energy_j.items()}
    return dynamic | {"static": static_w * time_s}


def _joined(parts: Sequence[Costs], reasons: tuple[str, ...]) -> Costs:
    def chain(pick: Callable[[Costs], Array]) -> Array:
        return np.concatenate([pick(p) for p in parts], axis=-1) if parts else np.empty(0)

    first = parts[0] if parts else None
    detailed = first is not None and first.operator_time_s is not None
    return Costs(
        latency_s=chain(lambda p: p.latency_s),
        low_s=chain(lambda p: p.low_s),
        high_s=chain(lambda p: p.high_s),
        bound={r: chain(lambda p, r=r: p.bound[r]) for r in (first.bound if first else ())},  # type: ignore[misc]
        energy_parts_j={e: chain(lambda p, e=e: p.energy_parts_j[e]) for e in (first.energy_parts_j if first else ())},  # type: ignore[misc]
        energy_low_j=chain(lambda p: p.energy_low_j),
        energy_high_j=chain(lambda p: p.energy_high_j),
        operator_time_s=chain(lambda p: p.operator_time_s) if detailed else None,  # type: ignore[arg-type,return-value]
        operator_bound=chain(lambda p: p.operator_bound) if detailed else None,  # type: ignore[arg-type,return-value]
        operator_energy_j={
            e: chain(lambda p, e=e: p.operator_energy_j[e])  # type: ignore[misc]
            for e in (first.operator_energy_j if first else ())
        },
        reasons=(*reasons, "launch"),
    )
