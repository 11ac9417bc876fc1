"""Fuzzing device files: whatever is done to one, it loads or is refused in one line that names the file."""

from __future__ import annotations

import copy
import json
import math
import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import tokenfab.hw
from tokenfab.errors import InputError
from tokenfab.hw.devices import device_names
from tokenfab.hw.spec import parse_device
from tokenfab.hw.units import DIMENSIONS

CATALOG = Path(str(tokenfab.hw.__file__)).parent / "catalog"
SEEDS = {name: (CATALOG / f"{name}.toml").read_bytes() for name in device_names()}
ARCHITECTURES = {p.stem: p.read_bytes() for p in (CATALOG / "architectures").glob("*.toml")}


def dumps(table: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """``table`` as TOML; enough for device files and what the tests do to them."""

    def value(raw: object) -> str:
        if isinstance(raw, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in raw.items()) + "}"
        if isinstance(raw, list):
            return "[" + ", ".join(map(value, raw)) + "]"
        if isinstance(raw, float) and not math.isfinite(raw):
            return repr(raw)
        return json.dumps(raw)

    return "".join(f"{json.dumps(k)} = {value(v)}\n" for k, v in table.items())


def attempt(data: bytes) -> None:
    def architecture(name: str) -> tuple[str, bytes]:
        if name not in ARCHITECTURES:
            raise InputError(f"unknown architecture {name!r}")
        return f"{name}.toml", ARCHITECTURES[name]

    try:
        device = parse_device(data, "fuzzed.toml", architecture)
    except InputError as error:
        message = str(error)
        assert message.startswith("fuzzed.toml: ")
        assert len(message.splitlines()) == 1
        assert len(message) < 1500
    else:
        assert all(math.isfinite(q.value) and q.value > 0 and q.source for _, q in device.quantities())
        json.dumps(device.to_dict(), allow_nan=False)


def paths(table: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in table.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += paths(value, (*path, key))
    return found


NUMBERS = st.floats() | st.integers() | st.booleans()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
UNITS = st.sampled_from([u for d in DIMENSIONS.values() for u in d.units])
MEASURES = st.builds(lambda n, u: f"{n} {u}", st.floats() | st.integers(-(10**6), 10**6), UNITS)
VALUES = NUMBERS | TEXTS | MEASURES | st.lists(NUMBERS | TEXTS, max_size=2) | st.just({})
VALUES |= st.builds(lambda v, s: {"value": v, "source": s}, VALUES, st.just("assumed: fuzz") | TEXTS)


@given(data=st.data())
def test_a_file_with_keys_changed_loads_or_is_refused_in_one_line(data: st.DataObject) -> None:
    table = tomllib.loads(data.draw(st.sampled_from(sorted(SEEDS.values()))).decode())
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(paths(table)))
        node = table
        for part in path:
            node = node[part]
        action = data.draw(st.sampled_from(["delete", "replace", "rename", "add", "swap"]))
        if action == "replace":
            node[last] = data.draw(VALUES)
        elif action == "add":
            node[data.draw(TEXTS)] = data.draw(VALUES)
        elif action == "rename":
            node[data.draw(TEXTS | st.just(last[:-1]))] = node.pop(last)
        elif action == "swap":
            other = data.draw(st.sampled_from(sorted(table)))
            node[last] = copy.deepcopy(table[other])
        elif len(table) > 1 or path:
            del node[last]
        if not table:
            break
    attempt(dumps(table).encode("utf-8"))


@given(
    seed=st.sampled_from(sorted(SEEDS.values())),
    at=st.integers(0, 10_000),
    length=st.integers(0, 40),
    inserted=st.binary(max_size=40),
)
def test_a_file_with_bytes_changed_loads_or_is_refused_in_one_line(
    seed: bytes, at: int, length: int, inserted: bytes
) -> None:
    at %= len(seed)
    attempt(seed[:at] + inserted + seed[at + length :])


@given(seed=st.sampled_from(sorted(SEEDS.values())), at=st.integers(0, 10_000))
def test_a_truncated_file_loads_or_is_refused_in_one_line(seed: bytes, at: int) -> None:
    attempt(seed[: at % len(seed)])


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_in_one_line(data: bytes) -> None:
    attempt(data)
