"""The constants of fused experts, earned on measured layers.

    python -m tokenfab.validation.moe --truth DIR

fits :class:`tokenfab.hw.moe.MoeConstants` for every kernel of the tables (``SUITES``) on the even rows and
prints them, with the error on the odd rows: all, by distribution of the load, and by tokens; then what each
card's 16-bit constants say of the other card. Rows that cannot be true (a size or time of zero, faster than
the arithmetic, or than DRAM beyond what L2 holds) are dropped and counted.

How the tables were made (aiconfigurator, collector/vllm/collect_moe.py): one layer, called again and again,
so that small weights stay in L2; five draws of the load, averaged; the busiest device of a group. The A100's
were made by an earlier version, which gave the rows that rounding left over all to one device, and drove
every model with a gated expert.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from ..errors import unknown_name
from ..hw import moe
from ..hw.card import Card, card_of
from ..hw.devices import load_device
from ..hw.gemm import gemm_kernels
from ..hw.moe import BOUNDS, MoeConstants, MoeKernels, moe_kernels, moe_time
from .kernels import FOLDERS, table_path

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FIT_ROWS = 2500
"""Even rows that the fit looks at, evenly spaced."""
NAMES = tuple(f.name for f in fields(MoeConstants))
CARDS = {device: card_of(load_device(device)) for device in FOLDERS}
GEMM = {device: gemm_kernels(load_device(device))[0] for device in FOLDERS}
NEWEST = "h100-sxm"
"""Whose tuned shapes a card is taken to have that has no list here."""
STARTS = (MoeConstants(4e-5, 1e-9, 0.6, 0.5, 0.3, 0.6), MoeConstants(4e-5, 1e-8, 0.15, 0.9, 0.1, 0.1))
"""The fit starts here, and keeps the better end."""
UNGATED = {(2688, 1856), (2048, 5120), (1024, 2688)}
"""Hidden and inter of the models whose experts have no gate (Nemotron-H: squared ReLU)."""
TUNED = {
    "a100-80g-sxm": {(8, 7168), (8, 3584), (8, 1792), (8, 4096), (8, 2048), (1, 14336), (16, 2688), (128, 192)},
    "h100-sxm": {
        *((8, n) for n in (7168, 4096, 3584, 2048, 1792)), *((128, n) for n in (1856, 768, 704, 384, 352, 192)),
        (64, 1536), (64, 768), (32, 768), (16, 1024), (256, 512), (256, 128), (512, 512), (512, 256), (512, 128),
    },
}  # fmt: skip
"""Experts and inter of the device for which vLLM ships tuned 16-bit tiles (fused_moe/configs/E=…,N=….json)."""


@dataclass(frozen=True)
class Suite:
    """One kernel of one table: where its rows are, its facts, and bits and rate (over the 16-bit one).

    ``lumped``: the table's collector drove every model gated, with the rows that rounding left over on one device.
    """

    device: str
    source: str
    dtype: str
    kernels: MoeKernels
    constants: MoeConstants
    bits: float = 16
    weight_bits: float | None = None
    rate: float = 1
    lumped: bool = False


HOPPER_FP8_BLOCK_CUTLASS = MoeConstants(2.605e-5, 2.695e-8, 0.7499, 0.7428, 2.209, 0.3033)
HOPPER_FP8_CUTLASS = MoeConstants(3.679e-5, 1.195e-8, 0.1454, 1.0, 0.001, 1.0)
HOPPER_MXFP4_MARLIN = MoeConstants(6.017e-5, 3.815e-9, 0.2894, 0.2102, 0.001, 0.7759)
HOPPER_MXFP4_TRITON = MoeConstants(4.143e-5, 4.704e-10, 0.7181, 0.2459, 0.001001, 0.6179)
"""Kernels that were measured and that no estimate uses: even rows of their suites."""
AMPERE, HOPPER = (moe_kernels(load_device(device))[0] for device in ("a100-80g-sxm", "h100-sxm"))
HOPPER_FP8_BLOCK, _ = moe_kernels(load_device("h100-sxm"), 8, 8)
HOPPER_INT4_MARLIN, _ = moe_kernels(load_device("h100-sxm"), 16, 4.125)
MODEL_OPT = "vllm_modeloptfp8moe_flashinfer_cutlass_flashinferexperts"
MX = "vllm_compressedtensorsw4a4mxfp4moe_marlin_marlinexperts_situ_as_silu"
GPT_OSS = "vllm_gptossmxfp4moe_triton_oaitritonmxfp4expertsmonolithic"
SUITES = {
    "bf16-a100": Suite("a100-80g-sxm", "vllm_fused_moe", "bfloat16", moe.TRITON_0_14, AMPERE, lumped=True),
    "bf16-h100": Suite(
        "h100-sxm", "vllm_unquantizedfusedmoe_triton_tritonexperts", "bfloat16", moe.TRITON_0_24, HOPPER,
    ),
    "fp8-block-triton": Suite(
        "h100-sxm", "vllm_fp8moe_triton_tritonexperts", "fp8_block", moe.TRITON_FP8_BLOCK, HOPPER_FP8_BLOCK,
        bits=8, rate=2,
    ),
    "fp8-block-cutlass": Suite(
        "h100-sxm", "vllm_fp8moe_flashinfer_cutlass_flashinferexperts", "fp8_block", moe.CUTLASS_FP8_BLOCK,
        HOPPER_FP8_BLOCK_CUTLASS, bits=8, rate=2,
    ),
    "fp8-cutlass": Suite("h100-sxm", MODEL_OPT, "fp8", moe.CUTLASS_FP8, HOPPER_FP8_CUTLASS, bits=8, rate=2),
    "int4-marlin": Suite(
        "h100-sxm", "vllm_compressedtensorswna16marlinmoe_marlin_marlinexperts", "int4_wo", moe.MARLIN,
        HOPPER_INT4_MARLIN, weight_bits=4.125,
    ),
    "mxfp4-marlin": Suite(
        "h100-sxm", MX, "w4a16_mxfp4", moe.MARLIN, HOPPER_MXFP4_MARLIN, weight_bits=4.25,
    ),
    "mxfp4-triton": Suite(
        "h100-sxm", GPT_OSS, "w4a16_mxfp4", moe.TRITON_MXFP4, HOPPER_MXFP4_TRITON, weight_bits=4.25,
    ),
}  # fmt: skip
"""What is validated, by name: dtype and kernel, and the card where there are two."""


@dataclass(frozen=True)
class Measured:
    """Measured layers, (N,) each: sizes, exponent of the load (0: balanced), seconds; ``dropped`` could not be true."""

    tokens: Array
    hidden: Array
    inter: Array
    experts: Array
    top_k: Array
    ep: Array
    imbalance: Array
    gated: Array
    tuned: Array
    seconds: Array
    dropped: int = 0

    def rows(self, pick: slice | Mask) -> Measured:
        """Some of the rows."""
        return replace(self, **{f.name: getattr(self, f.name)[pick] for f in fields(self) if f.name != "dropped"})


def read_moe(truth: Path, suite: str, device: str | None = None) -> Measured:
    """The rows of one suite on its card, or on ``device``, without those that cannot be true.

    Raises ``InputError`` for a suite that is not in ``SUITES``, or when the table is not under ``truth``.
    """
    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    s, on = SUITES[suite], device or SUITES[suite].device
    with gzip.open(table_path(truth, on, "moe", "moe_perf.csv.gz"), "rt", newline="") as file:
        table = [
            _row(r, on, s) for r in csv.DictReader(file) if (r["kernel_source"], r["moe_dtype"]) == (s.source, s.dtype)
        ]
    columns = np.array(table, float).reshape(-1, 10).T
    all_rows = Measured(*(columns[i] for i in range(10)))
    possible = _possible(all_rows, s, card_of(load_device(on)))
    return replace(all_rows.rows(possible), dropped=int(np.sum(~possible)))


def _row(r: dict[str, str], device: str, suite: Suite) -> tuple[float, ...]:
    hidden, whole, experts, ep = (int(r[x]) for x in ("hidden_size", "inter_size", "num_experts", "moe_ep_size"))
    inter = whole / int(r["moe_tp_size"])
    load = r["distribution"].removeprefix("power_law_")
    gated = suite.lumped or (hidden, whole) not in UNGATED
    return (
        int(r["num_tokens"]), hidden, inter, experts, int(r["topk"]), ep, 0.0 if load == "balanced" else float(load),
        gated, (experts / ep, inter) in TUNED.get(device, TUNED[NEWEST]), float(r["latency"]) / 1e3,
    )  # fmt: skip


def _possible(rows: Measured, s: Suite, card: Card) -> Mask:
    """Which rows are positive and no faster than the card: on one device, all rows are its own, in top_k experts."""
    sizes = np.stack([rows.tokens, rows.hidden, rows.inter, rows.experts, rows.top_k, rows.ep, rows.seconds])
    weights = rows.hidden * rows.inter * (2 + rows.gated)
    arithmetic = 2 * rows.tokens * rows.top_k * weights / (card.matrix_flops * s.rate)
    unheld = rows.top_k * weights * (s.weight_bits or s.bits) / 8 - card.l2_bytes
    floor = np.where(rows.ep == 1, np.maximum(arithmetic, unheld / card.dram_bytes_s), 0.0)
    return np.asarray(np.all(sizes > 0, axis=0) & (rows.seconds >= floor))


def predict(rows: Measured, suite: str, constants: MoeConstants | None = None, device: str | None = None) -> Array:
    """Seconds under the conditions of the table, with the suite's constants unless given.

    ``device``: of the rows, where they are not the suite's own.
    """
    s, held = SUITES[suite], load_device(device or SUITES[suite].device)
    card, dense = card_of(held), gemm_kernels(held)[0]
    return moe_time(
        rows.tokens, rows.hidden, rows.inter, rows.experts, rows.top_k, card, dense, constants or s.constants,
        kernels=s.kernels, gated=rows.gated, bits=s.bits, weight_bits=s.weight_bits, ep=rows.ep,
        imbalance=rows.imbalance, tuned=rows.tuned, rate=card.matrix_flops * s.rate, warm=True,
        lumped=s.lumped,
    )  # fmt: skip


def fit(rows: Measured, suite: str, starts: Sequence[MoeConstants] = STARTS) -> MoeConstants:
    """Constants that minimise a smoothed absolute log error on ``rows`` (pass the even half), within bounds."""
    rows = rows.rows(slice(None, None, max(1, rows.seconds.size // FIT_ROWS)))
    low, high = (np.log([BOUNDS[name][i] for name in NAMES]) for i in (0, 1))

    def residuals(x: Array) -> Array:
        return np.asarray(np.log(predict(rows, suite, MoeConstants(*np.exp(x))) / rows.seconds))

    ends = []
    for start in starts:
        first = np.clip(np.log(astuple(start)), low + 1e-3, high - 1e-3)
        ends.append(
            least_squares(
                residuals, first, bounds=(low, high), loss="soft_l1", f_scale=0.05, diff_step=0.01, max_nfev=60
            )
        )
    return MoeConstants(*(float(v) for v in np.exp(min(ends, key=lambda end: float(end.cost)).x)))


def mape(predicted: Array, rows: Measured) -> float:
    """Mean absolute error over measured time."""
    return float(np.mean(np.abs(predicted / rows.seconds - 1)))


def _line(name: str, predicted: Array, rows: Measured) -> str:
    error = np.abs(predicted / rows.seconds - 1)
    bias = np.mean(np.log(predicted / rows.seconds))
    return f"{name}: n={error.size} MAPE {error.mean():.2%}, bias {bias:+.1%}, p90 {np.quantile(error, 0.9):.1%}"


def _by(name: str, keys: Array, predicted: Array, rows: Measured) -> str:
    parts = (f"{v:g} {mape(predicted[keys == v], rows.rows(keys == v)):.1%}" for v in np.unique(keys))
    return f"  by {name}: " + ", ".join(parts)


def main() -> None:
    """Print constants and errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    parser.add_argument("--suite", choices=SUITES, action="append", help="only these; all unless given")
    asked = parser.parse_args()
    fitted = {}
    for suite in asked.suite or SUITES:
        rows = read_moe(Path(asked.truth), suite)
        c = fitted[suite] = fit(rows.rows(slice(0, None, 2)), suite)
        odd = rows.rows(slice(1, None, 2))
        predicted = predict(odd, suite, c)
        print(f"{suite}: " + " ".join(f"{n}={v:.4g}" for n, v in zip(NAMES, astuple(c), strict=True)))
        print(_line("  odd rows", predicted, odd) + f" ({rows.dropped} rows dropped)")
        print(_by("imbalance", odd.imbalance, predicted, odd))
        print(_by("tokens", odd.tokens, predicted, odd))
        print(_by("devices", odd.ep, predicted, odd), flush=True)
    pair = ("bf16-a100", "bf16-h100")
    for suite, other in (pair, pair[::-1]):
        if suite in fitted:
            odd = read_moe(Path(asked.truth), other).rows(slice(1, None, 2))
            print(_line(f"{suite} -> {other}", predict(odd, other, fitted[suite]), odd))


if __name__ == "__main__":
    main()
