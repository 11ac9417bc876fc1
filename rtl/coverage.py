"""Coverage of a unit's RTL (Verilator's lines, branches and toggles) and of its plan (functional goals).

A point is one place of one parameter set: the same line in two sets is two points. ``[[exclude]]`` tables
of ``unit.toml`` take points out that no input can reach, each with its reason. A rule that matches nothing
uncovered is refused: it would hide what it does not explain.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .flow import Run
from .units import Unit


@dataclass
class Covered:
    """What a unit's runs covered, points counted over all parameter sets.

    ``excluded`` counts points taken out, by reason; ``missed`` the uncovered ones left, by place.
    ``goals`` gives the hits of every functional goal; ``unplanned`` are points hit that no goal names.
    """

    points: int = 0
    hit: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    unused_rules: list[str] = field(default_factory=list)
    goals: dict[str, int] = field(default_factory=dict)
    unplanned: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Hit points over reachable points."""
        return self.hit / self.points if self.points else 0.0


def measure(unit: Unit, runs: Iterable[Run]) -> Covered:
    """Coverage of ``runs``, which were built with coverage. An excluded point that was hit counts as reachable."""
    rules: list[Mapping[str, Any]] = list(unit.recipe.get("exclude", []))
    found, used = Covered(), set()
    hits: Counter[str] = Counter()
    for run in runs:
        hits.update(run.document("functional") or {})
        for point, count in read_points(run.folder / "coverage.dat"):
            rule = None if count else next((r for r in rules if _applies(r, point, run.parameters)), None)
            if rule is not None:
                found.excluded[rule["reason"]] += 1
                used.add(id(rule))
                continue
            found.points += 1
            found.hit += count > 0
            if not count:
                found.missed[point] += 1
    found.unused_rules = [r["point"] for r in rules if id(r) not in used]
    goals = unit.recipe.get("goals", [])
    found.goals = {goal: hits[goal] for goal in goals}
    found.unplanned = sorted(set(hits) - set(goals))
    return found


def read_points(path: Path) -> Iterator[tuple[str, int]]:
    """(place, hits) of every point of a ``coverage.dat``.

    A place reads ``file:line kind hierarchy.name``; toggles have their direction in the name.
    """
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("C '"):
            continue
        keys, _, count = line[3:].rpartition("' ")
        parts = dict(key.split("\x02", 1) for key in keys.split("\x01") if key)
        name = f"{parts.get('h', '')}.{parts.get('o', '')}"
        yield f"{Path(parts.get('f', '?')).name}:{parts.get('l')} {parts.get('t')} {name}", int(count)


def _applies(rule: Mapping[str, Any], point: str, parameters: Mapping[str, int]) -> bool:
    """``point`` is a pattern for the place; ``when`` gives accepted values of parameters."""
    if not all(parameters[name] in accepted for name, accepted in rule.get("when", {}).items()):
        return False
    return re.search(rule["point"], point) is not None
