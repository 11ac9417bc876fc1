"""A serving document, typed: what a report needs of what ``tokenfab serve --json`` prints.

Keys that a report does not use may stand beside these.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .policy_figures import policy_figures
from .schema import Amount, Data, Interval, Name, Positive, Text, Whole

Share = Annotated[float, Field(ge=0, le=1.000001)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Series = Annotated[list[Amount], Field(min_length=1, max_length=10_000)]
Quantiles = Annotated[list[Amount], Field(max_length=10_001)]
Limit = Literal["ttft", "tpot", "e2e"]
Figure = Amount | None
"""None: no request came so far."""


class Spread(Data):
    """Mean and quantiles in seconds."""

    mean: Figure
    p50: Figure
    p90: Figure
    p99: Figure

    @model_validator(mode="after")
    def _order(self) -> Spread:
        known = [x for x in (self.p50, self.p90, self.p99) if x is not None]
        if any(a > b for a, b in pairwise(known)):
            raise ValueError("the quantiles must rise")
        return self


class Requests(Data):
    """How many requests came, and what became of them."""

    submitted: Count
    finished: Count
    rejected: Count

    @model_validator(mode="after")
    def _sum(self) -> Requests:
        if self.finished + self.rejected > self.submitted:
            raise ValueError("more are finished and rejected than submitted")
        return self


class Policy(Data):
    """A policy; ``settings`` are its other keys."""

    name: Name
    source: Text = ""
    settings: dict[Name, str | int | float | bool | None] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, raw: object) -> object:
        if not isinstance(raw, dict):
            return raw
        own = {k: v for k, v in raw.items() if k in ("name", "source")}
        return own | {"settings": {k: v for k, v in raw.items() if k not in own}}


class Sourced(Data):
    """One number of an engine's profile (or a list of them), with its source."""

    value: Annotated[float, Field(ge=-1e30, le=1e30)] | Annotated[list[Count], Field(max_length=10_000)]
    source: Text


class Profile(Data):
    """An engine's file."""

    description: Text = ""
    numbers: dict[Name, Sourced] = Field(default_factory=dict)


class Workload(Data):
    """Where the requests come from; ``left_out`` are bad records of their file."""

    source: Text
    left_out: list[Any] = Field(default_factory=list)


class Slo(Data):
    """Limits in seconds, and the share of the requests within all of them."""

    limits: dict[Limit, Positive]
    attained: Share


class Power(Data):
    """Watts of all devices over time, in bins."""

    mean: Amount
    peak: Amount
    bin_s: Amount
    series: Series


class Blocks(Data):
    """KV blocks of all replicas."""

    total: Count
    peak: Count
    block_tokens: Whole
    occupancy_mean: Amount
    cached_tokens: Count


class OverTime(Data):
    """Means of bins: sequences decoding, requests waiting, KV blocks held."""

    bin_s: Amount
    decoding: Series
    waiting: Series
    held: Series

    @model_validator(mode="after")
    def _lengths(self) -> OverTime:
        if not len(self.decoding) == len(self.waiting) == len(self.held):
            raise ValueError("the lists of series differ in length")
        return self


class Cdf(Data):
    """Quantiles at equal steps from 0 to 100 %; empty where no request has such a time."""

    ttft_s: Quantiles
    tpot_s: Quantiles
    e2e_s: Quantiles

    @model_validator(mode="after")
    def _rise(self) -> Cdf:
        for name, values in vars(self).items():
            if len(values) == 1:
                raise ValueError(f"{name} has one quantile; expected none, or two and more")
            if any(a > b for a, b in pairwise(values)):
                raise ValueError(f"{name}: the quantiles must rise")
        return self


class Rejection(Data):
    """A request that was turned away, by its number in the log."""

    request: Count
    reason: Text


class ClassOf(Data):
    """Requests of one class."""

    name: Name = Field(alias="class")
    requests: Count
    finished: Count
    ttft_s: Spread
    tpot_s: Spread
    e2e_s: Spread
    attained: Share
    goodput_requests_per_s: Amount


class Capacity(Data):
    """The highest rate that held, requests per second; ``next``: one that did not (None: none was found)."""

    rate: Amount
    next: Amount | None
    attained: Share


class Room(Data):
    """Memory of the fullest device of a replica, in bytes, and the blocks that fit."""

    blocks: Count
    block_tokens: Whole
    weights_bytes: Amount
    activation_bytes: Amount
    reserved_bytes: Amount
    kv_bytes: Amount
    kv_bytes_per_token: Amount
    seats: Count


class Utilisation(Data):
    """How busy the devices were, and how many sequences decoded at once on average while they were."""

    busy: Amount
    devices: Whole
    mean_batch: Amount


class Served(Data):
    """A stream of requests on replicas of an engine."""

    tokenfab: Name
    model: Name
    applied: list[Text] = Field(default_factory=list)
    device: Name
    parallel: Text
    replicas: Whole
    policy: Policy
    engine: Name
    profile: Profile = Field(default_factory=Profile)
    workload: Workload
    requests: Requests
    ttft_s: Spread
    tpot_s: Spread
    itl_s: Spread
    e2e_s: Spread
    queue_s: Spread
    throughput_tokens_per_s: Amount
    throughput_requests_per_s: Amount
    goodput_requests_per_s: Amount
    slo: Slo
    energy_j: dict[Name, Amount]
    energy_per_token_j: Figure
    power_w: Power
    usd_per_hour: Figure
    cost_usd_per_mtoken: Figure
    utilisation: Utilisation
    kv_blocks: Blocks
    series: OverTime
    cdf: Cdf
    preemptions: Count
    iterations: Count
    simulated_s: Amount
    rejections: list[Rejection] = Field(default_factory=list)
    classes: list[ClassOf] = Field(default_factory=list)
    memory: dict[Name, Room] = Field(default_factory=dict)
    seed: int
    command: Text | None = None
    capacity: Capacity | None = None
    policy_groups: list[tuple[Text, list[tuple[Text, Text]]]] = Field(default_factory=list)
    interval: dict[Name, Interval] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _groups(cls, raw: Any) -> Any:
        """What the policy says of itself, in words."""
        if isinstance(raw, dict) and "policy_groups" not in raw:
            raw = {**raw, "policy_groups": policy_figures(raw)}
        return raw

    @model_validator(mode="after")
    def _total(self) -> Served:
        if "total" not in self.energy_j:
            raise ValueError("energy_j.total is missing")
        return self

    @property
    def energy_parts(self) -> dict[str, float]:
        """Joules by part."""
        return {name: joules for name, joules in self.energy_j.items() if name != "total"}

    def span(self, key: str) -> tuple[float, float] | None:
        """The interval of a figure, by its path (``ttft_s.p99``), where the document has one."""
        found = self.interval.get(key)
        return None if found is None else (found.low, found.high)
