"""Where one operator may run: on one engine, or spread over several in integer shares; and what moves between two.

A *spread* gives each engine a share of the operator's units (heads, experts, columns or rows of a matrix): shares are
whole numbers of ``units`` parts. What it needs and leaves:

    mode         needs of its input          leaves of its output
    whole        all, on its one engine      all, on its one engine
    replicated   all, on every engine        all, on every engine            (norms, residuals: each does all of it)
    columns      all, on every engine        parts                           (N columns of a matrix)
    rows         parts                       partial sums of all, everywhere (K rows of a matrix)
    heads        parts                       parts                           (attention, with its part of the cache)
    parts        parts                       parts                           (pointwise work between divided ones)
    experts      all, on every engine        partial sums of all             (whole experts)

Parts are consecutive: engine a holds [Σ shares before a, + its share) of the axis, so equal shares need no transfer.
A sum of partial results that n engines need goes the cheaper way: every one to every one, or reduce-scatter and
all-gather (2(n−1)/n of the bytes per engine, two latencies).

    delay = max latency + max over ports of (bytes / bandwidth)          ports work at the same time
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .node import LINK_ENERGY, Node
from .problem import Array

NEEDS = {"whole": "all", "replicated": "all", "columns": "all", "rows": "parts", "heads": "parts", "parts": "parts",
         "experts": "all"}  # fmt: skip
LEAVES = {"whole": "all", "replicated": "all", "columns": "parts", "rows": "partial", "heads": "parts",
          "parts": "parts", "experts": "partial"}  # fmt: skip
FINE = 3
"""Engines up to which every set of them and every division of two engines' shares is tried; beyond, sets of whole
kinds of device, divided evenly and in proportion (finer divisions gain 0.2 % at most; ``docs/mapping.md``)."""
KINDS = 4
"""Kinds of device up to which all their unions are tried beyond :data:`FINE` engines."""


@dataclass(frozen=True)
class Spread:
    """``shares[a]`` of ``units`` parts on engine a (replicated: 1 on each that has it); they sum to ``units``."""

    mode: str
    shares: tuple[int, ...]
    units: int

    @property
    def engines(self) -> tuple[int, ...]:
        """Engines with a share."""
        return tuple(a for a, s in enumerate(self.shares) if s)

    def fraction(self, engine: int) -> float:
        """The part of the operator's work that ``engine`` does."""
        if not self.shares[engine]:
            return 0.0
        return 1.0 if self.mode in ("whole", "replicated") else self.shares[engine] / self.units

    def interval(self, engine: int) -> tuple[float, float]:
        """The part of the axis that ``engine`` holds."""
        before = sum(self.shares[:engine]) / self.units
        return before, before + self.shares[engine] / self.units

    def label(self, names: Sequence[str]) -> str:
        """As ``h100-sxm`` or ``h100-sxm:5+h20:3`` (of 8 heads)."""
        if self.mode == "whole":
            return names[self.engines[0]]
        if self.mode == "replicated":
            return "+".join(names[a] for a in self.engines)
        return "+".join(f"{names[a]}:{self.shares[a]}" for a in self.engines)


def whole(engine: int, engines: int) -> Spread:
    """All of it on one engine."""
    return Spread("whole", tuple(int(a == engine) for a in range(engines)), 1)


def replicated(group: Sequence[int], engines: int) -> Spread:
    """All of it on every engine of a group."""
    return Spread("replicated", tuple(int(a in group) for a in range(engines)), 1)


def groups(node: Node, able: Sequence[int]) -> list[tuple[int, ...]]:
    """Sets of two or more engines over which operators may be spread: all of them up to :data:`FINE` engines; beyond,
    all engines of one kind of device, of two, … (of more than :data:`KINDS` kinds: of one, and everything)."""
    if len(node.engines) <= FINE:
        return [g for n in range(2, len(able) + 1) for g in combinations(able, n)]
    kinds = _kinds(node, able)
    numbers = range(1, len(kinds) + 1) if len(kinds) <= KINDS else (1, len(kinds))
    found = [tuple(sorted(a for kind in some for a in kind)) for n in numbers for some in combinations(kinds, n)]
    return [g for g in dict.fromkeys(found) if len(g) > 1]


def _kinds(node: Node, able: Sequence[int]) -> list[tuple[int, ...]]:
    """Engines by kind: of one device and one part of it."""
    alike: dict[tuple[str, str], list[int]] = {}
    for a in able:
        alike.setdefault((node.engines[a].device.name, node.engines[a].part), []).append(a)
    return [tuple(g) for g in alike.values()]


def may_part(node: Node, prefill: Spread, decode: Spread) -> bool:
    """Whether an operator may be spread so at prefill and otherwise at decode. Beyond :data:`FINE` engines: between
    single engines, whole kinds and everything, and between one engine and any two."""
    if len(node.engines) <= FINE or prefill == decode:
        return True
    everything = tuple(range(len(node.engines)))
    sets = {prefill.engines, decode.engines}
    if all(len(s) == 1 or s in (everything, *_kinds(node, everything)) for s in sets):
        return True
    return min(map(len, sets)) == 1 and max(map(len, sets)) == 2


def divided(mode: str, node: Node, able: Sequence[int], units: int, speed: Sequence[Sequence[float]]) -> list[Spread]:
    """Spreads of a mode over all groups: of two engines every division (few engines), else even and in proportion to
    each of ``speed`` (per engine; 0: cannot)."""
    n = len(node.engines)
    found: dict[tuple[int, ...], None] = {}
    for group in groups(node, able):
        if len(group) > units:
            continue
        if len(group) == 2 and n <= FINE:
            divisions: list[tuple[int, ...]] = [(s, units - s) for s in range(1, units)]
        else:
            weights = [[1.0] * len(group), *([v[a] for a in group] for v in speed)]
            divisions = [d for w in weights if min(w) > 0 and (d := apportion(units, w)) and min(d) > 0]
        for division in divisions:
            shares = [0] * n
            for a, s in zip(group, division, strict=True):
                shares[a] = s
            found[tuple(shares)] = None
    return [Spread(mode, shares, units) for shares in found]


def apportion(units: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers that sum to ``units`` in proportion to ``weights``, largest remainders first, at least 1 each
    where there are enough."""
    total = sum(weights)
    ideal = [units * w / total for w in weights]
    shares = [max(1, int(x)) for x in ideal]
    while sum(shares) > units:
        able = [j for j, s in enumerate(shares) if s > 1]
        if not able:
            return ()
        shares[max(able, key=lambda j: shares[j] - ideal[j])] -= 1
    for i in sorted(range(len(shares)), key=lambda j: shares[j] - ideal[j])[: max(0, units - sum(shares))]:
        shares[i] += 1
    return tuple(shares) if sum(shares) == units else ()


@dataclass(frozen=True)
class Transfer:
    """Seconds until all is there, seconds each port is busy, joules, bytes from engine to engine over links."""

    delay_s: float
    busy_s: Array
    energy_j: float
    bytes: Array


class Transfers:
    """Transfers of tensors on a node, kept once computed."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.known: dict[tuple[Spread, Spread, float], Transfer] = {}
        n = len(node.engines)
        self.empty = np.zeros((n, n))
        self.nothing = Transfer(0.0, np.zeros(len(node.ports)), 0.0, self.empty)

    def between(self, source: Spread, target: Spread, size: float) -> Transfer:
        """Of a tensor of ``size`` bytes that ``source`` leaves and ``target`` needs."""
        key = (source, target, size)
        if key not in self.known:
            leaves, needs = LEAVES[source.mode], NEEDS[target.mode]
            if leaves == "partial":
                found = self._partial(source, target, needs, size)
            else:
                found = self.moved([self._plain(source, target, leaves, needs) * size])
            self.known[key] = found
        return self.known[key]

    def cache(self, source: Spread, target: Spread, size: float) -> Transfer:
        """Of a cache of ``size`` bytes held in the shares of one spread to those of another."""
        return self.moved([self._plain(source, target, "parts", "parts") * size])

    def _plain(self, source: Spread, target: Spread, leaves: str, needs: str) -> Array:
        """Fractions of the tensor from each engine to each."""
        table = self.empty.copy()
        for b in target.engines:
            low, high = target.interval(b) if needs == "parts" else (0.0, 1.0)
            if leaves == "all":
                if b not in source.engines and not any(self.node.routes[a][b] is None for a in source.engines):
                    table[self._nearest(source, b), b] = high - low
                continue
            for a in source.engines:
                start, end = source.interval(a)
                if a != b:
                    table[a, b] = max(0.0, min(high, end) - max(low, start))
        return table

    def _nearest(self, source: Spread, b: int) -> int:
        def slowness(a: int) -> tuple[float, float]:
            route = self.node.routes[a][b]
            return (0.0, 0.0) if route is None else (1 / route.bytes_s, route.latency_s)

        return min(source.engines, key=slowness)

    def _partial(self, source: Spread, target: Spread, needs: str, size: float) -> Transfer:
        """Sums of partial results: directly, or reduced in shares and gathered."""
        direct = self.empty.copy()
        for b in target.engines:
            low, high = target.interval(b) if needs == "parts" else (0.0, 1.0)
            for a in source.engines:
                if a != b:
                    direct[a, b] = high - low
        best = self.moved([direct * size])
        if needs == "all" and len(target.engines) > 1 and set(target.engines) == set(source.engines):
            n = len(source.engines)
            scatter = self.empty.copy()
            for a in source.engines:
                for b in source.engines:
                    scatter[a, b] = 1 / n if a != b else 0.0
            ring = self.moved([scatter * size, scatter * size])
            best = min(best, ring, key=lambda t: t.delay_s)
        return best

    def moved(self, rounds: Sequence[Array]) -> Transfer:
        """What rounds of bytes from engine to engine take, one round after the other."""
        delay = energy = 0.0
        total = self.empty.copy()
        busy = np.zeros(len(self.node.ports))
        for table in rounds:
            here = np.zeros(len(self.node.ports))
            latency = 0.0
            for a, b in zip(*np.nonzero(table), strict=True):
                route = self.node.routes[a][b]
                if route is None:
                    continue
                seconds = table[a, b] / route.bytes_s
                here[route.out] += seconds
                here[route.into] += seconds
                latency = max(latency, route.latency_s)
                energy += table[a, b] * LINK_ENERGY
                total[a, b] += table[a, b]
            delay += latency + float(here.max(initial=0.0))
            busy += here
        return Transfer(delay, busy, energy, total) if total.any() else self.nothing
