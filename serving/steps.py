"""What one iteration of a serving engine takes on a device: any mix of prompts in chunks and decoding sequences.

The rows of a compiled trace are of three sorts, told apart by evaluating their sizes:

    token rows      depend on the number of tokens b·q alone (linear layers, norms, experts)
    sequence rows   depend on the number of sequences alone (the head: one position of each)
    context rows    the rest (attention, scans): how many keys each sequence has matters

An iteration of T tokens, of which n decode at the mean context x (the longest has x + d) and others are chunks of q
tokens after c cached ones, of which S sequences get a token, takes

    t = token(T) + sequence(S) + contexts,    contexts = mixed(chunks, n, x, d) where the device's model knows a
                                                kernel that takes both, else decode(n, x, d) + Σ chunk(q, c)

of the device, and in all what :class:`.engine.EngineProfile` makes of it. T is padded to the next captured graph where
the engine captures graphs. Every part is the device's own cost model (:mod:`tokenfab.hw.cost`): token and sequence
parts at every integer, context parts from tables (:mod:`.contexts`). Devices whose rule depends on the phase (units
beside a host) see a mixed iteration as a prefill pass, and its decoding sequences' context rows as a decode pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..hw.collective import collective_time
from ..hw.cost import OperatorModel, cost, kind_modules, prepare, rated_power
from ..hw.event import busy_of
from ..hw.frequency import Clock, scaled, slowed
from ..hw.hourly import hourly_usd
from ..hw.spec import Device
from ..workloads.compiled import CompiledTrace, compile_trace
from ..workloads.parallel import ONE_DEVICE, Parallel, tensor_parallel
from ..workloads.trace import Trace
from .contexts import Array, ContextTable, Mask, Part, Rows
from .engine import EngineProfile

Whole = npt.NDArray[np.int64]

FEW, BLOCK = 64, 512
"""Counts of tokens or sequences evaluated at a time: below the first, and further ones."""
PROBES = ((6, 1, 0), (1, 6, 0), (2, 3, 0), (3, 2, 0), (6, 1, 100), (2, 3, 100))
"""Points (b, q, c) of six tokens: what is equal at all of them depends on tokens alone."""


class StepModel:
    """Seconds and joules of iterations of one replica: ``parallel.tp`` × ``parallel.pp`` devices.

    ``longest``: the longest context that will be asked for. Energies are those of all devices of the replica.
    ``clock``: below the rated one, where it is given. ``slower``: factors on the devices' times of decode and of mixed
    iterations.
    Raises ``InputError`` for devices and models that the cost model refuses.
    """

    overlaps: ClassVar[bool] = False
    """Whether the model keeps for how long resources are occupied (``resources``)."""

    def __init__(
        self,
        trace: Trace,
        device: Device,
        parallel: Parallel = ONE_DEVICE,
        profile: EngineProfile | None = None,
        longest: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        if parallel.dp > 1:
            raise InputError(f"{parallel}: a replica has no data parallelism; ask for replicas")
        self.trace, self.parallel = trace, parallel
        self.device, self.clock = device, clock
        if clock is not None:
            self.device = device = slowed(device, clock)
        self.share = tensor_parallel(trace, parallel.tp)
        self.profile = profile or EngineProfile()
        self._bare = self.profile.bare
        self.slower = (1.0, 1.0)
        self.longest = int(longest or trace.max_context or 32768)
        self._compiled = compiled = compile_trace(self.share)
        self.model = self._prepared(compiled)
        mixed = getattr(kind_modules().get(device.kind), "mixed_attention", None)
        self._mixed = mixed(compiled, device) if mixed is not None and self.profile.one_attention else None
        token, sequence, context = sorts(compiled)
        found = busy_of(self.model.rows(compiled.basis_at(1.0, 1.0, 1.0)), self.model.reasons) if self.overlaps else {}
        self.resources = tuple(sorted(found))
        decoding, tokens, sequences = (
            Rows(compiled, self.model, m, self.resources) for m in (token | sequence, token, sequence)
        )
        sampling = getattr(kind_modules().get(device.kind), "sampling", None) if self.profile.sampler else None
        chosen = sampling(device, trace.vocabulary) if sampling is not None else np.zeros_like

        def sampled(part: Part, n: Array) -> Part:
            return Part(part.time_s + chosen(n), part.energy_j, part.busy_s)

        self._decode_tokens = Integers(lambda n: sampled(decoding.at(n, 1.0, 0.0), n))
        self._mixed_tokens = Integers(lambda t: tokens.at(1.0, t, 0.0))
        self._sequences = Integers(lambda s: sampled(sequences.at(s, 1.0, 0.0), s))
        self._fixed: dict[int, tuple[float, float, float]] = {}
        self._bits = next(
            (t.bits for op, _ in self.share.operators() for t in op.writes if t.role == "activation"), 16.0
        )
        self.contexts = ContextTable(
            compiled, self.model, context, self._prepared, self.longest, resources=self.resources
        )

    def _prepared(self, compiled: CompiledTrace) -> OperatorModel:
        model = prepare(compiled, self.device)[1]
        return scaled(model, self.device, self.clock) if self.clock else model

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.parallel.tp * self.parallel.pp

    @property
    def static_w(self) -> float:
        """Watts of the working devices of one stage beyond the dynamic energies."""
        return self.parallel.tp * self.model.static_power_w

    @property
    def idle_w(self) -> float:
        """Watts of the devices of one stage that have nothing to do."""
        return self.parallel.tp * rated_power(self.device)[1]

    def hop_s(self, tokens: int) -> float:
        """Seconds in which the activations of ``tokens`` tokens pass through the pipeline's stages."""
        stages = self.parallel.pp
        if stages == 1:
            return 0.0
        size = self.trace.hidden * self._bits / 8 * tokens
        return (stages - 1) * float(collective_time("send", size, self.devices, self.device))

    # -- iterations ------------------------------------------------------------------------
    def decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """Seconds of ``steps`` iterations in which ``n`` sequences get a token each and nothing else runs.

        The first step has ``mean`` cached tokens per sequence, ``mean + longer`` at most.
        """
        fixed, host, extra = self._fixed.get(n) or self._fixed_of(n)
        slower = self.slower[0]
        device_s = (fixed * steps + self.contexts.decode_s(n, mean, longer, steps)) * slower
        if not host:
            return device_s + extra * steps
        if not self.profile.asynchronous:
            return device_s + (host + extra) * steps
        return self._hidden(steps, host, lambda k: self.device_decode_s(n, mean, longer, k)) + extra * steps

    def _fixed_of(self, n: int) -> tuple[float, float, float]:
        """Seconds of a decode step that do not depend on contexts: the devices', the host's, what nothing hides."""
        device_s = self._decode_tokens.time(self.profile.padded(n)) + self.hop_s(n)
        found = self._fixed[n] = device_s, *self.profile.overheads(0, n)
        return found

    def device_decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """What the devices take of :meth:`decode_s`."""
        fixed = (self._fixed.get(n) or self._fixed_of(n))[0]
        return fixed * steps + self.contexts.decode_s(n, mean, longer, steps)

    def hosted_s(self, n: int, steps: int, device_s: Callable[[int], float]) -> float:
        """Seconds of ``steps`` decode steps of ``n`` sequences of which the devices take ``device_s`` (of so many):
        for models that say it otherwise than by rows."""
        host, extra = self.profile.overheads(0, n)
        if host and self.profile.asynchronous:
            return self._hidden(steps, host, device_s) + extra * steps
        return device_s(steps) * self.slower[0] + (host + extra) * steps

    def _hidden(self, steps: int, host_s: float, device_s: Callable[[int], float]) -> float:
        """Seconds of decode steps each of which takes the longer of device and host (``host_s`` a step).

        A device's time rises with the context, so there is one step from which on it is the longer.
        """

        def until(k: int) -> float:
            return device_s(k) * self.slower[0] if k else 0.0

        low, high = 0, steps  # the host hides all of the first `low` steps, and not the one after `high`
        while low < high:
            middle = (low + high) // 2
            if until(middle + 1) - until(middle) > host_s:
                high = middle
            else:
                low = middle + 1
        return host_s * low + until(steps) - until(low)

    def mixed_s(self, chunks: Sequence[tuple[int, int]], ends: int, n: int, mean: float, longer: float) -> float:
        """Seconds of one iteration of ``chunks`` (tokens, cached tokens), ``ends`` of which end their prompt, and
        ``n`` decoding sequences."""
        seconds = self.device_mixed_s(chunks, ends, n, mean, longer) * self.slower[1]
        if self._bare:
            return seconds
        prompt = 0
        for q, _ in chunks:
            prompt += q
        return self.profile.iterations_s(seconds, prompt, ends + n, 1)

    def device_mixed_s(
        self, chunks: Sequence[tuple[int, int]], ends: int, n: int, mean: float, longer: float
    ) -> float:  # fmt: skip
        """What the devices take of :meth:`mixed_s`."""
        tokens = n
        for q, _ in chunks:
            tokens += q
        seconds = self._mixed_tokens.time(self.profile.padded(tokens))
        if self.parallel.pp > 1:
            seconds += self.hop_s(tokens)
        if ends + n:
            seconds += self._sequences.time(ends + n)
        return seconds + self.contexts_s(chunks, n, mean, longer)

    def contexts_s(self, chunks: Sequence[tuple[int, int]], n: int, mean: float, longer: float) -> float:
        """Context rows of a mixed iteration: one call of a kernel whose work adds, where the device's model knows such
        a kernel; else one part after another, launched once. Chunks of one token are decoding sequences to it."""
        if n and chunks and self._mixed is not None and max(chunks)[0] > 1:
            return float(self._mixed(chunks, n, mean + 1, mean + 1 + longer))
        chunks, n, mean, longer = gathered(chunks, n, mean, longer)
        seconds = -max(len(chunks) - (n == 0), 0) * self.contexts.launch_s
        for q, c in chunks:
            seconds += self.contexts.chunk(q, c)[0]
        return seconds + (self.contexts.decode_s(n, mean, longer) if n else 0.0)

    def interval(self, n: float, mean: float, query: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Low and high ends over the time, of a decode step of ``n`` sequences at ``mean`` cached tokens and of a
        prompt of ``query`` tokens: 90 % intervals of the device's cost model."""
        found = []
        for b, q, c in ((max(n, 1.0), 1.0, mean), (1.0, max(query, 1.0), 0.0)):
            costs = cost(self._compiled, self.device, b, q, c)
            found.append((float(costs.low_s[0] / costs.latency_s[0]), float(costs.high_s[0] / costs.latency_s[0])))
        return found[0], found[1]

    def hourly_usd(self, watts: float, stages: int = 1) -> tuple[float, str] | None:
        """US dollars per hour of a replica, or of one of its ``stages``, that draws ``watts``
        (:func:`tokenfab.hw.hourly.hourly_usd`)."""
        return hourly_usd(self.device, self.devices // stages, watts)

    def chunks_j(self, chunks: Sequence[tuple[int, int]], ends: int, n: int, mean: float, longer: float) -> float:
        """Dynamic joules of a mixed iteration that :meth:`mixed_j` is told: of the chunks' context rows, per device."""
        joules, chunk = 0.0, self.contexts.chunk
        for q, c in chunks:
            joules += chunk(q, c)[1]
        return joules

    # -- energies, after the run, in arrays --------------------------------------------------
    def decode_j(self, n: Whole, mean: Array) -> Array:
        """Dynamic joules of one decode iteration of ``n`` sequences at ``mean`` cached tokens; (N,) each."""
        return (self._decode_tokens.energies(n) + self._contexts_j(n, mean)) * self.parallel.tp

    def mixed_j(
        self, tokens: Whole, ends: Whole, n: Whole, mean: Array, chunks: Array
    ) -> Array:  # fmt: skip
        """Dynamic joules of mixed iterations; (N,) each, ``chunks`` the sum of :meth:`.ContextTable.chunk`'s."""
        own = self._mixed_tokens.energies(tokens) + self._sequences.energies(ends + n)
        return (own + self._contexts_j(n, mean) + chunks) * self.parallel.tp

    def _contexts_j(self, n: Whole, mean: Array) -> Array:
        out = np.zeros(n.size)
        for batch in np.flatnonzero(np.bincount(n, minlength=1)[1:]) + 1:
            here = n == batch
            out[here] = self.contexts.decode_j(int(batch), mean[here])
        return out


class Integers:
    """A part at every integer from 1, evaluated :data:`FEW` or :data:`BLOCK` at a time as it is asked for."""

    def __init__(self, evaluate: Callable[[Array], Part]) -> None:
        self._evaluate = evaluate
        self._blocks: dict[int, tuple[list[float], Array, Array]] = {}

    def _block(self, i: int) -> tuple[list[float], Array, Array]:
        """Block ``i`` from 0: integers from ``i`` × :data:`BLOCK`; −1: the first :data:`FEW`."""
        found = self._blocks.get(i)
        if found is None:
            first, last = (i * BLOCK, (i + 1) * BLOCK) if i >= 0 else (0, FEW)
            part = self._evaluate(np.maximum(np.arange(first, last, dtype=float), 1.0))
            found = self._blocks[i] = part.time_s.tolist(), part.energy_j, part.busy_s
        return found

    def time(self, n: int) -> float:
        """Seconds at ``n`` ≥ 1."""
        i = -1 if n < FEW else n // BLOCK
        times = (self._blocks.get(i) or self._block(i))[0]
        return times[n] if i < 0 else times[n % BLOCK]

    def busy(self, n: int) -> Array:
        """Seconds of each resource at ``n`` ≥ 1, (resources,)."""
        i = -1 if n < FEW else n // BLOCK
        return self._block(i)[2][:, n if i < 0 else n % BLOCK]

    def energies(self, n: Whole) -> Array:
        """Joules at each of ``n``; 0 where it is 0."""
        out = np.zeros(n.size)
        blocks = np.where(n < FEW, -1, n // BLOCK)
        for i in np.flatnonzero(np.bincount(blocks[n > 0] + 1)) - 1:
            here = (n > 0) & (blocks == i)
            out[here] = self._block(int(i))[1][n[here] - max(int(i), 0) * BLOCK]
        return out


def gathered(
    chunks: Sequence[tuple[int, int]], n: int, mean: float, longer: float
) -> tuple[Sequence[tuple[int, int]], int, float, float]:
    """Chunks, decoding sequences, their mean context and what the longest has beyond it, where chunks of one token are
    counted as decoding sequences: attention kernels see no difference."""
    single = [c for q, c in chunks if q == 1]
    if not single:
        return chunks, n, mean, longer
    total = n + len(single)
    longest = max(*single, mean + longer if n else 0.0)
    mean = (n * mean + sum(single)) / total
    return [(q, c) for q, c in chunks if q > 1], total, mean, longest - mean


def sorts(compiled: CompiledTrace) -> tuple[Mask, Mask, Mask]:
    """Masks of token, sequence and context rows; (rows,) each."""
    tokens = compiled.basis_at(*np.array(PROBES, dtype=float).T)
    sequences = compiled.basis_at(4.0, np.array([1.0, 7.0, 3.0, 3.0]), np.array([0.0, 0.0, 0.0, 50.0]))

    sizes = [(i, compiled.vector(size)) for i, row in enumerate(compiled.rows) for size in row.operator.dims.values()]
    rows = np.array([*np.tile(np.arange(len(compiled.rows)), len(compiled.coefficients)), *(i for i, _ in sizes)])
    matrix = np.concatenate([*compiled.coefficients.values(), *(vector[None] for _, vector in sizes)])

    def same(at: Array) -> Mask:
        values = matrix @ at
        differ = np.any(np.abs(values - values[:, :1]) > 1e-12 * np.abs(values[:, :1]), axis=1)
        return np.asarray(np.bincount(rows[differ], minlength=len(compiled.rows)) == 0)

    token = same(tokens)
    sequence = same(sequences) & ~token
    return token, sequence, ~token & ~sequence
