"""How many KV blocks a replica has, as real engines count them: what weights, activations and the engine leave."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import InputError
from ..hw.spec import Device
from ..hw.tiers import buffer_demand, deep_shares, fill, kv_demand, levels, weight_demand
from ..workloads.parallel import stage_blocks
from ..workloads.trace import Tensor, Trace
from .engine import EngineProfile

PROBE = 4096
"""Tokens over which the growth of a cache is read off."""


@dataclass(frozen=True)
class KvMemory:
    """Room of one device of a replica, the fullest: bytes, and what they make in blocks and sequences.

    ``token_bytes`` of cache per token and ``sequence_bytes`` of state per sequence (a scan's), on that device.
    ``blocks`` is of the whole replica: every device holds its share of each block.
    """

    blocks: int
    block: int
    weights_bytes: float
    activation_bytes: float
    reserved_bytes: float
    kv_bytes: float
    token_bytes: float
    sequence_bytes: float
    seats: int

    @classmethod
    def given(cls, blocks: int, block: int, seats: int) -> KvMemory:
        """So many blocks and seats as are said, whatever the memory leaves."""
        return cls(blocks, block, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, seats)

    @property
    def tokens(self) -> int:
        """Tokens that all blocks hold."""
        return self.blocks * self.block


class CacheBytes:
    """Bytes of the whole cache of one sequence of so many tokens, all layers and devices together.

    ``layers``: how many of them keep something, one after another.
    """

    def __init__(self, trace: Trace) -> None:
        self._bytes = trace.cache_bytes()
        self._found: dict[int, float] = {}
        keeping = (
            n for op, n in trace.operators() if op.kind == "kv_append" or any(t.role == "state" for t in op.writes)
        )
        self.layers = max(round(sum(keeping)), 1)

    def __call__(self, tokens: int) -> float:
        if tokens not in self._found:
            self._found[tokens] = float(self._bytes(1.0, 0.0, float(tokens)))
        return self._found[tokens]


def kv_memory(share: Trace, device: Device, profile: EngineProfile, stages: int = 1) -> KvMemory:
    """Blocks of a replica whose devices hold ``share`` of the model, divided into ``stages``.

    On each level that holds cache: ``utilisation`` × capacity less weights, activations of an iteration of
    ``budget`` tokens and the engine's own. Raises ``InputError`` where no block finds room.
    """
    found = []
    for runs in stage_blocks(share, stages):
        blocks = tuple(x.model_copy(update={"repeat": runs[x.name]}) for x in share.blocks if x.name in runs)
        part = share.model_copy(update={"blocks": blocks, "order": tuple(runs.items())})
        found.append(_stage(part, device, profile))
    return min(found, key=lambda m: (m.blocks, m.seats))


def _stage(part: Trace, device: Device, profile: EngineProfile) -> KvMemory:
    places = levels(device)
    weights, far_weights = weight_demand(part, tiered=any("far-weights" in p.roles for p in places))
    weights += buffer_demand(part, device, 1.0, 0.0)[0]
    activations = _activations(part, profile)
    deep = deep_shares(part)
    held = fill(places, {"weights": weights, "far-weights": far_weights, "activations": activations}, deep)
    short = sum(h.missing_bytes for h in held)
    reserved, room, far_room = profile.reserved_bytes, 0.0, 0.0
    for h in held:
        left = profile.utilisation * h.level.capacity_bytes - sum(h.bytes.values())
        if "kv" in h.level.roles:
            room += max(left - reserved, 0.0)
            reserved = max(reserved - max(left, 0.0), 0.0)
        elif "far-kv" in h.level.roles:
            far_room += max(left, 0.0)
    empty = sum(kv_demand(part, 1.0, 0.0))
    near, far = (
        (full - none) / PROBE for full, none in zip(kv_demand(part, 1.0, PROBE), kv_demand(part, 1.0, 0), strict=True)
    )
    near += (buffer_demand(part, device, 1.0, PROBE)[1] - buffer_demand(part, device, 1.0, 0.0)[1]) / PROBE
    if far and not any("far-kv" in p.roles for p in places):
        near, far = near + far, 0.0
    seats = profile.seats
    if empty:
        seats = min(seats, int(room / empty) if not near else seats)
        room -= empty * seats if near else 0.0
    blocks = [r / (b * profile.block) for r, b in ((room, near), (far_room, far)) if b]
    count = math.floor(min(blocks)) if blocks else seats * math.ceil(PROBE * 256 / profile.block)
    if short or count < 1 or seats < 1:
        capacity = sum(p.capacity_bytes for p in places)
        taken = f"weights {_gb(weights + far_weights)}, activations of {profile.budget} tokens {_gb(activations)}"
        raise InputError(
            f"{part.model} on {device.name} has no room for a KV block: {taken}, the engine "
            f"{_gb(profile.reserved_bytes)}, of {profile.utilisation:.0%} of {_gb(capacity)}; accepted: more devices "
            "(--count), narrower weights (--apply weight-only), a smaller budget"
        )
    return KvMemory(
        count, profile.block, weights + far_weights, activations, profile.reserved_bytes, room + far_room, near + far,
        empty, seats,
    )  # fmt: skip


def weights_fit(share: Trace, device: Device, profile: EngineProfile) -> None:
    """Raise ``InputError`` where ``device`` has no room for the weights of ``share`` and its activations, whose cache
    lies elsewhere."""
    places = levels(device)
    weights, far_weights = weight_demand(share, tiered=any("far-weights" in p.roles for p in places))
    activations = _activations(share, profile)
    held = fill(places, {"weights": weights, "far-weights": far_weights, "activations": activations})
    room = sum(p.capacity_bytes for p in places) * profile.utilisation
    if any(h.missing_bytes for h in held) or weights + far_weights + activations + profile.reserved_bytes > room:
        raise InputError(
            f"{share.model} does not fit {device.name}: weights {_gb(weights + far_weights)}, activations of "
            f"{profile.budget} tokens {_gb(activations)}, the engine {_gb(profile.reserved_bytes)}, of {_gb(room)}; "
            "accepted: more devices (--parallel tp=N), narrower weights (--apply weight-only)"
        )


def _activations(part: Trace, profile: EngineProfile) -> float:
    """Bytes of the largest operator's activations in an iteration of ``budget`` tokens."""
    return max(
        sum(_bytes(t, profile.budget) for t in (*op.reads, *op.writes) if t.role == "activation")
        for op, _ in part.operators()
    )


def beside(memory: KvMemory, share: Trace, model: str) -> KvMemory:
    """What is left of ``memory``, which ``model`` has counted, where ``share`` of a second model keeps its weights and
    its cache on the same devices: a block then holds the cache of both. Raises ``InputError`` where none is left."""
    weights = sum(weight_demand(share, tiered=False))
    token = (sum(kv_demand(share, 1.0, PROBE)) - sum(kv_demand(share, 1.0, 0.0))) / PROBE
    left = memory.kv_bytes - weights
    each = (memory.token_bytes + token) * memory.block
    blocks = math.floor(left / each) if each else memory.blocks
    if blocks < 1 or left < 0:
        raise InputError(
            f"{model} leaves {_gb(memory.kv_bytes)}: {share.model} beside it, of {_gb(weights)}, leaves no room for a "
            "KV block; accepted: more devices (--count), a smaller second model"
        )
    return replace(
        memory, blocks=blocks, weights_bytes=memory.weights_bytes + weights, kv_bytes=left,
        token_bytes=memory.token_bytes + token,
    )  # fmt: skip


def _bytes(tensor: Tensor, tokens: int) -> float:
    """Bytes of an activation of ``tokens`` new tokens."""
    return float(tensor.stored_bytes(1.0, float(tokens), 0.0))


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
