"""Estimate documents: read, checked and typed before anything is drawn.

A document is what ``tokenfab estimate --json`` prints (schema ``tokenfab.estimate``), or a study, which
holds a list of them (schema ``tokenfab.study``). Keys that a report does not use may stand beside.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import InputError
from ..files import first_problem

SCHEMA = "tokenfab.estimate"
STUDY = "tokenfab.study"
VERSION = 1
MOST = 500
"""Estimates in one report."""
ACCEPTED = f'accepted: a result of "tokenfab estimate --json" or "tokenfab study" (schema {SCHEMA} or {STUDY}, version 1)'


def _printable(text: str) -> str:
    """One line of printable text; raises ``ValueError`` for what no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode text") from None
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable), Field(min_length=1)]
Text = Annotated[str, Field(max_length=4000), AfterValidator(_printable)]
Seconds = Annotated[float, Field(ge=1e-15, le=1e15)]
Amount = Annotated[float, Field(ge=0, le=1e30)]
Positive = Annotated[float, Field(gt=1e-15, le=1e30)]
Whole = Annotated[int, Field(ge=1, le=10**12)]
Shares = dict[Name, Annotated[float, Field(ge=0, le=1.000001)]]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class Interval(_Data):
    """Seconds, low to high; written as a list of two."""

    low: Seconds
    high: Seconds

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, raw: object) -> object:
        if isinstance(raw, list) and len(raw) == 2:
            return {"low": raw[0], "high": raw[1]}
        raise ValueError("expected a list of two numbers, low and high")

    @model_validator(mode="after")
    def _order(self) -> Interval:
        if self.low > self.high:
            raise ValueError("the low end exceeds the high end")
        return self


class ModelFacts(_Data):
    """The model, as the document describes it."""

    name: Name
    parameters: Amount
    format: Name
    weights_bytes: Amount
    kv_bytes_per_token: Amount
    max_context: Whole | None = None
    layers: Amount
    hidden: Amount
    operators: Amount
    applied: list[Text] = []
    provenance: dict[Name, Any] = {}


class Quantity(_Data):
    """One number of a device file, with its source."""

    key: Name
    value: float
    unit: Text
    text: Text
    source: Text
    assumed: bool


class DeviceFacts(_Data):
    """The device, its roofline for the model's format and every number of its file."""

    name: Name
    description: Text
    kind: Name
    architecture: Name | None = None
    count: Whole
    parallel: Text
    peak_flops: Positive
    peak_format: Name
    achievable_flops: Positive
    bandwidth: Positive
    achievable_bandwidth: Positive
    capacity_bytes: Positive
    tdp_w: Amount
    digest: Name
    quantities: list[Quantity]


class Request(_Data):
    """What was asked of the model."""

    batch: Whole
    prompt: Whole
    output: Whole


class Phase(_Data):
    """One forward pass."""

    latency_s: Seconds
    interval_s: Interval
    energy_j: Amount
    energy_parts_j: dict[Name, Amount]
    bound: Shares
    flops: Amount
    bytes: Amount


class Decode(Phase):
    """One decode step at ``context`` tokens."""

    context: Amount


class Total(_Data):
    """The whole request."""

    latency_s: Seconds
    interval_s: Interval
    tokens_per_s: Positive
    energy_j: Amount
    energy_per_token_j: Amount
    cost_usd_per_mtoken: Amount | None


class Memory(_Data):
    """The fullest device."""

    weights_bytes: Amount
    kv_bytes: Amount
    activation_bytes: Amount
    needed_bytes: Amount
    capacity_bytes: Positive
    missing_bytes: Amount
    fits: bool


class Operator(_Data):
    """One operator of one phase, all its executions."""

    phase: Literal["prefill", "decode"]
    name: Text
    kind: Name
    count: Whole
    time_s: Amount
    bound: Name
    flops: Amount
    bytes: Amount


class Curve(_Data):
    """Seconds, with an interval, over ``x``."""

    x: list[Positive] = Field(min_length=1, max_length=10_000)
    latency_s: list[Seconds]
    low_s: list[Seconds]
    high_s: list[Seconds]

    @model_validator(mode="after")
    def _lengths(self) -> Curve:
        if len({len(v) for v in vars(self).values() if isinstance(v, list)}) != 1:
            raise ValueError("the lists of a curve differ in length")
        if any(a >= b for a, b in zip(self.x, self.x[1:], strict=False)):
            raise ValueError("the points of a curve must rise")
        return self


class BatchCurve(Curve):
    """Decode over batch, with throughput and whether the batch fits."""

    tokens_per_s: list[Positive]
    fits: list[bool]


class Curves(_Data):
    """The three curves of an explained estimate."""

    context: Curve
    prompt: Curve
    batch: BatchCurve

    @model_validator(mode="before")
    @classmethod
    def _axis(cls, raw: object) -> object:
        if not isinstance(raw, dict):
            return raw
        return {k: {**v, "x": v[k]} if isinstance(v, dict) and k in v else v for k, v in raw.items()}


class Document(_Data):
    """One estimate."""

    tokenfab: Name
    model: ModelFacts
    device: DeviceFacts
    request: Request
    prefill: Phase
    decode: Decode
    total: Total
    memory: Memory
    provenance: list[Text]
    operators: list[Operator] = []
    curves: Curves | None = None


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
