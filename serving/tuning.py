"""Fine-tuning beside inference: adapters on a frozen model, a window of a training sequence in every iteration.

A training sequence of L tokens goes forward in windows from its start, then backward in windows from its end. A window
of w tokens at position p joins the iteration's token rows, and its attention is one more chunk:

    forward    (1 + s) w token rows, w positions of the head,   1   × attention of w tokens after p cached ones
    backward   (β + 2 s) w token rows, w positions of the head, 2.5 × attention of w tokens after p cached ones

s      adapters of rank r on every linear layer over the layers themselves: Σ r (n + k) / Σ n k over the trace's
       products with weights; backward they need their own and their inputs' gradients
β      1 where weights are frozen: of the two products of a layer's backward pass, the inputs' gradient alone, as many
       operations as forward; 2 where the weights' gradient is computed too
2.5    FlashAttention's backward: five products for the forward pass's two (Dao, arXiv:2307.08691, section 3.1)

Kept for the backward pass, L tokens at a time: the inputs of all operators that are not linear in a known way (all but
sums, rotations and lookups), keys and values; and 16 bytes per adapter parameter (weight and gradient in 16 bits,
master weight and two moments in 32: mixed-precision Adam). Left out: the optimiser's step, pruning and recomputing of
what is kept, several training sequences at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..hw.spec import Device
from ..hw.tiers import kv_demand
from ..workloads.parallel import Parallel
from ..workloads.trace import Trace
from .engine import EngineProfile
from .steps import StepModel

Chunks = Sequence[tuple[int, int]]

ATTENTION_BACKWARD = 2.5
ADAPTER_BYTES = 16
NOT_KEPT = frozenset({"elementwise", "rope", "embedding", "collective", "kv_append", "copy"})
"""Kinds of operators whose inputs the backward pass does not need (collectives have none of their own)."""


class TuningSteps(StepModel):
    """Iterations beside a training window. ``rank`` of the adapters; ``frozen`` is β."""

    def __init__(
        self, trace: Trace, device: Device, parallel: Parallel, profile: EngineProfile, longest: int | None,
        rank: int, frozen: float,
    ) -> None:  # fmt: skip
        super().__init__(trace, device, parallel, profile, longest)
        adapters = products = 0.0
        for op, count in self.share.operators():
            n, k = (op.dims.get(x) for x in ("n", "k"))
            if op.kind == "matmul" and op.weights and n is not None and k is not None:
                adapters += count * rank * ((n.constant or 0.0) + (k.constant or 0.0))
                products += count * (n.constant or 0.0) * (k.constant or 0.0)
        self.adapter_parameters = adapters
        share = adapters / products if products else 0.0
        self.work = 1 + share, frozen + 2 * share
        """Token rows per token of a window, forward and backward."""

    def kept_bytes(self, length: int) -> float:
        """Bytes of a device that training takes: of ``length`` tokens for their backward pass, and of the adapters."""
        size = sum(kv_demand(self.share, 1.0, float(length))) + ADAPTER_BYTES * self.adapter_parameters
        for op, count in self.share.operators():
            if op.kind not in NOT_KEPT:
                kept = [t for t in op.reads if t.role == "activation"]
                kept += [t for t in op.writes if t.role == "activation" and op.kind == "attention"]
                for t in kept:  # training computes the head at every position
                    one, all_ = (float(t.stored_bytes(1.0, float(x), 0.0)) for x in (1, length))
                    size += count * max(all_, one * length)
        return size

    def beside_s(
        self, chunks: Chunks, ends: int, n: int, mean: float, longer: float, window: int, position: int, back: bool
    ) -> float:
        """Seconds of an iteration of inference (as in :meth:`mixed_s`; nothing at all where it has no tokens) with a
        ``window`` at ``position``, ``back`` wards or forward."""
        inference = n + sum(q for q, _ in chunks)
        tokens = inference + round(self.work[back] * window)
        device_s = self._mixed_tokens.time(self.profile.padded(tokens)) + self.hop_s(tokens)
        device_s += self._sequences.time(ends + n + window)
        prompt, sequences = sum(q for q, _ in chunks), ends + n
        if inference:
            device_s += self.contexts_s(chunks, n, mean, longer) - self.contexts.launch_s
        device_s += (ATTENTION_BACKWARD if back else 1.0) * self.contexts.chunk(window, position)[0]
        slower = self.slower[bool(prompt or not n)]
        return self.profile.iterations_s(device_s * slower, prompt, sequences, 1)

    def window_j(self, tokens: int, sequences: int, window: int, position: int, back: bool) -> float:
        """Joules per device that a window adds to an iteration of ``tokens`` tokens and ``sequences`` of them last."""
        joules = (ATTENTION_BACKWARD if back else 1.0) * self.contexts.chunk(window, position)[1]
        more = round(self.work[back] * window)
        for part, count, extra in ((self._mixed_tokens, tokens, more), (self._sequences, sequences, window)):
            before, after = part.energies(np.array([count, count + extra]))
            joules += float(after - before)
        return joules
