"""What lives in which memory, and whether it fits: devices of one memory, and of several tiers.

A device file says it per level (``holds = "far-weights, far-kv"``, roles of :data:`.spec.ROLES`). A role that
no level of the device names lives beside the arithmetic: in the host's memory where the device has a host and
says anything of its own levels, else in its own ``dram`` (units near the banks of the host's memory). Levels
that hold the same role are filled in the order of the file. What a trace keeps far is marked by
``techniques/offload.py``; where no level holds a far role, it is as if it were near.

    weights      weights that are read where the arithmetic is, the cached share of far ones, buffers of those that are
                 read ahead: of the largest layer, one more than layers ahead
    far-weights  weights of operators that read from the slow tier, all of them (the tier keeps a whole copy)
    kv, far-kv   KV cache: (1 − far share) and buffers likewise, far share
    activations  operands of the largest operator of a prefill pass
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..workloads.trace import Block, Operator, Trace
from .spec import ROLES, Device

FAR_MARKS = (("far-weights", "far_weights", "deep"), ("far-kv", "far_kv", "kv_deep"))
"""Far roles, and the attributes by which a trace says the share that is far, and of that a second level's share."""

NEAR = {"far-weights": "weights", "far-kv": "kv"}
ORDER = ("activations", "kv", "weights", "far-kv", "far-weights")
"""The order in which roles take their room."""


@dataclass(frozen=True)
class Level:
    """A memory level of a device or its host: bytes a model can occupy, and the roles it may hold."""

    device: str
    name: str
    capacity_bytes: float
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """A level with the bytes of each role that are put into it, and those that find no room there."""

    level: Level
    bytes: dict[str, float] = field(default_factory=dict)
    missing_bytes: float = 0.0


def levels(device: Device) -> tuple[Level, ...]:
    """The levels that hold anything, those of ``device`` first; every role is held by one at least."""
    own = {name: level.roles for name, level in device.memory.items() if level.roles}
    said = {role for roles in own.values() for role in roles}
    rest = tuple(role for role in ROLES if role not in said and NEAR.get(role) is None)
    found = [Level(device.name, name, device.memory[name].usable, roles) for name, roles in own.items()]
    if rest and found and device.host is not None:
        found.append(Level(device.host.name, "dram", device.host.dram.usable, rest))
    elif rest:
        here = next((i for i, x in enumerate(found) if x.name == "dram"), None)
        if here is None:
            found.append(Level(device.name, "dram", device.dram.usable, rest))
        else:
            found[here] = Level(device.name, "dram", device.dram.usable, (*found[here].roles, *rest))
    return tuple(found)


def fill(
    places: tuple[Level, ...], demand: Mapping[str, float], deep: Mapping[str, float] | None = None
) -> tuple[Held, ...]:  # fmt: skip
    """``demand`` (bytes by role) put into ``places``. What finds no room is missing in the last level of its role.

    ``deep``: the share of a role that is kept out of its first level where it has several (:func:`deep_shares`).
    """
    held: list[dict[str, float]] = [{} for _ in places]
    missing = [0.0] * len(places)
    wanted = dict(demand)
    for far, near in NEAR.items():
        if wanted.get(far) and not any(far in place.roles for place in places):
            wanted[near] = wanted.get(near, 0.0) + wanted.pop(far)
    for role in ORDER:
        left = wanted.get(role, 0.0)
        candidates = [i for i, place in enumerate(places) if role in place.roles]
        for i in candidates:
            room = places[i].capacity_bytes - sum(held[i].values())
            part = left if i == candidates[-1] else min(left, max(room, 0.0))
            if i == candidates[0] != candidates[-1]:
                part = min(part, left * (1 - (deep or {}).get(role, 0.0)))
            if part:
                held[i][role] = held[i].get(role, 0.0) + part
            left -= part
    for i, place in enumerate(places):
        missing[i] = max(0.0, sum(held[i].values()) - place.capacity_bytes)
    return tuple(Held(p, h, m) for p, h, m in zip(places, held, missing, strict=True))


def deep_shares(part: Trace) -> dict[str, float]:
    """The share of each far role that ``part`` keeps in the second of the levels that hold it."""
    found: dict[str, float] = {}
    for op, _ in part.operators():
        for role, mark, deep in FAR_MARKS:
            if op.attrs.get(mark, 0):
                found[role] = max(found.get(role, 0.0), float(op.attrs.get(deep, 0.0)))
    return found


def far_share(op: Operator) -> float:
    """Share of an operator's KV cache that is kept in the slow tier."""
    return float(op.attrs.get("far_kv", 0.0))


def weight_demand(part: Trace, *, tiered: bool) -> tuple[float, float]:
    """Bytes of weights held near and far by ``part``, each weight once; where there is no slow tier (not ``tiered``)
    all of them are near, and nothing is cached a second time."""
    near, far, seen = 0.0, 0.0, set()
    for op, count in part.operators():
        for w in op.weights:
            if w.name in seen:
                continue
            seen.add(w.name)
            size = (w.stored_bytes.constant or 0.0) * count
            if tiered and "far_weights" in op.attrs and len(w.shape) > 1:
                far += size
                near += size * float(op.attrs["cached"])
            else:
                near += size
    return near, far


def kv_demand(part: Trace, batch: float, tokens: float) -> tuple[float, float]:
    """Bytes of KV cache held near and far by ``part`` for ``batch`` sequences of ``tokens`` tokens."""
    total = float(part.cache_bytes()(batch, 0, tokens))
    far = sum(_far_kv(part, block, batch, tokens) for block in part.blocks)
    return total - far, far


def _far_kv(part: Trace, block: Block, batch: float, tokens: float) -> float:
    shares = [far_share(op) for op in block.operators if op.kind == "attention"]
    if not any(shares):
        return 0.0
    one = part.model_copy(update={"blocks": (block,), "order": ((block.name, block.repeat),)})
    return float(one.cache_bytes()(batch, 0, tokens)) * sum(shares) / len(shares)


def buffer_demand(part: Trace, device: Device, batch: float, tokens: float) -> tuple[float, float]:
    """Bytes of fast memory into which weights and cache of coming layers are read ahead on ``device``: one more
    than the layers ahead (and never more than there are) of the largest layer of either."""
    held = {role for place in levels(device) for role in place.roles}
    weights = kv = 0.0
    for block in part.blocks:
        for role, mark, _ in FAR_MARKS:
            ahead = [op for op in block.operators if op.attrs.get("ahead", 0) and op.attrs.get(mark, 0)]
            if not ahead or role not in held:
                continue
            layers = min(max(int(op.attrs["ahead"]) for op in ahead) + 1, block.repeat)
            if role == "far-kv":
                kv = max(kv, _far_kv(part, block, batch, tokens) / block.repeat * layers)
                continue
            read = [
                (w.stored_bytes.constant or 0.0) * float(op.attrs[mark])
                for op in ahead for w in op.weights if len(w.shape) > 1
            ]  # fmt: skip
            weights = max(weights, sum(read) * layers)
    return weights, kv
