"""Area per operation at equal throughput: what one multiply-accumulate per cycle costs in each unit.

A unit's recipe says what to compare in ``[[compare]]`` tables: ``parameters``, ``formats`` (each with ``weight``,
``activation`` and, where a paper says so, ``published`` with its ``source``), and in one unit of all
``baseline = true``. Arrays are synthesised module by module, each module once, so that whole arrays with their
control, skew and result registers are counted, and mapped to one liberty file; throughput is the cycle model's,
between two long products. Ratios compare units in one library; square millimetres they are not.

``python -m tokenfab.rtl.compare`` writes the ratios to ``areas.json``, from which cost models read them
(:mod:`.areas`); a test makes them again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import json_text, write_whole
from .area import cell_areas, find_liberty, nand2_area
from .areas import AREAS, macs_per_cycle
from .jobs import everywhere
from .parameters import Parameters
from .units import Unit, chosen_units
from .yosys import YosysError, synthesise

Row = dict[str, Any]
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
