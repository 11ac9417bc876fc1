"""Records of a file on their way to a request log: checked column by column, the first bad one named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..request_log import RequestLog, plain
from .forms import Form, Kind, show

CHUNK = 50_000
"""Records that are checked at a time."""


@dataclass(frozen=True)
class Read:
    """What a file held."""

    log: RequestLog
    arrivals: bool
    """Whether the file says when requests arrive; if not, all arrive at 0 in the log."""


class Trouble:
    """What to do about bad records of one file: refuse the first, or leave all of them out and say so."""

    def __init__(self, path: str, skip_bad: bool, word: str = "line") -> None:
        self.path, self.skip_bad, self.word = path, skip_bad, word
        self.left_out: list[str] = []

    def bad(self, number: int, what: str) -> None:
        """Record number ``number`` (from 1) is bad. Raises ``InputError`` unless bad ones are to be left out."""
        line = f"{self.path}: {self.word} {number}: {what}"
        if not self.skip_bad:
            raise InputError(line)
        self.left_out.append(str(InputError(line)))  # one printable line

    def nothing(self) -> InputError:
        """The error of a file without a usable record."""
        first = f" ({len(self.left_out)} left out, the first: {self.left_out[0]})" if self.left_out else ""
        return InputError(f"{self.path}: no request in it{first}")

    def log(self, arrival_s: Any, prompt: Any, output: Any, **more: Any) -> RequestLog:
        """The log of the good records. What only shows once they stand side by side is refused with their numbers."""
        try:
            return plain(arrival_s, prompt, output, **{"source": self.path, **more, "left_out": tuple(self.left_out)})
        except InputError as error:
            raise InputError(f"{self.path}: {error} (requests are counted from 0)") from None


class Records:
    """Collects the columns of a file in one :class:`Form`, chunk by chunk, and makes a log of them."""

    def __init__(self, form: Form, names: Mapping[str, Kind], trouble: Trouble) -> None:
        self.form, self.names, self.trouble = form, dict(names), trouble
        self.count = 0
        self._kept: list[NDArray[np.int64]] = []
        self._columns: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
        self._latest: Any = None
        self._origin: Any = 0

    def add(self, lines: Sequence[int], columns: Mapping[str, Sequence[Any]], broken: Mapping[int, str]) -> None:
        """One chunk: where each record stands, its values by column, and what is wrong with those that are no record.

        ``broken`` counts from the chunk's first record; the values of such a record are not looked at.
        """
        n = len(lines)
        if n == 0:
            return
        good = np.ones(n, bool)
        good[list(broken)] = False
        reasons = dict(broken)
        arrays = {}
        for name, kind in self.names.items():
            arrays[name], fine = kind.read(columns[name])
            for i in np.flatnonzero(good & ~fine).tolist():
                reasons[i] = f"{name}: found {show(columns[name][i])}, expected {kind.expected}"
            good &= fine
        if self.form.arrival in arrays:
            good &= self._in_order(arrays[self.form.arrival], good, columns[self.form.arrival], reasons)
        for i in sorted(reasons):
            self.trouble.bad(lines[i], reasons[i])
        for name, array in arrays.items():
            self._columns[name].append(array[good])
        self._kept.append(np.flatnonzero(good) + self.count)
        self.count += n

    def _in_order(
        self, stamps: NDArray[Any], good: NDArray[np.bool_], texts: Sequence[Any], reasons: dict[int, str]
    ) -> NDArray[np.bool_]:
        """Which stamps are not before the latest of a good record so far; what is wrong with the others."""
        if not good.any():
            return good
        if self._latest is None:
            self._latest = stamps[good][0]
            self._origin = self._latest if self.form.stamps.clock else 0
        counted = np.where(good, stamps, self._latest)
        latest = np.maximum.accumulate(np.concatenate([[self._latest], counted]))
        back = good & (stamps < latest[:-1])
        # The latest good record before each, -1 where that lies in an earlier chunk.
        at = np.maximum.accumulate(np.where(good & ~back, np.arange(len(stamps)), -1)).tolist()
        for i in np.flatnonzero(back).tolist():
            told = show(texts[at[i]]) if at[i] >= 0 else "a later one"
            reasons[i] = (
                f"{self.form.arrival}: found {show(texts[i])} after {told}, expected records in order of arrival"
            )
        self._latest = latest[-1]
        return ~back

    @property
    def kept(self) -> NDArray[np.int64]:
        """Which of all records (from 0) were good."""
        return np.concatenate(self._kept) if self._kept else np.empty(0, np.int64)

    def log(self, **more: Any) -> Read:
        """The log of what was added. ``more`` are fields of a log. Raises ``InputError`` where nothing was."""
        form = self.form
        kept = self.kept
        if not kept.size:
            raise self.trouble.nothing()
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        stamps = columns.pop(form.arrival, None)
        arrival = np.zeros(len(kept)) if stamps is None else (stamps - self._origin) / form.stamps.per_second
        fields = {form.more[name]: columns[name] for name in columns if name in form.more}
        if "class" in fields:
            fields["klass"], more["classes"] = _classes(fields.pop("class"), more.get("classes", ()))
        if "after" in fields:
            fields["after"] = _renumbered(fields["after"], kept, self.trouble)
        log = self.trouble.log(arrival, columns[form.prompt], columns[form.output], **fields, **more)
        return Read(log, stamps is not None)


def _classes(names: NDArray[Any], first: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Names as indexes into the distinct ones, in the order of ``first`` and then of appearance."""
    number = {name: i for i, name in enumerate(first)}
    index = np.fromiter((number.setdefault(name, len(number)) for name in names), np.int64, len(names))
    return index, tuple(number)


def _renumbered(after: NDArray[np.int64], kept: NDArray[np.int64], trouble: Trouble) -> NDArray[np.int64]:
    """Numbers of records in the file as numbers among those kept. Raises ``InputError`` where one was left out."""
    place = np.minimum(np.searchsorted(kept, after), len(kept) - 1)
    missing = (after >= 0) & (kept[place] != after)
    if missing.any():
        i = int(np.flatnonzero(missing)[0])
        raise InputError(
            f"{trouble.path}: record {kept[i]} waits for record {after[i]} (counted from 0), which is not there "
            "or was left out"
        )
    return np.where(after >= 0, place, -1)


def chunks(count: int) -> Iterator[tuple[int, int]]:
    """(first, end) of each chunk of ``count`` records."""
    return ((i, min(i + CHUNK, count)) for i in range(0, count, CHUNK))
