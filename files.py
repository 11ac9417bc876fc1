"""Files: written whole or not at all, and validation errors in one line."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from pydantic import ValidationError


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then renamed.

    Missing folders are made. A symbolic link keeps pointing at the file, which is replaced. What is no
    file (a pipe, a terminal, ``/dev/null``) is written to as it is. Raises ``InputError`` when it
    cannot be done.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        _write(Path(path), data)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"{path}: cannot be written: {reason}") from None


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise ``InputError`` where :func:`write_whole` could not write ``path``: to know before long work is done."""
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            return
        nearest = next(folder for folder in target.parents if folder.exists())
        handle, temporary = tempfile.mkstemp(dir=nearest, prefix=".tokenfab-")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"{path}: cannot be written: {reason}") from None
    os.close(handle)
    Path(temporary).unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    if path.exists() and not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
        path.write_bytes(data)
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tokenfab-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def json_text(document: Any, ascii_only: bool = False) -> str:
    """``document`` as a JSON text that ends in a newline; what is not finite, JSON has no word for: null."""
    return json.dumps(_finite(document), indent=1, allow_nan=False, ensure_ascii=ascii_only) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def first_problem(error: ValidationError) -> str:
    """The first problem pydantic found, as ``key: what is wrong``, with how many more there are."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    key = ".".join(str(p) for p in first["loc"]) or "document"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{key}: {first['msg'].removeprefix('Value error, ')}{more}"
