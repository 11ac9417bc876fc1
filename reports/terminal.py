"""Results as text on a terminal: tables by rich, progress on stderr, nothing wrapped when piped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import format as fmt

if TYPE_CHECKING:
    from rich.table import Table

    from ..workloads.trace import Trace

Document = dict[str, Any]
PIPED = 10_000
"""Columns when the output is no terminal: lines are left whole for grep and awk."""
ROOMY = 100
"""Columns from which a study's table shows the interval of the energy too."""
NO_ROOM = "the times are of a device that had the room"


# -- numbers -------------------------------------------------------------------------------------
def si(value: float, unit: str = "") -> str:
    """Three digits and an SI prefix: 0.00123 s is ``1.23 ms``."""
    return _commas(fmt.si(value, unit))


def span(bounds: Sequence[float], unit: str) -> str:
    """An interval with one unit: ``5.80–14.3 ms``."""
    return _commas(fmt.interval(bounds[0], bounds[1], unit))


def number(value: float) -> str:
    """Three digits, from a hundred on all of them: ``82.2``, ``1,021``."""
    return f"{value:,.0f}" if value >= 99.95 else fmt.number(value)


def _commas(text: str) -> str:
    return text.replace("\u2009", ",")


# -- text and tables -----------------------------------------------------------------------------
def say(*parts: str | Table) -> None:
    """Print texts and tables as wide as the terminal is; whole lines when piped (or COLUMNS wide)."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, width=_columns() or PIPED)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def _columns() -> int | None:
    """Width to print for; ``None`` when nobody looks."""
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"])
    return os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str] = (),
    title: str = "",
    *,
    tight: bool = False,
) -> Table:
    """A table without lines; the columns named in ``right`` are right-aligned, one space apart where ``tight``."""
    from rich.table import Table

    grid = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False, collapse_padding=tight
    )
    grid.header_style = "bold"
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def listing(kind: str, entries: list[Document]) -> None:
    """Names, what else a listing knows, and descriptions."""
    keys = [k for k in entries[0] if k != "description"] + ["description"] if entries else ["name"]
    say(f"{len(entries)} {kind}", "", table(keys, [[str(e[k]) for k in keys] for e in entries]))


# -- one thing -----------------------------------------------------------------------------------
def fields(document: Document) -> None:
    """All fields of one thing, nested keys dotted; numbers with a source refer to a list of sources below."""
    sources: dict[str, str] = {}
    rows = []
    for key, value in _flat(document):
        if isinstance(value, dict):
            mark = sources.setdefault(value["source"], f"[{len(sources) + 1}]")
            rows.append([key, value["text"], mark])
        else:
            rows.append([key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), ""])
    if not sources:
        return say(table(["field", "value"], [row[:2] for row in rows]))
    say(table(["field", "value", "source"], rows), "", table(["", "sources"], [[m, s] for s, m in sources.items()]))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and not {"text", "source"} <= value.keys():
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def technique_card(document: Document) -> None:
    """A technique with its parameters."""
    rows = []
    for name, p in document["parameters"].items():
        within = "a name" if p["range"] is None else "{:g} to {:g}".format(*p["range"])
        accepted = ", ".join(map(str, p["choices"])) or within
        rows.append([name, str(p["default"]), accepted, p["meaning"]])
    say(f"{document['name']}: {document['description']}", f"source: {document['source']}")
    if rows:
        say("", table(["parameter", "default", "accepted", "meaning"], rows))


# -- results -------------------------------------------------------------------------------------
def trace_summary(document: Document, trace: Trace) -> None:
    """What ``tokenfab trace`` says to a person."""
    at = document["point"]
    rows = []
    for block in trace.blocks:
        for op in block.operators:
            flops, moved = (float(size(*at.values())) * block.repeat for size in (op.flops, op.moved()))
            rows.append([block.name, op.name, op.kind, str(block.repeat), si(flops), si(moved, "B")])
    say(
        f"{document['model']}: {document['parameters']:,} parameters, {si(document['weights_bytes'], 'B')} of weights, "
        f"{si(document['kv_bytes_per_token'], 'B')} of KV cache per token",
        f"{document['operators']} distinct operators, {document['executions']:,} executions; "
        f"captured in {document['capture_s']:.2f} s CPU",
        f"one pass at batch {at['batch']}, query {at['query']}, context {at['context']}: "
        f"{si(document['flops'], 'FLOP')}, {si(document['bytes'], 'B')} moved",
        "",
        table(["block", "operator", "kind", "runs", "FLOP", "bytes"], rows, right=("runs", "FLOP", "bytes")),
    )


def estimate_summary(document: Document, explain: bool) -> None:
    """What ``tokenfab estimate`` says to a person."""
    model, device, request, total = document["model"], document["device"], document["request"], document["total"]
    phases = (("prefill", document["prefill"]), ("decode step", document["decode"]), ("total", total))
    rows = [
        [
            label,
            si(p["latency_s"], "s"),
            span(p["interval_s"], "s"),
            si(p["energy_j"], "J"),
            span(p["energy_interval_j"], "J"),
        ]
        for label, p in phases
    ]
    price = total["cost_usd_per_mtoken"]
    cost = "no price known" if price is None else f"${number(price)} per million tokens: {total['cost_basis']}"
    say(
        f"{model['name']} on {machine(device)}: "
        f"batch {request['batch']}, {request['prompt']} prompt + {request['output']} output tokens",
        *(f"with {technique}" for technique in model["applied"]),
        "",
        table(
            ["", "time", "90 % interval", "energy", "90 % interval"], rows, right=("time", "90 % interval", "energy")
        ),
        "",
        *(f"{label} bound by {fmt.shares(p['bound'], 0.01)}" for label, p in phases[:2]),
        f"{number(total['tokens_per_s'])} tokens/s, {si(total['energy_per_token_j'], 'J')} per token",
        cost,
        memory_line(document["memory"], device["count"]),
    )
    if explain:
        for phase in ("prefill", "decode"):
            say("", _operators(phase, [o for o in document["operators"] if o["phase"] == phase]))


def _operators(phase: str, operators: list[Document]) -> Table:
    whole = sum(o["time_s"] for o in operators)
    rows = [
        [
            o["name"],
            o["kind"],
            str(o["count"]),
            si(o["time_s"], "s"),
            f"{100 * o['time_s'] / whole:.1f} %",
            fmt.reason(o["bound"]),
        ]
        for o in operators
    ]
    columns = ["operator", "kind", "runs", "time", "share", "bound by"]
    return table(columns, rows, right=("runs", "time", "share"), title=phase)


def machine(device: Document) -> str:
    """``2 × NVIDIA H100 80 GB SXM5 (tp=2)``."""
    divided = f" ({device['parallel']})" if device["count"] > 1 else ""
    return f"{device['count']} × {device['description']}{divided}"


def study_summary(documents: list[Document], files: Document) -> None:
    """The answer of a study: one row per device, fastest first, those that do not fit last and named."""
    roomy = (_columns() or PIPED) >= ROOMY
    rows, unfit = [], []
    for d in sorted(documents, key=lambda d: (not d["memory"]["fits"], -d["total"]["tokens_per_s"])):
        total, tokens, price = d["total"], _tokens(d), d["total"]["cost_usd_per_mtoken"]
        name = f"{d['device']['count']}× {d['device']['name']}"
        if not d["memory"]["fits"]:
            unfit.append(f"*{name}: DOES NOT FIT, {si(d['memory']['missing_bytes'], 'B')} missing; {NO_ROOM}")
            name += "*"
        rows.append(
            [
                name,
                si(d["prefill"]["latency_s"], "s"),
                si(d["decode"]["latency_s"], "s"),
                span(d["decode"]["interval_s"], "s"),
                number(total["tokens_per_s"]),
                number(total["energy_per_token_j"]),
                *([span([e / tokens for e in total["energy_interval_j"]], "J")] if roomy else []),
                fmt.NONE if price is None else f"${number(price)}",
            ]
        )
    r = documents[0]["request"]
    columns = ["device", "prefill", "decode", "90 % interval", "tokens/s", "J/token", "$/Mtoken"]
    if roomy:
        columns.insert(6, "90 % interval")
    say(
        f"{documents[0]['model']['name']}: batch {r['batch']}, {r['prompt']} prompt + {r['output']} output tokens; "
        "decode is one step",
        "",
        table(columns, rows, right=columns[1:], tight=not roomy),
        *unfit,
        *(f"left out: {why}" for why in files["refused"].values()),
        *(["", files["placed"]] if files.get("placed") else []),
        "",
        f"{written(files)}; {files['wall_s']:.1f} s",
    )


def validation_summary(document: Document) -> None:
    """One row per suite, device and model; what misses its bar and what was skipped below."""
    columns = ("suite", "device", "model", "mode", "n", "MAPE", "bias", "p90", "90 % covers", "bar")
    rows, missed, inside = [], [], []
    for d in document["suites"]:
        covers = "–" if d["coverage90"] is None else f"{d['coverage90']:.1%}"
        bar = "–" if d["bar"] is None else f"{d['bar']:.0%} {'met' if d['met'] else 'MISSED'}"
        errors = [f"{d['mape']:.1%}", f"{d['bias']:+.1%}", f"{d['p90']:.1%}"]
        rows.append([d["suite"], d["device"], d["model"], d["mode"], f"{d['n']:,}", *errors, covers, bar])
        where = f"{d['suite']} on {d['device']}, {d['model']}, {d['mode']}"
        if d["inside"] is not None:
            inside.append(f"{where}: {d['inside']:,} of {d['n']:,} rows between measured ones")
        if d["met"] is False:
            missed.append(f"missed: {where}: {d['mape']:.2%} is above {d['bar']:.0%}")
        if d["coverage_met"] is False:
            missed.append(f"missed: {where}: the 90 % interval covers {covers}, not 85 to 95 %")
    say(table(columns, rows, right=columns[4:]))
    dropped = sum(d["dropped"] for d in document["suites"])
    say(
        "",
        "odd rows of each table, of llmcompass all; constants and intervals are of the even ones",
        f"{dropped:,} rows left out",
    )
    say(*inside, *missed, *(f"skipped: {why}" for why in document["skipped"]))
    if "file" in document:
        say(document["file"])


def reproduction(rows: Sequence[Document]) -> None:
    """One row per claim: paper, model with its interval, and how far apart; why, below."""
    columns = ("system", "claim", "paper", "model", "90 %", "model / paper", "status")
    shown, why = [], []
    for r in rows:
        shown.append([r["system"], r["claim"], *fmt.claim_figures(r), r["status"]])
        if r["reason"]:
            why.append(f"{r['system']}, {r['claim']}: {r['reason']}")
    say(table(columns, shown, right=columns[2:6]))
    if why:
        say("", *why)


def measure_summary(document: Document) -> None:
    """One row per table and type; what was not measured and where it all is below."""
    columns = ("table", "dtype", "rows", "shortest", "longest", "most FLOP/s", "most B/s")
    rows = []
    for d in document["tables"]:
        keys = {"shortest_s": "s", "longest_s": "s", "most_flops_s": "FLOP/s", "most_bytes_s": "B/s"}
        figures = ["–" if d[key] is None else si(d[key], unit) for key, unit in keys.items()]
        rows.append([d["table"], d["dtype"], f"{d['rows']:,}", *figures])
    on = f"{document['device']} ({document['kind']}), PyTorch {document['torch']}"
    missing = [document["disturbed"]] if document["disturbed"] else []
    missing += [f"{count} shapes left out: {why}" for why, count in document["left_out"].items()]
    if document["not_reached"]:
        missing.append(f"{document['not_reached']} shapes not reached in the time given")
    say(on, "", table(columns, rows, right=columns[2:]), "", *missing)
    say(*document["files"], f"{document['notes']}; {document['wall_s']:.1f} s")


def calibration_summary(document: Document) -> None:
    """Constants before and after, the errors on the odd rows before and after; what was kept, and the file."""
    columns = ("constant", "before", "after", "least", "most", "meaning")
    rows = []
    for c in document["constants"]:
        seconds = c["unit"] == "s"
        values = [c["before"], c["after"], c["low"], c["high"]]
        figures = [si(v, "s") if seconds else f"{v:.4g}" for v in values]
        if not c["fitted"]:
            figures[1] = "kept"
        rows.append([c["key"], *figures, c["meaning"]])
    errors = []
    for d in document["suites"]:
        for when in ("before", "after"):
            e = d[when]
            figures = [f"{e['mape']:.1%}", f"{e['bias']:+.1%}", f"{e['p90']:.1%}", f"{e['coverage90']:.1%}"]
            errors.append([d["suite"], when, f"{d['n']:,}", *figures])
    titles = ("odd rows of", "constants", "n", "MAPE", "bias", "p90", "90 % covers")
    kept = [f"{c['key']}: kept, the rows say nothing of it" for c in document["constants"] if not c["fitted"]]
    kept += [f"{c['key']}: at the end of its range" for c in document["constants"] if c["at_bound"]]
    say(
        f"{document['device']}: constants of its architecture ({document['architecture'] or 'none'}) or file before, "
        "fitted on even rows after",
        "", table(columns, rows, right=columns[1:5]), "", table(titles, errors, right=titles[2:]), "",
        *kept, *(f"kept: {why}" for why in document["kept"]),
    )  # fmt: skip
    if document["file"]:
        say(document["file"])


def bench_summary(document: Document) -> None:
    """One row per combination: our kernels, the others, and what the CPU model predicts."""
    m, rows = document["machine"], []
    for d in document["rows"]:
        all_ = d["measured"]
        times = [si(all_[name]["median_s"], "s") if name in all_ else "–" for name in BENCHED]
        ratio = "–" if d["ratio"] is None else f"{d['ratio']:.2f}"
        bar = "–" if d["bar"] is None else f"{d['bar']:.1f}{' MISSED' if d['met'] is False else ''}"
        best = all_[d["kernel"]]
        guess = ["–", "–", "–"]
        if best["predicted_s"] is not None:
            guess = [si(best["predicted_s"], "s"), span(best["interval_s"], "s")]
            guess += [f"{best['measured_over_predicted']:.2f}"]
        rows.append([str(d["bits"]), str(d["tokens"]), str(d["threads"]), *times, d["kernel"], ratio, bar, *guess])
    columns = ("bits", "tokens", "threads", *BENCHED, "best", "best/ort", "bar", "predicted", "90 %", "meas./pred.")
    streams = ", ".join(f"{si(v, 'B/s')} by {n}" for n, v in m["stream_bytes_s"].items())
    versions = ", ".join(f"{name} {v}" for name, v in document["versions"].items())
    say(
        f"{m['model']}, {m['isa']}, {si(m['clock_hz'], 'Hz')}; threads read {streams}; {versions}",
        f"{document['size']} × {document['size']}, groups of {document['group']}, median of {document['repeats']}; "
        "1 bit beside onnxruntime's 2 bits, 3 beside 4; one thread: CPU time",
        "", table(columns, rows, right=columns),
    )  # fmt: skip
    if notes := [*document["disturbed"], *document["not_compared"]]:
        say("", *notes)


BENCHED = ("lut", "dot", "onnxruntime", "torch-fp32", "torch-bf16")


def rtl_tests(rows: list[Document]) -> None:
    """One row per unit and simulator; failures below."""
    columns = ("unit", "simulator", "tests", "failed")
    say(table(columns, [[str(row[c]) for c in columns] for row in rows], right=columns[2:]))
    for row in rows:
        for f in row["failures"]:
            say("", f"{row['unit']} on {row['simulator']}: {f['test']} with {_settings(f['parameters'])}")
            say(f"  {f['message']}", f"  {f['log']}")


def rtl_cycles(rows: list[Document]) -> None:
    """One row per unit; the first mismatch of each below."""
    columns = ("unit", "cases", "mismatches", "parameter_sets", "simulator", "seed")
    say(table(columns, [[str(row[c]) for c in columns] for row in rows], right=columns[1:4]))
    for row in rows:
        if row["first"]:
            say("", f"{row['unit']}: {json.dumps(row['first'])}")


def rtl_area(rows: list[Document]) -> None:
    """One row per unit and parameter set."""
    columns = ("unit", "cells", "area", "dsp", "lut", "ff", "srl", "carry", "bram", "parameters")
    lines = []
    for row in rows:
        size = "–" if row["area"] is None else f"{row['area']:,.0f}"
        lines.append([row["unit"], f"{row['cells']:,}", size, *(f"{row[c]:,}" for c in columns[3:9])])
        lines[-1].append(_settings(row["parameters"]))
    say(table(columns, lines, right=columns[1:9]))
    libraries = sorted({row["liberty"] for row in rows if row["liberty"]})
    said = f"cells and area: {libraries[0]}" if libraries else "cells: generic gates; for an area give --liberty FILE"
    say("", f"{said}. dsp to bram: UltraScale+ by Yosys, which packs only a slice's multiplier into its DSP48E2.")


def rtl_comparison(rows: list[Document]) -> None:
    """One row per array and pair of formats, over the area of the binary16 array at equal throughput."""
    if not rows:
        return say("no area of these units is compared (docs/rtl.md)")
    columns = ("unit", "weight", "activation", "MACs/cycle", "gates/MAC", "ratio", "published", "parameters")
    lines = []
    for row in rows:
        published = "–" if row["published"] is None else f"{row['published']:.3f}"
        sizes = f"{row['macs_per_cycle']:.1f}", f"{row['gates_per_mac']:,.0f}", f"{row['relative']:.3f}", published
        lines.append([row["unit"], row["weight"], row["activation"], *sizes, _settings(row["parameters"])])
    say(table(columns, lines, right=columns[3:7]))
    for row in rows:
        if row["source"]:
            which = f"{row['unit']}, {row['weight']} by {row['activation']}, published {row['published']:.3f}"
            say("", f"{which}: {row['source']}")
    libraries = sorted({row["liberty"] for row in rows})
    said = f"gates: areas in {', '.join(libraries)} over its NAND2, whole arrays"
    say("", f"{said}; ratio: gates per multiply-accumulate and cycle over those of binary16.")


def _settings(parameters: Document) -> str:
    return " ".join(f"{name}={value}" for name, value in parameters.items())


def written(files: Document) -> str:
    """Where a report was written."""
    return f"{files['report']}: {fmt.plural(files['pages'], 'page')}; the same as {files['html']}"


def _tokens(document: Document) -> int:
    return int(document["request"]["batch"] * document["request"]["output"])


def memory_line(memory: Document, devices: int = 1) -> str:
    """Whether it fits, and how much is missing when it does not."""
    weights, kv, activations, capacity, missing = (
        si(memory[f"{part}_bytes"], "B") for part in ("weights", "kv", "activation", "capacity", "missing")
    )
    which = "memory of the fullest device" if devices > 1 else "memory"
    parts = f"{which}: {weights} weights + {kv} KV + {activations} activations of {capacity}"
    held = memory.get("levels", ())
    if len(held) > 1:
        where = (
            f"{x['device']} {x['level']} {si(sum(x['holds'].values()), 'B')} of {si(x['capacity_bytes'], 'B')}"
            + (f" ({si(x['missing_bytes'], 'B')} missing)" if x["missing_bytes"] else "")
            for x in held
        )
        parts += f" ({'; '.join(where)})"
    return f"{parts}: fits" if memory["fits"] else f"{parts}: DOES NOT FIT, {missing} missing; {NO_ROOM}"


@contextmanager
def progress(silent: bool) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr that names the step; nothing when silent or piped."""
    if silent or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("…") as status:
        yield lambda text: status.update(Text(text))  # as it is: a path may look like markup
