"""Every suite of measurements against the models: what ``tokenfab validate`` prints.

A suite compares one model with one device's table. ``model`` is ``roofline`` or ``collectives`` (what an
estimate uses) or ``kernel`` (:mod:`tokenfab.hw.gemm`, :mod:`tokenfab.hw.attention`). ``mode`` is
``calibrated`` (this card's constants, fitted on the even rows) or ``physics`` (its datasheet with the
constants of the other architecture: what to expect of a card nobody measured). All errors are of the odd
rows. Intervals are the catalogue's where an estimate uses the model; a kernel model's are the 5 % and 95 %
quantiles of measured over predicted time of the even rows, by quarter of predicted time, and with borrowed
constants it has none: a card nobody measured has no rows to take one from. Nothing is fitted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, unknown_name
from ..hw import attention as flash
from ..hw import gemm as tiled
from ..hw.devices import load_device
from ..workloads.expr_functions import Array
from . import attention, collectives, gemm, roofline, vector
from .kernels import FOLDERS, read_kernels

Document = dict[str, Any]
QUARTERS = 4
COVERAGE = (0.85, 0.95)
"""What a 90 % interval may cover and be called one."""
GEMM_CONSTANTS = {"a100-80g-sxm": tiled.AMPERE, "h100-sxm": tiled.HOPPER}
OTHER = {"a100-80g-sxm": "h100-sxm", "h100-sxm": "a100-80g-sxm"}
BARS = {
    ("gemm-bf16", "a100-80g-sxm", "kernel", "calibrated"): 0.07,
    ("gemm-bf16", "h100-sxm", "kernel", "calibrated"): 0.06,
    ("gemm-bf16", "a100-80g-sxm", "kernel", "physics"): 0.15,
    ("gemm-bf16", "h100-sxm", "kernel", "physics"): 0.15,
    ("gemm-fp8", "h100-sxm", "kernel", "calibrated"): 0.12,
    ("attention-prefill", "a100-80g-sxm", "kernel", "calibrated"): 0.10,
    ("attention-prefill", "h100-sxm", "kernel", "calibrated"): 0.10,
    ("attention-decode", "a100-80g-sxm", "kernel", "calibrated"): 0.10,
    ("attention-decode", "h100-sxm", "kernel", "calibrated"): 0.10,
    ("all-reduce", "a100-80g-sxm", "collectives", "calibrated"): 0.12,
    ("all-reduce", "h100-sxm", "collectives", "calibrated"): 0.12,
}
"""Largest mean absolute percentage error that the project has promised itself."""


@dataclass(frozen=True)
class Comparison:
    """One model on one table. Arrays of (N,) over the odd rows: seconds, and the interval's two factors."""

    suite: str
    device: str
    model: str
    mode: str
    source: str
    measured: Array
    predicted: Array
    low: Array
    high: Array
    dropped: int = 0

    def summary(self) -> Document:
        """Errors as fractions of the measured time; ``bias`` is the mean log of predicted over measured."""
        error = np.abs(self.predicted / self.measured - 1)
        ratio = self.measured / self.predicted
        mape = float(error.mean())
        covered = None if self.mode == "physics" else float(np.mean((ratio >= self.low) & (ratio <= self.high)))
        bar = BARS.get((self.suite, self.device, self.model, self.mode))
        held = None if covered is None else COVERAGE[0] <= covered <= COVERAGE[1]
        return {
            "suite": self.suite, "device": self.device, "model": self.model, "mode": self.mode,
            "source": self.source, "n": int(error.size), "dropped": self.dropped, "mape": mape,
            "bias": float(-np.log(ratio).mean()), "p90": float(np.quantile(error, 0.9)), "coverage90": covered,
            "bar": bar, "met": None if bar is None else mape <= bar, "coverage_met": held,
        }  # fmt: skip


def intervals_by_size(even: tuple[Array, Array], predicted: Array) -> tuple[Array, Array]:
    """Factors for ``predicted`` seconds from (measured, predicted) even rows, by quarter of predicted time."""
    edges = np.quantile(even[1], np.linspace(0, 1, QUARTERS + 1)[1:-1])
    at, ratio = np.searchsorted(edges, even[1]), even[0] / even[1]
    bounds = np.array([np.quantile(ratio[at == q], [0.05, 0.95]) for q in range(QUARTERS)])
    low, high = bounds[np.searchsorted(edges, predicted)].T
    return low, high


def _split(seconds: Array, predicted: Array) -> tuple[Array, Array, Array, Array]:
    """Odd rows of an estimate of all rows with the interval of its even rows: measured, predicted, low, high."""
    even, odd = slice(0, None, 2), slice(1, None, 2)
    low, high = intervals_by_size((seconds[even], predicted[even]), predicted[odd])
    return seconds[odd], predicted[odd], low, high


def _gemm(truth: Path, device: str) -> Iterator[Comparison]:
    rows, source = gemm.read_gemm(truth, device), "aiconfigurator, cuBLAS of vLLM"
    for mode, constants in (("calibrated", device), ("physics", OTHER[device])):
        seconds = gemm.predict(rows, gemm.CARDS[device], GEMM_CONSTANTS[constants], gemm.KERNELS[device])
        yield Comparison("gemm-bf16", device, "kernel", mode, source, *_split(rows.seconds, seconds), rows.dropped)
    yield _roofline("gemm-bf16", truth, device)


def _fp8(truth: Path, device: str) -> Iterator[Comparison]:
    rows = gemm.read_gemm(truth, device, "fp8")
    if device != "h100-sxm" or not rows.seconds.size:
        return
    seconds = gemm.predict_fp8(rows, gemm.CARDS[device], GEMM_CONSTANTS[device], tiled.HOPPER_FP8)
    source = "aiconfigurator, CUTLASS of vLLM"
    yield Comparison("gemm-fp8", device, "kernel", "calibrated", source, *_split(rows.seconds, seconds), rows.dropped)


def _attention(phase: str) -> Callable[[Path, str], Iterator[Comparison]]:
    constants = {"a100-80g-sxm": (flash.AMPERE, flash.FLASH2), "h100-sxm": (flash.HOPPER, flash.FLASH3)}

    def compare(truth: Path, device: str) -> Iterator[Comparison]:
        calls, source = attention.read_calls(truth, device, phase), "aiconfigurator, FlashAttention of vLLM"
        kernel = constants[device][1]
        for mode, whose in (("calibrated", device), ("physics", OTHER[device])):
            seconds = calls.predict(gemm.CARDS[device], constants[whose][0], kernel)
            split = _split(calls.seconds, seconds)
            yield Comparison(f"attention-{phase}", device, "kernel", mode, source, *split, calls.dropped)
        yield _roofline(f"attention-{phase}", truth, device)

    return compare


def _roofline(suite: str, truth: Path, device: str) -> Comparison:
    """The roofline with the catalogue's constants and intervals: what an estimate uses."""
    card, kernels = load_device(device), read_kernels(truth, device, suite)
    m, odd = card.model, kernels.half(odd=True)
    if suite.startswith("gemm"):
        family, shares = "matmul", (m.matmul_efficiency, m.memory_efficiency, m.launch)
    else:
        streams, launch = m.attention_memory_efficiency or m.memory_efficiency, m.attention_launch or m.launch
        family, shares = "attention", (m.attention_efficiency, streams, launch)
    predicted, compute = roofline.predict(odd, roofline.Constants(*(q.value for q in shares)), device)
    slow, fast = card.intervals[f"{family}_dram"], card.intervals[f"{family}_compute"]
    low = np.where(compute, fast.low.value, slow.low.value)
    high = np.where(compute, fast.high.value, slow.high.value)
    source = f"aiconfigurator, {odd.source}"
    return Comparison(
        suite, device, "roofline", "calibrated", source, odd.seconds, predicted, low, high, odd.dropped
    )  # fmt: skip


def _collectives(truth: Path, device: str) -> Iterator[Comparison]:
    table = collectives.read_collectives(truth, device)
    odd, interval = table.half(odd=True), load_device(device).intervals["network"]
    low, high = (np.full(odd.size.size, side.value) for side in (interval.low, interval.high))
    source = "aiconfigurator, NCCL and vLLM"
    yield Comparison(
        "all-reduce", device, "collectives", "calibrated", source, odd.seconds, collectives.predict(odd), low, high,
        table.dropped,
    )  # fmt: skip


def _layers(truth: Path, device: str) -> Iterator[Comparison]:
    if device != vector.DEVICE:
        return
    rows, interval = vector.read_vector(truth).half(odd=True), load_device(device).intervals["vector"]
    low, high = (np.full(rows.seconds.size, side.value) for side in (interval.low, interval.high))
    source = "Vidur, element-wise kernels of Llama layers"
    yield Comparison(
        "layers", device, "roofline", "calibrated", source, rows.seconds, vector.predict(rows), low, high,
        rows.dropped,
    )  # fmt: skip


SUITES: dict[str, Callable[[Path, str], Iterator[Comparison]]] = {
    "gemm-bf16": _gemm,
    "gemm-fp8": _fp8,
    "attention-prefill": _attention("prefill"),
    "attention-decode": _attention("decode"),
    "all-reduce": _collectives,
    "layers": _layers,
}


def validate(truth: Path, names: list[str]) -> tuple[list[Comparison], list[str]]:
    """Comparisons of the suites in ``names`` (all of them if empty), and why others were skipped.

    Raises ``InputError`` for an unknown suite, and when no table of any is under ``truth``.
    """
    for name in names:
        if name not in SUITES:
            raise unknown_name("suite", name, SUITES)
    found: list[Comparison] = []
    skipped: list[str] = []
    for name in names or SUITES:
        for device in FOLDERS:
            try:
                found.extend(SUITES[name](truth, device))
            except InputError as error:
                skipped.append(f"{name} on {device}: {error}")
    if not found:
        raise InputError(f"{truth}: no measurements of {', '.join(names or SUITES)} there; --truth names their folder")
    return found, skipped
