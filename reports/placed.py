"""Pages of placements: what was gained and how sure that is, who runs and holds what, the schedule, the links."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from . import gantt, holdings, topology
from .blocks import Block, Cell, Column, Listing, Paragraph, Part, Picture, Table
from .format import NONE, count, listed, number, percent, plural, si
from .schema_placement import Head, Nowhere, Pattern, Placement

BASELINES = {
    "best_single": "best single device", "greedy": "greedy, in order of execution", "heft": "HEFT",
    "chain": "dynamic programming on the chain",
}  # fmt: skip
UNITS = {"energy": "J", "cost": "USD"}
METRICS = ("latency", "throughput", "energy", "cost")
USEFUL = 0.5
"""Gap from which a bound says nothing."""
PLACES = 5
"""Places of one operator that a table lists, by how many layers have them."""
CONVENTIONS = (
    ("value", "what the objective asks to be least; bound: no placement of this formulation is better; gap: what is "
     "between, as a share of the value"),
    ("latency", "prefill, handover of caches and T − 1 decode steps at the mean context, one request batch alone"),
    ("throughput", "seconds that the busiest engine or port works per request: the pipeline's bottleneck"),
    ("energy", "operators, links and the node's idle power over the latency; cost: each engine while it works"),
    ("shares", "3/8 A + 5/8 B: heads, columns or experts divided; A and B: each does all of it"),
    ("replayed", "the same placement event by event: engines run one operator, ports carry one transfer at a time"),
    ("busy", "seconds at work over the latency of the request (in the schedule: over the pass)"),
    ("activations", "room for the operands of the largest operator of a prefill pass, kept free in every memory"),
)  # fmt: skip


def parts(
    documents: Sequence[Placement | Nowhere], title: str | None = None, refused: Collection[str] = ()
) -> list[Part]:
    """Parts of every placement, in order; what the words mean after the last. ``refused``: devices of which the report
    says elsewhere why they were left out."""
    made: list[Part] = []
    for whole in documents:
        left = {name: why for name, why in whole.left_out.items() if name not in refused}
        document = whole.model_copy(update={"left_out": left})
        made += _placed(document, title) if isinstance(document, Placement) else [_nowhere(document, title)]
        title = None
    if made:
        terms = Listing(CONVENTIONS, columns=2, size=7)
        made.append(Part("How placements are told", "", (terms,), joins=True))
    return made


def question(document: Head) -> str:
    """Model, node and request in one line."""
    limits = [f"{name} at most {number(x)}" for name, x in document.limits.items()]
    return f"{asked(document)}, on {listed(document.devices)}; least {listed([document.objective, *limits])}"


def asked(document: Head) -> str:
    """Model and request."""
    r = document.request
    return f"{document.model}, batch {count(r.batch)}, {count(r.prompt)} + {count(r.output)} tokens"


def verdict(document: Placement) -> str:
    """Whether the placement beats one device, in one sentence."""
    single = document.baselines.get("best_single")
    used = [d for d in document.devices if document.busy_s.get(d)]
    if single is None:
        rest = [d for d in document.devices if d not in used]
        unused = f"; {listed(rest)} {'is' if len(rest) == 1 else 'are'} not used" if rest else ""
        return f"No single device holds the model with its caches: {listed(used)} share it{unused}."
    gain = single / document.value - 1 if document.value else 0.0
    if len(used) == 1:
        return f"Mixing does not beat the best single device: all of it is on {used[0]}."
    if gain <= 1e-4:
        return f"Mixing does not beat the best single device ({_amount(document, single)}): nothing is gained."
    return f"The best single device is {percent(gain)} worse ({_amount(document, single)})."


def headline(document: Placement) -> str:
    """What the placement comes to, and how near it is proven to be to the best."""
    if document.gap < 5e-5:
        proof = "proven best"
    elif document.gap < USEFUL:
        proof = f"none of the divisions weighed is more than {100 * document.gap:.2f} % better"
    else:
        proof = "with no useful bound"
    late = "" if document.status == "optimal" else " when the time was over"
    return f"{question(document)}: {_amount(document, document.value)}, {proof}{late}. {verdict(document)}"


def _amount(document: Head, value: float) -> str:
    return si(value, UNITS.get(document.objective, "s")) if document.objective in _NAMED else number(value, 4)


_NAMED = (*METRICS, "ttft", "tpot")


# -- what was found --------------------------------------------------------------------------------
def _placed(document: Placement, title: str | None) -> list[Part]:
    rows = holdings.memories(document)
    memory = Picture(
        partial(holdings.held, rows=rows), *_first(holdings.heights(rows)), "Who holds what",
        f"Stacked bars of what each memory holds: {holdings.told(rows)}", holdings.heights(rows)[1],
    )  # fmt: skip
    lead = Paragraph(_notes(document), "lead")
    head: list[Block] = [Paragraph(headline(document), "headline")]
    head += [lead] if lead.text else []
    head += [_metrics(document), _baselines(document), memory]
    links = Picture(
        partial(topology.topology, placement=document), topology.height(document), "The node and its traffic",
        f"Memories with the engines that work from them, and what moves between them: {topology.told(document)}",
    )  # fmt: skip
    made = [
        Part(title or f"{document.model} on mixed hardware", "", tuple(head)),
        Part("Who runs what", _who(document), (_assignment(document),), asked(document), joins=True),
        *_schedules(document),
    ]
    traffic: list[Block] = [links]
    if document.links:
        traffic.append(_links(document))
    made.append(Part("The node and its traffic", _moved(document), tuple(traffic), asked(document)))
    if document.left_out:
        made.append(Part("Devices not placed on", "", (_left(document),), joins=True))
    return made


def _first(pair: tuple[float, float]) -> tuple[float]:
    return (pair[0],)


def _notes(document: Head) -> str:
    told = [f"Assumed: {note}." for note in document.notes]
    told += [f"Applied: {listed(document.applied)}."] if document.applied else []
    return " ".join(told)


def _metrics(document: Placement) -> Table:
    """The metrics, and each pass as predicted and as replayed."""
    replayed = document.replay
    columns = (
        Column("what"), Column("predicted", "right"), Column("replayed", "right"), Column("difference", "right"),
        Column("runs", "right"), Column("of the latency", "right"),
    )  # fmt: skip
    repeats = {s.phase: s.repeats for s in replayed.schedule}
    rows = []
    for phase, seconds in replayed.phases.items():
        predicted, runs = document.metrics.get(phase, 0.0), repeats.get(phase, 0.0)
        if not (predicted or seconds):
            continue
        share = percent(predicted * runs / document.latency_s) if runs else NONE
        name = "decode step" if phase == "decode" else phase
        rows.append(_times(name, predicted, seconds, count(runs) if runs else NONE, share))
    rows.append(_times("request", replayed.predicted_s, replayed.replayed_s, "", "", "strong"))
    m = document.metrics
    paid = f", {si(m['cost'], 'USD')}" if m["cost"] else ""  # zero: no device file has a price
    note = (
        f"Of the whole request: busiest engine or port {si(m['throughput'], 's')}, {si(m['energy'], 'J')}{paid}. "
        f"Found in {si(document.solve_s, 's')} of CPU."
    )
    return Table(columns, tuple(rows), note=note)


def _times(name: str, predicted: float, replayed: float, runs: str, share: str, tone: str = "normal"):  # type: ignore[no-untyped-def]
    gap = _signed(100 * (replayed / predicted - 1)) if predicted else NONE
    texts = (name, si(predicted, "s"), si(replayed, "s"), gap, runs, share)
    return tuple(Cell(t, tone if i in (1, 2) else "strong" if i == 0 else "normal") for i, t in enumerate(texts))  # type: ignore[arg-type]


def _signed(share: float) -> str:
    """Percent with a sign, unless that is all there is of it."""
    return f"{share:+.2f} %" if abs(share) >= 0.005 else "0.00 %"


def _baselines(document: Placement) -> Table:
    columns = (Column("placement"), Column(document.objective, "right"), Column("worse than ours by", "right"))
    rows = [(Cell("ours", "strong"), Cell(_amount(document, document.value), "strong"), Cell(""))]
    useful = document.gap < USEFUL
    bound, gap = (_amount(document, document.bound), f"gap {100 * document.gap:.2f} %") if useful else (NONE, NONE)
    rows.append((Cell("bound", "muted"), Cell(bound, "muted"), Cell(gap, "muted")))
    for key, value in document.baselines.items():
        name = BASELINES.get(key, key.replace("_", " "))
        if value is None:
            rows.append((Cell(name), Cell("does not fit", "warn"), Cell("")))
        else:
            worse = 100 * (value / document.value - 1) if document.value else 0.0
            rows.append((Cell(name), Cell(_amount(document, value)), Cell(f"{worse:.2f} %")))
    return Table(columns, tuple(rows))


# -- who runs what ---------------------------------------------------------------------------------
def _who(document: Placement) -> str:
    layers = sum(p.layers for p in document.patterns)
    return (
        f"{plural(layers, 'layer')} in {plural(len(document.patterns), 'pattern')}; those placed alike are counted. "
        "Times are of one layer; where several devices are named each does the share before its name."
    )


def _assignment(document: Placement) -> Table:
    columns = (
        Column("block"), Column("operator"), Column("kind"), Column("layers", "right"),
        Column("runs on, at prefill", grow=True), Column("at decode", grow=True),
        Column("prefill", "right"), Column("decode step", "right"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    blocks: dict[str, list[Pattern]] = {}
    for p in document.patterns:
        blocks.setdefault(p.block, []).append(p)
    for block, patterns in blocks.items():
        for i, op in enumerate(patterns[0].operators):
            if op.kind == "output":  # no work: where a block hands on its result
                continue
            places: dict[str, list[float]] = {}
            for p in patterns:
                if i < len(p.operators):
                    o = p.operators[i]
                    layers = places.setdefault(o.place, [0, o.prefill_s, o.decode_s])
                    layers[0] += p.layers
            ranked = sorted(places.items(), key=lambda x: -x[1][0])
            for k, (place, (layers_n, prefill, decode)) in enumerate(ranked[:PLACES]):
                first = (block if not i and not k else "", op.name if not k else "", op.kind if not k else "")
                at = [said(x) for x in _phases(place)]
                rows.append((
                    Cell(first[0], "strong"), Cell(first[1]), Cell(first[2], "muted"), Cell(count(layers_n)),
                    Cell(at[0]), Cell("the same" if at[0] == at[1] else at[1], "muted" if at[0] == at[1] else "normal"),
                    Cell(si(prefill, "s")), Cell(si(decode, "s")),
                ))  # fmt: skip
            if rest := ranked[PLACES:]:
                other = f"{plural(len(rest), 'other place')}"
                blank = [Cell("", "muted") for _ in range(8)]
                blank[3], blank[4] = Cell(count(sum(x[1][0] for x in rest)), "muted"), Cell(other, "muted")
                rows.append(tuple(blank))
    return Table(columns, tuple(rows), size=7.5)


def _phases(place: str) -> tuple[str, str]:
    first, bar, second = place.partition(" | ")
    return (first, second) if bar else (place, place)


def said(place: str) -> str:
    """A place as it is read: ``a:4+b:4`` as 4/8 a + 4/8 b, ``a+b`` as a and b."""
    shares = [part.rpartition(":") for part in place.split("+")]
    if all(colon and n.isdigit() for _, colon, n in shares):
        units = sum(int(n) for _, _, n in shares)
        return " + ".join(f"{n}/{units} {name}" for name, _, n in shares)
    return listed(place.split("+"))


# -- the schedule ----------------------------------------------------------------------------------
def _schedules(document: Placement) -> list[Part]:
    every = gantt.drawn(document)
    pages = [every] if gantt.height(document, every) <= gantt.TALL else [[s] for s in every]
    lead = (
        "Left: how much of each stretch of the pass a device or port works, its share of the pass beside. Right: every "
        "operator and transfer of a few layers."
    )
    made = []
    for schedules in pages:
        if not schedules:
            continue
        high = gantt.height(document, schedules)
        told = ". ".join(gantt.told(s, document) for s in schedules)
        picture = Picture(
            partial(gantt.gantt, placement=document, schedules=schedules), min(high, gantt.TALL), "What runs when",
            f"Gantt chart. {told}", min(high, gantt.TALL) * 0.7,
        )  # fmt: skip
        made.append(Part("What runs when", lead, (picture,), asked(document), joins=True))
    return made


# -- links -----------------------------------------------------------------------------------------
def _moved(document: Placement) -> str:
    whole = sum(t.bytes for t in document.transfers)
    if not whole:
        return "Nothing moves between memories."
    by: dict[str, float] = {}
    for t in document.transfers:
        by[t.phase] = by.get(t.phase, 0.0) + t.bytes
    told = listed([f"{si(v, 'B')} in {phase}" for phase, v in by.items()])
    busy = max(document.links, key=lambda x: x.busy_s, default=None)
    worst = ""
    if busy is not None:
        share = percent(busy.busy_s / document.latency_s)
        worst = f" The link that works longest, {busy.source} to {busy.target}, does so for {share} of the latency."
    return f"{si(whole, 'B')} move in a request: {told}.{worst}"


def _links(document: Placement) -> Table:
    phases = list(dict.fromkeys(t.phase for t in document.transfers))
    moved: dict[tuple[str, str, str], float] = {}
    for t in document.transfers:
        key = (t.source, t.target, t.phase)
        moved[key] = moved.get(key, 0.0) + t.bytes
    columns = (
        Column("from", grow=True), Column("to", grow=True), Column("network"), Column("bandwidth", "right"),
        Column("latency", "right"), *(Column(p, "right") for p in phases), Column("bytes", "right"),
        Column("busy", "right"),
    )  # fmt: skip
    rows = []
    for link in sorted(document.links, key=lambda x: -x.bytes):
        if not link.bytes:
            continue
        cells = [link.source, link.target, link.network, si(link.bandwidth_bytes_s, "B/s"), si(link.latency_s, "s")]
        each = (moved.get((link.source, link.target, p), 0.0) for p in phases)
        cells += [si(x, "B") if x else NONE for x in each]
        cells += [si(link.bytes, "B"), percent(link.busy_s / document.latency_s)]
        rows.append(tuple(Cell(c) for c in cells))
    idle = sum(not x.bytes for x in document.links)
    note = f"{plural(idle, 'direction')} that carry nothing are not listed." if idle else ""
    return Table(columns, tuple(rows), note=note, size=7.5)


def _left(document: Head, title: str = "") -> Listing:
    """Devices of the study that are not in the node, those with one reason together."""
    why: dict[str, list[str]] = {}
    for name, reason in document.left_out.items():
        why.setdefault(reason, []).append(name)
    return Listing(tuple((", ".join(names), text) for text, names in why.items()), columns=1, size=7.5, title=title)


# -- nothing fits ----------------------------------------------------------------------------------
def _nowhere(document: Nowhere, title: str | None) -> Part:
    word = "does not fit" if document.status == "infeasible" else "was not placed in time"
    blocks: list[Block] = [Paragraph(f"{question(document)}: it {word}.", "headline")]
    blocks.append(Paragraph(f"{document.reason[:1].upper()}{document.reason[1:]}.", "lead"))
    if notes := _notes(document):
        blocks.append(Paragraph(notes, "body"))
    if rows := holdings.lacking(document):
        high, least = holdings.heights(rows)
        alt = f"Bars of what the placement that exceeds least needs: {holdings.told(rows)}"
        blocks.append(Picture(partial(holdings.held, rows=rows), high, "What is missing", alt, least))
    over = [(n, x) for n, x in document.exceeded.items() if n not in holdings.memory_names(document)]
    if over:
        columns = (Column("limit"), Column("needed", "right"), Column("allowed", "right"))
        unit = {n: UNITS.get(n, "s") for n, _ in over}
        cells = tuple((Cell(n), Cell(si(x[0], unit[n]), "warn"), Cell(si(x[1], unit[n]))) for n, x in over)
        blocks.append(Table(columns, cells))
    if document.left_out:
        blocks.append(_left(document, "Devices not placed on"))
    return Part(title or f"{document.model} on mixed hardware", "", tuple(blocks))
