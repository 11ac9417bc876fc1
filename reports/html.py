"""Parts as one HTML file: inline SVG and CSS, no script, nothing fetched; reads on paper and on a phone."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from .blocks import Block, Canvas, Cell, Column, Listing, Paragraph, Part, Picture, Table
from .style import house_style

FIGURE_WIDTH = 9.6
"""Inches that a figure is drawn for: narrower than a page, so that its type stays legible when scaled."""

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.25rem 3rem; background: #fff; color: #1d1d1f;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: .75rem; border-top: 1px solid #c9c9ce; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { margin: .4rem 0; max-width: 60rem; }
.headline { font-size: 1.2rem; font-weight: 600; }
.context, .note, footer, nav { color: #5c5c61; font-size: .85rem; }
nav a { color: inherit; margin-right: 1rem; white-space: nowrap; }
.wide { overflow-x: auto; margin: .75rem 0; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; min-width: 40rem; height: auto; }
figcaption { color: #5c5c61; font-size: .85rem; }
table { border-collapse: collapse; font-size: .8rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th { text-align: left; background: #f3f3f5; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #dedee2; vertical-align: top; }
th { vertical-align: bottom; }
td { white-space: nowrap; }
td.grow { white-space: normal; min-width: 10.5rem; }
td.key { position: sticky; left: 0; background: #fff; }
.right { text-align: right; }
.small { font-size: .72rem; } .small td.grow { min-width: 0; white-space: nowrap; }
.strong { font-weight: 600; } .muted { color: #6b6b70; } .warn { color: #a3210f; }
.swatch { display: inline-block; width: .65em; height: .65em; margin-right: .4em; }
dl { margin: .5rem 0; font-size: .8rem; overflow-wrap: anywhere; }
dl.two { columns: 24rem 2; column-gap: 2rem; }
dl div { display: flex; gap: .6rem; break-inside: avoid; margin-bottom: .15rem; }
dt { flex: 0 0 auto; font-weight: 600; color: #5c5c61; min-width: 1.8rem; }
dl.one dt { flex-basis: 11rem; }
dd { margin: 0; }
footer { margin-top: 3rem; border-top: 1px solid #c9c9ce; padding-top: .5rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl.one div { display: block; } .wide { margin-right: -1.25rem; } }
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  h1 { font-size: 14pt; margin: 0; } h2 { margin-top: 0; border: 0; padding: 0; }
  nav, figcaption { display: none; } .wide { overflow: visible; }
  figure { margin: .4rem 0; } figure svg { min-width: 0; max-height: 140mm; }
  h2 { break-after: avoid; } figure, tr { break-inside: avoid; } section + section { break-before: page; }
}
"""


def render(parts: Sequence[Part], title: str, footer: str) -> tuple[str, int]:
    """The HTML text, the same for the same input, and its number of figures."""
    with house_style():
        figures = 0
        body = []
        for i, part in enumerate(parts, 1):
            inner = [f'<h2 id="s{i}">{escape(part.title)}</h2>']
            if part.context:
                inner.append(f'<p class="context">{escape(part.context)}</p>')
            if part.lead:
                inner.append(f"<p>{escape(part.lead)}</p>")
            for block in part.blocks:
                if isinstance(block, Picture):
                    figures += 1
                    inner.append(_picture(block, figures))
                else:
                    inner.append(_block(block))
            body.append("<section>\n" + "\n".join(inner) + "\n</section>")
    links = " ".join(f'<a href="#s{i}">{escape(part.title)}</a>' for i, part in enumerate(parts, 1))
    content = "\n".join(body)
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<nav>{links}</nav>
{content}
<footer>{escape(footer)}</footer>
</body>
</html>
"""
    return text, figures


def figure(picture: Picture) -> Figure:
    """``picture`` as a figure of its own. Call within :func:`.style.house_style`."""
    made = Figure(figsize=(FIGURE_WIDTH, picture.height))
    picture.draw(Canvas(made, 0, 0, FIGURE_WIDTH, picture.height))
    return made


def _picture(picture: Picture, number: int) -> str:
    made = svg(figure(picture), f"f{number}", picture.alt)
    return f'<figure><div class="wide">{made}</div><figcaption>{escape(picture.title)}</figcaption></figure>'


def svg(made: Figure, prefix: str, alt: str) -> str:
    """A figure as inline SVG: no namespaces or metadata (they read like references), ids made unique by ``prefix``."""
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href=", "href=").replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return _head(text, alt)


def _head(text: str, alt: str) -> str:
    """The opening tag with a view box only, so that the page sizes the picture, and the alternative text."""
    end = text.index(">")
    box = re.search(r'viewBox="([^"]*)"', text[:end])
    assert box
    return f'<svg viewBox="{box.group(1)}" role="img" aria-label="{escape(alt, quote=True)}">{text[end + 1 :].rstrip()}'


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        if block.style == "heading":
            return f"<h3>{escape(block.text)}</h3>"
        kind = f' class="{block.style}"' if block.style in ("headline", "note") else ""
        return f"<p{kind}>{escape(block.text)}</p>"
    if isinstance(block, Table):
        return _table(block)
    assert isinstance(block, Listing)
    rows = "\n".join(f"<div><dt>{escape(mark)}</dt><dd>{escape(text)}</dd></div>" for mark, text in block.items)
    title = f"<h3>{escape(block.title)}</h3>\n" if block.title else ""
    return f'{title}<dl class="{"two" if block.columns > 1 else "one"}">\n{rows}\n</dl>'


def _table(table: Table) -> str:
    aligned = [' class="right"' if c.align == "right" else "" for c in table.columns]
    head = "".join(f'<th scope="col"{a}>{escape(c.title)}</th>' for c, a in zip(table.columns, aligned, strict=True))
    rows = "\n".join(
        "<tr>" + "".join(_cell(c, i, table.columns[i]) for i, c in enumerate(row)) + "</tr>" for row in table.rows
    )
    title = f"<h3>{escape(table.title)}</h3>\n" if table.title else ""
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    size = ' class="small"' if table.size < 7 else ""
    grid = f"<table{size}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    return f'{title}<div class="wide">{grid}</div>{note}'


def _cell(cell: Cell, index: int, column: Column) -> str:
    used = {"right": column.align == "right", cell.tone: cell.tone != "normal", "key": index == 0}
    used["grow"] = column.grow and index > 0
    kinds = [kind for kind, so in used.items() if so]
    attribute = f' class="{" ".join(kinds)}"' if kinds else ""
    swatch = f'<span class="swatch" style="background:{cell.swatch}"></span>' if cell.swatch else ""
    return f"<td{attribute}>{swatch}{escape(cell.text)}</td>"
