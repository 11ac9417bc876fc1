"""Units and ranges: how a number in a device file is written, and what is accepted where.

Device files keep the datasheet's own units (``"3.35 TB/s"``, ``"80 GiB"``); inside the code every
number is in SI base units: seconds, bytes, hertz, FLOP/s, watts, joules per bit, US dollars, and
square millimetres for area. Decimal and binary prefixes are kept apart: ``GB`` is 1e9 bytes, ``GiB``
is 2**30.

:data:`KEYS` is the one table of what a device file may say: each key's dimension, accepted range,
an example, and whether it must be there. :data:`DIMENSIONS` is the one table of units. A number of
bits is a number of bits: ``Gbit/s`` is accepted for links and is an eighth of ``GB/s``.

This module imports nothing above it: readers need only pydantic.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from ..errors import unknown_name


class Quantity(BaseModel):
    """A number with its unit and its source.

    ``value`` is in ``unit`` (SI base units; mm² for areas, USD and USD/h for prices, 1 for counts
    and fractions), ``text`` is what the file says, ``source`` is where it comes from, resolved:
    the datasheet's name, or a text that begins ``derived:`` or ``assumed:``. An inherited number's
    source begins ``architecture NAME:``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    unit: str
    text: str
    source: str

    def __float__(self) -> float:
        return self.value

    @property
    def assumed(self) -> bool:
        """Whether nobody measured or published it: the first place to look when a result is off."""
        inherited = re.match(r"architecture [^:]*: ", self.source)
        return self.source.startswith("assumed:", inherited.end() if inherited else 0)


class Dimension(NamedTuple):
    """A physical dimension: its name with an article, its base unit, and unit → factor to base."""

    phrase: str
    base: str
    units: Mapping[str, float]
    whole: bool = False


def _prefixed(unit: str, factors: Mapping[str, float], scale: float = 1.0) -> dict[str, float]:
    return {prefix + unit: factor * scale for prefix, factor in factors.items()}


_UP: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_DOWN: Final = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15}
_BINARY: Final = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_BYTES: Final = {**_prefixed("B", _UP), **_prefixed("B", _BINARY)}

DIMENSIONS: Final[Mapping[str, Dimension]] = {
    "rate": Dimension("a rate", "FLOP/s", {**_prefixed("FLOP/s", _UP), **_prefixed("OP/s", _UP)}),
    "size": Dimension("a size", "B", _BYTES),
    "bandwidth": Dimension(
        "a bandwidth", "B/s", {**{f"{u}/s": f for u, f in _BYTES.items()}, **_prefixed("bit/s", _UP, 1 / 8)}
    ),
    "time": Dimension("a time", "s", _prefixed("s", _DOWN)),
    "frequency": Dimension("a frequency", "Hz", _prefixed("Hz", _UP)),
    "energy per bit": Dimension(
        "an energy per bit", "J/bit", {**_prefixed("J/bit", _DOWN), **_prefixed("J/B", _DOWN, 1 / 8)}
    ),
    "energy per operation": Dimension("an energy per operation", "J/op", _prefixed("J/op", _DOWN)),
    "energy": Dimension("an energy", "J", _prefixed("J", _DOWN)),
    "power": Dimension("a power", "W", {**_prefixed("W", _DOWN), "kW": 1e3, "MW": 1e6}),
    "area": Dimension("an area", "mm2", {"mm2": 1.0, "mm²": 1.0, "um2": 1e-6, "µm²": 1e-6}),
    "price": Dimension("a price", "USD", {"USD": 1.0}),
    "hourly price": Dimension("a price per hour", "USD/h", {"USD/h": 1.0}),
    "fraction": Dimension("a fraction", "1", {"": 1.0, "%": 0.01}),
    "count": Dimension("a whole number", "1", {"": 1.0}, whole=True),
    "number": Dimension("a number", "1", {"": 1.0, "%": 0.01}),
}


class Key(NamedTuple):
    """What one key of a device file accepts: ``low`` ≤ value ≤ ``high``, written as a file would."""

    dimension: str
    low: str = ""
    high: str = ""
    example: str = ""
    required: bool = True

    @property
    def optional(self) -> Key:
        return self._replace(required=False)

    @property
    def is_word(self) -> bool:
        """Whether it is a text or a year, which need no source."""
        return self.dimension in ("text", "name", "kind", "year")

    @property
    def accepted(self) -> str:
        """The accepted range in words, for error messages."""
        if self.dimension in _WORDS:
            example = self.example if self.dimension == "year" else f'"{self.example}"'
            return f"{_WORDS[self.dimension]}, e.g. {example}"
        dimension = DIMENSIONS[self.dimension]
        example = self.example if "" in dimension.units else f'"{self.example}"'
        return f"{dimension.phrase} between {self.low} and {self.high}, e.g. {example}"


DEVICE_KINDS: Final = ("gpu", "tpu", "cpu", "fpga", "pim", "lut", "bit-serial", "systolic", "storage", "dataflow")
_WORDS: Final = {
    "text": "one line of text",
    "name": "a name of lower-case letters, digits, '-', '_' and '.'",
    "kind": f"one of {', '.join(DEVICE_KINDS)}",
    "year": "a year between 1990 and 2100",
    "any": "a number with a unit",
}

_RATE = Key("rate", "1 MFLOP/s", "1 EFLOP/s", "312 TFLOP/s")
_SIZE = Key("size", "1 B", "1 PB", "80 GiB")
_BANDWIDTH = Key("bandwidth", "1 MB/s", "1 PB/s", "3.35 TB/s")
_MEMORY_TIME = Key("time", "1 ps", "1 s", "560 ns", required=False)
_BIT_ENERGY = Key("energy per bit", "0.1 fJ/bit", "100 nJ/bit", "3.97 pJ/bit", required=False)
_EFFICIENCY = Key("fraction", "0.0001", "1", "0.85")

REGIMES: Final = (
    "matmul_compute", "matmul_dram", "matmul_small", "attention_compute", "attention_dram", "attention_small",
    "experts", "experts_8bit", "experts_4bit", "narrow", "latent", "vector", "network", "storage", "power",
)  # fmt: skip
"""Classes of kernels whose errors differ, operator family and what bounds it (``small``: mostly the start of a
kernel; files without it take ``dram``; ``latent``: attention in latent space; ``storage``: a slow tier); and
the power drawn."""

_LIBRARY = Key("name", example="cublas-ampere", required=False)
_SHARE = Key("number", "0.01", "10", "0.8", False)
_SHORT = Key("time", "1 ps", "100 ms", "2 us", False)
_ATTENTION = {
    "library": _LIBRARY._replace(example="flash-2"), "matrix_share": _SHARE, "tile": _SHORT, "launch": _SHORT,
    "next_launch": _SHORT, "token": _SHORT, "split": _SHORT, "dram_share": _SHARE,
}  # fmt: skip
_EXPERTS = {
    "library": _LIBRARY._replace(example="triton-0.24"), "overhead": _SHORT,
    "row": Key("time", "1 fs", "1 ms", "2 ns", False), "rate_share": _SHARE, "load_share": _SHARE,
    "gather": Key("number", "0.0001", "100", "0.1", False), "overlap": _SHARE,
}  # fmt: skip
KERNEL_KEYS: Final[Mapping[str, Mapping[str, Key]]] = {
    "gemm": {
        "library": _LIBRARY, "launch_clocks": Key("number", "1", "1000000", "4800", False), "dram_share": _SHARE,
        "dram_tail": _SHORT, "load_share": _SHARE, "l2_share": _SHARE,
        "depth_clocks": Key("number", "0.01", "1000", "4", False), "writeback": _SHARE, "split": _SHORT,
        "split_share": _SHARE, "cache_share": _SHARE, "sustained": _SHARE,
        "throttle": Key("time", "1 ns", "100 s", "1 ms", False),
        "row_fade": Key("number", "0.0001", "1", "0.05", False),
    },
    "gemm_8bit": {"library": _LIBRARY, "rate_share": _SHARE, "quantise_row": _SHORT},
    "attention": _ATTENTION,
    "attention_8bit": _ATTENTION,
    "experts": _EXPERTS,
    "experts_8bit": _EXPERTS,
    "experts_4bit": _EXPERTS,
    "elementwise": {
        "launch": _SHORT, "row": _SHORT, "row_bytes_per_clock": _SHARE._replace(high="10000"), "stream_share": _SHARE,
        "row_share": _SHARE, "rotate_share": _SHARE, "cache_share": _SHARE, "cache_speedup": _SHARE,
    },
}  # fmt: skip
"""Constants of GPU kernels by family; their meaning is in :mod:`.gemm`, :mod:`.attention`, :mod:`.elementwise`."""

KEYS: Final[Mapping[str, Key]] = {
    "name": Key("name", example="a100-80g-sxm"),
    "description": Key("text", example="NVIDIA A100 80 GB SXM4"),
    "kind": Key("kind", example="gpu"),
    "vendor": Key("text", example="NVIDIA"),
    "architecture": Key("name", example="ampere", required=False),
    "host": Key("name", example="h100-sxm", required=False),
    "year": Key("year", example="2020"),
    "sources.*": Key("text", example="NVIDIA A100 datasheet, 2021, page 2"),
    "engines.*.*": _RATE,
    "compute.units": Key("count", "1", "10000000", "108"),
    "compute.clock": Key("frequency", "1 MHz", "20 GHz", "1410 MHz"),
    "compute.boost": Key("frequency", "1 MHz", "20 GHz", "1755 MHz", required=False),
    "memory.dram.technology": Key("text", example="HBM2e", required=False),
    "memory.dram.holds": Key("text", example="kv", required=False),
    "memory.dram.capacity": _SIZE,
    "memory.dram.bandwidth": _BANDWIDTH,
    "memory.dram.latency": _MEMORY_TIME,
    "memory.dram.energy": _BIT_ENERGY,
    "memory.dram.reserved": _SIZE.optional,
    "memory.*.technology": Key("text", example="SRAM", required=False),
    "memory.*.holds": Key("text", example="far-weights, far-kv", required=False),
    "memory.*.capacity": _SIZE,
    "memory.*.bandwidth": _BANDWIDTH.optional,
    "memory.*.latency": _MEMORY_TIME,
    "memory.*.energy": _BIT_ENERGY,
    "memory.*.reserved": _SIZE.optional,
    "links.*.bandwidth": _BANDWIDTH._replace(example="300 GB/s"),
    "links.*.latency": Key("time", "1 ns", "1 s", "0.95 us"),
    "links.*.peers": Key("count", "2", "1000000", "8", required=False),
    "links.*.topology": Key("text", example="switched", required=False),
    "power.tdp": Key("power", "1 mW", "1 MW", "400 W"),
    "power.idle": Key("power", "1 uW", "1 MW", "60 W"),
    "die.area": Key("area", "0.001 mm2", "1000000 mm2", "826 mm2"),
    "die.process": Key("text", example="TSMC 7 nm", required=False),
    "die.count": Key("count", "1", "1000", "2", required=False),
    "die.redundant": _EFFICIENCY._replace(example="0.5", required=False),
    "price.purchase": Key("price", "0.01 USD", "1000000000 USD", "15000 USD", required=False),
    "price.hourly": Key("hourly price", "0.00001 USD/h", "100000 USD/h", "2.7 USD/h", required=False),
    "model.matmul_efficiency": _EFFICIENCY,
    "model.attention_efficiency": _EFFICIENCY,
    "model.attention_memory_efficiency": _EFFICIENCY.optional,
    "model.attention_launch": Key("time", "1 ps", "1 s", "13 us", required=False),
    "model.vector_efficiency": _EFFICIENCY,
    "model.memory_efficiency": _EFFICIENCY,
    "model.launch": Key("time", "1 ps", "1 s", "2.4 us"),
    "model.link_efficiency": _EFFICIENCY,
    "model.collective_launch": Key("time", "1 ns", "1 s", "5 us", required=False),
    "model.collective_low_latency": _EFFICIENCY.optional,
    "model.collective_tail": Key("time", "1 ps", "1 s", "10 us", required=False),
    "model.collective_in_switch": _EFFICIENCY.optional,
    "model.direct_launch": Key("time", "1 ns", "1 s", "4 us", required=False),
    "model.direct_barrier": Key("time", "1 ps", "1 s", "4 us", required=False),
    "model.static_share": _EFFICIENCY.optional,
    "model.transport_energy": _BIT_ENERGY,
    "model.correlation": _EFFICIENCY.optional,
    "model.correlation_across": _EFFICIENCY.optional,
    **{f"kernels.{family}.{name}": key for family, keys in KERNEL_KEYS.items() for name, key in keys.items()},
    **{
        f"intervals.{regime}.{side}": key
        for regime in REGIMES
        for side, key in (
            ("low", Key("number", "0.01", "1", "0.8", False)),
            ("high", Key("number", "1", "100", "1.4", False)),
        )
    },
    "arrays.unit": Key("name", example="bit_serial_pe"),
    "arrays.power": Key("power", "1 nW", "1 kW", "37.5 mW"),
    "arrays.per_unit": Key("count", "1", "65536", "16", required=False),
    "arrays.area": Key("area", "0.1 um2", "1000 mm2", "99509 um2", required=False),
    "arrays.mac_area": Key("area", "0.1 um2", "1 mm2", "1968.7 um2", required=False),
    "arrays.parameters.*": Key("count", "1", "65536", "8"),
    "arrays.weights.*": Key("name", example="fp4"),
    "arrays.activations.*": Key("name", example="fp16"),
    "parameters.*": Key("any", example="1.5 ns"),
}
"""Every key a device file may hold; ``*`` stands for a name (of an engine and a number format, a
memory level, a link, a source, a parameter). ``parameters`` are numbers that only the cost model of
the device's kind understands (banks per channel, MACs per tile): any dimension, known by its unit."""

OPTIONAL_SECTIONS: Final = ("die", "arrays")
"""Sections with required keys that a file may leave out as a whole."""

ARCHITECTURE_KEYS: Final[Mapping[str, Key]] = {
    "description": KEYS["description"],
    "sources.*": KEYS["sources.*"],
    "memory.dram.energy": KEYS["memory.dram.energy"],
    "power.idle": KEYS["power.idle"].optional,
    **{name: key.optional for name, key in KEYS.items() if name.startswith(("model.", "kernels.", "intervals."))},
}
"""What an architecture file may hold: constants that its devices share."""

_NUMBER: Final = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*(.*?)\s*", re.DOTALL)


def measure(raw: object, key: Key) -> tuple[float, str, str]:
    """Read ``raw``, a number or a text like ``"3.35 TB/s"``, as ``key`` accepts it.

    Returns (value in base units, base unit, text as written). Raises ValueError with what is wrong,
    without what would be accepted (:attr:`Key.accepted` says that).
    """
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError(f"{shown(raw)} is not {_phrase(key)}")
    text = raw if isinstance(raw, str) else shown(raw)
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(raw)} is not {_phrase(key)}")
    unit = match[2]
    dimension = _dimension(unit, key)
    if dimension is None or unit not in dimension.units:
        if not unit:
            raise ValueError(f"{shown(raw)} has no unit")
        near = difflib.get_close_matches(unit, dimension.units, n=1, cutoff=0.4) if dimension else []
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{shown(raw)} is not {_phrase(key)}{hint}")
    value = float(match[1]) * dimension.units[unit]
    if key.dimension == "any":
        low, high = 0.0, math.inf
    else:
        low, high = _bound(key.low, dimension), _bound(key.high, dimension)
    if not (low <= value <= high and 0 < value < math.inf):
        raise ValueError(f"{shown(raw)} is out of range")
    if dimension.whole and not value.is_integer():
        raise ValueError(f"{shown(raw)} is not {dimension.phrase}")
    return value, dimension.base, text.strip()


def word(raw: object, key: Key) -> str | int:
    """``raw`` as a text, name, kind or year. Raises ValueError like :func:`measure`."""
    if key.dimension == "year":
        if isinstance(raw, int) and not isinstance(raw, bool) and 1990 <= raw <= 2100:
            return raw
    elif isinstance(raw, str):
        good = raw.isprintable() and 0 < len(raw.strip()) <= 500
        if key.dimension != "text":
            good = re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", raw) is not None
        if good and (key.dimension != "kind" or raw in DEVICE_KINDS):
            return raw
    raise ValueError(f"{shown(raw)} is not accepted")


def _phrase(key: Key) -> str:
    return "a number with a known unit" if key.dimension == "any" else DIMENSIONS[key.dimension].phrase


def _dimension(unit: str, key: Key) -> Dimension | None:
    if key.dimension != "any":
        return DIMENSIONS[key.dimension]
    if unit in DIMENSIONS["number"].units:
        return DIMENSIONS["number"]
    return next((d for d in DIMENSIONS.values() if unit in d.units), None)


def _bound(text: str, dimension: Dimension) -> float:
    number, _, unit = text.partition(" ")
    return float(number) * dimension.units[unit]


def shown(raw: object) -> str:
    """A value from a file as an error message shows it: on one line, short, printable."""
    if isinstance(raw, list | dict):
        return "a list" if isinstance(raw, list) else "a table"
    if isinstance(raw, int) and abs(raw) >= 10**40:
        return "a very large number"
    text = raw if isinstance(raw, str) else str(raw).lower() if isinstance(raw, bool) else repr(raw)
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if text.isprintable() and text.strip() else repr(text)


class Format(NamedTuple):
    """A number format: ``kind`` is "int", "float" or "mixed"; bits of the whole, exponent, mantissa.

    A mixed format, ``w2a8``, is a rate quoted for 2-bit weights times 8-bit activations: it is its
    own only substitute.
    """

    name: str
    kind: str
    bits: int
    exponent: int = 0
    mantissa: int = 0

    def holds(self, other: Format) -> bool:
        """Whether every value of ``other`` is a value of this format (so nothing is lost in it).

        A float holds an integer when its significand has the integer's magnitude bits and its
        largest exponent reaches them (taken as ``2**(exponent-1) - 1``); an integer holds no float.
        """
        if self.name == other.name:
            return True
        if "mixed" in (self.kind, other.kind):
            return False
        if other.kind == "int":
            if self.kind == "int":
                return self.bits >= other.bits
            return self.mantissa + 1 >= other.bits - 1 and 2 ** (self.exponent - 1) - 1 >= other.bits - 1
        return self.kind == "float" and self.exponent >= other.exponent and self.mantissa >= other.mantissa


_FLOATS: Final = {
    "fp3": (2, 0), "fp4": (2, 1), "fp6": (3, 2), "fp8": (4, 3), "fp16": (5, 10), "bf16": (8, 7),
    "tf32": (8, 10), "fp32": (8, 23), "fp64": (11, 52),
}  # fmt: skip
_INTEGERS: Final = tuple(f"int{bits}" for bits in (1, 2, 3, 4, 5, 6, 8, 16, 32, 64))


def number_format(name: str) -> Format:
    """The number format called ``name``; ``fp8`` is e4m3, ``tf32`` counts its 19 bits.

    Raises :class:`~tokenfab.errors.InputError` for a name that is none.
    """
    if name in _FLOATS:
        exponent, mantissa = _FLOATS[name]
        return Format(name, "float", 1 + exponent + mantissa, exponent, mantissa)
    if name in _INTEGERS:
        return Format(name, "int", int(name[3:]))
    mixed = re.fullmatch(r"w([1-9][0-9]?)a([1-9][0-9]?)", name)
    if mixed:
        return Format(name, "mixed", int(mixed[1]) + int(mixed[2]))
    raise unknown_name("number format", name[:80], [*_FLOATS, *_INTEGERS], "or mixed, such as w4a16")
