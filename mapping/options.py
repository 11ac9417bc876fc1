"""What the options of a built problem mean: places, formats, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..hw.estimate import Request
from ..workloads.trace import Trace
from .costs import Piece
from .node import Node
from .problem import Array, Problem
from .quality import Menu
from .spreads import Spread, Transfers

Sizes = tuple[float, float, float]
"""Bytes of an edge in each phase."""
QUALITY = {"loss": 1e12, "bits": 1e9}
"""Limits on quality, and how much of its pool a whole one fills: as many as a memory has bytes, for solvers' sake."""


@dataclass(frozen=True)
class Joint:
    """Where an operator runs in prefill and in decode."""

    prefill: Spread
    decode: Spread

    def label(self, names: Sequence[str]) -> str:
        """One name where both are alike, else ``A | B``."""
        a, b = self.prefill.label(names), self.decode.label(names)
        return a if self.prefill == self.decode else f"{a} | {b}"


@dataclass(frozen=True)
class Form:
    """An operator in one format: its name ("" where there is no choice), the piece, and its part of the model's loss
    and of the bits it is narrower by (see :mod:`.quality`)."""

    name: str
    piece: Piece
    loss: float = 0.0
    narrowing: float = 0.0


@dataclass
class Option:
    """A place, the formats there in prefill and in decode, and bytes of weights and caches in each memory. Quality is
    that of the worse of the two."""

    joint: Joint
    prefill: Form
    decode: Form
    weights: Array = field(default_factory=lambda: np.zeros(0))
    caches: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def format(self) -> str:
        """One name where both phases have one format, else ``A|B``."""
        a, b = self.prefill.name, self.decode.name
        return a if a == b else f"{a}|{b}"

    @property
    def loss(self) -> float:
        return max(self.prefill.loss, self.decode.loss)

    @property
    def narrowing(self) -> float:
        return max(self.prefill.narrowing, self.decode.narrowing)


@dataclass
class Built:
    """A problem, and what its numbers mean: ``joints[block][operator][option]``, ``pieces[block][operator]``,
    ``bytes[block][edge]`` per phase, transfers, memory by use (weights, caches) per option; ``narrowing`` per option,
    bits per weight that the model loses by it; ``quality``: limits on loss and bits."""

    problem: Problem
    node: Node
    trace: Trace
    request: Request
    joints: list[list[list[Joint]]]
    pieces: list[list[Piece]]
    sizes: list[list[Sizes]]
    transfers: Transfers
    reserve: float
    weights: list[list[Array]] = field(default_factory=list)
    caches: list[list[Array]] = field(default_factory=list)
    prompt_cache: list[list[float]] = field(default_factory=list)
    menu: Menu | None = None
    narrowing: list[list[Array]] = field(default_factory=list)
    quality: dict[str, float] = field(default_factory=dict)
