"""Serving, timed: simulated requests per processor second. ``make bench`` compares with ``baseline.json``.

Lengths are those of Azure's conversation trace where the measured data is there, else drawn from lognormal
distributions with its means (prompts of 1,155 and answers of 211 tokens); the model's context is 4,096 tokens.
The largest run, which nobody wants to wait for each time:

    python benchmarks/bench_serving.py 1000000 100        # requests, replicas
"""

from __future__ import annotations

import csv
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tokenfab.hw.devices import load_device
from tokenfab.serving.cluster import Cluster
from tokenfab.serving.run import serve
from tokenfab.workloads.capture import capture
from tokenfab.workloads.request_log import RequestLog, plain

TRUTH = Path(os.environ.get("TOKENFAB_TRUTH") or Path(__file__).resolve().parents[2] / "shared" / "truth")
CONTEXT = 4096


def lengths(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and answers, in tokens."""
    rng = np.random.default_rng(1)
    path = TRUTH / "azure" / "AzureLLMInferenceTrace_conv.csv"
    if path.exists():
        with path.open(newline="") as file:
            rows = np.array([(int(r["ContextTokens"]), int(r["GeneratedTokens"])) for r in csv.DictReader(file)])
    else:
        rows = np.exp(rng.normal((6.5, 4.9), (1.1, 0.9), (40_000, 2))).astype(int) + 1
    rows = rows[rows.sum(axis=1) <= CONTEXT]
    at = np.arange(n) if n <= len(rows) else rng.integers(0, len(rows), n)
    return rows[at, 0], rows[at, 1]


def requests(n: int, rate: float) -> RequestLog:
    return plain(np.cumsum(np.random.default_rng(0).exponential(1 / rate, n)), *lengths(n))


def cluster(replicas: int = 1) -> Cluster:
    return Cluster(capture("llama-2-7b"), load_device("a100-80g-sxm"), replicas=replicas, longest=CONTEXT)


@pytest.fixture(scope="module")
def log() -> RequestLog:
    return requests(1000, 2.0)


def finished(log: RequestLog, on: Cluster) -> int:
    document = serve(log, on, "vllm", interval=False)[0]
    return document["requests"]["finished"]


def test_serve_1000_requests_at_2_per_second(benchmark, log):
    """Paging, energy, all metrics; the tables of step times filled by a run before."""
    benchmark.extra_info["yardstick"] = "python"
    on = cluster()
    assert benchmark.pedantic(finished, args=(log, on), rounds=15, warmup_rounds=2) == 1000
    if not benchmark.disabled:
        benchmark.extra_info["requests_per_s"] = 1000 / benchmark.stats.stats.min


def test_serve_1000_requests_with_tables_to_fill(benchmark, log):
    """The same from nothing but a captured trace."""
    benchmark.extra_info["yardstick"] = "python"
    trace, device = capture("llama-2-7b"), load_device("a100-80g-sxm")
    setup = lambda: ((log, Cluster(trace, device, longest=CONTEXT)), {})  # noqa: E731
    assert benchmark.pedantic(finished, setup=setup, rounds=15, warmup_rounds=2) == 1000
    if not benchmark.disabled:
        benchmark.extra_info["requests_per_s"] = 1000 / benchmark.stats.stats.min


def main(n: int, replicas: int) -> None:
    log, on = requests(n, 2.0 * replicas), cluster(replicas)
    wall, start = time.perf_counter(), time.process_time()
    document = serve(log, on, "vllm", interval=False)[0]
    used, wall = time.process_time() - start, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{document['requests']['finished']} of {n} requests on {replicas} replicas: {used:.1f} processor seconds "
        f"({n / used:.0f} requests per second), {wall:.1f} s, {peak / 1e9:.2f} GB at the peak"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
