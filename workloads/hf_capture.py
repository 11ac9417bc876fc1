"""Capture of any causal language model that ``transformers`` can build from a configuration.

The library's own modules run on ``meta``; what is spelled in Python for clarity or debugging is
replaced for the run by operators (:mod:`.hf_attention`, :mod:`.hf_modules`). What is refused, and
why, is listed by ``python -m tokenfab.workloads.hf_survey``.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..errors import InputError
from ..models.hf import build_hf
from .capture import Subject, capture_subject, count_parameters
from .expr import Expr
from .hf_attention import ATTENTION, attention_of, make_cache, register_attention
from .hf_modules import replaced_functions, replaced_modules
from .interpolation import Point
from .raw import CaptureError, format_of
from .recorder import Recorder
from .trace import Operator, Trace

_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
    "max_target_positions",
)
_CACHES = ("past_key_values", "cache_params", "layer_past")
_WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_window")
_TOWER = re.compile(r"(^|[_.])(vision|visual|image|img|video|audio|speech|mm|multi_modal|multimodal)(_|\.|$)")


def capture_hf(path: str | Path) -> Trace:
    """Capture the model that ``path`` (a ``config.json`` or its folder) describes, offline.

    Of a multimodal model the text path is captured; ``provenance["left_out"]`` names the rest. A
    ``quantization_config`` is not applied, which the provenance says: use a technique. Raises
    ``InputError`` for a configuration ``transformers`` cannot build and for a module whose operators
    depend on tensor values or keep nothing between tokens.
    """
    try:
        register_attention()
    except ImportError:
        raise InputError("transformers is not installed; install tokenfab[hf]") from None
    with _quiet():
        return _capture_either_way(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice on kernels to install and token ids to set."""
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(before)


def _capture_either_way(path: str | Path) -> Trace:
    """With our attention function, or with attention spelled out where a model does not take one."""
    try:
        module = build_hf(path, attn_implementation=ATTENTION)
    except InputError as error:
        if ATTENTION not in str(error):
            raise
        return _capture(build_hf(path, attn_implementation="eager"), path)  # folded from its matmuls
    try:
        return _capture(module, path)
    except InputError as error:
        if error.__cause__ is None or isinstance(error.__cause__, CaptureError):
            raise
        try:  # some take no attention function in earnest
            return _capture(build_hf(path, attn_implementation="eager"), path)
        except InputError:
            raise error from None


def _capture(module: nn.Module, path: str | Path) -> Trace:
    try:
        trace = capture_subject(hf_subject(module, path))
    except InputError:
        raise
    except Exception as error:  # transformers' modules may fail on meta in any way
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"{path}: {type(module).__name__} cannot be run on shapes alone: {what}") from error
    config = cast(Any, module.config)
    text = config.get_text_config()
    _check(trace, next((k for k in _WINDOWS if getattr(text, k, None)), None))
    notes = {}
    if towers := [name for name, _ in _outermost_towers(module)]:
        notes["left_out"] = ", ".join(towers)[:200]
    if getattr(config, "quantization_config", None):
        notes["quantization_config"] = "not applied: weights have the format of the modules' parameters"
    if getattr(text, "attention_chunk_size", None):
        notes["attention_chunk_size"] = "not seen: chunked layers are counted as attending to everything"
    return trace.model_copy(update={"provenance": {**trace.provenance, **notes}})


def hf_subject(module: nn.Module, path: str | Path) -> Subject:
    """A model built by ``models.hf.build_hf`` from ``path``, with how to run it at a point."""
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    config = cast(Any, module.config).get_text_config()
    name = f"{config.model_type}:{file.parent.name or file.stem}"
    takes = inspect.signature(module.forward).parameters
    cache = next((c for c in _CACHES if c in takes), None)
    if cache is None:
        raise InputError(f"{name}: {type(module).__name__} takes no cache; decoding with it is not a pass of one token")
    return Subject(
        name=name,
        format=format_of(next(module.parameters()).dtype)[0],
        hidden=_size(config, name, "hidden_size", "n_embd", "d_model"),
        vocabulary=_size(config, name, "vocab_size"),
        max_context=next((v for k in _LENGTHS if isinstance(v := getattr(config, k, None), int) and v > 0), None),
        module=module,
        run=lambda recorder, point: _run(module, recorder, point, cache, "logits_to_keep" in takes),
        parameters=count_parameters(module) - sum(count_parameters(m) for _, m in _outermost_towers(module)),
        origin=f"transformers {type(module).__name__}, torch {torch.__version__} on meta",
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def _size(config: Any, name: str, *keys: str) -> int:
    for key in keys:
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    raise InputError(f"{name}: the configuration has no {keys[0]}")


def _outermost_towers(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Parts for pictures and sound, which a pass over text does not run."""
    found = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if _TOWER.search(name):
            found.append((path, child))
        elif not isinstance(child, nn.ModuleList):
            found += _outermost_towers(child, f"{path}.")
    return [(n, m) for n, m in found if count_parameters(m)]


def _run(module: nn.Module, recorder: Recorder, point: Point, cache: str, keeps_logits: bool) -> None:
    batch, query, context = point
    tokens = torch.empty(batch, query, dtype=torch.int64, device="meta")
    arguments: dict[str, Any] = {"input_ids": tokens, cache: make_cache(module.config, context), "use_cache": True}
    if keeps_logits:
        arguments["logits_to_keep"] = 1
    with ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        stack.enter_context(recorder.watch(module))
        stack.enter_context(attention_of(recorder, module))
        stack.enter_context(replaced_modules(module, recorder))
        stack.enter_context(replaced_functions(module, recorder))
        module(**arguments)


def _check(trace: Trace, window: str | None) -> None:
    """What must hold of a trace from code we did not write: a cache, no score matrix, no window lost in a mask."""
    kept = False
    for op, _ in trace.operators():
        kept = kept or op.kind == "kv_append" or any(t.role == "state" for t in op.writes)
        if window and op.attrs.get("folded"):
            raise InputError(
                f"{trace.model}: {op.name}: a {window} inside the mask of spelled-out attention is not seen"
            )
        if _grows_with_pairs(op):
            raise InputError(
                f"{trace.model}: {op.name} ({op.kind}) moves {op.moved()} bytes, which grow with query × context: "
                "attention in a form the capture does not know"
            )
    if not kept:
        raise InputError(f"{trace.model}: nothing is kept between tokens, neither keys and values nor a state")


def _grows_with_pairs(op: Operator) -> bool:
    moved: Expr = op.moved()
    for monomial, _ in moved.terms:
        powers = {a.name: p for a, p in monomial if not a.args}
        if powers.get("q", 0) + powers.get("c", 0) > 1:
            return True
    return False
