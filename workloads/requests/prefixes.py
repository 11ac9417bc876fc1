"""Prefix trees: which prompts start alike, found from blocks of tokens."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..request_log import Integers
from .forms import show


class PrefixTree:
    """A tree of blocks, grown request by request, of which :meth:`nodes` keeps what requests share.

    Blocks are found by their hash and compared whole, each below the block before it, as engines with a block-wise
    prefix cache do; a part of a block at the end is not shared.
    """

    def __init__(self) -> None:
        self._below: dict[tuple[int, Hashable], int] = {}
        self._parent: list[int] = []
        self._tokens: list[int] = []
        self._prompts: list[int] = []  # requests whose prompt runs through the block
        self._all: list[int] = []  # the same, or whose answer does
        self._ends: list[tuple[int, int]] = []  # per request: last whole block of the prompt, and of the answer

    def add(self, prompt: Sequence[Hashable], answer: Sequence[Hashable], block: int) -> None:
        """One request: the whole blocks of its prompt, and those of prompt and answer that follow them."""
        at = self._walk(-1, prompt, block, True)
        self._ends.append((at, self._walk(at, answer, block, False)))

    def _walk(self, at: int, blocks: Sequence[Hashable], block: int, is_prompt: bool) -> int:
        for content in blocks:
            key = (at, content)
            node = self._below.get(key)
            if node is None:
                node = self._below[key] = len(self._parent)
                self._parent.append(at)
                self._tokens.append(block + (self._tokens[at] if at >= 0 else 0))
                self._prompts.append(0)
                self._all.append(0)
            self._prompts[node] += is_prompt
            self._all[node] += 1
            at = node
        return at

    def nodes(self) -> tuple[Integers, Integers, Integers, Integers]:
        """(prefix, extends) per request added, and (tokens, parent) per node that is kept.

        Kept is a block that a prompt and another request run through, where their ways part or one of them ends.
        """
        size = len(self._parent)
        goes_on = [False] * size  # some block below has the same requests
        for node, parent in enumerate(self._parent):
            if parent >= 0 and self._prompts[node] and self._all[node] == self._all[parent]:
                goes_on[parent] = True
        ends = {node for pair in self._ends for node in pair}
        kept, number, tokens, parents = [-1] * (size + 1), 0, [], []
        for node, parent in enumerate(self._parent):  # parents come before their children
            kept[node] = kept[parent]
            shared = self._all[node] > 1 and self._prompts[node]
            if shared and (not goes_on[node] or node in ends):
                kept[node] = number
                tokens.append(self._tokens[node])
                parents.append(kept[parent])
                number += 1
        prefix = np.array([kept[at] for at, _ in self._ends], np.int64)
        extends = np.array([kept[to] for _, to in self._ends], np.int64)
        # An answer that no other prompt goes on with leaves nothing behind that its prompt did not have.
        extends = np.where(extends == prefix, -1, extends)
        return prefix, extends, np.array(tokens, np.int64), np.array(parents, np.int64)


def blocks_of(tokens: Any, block: int) -> list[Hashable]:
    """The whole blocks of a row of token ids, as bytes."""
    row = np.ascontiguousarray(tokens, dtype=np.int64)
    return [row[i : i + block].tobytes() for i in range(0, len(row) - block + 1, block)]


def token_ids(name: str, row: Any) -> Integers:
    """A list of ids as an array. Raises ``InputError`` where it is anything else; ``name`` is how it is called."""
    array: NDArray[Any] = np.empty(0, np.int64)
    try:
        if isinstance(row, list) and row:
            array = np.array(row)
    except (ValueError, OverflowError):
        array = np.empty((0, 0))
    if not isinstance(row, list) or array.ndim != 1 or array.dtype.kind != "i" or (array < 0).any():
        raise InputError(f"{name}: found {show(row)}, expected a list of whole numbers from 0")
    return array.astype(np.int64)
