"""An estimate document, typed: what a report needs of what ``tokenfab estimate --json`` prints.

Keys that a report does not use may stand beside these. Numbers are finite, and small or large enough to be drawn.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def one_line(text: str) -> str:
    """``text`` in one line, what cannot be printed (a byte of a file name that is no UTF-8, too) as a space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(one_line), Field(min_length=1)]
Text = Annotated[str, Field(max_length=4000), AfterValidator(one_line)]
Seconds = Annotated[float, Field(ge=1e-15, le=1e15)]
Amount = Annotated[float, Field(ge=0, le=1e30)]
Positive = Annotated[float, Field(gt=1e-15, le=1e30)]
Whole = Annotated[int, Field(ge=1, le=10**12)]
Shares = dict[Name, Annotated[float, Field(ge=0, le=1.000001)]]


class Data(BaseModel):
    """Part of a document: keys that are not named are let be, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class Interval(Data):
    """Low to high; written as a list of two."""

    low: Amount
    high: Amount

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


class Times(Interval):
    """An interval of seconds."""

    low: Seconds
    high: Seconds


class ModelFacts(Data):
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


class Quantity(Data):
    """One number of a device file, with its source."""

    key: Name
    value: float
    unit: Text
    text: Text
    source: Text
    assumed: bool


class DeviceFacts(Data):
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


class Request(Data):
    """What was asked of the model."""

    batch: Whole
    prompt: Whole
    output: Whole


class Phase(Data):
    """One forward pass."""

    latency_s: Seconds
    interval_s: Times
    energy_j: Amount
    energy_interval_j: Interval | None = None
    energy_parts_j: dict[Name, Amount]
    bound: Shares
    flops: Amount
    bytes: Amount


class Decode(Phase):
    """One decode step at ``context`` tokens."""

    context: Amount


class Total(Data):
    """The whole request."""

    latency_s: Seconds
    interval_s: Times
    tokens_per_s: Positive
    energy_j: Amount
    energy_interval_j: Interval | None = None
    energy_per_token_j: Amount
    cost_usd_per_mtoken: Amount | None
    cost_basis: Text | None = None


class Memory(Data):
    """The fullest device."""

    weights_bytes: Amount
    kv_bytes: Amount
    activation_bytes: Amount
    needed_bytes: Amount
    capacity_bytes: Positive
    missing_bytes: Amount
    fits: bool


class Operator(Data):
    """One operator of one phase, all its executions."""

    phase: Literal["prefill", "decode"]
    name: Text
    kind: Name
    count: Whole
    time_s: Amount
    bound: Name
    flops: Amount
    bytes: Amount


class Curve(Data):
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


class Curves(Data):
    """The three curves of an explained estimate."""

    context: Curve
    prompt: Curve
    batch: BatchCurve

    @model_validator(mode="before")
    @classmethod
    def _axis(cls, raw: object) -> object:
        if not isinstance(raw, dict):
            return raw
        named = {k: v for k, v in raw.items() if k in cls.model_fields and isinstance(v, dict)}
        if lacking := [k for k, v in named.items() if k not in v]:
            raise ValueError(f"{lacking[0]}.{lacking[0]} is missing")
        return raw | {k: {**v, "x": v[k]} for k, v in named.items()}


class Document(Data):
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
