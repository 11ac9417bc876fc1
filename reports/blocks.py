"""What a report is made of: parts (sections) of blocks. The PDF and the HTML draw the same ones.

A picture draws on a :class:`Canvas`, a rectangle measured in inches, so that one function serves a page of the
PDF and an SVG of its own. Tables, listings and paragraphs are plain data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .style import INK

Tone = Literal["normal", "muted", "strong", "warn"]
Align = Literal["left", "right"]


@dataclass(frozen=True)
class Canvas:
    """A rectangle of a figure; all lengths are inches, measured from its lower left corner."""

    figure: Figure
    left: float
    bottom: float
    width: float
    height: float

    def part(self, left: float, bottom: float, width: float, height: float) -> Canvas:
        """A rectangle within this one."""
        return Canvas(self.figure, self.left + left, self.bottom + bottom, width, height)

    def columns(self, number: int, gap: float = 0.4) -> list[Canvas]:
        """Equal rectangles side by side."""
        each = (self.width - gap * (number - 1)) / number
        return [self.part(i * (each + gap), 0, each, self.height) for i in range(number)]

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        """Axes over a rectangle within this one."""
        w, h = self.figure.get_size_inches()
        axes = self.figure.add_axes(
            ((self.left + left) / w, (self.bottom + bottom) / h, max(0.1, width) / w, max(0.1, height) / h)
        )
        axes.set_axisbelow(True)
        return axes

    def text(self, x: float, y: float, text: str, size: float = 8, color: str = INK, **style: Any) -> None:
        """One line of text; ``y`` is its baseline unless ``va`` says otherwise."""
        w, h = self.figure.get_size_inches()
        style.setdefault("va", "baseline")
        self.figure.text((self.left + x) / w, (self.bottom + y) / h, text, fontsize=size, color=color, **style)

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """A filled rectangle without an edge."""
        w, h = self.figure.get_size_inches()
        corner = (self.left + x) / w, (self.bottom + y) / h
        patch = Rectangle(corner, width / w, height / h, facecolor=color, edgecolor="none", linewidth=0)
        self.figure.add_artist(patch)


@dataclass(frozen=True)
class Picture:
    """A figure: ``draw`` fills a canvas of the page's width and ``height`` inches. ``alt`` says it in words.

    A page that lacks room may give it less height, though not below ``least`` (0: as much as it asks for).
    """

    draw: Callable[[Canvas], None]
    height: float
    title: str
    alt: str
    least: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One cell of a table; ``swatch`` is the colour of the device it names."""

    text: str
    tone: Tone = "normal"
    swatch: str | None = None


@dataclass(frozen=True)
class Column:
    """One column: ``grow`` lets it wrap and take what room is left."""

    title: str
    align: Align = "left"
    grow: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells, as many as there are columns. ``note`` explains marks below it."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""
    size: float = 8.0


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str
    style: Literal["headline", "lead", "body", "heading", "note"] = "body"


@dataclass(frozen=True)
class Listing:
    """Numbered or named lines: (mark, text), set in ``columns``."""

    items: tuple[tuple[str, str], ...]
    columns: int = 2
    size: float = 6.5
    title: str = ""


Block = Picture | Table | Paragraph | Listing


@dataclass(frozen=True)
class Part:
    """A section. ``lead`` says what the reader should take away.

    In the PDF it begins a page; one that ``joins`` goes below the part before it where all of it has room.
    """

    title: str
    lead: str
    blocks: tuple[Block, ...]
    context: str = ""
    joins: bool = False
