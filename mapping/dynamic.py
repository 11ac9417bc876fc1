"""Dynamic programming without capacities, and with prices on memory: a bound and a feasible answer in little time.

Without capacities the best placement of a layer graph is found exactly by elimination (:mod:`.eliminate`), layer after
layer. Capacities are brought in by prices (Lagrange): for any prices p ≥ 0

    bound(p) = min over placements of (value + p · (memory − capacity))      never above the optimum

and p moves along the excess (limits on metrics have prices alike), with Polyak's step (Held, Wolfe and Crowder,
Mathematical Programming 6, 1974). Each placement met is made feasible by the moves that cost least per byte. A
bottleneck max(busy) is bounded by any mean of what resources are busy; the mean's weights move towards the busiest one.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .eliminate import TooWideError
from .priced import PricedBlock, Prices, first_shares, metric_prices, objective_prices
from .problem import INPUT, ROUNDING, Array, Block, Choice, Edge, Operator, Problem, evaluate, flat, unflatten


@dataclass(frozen=True)
class Answer:
    """The best feasible layers met (or none), their value, and the best bound."""

    layers: list[Choice] | None
    value: float
    bound: float
    rounds: int


def sum_weights(problem: Problem) -> Prices:
    """Prices under which a sum over operators and edges stands for the objective: a bottleneck counts as busy seconds
    spread evenly over the resources."""
    prices = objective_prices(problem)
    even = np.full(len(problem.resources), problem.objective.weights.get("throughput", 0.0))
    return replace(prices, resource=even / max(1, len(problem.resources)))


def own_costs(problem: Problem, block: Block, prices: Prices) -> list[Array]:
    """Cost of each operator's options by themselves; infinity where not allowed."""
    return [_weighed(problem, op, op.time_s, prices) + prices.loss * op.losses for op in block.operators]


def between_costs(problem: Problem, block: Block, prices: Prices) -> list[Array]:
    """Cost of each edge for all pairs of places; infinity where not allowed."""
    return [_weighed(problem, edge, edge.delay_s, prices) for edge in block.edges]


def _weighed(problem: Problem, part: Operator | Edge, seconds: Array, prices: Prices) -> Array:
    """Cost of each option of ``part``, or pair of them, that takes ``seconds`` (…, phases)."""
    return np.where(
        part.allowed,
        seconds @ prices.phase + np.einsum("f,...fr,r->...", problem.repeats, part.busy_s, prices.resource)
        + prices.energy * part.energy_j + prices.cost * part.cost_usd, np.inf,
    )  # fmt: skip


@dataclass
class Chain:
    """Layers one after another under prices: the best sequence by dynamic programming over their boundaries.

    ``full``: every operator and every edge is counted, as if the pass waited for each transfer. Otherwise those along
    :func:`.priced.first_shares`, which bounds the longest path from below. Raises ``TooWideError``.
    """

    problem: Problem
    full: bool

    def __post_init__(self) -> None:
        self.blocks: dict[int, PricedBlock] = {}
        for b in set(self.problem.order):
            block = self.problem.blocks[b]
            shares = first_shares(self.problem, block)
            if self.full:
                shares.nodes[:] = 1.0
                shares.edges[:] = 1.0
            self.blocks[b] = PricedBlock(self.problem, block, shares)

    def best(self, prices: Prices) -> tuple[float, list[Choice]]:
        """The least sum and its layers; infinity and none where nothing is allowed."""
        found = {b: p.price(prices) for b, p in self.blocks.items()}
        total: Array | None = None
        back: list[Array] = []
        for b in self.problem.order:
            table = found[b].table
            if self.blocks[b].entry < 0:
                total, steps = table, np.full(table.shape, -1)
            else:
                sums = (np.zeros(table.shape[0]) if total is None else total)[:, None] + table
                total, steps = sums.min(axis=0), np.argmin(sums, axis=0)
            back.append(steps)
        assert total is not None
        at = int(np.argmin(total))
        value = float(total[at])
        if not np.isfinite(value):
            return np.inf, []
        layers = []
        for b, steps in zip(reversed(self.problem.order), reversed(back), strict=True):
            entry = int(steps[at])
            layers.append(self.blocks[b].choice(found[b], (at,) if self.blocks[b].entry < 0 else (entry, at)))
            at = entry
        return value, layers[::-1]


def chain(problem: Problem) -> list[Choice] | None:
    """The optimum of the sum without capacities and limits. Nothing where the graph is too wide."""
    try:
        return Chain(problem, full=True).best(sum_weights(problem))[1] or None
    except TooWideError:
        return None


def repair(problem: Problem, layers: Sequence[Choice]) -> list[Choice] | None:
    """``layers`` with operators moved until all pools hold what they must: always the move that costs least per byte
    of excess it removes. Nothing where no move helps."""
    prices = sum_weights(problem)
    (block,) = flat(problem).blocks
    choice = [k for layer in layers for k in layer]
    places = list(block.places(tuple(choice)))
    own, between = own_costs(problem, block, prices), between_costs(problem, block, prices)
    touching: list[list[int]] = [[] for _ in block.operators]
    for e, edge in enumerate(block.edges):
        touching[edge.source].append(e)
        touching[edge.target].append(e)
    capacity = problem.capacity
    used = np.sum([op.memory[k] for op, k in zip(block.operators, choice, strict=True)], axis=0)

    def move(i: int) -> tuple[float, int]:
        """(Cost per byte of excess removed, option) of the best move of operator i; infinity where none helps."""
        memory, k = block.operators[i].memory, choice[i]
        excess = np.maximum(used - capacity, 0)
        gain = excess.sum() - np.maximum(used - memory[k] + memory - capacity, 0).sum(axis=1)
        values = own[i].copy()
        for e in touching[i]:
            edge = block.edges[e]
            to_places = between[e][places[edge.source]] if edge.target == i else between[e][:, places[edge.target]]
            values += to_places[block.operators[i].place]
        usable = (gain > 1e-12 * excess.sum()) & np.isfinite(values)
        if not usable.any():
            return np.inf, k
        rate = np.full(len(values), np.inf)
        rate[usable] = (values[usable] - values[k]) / gain[usable]
        best = int(np.argmin(rate))
        return float(rate[best]), best

    heap: list[tuple[float, int]] = []
    if (used > capacity * (1 + ROUNDING)).any():
        heap = [(move(i)[0], i) for i in range(len(choice))]
        heapq.heapify(heap)
    moves = 0
    while (used > capacity * (1 + ROUNDING)).any():
        if not heap or moves > 8 * len(choice):
            return None
        stale, i = heapq.heappop(heap)
        rate, k = move(i)
        if not np.isfinite(rate):
            continue
        if heap and rate > heap[0][0] and rate > stale:  # what was known of it is old: back in its place
            heapq.heappush(heap, (rate, i))
            continue
        memory = block.operators[i].memory
        used = used - memory[choice[i]] + memory[k]
        choice[i], places[i] = k, int(block.operators[i].place[k])
        moves += 1
        for j in {i, *(block.edges[e].source for e in touching[i]), *(block.edges[e].target for e in touching[i])}:
            if j != INPUT and np.isfinite(again := move(j)[0]):
                heapq.heappush(heap, (again, j))
    return unflatten(problem, tuple(choice))


def lagrange(
    problem: Problem, *, rounds: int = 200, time_limit: float = 10.0, gap: float = 1e-4, known: float = np.inf,
    pool: Array | None = None, limits: Mapping[str, float] | None = None,
) -> Answer:  # fmt: skip
    """Bound and feasible placement under prices on memory and limits. ``known``: the value of a placement that is at
    hand; ``pool``, ``limits``: prices to begin with, per byte and per unit of a metric.

    Raises ``TooWideError`` where the graph is. Limits on the bottleneck are not priced; what breaks limits is not
    returned.
    """
    began = time.process_time()
    lower = Chain(problem, full=False)
    named = [name for name in problem.objective.limits if name != "throughput"]
    allowed = np.array([problem.objective.limits[name] for name in named])
    weight = problem.objective.weights.get("throughput", 0.0)
    mean = np.full(len(problem.resources), 1.0 / max(1, len(problem.resources)))
    memories = len(problem.pools)
    scale = np.maximum(problem.capacity, 1.0)
    price = np.concatenate([
        np.zeros(memories) if pool is None else pool * scale, [(limits or {}).get(n, 0.0) for n in named] * allowed
    ])  # fmt: skip
    budget = np.concatenate([problem.capacity / scale, np.ones(len(named))])
    best_layers: list[Choice] | None = None
    best, bound, step, stuck, done = np.inf, -np.inf, 1.0, 0, 0
    for done in range(1, rounds + 1):
        metrics = dict(problem.objective.weights)
        for name, p in zip(named, price[memories:] / allowed, strict=True):
            metrics[name] = metrics.get(name, 0.0) + float(p)
        prices = replace(metric_prices(problem, metrics), resource=weight * mean, pool=price[:memories] / scale)
        value, layers = lower.best(prices)
        if not layers:
            return Answer(None, np.inf, np.inf, done)
        here = value - float(price @ budget)
        stuck = 0 if here > bound else stuck + 1
        bound = max(bound, here)
        if stuck >= 10:
            step, stuck = step / 2, 0
        seen = evaluate(problem, layers)
        if seen.feasible and seen.value < best:
            best, best_layers = seen.value, layers
        if done < 8 or done % 5 == 0:
            mended = repair(problem, layers)
            if mended is not None:
                found = evaluate(problem, mended)
                if found.feasible and found.value < best:
                    best, best_layers = found.value, mended
        upper = min(best, known)
        if upper - bound <= gap * abs(upper) or time.process_time() - began > time_limit:
            break
        used = np.array([seen.metrics[name] for name in named])
        excess = np.concatenate([seen.totals.memory / scale, used / allowed]) - budget
        excess[(price <= 0) & (excess < 0)] = 0.0
        if weight:
            busiest = np.zeros_like(mean)
            busiest[int(np.argmax(seen.totals.busy_s))] = 1.0
            mean += (busiest - mean) / (done + 1)
        norm = float(excess @ excess)
        if norm:
            target = (upper if np.isfinite(upper) else bound + max(abs(bound), 1e-9)) - here
            price = np.maximum(0.0, price + step * max(target, 0.0) / norm * excess)
        _shift_paths(problem, lower, layers, 1 / (done + 2))
    return Answer(best_layers, best, bound, done)


def _shift_paths(problem: Problem, lower: Chain, layers: Sequence[Choice], step: float) -> None:
    """Move the blocks' path shares towards the longest paths of a placement, all layers of a block counting alike."""
    seen: dict[int, dict[tuple[int, Choice], int]] = {}
    entry = 0
    for b, choice in zip(problem.order, layers, strict=True):
        known = seen.setdefault(b, {})
        known[entry, choice] = known.get((entry, choice), 0) + 1
        entry = problem.blocks[b].exit(choice)
    for b, patterns in seen.items():
        left, count = 1.0, sum(patterns.values())
        for (at, choice), times in patterns.items():
            # one after another, so that each ends with its part of the step
            part = step * times / count
            lower.blocks[b].shares.towards(problem, lower.blocks[b].block, at, choice, part / (left or 1.0))
            left -= part
