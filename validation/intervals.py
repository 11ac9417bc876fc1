"""The 90 % intervals of GPU estimates, and how errors of kernels go together: what the catalogue states.

    python -m tokenfab.validation.intervals --truth DIR

A regime is an operator family and what binds the kernel (``compute``, ``dram`` and the other memory limits, or
``small``: its start is more than a quarter of its time), or, of experts, the kernel. Constants are those of the
device files; quantiles, 5 % and 95 % of measured over predicted time, are of the even rows, and the coverage
printed beside them is of the odd ones. The A100's GEMMs are pooled with the linear layers of a second A100, which
throttled (:mod:`.layers`): whether a card will is not known beforehand. A card nobody measured takes what the
constants of one card leave on the other, the wider of both directions. The correlation is that of log errors of
GEMMs with the same m and another n or k.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..hw.attention import AttentionConstants, attention_kernels, attention_parts
from ..hw.card import card_of
from ..hw.devices import find_architecture, load_device
from ..hw.gemm import GemmConstants, gemm_kernels, gemm_time
from ..hw.gpu import REASONS, SMALL, reason_of_limit
from ..hw.moe import MoeConstants
from ..hw.spec import Device, Interval, parse_architecture
from . import attention, gemm, layers, moe
from .kernels import COPIES, FOLDERS

Array = npt.NDArray[np.float64]
Words = npt.NDArray[np.str_]

NAMES = ("ratio", "regime", "seconds", "group")
EXPERTS = {
    "bf16-a100": "experts", "bf16-h100": "experts", "fp8-block-triton": "experts_8bit", "int4-marlin": "experts_4bit",
}  # fmt: skip
"""Suites of :mod:`.moe` whose kernels an estimate uses, and the name of their interval."""
LAYER_LIKE = 1024
"""Least n and k of the weights whose errors' correlation is measured."""


@dataclass(frozen=True)
class Errors:
    """Kernels of one family: measured over predicted time, regime, seconds, and what groups them (m)."""

    ratio: Array
    regime: Words
    seconds: Array
    group: Array
    dropped: int = 0

    def half(self, odd: bool) -> Errors:
        """Even rows or odd rows."""
        pick = slice(1 if odd else 0, None, 2)
        return Errors(self.ratio[pick], self.regime[pick], self.seconds[pick], self.group[pick])

    def quantiles(self) -> dict[str, tuple[float, float]]:
        """5 % and 95 % quantile by regime."""
        found = {}
        for name in np.unique(self.regime):
            low, high = np.quantile(self.ratio[self.regime == name], [0.05, 0.95])
            found[str(name)] = (float(low), float(high))
        return found

    def coverage(self, bounds: dict[str, tuple[float, float]]) -> float:
        """Share of the rows that ``bounds`` hold."""
        low, high = (np.array([bounds[r][i] for r in self.regime]) for i in (0, 1))
        return float(np.mean((self.ratio >= low) & (self.ratio <= high)))


def regimes(reason: npt.NDArray[np.intp], launch_s: float | Array, seconds: Array) -> Words:
    """Regime of kernels by index into :data:`tokenfab.hw.gpu.REASONS` of what binds them."""
    compute = reason == REASONS.index("compute")
    return np.where(launch_s > SMALL * seconds, "small", np.where(compute, "compute", "dram"))


def errors_of_gemms(rows: gemm.Measured, device: Device, constants: GemmConstants | None = None) -> Errors:
    """16-bit GEMMs, layer-like ones grouped by m; ``constants`` are the device's unless given."""
    own, kernels = gemm_kernels(device)
    c, card = constants or own, card_of(device)
    seconds, limit = gemm_time(rows.m, rows.n, rows.k, card, c, kernels, copies=COPIES)
    regime = regimes(reason_of_limit(limit), c.launch_clocks / card.clock_hz, seconds)
    layer_like = (rows.n >= LAYER_LIKE) & (rows.k >= LAYER_LIKE)
    return Errors(rows.seconds / seconds, regime, rows.seconds, np.where(layer_like, rows.m, 0), rows.dropped)


def errors_of_calls(calls: attention.Calls, device: Device, constants: AttentionConstants | None = None) -> Errors:
    """Attention over a 16-bit cache; ``constants`` are the device's unless given."""
    own, kernel = attention_kernels(device)
    parts = attention_parts(
        calls.batch, 1.0 if calls.phase == "decode" else calls.query, calls.kv, calls.heads, calls.kv_heads,
        calls.head_dim, calls.head_dim, card_of(device), constants or own, kernel, warm=True,
    )  # fmt: skip
    seconds = np.asarray(parts.seconds)
    reason = np.where(parts.compute > parts.memory, REASONS.index("compute"), REASONS.index("dram"))
    regime = regimes(reason, parts.launch_s, seconds)
    return Errors(calls.seconds / seconds, regime, calls.seconds, np.zeros(seconds.size), calls.dropped)


def gemm_errors(truth: Path, device: str, constants_of: str, dtype: str = "bfloat16") -> Errors:
    """16-bit GEMMs on ``device`` with the constants of the device ``constants_of``."""
    rows, constants = gemm.read_gemm(truth, device, dtype), gemm_kernels(load_device(constants_of))[0]
    return errors_of_gemms(rows, load_device(device), constants)


def attention_errors(truth: Path, device: str, constants_of: str, phase: str) -> Errors:
    """Attention of ``phase`` over a 16-bit cache on ``device`` with the constants of ``constants_of``."""
    calls, constants = attention.read_calls(truth, device, phase), attention_kernels(load_device(constants_of))[0]
    return errors_of_calls(calls, load_device(device), constants)


def joined_errors(parts: list[Errors]) -> Errors:
    """All rows of several sources."""
    arrays = [np.concatenate([getattr(p, name) for p in parts]) for name in NAMES]
    return Errors(arrays[0], arrays[1], arrays[2], arrays[3])


def experts_errors(truth: Path, suite: str, constants: MoeConstants | None = None) -> Errors:
    """Fused experts of a suite of :mod:`.moe` with its constants, or others; one regime, :data:`EXPERTS`."""
    rows = moe.read_moe(truth, suite)
    seconds = moe.predict(rows, suite, constants)
    regime = np.full(seconds.size, EXPERTS.get(suite, "experts"))
    return Errors(rows.seconds / seconds, regime, rows.seconds, np.zeros(seconds.size), rows.dropped)


def pooled(parts: list[Errors]) -> Errors:
    """Rows of several sources, evenly picked so that each has the weight of the largest."""
    most = max(p.ratio.size for p in parts)
    picks = [np.linspace(0, p.ratio.size - 1, most).astype(int) for p in parts]
    arrays = [np.concatenate([getattr(p, n)[i] for p, i in zip(parts, picks, strict=True)]) for n in NAMES]
    return Errors(arrays[0], arrays[1], arrays[2], arrays[3])


def layer_errors(truth: Path, *, odd: bool) -> Errors:
    """Linear layers of the tables of :mod:`.layers`, of odd or even table rows, with the device file's constants."""
    rows = layers.read_layers(truth)
    rows = rows.pick(rows.linear & (rows.row % 2 == odd))
    seconds, reason, launch = layers.predict_bound(rows)
    return Errors(rows.seconds / seconds, regimes(reason, launch, seconds), rows.seconds, np.zeros(seconds.size))


def earned(truth: Path, device: str, family: str, errors: Errors) -> dict[str, tuple[float, float]]:
    """Quantiles by regime of a measured card: of all sources that have its kernels, alike."""
    even = errors.half(odd=False)
    if (device, family) == (layers.DEVICE, "matmul"):
        even = pooled([even, layer_errors(truth, odd=False)])
    return even.quantiles()


def correlation(errors: Errors) -> float:
    """Of log errors of different kernels of one group: mean product of pairs over the mean square."""
    log, pairs, products = np.log(errors.ratio), 0.0, 0.0
    here = errors.group > 0
    for name in np.unique(errors.group[here]):
        x = log[errors.group == name]
        pairs += x.size * (x.size - 1)
        products += float(x.sum() ** 2 - (x**2).sum())
    return products / pairs / float((log[here] ** 2).mean()) if pairs else 0.0


@cache
def unmeasured() -> dict[str, Interval]:
    """Intervals of kernels nobody measured, by regime."""
    held: dict[str, dict[str, Any]] = {}
    data = find_architecture("default")
    for key, quantity in parse_architecture(data[1], data[0], "default").items():
        if key.startswith("intervals."):
            _, regime, side = key.split(".")
            held.setdefault(regime, {})[side] = quantity
    return {regime: Interval(**sides) for regime, sides in held.items()}


def both(truth: Path, device: str, constants_of: str) -> dict[str, Errors]:
    """Errors by family."""
    phases = [attention_errors(truth, device, constants_of, phase) for phase in ("prefill", "decode")]
    return {
        "matmul": gemm_errors(truth, device, constants_of),
        "attention": joined_errors(phases),
    }


def main() -> None:
    """Print the catalogue's numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    for card in FOLDERS:
        for source in FOLDERS:
            for family, errors in both(truth, card, source).items():
                own = card == source
                found = earned(truth, card, family, errors) if own else errors.half(odd=False).quantiles()
                odd = errors.half(odd=True)
                spread = "; ".join(f"{name} {low:.3f}..{high:.3f}" for name, (low, high) in found.items())
                mape = np.mean(np.abs(1 / odd.ratio - 1))
                together = f"; correlation {correlation(errors.half(odd=False)):.2f}" if family == "matmul" else ""
                print(
                    f"{family} on {card}, constants of {source}: MAPE {mape:.1%}, coverage "
                    f"{odd.coverage(found):.1%}; {spread}{together}"
                )
    pair = ("bf16-a100", "bf16-h100")
    cases = [*((suite, suite) for suite in EXPERTS), pair, pair[::-1]]
    for suite, source in cases:
        errors = experts_errors(truth, suite, moe.SUITES[source].constants)
        found = errors.half(odd=False).quantiles()
        odd = errors.half(odd=True)
        spread = "; ".join(f"{name} {low:.3f}..{high:.3f}" for name, (low, high) in found.items())
        error = np.mean(np.abs(1 / odd.ratio - 1))
        print(f"{suite}, constants of {source}: MAPE {error:.1%}, coverage {odd.coverage(found):.1%}; {spread}")


if __name__ == "__main__":
    main()
