"""RWKV-4, the recurrent model that SpikeGPT makes spiking, as a trace written from its equations.

Per layer (arXiv:2305.13048, equations 11 to 18; hidden d, inner i): time mixing has four d × d products (receptance,
key, value, output) around the WKV recurrence, channel mixing a d × i, an i × d and a d × d one (receptance). Captured
implementations keep the state outside of the cache arguments that :mod:`.hf_capture` follows, hence this builder.
Token shifts and the small vectors (decay, first, mixing) are element-wise and hold 0.1 % of the parameters; they are
counted as one element-wise operator per half layer, without weights.
"""

from __future__ import annotations

from .expr import B, Expr, Q, expr
from .formulas import matmul_flops
from .synapses import Synapses, count_synapses
from .techniques import apply_techniques
from .trace import Block, Operator, Tensor, Trace

WKV_FLOPS = 18
"""Per token and channel of the recurrence in its numerically safe form: two maxima, four exponentials, eight
multiplications and additions for numerator and denominator, the division, and the decay."""
STATE = 3
"""Numbers kept per channel: numerator, denominator, largest exponent."""


def rwkv_trace(name: str, *, layers: int, hidden: int, inner: int, vocabulary: int, format: str = "fp32") -> Trace:
    """An RWKV-4 model of ``layers`` layers; embedding and head are two matrices."""
    make = _Maker(hidden, format)
    embed = Block(name="embed", repeat=1, output="embedding", operators=(make.embedding(vocabulary),))
    mix = (
        make.norm("norm1", ()), make.elementwise("shift1", "norm1", 6),
        *(make.matmul(part, "shift1", hidden, hidden) for part in ("receptance", "key", "value")),
        make.wkv(("receptance", "key", "value")), make.matmul("output", "wkv", hidden, hidden),
        make.elementwise("add1", "output", 1), make.norm("norm2", ("add1",)), make.elementwise("shift2", "norm2", 4),
        make.matmul("channel_key", "shift2", inner, hidden), make.activation("square", "channel_key", inner),
        make.matmul("channel_value", "square", hidden, inner),
        make.matmul("channel_receptance", "shift2", hidden, hidden), make.elementwise("add2", "channel_value", 3),
    )  # fmt: skip
    layer = Block(name="layer", repeat=layers, operators=mix, output="add2")
    head = Block(
        name="head", repeat=1, output="logits",
        operators=(make.norm("norm", ()), make.matmul("logits", "norm", vocabulary, hidden, tokens=B)),
    )  # fmt: skip
    return Trace(
        model=name, format=format, hidden=hidden, vocabulary=vocabulary, blocks=(embed, layer, head),
        order=(("embed", 1), ("layer", layers), ("head", 1)), provenance={"capture": "equations of arXiv:2305.13048"},
    )  # fmt: skip


class _Maker:
    def __init__(self, hidden: int, format: str) -> None:
        self.hidden, self.format = hidden, format
        self.bits = {"fp32": 32.0}.get(format, 16.0)

    def tensor(self, name: str, *shape: Expr | int, role: str = "activation", touched: Expr | None = None) -> Tensor:
        return Tensor(
            name=name, shape=tuple(map(expr, shape)), role=role, format=self.format, bits=self.bits, touched=touched  # type: ignore[arg-type]
        )  # fmt: skip

    def embedding(self, vocabulary: int) -> Operator:
        size = B * Q * self.hidden
        table = self.tensor("embedding.weight", vocabulary, self.hidden, role="weight", touched=size)
        index = Tensor(name="input", shape=(B, Q), role="index", format="int64", bits=64)
        return Operator(
            name="embedding", kind="embedding", format=self.format, dims={"elements": size}, flops=expr(0),
            reads=(index, table), writes=(self.tensor("embedding", B, Q, self.hidden),),
        )  # fmt: skip

    def matmul(self, name: str, source: str, n: int, k: int, tokens: Expr | None = None) -> Operator:
        m = B * Q if tokens is None else tokens
        return Operator(
            name=name, kind="matmul", format=self.format, deps=(source,), flops=matmul_flops(m, n, k),
            dims={"m": m, "n": expr(n), "k": expr(k)},
            reads=(self.tensor(source, m, k), self.tensor(f"{name}.weight", n, k, role="weight")),
            writes=(self.tensor(name, m, n),),
        )  # fmt: skip

    def pointwise(self, name: str, kind: str, deps: tuple[str, ...], flops: float, width: int) -> Operator:
        return Operator(
            name=name, kind=kind, format=self.format, deps=deps, dims={"elements": B * Q * width},  # type: ignore[arg-type]
            flops=B * Q * width * flops, reads=(self.tensor(deps[0] if deps else "hidden", B, Q, width),),
            writes=(self.tensor(name, B, Q, width),),
        )  # fmt: skip

    def norm(self, name: str, deps: tuple[str, ...]) -> Operator:
        return self.pointwise(name, "norm", deps, 5, self.hidden)

    def elementwise(self, name: str, source: str, flops: float) -> Operator:
        return self.pointwise(name, "elementwise", (source,), flops, self.hidden)

    def activation(self, name: str, source: str, width: int) -> Operator:
        return self.pointwise(name, "activation", (source,), 2, width)

    def wkv(self, deps: tuple[str, ...]) -> Operator:
        state = self.tensor("state", B, self.hidden, STATE, role="state")
        return Operator(
            name="wkv", kind="scan", format=self.format, deps=deps, flops=B * Q * self.hidden * WKV_FLOPS,
            dims={"elements": B * Q * self.hidden, "state": expr(STATE)},
            reads=(*(self.tensor(d, B, Q, self.hidden) for d in deps), state),
            writes=(self.tensor("wkv", B, Q, self.hidden), state),
        )  # fmt: skip


def spiking_operations_ratio(layers: int, hidden: int, inner: int, vocabulary: int, rate: float) -> float:
    """multiply-accumulates of an RWKV model over the accumulates that are left when inputs fire at a rate"""
    return _spikes(layers, hidden, inner, vocabulary, rate).operations_ratio


def spiking_energy_ratio(
    layers: int, hidden: int, inner: int, vocabulary: int, rate: float, accumulate_pj: float, multiply_pj: float
) -> float:
    """energy of an RWKV model's multiply-accumulates over that of what is left when inputs fire at a rate"""
    add, whole = accumulate_pj * 1e-12, multiply_pj * 1e-12
    return _spikes(layers, hidden, inner, vocabulary, rate).energy_ratio(add, whole - add)


def _spikes(layers: int, hidden: int, inner: int, vocabulary: int, rate: float) -> Synapses:
    model = rwkv_trace("spiking", layers=layers, hidden=hidden, inner=inner, vocabulary=vocabulary)
    return count_synapses(apply_techniques(model, [f"spiking:rate={rate}"]))


FIGURES = {"spiking_operations_ratio": spiking_operations_ratio, "spiking_energy_ratio": spiking_energy_ratio}
