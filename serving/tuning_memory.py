"""What fine-tuning of adapters keeps for its backward pass, by how much of the graph is looked at.

Four ways, each of one training sequence of L tokens through a model whose weights are frozen:

all              every intermediate result, as a framework does that knows no graph. Attention is a chain of operators
                 there: scores, scaled, masked, probabilities in 32 bits and as the next product takes them, 2 + 2 + 2 +
                 4 + 2 bytes per head and pair of tokens (the eager attention of transformers).
pruned           what some gradient needs: inputs of norms and activation functions; queries, keys, values and
                 probabilities of attention; inputs of the adapted layers. A frozen linear layer needs nothing kept, a
                 sum or a rotation neither.
rematerialised   of these, without what one pass over kept tensors gives again: results of norms and of activation
                 functions.
windows          and probabilities are made again from queries and keys for the window of tokens that goes backward,
                 one layer at a time: their bytes are not counted.

A tensor that several operators read is kept once. Source: Oliaro et al., FlexLLM, arXiv:2402.18789, section 5.
"""

from __future__ import annotations

from collections import Counter

from ..errors import InputError, unknown_name
from ..hw.tiers import weight_demand
from ..workloads.load import load_trace
from ..workloads.trace import Block, Operator, Tensor, Trace

WAYS = ("all", "pruned", "rematerialised", "windows")
EAGER_BYTES = 12
"""Per head and pair of tokens, of scores to probabilities, where attention is a chain of operators."""
PROBABILITY_BYTES = 2
CHEAP = ("norm", "activation")
"""Kinds of operators whose results one pass gives again."""
NEEDY = ("norm", "activation", "attention")
"""Kinds whose inputs a gradient needs."""


def activation_bytes(trace: Trace, length: int, way: str, adapted: str) -> float:
    """Bytes kept for the backward pass of ``length`` tokens. ``adapted``: names of the operators with adapters, joined
    by +. Raises ``InputError`` for a way or an operator that is not known."""
    if way not in WAYS:
        raise unknown_name("way of keeping activations", way, WAYS)
    names = set(adapted.split("+"))
    known = {op.name for op, _ in trace.operators() if op.kind == "matmul" and op.weights}
    for name in sorted(names - known):
        raise unknown_name("linear layer", name, known)
    if length < 1:
        raise InputError(f"a training sequence of {length} tokens; accepted: at least 1")
    return sum(
        repeat * _kept(block, length, way, names) for block, repeat in ((_block(trace, n), r) for n, r in trace.order)
    )


def _block(trace: Trace, name: str) -> Block:
    return next(block for block in trace.blocks if block.name == name)


def _kept(block: Block, length: int, way: str, adapted: set[str]) -> float:
    """Bytes that one execution of ``block`` leaves for its backward pass."""
    pairs = results = 0.0
    copies: Counter[tuple[str, str]] = Counter()
    size: dict[tuple[str, str], float] = {}
    made_by = {t.name: op for op in block.operators for t in op.writes}
    for op in block.operators:
        if op.kind == "attention":
            heads = float(op.dims["heads"].constant or 0.0)
            pairs += heads * length * length * (EAGER_BYTES if way == "all" else PROBABILITY_BYTES)
        if way == "all":
            results += sum(_bytes(t, length) for t in op.writes if t.role == "activation")
        elif op.kind in NEEDY or op.name in adapted:
            here: Counter[tuple[str, str]] = Counter()  # keys and values are two tensors of one name and shape
            for t in op.reads:
                if t.role in ("activation", "kv") and (way == "pruned" or not _again(made_by.get(t.name))):
                    key = t.name, str(t.shape)
                    here[key] += 1
                    size[key] = _bytes(t, length)
            copies |= here
    kept = results + sum(size[key] * count for key, count in copies.items())
    return kept + (0.0 if way == "windows" else pairs)


def _again(maker: Operator | None) -> bool:
    """Whether a tensor is made again instead of kept."""
    return maker is not None and maker.kind in CHEAP


def _bytes(tensor: Tensor, length: int) -> float:
    """Bytes of a tensor of one sequence; training computes the head at every position."""
    one, whole = (float(tensor.stored_bytes(1.0, float(x), 0.0)) for x in (1, length))
    return max(whole, one * length)


def activation_gb(model: str, length: int, way: str, adapted: str = "mlp.down") -> float:
    """GB of activations kept for the backward pass of a training sequence, by way of keeping them: ``all``,
    ``pruned``, ``rematerialised`` or ``windows``"""
    return activation_bytes(load_trace(model), length, way, adapted) / 1e9


def activation_saving(model: str, length: int, adapted: str = "mlp.down") -> float:
    """bytes of activations kept of a training sequence, ``all`` over ``windows``"""
    trace = load_trace(model)
    return activation_bytes(trace, length, "all", adapted) / activation_bytes(trace, length, "windows", adapted)


def tuning_memory_saved(model: str, length: int, adapted: str = "mlp.down") -> float:
    """per cent of weights and activations together that ``windows`` saves against ``all``"""
    trace = load_trace(model)
    weights = sum(weight_demand(trace, tiered=False))
    most, least = (weights + activation_bytes(trace, length, way, adapted) for way in ("all", "windows"))
    return 100 * (1 - least / most)


FIGURES = {
    "activation_gb": activation_gb,
    "activation_saving": activation_saving,
    "tuning_memory_saved": tuning_memory_saved,
}
