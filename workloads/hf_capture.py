"""Capture of any causal language model that ``transformers`` can build from a configuration.

The library's own modules run on ``meta``; four seams are replaced for the run, so that what is
written down is an operator and not its Python spelling:

* attention: an attention function registered with the library, which sees GQA heads and windows;
* the KV cache: a cache that appends and never copies, holding ``context`` tokens from the start;
* routed experts: modules with weights stacked over experts, whose loop depends on routing;
* selective state spaces (Mamba 1 and 2): their reference forward loops over tokens.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..models import ops
from ..models.hf import build_hf
from .capture import Point, Subject, capture_subject, count_parameters
from .formulas import SCAN_FLOPS_PER_STATE
from .operators import record_expert_group
from .recorder import FORMATS, Recorder
from .trace import Trace

ATTENTION = "tokenfab"


def capture_hf(path: str | Path) -> Trace:
    """Capture the model that ``path`` (a ``config.json`` or its folder) describes, offline.

    Raises ``InputError`` for a configuration ``transformers`` cannot build and for a module whose
    operators depend on tensor values.
    """
    _register_attention()
    try:
        module = build_hf(path, attn_implementation=ATTENTION)
    except InputError as error:
        if ATTENTION not in str(error):
            raise
        module = build_hf(path, attn_implementation="eager")  # its attention is folded from matmuls
    config = module.config.get_text_config()
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    longest = next((v for key in _LENGTHS if isinstance(v := getattr(config, key, None), int) and v > 0), None)
    subject = Subject(
        name=f"{config.model_type}:{file.parent.name or file.stem}",
        format=FORMATS[next(module.parameters()).dtype][0],
        hidden=int(config.hidden_size),
        vocabulary=int(config.vocab_size),
        max_context=longest,
        module=module,
        run=lambda recorder, point: _run(module, recorder, point),
        parameters=count_parameters(module),
        origin=f"transformers {type(module).__name__}, torch {torch.__version__} on meta",
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    try:
        return capture_subject(subject)
    except InputError:
        raise
    except Exception as error:  # transformers' modules may fail on meta in any way
        raise InputError(f"{path}: {type(module).__name__} cannot be run on shapes alone: {type(error).__name__}: {error}") from error


_active: ContextVar[Recorder] = ContextVar("recorder of the run in progress")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")


def _run(module: nn.Module, recorder: Recorder, point: Point) -> None:
    batch, query, context = point
    tokens = torch.empty(batch, query, dtype=torch.int64, device="meta")
    arguments: dict[str, Any] = {"input_ids": tokens, "past_key_values": _cache(module.config, context), "use_cache": True}
    if "logits_to_keep" in inspect.signature(module.forward).parameters:
        arguments["logits_to_keep"] = 1
    with torch.device("meta"), recorder.watch(module), _seams(module, recorder):
        module(**arguments)


@contextmanager
def _seams(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Replace the forward of experts and state-space mixers for one run."""
    replaced: list[nn.Module] = []
    token = _active.set(recorder)
    try:
        for m in module.modules():
            forward = _experts_forward(m, recorder) or _mixer_forward(m, recorder)
            if forward is not None:
                m.forward = forward  # type: ignore[method-assign]
                replaced.append(m)
        yield
    finally:
        _active.reset(token)
        for m in replaced:
            del m.forward


# -- attention and cache -----------------------------------------------------------------------
def _register_attention() -> None:
    from transformers.modeling_utils import AttentionInterface

    if ATTENTION not in AttentionInterface._global_mapping:
        AttentionInterface.register(ATTENTION, _attention)


def _attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None,
    scaling: float | None = None, sliding_window: int | None = None, **others: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as ``transformers`` calls it: (b, h, q, d) in, (b, q, h, d) out."""
    out = ops.attention(query, key, value, scaling or 1.0, window=sliding_window or None)
    recorder = _active.get()
    attention = recorder.root(out).producer
    if attention is not None:  # learned sinks and the like
        attention.reads += [recorder.operand(t) for t in others.values() if isinstance(t, nn.Parameter)]
    return out.transpose(1, 2), None


def _cache(config: Any, context: int) -> Any:
    """A cache of the library's own kind that holds ``context`` tokens and records what is appended."""
    from transformers import DynamicCache

    class CaptureCache(DynamicCache):  # type: ignore[misc]
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
            return context > 0

    return CaptureCache(config=config)


# -- experts -----------------------------------------------------------------------------------
def _experts_forward(m: nn.Module, recorder: Recorder) -> Callable[..., torch.Tensor] | None:
    """A forward for modules whose weights are stacked over experts, or ``None`` for other modules."""
    stacked = {n: p for n, p in m.named_parameters(recurse=False) if p.dim() == 3}
    if len(stacked) < 2 or "expert" not in type(m).__name__.lower():
        return None

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        x = tensors[0]
        indices = next((t for t in tensors[1:] if not t.is_floating_point()), None)
        if indices is None:
            raise InputError(f"{type(m).__name__}: routed experts without expert indices are not supported")
        down = next((p for n, p in stacked.items() if "down" in n or n == "w2"), list(stacked.values())[-1])
        inner = down.shape[1] if down.shape[2] == x.shape[-1] else down.shape[2]
        widest = max(p.numel() for p in stacked.values())
        gated = len(stacked) > 2 or widest == 2 * down.numel()
        biases = [p for p in m.parameters(recurse=False) if p.dim() != 3]
        return record_expert_group(recorder, x, indices, [*stacked.values(), *biases], inner, gated)

    return forward


# -- selective state spaces --------------------------------------------------------------------
def _mixer_forward(m: nn.Module, recorder: Recorder) -> Callable[..., torch.Tensor] | None:
    """A forward for Mamba mixers: projections as they are, convolution and scan as one operator each."""
    if not all(hasattr(m, a) for a in ("in_proj", "out_proj", "conv1d", "A_log")):
        return None

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        batch, query, _ = hidden_states.shape
        conv = m.conv1d
        channels, width = int(conv.in_channels), int(conv.kernel_size[0])
        inner = int(m.out_proj.in_features)
        projected = m.in_proj(hidden_states)
        mixed = projected.new_empty(batch, query, channels)
        conv_state = recorder.adopt(projected.new_empty(batch, channels, width), "conv_state", "state", None)
        recorder.record(
            "convolution", recorder.label("conv1d"), mixed.dtype, {"elements": mixed.numel()},
            [projected, *conv.parameters(), conv_state], [mixed], flops=2 * width * mixed.numel(),
        )  # fmt: skip
        inputs = [mixed]
        if hasattr(m, "x_proj"):  # Mamba 1 derives dt, B and C here; Mamba 2 in in_proj
            parameters = m.x_proj(mixed[..., :inner])
            inputs += [parameters, m.dt_proj(parameters[..., : m.dt_proj.in_features])]
        size = int(next(v for a in ("ssm_state_size", "state_size", "mamba_d_state") if isinstance(v := getattr(m, a, None), int)))
        state = recorder.adopt(projected.new_empty(batch, inner, size), "ssm_state", "state", None)
        scanned, new_state = projected.new_empty(batch, query, inner), projected.new_empty(batch, inner, size)
        own = [p for n, p in m.named_parameters(recurse=False)] + [p for n, p in m.named_parameters() if "norm" in n]
        op = recorder.record(
            "scan", recorder.label("scan"), scanned.dtype, {"elements": scanned.numel(), "state": size},
            [*inputs, *own, state], [scanned], flops=SCAN_FLOPS_PER_STATE * size * scanned.numel(),
        )  # fmt: skip
        for kept in (new_state, projected.new_empty(batch, channels, width)):
            recorder.adopt(kept, "state", "state", op)
            op.writes.append(recorder.operand(kept))
        out: torch.Tensor = m.out_proj(scanned)
        return out

    return forward
