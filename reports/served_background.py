"""How serving runs were made: commands, policies, engines with the sources of their numbers, memory, conventions."""

from __future__ import annotations

from collections.abc import Sequence

from .blocks import Block, Cell, Column, Listing, Part, Table
from .format import count, listed, plural, short, si
from .runs import Run, runs_of
from .schema_serving import Served, Sourced
from .style import DEVICES

CONVENTIONS = (
    ("TTFT", "time to first token: from arrival, queueing included"),
    ("TPOT", "time per output token: (last − first) / (tokens − 1) of a request; between two tokens: of all gaps"),
    ("end to end", "from arrival to the last token; in the queue: from arrival to first admission"),
    ("goodput", "requests within all limits, per second of the run; a rejected request is within none"),
    ("quantiles", "of the requests that have such a time; a rejected one has none"),
    ("over time", "means of equal stretches, all replicas together; waiting: for the first admission"),
    ("energy", "dynamic: of the work; static: while a device works; idle: while it does not. Of all devices"),
    ("price", "hours of all devices, used or not, over the tokens written"),
    ("interval", "the run repeated with all iterations at the low and the high end of the cost model's 90 % interval"),
)  # fmt: skip


def background(documents: Sequence[Served]) -> list[Part]:
    """One part: everything that is needed to make the runs again, and what the words mean."""
    runs = runs_of(documents, DEVICES)
    blocks: list[Block] = [_runs(runs), *_engines(documents)]
    if any(d.memory for d in documents):
        blocks.append(_memory(runs))
    blocks.append(Listing(CONVENTIONS, columns=2, size=7, title="What the words mean"))
    return [Part("How these runs were made", "", tuple(blocks), joins=True)]


def _runs(runs: Sequence[Run]) -> Listing:
    """Command, requests, policy and seed of each run."""
    items = []
    for run in runs:
        d = run.document
        settings = ", ".join(f"{k} {v}" for k, v in d.policy.settings.items())
        policy = f"policy {d.policy.name}" + (f" ({settings})" if settings else "")
        told = [policy + (f", after {d.policy.source}" if d.policy.source else "")]
        told.append(f"requests {d.workload.source}")
        if d.workload.left_out:
            told.append(f"{plural(len(d.workload.left_out), 'bad record')} left out")
        told += [f"engine {d.engine}", f"seed {d.seed}", f"made by tokenfab {d.tokenfab}"]
        items.append((run.label, "; ".join(told)))
        if d.command:
            items.append(("", d.command))
    return Listing(tuple(items), columns=1, size=7, title="Runs and their commands")


def _engines(documents: Sequence[Served]) -> list[Listing]:
    """Every number of every engine's profile, with its source; profiles that are alike once."""
    made: dict[tuple[str, str], Listing] = {}
    for d in documents:
        if not d.profile.numbers:
            continue
        items = tuple((f"{k} = {_value(x)}", x.source) for k, x in d.profile.numbers.items())
        about = f": {d.profile.description}" if d.profile.description else ""
        made.setdefault((d.engine, repr(items)), Listing(items, columns=2, size=7, title=f"Engine {d.engine}{about}"))
    return list(made.values())


def _value(number: Sourced) -> str:
    if isinstance(number.value, list):
        ends = [count(x) for x in (*number.value[:3], *number.value[-1:])]
        return f"{', '.join(ends[:-1])} … {ends[-1]} ({len(number.value)})" if len(number.value) > 4 else listed(ends)
    return short(number.value)


def _memory(runs: Sequence[Run]) -> Table:
    columns = (
        Column("memory of the fullest device", grow=True), Column("weights", "right"), Column("activations", "right"),
        Column("engine's own", "right"), Column("KV cache", "right"), Column("KV per token", "right"),
        Column("blocks", "right"), Column("tokens a block", "right"), Column("seats", "right"),
    )  # fmt: skip
    rows = []
    for run in runs:
        for role, room in run.document.memory.items():
            name = run.label if role == "replica" else f"{run.label}, {role}"
            sizes = (room.weights_bytes, room.activation_bytes, room.reserved_bytes, room.kv_bytes)
            rows.append((
                Cell(name, "strong"), *(Cell(si(x, "B")) for x in sizes), Cell(si(room.kv_bytes_per_token, "B")),
                Cell(count(room.blocks)), Cell(count(room.block_tokens)), Cell(count(room.seats)),
            ))  # fmt: skip
    return Table(columns, tuple(rows), size=7.5)
