"""The timers of ``tokenfab measure`` against clocks, and a ``torch.cuda``, whose answers are known."""

from __future__ import annotations

import contextlib

import pytest

from tokenfab.validation import timing


class Clock:
    """Time that passes only when something says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("cost", [2e-6, 3e-4, 0.004, 0.5])
def test_a_call_costs_what_the_clock_says(cost):
    clock, calls = Clock(), []

    def call(number: int) -> None:
        calls.append(number)
        clock.now += cost

    assert timing.cpu_timer(call, 6, clock) == pytest.approx(cost, rel=1e-6)
    assert calls[:13] == [i % 6 for i in range(len(calls))][:13]
    assert calls == [i % 6 for i in range(len(calls))]  # no repeat begins with the weights of the last
    assert len(calls) < 2 + 20 * max(1, timing.MINIMUM_S / cost)


def test_a_launch_is_the_median_of_repeats_that_are_long_enough():
    taken = []

    def run(count: int) -> float:
        taken.append(count)
        slow = {0: 1, 1: 5, 2: 1, 3: 1}[sum(c * 0.001 >= 0.01 for c in taken[:-1])]  # one repeat is disturbed
        return 0.001 * count * slow

    assert timing.per_launch(run, 4, minimum_s=0.01) == pytest.approx(0.001)
    long = [count for count in taken if count * 0.001 >= 0.01]
    assert len(long) == 4
    assert len(set(long)) == 1
    assert timing.per_launch(lambda count: {1: 0.5}[count], 3) == 0.5  # one launch is enough


def test_a_clock_that_stands_still_ends():
    assert timing.per_launch(lambda count: 0.0, 3) == 0


class Cuda:
    """Stands for ``torch.cuda``: a kernel takes 20 µs, starting a graph 5 µs; what a capture holds is replayed."""

    def __init__(self, clock: Clock, kernel_s: float) -> None:
        self.clock, self.kernel_s = clock, kernel_s
        self.streams, self.capturing, self.captured, self.synchronised = 0, None, [], 0
        cuda = self

        class Graph:
            calls: list[int]

            def replay(self) -> None:
                assert cuda.capturing is None
                cuda.clock.now += 5e-6 + cuda.kernel_s * len(self.calls)

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = cuda.clock.now

            def elapsed_time(self, end) -> float:
                return (end.at - self.at) * 1e3

        self.CUDAGraph, self.Event = Graph, Event

    def call(self, number: int) -> None:
        assert self.streams  # what comes first comes on a side stream
        if self.capturing is None:
            self.clock.now += self.kernel_s
        else:
            self.capturing.append(number)

    def Stream(self):  # noqa: N802
        self.streams += 1
        return self

    def wait_stream(self, other) -> None: ...

    def current_stream(self):
        return self

    @contextlib.contextmanager
    def stream(self, stream):
        yield

    @contextlib.contextmanager
    def graph(self, graph):
        self.capturing = []
        yield
        self.captured, graph.calls, self.capturing = self.capturing, self.capturing, None

    def synchronize(self) -> None:
        assert self.capturing is None  # CUDA forbids it
        self.synchronised += 1


@pytest.mark.parametrize(("kernel_s", "cycles"), [(20e-6, 10), (0.004, 1)])
def test_a_cuda_graph_holds_whole_cycles_through_the_weights(kernel_s, cycles):
    clock = Clock()
    cuda = Cuda(clock, kernel_s)
    found = timing.cuda_timer(cuda.call, 6, cuda, clock)
    assert cuda.captured == list(range(6)) * cycles
    assert found == pytest.approx(kernel_s + 5e-6 / (6 * cycles), rel=1e-6)
    assert cuda.synchronised >= 2 + timing.CUDA_REPEATS
