"""What happened: per request and per run of iterations, in arrays."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

WAITING, FINISHED, REJECTED = 0, 1, 2


class Outcome:
    """Of N requests, seconds of the simulated clock; NaN where it did not come to that.

    ``arrival_s``, ``scheduled_s`` (first admitted), ``first_s`` and ``last_s`` (tokens), ``finish_s`` (returned);
    ``state`` one of :data:`WAITING`, :data:`FINISHED`, :data:`REJECTED`; ``written`` tokens; ``preemptions``;
    ``replica`` where it ended; ``cached`` tokens of its prompt that were found in a cache; ``reasons`` of rejections.
    """

    def __init__(self, n: int) -> None:
        missing = array("d", [float("nan")]) * n
        self.arrival_s, self.scheduled_s, self.first_s, self.last_s, self.finish_s = (missing[:] for _ in range(5))
        self.state = bytearray(n)
        self.written, self.preemptions, self.cached = (array("q", bytes(8 * n)) for _ in range(3))
        self.replica = array("q", [-1]) * n
        self.reasons: dict[int, str] = {}


class Column(NamedTuple):
    """Columns of :class:`Runs`."""

    start_s: Array
    duration_s: Array
    steps: Array
    decoding: Array
    mean: Array
    tokens: Array
    ends: Array
    chunk_j: Array
    held: Array
    waiting: Array


PACK_RUN, PACK_GAP = struct.Struct(f"{len(Column._fields)}d").pack, struct.Struct("2d").pack
"""A run and a gap as bytes, which arrays take three times as fast as numbers."""


class Runs:
    """Runs of like iterations of one replica, flat: a mixed iteration, or ``steps`` decode steps at once.

    ``mean`` is the decoding sequences' cached tokens at the middle of the run, ``tokens`` those of a mixed iteration
    (0: decode only), ``ends`` prompts that end in it, ``chunk_j`` joules of its chunks' context rows and of whatever
    else it computes, per device, ``held`` KV blocks on average over the run, ``waiting`` requests in the queue when it
    began. ``flat`` has the runs one after
    another, each in the order of :class:`Column`.
    """

    WIDTH = len(Column._fields)

    def __init__(self) -> None:
        self.flat = array("d")
        self._columns = Column(*np.zeros((self.WIDTH, 0)))

    def columns(self) -> Column:
        """All runs so far, copied when there are more of them than when last asked."""
        if self._columns.start_s.size != len(self):
            self._columns = Column(*np.array(self.flat, dtype=float).reshape(-1, self.WIDTH).T)
        return self._columns

    def __len__(self) -> int:
        return len(self.flat) // self.WIDTH


@dataclass
class Gaps:
    """Times between two tokens of a sequence, seconds, and how often each occurred."""

    flat: array[float] = field(default_factory=lambda: array("d"))

    def add(self, gap_s: float, count: float) -> None:
        self.flat.frombytes(PACK_GAP(gap_s, count))

    def columns(self) -> tuple[Array, Array]:
        """(gaps, counts)."""
        flat = np.array(self.flat, dtype=float).reshape(-1, 2)
        return flat[:, 0], flat[:, 1]
