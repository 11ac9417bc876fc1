"""Results: read, checked and typed before anything is drawn.

A document is of one of the kinds in :mod:`.kinds`, or a study, which holds a list of estimates and a placement
(``tokenfab.study``). Keys that a report does not use may stand beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from pydantic import ValidationError

from ..errors import InputError
from ..files import first_problem
from .format import listed
from .kinds import ESTIMATE, KINDS, PLACEMENT, Kind
from .schema import Data, Document
from .schema_placement import Nowhere, Placement

STUDY = "tokenfab.study"
VERSION = 1
"""Of a study."""
MOST = 500
"""Results in one report."""
ACCEPTED = (
    "accepted: a result of "
    + listed([f'"{command}"' for command in (*(k.command for k in KINDS.values()), "tokenfab study")], "or")
    + f" (schema {listed([*KINDS, STUDY], 'or')}, version 1)"
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


def parse_result(document: object, where: str = "result") -> Data:
    """``document``, of any kind, checked and typed. Raises ``InputError`` that starts with ``where``."""
    if not isinstance(document, dict):
        raise InputError(f"{where}: not a JSON object; {ACCEPTED}")
    kind = _kind(document)
    if kind is None:
        raise InputError(f"{where}: schema is {_shown(document.get('schema'))}; {ACCEPTED}")
    _check_version(document, where, kind.version)
    try:
        return kind.type_of(document).model_validate(document)
    except ValidationError as error:
        raise InputError(f"{where}: {_printed(first_problem(error))}; {ACCEPTED}") from None


def parse(document: object, where: str = "result") -> Document:
    """An estimate checked and typed. Raises ``InputError`` that starts with ``where``."""
    return cast(Document, _parse_as(ESTIMATE, document, where))


def parse_placement(document: object, where: str = "result") -> Placement | Nowhere:
    """A placement checked and typed. Raises ``InputError`` that starts with ``where``."""
    return cast(Placement | Nowhere, _parse_as(PLACEMENT, document, where))


def _parse_as(schema: str, document: object, where: str) -> Data:
    if isinstance(document, dict) and document.get("schema") != schema:
        raise InputError(f"{where}: schema is {_shown(document.get('schema'))}; {ACCEPTED}")
    return parse_result(document, where)


def _kind(document: object) -> Kind | None:
    schema = document.get("schema") if isinstance(document, dict) else None
    return KINDS.get(schema) if isinstance(schema, str) else None


def _flatten(raw: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(raw, dict) or raw.get("schema") != STUDY:
        parse_result(raw, where)
        return [raw]
    _check_version(raw, where, VERSION)
    estimates = raw.get("estimates")
    if not isinstance(estimates, list) or not estimates:
        raise InputError(f"{where}: estimates is not a list of estimates; {ACCEPTED}")
    for i, estimate in enumerate(estimates):
        parse(estimate, f"{where}: estimates[{i}]")
    placement = raw.get("placement")
    if placement is None:  # one device, or a study made before there were any
        return estimates
    if _kind(placement) is not KINDS[PLACEMENT]:
        raise InputError(f"{where}: placement is no placement; {ACCEPTED}")
    parse_placement(placement, f"{where}: placement")
    return [*estimates, placement]


def _check_version(raw: dict[str, Any], where: str, version: int) -> None:
    if raw.get("version") != version or isinstance(raw.get("version"), bool):
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
