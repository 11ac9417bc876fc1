"""What a suite hands over when it compares several things at once: one part per quantity and mode."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..workloads.expr_functions import Array


class Part(NamedTuple):
    """Arrays of (N,): measured and predicted seconds, and the 90 % interval of measured over predicted time."""

    suite: str
    mode: str
    measured: Array
    predicted: Array
    low: Array
    high: Array
    dropped: int

    def sides(self) -> tuple[Array, Array]:
        """The interval's factors; ones where there is none."""
        ones = np.ones_like(self.measured)
        return ones if self.low is None else self.low, ones if self.high is None else self.high

    def covered(self) -> float:
        """Share of the measured that lie within the interval; 1 where there is none."""
        if self.low is None or self.high is None:
            return 1.0
        ratio = self.measured / self.predicted
        return float(np.mean((ratio >= self.low) & (ratio <= self.high)))
