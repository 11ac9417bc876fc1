"""What one iteration of a serving engine takes on a device: any mix of prompts in chunks and decoding sequences.

The rows of a compiled trace are of three sorts, told apart by evaluating their sizes:

    token rows      depend on the number of tokens b·q alone (linear layers, norms, experts)
    sequence rows   depend on the number of sequences alone (the head: one position of each)
    context rows    the rest (attention, scans): how many keys each sequence has matters

An iteration of T tokens, of which n decode at the mean context x (the longest has x + d) and others are chunks of q
tokens after c cached ones, of which S sequences get a token, takes

    t = token(T) + sequence(S) + decode(n, x, d) + Σ chunk(q, c) − launches that the parts would repeat

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
from ..hw.cost import cost, prepare, rated_power
from ..hw.event import busy_of
from ..hw.hourly import hourly_usd
from ..hw.spec import Device
from ..workloads.compiled import CompiledTrace, compile_trace
from ..workloads.parallel import ONE_DEVICE, Parallel, tensor_parallel
from ..workloads.trace import Trace
from .contexts import Array, ContextTable, Mask, Part, Rows
from .engine import EngineProfile

Whole = npt.NDArray[np.int64]

BLOCK = 512
"""Token counts evaluated at a time."""
PROBES = ((6, 1, 0), (1, 6, 0), (2, 3, 0), (3, 2, 0), (6, 1, 100), (2, 3, 100))
"""Points (b, q, c) of six tokens: what is equal at all of them depends on tokens alone."""


class StepModel:
    """Seconds and joules of iterations of one replica: ``parallel.tp`` × ``parallel.pp`` devices.

    ``longest``: the longest context that will be asked for. Energies are those of all devices of the replica.
    ``slower``: factors on the devices' times of decode and of mixed iterations. ``resources``: whose occupation is
    kept, for models of overlap that set ``overlaps``.
    Raises ``InputError`` for devices and models that the cost model refuses.
    """

    overlaps: ClassVar[bool] = False

    def __init__(
        self,
        trace: Trace,
        device: Device,
        parallel: Parallel = ONE_DEVICE,
        profile: EngineProfile | None = None,
        longest: int | None = None,
    ) -> None:
        if parallel.dp > 1:
            raise InputError(f"{parallel}: a replica has no data parallelism; ask for replicas")
        self.trace, self.device, self.parallel = trace, device, parallel
        self.share = tensor_parallel(trace, parallel.tp)
        self.profile = profile or EngineProfile()
        self.slower = (1.0, 1.0)
        self.longest = int(longest or trace.max_context or 32768)
        self._compiled = compiled = compile_trace(self.share)
        _, self.model = prepare(compiled, device)
        token, sequence, context = sorts(compiled)
        found = busy_of(self.model.rows(compiled.basis_at(1.0, 1.0, 1.0)), self.model.reasons) if self.overlaps else {}
        self.resources = tuple(sorted(found))
        decoding, tokens, sequences = (
            Rows(compiled, self.model, m, self.resources) for m in (token | sequence, token, sequence)
        )
        self._decode_tokens = _Integers(lambda n: decoding.at(n, 1.0, 0.0))
        self._mixed_tokens = _Integers(lambda t: tokens.at(1.0, t, 0.0))
        self._sequences = _Integers(lambda s: sequences.at(s, 1.0, 0.0))
        self.contexts = ContextTable(compiled, self.model, context, device, self.longest, resources=self.resources)

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.parallel.tp * self.parallel.pp

    @property
    def static_w(self) -> float:
        """Watts of a working replica beyond the dynamic energies: one stage of a pipeline works at a time."""
        idle = rated_power(self.device)[1]
        return self.parallel.tp * self.model.static_power_w + (self.devices - self.parallel.tp) * idle

    @property
    def idle_w(self) -> float:
        """Watts of a replica that has nothing to do."""
        return self.devices * rated_power(self.device)[1]

    def hop_s(self, tokens: int) -> float:
        """Seconds in which the activations of ``tokens`` tokens pass through the pipeline's stages."""
        stages = self.parallel.pp
        if stages == 1:
            return 0.0
        bits = next((t.bits for op, _ in self.share.operators() for t in op.writes if t.role == "activation"), 16.0)
        size = self.trace.hidden * bits / 8 * tokens
        return (stages - 1) * float(collective_time("send", size, self.devices, self.device))

    # -- iterations ------------------------------------------------------------------------
    def decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """Seconds of ``steps`` iterations in which ``n`` sequences get a token each and nothing else runs.

        The first step has ``mean`` cached tokens per sequence, ``mean + longer`` at most.
        """
        return self.profile.iterations_s(self.device_decode_s(n, mean, longer, steps) * self.slower[0], 0, n, steps)

    def device_decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """What the devices take of :meth:`decode_s`."""
        fixed = self._decode_tokens.time(self.profile.padded(n)) + self.hop_s(n)
        return fixed * steps + self.contexts.decode_s(n, mean, longer, steps)

    def mixed_s(self, chunks: Sequence[tuple[int, int]], ends: int, n: int, mean: float, longer: float) -> float:
        """Seconds of one iteration of ``chunks`` (tokens, cached tokens), ``ends`` of which end their prompt, and
        ``n`` decoding sequences."""
        prompt = 0
        for q, _ in chunks:
            prompt += q
        device_s = self.device_mixed_s(chunks, ends, n, mean, longer)
        return self.profile.iterations_s(device_s * self.slower[1], prompt, ends + n, 1)

    def device_mixed_s(
        self, chunks: Sequence[tuple[int, int]], ends: int, n: int, mean: float, longer: float
    ) -> float:  # fmt: skip
        """What the devices take of :meth:`mixed_s`."""
        tokens = n
        for q, _ in chunks:
            tokens += q
        seconds = self._mixed_tokens.time(self.profile.padded(tokens)) + self.hop_s(tokens)
        if ends + n:
            seconds += self._sequences.time(ends + n)
        chunks, n, mean, longer = gathered(chunks, n, mean, longer)
        for q, c in chunks:
            seconds += self.contexts.chunk(q, c)[0]
        if n:
            seconds += self.contexts.decode_s(n, mean, longer)
        return seconds - max(len(chunks) - (n == 0), 0) * self.contexts.launch_s

    def interval(self, n: float, mean: float, query: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Low and high ends over the time, of a decode step of ``n`` sequences at ``mean`` cached tokens and of a
        prompt of ``query`` tokens: 90 % intervals of the device's cost model."""
        found = []
        for b, q, c in ((max(n, 1.0), 1.0, mean), (1.0, max(query, 1.0), 0.0)):
            costs = cost(self._compiled, self.device, b, q, c)
            found.append((float(costs.low_s[0] / costs.latency_s[0]), float(costs.high_s[0] / costs.latency_s[0])))
        return found[0], found[1]

    def hourly_usd(self, watts: float) -> tuple[float, str] | None:
        """US dollars per hour of a replica that draws ``watts`` (:func:`tokenfab.hw.hourly.hourly_usd`)."""
        return hourly_usd(self.device, self.devices, watts)

    def chunks_j(self, chunks: Sequence[tuple[int, int]], ends: int, n: int, mean: float, longer: float) -> float:
        """Dynamic joules of a mixed iteration that :meth:`mixed_j` is told: of the chunks' context rows, per device."""
        joules = 0.0
        for q, c in chunks:
            joules += self.contexts.chunk(q, c)[1]
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
        for batch in np.unique(n[n > 0]):
            here = n == batch
            out[here] = self.contexts.decode_j(int(batch), mean[here])
        return out


class _Integers:
    """A part at every integer from 1, evaluated :data:`BLOCK` at a time as it is asked for."""

    def __init__(self, evaluate: Callable[[Array], Part]) -> None:
        self._evaluate = evaluate
        self._blocks: dict[int, tuple[list[float], Array, Array]] = {}

    def _block(self, i: int) -> tuple[list[float], Array, Array]:
        found = self._blocks.get(i)
        if found is None:
            part = self._evaluate(np.arange(i * BLOCK + 1, (i + 1) * BLOCK + 1, dtype=float))
            found = self._blocks[i] = part.time_s.tolist(), part.energy_j, part.busy_s
        return found

    def time(self, n: int) -> float:
        """Seconds at ``n`` ≥ 1."""
        n -= 1
        return self._block(n // BLOCK)[0][n % BLOCK]

    def busy(self, n: int) -> Array:
        """Seconds of each resource at ``n`` ≥ 1, (resources,)."""
        n -= 1
        return self._block(n // BLOCK)[2][:, n % BLOCK]

    def energies(self, n: Whole) -> Array:
        """Joules at each of ``n``; 0 where it is 0."""
        out = np.zeros(n.size)
        index = n - 1
        for i in np.unique(index[index >= 0] // BLOCK):
            here = (index >= 0) & (index // BLOCK == i)
            out[here] = self._block(int(i))[1][index[here] % BLOCK]
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

    def same(at: Array) -> Mask:
        ok = np.ones(len(compiled.rows), dtype=bool)
        for matrix in compiled.coefficients.values():
            values = matrix @ at
            ok &= np.all(np.isclose(values, values[:, :1], rtol=1e-12, atol=0), axis=1)
        for i, row in enumerate(compiled.rows):
            for size in row.operator.dims.values():
                values = compiled.vector(size) @ at
                ok[i] &= bool(np.allclose(values, values[0], rtol=1e-12, atol=0))
        return ok

    token = same(tokens)
    sequence = same(sequences) & ~token
    return token, sequence, ~token & ~sequence
