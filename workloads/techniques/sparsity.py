"""Weight sparsity: weights are pruned and stored compressed; who can skip zeros does.

What is kept of a matmul's or an expert's weights, per pattern (``M`` inputs of one output are a block):

    nm            N of every M weights (2:4 is that of NVIDIA's sparse tensor cores, arXiv:2104.08378)
    blocks        blocks of M keep a power of two each, such that ``density`` is kept on average: with densities of
                  1/2 to 1 a share of 2·(1 − density) keeps M/2, the rest all (FlightLLM, arXiv:2401.03868, 3.2.1)
    unstructured  any ``density`` of the weights, with a bitmap (one bit per weight)
    group         whole blocks of M weights, with one bit per block

Stored bits per weight: kept · bits + index, where an index of log2(M) bits comes with every value that is kept in a
block that is not full (``nm``, ``blocks``). Where that is more than the dense weights, they are stored dense, and
still skipped by who can. The arithmetic keeps its dense FLOPs, as published speed-ups count it; the operator says
what may be skipped in its attributes ``density`` and ``sparsity``.

Quantise before: the indices are of the pruned weights.
"""

from __future__ import annotations

from math import log2

from ...errors import InputError
from ..rewrite import map_operators, map_tensors
from ..trace import Operator, Tensor, Trace
from . import Parameter, Technique

SPARSE_KINDS = {"matmul": 2, "experts": 3}
"""Kinds of operators whose weights are pruned, and the axes of those weights: fewer are biases."""


def apply(trace: Trace, n: int, m: int, density: float, pattern: str, where: str) -> Trace:
    """``trace`` with weights of matmuls and experts pruned whose operator's name contains one of ``where``.

    Raises ``InputError`` for N above M, a block that is no power of two where indices are stored, and weights
    that are sparse already.
    """
    kept = _kept(n, m, density, pattern)
    names = [name for name in where.split("+") if name]
    if kept == 1:
        return trace

    def prune(op: Operator) -> Operator:
        axes = SPARSE_KINDS.get(op.kind)
        wanted = not names or any(name in op.name for name in names)
        if axes is None or not wanted or not any(t.role == "weight" and len(t.shape) >= axes for t in op.reads):
            return op
        if "density" in op.attrs:
            raise InputError(f"technique sparsity: {op.name} is sparse already; accepted: once per operator")

        def store(t: Tensor) -> Tensor:
            if t.role != "weight" or len(t.shape) < axes:
                return t
            stored = kept * t.bits + index_bits(kept, m, pattern)
            return t.model_copy(update={"bits": stored}) if stored < t.bits else t

        label = f"{n}:{m}" if pattern == "nm" else f"{pattern}:{m}" if pattern != "unstructured" else pattern
        op = op.model_copy(update={"attrs": op.attrs | {"density": kept, "sparsity": label}})
        return map_tensors(op, store)

    return map_operators(trace, prune)


def index_bits(kept: float, m: int, pattern: str) -> float:
    """Bits of indices per dense weight of which ``kept`` is kept: see the module's table."""
    if pattern == "unstructured":
        return 1.0
    if pattern == "group":
        return 1 / m
    if pattern == "nm":
        return kept * log2(m)
    _, share, mode = blocks_of(kept)  # those of full blocks need none
    full = 1 - share if mode == 0 else 0.0
    return (kept - full) * log2(m)


def blocks_of(kept: float) -> tuple[float, float, int]:
    """(share, other share, s): shares of blocks that keep M/2^s and M/2^(s+1) weights, for a mean of ``kept``."""
    mode = 0
    while kept < 0.5 ** (mode + 1):
        mode += 1
    sparser = 2 * (1 - kept * 2**mode)
    return 1 - sparser, sparser, mode


def _kept(n: int, m: int, density: float, pattern: str) -> float:
    if pattern in ("nm", "blocks") and m & (m - 1):
        raise InputError(f"technique sparsity: m: {m} is no power of two; accepted: 2, 4, 8, 16, …")
    if pattern != "nm":
        if pattern == "blocks" and density * m < 1:
            raise InputError(f"technique sparsity: density: {density:g} of {m} is less than one weight of a block")
        return density
    if n > m:
        raise InputError(f"technique sparsity: n: {n} of {m} weights; accepted: at most m")
    return n / m


TECHNIQUE = Technique(
    name="sparsity",
    description="prune weights: N:M, mixed blocks, unstructured or groups, stored compressed",
    source="NVIDIA 2:4, arXiv:2104.08378; FlightLLM, arXiv:2401.03868; SparseGPT, arXiv:2301.00774",
    parameters={
        "n": Parameter(2, "weights kept of every m (pattern nm)", low=1, high=1024),
        "m": Parameter(4, "weights of a block along the inputs", low=2, high=1024),
        "density": Parameter(0.5, "share of the weights that is kept (other patterns)", low=1e-3, high=1),
        "pattern": Parameter("nm", "what is kept", choices=("nm", "blocks", "unstructured", "group")),
        "where": Parameter("", "parts of operators' names, joined by +; empty = all matmuls and experts"),
    },
    apply=apply,
)
