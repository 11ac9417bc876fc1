"""``write_report``: results as a PDF to keep and the same as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..files import write_whole
from . import html
from . import pdf as paper
from .documents import parse_result
from .kinds import grouped
from .parts import build
from .schema import one_line

TITLE = 120
"""Most characters of a title."""


@dataclass(frozen=True)
class ReportFiles:
    """What was written: the PDF, the HTML beside it, and how many pages and figures they hold."""

    file: Path
    html: Path
    pages: int
    figures: int


def write_report(
    documents: Sequence[dict[str, Any]],
    pdf: Path,
    title: str | None = None,
    command: str | None = None,
    refused: Mapping[str, str] | None = None,
) -> ReportFiles:
    """Write ``documents`` (as :func:`.documents.load_documents` gives them) to ``pdf``, and beside it as ``.html``.

    ``refused`` says of devices that were asked for why they are not among the documents. Both files are drawn
    before either is written, and each is written whole or not at all. The same input gives the same bytes. Raises
    ``InputError`` for a document that is none, an empty list, a name that does not end in .pdf, and a place that
    cannot be written.
    """
    target = Path(pdf)
    page = target.with_suffix(".html") if target.name else target
    if target.suffix.lower() != ".pdf":
        raise InputError(f"{target}: accepted: a file name that ends in .pdf (the HTML goes beside it)")
    for place in (target, page):
        if place.is_dir():
            raise InputError(f"{place}: cannot be written: is a folder")
    if not documents:
        raise InputError("no results given; accepted: at least one result")
    parsed = [parse_result(d, f"result {i}") for i, d in enumerate(documents, 1)]
    asked = one_line(title or "")[:TITLE] or None
    command = one_line(command or "") or None
    parts = build(parsed, asked, command, refused or {})
    first, own = grouped(parsed)[0]
    name = asked or first.title(own)
    footer = f"tokenfab {__version__}" + (f"  ·  {command}" if command else "")
    paper_bytes, pages = paper.render(parts, name, footer)
    text, figures = html.render(parts, name, footer)
    write_whole(page, text)
    write_whole(target, paper_bytes)
    return ReportFiles(target, page, pages, figures)
