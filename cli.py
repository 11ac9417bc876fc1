"""The command line: thin, no modelling. Every command takes --json and --quiet.

Exit codes: 0 done; 1 ran and the answer is no; 2 the input was wrong (one line on stderr). Heavy
libraries are imported inside the commands, so that ``tokenfab --help`` answers at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import InputError

app = typer.Typer(
    name="tokenfab",
    help="What a language model costs on given hardware, in seconds, joules and dollars, and how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but the answer's files and errors.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Preset, hf:PATH/config.json, trace file or preset file.")]
DeviceName = Annotated[str, typer.Option("--device", "-d", help="Catalogue name or device file.")]
Batch = Annotated[int, typer.Option(help="Sequences.")]
Prompt = Annotated[int, typer.Option(help="Prompt tokens per sequence.")]
Output = Annotated[int, typer.Option(help="Tokens written per sequence.")]
Apply = Annotated[list[str] | None, typer.Option("--apply", help="Technique, as name:key=value,key=value. Repeatable.")]
Count = Annotated[int | None, typer.Option(help="Devices; without --parallel they share every layer (tp).")]
ParallelText = Annotated[str | None, typer.Option("--parallel", help="Degrees, as tp=4,pp=2,dp=1.")]
Name = Annotated[str | None, typer.Argument(help="Show this one with all its fields.")]


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code. Wrong input prints one line on stderr."""
    try:
        code = app(arguments, prog_name="tokenfab", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except InputError as error:
        return _fail(str(error))
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return _fail("interrupted")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        format_message = getattr(error, "format_message", None)  # a usage error of the option parser
        if format_message is None:
            raise
        return _fail(" ".join(str(format_message()).split()) + " (see --help)")


def _fail(message: str) -> int:
    print(f"tokenfab: {message}", file=sys.stderr)
    return 2


# -- printing ------------------------------------------------------------------------------------
def _emit(document: Any) -> None:
    json.dump(_finite(document), sys.stdout, indent=1, allow_nan=False, ensure_ascii=False)
    sys.stdout.write("\n")


def _finite(value: Any) -> Any:
    """JSON has no infinity: such a number becomes null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _listing(kind: str, entries: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        return _emit(entries)
    from .reports.terminal import listing

    listing(kind, entries)


def _show(fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return _emit(fields)
    from .reports import terminal

    terminal.fields(_finite(fields))


def _write_json(path: Path, document: Any) -> None:
    from .files import write_whole

    write_whole(path, json.dumps(_finite(document), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def _command() -> str:
    return " ".join(["tokenfab", *sys.argv[1:]])


# -- what there is -------------------------------------------------------------------------------
@app.command()
def models(name: Name = None, json_: Json = False, quiet: Quiet = False) -> None:
    """List the model presets, or show one. Example: tokenfab models llama-2-7b"""
    from .models.config import load_config, model_names

    if name is not None:
        return _show(load_config(name).model_dump(exclude_none=True), json_)
    _listing("models", [{"name": n, "description": load_config(n).description} for n in model_names()], json_)


@app.command()
def devices(name: Name = None, json_: Json = False, quiet: Quiet = False) -> None:
    """List the device catalogue, or show one with every number's source. Example: tokenfab devices h100-sxm"""
    from .hw.devices import device_names, load_device

    if name is not None:
        return _show(load_device(name).to_dict(), json_)
    entries = []
    for n in device_names():
        device = load_device(n)
        entries.append({"name": n, "description": device.description, "kind": device.kind, "year": device.year})
    _listing("devices", entries, json_)


@app.command()
def techniques(name: Name = None, json_: Json = False, quiet: Quiet = False) -> None:
    """List the techniques, or show one with its parameters. Example: tokenfab techniques weight-only"""
    from .errors import unknown_name
    from .workloads.techniques import techniques as known

    if name is None:
        return _listing("techniques", [{"name": t.name, "description": t.description} for t in known().values()], json_)
    if name not in known():
        raise unknown_name("technique", name, known())
    found = known()[name]
    parameters = {
        key: {"default": p.default, "meaning": p.meaning, "choices": list(p.choices), "range": [p.low, p.high]}
        for key, p in found.parameters.items()
    }
    _show(
        {"name": found.name, "description": found.description, "source": found.source, "parameters": parameters}, json_
    )


# -- the spine -----------------------------------------------------------------------------------
@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="Preset, hf:PATH/config.json, trace file or preset file.")],
    batch: Annotated[int | None, typer.Option(help="Evaluate at this many sequences.")] = None,
    query: Annotated[int | None, typer.Option(help="New tokens per sequence.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens already in the KV cache.")] = None,
    apply: Apply = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the trace here (.json).")] = None,
    chakra: Annotated[
        Path | None, typer.Option(help="Also write a Chakra execution trace (JSON) at the point.")
    ] = None,
    perfetto: Annotated[
        Path | None, typer.Option(help="Also write the operator graph at the point for Perfetto.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Capture a model from PyTorch into a trace. Example: tokenfab trace llama-2-7b --batch 1 --query 512 -o t.json"""
    from .workloads.export import chakra_json, perfetto_json
    from .workloads.load import load_trace
    from .workloads.techniques import apply_techniques
    from .workloads.trace import check_point

    captured = apply_techniques(load_trace(model), apply or [])
    at = {"batch": 1 if batch is None else batch, "query": 1 if query is None else query, "context": context or 0}
    check_point(captured, at["batch"], at["query"], at["context"])
    if output is not None:
        captured.save(output)
    for path, export in ((chakra, chakra_json), (perfetto, perfetto_json)):
        if path is not None:
            _write_json(path, export(captured, **at))
    document = {
        "model": captured.model,
        "parameters": captured.parameters,
        "operators": sum(len(b.operators) for b in captured.blocks),
        "executions": sum(count for _, count in captured.operators()),
        "flops": float(captured.total("flops")(at["batch"], at["query"], at["context"])),
        "bytes": float(captured.total("bytes")(at["batch"], at["query"], at["context"])),
        "weights_bytes": captured.weights_bytes,
        "kv_bytes_per_token": captured.kv_bytes_per_token,
        "capture_s": captured.provenance.get("capture_s", 0.0),
        "point": at,
        "formulas": {"flops": str(captured.total("flops")), "bytes": str(captured.total("bytes"))},
        "applied": list(captured.applied),
        "file": str(output) if output else None,
    }
    if json_:
        _emit(document)
    elif not quiet:
        from .reports.terminal import si, trace_summary

        rows = []
        for block in captured.blocks:
            for op in block.operators:
                flops, moved = (float(x(*at.values())) * block.repeat for x in (op.flops, op.moved()))
                rows.append([block.name, op.name, op.kind, str(block.repeat), si(flops, ""), si(moved, "B")])
        trace_summary(document, rows)


@app.command()
def estimate(
    model: Model,
    device: DeviceName,
    count: Count = None,
    parallel: ParallelText = None,
    batch: Batch = 1,
    prompt: Prompt = 512,
    output: Output = 128,
    apply: Apply = None,
    explain: Annotated[bool, typer.Option(help="Per-operator times too.")] = False,
    save: Annotated[
        Path | None, typer.Option("-o", "--save", help="Write the result (JSON) here, for tokenfab report.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cost of one request batch. Example: tokenfab estimate --model llama-2-7b --device h100-sxm --batch 8"""
    from .hw.devices import load_device
    from .hw.estimate import Request
    from .hw.estimate import estimate as compute
    from .hw.result import estimate_document
    from .workloads.load import load_trace
    from .workloads.parallel import parse_parallel
    from .workloads.techniques import apply_techniques

    card, degrees = load_device(device), parse_parallel(parallel, count)
    captured = apply_techniques(load_trace(model), apply or [])
    result = compute(captured, card, Request(batch, prompt, output), degrees, explain=True)
    document = estimate_document(result, captured, explain=explain or save is not None)
    if save is not None:
        _write_json(save, document)
    if json_:
        _emit(document)
    elif not quiet:
        from .reports.terminal import estimate_summary

        estimate_summary(document, explain)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Result files of estimate or study.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The PDF; the .html is written beside it.")],
    title: Annotated[str | None, typer.Option(help="Title of the report.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """PDF and HTML from results. Example: tokenfab report out/study.json -o report.pdf"""
    from .reports.documents import load_documents
    from .reports.report import write_report

    files = write_report(load_documents(list(results)), output, title=title, command=_command())
    if json_:
        _emit({"file": str(files.file), "html": str(files.html), "pages": files.pages, "figures": files.figures})
    elif not quiet:
        print(f"{files.file}: {files.pages} pages, {files.figures} figures; the same as {files.html}")


@app.command()
def study(
    model: Annotated[str, typer.Argument(help="Preset, hf:PATH/config.json, trace file or preset file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report and the results.")],
    device: Annotated[
        list[str] | None, typer.Option("--device", "-d", help="Device; repeatable. Default: eight GPUs.")
    ] = None,
    batch: Batch = 1,
    prompt: Prompt = 512,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens written per sequence.")] = 128,
    apply: Apply = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """The main job: trace, estimates on every device, report. Example: tokenfab study llama-2-7b -o out"""
    from .reports.study import run_study
    from .reports.terminal import progress, study_summary

    with progress(quiet or json_) as step:
        done = run_study(
            model, output, devices=device, batch=batch, prompt=prompt, output=tokens, techniques=apply or [],
            command=_command(), step=step,
        )  # fmt: skip
    if json_:
        _emit(
            {
                "report": str(done.report),
                "results": [str(r) for r in done.results],
                "wall_s": done.wall_s,
                "pages": done.pages,
            }
        )
    elif not quiet:
        study_summary(done.documents)
        html = done.report.with_suffix(".html")
        print(f"\n{done.report}: {done.pages} pages, made in {done.wall_s:.1f} s; the same as {html}")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"tokenfab {__version__}")
        raise typer.Exit
