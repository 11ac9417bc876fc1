"""How long prompts and answers are: distributions written as text, drawn from a file, or fitted to one.

Texts: ``512`` (always), ``100-900`` (every whole number alike), ``lognormal(mean;cv)``, ``gamma(mean;cv)``,
``exponential(mean)``, ``zipf(mean;exponent;ranks;most)``, ``@FILE`` (records of a file, each as likely), ``fit@FILE``
(:class:`LognormalFit`). A cv is the standard deviation over the mean. Prompt and answer that name the same file are
drawn together, one record for both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import InputError, unknown_name
from ..request_log import MOST_SECONDS, MOST_TOKENS, Floats, Integers
from .documents import Counting
from .draws import Draws, exp, ln
from .files import read_file
from .forms import show

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
RANGE = re.compile(f"({NUMBER})(?:-({NUMBER}))?")
CALL = re.compile(r"([a-z]+)\((.*)\)")
FIT = "fit@"
MOST_CV = 100.0


# -- distributions of one number -------------------------------------------------------------------
def _lognormal(draws: Draws, n: int, mean: float, cv: float) -> Floats:
    """σ² = ln(1 + cv²), μ = ln(mean) - σ²/2: mean and cv are those of the numbers, not of their logarithms."""
    variance = float(ln(np.array([1 + cv * cv]))[0])
    return exp(float(ln(np.array([mean]))[0]) - variance / 2 + math.sqrt(variance) * draws.normal(n))


def _gamma(draws: Draws, n: int, mean: float, cv: float) -> Floats:
    return mean * gamma_of_mean_one(draws, n, cv)


def _exponential(draws: Draws, n: int, mean: float) -> Floats:
    return mean * draws.exponential(n)


def _zipf(draws: Draws, n: int, mean: float, exponent: float, ranks: float, most: float) -> Floats:
    """Zipf's law: rank k of 1 … ranks with a probability ∝ k^−exponent, all scaled to the mean, then cut at ``most``
    (the mean of what is drawn is lower by what is cut)."""
    k = np.arange(1.0, math.floor(ranks) + 1)
    weights = exp(-exponent * ln(k))
    upto = np.cumsum(weights)  # one after another, so the same everywhere
    scale = mean * float(upto[-1]) / float(np.cumsum(weights * k)[-1])
    found = np.searchsorted(upto, draws.uniform(n) * upto[-1])
    return np.asarray(np.minimum(k[found] * scale, most))


DISTRIBUTIONS: dict[str, tuple[Callable[..., Floats], tuple[str, ...]]] = {
    "lognormal": (_lognormal, ("mean", "cv")),
    "gamma": (_gamma, ("mean", "cv")),
    "exponential": (_exponential, ("mean",)),
    "zipf": (_zipf, ("mean", "exponent", "ranks", "most")),
}
"""Name → what draws n numbers, and the names of its parameters."""
BOUNDS = {"cv": (0.0, MOST_CV), "exponent": (0.0, 20.0), "ranks": (1.0, 1e6), "most": (1.0, float(MOST_TOKENS))}
"""What parameters other than the mean may be."""


def gamma_of_mean_one(draws: Draws, n: int, cv: float) -> Floats:
    """n numbers with mean 1 and the given cv: gamma with shape 1/cv²; all 1 for cv = 0."""
    if cv == 0:
        return np.ones(n)
    shape = 1 / (cv * cv)
    return draws.gamma(n, shape) / shape


@dataclass(frozen=True)
class Distribution:
    """One number drawn again and again."""

    text: str
    low: float = 0.0
    high: float = 0.0
    name: str = ""
    parameters: tuple[float, ...] = ()

    def tokens(self, draws: Draws, n: int) -> Integers:
        """n whole numbers from 1 to ``MOST_TOKENS``; what is drawn is rounded, and what is outside set to the end."""
        if self.name:
            drawn = np.floor(DISTRIBUTIONS[self.name][0](draws, n, *self.parameters) + 0.5)
            return np.clip(drawn, 1, MOST_TOKENS).astype(np.int64)
        return int(self.low) + draws.index(n, int(self.high) - int(self.low) + 1)

    def seconds(self, draws: Draws, n: int) -> Floats:
        """n numbers from 0 to ``MOST_SECONDS``."""
        if self.name:
            return np.clip(DISTRIBUTIONS[self.name][0](draws, n, *self.parameters), 0, MOST_SECONDS)
        return self.low + (self.high - self.low) * draws.uniform(n)


def distribution(where: str, text: str, tokens: bool = True) -> Distribution:
    """Reads the text of a distribution of numbers of tokens, or of seconds. Raises ``InputError``."""
    least, most, unit = (1, MOST_TOKENS, "tokens") if tokens else (0, MOST_SECONDS, "seconds")
    forms = "; ".join(f"{name}({';'.join(names)})" for name, (_, names) in DISTRIBUTIONS.items())
    expected = f"expected a number of {unit}, a range as 100-900, {forms}" + ("; @FILE; fit@FILE" if tokens else "")
    if match := RANGE.fullmatch(text):
        low = float(match[1])
        high = float(match[2]) if match[2] else low
        if not least <= low <= high <= most:
            raise InputError(f"{where}: found {show(text)}, expected {least} to {most:g} {unit}, the smaller first")
        if tokens and (low != math.floor(low) or high != math.floor(high)):
            raise InputError(f"{where}: found {show(text)}, expected whole numbers of tokens")
        return Distribution(text, low, high)
    if match := CALL.fullmatch(text):
        name, inside = match[1], match[2].split(";")
        if name not in DISTRIBUTIONS:
            raise unknown_name("distribution", name, DISTRIBUTIONS)
        names = DISTRIBUTIONS[name][1]
        if len(inside) != len(names) or not all(re.fullmatch(NUMBER, part) for part in inside):
            raise InputError(f"{where}: found {show(text)}, expected {name}({';'.join(names)})")
        values = dict(zip(names, map(float, inside), strict=True))
        bounds = {"mean": (max(least, 1e-9), float(most)), **{key: BOUNDS[key] for key in names[1:]}}
        if not all(low <= values[key] <= high for key, (low, high) in bounds.items()):
            ranges = " and a ".join(f"{key} of {low:g} to {high:g}" for key, (low, high) in bounds.items())
            raise InputError(f"{where}: found {show(text)}, expected a {ranges}")
        return Distribution(text, name=name, parameters=tuple(values.values()))
    raise InputError(f"{where}: found {show(text)}, {expected}")


# -- prompt and answer together --------------------------------------------------------------------
@dataclass(frozen=True)
class LognormalFit:
    """Prompt and answer as correlated lognormal numbers, fitted to records by maximum likelihood.

    ``mu`` and ``sigma`` are the mean and standard deviation of the natural logarithms, ``correlation`` is that of
    the two logarithms. ``distance`` is how far the fit is off (Kolmogorov and Smirnov): the largest difference
    between the share of records with at most k tokens and what the fit gives, rounding included, over all k.
    Each is a pair (prompt, answer). What is drawn is at least 1 and at most what the records have (``most``).
    """

    n: int
    mu: tuple[float, float]
    sigma: tuple[float, float]
    correlation: float
    most: tuple[int, int]
    distance: tuple[float, float]

    def draw(self, seed: int, n: int, purpose: str = "lengths") -> tuple[Integers, Integers]:
        """n pairs of prompt and answer."""
        first, own = (Draws(seed, purpose).normal(n, use) for use in ("first", "own"))
        second = self.correlation * first + math.sqrt(1 - self.correlation**2) * own
        prompt, output = (
            np.clip(np.floor(exp(self.mu[i] + self.sigma[i] * z) + 0.5), 1, self.most[i]).astype(np.int64)
            for i, z in enumerate((first, second))
        )
        return prompt, output

    def __str__(self) -> str:
        """In one line, as it is told in the source of a log."""
        parts = [
            f"{name} exp(μ={self.mu[i]:.4g}, σ={self.sigma[i]:.4g}) with KS distance {self.distance[i]:.3f}"
            for i, name in enumerate(("prompt", "output"))
        ]
        return f"lognormal fit of {self.n} records: {', '.join(parts)}, correlation {self.correlation:.3f}"


def fit_lognormal(prompt: Integers, output: Integers) -> LognormalFit:
    """The lognormal fit of records of ``prompt`` and ``output`` tokens, both of shape (n,)."""
    n = len(prompt)
    mu, sigma, distance, centred = [], [], [], []
    for tokens in (prompt, output):
        logs = ln(tokens.astype(np.float64))
        mean = math.fsum(logs.tolist()) / n  # fsum: the same in whatever order it is added
        centred.append(logs - mean)
        mu.append(mean)
        sigma.append(math.sqrt(math.fsum((centred[-1] * centred[-1]).tolist()) / n))
        distance.append(_distance(tokens, mean, sigma[-1]))
    spread = sigma[0] * sigma[1]
    correlation = math.fsum((centred[0] * centred[1]).tolist()) / n / spread if spread > 0 else 0.0
    return LognormalFit(
        n,
        (mu[0], mu[1]),
        (sigma[0], sigma[1]),
        min(max(correlation, -1.0), 1.0),
        (int(prompt.max()), int(output.max())),
        (distance[0], distance[1]),
    )


def _distance(tokens: Integers, mu: float, sigma: float) -> float:
    """Largest difference at whole numbers between the shares of records and of the rounded, bounded fit."""
    values, counts = np.unique(tokens, return_counts=True)
    upto = np.cumsum(counts) / len(tokens)
    if sigma == 0:
        return 0.0

    def fitted(k: Integers) -> Floats:
        z = ((ln(k.astype(np.float64) + 0.5) - mu) / (sigma * math.sqrt(2))).tolist()
        share = np.array([math.erfc(-x) / 2 for x in z])
        return np.where(k >= values[-1], 1.0, np.where(k < 1, 0.0, share))

    # Between two values of the records their share stands still while that of the fit grows: only the ends matter.
    before = np.concatenate([[0.0], upto[:-1]])
    at, just_below = np.abs(upto - fitted(values)), np.abs(before - fitted(np.maximum(values - 1, 0)))
    return float(max(at.max(), just_below.max()))


Pairs = Callable[[int, int, str], tuple[Integers, Integers]]
"""(seed, n, purpose) → n prompts and the answers that go with them."""


@dataclass(frozen=True)
class Lengths:
    """Prompts and answers to draw. ``notes`` are the fits behind them, ``left_out`` the bad records of their files."""

    draw: Pairs
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def lengths(prompt: str, output: str, skip_bad: bool = False, chars_per_token: float = 0.0) -> Lengths:
    """Reads the texts of prompt and answer, and the files they name. Raises ``InputError`` for what is wrong there."""
    counting = Counting(chars_per_token=chars_per_token)
    first = _pairs("prompt", prompt, skip_bad, counting)
    if prompt == output and "@" in prompt:
        return first
    second = _pairs("output", output, skip_bad, counting)

    def draw(seed: int, n: int, purpose: str) -> tuple[Integers, Integers]:
        return first.draw(seed, n, f"{purpose} prompt")[0], second.draw(seed, n, f"{purpose} output")[1]

    return Lengths(draw, first.notes + second.notes, first.left_out + second.left_out)


def _pairs(what: str, text: str, skip_bad: bool, counting: Counting) -> Lengths:
    if not text.startswith(("@", FIT)):
        one = distribution(what, text)

        def alike(seed: int, n: int, purpose: str) -> tuple[Integers, Integers]:
            drawn = one.tokens(Draws(seed, purpose), n)
            return drawn, drawn

        return Lengths(alike)
    path = text.removeprefix(FIT).removeprefix("@")
    log = read_file(path, counting, skip_bad).log
    if text.startswith(FIT):
        fit = fit_lognormal(log.prompt, log.output)
        return Lengths(fit.draw, (f"{path}: {fit}",), log.left_out)

    def record(seed: int, n: int, purpose: str) -> tuple[Integers, Integers]:
        chosen = Draws(seed, purpose).index(n, len(log))
        return log.prompt[chosen], log.output[chosen]

    return Lengths(record, (), log.left_out)
