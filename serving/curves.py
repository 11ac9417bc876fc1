"""Piecewise-linear functions of a context length, and their sums over consecutive decode steps in closed form.

A decode step makes every sequence one token longer, so a batch that nothing joins or leaves takes f(x), f(x + 1), …
where x is its mean context. A step is charged the mean of f over the unit around x,

    step(x) = F(x + ½) − F(x − ½),    F = ∫ f,

so that k steps take F(x + k − ½) − F(x − ½): one subtraction, and the same whether they are taken one by one or at
once. Within a linear piece step(x) = f(x); at a bend it differs by an eighth of the change of slope.
"""

from __future__ import annotations

from bisect import bisect_right

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
    """f as straight lines between ``values`` at ``at`` (ascending), and its integral from ``at[0]``."""

    __slots__ = ("_areas", "_at", "_last", "_slopes", "_values")

    def __init__(self, at: npt.ArrayLike, values: npt.ArrayLike) -> None:
        x, y = np.asarray(at, dtype=float), np.asarray(values, dtype=float)
        width = np.diff(x)
        self._at: list[float] = x.tolist()
        self._values: list[float] = y.tolist()
        self._slopes: list[float] = (0.5 * np.diff(y) / width).tolist()
        self._areas: list[float] = np.concatenate([[0.0], np.cumsum(width * (y[1:] + y[:-1]) / 2)]).tolist()
        self._last = len(self._at) - 2

    def integral(self, x: float) -> float:
        """∫ f up to ``x``; beyond the ends the first and last lines go on."""
        i = min(max(bisect_right(self._at, x) - 1, 0), self._last)
        d = x - self._at[i]
        return self._areas[i] + d * (self._values[i] + self._slopes[i] * d)

    def steps(self, x: float, count: int) -> float:
        """Sum over ``count`` steps whose first has the mean context ``x``."""
        return self.integral(x + count - 0.5) - self.integral(x - 0.5)
