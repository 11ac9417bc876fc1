"""Area per operation at equal throughput: what one multiply-accumulate per cycle costs in each unit.

A unit's recipe says what to compare in ``[[compare]]`` tables: ``parameters``, ``formats`` (each with ``weight``,
``activation`` and, where a paper says so, ``published`` with its ``source``), and in one unit of all
``baseline = true``. Arrays are synthesised module by module, each module once, so that whole arrays with their
control, skew and result registers are counted, and mapped to one liberty file; throughput is the cycle model's,
between two long products. Ratios compare units in one library; square millimetres they are not.

:func:`published_areas` reads the ratios that were made so (``areas.json``), which cost models use; a test makes
them again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import json_text, write_whole
from .area import cell_areas, find_liberty, nand2_area
from .jobs import everywhere
from .parameters import Parameters
from .units import ROOM, Unit, chosen_units
from .yosys import YosysError, synthesise

Row = dict[str, Any]
AREAS = ROOM / "areas.json"
LONG = {"m": 4096, "n": 4096, "k": 4096}
"""A product that fills every array evenly."""
NO_LIBERTY = "areas are compared in a liberty file: --liberty FILE, or apt-get install qflow-tech-osu018"


def compare_rows(units: Sequence[Unit], liberty: Path | None, step: Callable[[str], None]) -> list[Row]:
    """One row per ``[[compare]]`` table and format of ``units``.

    ``macs_per_cycle``; ``area`` of the whole array in units of the library; ``gates_per_mac``: NAND2 gates per
    multiply-accumulate per cycle; ``relative``: those over the baseline's; ``published``: the ratio a paper has,
    or None, and its ``source``. Raises ``InputError`` without pyosys, without a liberty file, or with one that
    has no NAND2.
    """
    library = find_liberty(liberty)
    if library is None:
        raise InputError(NO_LIBERTY)
    gate = nand2_area(cell_areas(library))
    if gate is None:
        raise InputError(f"{library}: has no NAND2 cell to count areas in")
    base_unit, base = baseline()
    tables = [(unit, table) for unit in units for table in unit.recipe.get("compare", [])]
    if (base_unit.name, base) not in [(unit.name, table) for unit, table in tables]:
        tables.append((base_unit, base))

    def job(what: tuple[Unit, Mapping[str, Any]]) -> float:
        unit, table = what
        size = array_area(unit, unit.check(table["parameters"]), library)
        step(unit.name)
        return size

    rows = []
    for (unit, table), size in zip(tables, everywhere(job, tables), strict=True):
        for format in table["formats"]:
            rate = macs_per_cycle(unit, unit.check(table["parameters"]), format)
            rows.append({
                "unit": unit.name, "weight": format["weight"], "activation": format["activation"],
                **({"sparsity": format["sparsity"]} if "sparsity" in format else {}),
                "parameters": dict(table["parameters"]), "macs_per_cycle": rate, "area": size,
                "gates_per_mac": size / gate / rate, "relative": 0.0, "baseline": table is base,
                "published": format.get("published"), "source": format.get("source"), "liberty": library.name,
            })  # fmt: skip
    whole = next(row["gates_per_mac"] for row in rows if row["baseline"])
    for row in rows:
        row["relative"] = row["gates_per_mac"] / whole
    return [row for row in rows if row["unit"] in {unit.name for unit in units}]


def baseline() -> tuple[Unit, Mapping[str, Any]]:
    """The unit and the table that all others are compared with."""
    (found,) = [(u, t) for u in chosen_units([]) for t in u.recipe.get("compare", []) if t.get("baseline")]
    return found


def macs_per_cycle(unit: Unit, parameters: Parameters, format: Mapping[str, Any]) -> float:
    """Multiply-accumulates per cycle of a product that goes on: products of zeros that are skipped count too."""
    words = {key: format[key] for key in ("weight", "activation", "sparsity") if key in format}
    twice = LONG | {"m": 2 * LONG["m"]}
    more = unit.cycles(twice, words, parameters) - unit.cycles(LONG, words, parameters)
    return float(LONG["m"] * LONG["n"] * LONG["k"] / more)


def array_area(unit: Unit, parameters: Parameters, liberty: Path) -> float:
    """Area of the cells of an array in the unit of ``liberty``. Raises ``InputError`` as :func:`.area.area`."""
    files = " ".join(f'"{p}"' for p in unit.sources)
    chosen = " ".join(f"-chparam {name} {value}" for name, value in parameters.items())
    marker = "area as JSON:"
    try:
        told = synthesise(
            [
                f"read_verilog -sv {files}", f"hierarchy -check -top {unit.top} {chosen}", f"synth -top {unit.top}",
                f'dfflibmap -liberty "{liberty}"', f'abc -liberty "{liberty}"', "opt_clean",
                f"log {marker}", f'stat -json -liberty "{liberty}"',
            ],
            [*unit.sources, liberty],
        )  # fmt: skip
    except YosysError as error:
        raise InputError(f"{liberty}: Yosys cannot map to this library: {str(error).splitlines()[-1]}") from None
    text = told.rpartition(marker)[2]
    report = json.loads(text[text.index("{") : text.rindex("}") + 1])
    inside = {kind for module in report["modules"].values() for kind in module["num_cells_by_type"]}
    if lacking := sorted(kind for kind in inside if re.match(r"\$_|\\\$_", kind)):
        raise InputError(f"{liberty}: has no cell for {', '.join(lacking)}")
    return float(report["design"]["area"])


@cache
def kept_areas() -> tuple[Row, ...]:
    """The rows of ``areas.json``: unit, formats, parameters, ``gates_per_mac`` and ``relative``."""
    return tuple(json.loads(AREAS.read_text(encoding="utf-8"))["rows"])


def relative_area(unit: str, format: Mapping[str, str]) -> float:
    """Area of one multiply-accumulate per cycle in ``unit`` over that of the baseline's (binary16 by binary16).

    ``format``: ``weight``, ``activation``, ``sparsity``, as of the unit's ``cycles``. Raises ``InputError``
    for a pair that nobody compared.
    """
    rows = [row for row in kept_areas() if row["unit"] == unit]
    for row in rows:
        if all(row.get(key) == value for key, value in format.items()):
            return float(row["relative"])
    have = ", ".join(f"{row['weight']} by {row['activation']}" for row in rows) or "nothing"
    raise InputError(f"no area of {unit} for {' by '.join(format.values())}; compared: {have}")


def write_areas(liberty: Path | None = None) -> None:
    """Make ``areas.json`` again."""
    rows = compare_rows(chosen_units([]), liberty, lambda name: None)
    keys = ("unit", "weight", "activation", "sparsity", "parameters", "macs_per_cycle", "gates_per_mac", "relative")
    kept = [{key: _rounded(row[key]) for key in keys if key in row} for row in rows]
    write_whole(AREAS, json_text({"liberty": rows[0]["liberty"], "rows": kept}))


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    write_areas()
