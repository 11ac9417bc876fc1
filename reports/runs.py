"""Serving runs before anything is drawn: what tells them apart, who is best at what, sentences."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .format import count, dollars, interval, listed, number, percent, plural, si
from .schema_serving import Served

LIMITS = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s"}
"""Which time a limit is of."""
NAMES = {
    "ttft_s": "time to first token", "tpot_s": "time per output token", "itl_s": "between two tokens",
    "e2e_s": "end to end", "queue_s": "in the queue",
}  # fmt: skip
SAME = 0.005
"""Relative difference up to which no run is called better than another."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run as a report names it: ``label`` is unique in it, ``colour`` belongs to the label."""

    document: Served
    label: str
    colour: str


@dataclass(frozen=True)
class Measure:
    """A figure that runs are compared by: its ``key`` in the document, unit, and whether more of it is better."""

    key: str
    heading: str
    unit: str
    more: bool = False

    def of(self, run: Run) -> float | None:
        """The figure; None where the run has none."""
        value: object = run.document
        for name in self.key.split("."):
            value = getattr(value, name)
        return None if value is None else float(value)  # type: ignore[arg-type]

    def best(self, runs: Sequence[Run]) -> float | None:
        """The best figure of all runs that finished a request."""
        known = [v for r in runs if r.document.requests.finished and (v := self.of(r)) is not None]
        return (max(known) if self.more else min(known)) if known else None


MEASURES = {
    m.key: m for m in (
        Measure("ttft_s.p50", "TTFT p50", "s"), Measure("ttft_s.p99", "TTFT p99", "s"),
        Measure("tpot_s.p50", "TPOT p50", "s"), Measure("tpot_s.p99", "TPOT p99", "s"),
        Measure("throughput_tokens_per_s", "tokens/s", "", more=True),
        Measure("goodput_requests_per_s", "goodput, requests/s", "", more=True),
        Measure("cost_usd_per_mtoken", "$/M tokens", "$"), Measure("energy_per_token_j", "J/token", "J"),
    )
}  # fmt: skip


# -- names -----------------------------------------------------------------------------------------
def runs_of(documents: Sequence[Served], palette: Sequence[str]) -> list[Run]:
    """``documents`` named by as few facts as tell them apart; one alone by its policy and device."""
    different = differences(documents)
    names = [""] * len(documents)
    for values in different.values() if different else (_policies(documents), [_hardware(d) for d in documents]):
        longer = [f"{name} · {value}" if name else value for name, value in zip(names, values, strict=True)]
        if len(set(longer)) > len(set(names)) or not names[0] or not different:
            names = longer
    used: Counter[str] = Counter()
    made = []
    for i, (d, name) in enumerate(zip(documents, names, strict=True)):
        used[name] += 1
        made.append(Run(d, name if used[name] == 1 else f"{name} (no. {used[name]})", palette[i % len(palette)]))
    return made


def differences(documents: Sequence[Served]) -> dict[str, list[str]]:
    """What is not the same in all ``documents``: the fact's name → what each has."""
    shorter = {"policy": _policies, "requests": _sources}
    found = {}
    for name, fact in FACTS.items():
        values = [fact(d) for d in documents]
        if len(set(values)) > 1:
            found[name] = shorter[name](documents) if name in shorter else values
    return found


def common(documents: Sequence[Served]) -> dict[str, str]:
    """What is the same in all ``documents``: the fact's name → it."""
    return {name: v for name, fact in FACTS.items() if len({v := fact(d) for d in documents}) == 1}


def _hardware(d: Served) -> str:
    degrees = "" if d.parallel == "one device" else f" {d.parallel}"
    return f"{d.device}{degrees}" + (f" ×{d.replicas}" if d.replicas > 1 else "")


def _policy(d: Served) -> str:
    settings = ",".join(f"{k}={v}" for k, v in d.policy.settings.items())
    return f"{d.policy.name}:{settings}" if settings else d.policy.name


def _policies(documents: Sequence[Served]) -> list[str]:
    """Policies, each with those settings that another run of the same policy has otherwise."""
    told = []
    for d in documents:
        alike = [x.policy.settings for x in documents if x.policy.name == d.policy.name]
        own = [f"{k}={v}" for k, v in d.policy.settings.items() if any(s.get(k) != v for s in alike)]
        told.append(d.policy.name + (f":{','.join(own)}" if own else ""))
    return told


def _sources(documents: Sequence[Served]) -> list[str]:
    """Requests; of one generator, only the settings that are not the same in all."""
    pieces = [d.workload.source.replace(":", ",", 1).split(",") for d in documents]
    if len({len(p) for p in pieces}) == 1 and len({p[0] for p in pieces}) == 1:
        kept = [i for i in range(len(pieces[0])) if len({p[i] for p in pieces}) > 1]
        if kept:
            return [",".join(p[i] for i in kept) for p in pieces]
    return [FACTS["requests"](d) for d in documents]


def limits_of(d: Served) -> str:
    """The limits in words."""
    return ", ".join(f"{k.upper()} {si(v, 's')}" for k, v in d.slo.limits.items()) or "no limits"


FACTS: dict[str, Callable[[Served], str]] = {
    "device": _hardware,
    "policy": _policy,
    "model": lambda d: d.model + "".join(f" {x}" for x in d.applied),
    "engine": lambda d: d.engine,
    "requests": lambda d: f"{d.workload.source} ({count(d.requests.submitted)})",
    "limits": limits_of,
    "seed": lambda d: f"seed {d.seed}",
}
"""What a run is of; runs are told apart by these."""


# -- sentences -------------------------------------------------------------------------------------
def question(d: Served) -> str:
    """Model, devices, policy and engine in one line."""
    techniques = f" with {listed(d.applied)}" if d.applied else ""
    return f"{d.model}{techniques} on {_hardware(d)}, policy {d.policy.name}, engine {d.engine}"


def headline(d: Served) -> str:
    """What users see, in a sentence or two."""
    r = d.requests
    what = f"{question(d)}: "
    if not r.finished:
        why = " All were rejected." if r.rejected == r.submitted else ""
        return f"{what}none of {plural(r.submitted, 'request')} finished.{why}"
    told = []
    for key, name in (("ttft_s", "the first token after"), ("tpot_s", "each further one after")):
        spread = getattr(d, key)
        if spread.p50 is not None and spread.p99 is not None:
            told.append(f"{name} {si(spread.p50, 's')}, 99 of 100 within {si(spread.p99, 's')}{_span(d, key + '.p99')}")
    seen = f"half of the users see {'; '.join(told)}." if told else "no user sees a token."
    return f"{what}{seen} {_kept(d)}".rstrip()


def _span(d: Served, key: str) -> str:
    span = d.span(key)
    return f" ({interval(*span, 's')})" if span else ""


def _kept(d: Served) -> str:
    if not d.slo.limits:
        return ""
    span = d.span("goodput_requests_per_s")
    rate = f"{number(d.goodput_requests_per_s)} requests/s" + (f" ({span_of(span)})" if span else "")
    return f"{attained(d.slo.attained)} keep {limits_of(d)}: goodput {rate}."


def lead(d: Served) -> str:
    """Rates, energy, price, rejections."""
    r = d.requests
    ends = [f"{count(r.finished)} of {plural(r.submitted, 'request')} finished ({d.workload.source})"]
    if r.rejected:
        ends.append(f"{count(r.rejected)} rejected")
    told = f"{', '.join(ends)}, in {si(d.simulated_s, 's')}. {number(d.throughput_tokens_per_s)} tokens/s"
    if d.energy_per_token_j is not None:
        told += f" at {si(d.energy_per_token_j, 'J')} each"
    if d.cost_usd_per_mtoken is not None:
        told += f", {dollars(d.cost_usd_per_mtoken)} per million"
    told += "."
    if d.capacity is not None:
        c = d.capacity
        last = f"{number(c.next)} do not" if c.next is not None else "no rate was found that does not"
        told += (
            f" Up to {number(c.rate)} requests/s keep the limits for {attained(c.attained)} of the requests; {last}."
        )
    return told


def compared(runs: Sequence[Run]) -> str:
    """Which run is best at what."""
    told = []
    for key, text in (
        ("ttft_s.p99", "shortest p99 TTFT"), ("tpot_s.p99", "shortest p99 TPOT"),
        ("throughput_tokens_per_s", "most tokens per second"), ("goodput_requests_per_s", "highest goodput"),
        ("cost_usd_per_mtoken", "cheapest per token"), ("energy_per_token_j", "least energy per token"),
    ):  # fmt: skip
        measure = MEASURES[key]
        best = measure.best(runs)
        if best is None:
            continue
        winners = [r.label for r in runs if r.document.requests.finished and _near(measure.of(r), best)]
        if len(winners) == len(runs):
            continue
        who = listed(winners) if len(winners) <= 3 else plural(len(winners), "run")
        told.append(f"{text}: {who}, {figure(best, measure.unit)}")
    if not told:
        return f"{plural(len(runs), 'run')}: none is better than another by more than {percent(SAME)}."
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]}."


def _near(value: float | None, best: float) -> bool:
    return value is not None and abs(value - best) <= SAME * abs(best)


def certainty(runs: Sequence[Run]) -> str:
    """How intervals of several runs are to be read."""
    if not any(r.document.interval for r in runs):
        return ""
    alike = len({(r.document.device, r.document.model, tuple(r.document.applied)) for r in runs}) == 1
    if alike:
        return (
            "Intervals are those of the cost model, whose error is the same for all runs here, as model and device are "
            "the same: it moves them together."
        )
    return "Intervals are those of the cost model; where they overlap, the order of different devices is not certain."


def share_within(quantiles: Sequence[float], limit: float) -> float:
    """Share of a sample at most ``limit``, by its quantiles at equal steps (linear between them)."""
    last = len(quantiles) - 1
    i = bisect_right(quantiles, limit)
    if i == 0 or last < 1:
        return 0.0
    if i > last:
        return 1.0
    low, high = quantiles[i - 1], quantiles[i]
    return (i - 1 + (limit - low) / (high - low)) / last


def figure(value: float | None, unit: str) -> str:
    """A figure as a table has it."""
    if value is None:
        return "–"
    return dollars(value) if unit == "$" else si(value, unit) if unit else number(value)


def span_of(span: tuple[float, float], unit: str = "") -> str:
    """An interval of a figure as a table has it."""
    if unit == "s" or unit == "J" or unit == "W":
        return interval(*span, unit)
    return f"{unit}{number(span[0])}–{number(span[1])}"


def attained(share: float) -> str:
    """A share of requests within limits: what is not all of them never reads 100 %."""
    return ">99.5 %" if 0.995 <= share < 1 else percent(share)
