"""Every suite of measurements against the models: what ``tokenfab validate`` prints.

A suite compares one model with one device's table. ``model`` is ``kernel`` or ``collectives`` (what an estimate
uses) or ``roofline`` (three constants per card, for comparison). ``mode`` says whose constants they are:
``calibrated``: this card's, fitted on the even rows; ``physics``: its datasheet with its architecture's, or, for a
card that was fitted itself, with the other architecture's: what to expect of a card nobody measured; ``run``:
calibrated, with the one number of a run that is fitted on its even rows; of ``requests`` the numbers of its engine,
with ``run_tokens`` and ``run_network`` for more of them (:mod:`.requests`); ``measured``: between two even rows of
the same shape a line (:mod:`.tables`), elsewhere the card's calibrated or physical model; ``library``: calibrated,
on kernels of a library that nobody fitted, with intervals to match (:mod:`.llmcompass`); ``unseen``: calibrated, on
calls of a sort that no constant was fitted on, with the intervals of kernels nobody measured. All errors are of the odd
rows, but of ``llmcompass``, where nothing is fitted, of all. All intervals are those that the catalogue gives an
estimate, but of 8-bit GEMMs, of lines, of mixed batches and of experts' kernels that no estimate uses: those are the
quantiles of their even rows, and the requests', widened by theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, unknown_name
from ..hw.card import card_of
from ..hw.cost import Errors as Composition
from ..hw.devices import load_device
from ..hw.gemm import gemm_kernels, gemm_kernels_8bit
from ..hw.moe import moe_kernels
from ..hw.spec import Interval
from ..workloads.expr_functions import Array
from . import (
    attention,
    collectives,
    engines,
    gemm,
    layers,
    llmcompass,
    moe,
    pim,
    requests,
    roofline,
    runs,
    vllm_steps,
    vllm_tables,
)  # fmt: skip
from .intervals import EXPERTS, Errors, attention_errors, gemm_errors, regimes, unmeasured
from .kernels import FOLDERS, MissingTableError, devices_in, read_kernels, table_path
from .part import Part
from .tables import Points, Table, attention_points, gemm_points

Document = dict[str, Any]
QUARTERS = 4
BROKEN = "cannot be read: "
"""How a line on a table begins that is there, and none."""
FEW = 20
"""Rows between others without which their quantiles are no interval."""
COVERAGE = (0.85, 0.95)
"""What a 90 % interval may cover and be called one."""
SCANT = 60
"""Rows below which a coverage is not judged: chance moves it by four points and more."""
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
    **{("moe", device, "kernel", "calibrated"): 0.15 for device in FOLDERS},
    **{
        (f"moe-{suite}", facts.device, "kernel", "calibrated"): 0.15
        for suite, facts in moe.SUITES.items()
        if facts.dtype != "bfloat16"
    },
    ("all-reduce", "a100-80g-sxm", "collectives", "calibrated"): 0.12,
    ("all-reduce", "h100-sxm", "collectives", "calibrated"): 0.12,
    ("layers", "a100-80g-sxm", "kernel", "run"): 0.10,
    ("prompt", "a100-80g-sxm", "kernel", "run"): 0.12,
    ("prompt", "h100-sxm", "kernel", "run"): 0.12,
    ("token", "a100-80g-sxm", "kernel", "run"): 0.12,
    ("token", "h100-sxm", "kernel", "run"): 0.12,
    ("engine", "a100-80g-sxm", "kernel", "run"): 0.10,
    ("engine", "h100-sxm", "kernel", "run"): 0.10,
    **{("serving-ttft", device, "kernel", "run"): 0.10 for device in runs.CARDS},
    **{(f"serving-{name}", device, "kernel", "run"): 0.05 for name in ("tpot", "e2e") for device in runs.CARDS},
    ("llmcompass-matmul", "a100-80g-sxm", "kernel", "library"): 0.07,
    **{(pim.SUITE, device, "kernel", "calibrated"): 0.03 for device in pim.DEVICES},
    **{
        (f"attention-{kind}", device, "kernel", "unseen" if kind == "skewed" else "calibrated"): 0.10
        for kind in ("prefill", "decode", "mixed", "skewed")
        for device in vllm_tables.FOLDERS
    },
    **{("layers", device, "kernel", "calibrated"): 0.10 for device in vllm_tables.FOLDERS},
}
"""Largest mean absolute percentage error that the project has promised itself."""
SAME_ARCHITECTURE = 0.09
"""The same of bf16 GEMMs on a card that was not fitted, but whose architecture was."""


@dataclass(frozen=True)
class Comparison:
    """One model on one table. Arrays of (N,) over the odd rows: seconds, and the interval's two factors.

    ``inside``: how many rows lie between measured ones, in the mode ``measured``.
    """

    suite: str
    device: str
    model: str
    mode: str
    source: str
    measured: Array
    predicted: Array
    low: Array | None = None
    high: Array | None = None
    dropped: int = 0
    inside: int | None = None

    def summary(self) -> Document:
        """Errors as fractions of the measured time; ``bias`` is the mean log of predicted over measured."""
        error = np.abs(self.predicted / self.measured - 1)
        ratio = self.measured / self.predicted
        mape = float(error.mean())
        covered = None
        if self.low is not None and self.high is not None:
            covered = float(np.mean((ratio >= self.low) & (ratio <= self.high)))
        bar = BARS.get((self.suite, self.device, self.model, self.mode))
        if bar is None and (self.suite, self.model, self.mode) == ("gemm-bf16", "kernel", "physics"):
            fitted = {load_device(d).architecture for d in FOLDERS}
            bar = SAME_ARCHITECTURE if load_device(self.device).architecture in fitted else 0.15
        wide = self.mode in ("physics", "library", "unseen") or (self.mode == "measured" and self.device not in FOLDERS)
        judged = covered is not None and not wide and error.size >= SCANT
        held = COVERAGE[0] <= covered <= COVERAGE[1] if judged and covered is not None else None
        return {
            "suite": self.suite, "device": self.device, "model": self.model, "mode": self.mode,
            "source": self.source, "n": int(error.size), "dropped": self.dropped, "mape": mape,
            "bias": float(-np.log(ratio).mean()), "p90": float(np.quantile(error, 0.9)), "coverage90": covered,
            "bar": bar, "met": None if bar is None else mape <= bar, "coverage_met": held,
            "inside": self.inside,
        }  # fmt: skip


def intervals_by_size(even: tuple[Array, Array], predicted: Array) -> tuple[Array, Array]:
    """Factors for ``predicted`` seconds from (measured, predicted) even rows, by quarter of predicted time."""
    edges = np.quantile(even[1], np.linspace(0, 1, QUARTERS + 1)[1:-1])
    at, ratio = np.searchsorted(edges, even[1]), even[0] / even[1]
    bounds = np.array([np.quantile(ratio[at == q], [0.05, 0.95]) for q in range(QUARTERS)])
    low, high = bounds[np.searchsorted(edges, predicted)].T
    return low, high


def modes(device: str) -> list[tuple[str, str]]:
    """Modes in which ``device`` is compared, and the device whose constants each takes."""
    if device in FOLDERS:
        return [("calibrated", device), ("physics", OTHER[device])]
    return [("physics", device)]


def intervals_of(device: str, mode: str) -> dict[str, Interval]:
    """The intervals that an estimate on ``device`` has, or would have had nobody measured it."""
    return unmeasured() if mode == "physics" else load_device(device).intervals


def factors(held: dict[str, Interval], regime: list[str]) -> tuple[Array, Array]:
    """Low and high factors of rows by the name of their interval."""
    low, high = np.array([(held[name].low.value, held[name].high.value) for name in regime]).T
    return low, high


def _source(table: Path) -> str:
    return f"aiconfigurator, {table.parent.name}/{table.name}"


def _errors(suite: str, device: str, mode: str, source: str, family: str, errors: Errors) -> Comparison:
    odd = errors.half(odd=True)
    if not odd.seconds.size:
        raise MissingTableError(f"{source}: fewer than two rows of {suite} that can be true")
    low, high = factors(intervals_of(device, mode), [f"{family}_{name}" for name in odd.regime])
    predicted = odd.seconds / odd.ratio
    return Comparison(suite, device, "kernel", mode, source, odd.seconds, predicted, low, high, errors.dropped)


def _between(own: Comparison, table: Table, points: Points) -> Comparison:
    """Mode ``measured``: lines of ``table`` at ``points``, the odd rows, and ``own``, the model, elsewhere."""
    line, inside = table.seconds(points)
    measured, left_out = table.left_out()
    assert own.low is not None
    assert own.high is not None
    low, high = own.low, own.high
    if measured.size >= FEW:
        sides = np.quantile(measured / left_out, [0.05, 0.95])
        low, high = np.where(inside, sides[0], low), np.where(inside, sides[1], high)
    predicted = np.where(inside, line, own.predicted)
    return replace(own, mode="measured", predicted=predicted, low=low, high=high, inside=int(inside.sum()))


def _gemm(truth: Path, device: str) -> Iterator[Comparison]:
    source = _source(table_path(truth, device, "gemm", "gemm_perf.csv.gz"))
    for mode, whose in modes(device):
        errors = gemm_errors(truth, device, whose)
        yield (own := _errors("gemm-bf16", device, mode, source, "matmul", errors))
        if whose == device:
            rows = gemm.read_gemm(truth, device)
            even, odd = rows.rows(slice(0, None, 2)), rows.rows(slice(1, None, 2))
            yield _between(own, Table(gemm_points(even), even.seconds), gemm_points(odd))
    yield _roofline("gemm-bf16", truth, device)


def _fp8(truth: Path, device: str) -> Iterator[Comparison]:
    rows = gemm.read_gemm(truth, device, "fp8")
    if not rows.seconds.size:
        return
    held, source = load_device(device), _source(table_path(truth, device, "gemm", "gemm_perf.csv.gz"))
    eight, kernels = gemm_kernels_8bit(held)
    seconds = gemm.predict_fp8(rows, card_of(held), gemm_kernels(held)[0], eight, kernels)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    low, high = intervals_by_size((rows.seconds[even], seconds[even]), seconds[odd])
    mode = "calibrated" if device in FOLDERS else "physics"
    sides = (low, high) if mode == "calibrated" else (None, None)
    yield Comparison(
        "gemm-fp8", device, "kernel", mode, source, rows.seconds[odd], seconds[odd],
        sides[0], sides[1], rows.dropped,
    )  # fmt: skip


def _attention(phase: str) -> Callable[[Path, str], Iterator[Comparison]]:
    def compare(truth: Path, device: str) -> Iterator[Comparison]:
        suite = f"attention-{phase}"
        source = _source(table_path(truth, device, "attention", attention.FILES[phase]))
        for mode, whose in modes(device):
            errors = attention_errors(truth, device, whose, phase)
            yield (own := _errors(suite, device, mode, source, "attention", errors))
            if whose == device:
                calls = attention.read_calls(truth, device, phase)
                even, odd = calls.half(odd=False), calls.half(odd=True)
                yield _between(own, Table(attention_points(even), even.seconds), attention_points(odd))
        yield _roofline(suite, truth, device)

    return compare


def _roofline(suite: str, truth: Path, device: str) -> Comparison:
    """The roofline with the catalogue's constants, which the kernel models are to beat."""
    kernels = read_kernels(truth, device, suite)
    m, odd = load_device(device).model, kernels.half(odd=True)
    if suite.startswith("gemm"):
        shares = (m.matmul_efficiency, m.memory_efficiency, m.launch)
    else:
        streams, launch = m.attention_memory_efficiency or m.memory_efficiency, m.attention_launch or m.launch
        shares = (m.attention_efficiency, streams, launch)
    predicted, _ = roofline.predict(odd, roofline.Constants(*(q.value for q in shares)), device)
    mode = "calibrated" if device in FOLDERS else "physics"
    source = f"aiconfigurator, {odd.source}"
    return Comparison(suite, device, "roofline", mode, source, odd.seconds, predicted, dropped=odd.dropped)


def _moe(truth: Path, device: str) -> Iterator[Comparison]:
    """Fused experts: every kernel of the device's own table; of a card nobody measured the 16-bit one."""
    source = _source(table_path(truth, device, "moe", "moe_perf.csv.gz"))
    fitted = device in FOLDERS
    for suite, facts in moe.SUITES.items():
        if (fitted and facts.device != device) or (not fitted and facts.dtype != "bfloat16"):
            continue
        rows = moe.read_moe(truth, suite, device)
        if rows.seconds.size < 2:
            continue
        even, odd = rows.rows(slice(0, None, 2)), rows.rows(slice(1, None, 2))
        name = "moe" if facts.dtype == "bfloat16" else f"moe-{suite}"
        for mode, whose in modes(device):
            if (mode, facts.dtype) not in (("calibrated", facts.dtype), ("physics", "bfloat16")):
                continue  # of other types there is one card's
            constants = facts.constants if mode == "calibrated" else moe_kernels(load_device(whose))[0]
            predicted = moe.predict(odd, suite, constants, device)
            if suite in EXPERTS:
                low, high = factors(intervals_of(device, mode), [EXPERTS[suite]] * predicted.size)
            else:
                low, high = intervals_by_size((even.seconds, moe.predict(even, suite)), predicted)
            yield Comparison(name, device, "kernel", mode, source, odd.seconds, predicted, low, high, rows.dropped)


def _collectives(truth: Path, device: str) -> Iterator[Comparison]:
    table = collectives.read_collectives(truth, device)
    odd = table.half(odd=True)
    low, high = factors(load_device(device).intervals, ["network"] * odd.size.size)
    mode = "calibrated" if device in FOLDERS else "physics"
    yield Comparison(
        "all-reduce", device, "collectives", mode, "aiconfigurator, NCCL and vLLM", odd.seconds,
        collectives.predict(odd), low, high, table.dropped,
    )  # fmt: skip


def _layers(truth: Path, device: str) -> Iterator[Comparison]:
    """Each kernel of Vidur's layers, and whole layers with their composed interval."""
    if device != layers.DEVICE:
        return
    rows, held = layers.read_layers(truth), load_device(device)
    sustained, odd = layers.fit_sustained(rows.half(odd=False)), rows.half(odd=True)
    source = "Vidur, kernels of Llama layers"
    for mode, rate in (("calibrated", None), ("run", sustained)):
        seconds, reason, launch = layers.predict_bound(odd, sustained=rate)
        named = np.where(odd.linear, np.char.add("matmul_", regimes(reason, launch, seconds)), "vector")
        low, high = factors(held.intervals, list(named))
        yield Comparison("layers", device, "kernel", mode, source, odd.seconds, seconds, low, high, odd.dropped)
        yield _whole(odd, seconds, low, high, mode, source)


def _whole(rows: layers.Measured, seconds: Array, low: Array, high: Array, mode: str, source: str) -> Comparison:
    held = load_device(layers.DEVICE).model
    assert held.correlation is not None
    assert held.correlation_across is not None
    families = tuple("matmul" if name in layers.LINEAR else "vector" for name in layers.NAMES)
    together = Composition(families, held.correlation.value, held.correlation_across.value)
    total, place = layers.layer_sums(rows, seconds)
    order = np.array([layers.NAMES.index(name) for name in rows.name])
    sides = []
    for half in (seconds * (1 - low), seconds * (high - 1)):
        table = np.zeros((len(layers.NAMES), total.size))
        table[order[place >= 0], place[place >= 0]] = half[place >= 0]
        sides.append(together.compose(table))
    measured = layers.layer_sums(rows, rows.seconds)[0]
    return Comparison(
        "whole-layers", layers.DEVICE, "kernel", mode, source, measured, total,
        1 - sides[0] / total, 1 + sides[1] / total, rows.dropped,
    )  # fmt: skip


def _parts(compare: Callable[[Path, str], Iterator[Part]], source: str) -> Callable[[Path, str], Iterator[Comparison]]:
    def compared(truth: Path, device: str) -> Iterator[Comparison]:
        for p in compare(truth, device):
            arrays = (p.measured, p.predicted, p.low, p.high)
            yield Comparison(p.suite, device, "kernel", p.mode, source, *arrays, p.dropped)

    return compared


SUITES: dict[str, Callable[[Path, str], Iterator[Comparison]]] = {
    "gemm-bf16": _gemm,
    "gemm-fp8": _fp8,
    "attention-prefill": _attention("prefill"),
    "attention-decode": _attention("decode"),
    "moe": _moe,
    "all-reduce": _collectives,
    "layers": _layers,
    "requests": _parts(requests.compare, "Splitwise, requests of Llama-2-70B"),
    "engine": _parts(engines.compare, "Splitwise, batches of Llama-2-70B to their last token"),
    "serving": _parts(runs.compare, "LLMServingSim, runs of vLLM 0.19, 300 requests each"),
    "attention-mixed": _parts(vllm_steps.compare_calls("mixed"), "vLLM 0.19, kernels of Llama-3.1-8B"),
    "attention-skewed": _parts(vllm_steps.compare_calls("skewed"), "vLLM 0.19, kernels of Llama-3.1-8B"),
    "llmcompass": _parts(llmcompass.compare, "LLMCompass, operators called one by one, all rows"),
    pim.SUITE: _parts(pim.compare, "AttAcc's simulator, cycle-level runs of HBM3 with PIM commands"),
}
OWN_DEVICES = {
    pim.SUITE: pim.DEVICES,
    "serving": tuple(runs.CARDS),
    "attention-mixed": tuple(vllm_tables.FOLDERS),
    "attention-skewed": tuple(vllm_tables.FOLDERS),
}
"""Suites whose tables are not of the cards under ``aiconfigurator/``, and the devices they are of."""
VLLM = "vLLM 0.19, kernels of Llama-3.1-8B"
ALSO: dict[str, Callable[[Path, str], Iterator[Comparison]]] = {
    "attention-prefill": _parts(vllm_steps.compare_calls("prefill"), VLLM),
    "attention-decode": _parts(vllm_steps.compare_calls("decode"), VLLM),
    "layers": _parts(vllm_steps.compare_layers, VLLM),
}
"""What the suites compare besides where :mod:`.vllm_tables` has tables of a card."""


def validate(truth: Path, names: list[str]) -> tuple[list[Comparison], list[str]]:
    """Comparisons of the suites in ``names`` (all of them if empty), and why others were skipped.

    A table that cannot be read is among the latter, first, and begins with :data:`BROKEN`. Raises ``InputError`` for
    an unknown suite, and when no table of any is under ``truth``.
    """
    for name in names:
        if name not in SUITES:
            raise unknown_name("suite", name, SUITES)
    found: list[Comparison] = []
    skipped: list[str] = []
    broken: list[str] = []
    devices, unknown = devices_in(truth)
    skipped += [f"aiconfigurator/{folder}: no device of that name in the catalogue" for folder in unknown]
    for name in names or SUITES:
        of_vllm = vllm_tables.devices_there(truth) if name in ALSO else []
        asked = [(SUITES[name], device) for device in OWN_DEVICES.get(name, devices)]
        for compare, device in [*asked, *((ALSO[name], device) for device in of_vllm)]:
            try:
                found.extend(compare(truth, device))
            except MissingTableError as error:
                skipped.append(f"{name} on {device}: {error}")
            except InputError as error:
                broken.append(f"{BROKEN}{error}")
    if not found:
        others = f"; of no device of the catalogue: {', '.join(unknown)}" if unknown else ""
        nothing = f"{truth}: no measurements of {', '.join(names or SUITES)} there{others}; --truth names their folder"
        raise InputError(broken[0].removeprefix(BROKEN) if broken else nothing)
    return found, [*dict.fromkeys(broken), *skipped]
