"""What a serving engine is, beside its schedule: memory it takes, blocks, limits, and its host's time per iteration.

Profiles are data, ``engines/NAME.toml``, found by being there; each number says where it is from.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown_name

RANGES: dict[str, tuple[float, float]] = {
    "utilisation": (0.01, 1.0), "reserved_bytes": (0.0, 1e13), "block": (1, 1024), "budget": (1, 10**7),
    "seats": (1, 10**6), "host_s": (0.0, 10.0), "host_sequence_s": (0.0, 1.0), "asynchronous": (0, 1),
    "keeps": (0, 1), "sampler": (0, 1), "one_attention": (0, 1), "step_s": (0.0, 10.0), "sequence_s": (0.0, 1.0),
    "prompt_s": (0.0, 10.0), "prompt_token_s": (0.0, 1.0),
}  # fmt: skip
"""Keys of a profile, and what they may be."""
WHOLE = ("block", "budget", "seats", "asynchronous", "keeps", "sampler", "one_attention")


@dataclass(frozen=True)
class EngineProfile:
    """Limits and overheads of an engine. Times in seconds, memory as a share of the device's or in bytes.

    ``utilisation``: share of memory an engine takes in all; ``reserved_bytes`` of it hold neither weights, cache nor
    activations (library contexts, captured graphs). ``block``: tokens per KV block. ``budget``: most tokens of an
    iteration (``max_num_batched_tokens``), ``seats``: most sequences (``max_num_seqs``). ``host_s`` and
    ``host_sequence_s``: the host prepares the next iteration, fixed and per sequence; hidden behind the device where
    ``asynchronous`` is 1. ``keeps`` 1: blocks that a preempted sequence had computed stay until others take them, so
    that it need not compute them again (where prefixes are cached). What nothing hides: ``step_s`` of each iteration,
    ``sequence_s`` of each sequence that gets a token, ``prompt_s`` of each iteration that computes prompts,
    ``prompt_token_s`` of each of their tokens. ``sampler`` 1: the device's greedy sampler counts, where its model has
    one, which no trace has. ``one_attention`` 1: a mixed iteration's attention is one call where the device's model
    knows such a kernel; 0: prompts and decoding sequences have a call each. ``graphs``: token counts that are captured,
    ascending; iterations of fewer tokens are padded to the next.
    """

    name: str = "ideal"
    utilisation: float = 0.9
    reserved_bytes: float = 0.0
    block: int = 16
    budget: int = 2048
    seats: int = 256
    host_s: float = 0.0
    host_sequence_s: float = 0.0
    asynchronous: int = 0
    keeps: int = 0
    sampler: int = 0
    one_attention: int = 1
    step_s: float = 0.0
    sequence_s: float = 0.0
    prompt_s: float = 0.0
    prompt_token_s: float = 0.0
    graphs: tuple[int, ...] = ()
    description: str = ""
    sources: dict[str, str] = field(default_factory=dict)

    def padded(self, tokens: int) -> int:
        """Tokens that the kernels of ``tokens`` tokens are run with."""
        if not self.graphs or tokens > self.graphs[-1]:
            return tokens
        return self.graphs[bisect_left(self.graphs, tokens)]

    @property
    def bare(self) -> bool:
        """Whether iterations take what the devices take and nothing else."""
        return self.overheads(1, 1) == (0.0, 0.0)

    def overheads(self, prompt_tokens: int, sequences: int) -> tuple[float, float]:
        """Seconds of an iteration on the host, and what nothing hides."""
        extra = self.step_s + self.sequence_s * sequences
        if prompt_tokens:
            extra += self.prompt_s + self.prompt_token_s * prompt_tokens
        return self.host_s + self.host_sequence_s * sequences, extra

    def iterations_s(self, device_s: float, prompt_tokens: int, sequences: int, count: int) -> float:
        """Seconds of ``count`` iterations, all alike, that occupy the device for ``device_s`` together."""
        host, extra = self.overheads(prompt_tokens, sequences)
        return (max(device_s, host * count) if self.asynchronous else device_s + host * count) + extra * count


def profile_names() -> list[str]:
    """Engines of the package, sorted."""
    folder = resources.files(__package__) / "engines"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_profile(text: str) -> EngineProfile:
    """A profile of the package by name, or any profile file by path (``.toml``), with numbers of it replaced where
    ``:key=value,…`` follows. Raises ``InputError``."""
    name, _, changes = text.partition(":")
    profile = _read(name)
    given: dict[str, float | int] = {}
    for item in filter(None, changes.split(",")):
        key, _, number = item.partition("=")
        if key not in RANGES or key in given:
            raise InputError(f"engine {name}: {item!r}; accepted: {', '.join(RANGES)}, once each, as seats=64")
        try:
            value: int | float = int(number) if key in WHOLE else float(number)
        except ValueError:
            kind = "whole number" if key in WHOLE else "number"
            raise InputError(f"engine {name}: {key}: {number!r} is not a {kind}") from None
        given[key] = _number(key, value, f"engine {name}")
    if not given:
        return profile
    sources = profile.sources | dict.fromkeys(given, f"given: {text}")
    return replace(profile, name=text, sources=sources, **given)  # type: ignore[arg-type]


def _read(name_or_path: str) -> EngineProfile:
    if name_or_path.endswith(".toml"):
        try:
            text = Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{name_or_path}: cannot be read: {error}") from None
    elif name_or_path in profile_names():
        text = (resources.files(__package__) / "engines" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    else:
        raise unknown_name("engine", name_or_path, profile_names())
    try:
        return _profile(tomllib.loads(text), name_or_path)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name_or_path}: not TOML: {error}") from None


def _profile(raw: dict[str, Any], where: str) -> EngineProfile:
    """``raw`` checked: every number a table of ``value`` and ``source``."""
    given: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, entry in raw.items():
        if key in ("name", "description"):
            if not isinstance(entry, str) or not entry:
                raise InputError(f"{where}: {key}: expected a text")
            given[key] = entry
            continue
        if key not in RANGES and key != "graphs":
            raise InputError(f"{where}: unknown key {key}; accepted: name, description, graphs, {', '.join(RANGES)}")
        if not isinstance(entry, dict) or set(entry) != {"value", "source"} or not isinstance(entry["source"], str):
            raise InputError(f'{where}: {key}: expected {{ value = …, source = "…" }}')
        given[key], sources[key] = _number(key, entry["value"], where), entry["source"]
    if "name" not in given:
        raise InputError(f"{where}: name is missing")
    return EngineProfile(**given, sources=sources)


def _number(key: str, value: Any, where: str) -> Any:
    if key == "graphs":
        whole = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value)
        if not whole or value != sorted(set(value)):
            raise InputError(f"{where}: graphs: expected ascending token counts")
        return tuple(value)
    low, high = RANGES[key]
    kind = int if key in WHOLE else float
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{where}: {key}: {value!r}; accepted: {low:g} to {high:g}")
    if kind is int and value != int(value):
        raise InputError(f"{where}: {key}: {value!r} is not a whole number")
    return kind(value)
