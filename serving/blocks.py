"""KV blocks of one replica: held by sequences, shared as prefixes, free.

A prefix tree's node covers the whole blocks between its parent's end and its own, of which a first part is here. What
a sequence refers to of it is held; the rest is *kept*, and evicted when others want room: of the node that was left
the longest ago, from its end. Always empty + held + kept = total; what can be had (:attr:`BlockPool.free`) is empty +
kept.

Where ``keeps`` is set, what a preempted sequence had computed is kept in the same way, a node of its own behind what it
shared: vLLM finds the blocks of a sequence that comes back by their hashes as long as nobody took them
(vllm/v1/core/block_pool.py: freed blocks keep their hash, a sequence's last ones are taken first).
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt


class BlockPool:
    """Counts of blocks; ``total`` of ``size`` tokens each.

    ``prefix_tokens`` and ``prefix_parent`` describe the prefix tree (see :class:`..workloads.request_log.RequestLog`);
    empty where nothing is shared.
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
        self._depths: dict[int, dict[int, int]] = {}
        self._clock = 0
        self._last: dict[int, int] = {}
        self._kept_heap: list[tuple[int, int, int]] = []
        self.spill: Callable[[int, int, int], None] | None = None
        self.keeps = False
        self._begin: dict[int, int] = {}

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

    # -- what preempted sequences leave behind ---------------------------------------------------
    def leave_behind(self, owner: int, used: dict[int, int], computed: int) -> int:
        """The sequence ``owner``, which has ``computed`` tokens in its cache and refers to ``used``, may come back: its
        own blocks behind those are given up, as many as are returned."""
        self._begin[owner] = begin = max((self._start(node) + n for node, n in used.items()), default=0)
        blocks = computed // self.size - begin
        if blocks > 0:
            self._clock += 1
            self._resident[-1 - owner], self._last[-1 - owner] = blocks, self._clock
            self.held -= blocks
            self.kept += blocks
            heappush(self._kept_heap, (self._clock, -computed, -1 - owner))
        return max(blocks, 0)

    def left_behind(self, owner: int, shared: int) -> int:
        """Blocks of ``owner`` that are still here and continue its first ``shared`` ones."""
        begin = self._begin.get(owner, 0)
        here = self._resident.get(-1 - owner, 0)
        return max(begin + here - shared, 0) if begin <= shared else 0

    def claim(self, owner: int, blocks: int) -> None:
        """``owner`` is back and holds ``blocks`` of those that it left behind; the others are empty."""
        self.kept -= self._resident.pop(-1 - owner, 0)
        self.held += blocks
        self._begin.pop(owner, None)

    # -- prefixes ----------------------------------------------------------------------------
    def chain(self, node: int) -> list[int]:
        """Nodes from the root to ``node``; none where nothing is shared."""
        found: list[int] = []
        while node >= 0 and self._parent:
            found.append(node)
            node = self._parent[node]
        return found[::-1]

    def resident(self, node: int) -> int:
        """Blocks of ``node``'s own that are here."""
        return self._resident.get(node, 0)

    def span(self, node: int) -> int:
        """Blocks of ``node``'s own, its parent's not counted."""
        return int(self._tokens[node] // self.size - self._start(node))

    def _start(self, node: int) -> int:
        """Blocks before ``node``'s own."""
        parent = self._parent[node]
        return int(self._tokens[parent] // self.size) if parent >= 0 else 0

    def cached(self, node: int) -> int:
        """Tokens of ``node``'s prefix that are here, from its start on."""
        blocks = 0
        for each in self.chain(node):
            here = self._resident.get(each, 0)
            blocks += here
            if here < self.span(each):
                break
        return blocks * self.size

    def unused(self, node: int, tokens: int) -> int:
        """Blocks among the first ``tokens`` (whole blocks, all here) of ``node``'s prefix that nobody uses."""
        found, left = 0, tokens // self.size
        for each in self.chain(node):
            if left <= 0:
                break
            here = min(self._resident.get(each, 0), left)
            found += max(here - max(self._depths.get(each, ()), default=0), 0)
            left -= here
        return found

    def refer(self, node: int, tokens: int) -> dict[int, int]:
        """Use the first ``tokens`` (whole blocks, all here) of ``node``'s prefix: blocks of each node in use now."""
        used: dict[int, int] = {}
        left = tokens // self.size
        for each in self.chain(node):
            if left <= 0:
                break
            here = min(self._resident.get(each, 0), left)
            if here:
                self._use(each, here)
                used[each] = here
            left -= here
        self.hits += tokens // self.size
        self.peak = max(self.peak, self.held)
        return used

    def _use(self, node: int, blocks: int) -> None:
        """One more sequence uses the first ``blocks`` of ``node``."""
        depths = self._depths.setdefault(node, {})
        more = blocks - max(depths, default=0)
        depths[blocks] = depths.get(blocks, 0) + 1
        if more > 0:
            self.kept -= more
            self.held += more

    def _unuse(self, node: int, blocks: int) -> None:
        depths = self._depths[node]
        depths[blocks] -= 1
        if not depths[blocks]:
            del depths[blocks]
            less = blocks - max(depths, default=0)
            if less > 0:
                self.held -= less
                self.kept += less

    def publish(self, node: int, used: dict[int, int], computed: int) -> int:
        """A sequence that has ``computed`` tokens in its cache shares what is not here of ``node``'s prefix.

        ``used``, what it refers to, is extended; the returned number of its own blocks now belong to the tree. Only
        whole blocks are shared. A node of which more is here than the sequence uses (two computed the same at once)
        stays as it is.
        """
        given, start = 0, 0
        for each in self.chain(node):
            span, here, mine = self.span(each), self._resident.get(each, 0), used.get(each, 0)
            whole = min(span, computed // self.size - start)
            start += span
            if here >= span:
                continue
            if mine != here or whole <= here:
                break
            if mine:
                self._unuse(each, mine)
            self._resident[each] = whole
            self.kept += whole - here  # until they are used, in a moment
            self.held -= whole - here
            self._use(each, whole)
            used[each] = whole
            given += whole - here
            if whole < span:
                break
        return given

    def leave(self, used: dict[int, int]) -> None:
        """A sequence that used these blocks of nodes ends; what nobody uses is kept."""
        self._clock += 1
        for each, blocks in used.items():
            self._unuse(each, blocks)
            self._last[each] = self._clock
            if self._unused(each):
                heappush(self._kept_heap, (self._clock, -self._tokens[each], each))

    def _unused(self, node: int) -> int:
        """Blocks of ``node`` that may be evicted, from its end."""
        return self._resident.get(node, 0) - max(self._depths.get(node, ()), default=0)

    def _evict(self, blocks: int) -> None:
        while blocks > 0:
            clock, depth, node = heappop(self._kept_heap)
            if self._last.get(node) != clock or not (unused := self._unused(node)):
                continue
            gone = min(unused, blocks)
            self._resident[node] -= gone
            if self.spill is not None and node >= 0:
                self.spill(node, self._resident[node], self._resident[node] + gone)
            self.kept -= gone
            blocks -= gone
            if gone < unused:
                heappush(self._kept_heap, (clock, depth, node))
            if not self._resident[node]:
                del self._resident[node]

    def clear(self) -> None:
        """Everything is lost, as when a replica dies."""
        self.held = self.kept = 0
        self._resident.clear()
        self._depths.clear()
        self._last.clear()
        self._kept_heap.clear()
        self._begin.clear()
