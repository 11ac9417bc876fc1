"""Speculative decoding: a draft proposes tokens, one pass of the model verifies them.

A round gives every decoding sequence γ proposals; the model computes γ + 1 positions of each, in one iteration that
may hold chunks of prompts too. Of the proposals those before the first refusal stay, and one token of the model's own
follows: with an acceptance rate α per token, independent,

    P(k proposals stay) = α^k (1 − α) for k < γ, α^γ for k = γ        E(γ) = (1 − α^(γ+1)) / (1 − α) tokens

(Leviathan et al., arXiv:2211.17192, equation 1). A round takes γ steps of the draft, one after another, and

    token rows at n (γ + 1) + chunks · the head at n (γ + 1) + ended prompts · attention of γ + 1 queries per sequence

The draft computes prompts too, in passes of its own. Where it paused, its next first step computes what it missed.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from heapq import heapify

import numpy as np
import numpy.typing as npt

from ..hw.spec import Device
from ..workloads.parallel import Parallel
from ..workloads.trace import Trace
from .contexts import ContextTable
from .engine import EngineProfile
from .replica import Replica
from .scheduling import Plan
from .sequence import Sequence
from .steps import StepModel

Chunks = Many[tuple[int, int]]


def expected_tokens(acceptance: float, proposals: int) -> float:
    """Tokens that a round gives a sequence on average: (1 − α^(γ+1)) / (1 − α)."""
    if acceptance >= 1:
        return proposals + 1.0
    return (1 - acceptance ** (proposals + 1)) / (1 - acceptance)


class SpeculativeSteps(StepModel):
    """Iterations of a model beside a draft on ``draft_tp`` of the replica's devices; None: proposals cost nothing."""

    def __init__(
        self, trace: Trace, device: Device, parallel: Parallel, profile: EngineProfile, longest: int | None,
        draft: Trace | None, draft_tp: int,
    ) -> None:  # fmt: skip
        super().__init__(trace, device, parallel, profile, longest)
        self.draft = StepModel(draft, device, Parallel(draft_tp), profile, self.longest) if draft is not None else None
        self._wide: dict[int, ContextTable] = {}

    def round_s(
        self, chunks: Chunks, ends: int, n: int, mean: float, longer: float, proposals: int, missed: int = 0
    ) -> float:
        """Seconds of a round of ``n`` sequences with ``proposals`` each, beside ``chunks`` as in :meth:`mixed_s`.

        ``missed``: tokens that the draft has yet to compute.
        """
        if chunks or proposals:
            device_s = self._verified_s(chunks, ends, n, mean, longer, proposals)
        else:
            device_s = self.device_decode_s(n, mean, longer)
        device_s += self._drafted_s(chunks, n, mean, longer, proposals, missed)
        query = sum(q for q, _ in chunks)
        return self.profile.iterations_s(device_s * self.slower[bool(chunks)], query, ends + n, 1)

    def _verified_s(self, chunks: Chunks, ends: int, n: int, mean: float, longer: float, proposals: int) -> float:
        if not proposals:
            return self.device_mixed_s(chunks, ends, n, mean, longer)
        positions = n * (proposals + 1)
        tokens = positions + sum(q for q, _ in chunks)
        seconds = self._mixed_tokens.time(self.profile.padded(tokens)) + self.hop_s(tokens)
        seconds += self._sequences.time(ends + positions)
        seconds += sum(self.contexts.chunk(q, c)[0] for q, c in chunks) - len(chunks) * self.contexts.launch_s
        return seconds + self._queries(proposals + 1).decode_s(n, mean, longer)

    def _drafted_s(self, chunks: Chunks, n: int, mean: float, longer: float, proposals: int, missed: int) -> float:
        if self.draft is None:
            return 0.0
        seconds = self.draft.device_mixed_s(chunks, 0, 0, 0.0, 0.0) if chunks else 0.0
        if proposals:
            seconds += self.draft.device_decode_s(n, mean, longer, proposals)
            if missed:
                late = self.draft._mixed_tokens
                seconds += late.time(n + missed) - late.time(n)
        return seconds

    def round_j(self, chunks: Chunks, ends: int, n: int, mean: float, proposals: int) -> float:
        """Joules per device of a round beyond those of an iteration without proposals."""

        def whole(count: int) -> npt.NDArray[np.int64]:
            return np.array([count])

        joules = 0.0
        if proposals:
            query, more = sum(q for q, _ in chunks), n * proposals
            at = np.array([mean])
            for part, count in ((self._mixed_tokens, query + n), (self._sequences, ends + n)):
                joules += float((part.energies(whole(count + more)) - part.energies(whole(count)))[0])
            joules += float((self._queries(proposals + 1).decode_j(n, at) - self.contexts.decode_j(n, at))[0])
        if self.draft is not None:
            drafted = proposals * float(self.draft.decode_j(whole(n), np.array([mean]))[0]) if proposals else 0.0
            if chunks:
                tokens, none = whole(sum(q for q, _ in chunks)), whole(0)
                inside = np.array([self.draft.chunks_j(chunks, 0, 0, 0.0, 0.0)])
                drafted += float(self.draft.mixed_j(tokens, none, none, np.zeros(1), inside)[0])
            joules += drafted / self.parallel.tp
        return joules

    def _queries(self, query: int) -> ContextTable:
        """Attention of a decoding batch with ``query`` new tokens per sequence."""
        if query not in self._wide:
            rows = self.contexts.rows
            self._wide[query] = ContextTable(rows.compiled, rows.model, rows.mask, self._prepared, self.longest, query)
        return self._wide[query]


class SpeculativeReplica(Replica):
    """A replica whose sequences may get several tokens in an iteration. ``acceptance``: α, set by its policy."""

    steps: SpeculativeSteps
    acceptance = 0.0
    rounds = proposed = accepted = sequences = missed = 0

    def _seconds(self, plan: Plan, steps: StepModel | None = None) -> float:
        if not (plan.chunks or plan.proposals):
            return super()._seconds(plan)
        (chunks, ends), (n, mean, longer) = plan.parts(), self._run
        return self.steps.round_s(chunks, ends, n, mean, longer, plan.proposals, self.missed)

    def _record(self, plan: Plan, n: int) -> None:
        if plan.chunks or plan.proposals:
            chunks, ends = plan.parts()
            plan.extra_j += self.steps.round_j(chunks, ends, n, self._run[1], plan.proposals)
        super()._record(plan, n)

    def _advance(self, plan: Plan, now: float) -> None:
        if not plan.proposals:
            self.missed += len(self.decoding) * self._steps
            super()._advance(plan, now)
            return
        for stamp, count in self._cohorts.items():
            self.gaps.add(now - stamp, count)
        sequences = [s for _, _, s in self.decoding]
        kept = self._drawn(sequences, plan.proposals)
        size, grown, old = self.pool.size, 0, self.counter
        self.counter += 1
        for sequence, more in zip(sequences, kept, strict=True):
            context = sequence.base + old
            if sequence.grows:
                grown += -(-(context + more + 1) // size) + -context // size
                self._remainders[-sequence.base % size] -= 1
                self._remainders[-(sequence.base + more) % size] += 1
            sequence.base += more
            sequence.finish_at -= more
        extra = sum(kept)
        self._bases += extra
        self.gaps.add(0.0, extra)
        self._cohorts, self._stepped = {now: len(sequences)}, now
        if not self.pool.take(grown):
            raise AssertionError("a round was planned without blocks")
        self.decoding = [(s.finish_at, serial, s) for _, serial, s in self.decoding]
        self._tallest = [(-s.base, serial, s) for _, serial, s in self.decoding]
        for entry in self._tallest:
            entry[2].entry = entry
        heapify(self.decoding)
        heapify(self._tallest)
        self.rounds += 1
        self.sequences += len(sequences)
        self.proposed += plan.proposals * len(sequences)
        self.accepted += extra
        self.missed = 0
        self._sweep(now)

    def _drawn(self, sequences: list[Sequence], proposals: int) -> list[int]:
        """Proposals that stay, of each sequence; never more than its answer has room for before its last token."""
        left = np.array([s.finish_at - self.counter for s in sequences], dtype=np.int64)
        u = uniforms(self.simulation.seed, np.array([s.index for s in sequences], dtype=np.int64), left)
        with np.errstate(divide="ignore"):
            found = np.floor(np.log(u) / np.log(self.acceptance)) if 0 < self.acceptance < 1 else (
                np.full(u.size, float(proposals) if self.acceptance else 0.0)
            )  # fmt: skip
        kept: list[int] = np.minimum(np.minimum(found, proposals), left - 1).astype(np.int64).tolist()
        return kept


def uniforms(seed: int, index: npt.NDArray[np.int64], left: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Numbers in (0, 1) that depend on the seed, the request and how many tokens it has left, and on nothing else, so
    that a request's draws are the same beside whomever it runs. The mixing function is splitmix64's."""
    x = np.full(index.size, np.uint64(seed & (2**64 - 1)))
    for part in (index, left):
        x = (x ^ part.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
