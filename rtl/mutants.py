"""Mutants: faults planted in a unit's RTL by hand, each of which its tests must find.

    python -m tokenfab.rtl.mutants [UNIT]...

plants them one by one, runs the tests on Icarus and prints what became of each. The list is in the unit's
``verification.toml``. A mutant that no longer fits its source, or does not build, is an error: it proves
nothing. Verdicts are kept (``flow.verdict_file``) and used again while RTL, tests and golden models are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import json_text, write_whole
from .flow import build, build_root, run, verdict_file
from .units import ROOM, Unit, chosen_units

SIMULATOR = "icarus"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: the test that failed first; none means it survived."""

    unit: str
    number: int
    file: str
    replace: str
    killed_by: list[str]


def mutated_sources(unit: Unit, mutant: Mapping[str, Any], folder: Path) -> list[Path]:
    """Copies of the unit's sources in ``folder`` with the fault planted.

    Raises ``InputError`` unless the text to replace stands exactly once in its file.
    """
    copies = []
    for source in unit.sources:
        text = source.read_text(encoding="utf-8")
        if source.name == mutant["file"]:
            if text.count(mutant["find"]) != 1:
                raise InputError(f"{unit.name}: mutant: {mutant['find']!r} stands {text.count(mutant['find'])} times")
            text = text.replace(mutant["find"], mutant["replace"])
        write_whole(folder / source.name, text)
        copies.append(folder / source.name)
    return copies


def try_mutant(unit: Unit, number: int) -> Verdict:
    """Plant mutant ``number``, build it, run the tests. Raises ``RuntimeError`` when it does not build."""
    mutant = unit.recipe["mutant"][number]
    folder = build_root() / unit.name / f"mutant-{number}-{os.getpid()}"
    verdict = verdict_file("mutant", fingerprint(unit, mutant))
    if not verdict.is_file():
        parameters = unit.sets()[mutant.get("set", 0)]
        sources = mutated_sources(unit, mutant, folder / "sources")
        built = build(unit, SIMULATOR, parameters, folder=folder / "build", sources=sources)
        try:
            failed = sorted(run(unit, SIMULATOR, parameters, built=built, most_failures=1).failed)
        except RuntimeError:
            failed = ["(the simulation crashed)"]
        write_whole(verdict, json_text(failed))
        shutil.rmtree(folder, ignore_errors=True)
    killed_by = json.loads(verdict.read_text(encoding="utf-8"))
    return Verdict(unit.name, number, mutant["file"], mutant["replace"].strip(), killed_by)


def fingerprint(unit: Unit, mutant: Mapping[str, Any]) -> str:
    """A text that changes with the mutant, the RTL, the benches and the golden models."""
    digest = hashlib.sha256(json.dumps(dict(mutant), sort_keys=True).encode())
    used = [
        *unit.sources,
        *ROOM.glob("*.svh"),
        *ROOM.glob("*.py"),
        *unit.folder.glob("*.py"),
        unit.folder / "unit.toml",
    ]
    for file in (*used, *(ROOM.parent / "kernels").glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


def try_all(unit: Unit) -> list[Verdict]:
    """Every mutant of ``unit``, on all processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda n: try_mutant(unit, n), range(len(unit.recipe.get("mutant", [])))))


def main(names: list[str]) -> int:
    """Print every verdict; 1 when a mutant survived."""
    verdicts = [v for unit in chosen_units(names) for v in try_all(unit)]
    for v in verdicts:
        fate = f"killed by {', '.join(v.killed_by)}" if v.killed_by else "SURVIVED"
        print(f"{v.unit} {v.number} {v.file}: {v.replace or '(deleted)'}: {fate}")
    killed = sum(bool(v.killed_by) for v in verdicts)
    print(f"{killed} of {len(verdicts)} killed")
    return int(killed < len(verdicts))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"mutants: {error}", file=sys.stderr)
        sys.exit(2)
