"""Exact minimisation of a sum of small tables by eliminating variables (Bertelè and Brioschi, 1972).

A table is an array over the options of a few operators; the sum of all tables is to be least. Eliminating a variable
replaces the tables it is in by their minimum over it. The work is the product of the sizes of the widest set met, K³
for a layer graph of treewidth 2 with K options each. Forbidden combinations hold infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .problem import Array

Table = tuple[tuple[int, ...], Array]
"""Variables (ascending) and an array with one axis for each."""
WIDEST = 2**25
"""Entries of the largest table that is made."""


class TooWideError(Exception):
    """The graph's treewidth asks for a table beyond :data:`WIDEST` entries."""


@dataclass(frozen=True)
class Step:
    """One variable eliminated: the others it was with, and its best value for each of their combinations."""

    variable: int
    others: tuple[int, ...]
    best: npt.NDArray[np.intp]


@dataclass(frozen=True)
class Eliminated:
    """``table`` over the variables kept (in the order asked for), and the way back."""

    keep: tuple[int, ...]
    table: Array
    steps: tuple[Step, ...]
    variables: int

    def assignment(self, at: Sequence[int]) -> tuple[int, ...]:
        """The best values of all variables given those of the kept ones."""
        values = dict(zip(self.keep, at, strict=True))
        for step in reversed(self.steps):
            values[step.variable] = int(step.best[tuple(values[v] for v in step.others)])
        return tuple(values[v] for v in range(self.variables))


def elimination_order(sizes: Sequence[int], scopes: Sequence[tuple[int, ...]], keep: Sequence[int]) -> list[int]:
    """Greedy order: next is the variable whose elimination makes the smallest table."""
    neighbours: list[set[int]] = [set() for _ in sizes]
    for scope in scopes:
        for v in scope:
            neighbours[v] |= set(scope) - {v}
    left = set(range(len(sizes))) - set(keep)
    order = []
    while left:

        def width(v: int) -> tuple[float, int]:
            return float(np.prod([float(sizes[u]) for u in neighbours[v]])), v

        v = min(left, key=width)
        if width(v)[0] * sizes[v] > WIDEST:
            raise TooWideError
        for u in neighbours[v]:
            neighbours[u] |= neighbours[v] - {u}
            neighbours[u].discard(v)
        left.remove(v)
        order.append(v)
    return order


def eliminate(sizes: Sequence[int], tables: Sequence[Table], order: Sequence[int], keep: Sequence[int]) -> Eliminated:
    """Eliminate all variables but ``keep``, in ``order``."""
    pool = list(tables)
    steps = []
    for v in order:
        mine = [t for t in pool if v in t[0]]
        pool = [t for t in pool if v not in t[0]]
        scope = (*sorted({u for t in mine for u in t[0]} - {v}), v)
        total = _sum(mine, scope, sizes)
        best = np.argmin(total, axis=-1)
        steps.append(Step(v, scope[:-1], best))
        pool.append((scope[:-1], np.take_along_axis(total, best[..., None], axis=-1)[..., 0]))
    return Eliminated(tuple(keep), _sum(pool, tuple(keep), sizes), tuple(steps), len(sizes))


def _sum(tables: Sequence[Table], scope: tuple[int, ...], sizes: Sequence[int]) -> Array:
    total = np.zeros([sizes[v] for v in scope])
    for variables, values in tables:
        places = [scope.index(v) for v in variables]
        ranked = np.argsort(places)
        shape = [1] * len(scope)
        for axis, place in enumerate(places):
            shape[place] = values.shape[axis]
        total += np.transpose(values, ranked).reshape(shape)
    return total
