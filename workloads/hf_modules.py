"""Parts of ``transformers`` models whose reference code loops over experts or tokens, as operators.

* Routed experts: modules with weights stacked over experts, whose loop depends on routing.
* Recurrences: functions of the model's own Python module that engines run as one kernel. They are
  replaced by name for the run; the state they carry is read and written once per call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .formulas import DELTA_RULE_FLOPS_PER_STATE, SCAN_FLOPS_PER_STATE
from .operators import record_expert_group
from .raw import CaptureError
from .recorder import Recorder


@contextmanager
def replaced_modules(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Within, the experts of ``model`` are written down as one operator each."""
    replaced: list[nn.Module] = []
    try:
        for name, m in model.named_modules():
            forward = _experts_forward(m, model.get_submodule(name.rpartition(".")[0]), recorder)
            if forward is not None:
                m.forward = forward
                replaced.append(m)
        yield
    finally:
        for m in replaced:
            del m.forward


@contextmanager
def replaced_functions(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Within, the recurrences of ``model``'s Python modules are written down as one scan each."""
    before: list[tuple[Any, str, Any]] = []
    try:
        for source in {type(m).__module__ for m in model.modules()}:
            namespace = sys.modules[source]
            for name, record in _RECURRENCES.items():
                if name in vars(namespace):
                    before.append((namespace, name, vars(namespace)[name]))
                    setattr(namespace, name, record(recorder))
        yield
    finally:
        for namespace, name, function in before:
            setattr(namespace, name, function)


# -- experts -----------------------------------------------------------------------------------
def _experts_forward(m: nn.Module, parent: nn.Module, recorder: Recorder) -> Callable[..., torch.Tensor] | None:
    """A forward for modules whose weights are stacked over experts, or ``None`` for other modules."""
    if "expert" not in type(m).__name__.lower():
        return None
    stacked = {n: p for n, p in m.named_parameters(recurse=False) if p.dim() == 3} or _one_below_the_other(m)
    if len(stacked) < 2:
        return None
    down = next((p for n, p in stacked.items() if "down" in n or n == "w2"), list(stacked.values())[-1])
    gated = len(stacked) > 2 or max(p.numel() for p in stacked.values()) == 2 * down.numel()
    biases = [p for p in m.parameters(recurse=False) if p.dim() != 3]

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        x, *others = (t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        inner = down.shape[1] if down.shape[2] == x.shape[-1] else down.shape[2]
        weights = [*stacked.values(), *biases]
        indices = next((t for t in others if not t.is_floating_point()), None)
        if indices is not None:
            rest = [t for t in others if t is not indices]
            return record_expert_group(recorder, [x, indices, *rest], weights, inner, gated)
        top_k = getattr(parent, "top_k", None)
        count = down.shape[0]
        if not isinstance(top_k, int) or x.shape[0] % count:
            raise CaptureError(f"{recorder.scope}: {type(m).__name__} is not told which experts were chosen")
        # every token once per expert, all but the chosen ones zeroed by the router: only those count
        tokens = recorder.stand_in(recorder.root(x), x, x.shape[0] // count, x.shape[-1])
        out = record_expert_group(recorder, [tokens, tokens], weights, inner, gated, top_k=top_k)
        return recorder.stand_in(recorder.root(out), x, *x.shape)

    return forward


def _one_below_the_other(m: nn.Module) -> dict[str, torch.Tensor]:
    """Weights (E·f, d) of experts that are stacked along their rows (DBRX), as (E, f, d)."""
    count = getattr(m, "num_experts", 0)
    matrices = dict(m.named_parameters())
    if not count or any(p.dim() != 2 or p.shape[0] % count for p in matrices.values()):
        return {}
    return {n: p.view(count, p.shape[0] // count, p.shape[1]) for n, p in matrices.items()}


# -- recurrences -------------------------------------------------------------------------------
def _tensors(args: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    return [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]


def _scan(
    recorder: Recorder, reads: list[torch.Tensor], out: torch.Tensor, state: tuple[int, ...], per_state: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One scan over the tokens: ``state`` is its shape, kept in fp32 as all reference codes do."""
    size = state[-1] if len(state) < 4 else state[-2]
    flops = per_state * size * out.numel()
    sizes = {"elements": out.numel(), "state": size}
    op = recorder.record("scan", recorder.label("scan"), out.dtype, sizes, list(reads), [out], flops=flops)
    return out, recorder.keep_state(op, "recurrent_state", torch.float32, *state)


def _delta_rule(recorder: Recorder) -> Callable[..., Any]:
    """Gated delta rule: q, k (b, q, hk, dk), v (b, q, hv, dv), a state of dk × dv per value head."""

    def chunk(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        batch, _, heads, value_dim = value.shape
        state = (batch, heads, key.shape[-1], value_dim)
        reads = [query, key, value, *_tensors(args, kwargs)]
        return _scan(recorder, reads, torch.empty_like(value), state, DELTA_RULE_FLOPS_PER_STATE)

    return chunk


def _mamba(recorder: Recorder) -> Callable[..., Any]:
    """Selective scan of Mamba: x (b, channels, q), dt, A (channels, n)."""

    def scan(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        reads = [x, *_tensors(args, kwargs)]
        state = (x.shape[0], x.shape[1], reads[2].shape[-1])
        return _scan(recorder, reads, torch.empty_like(x), state, SCAN_FLOPS_PER_STATE)

    return scan


def _mamba2(recorder: Recorder) -> Callable[..., Any]:
    """Scan of Mamba 2: x (b, q, heads, head_dim), dt, A, B (b, q, groups, n)."""

    def scan(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        reads = [x, *_tensors(args, kwargs)]
        state = (x.shape[0], x.shape[2] * x.shape[3], reads[3].shape[-1])
        return _scan(recorder, reads, torch.empty_like(x), state, SCAN_FLOPS_PER_STATE)

    return scan


_RECURRENCES: dict[str, Callable[[Recorder], Callable[..., Any]]] = {
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba_selective_scan": _mamba,
    "mamba2_chunk_scan": _mamba2,
}
