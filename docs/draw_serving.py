"""Draw the picture of docs/serving.md: docs/img/serving-latencies.svg. Run by ``make docs``.

It is of the runs whose commands stand beside it in the page, drawn as ``tokenfab report`` draws several runs.
"""

from __future__ import annotations

import re
import sys
import tempfile
from functools import partial
from pathlib import Path

from tokenfab.cli import run
from tokenfab.reports import latencies
from tokenfab.reports.blocks import Picture
from tokenfab.reports.documents import load_documents, parse_result
from tokenfab.reports.html import figure
from tokenfab.reports.runs import compared, runs_of
from tokenfab.reports.schema_serving import Served
from tokenfab.reports.style import DEVICES, house_style

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "serving.md"
TARGET = ROOT / "docs" / "img" / "serving-latencies.svg"
RUN = re.compile(r"^    tokenfab (serve [^\n]*) -o (\w+\.json)\n", re.MULTILINE)
REPORT = re.compile(r"^    tokenfab report ((?:\w+\.json )+)-o ", re.MULTILINE)


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    commands = {name: command for command, name in RUN.findall(text)}
    (names,) = REPORT.findall(text)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in names.split()]
        for file in files:
            if run([*commands[file.name].split(), "--quiet", "-o", str(file)]) != 0:
                raise SystemExit(f"tokenfab {commands[file.name]}: no result")
        found = [parse_result(d) for d in load_documents(files)]
    runs = runs_of([d for d in found if isinstance(d, Served)], DEVICES)
    print(compared(runs), file=sys.stderr)
    picture = Picture(partial(latencies.cdfs, runs=runs), latencies.HIGH + 0.3, "latencies", "latencies")
    with house_style():
        figure(picture).savefig(TARGET, format="svg", metadata={"Date": None}, facecolor="white")
    print(TARGET.relative_to(ROOT), file=sys.stderr)


if __name__ == "__main__":
    main()
