"""Tables of a report, as plain data for the PDF and the HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .blocks import Cell, Column, Listing, Table, Tone
from .format import NONE, count, dollars, interval, number, percent, reason, shares, si, size
from .schema import DeviceFacts, Document, Operator
from .sections import Entry, Section

TOP = 12
"""Operators listed per phase."""
MATRIX = 8
"""Devices beside one another in a table of assumptions."""


def summary(section: Section) -> Table:
    """The answer: one row per device, best first; numbers of devices that do not hold the model in brackets."""
    columns = (
        Column("device", grow=True), Column("holds the model", grow=True),
        Column("TTFT (prefill)", "right"), Column("90 % interval", "right"),
        Column("TPOT (decode)", "right"), Column("90 % interval", "right"),
        Column("tokens/s", "right"), Column("J/token", "right"), Column("90 % interval", "right"),
        Column("$/M tokens", "right"),
        Column("decode is bound by", grow=True),
    )  # fmt: skip
    rows = tuple(_summary_row(e) for e in section.entries)
    notes = [
        "TTFT: time to first token, without queueing. TPOT: time per output token, one decode step of the whole batch "
        "at its middle context. tokens/s, J and $: output tokens of the whole request, prefill included."
    ]
    if len(section.fitting) < len(rows):
        notes.append("In brackets: what the device would reach if its memory were large enough.")
    return Table(columns, rows, note=" ".join(notes))


def _summary_row(entry: Entry) -> tuple[Cell, ...]:
    d = entry.document
    if entry.fits:
        share = d.memory.needed_bytes / d.memory.capacity_bytes
        holds, tone, muted = Cell(f"yes, {percent(share)} full"), "normal", "muted"
    else:
        holds, tone, muted = Cell(f"NO, {si(d.memory.missing_bytes, 'B')} short", "warn"), "muted", "muted"
    texts: list[tuple[str, str]] = [
        (si(d.prefill.latency_s, "s"), tone),
        (interval(d.prefill.interval_s.low, d.prefill.interval_s.high, "s"), muted),
        (si(d.decode.latency_s, "s"), tone),
        (interval(d.decode.interval_s.low, d.decode.interval_s.high, "s"), muted),
        (number(d.total.tokens_per_s), "strong" if entry.fits else tone),
        (number(d.total.energy_per_token_j), tone),
        (interval(*entry.energy_interval, "") if entry.energy_interval else NONE, muted),
        (dollars(d.total.cost_usd_per_mtoken), tone),
    ]
    cells = [Cell(t if entry.fits or t == NONE else f"[{t}]", _tone(tone)) for t, tone in texts]
    bound = Cell(shares(d.decode.bound, 0.1), "normal" if entry.fits else "muted")
    return (Cell(entry.label, "strong" if entry.fits else "muted", entry.colour), holds, *cells, bound)


def _tone(tone: str) -> Tone:
    return tone if tone in ("muted", "strong", "warn") else "normal"  # type: ignore[return-value]


def overview(all_sections: Sequence[Section]) -> Table:
    """One row per question, where a report holds several."""
    columns = (
        Column("model and request", grow=True), Column("held by", "right"), Column("fastest", grow=True),
        Column("tokens/s", "right"), Column("cheapest", grow=True), Column("$/M tokens", "right"),
        Column("least energy", grow=True), Column("J/token", "right"),
    )  # fmt: skip
    return Table(columns, tuple(_overview_row(s) for s in all_sections))


def _overview_row(section: Section) -> tuple[Cell, ...]:
    held = f"{len(section.fitting)} of {len(section.entries)}"
    if not section.fitting:
        return (Cell(section.question, "strong"), Cell(held, "warn"), *(Cell(NONE, "muted") for _ in range(6)))
    fast, cheap, thrifty = section.best, section.cheapest, section.thriftiest
    cells = [Cell(section.question, "strong"), Cell(held), _device(fast), Cell(number(fast.throughput))]
    price = cheap.document.total.cost_usd_per_mtoken if cheap else None
    cells += [_device(cheap), Cell(dollars(price))]
    cells += [_device(thrifty), Cell(number(thrifty.document.total.energy_per_token_j) if thrifty else NONE)]
    return tuple(cells)


def _device(entry: Entry | None) -> Cell:
    return Cell(entry.label, swatch=entry.colour) if entry else Cell(NONE, "muted")


def operators(entry: Entry) -> Table:
    """The operators that take longest on one device, and how near the roofs they come."""
    columns = (
        Column("phase"), Column("operator", grow=True), Column("kind"), Column("runs", "right"),
        Column("time", "right"), Column("share of phase", "right"), Column("bound by"), Column("FLOP/byte", "right"),
        Column("achieved", "right"), Column("bytes moved", "right"), Column("per second", "right"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for phase in ("prefill", "decode"):
        found = sorted((o for o in entry.document.operators if o.phase == phase), key=lambda o: -o.time_s)
        whole = sum(o.time_s for o in found)
        rows += [_operator_row(o, whole, first=i == 0) for i, o in enumerate(found[:TOP])]
        rest = found[TOP:]
        if rest:
            texts = ["", f"{len(rest)} others", "", "", si(sum(o.time_s for o in rest), "s")]
            texts += [percent(sum(o.time_s for o in rest) / whole) if whole else NONE, *[""] * 5]
            rows.append(tuple(Cell(t, "muted") for t in texts))
    return Table(columns, tuple(rows), size=7.5)


def _operator_row(o: Operator, whole: float, *, first: bool) -> tuple[Cell, ...]:
    return (
        Cell(("decode step" if o.phase == "decode" else o.phase) if first else "", "strong"),
        Cell(", ".join(o.name.split())), Cell(o.kind, "muted"), Cell(count(o.count)), Cell(si(o.time_s, "s")),
        Cell(percent(o.time_s / whole) if whole else NONE, "strong"), Cell(reason(o.bound)),
        Cell(number(o.flops / o.bytes) if o.bytes and o.flops else NONE),
        Cell(si(o.flops / o.time_s, "FLOP/s") if o.flops and o.time_s else NONE),
        Cell(si(o.bytes, "B")), Cell(si(o.bytes / o.time_s, "B/s") if o.time_s else NONE),
    )  # fmt: skip


_ASSUMED = re.compile(r"\d+ numbers of this device are assumed: ")
"""A line of provenance that the table of assumptions says better, with a mark at each number."""


# -- assumptions -----------------------------------------------------------------------------------
def devices(documents: Sequence[Document]) -> list[DeviceFacts]:
    """Each device once, in the order of ``documents``; a file that changed between results counts as another."""
    return list({(d.device.name, d.device.digest): d.device for d in documents}.values())


def assumptions(facts: Sequence[DeviceFacts]) -> tuple[list[Table], Listing]:
    """Every number of every device file, devices side by side, and the numbered list of their sources."""
    sources: dict[str, int] = {}
    for device in facts:
        for q in device.quantities:
            sources.setdefault(q.source, len(sources) + 1)
    tables = []
    pieces = -(-len(facts) // MATRIX)
    each = -(-len(facts) // max(1, pieces))
    for start in range(0, len(facts), max(1, each)):
        tables.append(_matrix(facts[start : start + each], sources))
    listing = Listing(tuple((str(n), text) for text, n in sources.items()), title="Sources")
    return tables, listing


def _matrix(facts: Sequence[DeviceFacts], sources: dict[str, int]) -> Table:
    keys: dict[str, None] = {}
    for device in facts:
        after: list[str] = []  # keys that only this device has go where it has them
        for q in device.quantities:
            if q.key not in keys:
                after.append(q.key)
            elif after:
                keys, after = _insert(keys, after, q.key), []
        keys |= dict.fromkeys(after)
    cells = [{q.key: q for q in device.quantities} for device in facts]
    rows = []
    for key in keys:
        row = [Cell(key, "strong")]
        for own in cells:
            if key not in own:
                row.append(Cell(NONE, "muted"))
                continue
            q = own[key]
            text = (q.text or si(q.value, q.unit)) + ("*" if q.assumed else "")
            row.append(Cell(f"{text} [{sources[q.source]}]", "warn" if q.assumed else "normal"))
        rows.append(tuple(row))
    columns = (Column("number in the device file"), *(Column(d.name, grow=True) for d in facts))
    note = (
        "* and red: assumed, by nobody measured or published; the first place to look when a result is off. "
        "[n]: source, listed below. Units as the source gives them."
    )
    return Table(columns, tuple(rows), note=note, size=6.5)


def _insert(keys: dict[str, None], new: list[str], before: str) -> dict[str, None]:
    order = list(keys)
    at = order.index(before)
    return dict.fromkeys([*order[:at], *new, *order[at:]])


def models(all_sections: Sequence[Section]) -> Table:
    """Facts of each model as captured."""
    columns = (
        Column("model", grow=True), Column("parameters", "right"), Column("format"), Column("weights", "right"),
        Column("KV cache per token", "right"), Column("layers", "right"), Column("hidden size", "right"),
        Column("longest context", "right"), Column("distinct operators", "right"), Column("techniques", grow=True),
    )  # fmt: skip
    facts = {
        (e.document.model.name, tuple(e.document.model.applied)): e.document.model
        for s in all_sections
        for e in s.entries
    }
    rows = tuple(
        (
            Cell(m.name, "strong"), Cell(size(m.parameters)), Cell(m.format), Cell(si(m.weights_bytes, "B")),
            Cell(si(m.kv_bytes_per_token, "B")), Cell(count(m.layers)), Cell(count(m.hidden)),
            Cell(f"{count(m.max_context)} tokens" if m.max_context else "not stated"),
            Cell(count(m.operators)), Cell("; ".join(m.applied) or "none"),
        )
        for m in facts.values()
    )  # fmt: skip
    return Table(columns, rows, title="Models")


def provenance(all_sections: Sequence[Section]) -> Listing:
    """Where answers come from, each line once; what holds for one device carries its name."""
    entries = [e for s in all_sections for e in s.entries]
    lines: dict[str, list[str]] = {}
    for e in entries:
        for line in dict.fromkeys(e.document.provenance):
            if not _ASSUMED.match(line):
                lines.setdefault(line, []).append(e.label)
    common = [("all", text) for text, owners in lines.items() if len(owners) == len(entries)]
    own: dict[str, list[str]] = {}
    for text, owners in lines.items():
        if len(owners) < len(entries):
            own.setdefault(", ".join(dict.fromkeys(owners)), []).append(text)
    rest = [(owners, text) for owners, texts in own.items() for text in texts]
    return Listing(_once([*common, *rest]), columns=1, size=7, title="Where the answers come from")


def _once(items: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """``items`` with a mark only where it changes."""
    before = ["", *(mark for mark, _ in items)]
    return tuple(("" if mark == last else mark, text) for (mark, text), last in zip(items, before, strict=False))
