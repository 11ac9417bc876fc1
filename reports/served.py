"""Pages of serving runs: all compared, then what users see of each, what happened over time, energy, rejections."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from . import latencies, overtime, serving_bars
from .blocks import Block, Cell, Column, Listing, Paragraph, Part, Picture, Table
from .format import NONE, count, interval, listed, number, percent, plural, si
from .runs import (
    LIMITS,
    MEASURES,
    NAMES,
    Run,
    attained,
    certainty,
    common,
    compared,
    differences,
    figure,
    headline,
    lead,
    limits_of,
    question,
    runs_of,
    share_within,
    span_of,
)  # fmt: skip
from .schema_serving import Served
from .style import DEVICES

ROWS = 14
"""Runs in one picture of bars."""
LINES = len(DEVICES)
"""Runs in one picture of lines: as many as there are colours."""
OWN = 24
"""Runs that get pages of their own."""
COLUMNS = ("mean", "p50", "p90", "p99")


def parts(documents: Sequence[Served], title: str | None = None) -> list[Part]:
    """Parts of serving runs: of several the comparison first, then those of each."""
    runs = runs_of(documents, DEVICES)
    made = [_compared(runs, title)] if len(runs) > 1 else []
    for run in runs[:OWN]:
        made += _run(run, None if made else title, alone=len(runs) == 1)
    return made


# -- several runs ----------------------------------------------------------------------------------
def _compared(runs: Sequence[Run], title: str | None) -> Part:
    documents = [r.document for r in runs]
    same, different = common(documents), list(differences(documents))
    told = [f"Same: {'; '.join(text for text in same.values())}." if same else ""]
    told.append(f"What differs: {listed(different)}." if different else "Nothing that was asked differs.")
    told.append(certainty(runs))
    if len(runs) > OWN:
        told.append(f"The first {OWN} runs have pages of their own.")
    blocks: list[Block] = [Paragraph(compared(runs), "headline"), Paragraph(" ".join(t for t in told if t), "lead")]
    blocks.append(_summary(runs))
    for chosen in _pieces(runs, ROWS):
        high, least = serving_bars.heights(chosen)
        draw = partial(serving_bars.compare, every=runs, runs=chosen)
        blocks.append(
            Picture(draw, high, "Latency, rates, price and energy", f"Bars of {latencies.told(chosen)}", least)
        )
    for chosen in _pieces(runs, LINES):
        draw = partial(latencies.cdfs, runs=chosen)
        high = latencies.HIGH + 0.3
        blocks.append(Picture(draw, high, "Share of the requests within a time", latencies.told(chosen), 2.2))
    for chosen in _pieces(runs, LINES):
        alt = "Lines over time: sequences decoding, requests waiting, share of the KV blocks held, power"
        blocks.append(Picture(partial(overtime.over_time, runs=chosen), 3.9, "Over time", alt, 3.0))
    return Part(title or f"{plural(len(runs), 'run')} compared", "", tuple(blocks))


def _pieces(runs: Sequence[Run], most: int) -> list[Sequence[Run]]:
    pieces = -(-len(runs) // most)
    each = -(-len(runs) // pieces)
    return [runs[i : i + each] for i in range(0, len(runs), each)]


def _summary(runs: Sequence[Run]) -> Table:
    """One row per run; the best of each column is bold."""
    columns = (
        Column("run", grow=True), *(Column(m.heading, "right") for m in MEASURES.values()),
        Column("within limits", "right"), Column("rejected", "right"), Column("preempted", "right"),
    )  # fmt: skip
    best = {m.key: m.best(runs) for m in MEASURES.values()}
    rows = []
    for run in runs:
        d = run.document
        cells = [Cell(run.label, "strong", run.colour)]
        for m in MEASURES.values():
            value = m.of(run)
            wins = value is not None and value == best[m.key] and d.requests.finished > 0
            cells.append(
                Cell(figure(value, m.unit), "strong" if wins else "normal" if d.requests.finished else "muted")
            )
        cells.append(Cell(attained(d.slo.attained) if d.slo.limits else NONE))
        cells.append(Cell(count(d.requests.rejected), "warn" if d.requests.rejected else "normal"))
        cells.append(Cell(count(d.preemptions)))
        rows.append(tuple(cells))
    note = "Bold: the best of its column. Preempted: how often a sequence gave up its blocks and was computed again."
    return Table(columns, tuple(rows), note=note, size=7.5)


# -- one run ---------------------------------------------------------------------------------------
def _run(run: Run, title: str | None, *, alone: bool) -> list[Part]:
    d = run.document
    context = question(d) if alone else run.label
    seen: list[Block] = [Paragraph(headline(d), "headline"), Paragraph(lead(d), "lead"), _latencies(d), _rates(d)]
    if d.requests.finished:
        seen.append(
            Picture(
                partial(latencies.cdfs, runs=[run]), latencies.HIGH, "Share of the requests within a time",
                f"Cumulative distributions: {latencies.told([run])}", 2.1,
            )
        )  # fmt: skip
    if len(d.classes) > 1:
        seen.append(_classes(d))
    if d.rejections:
        seen.append(_rejections(d))
    happened = Picture(
        partial(overtime.over_time, runs=[run]), overtime.HIGH - (1.0 if d.policy_groups else 0.0), "Over time",
        f"Means over time. {overtime.told(d)}", 3.2,
    )  # fmt: skip
    blocks: list[Block] = [
        *(Listing(tuple(told), columns=3, size=7.5, title=f"The policy: {group}") for group, told in d.policy_groups),
        happened,
    ]
    if sum(d.energy_parts.values()):
        parts = ", ".join(f"{n} {si(j, 'J')}" for n, j in d.energy_parts.items())
        blocks.append(Picture(partial(serving_bars.energy, run=run), 0.95, "Energy", f"Stacked bar of energy: {parts}"))
    name = "What users see" if alone else f"{run.label}: what users see"
    return [
        Part(title or name, "", tuple(seen)),
        Part("Over time" if alone else f"{run.label}: over time", _busy(d), tuple(blocks), context),
    ]


def _busy(d: Served) -> str:
    u = d.utilisation
    return (
        f"{plural(u.devices, 'device')} busy for {percent(u.busy)} of {si(d.simulated_s, 's')}, "
        f"{count(d.iterations)} iterations with {number(u.mean_batch)} decoding sequences on average; "
        f"{plural(d.preemptions, 'preemption')}; {plural(d.kv_blocks.cached_tokens, 'prompt token')} found in a cache; "
        f"blocks of {plural(d.kv_blocks.block_tokens, 'token')}, {percent(d.kv_blocks.occupancy_mean)} held on average."
    )


def _latencies(d: Served) -> Table:
    """Every latency; intervals beside those that have one, limits and the share within them."""
    spans = {(key, q): d.span(f"{key}.{q}") for key in NAMES for q in COLUMNS}
    wide = [q for q in COLUMNS if any(spans[key, q] for key in NAMES)]
    columns = [Column("seconds of a request", grow=False)]
    for q in COLUMNS:
        columns.append(Column(q, "right"))
        if q in wide:
            columns.append(Column("interval", "right"))
    columns += [Column("limit", "right"), Column("within it", "right")] if d.slo.limits else []
    rows = []
    for key, name in NAMES.items():
        cells = [Cell(name, "strong")]
        for q in COLUMNS:
            value, span = getattr(getattr(d, key), q), spans[key, q]
            cells.append(Cell(figure(value, "s"), "strong" if q in ("p50", "p99") else "normal"))
            if q in wide:
                cells.append(Cell(interval(*span, "s") if span else NONE, "muted"))
        if d.slo.limits:
            limit = next((v for k, v in d.slo.limits.items() if LIMITS[k] == key), None)
            quantiles = getattr(d.cdf, key, [])
            cells.append(Cell(figure(limit, "s")))
            kept = attained(share_within(quantiles, limit)) if limit is not None and quantiles else NONE
            cells.append(Cell(kept))
        rows.append(tuple(cells))
    note = ""
    if wide:
        note = "Interval: the run repeated at both ends of the cost model's 90 % interval; queues amplify it."
    if d.slo.limits and d.requests.finished:
        note += " Within it: of the requests that have such a time, to the nearest percent."
    return Table(tuple(columns), tuple(rows), note=note.strip())


def _rates(d: Served) -> Table:
    """Rates, power, energy and price, each with its interval."""
    rows: list[tuple[str, str, tuple[float, float] | None, str]] = [
        ("tokens/s", number(d.throughput_tokens_per_s), d.span("throughput_tokens_per_s"), ""),
        ("requests/s", number(d.throughput_requests_per_s), d.span("throughput_requests_per_s"), ""),
        ("goodput, requests/s", number(d.goodput_requests_per_s), d.span("goodput_requests_per_s"),
         f"{attained(d.slo.attained)} of the requests within {limits_of(d)}" if d.slo.limits else "no limits"),
        ("energy per token", figure(d.energy_per_token_j, "J"), d.span("energy_per_token_j"), ""),
        ("power", si(d.power_w.mean, "W"), d.span("power_w.mean"), f"{si(d.power_w.peak, 'W')} at the peak"),
        ("price per million tokens", figure(d.cost_usd_per_mtoken, "$"), d.span("cost_usd_per_mtoken"),
         "no price in the device file" if d.usd_per_hour is None else f"{figure(d.usd_per_hour, '$')} an hour"),
    ]  # fmt: skip
    units = {"energy per token": "J", "power": "W", "price per million tokens": "$"}
    columns = (Column("rates and costs"), Column("value", "right"), Column("interval", "right"), Column("", grow=True))
    return Table(columns, tuple(
        (Cell(name, "strong"), Cell(text), Cell(span_of(span, units.get(name, "")) if span else NONE, "muted"),
         Cell(more, "muted"))
        for name, text, span, more in rows
    ))  # fmt: skip


def _classes(d: Served) -> Table:
    columns = (
        Column("class", grow=True), Column("requests", "right"), Column("finished", "right"),
        *(Column(f"{k} {q}", "right") for k in ("TTFT", "TPOT", "E2E") for q in ("p50", "p99")),
        Column("within limits", "right"), Column("goodput, requests/s", "right"),
    )  # fmt: skip
    rows = []
    for c in d.classes:
        cells = [Cell(c.name, "strong"), Cell(count(c.requests)), Cell(count(c.finished))]
        cells += [Cell(figure(getattr(s, q), "s")) for s in (c.ttft_s, c.tpot_s, c.e2e_s) for q in ("p50", "p99")]
        cells += [Cell(attained(c.attained) if d.slo.limits else NONE), Cell(number(c.goodput_requests_per_s))]
        rows.append(tuple(cells))
    return Table(columns, tuple(rows), title="Classes of requests")


def _rejections(d: Served) -> Listing:
    rest = d.requests.rejected - len(d.rejections)
    items = [(f"request {count(r.request)}", r.reason) for r in d.rejections]
    if rest > 0:
        items.append((f"{count(rest)} more", "not listed in the result"))
    return Listing(tuple(items), columns=1, size=7.5, title=f"Rejected: {plural(d.requests.rejected, 'request')}")
