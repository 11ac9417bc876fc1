"""How long one call of a kernel takes, on a CUDA device or a CPU.

A kernel is a function of the call's number, which chooses the copy of the weights that the call reads, so
that no call finds its weights where the last one left them. Times are medians of repeats, each long enough
for the clock.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[int], object]
"""Launches the kernel; its argument is the number of the call."""
Timer = Callable[[Call, int], float]
"""Seconds of one call of a kernel that cycles through so many copies of its weights."""

MINIMUM_S = 0.01
"""What one repeat measures at least."""
CPU_REPEATS, CUDA_REPEATS = 3, 5
WARM_CYCLES = 3
SHORT_S = 2e-3
"""A cycle shorter than this is captured ``SHORT_CYCLES`` times, so that starting the graph weighs nothing."""
SHORT_CYCLES = 10
MOST = 10**6
"""Launches in a repeat, for a clock that does not move."""


def per_launch(run: Callable[[int], float], repeats: int, minimum_s: float = MINIMUM_S) -> float:
    """Median seconds of one launch. ``run(n)`` launches n times and returns the seconds that took.

    n grows until a repeat takes ``minimum_s``; the repeat that first does is one of the ``repeats``.
    """
    count, took = 1, run(1)
    while took < minimum_s and count < MOST:
        wanted = 1.2 * count * minimum_s / took if took > 0 else math.inf
        count = min(MOST, max(count + 1, math.ceil(min(wanted, 10 * count))))
        took = run(count)
    return statistics.median([took, *(run(count) for _ in range(repeats - 1))]) / count


def cpu_timer(call: Call, copies: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call by the clock, after one that warms up; calls go on through the copies."""
    done = 0

    def run(count: int) -> float:
        nonlocal done
        numbers = range(done, done + count)
        done += count
        start = clock()
        for number in numbers:
            call(number % copies)
        return clock() - start

    run(1)
    return per_launch(run, CPU_REPEATS)


def cuda_timer(call: Call, copies: int, cuda: Any = None, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call in a CUDA graph of whole cycles through the copies, by CUDA events around its replays.

    ``cuda``: what stands for ``torch.cuda``.
    """
    if cuda is None:
        import torch

        cuda = torch.cuda

    def cycle(times: int) -> None:
        for number in range(copies * times):
            call(number % copies)

    # Libraries set themselves up at their first call, which a capture forbids; on a side stream, as captures are.
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        cycle(WARM_CYCLES)
        cuda.synchronize()
        start = clock()
        cycle(1)
        cuda.synchronize()
        short = clock() - start < SHORT_S
    cuda.current_stream().wait_stream(side)

    times = SHORT_CYCLES if short else 1
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        cycle(times)
    graph.replay()
    cuda.synchronize()

    def run(count: int) -> float:
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            graph.replay()
        end.record()
        cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3  # events count milliseconds

    return per_launch(run, CUDA_REPEATS) / (copies * times)
