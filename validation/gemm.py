"""The GEMM model's constants, earned on measured kernels.

    python -m tokenfab.validation.gemm --truth DIR

fits :class:`tokenfab.hw.gemm.GemmConstants` on the even rows of the kernel tables and prints them, with
the error on the odd rows: all, n and k of at least 1024, and by what bound the row; then what each
card's constants say of the other card. The tables cycle through six weights in a CUDA graph
(``copies``), so small ones stay in L2. 8-bit rows include the kernel that rounds the activations.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from ..hw.card import Card, card_of
from ..hw.devices import device_names, load_device
from ..hw.gemm import (
    BOUNDS,
    EIGHT_BIT_BOUNDS,
    LIMITS,
    EightBit,
    GemmConstants,
    GemmKernels,
    gemm_kernels,
    gemm_kernels_8bit,
    gemm_time,
    quantise_time,
)
from .kernels import COPIES, FOLDERS, opened, table_path

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FILE = "gemm_perf.csv.gz"
FORMATS = {"bfloat16": ("bf16", 2), "float16": ("fp16", 2), "fp8": ("fp8", 1)}
"""Types of the tables: their name here, and bytes per operand's element."""
RESULT_BYTES = 2
FIT_ROWS = 1500
"""Even rows that the fit looks at, evenly spaced; more change the errors by less than 0.1 points."""
NAMES = tuple(BOUNDS)
CARDS = {device: card_of(load_device(device)) for device in FOLDERS}
CONSTANTS = {device: gemm_kernels(load_device(device))[0] for device in FOLDERS}
KERNELS = {device: gemm_kernels(load_device(device))[1] for device in FOLDERS}
EIGHT_BIT, KERNELS_8BIT = gemm_kernels_8bit(load_device("h100-sxm"))
START = GemmConstants(4.7e3, 0.8, 1e-7, 0.5, 0.45, 4.0, 1.0, 2.5e-6, 0.9, 0.5, 0.9, 3e-4)


@dataclass(frozen=True)
class Measured:
    """Measured GEMMs: sizes and seconds, (N,) each; rows that could not be true were ``dropped``."""

    m: Array
    n: Array
    k: Array
    seconds: Array
    dropped: int = 0

    def rows(self, pick: slice | Mask) -> Measured:
        """Some of the rows."""
        return Measured(self.m[pick], self.n[pick], self.k[pick], self.seconds[pick])


def read_gemm(truth: Path, device: str, dtype: str = "bfloat16") -> Measured:
    """GEMMs of one type as measured on ``device``, without rows that cannot be true: a size or time of zero and,
    on a device of the catalogue, faster than its arithmetic or than its L2 moves the operands once.

    Raises ``InputError`` when the table is not under ``truth``.
    """
    with opened(table_path(truth, device, "gemm", FILE)) as file:
        rows = [
            (*(float(int(r[x])) for x in "mnk"), float(r["latency"]) / 1e3) for r in file if r["gemm_dtype"] == dtype
        ]
    m, n, k, seconds = np.array(rows, float).reshape(-1, 4).T
    possible = (m > 0) & (n > 0) & (k > 0) & (seconds > 0) & np.isfinite(seconds)
    if device in device_names() and dtype in FORMATS:
        held, (name, size) = load_device(device), FORMATS[dtype]
        l2_bytes_s = card_of(held).l2_bytes_s
        with np.errstate(over="ignore"):  # too large for a float is too large for its time
            possible &= seconds >= 2 * m * n * k / held.rate(name)[1].value
            if np.isfinite(l2_bytes_s):
                possible &= seconds >= (size * (m * k + k * n) + RESULT_BYTES * m * n) / l2_bytes_s
    return Measured(m[possible], n[possible], k[possible], seconds[possible], int((~possible).sum()))


def predict(rows: Measured, card: Card, constants: GemmConstants, kernels: GemmKernels) -> Array:
    """Seconds of 16-bit GEMMs under the conditions of the tables."""
    return gemm_time(rows.m, rows.n, rows.k, card, constants, kernels, copies=COPIES)[0]


def predict_fp8(
    rows: Measured, card: Card, constants: GemmConstants, eight: EightBit, kernels: GemmKernels = KERNELS_8BIT
) -> Array:
    """Seconds of 8-bit GEMMs: the activations are rounded, then multiplied."""
    rate = 2 * card.matrix_flops * eight.rate_share
    seconds, _ = gemm_time(rows.m, rows.n, rows.k, card, constants, kernels, rate=rate, bits=8, copies=COPIES)
    return seconds + quantise_time(rows.m, rows.k, card, constants, row_s=eight.quantise_row_s)


def fit(
    rows: Measured, card: Card, kernels: GemmKernels, start: GemmConstants = START, names: tuple[str, ...] = NAMES
) -> GemmConstants:
    """Constants that minimise a smoothed absolute log error on ``rows`` (pass the even half), within bounds.

    Those not in ``names`` stay as ``start`` has them.
    """
    rows = rows.rows(slice(None, None, max(1, rows.m.size // FIT_ROWS)))
    low, high = (np.log([BOUNDS[name][i] for name in names]) for i in (0, 1))
    measured = np.log(rows.seconds)

    def at(x: Array) -> GemmConstants:
        return replace(start, **{name: float(v) for name, v in zip(names, np.exp(x), strict=True)})

    def residuals(x: Array) -> Array:
        return np.asarray(np.log(predict(rows, card, at(x), kernels)) - measured)

    first = np.clip(np.log([getattr(start, name) for name in names]), low + 1e-3, high - 1e-3)
    result = least_squares(
        residuals, first, bounds=(low, high), loss="soft_l1", f_scale=0.03, diff_step=0.01, max_nfev=30
    )
    return at(result.x)


def fit_fp8(rows: Measured, card: Card, constants: GemmConstants) -> EightBit:
    """The 8-bit constants on ``rows`` (pass the even half), everything else as for 16 bits."""
    rows = rows.rows(slice(None, None, max(1, rows.m.size // FIT_ROWS)))

    def residuals(x: Array) -> Array:
        return np.asarray(np.log(predict_fp8(rows, card, constants, EightBit(*np.exp(x))) / rows.seconds))

    low, high = (np.log([b[i] for b in EIGHT_BIT_BOUNDS.values()]) for i in (0, 1))
    first = np.log([0.7, 5e-9])
    result = least_squares(
        residuals, first, bounds=(low, high), loss="soft_l1", f_scale=0.03, diff_step=0.01, max_nfev=30
    )
    return EightBit(*(float(v) for v in np.exp(result.x)))


def mape(predicted: Array, rows: Measured) -> float:
    """Mean absolute error over measured time."""
    return float(np.mean(np.abs(predicted / rows.seconds - 1)))


def large(rows: Measured) -> Mask:
    """Rows whose n and k are those of a layer: at least 1024."""
    return np.asarray((rows.n >= 1024) & (rows.k >= 1024))


def _line(name: str, predicted: Array, rows: Measured) -> str:
    big = large(rows)
    error = np.abs(predicted / rows.seconds - 1)
    return (
        f"{name}: n={rows.m.size} MAPE {error.mean():.2%}, n,k >= 1024 {error[big].mean():.2%}, "
        f"bias {np.mean(np.log(predicted / rows.seconds)):+.2%}, p90 {np.quantile(error, 0.9):.1%}"
    )


def main() -> None:
    """Print constants and errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    tables = {device: read_gemm(truth, device) for device in CARDS}
    fitted = {}
    for device, rows in tables.items():
        card, kernels = CARDS[device], KERNELS[device]
        c = fitted[device] = fit(rows.rows(slice(0, None, 2)), card, kernels)
        print(f"{device}: " + " ".join(f"{n}={getattr(c, n):.4g}" for n in NAMES), flush=True)
        odd = rows.rows(slice(1, None, 2))
        seconds, limit = gemm_time(odd.m, odd.n, odd.k, card, c, kernels, copies=COPIES)
        print(_line("  odd rows", seconds, odd), flush=True)
        for i, name in enumerate(LIMITS):
            if large(odd.rows(limit == i)).any():
                print("  " + _line(f"bound by {name}", seconds[limit == i], odd.rows(limit == i)))
    for device, c in fitted.items():
        for other in CARDS:
            if other != device:
                odd = tables[other].rows(slice(1, None, 2))
                print(_line(f"{device} -> {other}", predict(odd, CARDS[other], c, KERNELS[other]), odd), flush=True)
                mixed = replace(c, sustained=fitted[other].sustained, throttle_s=fitted[other].throttle_s)
                line = _line("  with its power limit known", predict(odd, CARDS[other], mixed, KERNELS[other]), odd)
                print(line, flush=True)
    card, c = CARDS["h100-sxm"], fitted["h100-sxm"]
    rows = read_gemm(truth, "h100-sxm", "fp8")
    extra = fit_fp8(rows.rows(slice(0, None, 2)), card, c)
    print("h100-sxm fp8: " + " ".join(f"{n}={v:.4g}" for n, v in zip(EIGHT_BIT_BOUNDS, astuple(extra), strict=True)))
    odd = rows.rows(slice(1, None, 2))
    print(_line("  odd rows", predict_fp8(odd, card, c, extra), odd))


if __name__ == "__main__":
    main()
