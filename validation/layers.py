"""Kernels of real layers, and whole layers, against the models; the constants of element-wise kernels.

    python -m tokenfab.validation.layers --truth DIR

Reads ``TRUTH/vidur/profiling/compute/a100/*/*/mlp.csv.gz`` (see the NOTES.md there): the four linear layers,
norms, rotary embedding, gated activation and residual add of Llama models on an A100-80G, 1 to 16,384 tokens,
1, 2, 4 and 8 devices, timed alone and in whole microseconds. Fitted on even rows of each table: the constants
of element-wise kernels, and one number of this run, the share of the matrix rate that its card sustained
(``sustained``; it throttled, the card of the GEMM tables did not). GEMM constants are those of the device file.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar

from ..hw.card import card_of
from ..hw.devices import load_device
from ..hw.elementwise import BOUNDS, ElementwiseConstants, elementwise_constants, elementwise_time
from ..hw.gemm import gemm_kernels, gemm_time
from ..hw.gpu import REASONS, reason_of_limit
from .kernels import MissingTableError

Array = npt.NDArray[np.float64]

DEVICE = "a100-80g-sxm"
CARD = card_of(load_device(DEVICE))
FLOAT16 = 2
"""Bytes per element of the tables."""
THROTTLE_S = 1e-4
"""Arithmetic longer than this runs at the sustained rate (as fitted on the H100: 0.2 ms)."""
LINEAR = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
ELEMENTWISE = {
    "input_layernorm": "norm", "post_attention_layernorm": "norm", "attn_rope": "rope", "mlp_act": "activation",
    "add": "elementwise",
}  # fmt: skip
"""Kernels of the tables and their operator kind."""
NAMES = (*LINEAR, *ELEMENTWISE)


@dataclass(frozen=True)
class Measured:
    """Kernels: model, row of its table, operator, tokens; n and k of linear layers (bytes per token and 0 of
    the others), seconds; (N,) each. Times of zero were ``dropped``."""

    model: npt.NDArray[np.str_]
    row: Array
    name: npt.NDArray[np.str_]
    tokens: Array
    n: Array
    k: Array
    seconds: Array
    dropped: int = 0

    def pick(self, where: npt.NDArray[np.bool_]) -> Measured:
        """Some of the kernels."""
        arrays = {f.name: getattr(self, f.name)[where] for f in fields(self) if f.name != "dropped"}
        return Measured(**arrays, dropped=self.dropped)

    def half(self, odd: bool) -> Measured:
        """Kernels of even table rows (to fit on) or of odd ones (to report)."""
        return self.pick(self.row % 2 == odd)

    @property
    def linear(self) -> npt.NDArray[np.bool_]:
        """Which are GEMMs."""
        return self.k > 0


def read_layers(truth: Path) -> Measured:
    """Every kernel of the tables. Raises ``InputError`` when there are none under ``truth``."""
    folder = truth / "vidur" / "profiling" / "compute" / "a100"
    paths = sorted(folder.glob("*/*/mlp.csv.gz"))
    if not paths:
        raise MissingTableError(f"{folder}: no */*/mlp.csv.gz there; --truth names the folder of measurements")
    rows, dropped = [], 0
    for path in paths:
        with gzip.open(path, "rt", newline="") as file:
            for i, row in enumerate(csv.DictReader(file)):
                for name, (wide, deep) in _sizes(row).items():
                    took = float(row.get(f"time_stats.{name}.median") or 0) / 1e3
                    if took > 0:
                        rows.append((path.parent.name, i, name, float(row["num_tokens"]), wide, deep, took))
                    else:
                        dropped += 1
    model, index, names, tokens, n, k, seconds = (np.array(column) for column in zip(*rows, strict=True))
    return Measured(model, index, names, tokens, n.astype(float), k.astype(float), seconds, dropped)


def _sizes(row: dict[str, str]) -> dict[str, tuple[float, float]]:
    """n and k of linear layers, bytes per token and 0 of other kernels, on one of the row's devices."""
    hidden, inner = int(row["n_embd"]), int(row["n_expanded_embd"])
    devices, kv_share = int(row["num_tensor_parallel_workers"]), int(row["n_kv_head"]) / int(row["n_head"])
    return {
        "attn_pre_proj": (hidden * (1 + 2 * kv_share) / devices, hidden),
        "attn_post_proj": (hidden, hidden / devices),
        "mlp_up_proj": (2 * inner / devices, hidden),  # gate and up in one
        "mlp_down_proj": (hidden, inner / devices),
        "input_layernorm": (2 * hidden * FLOAT16, 0),
        "post_attention_layernorm": (2 * hidden * FLOAT16, 0),
        "attn_rope": (2 * hidden * (1 + kv_share) / devices * FLOAT16, 0),  # queries and keys, in place
        "mlp_act": (3 * inner / devices * FLOAT16, 0),  # gate and up read, their product written
        "add": (3 * hidden * FLOAT16, 0),
    }


def predict_bound(
    rows: Measured, constants: ElementwiseConstants | None = None, sustained: float | None = None
) -> tuple[Array, npt.NDArray[np.intp], Array]:
    """Seconds of each kernel, what bounds it (:data:`tokenfab.hw.gpu.REASONS`) and its start.

    Constants are the device file's unless given; ``sustained`` as in the module text.
    """
    flat = constants or elementwise_constants(load_device(DEVICE))
    card, kernels = gemm_kernels(load_device(DEVICE))
    if sustained is not None:
        card = replace(card, sustained=sustained, throttle_s=THROTTLE_S)
    seconds, gemm = np.empty(rows.seconds.size), rows.linear
    reason = np.full(seconds.size, REASONS.index("dram"))
    if gemm.any():
        seconds[gemm], limit = gemm_time(rows.tokens[gemm], rows.n[gemm], rows.k[gemm], CARD, card, kernels)
        reason[gemm] = reason_of_limit(limit)
    for name, kind in ELEMENTWISE.items():
        here = rows.name == name
        seconds[here] = elementwise_time(kind, rows.tokens[here], rows.n[here], CARD, flat)
    return seconds, reason, np.where(gemm, card.launch_clocks / CARD.clock_hz, flat.launch_s)


def predict(rows: Measured, constants: ElementwiseConstants | None = None, sustained: float | None = None) -> Array:
    """Seconds of each kernel, as :func:`predict_bound` has them."""
    return predict_bound(rows, constants, sustained)[0]


def fit(rows: Measured, start: ElementwiseConstants | None = None) -> ElementwiseConstants:
    """Element-wise constants that minimise the mean absolute log error on ``rows`` (pass the even half)."""
    rows = rows.pick(~rows.linear)
    low, high = (np.array([bound[i] for bound in BOUNDS.values()]) for i in (0, 1))

    def loss(x: Array) -> float:
        values = np.exp(x)
        if np.any(values < low) or np.any(values > high):
            return 1e9
        return float(np.mean(np.abs(np.log(predict(rows, ElementwiseConstants(*values)) / rows.seconds))))

    first = start or ElementwiseConstants(1e-6, 8e-7, 6.0, 0.9, 0.5, 0.45)
    x = np.log([getattr(first, name) for name in BOUNDS])
    for _ in range(2):  # restarted: a simplex can collapse
        x = minimize(loss, x, method="Nelder-Mead", options={"maxiter": 800, "xatol": 1e-4, "fatol": 1e-6}).x
    return ElementwiseConstants(*(float(v) for v in np.exp(x)))


def fit_sustained(rows: Measured) -> float:
    """Share of the matrix rate that the run's card sustained, on linear layers of ``rows`` (pass the even half)."""
    rows = rows.pick(rows.linear)

    def loss(sustained: float) -> float:
        return float(np.mean(np.abs(np.log(predict(rows, sustained=sustained) / rows.seconds))))

    return float(minimize_scalar(loss, bounds=(0.5, 1.0), method="bounded", options={"xatol": 1e-3}).x)


def layer_sums(rows: Measured, values: Array) -> tuple[Array, npt.NDArray[np.intp]]:
    """Sums of ``values`` over the kernels of each complete layer, and each kernel's layer (−1: incomplete)."""
    _, layer, count = np.unique(
        np.char.add(np.char.add(rows.model, "/"), rows.row.astype(np.intp).astype(np.str_)),
        return_inverse=True, return_counts=True,
    )  # fmt: skip
    whole = np.cumsum(count == len(NAMES)) - 1
    place = np.where(count == len(NAMES), whole, -1)[layer]
    return np.bincount(place[place >= 0], values[place >= 0]).astype(float), place


def main() -> None:
    """Print constants and errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    rows = read_layers(Path(parser.parse_args().truth))
    even, odd = rows.half(odd=False), rows.half(odd=True)
    c = fit(even)
    print("element-wise: " + " ".join(f"{name}={getattr(c, name):.3g}" for name in BOUNDS))
    sustained = fit_sustained(even)
    print(f"this run sustained {sustained:.3f} of the matrix rate; {rows.dropped} kernels without a time left out")
    for title, seconds in (("device file", predict(odd)), ("with this run's rate", predict(odd, sustained=sustained))):
        error = np.abs(seconds / odd.seconds - 1)
        print(f"{DEVICE}, odd rows, {title}: n={error.size} MAPE {error.mean():.1%}")
        for name in NAMES:
            here = odd.name == name
            print(f"  {name}: {error[here].mean():.1%}, bias {np.log(seconds / odd.seconds)[here].mean():+.1%}")
        for model in np.unique(odd.model):
            print(f"  {model}: {error[odd.model == model].mean():.1%}")
        whole = layer_sums(odd, seconds)[0] / layer_sums(odd, odd.seconds)[0]
        print(f"  whole layers: n={whole.size} MAPE {np.abs(whole - 1).mean():.1%}, bias {np.log(whole).mean():+.1%}")


if __name__ == "__main__":
    main()
