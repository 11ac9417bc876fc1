"""One configurable decoder-only transformer, inference only.

Projections are fused as serving engines fuse them: q, k and v are one matrix, gate and up another.
All of it runs on the ``meta`` device (but for ``ops.experts``, whose output a capture supplies), and
the same operators run in the same order whatever the batch, the query length and the context.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from . import ops
from .config import ModelConfig, load_config

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class KVCache:
    """Keys and values seen so far: per layer two tensors (b, hk, length, hd). ``forward`` extends it."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        self.layers = layers

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
        batch: int,
        context: int = 0,
        device: torch.device | str = "meta",
        dtype: torch.dtype | None = None,
    ) -> KVCache:
        """A cache that holds ``context`` tokens of zeros (on ``meta``: of nothing) per sequence."""
        shape = (batch, config.kv_heads, context, config.head_dim)

        def zeros() -> Tensor:
            return torch.zeros(shape, device=device, dtype=dtype or DTYPES[config.format])

        return cls([(zeros(), zeros()) for _ in range(config.layers)])

    @property
    def length(self) -> int:
        """Tokens cached per sequence."""
        return self.layers[0][0].shape[2]


class Projection(nn.Module):
    """x (..., k) -> (..., n). ``parts`` are the row counts of the matrices fused in the weight."""

    def __init__(self, k: int, parts: Sequence[int], bias: bool, ternary: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.ternary = ternary
        self.weight = _parameter(sum(parts), k, dtype=dtype)
        self.bias = _parameter(sum(parts), dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        if self.ternary:
            return ops.bit_linear(x, self.weight, parts=self.parts)
        return F.linear(x, self.weight, self.bias)


class Table(nn.Module):
    """Embedding table (rows, d)."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = _parameter(rows, width, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (b, q) -> (b, q, d)."""
        return ops.embedding(ids, self.weight)


class Norm(nn.Module):
    """RMS norm or layer norm over the last dimension, as configured."""

    def __init__(self, config: ModelConfig, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = _parameter(width, dtype=dtype)
        self.bias = _parameter(width, dtype=dtype) if config.norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out."""
        if self.bias is None:
            return ops.rms_norm(x, self.weight, self.eps)
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        c = config
        self.heads, self.kv_heads, self.head_dim, self.window = c.heads, c.kv_heads, c.head_dim, c.window
        self.scale = 1.0 / math.sqrt(c.head_dim)
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.qkv = Projection(c.hidden, (q, kv, kv), c.qkv_bias, c.bit_linear, dtype)
        self.sub_norm = Norm(c, q, dtype) if c.sub_norms else None
        self.output = Projection(q, (c.hidden,), c.bias, c.bit_linear, dtype)

    def forward(
        self, x: Tensor, positions: Tensor, past: tuple[Tensor, Tensor], inv_freq: Tensor | None, alibi: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (b, q, d), past (b, hk, c, hd) twice -> (b, q, d) and the past with the new entries."""
        b, new, _ = x.shape
        q, k, v = (
            part.view(b, new, -1, self.head_dim).transpose(1, 2) for part in self.qkv(x).split(self.qkv.parts, dim=-1)
        )
        if inv_freq is not None:
            q, k = ops.rope(q, k, positions, inv_freq)
        k, v = ops.kv_append(*past, k, v, window=self.window)
        y = ops.attention(q, k, v, self.scale, window=self.window, alibi=alibi)
        y = y.transpose(1, 2).reshape(b, new, self.heads * self.head_dim)
        if self.sub_norm is not None:
            y = self.sub_norm(y)
        return self.output(y), (k, v)


class FeedForward(nn.Module):
    """Up projection (with a gate or not), activation, down projection."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        c = config
        self.act = c.act
        self.gate_up = Projection(c.hidden, (c.inner, c.inner), c.bias, c.bit_linear, dtype) if c.gated else None
        self.up = None if c.gated else Projection(c.hidden, (c.inner,), c.bias, c.bit_linear, dtype)
        self.sub_norm = Norm(c, c.inner, dtype) if c.sub_norms else None
        self.down = Projection(c.inner, (c.hidden,), c.bias, c.bit_linear, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(b, q, d) -> (b, q, d)."""
        if self.gate_up is not None:
            y = ops.gated_activation(self.gate_up(x), self.act)
        else:
            assert self.up is not None
            y = ops.activation(self.up(x), self.act)
        if self.sub_norm is not None:
            y = self.sub_norm(y)
        out: Tensor = self.down(y)
        return out


class MixtureOfExperts(nn.Module):
    """``top_k`` of ``experts`` gated feed-forwards per token; no capacity limit, no shared expert."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        c = config
        self.act, self.top_k = c.act, c.top_k
        self.router = _parameter(c.experts, c.hidden, dtype=dtype)
        self.w_in = _parameter(c.experts, 2 * c.inner, c.hidden, dtype=dtype)
        self.w_out = _parameter(c.experts, c.hidden, c.inner, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(b, q, d) -> (b, q, d)."""
        tokens = x.flatten(0, 1)
        indices, weights = ops.route(tokens, self.router, self.top_k)
        return ops.experts(tokens, indices, weights, self.w_in, self.w_out, self.act).view(x.shape)


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = Norm(config, config.hidden, dtype)
        self.attention = Attention(config, dtype)
        self.mlp_norm = Norm(config, config.hidden, dtype)
        self.mlp = MixtureOfExperts(config, dtype) if config.experts else FeedForward(config, dtype)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        past: tuple[Tensor, Tensor],
        inv_freq: Tensor | None = None,
        alibi: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (b, q, d), positions (q,), past keys and values -> the next x and the longer past."""
        y, past = self.attention(self.attention_norm(x), positions, past, inv_freq, alibi)
        x = ops.add(x, y)
        return ops.add(x, self.mlp(self.mlp_norm(x))), past


class Decoder(nn.Module):
    """A decoder-only language model. Weights are uninitialised; :func:`build` fills them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        c, dtype = config, dtype or DTYPES[config.format]
        self.config = config
        self.embedding = Table(c.vocabulary, c.hidden, dtype)
        rows = c.max_context + c.position_offset
        self.position_embedding = Table(rows, c.hidden, dtype) if c.position == "learned" else None
        self.embedding_norm = Norm(c, c.hidden, dtype) if c.embedding_norm else None
        self.layers = nn.ModuleList([DecoderLayer(c, dtype) for _ in range(c.layers)])
        self.norm = Norm(c, c.hidden, dtype)
        self.head = None if c.tied else Projection(c.hidden, (c.vocabulary,), bias=False, ternary=False, dtype=dtype)

        self.inv_freq: Tensor | None
        self.alibi: Tensor | None
        theta = c.rope_theta
        self.register_buffer("inv_freq", inverse_frequencies(theta, c.head_dim) if theta else None, persistent=False)
        self.register_buffer("alibi", alibi_slopes(c.heads) if c.position == "alibi" else None, persistent=False)

    def forward(self, tokens: Tensor, cache: KVCache | None = None, logits_to_keep: int = 1) -> Tensor:
        """Logits (b, keep, V) of the last ``logits_to_keep`` positions (0: of all) of tokens (b, q).

        The tokens continue the sequences in ``cache``, which grows by them; without one they start
        at position 0. With learned positions c + q must not exceed ``max_context``.
        """
        b, new = tokens.shape
        table = self.embedding.weight
        if cache is None:
            cache = KVCache.empty(self.config, b, device=table.device, dtype=table.dtype)
        positions = torch.arange(cache.length, cache.length + new, device=tokens.device)

        x = self.embedding(tokens)
        if self.position_embedding is not None:
            rows = positions + self.config.position_offset if self.config.position_offset else positions
            x = ops.add(x, self.position_embedding(rows[None]))
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        for i, layer in enumerate(self.layers):
            x, cache.layers[i] = layer(x, positions, cache.layers[i], self.inv_freq, self.alibi)
        x = self.norm(x)[:, -logits_to_keep:]  # -0 is 0: all of them
        logits: Tensor = F.linear(x, table) if self.head is None else self.head(x)
        return logits

    def num_parameters(self) -> int:
        """Parameters, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())

    def randomize(self, seed: int = 0) -> Decoder:
        """Fill matrices and biases with N(0, 0.02²) and norm weights with 1, reproducibly; returns itself."""
        generator = torch.Generator(self.embedding.weight.device).manual_seed(seed)
        for module in self.modules():
            for parameter in module.parameters(recurse=False):
                if isinstance(module, Norm) and parameter is module.weight:
                    parameter.fill_(1.0)
                else:
                    parameter.normal_(0.0, 0.02, generator=generator)
        return self


def build(
    name_or_config: str | os.PathLike[str] | ModelConfig,
    device: torch.device | str = "meta",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Decoder:
    """A decoder on ``device`` in ``dtype`` (default: as published); random weights unless on ``meta``.

    Raises ``InputError`` as :func:`.config.load_config` does.
    """
    config = name_or_config if isinstance(name_or_config, ModelConfig) else load_config(name_or_config)
    with torch.device(device):
        decoder = Decoder(config, dtype)
    return decoder if torch.device(device).type == "meta" else decoder.randomize(seed)


def inverse_frequencies(theta: float, head_dim: int) -> Tensor:
    """Angle per position of each pair of dimensions: theta^(−2i/hd), (hd/2,) float32 (arXiv:2104.09864)."""
    return torch.tensor([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)], dtype=torch.float32)


def alibi_slopes(heads: int) -> Tensor:
    """Slope per head (h,) float32: 2^(−8(i+1)/h) where h is a power of two (arXiv:2108.12409, section 3).

    Otherwise those of the power of two below, then every other one of the power of two above, as in
    the authors' code and BLOOM.
    """
    below = 2 ** int(math.log2(heads))
    first = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    rest = [2.0 ** (-4 * (i + 1) / below) for i in range(0, 2 * (heads - below), 2)]
    return torch.tensor(first + rest, dtype=torch.float32)


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
