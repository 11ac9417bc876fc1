"""The two power constants, earned on measured servers.

While a GPU decodes it draws a static part and a part in proportion to the bytes it moves:

    power = static share × TDP + 8 × bytes per second × (DRAM energy + transport energy)

The tensor-parallel degree varies the bytes each GPU moves per second at nearly the same time per
token, which separates the two. Fitted on the Splitwise runs of Llama-2-70B on 2 and 8 A100-80GB
(average power as a share of TDP), reported on those on 4, since runs of one setting repeat:

    python -m tokenfab.validation.power --truth DIR
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..hw.devices import load_device
from ..workloads.expr_functions import Array
from ..workloads.load import load_trace
from ..workloads.parallel import tensor_parallel

DEVICE = "a100-80g-sxm"
MODEL = "llama-2-70b"


def read_runs(truth: Path) -> tuple[Array, Array, Array]:
    """Devices, bytes moved per second and device, and watts per device, of each run with a power reading.

    Prompts longer than 1024 are left out: their average mixes in the prompt phase. Raises
    ``InputError`` when the table is not there.
    """
    path = truth / "splitwise" / "perf_model.csv"
    if not path.is_file():
        raise InputError(f"{path}: not there; --truth or TOKENFAB_TRUTH names the folder of measurements")
    tdp = load_device(DEVICE).power.tdp.value
    trace = load_trace(MODEL)
    moved = {world: tensor_parallel(trace, world).total("bytes") for world in (2, 4, 8)}
    rows = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            prompt, share = int(row["prompt_size"]), float(row["average_power"])
            if row["hardware"] != "a100-80gb" or share <= 0 or prompt > 1024:
                continue
            context = prompt + int(row["token_size"]) / 2
            world = int(row["tensor_parallel"])
            step = float(moved[world](int(row["batch_size"]), 1, context))
            rows.append((world, step / (float(row["token_time"]) / 1e3), share * tdp))
    table = np.array(rows)
    return table[:, 0], table[:, 1], table[:, 2]


def fit(bytes_per_s: Array, watts: Array) -> tuple[float, float]:
    """Static watts and joules per byte, least squares on relative error."""
    design = np.stack([np.ones_like(bytes_per_s), bytes_per_s], axis=1) / watts[:, None]
    solution, *_ = np.linalg.lstsq(design, np.ones_like(watts), rcond=None)
    return float(solution[0]), float(solution[1])


def main() -> None:
    """Print the constants and their errors on the half that was not fitted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    world, rate, watts = read_runs(Path(parser.parse_args().truth))
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


if __name__ == "__main__":
    main()
