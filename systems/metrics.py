"""What a claim may ask of a run: each metric takes an estimate and gives a value with its 90 % interval.

A device kind may add metrics of its own: a module of ``hw/`` that defines ``METRICS`` (name → function of an
:class:`~tokenfab.hw.estimate.Estimate` and the trace it is of, returning a number, or it with its interval's bounds).
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..hw.estimate import Estimate, Phase
from ..workloads.trace import Trace


class Value(NamedTuple):
    """A number and the bounds of its 90 % interval; equal ones where it is counted, not predicted; not a number where
    the interval was not asked for."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Value:
        return cls(value, value, value)

    def inverse(self, times: float = 1.0) -> Value:
        """``times`` over this: the bounds change sides."""
        return Value(times / self.value, times / self.high, times / self.low)

    def over(self, other: Value) -> Value:
        """This over ``other``, their errors taken as independent: in logarithms the half-widths add as squares.

        Errors of two runs by one model go partly together, so the interval is rather too wide.
        """
        ratio = self.value / other.value
        below = math.hypot(math.log(self.value / self.low), math.log(other.high / other.value))
        above = math.hypot(math.log(self.high / self.value), math.log(other.value / other.low))
        return Value(ratio, ratio * math.exp(-below), ratio * math.exp(above))


Metric = Callable[[Estimate, Trace], tuple[float, float, float] | float]
Figure = Callable[..., tuple[float, float, float] | float]

FIGURE_ROOMS = ("hw", "serving", "validation", "workloads")

MEANS: dict[str, Callable[[Sequence[float]], float]] = {
    "arithmetic": lambda x: float(np.mean(x)),
    "geometric": lambda x: float(np.exp(np.mean(np.log(x)))),
    "maximum": lambda x: float(np.max(x)),
    "minimum": lambda x: float(np.min(x)),
}


def mean(values: Sequence[Value], kind: str) -> Value:
    """The mean of that ``kind``; errors of the runs of one grid are taken as going together."""
    return Value(*(MEANS[kind]([v[side] for v in values]) for side in range(3)))


def at_level(levels: Sequence[float], values: Sequence[Value], level: float) -> Value:
    """The value where another metric, ``levels`` at the same runs, is ``level``: linear between the two runs around it.

    Runs are taken in the order of ``levels``. Raises ``InputError`` for a level that no two of them have between them.
    """
    order = sorted(range(len(levels)), key=lambda i: levels[i])
    at = [levels[i] for i in order]
    if not at[0] <= level <= at[-1]:
        raise InputError(f"at: {level:g} is not between the runs, which have {at[0]:.4g} to {at[-1]:.4g}")
    return Value(*(float(np.interp(level, at, [values[i][side] for i in order])) for side in range(3)))


def _latency(e: Estimate) -> Value:
    return Value(e.latency_s, *e.interval_s)


def _energy(e: Estimate) -> Value:
    return Value(e.energy_j, *e.energy_interval_j)


def _phase_time(phase: Phase) -> Value:
    return Value(phase.latency_s, *phase.interval_s)


def _phase_energy(phase: Phase) -> Value:
    return Value(phase.energy_j, *phase.energy_interval_j)


def _price(e: Estimate) -> float:
    price = e.device.price.purchase
    if price is None:
        raise InputError(f"device {e.device.name}: price.purchase is missing; cost efficiency cannot be told")
    return price.value * e.parallel.devices


def _area(e: Estimate) -> float:
    if e.device.die is None:
        raise InputError(f"device {e.device.name}: die.area is missing; compute density cannot be told")
    return e.device.die.area.value * e.parallel.devices


def _linear_s(e: Estimate, t: Trace, name: str) -> Value:
    """The phase's interval is taken for that of its products: operators carry none of their own."""
    phase = e.prefill if name == "prefill" else e.decode
    head = f"{t.order[-1][0]}." if len(t.order) > 1 else " "
    seconds = sum(
        o.time_s for o in e.operators
        if o.phase == name and o.kind in ("matmul", "experts") and not o.name.startswith(head)
    )  # fmt: skip
    low, high = phase.interval_s
    return Value(seconds, seconds * low / phase.latency_s, seconds * high / phase.latency_s)


def _switch_s(e: Estimate) -> Value:
    seconds = sum(o.time_s for o in e.operators if o.phase == "prefill" and o.kind == "copy" and "switch" in o.name)
    if not seconds:
        raise InputError(f"model {e.model}: no switch between models; accepted: a run with composition:experts=…")
    low, high = e.prefill.interval_s
    return Value(seconds, seconds * low / e.prefill.latency_s, seconds * high / e.prefill.latency_s)


def _scaled(value: Value, by: float) -> Value:
    return Value(value.value * by, value.low * by, value.high * by)


METRICS: dict[str, tuple[str, Metric]] = {
    "latency_s": ("seconds of the whole request batch", lambda e, t: _latency(e)),
    "speed": ("request batches per second: 1 / latency", lambda e, t: _latency(e).inverse()),
    "tokens_per_s": ("tokens written per second, prefill included", lambda e, t: _latency(e).inverse(e.tokens)),
    "prefill_s": ("seconds of the prefill", lambda e, t: _phase_time(e.prefill)),
    "prefill_speed": ("prefills per second", lambda e, t: _phase_time(e.prefill).inverse()),
    "decode_s": ("seconds of a decode step at the mean context", lambda e, t: _phase_time(e.decode)),
    "decode_tokens_per_s": (
        "tokens per second of decode steps, prefill left out",
        lambda e, t: _phase_time(e.decode).inverse(e.request.batch),
    ),
    "decode_linear_speed": (
        "1 / seconds that a decode step spends in the layers' products by weights",
        lambda e, t: _linear_s(e, t, "decode").inverse(),
    ),
    "prefill_linear_speed": (
        "1 / seconds that a prefill spends in the layers' products by weights",
        lambda e, t: _linear_s(e, t, "prefill").inverse(),
    ),
    "energy_j": ("joules of the whole request batch", lambda e, t: _energy(e)),
    "energy_efficiency": ("request batches per joule", lambda e, t: _energy(e).inverse()),
    "prefill_energy_efficiency": ("prefills per joule", lambda e, t: _phase_energy(e.prefill).inverse()),
    "energy_per_token_j": ("joules per token written", lambda e, t: _scaled(_energy(e), 1 / e.tokens)),
    "tokens_per_joule": ("tokens written per joule", lambda e, t: _energy(e).inverse(e.tokens)),
    "decode_tokens_per_joule": (
        "tokens per joule of decode steps",
        lambda e, t: _phase_energy(e.decode).inverse(e.request.batch),
    ),
    "decode_power_w": (
        "watts of all devices in a decode step",
        lambda e, t: _scaled(_phase_energy(e.decode), 1 / e.decode.latency_s),
    ),
    "decode_tokens_per_s_per_usd": (
        "tokens per second of decode steps per dollar of purchase",
        lambda e, t: _scaled(_phase_time(e.decode).inverse(e.request.batch), 1 / _price(e)),
    ),
    "decode_tokens_per_s_per_mm2": (
        "tokens per second of decode steps per mm² of silicon",
        lambda e, t: _scaled(_phase_time(e.decode).inverse(e.request.batch), 1 / _area(e)),
    ),
    "bandwidth_utilisation": (
        "share of the DRAM's peak bandwidth that a decode step moves",
        lambda e, t: _scaled(
            _phase_time(e.decode).inverse(e.decode.bytes), 1 / e.device.dram.bandwidth.value / e.parallel.devices
        ),
    ),
    "weights_bytes": ("bytes of weights on the fullest device", lambda e, t: e.memory.weights_bytes),
    "memory_bytes": ("bytes needed on the fullest device", lambda e, t: e.memory.needed_bytes),
    "kv_bytes": ("bytes of KV cache on the fullest device", lambda e, t: e.memory.kv_bytes),
    "prefill_flops": ("arithmetic of the prefill", lambda e, t: e.prefill.flops),
    "decode_flops": ("arithmetic of a decode step", lambda e, t: e.decode.flops),
    "decode_bytes": ("bytes a decode step moves", lambda e, t: e.decode.bytes),
    "decode_intensity": ("operations per byte of a decode step", lambda e, t: e.decode.flops / e.decode.bytes),
    "machines_needed": (
        "machines of so many devices as the run has, over which the memory needed has room",
        lambda e, t: math.ceil(e.memory.needed_bytes / e.memory.capacity_bytes),
    ),
    "switch_speed": (
        "1 / seconds of switching to a model that waits in a slower memory",
        lambda e, t: _switch_s(e).inverse(),
    ),
}
"""Name → what it is, and how it is told."""


@cache
def known_metrics() -> dict[str, tuple[str, Metric]]:
    """:data:`METRICS` and those that device kinds add, each with what it is."""
    return METRICS | _defined("METRICS", ("hw",))


@cache
def known_figures() -> dict[str, tuple[str, Figure]]:
    """What modules of :data:`FIGURE_ROOMS` compute (``FIGURES``), each with what it is."""
    return _defined("FIGURES", FIGURE_ROOMS)


def _defined(table: str, rooms: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """All entries of the tables of that name in the modules of ``rooms``; the docstring says what each is."""
    found: dict[str, tuple[str, Any]] = {}
    root = (__package__ or "tokenfab.systems").rpartition(".")[0]
    for room in rooms:
        for info in pkgutil.iter_modules(importlib.import_module(f"{root}.{room}").__path__):
            module = importlib.import_module(f"{root}.{room}.{info.name}")
            for name, function in getattr(module, table, {}).items():
                if name in found or name in METRICS:
                    raise ValueError(f"two modules define {name} in {table}")
                found[name] = (" ".join((function.__doc__ or name).split()), function)
    return found
