"""One name for every way to say which model: preset, configuration, trace file."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from .trace import Trace

if TYPE_CHECKING:
    from ..models.config import ModelConfig
    from ..models.vit_config import VitConfig


def load_trace(model: str, *, fresh: bool = False) -> Trace:
    """The trace of ``model``: a preset's or a vision model's name, a preset file (``.toml``), a trace file (``.json``),
    or ``hf:PATH`` with the ``config.json`` (or its folder) of any causal model ``transformers`` can build.

    A preset's trace is the shipped one (:mod:`.shipped`) unless ``fresh`` or its configuration or the capture changed
    since. What was captured is kept: comparisons and grids ask for the same model again.

    Raises ``InputError`` for a name or file that is none of these. torch is imported only to capture.
    """
    if model.startswith("hf:"):
        from .hf_capture import capture_hf

        return capture_hf(model.removeprefix("hf:"))
    if model.endswith(".json"):
        return Trace.load(model)
    from ..models.config import load_config
    from ..models.vit_config import VITS

    config = VITS[model] if model in VITS else load_config(model)  # a wrong name is told before torch is imported
    return _captured(config) if fresh else _shipped_or_captured(config)


@lru_cache(maxsize=64)
def _shipped_or_captured(config: ModelConfig | VitConfig) -> Trace:
    from .shipped import shipped_trace

    return shipped_trace(config) or _captured(config)


@lru_cache(maxsize=32)
def _captured(config: ModelConfig | VitConfig) -> Trace:
    from ..models.vit_config import VitConfig

    if isinstance(config, VitConfig):
        from .vision import capture_vision

        return capture_vision(config)
    from .capture import capture

    return capture(config)
