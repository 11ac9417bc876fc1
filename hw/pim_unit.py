"""What units near DRAM banks need for products and attention: commands, cycles, bytes and operations.

One channel's units work in lockstep (:mod:`.dram`); channels work at once on different outputs or heads. U units of a
channel are ``slices`` parts of a vector times U/slices outputs. A column of c bytes meets ``reuse`` vectors in one
interval; m vectors take p = ⌈m / reuse⌉ intervals. With ``holds`` a column that was read stays in registers for all
of them (the train is stretched by p), else the train is run p times.

    product n × k     columns = ⌈⌈k·bytes / c⌉ / slices⌉ · ⌈n / (channels · U/slices)⌉         per channel
    attention         per head: keys and values, each ⌈⌈d·bytes / c⌉ / slices⌉ · ⌈t / (U/slices)⌉
                      ⌈heads / channels⌉ heads per channel one after another; with ``spread``, where heads are fewer,
                      the t tokens of each over ⌊channels / heads⌋ channels

    moves             vectors in, results out: bytes / ``move_bytes`` commands of ``move_interval`` cycles per channel:
                      product     m·k in (every channel needs all), m·n·slices·⌈reuse·k·bytes / buffer⌉ / channels out
                      attention   m·d and m·t probabilities in, m·t scores and m·d out, per head
    time              train + moves, or the longer of the two where buffers are double

Where a softmax unit sits beside the banks (``score_tile``), heads go in pairs: one's scores, softmax and moves hide
behind the other's columns. The last of an odd number has nothing to hide behind: after every tile of scores its
probabilities so far move to the units, ⌈t / tile⌉ · m·t·bytes / move_bytes moves in all (as the published runs of
AttAcc's simulator count them), but never longer than another head would take. Elsewhere the host takes the softmax,
and scores and probabilities are moves.

Refresh as in :mod:`.dram`; ``stall`` is what command-bus conflicts and the like add, a factor that the data sheet
does not say (1 where nobody measured it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..workloads.expr_functions import Array
from .dram import Geometry, Timing, geometry_of, refresh_share, timing_of, train, with_refresh
from .parameters import flag, parameter
from .spec import Device

PAIR = 2


class Spent(NamedTuple):
    """Work of one operator at points, (points,) each: seconds in all; of them (before refresh) of column commands and
    of moves; bytes read from banks, rows opened, bytes moved, multiply-accumulates."""

    seconds: Array
    column_s: Array
    move_s: Array
    read_bytes: Array
    rows: Array
    moved_bytes: Array
    macs: Array

    def times(self, count: Array) -> Spent:
        """``count`` of these, one after another."""
        return Spent(*(x * count for x in self))

    def plus(self, other: Spent) -> Spent:
        """Both, one after the other."""
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Unit:
    """Units of a device and how they are fed; terms as in the module's text. ``buffer`` in bytes per channel,
    infinite where nothing limits it; ``score_tile`` in tokens, 0 without a softmax unit."""

    geometry: Geometry
    timing: Timing
    reuse: int = 1
    slices: int = 1
    holds: bool = False
    spread: bool = False
    double_buffer: bool = False
    refresh_hidden: bool = False
    move_bytes: float = 32.0
    move_interval: float = 2.0
    buffer: float = np.inf
    score_tile: float = 0.0
    stall: float = 1.0

    @property
    def lanes(self) -> float:
        """Outputs that a channel's units work on at a time."""
        return self.geometry.units / self.slices

    def peak_flops(self, bytes_per_element: float = 2.0) -> float:
        """FLOP/s with all units at work: two per element of a column and vector, each interval."""
        g, t = self.geometry, self.timing
        elements = g.channels * g.units * g.column_bytes / bytes_per_element
        return 2 * elements * self.reuse / (t.ccd * t.clock_s)

    def peak_bytes_s(self) -> float:
        """Bytes/s that all units take from their banks while rows are open."""
        g, t = self.geometry, self.timing
        return g.channels * g.units * g.column_bytes / (t.ccd * t.clock_s)

    def unlimited(self, interval: float) -> Unit:
        """The same with column commands every ``interval`` cycles: without a power limit."""
        return replace(self, timing=replace(self.timing, ccd=interval))

    def seconds(self, cycles: Array) -> Array:
        """Cycles of work as seconds, with refresh and stalls."""
        held = with_refresh(cycles, self.geometry, self.timing, hidden=self.refresh_hidden)
        return np.asarray(held * self.stall * self.timing.clock_s)

    def columns(self, length: Array | float, lines: Array) -> Array:
        """Column commands for ``lines`` vectors of ``length`` bytes that one channel's units hold."""
        per_line = np.ceil(np.ceil(np.asarray(length) / self.geometry.column_bytes) / self.slices)
        return np.asarray(per_line * np.ceil(np.asarray(lines) / self.lanes))

    def train(self, columns: Array, vectors: Array) -> Array:
        """Cycles of ``columns`` that meet ``vectors`` vectors."""
        passes = np.ceil(vectors / self.reuse)
        if self.holds:
            return train(columns, self.geometry, self.timing, passes)
        return np.asarray(train(columns, self.geometry, self.timing) * passes)

    def reads(self, vectors: Array) -> Array:
        """How often a column is read for ``vectors`` vectors."""
        return np.ones_like(vectors) if self.holds else np.asarray(np.ceil(vectors / self.reuse))

    def moves(self, size: Array) -> Array:
        """Cycles in which ``size`` bytes cross a channel's bus."""
        return np.asarray(np.ceil(size / self.move_bytes) * self.move_interval)

    def product(self, n: Array, k: Array, vectors: Array, bytes_each: float, activation_bytes: float) -> Spent:
        """``vectors`` products with a matrix of n × k elements of ``bytes_each`` bytes."""
        n, k, vectors = np.broadcast_arrays(*(np.asarray(x, dtype=float) for x in (n, k, vectors)))
        channels = self.geometry.channels
        columns = self.columns(k * bytes_each, n / channels)
        work = self.train(columns, vectors)
        chunks = np.ceil(np.minimum(vectors, self.reuse) * k * activation_bytes / self.buffer) if np.isfinite(
            self.buffer
        ) else np.ones_like(k)  # fmt: skip
        into, out = vectors * k * activation_bytes, vectors * n * self.slices * chunks * activation_bytes / channels
        moving = self.moves(into) + self.moves(out)
        cycles = np.maximum(work, moving) if self.double_buffer else work + moving
        return self._spent(cycles, columns, vectors, moving, n * k * bytes_each, (into + out) * channels, n * k)

    def attention(
        self, heads: Array, tokens: Array, widths: tuple[float, float], vectors: Array, bytes_each: float,
        activation_bytes: float,
    ) -> Spent:  # fmt: skip
        """``heads`` heads of keys (sequences times heads), each over ``tokens`` cached tokens, for ``vectors`` queries.

        ``widths``: elements of a key and of a value, of ``bytes_each`` bytes.
        """
        heads, tokens, vectors = np.broadcast_arrays(*(np.asarray(x, dtype=float) for x in (heads, tokens, vectors)))
        channels = self.geometry.channels
        parts = np.maximum(np.floor(channels / heads), 1) if self.spread else np.ones_like(heads)
        each, held = np.ceil(heads / channels), np.ceil(tokens / parts)
        columns = [self.columns(width * bytes_each, held) for width in widths]
        work = np.sum([self.train(c, vectors) for c in columns], axis=0)
        scores, ends = vectors * held * activation_bytes, [vectors * w * activation_bytes for w in widths]
        moving = np.sum([self.moves(x) for x in (ends[0], scores, scores, ends[1])], axis=0)
        if self.score_tile:
            last = np.minimum(np.ceil(held / self.score_tile) * self.moves(scores) / self._lost, work)
            cycles = each * np.maximum(work, moving) + np.where(each % PAIR == 1, last, 0.0)
        else:
            cycles = each * (np.maximum(work, moving) if self.double_buffer else work + moving)
        size = heads * tokens * sum(widths)
        spent = self._spent(cycles, each * sum(columns), vectors, each * moving, size * bytes_each, 0 * heads, size)
        moved = heads * parts * (2 * scores + sum(ends))
        return spent._replace(moved_bytes=moved)

    @property
    def _lost(self) -> float:
        """Factor of refresh and stalls, which the last head's moves do not see."""
        return float(self.seconds(np.ones(()))) / self.timing.clock_s

    def _spent(
        self, cycles: Array, columns: Array, vectors: Array, moving: Array, size: Array, moved: Array, macs: Array
    ) -> Spent:
        t, reads = self.timing, self.reads(vectors)
        return Spent(
            seconds=self.seconds(cycles), column_s=columns * np.ceil(vectors / self.reuse) * t.ccd * t.clock_s,
            move_s=moving * t.clock_s, read_bytes=size * reads, rows=size * reads / self.geometry.row_bytes,
            moved_bytes=moved, macs=macs * vectors,
        )  # fmt: skip


def unit_of(device: Device) -> Unit:
    """The units that ``device``'s [parameters] describe. Raises ``InputError`` for what is missing or cannot be."""
    geometry, timing = geometry_of(device), timing_of(device)
    slices = round(parameter(device, "slices", 1))
    if geometry.units % slices:
        raise InputError(f"device {device.name}: parameters.slices {slices} does not divide units {geometry.units}")
    if refresh_share(geometry, timing) >= 1:
        raise InputError(f"device {device.name}: refresh and opening rows again take all of t_refi; nothing is left")
    if parameter(device, "stall", 1.0) < 0.5:
        raise InputError(f"device {device.name}: parameters.stall is below 0.5; accepted: about 1, a factor of time")

    return Unit(
        geometry, timing, reuse=round(parameter(device, "reuse", 1)), slices=slices,
        holds=flag(device, "holds_columns"), spread=flag(device, "spread_tokens"),
        double_buffer=flag(device, "double_buffer"), refresh_hidden=flag(device, "refresh_hidden"),
        move_bytes=parameter(device, "move"), move_interval=parameter(device, "move_interval", timing.ccd_s),
        buffer=parameter(device, "buffer", np.inf), score_tile=parameter(device, "score_tile", 0.0),
        stall=parameter(device, "stall", 1.0),
    )  # fmt: skip
