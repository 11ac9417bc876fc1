"""What the documents answer, before anything is drawn: groups, labels, order, winners, sentences.

Documents that ask the same question (model and request) are compared with one another and make a
section; everything else would compare what cannot be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .format import count, dollars, interval, listed, number, percent, plural, si
from .format import reason as _reason
from .schema import Document


@dataclass(frozen=True, eq=False)
class Entry:
    """One estimate as a report names it: ``label`` is unique in its section, ``colour`` belongs to the label."""

    document: Document
    label: str
    colour: str = "#000000"

    @property
    def fits(self) -> bool:
        return self.document.memory.fits

    @property
    def throughput(self) -> float:
        """Output tokens per second of the whole request."""
        return self.document.total.tokens_per_s

    @property
    def throughput_interval(self) -> tuple[float, float]:
        """Tokens per second at the slow and at the fast end of the interval."""
        total = self.document.total
        tokens = total.tokens_per_s * total.latency_s
        return tokens / total.interval_s.high, tokens / total.interval_s.low

    @property
    def energy_interval(self) -> tuple[float, float] | None:
        """Joules per output token, low and high."""
        total = self.document.total
        if total.energy_interval_j is None or not total.energy_j:
            return None
        scale = total.energy_per_token_j / total.energy_j
        return total.energy_interval_j.low * scale, total.energy_interval_j.high * scale

    @property
    def energy_parts(self) -> dict[str, float]:
        """Joules per output token by part; what the phases do not hold is drawn by devices that wait."""
        document = self.document
        steps, tokens = document.request.output - 1, document.request.batch * document.request.output
        parts: Counter[str] = Counter()
        for phase, times in ((document.prefill, 1), (document.decode, steps)):
            for name, joules in phase.energy_parts_j.items():
                parts[name] += joules * times / tokens  # type: ignore[assignment]
        total, known = document.total.energy_per_token_j, sum(parts.values())
        if known and abs(total - known) <= 0.01 * total:  # steps were costed one by one, ``decode`` is their middle
            return {name: joules * total / known for name, joules in parts.items()}
        return {**parts, "waiting devices": max(0.0, total - known)}

    @property
    def largest_batch(self) -> float | None:
        """The largest batch of the curve that fits, 0 when none does, ``None`` without a curve."""
        curves = self.document.curves
        if curves is None:
            return None
        held = [x for x, fits in zip(curves.batch.x, curves.batch.fits, strict=True) if fits]
        return max(held, default=0.0)


@dataclass(frozen=True, eq=False)
class Section:
    """Estimates of one model and request, best first: those that fit, by tokens per second, then the others."""

    model: str
    batch: int
    prompt: int
    output: int
    applied: tuple[str, ...]
    entries: tuple[Entry, ...] = field(repr=False)

    @property
    def question(self) -> str:
        techniques = f" with {listed(self.applied)}" if self.applied else ""
        tokens = f"{count(self.prompt)} + {count(self.output)} tokens"
        return f"{self.model}{techniques}, batch {count(self.batch)}, {tokens}"

    @property
    def fitting(self) -> tuple[Entry, ...]:
        return tuple(e for e in self.entries if e.fits)

    @property
    def best(self) -> Entry:
        """The fastest that fits; the fastest of all where none does."""
        return self.entries[0]

    @property
    def cheapest(self) -> Entry | None:
        return self._least(lambda e: e.document.total.cost_usd_per_mtoken)

    @property
    def thriftiest(self) -> Entry | None:
        return self._least(lambda e: e.document.total.energy_per_token_j)

    def _least(self, key: Callable[[Entry], float | None]) -> Entry | None:
        known = [(value, i) for i, e in enumerate(self.fitting) if (value := key(e)) is not None]
        return self.fitting[min(known)[1]] if known else None

    @property
    def banded(self) -> tuple[Entry, ...]:
        """At most three entries that get interval bands: fastest, cheapest, least energy, then the next fastest."""
        chosen = [e for e in (self.best, self.cheapest, self.thriftiest) if e is not None]
        return tuple(dict.fromkeys((*chosen, *self.entries[:3])))[:3]

    def explained(self, what: str) -> tuple[Entry, ...]:
        """Entries whose document has ``operators`` or ``curves``."""
        return tuple(e for e in self.entries if getattr(e.document, what))


def sections(documents: Sequence[Document], palette: Sequence[str]) -> list[Section]:
    """Sections in the order their first document came; labels keep their colour in all of them."""
    groups: dict[tuple[str, int, int, int], list[Document]] = {}
    for document in documents:
        request = document.request
        key = (document.model.name, request.batch, request.prompt, request.output)
        groups.setdefault(key, []).append(document)
    labelled = {key: _labelled(group) for key, group in groups.items()}
    labels = dict.fromkeys(e.label for entries in labelled.values() for e in entries)
    colours = {label: palette[i % len(palette)] for i, label in enumerate(labels)}
    made = []
    for key, entries in labelled.items():
        shared = {tuple(e.document.model.applied) for e in entries}
        ordered = sorted(entries, key=lambda e: (not e.fits, -e.throughput, e.label))
        coloured = tuple(replace(e, colour=colours[e.label]) for e in ordered)
        made.append(Section(*key, applied=shared.pop() if len(shared) == 1 else (), entries=coloured))
    return made


def _labelled(group: list[Document]) -> list[Entry]:
    several = len({tuple(d.model.applied) for d in group}) > 1
    ways: dict[tuple[str, int], set[str]] = {}
    for d in group:
        ways.setdefault((d.device.name, d.device.count), set()).add(d.device.parallel)
    used: Counter[str] = Counter()
    entries = []
    for d in group:
        label = d.device.name + (f" ×{d.device.count}" if d.device.count > 1 else "")
        if len(ways[d.device.name, d.device.count]) > 1:
            label += f" {d.device.parallel}"
        if several:
            label += f" · {', '.join(d.model.applied) or 'as is'}"
        used[label] += 1
        entries.append(Entry(d, label if used[label] == 1 else f"{label} (no. {used[label]})"))
    return entries


# -- sentences -------------------------------------------------------------------------------------
def headline(section: Section) -> str:
    """The answer in one sentence or two."""
    held = section.fitting
    if not held:
        closest = min(section.entries, key=lambda e: (e.document.memory.missing_bytes, e.label))
        short = si(closest.document.memory.missing_bytes, "B")
        return (
            f"{section.question}: none of {plural(len(section.entries), 'device')} holds the model; "
            f"{closest.label} comes closest, {short} short."
        )
    claims: dict[str, list[str]] = {}
    low, high = section.best.throughput_interval
    speed = f"{number(section.best.throughput)} tokens/s (90 % interval {number(low)}–{number(high)})"
    if len(section.entries) == 1:
        energy, price = section.best.document.total.energy_per_token_j, section.best.document.total.cost_usd_per_mtoken
        cost = f", {dollars(price)} per million tokens" if price is not None else ""
        return f"{section.question}: {section.best.label} gives {speed} at {si(energy, 'J')} per token{cost}."
    claims.setdefault(section.best.label, []).append(f"is fastest with {speed}")
    if (cheap := section.cheapest) is not None:
        text = f"is cheapest at {dollars(cheap.document.total.cost_usd_per_mtoken)} per million tokens"
        claims.setdefault(cheap.label, []).append(text)
    if (thrifty := section.thriftiest) is not None:
        text = f"needs least energy, {si(thrifty.document.total.energy_per_token_j, 'J')} per token"
        claims.setdefault(thrifty.label, []).append(text)
    told = "; ".join(f"{label} {listed(texts)}" for label, texts in claims.items())
    return f"{section.question}: {told}. {_held(section)}"


def _held(section: Section) -> str:
    held, asked = len(section.fitting), len(section.entries)
    return f"All {asked} devices hold the model." if held == asked else f"{held} of {asked} devices hold the model."


def certainty(section: Section) -> str:
    """Which devices the fastest cannot be told from, by their intervals."""
    held = section.fitting
    if len(held) < 2:
        return ""
    low = held[0].throughput_interval[0]
    near = [e.label for e in held[1:] if e.throughput_interval[1] >= low]
    if not near:
        return f"The lead of {held[0].label} is larger than the intervals: no other device's reaches it."
    some = listed(near) if len(near) <= 3 else f"{len(near)} of the other {len(held) - 1}"
    whose = f"the interval of {some} overlaps" if len(near) == 1 else f"the intervals of {some} overlap"
    return f"The order is not certain: {whose} that of {held[0].label}."


def binding(section: Section) -> str:
    """What bounds the best device, phase by phase."""
    document = section.best.document
    told = []
    for name, phase in (("prefill", document.prefill), ("decode", document.decode)):
        if phase.bound:
            reason, share = max(phase.bound.items(), key=lambda p: p[1])
            told.append(f"{name} spends {percent(share)} of its time on {_reason(reason)}")
    span = interval(document.decode.interval_s.low, document.decode.interval_s.high, "s")
    step = f"a decode step takes {si(document.decode.latency_s, 's')} ({span})"
    return f"On {section.best.label}, {', '.join([*told, step])}."
