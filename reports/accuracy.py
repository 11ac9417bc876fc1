"""Validation as pages: per suite, predicted against measured, and the error by size."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..validation.suites import Comparison
from ..workloads.expr_functions import Array
from . import format as fmt
from .style import GREY, INK, RULE, house_style

WIDTH, HEIGHT = 11.69, 8.27
COLUMNS = 3
"""Comparisons side by side on one page; a suite with more goes on to the next."""
LEAST = 2
"""Columns that a page is cut into however few it has to show."""
BINS = 14
POINT = "#1f5a96"
FEW = 100
"""Rows below which each is drawn, as quantiles of so few say little."""
MOST = 4000
"""Points drawn of one table, evenly spread."""


def accuracy_pdf(comparisons: Sequence[Comparison], command: str) -> bytes:
    """The PDF's bytes, the same for the same input: one page per suite, more where it has many comparisons."""
    suites: dict[str, list[Comparison]] = {}
    for c in comparisons:
        suites.setdefault(c.suite, []).append(c)
    sheets = [
        (name, found[i : i + COLUMNS]) for name, found in suites.items() for i in range(0, len(found), COLUMNS)
    ]  # fmt: skip
    buffer = io.BytesIO()
    metadata = {"Title": "Validation", "CreationDate": None, "ModDate": None, "Creator": "tokenfab"}
    with house_style(), PdfPages(buffer, metadata=metadata) as pdf:
        for i, (name, found) in enumerate(sheets, 1):
            pdf.savefig(_page(name, found, f"{command}    {i} / {len(sheets)}"))
    return buffer.getvalue()


def _page(suite: str, found: Sequence[Comparison], footer: str) -> Figure:
    figure = Figure(figsize=(WIDTH, HEIGHT))
    figure.text(
        0.045, 0.945, f"{suite}: predicted against measured, rows not fitted on", size=12.5, weight="bold", color=INK
    )
    figure.text(0.045, 0.03, footer, size=7, color=GREY)
    columns = max(LEAST, len(found))
    grid = figure.add_gridspec(2, columns, left=0.065, right=0.975, top=0.84, bottom=0.1, wspace=0.28, hspace=0.28)
    for i, c in enumerate(found):
        against, by_size = figure.add_subplot(grid[0, i]), figure.add_subplot(grid[1, i])
        _scatter(against, c)
        _error(by_size, c)
    return figure


def _scatter(axes: Axes, c: Comparison) -> None:
    d = c.summary()
    covers = "" if d["coverage90"] is None else f"90 % interval covers {d['coverage90']:.1%}"
    axes.set_title(
        f"{c.device}, {c.model}, {c.mode}\n{d['n']:,} rows: MAPE {d['mape']:.1%}, p90 {d['p90']:.1%}\n{covers}",
        loc="left", size=8, color=INK,
    )  # fmt: skip
    pick = np.linspace(0, c.measured.size - 1, min(MOST, c.measured.size)).astype(int)
    x, y = c.measured[pick], c.predicted[pick]
    ends = np.array([min(x.min(), y.min()) / 1.5, max(x.max(), y.max()) * 1.5])
    axes.fill_between(ends, ends / 1.1, ends * 1.1, color=RULE, lw=0)
    axes.plot(ends, ends, color=GREY, lw=0.6)
    size, alpha = (8, 1.0) if x.size < FEW else (2, 0.25) if x.size > 10 * FEW else (5, 0.5)
    axes.scatter(x, y, s=size, color=POINT, alpha=alpha, lw=0, rasterized=True)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set_xlabel("measured (grey: within 10 %)", size=7)
    axes.set_ylabel("predicted", size=7)
    _seconds(axes, "x")
    _seconds(axes, "y")


def _error(axes: Axes, c: Comparison) -> None:
    """Measured over predicted time by predicted time: median and the band that holds 90 % of the rows, or few rows
    themselves; and the interval given."""
    ratio = c.measured / c.predicted
    at, bands = _bands(c.predicted, ratio)
    if ratio.size < FEW:
        axes.scatter(c.predicted, ratio, s=8, color=POINT, lw=0, label="row")
    else:
        low, high = (np.array([np.quantile(ratio[b], q) for b in bands]) for q in (0.05, 0.95))
        axes.fill_between(at, low, high, color=POINT, alpha=0.2, lw=0, label="90 % of the rows")
        axes.plot(at, [np.median(ratio[b]) for b in bands], color=POINT, lw=1.2, label="median")
    axes.axhline(1, color=GREY, lw=0.6)
    if c.low is not None and c.high is not None:
        for k, side in enumerate((c.low, c.high)):
            given = [float(np.median(side[b])) for b in bands]
            axes.plot(at, given, color=INK, lw=0.8, ls=":", label="interval given" if k == 0 else None)
    top = float(ratio.max() if ratio.size < FEW else max(np.quantile(ratio[b], 0.95) for b in bands))
    axes.set(xscale="log", ylim=(0, max(2.0, min(top * 1.1, 5.0))))
    axes.set_xlabel("predicted", size=7)
    _seconds(axes, "x")
    axes.set_ylabel("measured ÷ predicted", size=7)
    axes.legend(fontsize=6.5, frameon=False, loc="upper right")


def _bands(predicted: Array, ratio: Array) -> tuple[Array, list[Array]]:
    """Stretches of predicted time, each with at least 5 rows: their middles, and which rows are in them. Of few
    rows each time is a stretch of its own."""
    if ratio.size < FEW:
        times = np.unique(predicted)
        return times, [predicted == t for t in times]
    at = np.log10(predicted)
    edges = np.linspace(at.min(), at.max(), BINS + 1)
    place = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, BINS - 1)
    bins = [b for b in range(BINS) if np.count_nonzero(place == b) >= 5]
    return 10 ** np.array([(edges[b] + edges[b + 1]) / 2 for b in bins]), [place == b for b in bins]


def _seconds(axes: Axes, which: str) -> None:
    """Ticks at powers of ten, as 10 µs and 1 ms, and between them where the axis has no two of them."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    between = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axis.set_major_locator(LogLocator(10, subs=between, numticks=8))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: fmt.si_tick(value, "s")))
