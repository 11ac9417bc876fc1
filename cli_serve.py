"""The command ``serve``: a stream of requests on replicas of an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_common import Json, Name, Quiet, answer, named
from .files import check_writable, json_text, write_whole


def serve(
    run_: typer.Context,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Preset, hf:PATH/config.json, trace file or preset file.")
    ],
    device: Annotated[str, typer.Option("--device", "-d", help="Device of the catalogue, or a device file.")],
    requests: Annotated[
        str, typer.Option(help="FILE.csv, FILE.jsonl, or poisson:rate=2,n=1000,prompt=512,output=128 and the like.")
    ],
    policy: Annotated[str, typer.Option(help="NAME or NAME:key=value,… (tokenfab policies lists them).")] = "vllm",
    count: Annotated[int | None, typer.Option(help="Devices; a multiple of tp × pp adds replicas.")] = None,
    parallel: Annotated[str | None, typer.Option(help="Of one replica, as tp=4,pp=2; dp=N: replicas.")] = None,
    engine: Annotated[str, typer.Option(help="Engine profile: overheads, memory, limits.")] = "ideal",
    slo: Annotated[str | None, typer.Option(help="Limits of goodput, as ttft=0.5,tpot=0.05 (seconds).")] = None,
    slowdown: Annotated[
        str | None, typer.Option(help="Limits of p50/p90/p99 over the same request alone, as ttft=2/3/6,tpot=1.25/1.5.")
    ] = None,
    apply: Annotated[
        list[str] | None, typer.Option("--apply", help="Technique, as name:key=value,key=value. Repeatable.")
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option(help="As replica=3,at=10,for=60 or link=NAME,at=…,for=…,factor=0.1. Repeatable.")
    ] = None,
    level: Annotated[str, typer.Option(help="What costs iterations: closed (form) or event (simulation).")] = "closed",
    per_host: Annotated[int, typer.Option(help="Replicas on one host's link; needs --level event.")] = 1,
    find: Annotated[
        float | None,
        typer.Option("--capacity", help="Highest rate at which this share of requests keeps --slo (and --slowdown)."),
    ] = None,
    timeline: Annotated[Path | None, typer.Option(help="Write a Perfetto timeline here (.json).")] = None,
    interval: Annotated[bool, typer.Option(help="Repeat at both ends of the cost model's interval.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad records of a request file out.")] = False,
    save: Annotated[Path | None, typer.Option("-o", "--save", help="Write the result here.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve a stream of requests: latencies, goodput, energy, cost.

    Example: tokenfab serve --model llama-2-7b -d a100-80g-sxm --requests poisson:rate=2,n=500,prompt=512,output=128
    """
    from dataclasses import asdict

    from .reports.serving import serving_summary
    from .serving.asked import asked
    from .serving.capacity import capacity
    from .serving.faults import parse_fault
    from .serving.run import parse_slo
    from .serving.run import serve as simulate
    from .serving.slowdown import parse_slowdowns
    from .serving.timeline import timeline as draw

    limits, slower = parse_slo(slo), parse_slowdowns(slowdown)
    faults = [parse_fault(text) for text in fault or []]
    log, cluster = asked(
        model, device, requests, apply=apply or [], count=count, parallel=parallel, engine=engine, seed=seed,
        skip_bad=skip_bad, level=level, per_host=per_host,
    )  # fmt: skip
    for path in filter(None, (save, timeline)):
        check_writable(path)
    document, simulation = simulate(log, cluster, policy, slo=limits, seed=seed, faults=faults, interval=interval)
    document["command"] = run_.obj
    if slower is not None:
        document["slowdown"] = slower.told(simulation, slower.alone(log, cluster))
    if find is not None:
        document["capacity"] = asdict(capacity(log, cluster, policy, limits, find, seed, slower))
    if timeline is not None:
        write_whole(timeline, json_text(draw(simulation)))
    if save is not None:
        write_whole(save, json_text(document))
    answer(document, json_, quiet, lambda: serving_summary(document))
    if find is not None and not document["capacity"]["rate"]:
        raise typer.Exit(1)


def policies(name: Name = None, json_: Json = False, quiet: Quiet = False) -> None:
    """List the policies of tokenfab serve, or show one with its parameters.

    Example: tokenfab policies sarathi
    """
    from .serving.policies import policies as known

    named("policy", "policies", known(), name, json_, quiet)
