"""One name for every way to say which model: preset, configuration, trace file."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from .trace import Trace

if TYPE_CHECKING:
    from ..models.config import ModelConfig


def load_trace(model: str) -> Trace:
    """The trace of ``model``: a preset's or a vision model's name, a preset file (``.toml``), a trace file (``.json``),
    or ``hf:PATH`` with the ``config.json`` (or its folder) of any causal model ``transformers`` can build.
    What was captured of a configuration is kept: comparisons and grids ask for the same model again.

    Raises ``InputError`` for a name or file that is none of these. torch is imported only to capture.
    """
    if model.startswith("hf:"):
        from .hf_capture import capture_hf

        return capture_hf(model.removeprefix("hf:"))
    if model.endswith(".json"):
        return Trace.load(model)
    from ..models.config import load_config
    from ..models.vit_config import VITS

    if model in VITS:
        return _captured_vision(model)
    return _captured(load_config(model))  # a wrong name is told before torch is imported


@lru_cache(maxsize=32)
def _captured(config: ModelConfig) -> Trace:
    from .capture import capture

    return capture(config)


@lru_cache(maxsize=8)
def _captured_vision(name: str) -> Trace:
    from .vision import capture_vision

    return capture_vision(name)
