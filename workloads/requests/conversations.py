"""Conversations as sessions of requests: every answer is a request whose prompt is all that was said before it.

Turns are what ShareGPT writes (``from``, ``value``), what chat interfaces take (``role``, ``content``), or counts:
``{"role": "user", "tokens": 12}`` in place of a text, or ``{"prompt": 12, "output": 30}`` for a question with its
answer. ``think_s`` in a question is the time from the answer before it. ``arrival_s`` (seconds) or ``arrival_time``
(seconds since 1970) beside the turns is when the first question is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import InputError
from ..request_log import MOST_TOKENS, Integers
from .forms import SECONDS, TOKENS, UNIX, Kind, show
from .prefixes import PrefixTree, blocks_of, token_ids
from .records import Read, Trouble

TURNS = ("conversations", "messages", "turns")
SPEAKERS = ("from", "role")
TEXTS = ("value", "content")
ANSWERS = {"gpt", "assistant", "model", "chatgpt", "bing", "bard"}
SYSTEM = "system"
ARRIVALS = {"arrival_s": SECONDS, "arrival_time": UNIX}


class _Said(NamedTuple):
    """A turn, or one of the two halves of a turn that counts both."""

    speaker: str
    tokens: int
    text: str | None = None
    ids: Integers | None = None
    think: float = 0.0

    @property
    def is_answer(self) -> bool:
        return self.speaker in ANSWERS


class _Row(NamedTuple):
    """One request, with rows and nodes by number."""

    arrival: float
    prompt: int
    output: int
    prefix: int
    extends: int
    after: int
    think: float


class UncountedTextError(InputError):
    """Text without a way to count its tokens: no fault of one record."""


class _Sessions:
    """The requests of all conversations, and the tree of what they share."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.rows: list[_Row] = []
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.systems: dict[str, int] = {}
        self.tree = PrefixTree()
        self.by_ids: bool | None = None

    def add(self, said: Sequence[_Said], arrival: float) -> None:
        """One conversation. Raises ``InputError`` where it is none; nothing is added then."""
        spans = list(_requests(said))
        if not spans:
            raise InputError("no answer to a question, so no request")
        by_ids = said[0].ids is not None
        if any((s.ids is not None) != by_ids for s in said) or self.by_ids is (not by_ids):
            raise InputError("token_ids in some turns only; expected them everywhere or nowhere")
        if sum(s.tokens for s in said) > MOST_TOKENS:
            raise InputError(f"{sum(s.tokens for s in said)} tokens; expected at most {MOST_TOKENS}")
        self.by_ids = by_ids
        prefix, after = self._system(said[0]) if not by_ids else -1, -1
        everything = np.concatenate([s.ids for s in said if s.ids is not None]) if by_ids else None
        for i, (prompt, output, think) in enumerate(spans):
            arrival += think if i else 0.0
            extends = -1
            if everything is not None:
                blocks = blocks_of(everything[:prompt], self.block)
                both = blocks_of(everything[len(blocks) * self.block : prompt + output], self.block)
                self.tree.add(blocks, both, self.block)
            elif i + 1 < len(spans):
                extends = self._node(prompt + output, prefix)
            self.rows.append(_Row(arrival, prompt, output, prefix, extends, after, think if i else 0.0))
            prefix, after = extends, len(self.rows) - 1

    def _system(self, first: _Said) -> int:
        """The node of what the system says first: conversations with the same text share it."""
        if first.speaker != SYSTEM or not first.text:
            return -1
        if first.text not in self.systems:
            self.systems[first.text] = self._node(first.tokens, -1)
        return self.systems[first.text]

    def _node(self, tokens: int, parent: int) -> int:
        self.tokens.append(tokens)
        self.parents.append(parent)
        return len(self.tokens) - 1


def _requests(said: Sequence[_Said]) -> Iterator[tuple[int, int, float]]:
    """(prompt tokens, answer tokens, think time) of each answer that has something before it."""
    before, think = 0, 0.0
    for s in said:
        if s.is_answer and before:
            yield before, s.tokens, think
            think = 0.0
        before += s.tokens
        think += s.think


def read_conversations(
    values: Sequence[tuple[int, dict[str, Any] | str]], block: int, chars_per_token: float, trouble: Trouble
) -> Read:
    """The requests of conversations, each with the number of its line; a text is what is wrong with that line."""
    sessions = _Sessions(block)
    first = next(value for _, value in values if isinstance(value, dict))
    stamp = next((name for name in ARRIVALS if name in first), "")
    origin: float | None = None
    latest = 0.0
    for number, value in values:
        try:
            if isinstance(value, str):
                raise InputError(value)
            arrival = float(_count(value, stamp, ARRIVALS[stamp])) if stamp else 0.0
            if arrival < latest:
                raise InputError(f"{stamp}: found {arrival!r} after {latest!r}, expected records in order of arrival")
            start = origin if origin is not None else arrival if stamp and ARRIVALS[stamp].clock else 0.0
            sessions.add(list(_said(value, chars_per_token)), arrival - start)
            origin, latest = start, arrival
        except UncountedTextError as error:
            raise InputError(f"{trouble.path}: {trouble.word} {number}: {error}") from None
        except InputError as error:
            trouble.bad(number, str(error))
    if not sessions.rows:
        raise trouble.nothing()
    prefix: Any
    extends: Any
    tokens: Any = sessions.tokens
    parents: Any = sessions.parents
    arrival_s, prompt, output, prefix, extends, after, think = zip(*sessions.rows, strict=True)
    if sessions.by_ids:
        prefix, extends, tokens, parents = sessions.tree.nodes()
    counted = f" ({chars_per_token:g} characters taken for a token)" if chars_per_token else ""
    log = trouble.log(
        arrival_s, prompt, output, prefix=prefix, extends=extends, after=after,
        think_s=think, prefix_tokens=tokens, prefix_parent=parents, source=trouble.path + counted,
    )  # fmt: skip
    return Read(log, bool(stamp))


def _said(conversation: Mapping[str, Any], chars_per_token: float) -> Iterator[_Said]:
    """Who said how much, in order. Raises ``InputError`` with the key and the turn that is wrong."""
    key = next((name for name in TURNS if name in conversation), TURNS[0])
    turns = conversation.get(key)
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{key}: found {show(turns)}, expected a list of turns")
    for i, turn in enumerate(turns):
        where = f"{key}[{i}]"
        if not isinstance(turn, dict):
            raise InputError(f"{where}: found {show(turn)}, expected an object")
        think = float(_count(turn, "think_s", SECONDS, where)) if "think_s" in turn else 0.0
        if "prompt" in turn or "output" in turn:
            yield _Said("user", _count(turn, "prompt", TOKENS, where), think=think)
            yield _Said("assistant", _count(turn, "output", TOKENS, where))
            continue
        speaker = next((turn[name] for name in SPEAKERS if name in turn), None)
        if not isinstance(speaker, str) or not speaker:
            raise InputError(f"{where}.{SPEAKERS[1]}: found {show(speaker)}, expected who speaks")
        tokens, text, ids = _content(turn, where, chars_per_token)
        if speaker in ANSWERS and tokens == 0:
            raise InputError(f"{where}: found an answer of 0 tokens, expected at least 1")
        yield _Said(speaker, tokens, text, ids, think)


def _content(turn: Mapping[str, Any], where: str, chars_per_token: float) -> tuple[int, str | None, Integers | None]:
    """Tokens of a turn, and its text or its ids where it has them."""
    if "token_ids" in turn:
        ids = token_ids(f"{where}.token_ids", turn["token_ids"])
        return len(ids), None, ids
    if "tokens" in turn:
        return _count(turn, "tokens", TOKENS, where), None, None
    name = next((name for name in TEXTS if name in turn), TEXTS[1])
    text = turn.get(name)
    if not isinstance(text, str):
        raise InputError(f"{where}.{name}: found {show(text)}, expected a text, or tokens or token_ids")
    if not chars_per_token:
        raise UncountedTextError(
            f"{where}.{name} is text, and its tokens cannot be counted without a tokenizer; give token_ids or tokens "
            "in the file, or say how many characters to take for a token, as in FILE@chars_per_token=4"
        )
    return math.ceil(len(text) / chars_per_token), text, None


def _count(record: Mapping[str, Any], name: str, kind: Kind, where: str = "") -> Any:
    values, good = kind.read([record.get(name)])
    if not good[0]:
        raise InputError(
            f"{where}{'.' if where else ''}{name}: found {show(record.get(name))}, expected {kind.expected}"
        )
    return values[0].item()
