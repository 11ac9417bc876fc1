"""The one text that a request log is asked for by: a generator with its settings, or a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, unknown_name
from ..request_log import MOST_SECONDS, Floats, RequestLog, plain
from .documents import Counting
from .draws import Draws
from .files import NO_ARRIVALS, read_file
from .generators import GENERATORS, MOST_REQUESTS, MOST_SEED, SEED, SHAPE, Setting, Settings, at_rate, read_settings
from .lengths import distribution

SETTINGS = re.compile(r"[@:](?=\w+=)")
"""Where settings may begin."""
REPLAY: Settings = {
    "rate": Setting(0.0, "requests (of conversations: sessions) per second, poisson, in place of the file's arrivals; "
                         "inf: all at once", above=True),
    "scale": Setting(1.0, "the file's own arrivals, so many times as fast", 0, 1e9, above=True),
    "n": Setting(0, "only the first n requests", 1, MOST_REQUESTS),
    "block": Setting(0, "tokens per block of token ids that prompts can share; not given: 16, or what the form has",
                     1, 10**6),
    "chars_per_token": Setting(0.0, "characters of text that are taken for a token", 0, 1000, above=True),
    "think": Setting("", f"seconds from an answer to the next turn, in place of the file's: {SHAPE}"),
    "seed": SEED,
}  # fmt: skip
"""Settings of a file, ``FILE@key=value,…``."""


def parse_requests(text: str, seed: int = 0, skip_bad: bool = False) -> RequestLog:
    """The log that ``text`` asks for.

    ``NAME:key=value,…`` is a generator (:data:`GENERATORS`), ``FILE`` a file of any known form,
    ``FILE@key=value,…`` or ``FILE:key=value,…`` a file replayed with the settings in :data:`REPLAY`. ``seed`` is used
    where the text gives none. With ``skip_bad``, bad records of files are left out and listed in ``left_out``.
    Raises ``InputError`` for everything that cannot be read.
    """
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"seed: found {seed}, expected a whole number from 0 to {MOST_SEED}")
    name, colon, settings = text.partition(":")
    if name in GENERATORS and (colon or not Path(text).exists()):
        chosen = GENERATORS[name]
        values = read_settings(name, settings, {**chosen.settings, "seed": replace(SEED, default=seed)})
        log = chosen.make({**values, "skip_bad": skip_bad})
        return replace(log, source="; ".join(filter(None, (text, log.source))))
    return _from_file(text, seed, skip_bad)


def _from_file(text: str, seed: int, skip_bad: bool) -> RequestLog:
    # The longest beginning that is a file: names of files may hold these signs too.
    cuts = [(text, ""), *((text[: m.start()], text[m.end() :]) for m in reversed(list(SETTINGS.finditer(text))))]
    path, settings = next((cut for cut in cuts if _exists(cut[0])), cuts[-1])
    if not _exists(path):
        name = re.split("[:@]", path)[0]
        if re.fullmatch(r"[\w-]*", name):
            raise unknown_name("request generator", name, GENERATORS, "or give a file of requests")
        raise InputError(f"{path}: no such file of requests")
    what = f"{path}@"
    values = read_settings(what, settings, {**REPLAY, "seed": replace(SEED, default=seed)})
    if values["rate"] and values["scale"] != 1:
        raise InputError(
            f"{what}: scale is of the file's own arrivals, and rate takes their place; give one of the two"
        )
    read = read_file(path, Counting(values["block"], values["chars_per_token"]), skip_bad)
    if not read.arrivals and not values["rate"]:
        raise InputError(f"{path}: {NO_ARRIVALS.format(path=path)}")
    log = read.log
    if values["n"]:
        if values["n"] > len(log):
            raise InputError(f"{what}: n: found {values['n']}, expected at most the {len(log)} requests of the file")
        log = log.head(values["n"])
    log = _replayed(log, values, values["seed"])
    return replace(log, source=text + log.source.removeprefix(path))


def _exists(path: str) -> bool:
    try:
        return bool(path) and Path(path).exists()
    except (OSError, ValueError):  # too long a name, a null character
        return False


def _replayed(log: RequestLog, values: Mapping[str, Any], seed: int) -> RequestLog:
    """``log`` with other arrivals, or other pauses between the turns of its sessions."""
    if not values["rate"] and not values["think"] and values["scale"] == 1:
        return log
    starts = log.after < 0
    arrival, think = log.arrival_s / values["scale"], log.think_s
    if values["rate"]:
        gaps = Draws(seed, "arrivals").exponential(int(starts.sum()))
        arrival = arrival.copy()
        arrival[starts] = at_rate(gaps, values["rate"])
    if values["think"]:
        drawn = distribution("think", values["think"], tokens=False).seconds(Draws(seed, "think"), len(log))
        think = np.where(starts, 0.0, drawn)
    arrival = _bounds(arrival, think, log.after)
    if float(arrival[-1]) > MOST_SECONDS:
        raise InputError(f"the last request would arrive after {arrival[-1]:g} s; expected at most {MOST_SECONDS:g} s")
    names = ("klass", "priority", "prefix", "extends", "after", "prefix_tokens", "prefix_parent", "classes", "source")
    more = {name: getattr(log, name) for name in names}
    drawn_seed = seed if values["rate"] or values["think"] else None
    return plain(arrival, log.prompt, log.output, think_s=think, seed=drawn_seed, left_out=log.left_out, **more)


def _bounds(arrival: Floats, think: Floats, after: Any) -> Floats:
    """Arrivals, those of later turns as if answers took no time."""
    arrival = arrival.copy()
    waiting = np.flatnonzero(after >= 0)
    arrival[waiting] = np.nan
    while waiting.size:
        bound = arrival[after[waiting]] + think[waiting]
        known = np.isfinite(bound)
        arrival[waiting[known]] = bound[known]
        waiting = waiting[~known]
    return arrival
