"""Numbers put into a device file's text: everything else, comments too, stays as it was written."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..hw.units import KEYS, measure

HEADER = re.compile(r"\s*\[\s*([\w-]+(?:\s*\.\s*[\w-]+)*)\s*\]\s*(?:#.*)?")
TIMES = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9), ("ps", 1e-12))

Entry = dict[str, str | float | int]
"""``value`` as a file writes it, and ``source``."""


def written(value: float, key: str, digits: int = 4) -> tuple[str | float | int, float]:
    """``value`` (base units) as a file writes the number ``key``, and the value that is read again.

    Times get the unit in which they are at least 1, ``"2.067 us"``. Raises ``ValueError`` for what ``key``
    does not accept.
    """
    text: str | float | int = float(f"{value:.{digits}g}")
    if KEYS[key].dimension == "time":
        unit, factor = next(((u, f) for u, f in TIMES if float(f"{value / f:.{digits}g}") >= 1), TIMES[-1])
        text = f"{value / factor:.{digits}g} {unit}"
    elif isinstance(text, float) and text.is_integer():
        text = int(text)
    return text, measure(text, KEYS[key])[0]


def with_numbers(text: str, numbers: Mapping[str, Entry], file: str) -> str:
    """``text``, a device file, with ``numbers`` (dotted key → entry) replaced or added.

    Raises ``InputError`` for a file that writes one of their sections otherwise than as a table with one line
    per number.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n").split("\n")
    expected = tomllib.loads("\n".join(lines))
    for key, entry in numbers.items():
        section, _, name = key.rpartition(".")
        _put(lines, section, name, f"{name} = {{ value = {_toml(entry['value'])}, source = {_toml(entry['source'])} }}")
        node: dict[str, Any] = expected
        for part in section.split("."):
            node = node.setdefault(part, {})
        node[name] = dict(entry)
    changed = "\n".join(lines) + "\n"
    try:
        same = tomllib.loads(changed) == expected
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        sections = ", ".join(dict.fromkeys(f"[{key.rpartition('.')[0]}]" for key in numbers))
        raise InputError(f"{file}: its numbers cannot be replaced; accepted: {sections} as tables, a line per number")
    return changed


def _put(lines: list[str], section: str, name: str, line: str) -> None:
    """Replace the line of ``name`` in ``section``, or add it at the section's end, or a section at the file's."""
    headers = [(i, re.sub(r"\s", "", found[1])) for i, x in enumerate(lines) if (found := HEADER.fullmatch(x))]
    start = next((i for i, title in headers if title == section), None)
    if start is None:
        lines += ["", f"[{section}]", line]
        return
    # The next header of any kind, [[arrays]] and quoted names too.
    end = next((i for i in range(start + 1, len(lines)) if lines[i].lstrip().startswith("[")), len(lines))
    for i in range(start + 1, end):
        if re.match(rf"\s*{re.escape(name)}\s*=", lines[i]):
            lines[i] = line
            return
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    lines.insert(end, line)


def _toml(value: str | float | int) -> str:
    """A number, or a one-line basic string: JSON's, with the delete character escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
