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

    def covered(self) -> float:
        """Share of the measured that lie within the interval."""
        ratio = self.measured / self.predicted
        return float(np.mean((ratio >= self.low) & (ratio <= self.high)))
