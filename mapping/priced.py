"""A block under prices: the least that it can cost, exactly, by elimination.

Prices turn capacities, limits and bottlenecks into a sum over operators and edges (Lagrange): a second of phase f's
path costs ``phase[f]``, a busy second of resource r ``resource[r]``, a joule ``energy``, a dollar ``cost``, a unit of
loss ``loss``, a byte in pool m ``pool[m]``. The longest path is no sum; along one fixed path (or a mixture of paths,
*shares*) it is, and never more than the longest. So the minimum under shares bounds the true minimum from below, and
the best shares are sought by moving them towards the longest path of the placement found (Frank and Wolfe).

Under prices an operator takes the cheapest option of whatever place it is at: only places are eliminated, and formats
add nothing to the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .eliminate import Eliminated, Table, eliminate, elimination_order
from .problem import INPUT, Array, Block, Choice, Index, Problem, Totals, longest_path


@dataclass(frozen=True)
class Prices:
    """See the module's text; all at least 0."""

    phase: Array
    resource: Array
    energy: float
    cost: float
    pool: Array
    loss: float = 0.0

    def of(self, totals: Totals) -> float:
        """What ``totals`` cost."""
        return float(
            self.phase @ totals.path_s + self.resource @ totals.busy_s + self.energy * totals.energy_j
            + self.cost * totals.cost_usd + self.pool @ totals.memory + self.loss * totals.loss
        )  # fmt: skip


@dataclass
class Shares:
    """A mixture of paths through a block: (operators, F) and (edges, F), how much of the flow passes each."""

    nodes: Array
    edges: Array

    def towards(self, problem: Problem, block: Block, entry: int, choice: Choice, step: float) -> None:
        """Move by ``step`` (0 to 1) towards the longest paths of a placement."""
        phases = len(problem.phases)
        nodes, edges = np.zeros_like(self.nodes), np.zeros_like(self.edges)
        for f in range(phases):
            n, e = longest_path(block, entry, choice, f, phases)
            nodes[n, f] = 1.0
            edges[e, f] = 1.0
        self.nodes += step * (nodes - self.nodes)
        self.edges += step * (edges - self.edges)


def first_shares(problem: Problem, block: Block) -> Shares:
    """The path that is longest where every operator takes its fastest allowed option and nothing is in the way."""
    phases = len(problem.phases)
    shares = Shares(np.zeros((len(block.operators), phases)), np.zeros((len(block.edges), phases)))
    least = np.array([op.time_s[op.allowed].min(axis=0, initial=np.inf) for op in block.operators])
    least = np.where(np.isfinite(least), least, 0.0)
    tiny = 1e-12  # of paths that take equally long, the one with more operators
    for f in range(phases):
        best = np.zeros(len(block.operators))
        via = [-1] * len(block.operators)
        for j in range(len(block.operators)):
            for e in block.entering[j]:
                source = block.edges[e].source
                before = tiny if source == INPUT else best[source] + tiny
                if before > best[j]:
                    best[j], via[j] = before, e
            best[j] += least[j, f]
        j = int(np.argmax(best))
        while True:
            shares.nodes[j, f] = 1.0
            if via[j] < 0:
                break
            shares.edges[via[j], f] = 1.0
            j = block.edges[via[j]].source
            if j == INPUT:
                break
    return shares


@dataclass
class PricedBlock:
    """A block's tables, ready to be priced again and again. ``entry`` places of the input are a variable of their
    own where the block has one; that and the output are kept (the output only if ``closed`` is false)."""

    problem: Problem
    block: Block
    shares: Shares
    ends: bool = True
    sizes: list[int] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    keep: tuple[int, ...] = ()
    busy: list[Array] = field(default_factory=list)
    edge_busy: list[Array | None] = field(default_factory=list)
    entry: int = -1
    cheapest: list[Index] = field(default_factory=list)

    def __post_init__(self) -> None:
        block, repeats = self.block, self.problem.repeats
        self.sizes = [op.places for op in block.operators]
        inputs = [e for e in block.edges if e.source == INPUT]
        if inputs:
            self.entry = len(self.sizes)
            self.sizes.append(inputs[0].delay_s.shape[0])
        scopes = [self._scope(i) for i in range(len(block.edges))]
        self.keep = (*((self.entry,) if inputs else ()), *((block.output,) if self.ends else ()))
        self.order = elimination_order(self.sizes, [*scopes, tuple(sorted(self.keep))], self.keep)
        self.busy = [np.einsum("f,kfr->kr", repeats, op.busy_s) for op in block.operators]
        self.edge_busy = [np.einsum("f,klfr->klr", repeats, e.busy_s) if e.busy_s.any() else None for e in block.edges]

    def _scope(self, e: int) -> tuple[int, ...]:
        edge = self.block.edges[e]
        return tuple(sorted((self.entry if edge.source == INPUT else edge.source, edge.target)))

    def tables(self, prices: Prices) -> list[Table]:
        """All tables under ``prices``, over places; infinity where an option or a pair is not allowed."""
        found: list[Table] = []
        self.cheapest = []
        for i, op in enumerate(self.block.operators):
            values = op.time_s @ (prices.phase * self.shares.nodes[i]) + self.busy[i] @ prices.resource
            values = values + prices.energy * op.energy_j + prices.cost * op.cost_usd + op.memory @ prices.pool
            values = values + prices.loss * op.losses
            least, option = op.best_at(np.where(op.allowed, values, np.inf))
            self.cheapest.append(option)
            found.append(((i,), least))
        for e, edge in enumerate(self.block.edges):
            values = edge.delay_s @ (prices.phase * self.shares.edges[e])
            busy = self.edge_busy[e]
            if busy is not None and prices.resource.any():
                values = values + busy @ prices.resource
            values = values + prices.energy * edge.energy_j + prices.cost * edge.cost_usd
            values = np.where(edge.allowed, values, np.inf)
            source = self.entry if edge.source == INPUT else edge.source
            found.append(((source, edge.target), values) if source < edge.target else ((edge.target, source), values.T))
        return found

    def price(self, prices: Prices) -> Eliminated:
        """The least cost for every pair of (place of the input, place of the output)."""
        return eliminate(self.sizes, self.tables(prices), self.order, self.keep)

    def choice(self, found: Eliminated, at: tuple[int, ...]) -> Choice:
        """The block's options behind one entry of the table that was priced last."""
        places = found.assignment(at)
        return tuple(int(option[p]) for option, p in zip(self.cheapest, places, strict=False))


def objective_prices(problem: Problem) -> Prices:
    """What the objective itself asks for, but for the bottleneck, whose resource nobody knows yet (0 here)."""
    return metric_prices(problem, problem.objective.weights)


def metric_prices(problem: Problem, w: Mapping[str, float]) -> Prices:
    """Prices under which a sum stands for Σ w · metric, but for the bottleneck; pools for nothing."""
    through = w.get("latency", 0.0) + w.get("energy", 0.0) * problem.idle_w
    phase = np.array([through * n + w.get(p, 0.0) for p, n in zip(problem.phases, problem.repeats, strict=True)])
    return Prices(
        phase, np.zeros(len(problem.resources)), w.get("energy", 0.0), w.get("cost", 0.0),
        np.zeros(len(problem.pools)), w.get("loss", 0.0),
    )  # fmt: skip
