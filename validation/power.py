"""The two power constants, earned on measured servers.

While a GPU decodes it draws a static part and a part in proportion to the bytes it moves:

    power = static share × TDP + 8 × bytes per second × (DRAM energy + transport energy)

The tensor-parallel degree varies the bytes each GPU moves per second at nearly the same time per
token, which separates the two. Fitted on the Splitwise runs of Llama-2-70B on 2 and 8 A100-80GB
(average power as a share of TDP), reported on those on 4, since runs of one setting repeat.

Two further figures of the same runs were never fitted: the peak, which the prompt phase sets, and the average over
runs with prompts longer than 1024, which mixes both phases. Held against them are the power that the card's file
predicts for each phase in the time that was measured, at most the rated one:

    power = static + (energy of arithmetic, DRAM and transport of the pass) / measured seconds

    python -m tokenfab.validation.power --truth DIR
"""

from __future__ import annotations

import argparse
import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..hw.cost import cost
from ..hw.devices import load_device
from ..workloads.compiled import compile_trace
from ..workloads.expr_functions import Array
from ..workloads.load import load_trace
from ..workloads.parallel import tensor_parallel

DEVICE = "a100-80g-sxm"
MODEL = "llama-2-70b"
LONGEST_FITTED = 1024
"""Prompt tokens; the average of a longer one mixes in the prompt phase."""
IDLE_READING = 0.25
"""Share of TDP below which an average is that of a card that waits: no run can draw less than its static part."""


def _table(truth: Path) -> list[dict[str, str]]:
    """The runs on this card that have a power reading."""
    path = truth / "splitwise" / "perf_model.csv"
    if not path.is_file():
        raise InputError(f"{path}: not there; --truth or TOKENFAB_TRUTH names the folder of measurements")
    with path.open(newline="") as file:
        return [r for r in csv.DictReader(file) if r["hardware"] == "a100-80gb" and float(r["average_power"]) > 0]


def read_runs(truth: Path) -> tuple[Array, Array, Array]:
    """Devices, bytes moved per second and device, and watts per device, of each run with a power reading.

    Prompts longer than 1024 are left out: their average mixes in the prompt phase. Raises
    ``InputError`` when the table is not there.
    """
    tdp = load_device(DEVICE).power.tdp.value
    trace = load_trace(MODEL)
    moved = {world: tensor_parallel(trace, world).total("bytes") for world in (2, 4, 8)}
    rows = []
    for row in _table(truth):
        prompt = int(row["prompt_size"])
        if prompt > LONGEST_FITTED:
            continue
        context = prompt + int(row["token_size"]) / 2
        world = int(row["tensor_parallel"])
        step = float(moved[world](int(row["batch_size"]), 1, context))
        rows.append((world, step / (float(row["token_time"]) / 1e3), float(row["average_power"]) * tdp))
    table = np.array(rows)
    return table[:, 0], table[:, 1], table[:, 2]


@dataclass(frozen=True)
class Phases:
    """Runs with a power reading, (runs,) each: devices, prompt tokens, and shares of TDP, measured and predicted."""

    devices: Array
    prompt: Array
    peak: Array
    average: Array
    predicted_peak: Array
    predicted_average: Array


def read_phases(truth: Path) -> Phases:
    """Peak and average power of the runs, beside what the card's file predicts. Raises ``InputError`` as
    :func:`read_runs` does."""
    card = load_device(DEVICE)
    trace, tdp = load_trace(MODEL), card.power.tdp.value
    share = {world: compile_trace(tensor_parallel(trace, world)) for world in (2, 4, 8)}
    rows, known = [], {}
    for row in _table(truth):
        world, prompt, batch, tokens = (
            int(row[x]) for x in ("tensor_parallel", "prompt_size", "batch_size", "token_size")
        )
        seconds = float(row["prompt_time"]) / 1e3, float(row["token_time"]) / 1e3 * (tokens - 1)
        point = (world, prompt, batch, tokens)
        if point not in known:
            passes = cost(share[world], card, batch, prompt, 0), cost(share[world], card, batch, 1, prompt + tokens / 2)
            dynamic = [sum(float(e[0]) for part, e in p.energy_parts_j.items() if part != "static") for p in passes]
            static = float(passes[0].energy_parts_j["static"][0] / passes[0].latency_s[0])
            known[point] = (dynamic[0], dynamic[1] * (tokens - 1), static)
        first, rest, static = known[point]
        phases = [min(static + joules / s, tdp) for joules, s in zip((first, rest), seconds, strict=True)]
        average = sum(watts * s for watts, s in zip(phases, seconds, strict=True)) / sum(seconds)
        measured = float(row["peak_power"]), float(row["average_power"])
        rows.append((world, prompt, *measured, max(phases) / tdp, average / tdp))
    return Phases(*np.array(rows).T)


def fit(bytes_per_s: Array, watts: Array) -> tuple[float, float]:
    """Static watts and joules per byte, least squares on relative error."""
    design = np.stack([np.ones_like(bytes_per_s), bytes_per_s], axis=1) / watts[:, None]
    solution, *_ = np.linalg.lstsq(design, np.ones_like(watts), rcond=None)
    return float(solution[0]), float(solution[1])


def main() -> None:
    """Print the constants and their errors on the half that was not fitted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    world, rate, watts = read_runs(truth)
    held_out = world == 4
    static, per_byte = fit(rate[~held_out], watts[~held_out])
    card = load_device(DEVICE)
    dram = card.dram.energy.value if card.dram.energy else 0.0
    print(f"{rate.size} runs; static {static:.0f} W = {static / card.power.tdp.value:.3f} of TDP")
    bit = per_byte / 8
    print(f"{bit * 1e12:.1f} pJ per bit moved, of which DRAM {dram * 1e12:.2f}, transport {(bit - dram) * 1e12:.1f}")
    ratio = watts[held_out] / (static + per_byte * rate[held_out])
    low, high = np.quantile(ratio, [0.05, 0.95])
    error = np.mean(np.abs(1 / ratio - 1))
    print(f"held out (4 devices): n={ratio.size} MAPE {error:.1%}; measured/predicted 5..95 %: {low:.3f}..{high:.3f}")
    p = read_phases(truth)
    waits = p.average < IDLE_READING
    groups = {
        "peak, prompts of 512 and more (never fitted)": (p.peak, p.predicted_peak, p.prompt >= 512),
        "peak, shorter prompts (never fitted)": (p.peak, p.predicted_peak, p.prompt < 512),
        f"average, prompts over {LONGEST_FITTED} (never fitted)":
            (p.average, p.predicted_average, (p.prompt > LONGEST_FITTED) & ~waits),
        f"average, prompts to {LONGEST_FITTED}, 4 devices (held out)":
            (p.average, p.predicted_average, (p.prompt <= LONGEST_FITTED) & (p.devices == 4)),
    }  # fmt: skip
    for name, (measured, predicted, chosen) in groups.items():
        off = predicted[chosen] / measured[chosen] - 1
        if not off.size:
            print(f"{name}: none in the table")
            continue
        print(f"{name}: n={off.size} MAPE {np.mean(np.abs(off)):.1%}, bias {np.mean(off):+.1%}")
    print(f"{waits.sum()} averages below {IDLE_READING:.0%} of TDP, less than a card draws while it computes: left out")


if __name__ == "__main__":
    main()
