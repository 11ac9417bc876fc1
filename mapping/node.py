"""A node: engines that work, memories they work from, and links between them, from device files.

A device is one engine with one memory. A device that shares operators with a host (processing in memory, computational
storage) brings its host and is two engines: the host, and the near unit, which takes some operators only. Units in the
host's own memory (a pim device without a link ``host``) share that memory with it: nothing moves between the two.

Links, in this order: a network of the node file that joins both; the fastest link of equal devices that joins its
peers (NVLink); both sides' link to a host (PCIe), at the slower side's bandwidth and the longer latency; where a file
names none, :data:`DEFAULT_LINK`. Bandwidths are per direction, times the device's achievable share of a link. A port
(engine, network, direction) carries one transfer after another.

A node file is TOML:

    devices = { h100-sxm = 1, h20 = 2 }
    [[networks]]
    joins = ["h100-sxm", "h20"]
    bandwidth = { value = "50 GB/s", source = "paper, table 2" }
    latency = { value = "17 us", source = "assumed: half a round trip" }
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown_name
from ..hw.cost import prepare
from ..hw.devices import load_device
from ..hw.hourly import HOURS_OF_LIFE
from ..hw.spec import Device, Link
from ..hw.units import Key, measure
from ..workloads.trace import Trace

MOST_ENGINES = 16
BANDWIDTH, LATENCY = Key("bandwidth", "1 MB/s", "1 PB/s", "50 GB/s"), Key("time", "1 ps", "1 s", "10 us")
DEFAULT_LINK = (25e9, 10e-6)
"""Bytes/s per direction and seconds where no file says (assumed: PCIe 4.0 ×16, 31.5 GB/s on the wire, about 80 % of it
reached; 10 µs as the constant of NVIDIA aiconfigurator for one transfer)."""
LINK_ENERGY = 10.4e-12
"""Joules per byte over any link (AttAcc simulator, src/config.py: 1.3 pJ/bit of a NVLink-C2C; assumed for others)."""


@dataclass(frozen=True)
class Engine:
    """What runs operators: ``part`` "" (a whole device), "host" (of ``device``, working from the device's memory) or
    "near" (``device``'s units). ``device`` is the file it is costed by; ``pool`` the memory it works from; ``usd_s``
    dollars per second, if known, and whether the device is bought (then electricity is added)."""

    name: str
    device: Device
    part: str
    pool: int
    idle_w: float
    usd_s: float | None
    bought: bool


@dataclass(frozen=True)
class Route:
    """From one engine to another: seconds per transfer, bytes/s, and the ports (indices) at both ends."""

    latency_s: float
    bytes_s: float
    out: int
    into: int


@dataclass(frozen=True)
class Node:
    """``routes[a][b]``: nothing where both work from one memory. ``ports`` are names beside the engines'."""

    engines: tuple[Engine, ...]
    pools: tuple[str, ...]
    capacity: tuple[float, ...]
    routes: tuple[tuple[Route | None, ...], ...]
    ports: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def idle_w(self) -> float:
        """Watts of the whole node waiting."""
        return sum(e.idle_w for e in self.engines)


@dataclass(frozen=True)
class Network:
    """A network of a node file."""

    joins: frozenset[str]
    bytes_s: float
    latency_s: float


def read_node(path: Path) -> tuple[list[str], list[Network]]:
    """Devices as ``NAME:COUNT`` and networks of a node file. Raises ``InputError``, one line."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    for key in raw:
        if key not in ("devices", "networks"):
            raise InputError(f"{path}: {unknown_name('key', key, ['devices', 'networks'])}")
    devices = raw.get("devices", {})
    if not isinstance(devices, dict) or not all(isinstance(n, int) and n > 0 for n in devices.values()):
        raise InputError(f"{path}: devices: accepted: a table of name = count")
    networks = []
    for i, entry in enumerate(raw.get("networks", [])):
        where = f"{path}: networks[{i}]"
        if not isinstance(entry, dict) or set(entry) - {"joins", "bandwidth", "latency"}:
            raise InputError(f"{where}: accepted: a table with joins, bandwidth, latency")
        joins = entry.get("joins")
        if not isinstance(joins, list) or len(joins) < 1 or not all(isinstance(j, str) for j in joins):
            raise InputError(f"{where}.joins: accepted: a list of device names")
        networks.append(
            Network(frozenset(joins), _quantity(entry, "bandwidth", where, BANDWIDTH),
                    _quantity(entry, "latency", where, LATENCY))
        )  # fmt: skip
    return [f"{name}:{count}" for name, count in devices.items()], networks


def _quantity(entry: dict[str, Any], name: str, where: str, key: Key) -> float:
    value = entry.get(name)
    if not isinstance(value, dict) or not isinstance(value.get("source"), str) or "value" not in value:
        raise InputError(f"{where}.{name}: accepted: {{ value = …, source = … }}, {key.accepted}")
    try:
        return measure(value["value"], key)[0]
    except ValueError as error:
        raise InputError(f"{where}.{name}: {error}; accepted: {key.accepted}") from None


def build_node(devices: Sequence[str], networks: Sequence[Network] = (), trace: Trace | None = None) -> Node:
    """The node of ``NAME[:COUNT]`` devices, for ``trace`` (which tells whether a device shares it with a host).

    Raises ``InputError`` for names, counts, and more than :data:`MOST_ENGINES` engines.
    """
    chosen = [device for text in devices for device in _instances(text)]
    if not chosen:
        raise InputError("no device; accepted: --device NAME[:COUNT], repeatable")
    engines: list[Engine] = []
    capacity: list[float] = []
    for device in chosen:
        if device.host is None or trace is None or not shares_with_host(trace, device):
            engines.append(_engine(device, device, "", len(capacity)))
            capacity.append(device.dram.usable)
            continue
        idle = device.power.idle.value - device.host.power.idle.value
        near = replace(
            _engine(device, device, "near", len(capacity)), idle_w=idle if idle > 0 else device.power.idle.value
        )
        if device.kind == "pim" and "host" not in device.links:
            engines += [
                replace(_engine(device.host, device, "host", len(capacity)), usd_s=near.usd_s),
                replace(near, usd_s=0.0),
            ]
            capacity.append(device.dram.usable)
        else:
            engines += [_engine(device.host, device.host, "", len(capacity)), replace(near, pool=len(capacity) + 1)]
            capacity += [device.host.dram.usable, _cache_memory(device)]
    if len(engines) > MOST_ENGINES:
        raise InputError(f"{len(engines)} engines; accepted: at most {MOST_ENGINES}")
    names = [e.name for e in engines]
    engines = [
        replace(e, name=f"{e.name}#{names[:i].count(e.name)}") if names.count(e.name) > 1 else e
        for i, e in enumerate(engines)
    ]
    pools = ["+".join(e.name for e in engines if e.pool == m) for m in range(len(capacity))]
    ports: dict[str, int] = {}
    notes: dict[str, None] = {}

    def route(a: Engine, b: Engine) -> Route | None:
        if a.pool == b.pool:
            return None
        network, bytes_s, latency_s = _link(a.device, b.device, networks, notes)
        out, into = f"{a.name} {network} out", f"{b.name} {network} in"
        return Route(latency_s, bytes_s, ports.setdefault(out, len(ports)), ports.setdefault(into, len(ports)))

    routes = tuple(tuple(route(a, b) for b in engines) for a in engines)
    return Node(tuple(engines), tuple(pools), tuple(capacity), routes, tuple(ports), tuple(notes))


def shares_with_host(trace: Trace, device: Device) -> bool:
    """Whether the model of ``device`` divides ``trace`` between a host and a unit near memory."""
    model = prepare(trace, device)[1]
    return hasattr(getattr(model, "near", None), "takes")


def _engine(named: Device, costed: Device, part: str, pool: int) -> Engine:
    price = named.price
    usd = None
    if price.purchase is not None:
        usd = price.purchase.value / HOURS_OF_LIFE / 3600
    elif price.hourly is not None:
        usd = price.hourly.value / 3600
    return Engine(named.name, costed, part, pool, named.power.idle.value, usd, price.purchase is not None)


def tier(node: Node, pool: int) -> str:
    """The memory level of the device file that a pool is: ``dram``, or where a near device keeps caches."""
    near = [e for e in node.engines if e.pool == pool]
    return _cache_level(near[0].device) if [e.part for e in near] == ["near"] else "dram"


def _cache_level(device: Device) -> str:
    """The level in which a near device keeps caches: the largest that says so, else its DRAM."""
    holding = {name: m.usable for name, m in device.memory.items() if getattr(m, "holds", None) == "kv"}
    return max(holding, key=holding.__getitem__, default="dram")


def _cache_memory(device: Device) -> float:
    """Bytes of the memory in which a near device keeps caches."""
    return device.memory[_cache_level(device)].usable


def _instances(text: str) -> list[Device]:
    name, colon, count = text.rpartition(":")
    if not colon or not re.fullmatch(r"\d+", count):
        name, count = text, "1"
    if not 1 <= int(count) <= MOST_ENGINES:
        raise InputError(f"--device {text}: accepted: NAME or NAME:COUNT with COUNT from 1 to {MOST_ENGINES}")
    return [load_device(name)] * int(count)


def _link(a: Device, b: Device, networks: Sequence[Network], notes: dict[str, None]) -> tuple[str, float, float]:
    """Name, bytes/s and seconds of the way from ``a`` to ``b``."""
    for i, network in enumerate(networks):
        if {a.name, b.name} <= network.joins:
            return f"network {i}", network.bytes_s, network.latency_s
    if a.name == b.name:
        peers = {n: x for n, x in a.links.items() if x.topology != "host" and (x.peers is None or x.peers.value > 1)}
        if peers:
            name = max(peers, key=lambda n: peers[n].bandwidth.value)
            return name, peers[name].bandwidth.value * a.model.link_efficiency.value, peers[name].latency.value
    sides = [_host_link(d, notes) for d in (a, b)]
    return "host", min(s[0] for s in sides), max(s[1] for s in sides)


def _host_link(device: Device, notes: dict[str, None]) -> tuple[float, float]:
    links: dict[str, Link] = {n: x for n, x in device.links.items() if x.topology == "host" or n in ("pcie", "host")}
    if not links:
        notes[f"{device.name}: no link to a host in its file; assumed {DEFAULT_LINK[0] / 1e9:g} GB/s, "
              f"{DEFAULT_LINK[1] * 1e6:g} us"] = None  # fmt: skip
        return DEFAULT_LINK
    best = max(links.values(), key=lambda x: x.bandwidth.value)
    return best.bandwidth.value * device.model.link_efficiency.value, best.latency.value
