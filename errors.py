"""Errors that a user can act on.

``InputError`` is raised wherever something a user wrote (a name, a file, a number) cannot be used.
The command line prints its text as one line and exits with 2; everything else is a bug and keeps
its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MOST = 6
"""Names suggested at most."""
LONGEST = 80
"""Characters of a wrong name that are shown and compared."""


class InputError(ValueError):
    """The input was wrong. ``str(error)`` is one printable line: what, where, and what would be accepted."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line))


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> InputError:
    """An ``InputError`` for a name that is not in ``known``, with the nearest names suggested."""
    names = sorted(known)
    near = nearest(name, names)
    chosen = near[:MOST] if near else names[: 2 * MOST]
    total = len(near or names)
    text = ", ".join(chosen) + (f", … ({total} in all)" if total > len(chosen) else "")
    suggestion = f"; did you mean {text}?" if near else f"; known: {text}" if names else ""
    return InputError(f"unknown {kind} {name[:LONGEST]!r}{suggestion}{'; ' + hint if hint else ''}")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The names a reader of ``name`` may have meant, best first; none when nothing is near.

    Those that begin with it, whatever the punctuation and case; else those that contain all of its
    words; else those that are spelt alike.
    """
    names = sorted(known)
    asked = name[:LONGEST].lower()
    letters, words = _letters(asked), re.findall("[a-z0-9]+", asked)
    if letters:
        begin = [n for n in names if _letters(n).startswith(letters)]
        contain = [n for n in names if all(word in n.lower() for word in words)]
        if begin or contain:
            return list(dict.fromkeys(begin + contain))
    return difflib.get_close_matches(asked, names, n=3, cutoff=0.5)


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
