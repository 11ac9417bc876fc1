"""Pipeline stages that several batches of one replica pass through, each in turn."""

from __future__ import annotations


class Pipeline:
    """Stages in a row. A batch enters a stage when it has left the one before and the batch ahead has left this one.

    As many batches are on their way as there are stages, each with its own sequences and its share of the KV blocks,
    as vLLM's virtual engines. A stage without a batch is a bubble; ``work_s`` sums what stages worked.
    """

    def __init__(self, stages: int) -> None:
        self._free = [0.0] * stages
        self.work_s = 0.0

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self._free)

    def enter(self, now: float, seconds: float) -> float:
        """When a batch that takes ``seconds`` alone, the same in every stage, and comes at ``now`` has passed."""
        each = seconds / len(self._free)
        self.work_s += seconds
        time = now
        for i, free in enumerate(self._free):
            time = max(time, free) + each
            self._free[i] = time
        return time
