"""A table set in type: columns as wide as their text needs, long cells wrapped, thin rules between rows."""

from __future__ import annotations

from .blocks import Canvas, Cell, Column, Table
from .style import GREY, INK, PALE, RULE, WARN, width, wrap

PAD = 0.075
"""Inches between columns, on each side."""
SWATCH = 0.15
LEADING = 1.3 / 72
COLOURS = {"normal": INK, "muted": GREY, "strong": INK, "warn": WARN}


class Grid:
    """``table`` laid out over ``inches``: ``head`` and ``heights`` are inches of the header and of each row."""

    def __init__(self, table: Table, inches: float) -> None:
        self.table = table
        self.size = table.size
        self.widths = self._widths(inches)
        self.titles = [wrap(c.title, w, self.size, True) for c, w in zip(table.columns, self.widths, strict=True)]
        self.lines = [
            [_wrapped(cell, w, self.size) for cell, w in zip(row, self.widths, strict=True)] for row in table.rows
        ]
        step = self.size * LEADING
        self.head = max(len(t) for t in self.titles) * step + 0.1
        self.heights = [max(len(cell) for cell in row) * step + 0.055 for row in self.lines]

    def _widths(self, inches: float) -> list[float]:
        columns = self.table.columns
        cells = list(zip(*self.table.rows, strict=True)) if self.table.rows else [() for _ in columns]
        natural, least = [], []
        for column, values in zip(columns, cells, strict=True):
            words = _title_width(column.title, self.size)
            widest = max((_natural(c, self.size) for c in values), default=0.0)
            natural.append(max(words, widest) * 1.01 + 0.005)
            longest = max((_longest_word(c, self.size) for c in values), default=0.0)
            floor = max(words, longest) * 1.01 + 0.005
            least.append(min(natural[-1], floor, 2.0) if column.grow else natural[-1])
        room = inches - 2 * PAD * len(columns)
        return _share(natural, least, columns, room)

    def draw(self, canvas: Canvas, first: int, last: int) -> None:
        """Header and rows ``first`` to ``last`` (not included) on a canvas of just their height."""
        step = self.size * LEADING
        y = canvas.height
        canvas.box(0, y - self.head + 0.02, canvas.width, self.head - 0.02, PALE)
        self._row(canvas, y - 0.05, [(t, "strong", None) for t in self.titles], step, bottom=self.head - 0.1)
        y -= self.head
        for i in range(first, last):
            cells = [
                (lines, cell.tone, cell.swatch) for lines, cell in zip(self.lines[i], self.table.rows[i], strict=True)
            ]
            self._row(canvas, y - 0.022, cells, step)
            y -= self.heights[i]
            canvas.box(0, y, canvas.width, 0.006, RULE)

    def _row(self, canvas: Canvas, top: float, cells: list, step: float, bottom: float = 0.0) -> None:  # type: ignore[type-arg]
        x = 0.0
        for (lines, tone, swatch), column, wide in zip(cells, self.table.columns, self.widths, strict=True):
            left = x + PAD
            shift = max(0.0, bottom - len(lines) * step)  # header cells stand on the bottom
            for k, line in enumerate(lines):
                y = top - shift - (k + 0.78) * step
                indent = SWATCH if swatch else 0.0
                if swatch and k == 0:
                    canvas.box(left, y - 0.005, 0.09, 0.09, swatch)
                style = {"weight": "bold"} if tone == "strong" else {}
                if not line:
                    continue
                if column.align == "right":
                    canvas.text(left + wide, y, line, self.size, COLOURS[tone], ha="right", **style)
                else:
                    canvas.text(left + indent, y, line, self.size, COLOURS[tone], **style)
            x += wide + 2 * PAD


def _title_width(title: str, size: float) -> float:
    """The least width in which a title takes at most two lines."""
    words = title.split(" ")
    ways = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words) + 1)]
    return max(0.2, min(max(width(a, size, True), width(b, size, True)) for a, b in ways))


def _bold(cell: Cell) -> bool:
    return cell.tone == "strong"


def _natural(cell: Cell, size: float) -> float:
    return width(cell.text, size, _bold(cell)) + (SWATCH if cell.swatch else 0.0)


def _longest_word(cell: Cell, size: float) -> float:
    words = max((width(w, size, _bold(cell)) for w in cell.text.split(" ")), default=0.0)
    return words + (SWATCH if cell.swatch else 0.0)


def _wrapped(cell: Cell, inches: float, size: float) -> list[str]:
    return wrap(cell.text, inches - (SWATCH if cell.swatch else 0.0), size, _bold(cell))


def _share(natural: list[float], least: list[float], columns: tuple[Column, ...], room: float) -> list[float]:
    """Natural widths where they fit (what is left goes to columns that grow), else what each can give up."""
    total, floor = sum(natural), sum(least)
    if total <= room:
        growing = [i for i, c in enumerate(columns) if c.grow] or list(range(len(columns)))
        return [w + ((room - total) / len(growing) if i in growing else 0.0) for i, w in enumerate(natural)]
    if floor <= room:
        given = (room - floor) / (total - floor)
        return [low + (high - low) * given for low, high in zip(least, natural, strict=True)]
    return [w * room / floor for w in least]
