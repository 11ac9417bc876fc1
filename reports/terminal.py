"""Results as text on a terminal: tables by rich, progress on stderr, nothing when piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Document = dict[str, Any]
_PREFIXES = (
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
)


def si(value: float | None, unit: str, digits: int = 3) -> str:
    """``value`` with an SI prefix: 0.00123 s → 1.23 ms."""
    if value is None:
        return "–"
    size = abs(value)
    factor, prefix = next(((f, p) for f, p in _PREFIXES if size >= f), (1e-9, "n")) if size else (1.0, "")
    return f"{value / factor:.{digits}g} {prefix}{unit}".rstrip()


def plain(value: float) -> str:
    """Three significant digits, thousands separated, no prefix: for counts per second."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(title: str, columns: list[str], rows: list[list[str]], numbers_from: int | None = None) -> None:
    """Print a table; columns from ``numbers_from`` on are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(
        title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold"
    )
    for i, column in enumerate(columns):
        right = numbers_from is not None and i >= numbers_from
        grid.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    Console(highlight=False, markup=False).print(grid)


def listing(kind: str, entries: list[Document]) -> None:
    """Names and descriptions."""
    table(f"{len(entries)} {kind}", ["name", "description"], [[e["name"], e["description"]] for e in entries])


def fields(document: Document) -> None:
    """All fields of one thing, nested keys dotted; a quantity shows its text and source."""
    rows = []
    for key, value in _flat(document):
        rows.append([key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)])
    table(str(document.get("name", "")), ["field", "value"], rows)


def _flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        if {"text", "source"} <= value.keys():
            return [(key, f"{value['text']}  ← {value['source']}")]
        return [leaf for k, v in value.items() for leaf in _flat(v, f"{key}.{k}" if key else str(k))]
    return [(key, value)]


def trace_summary(document: Document, operators: list[list[str]]) -> None:
    """What ``tokenfab trace`` says to a person."""
    at = document["point"]
    print(
        f"{document['model']}: {document['parameters']:,} parameters, {si(document['weights_bytes'], 'B')} of weights, "
        f"{si(document['kv_bytes_per_token'], 'B')} of KV cache per token"
    )
    print(
        f"{document['operators']} distinct operators, {document['executions']} executions; "
        f"captured in {document['capture_s']:.2f} s CPU\n"
        f"one pass at batch {at['batch']}, query {at['query']}, context {at['context']}: "
        f"{si(document['flops'], 'FLOP')}, {si(document['bytes'], 'B')} moved\n"
    )
    table("", ["block", "operator", "kind", "runs", "FLOP", "bytes"], operators, numbers_from=3)


def estimate_summary(document: Document, explain: bool) -> None:
    """What ``tokenfab estimate`` says to a person."""
    model, device, request = document["model"], document["device"], document["request"]
    print(
        f"{model['name']} on {device['count']} × {device['description']} ({device['parallel']}): "
        f"batch {request['batch']}, {request['prompt']} prompt + {request['output']} output tokens"
    )
    rows = []
    for phase, label in (("prefill", "prefill"), ("decode", "decode step")):
        p = document[phase]
        rows.append(
            [label, si(p["latency_s"], "s"), interval(p["interval_s"]), si(p["energy_j"], "J"), shares(p["bound"])]
        )
    total = document["total"]
    rows.append(["total", si(total["latency_s"], "s"), interval(total["interval_s"]), si(total["energy_j"], "J"), ""])
    table("", ["", "time", "90 % interval", "energy", "bound by"], rows)
    price = total["cost_usd_per_mtoken"]
    print(
        f"\n{plain(total['tokens_per_s'])} token/s, {si(total['energy_per_token_j'], 'J')} per token, "
        + ("no price known" if price is None else f"${price:.3g} per million tokens")
    )
    print(memory_line(document["memory"]))
    if explain:
        _operators(document["operators"])


def _operators(operators: list[Document]) -> None:
    for phase in ("prefill", "decode"):
        chosen = [o for o in operators if o["phase"] == phase]
        whole = sum(o["time_s"] for o in chosen)
        rows = [
            [o["name"], o["kind"], str(o["count"]), si(o["time_s"], "s"), f"{o['time_s'] / whole:.1%}", o["bound"]]
            for o in chosen
        ]
        table(f"\n{phase}", ["operator", "kind", "runs", "time", "share", "bound by"], rows)


def study_summary(documents: list[Document]) -> None:
    """The answer of a study: one row per device, fastest first."""
    rows = []
    for d in sorted(documents, key=lambda d: (not d["memory"]["fits"], -d["total"]["tokens_per_s"])):
        total, memory, price = d["total"], d["memory"], d["total"]["cost_usd_per_mtoken"]
        rows.append(
            [
                f"{d['device']['count']} × {d['device']['name']}",
                "yes" if memory["fits"] else f"no, {si(memory['missing_bytes'], 'B')} short",
                si(d["prefill"]["latency_s"], "s"),
                si(d["decode"]["latency_s"], "s"),
                interval(d["decode"]["interval_s"]),
                plain(total["tokens_per_s"]),
                si(total["energy_per_token_j"], "J"),
                "–" if price is None else f"${price:.3g}",
            ]
        )
    first = documents[0]
    r = first["request"]
    title = f"{first['model']['name']}: batch {r['batch']}, {r['prompt']} prompt + {r['output']} output tokens"
    columns = ["device", "fits", "prefill", "decode step", "90 % interval", "token/s", "J/token", "$/Mtoken"]
    table(title, columns, rows, numbers_from=2)


def memory_line(memory: Document) -> str:
    """Whether it fits, and by how much."""
    weights, kv, activations, capacity, missing = (
        si(memory[f"{part}_bytes"], "B") for part in ("weights", "kv", "activation", "capacity", "missing")
    )
    parts = f"weights {weights} + KV {kv} + activations {activations}"
    if memory["fits"]:
        return f"memory: {parts} fit in {capacity} per device"
    return f"memory: DOES NOT FIT: {parts} exceed {capacity} by {missing}; the times are of a device that had the room"


def interval(bounds: list[float]) -> str:
    """``lo … hi`` with one unit."""
    low, high = (si(b, "s") for b in bounds)
    number, _, unit = low.partition(" ")
    return f"{number if high.endswith(' ' + unit) else low} … {high}"


def shares(bound: dict[str, float]) -> str:
    """Reasons with at least one percent, largest first."""
    top = sorted(((v, k) for k, v in bound.items() if v >= 0.01), reverse=True)
    return ", ".join(f"{k} {v:.0%}" for v, k in top)


@contextmanager
def progress(silent: bool) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr that names the step; nothing when silent or piped."""
    if silent or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("…") as status:
        yield lambda text: status.update(text)
