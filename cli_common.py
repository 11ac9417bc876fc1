"""What all commands share: their two common options, and how an answer is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .files import json_text

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No text and no progress; files are written. Lists: names only.")]


def answer(document: Any, as_json: bool, quiet: bool, say: Callable[[], None]) -> None:
    """Print ``document`` as JSON, or what ``say`` prints, or nothing."""
    if as_json:
        sys.stdout.write(json_text(document, ascii_only=(sys.stdout.encoding or "").lower() != "utf-8"))
    elif not quiet:
        say()
