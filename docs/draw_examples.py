"""Run the examples in README.md and docs/*.md and write what they print below them. Run by ``make docs``.

An example is a fenced ``console`` block whose first line is ``$ tokenfab …``; the rest of the block is
its output, which ``tests/test_examples.py`` holds the documents to. Times that differ from run to run
are written as ``…``. Commands run in an empty folder that they share, document by document.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokenfab.cli import run

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```console\n\$ (tokenfab [^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLUMNS = "100"
VOLATILE = (r"(?<=captured in )[\d.]+(?= s)", r"(?<=\.html; )[\d.]+(?= s$)", r'(?<="capture_s": )[\d.]+')


def examples(document: Path) -> list[tuple[str, str]]:
    """(command, output) of every example in ``document``."""
    return BLOCK.findall(document.read_text(encoding="utf-8"))


def printed(command: str) -> str:
    """What ``command`` prints, stdout and stderr, at the width of the documents, volatile numbers left out."""
    os.environ["COLUMNS"] = COLUMNS
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        run(shlex.split(command)[1:])
    text = out.getvalue()
    for pattern in VOLATILE:
        text = re.sub(pattern, "…", text, flags=re.MULTILINE)
    return text


@contextlib.contextmanager
def empty_folder() -> Iterator[None]:
    """Work in a new folder."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


def main() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        with empty_folder():
            new = BLOCK.sub(lambda m: f"```console\n$ {m[1]}\n{printed(m[1])}```", text)
        if new != text:
            document.write_text(new, encoding="utf-8")
        print(f"{document.relative_to(ROOT)}: {len(examples(document))} examples", file=sys.stderr)


if __name__ == "__main__":
    main()
