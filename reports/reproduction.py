"""Paper beside model as pages: how far apart each claim and its estimate are, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..files import write_whole
from . import html
from . import pdf as paper
from .blocks import Block, Canvas, Cell, Column, Listing, Paragraph, Part, Picture, Table
from .format import claim_figures, plural
from .style import GREY, INK, PALE, RULE, WARN, shorten

Row = dict[str, Any]
PER_PAGE = 22
"""Claims in one picture."""
ROW = 0.215
"""Inches of one claim."""
SPAN = 10.0
"""The axis runs from 1 / SPAN to SPAN; what lies beyond is drawn at its end, with an arrow."""
COLOURS = {"within-10%": "#1f5a96", "within-25%": "#B8860B", "off": WARN}
TITLE = "Published systems: paper beside model"


def write_reproduction(rows: Sequence[Row], pdf: Path, command: str) -> dict[str, Any]:
    """Write ``rows`` (of ``tokenfab reproduce``) to ``pdf``, and beside it as ``.html``; says what was written.

    Raises ``InputError`` for a name that does not end in .pdf and a place that cannot be written.
    """
    if pdf.suffix.lower() != ".pdf":
        raise InputError(f"{pdf}: accepted: a file name that ends in .pdf (the HTML goes beside it)")
    parts = build(rows)
    footer = f"tokenfab {__version__}  ·  {command}"
    content, pages = paper.render(parts, TITLE, footer)
    text, figures = html.render(parts, TITLE, footer)
    page = pdf.with_suffix(".html")
    write_whole(page, text)
    write_whole(pdf, content)
    return {"file": str(pdf), "html": str(page), "pages": pages, "figures": figures}


def build(rows: Sequence[Row]) -> list[Part]:
    """The parts: what it comes to, the picture, the figures, and the reasons."""
    told = [r for r in rows if r["model"] is not None]
    counts = {s: sum(r["status"] == s for r in rows) for s in (*COLOURS, "not-modelled")}
    systems = len({r["system"] for r in rows})
    said = ", ".join(f"{n} {s}" for s, n in counts.items())
    lead = (
        f"{plural(len(rows), 'claim')} of {plural(systems, 'published system')}: {said}. No file of a system holds a "
        "factor; where the model is off, the reason stands below."
    )
    pictures: list[Block] = []
    for start in range(0, len(told), PER_PAGE):
        shown = told[start : start + PER_PAGE]
        alt = "; ".join(f"{r['system']}, {r['claim']}: {r['ratio']:.2f}" for r in shown)
        title = "Model over paper, with the model's 90 % interval"
        pictures.append(Picture(partial(_draw, rows=shown), 0.75 + ROW * len(shown), title, f"{title}: {alt}"))
    parts = [Part(TITLE, "", (Paragraph(lead, "lead"), *pictures))]
    parts.append(Part("Every claim", "", (_table(rows),)))
    reasons = tuple((f"{r['system']}: {r['claim']}", r["reason"]) for r in rows if r["reason"])
    if reasons:
        listing = Listing(reasons, columns=1, size=7.5)
        parts.append(Part("Why the model is off, or does not say", "", (listing,), joins=True))
    return parts


def _table(rows: Sequence[Row]) -> Table:
    columns = (
        Column("system"), Column("claim", grow=True), Column("source", grow=True), Column("paper", "right"),
        Column("model", "right"), Column("90 %", "right"), Column("model / paper", "right"), Column("status"),
    )  # fmt: skip
    cells = []
    for r in rows:
        text = [r["system"], r["claim"], r["source"], *claim_figures(r)]
        status = Cell(r["status"], "warn" if r["status"] == "off" else "normal")
        cells.append((*(Cell(t) for t in text), status))
    return Table(columns, tuple(cells), size=7)


def _draw(canvas: Canvas, rows: Sequence[Row]) -> None:
    """One line per claim: its name, a dot at model over paper with a whisker, and both figures."""
    names, figures = canvas.width * 0.46, 1.35
    axes = canvas.axes(names, 0.4, canvas.width - names - figures, canvas.height - 0.65)
    ends = (1 / SPAN, SPAN)
    axes.set(xscale="log", xlim=ends, ylim=(len(rows) - 0.5, -0.5))
    axes.axvspan(0.75, 1.25, color=PALE, lw=0)
    axes.axvspan(0.9, 1.1, color=RULE, lw=0, alpha=0.6)
    axes.axvline(1, color=GREY, lw=0.6)
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_yticks([])
    axes.set_xlabel("model over paper (grey: within 10 % and 25 %)", size=7.5)
    canvas.text(canvas.width, canvas.height - 0.15, "model / paper", size=7.5, color=GREY, ha="right")
    for i, row in enumerate(rows):
        low, high = (min(max(x / row["paper"], ends[0]), ends[1]) for x in row["interval"] or [row["model"]] * 2)
        at = min(max(row["ratio"], ends[0]), ends[1])
        colour = COLOURS[row["status"]]
        axes.plot([low, high], [i, i], color=colour, lw=1.2, solid_capstyle="butt")
        beyond = not ends[0] < row["ratio"] < ends[1]
        marker = (">" if row["ratio"] > 1 else "<") if beyond else "o"
        axes.plot([at], [i], marker=marker, ms=4.5, color=colour, lw=0, clip_on=False)
        y = 0.4 + (canvas.height - 0.65) * (1 - (i + 0.5) / len(rows))
        text = shorten(f"{row['system']}: {row['claim']}", names - 0.15, 7.5)
        canvas.text(0, y, text, size=7.5, va="center")
        shown = f"{_number(row['model'])} / {_number(row['paper'])}"
        canvas.text(canvas.width, y, shown, size=7.5, color=INK, ha="right", va="center")


def _number(value: float) -> str:
    """Three digits: 0.0123, 12.3, 1,230."""
    return f"{value:,.0f}" if math.fabs(value) >= 999.5 else f"{value:.3g}"
