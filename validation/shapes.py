"""The kernels that ``tokenfab measure`` times: what each computes and moves, and the grid of sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..workloads.formulas import attention_flops, matmul_flops
from .kernels import COPIES
from .timing import Call

if TYPE_CHECKING:
    import torch

BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Gemm:
    """y (m, n) = x (m, k) times a weight (n, k) transposed."""

    dtype: str
    m: int
    n: int
    k: int
    table: ClassVar[str] = "gemm"
    copies: ClassVar[int] = COPIES

    @property
    def flops(self) -> float:
        """Floating-point operations of one call."""
        return matmul_flops(self.m, self.n, self.k).constant or 0.0

    @property
    def moved(self) -> float:
        """Bytes of operands and result, each once."""
        return float(BYTES[self.dtype] * (self.m * self.k + self.n * self.k + self.m * self.n))

    @property
    def held(self) -> float:
        """Bytes that measuring it takes."""
        return self.moved + float(BYTES[self.dtype] * (self.copies - 1) * self.n * self.k)

    def row(self) -> dict[str, Any]:
        """Its columns of the table."""
        return {"gemm_dtype": self.dtype, "m": self.m, "n": self.n, "k": self.k}

    def call(self, fill: Callable[..., torch.Tensor]) -> Call:
        """The kernel on operands that ``fill(dtype, *shape)`` makes."""
        from torch.nn.functional import linear

        x, weights = fill(self.dtype, self.m, self.k), fill(self.dtype, self.copies, self.n, self.k).unbind()
        return lambda number: linear(x, weights[number])


@dataclass(frozen=True)
class Attention:
    """``query`` new tokens per sequence on ``kv`` keys, which include them; causal when there is more than one."""

    dtype: str
    batch: int
    query: int
    kv: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    copies: ClassVar[int] = 1

    @property
    def table(self) -> str:
        """Which table it belongs to."""
        return "context_attention" if self.query > 1 else "generation_attention"

    @property
    def flops(self) -> float:
        """Floating-point operations of one call, half of the square for a causal one."""
        d = self.head_dim
        return attention_flops(self.batch, self.heads, self.query, self.kv, d, d).constant or 0.0

    @property
    def moved(self) -> float:
        """Bytes of queries, keys, values and result, each once."""
        tokens = 2 * self.heads * self.query + 2 * self.kv_heads * self.kv
        return float(BYTES[self.dtype] * self.batch * self.head_dim * tokens)

    @property
    def held(self) -> float:
        """Bytes that measuring it takes."""
        return self.moved

    def row(self) -> dict[str, Any]:
        """Its columns of the table: of a decoding row, isl 1 and step are the keys, as in aiconfigurator's."""
        return {
            "batch_size": self.batch, "isl": self.query, "num_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "beam_width": 1,
            "attn_dtype": self.dtype, "kv_cache_dtype": self.dtype, "step": self.kv - self.query, "window_size": 0,
        }  # fmt: skip

    def call(self, fill: Callable[..., torch.Tensor]) -> Call:
        """The kernel on operands that ``fill(dtype, *shape)`` makes."""
        from torch.nn.functional import scaled_dot_product_attention

        q = fill(self.dtype, self.batch, self.heads, self.query, self.head_dim)
        k, v = fill(self.dtype, 2, self.batch, self.kv_heads, self.kv, self.head_dim).unbind()
        causal = self.query > 1
        grouped: dict[str, Any] = {"enable_gqa": True} if self.heads != self.kv_heads else {}
        return lambda number: scaled_dot_product_attention(q, k, v, is_causal=causal, **grouped)


Shape = Gemm | Attention


def shapes(kind: str, suites: Sequence[str], dtypes: Sequence[str], quick: bool = False) -> list[Shape]:
    """What is measured on ``kind`` (``cuda``, ``cpu``), in the order of the tables' rows.

    m and keys are powers of two; n and k those of layers, from OPT-125M's on a CPU, to Llama-2-70B's on CUDA.
    """
    found: list[Shape] = []
    for dtype in dtypes:
        if "gemm" in suites:
            found += [Gemm(dtype, m, n, k) for n, k in LAYERS[kind][: 2 if quick else None] for m in _rows(kind, quick)]
        if "attention" in suites:
            found += _prefill(kind, dtype, quick)
            found += _decode(kind, dtype, quick)
    return found


LAYERS = {
    "cuda": [
        (4096, 4096), (6144, 4096), (1024, 4096), (12288, 4096), (22016, 4096), (4096, 11008), (28672, 4096),
        (4096, 14336), (2048, 2048), (8192, 2048), (2048, 8192), (10240, 8192), (8192, 8192), (57344, 8192),
        (8192, 28672), (7168, 5120), (5120, 13824),
    ],
    "cpu": [(2048, 2048), (768, 768), (2304, 768), (3072, 768), (768, 3072), (3072, 2048), (8192, 2048), (2048, 8192)],
}  # fmt: skip
"""(n, k) of layers; ``--quick`` takes the first two."""


def _rows(kind: str, quick: bool) -> list[int]:
    last = {"cuda": 13, "cpu": 8}[kind]
    return [1 << p for p in range(0, last + 1, 4 if quick else 1)]


def _prefill(kind: str, dtype: str, quick: bool) -> list[Shape]:
    heads, most = ([(32, 32), (32, 8), (64, 8)], 1 << 16) if kind == "cuda" else ([(16, 16), (16, 4)], 1 << 11)
    batches, lengths = ([1, 2, 4, 8], range(6, 15)) if kind == "cuda" else ([1, 4], range(5, 11))
    if quick:
        heads, batches, lengths = heads[1:2], batches[:1], lengths[1:3]
    return [
        Attention(dtype, b, 1 << p, 1 << p, h, hk)
        for h, hk in heads for b in batches for p in lengths if b << p <= most
    ]  # fmt: skip


def _decode(kind: str, dtype: str, quick: bool) -> list[Shape]:
    heads, most = ([(32, 32), (32, 8), (64, 8)], 1 << 20) if kind == "cuda" else ([(16, 16), (16, 4)], 1 << 14)
    batches = [1, 4, 16, 64, 256] if kind == "cuda" else [1, 4, 16]
    lengths = range(6, 17) if kind == "cuda" else range(6, 13)
    if quick:
        heads, batches, lengths = heads[1:2], batches[:2], lengths[1:3]
    return [
        Attention(dtype, b, 1, 1 << p, h, hk)
        for h, hk in heads for b in batches for p in lengths if b << p <= most
    ]  # fmt: skip
