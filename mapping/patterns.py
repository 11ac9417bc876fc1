"""Layers by pattern: how many layers of each type are placed like this and how many like that.

Layers of one type are alike, so a placement is told by counts. A *pattern* is one layer's options, from a given place
of its input. With n[p] layers of pattern p, s[r, o] = 1 where run r of layers begins at place o of its input:

    minimise   objective(Σ n[p] · totals[p])
    Σ n[p] = layers            per run of like layers
    Σ_{p from o} n[p] − Σ_{p to o} n[p] = s[r, o] − s[r+1, o]        the layers of a run make one walk
    Σ n[p] · memory[p] ≤ capacity            metric ≤ limit          bottleneck ≥ Σ n[p] · busy[p]

There are too many patterns to list. The relaxation's prices say what a second, a byte, a busy second is worth, and the
best pattern at these prices is found exactly by elimination (:mod:`.priced`); patterns are added until none pays
(Gilmore and Gomory, Operations Research 9, 1961). What the best pattern would still gain bounds the optimum (Farley,
Operations Research 38, 1990). Then the counts are made whole. Rows are few, so few counts are fractional and the
rounding costs a few layers of dozens: the gap is small where layers are many. Layers that would walk a loop of their
own are put into the walk where they cost least, and cut off when they appear. The order of layers is a walk along the
counts (Hierholzer). Loops that cost nothing make the relaxation's bound low where layers are few:
:func:`.dynamic.lagrange`, which walks from layer to layer, mends it from the prices found here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pulp

from .priced import PricedBlock, Prices, first_shares, metric_prices
from .problem import Array, Choice, Problem, Totals, block_totals, evaluate, metrics_of, scaled
from .solver import solve_model

BATCH = 24
"""Patterns added per block and round at most."""
PAYS = 1e-7
"""Relative gain from which a pattern is worth adding."""
VARIATIONS = 6
"""Sets of nearby prices at which further patterns are sought before counts are made whole (and the seed)."""
MOST_SLACK = 1e4
"""Price of a capacity exceeded as a whole, over the worst placement known, from which excess is taken for needed."""
STALLED = 12
"""Rounds without a new pattern or a better bound, after which no more are tried."""


@dataclass(frozen=True)
class Pattern:
    """One layer of run ``run``: place of its input (−1: none) and of its output, all options, and what it takes."""

    run: int
    entry: int
    exit: int
    choice: Choice
    totals: Totals


@dataclass
class Relaxed:
    """The relaxation's optimum over the patterns at hand, its prices and duals."""

    value: float
    prices: Prices
    layer: Array
    flow: Array
    slack: dict[str, float]
    limits: dict[str, float]


@dataclass(frozen=True)
class Found:
    """Result: the best feasible layers (or none), their value, the bound on the optimum, by how much capacities and
    limits must be exceeded at least in the relaxation (nothing if it is feasible), rounds and patterns, and the last
    prices: value per byte of each pool, value per unit of each limited metric."""

    layers: list[Choice] | None
    value: float
    bound: float
    excess: dict[str, float]
    rounds: int
    patterns: int
    pool: Array
    limits: dict[str, float]


@dataclass
class Master:
    """The counting program, and the patterns it chooses from. ``elastic``: least excess instead of least value."""

    problem: Problem
    elastic: bool = False
    solver: str | None = None
    patterns: list[Pattern] = field(default_factory=list)
    known: set[tuple[int, int, Choice]] = field(default_factory=set)
    cuts: list[tuple[int, frozenset[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs = self.problem.runs
        self.places = max(
            (self.problem.blocks[b].operators[self.problem.blocks[b].output].places for b, _ in self.runs[:-1]),
            default=0,
        )
        last, count = self.runs[-1]
        if count > 1 or not self.places:
            block = self.problem.blocks[last]
            self.places = max(self.places, block.operators[block.output].places)

    # -- patterns ------------------------------------------------------------------------------------
    def add(self, run: int, entry: int, choice: Choice) -> bool:
        """Take in one pattern; false if it is there already."""
        if (run, entry, choice) in self.known:
            return False
        self.known.add((run, entry, choice))
        block = self.problem.blocks[self.runs[run][0]]
        totals = block_totals(self.problem, block, max(entry, 0), choice)
        self.patterns.append(Pattern(run, entry, block.exit(choice), choice, totals))
        return True

    def add_layers(self, layers: Sequence[Choice]) -> None:
        """Take in all patterns of a placement."""
        at, entry = 0, -1
        for run, (b, count) in enumerate(self.runs):
            for choice in layers[at : at + count]:
                self.add(run, entry, choice)
                entry = self.problem.blocks[b].exit(choice)
            at += count

    # -- the program -----------------------------------------------------------------------------------
    def program(
        self, *, whole: bool, slack_cost: float
    ) -> tuple[Any, list[Any], dict[tuple[int, int], Any], dict[str, Any]]:
        """The PuLP model, its counts, its walk's ends and its slacks. ``slack_cost`` of a whole capacity exceeded once
        more; 0: no slack."""
        problem, patterns = self.problem, self.patterns
        lp = pulp.LpProblem("patterns", pulp.LpMinimize)
        kind = pulp.LpInteger if whole else pulp.LpContinuous
        count = [lp.add_variable(f"n_{i}", 0, None, kind) for i in range(len(patterns))]
        closes = self.runs[-1][1] > 1
        ends = {
            (r, o): lp.add_variable(f"s_{r}_{o}", 0, 1, kind)
            for r in range(1, len(self.runs) + (1 if closes else 0)) for o in range(self.places)
        }  # fmt: skip
        by_run: list[list[int]] = [[] for _ in self.runs]
        for i, p in enumerate(patterns):
            by_run[p.run].append(i)
        for r, (_, layers) in enumerate(self.runs):
            lp += pulp.lpSum(count[i] for i in by_run[r]) == layers, f"layers_{r}"
            final = r == len(self.runs) - 1 and not closes
            for o in range(self.places):
                leaving = [count[i] for i in by_run[r] if patterns[i].entry == o]
                into = [] if final else [count[i] for i in by_run[r] if patterns[i].exit == o]
                here, after = ends.get((r, o)), None if final else ends.get((r + 1, o))
                lp += (
                    pulp.lpSum(leaving) - pulp.lpSum(into) - (0 if here is None else here)
                    + (0 if after is None else after) == 0,
                    f"walk_{r}_{o}",
                )  # fmt: skip
        for r in {r for r, _ in ends}:
            lp += pulp.lpSum(ends[r, o] for o in range(self.places)) == 1, f"ends_{r}"
        for c, (r, inside) in enumerate(self.cuts):
            within = [count[i] for i in by_run[r] if patterns[i].entry in inside and patterns[i].exit in inside]
            entering = [count[i] for i in by_run[r] if patterns[i].entry not in inside and patterns[i].exit in inside]
            begin = [ends[r, o] for o in inside if (r, o) in ends]
            lp += pulp.lpSum(within) <= self.runs[r][1] * pulp.lpSum(entering + begin), f"cut_{c}"

        def total(values: Sequence[float]) -> Any:
            return pulp.lpSum(v * n for v, n in zip(values, count, strict=True) if v)

        slack: dict[str, Any] = {}

        def spare(name: str) -> Any:
            if slack_cost <= 0:
                return 0
            slack[name] = lp.add_variable(f"slack_{len(slack)}", 0)
            return slack[name]

        for m, (pool, capacity) in enumerate(zip(problem.pools, problem.capacity, strict=True)):
            unit = max(float(capacity), 1.0)
            used = total([float(p.totals.memory[m]) / unit for p in patterns])
            lp += used <= float(capacity) / unit + spare(pool), f"capacity_{m}"
        w, limits = problem.objective.weights, problem.objective.limits
        bottleneck = lp.add_variable("bottleneck", 0) if w.get("throughput") or "throughput" in limits else None
        if bottleneck is not None:
            for r in range(len(problem.resources)):
                busy = total([float(p.totals.busy_s[r]) for p in patterns])
                lp += bottleneck >= busy, f"busy_{r}"
        each = [metrics_of(problem, p.totals) for p in patterns]
        for name, limit in limits.items():
            metric: Any = bottleneck if name == "throughput" else total([m[name] for m in each])
            lp += metric * (1 / limit) <= 1 + spare(name), f"limit_{name}"
        value = total([sum(v * m[name] for name, v in w.items() if name != "throughput") for m in each])
        if bottleneck is not None:
            value = value + w.get("throughput", 0.0) * bottleneck
        penalty = slack_cost * pulp.lpSum(slack.values())
        lp.setObjective(penalty if self.elastic else value + penalty)
        return lp, count, ends, slack

    def relax(self, slack_cost: float) -> Relaxed | None:
        """The relaxation's optimum and prices over the patterns at hand; nothing where they make no walk."""
        problem = self.problem
        lp, _, _, slack = self.program(whole=False, slack_cost=slack_cost)
        outcome = solve_model(lp, time_limit=30.0, solver=self.solver)
        if outcome.status != "optimal":
            return None
        dual = {c.name: float(c.pi or 0.0) for c in lp.constraints()}
        w = {} if self.elastic else dict(problem.objective.weights)
        units = np.maximum(problem.capacity, 1.0)
        pool = np.array([max(0.0, -dual[f"capacity_{m}"]) / units[m] for m in range(len(problem.pools))])
        limits = {n: max(0.0, -dual[f"limit_{n}"]) / limit for n, limit in problem.objective.limits.items()}
        for name, price in limits.items():
            w[name] = w.get(name, 0.0) + price
        busy = np.array([max(0.0, abs(dual.get(f"busy_{r}", 0.0))) for r in range(len(problem.resources))])
        return Relaxed(
            outcome.value, replace(metric_prices(problem, w), resource=busy, pool=pool),
            np.array([dual[f"layers_{r}"] for r in range(len(self.runs))]),
            np.array([[dual[f"walk_{r}_{o}"] for o in range(self.places)] for r in range(len(self.runs))]),
            {name: float(v.varValue or 0.0) for name, v in slack.items() if (v.varValue or 0.0) > 1e-7}, limits,
        )  # fmt: skip

    def whole(self, time_limit: float, gap: float) -> list[Choice] | None:
        """The best whole counts over the patterns at hand, as layers in order."""
        deadline = time.process_time() + time_limit
        best: list[Choice] | None = None
        value = np.inf
        for _ in range(20):
            lp, count, ends, _ = self.program(whole=True, slack_cost=1.0 if self.elastic else 0.0)
            left = max(0.2, deadline - time.process_time())
            outcome = solve_model(lp, time_limit=left, gap=gap, solver=self.solver)
            if not outcome.found:
                break
            numbers = [round(v.varValue) for v in count]
            start = {r: o for (r, o), v in ends.items() if round(v.varValue or 0) == 1}
            walks, stray, cuts = self.walk(numbers, start)
            layers = [choice for walk in walks for choice in walk]
            if not stray:
                seen = evaluate(self.problem, layers)
                return layers if self.elastic or (seen.feasible and seen.value < value) else best or layers
            if not self.elastic:
                layers = self.joined(walks, stray)
                seen = evaluate(self.problem, layers)
                if seen.feasible and seen.value < value:
                    value, best = seen.value, layers
                if value <= outcome.value * (1 + gap):
                    break
                self.add_layers(layers)  # what joins the loops may not be among the patterns
            self.cuts += cuts
        return best

    def joined(self, walks: list[list[Choice]], stray: Sequence[tuple[int, list[Choice]]]) -> list[Choice]:
        """All layers in one walk: loops of their own go where they cost least. Memory stays as it was counted."""
        for r, loop in stray:
            seen: set[tuple[Choice, ...]] = set()
            best: tuple[tuple[float, float], list[Choice]] | None = None
            for i in range(len(walks[r]) + 1):
                around = tuple(walks[r][max(0, i - 1) : i + 1])
                if around in seen and 0 < i < len(walks[r]):
                    continue
                seen.add(around)
                trial = [*walks[r][:i], *loop, *walks[r][i:]]
                found = self._of_runs([*walks[:r], trial, *walks[r + 1 :]])
                if best is None or found < best[0]:
                    best = found, trial
            assert best is not None
            walks[r] = best[1]
        return [choice for walk in walks for choice in walk]

    def _of_runs(self, walks: Sequence[Sequence[Choice]]) -> tuple[float, float]:
        """By how much layers by run exceed what they may, and their value."""
        order = tuple(self.runs[r][0] for r, walk in enumerate(walks) for _ in walk)
        found = evaluate(replace(self.problem, order=order), [choice for walk in walks for choice in walk])
        return sum(used / max(allowed, 1e-30) - 1 for used, allowed in found.exceeded.values()), found.value

    def keep_promising(self, relaxed: Relaxed, share: float) -> None:
        """Drop the patterns of which one layer alone would make the value worse by more than ``share`` of it."""
        kept = []
        for p in self.patterns:
            reduced = relaxed.prices.of(p.totals) - relaxed.layer[p.run]
            if p.entry >= 0:
                reduced -= relaxed.flow[p.run, p.entry]
            if p.run < len(self.runs) - 1 or self.runs[-1][1] > 1:
                reduced += relaxed.flow[p.run, p.exit]
            if reduced <= share * abs(relaxed.value):
                kept.append(p)
        self.patterns = kept

    def walk(
        self, numbers: Sequence[int], start: dict[int, int]
    ) -> tuple[list[list[Choice]], list[tuple[int, list[Choice]]], list[tuple[int, frozenset[int]]]]:
        """Per run its layers in an order that the counts allow; the loops that no walk reaches, and their places."""
        walks: list[list[Choice]] = []
        stray: list[tuple[int, list[Choice]]] = []
        places: list[tuple[int, frozenset[int]]] = []
        for r in range(len(self.runs)):
            arcs: dict[int, list[Pattern]] = {}
            for p, n in zip(self.patterns, numbers, strict=True):
                if p.run == r and n:
                    arcs.setdefault(p.entry, []).extend([p] * n)
            walks.append([p.choice for p in _trail(arcs, start.get(r, -1))])
            while any(arcs.values()):
                loop = _trail(arcs, next(o for o, ps in arcs.items() if ps))
                stray.append((r, [p.choice for p in loop]))
                places.append((r, frozenset(o for p in loop for o in (p.entry, p.exit))))
        return walks, stray, places


def _trail(arcs: dict[int, list[Pattern]], start: int) -> list[Pattern]:
    """All arcs that a walk from ``start`` can use up (Hierholzer); they are taken out."""
    stack: list[tuple[int, Pattern | None]] = [(start, None)]
    done: list[Pattern] = []
    while stack:
        at, via = stack[-1]
        if arcs.get(at):
            p = arcs[at].pop()
            stack.append((p.exit, p))
        else:
            stack.pop()
            if via is not None:
                done.append(via)
    return done[::-1]


def solve_patterns(
    problem: Problem, seeds: Sequence[Sequence[Choice]], *, time_limit: float = 10.0, gap: float = 1e-4,
    elastic: bool = False, solver: str | None = None,
) -> Found:  # fmt: skip
    """The best counts of patterns. ``seeds``: placements to begin with, at least one that is allowed but for capacities
    and limits; ``gap``: relative, at which to stop. ``elastic``: the least excess of capacities and limits instead.

    Raises :class:`.eliminate.TooWideError` where a block's graph is too wide to be priced.
    """
    began = time.process_time()
    units = dict(problem.objective.limits)
    problem, unit = scaled(problem)
    units = {name: limit / problem.objective.limits[name] for name, limit in units.items()}
    master = Master(problem, elastic, solver)
    blocks = {
        b: PricedBlock(problem, problem.blocks[b], first_shares(problem, problem.blocks[b])) for b in set(problem.order)
    }
    best: list[Choice] | None = None
    upper, worst = np.inf, 0.0
    for layers in seeds:
        master.add_layers(layers)
        seen = evaluate(problem, layers)
        worst = max(worst, seen.value)
        if seen.feasible and seen.value < upper:
            upper, best = seen.value, list(layers)
    slack_cost = 1.0 if elastic else 10.0 * (worst or 1.0)
    bound, rounds, stalled, excess = -np.inf, 0, 0, {}
    while True:
        rounds += 1
        relaxed = master.relax(slack_cost)
        if relaxed is None:
            break
        excess = relaxed.slack
        gains, added, bent = _price(master, blocks, relaxed)
        stalled = 0 if added or relaxed.value + gains > bound + PAYS * abs(bound) else stalled + 1
        bound = max(bound, relaxed.value + gains)
        spent = time.process_time() - began
        if relaxed.value - bound <= max(PAYS, 0.05 * gap) * max(abs(relaxed.value), 1e-30):
            if not excess or elastic or slack_cost > MOST_SLACK * (worst or 1.0):
                break
            slack_cost *= 100  # excess was worth its price: it must not be
            continue
        if not (added or bent) or stalled > STALLED or spent > 0.6 * time_limit:
            break
        if not elastic and upper - bound <= gap * abs(upper):
            break
    if elastic:
        best = master.whole(max(1.0, time_limit - (time.process_time() - began)), gap)
    elif relaxed is not None and not excess and upper - bound > gap * abs(upper):
        _vary(master, blocks, relaxed, min(0.7 * time_limit, time.process_time() - began + 0.15 * time_limit), began)
        master.keep_promising(relaxed, max(4 * gap, 1e-3))
        layers_found = master.whole(max(1.0, time_limit - (time.process_time() - began)), 0.5 * gap)
        if layers_found is not None:
            seen = evaluate(problem, layers_found)
            if seen.feasible and seen.value < upper:
                upper, best = seen.value, layers_found
    scale = 1.0 if elastic else unit
    pool = np.zeros(len(problem.pools)) if relaxed is None else relaxed.prices.pool * scale
    limits = {} if relaxed is None else {n: p * scale / units[n] for n, p in relaxed.limits.items()}
    return Found(best, upper * unit, bound * scale, excess, rounds, len(master.patterns), pool, limits)


def _price(master: Master, blocks: dict[int, PricedBlock], relaxed: Relaxed) -> tuple[float, int, bool]:
    """Add the patterns that pay at the relaxation's prices: (what all layers together could gain at most, patterns
    added, whether path shares were moved)."""
    problem = master.problem
    gains, added, bent = 0.0, 0, False
    closes = master.runs[-1][1] > 1
    priced = {b: block.price(relaxed.prices) for b, block in blocks.items()}
    for r, (b, layers) in enumerate(master.runs):
        block, found = blocks[b], priced[b]
        table = found.table if block.entry >= 0 else found.table[None, :]
        reduced = table - relaxed.layer[r]
        flow = relaxed.flow[r]
        if block.entry >= 0:
            reduced = reduced - flow[: table.shape[0], None]
        if r < len(master.runs) - 1 or closes:
            reduced = reduced + flow[None, : table.shape[1]]
        least = float(reduced.min())
        if not np.isfinite(least):
            return -np.inf, added, bent
        gains += layers * min(0.0, least)
        threshold = -PAYS * max(abs(relaxed.value), 1e-30) / layers
        picks = np.argsort(reduced, axis=None)[:BATCH]
        for pick in picks:
            entry, out = np.unravel_index(int(pick), reduced.shape)
            if reduced[entry, out] >= threshold:
                break
            at = (int(entry), int(out)) if block.entry >= 0 else (int(out),)
            choice = block.choice(found, at)
            start = int(entry) if block.entry >= 0 else -1
            if master.add(r, start, choice):
                added += 1
            # What is at hand already and still seems to pay has a longer path than its share: mend the shares.
            true = relaxed.prices.of(block_totals(problem, block.block, max(start, 0), choice))
            if true > table[entry, out] + abs(threshold) and pick == picks[0]:
                block.shares.towards(problem, block.block, max(start, 0), choice, 0.5 / (1 + len(master.patterns) / 50))
                bent = True
    return gains, added, bent


def _vary(master: Master, blocks: dict[int, PricedBlock], relaxed: Relaxed, until: float, began: float) -> None:
    """Add the patterns that are best at nearby prices of memory: whole counts need some that a relaxation does not."""
    rng = np.random.default_rng(VARIATIONS)
    for _ in range(VARIATIONS):
        if time.process_time() - began > until:
            return
        pool = relaxed.prices.pool * rng.uniform(0.6, 1.5, len(relaxed.prices.pool))
        _price(master, blocks, replace(relaxed, prices=replace(relaxed.prices, pool=pool)))
