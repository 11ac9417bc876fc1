"""What a unit costs: FPGA primitives (Xilinx UltraScale+) and standard cells of a liberty file, by Yosys.

Of ``synth_xilinx -family xcup`` the DSP48E2 count is right, but Yosys packs only the multiplier into one:
registers and cascade adders of a slice are told as flip-flops and LUTs, so those counts are upper bounds.
``-family xc7`` packs whole slices; ``cascades`` counts their PCIN-PCOUT links. A liberty file gives relative
areas: units compared in the same library. It says nothing of another process.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .units import Unit
from .yosys import YosysError, read_design, synthesise

LIBERTY_PLACES = (
    "/usr/share/qflow/tech/osu018/osu018_stdcells.lib",
    "/usr/share/qflow/tech/osu035/osu035_stdcells.lib",
    "/usr/share/qflow/tech/osu050/osu05_stdcells.lib",
)
"""Where Debian's packages qflow-tech-* put theirs."""
MEMORIES = ("RAMB18E2", "RAMB36E2", "RAMB18E1", "RAMB36E1")


def find_liberty(given: Path | None) -> Path | None:
    """``given`` if it is a readable file, else one that is installed, else None. Raises ``InputError``."""
    if given is None:
        return next((Path(p) for p in LIBERTY_PLACES if Path(p).is_file()), None)
    if not given.is_file():
        raise InputError(f"{given}: no such liberty file; apt-get install qflow-tech-osu018 has one")
    if '"' in str(given) or not re.search(r"^\s*library\s*\(", given.read_text(errors="replace"), re.MULTILINE):
        raise InputError(f"{given}: not a liberty file; wanted text with a library (...) group")
    return given.resolve()


def area(unit: Unit, parameters: Mapping[str, int], liberty: Path | None = None) -> dict[str, Any]:
    """Counts for one parameter set.

    ``dsp``, ``lut``, ``ff``, ``bram``, ``srl``, ``carry``: UltraScale+ primitives. ``cells``: standard cells of
    ``liberty``, or generic gates without it; ``area``: in the library's unit, None without it;
    ``gate_equivalents``: area over that of its smallest NAND2. Raises ``InputError`` without pyosys.
    """
    xilinx = [f"synth_xilinx -flatten -family xcup -noiopad -top {unit.top}"]
    found = Counter(kind for kind, _ in netlist(unit, parameters, xilinx))
    gates = [f"synth -flatten -top {unit.top}"]
    if liberty is not None:
        gates += [f'dfflibmap -liberty "{liberty}"', f'abc -liberty "{liberty}"', "opt_clean"]
    try:
        mapped = Counter(kind for kind, _ in netlist(unit, parameters, gates, liberty))
    except YosysError as error:
        if liberty is None:
            raise
        raise InputError(f"{liberty}: Yosys cannot map to this library: {str(error).splitlines()[-1]}") from None
    sizes = cell_areas(liberty) if liberty is not None else {}
    if lacking := sorted(kind for kind in mapped if sizes and kind not in sizes):
        raise InputError(f"{liberty}: has no cell for {', '.join(lacking)}")
    total = sum(sizes[kind] * count for kind, count in mapped.items()) if sizes else None
    nand2 = nand2_area(sizes)
    return {
        "unit": unit.name, "parameters": dict(parameters), "cells": sum(mapped.values()), "area": total,
        "gate_equivalents": total / nand2 if total is not None and nand2 else None,
        "liberty": liberty.name if liberty is not None else None,
        "dsp": found["DSP48E2"], "lut": sum(n for kind, n in found.items() if kind.startswith("LUT")),
        "ff": sum(n for kind, n in found.items() if re.fullmatch("FD[RSCP]E(_1)?", kind)),
        "srl": sum(n for kind, n in found.items() if kind.startswith("SRL")),
        "carry": sum(n for kind, n in found.items() if kind.startswith("CARRY")),
        "bram": sum(found[kind] for kind in MEMORIES),
    }  # fmt: skip


def netlist(
    unit: Unit, parameters: Mapping[str, int], commands: list[str], liberty: Path | None = None
) -> list[tuple[str, int]]:
    """(type, bits of PCIN that another cell drives) of every cell of the unit after ``commands``."""
    marker = "netlist as JSON:"
    told = synthesise(
        [*read_design(unit, parameters), *commands, f"log {marker}", "write_json"],
        [*unit.sources, *([liberty] if liberty else [])],
    )
    text = told.rpartition(marker)[2]
    modules = json.loads(text[text.index("\n{") : text.rindex("}") + 1])["modules"]
    (top,) = (m for m in modules.values() if m["attributes"].get("top"))
    cells = [cell for cell in top["cells"].values() if cell["type"] != "$scopeinfo"]
    return [(c["type"], sum(isinstance(bit, int) for bit in c["connections"].get("PCIN", []))) for c in cells]


def cascades(unit: Unit, parameters: Mapping[str, int]) -> tuple[int, int]:
    """DSP48E1 slices, and how many take PCIN from another, as Yosys infers them for 7-series."""
    cells = netlist(unit, parameters, [f"synth_xilinx -flatten -family xc7 -noiopad -top {unit.top}"])
    links = [bits > 0 for kind, bits in cells if kind == "DSP48E1"]
    return len(links), sum(links)


def nand2_area(sizes: Mapping[str, float]) -> float | None:
    """The smallest NAND2 among cells of a library, the gate that areas are counted in."""
    return min((size for kind, size in sizes.items() if re.match(r"NAND2|nand2|.*__nand2_", kind)), default=None)


def cell_areas(liberty: Path) -> dict[str, float]:
    """Area of every cell of a liberty file. Raises ``InputError`` when it has none."""
    text = re.sub(r"/\*.*?\*/", "", liberty.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    found = {}
    for block in re.split(r"\bcell\s*\(", text)[1:]:
        size = re.search(r"\barea\s*:\s*([0-9.eE+-]+)", block)
        if size:
            found[block.partition(")")[0].strip().strip('"')] = float(size[1])
    if not found:
        raise InputError(f"{liberty}: no cell has an area")
    return found
