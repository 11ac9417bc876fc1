"""Element-wise kernels of real layers against the roofline.

    python -m tokenfab.validation.vector --truth DIR

Reads ``TRUTH/vidur/profiling/compute/a100/*/*/mlp.csv.gz`` (see the NOTES.md there): norms, rotary
embedding, gated activation and residual add of Llama models on an A100-80G, 1 to 16,384 tokens, 1, 2, 4 and 8
devices. Nothing is fitted here: launch and DRAM share are those of the device file, from GEMMs. The interval
is of the even rows, its coverage of the odd ones. The tables time kernels alone, in whole microseconds; the
roofline adds the launch, so that kernels of a few microseconds come out long.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..hw.devices import load_device

Array = npt.NDArray[np.float64]

DEVICE = "a100-80g-sxm"
FLOAT16 = 2
"""Bytes per element of the tables."""


@dataclass(frozen=True)
class Measured:
    """Element-wise kernels: operator, bytes read and written once each, seconds; (N,)."""

    name: npt.NDArray[np.str_]
    bytes: Array
    seconds: Array
    dropped: int

    def half(self, odd: bool) -> Measured:
        """Even rows (the interval) or odd rows (its coverage)."""
        pick = slice(1 if odd else 0, None, 2)
        return Measured(self.name[pick], self.bytes[pick], self.seconds[pick], self.dropped)


def read_vector(truth: Path) -> Measured:
    """Every element-wise kernel of the tables; times of zero are dropped and counted.

    Raises ``InputError`` when there are none under ``truth``.
    """
    folder = truth / "vidur" / "profiling" / "compute" / "a100"
    paths = sorted(folder.glob("*/*/mlp.csv.gz"))
    if not paths:
        raise InputError(f"{folder}: no */*/mlp.csv.gz there; --truth names the folder of measurements")
    rows, dropped = [], 0
    for path in paths:
        with gzip.open(path, "rt", newline="") as file:
            for row in csv.DictReader(file):
                for name, moved in _elements(row).items():
                    seconds = float(row.get(f"time_stats.{name}.median") or 0) / 1e3
                    if seconds > 0:
                        rows.append((name, FLOAT16 * moved, seconds))
                    else:
                        dropped += 1
    names, moved_bytes, times = zip(*rows, strict=True)
    return Measured(np.array(names), np.array(moved_bytes), np.array(times), dropped)


def _elements(row: dict[str, str]) -> dict[str, float]:
    """Elements read and written by each kernel of a row, on one of its devices."""
    tokens, hidden, inner = (int(row[x]) for x in ("num_tokens", "n_embd", "n_expanded_embd"))
    devices, kv_share = int(row["num_tensor_parallel_workers"]), int(row["n_kv_head"]) / int(row["n_head"])
    return {
        "input_layernorm": 2 * tokens * hidden,
        "post_attention_layernorm": 2 * tokens * hidden,
        "attn_rope": 2 * tokens * hidden * (1 + kv_share) / devices,  # queries and keys, in place
        "mlp_act": 3 * tokens * inner / devices,  # gate and up read, their product written
        "add": 3 * tokens * hidden,
    }


def predict(rows: Measured) -> Array:
    """Seconds under the roofline: launch and the DRAM stream (their arithmetic is far below it)."""
    device = load_device(DEVICE)
    m = device.model
    return np.asarray(m.launch.value + rows.bytes / (m.memory_efficiency.value * device.dram.bandwidth.value))


def main() -> None:
    """Print errors, interval and coverage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    rows = read_vector(Path(parser.parse_args().truth))
    even, odd = rows.half(odd=False), rows.half(odd=True)
    low, high = np.quantile(even.seconds / predict(even), [0.05, 0.95])
    ratio = odd.seconds / predict(odd)
    covered = np.mean((ratio >= low) & (ratio <= high))
    error = np.mean(np.abs(1 / ratio - 1))
    print(f"{DEVICE}, odd rows: n={ratio.size} MAPE {error:.1%} ({rows.dropped} rows left out)")
    for name in np.unique(odd.name):
        here = ratio[odd.name == name]
        five, median, most = np.quantile(here, [0.05, 0.5, 0.95])
        print(f"  {name}: measured over predicted {five:.2f} {median:.2f} {most:.2f}")
    print(f"  interval of the even rows {low:.3f} to {high:.3f} covers {covered:.1%} of the odd rows")


if __name__ == "__main__":
    main()
