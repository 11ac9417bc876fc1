"""Estimate of one request batch: prefill, decode, totals, memory, energy, price.

A batch of B sequences with P prompt tokens writes T tokens each: prefill computes the first (B × P
tokens, empty cache), then T − 1 decode steps run at contexts P, P + 1, … P + T − 2. Every step is
costed at its own context; ``decode`` reports the step at the mean context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..workloads.compiled import CompiledTrace, compile_trace
from ..workloads.expr import expr
from ..workloads.expr_functions import Array
from ..workloads.parallel import ONE_DEVICE, Parallel, stage_blocks, tensor_parallel
from ..workloads.trace import Trace
from .collective import collective_time
from .cost import Costs, cost, rated_power
from .hourly import hourly_usd
from .spec import Device
from .tiers import Held, buffer_demand, deep_shares, fill, kv_demand, levels, weight_demand

MOST_STEPS = 65536
"""Decode steps costed one by one."""
REASONS = ("compute", "dram", "l2", "dequantisation", "network", "launch")


@dataclass(frozen=True)
class Phase:
    """One forward pass of the whole batch. ``bound`` shares sum to 1."""

    latency_s: float
    interval_s: tuple[float, float]
    energy_j: float
    energy_interval_j: tuple[float, float]
    energy_parts_j: dict[str, float]
    bound: dict[str, float]
    flops: float
    bytes: float


@dataclass(frozen=True)
class OperatorTime:
    """One operator of one phase on one device; time and energy cover its ``count`` executions."""

    phase: str
    name: str
    kind: str
    count: int
    time_s: float
    bound: str
    flops: float
    bytes: float
    energy_parts_j: dict[str, float] = field(default_factory=dict)

    @property
    def energy_j(self) -> float:
        """Joules of its ``count`` executions, the static power while they run included."""
        return sum(self.energy_parts_j.values())


@dataclass(frozen=True)
class MemoryFit:
    """Bytes on the fullest device: weights, KV cache at its longest, activations at their peak.

    ``levels`` says where they live and what is missing where (:mod:`.tiers`); a cached copy of weights that a
    slower tier holds is in the levels, not in ``weights_bytes``. ``capacity_bytes`` is that of all levels together,
    ``buffer_bytes`` what reads ahead take of the fast ones.
    """

    weights_bytes: float
    kv_bytes: float
    activation_bytes: float
    capacity_bytes: float
    levels: tuple[Held, ...]
    buffer_bytes: float = 0.0

    @property
    def needed_bytes(self) -> float:
        return self.weights_bytes + self.kv_bytes + self.activation_bytes + self.buffer_bytes

    @property
    def missing_bytes(self) -> float:
        return sum(held.missing_bytes for held in self.levels)

    @property
    def fits(self) -> bool:
        return self.missing_bytes == 0


@dataclass(frozen=True)
class Request:
    """What is asked: batch, prompt tokens and output tokens per sequence."""

    batch: int = 1
    prompt: int = 512
    output: int = 128

    def check(self, trace: Trace) -> None:
        """Raises ``InputError`` for sizes below 1 and for a context beyond the model's."""
        for name, value in (("batch", self.batch), ("prompt", self.prompt), ("output", self.output)):
            if not 1 <= value <= 10**9:
                raise InputError(f"--{name} {value}: accepted: 1 to 1e9")
        longest = self.prompt + self.output
        if trace.max_context is not None and longest > trace.max_context:
            raise InputError(
                f"prompt {self.prompt} + output {self.output} = {longest} tokens exceed "
                f"the {trace.max_context} of {trace.model}"
            )


@dataclass(frozen=True)
class Estimate:
    """The answer for one model, device, parallelism and request."""

    model: str
    device: Device
    parallel: Parallel
    request: Request
    applied: tuple[str, ...]
    prefill: Phase
    decode: Phase
    latency_s: float
    interval_s: tuple[float, float]
    energy_j: float
    energy_interval_j: tuple[float, float]
    memory: MemoryFit
    operators: tuple[OperatorTime, ...] = ()
    streams: int = 1

    @property
    def tokens(self) -> int:
        """Tokens written by the batch, of all streams."""
        return self.request.batch * self.request.output * self.streams

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.latency_s

    @property
    def hourly_usd(self) -> tuple[float, str] | None:
        """US dollars per hour of all devices, and what it is made of (:mod:`.hourly`); ``None`` without any price."""
        return hourly_usd(self.device, self.parallel.devices, self.energy_j / self.latency_s)

    @property
    def cost_usd_per_mtoken(self) -> float | None:
        """US dollars per million output tokens; ``None`` without a price."""
        hourly = self.hourly_usd
        return None if hourly is None else hourly[0] * self.latency_s / 3600 / self.tokens * 1e6


class Level(Protocol):
    """What costs passes: :func:`.cost.cost`, or something with its signature."""

    def __call__(
        self, trace: CompiledTrace, device: Device, b: npt.ArrayLike, q: npt.ArrayLike, c: npt.ArrayLike,
        *, detail: bool = False,
    ) -> Costs: ...  # fmt: skip


def estimate(
    trace: Trace,
    device: Device,
    request: Request,
    parallel: Parallel = ONE_DEVICE,
    *,
    explain: bool = False,
    level: Level = cost,
    streams: int = 1,
) -> Estimate:
    """Estimate ``request`` on ``parallel.devices`` devices.

    ``level`` costs the passes; ``streams`` says how many copies of the request it runs beside one another (energy,
    tokens, memory and work are of all of them, latency is until the last is done).

    Raises ``InputError`` for a request the model cannot take or a division that is not possible. A
    model that does not fit is still timed; ``memory.fits`` and ``memory.missing_bytes`` say so.
    """
    request.check(trace)
    if streams > 1 and (parallel.pp > 1 or parallel.dp > 1):
        raise InputError(
            f"--streams {streams} with {parallel}: accepted: tensor parallel only (streams share a device)"
        )
    replica = replace(request, batch=-(-request.batch // parallel.dp))
    share = tensor_parallel(trace, parallel.tp)
    compiled = compile_trace(share)
    b, p, t = replica.batch, replica.prompt, replica.output
    node = _Node.of(share, device, parallel, busy_replicas=-(-request.batch // b))
    mean = p + max(t - 2, 0) / 2
    contexts, weight = _contexts(p, t)
    first, middle = (level(compiled, device, b, q, c, detail=explain) for q, c in ((p, 0), (1, mean)))
    prefill, decode = node.passes(first, b * p), node.passes(middle, b)
    steps = node.passes(level(compiled, device, b, 1, contexts), b)

    def total(pick: Callable[[_Passes], Array]) -> float:
        return float(pick(prefill)[0]) + weight * float(pick(steps).sum())

    return Estimate(
        model=trace.model, device=device, parallel=parallel, request=request, applied=share.applied,
        prefill=_phase(prefill, first, share, (b, p, 0), streams),
        decode=_phase(decode, middle, share, (b, 1, mean), streams),
        latency_s=total(lambda x: x.latency_s),
        interval_s=(total(lambda x: x.low_s), total(lambda x: x.high_s)),
        energy_j=total(lambda x: x.energy_j),
        energy_interval_j=(total(lambda x: x.energy_low_j), total(lambda x: x.energy_high_j)),
        memory=memory_fit(share, device, replace(replica, batch=replica.batch * streams), parallel.pp),
        streams=streams,
        operators=_operators(compiled, first, middle, (b, p, 0), (b, 1, mean)) if explain else (),
    )  # fmt: skip


def _contexts(prompt: int, output: int) -> tuple[Array, float]:
    """Contexts of the decode steps, and how many steps each stands for.

    Every step up to :data:`MOST_STEPS`; beyond, the middles of as many equal stretches, which is exact
    while time is linear in the context within a stretch.
    """
    steps = output - 1
    if steps <= MOST_STEPS:
        return prompt + np.arange(steps, dtype=float), 1.0
    width = steps / MOST_STEPS
    return prompt + (np.arange(MOST_STEPS, dtype=np.float64) + 0.5) * width - 0.5, width


@dataclass(frozen=True)
class _Passes:
    """Whole passes of all devices at P points: shapes (P,)."""

    latency_s: Array
    low_s: Array
    high_s: Array
    hop_s: float
    energy_parts_j: dict[str, Array]
    energy_low_j: Array
    energy_high_j: Array

    @property
    def energy_j(self) -> Array:
        return np.asarray(np.sum(list(self.energy_parts_j.values()), axis=0))


@dataclass(frozen=True)
class _Node:
    """How one device's pass becomes that of all: ``busy`` devices work at a time, ``waiting`` ones idle.

    Of a pipeline's stages one works at a time, and a replica without a sequence waits. Between stages
    the activations of every token travel, which is when the busy devices idle too.
    """

    busy: int
    waiting: int
    idle_w: float
    hops: int
    hop_s: Callable[[float], float]
    hop_interval: tuple[float, float]

    @classmethod
    def of(cls, share: Trace, device: Device, parallel: Parallel, busy_replicas: int) -> _Node:
        busy = parallel.tp * busy_replicas
        waiting, hops = parallel.devices - busy, parallel.pp - 1
        interval, size = (1.0, 1.0), 0.0
        if hops:
            bits = next((t.bits for op, _ in share.operators() for t in op.writes if t.role == "activation"), 16.0)
            size = share.hidden * bits / 8
            network = device.intervals["network"]
            interval = network.low.value, network.high.value

        def hop_s(tokens: float) -> float:
            return float(collective_time("send", size * tokens, parallel.tp * parallel.pp, device)) if hops else 0.0

        return cls(busy, waiting, rated_power(device)[1], hops, hop_s, interval)

    def passes(self, costs: Costs, tokens: int) -> _Passes:
        """``costs`` of one busy device, as passes of the whole node with ``tokens`` tokens each."""
        hop = self.hops * self.hop_s(tokens)
        hop_low, hop_high = (hop * factor for factor in self.hop_interval)
        latency, low, high = costs.latency_s + hop, costs.low_s + hop_low, costs.high_s + hop_high
        parts = {part: energy * self.busy for part, energy in costs.energy_parts_j.items()}
        if self.waiting or hop:
            parts["waiting"] = self._waiting(latency, hop)
        return _Passes(
            latency, low, high, hop, parts,
            costs.energy_low_j * self.busy + self._waiting(low, hop_low),
            costs.energy_high_j * self.busy + self._waiting(high, hop_high),
        )  # fmt: skip

    def _waiting(self, latency: Array, hop: float) -> Array:
        return self.idle_w * (self.waiting * latency + self.busy * hop)


def memory_fit(share: Trace, device: Device, request: Request, stages: int = 1) -> MemoryFit:
    """Memory of the fullest device for one device's ``share`` of a model and ``request``'s longest state.

    Activations are the operands of the largest operator of a prefill pass (the rest is reused).
    """
    b, p = float(request.batch), float(request.prompt)
    held = float(request.prompt + request.output)
    activations = max(
        sum(float(t.stored_bytes(b, p, 0)) for t in (*op.reads, *op.writes) if t.role == "activation")
        for op, _ in share.operators()
    )
    places, fits = levels(device), []
    for runs in stage_blocks(share, stages):
        blocks = tuple(x.model_copy(update={"repeat": runs[x.name]}) for x in share.blocks if x.name in runs)
        part = share.model_copy(update={"blocks": blocks, "order": tuple(runs.items())})
        tiered = any("far-weights" in place.roles for place in places)
        (weights, far_weights), (kv, far_kv) = weight_demand(part, tiered=tiered), kv_demand(part, b, held)
        more, more_kv = buffer_demand(part, device, b, held)
        demand = {"weights": weights + more, "far-weights": far_weights, "kv": kv + more_kv, "far-kv": far_kv}
        filled = fill(places, demand | {"activations": activations}, deep_shares(part))
        sizes = part.weights_bytes, kv + far_kv, activations, sum(x.capacity_bytes for x in places)
        fits.append(MemoryFit(*sizes, filled, buffer_bytes=more + more_kv))
    return max(fits, key=lambda fit: (fit.missing_bytes, fit.needed_bytes))


def _phase(passes: _Passes, costs: Costs, share: Trace, point: tuple[float, float, float], streams: int) -> Phase:
    latency = float(passes.latency_s[0])
    bound = {r: float(v[0]) * (latency - passes.hop_s) / latency for r, v in costs.bound.items()}
    if passes.hop_s:
        bound["network"] = bound.get("network", 0.0) + passes.hop_s / latency
    return Phase(
        latency_s=latency,
        interval_s=(float(passes.low_s[0]), float(passes.high_s[0])),
        energy_j=float(passes.energy_j[0]),
        energy_interval_j=(float(passes.energy_low_j[0]), float(passes.energy_high_j[0])),
        energy_parts_j={part: float(v[0]) for part, v in passes.energy_parts_j.items()},
        bound=bound,
        flops=float(expr(share.total("flops"))(*point)) * streams,
        bytes=float(expr(share.total("bytes"))(*point)) * streams,
    )


def _operators(compiled, prefill, decode, at_prefill, at_decode) -> tuple[OperatorTime, ...]:  # type: ignore[no-untyped-def]
    """Per-operator times of both phases, longest first within each."""
    out = []
    for phase, costs, point in (("prefill", prefill, at_prefill), ("decode", decode, at_decode)):
        listed = []
        for i, row in enumerate(compiled.rows):
            op = row.operator
            listed.append(
                OperatorTime(
                    phase, " ".join(row.names), op.kind, row.count, float(costs.operator_time_s[i, 0]),
                    costs.reasons[int(costs.operator_bound[i, 0])],
                    float(op.flops(*point)) * row.count, float(op.moved()(*point)) * row.count,
                    {part: float(joules[i, 0]) for part, joules in costs.operator_energy_j.items()},
                )
            )  # fmt: skip
        out += sorted(listed, key=lambda o: -o.time_s)
    return tuple(out)
