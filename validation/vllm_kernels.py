"""Constants of two cards from the kernels that vLLM runs on them: Llama-3.1-8B on RTX 4090 and RTX PRO 6000.

    python -m tokenfab.validation.vllm_kernels --truth DIR [-o FOLDER]

fits a few constants of each card on the even rows of its tables (:mod:`.vllm_tables`), prints what each bought on the
odd rows, and with ``-o`` writes the device files with them and their intervals. The tables have the shapes of one
model, so that few constants can be told apart: everything else stays what the file's architecture says.

    GEMM           dram_share, row_fade, depth_clocks, sustained; the clock (``compute.boost``) where products run
                   faster than :data:`PEAK` of the rate that the datasheet quotes
    attention      matrix_share, tile, launch, next_launch, dram_share; prefill, decoding and mixed calls weigh alike
    element-wise   launch, cache_share, cache_speedup; that rows pass in waves is not seen here, and goes

``before`` is the device file without what this module wrote: datasheet, libraries, its architecture's constants.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from ..errors import InputError
from ..files import write_whole
from ..hw import attention, elementwise, gemm
from ..hw.attention import FLASH2, attention_kernels
from ..hw.attention_mixed import mixed_parts
from ..hw.card import Card, card_of
from ..hw.devices import find_architecture, load_device, read_device
from ..hw.elementwise import elementwise_constants, elementwise_time
from ..hw.gemm import gemm_kernels, gemm_time
from ..hw.gpu import REASONS, reason_of_limit
from ..hw.sampler import sampler_time
from ..hw.spec import Device, parse_device
from .device_text import Entry, with_numbers, written
from .intervals import Errors, joined_errors, regimes
from .vllm_tables import (
    ELEMENTWISE,
    FOLDERS,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LINEAR,
    SAMPLER,
    VOCABULARY,
    Array,
    Batches,
    Layers,
    read_batches,
    read_layers,
    read_skewed,
)

MARK = "python -m tokenfab.validation.vllm_kernels"
"""In the source of every number that this module writes."""
PEAK = 0.97
"""Of the datasheet's matrix rate: no product of real size comes so near it at the clock it is quoted at."""
EACH = 600
"""Attention calls of each class that the fit looks at, evenly spaced."""
LEAST = 20
"""Even rows without which a regime gets no interval."""
SET = {
    "row_s": "assumed: that rows pass in waves does not show in",
    "row_bytes_per_clock": "assumed: that rows pass in waves does not show in",
    "stream_share": "assumed: as the DRAM share of attention, from",
    "row_share": "assumed: as the DRAM share of attention, from",
    "rotate_share": "assumed: as the DRAM share of attention, from",
}
"""Element-wise constants that are not fitted where L2 is modelled, and why they are what they are."""
NO_WAVES = {"row_s": 1e-12, "row_bytes_per_clock": 1e4}
"""Those with which waves of rows take no time."""


@dataclass(frozen=True)
class Model:
    """All that is fitted of a card: its clock, and the constants of three families of kernels."""

    card: Card
    gemm: gemm.GemmConstants
    attention: attention.AttentionConstants
    elementwise: elementwise.ElementwiseConstants


BOUNDS: dict[str, dict[str, tuple[float, float, str]]] = {
    "card": {"boost": (1.0, 1.25, "clock, over the one that the datasheet's rates are quoted at")},
    "gemm": gemm.BOUNDS | gemm.OPTIONAL,
    "attention": attention.BOUNDS | attention.OPTIONAL,
    "elementwise": elementwise.BOUNDS | elementwise.OPTIONAL,
}
"""Bounds and meaning by family."""
NAMES: dict[str, tuple[str, ...]] = {
    "gemm": ("dram_share", "row_fade", "depth_clocks", "sustained"),
    "attention": ("matrix_share", "launch_s", "tile_s", "next_launch_s", "dram_share"),
    "elementwise": ("launch_s", "cache_share", "cache_speedup"),
}
"""What is fitted, in the order in which it is added."""


@cache
def before(name: str) -> Device:
    """The device file ``name`` without the numbers of this module."""
    text, file = _plain(name)
    return parse_device(text.encode(), file, find_architecture)


def _plain(name: str) -> tuple[str, str]:
    """Text of the device file without the lines that this module writes (and sections they leave empty); its name."""
    data, file, _ = read_device(name)
    lines = [line for line in data.decode().split("\n") if MARK not in line]
    empty = [
        i for i, line in enumerate(lines)
        if line.startswith("[intervals.") and not "".join(lines[i + 1 : i + 2]).strip()
    ]  # fmt: skip
    kept = [line for i, line in enumerate(lines) if i not in empty and i - 1 not in empty]
    return "\n".join(kept).rstrip("\n") + "\n", file


def model_of(device: Device) -> Model:
    """The constants of a device file."""
    return Model(card_of(device), gemm_kernels(device)[0], attention_kernels(device)[0], elementwise_constants(device))


# -- what the models say of the tables --------------------------------------------------------------
def predict_linear(rows: Layers, model: Model, kernels: gemm.GemmKernels) -> tuple[Array, Any]:
    """Seconds of linear layers, and what bounds them (:data:`tokenfab.hw.gemm.LIMITS`)."""
    n, k = np.array([LINEAR[name] for name in rows.layer], float).T
    return gemm_time(rows.tokens, n, k, model.card, model.gemm, kernels)


def predict_elementwise(rows: Layers, model: Model) -> Array:
    """Seconds of the other layers of a dense table, and of the sampler."""
    out = np.full(rows.seconds.size, np.nan)
    for name, (kind, widths) in ELEMENTWISE.items():
        here = rows.layer == name
        each = [elementwise_time(kind, rows.tokens[here], w, model.card, model.elementwise) for w in widths]
        out[here] = np.mean(each, axis=0)
    here = rows.layer == SAMPLER
    out[here] = sampler_time(rows.tokens[here], VOCABULARY, model.card, model.elementwise)
    return out


def batch_parts(rows: Batches, model: Model, kernel: attention.Kernel = FLASH2) -> attention.AttentionParts:
    """Parts of attention calls."""
    return mixed_parts(
        rows.query[:, None], rows.prefix[:, None], rows.sequences, rows.context + 1, rows.longest + 1,
        HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM, model.card, model.attention, kernel,
    )  # fmt: skip


# -- fitting -----------------------------------------------------------------------------------------
def fitted(model: Model, family: str, names: tuple[str, ...], loss: Callable[[Model], float]) -> Model:
    """``model`` with the constants ``names`` of ``family`` that make ``loss`` least, within their bounds.

    Nelder–Mead on the logarithms, restarted twice, from the model's constants and from ones half way to their upper
    bounds: there are local minima.
    """
    bounds = {name: BOUNDS["card" if name == "boost" else family][name] for name in names}
    low, high = (np.log([max(b[i], 1e-9) for b in bounds.values()]) for i in (0, 1))
    own = [model.card.boost if name == "boost" else getattr(getattr(model, family), name) for name in names]

    def at(y: Array) -> Model:
        return changed(model, family, dict(zip(names, np.exp(y).tolist(), strict=True)))

    def bounded(y: Array) -> float:
        return loss(at(y)) if np.all((y >= low) & (y <= high)) else 1e9

    found = []
    first = np.clip(np.log(np.maximum(own, 1e-9)), low + 1e-3, high - 1e-3)
    for x in (first, (first + high) / 2):
        for _ in range(3):
            # A first simplex within the bounds, wide enough to leave a start that knows nothing.
            steps = np.where(x + 0.3 < high, 0.3, -0.3)
            simplex = np.clip(np.vstack([x, *(x + np.diag(steps))]), low, high)
            options = {"maxiter": 250 * x.size, "xatol": 1e-4, "fatol": 1e-6, "initial_simplex": simplex}
            result = minimize(bounded, x, method="Nelder-Mead", options=options)
            x = result.x
        found.append((float(result.fun), tuple(x)))
    return at(np.array(min(found)[1]))


def changed(model: Model, family: str, values: Mapping[str, float]) -> Model:
    """``model`` with other constants of ``family``, or another clock (``boost``)."""
    values = dict(values)
    card = model.card
    if "boost" in values:
        factor = values.pop("boost") / card.boost
        card = replace(
            card, boost=card.boost * factor, clock_hz=card.clock_hz * factor, matrix_flops=card.matrix_flops * factor
        )
    return replace(model, card=card, **{family: replace(getattr(model, family), **values)})


def _error(predicted: Array, seconds: Array) -> float:
    return float(np.mean(np.abs(np.log(predicted / seconds))))


def gemm_names(rows: Layers, card: Card) -> tuple[str, ...]:
    """Constants of GEMMs to fit; the clock among them where products are faster than it allows."""
    n, k = np.array([LINEAR[name] for name in rows.layer], float).T
    fastest = float((2 * rows.tokens * n * k / rows.seconds).max())
    return ("boost", *NAMES["gemm"]) if fastest > PEAK * card.matrix_flops / card.boost else NAMES["gemm"]


def losses(layers: Layers, batches: Batches, device: Device) -> dict[str, Callable[[Model], float]]:
    """Mean absolute logarithm of predicted over measured time by family; pass even rows."""
    linear, others, kernels = layers.of(tuple(LINEAR)), layers.of(tuple(ELEMENTWISE)), gemm_kernels(device)[1]
    parts = []
    for mask in batches.classes().values():
        rows = batches.pick(mask)
        count = rows.seconds.size
        parts.append(rows if count <= EACH else rows.pick(np.linspace(0, count - 1, EACH).astype(np.intp)))
    kernel = attention_kernels(device)[1]
    return {
        "gemm": lambda m: _error(predict_linear(linear, m, kernels)[0], linear.seconds),
        "attention": lambda m: float(np.mean([_error(batch_parts(p, m, kernel).seconds, p.seconds) for p in parts])),
        "elementwise": lambda m: _error(predict_elementwise(others, m), others.seconds),
    }


def ladder(truth: Path, name: str) -> Iterator[tuple[str, Model]]:
    """The device ``name`` fitted on the even rows of its tables, constant by constant: what was added, and the model.

    Each model is fitted anew, a family after the other; the last has everything.
    """
    device = before(name)
    layers, batches = read_layers(truth, name).half(odd=False), read_batches(truth, name).half(odd=False)
    model, loss = model_of(device), losses(layers, batches, device)
    yield "before", model
    for family, names in (NAMES | {"gemm": gemm_names(layers.of(tuple(LINEAR)), model.card)}).items():
        start = model
        if family == "elementwise":
            share = model.attention.dram_share
            known = NO_WAVES | dict.fromkeys(("stream_share", "row_share", "rotate_share"), share)
            start = changed(model, family, {"cache_share": 0.4, "cache_speedup": 3.0, "launch_s": 2e-6, **known})
        for count, constant in enumerate(names, 1):
            model = fitted(start, family, names[:count], loss[family])
            yield f"{family} {constant}", model


def fit(truth: Path, name: str) -> Model:
    """All constants of the device ``name`` fitted on the even rows of its tables."""
    return list(ladder(truth, name))[-1][1]


# -- errors ------------------------------------------------------------------------------------------
def errors(truth: Path, name: str, model: Model | None = None, *, odd: bool = True) -> dict[str, Errors]:
    """Measured over predicted time of the odd (or even) rows by suite; ``skewed`` was fitted by nobody.

    ``model``: constants, the device file's unless given.
    """
    device = load_device(name)
    model = model or model_of(device)
    layers, batches = read_layers(truth, name).half(odd), read_batches(truth, name).half(odd)
    found: dict[str, Errors] = {}
    rows = layers.of(tuple(LINEAR))
    seconds, limit = predict_linear(rows, model, gemm_kernels(device)[1])
    launch = model.gemm.launch_clocks / model.card.clock_hz
    found["linear"] = _errors(rows, seconds, regimes(reason_of_limit(limit), launch, seconds))
    for suite, names in (("elementwise", tuple(ELEMENTWISE)), ("sampler", (SAMPLER,))):
        rows = layers.of(names)
        seconds = predict_elementwise(rows, model)
        found[suite] = _errors(rows, seconds, np.full(seconds.size, "vector"))
    kinds = {kind: batches.pick(mask) for kind, mask in batches.classes().items()}
    for suite, calls in (kinds | {"skewed": read_skewed(truth, name).half(odd)}).items():
        parts = batch_parts(calls, model, attention_kernels(device)[1])
        reason = np.where(parts.compute > parts.memory, REASONS.index("compute"), REASONS.index("dram"))
        found[suite] = _errors(calls, parts.seconds, regimes(reason, parts.launch_s, parts.seconds))
    return found


def _errors(rows: Layers | Batches, predicted: Array, regime: Any) -> Errors:
    return Errors(rows.seconds / predicted, regime, rows.seconds, np.zeros(predicted.size))


def intervals(truth: Path, name: str, model: Model) -> dict[str, tuple[float, float, int, float | None]]:
    """By name of the device file's interval: 5 % and 95 % of measured over predicted time of the even rows, how many
    they are, and the share of the odd ones that these two hold."""
    even, odd = (errors(truth, name, model, odd=half) for half in (False, True))
    # An estimate has no mixed calls, and the table eighty for each of the others.
    families = {"matmul": ("linear",), "attention": ("prefill", "decode"), "vector": ("elementwise",)}
    found = {}
    for family, suites in families.items():
        parts, others = joined_errors([even[s] for s in suites]), joined_errors([odd[s] for s in suites])
        for regime, (low, high) in parts.quantiles().items():
            count = int(sum((even[s].regime == regime).sum() for s in suites))
            if count >= LEAST:
                low, high = min(round(low, 3), 1.0), max(round(high, 3), 1.0)
                here = others.ratio[others.regime == regime]
                held = float(np.mean((here >= low) & (here <= high))) if here.size else None
                found[family if family == "vector" else f"{family}_{regime}"] = (low, high, count, held)
    return found


# -- the device files --------------------------------------------------------------------------------
def device_text(truth: Path, name: str, model: Model) -> str:
    """The device file with the constants of ``model`` and their intervals."""
    text, file = _plain(name)
    start, numbers = model_of(before(name)), dict[str, Entry]()
    table = f"vLLM 0.19, Llama-3.1-8B, {FOLDERS[name]} (casys-kaist/LLMServingSim, commit 5daddb2)"
    found = errors(truth, name, model)
    shown = {
        "card": ("linear",), "gemm": ("linear",), "attention": ("prefill", "decode", "mixed"),
        "elementwise": ("elementwise",),
    }  # fmt: skip

    def source(family: str) -> str:
        wrong = ", ".join(f"{suite} {100 * mape(found[suite]):.1f} %" for suite in shown[family])
        return f"derived: fitted on even rows of kernels of {table}; odd rows MAPE {wrong}; {MARK}"

    if model.card.boost > start.card.boost:
        clock = round(model.card.clock_hz / 1e6)
        numbers["compute.boost"] = {"value": f"{clock} MHz", "source": source("card")}
    for family in ("gemm", "attention", "elementwise"):
        was, now = getattr(start, family), getattr(model, family)
        for field in vars(now):
            if getattr(was, field) != getattr(now, field):
                key = f"kernels.{family}.{field.removesuffix('_s')}"
                why = f"{SET[field]} kernels of {table}; {MARK}" if field in SET else source(family)
                numbers[key] = {"value": written(getattr(now, field), key)[0], "source": why}
    for regime, (low, high, count, held) in intervals(truth, name, model).items():
        share = "" if held is None else f", which hold {100 * held:.1f} % of the odd ones"
        why = f"derived: 5 % and 95 % of measured over predicted time of {count} even rows, {table}{share}; {MARK}"
        for side, value in (("low", low), ("high", high)):
            key = f"intervals.{regime}.{side}"
            numbers[key] = {"value": written(value, key)[0], "source": why}
    return with_numbers(text, numbers, file)


def mape(found: Errors) -> float:
    """Mean absolute error over measured time."""
    return float(np.mean(np.abs(1 / found.ratio - 1)))


def _line(found: Mapping[str, Errors]) -> str:
    return "  ".join(f"{suite} {mape(e):.1%} ({-np.log(e.ratio).mean():+.1%})" for suite, e in found.items())


def main() -> None:
    """Print what each constant buys, and write the device files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    parser.add_argument("-o", "--out", type=Path, help="folder for the device files")
    arguments = parser.parse_args()
    truth = Path(arguments.truth)
    if arguments.out and not arguments.out.is_dir():
        raise InputError(f"{arguments.out}: accepted: a folder")
    for name in FOLDERS:
        print(f"{name}, odd rows: MAPE (mean logarithm of predicted over measured)")
        for label, model in ladder(truth, name):
            print(f"  {label:28} {_line(errors(truth, name, model))}", flush=True)
        for family in NAMES:
            print(f"  {getattr(model, family)}")
        print(f"  clock {model.card.clock_hz / 1e6:.0f} MHz")
        for regime, (low, high, count, held) in intervals(truth, name, model).items():
            print(f"  {regime}: {low}..{high}, {count} even rows; holds {held:.1%} of the odd ones")
        if arguments.out:
            write_whole(arguments.out / f"{name}.toml", device_text(truth, name, model))


if __name__ == "__main__":
    main()
