"""A multi-task vision transformer with mixtures of experts, after M3ViT; the path that one task takes through it.

Every second layer's feed-forward is a mixture of plain (ungated) experts, of which each token takes ``top_k`` by the
task's own router (M3ViT, NeurIPS 2022, arXiv:2210.14793; sizes from VITA-Group/M3ViT, README and ``configs/``, and
sharc-lab/Edge-MoE, ``include/model.hpp``). An image enters as patches; attention sees all tokens, not only earlier
ones. The task's head is a linear layer per token: the published convolutional decoders are left out, and the
experts' biases (0.3 % of their weights).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from . import ops
from .vit_config import VitConfig


@ops.operator("experts")
def plain_experts(x: Tensor, indices: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, act: str) -> Tensor:
    """Weighted sum of the chosen ungated feed-forwards: x (t, d) -> (t, d).

    ``indices``, ``weights`` (t, k); ``w_in`` (E, f, d), ``w_out`` (E, d, f). Expert by expert, each over the queue of
    its tokens, as the hardware does; the result does not depend on the order.
    """
    out = torch.zeros_like(x)
    for e in range(w_in.shape[0]):
        token, slot = torch.where(indices == e)
        y = F.linear(ops.ACTIVATIONS[act](F.linear(x[token], w_in[e])), w_out[e])
        out.index_add_(0, token, (y * weights[token, slot, None]).to(x.dtype))
    return out


class _Norm(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = _parameter(width, dtype=dtype), _parameter(width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, 1e-6)


class _Linear(nn.Module):
    def __init__(self, k: int, n: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = _parameter(n, k, dtype=dtype), _parameter(n, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class VitAttention(nn.Module):
    """Attention of all tokens to all tokens, with its score matrix."""

    def __init__(self, c: VitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = c.heads
        self.qkv, self.output = _Linear(c.hidden, 3 * c.hidden, dtype), _Linear(c.hidden, c.hidden, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        b, t, d = x.shape
        q, k, v = (p.view(b, t, self.heads, d // self.heads).transpose(1, 2) for p in self.qkv(x).chunk(3, dim=-1))
        scores = torch.matmul(q * (1 / math.sqrt(d // self.heads)), k.transpose(-1, -2))
        y = torch.matmul(torch.softmax(scores, dim=-1), v)
        out: Tensor = self.output(y.transpose(1, 2).reshape(b, t, d))
        return out


class VitFeedForward(nn.Module):
    """A dense feed-forward with GELU."""

    def __init__(self, c: VitConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, self.down = _Linear(c.hidden, c.inner, dtype), _Linear(c.inner, c.hidden, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        out: Tensor = self.down(ops.activation(self.up(x), "gelu"))
        return out


class VitExperts(nn.Module):
    """``top_k`` of ``experts`` feed-forwards per token, chosen by one router per task."""

    def __init__(self, c: VitConfig, dtype: torch.dtype, tasks: int) -> None:
        super().__init__()
        self.top_k = c.top_k
        self.routers = nn.ParameterList([_parameter(c.experts, c.hidden, dtype=dtype) for _ in range(tasks)])
        self.w_in = _parameter(c.experts, c.expert_inner, c.hidden, dtype=dtype)
        self.w_out = _parameter(c.experts, c.hidden, c.expert_inner, dtype=dtype)

    def forward(self, x: Tensor, task: int) -> Tensor:
        """(b, t, d) -> (b, t, d) along the experts that ``task``'s router chooses."""
        tokens = x.flatten(0, 1)
        indices, weights = ops.route(tokens, self.routers[task], self.top_k)
        return plain_experts(tokens, indices, weights, self.w_in, self.w_out, "gelu").view(x.shape)


class VitLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    def __init__(self, c: VitConfig, dtype: torch.dtype, mixture: bool, tasks: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = _Norm(c.hidden, dtype), _Norm(c.hidden, dtype)
        self.attention = VitAttention(c, dtype)
        self.experts = VitExperts(c, dtype, tasks) if mixture else None
        self.mlp = None if mixture else VitFeedForward(c, dtype)

    def forward(self, x: Tensor, task: int) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        x = ops.add(x, self.attention(self.attention_norm(x)))
        y = self.mlp_norm(x)
        return ops.add(x, self.experts(y, task) if self.experts is not None else self.mlp(y))  # type: ignore[misc]


class Vit(nn.Module):
    """The model with ``tasks`` heads and routers; weights are uninitialised."""

    def __init__(self, config: VitConfig, dtype: torch.dtype = torch.float16, tasks: int = 1) -> None:
        super().__init__()
        config.check()
        c = self.config = config
        self.embed = _Linear(c.patch, c.hidden, dtype)
        self.positions = _parameter(c.tokens, c.hidden, dtype=dtype)
        self.layers = nn.ModuleList(
            [VitLayer(c, dtype, bool(c.experts) and i % 2 == 1, tasks) for i in range(c.layers)]
        )
        self.norm = _Norm(c.hidden, dtype)
        self.heads = nn.ModuleList([_Linear(c.hidden, c.classes, dtype) for _ in range(tasks)])

    def forward(self, patches: Tensor, task: int = 0) -> Tensor:
        """Patches (b, t, patch), t at most ``tokens`` -> classes of every token (b, t, classes)."""
        places = torch.arange(patches.shape[1], device=patches.device)
        x = ops.add(self.embed(patches), ops.embedding(places[None], self.positions))
        for layer in self.layers:
            x = layer(x, task)
        out: Tensor = self.heads[task](self.norm(x))
        return out


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
