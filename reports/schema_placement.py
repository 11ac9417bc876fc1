"""A placement document, typed: what a report needs of what ``tokenfab place --json`` prints.

Keys that a report does not use may stand beside these.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .schema import Amount, Data, Name, Positive, Request, Seconds, Text, Whole

Share = Annotated[float, Field(ge=0, le=1.001)]
Lanes = dict[Name, dict[Name, Amount]]
Pair = Annotated[list[Amount], Field(min_length=2, max_length=2)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]


class PatternOperator(Data):
    """One operator of a layer: where it runs, and for how long in each pass."""

    name: Text
    kind: Name
    place: Text
    prefill_s: Amount
    decode_s: Amount


class Pattern(Data):
    """``layers`` layers of one block that are placed alike."""

    block: Name
    layers: Whole
    operators: list[PatternOperator] = Field(min_length=1)


class Transfer(Data):
    """Bytes of a request from one engine to another in a phase."""

    phase: Name
    source: Name = Field(alias="from")
    target: Name = Field(alias="to")
    bytes: Amount


class Link(Data):
    """A direct way from one engine to another, and what it carries of a request."""

    source: Name = Field(alias="from")
    target: Name = Field(alias="to")
    network: Name
    bandwidth_bytes_s: Positive
    latency_s: Amount
    bytes: Amount
    busy_s: Amount


class Held(Data):
    """What lies in one memory; ``device`` joins the engines that work from it by ``+``."""

    device: Name
    tier: Name
    weights_bytes: Amount
    replicated_bytes: Amount
    kv_bytes: Amount
    reserve_bytes: Amount
    capacity_bytes: Amount

    @property
    def parts(self) -> dict[str, float]:
        """Bytes by use, in the order of a bar."""
        twice = min(self.replicated_bytes, self.weights_bytes)
        return {
            "weights, only here": self.weights_bytes - twice, "weights, elsewhere too": twice,
            "KV cache": self.kv_bytes, "activations": self.reserve_bytes,
        }  # fmt: skip


class Span(Data):
    """A lane at work; written as a list of six."""

    lane: Name
    layer: Annotated[int, Field(ge=0)]
    name: Text
    kind: Name
    start_s: Amount
    end_s: Amount

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, raw: object) -> object:
        if isinstance(raw, list) and len(raw) == len(cls.model_fields):
            return dict(zip(cls.model_fields, raw, strict=True))
        raise ValueError("expected a list of six: lane, layer, name, kind, start, end")

    @model_validator(mode="after")
    def _order(self) -> Span:
        if self.start_s > self.end_s:
            raise ValueError("the span ends before it starts")
        return self


class Window(Data):
    """The layers of which all spans are there; ``alike``: how many are placed as the first is (none: all layers)."""

    first: Annotated[int, Field(ge=0)]
    layers: Whole
    alike: Whole | None
    start_s: Amount
    end_s: Amount


class Schedule(Data):
    """One pass of a phase: ``busy_s`` and ``whole`` (shares of the stretches between ``edges_s``) by lane and operator
    kind."""

    phase: Name
    seconds: Seconds
    repeats: Positive
    layers: Whole
    busy_s: Lanes
    edges_s: list[Amount] = Field(min_length=2, max_length=1001)
    whole: dict[Name, dict[Name, Annotated[list[Share], Field(min_length=1, max_length=1000)]]]
    window: Window
    spans: list[Span] = Field(max_length=20_000)

    @model_validator(mode="after")
    def _lengths(self) -> Schedule:
        if any(len(v) != len(self.edges_s) - 1 for lane in self.whole.values() for v in lane.values()):
            raise ValueError("a list of whole has not one number per stretch of edges_s")
        if any(a >= b for a, b in zip(self.edges_s, self.edges_s[1:], strict=False)):
            raise ValueError("edges_s must rise")
        if unknown := {s.lane for s in self.spans} - set(self.whole):
            raise ValueError(f"a span's lane {min(unknown)[:60]!r} is not in whole")
        return self


class Replayed(Data):
    """What the event-by-event replay says, beside the prediction."""

    predicted_s: Seconds
    replayed_s: Seconds
    phases: dict[Name, Amount]
    schedule: list[Schedule]


class Head(Data):
    """What every placement document says."""

    tokenfab: Name
    model: Name
    devices: list[Name] = Field(min_length=1, max_length=64)
    request: Request
    objective: Text
    limits: dict[Name, Number] = Field(default_factory=dict)
    notes: list[Text] = Field(default_factory=list)
    baselines: dict[Name, Number | None]
    solve_s: Amount
    command: Text | None = None
    left_out: dict[Name, Text] = Field(default_factory=dict)
    applied: list[Text] = Field(default_factory=list)


class Nowhere(Head):
    """Nothing fits, or nothing was found in time. ``exceeded``: memory or limit → (needed, allowed)."""

    status: Literal["infeasible", "unknown"]
    reason: Text
    exceeded: dict[Name, Pair] = Field(default_factory=dict)


class Placement(Head):
    """A placement that was found."""

    status: Literal["optimal", "feasible"]
    value: Number
    bound: Number
    gap: Amount
    metrics: dict[Name, Amount]
    patterns: list[Pattern] = Field(min_length=1)
    transfers: list[Transfer]
    links: list[Link]
    memory: list[Held] = Field(min_length=1)
    busy_s: dict[Name, Amount]
    replay: Replayed

    @model_validator(mode="after")
    def _names(self) -> Placement:
        ends = [(t.source, t.target) for t in self.transfers] + [(x.source, x.target) for x in self.links]
        named = {name for pair in ends for name in pair}
        if unknown := named - set(self.devices):
            raise ValueError(f"unknown device {min(unknown)[:60]!r}; devices: {', '.join(self.devices)}")
        for name in ("latency", "throughput", "energy", "cost"):
            if name not in self.metrics:
                raise ValueError(f"metrics.{name} is missing")
        return self

    @property
    def latency_s(self) -> float:
        """Seconds of the request."""
        return self.metrics["latency"]
