"""Attention and its cache on devices of their own, the rest of a model on others, a network between them.

What holds a cache or a state (attention, its cache's writes, scans) runs for decoding sequences on ``count`` attention
devices, everything else on the model devices, each under its own cost model. In every layer the queries,
keys and values of all tokens go one way and the results the other: bytes of the trace's operands, two messages.

n sequences are divided into B batches in flight over M replicas of the model; one pool of attention devices serves
all. With m = ⌈n / B⌉, t_m and t_a the seconds of a step of one batch on model and attention devices, t_w those of its
bytes on the wires that one replica has, ℓ the messages' latencies, each sequence gets a token every

    P = max( t_m + t_a + t_w + ℓ,   B t_m / M,   B t_a,   B t_w · (wires of a replica / wires of all) )

a batch's own way round, and what each resource can serve. With M = B − 1, t_a = t_m / M and no network all three are
equal, which is where Lamina's rotation of B batches over B − 1 replicas leaves nobody waiting (arXiv:2405.01814,
section 4.3).

Prompts are computed whole on a model device, attention too; their keys and values go to the attention devices
meanwhile, and the cached part of a chunk's prompt comes back; a chunk of one token is a decoding sequence's. Wires: one
per device, as many at a time as the side with fewer devices has; bandwidth and latency are those of the slower of the
two devices' links to a host, else of their widest.

With ``overlap``, queries are sent first: attention over what is cached goes on while the new tokens' keys and values
are projected (h seconds, the share of their columns in the products that make them) and sent (w), and takes those in at
the end (section 4.2.2). A batch's own way round is then shorter by min(t_a, h + w).

Left out: energy of the network, contention of prompts' traffic with decoding within a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..hw.cost import OperatorModel, prepare, rated_power
from ..hw.hourly import hourly_usd
from ..hw.spec import Device, Link
from ..workloads.compiled import CompiledTrace, compile_trace
from ..workloads.parallel import Parallel, tensor_parallel
from ..workloads.trace import Operator, Trace
from .contexts import Array, ContextTable, Part, Rows
from .curves import Curve
from .engine import EngineProfile
from .steps import Integers, StepModel, Whole, gathered, sorts

Chunks = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Apart:
    """Where attention runs: ``count`` of ``device``, ``batches`` in flight over ``models`` replicas of the model.

    ``heads``: each attention device has some heads of every sequence, else all heads of some sequences. ``bandwidth``
    of a wire in bytes/s and ``latency_s`` of a message; None: the devices' own. ``overlap``: queries before keys and
    values.
    """

    device: Device
    count: int = 1
    batches: int = 1
    models: int = 1
    heads: bool = True
    bandwidth: float | None = None
    latency_s: float | None = None
    overlap: bool = False


def context_part(share: Trace) -> Trace:
    """``share`` with its operators that hold a cache or a state alone. Raises ``InputError`` where it has none."""
    blocks = []
    for block in share.blocks:
        kept = tuple(op for op in block.operators if holds(op))
        here = {op.name for op in kept}
        kept = tuple(op.model_copy(update={"deps": tuple(d for d in op.deps if d in here)}) for op in kept)
        if kept:
            blocks.append(block.model_copy(update={"operators": kept}))
    if not blocks:
        raise InputError(f"{share.model}: no operator holds a cache, so none can run on devices of its own")
    left = {block.name for block in blocks}
    order = tuple((name, times) for name, times in share.order if name in left)
    return share.model_copy(update={"blocks": tuple(blocks), "order": order})


def projections(trace: Trace) -> dict[int, float]:
    """Products that make what caches keep, by ``id`` of the operator: the share of their results that is kept."""
    found: dict[int, float] = {}
    for block in trace.blocks:
        by_name = {op.name: op for op in block.operators}
        for append in (op for op in block.operators if op.kind == "kv_append"):
            kept, makers, left = _activation_bytes(append, "reads"), [], list(append.deps)
            while left:
                op = by_name.get(left.pop())
                if op is not None and op.kind == "matmul":
                    makers.append(op)
                elif op is not None:
                    left += op.deps
            made = sum(_activation_bytes(op, "writes") for op in {id(op): op for op in makers}.values())
            found |= {id(op): min(kept / made, 1.0) for op in makers if made}
    return found


def holds(op: Operator) -> bool:
    """Whether ``op`` reads or writes a cache or a state."""
    return any(t.role in ("kv", "state") for t in (*op.reads, *op.writes))


def wire_of(device: Device) -> Link:
    """The link by which ``device`` reaches devices of another kind: to its host, else the widest."""
    if not device.links:
        raise InputError(f"device {device.name}: has no [links], so no other device can send to it")
    outward = [link for link in device.links.values() if link.topology == "host"]
    return max(outward or device.links.values(), key=lambda link: link.bandwidth.value)


class ApartSteps(StepModel):
    """Iterations of a replica whose attention is ``apart``; ``parallel.tp`` devices hold each replica of the model."""

    def __init__(
        self, trace: Trace, device: Device, parallel: Parallel, profile: EngineProfile, longest: int | None,
        apart: Apart,
    ) -> None:  # fmt: skip
        if parallel.pp > 1:
            raise InputError(f"{parallel}: attention apart from a pipeline is not modelled; accepted: tp=N")
        super().__init__(trace, device, parallel, profile, longest)
        self.apart = apart
        whole = context_part(trace)
        self.part = context_part(tensor_parallel(trace, apart.count)) if apart.heads else whole
        compiled, self.other = prepare(compile_trace(self.part), apart.device)
        every = np.ones(len(compiled.rows), dtype=bool)
        self.attention = ContextTable(compiled, self.other, every, self._prepared_apart, self.longest)
        rest = sorts(self._compiled)[2] & ~np.array([holds(row.operator) for row in self._compiled.rows])
        self.rest = ContextTable(self._compiled, self.model, rest, self._prepared, self.longest)
        operators = list(whole.operators())
        self.sent_bytes, self.back_bytes = (
            sum(count * _activation_bytes(op, side) for op, count in operators) for side in ("reads", "writes")
        )
        self.cached_bytes = sum(c * _activation_bytes(op, "reads") for op, c in operators if op.kind == "kv_append")
        """Per token: operands of the context rows, their results, and what is kept of them."""
        shares = projections(self.share)
        held = np.array([shares.get(id(row.operator), 0.0) for row in self._compiled.rows])
        parts = {x: Rows(self._compiled, self.model, held == x) for x in set(held.tolist()) - {0.0}}
        self._projected = Integers(
            lambda n: Part(
                sum((x * rows.at(n, 1.0, 0.0).time_s for x, rows in parts.items()), np.zeros(n.shape)),
                np.zeros(n.shape), np.zeros((0, n.size)),
            )
        )  # fmt: skip
        self.layers = sum(count for op, count in operators if op.kind != "kv_append")
        links = [wire_of(d) for d in (device, apart.device) if apart.bandwidth is None or apart.latency_s is None]
        self.bandwidth = apart.bandwidth or min(x.bandwidth.value for x in links)
        self.latency_s = max(x.latency.value for x in links) if apart.latency_s is None else apart.latency_s
        self._combined: dict[tuple[int, int, float], Curve] = {}

    def _prepared_apart(self, compiled: CompiledTrace) -> OperatorModel:
        return prepare(compiled, self.apart.device)[1]

    @property
    def model_devices(self) -> int:
        """Devices that hold the model, all replicas together."""
        return self.parallel.tp * self.apart.models

    @property
    def devices(self) -> int:
        """All devices of the replica."""
        return self.model_devices + self.apart.count

    @property
    def static_w(self) -> float:
        """Watts of a working replica beyond the dynamic energies."""
        return self.model_devices * self.model.static_power_w + self.apart.count * self.other.static_power_w

    @property
    def idle_w(self) -> float:
        """Watts of a replica that has nothing to do."""
        return self.model_devices * rated_power(self.device)[1] + self.apart.count * rated_power(self.apart.device)[1]

    def hourly_usd(self, watts: float, stages: int = 1) -> tuple[float, str] | None:
        """US dollars per hour of all devices, which draw ``watts`` together."""
        model = hourly_usd(self.device, self.model_devices, watts)
        attention = hourly_usd(self.apart.device, self.apart.count, 0.0)
        if model is None or attention is None:
            return None
        return model[0] + attention[0], "; ".join(dict.fromkeys((model[1], attention[1])))

    # -- parts of a step ---------------------------------------------------------------------
    def _batches(self, n: int) -> tuple[int, int]:
        """Batches in flight, and sequences of the largest."""
        batches = min(self.apart.batches, n)
        return batches, -(-n // batches)

    def _local(self, m: int) -> int:
        """Sequences of which an attention device computes anything, of a batch of ``m``."""
        return m if self.apart.heads else -(-m // self.apart.count)

    def wires_s(self, size: float, model_devices: int) -> float:
        """Seconds of ``size`` bytes between so many model devices and the attention devices."""
        return size / (self.bandwidth * min(model_devices, self.apart.count))

    def _behind_s(self, m: int) -> float:
        """Seconds in which keys and values of ``m`` new tokens are projected and sent; 0 without ``overlap``."""
        if not self.apart.overlap:
            return 0.0
        return self._projected.time(self.profile.padded(m)) + self.wires_s(self.cached_bytes * m, self.parallel.tp)

    def _period(self, batches: int, own: Array, model: Array, attention: Array, wires: float) -> Array:
        """P: a batch's own way round, and what the model's replicas, the attention devices and the wires can serve."""
        return np.maximum(np.maximum(own, model / self.apart.models), np.maximum(batches * attention, wires))

    def _step(self, n: int, attention: Array) -> Array:
        """P of decode steps of ``n`` sequences whose batches' attention takes ``attention`` seconds, (points,)."""
        batches, m = self._batches(n)
        size = (self.sent_bytes + self.back_bytes) * m
        t_m = self._decode_tokens.time(self.profile.padded(m)) + self.rest.knot_times(m, 0)
        own = t_m + attention + self.wires_s(size, self.parallel.tp) + 2 * self.layers * self.latency_s
        own = own - np.minimum(attention, self._behind_s(m))
        return self._period(batches, own, batches * t_m, attention, batches * self.wires_s(size, self.model_devices))

    def device_decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """What the devices take of :meth:`decode_s`: P at every context."""
        self.attention.reach_to(mean + steps)
        self.rest.reach_to(mean + steps)
        level, weight = self.attention.level(longer)
        low = self._curve(n, level)
        return self.attention.along(low, self._curve(n, level + 1) if weight else low, weight, mean, steps)

    def decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """See :meth:`.StepModel.decode_s`."""
        return self.hosted_s(n, steps, lambda k: self.device_decode_s(n, mean, longer, k))

    def _curve(self, n: int, level: int) -> Curve:
        found = self._combined.get((n, level, self.attention.reach))
        if found is None:
            m = self._local(self._batches(n)[1])
            values = self._step(n, self.attention.knot_times(m, level))
            found = self._combined[n, level, self.attention.reach] = Curve(self.attention.at, values)
        return found

    def device_mixed_s(self, chunks: Chunks, ends: int, n: int, mean: float, longer: float) -> float:
        """What the devices take of :meth:`mixed_s`: one of the batches has the chunks with it."""
        done = ends + n
        chunks, n, mean, longer = gathered(chunks, n, mean, longer)
        batches, m = self._batches(n) if n else (1, 0)
        here = sum(q for q, _ in chunks)
        t_m = self._mixed_tokens.time(self.profile.padded(m + here))
        t_m += self._sequences.time(max(done - (n - m), 1))
        if chunks:
            t_m += sum(self.contexts.chunk(q, c)[0] for q, c in chunks) - (len(chunks) - 1) * self.contexts.launch_s
        kept = self.cached_bytes * sum(q + c for q, c in chunks)
        if not n:
            return max(t_m, self.wires_s(kept, self.parallel.tp))
        t_a, t_rest = self.attention.decode_s(self._local(m), mean, longer), self.rest.decode_s(m, mean, 0.0)
        t_m += t_rest
        size = (self.sent_bytes + self.back_bytes) * m
        own = t_m + t_a + self.wires_s(size, self.parallel.tp) + 2 * self.layers * self.latency_s
        own -= min(t_a, self._behind_s(m))
        model = t_m + (batches - 1) * (self._decode_tokens.time(self.profile.padded(m)) + t_rest)
        wires = self.wires_s(batches * size + kept, self.model_devices)
        return float(self._period(batches, np.array([own]), np.array([model]), np.array([t_a]), wires)[0])

    # -- energies -------------------------------------------------------------------------------
    def decode_j(self, n: Whole, mean: Array) -> Array:
        """Dynamic joules of one decode iteration of ``n`` sequences at ``mean`` cached tokens; (N,) each."""
        return self._own_j(n, np.zeros_like(n), np.zeros_like(n)) + self._attention_j(n, mean)

    def mixed_j(self, tokens: Whole, ends: Whole, n: Whole, mean: Array, chunks: Array) -> Array:
        """Dynamic joules of mixed iterations; (N,) each, ``chunks`` the sum of :meth:`.ContextTable.chunk`'s."""
        return self._own_j(n, tokens - n, ends) + self._attention_j(n, mean) + chunks * self.parallel.tp

    def _own_j(self, n: Whole, prompt: Whole, ends: Whole) -> Array:
        """Of the model devices: all batches but one, and the one that the chunks are with."""
        batches = np.maximum(np.minimum(self.apart.batches, n), 1)
        m = -(-n // batches)
        joules = (batches - 1) * (self._mixed_tokens.energies(m) + self._sequences.energies(m))
        joules = joules + self._mixed_tokens.energies(m + prompt) + self._sequences.energies(m + ends)
        return np.asarray(joules * self.parallel.tp)

    def _attention_j(self, n: Whole, mean: Array) -> Array:
        out = np.zeros(n.size)
        for batch in np.unique(n[n > 0]):
            here = n == batch
            batches, m = self._batches(int(batch))
            out[here] = batches * self.apart.count * self.attention.decode_j(self._local(m), mean[here])
        return out


def _activation_bytes(op: Operator, side: str) -> float:
    """Bytes of activations that ``op`` reads or writes for one token."""
    return sum(float(t.stored_bytes(1.0, 1.0, 0.0)) for t in getattr(op, side) if t.role == "activation")
