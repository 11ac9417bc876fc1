"""The hot paths of the spine, timed. ``make bench`` compares them with ``baseline.json``.

Each benchmark names a yardstick (``conftest.py``). Times are processor times, of the whole process where one is
started. What the issue promises in seconds is asserted beside it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from tokenfab.hw.cost import cost
from tokenfab.hw.devices import load_device
from tokenfab.workloads.capture import capture
from tokenfab.workloads.compiled import compile_trace
from tokenfab.workloads.expr import parse
from tokenfab.workloads.trace import Trace

MODEL = "llama-2-7b"
DEVICE = "h100-sxm"
PROGRAM = [sys.executable, "-c", "from tokenfab.cli import main; main()"]
LLM_VIEWER_S = 62e-6
"""One configuration of a 7B model by LLM-Viewer, per the project's own measurement on such a machine."""
GENZ_S = 25e-3
"""The same by GenZ."""
CORES = 2  # of the machine that the promised points per second are for


@pytest.fixture(scope="module")
def trace() -> Trace:
    return capture(MODEL)


def children() -> float:
    """A timer of processes: processor seconds of those that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start(*arguments: str) -> None:
    subprocess.run([*PROGRAM, *arguments], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)


def test_capture_a_model(benchmark):
    benchmark.extra_info["yardstick"] = "python"
    benchmark.pedantic(capture, args=(MODEL,), rounds=10, warmup_rounds=1)


def test_read_a_trace_file(benchmark, trace, tmp_path):
    benchmark.extra_info["yardstick"] = "python"
    trace.save(tmp_path / "trace.json")

    def read() -> Trace:
        parse.cache_clear()
        return Trace.load(tmp_path / "trace.json")

    assert benchmark(read) == trace


def test_compile_a_trace(benchmark, trace):
    benchmark.extra_info["yardstick"] = "python"
    benchmark(compile_trace, trace)


def test_size_a_trace_at_200000_points(benchmark, trace):
    benchmark.extra_info["yardstick"] = "arrays"
    compiled = compile_trace(trace)
    rng = np.random.default_rng(0)
    b, q, c = (rng.integers(1, 4096, 200_000) for _ in range(3))
    flops = benchmark(lambda: compiled.quantity("flops", compiled.basis_at(b, q, c)))
    assert flops.shape[1] == 200_000


@pytest.mark.benchmark(timer=children)
def test_answer_help_from_a_shell(benchmark):
    benchmark.extra_info["yardstick"] = "python"
    benchmark.pedantic(start, args=("--help",), rounds=10, warmup_rounds=1)
    assert benchmark.disabled or benchmark.stats.stats.min <= 0.5


@pytest.mark.benchmark(timer=children)
def test_capture_a_70b_model_from_a_shell(benchmark):
    """Imports of torch included."""
    benchmark.extra_info["yardstick"] = "python"
    benchmark.pedantic(start, args=("trace", "llama-2-70b", "--json"), rounds=3, warmup_rounds=1)
    assert benchmark.disabled or benchmark.stats.stats.min <= 5


def points(n: int) -> tuple[np.ndarray, ...]:
    """``n`` random batches, query lengths (half of them decode steps) and contexts."""
    rng = np.random.default_rng(0)
    query = np.where(rng.random(n) < 0.5, 1, rng.integers(1, 2048, n))
    return rng.integers(1, 256, n), query, rng.integers(0, 2048, n)


def test_cost_100000_points(benchmark, trace):
    benchmark.extra_info["yardstick"] = "arrays"
    compiled, device, at = compile_trace(trace), load_device(DEVICE), points(100_000)
    costs = benchmark(cost, compiled, device, *at)
    assert costs.latency_s.shape == (100_000,)
    if not benchmark.disabled:
        per_s = 100_000 / (benchmark.stats.stats.min / CORES)
        benchmark.extra_info["points_per_s_on_two_cores"] = per_s
        assert per_s >= 500_000
        # Operators that differ; a layer's count once, however often it runs.
        benchmark.extra_info["operators_per_s_on_two_cores"] = per_s * len(compiled.rows)
        assert per_s * len(compiled.rows) >= 1_000_000
        benchmark.extra_info["processor_us_per_point"] = benchmark.stats.stats.min / 100_000 * 1e6
        assert benchmark.stats.stats.min / 100_000 < LLM_VIEWER_S


def test_cost_one_point(benchmark, trace):
    """What a call takes that asks for one configuration only."""
    benchmark.extra_info["yardstick"] = "python"
    compiled, device = compile_trace(trace), load_device(DEVICE)
    costs = benchmark(cost, compiled, device, 16, 1, 1024)
    assert costs.latency_s.shape == (1,)
    assert benchmark.disabled or benchmark.stats.stats.min < GENZ_S


def test_cost_two_million_points_in_bounded_memory(benchmark, trace):
    """At its peak, what is returned two and a half times (chunks, joined, inputs); never operators × points."""
    benchmark.extra_info["yardstick"] = "arrays"
    compiled, device, at = compile_trace(trace), load_device(DEVICE), points(2_000_000)
    benchmark.pedantic(cost, args=(compiled, device, *at), rounds=1)
    tracemalloc.start()
    costs = cost(compiled, device, *at)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    benchmark.extra_info["peak_bytes_per_point"] = peak / 2e6
    assert costs.latency_s.shape == (2_000_000,)
    assert peak <= 2.5 * held
    assert peak < compiled.counts.size * 2_000_000 * 8 * 4  # four arrays of (operators, points)
