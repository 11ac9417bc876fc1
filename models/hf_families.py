"""How Hugging Face families read as our decoder: tables, no behaviour of their own.

A family is two tables: which fields of :class:`.config.ModelConfig` its config gives, and from which
parameters each of ours is put together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .config import ModelConfig

ACTS = {
    "silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
    "relu2": "relu2",
}  # fmt: skip


# -- how weights are put together -----------------------------------------------------------------
def joined(parts: list[Tensor], config: ModelConfig) -> Tensor:
    """Matrices (n, k) or biases (n,) one below the other."""
    return torch.cat(parts)


def transposed(parts: list[Tensor], config: ModelConfig) -> Tensor:
    """As :func:`joined`, of GPT-2's matrices, which are stored (k, n)."""
    return torch.cat([p.T if p.dim() == 2 else p for p in parts])


def by_head(parts: list[Tensor], config: ModelConfig) -> Tensor:
    """BLOOM's fused rows, ordered head, then q/k/v, to our order: q/k/v, then head."""
    (rows,) = parts
    split = rows.view(config.heads, 3, config.head_dim, *rows.shape[1:])
    return split.transpose(0, 1).reshape(rows.shape)


@dataclass(frozen=True)
class From:
    """Names in the Hugging Face model ({i} is the layer) and how they are combined.

    A name stands for both ``.weight`` and ``.bias`` unless it is a parameter itself.
    """

    names: tuple[str, ...]
    combine: Callable[[list[Tensor], ModelConfig], Tensor] = joined


@dataclass(frozen=True)
class Family:
    """Tables of one ``model_type``. ``requires``: settings that the decoder has no switch for."""

    fields: Callable[[Any], dict[str, Any]]
    weights: dict[str, From]
    requires: dict[str, object] = field(default_factory=dict)


def _llama_weights(more: dict[str, From] | None = None) -> dict[str, From]:
    per_layer = {
        "attention_norm": From(("input_layernorm",)),
        "attention.qkv": From(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        "attention.output": From(("self_attn.o_proj",)),
        "mlp_norm": From(("post_attention_layernorm",)),
        "mlp.gate_up": From(("mlp.gate_proj", "mlp.up_proj")),
        "mlp.down": From(("mlp.down_proj",)),
    } | (more or {})
    outside = {
        "embedding": From(("model.embed_tokens",)),
        "norm": From(("model.norm",)),
        "head": From(("lm_head",)),
    }
    return outside | _in_layers("model.layers.{i}.", per_layer)


def _in_layers(prefix: str, per_layer: dict[str, From]) -> dict[str, From]:
    return {
        f"layers.{{i}}.{ours}": From(tuple(prefix + name for name in source.names), source.combine)
        for ours, source in per_layer.items()
    }


_OPT = {
    "embedding": From(("model.decoder.embed_tokens",)),
    "position_embedding": From(("model.decoder.embed_positions",)),
    "norm": From(("model.decoder.final_layer_norm",)),
    "head": From(("lm_head",)),
} | _in_layers(
    "model.decoder.layers.{i}.",
    {
        "attention_norm": From(("self_attn_layer_norm",)),
        "attention.qkv": From(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        "attention.output": From(("self_attn.out_proj",)),
        "mlp_norm": From(("final_layer_norm",)),
        "mlp.up": From(("fc1",)),
        "mlp.down": From(("fc2",)),
    },
)
_GPT2 = {
    "embedding": From(("transformer.wte",)),
    "position_embedding": From(("transformer.wpe",)),
    "norm": From(("transformer.ln_f",)),
    "head": From(("lm_head",)),
} | _in_layers(
    "transformer.h.{i}.",
    {
        "attention_norm": From(("ln_1",)),
        "attention.qkv": From(("attn.c_attn",), transposed),
        "attention.output": From(("attn.c_proj",), transposed),
        "mlp_norm": From(("ln_2",)),
        "mlp.up": From(("mlp.c_fc",), transposed),
        "mlp.down": From(("mlp.c_proj",), transposed),
    },
)
_BLOOM = {
    "embedding": From(("transformer.word_embeddings",)),
    "embedding_norm": From(("transformer.word_embeddings_layernorm",)),
    "norm": From(("transformer.ln_f",)),
    "head": From(("lm_head",)),
} | _in_layers(
    "transformer.h.{i}.",
    {
        "attention_norm": From(("input_layernorm",)),
        "attention.qkv": From(("self_attention.query_key_value",), by_head),
        "attention.output": From(("self_attention.dense",)),
        "mlp_norm": From(("post_attention_layernorm",)),
        "mlp.up": From(("mlp.dense_h_to_4h",)),
        "mlp.down": From(("mlp.dense_4h_to_h",)),
    },
)


# -- how configs read -----------------------------------------------------------------------------
def _llama_fields(hf: Any, **more: Any) -> dict[str, Any]:
    rope = hf.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"{hf.model_type}: rope_type {rope['rope_type']!r} is not supported; accepted: 'default'")
    fields = {
        "inner": hf.intermediate_size, "max_context": hf.max_position_embeddings, "norm": "rms",
        "norm_eps": hf.rms_norm_eps, "act": hf.hidden_act, "gated": True, "position": "rope",
        "rope_theta": float(rope["rope_theta"]),
    }  # fmt: skip
    return fields | more


def _gpt_fields(hf: Any, **more: Any) -> dict[str, Any]:
    fields = {"inner": 4 * hf.hidden_size, "norm": "layer", "gated": False, "qkv_bias": True, "bias": True}
    return fields | more


FAMILIES: dict[str, Family] = {
    "llama": Family(
        lambda hf: _llama_fields(hf, qkv_bias=hf.attention_bias, bias=hf.mlp_bias), _llama_weights()
    ),
    "mistral": Family(lambda hf: _llama_fields(hf, window=hf.sliding_window), _llama_weights()),
    "qwen2": Family(
        lambda hf: _llama_fields(hf, qkv_bias=True), _llama_weights(), requires={"use_sliding_window": False}
    ),
    "mixtral": Family(
        lambda hf: _llama_fields(
            hf, window=hf.sliding_window, experts=hf.num_local_experts, top_k=hf.num_experts_per_tok
        ),
        _llama_weights({
            "mlp.router": From(("mlp.gate.weight",)),
            "mlp.w_in": From(("mlp.experts.gate_up_proj",)),
            "mlp.w_out": From(("mlp.experts.down_proj",)),
        }),
    ),
    "bitnet": Family(
        lambda hf: _llama_fields(hf, sub_norms=True),
        _llama_weights({
            "attention.sub_norm": From(("self_attn.attn_sub_norm",)), "mlp.sub_norm": From(("mlp.ffn_sub_norm",)),
        }),
        requires={"attention_bias": False},
    ),
    "opt": Family(
        lambda hf: _gpt_fields(
            hf, inner=hf.ffn_dim, max_context=hf.max_position_embeddings, norm_eps=1e-5,
            act=hf.activation_function, position="learned", position_offset=2,
        ),
        _OPT,
        requires={"do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True},
    ),
    "gpt2": Family(
        lambda hf: _gpt_fields(
            hf, inner=hf.n_inner or 4 * hf.hidden_size, max_context=hf.n_positions, norm_eps=hf.layer_norm_epsilon,
            act=hf.activation_function, position="learned",
        ),
        _GPT2,
        requires={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
    "bloom": Family(
        lambda hf: _gpt_fields(
            hf, max_context=2048, norm_eps=hf.layer_norm_epsilon, act="gelu_tanh", position="alibi",
            embedding_norm=True,
        ),
        _BLOOM,
        requires={"apply_residual_connection_post_layernorm": False},
    ),
}  # fmt: skip
