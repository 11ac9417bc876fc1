"""Whole batches through the serving engine against real servers: time to the last token of Llama-2-70B.

    python -m tokenfab.validation.engines --truth DIR

Reads ``TRUTH/splitwise/perf_model.csv`` through :mod:`.requests`, which fits what the engine of these servers adds to
the GPUs' part, on even rows. Here those numbers are an engine profile, each row's batch arrives at once, and the
simulator of :mod:`tokenfab.serving` serves it: prompts in one iteration, then a step per token. Reported on odd rows:
measured = prompt + token · (tokens − 1). The interval is the estimate's and what even rows scatter beyond it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..hw.devices import load_device
from ..serving.cluster import Cluster
from ..serving.engine import EngineProfile
from ..serving.memory import KvMemory
from ..serving.run import ends_of, simulate
from ..workloads.expr_functions import Array
from ..workloads.load import load_trace
from ..workloads.parallel import Parallel
from ..workloads.request_log import plain
from .part import Part
from .requests import HARDWARE, MODEL, MODES, Run, fit, read_all, rest

SUITE = "engine"
MODE = "run_tokens"
"""Of :data:`.requests.MODES`: what a prompt adds grows with its tokens."""
HELD = KvMemory.given(10**7, 16, 10**4)
"""Whatever was measured found room."""


def profile_of(run: Run) -> EngineProfile:
    """What a server's run adds, as a profile: launches hide behind the device, the rest does not."""
    return EngineProfile(
        "run", asynchronous=1, host_s=run.launch_s, step_s=run.step_s, sequence_s=run.sequence_s,
        prompt_s=run.first_s, prompt_token_s=run.token_s,
        seats=10**4,
    )  # fmt: skip


def batch_s(cluster: Cluster, prompt: int, batch: int, output: int) -> tuple[float, float, float]:
    """Seconds to the last token of ``batch`` requests that arrive at once, and the ends of its interval."""
    log = plain(np.zeros(batch), np.full(batch, prompt), np.full(batch, output))
    runs = [simulate(log, cluster, "orca")]
    runs += [simulate(log, replace(cluster, slower=ends), "orca") for ends in ends_of(runs[0])]
    now, low, high = (float(np.max(r.outcome.finish_s)) for r in runs)
    return now, low, high


def compare(truth: Path, device: str) -> Iterator[Part]:
    """End-to-end seconds of odd rows. Raises as :func:`.requests.read_requests`; nothing of a device without rows."""
    if device not in HARDWARE:
        return
    rows, gpus, dropped = read_all(truth, device)
    even = rows.row % 2 == 0
    run = fit(rows.pick(even), gpus.pick(even), MODES[MODE])
    trace, held, profile = load_trace(MODEL), load_device(device), profile_of(run)
    clusters: dict[int, Cluster] = {}
    found: dict[tuple[int, ...], tuple[float, float, float]] = {}
    times: Array = np.empty((rows.row.size, 3))
    longest = int((rows.prompt + rows.output).max())
    for i, key in enumerate(zip(rows.gpus, rows.prompt, rows.batch, rows.output, strict=True)):
        point = (count, prompt, batch, output) = tuple(int(x) for x in key)
        if count not in clusters:
            clusters[count] = Cluster(trace, held, Parallel(count), 1, profile, longest, HELD)
        if point not in found:
            found[point] = batch_s(clusters[count], prompt, batch, output)
        times[i] = found[point]
    measured = rows.prompt_s + rows.token_s * (rows.output - 1)
    now, ratio = times[:, 0], measured / times[:, 0]
    half = 1 - times[:, 1] / now, times[:, 2] / now - 1
    more = rest(ratio[even], (half[0][even], half[1][even]))
    low, high = (np.hypot(side, least)[~even] for side, least in zip(half, more, strict=True))
    yield Part(SUITE, "run", measured[~even], now[~even], 1 - low, 1 + high, dropped)


def main() -> None:
    """Print the errors per device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    for device in HARDWARE:
        for part in compare(truth, device):
            off = part.predicted / part.measured - 1
            print(
                f"{device}: n={off.size}, MAPE {np.abs(off).mean():.1%}, bias {off.mean():+.1%}, "
                f"90 % of the rows within {np.quantile(np.abs(off), 0.9):.1%}, the interval holds {part.covered():.1%}"
            )


if __name__ == "__main__":
    main()
