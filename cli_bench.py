"""The command group ``bench``: time this machine beside others' code."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_common import Json, Quiet, answer
from .reports import terminal

bench = typer.Typer(help="Time this machine beside others' code.", rich_markup_mode=None, add_completion=False)


@bench.command("kernels")
def bench_kernels(
    run_: typer.Context,
    bits: Annotated[str, typer.Option(help="Bits of a weight, 1 to 4, as 1,2,4.")] = "1,2,4",
    tokens: Annotated[str, typer.Option(help="Vectors multiplied at once.")] = "1,8,64",
    threads: Annotated[str, typer.Option(help="Threads, as 1,2.")] = "1,2",
    size: Annotated[int, typer.Option(help="Rows and columns of the weights.")] = 4096,
    repeats: Annotated[int, typer.Option(help="Interleaved samples of each.")] = 9,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Low-bit CPU kernels beside ONNX Runtime, torch and the CPU model's prediction.

    Example: tokenfab bench kernels --bits 2,4 --tokens 1
    """
    from .validation.bench_kernels import bench as run_bench

    with terminal.progress(quiet or json_) as step:
        document = run_bench(bits, tokens, threads, size, repeats=repeats, step=step) | {"command": run_.obj}
    answer(document, json_, quiet, lambda: terminal.bench_summary(document))
