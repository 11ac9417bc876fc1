"""Figures of published systems that are of single iterations, not of a stream of requests."""

from __future__ import annotations

from ..hw.devices import load_device
from ..workloads.load import load_trace
from ..workloads.parallel import parse_parallel
from .engine import load_profile
from .steps import StepModel


def piggyback_gain(
    model: str,
    device: str,
    batch: int,
    context: int,
    chunk: int,
    prefilled: int = 0,
    parallel: str = "",
    engine: str = "ideal",
) -> tuple[float, float, float]:
    """Time per token of a decode step of ``batch`` sequences at ``context`` tokens, over what a token adds to a
    prompt's chunk of ``chunk`` tokens, after ``prefilled``, that ``batch`` − 1 decoding sequences ride along with (so
    many tokens of the chunk make room for them); ``engine``: whose calls and overheads count.

    Both times are of one cost model: their errors go together, so the ratio has no interval.
    """
    degrees = parse_parallel(parallel or None, None)
    steps = StepModel(
        load_trace(model), load_device(device), degrees, load_profile(engine), longest=max(context, chunk) + 1
    )
    riding = batch - 1
    alone = steps.decode_s(batch, context, 0.0) / batch
    own = chunk - riding
    added = steps.mixed_s([(own, prefilled)], 0, riding, context, 0.0) - steps.mixed_s(
        [(own, prefilled)], 0, 0, 0.0, 0.0
    )
    gain = alone / (added / riding)
    return gain, gain, gain


FIGURES = {"piggyback_gain": piggyback_gain}
