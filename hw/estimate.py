"""Estimate of one request batch: prefill, decode, totals, memory, energy, price.

A batch of B sequences with P prompt tokens writes T tokens each: prefill computes the first (B × P
tokens, empty cache), then T − 1 decode steps run at contexts P, P + 1, … P + T − 2. Every step is
costed at its own context; ``decode`` reports the step at the mean context.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..workloads.compiled import compile_trace
from ..workloads.expr import expr
from ..workloads.expr_functions import Array
from ..workloads.parallel import ONE_DEVICE, Parallel, stage_blocks, tensor_parallel
from ..workloads.trace import Trace
from .cost import Costs, cost
from .roofline import fastest_link
from .spec import Device

HOURS_OF_LIFE = 4 * 365 * 24
"""Depreciation of a bought device: four years, as hyperscalers book servers (assumed)."""
USD_PER_KWH = 0.10
"""Price of electricity (assumed: US industrial average, rounded)."""
REASONS = ("compute", "dram", "dequantisation", "network", "launch")


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
    """One operator of one phase; ``time_s`` covers its ``count`` executions."""

    phase: str
    name: str
    kind: str
    count: int
    time_s: float
    bound: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class MemoryFit:
    """Bytes on the fullest device: weights, KV cache at its longest, activations at their peak."""

    weights_bytes: float
    kv_bytes: float
    activation_bytes: float
    capacity_bytes: float

    @property
    def needed_bytes(self) -> float:
        return self.weights_bytes + self.kv_bytes + self.activation_bytes

    @property
    def missing_bytes(self) -> float:
        return max(0.0, self.needed_bytes - self.capacity_bytes)

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

    @property
    def tokens(self) -> int:
        """Tokens written by the batch."""
        return self.request.batch * self.request.output

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.latency_s

    @property
    def hourly_usd(self) -> tuple[float, str] | None:
        """US dollars per hour of all devices, and what it is made of; ``None`` without any price.

        A price to buy is written off over four years, and electricity is added; a price to rent is
        used where no price to buy is known, so that devices with both compare alike.
        """
        price, devices = self.device.price, self.parallel.devices
        if price.purchase is not None:
            electricity = self.energy_j / self.latency_s / 1000 * USD_PER_KWH
            return (
                price.purchase.value / HOURS_OF_LIFE * devices + electricity,
                "bought, written off in 4 years, electricity",
            )
        if price.hourly is not None:
            return price.hourly.value * devices, "rented"
        return None

    @property
    def cost_usd_per_mtoken(self) -> float | None:
        """US dollars per million output tokens; ``None`` without a price."""
        hourly = self.hourly_usd
        return None if hourly is None else hourly[0] * self.latency_s / 3600 / self.tokens * 1e6


def estimate(
    trace: Trace,
    device: Device,
    request: Request,
    parallel: Parallel = ONE_DEVICE,
    *,
    explain: bool = False,
) -> Estimate:
    """Estimate ``request`` on ``parallel.devices`` devices.

    Raises ``InputError`` for a request the model cannot take or a division that is not possible. A
    model that does not fit is still timed; ``memory.fits`` and ``memory.missing_bytes`` say so.
    """
    request.check(trace)
    replica = replace(request, batch=-(-request.batch // parallel.dp))
    share = tensor_parallel(trace, parallel.tp)
    compiled = compile_trace(share)
    b, p, t = replica.batch, replica.prompt, replica.output
    prefill = cost(compiled, device, b, p, 0, detail=explain)
    contexts = p + np.arange(max(t - 1, 1), dtype=float)
    mean = p + max(t - 2, 0) / 2
    decode = cost(compiled, device, b, 1, mean, detail=explain)
    steps = cost(compiled, device, b, 1, contexts) if t > 1 else None
    hop = _hops(share, device, parallel)

    def total(pick_prefill: Array, pick_steps: Array | None) -> float:
        return float(pick_prefill[0]) + (float(pick_steps.sum()) if pick_steps is not None else 0.0)

    extra = hop * (b * p + b * (t - 1))
    active = parallel.tp * parallel.dp  # of a pipeline's stages one works at a time; the others wait
    latency, low, high = (
        total(getattr(prefill, side), getattr(steps, side) if steps else None)
        for side in ("latency_s", "low_s", "high_s")
    )
    waiting = device.power.idle.value * (parallel.devices - active)
    energy, energy_low, energy_high = (
        total(getattr(prefill, side), getattr(steps, side) if steps else None) * active + waiting * time
        for side, time in (("energy_j", latency), ("energy_low_j", low), ("energy_high_j", high))
    )
    return Estimate(
        model=trace.model, device=device, parallel=parallel, request=request, applied=share.applied,
        prefill=_phase(prefill, share, b, p, 0, hop * b * p, active),
        decode=_phase(decode, share, b, 1, mean, hop * b, active),
        latency_s=latency + extra,
        interval_s=(low + extra, high + extra),
        energy_j=energy,
        energy_interval_j=(energy_low, energy_high),
        memory=memory_fit(share, device, replica, parallel.pp),
        operators=_operators(compiled, prefill, decode, (b, p, 0), (b, 1, mean)) if explain else (),
    )  # fmt: skip


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
    worst = (0.0, 0.0)
    for runs in stage_blocks(share, stages):
        blocks = tuple(x.model_copy(update={"repeat": runs[x.name]}) for x in share.blocks if x.name in runs)
        part = share.model_copy(update={"blocks": blocks, "order": tuple(runs.items())})
        worst = max(worst, (part.weights_bytes, float(part.cache_bytes()(b, 0, held))), key=sum)
    return MemoryFit(*worst, activations, device.dram.usable)


def _hops(share: Trace, device: Device, parallel: Parallel) -> float:
    """Seconds per token that activations spend between pipeline stages (bandwidth only, latency once a pass)."""
    if parallel.pp == 1:
        return 0.0
    link = fastest_link(device)
    bits = next((t.bits for op, _ in share.operators() for t in op.writes if t.role == "activation"), 16.0)
    return (parallel.pp - 1) * share.hidden * bits / 8 / (link.bandwidth.value * device.model.link_efficiency.value)


def _phase(costs: Costs, share: Trace, b: float, q: float, c: float, extra: float, active: int) -> Phase:
    latency = float(costs.latency_s[0]) + extra
    bound = {r: float(v[0]) * (latency - extra) / latency for r, v in costs.bound.items()}
    if extra:
        bound["network"] = bound.get("network", 0.0) + extra / latency
    parts = {k: float(v[0]) * active for k, v in costs.energy_parts_j.items()}
    return Phase(
        latency_s=latency,
        interval_s=(float(costs.low_s[0]) + extra, float(costs.high_s[0]) + extra),
        energy_j=sum(parts.values()),
        energy_interval_j=(float(costs.energy_low_j[0]) * active, float(costs.energy_high_j[0]) * active),
        energy_parts_j=parts,
        bound=bound,
        flops=float(expr(share.total("flops"))(b, q, c)),
        bytes=float(expr(share.total("bytes"))(b, q, c)),
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
                )
            )  # fmt: skip
        out += sorted(listed, key=lambda o: -o.time_s)
    return tuple(out)
