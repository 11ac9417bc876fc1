"""The hot paths of the spine, timed. ``make bench`` compares them with ``baseline.json``.

Each benchmark names a yardstick: a piece of fixed work of the same nature (interpreter or array
arithmetic), timed just before and just after it. What is compared is the ratio to it, so a baseline
taken on one machine holds on another, and a busy minute slows both. Times are processor times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tokenfab.workloads.capture import capture
from tokenfab.workloads.compiled import compile_trace
from tokenfab.workloads.expr import parse
from tokenfab.workloads.trace import Trace

MODEL = "llama-2-7b"


@pytest.fixture(scope="module")
def trace() -> Trace:
    return capture(MODEL)


def count_words() -> int:
    """The interpreter's yardstick: dictionary and string work."""
    counts: dict[str, int] = {}
    for i in range(40_000):
        word = str(i % 997)
        counts[word] = counts.get(word, 0) + len(word)
    return sum(counts.values())


def multiply_arrays() -> float:
    """The arrays' yardstick: one product of the shape that pricing a sweep needs."""
    return float((np.ones((16, 12)) @ np.ones((12, 200_000))).sum())


YARDSTICKS: dict[str, Callable[[], object]] = {"python": count_words, "arrays": multiply_arrays}


def best_of(work: Callable[[], object], rounds: int = 7) -> float:
    """Shortest processor time of ``work``, in seconds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.fixture(autouse=True)
def yardsticks(benchmark) -> Iterator[None]:
    """Time both yardsticks around the benchmark and put the better time beside its result."""
    before = {name: best_of(work) for name, work in YARDSTICKS.items()}
    yield
    benchmark.extra_info["yardsticks_s"] = {n: min(before[n], best_of(work)) for n, work in YARDSTICKS.items()}


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
