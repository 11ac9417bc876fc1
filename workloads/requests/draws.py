"""Random numbers that are the same, byte for byte, on every machine and with every numpy.

numpy promises the raw bits of its generators, not what it makes of them (NEP 19), and its logarithm differs in the
last bit between processors. Here everything is made from raw bits of PCG64 with operations that IEEE 754 rounds
correctly: + - × ÷ √, and scaling by powers of two.

Draws of one purpose do not move those of another (a longer prompt leaves the arrivals as they were), and the first
n of many are the n of few.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# ln 2 in two parts: the first has 32 bits, so that its product with an exponent is exact.
LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
LN_TERMS = 12
EXP_TERMS = 15


def ln(x: Floats) -> Floats:
    """Natural logarithm of positive, normal numbers, within a few units in the last place.

    x = m·2^e with m in [√½, √2); ln m = 2·(s + s³/3 + s⁵/5 + …) with s = (m - 1)/(m + 1).
    """
    mantissa, exponent = np.frexp(x)
    small = mantissa < 0.7071067811865476
    mantissa = np.where(small, 2 * mantissa, mantissa)
    exponent = exponent - small
    s = (mantissa - 1) / (mantissa + 1)
    square = s * s
    series = np.zeros_like(s)
    for k in range(LN_TERMS, 0, -1):
        series = (series + 1 / (2 * k + 1)) * square
    return np.asarray(exponent * LN2_HIGH + (2 * s + (2 * s * series + exponent * LN2_LOW)))


def exp(x: Floats) -> Floats:
    """Exponential function, within a few units in the last place; 0 below -745, inf above 710.

    x = k·ln 2 + r with |r| ≤ ln 2 / 2; the Taylor series of r, then scaled by 2^k.
    """
    x = np.clip(x, -746.0, 710.0)
    k = np.floor(x / (LN2_HIGH + LN2_LOW) + 0.5)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    series = np.ones_like(r)
    for i in range(EXP_TERMS, 0, -1):
        series = 1 + series * (r / i)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(series, k.astype(np.int64)))


class Draws:
    """Independent random numbers for one ``purpose`` of one ``seed``. The same call gives the same numbers."""

    def __init__(self, seed: int, purpose: str) -> None:
        self.seed, self.purpose = seed, purpose

    def uniform(self, n: int, use: str = "") -> Floats:
        """n numbers in (0, 1), multiples of 2^-53, neither end among them. ``use`` tells calls apart."""
        key = (zlib.crc32(self.purpose.encode()), zlib.crc32(use.encode()))
        bits = np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key)).random_raw(n)
        return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def index(self, n: int, count: int, use: str = "") -> Integers:
        """n whole numbers from 0 to ``count`` - 1 (count ≤ 2^32: no value is likelier by more than 2^-20)."""
        return np.floor(self.uniform(n, use) * count).astype(np.int64)

    def exponential(self, n: int, use: str = "") -> Floats:
        """n numbers of the exponential distribution with mean 1: -ln of a uniform one."""
        return -ln(self.uniform(n, use))

    def normal(self, n: int, use: str = "") -> Floats:
        """n standard normal numbers by Marsaglia's polar method (SIAM Review 6(3), 1964)."""

        def attempt(n: int, use: str) -> tuple[Floats, NDArray[np.bool_]]:
            x, y = 2 * self.uniform(n, f"{use} x") - 1, 2 * self.uniform(n, f"{use} y") - 1
            square = x * x + y * y
            good = square < 1  # never 0: no uniform number is one half
            inside = np.where(good, square, 0.5)
            return x * np.sqrt(-2 * ln(inside) / inside), good

        return _until_accepted(n, f"{use} normal", attempt)

    def gamma(self, n: int, shape: float, use: str = "") -> Floats:
        """n numbers of the gamma distribution with scale 1 and the given shape > 0 (mean and variance: shape).

        Marsaglia and Tsang (ACM TOMS 26(3), 2000); a shape below 1 by their remark, through that of shape + 1.
        """
        d = (shape if shape >= 1 else shape + 1) - 1 / 3
        c = 1 / math.sqrt(9 * d)

        def attempt(n: int, use: str) -> tuple[Floats, NDArray[np.bool_]]:
            x, u = self.normal(n, use), self.uniform(n, f"{use} u")
            cube = (1 + c * x) * (1 + c * x) * (1 + c * x)
            positive = cube > 0
            v = np.where(positive, cube, 1.0)
            return d * v, positive & (ln(u) < x * x / 2 + d - d * v + d * ln(v))

        value = _until_accepted(n, f"{use} gamma", attempt)
        return value if shape >= 1 else value * exp(ln(self.uniform(n, f"{use} boost")) / shape)


def _until_accepted(n: int, use: str, attempt: Callable[[int, str], tuple[Floats, NDArray[np.bool_]]]) -> Floats:
    """n values of a method that accepts only some of its candidates; place i looks only at candidates i of each try.

    So what place i gets does not depend on how many places there are.
    """
    out = np.empty(n)
    waiting = np.arange(n)
    tries = 0
    while waiting.size:
        values, good = attempt(int(waiting[-1]) + 1, f"{use} {tries}")
        done = waiting[good[waiting]]
        out[done] = values[done]
        waiting = waiting[~good[waiting]]
        tries += 1
    return out
