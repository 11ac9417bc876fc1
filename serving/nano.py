"""Nano-batches: an iteration is divided, so that one part computes while others load or communicate.

k nano-batches of an iteration run beside one another. Each is an iteration of its own of 1/k of the tokens and of the
sequences, whose operators depend on each other; weights are read once per nano-batch. Alone it takes L seconds,
launches included, and occupies resource r for D_r of them (``RowCosts.busy_s``). Layer after layer each goes round the
same resources, so that they are k customers of a closed network of queues, with Z = max(L − Σ D_r, 0) that wait for
nothing: by mean value analysis (Reiser and Lavenberg, JACM 27(2), 1980)

    R_r(j) = D_r (1 + Q_r(j − 1))      X(j) = j / (Z + Σ R_r(j))      Q_r(j) = X(j) R_r(j)        j = 1 … k
    T_k    = max( k / X(k),  L,  k max_r D_r )

T has the two bounds that any schedule has, no nano-batch is quicker than alone and no resource does two things at a
time, and between them what nano-batches wait for each other without a plan. k = 1 is the sequential iteration; the
quickest of k = 1 … ``most`` is taken. The discrete-event level (``--streams``, :mod:`tokenfab.hw.event`) is the check.

After Zhu et al., NanoFlow, arXiv:2408.12757, section 4. Left out: a plan that keeps nano-batches out of each other's
way, and what kernels that share a device cost each other beyond occupation (multiprocessors divided between kernels,
caches), of which the paper's search weighs one against the other; a pipeline's stages are passed as without
nano-batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..hw.spec import Device
from ..workloads.parallel import Parallel
from ..workloads.trace import Trace
from .contexts import Array
from .curves import Curve
from .engine import EngineProfile
from .steps import StepModel, Whole, gathered

Chunks = Sequence[tuple[int, int]]


class NanoSteps(StepModel):
    """Iterations of at most ``most`` nano-batches; 1 = none, the base class exactly."""

    overlaps = True

    def __init__(
        self, trace: Trace, device: Device, parallel: Parallel, profile: EngineProfile, longest: int | None, most: int
    ) -> None:
        super().__init__(trace, device, parallel, profile, longest)
        self.most = most
        self._combined: dict[tuple[int, int, float], tuple[Curve, npt.NDArray[np.intp]]] = {}
        self._last: tuple[tuple[object, ...], tuple[float, int]] = (), (0.0, 1)

    def overlapped_s(self, alone_s: Array, busy_s: Array, k: int | Whole) -> Array:
        """T_k of nano-batches that take ``alone_s`` (points,) and occupy resources for ``busy_s`` (resources, points)
        each; ``k``: one number for all, or (points,)."""
        waits_for_nothing = np.maximum(alone_s - busy_s.sum(axis=0), 0.0)
        queued = np.zeros_like(busy_s)
        together = alone_s
        for j in range(1, int(np.max(k)) + 1):
            there = busy_s * (1 + queued)
            now = waits_for_nothing + there.sum(axis=0)
            queued = j * there / now
            together = np.where(j <= k, now, together)
        return np.asarray(np.maximum(np.maximum(together, alone_s), k * busy_s.max(axis=0)))

    # -- decode steps ------------------------------------------------------------------------
    def device_decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """What the devices take of :meth:`decode_s`, the quickest number of nano-batches at every context."""
        if self.most == 1:
            return super().device_decode_s(n, mean, longer, steps)
        self.contexts.reach_to(mean + steps)
        level, weight = self.contexts.level(longer)
        low = self._decode(n, level)[0]
        return self.contexts.along(low, self._decode(n, level + 1)[0] if weight else low, weight, mean, steps)

    def decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        """See :meth:`.StepModel.decode_s`."""
        if self.most == 1:
            return super().decode_s(n, mean, longer, steps)
        return self.hosted_s(n, steps, lambda k: self.device_decode_s(n, mean, longer, k))

    def _decode(self, n: int, level: int) -> tuple[Curve, npt.NDArray[np.intp]]:
        """Seconds by mean context, and at its knots the number of nano-batches less one."""
        found = self._combined.get((n, level, self.contexts.reach))
        if found is None:
            times = []
            for k in range(1, min(self.most, n) + 1):
                part = -(-n // k)
                padded = self.profile.padded(part)
                alone = self._decode_tokens.time(padded) + self.contexts.knot_times(part, level)
                busy = self._decode_tokens.busy(padded)[:, None] + self.contexts.knot_busy(part)
                times.append(alone if k == 1 else self.overlapped_s(alone, busy, k))
            stacked = np.stack(times)
            curve = Curve(self.contexts.at, stacked.min(axis=0) + self.hop_s(n))
            found = self._combined[n, level, self.contexts.reach] = curve, stacked.argmin(axis=0)
        return found

    def decode_j(self, n: Whole, mean: Array) -> Array:
        """Dynamic joules of one decode iteration of ``n`` sequences at ``mean`` cached tokens; (N,) each."""
        out = np.zeros(n.size)
        for batch in np.unique(n[n > 0]):
            here = np.flatnonzero(n == batch)
            nearest = np.clip(np.searchsorted(self.contexts.at, mean[here]), 0, self.contexts.at.size - 1)
            counts = self._decode(int(batch), 0)[1][nearest] + 1
            for k in np.unique(counts):
                at = here[counts == k]
                part = np.full(at.size, -(-batch // k))
                out[at] = k * super().decode_j(part, mean[at])
        return out

    # -- mixed iterations ------------------------------------------------------------------------
    def device_mixed_s(self, chunks: Chunks, ends: int, n: int, mean: float, longer: float) -> float:
        """What the devices take of :meth:`mixed_s`, the quickest number of nano-batches."""
        return self._divided(chunks, ends, n, mean, longer)[0]

    def _divided(self, chunks: Chunks, ends: int, n: int, mean: float, longer: float) -> tuple[float, int]:
        """Seconds and the number of nano-batches; those of the last iteration, whose energy is asked next, are kept."""
        key = (*chunks, ends, n, mean, longer)
        if self._last[0] != key:
            self._last = key, self._quickest(chunks, ends, n, mean, longer)
        return self._last[1]

    def _quickest(self, chunks: Chunks, ends: int, n: int, mean: float, longer: float) -> tuple[float, int]:
        best = super().device_mixed_s(chunks, ends, n, mean, longer), 1
        tokens = n + sum(q for q, _ in chunks)
        if self.most == 1:
            return best
        sequences = ends + n
        chunks, n, mean, longer = gathered(chunks, n, mean, longer)
        hop, launch = self.hop_s(tokens), self.contexts.launch_s
        found = (
            np.array([self.contexts.chunk(q, c) for q, c in chunks]).reshape(len(chunks), -1).sum(axis=0)
            if chunks
            else np.zeros(2 + len(self.resources))
        )
        asked = found[0] - max(len(chunks) - 1, 0) * launch
        alones, busies = [], []
        counts = np.arange(2, min(self.most, tokens) + 1)
        for k in counts.tolist():
            padded = self.profile.padded(-(-tokens // k))
            alone = self._mixed_tokens.time(padded) + asked / k
            busy = self._mixed_tokens.busy(padded) + found[2:] / k
            if sequences:
                part = -(-sequences // k)
                alone += self._sequences.time(part)
                busy = busy + self._sequences.busy(part)
            if n:
                part = -(-n // k)
                alone += self.contexts.decode_s(part, mean, longer) - (launch if chunks else 0.0)
                busy = busy + self.contexts.decode_busy(part, mean)
            alones.append(alone)
            busies.append(busy)
        if alones:
            seconds = self.overlapped_s(np.array(alones), np.stack(busies, axis=1), counts) + hop
            i = int(seconds.argmin())
            if seconds[i] < best[0]:
                best = float(seconds[i]), int(counts[i])
        return best

    def chunks_j(self, chunks: Chunks, ends: int, n: int, mean: float, longer: float) -> float:
        """As in the base class, and what reading the weights once per nano-batch adds."""
        joules = super().chunks_j(chunks, ends, n, mean, longer)
        k = self._divided(chunks, ends, n, mean, longer)[1]
        if k > 1:
            for part, count in ((self._mixed_tokens, n + sum(q for q, _ in chunks)), (self._sequences, ends + n)):
                one = part.energies(np.array([-(-count // k), count]))
                joules += float(k * one[0] - one[1])
        return joules
