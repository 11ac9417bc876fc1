"""How a report writes numbers: three significant digits, a scaled unit, never a bare exponent.

Everything that a page prints goes through these functions, so that a number reads the same in a
table, on an axis and in a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NONE = "–"
"""What stands where there is no number."""
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PREFIXES = {
    24: "Y",
    21: "Z",
    18: "E",
    15: "P",
    12: "T",
    9: "G",
    6: "M",
    3: "k",
    0: "",
    -3: "m",
    -6: "µ",
    -9: "n",
    -12: "p",
    -15: "f",
}


def exponent(value: float, unit: str = "") -> int:
    """The power of ten, a multiple of three, whose prefix suits ``value`` once rounded to three digits.

    Seconds have no kilo; what is counted or paid has no prefix at all.
    """
    if unit in ("tokens/s", "$"):
        return 0
    if not value or not math.isfinite(value):
        return 0
    power = math.floor(math.log10(abs(value)))
    if round(abs(value) / 10.0 ** (power - 2)) >= 1000:
        power += 1
    return min(0 if unit == "s" else 24, max(-15, 3 * (power // 3)))


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, thousands set apart: 0.0123, 4.56, 12 300; beyond 10⁶ and 10⁻⁴ as 1.23×10⁻⁵."""
    if not value:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if not -4 <= power < 6:
        mantissa, _, exp = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}×10{str(int(exp)).translate(_RAISED)}"
    rounded = round(value, digits - 1 - power)
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{places}f}".replace(",", "\u2009")


def short(value: float) -> str:
    """A round number as a tick or a setting has it, without trailing zeros: 0.5, 20, 4 096."""
    mantissa, times, power = number(value, 4).partition("×")
    return (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + times + power


def reason(name: str) -> str:
    """What bound an operator, as it is written."""
    return "DRAM" if name == "dram" else name


def si(value: float, unit: str, digits: int = 3) -> str:
    """``value`` with an SI prefix: si(0.00123, "s") is "1.23 ms"."""
    power = exponent(value, unit)
    return f"{number(value / 10.0**power, digits)} {_PREFIXES[power]}{unit}".rstrip()


def interval(low: float, high: float, unit: str) -> str:
    """An interval with one unit, the upper end's: "9.1–12.4 ms"."""
    power = exponent(high, unit)
    low_text, high_text = number(low / 10.0**power), number(high / 10.0**power)
    return f"{low_text}–{high_text} {_PREFIXES[power]}{unit}".rstrip()


def bounds(low: float, high: float) -> str:
    """An interval of what has no unit: "5.1–5.4"; :data:`NONE` for an exact figure, whose ends are one."""
    return NONE if low == high else f"{low:.3g}–{high:.3g}"


def claim_figures(row: Mapping[str, Any]) -> list[str]:
    """Paper, model, its interval and model over paper of a claim of ``tokenfab reproduce``; :data:`NONE` for what it
    lacks."""
    published = NONE if row["paper"] is None else f"{row['paper']:.4g}"
    if row["model"] is None:
        return [published, NONE, NONE, NONE]
    interval = bounds(*row["interval"]) if row["interval"] else NONE
    return [published, f"{row['model']:.3g}", interval, f"{row['ratio']:.2f}"]


def si_tick(value: float, unit: str) -> str:
    """A round value on an axis: 20 ms, 1 TFLOP/s."""
    power = exponent(value, unit)
    return f"{short(value / 10.0**power)} {_PREFIXES[power]}{unit}".rstrip()


def prefixed(power: int, unit: str) -> str:
    """A unit with the prefix of a power of ten that is a multiple of three: prefixed(9, "B") is "GB"."""
    return f"{_PREFIXES[power]}{unit}"


def count(value: float) -> str:
    """A whole number in full, in thousands set apart."""
    return f"{value:,.0f}".replace(",", "\u2009")


def size(value: float) -> str:
    """A number of parameters: 6.74 B (billion), 125 M."""
    for scale, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * scale:
            return f"{number(value / scale)} {name}"
    return number(value)


def dollars(value: float | None) -> str:
    """US dollars to three digits, cents where there are any."""
    return NONE if value is None else f"${number(value)}"


def percent(share: float) -> str:
    """A share in whole percent; a small one keeps a digit, and what is not zero never reads zero."""
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.0095 else f"{100 * share:.0f} %"


def plural(value: int, noun: str) -> str:
    """1 device, 2 devices."""
    return f"{count(value)} {noun}" + ("" if value == 1 else "s")


def listed(items: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def shares(bound: dict[str, float], least: float = 0.05) -> str:
    """What binds a phase, largest first: "DRAM 87 %, launch 13 %"."""
    top = sorted(((v, k) for k, v in bound.items() if v >= least), key=lambda p: (-p[0], p[1]))
    return ", ".join(f"{reason(name)} {percent(share)}" for share, name in top)
