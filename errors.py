"""Errors that a user can act on.

``InputError`` is raised wherever something a user wrote (a name, a file, a number) cannot be used.
The command line prints its text as one line and exits with 2; everything else is a bug and keeps
its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The input was wrong. ``str(error)`` is one line: what, where, and what would be accepted."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> InputError:
    """An ``InputError`` for a name that is not in ``known``, with the nearest names suggested."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    suggestion = f"; did you mean {', '.join(near)}?" if near else f"; known: {', '.join(names[:12])}"
    if not near and len(names) > 12:
        suggestion += f", … ({len(names)} in all)"
    return InputError(f"unknown {kind} {name!r}{suggestion}{'; ' + hint if hint else ''}")
