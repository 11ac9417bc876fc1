"""What all commands share: their two common options, and how an answer is printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from .errors import unknown_name
from .files import json_text
from .reports import terminal

Name = Annotated[str | None, typer.Argument(help="Show this one with all its fields.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No text and no progress; files are written. Lists: names only.")]


def answer(document: Any, as_json: bool, quiet: bool, say: Callable[[], None]) -> None:
    """Print ``document`` as JSON, or what ``say`` prints, or nothing."""
    if as_json:
        sys.stdout.write(json_text(document, ascii_only=(sys.stdout.encoding or "").lower() != "utf-8"))
    elif not quiet:
        say()


def listing(kind: str, entries: list[dict[str, Any]], as_json: bool, quiet: bool) -> None:
    """What there is of a ``kind``; with ``quiet`` the names alone."""
    if quiet and not as_json:
        return print(*(e["name"] for e in entries), sep="\n")
    answer(entries, as_json, quiet, lambda: terminal.listing(kind, entries))


def named(sort: str, plural: str, known: Mapping[str, Any], name: str | None, as_json: bool, quiet: bool) -> None:
    """List things that are chosen by name, or show the one called ``name`` with its parameters.

    Each has ``name``, ``description``, ``source`` and ``parameters``. Raises ``InputError`` for an unknown name.
    """
    if name is None:
        return listing(plural, [{"name": x.name, "description": x.description} for x in known.values()], as_json, quiet)
    if name not in known:
        raise unknown_name(sort, name, known)
    found = known[name]
    told = {
        key: {
            "default": p.default, "meaning": p.meaning, "choices": list(p.choices),
            "range": None if isinstance(p.default, str) else [p.low, p.high],
        }
        for key, p in found.parameters.items()
    }  # fmt: skip
    fields = {"name": name, "description": found.description, "source": found.source, "parameters": told}
    answer(fields, as_json, quiet, lambda: terminal.technique_card(fields))
