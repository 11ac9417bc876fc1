"""The attention constants, earned on measured kernels.

    python -m tokenfab.validation.attention --truth DIR

fits the six constants of :class:`~tokenfab.hw.attention.AttentionConstants` on the even rows of each case
(a subsample, prefill and decoding weighted alike; mean absolute log error, Nelder–Mead) and prints
them with the errors on the even and the odd rows, of the other card's constants, and of what was not
fitted at all: sliding windows, another framework. The tables repeat each call
on the same data, so keys that fit stay in L2 (``warm``). Rows that cannot be true (a time below the
matrix rate, or below DRAM less all of L2) are dropped and counted.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from ..hw.attention import (
    BOUNDS,
    Array,
    AttentionConstants,
    Kernel,
    Mask,
    attention_kernels,
    decode_time,
    prefill_time,
)
from ..hw.card import Card, card_of
from ..hw.devices import device_names, load_device
from .kernels import FRAMEWORKS, MissingTableError, opened, table_path

CASES: dict[str, tuple[str, int]] = {
    "A100 16-bit": ("a100-80g-sxm", 16),
    "H100 16-bit": ("h100-sxm", 16),
    "H100 8-bit": ("h100-sxm", 8),
}
"""What is fitted: device, bits per cached element."""
FILES = {"prefill": "context_attention_perf.csv.gz", "decode": "generation_attention_perf.csv.gz"}
NAMES = tuple(BOUNDS)
FITTED_ROWS = 1500
"""Of each phase; more changes nothing in the second digit."""


@dataclass(frozen=True)
class Calls:
    """Measured calls of one phase on one card; arrays of (N,), seconds; ``window`` 0 for none."""

    phase: str
    batch: Array
    query: Array
    kv: Array
    heads: Array
    kv_heads: Array
    head_dim: Array
    window: Array
    bits: int
    seconds: Array
    dropped: int = 0

    def pick(self, where: Mask | slice | Array) -> Calls:
        """Some of the rows."""
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)]
        return Calls(**{**self.__dict__, **{n: getattr(self, n)[where] for n in names}})

    def half(self, odd: bool) -> Calls:
        """Even rows (to fit on) or odd rows (to report)."""
        return self.pick(slice(1 if odd else 0, None, 2))

    def sample(self, count: int) -> Calls:
        """At most ``count`` rows, evenly spread."""
        n = self.seconds.size
        return self if n <= count else self.pick(np.linspace(0, n - 1, count).astype(int))

    def predict(self, card: Card, constants: AttentionConstants, kernel: Kernel) -> Array:
        """Seconds of each call under the model."""
        window = self.window if self.window.any() else None
        d = self.head_dim
        if self.phase == "prefill":
            return prefill_time(
                self.batch, self.query, self.kv, self.heads, self.kv_heads, d, d, card, constants, kernel,
                window=window, bits=self.bits, warm=True,
            )  # fmt: skip
        return decode_time(
            self.batch, self.kv, self.heads, self.kv_heads, d, d, card, constants, kernel,
            window=window, bits=self.bits, warm=True,
        )  # fmt: skip


def read_calls(
    truth: Path, device: str, phase: str, *, bits: int = 16, windows: bool = False, framework: str | None = None,
    card: Card | None = None,
) -> Calls:  # fmt: skip
    """Calls of ``phase`` (``prefill``, ``decode``) on ``device`` with ``bits`` per cached element.

    ``windows``: only those with a sliding window, else only those without. ``framework``: whose table, else
    the first of ``FRAMEWORKS``. Left out: kernels other than the one a card's :class:`Kernel` describes, and
    rows that cannot be true, which takes ``card`` or a device of the catalogue to know; of another, all rows
    are kept that have a size and a time. Raises ``InputError`` when there are none.
    """
    path = table_path(truth, device, "attention", FILES[phase], (framework,) if framework else FRAMEWORKS)
    cache = {16: "bfloat16", 8: "fp8"}[bits]
    columns = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size", "latency")
    with opened(path) as file:
        rows = [
            [float(row.get(c) or 0) for c in columns]
            for row in file
            if row["kv_cache_dtype"] == cache and bool(int(row.get("window_size") or 0)) == windows
            and not row["kernel_source"].endswith("fa4")
        ]  # fmt: skip
    if not rows:
        raise MissingTableError(
            f"{path}: no rows with {cache} keys and values {'with' if windows else 'without'} window"
        )
    batch, query, step, heads, kv_heads, dim, window, ms = np.array(rows).T
    calls = Calls(phase, batch, query, query + step, heads, kv_heads, dim, window, bits, ms / 1e3)
    sized = np.array([batch, query, calls.kv, heads, kv_heads, dim, ms])
    possible = np.asarray((sized > 0).all(axis=0) & np.isfinite(sized).all(axis=0))
    if card is None and device in device_names():
        card = card_of(load_device(device))
    if card is not None:
        possible[possible] = _possible(calls.pick(possible), card)
    return Calls(**{**calls.pick(possible).__dict__, "dropped": int((~possible).sum())})


def _possible(calls: Calls, card: Card) -> Mask:
    """Rows that are not faster than the matrix rate, or than DRAM with all of L2 full."""
    seen = calls.kv if not calls.window.any() else np.minimum(calls.kv, calls.window + calls.query - 1)
    pairs = calls.query * (calls.kv - (calls.query - 1) / 2) if not calls.window.any() else calls.query
    rate = card.matrix_flops * 16 / calls.bits
    compute = 4 * calls.batch * calls.heads * calls.head_dim * pairs / rate
    moved = 2 * calls.batch * seen * calls.kv_heads * calls.head_dim * calls.bits / 8
    return np.asarray(calls.seconds > np.maximum(compute, (moved - card.l2_bytes) / card.dram_bytes_s))


def fit(
    parts: list[Calls], card: Card, kernel: Kernel, start: AttentionConstants, names: tuple[str, ...] = NAMES
) -> AttentionConstants:
    """Constants within their bounds that minimise the mean absolute log error, ``parts`` weighted alike.

    Those not in ``names`` stay as ``start`` has them.
    """
    parts = [p.sample(FITTED_ROWS) for p in parts]
    low, high = (np.array([BOUNDS[name][i] for name in names], dtype=float) for i in (0, 1))
    scale = np.array([1e-6 if name.endswith("_s") else 1.0 for name in names])

    def at(x: Array) -> AttentionConstants:
        return replace(start, **{name: float(v) for name, v in zip(names, x * scale, strict=True)})

    def loss(x: Array) -> float:
        if np.any(x * scale < low) or np.any(x * scale > high):
            return 1e9
        return float(sum(np.mean(np.abs(np.log(p.predict(card, at(x), kernel) / p.seconds))) for p in parts))

    x = np.clip([getattr(start, name) for name in names], low, high) / scale
    for _ in range(2):  # restarted: a simplex can collapse
        x = minimize(loss, x, method="Nelder-Mead", options={"maxiter": 600, "xatol": 1e-4, "fatol": 1e-6}).x
    return at(x)


def errors(calls: Calls, card: Card, constants: AttentionConstants, kernel: Kernel) -> tuple[float, float, float]:
    """Mean absolute percentage error, mean signed error, and 90 % quantile of the absolute error."""
    wrong = calls.predict(card, constants, kernel) / calls.seconds - 1
    return float(np.mean(np.abs(wrong))), float(np.mean(wrong)), float(np.quantile(np.abs(wrong), 0.9))


def main() -> None:
    """Print constants and errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    fitted = {}
    for case, (device, bits) in CASES.items():
        start, kernel = attention_kernels(load_device(device), bits)
        suites = [read_calls(truth, device, phase, bits=bits) for phase in FILES]
        card = card_of(load_device(device))
        fitted[case] = fit([calls.half(odd=False) for calls in suites], card, kernel, start)
        print(f"{case}, {kernel.name}: fitted on the even rows, {sum(c.dropped for c in suites)} rows dropped")
        for name, (low, high, meaning) in BOUNDS.items():
            print(f"    {name:14} {getattr(fitted[case], name):9.3g}  [{low:g}, {high:g}]  {meaning}")
        for calls in suites:
            for odd in (False, True):
                _report(
                    f"{case}, {calls.phase}, {'odd' if odd else 'even'}", calls.half(odd), card, fitted[case], kernel
                )
    others = [
        ("A100 16-bit", "H100 16-bit", "vllm", False), ("H100 16-bit", "A100 16-bit", "vllm", False),
        ("A100 16-bit", "A100 16-bit", "trtllm", False),
        ("H100 16-bit", "H100 16-bit", "vllm", True), ("H100 8-bit", "H100 8-bit", "vllm", True),
    ]  # fmt: skip
    print("not fitted, odd rows:")
    for case, source, framework, windows in others:
        device, bits = CASES[case]
        _, kernel = attention_kernels(load_device(device), bits)
        for phase in FILES:
            calls = read_calls(truth, device, phase, bits=bits, windows=windows, framework=framework).half(odd=True)
            label = f"{case}, {phase}, {framework}{', window' if windows else ''}, constants of {source}"
            _report(label, calls, card_of(load_device(device)), fitted[source], kernel)


def _report(label: str, calls: Calls, card: Card, constants: AttentionConstants, kernel: Kernel) -> None:
    mape, bias, p90 = errors(calls, card, constants, kernel)
    print(f"  {label:66} n={calls.seconds.size:5} MAPE {mape:6.1%} bias {bias:+6.1%} p90 {p90:6.1%}")


if __name__ == "__main__":
    main()
