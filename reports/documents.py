"""Estimate documents: read, checked and typed before anything is drawn.

A document is what ``tokenfab estimate --json`` prints (schema ``tokenfab.estimate``), or a study, which
holds a list of them (schema ``tokenfab.study``). Keys that a report does not use may stand beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from ..errors import InputError
from ..files import first_problem
from .schema import Document

SCHEMA = "tokenfab.estimate"
STUDY = "tokenfab.study"
VERSION = 1
MOST = 500
"""Estimates in one report."""
ACCEPTED = (
    f'accepted: a result of "tokenfab estimate --json" or "tokenfab study" (schema {SCHEMA} or {STUDY}, version 1)'
)


def load_documents(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The estimate documents in ``paths``, in order; a study counts as all of its estimates.

    Raises ``InputError``, one line with the file, for what cannot be read or is not such a document.
    """
    found: list[dict[str, Any]] = []
    for path in paths:
        found += _flatten(_read(path), str(path))
        if len(found) > MOST:
            raise InputError(f"{path}: that makes {len(found)} estimates; accepted: at most {MOST} in a report")
    if not found:
        raise InputError("no results given; " + ACCEPTED)
    return found


def parse(document: object, where: str = "result") -> Document:
    """``document`` checked and typed. Raises ``InputError`` that starts with ``where``."""
    if not isinstance(document, dict):
        raise InputError(f"{where}: not a JSON object; {ACCEPTED}")
    if document.get("schema") != SCHEMA:
        raise InputError(f"{where}: schema is {_shown(document.get('schema'))}; {ACCEPTED}")
    _check_version(document, where)
    try:
        return Document.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{where}: {_printed(first_problem(error))}; {ACCEPTED}") from None


def _flatten(raw: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(raw, dict) or raw.get("schema") != STUDY:
        parse(raw, where)
        return [raw]
    _check_version(raw, where)
    estimates = raw.get("estimates")
    if not isinstance(estimates, list) or not estimates:
        raise InputError(f"{where}: estimates is not a list of estimates; {ACCEPTED}")
    for i, estimate in enumerate(estimates):
        parse(estimate, f"{where}: estimates[{i}]")
    return estimates


def _check_version(raw: dict[str, Any], where: str) -> None:
    if raw.get("version") != VERSION or isinstance(raw.get("version"), bool):
        raise InputError(f"{where}: version is {_shown(raw.get('version'))}; {ACCEPTED}")


def _read(path: str | Path) -> Any:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        return json.loads(text, parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError):
            problem = f"cannot be read: {error.strerror or error}"
        elif isinstance(error, UnicodeDecodeError):
            problem = "not UTF-8 text"
        elif isinstance(error, RecursionError):
            problem = "nested too deeply"
        else:
            problem = f"not JSON: {error}"
        raise InputError(_printed(f"{path}: {problem}; {ACCEPTED}")) from None


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _shown(value: object) -> str:
    text = "missing" if value is None else repr(value) if isinstance(value, str | int | float) else type(value).__name__
    return _printed(text[:80])


def _printed(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")[:600]
