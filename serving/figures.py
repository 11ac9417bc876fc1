"""Figures of published systems that are of single iterations, not of a stream of requests."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from ..hw.devices import load_device
from ..hw.frequency import Clock
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


CLOCKS = tuple(1 - 0.05 * i for i in range(9))
"""Shares of the rated clock at which a request is timed; between two of them time and power are taken as linear."""


@cache
def _at_clocks(
    model: str, device: str, prompt: int, output: int, batch: int, parallel: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """How much longer a batch takes, and the share of its peak power that is saved, at each of :data:`CLOCKS`.

    Peak power is that of the prompts: static + dynamic joules over their seconds. The law of clocks and voltages is
    assumed (:mod:`..hw.frequency`), so nothing told of it has an interval.
    """
    degrees, trace, card = parse_parallel(parallel or None, None), load_trace(model), load_device(device)
    seconds, watts = [], []
    for share in CLOCKS:
        steps = StepModel(trace, card, degrees, longest=prompt + output, clock=Clock.at(share))
        chunks = [(prompt, 0)] * batch
        prompts_s = steps.mixed_s(chunks, batch, 0, 0.0, 0.0)
        joules = steps.chunks_j(chunks, batch, 0, 0.0, 0.0)
        dynamic = steps.mixed_j(*(np.array([x]) for x in (prompt * batch, batch, 0, 0.0, joules)))[0]
        watts.append(steps.static_w + float(dynamic) / prompts_s)
        seconds.append(prompts_s + (output - 1) * steps.decode_s(batch, prompt + output / 2, 0.0))
    return np.array(seconds) / seconds[0] - 1, 1 - np.array(watts) / watts[0]


def power_saved_at_loss(
    model: str, device: str, loss: float, prompt: int, output: int, batch: int = 1, parallel: str = ""
) -> tuple[float, float, float]:
    """per cent of a batch's peak power, that of its prompts, which the clock saves at which the batch takes ``loss``
    per cent longer"""
    longer, saved = _at_clocks(model, device, prompt, output, batch, parallel)
    found = 100 * float(np.interp(loss / 100, longer, saved))
    return found, found, found


def loss_at_power_saved(
    model: str, device: str, saved: float, prompt: int, output: int, batch: int = 1, parallel: str = ""
) -> tuple[float, float, float]:
    """per cent that a batch takes longer at the clock which saves ``saved`` per cent of its peak power, that of its
    prompts"""
    longer, less = _at_clocks(model, device, prompt, output, batch, parallel)
    found = 100 * float(np.interp(saved / 100, less, longer))
    return found, found, found


FIGURES = {
    "loss_at_power_saved": loss_at_power_saved,
    "piggyback_gain": piggyback_gain,
    "power_saved_at_loss": power_saved_at_loss,
}
