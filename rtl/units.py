"""The units: folders of ``rtl/`` with a ``cycles.py``. What such a folder must hold is in ``rtl/README.md``."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import unknown_name
from .parameters import Count, Parameter, Parameters, Rule, Shape

ROOM = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Unit:
    """One hardware unit, as its folder describes it.

    ``check`` completes parameters and refuses illegal ones; ``cycles(shape, format, config)`` is the cycle
    model, ``tile(format, config)`` the (m, n) of outputs computed at a time. ``recipe`` is ``unit.toml`` (parameter
    sets) with ``verification.toml`` (goals, exclusions, mutants).
    """

    name: str
    description: str
    parameters: Mapping[str, Parameter]
    rules: tuple[Rule, ...]
    check: Callable[[Mapping[str, int]], Parameters]
    cycles: Callable[[Shape, Mapping[str, str], Mapping[str, int]], Count]
    tile: Callable[[Mapping[str, str], Mapping[str, int]], tuple[int, int]]
    folder: Path
    recipe: Mapping[str, Any]

    @property
    def top(self) -> str:
        """Name of the top module."""
        return str(self.recipe.get("top", self.name))

    @property
    def sources(self) -> list[Path]:
        """SystemVerilog files, those of other units the recipe ``uses`` first, the file of the top module last."""
        used = [source for name in self.recipe.get("uses", []) for source in load_unit(name).sources]
        own = sorted(self.folder.glob("*.sv"), key=lambda p: (p.stem == self.top, p.name))
        return [*used, *own]

    @property
    def test_module(self) -> str:
        """Import name of the cocotb tests."""
        return f"{__package__}.{self.name}.test_{self.name}"

    def sets(self, kind: str = "test") -> list[Parameters]:
        """Parameter sets of the recipe's ``[[kind]]`` tables, completed and checked."""
        return [self.check(table) for table in self.recipe.get(kind, [])]


def unit_names() -> list[str]:
    """Names of all units, sorted."""
    return sorted(p.parent.name for p in ROOM.glob("*/cycles.py"))


@cache
def load_unit(name: str) -> Unit:
    """The unit ``name``; raises ``InputError`` with the nearest names when there is none."""
    if name not in unit_names():
        raise unknown_name("unit", name, unit_names())
    module = importlib.import_module(f"{__package__}.{name}.cycles")
    folder = ROOM / name
    recipe: dict[str, Any] = {}
    for file in ("unit.toml", "verification.toml"):
        recipe |= tomllib.loads((folder / file).read_text(encoding="utf-8"))
    return Unit(
        name, module.DESCRIPTION, module.PARAMETERS, module.RULES, module.check, module.cycles, module.tile,
        folder, recipe,
    )  # fmt: skip


def chosen_units(names: list[str]) -> list[Unit]:
    """The named units, all of them without names; raises ``InputError`` on an unknown one."""
    return [load_unit(name) for name in names or unit_names()]
