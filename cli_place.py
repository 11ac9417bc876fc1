"""The command ``place``: a model on several devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_common import Json, Quiet, answer
from .files import check_writable, json_text, write_whole


def place(
    run_: typer.Context,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Preset, hf:PATH/config.json, trace file or preset file.")
    ],
    device: Annotated[list[str] | None, typer.Option("--device", "-d", help="NAME or NAME:COUNT. Repeatable.")] = None,
    node: Annotated[Path | None, typer.Option(help="Node file (.toml): devices and the networks between them.")] = None,
    objective: Annotated[
        str, typer.Option(help="latency, throughput, energy, cost, loss, or weights as latency=1,cost=1000.")
    ] = "latency",
    limit: Annotated[
        list[str] | None, typer.Option(help="As tpot=0.05,energy=100, bits=6 (at least). Repeatable.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences.")] = 1,
    prompt: Annotated[int, typer.Option(help="Prompt tokens per sequence.")] = 512,
    output: Annotated[int, typer.Option(help="Tokens written per sequence.")] = 128,
    apply: Annotated[
        list[str] | None, typer.Option("--apply", help="Technique, as name:key=value,key=value. Repeatable.")
    ] = None,
    formats: Annotated[
        str,
        typer.Option(help="Weight formats to choose from per operator, as fp16,int8,int4-g128; with a quality limit."),
    ] = "",
    sensitivity: Annotated[
        Path | None, typer.Option(help="TOML: BLOCK.OPERATOR = weight of its loss. Default: 1 each.")
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="OPERATOR=DEVICE, =PREFILL|DECODE or =DEVICE@FORMAT. Repeatable.")
    ] = None,
    together: Annotated[list[str] | None, typer.Option(help="Operators A,B in one place. Repeatable.")] = None,
    split: Annotated[bool, typer.Option(help="Operators may be divided over devices.")] = True,
    move: Annotated[bool, typer.Option(help="Operators may run elsewhere at decode than at prefill.")] = True,
    seconds: Annotated[float, typer.Option("--time-limit", help="CPU seconds.")] = 10.0,
    gap: Annotated[float, typer.Option(help="Relative gap to the bound at which to stop.")] = 0.005,
    solver: Annotated[str | None, typer.Option(help="highs or cbc. Default: highs where it is.")] = None,
    save: Annotated[Path | None, typer.Option("-o", "--save", help="Write the result here.")] = None,
    timeline: Annotated[Path | None, typer.Option(help="Write the replay for Perfetto's viewer here.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """The best placement of a request on several devices, with its bound; exit code 1 when nothing fits.

    Example: tokenfab place --model llama-2-70b --device h100-sxm --device h20:2 --batch 16
    """
    from .hw.estimate import Request
    from .mapping.node import read_node
    from .mapping.place import parse_pins
    from .mapping.place import place as best
    from .mapping.quality import read_sensitivity
    from .mapping.timeline import perfetto_placement
    from .reports.placement import placement_summary
    from .workloads.load import load_trace
    from .workloads.techniques import apply_techniques

    if timeline is not None:
        check_writable(timeline)
    events: list[dict[str, Any]] = []
    listed, networks = read_node(node) if node is not None else ([], [])
    document = best(
        apply_techniques(load_trace(model), apply or []), [*listed, *(device or [])], Request(batch, prompt, output),
        networks=networks, objective=objective, limits=limit or [], pins=parse_pins(pin or []),
        together=[group.split(",") for group in together or []], split=split, move=move, time_limit=seconds, gap=gap,
        solver=solver, formats=[name for name in formats.split(",") if name],
        sensitivity=read_sensitivity(sensitivity) if sensitivity is not None else None,
        watch=lambda built, played: events.append(perfetto_placement(built, played)),
    ) | {"command": run_.obj}  # fmt: skip
    if save is not None:
        write_whole(save, json_text(document))
    if timeline is not None and events:
        write_whole(timeline, json_text(events[0]))
    answer(document, json_, quiet, lambda: placement_summary(document))
    if document["status"] in ("infeasible", "unknown"):
        raise typer.Exit(1)
