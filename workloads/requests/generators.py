"""Generated request logs: processes of arrivals, and sessions.

A generator is a function below :func:`generator` or :func:`arrivals`; its settings, and what each means, stand in
that line, and it is known everywhere by being there. All of them take the settings in :data:`LENGTHS` and a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError, unknown_name
from ..request_log import MOST_SECONDS, MOST_TOKENS, Floats, RequestLog, plain
from .draws import Draws
from .forms import numbers, show
from .lengths import MOST_CV, Lengths, distribution, gamma_of_mean_one, lengths

MOST_REQUESTS = 10**7
MOST_SEED = 2**63 - 1
MOST_TURNS = 10**4


@dataclass(frozen=True)
class Setting:
    """One setting of a generator or a replay. ``default`` None: it must be given. ``low``, ``high``: of a number."""

    default: Any
    meaning: str
    low: float = 0.0
    high: float = math.inf
    above: bool = False
    """Whether ``low`` itself is too low."""

    def read(self, where: str, text: str) -> Any:
        """``text`` as a value of the default's type; a number where there is none. Raises ``InputError``."""
        if isinstance(self.default, str):
            return text
        value = float(numbers([text])[0])
        whole = isinstance(self.default, int) and not isinstance(self.default, bool)
        fits = self.low <= value <= self.high and not (self.above and value == self.low)
        if not fits or (whole and not value.is_integer()):
            bounds = f"{'more than' if self.above else 'from'} {self.low:g} to {self.high:g}"
            raise InputError(f"{where}: found {show(text)}, expected a {'whole ' if whole else ''}number {bounds}")
        return int(text) if whole and text.isdecimal() else int(value) if whole else value


Values = Mapping[str, Any]
Settings = dict[str, Setting]
RATE = Setting(None, "requests per second on average; inf: all at once", above=True)
SEED = Setting(0, "seed of what is drawn", high=MOST_SEED)
COUNT = Setting(1000, "requests", 1, MOST_REQUESTS)
SHAPE = "a number, lo-hi, lognormal(mean;cv), gamma(mean;cv), exponential(mean), zipf(mean;exponent;ranks;most)"
LENGTHS: Settings = {
    "prompt": Setting("512", f"tokens of a prompt: {SHAPE}, @FILE, fit@FILE"),
    "output": Setting("128", f"tokens of an answer: {SHAPE}, @FILE, fit@FILE"),
    "lengths": Setting("", "@FILE or fit@FILE: both of them, drawn together"),
    "chars_per_token": Setting(0.0, "characters of text in such a file that are taken for a token; 0: none", high=1000),
}
PRIORITIES: Settings = {
    "urgent": Setting(0.0, "share of the requests, drawn alike, that have priority -1 and the class urgent", high=1),
    "background": Setting(0.0, "share that has priority 1 and the class background", high=1),
}
CLASSES = ("normal", "urgent", "background")


@dataclass(frozen=True)
class Generator:
    """A named way to make a log. ``make`` takes the settings by name, ``seed`` and ``skip_bad`` among them."""

    name: str
    description: str
    settings: Settings
    make: Callable[[Values], RequestLog]


GENERATORS: dict[str, Generator] = {}
"""All generators by name."""


def generator(name: str, description: str, **settings: Setting) -> Callable[[Any], Any]:
    """Makes a function of the settings that returns a log a generator."""

    def register(make: Callable[[Values], RequestLog]) -> Callable[[Values], RequestLog]:
        GENERATORS[name] = Generator(name, description, {**settings, **LENGTHS, "seed": SEED}, make)
        return make

    return register


def arrivals(name: str, description: str, **settings: Setting) -> Callable[[Any], Any]:
    """Makes a function of the settings, draws and a count that returns arrivals a generator of single requests."""

    def register(arrive: Callable[[Values, Draws, int], Floats]) -> Callable[[Values, Draws, int], Floats]:
        def make(values: Values) -> RequestLog:
            n, seed = values["n"], values["seed"]
            drawn = lengths_of(values)
            prompt, output = drawn.draw(seed, n, "lengths")
            arrival = arrive(values, Draws(seed, "arrivals"), n)
            more = _priorities(values, Draws(seed, "priorities"), n)
            return _log(drawn, seed, arrival_s=arrival, prompt=prompt, output=output, **more)

        generator(name, description, **{"rate": RATE, "n": COUNT, **settings, **PRIORITIES})(make)
        return arrive

    return register


def lengths_of(values: Values) -> Lengths:
    """The lengths that a generator's settings ask for. Raises ``InputError`` where they ask for two things."""
    prompt, output, both = values["prompt"], values["output"], values["lengths"]
    if both:
        if not both.startswith(("@", "fit@")):
            raise InputError(f"lengths: found {show(both)}, expected @FILE or fit@FILE")
        given = [name for name in ("prompt", "output") if values[name] != LENGTHS[name].default]
        if given:
            raise InputError(f"{given[0]} is part of lengths; give one of the two")
        prompt = output = both
    return lengths(prompt, output, values.get("skip_bad", False), values["chars_per_token"])


def _priorities(values: Values, draws: Draws, n: int) -> dict[str, Any]:
    """Priorities and classes of n requests; nothing where all are alike. Raises ``InputError`` for shares above 1."""
    urgent, background = values["urgent"], values["background"]
    if urgent + background > 1:
        raise InputError(f"urgent={urgent:g} and background={background:g}: expected at most 1 together")
    if urgent == background == 0:
        return {}
    drawn = draws.uniform(n)
    kind = np.where(drawn < urgent, 1, np.where(drawn < urgent + background, 2, 0))
    there = [k for k in range(3) if (kind == k).any()]
    return {
        "priority": np.array([0, -1, 1])[kind], "klass": np.searchsorted(there, kind),
        "classes": tuple(CLASSES[k] for k in there),
    }  # fmt: skip


def _log(drawn: Lengths, seed: int, **columns: Any) -> RequestLog:
    return plain(**columns, seed=seed, source="; ".join(drawn.notes), left_out=drawn.left_out)


def read_settings(what: str, text: str, settings: Settings) -> dict[str, Any]:
    """``key=value,…`` as values by name, defaults where nothing is given. Raises ``InputError``."""
    given: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in settings:
            raise unknown_name(f"setting of {what}", key, settings)
        if not equals or not value:
            raise InputError(f"{what}: {key} needs a value: {settings[key].meaning}")
        if key in given:
            raise InputError(f"{what}: {key} is given twice")
        given[key] = settings[key].read(f"{what}: {key}", value)
    for key, setting in settings.items():
        if setting.default is None and key not in given:
            raise InputError(f"{what} needs {key}: {setting.meaning}")
    return {key: setting.default for key, setting in settings.items()} | given


def at_rate(gaps: Floats, rate: float) -> Floats:
    """Arrivals from gaps with mean 1: the first at 0, each gap before the next. The last gap is not used."""
    return np.concatenate([[0.0], np.cumsum(gaps[:-1])]) / rate


# -- processes of arrivals -------------------------------------------------------------------------
@arrivals("poisson", "independent arrivals: exponential gaps")
def _poisson(values: Values, draws: Draws, n: int) -> Floats:
    return at_rate(draws.exponential(n), values["rate"])


@arrivals(
    "gamma",
    "gamma-distributed gaps: burstier than poisson above cv = 1, steadier below",
    cv=Setting(None, "standard deviation of the gaps over their mean", 0, MOST_CV),
)
def _gamma(values: Values, draws: Draws, n: int) -> Floats:
    return at_rate(gamma_of_mean_one(draws, n, values["cv"]), values["rate"])


@arrivals("uniform", "evenly spaced arrivals")
def _uniform(values: Values, _draws: Draws, n: int) -> Floats:
    return np.arange(n, dtype=np.float64) / float(values["rate"])


@arrivals(
    "burst",
    "poisson arrivals whose rate is switched: at the start of each period burst times the mean rate, then quiet times",
    rate=Setting(None, "requests per second on average", 0, 1e9, above=True),
    burst=Setting(None, "rate while on, in mean rates", 1, 1e6),
    period=Setting(None, "seconds from one start to the next", 0, MOST_SECONDS, above=True),
    quiet=Setting(0.0, "rate while off, in mean rates", 0, 1),
)
def _burst(values: Values, draws: Draws, n: int) -> Floats:
    """Arrivals of a Poisson process of rate 1, set where the integral of the switched rate reaches them.

    On for the share d of a period with d·burst + (1 - d)·quiet = 1.
    """
    rate, burst, period, quiet = (values[name] for name in ("rate", "burst", "period", "quiet"))
    expected = at_rate(draws.exponential(n), 1.0)
    if burst == 1:
        return np.asarray(expected / rate)
    share = (1 - quiet) / (burst - quiet)
    per_period = rate * period
    periods = np.floor(expected / per_period)
    rest = expected - periods * per_period
    while_on = share * period * rate * burst
    off = share * period + (rest - while_on) / (rate * quiet) if quiet else share * period
    return np.asarray(periods * period + np.minimum(np.where(rest < while_on, rest / (rate * burst), off), period))


@arrivals(
    "swing",
    "poisson arrivals whose rate rises and falls in straight lines, as from night to noon to night",
    rate=Setting(None, "requests per second on average", 0, 1e9, above=True),
    low=Setting(None, "lowest rate, in mean rates; the highest is 2 - low", 0, 1),
    period=Setting(None, "seconds from one lowest rate to the next", 0, MOST_SECONDS, above=True),
)
def _swing(values: Values, draws: Draws, n: int) -> Floats:
    """Arrivals of a Poisson process of rate 1, set where the integral of the rate reaches them.

    On the way up, over half a period h: Λ(t) = rate · (low t + (1 − low) t² / h); on the way down mirrored.
    """
    rate, low, period = (values[name] for name in ("rate", "low", "period"))
    expected = at_rate(draws.exponential(n), 1.0) / rate
    periods = np.floor(expected / period)
    rest = expected - periods * period
    half = period / 2
    up = rest <= half
    # The root of (1 − low) t² / h + low t = x that stays exact where low is 1.
    x = np.where(up, rest, period - rest)
    t = 2 * x / (low + np.sqrt(low * low + 4 * (1 - low) * x / half) + (x == 0))
    return np.asarray(periods * period + np.where(up, t, period - t))


# -- sessions --------------------------------------------------------------------------------------
@generator(
    "sessions",
    "conversations: each turn's prompt is the history and something new, after the answer before it and a pause",
    rate=Setting(None, "sessions per second (poisson); inf: all at once", above=True),
    n=Setting(100, "sessions", 1, MOST_REQUESTS),
    turns=Setting("4", f"turns of a session: {SHAPE}"),
    think=Setting("10", f"seconds from an answer to the next turn: {SHAPE}"),
    system=Setting(0, "tokens of a system prompt that sessions share; 0: none", 0, MOST_TOKENS),
    systems=Setting(1, "distinct system prompts, each as likely", 1, 10**6),
    context=Setting(
        0,
        "tokens after which a session ends: a turn that would exceed them is not asked; 0: never",
        high=2 * MOST_TOKENS,
    ),
)
def _sessions(values: Values) -> RequestLog:
    """``prompt`` is what is new in each turn. Turn by turn, all sessions at once."""
    n, seed, system = values["n"], values["seed"], values["system"]
    turns = distribution("turns", values["turns"]).tokens(Draws(seed, "turns"), n)
    if int(turns.max()) > MOST_TURNS:
        raise InputError(f"sessions: a session of {turns.max()} turns; expected at most {MOST_TURNS}")
    if int(turns.sum()) > MOST_REQUESTS:
        raise InputError(f"sessions: {turns.sum()} turns; expected at most {MOST_REQUESTS} in all")
    pause = distribution("think", values["think"], tokens=False)
    drawn = lengths_of(values)
    parts: list[dict[str, Any]] = []
    tokens, parents = [np.full(values["systems"], system)], [np.full(values["systems"], -1)]
    if system == 0:
        tokens, parents = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    nodes, rows = len(tokens[0]), 0
    arrival = at_rate(Draws(seed, "arrivals").exponential(n), values["rate"])
    prefix = Draws(seed, "systems").index(n, values["systems"]) if system else np.full(n, -1)
    history, before = np.full(n, system), np.full(n, -1)
    active = np.ones(n, bool)
    for turn in range(int(turns.max())):
        new, output = drawn.draw(seed, n, f"turn {turn}")
        think = pause.seconds(Draws(seed, f"think {turn}"), n) if turn else np.zeros(n)
        prompt = history + new
        active = active & (turn < turns) & (prompt + output <= (values["context"] or 2 * MOST_TOKENS))
        if not active.any():
            break
        if turn:  # what the turn before left behind becomes a node, now that a prompt goes on with it
            last = parts[-1]
            number = nodes + np.cumsum(active) - 1
            last["extends"][:] = np.where(active, number, -1)[last["session"]]
            tokens.append(history[active])
            parents.append(prefix[active])
            prefix = np.where(active, number, -1)
            nodes += int(active.sum())
        arrival = arrival + think
        session = np.flatnonzero(active)
        parts.append(
            {"session": session, "arrival_s": arrival[session], "prompt": prompt[session], "output": output[session],
             "prefix": prefix[session], "extends": np.full(len(session), -1), "after": before[session],
             "think_s": think[session]}
        )  # fmt: skip
        before = np.where(active, rows + np.cumsum(active) - 1, -1)
        rows += len(session)
        history = prompt + output
    if not parts:
        raise InputError("sessions: no session has room for its first turn; give a larger context")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "session"}
    tree = {"prefix_tokens": np.concatenate(tokens), "prefix_parent": np.concatenate(parents)}
    return _log(drawn, seed, **columns, **tree)
