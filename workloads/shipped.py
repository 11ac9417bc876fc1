"""Traces of the presets, captured ahead and shipped with the package: no torch, no capture, a hundredth of the time.

    python -m tokenfab.workloads.shipped       (``make traces``)

writes ``traces/NAME.json`` for every preset and vision model. A shipped trace is taken only while what it was made
from is unchanged: the model's configuration (its digest is in the trace) and the sources that capture it
(:data:`SOURCES`; their digest is in ``traces/sources.toml``). Anything else is captured, so an edit of the capture is
seen at once, and only the start is slow until the traces are written again. ``tests/test_workloads_shipped.py`` holds
every shipped trace equal to a fresh capture.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from functools import cache
from importlib import resources
from pathlib import Path

from ..files import write_whole
from ..models.config import ModelConfig, load_config, model_names
from ..models.vit_config import VITS, VitConfig
from .trace import Trace

SOURCES = (
    "models/config.py", "models/decoder.py", "models/ops.py", "models/vit.py", "models/vit_config.py",
    "workloads/calls.py", "workloads/capture.py", "workloads/eager_attention.py", "workloads/expr.py",
    "workloads/expr_functions.py", "workloads/expr_text.py", "workloads/formulas.py", "workloads/interpolation.py",
    "workloads/kinds.py", "workloads/layers.py", "workloads/operators.py", "workloads/pointwise.py", "workloads/raw.py",
    "workloads/recorder.py", "workloads/trace.py", "workloads/vision.py",
)  # fmt: skip
"""Every module of ours that a capture can import, but for errors and files, which say nothing about a trace."""
_DIGEST = "sources.toml"


def shipped_trace(config: ModelConfig | VitConfig) -> Trace | None:
    """The trace of ``config`` that came with the package.

    ``None`` where there is none, or where the configuration or the capture is no longer what it was made from.
    Raises ``InputError`` for a file that was damaged.
    """
    folder = resources.files(__package__) / "traces"
    name = f"{config.name}.json"
    if name not in {file.name for file in folder.iterdir()}:  # the name may come from a user's file: never a path
        return None
    if (folder / _DIGEST).read_text(encoding="utf-8") != _digest_text():
        return None
    with resources.as_file(folder / name) as path:
        trace = Trace.load(path)
    return trace if trace.provenance.get("config_sha256") == config.digest else None


@cache
def sources_digest() -> str:
    """SHA-256 of :data:`SOURCES`, whatever a checkout made of their line ends; empty where they are not installed."""
    root, digest = resources.files(__package__.partition(".")[0]), hashlib.sha256()
    for source in SOURCES:
        try:
            text = root.joinpath(source).read_bytes().replace(b"\r\n", b"\n")
        except OSError:
            return ""
        digest.update(f"{source} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def _digest_text() -> str:
    return f'sources_sha256 = "{sources_digest()}"\n'


def as_shipped(trace: Trace) -> Trace:
    """A captured trace as it is shipped: its provenance says so, and not how long this one capture took."""
    notes = {k: v for k, v in trace.provenance.items() if k != "capture_s"}
    notes["capture"] = f"{notes['capture']}; shipped with tokenfab {notes['tokenfab']}"
    return trace.model_copy(update={"provenance": notes})


def file_text(trace: Trace) -> str:
    """The file of a trace, an operator per line."""
    text = json.dumps(json.loads(trace.to_json()), separators=(",", ":"))
    return re.sub(r'(?=\{"name":"[^"]*","kind":)', "\n", text) + "\n"


def main() -> int:
    """Capture and write every shipped trace into this package, last of all what they were made from."""
    from .capture import capture
    from .vision import capture_vision

    folder = Path(__file__).parent / "traces"
    captured = [*(capture(load_config(name)) for name in model_names()), *map(capture_vision, VITS)]
    for trace in captured:
        write_whole(folder / f"{trace.model}.json", file_text(as_shipped(trace)))
    for file in set(folder.glob("*.json")) - {folder / f"{t.model}.json" for t in captured}:
        file.unlink()  # of a preset that is no more
    write_whole(folder / _DIGEST, _digest_text())
    print(f"{len(captured)} traces written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
