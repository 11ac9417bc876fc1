"""Attention and the KV cache of ``transformers`` models, seen as operators.

* An attention function registered with the library sees grouped heads, windows and sinks as they are.
* The cache appends and never copies, and holds ``context`` tokens from the start. It gives no
  recurrent state back, so that layers with one take the same path at every point; their state is
  written down by :mod:`.hf_modules`.
* Multi-head latent attention (arXiv:2405.04434, section 2.1) caches one latent vector per token. The
  library expands all cached latents in every step; engines expand the new tokens only and meet the
  cached ones in latent space, which is what is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..models import ops
from .raw import CaptureError, RawTensor
from .recorder import Recorder

ATTENTION = "tokenfab"


@dataclass(frozen=True)
class _Latent:
    """What stands behind expanded keys: the operands, and the sizes of a cached token."""

    reads: list[RawTensor]
    sizes: dict[str, int]


@dataclass
class _Active:
    recorder: Recorder
    latents: dict[int, _Latent] = field(default_factory=dict)


_active: ContextVar[_Active] = ContextVar("run in progress")


@contextmanager
def attention_of(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Within, attention of ``model`` is written down by ``recorder``."""
    replaced = []
    token = _active.set(_Active(recorder))
    try:
        for m in model.modules():
            if hasattr(m, "expand_kv") and hasattr(m, "kv_b_proj"):
                setattr(m, "expand_kv", _expansion(m))  # noqa: B010 - the name is not a declared attribute
                replaced.append(m)
            if "indexer" in type(m).__name__.lower():
                raise CaptureError(f"{type(m).__name__}: attention to keys that an indexer selects is not supported")
        yield
    finally:
        _active.reset(token)
        for m in replaced:
            del m.expand_kv


def register_attention() -> None:
    """Make :data:`ATTENTION` an attention implementation of ``transformers``."""
    from transformers.modeling_utils import AttentionInterface

    if ATTENTION not in AttentionInterface._global_mapping:
        AttentionInterface.register(ATTENTION, _attention)


def _attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None,
    scaling: float | None = None, sliding_window: int | None = None, is_causal: bool | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as ``transformers`` calls it: (b, h, q, d) in, (b, q, h, d) out."""
    active = _active.get()
    recorder = active.recorder
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise CaptureError(
            f"{recorder.scope}: attention that is not causal (is_causal = False); a decoder was expected"
        )
    out = ops.attention(query, key, value, scaling or 1.0, window=sliding_window or None)
    attention = recorder.root(out).producer
    assert attention is not None
    latent = active.latents.get(id(key))
    if latent is not None:
        attention.reads[1:] = latent.reads
        attention.sizes |= latent.sizes
    sinks = [t for t in others.values() if isinstance(t, nn.Parameter)]
    attention.reads += [recorder.operand(t) for t in sinks]
    return out.transpose(1, 2).contiguous(), None


def make_cache(config: Any, context: int) -> Any:
    """A cache of the library's own kind that holds ``context`` tokens and records what is appended."""
    from transformers import DynamicCache

    class CaptureCache(DynamicCache):
        def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            past = [t.new_empty(t.shape[0], t.shape[1], context, t.shape[3]) for t in (key_states, value_states)]
            return ops.kv_append(past[0], past[1], key_states, value_states)

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return context

        def get_query_offset(self, layer_idx: int = 0) -> int:
            return context

        def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
            return context + query_length, 0

        def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
            return False

        def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
            return None

        def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
            return None

        def update_conv_state(self, conv_states: Any, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Any:
            return conv_states

        def update_recurrent_state(
            self, recurrent_states: Any, layer_idx: int, state_idx: int = 0, **kwargs: Any
        ) -> Any:
            return recurrent_states

    return CaptureCache(config=config)


def _expansion(m: Any) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Latents (b, 1, c+q, r) and shared rotated keys (b, 1, c+q, dr) to keys and values per head.

    The up-projection is run on the new tokens alone: for them it makes keys and values; for cached
    ones the same weights are absorbed into the query and the output, at the same number of FLOPs.
    """

    def expand(latents: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        active = _active.get()
        recorder = active.recorder
        appended = recorder.root(latents).producer
        if appended is None or appended.kind != "kv_append":
            raise CaptureError(f"{recorder.scope}: latent attention without a cache")
        batch, _, total, rank = latents.shape
        expanded = m.kv_b_proj(
            recorder.stand_in(appended.reads[0].root, latents, batch, 1, appended.sizes["tokens"], rank)
        )
        nope, value_dim = int(m.qk_nope_head_dim), int(m.v_head_dim)
        heads = expanded.shape[-1] // (nope + value_dim)
        key = latents.new_empty(batch, heads, total, nope + rotated.shape[-1])
        value = latents.new_empty(batch, heads, total, value_dim)
        active.latents[id(key)] = _Latent(
            [recorder.operand(latents), recorder.operand(rotated), recorder.operand(expanded)],
            {"kv_heads": 1, "latent_dim": rank + rotated.shape[-1], "latent_value": rank},
        )
        return key, value

    return expand
