"""Yosys through pyosys, in a process of its own (an error inside ends the process), and two jobs for it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from ..errors import InputError
from ..files import json_text, write_whole
from .flow import verdict_file
from .units import ROOM, Unit

PYOSYS_HELP = "pyosys is not installed; pip install 'tokenfab[rtl]'"
LIMIT_S = 900
_DRIVER = (
    "import sys\nfrom pyosys import libyosys\ndesign = libyosys.Design()\n"
    "for line in sys.stdin.read().splitlines():\n    libyosys.run_pass(line, design)\n"
)
# Registers stay as the RTL has them: merging equal ones (the copies of a sign) is an optimisation over
# time, and a proof register by register cannot follow it through a clock that may be held for ever.
_KEEP_REGISTERS = [
    "opt_dff",
    "setattr -set keep 1 w:*_q w:*_o",
    "setattr -set keep 1 t:$dff t:$dffe t:$sdff t:$sdffe t:$sdffce",
]


class YosysError(Exception):
    """Yosys stopped; the text is the end of what it said."""


def pyosys_problem() -> str | None:
    """How to get pyosys where it is missing; None where it is not."""
    return PYOSYS_HELP if importlib.util.find_spec("pyosys") is None else None


def synthesise(commands: list[str], files: list[Path]) -> str:
    """What Yosys prints for ``commands``, which read ``files``; kept, and used again while nothing of it changes.

    Raises ``InputError`` without pyosys, ``YosysError`` when it stops (which is not kept).
    """
    problem = pyosys_problem()
    if problem:
        raise InputError(problem)
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in (*files, *sorted(ROOM.glob("*.svh")))]
    relative = commands  # another checkout, or another temporary folder, has the same answer
    for file in files:
        relative = [command.replace(str(file), file.name) for command in relative]
    kept = verdict_file("yosys", metadata.version("pyosys"), _DRIVER, relative, texts)
    if not kept.is_file():
        write_whole(kept, json_text(yosys(commands)))
    return str(json.loads(kept.read_text(encoding="utf-8")))


def yosys(commands: list[str]) -> str:
    """What Yosys prints for ``commands``. Raises ``YosysError`` when it stops."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _DRIVER], input="\n".join(commands), capture_output=True, text=True,
            timeout=LIMIT_S, cwd=ROOM,  # where included files are looked for
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise YosysError(f"no answer within {LIMIT_S} s") from None
    if done.returncode:
        raise YosysError((done.stdout + done.stderr).strip()[-2000:])
    return done.stdout


def read_design(unit: Unit, parameters: Mapping[str, int], sources: list[Path] | None = None) -> list[str]:
    """Commands that read ``unit`` with ``parameters``; ``sources`` replaces its own."""
    files = " ".join(f'"{p}"' for p in sources or unit.sources)
    chosen = " ".join(f"-chparam {name} {value}" for name, value in parameters.items())
    return [f"read_verilog -sv {files}", f"hierarchy -check -top {unit.top} {chosen}", "proc", "flatten"]


def prove_netlist(unit: Unit, parameters: Mapping[str, int], mutated: list[Path] | None = None) -> int:
    """Prove that the netlist Yosys makes of ``unit`` does what its RTL does; returns the points proven.

    Every register and every output, by induction, from any state and with any input. ``mutated``: sources
    from which the netlist is made instead (then the proof must fail). Raises ``YosysError`` when it fails.
    """
    commands = [
        *read_design(unit, parameters), "opt_clean", *_KEEP_REGISTERS, "rename -top gold", "design -stash gold",
        *read_design(unit, parameters, mutated), "opt_clean", *_KEEP_REGISTERS, f"synth -top {unit.top}",
        "rename -top gate", "design -stash gate",
        "design -copy-from gold -as gold gold", "design -copy-from gate -as gate gate",
        "async2sync", "equiv_make gold gate equiv", "hierarchy -top equiv", "equiv_simple", "equiv_induct",
        "equiv_status",  # without -assert: a proof that fails is an answer, and kept
    ]  # fmt: skip
    told = synthesise(commands, [*unit.sources, *(mutated or [])])
    counts = re.findall(r"Of those cells (\d+) are proven and (\d+) are unproven\.", told)
    if not counts:
        raise YosysError(f"no verdict: {told.strip()[-500:]}")
    proven, unproven = map(int, counts[-1])
    if unproven:
        raise YosysError(f"{unproven} of {proven + unproven} points are unproven")
    return proven
