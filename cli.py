"""The command line: thin, no modelling. Every command takes --json and --quiet.

Exit codes: 0 done; 1 ran and the answer is no; 2 the input was wrong (one line on stderr). Heavy
libraries are imported inside the commands, so that ``tokenfab --help`` answers at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .cli_bench import bench
from .cli_common import Json, Name, Quiet, answer, listing, named
from .cli_place import place as place_command
from .cli_rtl import rtl
from .cli_serve import policies as policies_command
from .cli_serve import serve as serve_command
from .errors import InputError, unknown_name
from .files import check_writable, json_text, write_whole
from .reports import terminal

app = typer.Typer(
    name="tokenfab",
    help="What a language model costs on given hardware, in seconds, joules and dollars, and how sure that is.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich's takes a third of a second to import
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Option("--model", "-m", help="Preset, hf:PATH/config.json, trace file or preset file.")]
ModelName = Annotated[str, typer.Argument(help="Preset, hf:PATH/config.json, trace file or preset file.")]
DeviceName = Annotated[str, typer.Option("--device", "-d", help="Catalogue name or device file.")]
Batch = Annotated[int, typer.Option(help="Sequences.")]
Prompt = Annotated[int, typer.Option(help="Prompt tokens per sequence.")]
Output = Annotated[int, typer.Option(help="Tokens written per sequence.")]
Apply = Annotated[list[str] | None, typer.Option("--apply", help="Technique, as name:key=value,key=value. Repeatable.")]
Count = Annotated[int | None, typer.Option(help="Devices; without --parallel they share every layer (tp).")]
ParallelText = Annotated[str | None, typer.Option("--parallel", help="Degrees, as tp=4,pp=2,dp=1.")]

app.add_typer(rtl, name="rtl")
app.add_typer(bench, name="bench")

EXTRAS = {"scipy": "fit", "numba": "kernels"}
"""Libraries that some commands need and not every installation has, and the extra that brings them."""
INTERRUPTED = 130
"""What the option parser returns for Control-C, as shells do: 128 + SIGINT."""


def main() -> None:
    """Entry point of the console script."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no × still gets the numbers
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code. Wrong input prints one line on stderr."""
    command = shlex.join(["tokenfab", *arguments]).encode("utf-8", "replace").decode("utf-8")
    try:
        _check_command(arguments)
        alone = not arguments or arguments in [[g.name] for g in app.registered_groups]
        code: int | None = app(
            [*arguments, "--help"] if alone else arguments, prog_name="tokenfab", standalone_mode=False, obj=command
        )
        sys.stdout.flush()
        return _fail("interrupted", code) if code == INTERRUPTED else code or 0
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(f"{error.name} is not installed; install tokenfab[{EXTRAS[error.name]}]")
    except Exception as error:
        format_message = getattr(error, "format_message", None)  # a usage error of the option parser
        if format_message is None:
            raise
        return _fail(str(InputError(f"{str(format_message()).removesuffix('.')} (see --help)")))


def _check_command(arguments: list[str]) -> None:
    groups = {"": app, **{str(g.name): g.typer_instance for g in app.registered_groups if g.typer_instance}}
    for place, parent in enumerate(("", *arguments[:1])):
        if parent not in groups or place >= len(arguments) or arguments[place].startswith("-"):
            return
        known = [str(c.name or c.callback.__name__) for c in groups[parent].registered_commands if c.callback]
        known += [name for name in groups if name] if not parent else []
        if arguments[place] not in known:
            raise unknown_name(f"{parent} command".strip(), arguments[place], known)


def _fail(message: str, code: int = 2) -> int:
    print(f"tokenfab: {message}", file=sys.stderr)
    return code


# -- what there is -------------------------------------------------------------------------------
@app.command()
def models(name: Name = None, json_: Json = False, quiet: Quiet = False) -> None:
    """List the model presets, or show one.

    Example: tokenfab models llama-2-7b
    """
    from .models.config import load_config, model_names

    if name is None:
        entries = [{"name": n, "description": load_config(n).description} for n in model_names()]
        return listing("models", entries, json_, quiet)
    fields = load_config(name).model_dump(exclude_none=True)
    answer(fields, json_, quiet, lambda: terminal.fields(fields))


@app.command()
def devices(name: Name = None, json_: Json = False, quiet: Quiet = False) -> None:
    """List the device catalogue, or show one device with the source of every number.

    Example: tokenfab devices h100-sxm
    """
    from .hw.devices import device_names, load_device
    from .hw.die import area_document, price_document

    if name is None:
        found = [load_device(n) for n in device_names()]
        entries = [{"name": d.name, "kind": d.kind, "year": d.year, "description": d.description} for d in found]
        return listing("devices", entries, json_, quiet)
    card = load_device(name)
    fields = card.to_dict() | {"area_parts": area_document(card), "price_parts": price_document(card)}
    answer(fields, json_, quiet, lambda: terminal.fields(card.to_dict()))


@app.command()
def techniques(name: Name = None, json_: Json = False, quiet: Quiet = False) -> None:
    """List the techniques, or show one with its parameters.

    Example: tokenfab techniques weight-only
    """
    from .workloads.techniques import techniques as known

    named("technique", "techniques", known(), name, json_, quiet)


# -- the spine -----------------------------------------------------------------------------------
@app.command()
def trace(
    run_: typer.Context,
    model: ModelName,
    batch: Annotated[int, typer.Option(help="Evaluate at this many sequences.")] = 1,
    query: Annotated[int, typer.Option(help="New tokens per sequence.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens already in the KV cache.")] = 0,
    apply: Apply = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the trace here (.json).")] = None,
    chakra: Annotated[Path | None, typer.Option(help="Write the point as a Chakra execution trace too.")] = None,
    perfetto: Annotated[Path | None, typer.Option(help="Write the point for Perfetto's viewer too.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Capture a model from PyTorch into a trace.

    Example: tokenfab trace llama-2-7b --batch 1 --query 512 -o llama.json
    """
    from .workloads.export import chakra_json, perfetto_json
    from .workloads.load import load_trace
    from .workloads.techniques import apply_techniques
    from .workloads.trace import check_point

    captured = apply_techniques(load_trace(model, fresh=True), apply or [])
    at = {"batch": batch, "query": query, "context": context}
    check_point(captured, **at)
    flops, moved = (float(captured.total(q)(batch, query, context)) for q in ("flops", "bytes"))
    if output is not None:
        captured.save(output)
    for path, export in ((chakra, chakra_json), (perfetto, perfetto_json)):
        if path is not None:
            write_whole(path, json_text(export(captured, **at)))
    seconds = captured.provenance.get("capture_s")
    document = {
        "model": captured.model, "parameters": captured.parameters,
        "operators": len(list(captured.operators())), "executions": sum(n for _, n in captured.operators()),
        "flops": flops, "bytes": moved, "weights_bytes": captured.weights_bytes,
        "kv_bytes_per_token": captured.kv_bytes_per_token,
        "capture_s": float(seconds) if isinstance(seconds, int | float) else 0.0, "point": at,
        "formulas": {"flops": str(captured.total("flops")), "bytes": str(captured.total("bytes"))},
        "applied": list(captured.applied), "file": str(output) if output else None, "command": run_.obj,
    }  # fmt: skip
    answer(document, json_, quiet, lambda: terminal.trace_summary(document, captured))


@app.command()
def estimate(
    run_: typer.Context,
    model: Model,
    device: DeviceName,
    count: Count = None,
    parallel: ParallelText = None,
    batch: Batch = 1,
    prompt: Prompt = 512,
    output: Output = 128,
    apply: Apply = None,
    level: Annotated[str, typer.Option(help="Which model answers: closed (form) or event (simulation).")] = "closed",
    streams: Annotated[int, typer.Option(help="Copies of the request beside one another; needs --level event.")] = 1,
    timeline: Annotated[Path | None, typer.Option(help="Write what was simulated, for Perfetto's viewer.")] = None,
    explain: Annotated[bool, typer.Option(help="Time and energy of every operator too.")] = False,
    save: Annotated[Path | None, typer.Option("-o", "--save", help="Write the result here, for a report.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cost of one request batch.

    Example: tokenfab estimate --model llama-2-7b --device h100-sxm --batch 8
    """
    from .hw import estimate as closed
    from .hw.cost import cost
    from .hw.devices import load_device
    from .hw.event import EventLevel
    from .hw.result import estimate_document, lines
    from .hw.timeline import perfetto_timeline
    from .workloads.load import load_trace
    from .workloads.parallel import parse_parallel
    from .workloads.techniques import apply_techniques

    if level not in ("closed", "event"):
        raise InputError(f"--level {level}: accepted: closed, event")
    if level == "closed" and (streams != 1 or timeline is not None):
        asked = f"--streams {streams}" if streams != 1 else "--timeline"
        raise InputError(
            f"{asked} with --level closed: nothing contends in the closed form; accepted with --level event"
        )
    if timeline is not None:
        check_writable(timeline)
    simulated = EventLevel(streams, record=timeline is not None) if level == "event" else None
    card, degrees = load_device(device), parse_parallel(parallel, count)
    captured = apply_techniques(load_trace(model), apply or [])
    result = closed.estimate(
        captured, card, closed.Request(batch, prompt, output), degrees, explain=True, level=simulated or cost,
        streams=streams,
    )  # fmt: skip
    document = estimate_document(result, captured, explain=explain or save is not None, event=simulated)
    document["command"] = run_.obj
    if timeline is not None and simulated is not None:
        write_whole(timeline, json_text(perfetto_timeline(simulated, result)))
    if save is not None:
        write_whole(save, json_text(document))

    def say() -> None:
        terminal.estimate_summary(document, explain)
        if further := lines(document, explain):
            terminal.say("", *further)

    answer(document, json_, quiet, say)


@app.command()
def report(
    run_: typer.Context,
    results: Annotated[list[Path], typer.Argument(help="Result files of estimate, place, serve or study.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The PDF; the .html is written beside it.")],
    title: Annotated[str | None, typer.Option(help="Title of the report.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """PDF and HTML from results; several of serve are compared.

    Example: tokenfab report out/study.json -o report.pdf
    """
    from .reports.documents import load_documents
    from .reports.report import write_report

    files = write_report(load_documents(results), output, title=title, command=run_.obj)
    document = {"file": str(files.file), "html": str(files.html), "pages": files.pages, "figures": files.figures}
    answer(document, json_, quiet, lambda: terminal.say(terminal.written(document | {"report": files.file})))


@app.command()
def study(
    run_: typer.Context,
    model: ModelName,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report and the results.")],
    device: Annotated[list[str] | None, typer.Option("--device", "-d", help="Repeatable. Default: 8 GPUs.")] = None,
    batch: Batch = 1,
    prompt: Prompt = 512,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens written per sequence.")] = 128,
    apply: Apply = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """The main job: trace, estimates on every device, placement over a mixed node of them, report.

    Example: tokenfab study llama-2-7b -o out
    """
    from .reports.study import run_study

    with terminal.progress(quiet or json_) as step:
        done = run_study(
            model, output, devices=device, batch=batch, prompt=prompt, output=tokens, techniques=apply or [],
            command=run_.obj, step=step,
        )  # fmt: skip
    document = {
        "report": str(done.report), "html": str(done.report.with_suffix(".html")), "pages": done.pages,
        "results": [str(r) for r in done.results], "wall_s": done.wall_s, "refused": done.refused,
        "placed": done.placement.told,
    }  # fmt: skip
    answer(document, json_, quiet, lambda: terminal.study_summary(done.documents, document))


@app.command()
def validate(
    run_: typer.Context,
    suites: Annotated[list[str] | None, typer.Argument(metavar="[SUITE]...", help="All of them if none.")] = None,
    truth: Annotated[Path, typer.Option(envvar="TOKENFAB_TRUTH", help="Folder of measurements.")] = Path(
        "../shared/truth"
    ),
    save: Annotated[Path | None, typer.Option("-o", "--output", help="A PDF, one page per suite.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Models against measurements; exit code 1 when an error or a coverage misses its bar.

    Example: tokenfab validate gemm-bf16 --truth ../shared/truth
    """
    from .validation.suites import BROKEN
    from .validation.suites import validate as compare

    if save is not None:
        check_writable(save)

    found, skipped = compare(truth, suites or [])
    rows = [c.summary() for c in found]
    document = {"suites": rows, "skipped": skipped, "command": run_.obj}
    if save is not None:
        from .reports.accuracy import accuracy_pdf

        write_whole(save, accuracy_pdf(found, run_.obj))
        document["file"] = str(save)
    answer(document, json_, quiet, lambda: terminal.validation_summary(document))
    unread = any(why.startswith(BROKEN) for why in skipped)
    if unread or any(row["met"] is False or row["coverage_met"] is False for row in rows):
        raise typer.Exit(1)


@app.command()
def measure(
    run_: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for tables and notes.")],
    device_name: Annotated[str | None, typer.Option(help="Name of its folder. Default: what the device says.")] = None,
    suite: Annotated[list[str] | None, typer.Option(help="gemm or attention. Repeatable. Default: both.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Begin nothing after so many; what there is is written.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="A few small shapes.")] = False,
    force: Annotated[bool, typer.Option(help="Replace tables that are there.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time kernels on this machine, as tables that can be held against the models.

    Example: tokenfab measure --out measured --seconds 60
    """
    from .validation.measure import measure as run_kernels

    with terminal.progress(quiet or json_) as step:
        document = run_kernels(
            out, name=device_name, suites=suite or [], quick=quick, seconds=seconds, force=force,
            command=run_.obj, step=step,
        )  # fmt: skip
    answer(document, json_, quiet, lambda: terminal.measure_summary(document))


@app.command()
def calibrate(
    run_: typer.Context,
    device: Annotated[str, typer.Argument(help="Catalogue name or device file, of a GPU.")],
    truth: Annotated[Path, typer.Option(envvar="TOKENFAB_TRUTH", help="Folder of measurements.")] = Path(
        "../shared/truth"
    ),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the device file (.toml) here.")] = None,
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a GPU's own constants to its measured kernels; a device file with them and their intervals.

    Example: tokenfab calibrate l40s --truth measured -o my-l40s.toml
    """
    from .validation.calibrate import calibrate as fit

    with terminal.progress(quiet or json_) as step:
        document = fit(device, truth, output, force=force, step=step) | {"command": run_.obj}
    answer(document, json_, quiet, lambda: terminal.calibration_summary(document))


app.command("place")(place_command)
app.command("serve")(serve_command)
app.command("policies")(policies_command)


# -- published systems -----------------------------------------------------------------------------
@app.command()
def systems(name: Name = None, json_: Json = False, quiet: Quiet = False) -> None:
    """List the published systems, or show one: what it ran and what it claims.

    Example: tokenfab systems flightllm
    """
    from .systems.spec import load_system, system_names

    if name is None:
        found = [load_system(n) for n in system_names()]
        entries = [{"name": s.name, "year": s.year, "claims": len(s.claims), "description": s.description}
                   for s in found]  # fmt: skip
        return listing("systems", entries, json_, quiet)
    fields = load_system(name).model_dump(exclude_none=True)
    answer(fields, json_, quiet, lambda: terminal.fields(fields))


@app.command()
def reproduce(
    run_: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="[SYSTEM]...", help="All of them if none.")] = None,
    save: Annotated[Path | None, typer.Option("-o", "--output", help="A PDF; the .html is written beside it.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """What published systems claim, beside what the models say.

    Example: tokenfab reproduce flightllm
    """
    from .systems.runner import reproduce as run_system
    from .systems.spec import load_system, system_names

    if save is not None:
        check_writable(save)
    chosen = [load_system(n) for n in dict.fromkeys(names or system_names())]
    with terminal.progress(quiet or json_) as step:
        rows = [row for system in chosen for row in run_system(system, step)]
    if save is not None:
        from .reports.reproduction import write_reproduction

        write_reproduction(rows, save, run_.obj)
    answer(rows, json_, quiet, lambda: terminal.reproduction(rows))


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"tokenfab {__version__}")
        raise typer.Exit
