"""Whole requests on real servers against the estimate: Llama-2-70B, prompts and tokens, 2, 4 and 8 GPUs.

    python -m tokenfab.validation.requests --truth DIR

Reads ``TRUTH/splitwise/perf_model.csv`` (see the NOTES.md there): a serving engine of 2023 on servers of A100
and H100. ``prompt`` is the time to the first token, ``token`` the mean time of the following ones; the GPUs'
part of both is the estimate's for one device's share of the captured model, every step at its own context.
Nothing of a card is fitted here. What the engine adds is a number of the run, fitted on its server's even rows:

    token  = max(GPUs' step, launch) + step + sequence · batch
    prompt = max(GPUs' prefill, launch) + step + first + (sequence + token · prompt) · batch

``launch``: the host starts kernels one by one, which hides behind long ones and bounds short ones; ``step``:
scheduling and sampling between passes; ``sequence``: the same of each sequence; ``first``: admitting requests.
Modes say which of these are fitted: ``run`` the four above without ``token``; ``run_tokens`` with ``token``,
whatever grows with a prompt and does not shrink with more GPUs, in place of ``first``; ``run_network`` instead
of that the share ``sustained`` of the matrix rate and the rate of all-reduces beyond :data:`LONG_BYTES`.

A row with a prompt faster than the card's peak was not one batch (2 GPUs do not hold 64 such sequences) and is
left out. Interval: half² = (the estimate's for the GPUs' part)² + (rest · predicted)², each side's ``rest`` the
least that leaves 5 % of the even rows outside. Rows come in fives that repeat one point, so even and odd rows
share points: ``main`` also fits on every second pair of prompt and batch and reports the others.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from ..errors import InputError
from ..hw.card import card_of
from ..hw.collective import collective_time
from ..hw.cost import Costs, cost
from ..hw.devices import load_device
from ..workloads.expr_functions import Array
from ..workloads.load import load_trace
from ..workloads.parallel import tensor_parallel
from ..workloads.trace import Trace
from .kernels import MissingTableError
from .part import Part

Mask = npt.NDArray[np.bool_]

FILE = "splitwise/perf_model.csv"
MODEL = "llama-2-70b"
IN_TABLE = "llama2-70b"
"""The model's name there."""
HARDWARE = {"a100-80g-sxm": "a100-80gb", "h100-sxm": "h100-80gb"}
"""Devices and their names there; ``h100-80gb-pcap`` is computed from the H100's rows and left out."""
SUITES = ("prompt", "token")
STEPS = 64
"""Decode steps costed of one row, spread evenly: time is all but linear in the context."""
LONG_BYTES = 40e6
"""Tables jump between messages of 34 and of 67 MB; a limit anywhere between is the same."""
MODES = {
    "run": ("launch_s", "step_s", "sequence_s", "first_s"),
    "run_tokens": ("launch_s", "step_s", "sequence_s", "token_s"),
    "run_network": ("launch_s", "step_s", "sequence_s", "first_s", "sustained", "long_bytes_s"),
}
"""Numbers of the run that each mode fits."""


@dataclass(frozen=True)
class Run:
    """What a server's run adds to the estimate; meaning in the module text. ``long_bytes_s``: byte/s on the busiest
    link, 0 for the estimate's own."""

    launch_s: float = 0.0
    step_s: float = 0.0
    sequence_s: float = 0.0
    first_s: float = 0.0
    token_s: float = 0.0
    sustained: float = 1.0
    long_bytes_s: float = 0.0


START = Run(0.03, 0.008, 3e-4, 0.015, 3e-5, 0.9, 5e10)
"""Where a fit starts."""


@dataclass(frozen=True)
class Requests:
    """Rows of one server, (N,) each: place in the table, GPUs, prompt and output tokens, sequences; seconds to the
    first token and of each following one."""

    row: Array
    gpus: Array
    prompt: Array
    batch: Array
    output: Array
    prompt_s: Array
    token_s: Array

    def pick(self, where: Mask) -> Requests:
        """Some of the rows."""
        return Requests(*(getattr(self, f.name)[where] for f in fields(self)))


@dataclass(frozen=True)
class Gpus:
    """The estimate of the GPUs' part of rows, (N,) each: seconds of prefill (of which arithmetic, and all-reduces
    longer than :data:`LONG_BYTES`) and of a mean decode step with their intervals; bytes that the long all-reduces
    put on the busiest link; FLOPs of one GPU over its peak rate."""

    prefill_s: Array
    prefill_low: Array
    prefill_high: Array
    arithmetic_s: Array
    long_s: Array
    long_bytes: Array
    step_s: Array
    step_low: Array
    step_high: Array
    peak_s: Array

    def pick(self, where: Mask) -> Gpus:
        """Some of the rows."""
        return Gpus(*(getattr(self, f.name)[where] for f in fields(self)))


def read_requests(truth: Path, device: str) -> Requests:
    """The rows of ``device``. Raises ``InputError`` where the table or the device in it is missing, or a time is
    not positive."""
    path = truth / FILE
    if not path.is_file():
        raise MissingTableError(f"{truth}: no {FILE} there")
    rows: list[tuple[float, ...]] = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["model"], row["hardware"]) == (IN_TABLE, HARDWARE[device]):
                sizes = [float(row[x]) for x in ("tensor_parallel", "prompt_size", "batch_size", "token_size")]
                rows.append((len(rows), *sizes, float(row["prompt_time"]) / 1e3, float(row["token_time"]) / 1e3))
    if not rows:
        raise MissingTableError(f"{path}: no rows of {IN_TABLE} on {HARDWARE[device]}")
    found = Requests(*np.array(rows, np.float64).T)
    if min(found.prompt_s.min(), found.token_s.min()) <= 0:
        raise InputError(f"{path}: times must be positive")
    return found


@cache
def share_of(gpus: int) -> Trace:
    """One GPU's share of the model."""
    return tensor_parallel(load_trace(MODEL), gpus)


def gpu_times(rows: Requests, device: str) -> Gpus:
    """What the estimate says of ``rows``, each point worked out once."""
    points, place = np.unique(
        np.stack([rows.gpus, rows.prompt, rows.batch, rows.output]), axis=1, return_inverse=True
    )  # fmt: skip
    columns = np.empty((len(fields(Gpus)), points.shape[1]))
    for gpus in np.unique(points[0]):
        here = points[0] == gpus
        columns[:, here] = _of_share(int(gpus), points[1:, here], device)
    return Gpus(*columns[:, place.ravel()])


def _of_share(gpus: int, points: Array, device: str) -> Array:
    """The columns of :class:`Gpus`, (10, P), at prompt, batch and output tokens, (3, P)."""
    share, held = share_of(gpus), load_device(device)
    prompt, batch, output = points
    prefill = cost(share, held, batch, prompt, 0)
    long_s, long_bytes = np.zeros(prompt.size), np.zeros(prompt.size)
    for op, count in share.operators():
        if op.kind == "collective" and op.attrs["collective"] == "all_reduce":
            size = np.array([float(op.dims["bytes"](b, p, 0)) for b, p in zip(batch, prompt, strict=True)])
            is_long = size > LONG_BYTES
            long_s += is_long * count * collective_time("all_reduce", size, gpus, held)
            long_bytes += is_long * count * size * 2 * (gpus - 1) / gpus
    peak = np.array([float(share.total("flops")(b, p, 0)) for b, p in zip(batch, prompt, strict=True)])
    step = cost(share, held, np.repeat(batch, STEPS), 1, contexts(prompt, output).ravel())
    return np.stack([
        *_sides(prefill), prefill.bound["compute"] * prefill.latency_s, long_s, long_bytes,
        *(x.reshape(-1, STEPS).mean(axis=1) for x in _sides(step)),
        peak / card_of(held).matrix_flops,
    ])  # fmt: skip


def _sides(costs: Costs) -> tuple[Array, Array, Array]:
    return costs.latency_s, costs.low_s, costs.high_s


def contexts(prompt: Array, output: Array) -> Array:
    """Contexts of :data:`STEPS` decode steps from the first, at the prompt, to the last: (P, STEPS)."""
    last = np.maximum(output - 2, 0)
    return np.asarray(prompt[:, None] + last[:, None] * np.linspace(0, 1, STEPS))


def possible(rows: Requests, gpus: Gpus) -> Mask:
    """Rows whose prompt is not faster than the peak rate."""
    return np.asarray(rows.prompt_s >= gpus.peak_s)


def prefill(gpus: Gpus, run: Run) -> Array:
    """Seconds of the GPUs' part of a prompt on the run's servers."""
    seconds = gpus.prefill_s + gpus.arithmetic_s * (1 / run.sustained - 1)
    if run.long_bytes_s:
        seconds = seconds + gpus.long_bytes / run.long_bytes_s - gpus.long_s
    return seconds


def predict(suite: str, rows: Requests, gpus: Gpus, run: Run) -> Array:
    """Seconds to the first token (``suite`` ``prompt``) or of each following one (``token``)."""
    if suite == "token":
        return np.maximum(gpus.step_s, run.launch_s) + run.step_s + run.sequence_s * rows.batch
    of_sequence = run.sequence_s + run.token_s * rows.prompt
    return np.maximum(prefill(gpus, run), run.launch_s) + run.step_s + run.first_s + of_sequence * rows.batch


def measured(suite: str, rows: Requests) -> Array:
    """Seconds to the first token, or of each following one."""
    return rows.prompt_s if suite == "prompt" else rows.token_s


def fit(rows: Requests, gpus: Gpus, names: tuple[str, ...]) -> Run:
    """The run's numbers ``names`` that least squares of log errors find, errors beyond 5 % counting less (pass the
    half to fit on)."""
    base = replace(Run(), **{name: getattr(START, name) for name in names})

    def run(x: Array) -> Run:
        return replace(base, **dict(zip(names, (float(v) for v in np.exp(x)), strict=True)))

    def residuals(x: Array) -> Array:
        return np.concatenate([np.log(predict(s, rows, gpus, run(x)) / measured(s, rows)) for s in SUITES])

    start = np.log([getattr(START, name) for name in names])
    low, high = np.log([getattr(START, name) / 1e4 for name in names]), np.full(start.size, np.inf)
    if "sustained" in names:
        high[names.index("sustained")] = 0.0
    return run(least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=0.05).x)


def gpu_half(suite: str, rows: Requests, gpus: Gpus, run: Run) -> tuple[Array, Array]:
    """Half-widths, over the predicted time, that the estimate's interval leaves: none below and behind the launch."""
    now, low, high = (
        (gpus.step_s, gpus.step_low, gpus.step_high)
        if suite == "token"
        else (prefill(gpus, run), gpus.prefill_low, gpus.prefill_high)
    )
    scale = now / (gpus.step_s if suite == "token" else gpus.prefill_s)
    ends = [np.maximum(x, run.launch_s) for x in (low * scale, now, high * scale)]
    total = predict(suite, rows, gpus, run)
    return (ends[1] - ends[0]) / total, (ends[2] - ends[1]) / total


def rest(ratio: Array, half: tuple[Array, Array]) -> tuple[float, float]:
    """What each side's half-width lacks, beyond ``half``, to leave 5 % of ``ratio`` (measured over predicted)
    outside; half-widths compose as those of independent errors."""
    found = []
    for beyond, given in ((1 - ratio, half[0]), (ratio - 1, half[1])):
        lacks = np.where(beyond > given, np.sqrt(np.maximum(beyond**2 - given**2, 0)), 0.0)
        found.append(float(np.quantile(lacks, 0.95)))
    return found[0], found[1]


def fitted_parts(rows: Requests, gpus: Gpus, even: Mask, dropped: int) -> Iterator[tuple[Run, Part]]:
    """Every mode's run, fitted on the ``even`` rows, and its errors on the others: prompts in all modes; tokens in
    ``run`` alone, as the others leave them alike."""
    for mode, names in MODES.items():
        run = fit(rows.pick(even), gpus.pick(even), names)
        for suite in SUITES if mode == "run" else ("prompt",):
            predicted, took = predict(suite, rows, gpus, run), measured(suite, rows)
            half = gpu_half(suite, rows, gpus, run)
            low, high = (
                np.hypot(side, more)
                for side, more in zip(half, rest((took / predicted)[even], (half[0][even], half[1][even])), strict=True)
            )
            odd = ~even
            yield run, Part(suite, mode, took[odd], predicted[odd], 1 - low[odd], 1 + high[odd], dropped)


def read_all(truth: Path, device: str) -> tuple[Requests, Gpus, int]:
    """The possible rows of ``device``, what the estimate says of them, and how many were left out."""
    rows = read_requests(truth, device)
    gpus = gpu_times(rows, device)
    kept = possible(rows, gpus)
    return rows.pick(kept), gpus.pick(kept), int(np.count_nonzero(~kept))


def compare(truth: Path, device: str) -> Iterator[Part]:
    """Both suites in every mode, fitted on even rows of the table and reported on odd ones.

    Raises ``InputError`` as :func:`read_requests`; nothing for a device that the table does not have.
    """
    if device in HARDWARE:
        rows, gpus, dropped = read_all(truth, device)
        for _, part in fitted_parts(rows, gpus, rows.row % 2 == 0, dropped):
            yield part


def every_second_point(rows: Requests) -> Mask:
    """Rows of every second pair of prompt and batch: the others were never seen by a fit on these."""
    _, place = np.unique(np.stack([rows.prompt, rows.batch]), axis=1, return_inverse=True)
    return np.asarray(place.ravel() % 2 == 0)


def main() -> None:
    """Print each run's numbers and errors, on odd rows and on points that the fit never saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    for device in HARDWARE:
        rows, gpus, dropped = read_all(truth, device)
        print(f"{device}: {rows.row.size} rows; {dropped} faster than the peak rate left out")
        even = rows.row % 2 == 0
        alike = fit(rows.pick(even), gpus.pick(even), tuple(n for n in MODES["run"] if n != "sequence_s"))
        off = np.abs(predict("token", rows, gpus, alike) / rows.token_s - 1)[~even]
        full = off[rows.batch[~even] == 64].mean()
        print(f" run without sequence_s, odd rows: token MAPE {off.mean():.1%}, of batch 64 {full:.1%}")
        for title, even in (("odd rows", rows.row % 2 == 0), ("unseen points", every_second_point(rows))):
            for run, part in fitted_parts(rows, gpus, even, dropped):
                if part.suite == "prompt":
                    numbers = " ".join(f"{name}={getattr(run, name):.3g}" for name in MODES[part.mode])
                    print(f" {part.mode}, {title}: {numbers}")
                off, ratio = part.predicted / part.measured - 1, part.measured / part.predicted
                by = " ".join(f"{n:.0f}: {np.abs(off[rows.gpus[~even] == n]).mean():.1%}" for n in np.unique(rows.gpus))
                print(
                    f"  {part.suite}: n={off.size} MAPE {np.abs(off).mean():.1%}, bias {-np.log(ratio).mean():+.1%}, "
                    f"the interval holds {part.covered():.1%}; by GPUs {by}"
                )


if __name__ == "__main__":
    main()
