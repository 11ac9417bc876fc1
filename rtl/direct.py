"""Proofs of a unit against a direct statement of what it computes: its ``formal/direct.sv``.

That file holds a module ``direct`` that instantiates the unit, computes the same in the plainest way, and
asserts that both agree; its inputs are free. Parameters are those of ``[[direct]]`` tables in ``unit.toml``,
and ``frames`` is the number of cycles looked at, from any state of the registers. The search is ABC's
(bounded model checking), which comes with pyosys.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from .units import Unit
from .yosys import LIMIT_S, YosysError, yosys


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
    program = abc_program()
    given = dict(table)
    frames = given.pop("frames")
    files = " ".join(f'"{p}"' for p in [*(sources or unit.sources), unit.folder / "formal" / "direct.sv"])
    chosen = " ".join(f"-chparam {name} {value}" for name, value in given.items())
    with tempfile.TemporaryDirectory(prefix="tokenfab-") as folder:
        yosys([
            f"read_verilog -formal -sv {files}", f"hierarchy -check -top direct {chosen}", "proc", "flatten",
            "async2sync", "chformal -lower", "opt -full", "wreduce", "opt -full", "techmap", "opt -full", "dffunmap",
            "aigmap", "opt_clean", f'write_aiger -zinit "{folder}/direct.aig"',  # -zinit: an input for each first value
        ])  # fmt: skip
        try:
            done = subprocess.run(
                [program, "-q", f"read_aiger direct.aig; strash; scorr; bmc3 -F {frames} -T {LIMIT_S}"],
                capture_output=True, text=True, timeout=2 * LIMIT_S, cwd=folder,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise YosysError(f"no answer within {2 * LIMIT_S} s") from None
    if found := re.search(r"was asserted in frame (\d+)", done.stdout):
        raise YosysError(f"{unit.name} differs from its direct statement in cycle {found[1]}, with {given}")
    looked_at = re.search(r"No output asserted in (\d+) frames", done.stdout)
    if looked_at is None or int(looked_at[1]) < frames:
        raise YosysError(f"the search ended early: {(done.stdout + done.stderr).strip()[-500:]}")
    return frames
