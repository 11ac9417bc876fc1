"""Parts as pages: A4 landscape, vector graphics, embedded TrueType. One part begins one page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from .blocks import Block, Canvas, Listing, Paragraph, Part, Picture, Table
from .grid import Grid
from .plot import hair
from .style import GREY, INK, RULE, fit, house_style, wrap

WIDTH, HEIGHT = 11.69, 8.27
SIDE, TOP, BOTTOM = 0.5, 0.45, 0.55
BODY = WIDTH - 2 * SIDE
SIZES = {"headline": 12.5, "lead": 9.0, "body": 8.0, "heading": 9.5, "note": 7.0}
LEADING = 1.38 / 72
"""Inches from line to line per point of size."""


def pages(parts: Sequence[Part], footer: str) -> list[Figure]:
    """One figure per page."""
    with house_style():
        writer = _Writer()
        for part in parts:
            writer.part(part)
        for i, canvas in enumerate(writer.sheets, 1):
            where = f"{i} / {len(writer.sheets)}"
            hair(canvas, (SIDE, BOTTOM - 0.13), (WIDTH - SIDE, BOTTOM - 0.13))
            canvas.text(SIDE, BOTTOM - 0.29, fit(footer, BODY - 1, 7), 7, GREY)
            canvas.text(WIDTH - SIDE, BOTTOM - 0.29, where, 7, GREY, ha="right")
        return [canvas.figure for canvas in writer.sheets]


def render(parts: Sequence[Part], title: str, footer: str) -> tuple[bytes, int]:
    """The PDF's bytes, the same for the same input, and its number of pages."""
    figures = pages(parts, footer)
    buffer = io.BytesIO()
    metadata = {"Title": title, "CreationDate": None, "ModDate": None, "Producer": "matplotlib", "Creator": "tokenfab"}
    with house_style(), PdfPages(buffer, metadata=metadata) as pdf:
        for figure in figures:
            pdf.savefig(figure)
    return buffer.getvalue(), len(figures)


@dataclass
class _Writer:
    """Sets blocks from top to bottom; ``y`` is how far down the page is free, in inches from its foot."""

    sheets: list[Canvas] = field(default_factory=list)
    y: float = 0.0
    title: str = ""
    context: str = ""

    @property
    def page(self) -> Canvas:
        return self.sheets[-1]

    @property
    def room(self) -> float:
        return self.y - BOTTOM

    def part(self, part: Part) -> None:
        self.title, self.context = part.title, part.context
        self.begin()
        if part.lead:
            self.paragraph(Paragraph(part.lead, "lead"))
        for block in part.blocks:
            self.block(block)

    def begin(self) -> None:
        """A new page with its title."""
        figure = Figure(figsize=(WIDTH, HEIGHT))
        self.sheets.append(Canvas(figure, 0, 0, WIDTH, HEIGHT))
        self.y = HEIGHT - TOP
        title = fit(self.title, BODY * 0.62, 13, True)
        self.page.text(SIDE, self.y - 0.18, title, 13, weight="bold")
        if self.context:
            text = fit(self.context, BODY * 0.36, 8)
            self.page.text(WIDTH - SIDE, self.y - 0.18, text, 8, GREY, ha="right")
        hair(self.page, (SIDE, self.y - 0.28), (WIDTH - SIDE, self.y - 0.28))
        self.y -= 0.38
        if not self.title.endswith(" (continued)"):
            self.title += " (continued)"

    def need(self, inches: float) -> None:
        """A new page unless there is this much room."""
        if self.room < inches:
            self.begin()

    def block(self, block: Block) -> None:
        if isinstance(block, Paragraph):
            self.paragraph(block)
        elif isinstance(block, Picture):
            self.picture(block)
        elif isinstance(block, Table):
            self.table(block)
        else:
            self.listing(block)

    def heading(self, text: str, needed: float) -> None:
        if text:
            self.need(0.4 + needed)
            self.y -= 0.1
            self.page.text(SIDE, self.y - 0.13, fit(text, BODY, 9.5, True), 9.5, weight="bold")
            self.y -= 0.24

    def paragraph(self, block: Paragraph) -> None:
        size = SIZES[block.style]
        if block.style == "heading":
            self.heading(block.text, 0.5)
            return
        bold = block.style == "headline"
        color = GREY if block.style == "note" else INK
        for line in wrap(block.text, BODY, size, bold):
            self.need(size * LEADING)
            self.y -= size * LEADING
            self.page.text(SIDE, self.y + 0.004 * size, line, size, color, weight="bold" if bold else "normal")
        self.y -= 0.08

    def picture(self, block: Picture) -> None:
        self.need(min(block.height, HEIGHT - TOP - BOTTOM - 0.6))
        self.y -= 0.1
        height = min(block.height, self.room)
        block.draw(self.page.part(SIDE, self.y - height, BODY, height))
        self.y -= height + 0.08

    def table(self, block: Table) -> None:
        grid = Grid(block, BODY)
        self.heading(block.title, grid.head + grid.heights[0] if grid.heights else grid.head)
        row = 0
        while row < len(block.rows) or row == 0:
            first = grid.heights[row] if block.rows else 0.0
            self.need(min(grid.head + first, HEIGHT - TOP - BOTTOM - 0.5))
            end, used = row, grid.head
            while end < len(block.rows) and (end == row or used + grid.heights[end] <= self.room):
                used += grid.heights[end]
                end += 1
            grid.draw(self.page.part(SIDE, self.y - used, BODY, used), row, end)
            self.y -= used + 0.05
            row = end
            if not block.rows:
                break
        if block.note:
            self.paragraph(Paragraph(block.note, "note"))

    def listing(self, block: Listing) -> None:
        self.heading(block.title, 0.5)
        gap, step = 0.35, block.size * LEADING
        each = (BODY - gap * (block.columns - 1)) / block.columns
        marks = 0.32 if block.columns > 1 else 1.6
        lines: list[tuple[str, str]] = []
        for mark, text in block.items:
            left = wrap(mark, marks - 0.08, block.size, True)
            right = wrap(text, each - marks, block.size)
            for i in range(max(len(left), len(right))):
                lines.append((left[i] if i < len(left) else "", right[i] if i < len(right) else ""))
        done = 0
        while done < len(lines):
            self.need(4 * step)
            fits = int(self.room / step)
            deep = min(fits, -(-(len(lines) - done) // block.columns))
            for column in range(block.columns):
                x = SIDE + column * (each + gap)
                for i, (mark, text) in enumerate(lines[done : done + deep]):
                    y = self.y - (i + 1) * step + 0.03
                    if mark:
                        self.page.text(x, y, mark, block.size, GREY, weight="bold")
                    if text:
                        self.page.text(x + marks, y, text, block.size)
                done += deep
            self.y -= deep * step + 0.08


__all__ = ["RULE", "pages", "render"]
