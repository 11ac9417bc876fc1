"""Random placement problems and their optimum by trying everything."""

from __future__ import annotations

import itertools

import numpy as np

from tokenfab.mapping.problem import INPUT, Block, Choice, Edge, Objective, Operator, Problem, evaluate


def random_problem(
    seed: int, operators: int = 6, devices: int = 3, *, phases: int = 1, tightness: float = 0.6,
    objective: Objective | None = None, forbid: float = 0.05, layered: bool = False,
) -> Problem:  # fmt: skip
    """A random DAG of operators on devices of random speed, links and memory: option k is device k."""
    rng = np.random.default_rng(seed)
    speed = rng.uniform(0.5, 2.0, devices)
    resources = devices + devices
    link = rng.uniform(0.05, 1.0, (devices, devices)) * rng.choice([0.2, 1.0, 3.0])
    np.fill_diagonal(link, 0)

    def operator(name: str) -> Operator:
        time = rng.uniform(0.2, 2.0) / speed[:, None] * rng.uniform(0.7, 1.4, (devices, phases))
        busy = np.zeros((devices, phases, resources))
        busy[np.arange(devices), :, np.arange(devices)] = time
        memory = np.eye(devices) * rng.uniform(0.1, 2.0)
        allowed = rng.random(devices) > forbid
        allowed[int(rng.integers(devices))] = True
        cost = time.sum(axis=1) * rng.uniform(0.5, 3.0, devices)
        energy = time.sum(axis=1) * rng.uniform(50, 500, devices)
        return Operator(name, tuple(f"d{k}" for k in range(devices)), time, busy, energy, cost, memory, allowed)

    def edge(source: int, target: int) -> Edge:
        size = rng.uniform(0.1, 2.0)
        delay = np.repeat((link * size)[:, :, None], phases, axis=2)
        busy = np.zeros((devices, devices, phases, resources))
        for a in range(devices):
            for b in range(devices):
                busy[a, b, :, devices + a] = delay[a, b]
        allowed = np.ones((devices, devices), bool)
        return Edge(source, target, delay, busy, link * size * 10, np.zeros((devices, devices)), allowed)

    def block(name: str, count: int, entered: bool) -> Block:
        ops = tuple(operator(f"op{i}") for i in range(count))
        edges = [edge(int(rng.integers(j)), j) for j in range(1, count)]
        edges += [edge(i, j) for i, j in itertools.combinations(range(count), 2) if rng.random() < 1 / (2 * count)]
        if entered:
            edges.append(edge(INPUT, 0))
        if layered:  # the output is what everything leads to
            leading = {e.source for e in edges}
            edges += [edge(i, count - 1) for i in range(count - 1) if i not in leading]
        return Block(name, ops, tuple(edges), count - 1)

    if layered:
        blocks = (block("first", 1, False), block("layer", operators, True), block("last", 2, True))
        order = (0, *[1] * int(rng.integers(2, 4)), 2)
    else:
        blocks, order = (block("all", operators, False),), (0,)
    total = sum(float(blocks[b].operators[i].memory.max()) for b in order for i in range(len(blocks[b].operators)))
    capacity = rng.dirichlet(np.ones(devices) * 2) * total / tightness
    repeats = np.array([1.0, 7.0, 3.0][:phases])
    return Problem(
        tuple(f"phase{f}" for f in range(phases)), repeats, tuple(f"r{r}" for r in range(resources)),
        tuple(f"d{k}" for k in range(devices)), capacity, float(rng.uniform(0, 100)), blocks, order,
        objective or Objective(),
    )  # fmt: skip


def brute_force(problem: Problem) -> tuple[float, list[Choice] | None]:
    """The least value of all feasible placements, and one that has it."""
    best: tuple[float, list[Choice] | None] = (np.inf, None)
    each = [
        [c for c in itertools.product(*(range(len(op.options)) for op in problem.blocks[b].operators))
         if all(op.allowed[k] for op, k in zip(problem.blocks[b].operators, c, strict=True))]
        for b in problem.order
    ]  # fmt: skip
    for layers in itertools.product(*each):
        found = evaluate(problem, layers)
        if found.feasible and found.value < best[0]:
            best = (found.value, list(layers))
    return best
