"""Random small placement problems, and their optimum by trying everything: what the mapper is held against."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from .problem import INPUT, Array, Block, Choice, Edge, Objective, Operator, Problem

SIZES = ((8, 2), (5, 3), (6, 3), (7, 2), (4, 3))
"""Operators and devices."""
OBJECTIVES = (
    Objective(), Objective({"throughput": 1.0}), Objective({"energy": 1.0}), Objective({"cost": 1.0}),
    Objective({"latency": 1.0, "energy": 0.01, "cost": 0.1}),
)  # fmt: skip
FORMAT_SIZES = ((7, 2, 2), (4, 2, 3), (5, 3, 2), (6, 2, 2), (3, 3, 3))
"""Operators, devices, formats."""
FORMAT_OBJECTIVES = (
    Objective(), Objective({"throughput": 1.0}), Objective({"energy": 1.0}), Objective({"loss": 1.0}),
    Objective({"latency": 1.0, "energy": 0.01, "loss": 2.0}),
)  # fmt: skip


def place_case(seed: int) -> Problem:
    """The seed's problem: 4 to 8 operators on 2 or 3 devices, any objective, every third with a limit on latency."""
    operators, devices = SIZES[seed % len(SIZES)]
    problem = random_problem(seed, operators, devices, phases=1 + seed % 2, objective=OBJECTIVES[seed // 5 % 5])
    return _limited(problem, 1.15) if seed % 3 == 0 else problem


def format_case(seed: int) -> Problem:
    """The seed's problem with formats, every other one with a limit on quality, every fifth with one on latency."""
    operators, devices, formats = FORMAT_SIZES[seed % len(FORMAT_SIZES)]
    problem = random_problem(
        seed, operators, devices, formats=formats, quality=seed % 2 == 0, phases=1 + seed % 3 // 2,
        objective=FORMAT_OBJECTIVES[seed // 5 % 5],
    )  # fmt: skip
    return _limited(problem, 1.1) if seed % 5 == 0 else problem


def _limited(problem: Problem, share: float) -> Problem:
    """With a limit on latency a little above the fastest placement's, where one fits."""
    fastest = try_everything(replace(problem, objective=Objective()))[0]
    if not np.isfinite(fastest):
        return problem
    return replace(problem, objective=Objective(problem.objective.weights, {"latency": share * fastest}))


def random_problem(
    seed: int, operators: int = 6, devices: int = 3, *, phases: int = 1, tightness: float = 0.6,
    objective: Objective | None = None, forbid: float = 0.05, layered: bool = False, formats: int = 1,
    quality: bool = False,
) -> Problem:  # fmt: skip
    """A random DAG of operators on devices of random speed, links and memory: option k is device k, or device k //
    formats in format k % formats, each narrower and lossier than the one before; ``quality``: a pool of loss."""
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
        made = Operator(name, tuple(f"d{k}" for k in range(devices)), time, busy, energy, cost, memory, allowed)
        return made if formats == 1 and not quality else in_formats(made)

    def in_formats(op: Operator) -> Operator:
        """Every option in every format: smaller; faster or, of some operators, slower (conversion); of some loss."""
        width = np.cumprod([1.0, *rng.uniform(0.3, 0.8, formats - 1)])
        speed = rng.uniform(0.6, 1.15, (devices, formats)) ** np.arange(formats)
        loss = rng.uniform(0.1, 2.0) * np.concatenate([[0.0], np.cumsum(rng.uniform(0.2, 1.0, formats - 1))])
        at, form = np.divmod(np.arange(devices * formats), formats)
        s = speed[at, form]
        memory = op.memory[at] * width[form][:, None]
        if quality:
            memory = np.concatenate([memory, loss[form][:, None]], axis=1)
        return Operator(
            op.name, tuple(op.options[d] for d in at), op.time_s[at] * s[:, None], op.busy_s[at] * s[:, None, None],
            op.energy_j[at] * s, op.cost_usd[at] * s, memory, op.allowed[at] & (rng.random(len(at)) > forbid / 2),
            at=at, formats=tuple(f"f{f}" for f in form), loss=loss[form],
        )  # fmt: skip

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

    blocks: tuple[Block, ...]
    order: tuple[int, ...]
    if layered:
        blocks = (block("first", 1, False), block("layer", operators, True), block("last", 2, True))
        order = (0, *[1] * int(rng.integers(2, 4)), 2)
    else:
        blocks, order = (block("all", operators, False),), (0,)
    everything = [op for b in order for op in blocks[b].operators]
    total = sum(float(op.memory[:, :devices].max()) for op in everything)
    capacity = rng.dirichlet(np.ones(devices) * 2) * total / (tightness * formats**0.5)
    if quality:
        worst = sum(float(op.losses.max()) for op in everything)
        capacity = np.append(capacity, rng.uniform(0.05, 0.8) * worst)
    repeats = np.array([1.0, 7.0, 3.0][:phases])
    return Problem(
        tuple(f"phase{f}" for f in range(phases)), repeats, tuple(f"r{r}" for r in range(resources)),
        (*(f"d{k}" for k in range(devices)), *(["loss"] if quality else [])), capacity,
        float(rng.uniform(0, 100)), blocks, order, objective or Objective(),
    )  # fmt: skip


def try_everything(problem: Problem) -> tuple[float, Choice | None]:
    """The least value of all feasible placements of a problem of one block, and one that has it (∞ and nothing where
    none fits): arrays over all choices at once, which share no code with :func:`.problem.evaluate`."""
    (block,) = problem.blocks
    sizes = [len(op.options) for op in block.operators]
    chosen = np.stack([x.ravel() for x in np.indices(sizes)])
    n, phases, resources = chosen.shape[1], len(problem.phases), len(problem.resources)
    fits = np.ones(n, dtype=bool)
    memory = np.zeros((n, len(problem.pools)))
    busy = np.zeros((n, resources))
    energy, cost, loss = np.zeros(n), np.zeros(n), np.zeros(n)
    finish: list[Array] = []
    at = [k if op.at is None else op.at[k] for op, k in zip(block.operators, chosen, strict=True)]
    for j, (op, k) in enumerate(zip(block.operators, chosen, strict=True)):
        fits &= op.allowed[k]
        memory += op.memory[k]
        energy += op.energy_j[k]
        cost += op.cost_usd[k]
        loss += 0 if op.loss is None else op.loss[k]
        busy += np.tensordot(op.busy_s[k], problem.repeats, axes=([1], [0]))
        start = np.zeros((n, phases))
        for edge in block.edges:
            if edge.target != j:
                continue
            pair = at[edge.source], at[j]
            fits &= edge.allowed[pair]
            energy += edge.energy_j[pair]
            cost += edge.cost_usd[pair]
            busy += np.tensordot(edge.busy_s[pair], problem.repeats, axes=([1], [0]))
            start = np.maximum(start, finish[edge.source] + edge.delay_s[pair])
        finish.append(start + op.time_s[k])
    path = np.max(finish, axis=0)
    latency = path @ problem.repeats
    metric = {"latency": latency, "throughput": busy.max(axis=1), "energy": energy + problem.idle_w * latency,
              "cost": cost, "loss": loss, **dict(zip(problem.phases, path.T, strict=True))}  # fmt: skip
    fits &= (memory <= problem.capacity * (1 + 1e-9) + 1e-9).all(axis=1)
    for name, limit in problem.objective.limits.items():
        fits &= metric[name] <= limit * (1 + 1e-9)
    value = np.where(fits, sum(w * metric[name] for name, w in problem.objective.weights.items()), np.inf)
    best = int(np.argmin(value))
    if not np.isfinite(value[best]):
        return np.inf, None
    return float(value[best]), tuple(int(k) for k in chosen[:, best])
