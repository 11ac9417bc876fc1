"""A flash drive event by event: the counterpart of :class:`.flash.Nand`, with contention.

Every page read takes its die for tR and until the page has left, and its channel for command and transfer, first
come first served; ``depth`` reads are outstanding at most, and optionally all pages pass one host link. Pages are
dealt out evenly (``striped``) or drawn from a seeded generator (``random``), as a drive full of small records is:
then some dies have a queue while others idle, which the closed form does not know.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .flash import Nand

PLACEMENTS = ("striped", "random")


@dataclass(frozen=True)
class Playback:
    """What happened: seconds until the last page, bytes/s, mean seconds a page took, busy shares."""

    seconds: float
    bandwidth: float
    mean_latency_s: float
    channel_busy: float
    die_busy: float
    pages: int


def play(
    nand: Nand, pages: int, *, depth: int | None = None, placement: str = "striped", seed: int = 0,
    link_bytes_s: float = float("inf"),
) -> Playback:  # fmt: skip
    """Read ``pages`` pages; ``depth`` outstanding at most (all at once where not given).

    Raises ``InputError`` for no pages, a depth below 1 or an unknown placement. The same seed gives the same events.
    """
    import simpy  # only where events are asked for

    if placement not in PLACEMENTS:
        raise InputError(f"placement {placement!r}; accepted: {', '.join(PLACEMENTS)}")
    if pages < 1 or (depth is not None and depth < 1):
        raise InputError(f"{pages} pages, {depth} outstanding; accepted: 1 or more of either")
    env = simpy.Environment()
    channels = [simpy.Resource(env) for _ in range(nand.channels)]
    dies = [[simpy.Resource(env) for _ in range(nand.dies)] for _ in channels]
    link = simpy.Resource(env)
    window = simpy.Resource(env, capacity=depth or pages)
    if placement == "random":
        drawn = np.random.default_rng(seed).integers(0, nand.channels * nand.dies, pages)
    else:
        drawn = np.arange(pages) % (nand.channels * nand.dies)
    latencies, busy = [], {"channel": 0.0, "die": 0.0}

    def read(place: int) -> Generator[Any, Any, None]:
        c, d = place % nand.channels, place // nand.channels
        with window.request() as slot:
            yield slot
            asked = env.now
            with dies[c][d].request() as die:
                yield die
                taken = env.now
                yield env.timeout(nand.read_s)
                with channels[c].request() as channel:
                    yield channel
                    yield env.timeout(nand.transfer_s)
                    busy["channel"] += nand.transfer_s
                busy["die"] += env.now - taken
            if np.isfinite(link_bytes_s):
                with link.request() as out:
                    yield out
                    yield env.timeout(nand.page_bytes / link_bytes_s)
            latencies.append(env.now - asked)

    for place in drawn:
        env.process(read(int(place)))
    env.run()
    assert len(latencies) == pages
    return Playback(
        seconds=float(env.now), bandwidth=pages * nand.page_bytes / float(env.now),
        mean_latency_s=float(np.mean(latencies)), channel_busy=busy["channel"] / (env.now * nand.channels),
        die_busy=busy["die"] / (env.now * nand.channels * nand.dies), pages=pages,
    )  # fmt: skip
