"""Proofs of a unit against a direct statement of what it computes: its ``formal/direct.sv``.

That file holds a module ``direct`` that instantiates the unit, computes the same in the plainest way, and
asserts that both agree; its inputs are free. Parameters are those of ``[[direct]]`` tables in ``unit.toml``,
and ``frames`` is the number of cycles looked at, from any state of the registers. The search is ABC's
(bounded model checking), which comes with pyosys.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from ..errors import InputError
from ..files import json_text, write_whole
from .flow import verdict_file
from .units import ROOM, Unit
from .yosys import LIMIT_S, YosysError, yosys

COMMANDS = [
    "proc", "flatten", "async2sync", "chformal -lower", "opt -full", "wreduce", "opt -full", "techmap", "opt -full",
    "dffunmap", "aigmap", "opt_clean",
]  # fmt: skip
FOUND = re.compile(r"was asserted in frame (\d+)")
NOT_FOUND = re.compile(r"No output asserted in (\d+) frames")


def abc_program() -> Path:
    """ABC as pyosys brings it, or as it is installed. Raises ``InputError`` where there is none."""
    spec = importlib.util.find_spec("pyosys")
    places = [Path(p) / "yosys-abc" for p in (spec.submodule_search_locations or [])] if spec else []
    if found := shutil.which("yosys-abc"):
        places.append(Path(found))
    for place in places:
        if place.is_file():
            return place
    raise InputError("yosys-abc is not installed; pip install 'tokenfab[rtl]' has it with pyosys")


def prove_direct(unit: Unit, table: Mapping[str, int], sources: list[Path] | None = None) -> int:
    """Prove ``unit`` equal to its direct statement with the parameters of ``table``; returns the cycles looked at.

    ``sources`` replaces the unit's own (mutants: then the proof must fail). Raises ``YosysError`` on a
    counter-example, with the cycle, and when the search ends early.
    """
    given = dict(table)
    frames = given.pop("frames")
    said = _search([*(sources or unit.sources), unit.folder / "formal" / "direct.sv"], given, frames)
    if found := FOUND.search(said):
        raise YosysError(f"{unit.name} differs from its direct statement in cycle {found[1]}, with {given}")
    if (none := NOT_FOUND.search(said)) is None or int(none[1]) < frames:
        raise YosysError(f"the search ended early: {said[-500:]}")
    return frames


def _search(files: list[Path], parameters: Mapping[str, int], frames: int) -> str:
    """What ABC says of ``frames`` cycles of the module ``direct`` in ``files``; its answers are kept."""
    program = abc_program()
    chosen = " ".join(f"-chparam {name} {value}" for name, value in parameters.items())
    script = f"read_aiger direct.aig; strash; scorr; bmc3 -F {frames} -T {LIMIT_S}"
    texts = [file.read_text(encoding="utf-8") for file in (*files, *sorted(ROOM.glob("*.svh")))]
    kept = verdict_file("direct", metadata.version("pyosys"), program.stat().st_size, COMMANDS, chosen, script, texts)
    if kept.is_file():
        return str(json.loads(kept.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory(prefix="tokenfab-") as folder:
        quoted = " ".join(f'"{p}"' for p in files)
        yosys([
            f"read_verilog -formal -sv {quoted}", f"hierarchy -check -top direct {chosen}", *COMMANDS,
            f'write_aiger -zinit "{folder}/direct.aig"',  # -zinit: an input for each first value
        ])  # fmt: skip
        try:
            done = subprocess.run(
                [program, "-q", script], capture_output=True, text=True, timeout=2 * LIMIT_S, cwd=folder
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise YosysError(f"no answer within {2 * LIMIT_S} s") from None
    said = (done.stdout + done.stderr).strip()
    if FOUND.search(said) or NOT_FOUND.search(said):
        write_whole(kept, json_text(said))
    return said
