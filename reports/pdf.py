"""Parts as pages: A4 landscape, vector graphics, embedded TrueType. One part begins one page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from .blocks import Block, Canvas, Listing, Paragraph, Part, Picture, Table
from .grid import Grid
from .plot import hair
from .style import GREY, INK, RULE, fit, house_style, width, wrap

WIDTH, HEIGHT = 11.69, 8.27
SIDE, TOP, BOTTOM = 0.5, 0.45, 0.55
BODY = WIDTH - 2 * SIDE
SIZES = {"headline": 12.5, "lead": 9.0, "body": 8.0, "heading": 9.5, "note": 7.0}
GAP = 0.18
"""Inches around a picture, half above and half below."""
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
            hair(canvas, (SIDE, BOTTOM - 0.13), (WIDTH - SIDE, BOTTOM - 0.13), RULE)
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
    fresh: bool = False

    @property
    def page(self) -> Canvas:
        return self.sheets[-1]

    @property
    def room(self) -> float:
        return self.y - BOTTOM

    def part(self, part: Part) -> None:
        self.title, self.context = part.title, part.context
        if part.joins and self.sheets and self.room > self.height(part):
            self.y -= 0.25
            self.head()
        else:
            self.begin()
        if part.lead:
            self.paragraph(Paragraph(part.lead, "lead"))
        self.fresh = True
        blocks = part.blocks
        pictures = [b for b in blocks if isinstance(b, Picture)]
        if len(pictures) == len(blocks) > 1:
            blocks = self.squeezed(pictures)
        for block in blocks:
            self.block(block)
            self.fresh = False

    def height(self, part: Part) -> float:
        """Inches that all of ``part`` takes, its title included."""
        return 0.7 + sum(_height(b) for b in (Paragraph(part.lead, "lead"), *part.blocks))

    def squeezed(self, pictures: list[Picture]) -> tuple[Block, ...]:
        """``pictures`` made lower, all by the same share of what they can give, if that puts them on one page."""
        room = self.room - GAP * len(pictures)
        high, low = sum(p.height for p in pictures), sum(p.least or p.height for p in pictures)
        if not low <= room < high:
            return tuple(pictures)
        share = (room - low) / (high - low)
        return tuple(replace(p, height=(p.least or p.height) * (1 - share) + p.height * share) for p in pictures)

    def begin(self) -> None:
        """A new page with its title."""
        figure = Figure(figsize=(WIDTH, HEIGHT))
        self.sheets.append(Canvas(figure, 0, 0, WIDTH, HEIGHT))
        self.y = HEIGHT - TOP
        self.head()

    def head(self) -> None:
        """The part's title, and a rule below it."""
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
        """On this page if it can be made low enough, else on the next; alone on a page it takes what there is."""
        if not self.fresh:
            self.need((block.least or block.height) + GAP)
        height = min(block.height, self.room - GAP)
        self.y -= GAP / 2
        block.draw(self.page.part(SIDE, self.y - height, BODY, height))
        self.y -= height + GAP / 2

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
        widest = max((width(mark, block.size, True) for mark, _ in block.items), default=0.0)
        marks = min(2.6, widest * 1.02 + 0.15)
        items = []
        for mark, text in block.items:
            left, right = wrap(mark, marks - 0.08, block.size, True), wrap(text, each - marks, block.size)
            items.append(list(zip_longest(left, right, fillvalue="")))
        while items:
            self.need(4 * step)
            fits = int(self.room / step)
            deep = min(fits, -(-sum(map(len, items)) // block.columns) + 1)
            used = 0
            for column in range(block.columns):
                lines = _filled(items, deep, fits)
                used = max(used, len(lines))
                x = SIDE + column * (each + gap)
                for i, (mark, text) in enumerate(lines, 1):
                    for at, said, color, weight in ((0, mark, GREY, "bold"), (marks, text, INK, "normal")):
                        if said:
                            self.page.text(x + at, self.y - i * step + 0.03, said, block.size, color, weight=weight)
            self.y -= used * step + 0.08


def _height(block: Block) -> float:
    """Inches of a block, a little too many rather than too few."""
    if isinstance(block, Picture):
        return block.height + GAP
    if isinstance(block, Table):
        grid = Grid(block, BODY)
        note = _height(Paragraph(block.note, "note")) if block.note else 0.0
        return grid.head + sum(grid.heights) + note + (0.5 if block.title else 0.1)
    if isinstance(block, Paragraph):
        size = SIZES[block.style]
        return len(wrap(block.text, BODY, size, block.style == "headline")) * size * LEADING + 0.1
    each = BODY / block.columns - (0.6 if block.columns > 1 else 2.6)
    lines = sum(len(wrap(text, each, block.size)) for _, text in block.items)
    return (lines / block.columns + 3) * block.size * LEADING + 0.5


def _filled(items: list[list[tuple[str, str]]], deep: int, most: int) -> list[tuple[str, str]]:
    """Lines of one column, taken from the front of ``items``: whole ones, about ``deep`` lines, ``most`` at most."""
    lines: list[tuple[str, str]] = []
    while items and len(lines) < deep and len(lines) + len(items[0]) <= most:
        lines += items.pop(0)
    if items and not lines:  # an item longer than a column is split
        lines, items[0] = items[0][:most], items[0][most:]
    return lines
