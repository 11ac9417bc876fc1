"""A published system as data: what it ran, and what it claims.

    name = "flightllm"                       title, source, description, year
    [runs.u280]                              a request on a device; a list of values is one run per value
    model = "llama-2-7b"
    device = "u280-flightllm"
    apply = ["weight-only:bits=4"]
    [[claims]]
    claim = "energy efficiency against V100S"
    source = "abstract"
    paper = 6.0
    metric = "tokens_per_joule"              one of :mod:`.metrics`
    of = "u280"                              the metric of this run …
    over = "v100s"                           … over that of this one, where there is one; lists of runs are one grid

A claim about a part of a machine, not about a request, names a ``figure`` in place of ``metric`` and ``of``: one
that a module of ``hw/`` or ``validation/`` computes (:func:`.metrics.known_figures`), with its ``arguments``.

``of_class`` asks a stream of requests for one class of them. ``at`` reads a metric off a curve: the runs of a grid are
its points, and what is asked is the value where another metric has a given one, ``at = { served_ttft_p99_s = 4.5 }``,
linear between the two runs around it. So two ways to serve are compared at equal latency.

Lists make grids: ``prompt = [128, 512]`` with ``model = ["a", "b"]`` is four runs, the last key in the order
model, device, apply, batch, prompt, output, count, parallel, requests, policy, … varying fastest. ``apply`` is a
list of techniques; a list of lists is a grid. A claim over several runs says which ``mean`` of them it is. What a
system cannot be asked here is a claim with ``not_modelled = "why"``.
"""

from __future__ import annotations

import itertools
import os
import tomllib
from importlib import resources
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import InputError, unknown_name
from ..files import first_problem

MOST_RUNS = 1000
"""Runs that one grid may have."""
Names = str | tuple[str, ...]
Mean = Literal["arithmetic", "geometric", "maximum", "minimum"]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Run(_Data):
    """One request batch on one device, as ``tokenfab estimate`` takes it; with ``requests`` a stream of them, as
    ``tokenfab serve`` does (``share`` of them within ``slo``, and ``slowdown``: ``--capacity``). Without ``ends``, a
    stream is not run again at the ends of the cost model's interval, which takes a third of the time; what is asked
    then has none. ``level``: closed form or event."""

    model: str
    device: str
    apply: tuple[str, ...] = ()
    batch: int = 1
    prompt: int = 512
    output: int = 128
    count: int | None = None
    parallel: str | None = None
    requests: str | None = None
    policy: str = "vllm"
    engine: str = "ideal"
    slo: str | None = None
    slowdown: str | None = None
    share: float | None = None
    seed: int = 0
    ends: bool = True
    level: Literal["closed", "event"] = "closed"

    @property
    def command(self) -> str:
        """The command that estimates or serves this run alone."""
        if self.requests is not None:
            parts = [f"tokenfab serve --model {self.model} --device {self.device} --requests {quote(self.requests)}"]
            parts += [f"--apply {text}" for text in self.apply]
            keys = ("policy", "engine", "count", "parallel", "slo", "slowdown", "share", "seed")
            parts += ["--level event"] if self.level == "event" else []
            options = {"share": "capacity"}
            parts += [f"--{options.get(k, k)} {quote(str(v))}" for k in keys if (v := getattr(self, k)) is not None]
            parts += [] if self.ends else ["--no-interval"]
            return " ".join(parts)
        parts = [f"tokenfab estimate --model {self.model} --device {self.device}"]
        parts += [f"--apply {text}" for text in self.apply]
        parts += [f"--batch {self.batch} --prompt {self.prompt} --output {self.output}"]
        parts += [f"--{key} {value}" for key in ("count", "parallel") if (value := getattr(self, key)) is not None]
        parts += ["--level event"] if self.level == "event" else []
        return " ".join(parts)


class Claim(_Data):
    """One figure a paper gives. ``reason``: why the model is off, where it is known to be. ``gain``: the figure is by
    how much ``of`` is above ``over``, as a share of ``over``."""

    claim: str = Field(min_length=1)
    source: str = Field(min_length=1)
    paper: float | None = Field(default=None, gt=0)
    metric: str | None = None
    figure: str | None = None
    arguments: dict[str, str | int | float] = {}
    of: Names | None = None
    over: Names | None = None
    gain: bool = False
    of_class: str | None = None
    at: dict[str, float] = {}
    mean: Mean | None = None
    reason: str | None = None
    not_modelled: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Claim:
        if self.not_modelled is not None:
            if self.metric or self.figure or self.of or self.over or self.mean:
                raise ValueError("not_modelled leaves nothing to compute; accepted: claim, source, paper, not_modelled")
        elif self.paper is None or (self.figure is None) == (self.metric is None or self.of is None):
            raise ValueError("accepted: paper with metric and of, or with figure, or not_modelled with the reason")
        elif self.figure is None and self.arguments:
            raise ValueError("arguments are of a figure; accepted: figure beside them")
        elif self.gain and self.over is None:
            raise ValueError("gain is over another run; accepted: over beside it")
        elif self.figure is not None and (self.metric or self.of or self.over or self.mean):
            raise ValueError("a figure is of no run; accepted: claim, source, paper, figure, reason")
        if len(self.at) > 1 or (self.at and self.mean):
            raise ValueError("at reads one curve; accepted: one metric with a value, and no mean")
        return self


def named(names: Names | None) -> tuple[str, ...]:
    """One name, several, or none."""
    return (names,) if isinstance(names, str) else names or ()


class System(_Data):
    """A system file. ``runs`` holds each name's runs, grids opened out."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    title: str = Field(min_length=1)
    source: str = Field(min_length=1)
    description: str = Field(min_length=1)
    year: int = Field(ge=1990, le=2100)
    runs: dict[str, tuple[Run, ...]] = {}
    claims: tuple[Claim, ...] = Field(min_length=1)

    @field_validator("runs", mode="before")
    @classmethod
    def _grids(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return {name: _opened(name, run) for name, run in raw.items()}

    def runs_of(self, names: Names | None) -> tuple[Run, ...]:
        """The runs of a name, or of several one after another."""
        return tuple(run for name in named(names) for run in self.runs[name])

    @model_validator(mode="after")
    def _named(self) -> System:
        asked = set()
        for claim in self.claims:
            for name in (*named(claim.of), *named(claim.over)):
                if name not in self.runs:
                    raise ValueError(f"claim {claim.claim!r}: {unknown_name('run', name, self.runs)}")
                asked.add(name)
            many, base = (len(self.runs_of(n)) or 1 for n in (claim.of, claim.over))
            if claim.at:
                if many < 2 or (claim.over and base < 2):
                    raise ValueError(f"claim {claim.claim!r}: a curve of one run; accepted: at least 2 runs")
                continue
            if base not in (1, many):
                raise ValueError(f"claim {claim.claim!r}: {many} runs over {base}; accepted: as many, or one")
            if (many > 1) != (claim.mean is not None):
                problem = "several runs need a mean" if many > 1 else "a mean needs several runs"
                raise ValueError(f"claim {claim.claim!r}: {problem}; accepted: {', '.join(Mean.__args__)}")  # type: ignore[attr-defined]
        if unused := sorted(self.runs.keys() - asked):
            raise ValueError(f"runs.{unused[0]}: no claim asks for it")
        return self


def _opened(name: str, run: Any) -> Any:
    """The runs of a grid: every combination of the values of its lists."""
    if not isinstance(run, dict):
        return run
    axes = []
    for key in [k for k in Run.model_fields if k in run] + [k for k in run if k not in Run.model_fields]:
        value = run[key]
        listed = isinstance(value, list) and (key != "apply" or any(isinstance(x, list) for x in value))
        axes.append([(key, x) for x in (value if listed else [value])])
    size = 1
    for axis in axes:
        size *= len(axis)
    if not 1 <= size <= MOST_RUNS:
        raise ValueError(f"runs.{name}: {size} runs; accepted: 1 to {MOST_RUNS}")
    return [dict(combination) for combination in itertools.product(*axes)]


def system_names() -> list[str]:
    """The systems that come with the package, sorted."""
    files = resources.files(__package__).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_system(name_or_path: str | os.PathLike[str]) -> System:
    """The system of that name, or the one a TOML file describes (a text that ends in ``.toml`` or has a folder).

    Raises ``InputError``, one line: unknown name, unreadable file, broken TOML, bad field.
    """
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, os.PathLike) or text.endswith(".toml") or Path(text).name != text:
        return _parse(text, Path(text))
    names = system_names()
    if text not in names:
        raise unknown_name("system", text, names, "or give the path of a system file (.toml)")
    return _parse(f"systems/{text}.toml", resources.files(__package__) / f"{text}.toml")


def _parse(where: str, file: Any) -> System:
    try:
        fields = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}; accepted: a system file (TOML)") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text; accepted: a system file (TOML)") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not TOML: {error}") from None
    try:
        return System.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error)}") from None
