"""Request logs: what a serving simulation is asked to answer, as plain arrays.

A log says when requests arrive, how long their prompts and answers are, which prefixes their prompts share and
which requests wait for others (the next turn of a conversation). ``tokenfab.workloads.requests`` reads logs from
files and generates them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError

MOST_TOKENS = 10**7
"""Tokens of a prompt or an answer at most: what is longer is taken for a mistake."""
MOST_SECONDS = 1e9
"""Seconds from the start of a log at most (31 years): what is later is taken for a mistake."""
MOST_PRIORITY = 10**6
"""Priorities lie within plus and minus this."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def _none() -> Integers:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class RequestLog:
    """N requests as arrays of shape (N,), sorted by arrival; P nodes of prefixes as arrays of shape (P,).

    A prefix node is a string of tokens; ``prefix_tokens`` is its length from the root. A request whose ``prefix`` is
    a node has a prompt that starts with it; when the request has been answered, prompt and answer together start
    with the node ``extends``, which later prompts may name. Only nodes that some prompt names, or that part two of
    them, need be there. A request with ``after`` ≥ 0 arrives ``think_s`` after that request is finished; its
    ``arrival_s`` is then only a lower bound, as if answers took no time. Make logs with :func:`plain`, which fills
    in what is not given, sorts and checks; the arrays cannot be written to.
    """

    arrival_s: Floats
    """Seconds on the log's own clock; where a file has stamps of a real clock, from the first one."""
    prompt: Integers
    """Tokens of the prompt, its prefix included; at least 1."""
    output: Integers
    """Tokens to write, at least 1."""
    klass: Integers
    """Index into ``classes``."""
    priority: Integers
    """Smaller is more urgent."""
    prefix: Integers
    """Node of the prefix tree that the prompt starts with; -1: none."""
    extends: Integers
    """Node that prompt and output start with once they are there; -1: none that any prompt names."""
    after: Integers
    """Index of the request that must be finished first; -1: none. Always smaller than the request's own."""
    think_s: Floats
    """Seconds from the end of ``after`` to the arrival; without a meaning where ``after`` is -1."""
    prefix_tokens: Integers = field(default_factory=_none)
    """Tokens of each prefix node, counted from the root of its tree."""
    prefix_parent: Integers = field(default_factory=_none)
    """Parent of each prefix node, always a smaller number; -1: a root."""
    classes: tuple[str, ...] = ("all",)
    source: str = ""
    """What the log was read or generated from."""
    seed: int | None = None
    """Seed of what was drawn; None where nothing was."""
    left_out: tuple[str, ...] = ()
    """One line per bad record that was left out."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rate(self) -> float:
        """Requests per second: (N - 1) / (last arrival - first); infinite where all arrive at once.

        Of a log with sessions this is an upper bound, because ``arrival_s`` of later turns is a lower one.
        """
        span = float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self) - 1) / span if span > 0 else float("inf")

    def head(self, n: int) -> RequestLog:
        """The first ``n`` requests, or all where there are fewer. Whatever one of them waits for is among them.

        Raises ``InputError`` for n < 1.
        """
        if n < 1:
            raise InputError(f"the first {n} requests of a log: expected a number from 1")
        return replace(self, **{name: getattr(self, name)[:n] for name in PER_REQUEST})

    def check(self, max_context: int | None = None) -> None:
        """Raise ``InputError`` at the first request that breaks what this class promises.

        With ``max_context``, also at the first whose prompt and output together are longer (tokens).
        """
        n, p = len(self), len(self.prefix_tokens)
        if n == 0:
            raise InputError("a request log needs at least one request")
        for name in PER_REQUEST:
            if getattr(self, name).shape != (n,):
                raise InputError(
                    f"requests: {name} has the shape {getattr(self, name).shape}, arrival_s the shape ({n},)"
                )
        if self.prefix_tokens.shape != (p,) or self.prefix_parent.shape != (p,):
            raise InputError(
                f"requests: prefix_tokens {self.prefix_tokens.shape} and prefix_parent {self.prefix_parent.shape} "
                "must have one and the same length"
            )
        arrival, index = self.arrival_s, np.arange(n)
        earlier = np.concatenate([[0.0], arrival[:-1]])
        _require("arrival_s", arrival, _within(arrival, 0, MOST_SECONDS), f"0 to {MOST_SECONDS:g} s")
        _require("arrival_s", arrival, arrival >= earlier, "arrivals in order")
        _require("prompt", self.prompt, _within(self.prompt, 1, MOST_TOKENS), f"1 to {MOST_TOKENS} tokens")
        _require("output", self.output, _within(self.output, 1, MOST_TOKENS), f"1 to {MOST_TOKENS} tokens")
        _require("klass", self.klass, _within(self.klass, 0, len(self.classes) - 1), "an index into classes")
        most = MOST_PRIORITY
        _require("priority", self.priority, _within(self.priority, -most, most), f"-{most} to {most}")
        _require("think_s", self.think_s, _within(self.think_s, 0, MOST_SECONDS), f"0 to {MOST_SECONDS:g} s")
        _require("after", self.after, (self.after >= -1) & (self.after < index), "-1 or an earlier request")
        self._check_prefixes()
        if max_context is not None:
            whole = self.prompt + self.output
            _require("prompt + output", whole, whole <= max_context, f"at most {max_context} tokens of context")

    def _check_prefixes(self) -> None:
        tokens, parent = self.prefix_tokens, self.prefix_parent
        own = np.arange(len(tokens))
        _require("prefix_parent", parent, (parent >= -1) & (parent < own), "-1 or an earlier node", "prefix node")
        # An appended 0 is what index -1 finds: no prefix is a prefix of no tokens.
        lengths = np.concatenate([tokens, [0]])
        _require("prefix_tokens", tokens, tokens > lengths[parent], "more tokens than its parent", "prefix node")
        for name, room in (("prefix", self.prompt), ("extends", self.prompt + self.output)):
            node = getattr(self, name)
            _require(name, node, _within(node, -1, len(tokens) - 1), f"-1 or a node below {len(tokens)}")
            _require(
                f"prefix_tokens of {name}", lengths[node], lengths[node] <= room, "no more tokens than the request has"
            )
        # What a request leaves behind begins with its prompt: climb from extends towards prefix.
        climbing = np.flatnonzero(self.extends >= 0)
        at = self.extends[climbing]
        while climbing.size:
            above = lengths[at] > lengths[self.prefix[climbing]]
            wrong = ~above & (at != self.prefix[climbing])
            if wrong.any():
                worst = int(climbing[wrong].min())
                raise InputError(
                    f"request {worst}: extends is node {self.extends[worst]}; expected one below its prefix, "
                    f"node {self.prefix[worst]}"
                )
            climbing, at = climbing[above], parent[at[above]]


PER_REQUEST = tuple(f.name for f in fields(RequestLog))[:9]
"""Names of the arrays with one entry per request."""


def plain(arrival_s: ArrayLike, prompt: ArrayLike, output: ArrayLike, **more: Any) -> RequestLog:
    """A checked :class:`RequestLog` in order of arrival, from its first three arrays and whatever else is given.

    ``more`` are other fields of the class; a number stands for that number at every request. Requests that arrive
    together keep their order; ``after`` counts requests in the order given and is carried over. What is not given:
    one class, priority 0, no prefixes, nothing waits. Raises ``InputError`` for what :meth:`RequestLog.check`
    refuses, for numbers that are not whole where tokens are counted, and for names that are no field.
    """
    unknown = sorted(set(more) - {f.name for f in fields(RequestLog)})
    if unknown:
        raise InputError(f"requests: {unknown[0]} is no field of a request log")
    arrays: dict[str, Any] = {"arrival_s": _floats("arrival_s", arrival_s)}
    n = arrays["arrival_s"].shape[0]
    for name, given in {"prompt": prompt, "output": output}.items():
        arrays[name] = _integers(name, given, n)
    for name, default in {"klass": 0, "priority": 0, "prefix": -1, "extends": -1, "after": -1}.items():
        arrays[name] = _integers(name, more.pop(name, default), n)
    arrays["think_s"] = _floats("think_s", more.pop("think_s", 0.0), n)
    for name in ("prefix_tokens", "prefix_parent"):
        arrays[name] = _integers(name, more.pop(name, ()))
    for name in ("classes", "left_out"):
        if name in more:
            more[name] = tuple(more[name])
    lengths = {arrays[name].shape for name in PER_REQUEST}
    finite = np.isfinite(arrays["arrival_s"]).all()
    if len(lengths) == 1 and n and finite:  # else check() says what is wrong
        arrays = _sorted(arrays)
    for array in arrays.values():
        array.setflags(write=False)
    log = RequestLog(**arrays, **more)
    log.check()
    return log


def _sorted(arrays: dict[str, Any]) -> dict[str, Any]:
    """``arrays`` in order of arrival; requests that arrive together keep their order."""
    arrival, after = arrays["arrival_s"], arrays["after"]
    n = len(arrival)
    named = _within(after, 0, n - 1)
    known = np.where(named, after, 0)
    early = named & ((arrival < arrival[known]) | (known >= np.arange(n)))
    if early.any():
        i = int(np.flatnonzero(early)[0])
        raise InputError(
            f"request {i}: it waits for request {after[i]}; expected one that is given before it and arrives "
            "no later than it"
        )
    if (arrival[1:] >= arrival[:-1]).all():
        return arrays
    order = np.argsort(arrival, kind="stable")
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    moved = {name: arrays[name][order] for name in PER_REQUEST}
    moved["after"] = np.where(named, place[known], after)[order]
    return {**arrays, **moved}


def _floats(name: str, given: ArrayLike, n: int | None = None) -> Floats:
    try:
        array = np.array(given, dtype=np.float64)  # a copy: it is made read-only
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"requests: {name} is no array of numbers") from None
    if array.ndim == 0 and n is not None:
        array = np.full(n, array)
    if array.ndim != 1:
        raise InputError(f"requests: {name} has {array.ndim} dimensions; expected one")
    return array


def _integers(name: str, given: ArrayLike, n: int | None = None) -> Integers:
    array = _floats(name, given, n)
    with np.errstate(invalid="ignore"):
        whole = array.astype(np.int64)
    _require(name, array, np.isfinite(array) & (np.abs(array) < 2**53) & (whole == array), "a whole number")
    return whole


def _within(array: Any, low: float, high: float) -> NDArray[np.bool_]:
    return np.asarray((array >= low) & (array <= high))  # a NaN is neither


def _require(name: str, array: Any, good: Any, expected: str, what: str = "request") -> None:
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        raise InputError(f"{what} {i}: {name} is {array[i]}; expected {expected}")
