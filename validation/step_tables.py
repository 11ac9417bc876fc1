"""How far tables of decode steps are from the cost model they are made of.

    python -m tokenfab.validation.step_tables

:class:`tokenfab.serving.steps.StepModel` evaluates batches and contexts at knots and interpolates. Here decode steps
at random batches and contexts (:data:`CONTEXTS`), even or with one long sequence, are asked of both; the cost model's
answer is averaged over :data:`TILE` keys around the context, because a batch has contexts of all remainders.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

from ..hw.cost import cost
from ..hw.devices import load_device
from ..serving.steps import StepModel
from ..workloads.capture import capture
from ..workloads.techniques import apply_techniques

PAIRS = (
    ("llama-2-7b", "a100-80g-sxm"), ("llama-2-7b", "h100-sxm"), ("mistral-7b", "l40s"), ("mixtral-8x7b", "h100-sxm"),
)  # fmt: skip
BATCHES = ((1, 32), (33, 256))
CONTEXTS = (200, 8000)
LONGER = 4096
"""Most tokens by which the one long sequence exceeds the mean."""
TILE = 128


def errors(model: str, device: str, batches: tuple[int, int], uneven: bool, points: int) -> npt.NDArray[np.float64]:
    """|table / cost model − 1| of ``points`` decode steps of ``batches`` (least and most) sequences, (points,)."""
    trace = capture(model)
    steps = StepModel(trace, load_device(device), longest=CONTEXTS[1] + LONGER)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(points):
        low, high = batches[0], batches[1] + 1
        n = int(np.exp(rng.uniform(np.log(low), np.log(high))))
        mean = float(round(np.exp(rng.uniform(*np.log(CONTEXTS)))))
        # n sequences of that mean: the longest has n times it at most.
        longer = float(rng.integers(0, int(min(LONGER, (n - 1) * mean)))) if uneven and n > 1 else 0.0
        asked = apply_techniques(trace, [f"load:skew={(mean + 1 + longer) / (mean + 1)!r}"]) if longer else trace
        tile = mean + TILE * ((np.arange(16) + 0.5) / 16 - 0.5)
        found.append(steps.decode_s(n, mean, longer) / cost(asked, steps.device, n, 1, tile).latency_s.mean() - 1)
    return np.asarray(np.abs(np.array(found, dtype=float)))


def main() -> None:
    """Print a line per model and device: mean and largest error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200, help="decode steps per figure")
    points = parser.parse_args().points
    heads = [f"{low}–{high}, {kind}" for low, high in BATCHES for kind in ("even", "one long")]
    print(f"{'mean (largest) error, sequences':36s}" + "".join(f"{head:>18s}" for head in heads))
    for model, device in PAIRS:
        cells = []
        for batches in BATCHES:
            for uneven in (False, True):
                off = errors(model, device, batches, uneven, points)
                cells.append(f"{off.mean():.2%} ({off.max():.1%})")
        print(f"{model + ' on ' + device:36s}" + "".join(f"{cell:>18s}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
