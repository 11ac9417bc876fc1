"""A request while an engine works on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batch import Batch


class Sequence:
    """State of one request on its way; lengths in tokens.

    ``prompt``: tokens to prefill (after a preemption: what was written too), ``done`` of them are in the cache.
    ``left``: tokens still to write. While it decodes, ``base`` is its cached tokens less the replica's decode
    counter, so that a step changes nothing here. ``blocks``: its own; ``used``: blocks it refers to by prefix node,
    ``shared`` in all; ``grows``: it takes blocks as it goes. ``joined``: the counter when it began to decode.
    ``entry``: its line in the replica's heap of the longest. ``stamp``: when it got its last token before it joined or
    left a batch (negative: no token yet). ``place``: 0 waiting or gone, 1 its prompt is computed, 2 it decodes.
    ``parked``: its cache waits elsewhere. ``brought``: tokens of its prompt whose cache comes along when it is admitted
    (0: none, or they are there). ``home``: the batch in which it decodes.
    """

    __slots__ = (
        "base", "blocks", "brought", "done", "entry", "finish_at", "grows", "home", "index", "joined", "key", "left",
        "node", "parked", "place", "prompt", "serial", "shared", "stamp", "used",
    )  # fmt: skip

    def __init__(self, index: int, prompt: int, output: int, node: int = -1) -> None:
        self.index, self.prompt, self.left, self.node = index, prompt, output, node
        self.done = 0
        self.base = 0
        self.blocks = 0
        self.shared = 0
        self.used: dict[int, int] = {}
        self.entry: object = None
        self.finish_at = 0
        self.joined = 0
        self.grows = False
        self.stamp = -1.0
        self.key: tuple[float, ...] = ()
        self.place = -1
        self.parked = False
        self.brought = 0
        self.serial = 0
        self.home: Batch | None = None

    @property
    def todo(self) -> int:
        """Tokens of the prompt that are not in the cache."""
        return self.prompt - self.done
