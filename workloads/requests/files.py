"""Request files of any form, packed with gzip or not."""

from __future__ import annotations

import gzip
import os
import zlib
from typing import Any

from ...errors import InputError
from ..request_log import RequestLog
from .documents import Counting, read_lines, read_list
from .records import Read, Trouble
from .tables import read_table

MOST_BYTES = 4 * 2**30
"""Unpacked bytes of a file at most: a small packed file may hide a large one."""
GZIP = b"\x1f\x8b"
PIECE = 2**24
NO_ARRIVALS = "it does not say when requests arrive; give their rate, as in {path}@rate=2 (rate=inf: all at once)"


def read_requests(
    path: str | os.PathLike[str], block: int = 0, chars_per_token: float = 0.0, skip_bad: bool = False
) -> RequestLog:
    """The requests of a file: a table with a header, JSON lines, or one JSON list, packed with gzip or not.

    The form is known by the names of columns or keys (:data:`forms.FORMS`; conversations: ``conversations``).
    ``block``: tokens per block of the prefix tree that token ids are made into (0: 16, or what the form says);
    ``chars_per_token``: how text is counted (0: it is refused); ``skip_bad``: leave bad records out and list them
    in ``left_out`` of the log. Raises ``InputError`` with the first line that is bad, the field, what was found and
    what was expected, for a file that cannot be read or holds no request, and for one without arrivals.
    """
    read = read_file(path, Counting(block, chars_per_token), skip_bad)
    if not read.arrivals:
        raise InputError(f"{path}: {NO_ARRIVALS.format(path=path)}")
    return read.log


def read_file(path: str | os.PathLike[str], counting: Counting, skip_bad: bool = False) -> Read:
    """As :func:`read_requests`, but a file need not say when requests arrive."""
    trouble = Trouble(str(path), skip_bad)
    data, cut = _unpacked(path)
    # What is no UTF-8 is kept as it is, so that the field it stands in is named.
    text = data.decode("utf-8-sig", errors="surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
    del data
    if cut:
        whole = text.rpartition("\n")[0]
        number = whole.count("\n") + 2 if whole else 1
        trouble.bad(number, f"found the end of the packed data ({cut}), expected a whole gzip file")
        text = whole
    start = text.lstrip()[:1]
    if not start:
        raise InputError(f"{path}: the file is empty; expected a header and a line per request, or JSON lines")
    if start == "[":
        trouble.word = "record"
        return read_list(text, counting, trouble)
    lines = text.split("\n")
    del text
    return read_lines(lines, counting, trouble) if start == "{" else read_table(lines, trouble)


def _unpacked(path: str | os.PathLike[str]) -> tuple[bytes, str]:
    """The bytes of a file, unpacked, and what stopped the unpacking before its end."""
    pieces: list[bytes] = []
    size = 0
    try:
        with open(path, "rb") as file:
            packed = file.peek(2)[:2] == GZIP
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            try:
                while piece := stream.read1(PIECE):
                    pieces.append(piece)
                    size += len(piece)
                    if size > MOST_BYTES:
                        raise InputError(f"{path}: more than {MOST_BYTES} bytes; expected at most that many")
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                return b"".join(pieces), str(error) or "it is cut off"
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"{path}: cannot be read: {reason}") from None
    return b"".join(pieces), ""
