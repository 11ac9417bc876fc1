"""Draw docs/img/report.png: the first page of the report that ``make study`` writes. Run by ``make docs``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from tokenfab import __version__
from tokenfab.reports.parts import build
from tokenfab.reports.pdf import pages
from tokenfab.reports.schema import Document
from tokenfab.reports.study import run_study
from tokenfab.reports.style import house_style

TARGET = Path(__file__).resolve().parent / "img" / "report.png"
COMMAND = "tokenfab study llama-2-7b -o out"
LARGEST = 300_000


def draw(target: Path) -> None:
    """Run the study, and write the first page to ``target``."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_study("llama-2-7b", Path(folder), command=COMMAND)
    parts = build([Document.model_validate(d) for d in done.documents], None, COMMAND)
    summary = pages(parts, f"tokenfab {__version__}  ·  {COMMAND}")[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    with house_style():
        summary.savefig(target, dpi=110, facecolor="white", metadata={"Software": None})
    if target.stat().st_size > LARGEST:
        sys.exit(f"{target}: {target.stat().st_size} bytes; at most {LARGEST}")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    draw(target)
    print(target)
