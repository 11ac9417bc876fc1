"""Traces of vision transformers: one image is one sequence of tokens, seen at once.

    python -m tokenfab.workloads.vision m3vit-small m3vit-small.json

writes one; the command line takes the names of :data:`tokenfab.models.vit_config.VITS` as models. An image of all
tokens is then ``--prompt 1201 --output 1``: nothing is decoded.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from ..errors import InputError
from ..models.vit_config import VITS, VitConfig, vit_config
from .trace import Trace


def capture_vision(model: str | VitConfig) -> Trace:
    """The trace of a vision transformer, by name or as configured: the path of one task, tokens being the query.

    Raises ``InputError`` for an unknown name and for sizes that do not go together.
    """
    import torch

    from ..models.vit import Vit
    from .capture import Subject, capture_subject, count_parameters

    config = vit_config(model) if isinstance(model, str) else model
    with torch.device("meta"):
        module = Vit(config)

    def run(recorder, point) -> None:  # type: ignore[no-untyped-def]
        batch, query, _ = point
        with recorder.watch(module):
            module(torch.empty(batch, query, config.patch, dtype=torch.float16, device="meta"))

    origin = f"tokenfab.models.vit, torch {torch.__version__} on meta; {config.source}"
    trace = capture_subject(
        Subject(config.name, "fp16", config.hidden, config.classes, None, module, run, count_parameters(module),
                origin, config.digest)
    )  # fmt: skip
    return trace.model_copy(update={"max_context": config.tokens + 1})  # one more: an output token is not written


def all_activated(config: VitConfig) -> VitConfig:
    """The same model with every expert active for every token: what one task runs without choosing."""
    return replace(config, name=f"{config.name}-all", top_k=config.experts) if config.experts else config


def flops_saved(model: str, tasks: int) -> float:
    """per cent of an image's FLOPs that one task's path through a vision transformer saves, against an encoder of its
    size with every expert active for each of so many tasks"""
    config = vit_config(model)
    one, every = (float(capture_vision(c).total("flops")(1, c.tokens, 0)) for c in (config, all_activated(config)))
    return 100 * (1 - one / every / tasks)


FIGURES = {"vision_flops_saved": flops_saved}


def main(arguments: list[str]) -> int:
    """Write the trace of ``arguments[0]`` to the file ``arguments[1]``."""
    if len(arguments) != 2:
        print(f"usage: python -m tokenfab.workloads.vision {'|'.join(VITS)} FILE.json", file=sys.stderr)
        return 2
    try:
        capture_vision(arguments[0]).save(arguments[1])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
