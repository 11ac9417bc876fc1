"""One name for every way to say which model: preset, configuration, trace file."""

from __future__ import annotations

from .trace import Trace


def load_trace(model: str) -> Trace:
    """The trace of ``model``: a preset's or a vision model's name, a preset file (``.toml``), a trace file (``.json``),
    or ``hf:PATH`` with the ``config.json`` (or its folder) of any causal model ``transformers`` can build.

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
        from .vision import capture_vision

        return capture_vision(model)
    config = load_config(model)  # a wrong name is told before torch is imported
    from .capture import capture

    return capture(config)
