"""The decoding sequences of a replica, and sums over them that cost a run of k steps no more than one.

A sequence's cached tokens are its ``base`` + the counter of decode steps; blocks grow by how many sequences have each
remainder of tokens by the block; times between tokens are known by *cohorts*, those who got their last token together.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from .sequence import Sequence


class Batch:
    """Sequences that decode together in blocks of ``size`` tokens: ``decoding`` is a heap by the step at which they
    end, ``counter`` the decode steps so far, ``prefilling`` those whose prompt is computed, ``held`` those whose
    answers are written, but who keep their seat (:attr:`.Schedule.together`)."""

    def __init__(self, size: int) -> None:
        self.decoding: list[tuple[int, int, Sequence]] = []
        self.prefilling: list[Sequence] = []
        self.held: list[Sequence] = []
        self.counter = 0
        self._size = size
        self._bases = 0
        self._tallest: list[tuple[int, int, Sequence]] = []
        self._remainders, self._growing = [0] * size, 0
        self._cohorts: dict[float, int] = {}
        self._stepped = -1.0
        self._serial = 0

    def context(self, sequence: Sequence) -> int:
        """Cached tokens of a decoding sequence."""
        return sequence.base + self.counter

    @property
    def batch(self) -> int:
        """Sequences that a decode step computes."""
        return len(self.decoding) + len(self.held)

    @property
    def mean(self) -> float:
        """Cached tokens per decoding sequence."""
        return self._bases / self.batch + self.counter if self.decoding else 0.0

    @property
    def longer(self) -> float:
        """Cached tokens by which the longest decoding sequence exceeds the mean."""
        return self._highest() - self._bases / self.batch if self.decoding else 0.0

    def _highest(self) -> int:
        """Base of the longest decoding sequence; there is one."""
        heap = self._tallest
        while heap[0][2].entry is not heap[0]:  # it left, or came back with another length
            heappop(heap)
        return -heap[0][0]

    def grown(self, steps: int) -> int:
        """Blocks that ``steps`` decode steps need."""
        counts, size = self._remainders, self._size
        start = self.counter % size
        if steps == 1:
            return counts[start]
        whole, rest = divmod(steps, size)
        end = start + rest
        more = sum(counts[start:end]) if end <= size else sum(counts[start:]) + sum(counts[: end - size])
        return whole * self._growing + more

    def short(self, free: int) -> bool:
        """Whether ``free`` blocks are too few for the next decode step."""
        return free < self._growing and free < self.grown(1)

    def lasting(self, steps: int, free: int) -> int:
        """The most of ``steps`` ≥ 1 decode steps for which ``free`` blocks are enough; 1 where they are for none."""
        low, high = 1, steps
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.grown(middle) <= free else (low, middle - 1)
        return low

    def youngest(self) -> Sequence | None:
        """The sequence admitted last."""
        everyone = [s for _, _, s in self.decoding] + self.prefilling
        return max(everyone, key=lambda s: s.serial, default=None)

    def join(self, sequence: Sequence) -> None:
        """``sequence``, whose last token is out and everything before it cached (``done``), decodes from now on."""
        sequence.place = 2
        sequence.home = self
        sequence.base = sequence.done - self.counter
        sequence.joined = self.counter
        sequence.finish_at = self.counter + sequence.left
        self._serial += 1
        heappush(self.decoding, (sequence.finish_at, self._serial, sequence))
        self._bases += sequence.base
        sequence.entry = entry = (-sequence.base, self._serial, sequence)
        heappush(self._tallest, entry)
        whole = -(-(sequence.done + sequence.left) // self._size)
        sequence.grows = sequence.blocks + sequence.shared < whole  # else all its blocks were taken at once
        if sequence.grows:
            self._remainders[-sequence.base % self._size] += 1
            self._growing += 1
        stamp = sequence.stamp
        self._cohorts[stamp] = self._cohorts.get(stamp, 0) + 1

    def _leave(self, sequence: Sequence, *, heap: bool = False) -> None:
        """A decoding sequence leaves; its own blocks are known again."""
        if heap:
            self.decoding = [entry for entry in self.decoding if entry[2] is not sequence]
            heapify(self.decoding)
        sequence.done = context = self.context(sequence)
        self._bases -= sequence.base
        if sequence.grows:
            self._remainders[-sequence.base % self._size] -= 1
            self._growing -= 1
            sequence.blocks = -(-context // self._size) - sequence.shared
        sequence.left = sequence.finish_at - self.counter
        sequence.place, sequence.entry, sequence.home = 0, None, None
        if sequence in self.held:
            self.held.remove(sequence)
        else:
            self._part(sequence)

    def _part(self, sequence: Sequence) -> None:
        """A sequence writes no more tokens with the others."""
        # Who has made a step since it joined got its last token with all others, else when it joined.
        if self.counter > sequence.joined:
            sequence.stamp = self._stepped
        self._cohorts[sequence.stamp] -= 1
        if not self._cohorts[sequence.stamp]:
            del self._cohorts[sequence.stamp]
