"""Write what ``tokenfab validate`` finds into README.md (the table) and docs/cli.md (what the terminal shows).

    python docs/draw_accuracy.py [TRUTH]

TRUTH: else ``TOKENFAB_TRUTH``, else ``../shared/truth``; without measurements both stay as they are.
``tests/test_validate.py`` holds both to the command.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path

from tokenfab.errors import InputError
from tokenfab.reports import terminal
from tokenfab.validation.suites import validate

ROOT = Path(__file__).resolve().parents[1]
HEAD = "| suite | device | mode | kernels | MAPE | 90 % interval covers | roofline |\n|---|---|---|---|---|---|---|\n"


def main() -> None:
    """Both files, whole."""
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TOKENFAB_TRUTH")
    try:
        found, skipped = validate(Path(given) if given else ROOT.parent / "shared" / "truth", [])
    except InputError as error:
        print(f"accuracy tables left as they are: {error}", file=sys.stderr)
        return
    rows = [c.summary() for c in found]
    rooflines = {(r["suite"], r["device"], r["mode"]): r["mape"] for r in rows if r["model"] == "roofline"}
    lines = []
    for r in rows:
        if r["model"] == "roofline":
            continue
        other = rooflines.get((r["suite"], r["device"], r["mode"]))
        last = "–" if other is None else f"{100 * other:.1f} %"
        covers = "–" if r["coverage90"] is None else f"{100 * r['coverage90']:.1f} %"
        cells = (f"`{r['suite']}`", r["device"], r["mode"], f"{r['n']:,}", f"{100 * r['mape']:.1f} %", covers, last)
        lines.append(f"| {' | '.join(cells)} |")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    table = re.escape(HEAD) + r"(\|.*\n)*"
    readme.write_text(re.sub(table, lambda _: HEAD + "\n".join(lines) + "\n", text), encoding="utf-8")

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        terminal.validation_summary({"suites": rows, "skipped": skipped, "command": ""})
    printed = "".join(f"    {line}".rstrip() + "\n" for line in shown.getvalue().rstrip("\n").split("\n"))
    page = ROOT / "docs" / "cli.md"
    text = page.read_text(encoding="utf-8")
    block = r"(`tokenfab validate --truth \.\./shared/truth`, [^\n]*\n\n)((    [^\n]*)?\n)+?(?=[^\s])"
    page.write_text(re.sub(block, lambda m: m[1] + printed + "\n", text, count=1), encoding="utf-8")


if __name__ == "__main__":
    main()
