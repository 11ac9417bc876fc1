"""Sizes as polynomials, found exactly from their values at a few points.

Every size a forward pass produces is linear in batch and in context and at most quadratic in query (a
mask is query × keys), so the twelve points of :data:`GRID` determine it; the others hold it to
account, among them single-token decode, an empty cache, and one far beyond any chunk of a kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache, lru_cache

from ..errors import InputError
from .expr import B, C, Expr, Q, expr, product

GRID = ((2, 3), (5, 8, 13), (6, 16))
CHECKS = ((1, 1, 9), (4, 7, 0), (3, 1, 40))
FAR = (2, 2053, 9001)

Point = tuple[int, int, int]


def points_for(max_context: int | None) -> tuple[Point, ...]:
    """Where a model is run: the grid, the checks, and the far point as far as its context allows."""
    batch, query, context = FAR
    longest = max_context or 2 * context + 4 * query
    far = (batch, min(query, max(longest // 4, 2)), min(context, max(longest // 2, 7)))
    return (*itertools.product(*GRID), *CHECKS, far)


def interpolate(values: Sequence[int], points: tuple[Point, ...], what: str) -> Expr:
    """The polynomial through ``values`` at ``points`` (the grid first). Raises ``InputError`` when one is missed."""
    result, missed = _fit(tuple(values), points)
    if missed is not None:
        point, value = points[missed], values[missed]
        raise InputError(f"{what} is no polynomial in batch, query and context: {value} at {point}, expected {result}")
    return result


@lru_cache(maxsize=4096)
def _fit(values: tuple[int, ...], points: tuple[Point, ...]) -> tuple[Expr, int | None]:
    """The polynomial through the grid's values, and the first point it misses."""
    if all(v == values[0] for v in values):
        return expr(values[0]), None
    terms: dict[tuple[int, ...], Fraction] = {}
    for nodes, value in zip(itertools.product(*(range(len(axis)) for axis in GRID)), values, strict=False):
        factors = [_lagrange(axis, n) for axis, n in zip(GRID, nodes, strict=True)]
        for powers in itertools.product(*(range(len(f)) for f in factors)):
            weight = math.prod((f[p] for f, p in zip(factors, powers, strict=True)), start=Fraction(value))
            terms[powers] = terms.get(powers, Fraction(0)) + weight
    result = expr(0)
    for powers, coefficient in terms.items():
        if coefficient:
            monomial = product([s for s, power in zip((B, Q, C), powers, strict=True) for _ in range(power)])
            result = result + monomial * float(coefficient)
    for i, (point, value) in enumerate(zip(points, values, strict=True)):
        if abs(float(result(*point)) - value) > 1e-6 * max(1, abs(value)):
            return result, i
    return result, None


@cache
def _lagrange(axis: tuple[int, ...], node: int) -> tuple[Fraction, ...]:
    """Coefficients, lowest power first, of the polynomial that is 1 at ``axis[node]`` and 0 at the others."""
    coefficients = [Fraction(1)]
    for other in axis[:node] + axis[node + 1 :]:
        scale = Fraction(1, axis[node] - other)
        shifted = [Fraction(0), *coefficients]
        coefficients = [scale * (up - other * c) for up, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return tuple(coefficients)
