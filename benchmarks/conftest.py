"""Yardsticks: pieces of fixed work, of the nature of what is timed (interpreter or array arithmetic).

Each is timed just before and just after a benchmark. What is compared is the ratio to it, so a baseline taken on one
machine holds on another, and a busy minute slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest


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
