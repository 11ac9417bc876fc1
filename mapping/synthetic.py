"""Synthetic layer graphs with memories that bind, to measure solvers on: eight operators per layer, no two alike."""

from __future__ import annotations

import numpy as np

from .problem import Block, Edge, Objective, Operator, Problem

PER_LAYER = 8


def layer_graph(layers: int, devices: int, seed: int, slack: float = 1.25) -> Problem:
    """A chain of ``8 · layers`` operators with two residual edges per layer, each on one of ``devices``, for latency.

    Seeded: devices differ in speed (1 to 4 times) and by operator (0.7 to 1.4), links in bandwidth; memories
    hold ``slack`` times all operators together, divided unevenly, so that the fastest devices fill up.
    """
    rng = np.random.default_rng(seed)
    speed = rng.uniform(1.0, 4.0, devices)
    bandwidth = rng.uniform(1.0, 6.0, (devices, devices))
    bandwidth = np.minimum(bandwidth, bandwidth.T)
    latency = 0.02 * (1 - np.eye(devices))
    count = PER_LAYER * layers
    operators, sizes = [], []
    for i in range(count):
        work = rng.uniform(0.2, 2.0)
        time = (work / speed * rng.uniform(0.7, 1.4, devices))[:, None]
        busy = np.zeros((devices, 1, devices))
        busy[np.arange(devices), 0, np.arange(devices)] = time[:, 0]
        size = rng.uniform(0.5, 2.0)
        sizes.append(size)
        operators.append(
            Operator(f"{i // PER_LAYER}.{i % PER_LAYER}", tuple(f"device {d}" for d in range(devices)), time, busy,
                     np.zeros(devices), np.zeros(devices), size * np.eye(devices), np.ones(devices, dtype=bool))
        )  # fmt: skip

    def edge(source: int, target: int) -> Edge:
        moved = rng.uniform(0.05, 0.5)
        delay = latency + moved / bandwidth * (1 - np.eye(devices))
        none = np.zeros((devices, devices))
        return Edge(source, target, delay[:, :, None], np.zeros((devices, devices, 1, devices)), none, none,
                    np.ones((devices, devices), dtype=bool))  # fmt: skip

    edges = [edge(i - 1, i) for i in range(1, count)]
    edges += [edge(i - PER_LAYER // 2, i) for i in range(PER_LAYER // 2, count, PER_LAYER // 2)]
    capacity = slack * sum(sizes) * rng.dirichlet(np.full(devices, 8.0))
    block = Block("layers", tuple(operators), tuple(edges), count - 1)
    names = tuple(f"device {d}" for d in range(devices))
    return Problem(("pass",), np.ones(1), names, names, capacity, 0.0, (block,), (0,), Objective())
