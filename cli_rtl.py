"""The command group ``rtl``: run the tests of hardware units, compare them with their cycle models, synthesise them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_common import Json, Quiet, answer
from .reports import terminal

rtl = typer.Typer(
    help="Hardware units: run their tests, compare them with their cycle models, synthesise them.",
    rich_markup_mode=None, add_completion=False,
)  # fmt: skip
Units = Annotated[list[str] | None, typer.Argument(metavar="[UNIT]...", help="All of them if none.")]


@rtl.command("test")
def rtl_test(
    units: Units = None,
    simulator: Annotated[list[str] | None, typer.Option(help="icarus or verilator. Repeatable. Default: both.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """All cocotb tests of the units; exit code 1 when one fails.

    Example: tokenfab rtl test sparse_dsp_chain --simulator icarus
    """
    from .rtl.jobs import test_rows
    from .rtl.units import chosen_units

    with terminal.progress(quiet or json_) as step:
        rows = test_rows(chosen_units(units or []), simulator or [], step)
    answer(rows, json_, quiet, lambda: terminal.rtl_tests(rows))
    if any(row["failed"] for row in rows):
        raise typer.Exit(1)


@rtl.command("cycles")
def rtl_cycles(
    units: Units = None,
    cases: Annotated[int, typer.Option(help="Random cases per unit.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the random cases and parameter sets.")] = 1,
    simulator: Annotated[str, typer.Option(help="icarus or verilator.")] = "icarus",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Random cases through RTL and cycle model; exit code 1 when a value or a number of cycles differs.

    Example: tokenfab rtl cycles sparse_dsp_chain --cases 500 --seed 2
    """
    from .rtl.jobs import cycles_rows
    from .rtl.units import chosen_units

    with terminal.progress(quiet or json_) as step:
        rows = cycles_rows(chosen_units(units or []), simulator, cases, seed, step)
    answer(rows, json_, quiet, lambda: terminal.rtl_cycles(rows))
    if any(row["mismatches"] for row in rows):
        raise typer.Exit(1)


@rtl.command("area")
def rtl_area(
    units: Units = None,
    liberty: Annotated[Path | None, typer.Option(help="Liberty file. Default: an installed one, if any.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Per operation, beside published ratios.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """FPGA primitives and standard cells of the units, by Yosys; or their area per operation.

    Example: tokenfab rtl area sparse_dsp_chain --liberty osu018_stdcells.lib
    """
    from .rtl.compare import compare_rows
    from .rtl.jobs import area_rows
    from .rtl.units import chosen_units

    with terminal.progress(quiet or json_) as step:
        rows = (compare_rows if compare else area_rows)(chosen_units(units or []), liberty, step)
    answer(rows, json_, quiet, lambda: (terminal.rtl_comparison if compare else terminal.rtl_area)(rows))
