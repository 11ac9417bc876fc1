"""KV blocks of one replica: held by sequences, shared as prefixes, free.

A prefix tree's node covers the whole blocks between its parent's end and its own. A node is *used* while a sequence
refers to it; else it is *kept*, and its blocks are evicted, least recently used and deepest first, when others want
room. Always free + held + kept = total.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt


class BlockPool:
    """Counts of blocks; ``total`` of ``size`` tokens each.

    ``prefix_tokens`` and ``prefix_parent`` describe the prefix tree (see :class:`..workloads.request_log.RequestLog`);
    empty where nothing is shared. ``spill`` is called with (node, first, last + 1) of its own blocks that are evicted.
    """

    def __init__(
        self, total: int, size: int, prefix_tokens: npt.NDArray[np.int64] | None = None,
        prefix_parent: npt.NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        self.total, self.size = total, size
        self.held = 0
        self.kept = 0
        self.peak = 0
        self.hits = 0
        self._tokens = [] if prefix_tokens is None else prefix_tokens.tolist()
        self._parent = [] if prefix_parent is None else prefix_parent.tolist()
        self._resident: dict[int, int] = {}
        self._references: dict[int, int] = {}
        self._clock = 0
        self._last: dict[int, int] = {}
        self._kept_heap: list[tuple[int, int, int]] = []
        self.spill: Callable[[int, int, int], None] | None = None

    @property
    def prefixes(self) -> bool:
        """Whether anything can be shared."""
        return bool(self._tokens)

    @property
    def free(self) -> int:
        """Blocks that can be had: the empty ones and those that may be evicted."""
        return self.total - self.held

    def take(self, blocks: int) -> bool:
        """Hold ``blocks`` more, evicting kept ones where needed; False, and no change, where there are too few."""
        if self.held + blocks > self.total:
            return False
        self.held += blocks
        over = self.held + self.kept - self.total
        if over > 0:
            self._evict(over)
        self.peak = max(self.peak, self.held)
        return True

    def give(self, blocks: int) -> None:
        """Blocks a sequence held are free again."""
        self.held -= blocks

    # -- prefixes ----------------------------------------------------------------------------
    def chain(self, node: int) -> list[int]:
        """Nodes from the root to ``node``."""
        found = []
        while node >= 0:
            found.append(node)
            node = self._parent[node]
        return found[::-1]

    def resident(self, node: int) -> int:
        """Blocks of ``node``'s own that are here."""
        return self._resident.get(node, 0)

    def span(self, node: int) -> int:
        """Blocks of ``node``'s own, its parent's not counted."""
        parent = self._parent[node]
        start = self._tokens[parent] // self.size if parent >= 0 else 0
        return int(self._tokens[node] // self.size - start)

    def cached(self, node: int) -> int:
        """Tokens of ``node``'s prefix that are here, from its start on."""
        blocks = 0
        for each in self.chain(node):
            here = self._resident.get(each, 0)
            blocks += here
            if here < self.span(each):
                break
        return blocks * self.size

    def idle(self, node: int, tokens: int) -> int:
        """Blocks nobody uses now that :meth:`refer` with the same arguments would hold."""
        found, left = 0, tokens // self.size
        for each in self.chain(node):
            if left <= 0:
                break
            here = self._resident.get(each, 0)
            if self._references.get(each, 0) == 0:
                found += here
            left -= here
        return found

    def refer(self, node: int, tokens: int) -> list[int]:
        """Use the first ``tokens`` (whole blocks) of ``node``'s prefix; the nodes that are used now."""
        self._clock += 1
        used, left = [], tokens // self.size
        for each in self.chain(node):
            if left <= 0:
                break
            here = min(self._resident.get(each, 0), left)
            if self._references.get(each, 0) == 0:
                self.kept -= self._resident[each]
                self.held += self._resident[each]
            self._references[each] = self._references.get(each, 0) + 1
            used.append(each)
            left -= here
        self.hits += tokens // self.size
        self.peak = max(self.peak, self.held)
        return used

    def publish(self, node: int, used: list[int], own: int) -> int:
        """A sequence that has computed ``node``'s prefix shares what was not here; ``used`` is extended.

        Of its ``own`` blocks, the returned number now belong to the tree.
        """
        given = 0
        for each in self.chain(node):
            if each in used:
                if self._resident[each] < self.span(each):
                    break
                continue
            fits = min(self.span(each), own - given)
            if self._resident.get(each, 0) or fits <= 0:
                break
            self._resident[each], self._references[each] = fits, 1
            used.append(each)
            given += fits
            if fits < self.span(each):
                break
        return given

    def leave(self, used: list[int]) -> None:
        """A sequence that used these nodes ends; what nobody uses is kept."""
        self._clock += 1
        for depth, each in enumerate(used):
            self._references[each] -= 1
            if self._references[each] == 0:
                self.held -= self._resident[each]
                self.kept += self._resident[each]
                self._last[each] = self._clock
                heappush(self._kept_heap, (self._clock, -depth, each))

    def _evict(self, blocks: int) -> None:
        while blocks > 0:
            clock, depth, node = heappop(self._kept_heap)
            if self._references.get(node, 0) or self._last.get(node) != clock or not self._resident.get(node):
                continue
            gone = min(self._resident[node], blocks)
            self._resident[node] -= gone
            if self.spill is not None:
                self.spill(node, self._resident[node], self._resident[node] + gone)
            self.kept -= gone
            blocks -= gone
            if self._resident[node]:
                heappush(self._kept_heap, (clock, depth, node))
            else:
                del self._resident[node]

    def clear(self) -> None:
        """Everything is lost, as when a replica dies."""
        self.held = self.kept = 0
        self._resident.clear()
        self._references.clear()
        self._kept_heap.clear()
