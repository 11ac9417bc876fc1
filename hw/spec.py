"""The device: what a trace is computed on, as plain data.

A device file is TOML: engines (rate per number format), memory levels, links, power, area, price,
and the constants of the cost model. Every number carries its unit and its source; :data:`~.units.KEYS`
lists what a file may say. :func:`parse_device` turns the bytes of a file into a :class:`Device` or
raises an :class:`~tokenfab.errors.InputError` of one line that names the file, the key, and what
would be accepted.

    [memory.dram]
    bandwidth = { value = "2039 GB/s", source = "datasheet" }   # a key of [sources],
    energy = { value = "3.97 pJ/bit", source = "assumed: as HBM2" }   # or "assumed: …", "derived: …"

A file may name an ``architecture``, whose file supplies constants that its devices share; a number
in the device file wins. This module does no input or output: :mod:`.devices` finds the files.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ..errors import InputError, unknown_name
from ..files import first_problem
from .units import (
    ARCHITECTURE_KEYS,
    KEYS,
    OPTIONAL_SECTIONS,
    Key,
    Quantity,
    measure,
    number_format,
    shown,
    word,
)


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Compute(_Data):
    """``units``: SMs, CUs or cores; ``clock``: hertz, of the quoted rates; ``boost``: a higher one that kernels had."""

    units: Quantity
    clock: Quantity
    boost: Quantity | None = None


ROLES: Final = ("weights", "kv", "activations", "far-weights", "far-kv")
"""What a memory level may hold. ``far``: what a trace reads from the slow tier (``techniques/offload.py``); the
others are read where the arithmetic is."""


class Memory(_Data):
    """One memory level: capacity and what software cannot use of it (bytes), bandwidth (bytes/s),
    latency (s), energy (J per bit moved); ``holds`` names what lives in it (:data:`ROLES`, with commas)."""

    technology: str | None = None
    holds: str | None = None
    capacity: Quantity
    bandwidth: Quantity | None = None
    latency: Quantity | None = None
    energy: Quantity | None = None
    reserved: Quantity | None = None

    @property
    def usable(self) -> float:
        """Bytes a model can occupy: the capacity less what is reserved (ECC, driver)."""
        return self.capacity.value - (self.reserved.value if self.reserved else 0.0)

    @property
    def roles(self) -> tuple[str, ...]:
        """What lives in this level, as the file says it; empty where it does not say."""
        return tuple(role.strip() for role in self.holds.split(",")) if self.holds else ()

    @model_validator(mode="after")
    def _roles_and_room(self) -> Memory:
        for role in set(self.roles) - set(ROLES):
            raise ValueError(str(unknown_name("role in holds", role[:80], ROLES)))
        if self.usable <= 0:
            raise ValueError(
                f"reserved {self.reserved.text if self.reserved else ''} leaves nothing of "
                f"the capacity {self.capacity.text}; accepted: less than the capacity"
            )
        return self


class Dram(Memory):
    """The level that holds weights and KV cache; its bandwidth is always given."""

    bandwidth: Quantity


class Link(_Data):
    """A way off the device: bandwidth in bytes/s *per direction* and device, latency in seconds of
    one hop as a collective library sees it, ``peers`` the number of devices it joins (this one
    included)."""

    bandwidth: Quantity
    latency: Quantity
    peers: Quantity | None = None
    topology: str | None = None


class Power(_Data):
    """Watts: ``tdp`` sustained maximum of the whole device, ``idle`` when it waits, model loaded."""

    tdp: Quantity
    idle: Quantity

    @model_validator(mode="after")
    def _order(self) -> Power:
        if self.idle.value > self.tdp.value:
            raise ValueError(f"idle {self.idle.text} exceeds tdp {self.tdp.text}; accepted: idle at most tdp")
        return self


class Die(_Data):
    """Silicon: ``area`` in mm², all compute dies of the package together, ``count`` of them (1 where a file does not
    say); ``process`` is a name; ``redundant`` the share of the area whose defects spare units make up for."""

    area: Quantity
    process: str | None = None
    count: Quantity | None = None
    redundant: Quantity | None = None


class Price(_Data):
    """US dollars: to buy one device, to rent one for an hour."""

    purchase: Quantity | None = None
    hourly: Quantity | None = None


class Model(_Data):
    """Constants of the cost model: the fraction of the engine's rate that large matmuls, attention
    and vector work reach, the fraction of DRAM and link bandwidth that streams reach, and ``launch``,
    the least seconds one kernel takes. Attention's own bandwidth share and least time are those of
    other kernels where a file does not say. ``static_share`` of the rated power is drawn while kernels
    run, whatever they do; ``transport_energy`` (J/bit) is what a bit from DRAM costs on its way through
    the chip and in the arithmetic of a memory-bound kernel, beyond the DRAM's own energy.
    ``collective_*`` and ``direct_*`` are constants of :mod:`.collective`, all of them (but
    ``collective_in_switch``) or none. ``correlation`` is that of the errors of different kernels of one
    family, ``correlation_across`` of different families (both 1 where a file does not say)."""

    matmul_efficiency: Quantity
    attention_efficiency: Quantity
    attention_memory_efficiency: Quantity | None = None
    attention_launch: Quantity | None = None
    vector_efficiency: Quantity
    memory_efficiency: Quantity
    launch: Quantity
    link_efficiency: Quantity
    collective_launch: Quantity | None = None
    collective_low_latency: Quantity | None = None
    collective_tail: Quantity | None = None
    collective_in_switch: Quantity | None = None
    direct_launch: Quantity | None = None
    direct_barrier: Quantity | None = None
    static_share: Quantity | None = None
    transport_energy: Quantity | None = None
    correlation: Quantity | None = None
    correlation_across: Quantity | None = None


class Interval(_Data):
    """Measured over predicted time of one class of kernels: the 5 % and the 95 % quantile."""

    low: Quantity
    high: Quantity


class Arrays(_Data):
    """Arrays of a hardware unit of ``rtl/``, ``per_unit`` (1) in each of ``compute.units``, at ``compute.clock``.

    ``parameters`` are the unit's, in lower case (its defaults where a file does not say); ``power`` is what one
    array draws while it works. ``weights`` and ``activations`` say as what the unit takes a trace's formats
    (``int4 = "fp4"``) where the names differ. ``area`` (mm²) is that of one array as its designers give it;
    ``mac_area`` (mm²) is a binary16 multiply-accumulate in the device's process: with the unit's relative area it
    gives the arrays' of this RTL."""

    unit: str
    power: Quantity
    per_unit: Quantity | None = None
    area: Quantity | None = None
    mac_area: Quantity | None = None
    parameters: dict[str, Quantity] = {}
    weights: dict[str, str] = {}
    activations: dict[str, str] = {}


class Device(_Data):
    """One device. ``digest`` is the SHA-256 of the file's bytes followed by its architecture's and its host's.

    ``host`` is the device beside which this one works and which does what this one does not (the GPU of a
    processing-in-memory or computational-storage device)."""

    name: str
    description: str
    kind: str
    vendor: str
    architecture: str | None = None
    host: Device | None = None
    year: int
    engines: dict[str, dict[str, Quantity]]
    arrays: Arrays | None = None
    compute: Compute
    memory: dict[str, Memory]
    links: dict[str, Link] = {}
    power: Power
    die: Die | None = None
    price: Price = Price()
    model: Model
    kernels: dict[str, dict[str, Quantity | str]] = {}
    intervals: dict[str, Interval] = {}
    parameters: dict[str, Quantity] = {}
    digest: str

    @property
    def dram(self) -> Dram:
        """The memory level that holds weights and KV cache."""
        dram = self.memory["dram"]
        assert isinstance(dram, Dram)
        return dram

    def constant(self, name: str) -> float:
        """A constant of the cost model by its key in [model]; an unknown one is a KeyError (a bug)."""
        if name not in Model.model_fields:
            raise KeyError(name)
        return float(getattr(self.model, name))

    def quantities(self) -> Iterator[tuple[str, Quantity]]:
        """Every number as (dotted key, quantity), in the order of the fields: the assumptions table."""
        yield from _quantities(self, "")

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it; a quantity is ``{"value", "unit", "text", "source"}``."""
        fields = self.model_dump(exclude_none=True)
        fields["memory"] = {name: level.model_dump(exclude_none=True) for name, level in self.memory.items()}
        return fields

    def rate(self, format: str, engine: str = "matrix") -> tuple[str, Quantity]:
        """The rate at which ``engine`` does arithmetic in ``format``: (format used, FLOP/s or OP/s).

        Where the device has no such engine, its vector engine is asked instead (a P40 has no matrix
        unit). Then, in this order:

        1. the engine's rate for the format;
        2. fp16 for bf16 and bf16 for fp16: neither holds the other's values, but serving engines cast
           a checkpoint to the one a device has, at a loss of range or precision. So bf16 work on a
           card without bf16 (V100, T4) runs as fp16 at fp16's rate, and fp16 work on a TPU as bf16;
        3. the fastest format, on this engine or the vector engine, that holds the format's every value
           (:meth:`.units.Format.holds`: int4 in int8, fp8, fp16 …; fp8 in fp16, bf16, tf32, fp32; fp16
           in tf32, fp32; never a float in integers); of equals the narrowest, then one of the same
           kind, then the most precise.

        Raises InputError for an unknown format or engine, and where nothing on the device will do.
        """
        asked = number_format(format)
        if engine not in {"matrix", "vector", *self.engines}:
            raise unknown_name("engine", engine[:80], {"matrix", "vector", *self.engines}, f"device {self.name}")
        place = engine if engine in self.engines else "vector"
        rates = self.engines.get(place, {})
        for name in (format, _CAST.get(format, "")):
            if name in rates:
                return name, rates[name]
        wide = [
            (-rate.value, other.bits, other.kind != asked.kind, -other.mantissa, name, rate)
            for candidates in (rates, self.engines.get("vector", {}))
            for name, rate in candidates.items()
            if (other := number_format(name)).holds(asked)
        ]
        if wide:
            *_, name, rate = min(wide, key=lambda row: row[:-1])
            return name, rate
        have = "; ".join(f"{place}: {', '.join(rates)}" for place, rates in self.engines.items())
        raise InputError(f"device {self.name} cannot compute in {format} on its {engine} engine; it has {have}")


_CAST: Final = {"bf16": "fp16", "fp16": "bf16"}


def _quantities(data: object, key: str) -> Iterator[tuple[str, Quantity]]:
    if isinstance(data, Quantity):
        yield key, data
    elif isinstance(data, BaseModel | dict):
        for name, value in data.items() if isinstance(data, dict) else data:
            yield from _quantities(value, f"{key}.{name}" if key else name)


# ---------------------------------------------------------------- reading

DEFAULT: Final = "default"
"""The architecture that devices of :data:`MEASURED_KINDS` inherit from first: what holds for a card nobody measured."""
MEASURED_KINDS: Final = ("gpu", "tpu", "cpu")
"""Kinds of which cards were measured; what holds for them says nothing of the others."""

Architecture = tuple[str, bytes]
"""An architecture's file: its name as error messages show it, and its bytes."""


def parse_device(
    data: bytes,
    file: str,
    architecture: Callable[[str], Architecture] | None = None,
    host: Callable[[str], Device] | None = None,
) -> Device:
    """The device that ``data``, the bytes of a TOML file, describes.

    ``file`` is the file's name in error messages; ``architecture`` finds the architecture file that
    the device names, and the default one; ``host`` finds the device it names as its host. Raises
    InputError, one line: the file, the key, what is wrong and what would be accepted.
    """
    raw = _document(data, file)
    name = raw.get("architecture")
    inherited: dict[str, Quantity | str] = {}
    digest = hashlib.sha256(data)
    if architecture is not None:
        general = [DEFAULT] if raw.get("kind") in MEASURED_KINDS else []
        for parent in (*general, *([name] if isinstance(name, str) else [])):
            try:
                parent_file, parent_data = architecture(parent)
            except InputError as error:
                raise InputError(f"{file}: architecture: {error}") from None
            inherited |= parse_architecture(parent_data, parent_file, parent)
            digest.update(parent_data)
    fields = _Reader(file, raw, KEYS, inherited).read()
    fields.pop("sources", None)
    for section in ("intervals", "kernels"):
        fields[section] = {name: entries for name, entries in fields[section].items() if entries}
    levels = {name: (Dram if name == "dram" else Memory, level) for name, level in fields["memory"].items()}
    fields["memory"] = {n: _checked(cls, level, file, f"memory.{n}") for n, (cls, level) in levels.items()}
    fields["power"] = _checked(Power, fields["power"], file, "power")
    if "host" in fields:
        fields["host"] = _host(fields["host"], file, host)
        digest.update(fields["host"].digest.encode())
    device: Device = _checked(Device, {**fields, "digest": digest.hexdigest()}, file, "")
    if (boost := device.compute.boost) and boost.value < (clock := device.compute.clock).value:
        raise InputError(f"{file}: compute.boost {boost.text} is below the clock; accepted: {clock.text} or more")
    return device


def _host(name: str, file: str, find: Callable[[str], Device] | None) -> Device:
    if find is None:
        raise InputError(f"{file}: host: {name} cannot be looked up here; accepted: a file without a host")
    try:
        return find(name)
    except InputError as error:
        raise InputError(f"{file}: host: {error}") from None


def parse_architecture(data: bytes, file: str, name: str) -> dict[str, Quantity | str]:
    """Numbers and kernel libraries of an architecture file by dotted key, sources marked ``architecture NAME:``."""
    fields = _Reader(file, _document(data, file), ARCHITECTURE_KEYS, {}).read()
    libraries = {f"kernels.{family}.library": kernels.get("library") for family, kernels in fields["kernels"].items()}
    return {
        **{key: library for key, library in libraries.items() if library},
        **{
            key: quantity.model_copy(update={"source": f"architecture {name}: {quantity.source}"})
            for key, quantity in _quantities(fields, "")
        },
    }


def read_tables(data: bytes, file: str, keys: Mapping[str, Key]) -> dict[str, Any]:
    """Tables of numbers with units and sources that are no device: ``keys`` says what ``file`` may hold.

    Raises InputError, one line, as :func:`parse_device` does.
    """
    return _Reader(file, _document(data, file), keys, {}).read()


def _document(data: bytes, file: str) -> dict[str, Any]:
    try:
        raw = tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start}); accepted: a TOML file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not TOML: {error}") from None
    if not raw:
        raise InputError(f"{file}: empty; accepted: a TOML file with name, kind, [engines.matrix], …")
    return raw


def _checked(cls: type[Any], fields: Mapping[str, Any], file: str, key: str) -> Any:
    try:
        return cls(**fields)
    except ValidationError as error:
        problem = first_problem(error).removeprefix("document: ")
        raise InputError(f"{file}: {f'{key}: ' if key else ''}{problem}") from None


_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class _Reader:
    """One pass over a parsed file, guided by a table of keys."""

    def __init__(
        self, file: str, raw: dict[str, Any], keys: Mapping[str, Key], inherited: Mapping[str, Quantity | str]
    ) -> None:
        self.file = file
        self.raw = raw
        self.inherited = inherited
        self.sources: dict[str, str] = {}
        self.tree: dict[str, Any] = {}
        for dotted, key in keys.items():
            node = self.tree
            *path, last = dotted.split(".")
            for part in path:
                node = node.setdefault(part, {})
            node[last] = key

    def read(self) -> dict[str, Any]:
        """The file's contents, numbers as quantities; raises InputError at the first problem."""
        self.sources = self.table(self.raw.get("sources", {}), self.tree["sources"], "sources")
        return self.table(self.raw, self.tree, "")

    def problem(self, key: str, text: str) -> InputError:
        return InputError(f"{self.file}: {f'{key}: ' if key else ''}{text}")

    def table(self, raw: object, node: dict[str, Any], where: str) -> dict[str, Any]:
        known = [name for name in node if name != "*"]
        if not isinstance(raw, dict):
            inside = ", ".join(known) or "names of your own"
            raise self.problem(where, f"{shown(raw)} is not a table; accepted: a table [{where}] with {inside}")
        result: dict[str, Any] = {}
        for name, value in raw.items():
            child = node.get(name, node.get("*"))
            if child is None:
                raise self.problem(where, str(unknown_name("key", name[:80], known)))
            if name not in node:
                self.check_name(name, where)
            key = f"{where}.{name}" if where else name
            result[name] = self.table(value, child, key) if isinstance(child, dict) else self.leaf(value, child, key)
        for name in known:
            if name not in result:
                self.absent(result, name, node[name], f"{where}.{name}" if where else name)
        if where.split(".")[0] == "engines" and not result:
            raise self.problem(
                where, f"no rate; accepted: at least one number format with {KEYS['engines.*.*'].accepted}"
            )
        return result

    def absent(self, result: dict[str, Any], name: str, child: Key | dict[str, Any], key: str) -> None:
        """Fill in what the file does not say: from the architecture, or not at all, or refuse."""
        if isinstance(child, dict):
            if key not in OPTIONAL_SECTIONS:
                result[name] = self.table({}, child, key)
        elif key in self.inherited:
            result[name] = self.inherited[key]
        elif child.required:
            raise self.problem(key, f"missing; accepted: {child.accepted}")

    def check_name(self, name: str, where: str) -> None:
        if where.startswith("engines."):
            try:
                number_format(name)
            except InputError as error:
                raise self.problem(where, str(error)) from None
        elif not _NAME.fullmatch(name):
            accepted = "lower-case letters, digits, '-' and '_', 64 at most"
            raise self.problem(where, f"{shown(name)} is not a name; accepted: {accepted}")

    def leaf(self, raw: object, key: Key, where: str) -> str | int | Quantity:
        accepted = f"accepted: {key.accepted}"
        if key.is_word:
            try:
                return word(raw, key)
            except ValueError as error:
                raise self.problem(where, f"{error}; {accepted}") from None
        if not isinstance(raw, dict):
            accepted = f"accepted: {{ value = …, source = … }}, {key.accepted}"
            raise self.problem(where, f"{shown(raw)} has no source; {accepted}")
        for name in raw:
            if name not in ("value", "source"):
                raise self.problem(where, str(unknown_name("key", name[:80], ["value", "source"])))
        if "value" not in raw:
            raise self.problem(where, f"value is missing; {accepted}")
        try:
            value, unit, text = measure(raw["value"], key)
        except ValueError as error:
            raise self.problem(where, f"{error}; {accepted}") from None
        return Quantity(value=value, unit=unit, text=text, source=self.source(raw.get("source"), where))

    def source(self, raw: object, where: str) -> str:
        """The source ``raw`` names: a text of [sources], or itself if it says derived or assumed."""
        if isinstance(raw, str):
            if raw in self.sources:
                return self.sources[raw]
            if raw.startswith(("derived:", "assumed:")) and raw.partition(":")[2].strip():
                return " ".join(raw.split())
        what = "has no source" if raw is None else f"source {shown(raw)} is unknown"
        keys = f"a key of [sources] ({', '.join(self.sources) or 'which is empty'})"
        raise self.problem(where, f'{what}; accepted: {keys}, or "derived: formula", or "assumed: reason"')
