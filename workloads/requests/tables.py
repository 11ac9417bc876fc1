"""Comma-separated request files, read and written."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import InputError
from ...files import write_whole
from ..request_log import RequestLog
from .forms import find_form, show
from .records import Read, Records, Trouble, chunks

MARK = "# tokenfab requests: "
"""Begins the first line of a table that has more to tell than its columns: prefix nodes, classes without requests."""
TOLD = ("prefix_tokens", "prefix_parent", "classes")


def read_table(lines: Sequence[str], trouble: Trouble) -> Read:
    """The requests of a table: ``lines`` of the file, the first of them (after ours, if it is there) the header."""
    told: dict[str, Any] = {}
    first = 0
    if lines and lines[0].startswith(MARK):
        told = _told(lines[0], trouble)
        first = 1
    while first < len(lines) and not lines[first].strip():
        first += 1
    if first >= len(lines):
        raise trouble.nothing()
    rows, broken = _rows(lines[first : first + 1])
    names = [name.strip() for name in rows[0]]
    where = f"{trouble.path}: line {first + 1}"
    if broken:
        raise InputError(f"{where}: {broken[0]}")
    form = find_form(names, where)
    for name in (form.prompt, form.output):
        if name not in names:
            raise InputError(f"{where}: found the columns {show(','.join(names))}; there is no {name}")
    records = Records(form, {n: kind for n, kind in form.columns.items() if n in names}, trouble)
    at = {name: names.index(name) for name in records.names}
    first += 1
    for start, end in chunks(len(lines) - first):
        numbers = [i for i in range(first + start, first + end) if lines[i].strip()]
        rows, broken = _rows([lines[i] for i in numbers])
        width = len(names)
        for i, row in enumerate(rows if set(map(len, rows)) != {width} else ()):
            if len(row) != width:
                if i not in broken:
                    broken[i] = f"found {len(row)} fields, expected {width}: {','.join(names)}"
                rows[i] = [""] * width
        columns = list(zip(*rows, strict=True)) if rows else []
        if columns:
            records.add([i + 1 for i in numbers], {name: columns[k] for name, k in at.items()}, broken)
    return records.log(**told)


def _rows(lines: Sequence[str]) -> tuple[list[list[str]], dict[int, str]]:
    """The fields of each line, and what is wrong with lines that have none that can be told apart."""
    try:
        rows = list(csv.reader(lines, strict=True))
        if len(rows) == len(lines):
            return rows, {}
    except csv.Error:
        pass
    rows, broken = [], {}
    for i, line in enumerate(lines):  # a quote that is not closed swallows the lines below it: one at a time
        try:
            rows.append(next(csv.reader([line], strict=True)))
        except csv.Error as error:
            rows.append([])
            broken[i] = f"found {show(line)}, which is no line of a table: {error}"
    return rows, broken


def _told(line: str, trouble: Trouble) -> dict[str, Any]:
    """What the first line of our own tables tells: fields of a log."""
    try:
        told = json.loads(line.removeprefix(MARK))
        fine = isinstance(told, dict) and set(told) <= set(TOLD) and all(isinstance(v, list) for v in told.values())
        fine = fine and all(isinstance(name, str) for name in told.get("classes", ()))
    except (ValueError, RecursionError):
        fine = False
    if not fine:
        raise InputError(
            f"{trouble.path}: line 1: found {show(line)}, expected {MARK}and an object of {', '.join(TOLD)}"
        )
    return {name: tuple(value) for name, value in told.items()}


def write_csv(log: RequestLog, path: str | os.PathLike[str]) -> None:
    """Write ``log`` as a table that :func:`read_requests` reads back to the same arrays and classes.

    The columns are ``arrival_s,prompt,output`` and those others in which some request differs from what is taken
    where they are missing. Where there is a prefix tree, or a class without requests, a line before the header
    tells it. Source, seed and what was left out are not written. Raises ``InputError`` when it cannot be written,
    or for a name of a class that no table can hold.
    """
    for name in log.classes:
        if not name or len(name) > 40 or not name.isprintable() or name.strip() != name:
            raise InputError(f"{path}: the class {show(name)} cannot be written; expected 1 to 40 printable characters")
    columns: dict[str, Any] = {"arrival_s": log.arrival_s.tolist(), "prompt": log.prompt, "output": log.output}
    if log.classes != ("all",):
        columns["class"] = [log.classes[k] for k in log.klass]
    for name, default in {"priority": 0, "prefix": -1, "extends": -1, "after": -1, "think_s": 0.0}.items():
        if (getattr(log, name) != default).any():
            columns[name] = getattr(log, name).tolist()
    text = io.StringIO()
    told: dict[str, Any] = {}
    if len(log.prefix_tokens):
        told |= {"prefix_tokens": log.prefix_tokens.tolist(), "prefix_parent": log.prefix_parent.tolist()}
    appearing = log.klass[np.sort(np.unique(log.klass, return_index=True)[1])]
    if "class" in columns and appearing.tolist() != list(range(len(log.classes))):
        told["classes"] = list(log.classes)
    if told:
        text.write(f"{MARK}{json.dumps(told)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_whole(path, text.getvalue())
