"""Forms of request files: which column says what, in which unit, and what is accepted there.

The one table :data:`FORMS` serves comma-separated files and JSON lines alike; a further form is a further entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, nearest
from ..request_log import MOST_PRIORITY, MOST_SECONDS, MOST_TOKENS

DATE = re.compile(r"(?:19|20|21)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|\+00:00)?")
SHOWN = 40
"""Characters of a wrong value that are shown."""
Column = tuple[NDArray[Any], NDArray[np.bool_]]
"""Values, and which of them are good."""


@dataclass(frozen=True)
class Kind:
    """What a column holds: ``read`` turns its values (texts of a table, or whatever JSON had) into an array."""

    expected: str
    read: Callable[[Sequence[Any]], Column]
    per_second: float = 0.0
    """Of stamps: how many of its units are a second."""
    clock: bool = False
    """Of stamps: they are those of a real clock, and count from the first."""


@dataclass(frozen=True)
class Form:
    """One form of file. A record has it when the columns of prompt and output are there."""

    name: str
    arrival: str
    stamps: Kind
    prompt: str
    output: str
    more: dict[str, str] = field(default_factory=dict)
    """Further columns that are read: name in the file → field of :data:`KINDS`."""
    ids: tuple[str, str] | None = None
    """Columns (of JSON lines) with the tokens of prompt and answer; counts may then be left out."""
    blocks: str = ""
    """Column (of JSON lines) with one id per block of the prompt and all that precedes it."""
    block: int = 16
    """Tokens per block, where the reader is not told otherwise."""
    closed: bool = False
    """Whether a column that is not named here is refused."""

    @property
    def columns(self) -> dict[str, Kind]:
        """The columns of a table, by name."""
        counts = {self.arrival: self.stamps, self.prompt: TOKENS, self.output: TOKENS}
        return counts | {name: KINDS[kind] for name, kind in self.more.items()}


def show(value: Any) -> str:
    """A wrong value as it is named in an error."""
    if value is None or value == "":
        return "nothing"
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    """``values`` as numbers; NaN where one is none, as ``1_000``, ``True`` and digits of other scripts are none."""
    if isinstance(values[0], str):
        try:
            joined = "".join(values)
            if "_" not in joined and joined.isascii():
                return np.fromiter(map(float, values), np.float64, len(values))
        except (TypeError, ValueError):
            pass
    elif {type(v) for v in values} <= {int, float}:
        try:
            return np.fromiter(values, np.float64, len(values))
        except OverflowError:
            pass
    return np.array([_number(v) for v in values])


def _number(value: Any) -> float:
    try:
        if isinstance(value, str) and value.isascii() and "_" not in value:
            return float(value)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
    except (ValueError, OverflowError):
        return float("nan")


def _whole(low: float, high: float) -> Callable[[Sequence[Any]], Column]:
    def read(values: Sequence[Any]) -> Column:
        found = numbers(values)
        good = (found >= low) & (found <= high) & (np.floor(found) == found)
        return np.where(good, found, 0).astype(np.int64), good

    return read


def _real(high: float) -> Callable[[Sequence[Any]], Column]:
    def read(values: Sequence[Any]) -> Column:
        found = numbers(values)
        good = (found >= 0) & (found <= high)
        return np.where(good, found, 0.0), good

    return read


def _dates(values: Sequence[Any]) -> Column:
    """Nanoseconds since 1970 of texts such as ``2023-11-16 18:15:46.6805900``."""
    texts = [v[:-1] if v.endswith("Z") else v.removesuffix("+00:00") for v in _date_texts(values)]
    good = np.array([t != "" for t in texts])
    try:
        stamps = np.array([t or "1970-01-01" for t in texts], dtype="datetime64[ns]")
    except ValueError:  # the 30th of February
        stamps = np.zeros(len(texts), "datetime64[ns]")
        for i, text in enumerate(texts):
            try:
                stamps[i] = np.datetime64(text or "1970-01-01", "ns")
            except ValueError:
                good[i] = False
    return stamps.astype(np.int64), good


def _date_texts(values: Sequence[Any]) -> list[str]:
    match = DATE.fullmatch
    return [v if isinstance(v, str) and v.isascii() and match(v) else "" for v in values]


def _names(values: Sequence[Any]) -> Column:
    good = np.array([isinstance(v, str) and 0 < len(v) <= SHOWN and v.isprintable() for v in values])
    return np.array([v if ok else "" for v, ok in zip(values, good, strict=True)], dtype=object), good


def _seconds(per_second: float, unit: str, clock: bool = False) -> Kind:
    most = 100 * MOST_SECONDS if clock else MOST_SECONDS  # a clock's first stamp is subtracted
    return Kind(f"{unit} from 0 to {most * per_second:g}", _real(most * per_second), per_second, clock)


TOKENS = Kind(f"a whole number of tokens from 1 to {MOST_TOKENS}", _whole(1, MOST_TOKENS))
SECONDS = _seconds(1, "seconds")
MILLISECONDS = _seconds(1e3, "milliseconds")
NANOSECONDS = _seconds(1e9, "nanoseconds")
UNIX = _seconds(1, "seconds", clock=True)
DATES = Kind("a time (UTC) as 2023-11-16 18:15:46.6805900", _dates, 1e9, clock=True)
KINDS = {
    "class": Kind(f"a name of 1 to {SHOWN} characters", _names),
    "priority": Kind(f"a whole number from -{MOST_PRIORITY} to {MOST_PRIORITY}", _whole(-MOST_PRIORITY, MOST_PRIORITY)),
    "prefix": Kind("the number of a prefix node, or -1", _whole(-1, 2**31)),
    "extends": Kind("the number of a prefix node, or -1", _whole(-1, 2**31)),
    "after": Kind("the number of an earlier record, counted from 0, or -1", _whole(-1, 2**31)),
    "think_s": SECONDS,
}
"""Columns beyond arrival, prompt and output, by the name our own tables give them."""

FORMS = (
    Form("plain", "arrival_s", SECONDS, "prompt", "output", {name: name for name in KINDS}, closed=True),
    # github.com/Azure/AzurePublicDataset, AzureLLMInferenceTrace_*.csv
    Form("azure", "TIMESTAMP", DATES, "ContextTokens", "GeneratedTokens"),
    # github.com/microsoft/vidur, data/processed_traces
    Form("vidur", "arrived_at", SECONDS, "num_prefill_tokens", "num_decode_tokens"),
    # github.com/HPMLL/BurstGPT
    Form("burstgpt", "Timestamp", SECONDS, "Request tokens", "Response tokens"),
    # github.com/casys-kaist/LLMServingSim: workloads, and what its runs of vLLM wrote. A record has one of the two
    # stamps, so the form is chosen by that.
    Form("llmservingsim", "arrival_time_ns", NANOSECONDS, "input_toks", "output_toks",
         ids=("input_tok_ids", "output_tok_ids")),
    Form("vllm-run", "arrival_time", UNIX, "input_toks", "output_toks", ids=("input_tok_ids", "output_tok_ids")),
    # github.com/kvcache-ai/Mooncake: stamps in milliseconds, one id per 512 tokens
    Form("mooncake", "timestamp", MILLISECONDS, "input_length", "output_length", blocks="hash_ids", block=512),
)  # fmt: skip


def find_form(columns: Iterable[str], where: str) -> Form:
    """The form whose columns of prompt and output, and if possible of arrival, are among ``columns``.

    Raises ``InputError`` where there is none, where a column stands twice, and where a form that says all of its
    columns has another.
    """
    names = list(columns)
    fitting = [f for f in FORMS if {f.prompt, f.output} <= set(names) or (f.ids and set(f.ids) <= set(names))]
    if not fitting:
        known = " or ".join(f"{f.arrival},{f.prompt},{f.output}" for f in FORMS)
        raise InputError(f"{where}: found the columns {show(','.join(names))}; expected {known}")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: the column {show(name)} stands there twice")
    form = next((f for f in fitting if f.arrival in names), fitting[0])
    for name in names:
        if form.closed and name not in form.columns:
            near = nearest(name, form.columns)
            meant = f"did you mean {near[0]}?" if near else "known: " + ", ".join(form.columns)
            raise InputError(f"{where}: unknown column {show(name)}; {meant}")
    return form
