"""Attention in AttAcc's banks, bank groups and buffers: runs of its cycle-level simulator against command trains.

    python -m tokenfab.validation.pim --truth DIR

Reads ``TRUTH/accel/attacc_hbm3_pim_attention.csv`` (see the NOTES.md there): runs that AttAcc ships of its Ramulator
with HBM3 and PIM commands, each ``nhead`` heads of ``L`` cached tokens in one stack, with and without a power limit.
The time is the device file's (:mod:`tokenfab.hw.pim_unit`) of one of its stacks; ``interval`` is the column interval
under the power limit, ``interval_unlimited`` without. Of each device's rows, in the table's order, the even ones are
what ``stall`` (the one constant that the timing does not say) and the interval are fitted on; the odd ones are
reported. Keys, values, scores and probabilities have ``dbyte`` bytes; the simulator moves no results to a host.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..hw.devices import load_device
from ..hw.parameters import parameter
from ..hw.pim_unit import Unit, unit_of
from ..workloads.expr_functions import Array
from .kernels import MissingTableError
from .part import Part

SUITE = "pim-attention"
FILE = Path("accel") / "attacc_hbm3_pim_attention.csv"
LEVELS = {"attacc-bank": "BA", "attacc-bank-group": "BG", "attacc-buffer": "BUFFER"}
"""Device of the catalogue, and the table's ``pim_type``."""
DEVICES = tuple(LEVELS)
COLUMNS = ("L", "nhead", "dhead", "dbyte", "cycle")


@dataclass(frozen=True)
class Runs:
    """Runs of one level, (N,) each: tokens, heads, elements per key, bytes per element, power limit, seconds."""

    tokens: Array
    heads: Array
    width: Array
    bytes_each: Array
    limited: Array
    seconds: Array
    dropped: int

    def rows(self, pick: slice) -> Runs:
        """Some of the rows."""
        arrays = (self.tokens, self.heads, self.width, self.bytes_each, self.limited, self.seconds)
        return _runs([x[pick] for x in arrays], self.dropped)


def read_runs(truth: Path, device: str) -> Runs:
    """The runs of ``device``'s level. Raises ``MissingTableError`` without them, ``InputError`` for a broken table."""
    path, clock = truth / FILE, load_device(device).parameters["clock_period"].value
    if not path.is_file():
        raise MissingTableError(f"{path}: not there; --truth or TOKENFAB_TRUTH names the folder of measurements")
    found, dropped = [], 0
    with path.open(newline="", encoding="utf-8") as table:
        for number, row in enumerate(csv.DictReader(table), 2):
            if row.get("pim_type") != LEVELS[device]:
                continue
            try:
                values = [float(row[name]) for name in COLUMNS]
            except (KeyError, TypeError, ValueError):
                raise InputError(f"{path}, line {number}: accepted: numbers in {', '.join(COLUMNS)}") from None
            if min(values) > 0 and np.isfinite(values).all():
                found.append([*values[:4], float(row.get("power_constraint") == "True"), values[4] * clock])
            else:
                dropped += 1
    if len(found) < 2:
        raise MissingTableError(f"{path}: fewer than two rows of {LEVELS[device]}")
    return _runs(list(np.array(found).T), dropped)


def _runs(columns: list[Array], dropped: int) -> Runs:
    tokens, heads, width, bytes_each, limited, seconds = columns
    return Runs(tokens, heads, width, bytes_each, limited, seconds, dropped)


def stack_of(device: str, *, limited: bool) -> Unit:
    """The units of one stack of ``device``, with or without the power limit."""
    held = load_device(device)
    unit = unit_of(held)
    channels = unit.geometry.channels // round(parameter(held, "stacks"))
    unit = replace(unit, geometry=replace(unit.geometry, channels=channels))
    return unit if limited else unit.unlimited(parameter(held, "interval_unlimited"))


def predict(runs: Runs, device: str, stall: float | None = None) -> Array:
    """Seconds of ``runs``, (N,); ``stall``: in place of the device file's."""
    out = np.empty_like(runs.seconds)
    for limited in (False, True):
        unit = stack_of(device, limited=limited)
        unit = unit if stall is None else replace(unit, stall=stall)
        for width, each in {*zip(runs.width, runs.bytes_each, strict=True)}:
            here = (runs.width == width) & (runs.bytes_each == each) & (runs.limited == limited)
            one = np.ones(int(here.sum()))
            spent = unit.attention(runs.heads[here], runs.tokens[here], (width, width), one, each, each)
            out[here] = spent.seconds
    return out


def fit_stall(runs: Runs, device: str) -> float:
    """The factor of time that leaves the mean logarithm of measured over predicted time at 0."""
    return float(np.exp(np.mean(np.log(runs.seconds / predict(runs, device, 1.0)))))


def quantiles(runs: Runs, device: str) -> tuple[float, float]:
    """5 % and 95 % quantile of measured over predicted time, as a device file has them: around 1."""
    low, high = np.quantile(runs.seconds / predict(runs, device), [0.05, 0.95])
    return min(float(low), 1.0), max(float(high), 1.0)


def compare(truth: Path, device: str) -> Iterator[Part]:
    """The odd rows of ``device``'s level, with the device file's interval."""
    runs = read_runs(truth, device)
    odd, held = runs.rows(slice(1, None, 2)), load_device(device).intervals["attention_dram"]
    predicted = predict(odd, device)
    low, high = np.full_like(predicted, held.low.value), np.full_like(predicted, held.high.value)
    yield Part(SUITE, "calibrated", odd.seconds, predicted, low, high, runs.dropped)


def main() -> None:
    """Print what the device files should say, and the errors of the odd rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, default=Path(os.environ.get("TOKENFAB_TRUTH", "../shared/truth")))
    truth = parser.parse_args().truth
    for device in DEVICES:
        runs = read_runs(truth, device)
        even, odd = runs.rows(slice(0, None, 2)), runs.rows(slice(1, None, 2))
        low, high = quantiles(even, device)
        error, bare = (np.abs(predict(odd, device, stall) / odd.seconds - 1).mean() for stall in (None, 1.0))
        held = load_device(device).parameters["stall"].value
        print(f"{device}: stall {fit_stall(even, device):.4f} on {even.seconds.size} even rows (the file has {held:g})")
        print(f"  interval {low:.3f} to {high:.3f}; odd rows: MAPE {error:.2%}, with stall 1 {bare:.2%}")


if __name__ == "__main__":
    main()
