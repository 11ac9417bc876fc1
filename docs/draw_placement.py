"""Draw the pictures of docs/mapping.md: docs/img/placement-*.svg. Run by ``make docs``.

Each is of the command that stands beside it in the page, drawn as ``tokenfab report`` draws it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from functools import partial
from pathlib import Path

from tokenfab.cli import run
from tokenfab.reports import gantt, holdings, topology
from tokenfab.reports.blocks import Picture
from tokenfab.reports.documents import load_documents, parse_placement
from tokenfab.reports.html import figure
from tokenfab.reports.schema_placement import Placement
from tokenfab.reports.style import house_style

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "mapping.md"
BLOCK = re.compile(r"^    tokenfab (place [^\n]*) -o (\w+)\.json\n", re.MULTILINE)


def pictures(found: Placement) -> dict[str, Picture]:
    """The three pictures of a placement by the end of their file names."""
    rows, schedules = holdings.memories(found), gantt.drawn(found)
    made = {
        "schedule": (partial(gantt.gantt, placement=found, schedules=schedules), gantt.height(found, schedules)),
        "memory": (partial(holdings.held, rows=rows), holdings.heights(rows)[0]),
        "traffic": (partial(topology.topology, placement=found), topology.height(found)),
    }
    return {name: Picture(draw, height, name, name) for name, (draw, height) in made.items()}


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for command, name in BLOCK.findall(text):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "placement.json"
            if run([*command.split(), "--quiet", "-o", str(file)]) != 0:
                raise SystemExit(f"tokenfab {command}: no placement")
            found = parse_placement(load_documents([file])[0])
        assert isinstance(found, Placement)
        with house_style():
            for ending, picture in pictures(found).items():
                target = ROOT / "docs" / "img" / f"placement-{name}-{ending}.svg"
                if f"img/{target.name}" in text:
                    figure(picture).savefig(target, format="svg", metadata={"Date": None}, facecolor="white")
                    print(target.relative_to(ROOT), file=sys.stderr)


if __name__ == "__main__":
    main()
