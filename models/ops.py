"""The composite operators a decoder is made of, in plain PyTorch.

Each is one unit of work to a hardware designer (an attention, a norm, a routed expert layer) where
torch alone would show a dozen small calls. The decorator :func:`operator` lets a ``TorchFunctionMode``
(or a tensor subclass) intercept the whole call; without one the body runs as written. Ordinary
projections are not here: they are ``torch.nn.functional.linear``.

Shapes: ``b`` batch, ``q`` new tokens per sequence, ``c`` tokens already cached, ``t`` = b·q tokens,
``d`` hidden size, ``h`` query heads, ``hk`` key/value heads, ``hd`` head size, ``f`` inner size,
``E`` experts, ``k`` experts per token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

P = ParamSpec("P")
R = TypeVar("R")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def operator(kind: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function one operator: dispatched whole to an active torch-function mode or subclass.

    The mode sees the call as ``func`` with ``func.kind == kind`` and the function's own signature.
    """

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(fn)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
            if has_torch_function(tensors):
                return handle_torch_function(wrapper, tensors, *args, **kwargs)
            return fn(*args, **kwargs)

        wrapper.kind = kind  # type: ignore[attr-defined]
        return wrapper

    return decorate


@operator("embedding")
def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Look up rows: ids (b, q) int64, table (V, d) -> (b, q, d)."""
    return F.embedding(ids, table)


@operator("rms_norm")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in float32 (arXiv:1910.07467, equation 4)."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


@operator("layer_norm")
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension (arXiv:1607.06450)."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


@operator("rope")
def rope(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding of q (b, h, q, hd) and k (b, hk, q, hd), same shapes out.

    ``positions`` (q,) int64; ``inv_freq`` (hd/2,) float32. Dimension i is paired with i + hd/2 and the
    pair turned by position · inv_freq[i], in float32 (arXiv:2104.09864, section 3.2.2; the pairing is
    that of GPT-NeoX and Llama checkpoints, not the paper's neighbours).
    """
    angle = positions.float()[:, None] * inv_freq.float()
    cos, sin = angle.cos(), angle.sin()

    def turn(x: Tensor) -> Tensor:
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

    return turn(q), turn(k)


@operator("kv_append")
def kv_append(past_k: Tensor, past_v: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Append new keys and values (b, hk, q, hd) to the cached (b, hk, c, hd) -> two of (b, hk, c+q, hd).

    With a sliding ``window`` everything is kept here all the same, and attention masks; the argument
    says that an engine may drop all but the last ``window`` entries.
    """
    return torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)


@operator("attention")
def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None, alibi: Tensor | None = None
) -> Tensor:
    """Causal attention of q (b, h, q, hd) over k, v (b, hk, c+q, hd) -> (b, h, q, hd).

    Query i stands at position c + i and sees keys 0 … c + i, with a ``window`` only the last ``window``
    of those (its own included). Query head j uses key/value head j // (h/hk) (grouped queries,
    arXiv:2305.13245). ``alibi`` (h,) slopes add slope · (key − query position) to the scores
    (arXiv:2108.12409). Scores and softmax are float32.
    """
    b, heads, new, hd = q.shape
    kv_heads, total = k.shape[1], k.shape[2]
    group = heads // kv_heads

    scores = q.view(b, kv_heads, group, new, hd) @ k[:, :, None].transpose(-1, -2)
    scores = scores.float() * scale

    distance = torch.arange(total, device=q.device) - torch.arange(total - new, total, device=q.device)[:, None]
    visible = distance <= 0
    if window is not None:
        visible = visible & (distance > -window)
    if alibi is not None:
        scores = scores + alibi.float().view(kv_heads, group, 1, 1) * distance
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1).to(q.dtype)
    return (weights @ v[:, :, None]).view(b, heads, new, hd)


@operator("activation")
def activation(x: Tensor, act: str) -> Tensor:
    """Pointwise activation; ``act`` is a key of :data:`ACTIVATIONS` (relu2 is the square of relu)."""
    return ACTIVATIONS[act](x)


@operator("gated_activation")
def gated_activation(gate_up: Tensor, act: str) -> Tensor:
    """Gated linear unit (..., 2f) -> (..., f): act(gate) · up, the gate first (arXiv:2002.05202)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[act](gate) * up


@operator("add")
def add(x: Tensor, y: Tensor) -> Tensor:
    """Residual addition."""
    return x + y


@operator("route")
def route(x: Tensor, weight: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Choose experts: x (t, d), weight (E, d) -> indices (t, k) int64 and weights (t, k) float32.

    Softmax over all experts in float32, the ``top_k`` largest, renormalised to sum to one
    (Mixtral, arXiv:2401.04088, section 2.1: the same as softmax over the top-k logits).
    """
    probability = F.linear(x, weight).float().softmax(-1)
    chosen, indices = probability.topk(top_k, dim=-1)
    return indices, chosen / chosen.sum(-1, keepdim=True)


@operator("experts")
def experts(x: Tensor, indices: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, act: str) -> Tensor:
    """Weighted sum of the chosen gated feed-forwards: x (t, d) -> (t, d).

    ``indices``, ``weights`` (t, k) from :func:`route`; ``w_in`` (E, 2f, d), gate rows first; ``w_out``
    (E, d, f). Each expert runs on its own tokens only, so this needs values and not ``meta`` tensors.
    """
    out = torch.zeros_like(x)
    for e in range(w_in.shape[0]):
        token, slot = torch.where(indices == e)
        gate, up = F.linear(x[token], w_in[e]).chunk(2, dim=-1)
        y = F.linear(ACTIVATIONS[act](gate) * up, w_out[e])
        out.index_add_(0, token, (y * weights[token, slot, None]).to(x.dtype))
    return out


@operator("bit_linear")
def bit_linear(x: Tensor, weight: Tensor, parts: Sequence[int] | None = None) -> Tensor:
    """BitNet b1.58 projection x (..., k), weight (n, k) -> (..., n) (arXiv:2402.17764, section 2).

    The weight is rounded to {-1, 0, 1} times its mean magnitude, each token's activations to int8 by
    their largest magnitude; the product is taken in real arithmetic on the dequantised values.
    ``parts``: row counts of the matrices fused in ``weight``, each with a scale of its own.
    """
    matrices = torch.split(weight, list(parts)) if parts else (weight,)
    return F.linear(_int8_per_token(x), torch.cat([_ternary(m) for m in matrices]))


def _ternary(weight: Tensor) -> Tensor:
    scale = 1.0 / weight.float().abs().mean().clamp(min=1e-5)
    return ((weight.float() * scale).round().clamp(-1, 1) / scale).to(weight.dtype)


def _int8_per_token(x: Tensor) -> Tensor:
    scale = 127 / x.float().abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return ((x.float() * scale).round().clamp(-128, 127) / scale).to(x.dtype)
