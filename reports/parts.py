"""The report as a list of parts: which figure, table and sentence stands where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from . import bars, curves, roofline, tables
from .blocks import Block, Listing, Paragraph, Part, Picture
from .format import listed, number, percent, plural, reason, short, si
from .kinds import grouped
from .schema import Data, Document
from .sections import Section, binding, certainty, headline, sections
from .style import DEVICES

ROWS = 14
"""Devices in one picture of bars."""
CONVENTIONS = (
    "One multiply–accumulate counts as two FLOPs. Attention is causal: a token sees those before it, and the score "
    "matrix never leaves the chip. Logits are computed for the last position of each sequence only.",
    "Bytes are decimal (1 GB = 10⁹ B) wherever a report scales them; numbers quoted from a device file keep its units.",
    "Times are of a whole pass over the batch. TTFT is the prefill of all prompts at once, without queueing. TPOT is "
    "one decode step at the middle context of the request.",
    "The interval is 90 %: from the 5 % to the 95 % quantile of measured over predicted time where this class of model "
    "could be checked; over operators, errors are composed with the correlation that the provenance names. It covers "
    "the error of the model, not of a device file; a device on which nobody measured kernels borrows another's "
    "interval, and its file says whose.",
    "An operator's time is its launch plus the largest of compute, memory, dequantisation and network time, on GPUs as "
    "its kernel's model has them; what bounds a phase is the share of its time for which each was the largest.",
    "Energy is static power over the whole time plus energy per FLOP and per bit moved. Price is devices times hours, "
    "at the rate that the provenance lines name. Both are per output token.",
)


def build(
    documents: Sequence[Data], title: str | None, command: str | None, refused: Mapping[str, str] | None = None
) -> list[Part]:
    """All parts of typed documents of any kinds: the answers, ``refused`` devices and why, how all was made."""
    groups = grouped(documents)
    parts: list[Part] = []
    for kind, own in groups:
        parts += kind.parts(own, None if parts else title, refused or {})
    if refused:
        listing = Listing(tuple(refused.items()), columns=1, size=7.5)
        parts.append(Part("Devices left out", "", (listing,), joins=True))
    made: list[Part] = []
    for kind, own in groups:
        made += kind.background(own, command, bool(made))
    return parts + made


def estimates(documents: Sequence[Document], title: str | None) -> list[Part]:
    """The answers of estimates: an overview where they ask several questions, then each."""
    every = sections(documents, DEVICES)
    parts: list[Part] = []
    if len(every) > 1:
        lead = f"{plural(len(documents), 'estimate')}, {len(every)} questions; what follows takes them one by one."
        parts.append(Part(title or "Overview", lead, (tables.overview(every),)))
        title = None
    for section in every:
        parts += _section(section, title)
        title = None
    return parts


def _section(section: Section, title: str | None) -> list[Part]:
    return [
        _summary(section, title), *_rooflines(section), _time(section), *_operators(section), *_curves(section),
        _memory_energy(section),
    ]  # fmt: skip


def _bars(
    draw: Callable[..., None], section: Section, title: str, alt: str, *, panels: int = 1, extra: float = 0.0
) -> list[Block]:
    """Pictures of bars, at most :data:`ROWS` devices in each."""
    pictures: list[Block] = []
    number_of = -(-len(section.entries) // ROWS)
    each = -(-len(section.entries) // number_of)
    for start in range(0, len(section.entries), each):
        entries = section.entries[start : start + each]
        height, least = bars.heights(entries, panels, extra)
        more = (
            f" ({start + 1} to {start + len(entries)} of {len(section.entries)})" if len(section.entries) > ROWS else ""
        )
        pictures.append(
            Picture(partial(draw, section=section, entries=entries), height, title + more, alt + more, least)
        )
    return pictures


def _summary(section: Section, title: str | None) -> Part:
    told = [f"{e.label} {number(e.throughput)}" + ("" if e.fits else " (does not fit)") for e in section.entries]
    alt = f"Bar chart of output tokens per second: {'; '.join(told)}"
    charts = _bars(bars.throughput, section, "Tokens per second, with 90 % intervals", alt)
    blocks: list[Block] = [Paragraph(headline(section), "headline")]
    lead = " ".join(t for t in (certainty(section), binding(section)) if t)
    blocks += [Paragraph(lead, "lead"), tables.summary(section), *charts]
    return Part(title or f"What {section.model} costs", "", tuple(blocks))


def _rooflines(section: Section) -> list[Part]:
    explained = section.explained("operators")
    if not explained:
        return []
    best, others = explained[0], explained[1:]
    bounds = roofline.limits(explained)
    gone = roofline.omitted(best.document.operators)
    note = f" Not shown, because they compute nothing: {listed(gone)}." if gone else ""
    ridge = best.document.device.achievable_flops / best.document.device.achievable_bandwidth
    lead = (
        f"On {best.label} work turns from memory-bound to compute-bound at {number(ridge)} FLOP per byte. "
        "Points on a line use all that it offers; what lies below pays for launches, collectives or a slower engine."
        + note
    )
    large = Picture(
        partial(roofline.roofline, entry=best, bounds=bounds), 6.15, f"Roofline of {best.label}",
        f"Roofline plot of {best.label}: each operator's achieved FLOP/s against its arithmetic intensity",
    )  # fmt: skip
    made = [Part("Roofline", lead, (large,), section.question)]
    if others:
        columns = min(4, max(2, len(others)))
        row = 2.9 if len(others) <= 2 * columns else 2.05
        for start in range(0, len(others), 12):
            chosen = others[start : start + 12]
            height = row * -(-len(chosen) // columns)
            small = Picture(
                partial(roofline.small_rooflines, entries=chosen, bounds=bounds, columns=columns, row=row), height,
                "Rooflines of the other devices", "Rooflines of " + listed([e.label for e in chosen]),
            )  # fmt: skip
            lead = "Filled circles: prefill; hollow diamonds: decode step. All axes as on the large one."
            made.append(Part("Rooflines of the other devices", lead, (small,), section.question))
    return made


def _time(section: Section) -> Part:
    told = [
        f"{e.label} {si(e.document.prefill.latency_s, 's')} and {si(e.document.decode.latency_s, 's')}"
        for e in section.entries
    ]
    alt = f"Stacked bars of the time of prefill and of a decode step by what bounds it: {'; '.join(told)}"
    charts = _bars(bars.breakdown, section, "What the time is spent on", alt, panels=2, extra=0.45)
    return Part("Where the time goes", binding(section), tuple(charts), section.question, joins=True)


def _operators(section: Section) -> list[Part]:
    explained = section.explained("operators")
    if not explained:
        return []
    best = explained[0]
    told = []
    for phase, name in (("prefill", "a prefill"), ("decode", "a decode step")):
        times: dict[str, float] = {}
        for o in best.document.operators:
            if o.phase == phase:
                times[o.kind] = times.get(o.kind, 0.0) + o.time_s
        if whole := sum(times.values()):
            kind, time = max(times.items(), key=lambda p: p[1])
            told.append(f"{percent(time / whole)} of {name} is {kind}")
    lead = f"On {best.label}, {listed(told)}." if told else ""
    return [
        Part(f"Operators on {best.label}, longest first", lead, (tables.operators(best),), section.question, joins=True)
    ]


def _curves(section: Section) -> list[Part]:
    explained = section.explained("curves")
    if not explained:
        return []
    banded = listed([e.label for e in explained if e in section.banded])
    bands = f"Bands: 90 % intervals of {banded}. " if banded else ""
    bands += "Dashed: beyond the device's memory."
    tokens = Picture(
        partial(curves.over_tokens, section=section), 6.1, "Latency against context and prompt",
        "Line plots of decode latency against context and of prefill latency against prompt length",
    )  # fmt: skip
    batch = Picture(
        partial(curves.over_batch, section=section), 6.1, "Latency and throughput against batch",
        "Line plots of decode latency and of decode throughput against batch",
    )  # fmt: skip
    held = sorted(((e.largest_batch or 0.0, e.label) for e in explained), key=lambda p: -p[0])
    most = [f"{label} {short(batch)}" for batch, label in held[:3] if batch]
    fits = f"Largest batches that fit, of those tried: {listed(most)}." if most else "No device holds a batch of one."
    return [
        Part("Latency against length", f"Batch {section.batch}. {bands}", (tokens,), section.question),
        Part("Latency and throughput against batch", f"{fits} {bands}", (batch,), section.question),
    ]


def _memory_energy(section: Section) -> Part:
    m = section.best.document.memory
    lead = (
        f"{section.best.label} must hold {si(m.weights_bytes, 'B')} of weights, {si(m.kv_bytes, 'B')} of KV cache and "
        f"{si(m.activation_bytes, 'B')} of activations on its fullest device. "
    )
    if thrifty := section.thriftiest:
        parts = thrifty.energy_parts
        total = sum(parts.values())
        if total:
            name, joules = max(parts.items(), key=lambda p: p[1])
            lead += f"On {thrifty.label} {percent(joules / total)} of the energy is {reason(name)}."
    alt = "Stacked bars of weights, KV cache and activations against capacity"
    held = _bars(bars.memory, section, "Memory on the fullest device", alt, extra=0.25)
    alt = "Bars of energy per output token by part, and of dollars per million output tokens"
    spent = _bars(bars.energy_and_price, section, "Energy and price", alt, extra=0.25)
    return Part("Memory, energy and price", lead, (*held, *spent), section.question, joins=True)


def background(documents: Sequence[Document], command: str | None) -> list[Part]:
    """Models, provenance, conventions and the devices' numbers behind estimates."""
    every = sections(documents, DEVICES)
    facts = tables.devices([e.document for s in every for e in s.entries])
    matrices, sources = tables.assumptions(facts)
    numbers = [q for d in facts for q in d.quantities]
    assumed = sum(q.assumed for q in numbers)
    lead = f"{plural(len(numbers), 'number')} of {plural(len(facts), 'device file')}; {assumed} of them are assumed."
    versions = sorted({d.tokenfab for d in documents})
    made_by = f"Estimates made by tokenfab {listed(versions)}."
    blocks: list[Block] = [tables.models(every), tables.provenance(every), Paragraph("Conventions", "heading")]
    blocks += [Paragraph(text, "body") for text in CONVENTIONS]
    blocks += [Paragraph("How this report was made", "heading"), Paragraph(made_by, "body")]
    if command:
        blocks.append(Paragraph(f"Command: {command}", "body"))
    return [
        Part("Models, provenance and conventions", "", tuple(blocks)),
        Part("What was assumed of the devices", lead, (*matrices, sources), joins=True),
    ]
