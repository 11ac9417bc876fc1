"""Results: read, checked and typed before anything is drawn.

A document is what ``tokenfab estimate --json`` prints (schema ``tokenfab.estimate``), what ``tokenfab place --json``
prints (``tokenfab.placement``), or a study, which holds a list of estimates and a placement (``tokenfab.study``). Keys
that a report does not use may stand beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from ..errors import InputError
from ..files import first_problem
from .schema import Data, Document
from .schema_placement import Nowhere, Placement

T = TypeVar("T", bound=Data)

SCHEMA = "tokenfab.estimate"
PLACEMENT = "tokenfab.placement"
STUDY = "tokenfab.study"
VERSION = 1
MOST = 500
"""Results in one report."""
ACCEPTED = (
    'accepted: a result of "tokenfab estimate --json", "tokenfab place --json" or "tokenfab study" '
    f"(schema {SCHEMA}, {PLACEMENT} or {STUDY}, version 1)"
)


def load_documents(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The documents in ``paths``, in order; a study counts as all of its estimates and its placement.

    Raises ``InputError``, one line with the file, for what cannot be read or is not such a document.
    """
    found: list[dict[str, Any]] = []
    for path in paths:
        found += _flatten(_read(path), str(path))
        if len(found) > MOST:
            raise InputError(f"{path}: that makes {len(found)} results; accepted: at most {MOST} in a report")
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
    return _typed(Document, document, where)


def parse_placement(document: dict[str, Any], where: str = "result") -> Placement | Nowhere:
    """A placement ``document`` checked and typed. Raises ``InputError`` that starts with ``where``."""
    _check_version(document, where)
    found = document.get("status") not in ("infeasible", "unknown")
    return _typed(Placement, document, where) if found else _typed(Nowhere, document, where)


def is_placement(document: object) -> bool:
    """Whether ``document`` says that it is a placement."""
    return isinstance(document, dict) and document.get("schema") == PLACEMENT


def _typed(kind: type[T], document: dict[str, Any], where: str) -> T:
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{where}: {_printed(first_problem(error))}; {ACCEPTED}") from None


def _flatten(raw: Any, where: str) -> list[dict[str, Any]]:
    if is_placement(raw):
        parse_placement(raw, where)
        return [raw]
    if not isinstance(raw, dict) or raw.get("schema") != STUDY:
        parse(raw, where)
        return [raw]
    _check_version(raw, where)
    estimates = raw.get("estimates")
    if not isinstance(estimates, list) or not estimates:
        raise InputError(f"{where}: estimates is not a list of estimates; {ACCEPTED}")
    for i, estimate in enumerate(estimates):
        parse(estimate, f"{where}: estimates[{i}]")
    placement = raw.get("placement")
    if placement is None:  # one device, or a study made before there were any
        return estimates
    if not is_placement(placement):
        raise InputError(f"{where}: placement is no placement; {ACCEPTED}")
    parse_placement(placement, f"{where}: placement")
    return [*estimates, placement]


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
