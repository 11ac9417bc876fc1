"""Piecewise-linear functions of a context length, and their sums over consecutive decode steps in closed form.

A decode step makes every sequence one token longer, so a batch that nothing joins or leaves takes f(x), f(x + 1), …
where x is its mean context. A step is charged the mean of f over the unit around x,

    step(x) = F(x + ½) − F(x − ½),    F = ∫ f,

so that k steps take F(x + k − ½) − F(x − ½): one subtraction, and the same whether they are taken one by one or at
once. Within a linear piece step(x) = f(x); at a bend it differs by an eighth of the change of slope.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def knots(longest: int, per_octave: int = 8, first: int = 64) -> Array:
    """Contexts at which costs are evaluated, ascending from −1: every ``first`` / 4 up to ``first``, then so many
    per doubling up to beyond ``longest``."""
    octaves = max(int(np.ceil(np.log2(max(longest, first + 1) / first))), 1)
    rising = np.round(first * 2 ** (np.arange(octaves * per_octave + 1) / per_octave))
    start = np.arange(0, first, first // 4)
    return np.unique(np.concatenate([[-1.0], start, rising, [rising[-1] + 2]]))


class Curve:
    """f as straight lines between ``values`` at knots (ascending), and its integral up to each of them.

    ∫ f up to x, in the piece i with d = x − at[i], is ``areas[i] + d · (values[i] + slopes[i] · d)``; ``last`` is the
    last piece.
    """

    __slots__ = ("areas", "last", "slopes", "values")

    def __init__(self, at: npt.ArrayLike, values: npt.ArrayLike) -> None:
        x, y = np.asarray(at, dtype=float), np.asarray(values, dtype=float)
        width = np.diff(x)
        self.values: list[float] = y.tolist()
        self.slopes: list[float] = (0.5 * np.diff(y) / width).tolist()
        self.areas: list[float] = np.concatenate([[0.0], np.cumsum(width * (y[1:] + y[:-1]) / 2)]).tolist()
        self.last = x.size - 2


def integral(at: Sequence[float], low: Curve, high: Curve, weight: float, x: float) -> float:
    """∫ up to ``x`` of low + weight · (high − low), curves over the knots ``at``; the outermost lines go on."""
    i = bisect_right(at, x, 1, low.last + 1) - 1
    d = x - at[i]
    area = low.areas[i] + d * (low.values[i] + low.slopes[i] * d)
    if weight:
        area += weight * (high.areas[i] + d * (high.values[i] + high.slopes[i] * d) - area)
    return area
