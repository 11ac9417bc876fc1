"""The roofline's constants and intervals, earned on measured kernels.

Constants are fitted on the even rows of the tables, everything reported is from the odd rows:

    python -m tokenfab.validation.roofline --truth DIR

prints, per suite, fitting card and reporting card, the error and the 5 % and 95 % quantiles of
measured over predicted time. The diagonal (fitted and reported on one card) gives a measured card's
interval, the rest that of a card nobody measured.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from ..hw.devices import load_device
from ..workloads.expr_functions import Array
from .kernels import FOLDERS, Kernels, joined, read_kernels

FAMILIES = {"matmul": ["gemm-bf16"], "attention": ["attention-prefill", "attention-decode"]}
"""Operator families with constants of their own, and the suites they are fitted on."""


@dataclass(frozen=True)
class Constants:
    """Achievable share of compute and of DRAM bandwidth, and launch time in seconds."""

    compute: float
    memory: float
    launch_s: float


@dataclass(frozen=True)
class Residuals:
    """Of measured over predicted: mean absolute percentage error, and quantiles by what bound the row."""

    n: int
    mape: float
    quantiles: dict[str, tuple[float, float, int]]


_card = cache(load_device)


def predict(kernels: Kernels, constants: Constants, device: str) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Seconds of each kernel on ``device`` under the roofline, and whether compute bound it."""
    card = _card(device)
    compute = kernels.flops / (card.rate("bf16")[1].value * constants.compute)
    memory = kernels.bytes / (card.dram.bandwidth.value * constants.memory)
    return constants.launch_s + np.maximum(compute, memory), compute >= memory


def fit(kernels: Kernels, device: str) -> Constants:
    """Constants that minimise the mean absolute log error on ``kernels`` (pass the even half)."""

    def loss(x: Array) -> float:
        constants = Constants(float(x[0]), float(x[1]), float(x[2]) * 1e-6)
        if not (0.05 < constants.compute <= 1 and 0.05 < constants.memory <= 1 and 0 < constants.launch_s < 1e-4):
            return 1e9
        return float(np.mean(np.abs(np.log(predict(kernels, constants, device)[0] / kernels.seconds))))

    starts = ([0.8, 0.8, 3.0], [0.6, 0.5, 8.0])
    best = min(
        (minimize(loss, s, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-6}) for s in starts),
        key=lambda r: r.fun,
    )
    return Constants(float(best.x[0]), float(best.x[1]), float(best.x[2]) * 1e-6)


def residuals(kernels: Kernels, constants: Constants, device: str) -> Residuals:
    """Errors of ``constants`` on ``kernels`` (pass the odd half)."""
    predicted, compute_bound = predict(kernels, constants, device)
    ratio = kernels.seconds / predicted
    quantiles = {}
    for name, mask in (("compute", compute_bound), ("dram", ~compute_bound)):
        if mask.any():
            low, high = np.quantile(ratio[mask], [0.05, 0.95])
            quantiles[name] = (float(low), float(high), int(mask.sum()))
    return Residuals(ratio.size, float(np.mean(np.abs(1 / ratio - 1))), quantiles)


def main() -> None:
    """Print the table that the catalogue's ``[model]`` and ``[intervals]`` cite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    for family, suites in FAMILIES.items():
        halves = {card: [read_kernels(truth, card, s) for s in suites] for card in FOLDERS}
        fitted = {card: fit(joined([k.half(odd=False) for k in parts], family), card) for card, parts in halves.items()}
        for card, c in fitted.items():
            constants = f"compute {c.compute:.3f} memory {c.memory:.3f} launch {c.launch_s * 1e6:.2f} us"
            print(f"{family}: fitted on {card}: {constants}")
            for other, parts in halves.items():
                for kernels in [k.half(odd=True) for k in parts] + [joined([k.half(odd=True) for k in parts], family)]:
                    r = residuals(kernels, c, other)
                    spread = "; ".join(
                        f"{b}-bound {lo:.3f}..{hi:.3f} (n={n})" for b, (lo, hi, n) in r.quantiles.items()
                    )
                    print(f"    {kernels.suite} on {other}: n={r.n} MAPE {r.mape:.1%}; 5..95 %: {spread}")


if __name__ == "__main__":
    main()
