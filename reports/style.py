"""How a report looks: colours, type, and how wide a text is.

Colours are safe for the colour-blind: Okabe and Ito's palette and Paul Tol's, in an order that keeps
the first eight apart. Text is always near-black or grey; colour never carries a fact alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties, findfont, get_font

INK = "#1d1d1f"
GREY = "#6b6b70"
RULE = "#c9c9ce"
PALE = "#f3f3f5"
WARN = "#a3210f"
BAND = 0.16
DEVICES = (
    "#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#56B4E9", "#882255", "#7A7A1F",
    "#332288", "#2F9E92", "#CC79A7", "#4D4D4D",
)  # fmt: skip
REASONS = {
    "compute": "#4477AA", "dram": "#DDAA33", "l2": "#EE7733",
    "dequantisation": "#AA3377", "network": "#228833", "launch": "#BBBBBB",
}  # fmt: skip
MEMORY = {"weights": "#4477AA", "KV cache": "#EE8866", "activations": "#BBBBBB"}
HELD = {
    "weights, only here": "#4477AA", "weights, elsewhere too": "#99BBDD", "KV cache": "#EE8866",
    "activations": "#BBBBBB",
}  # fmt: skip
"""Of a memory of a placement."""
KINDS = {
    "matmul": "#4477AA", "attention": "#EE8866", "experts": "#AA3377", "scan": "#882255",
    "norm, rope, element-wise": "#DDAA33", "others": "#8C8C8C", "transfer": "#228833",
}  # fmt: skip
"""Of operators, by :data:`KIND_GROUPS`."""
KIND_GROUPS = {k: k for k in KINDS} | dict.fromkeys(
    ("norm", "rope", "activation", "elementwise"), "norm, rope, element-wise"
)
"""Kinds that share a colour; one that is not here is among the others."""
ENERGY = {
    "compute": "#4477AA", "dram": "#DDAA33", "transport": "#44AA99", "static": "#BBBBBB", "waiting devices": "#8C8C8C",
}  # fmt: skip
SERVED_ENERGY = {"dynamic": "#4477AA", "static": "#BBBBBB", "idle": "#8C8C8C"}
"""Of a serving run."""
SERVED = {"decoding": "#0072B2", "waiting": "#C2500A", "held": "#EE8866", "power": "#7A7A1F"}
"""Of what a serving run shows over time."""
OTHERS = ("#77AADD", "#EE8866", "#999933", "#882255", "#555555")
"""For parts that a later version may add."""
PHASES = {"prefill": "#C2500A", "decode": "#0072B2"}
MARKERS = {"prefill": "o", "decode": "D"}

_RC: dict[str, Any] = {
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "tokenfab",
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.color": "#e4e4e8",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "path.simplify": True,
    "figure.dpi": 100,
}


def shorten(name: str, inches: float, size: float, bold: bool = False) -> str:
    """``name``, its middle replaced by an ellipsis where it is too wide: names often differ at their ends."""
    if width(name, size, bold) <= inches:
        return name
    for kept in range(len(name) - 1, 0, -1):
        text = f"{name[: (kept + 1) // 2]}…{name[len(name) - kept // 2 :]}"
        if width(text, size, bold) <= inches:
            return text
    return "…"


_UNIT = re.compile(r"(?<=\d) (?=(?:%|(?:[pnµmkMGTP]?(?:s|B|J|W|FLOP|FLOP/s|B/s)|tokens/s)(?![\w/])))")


@contextmanager
def house_style() -> Iterator[None]:
    """Draw inside this: the report's settings on matplotlib's own defaults, whatever the user's are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)  # type: ignore[arg-type]
        yield


def on(colour: str) -> str:
    """Ink or white, whichever reads better on ``colour``."""
    red, green, blue = to_rgb(colour)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.56 else INK


def hues(names: Sequence[str], colours: Mapping[str, str]) -> dict[str, str]:
    """A colour for each of ``names``: its own in ``colours``, or one of those kept for unknown names."""
    unknown = [n for n in names if n not in colours]
    return {n: colours.get(n) or OTHERS[unknown.index(n) % len(OTHERS)] for n in names}


def darker(colour: str, share: float = 0.3) -> str:
    """``colour`` mixed with black, for text in the colour of a thin line."""
    red, green, blue = (round(255 * v * (1 - share)) for v in to_rgb(colour))
    return f"#{red:02x}{green:02x}{blue:02x}"


@cache
def _advance(character: str, bold: bool) -> float:
    """Width of a character in inches at one point of size (kerning left out: under 1 %)."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")))
    font.set_size(100, 72)
    return float(font.load_char(ord(character)).linearHoriAdvance) / 65536 / 100 / 72


def width(text: str, size: float, bold: bool = False) -> float:
    """Width of one line of ``text`` in inches."""
    return sum(_advance(c, bold) for c in text) * size


def fit(text: str, inches: float, size: float, bold: bool = False) -> str:
    """``text``, its end replaced by an ellipsis where it is wider than ``inches``."""
    if width(text, size, bold) <= inches:
        return text
    while text and width(text + "…", size, bold) > inches:
        text = text[:-1]
    return text.rstrip(" ·,") + "…"


def wrap(text: str, inches: float, size: float, bold: bool = False) -> list[str]:
    """``text`` in lines of at most ``inches``: a number stays with its unit, a word too long for a line is broken."""
    lines = [""]
    for word in _UNIT.sub("\u00a0", text).split(" "):
        word = word.replace("\u00a0", " ")
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if width(joined, size, bold) <= inches:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        while width(word, size, bold) > inches and len(word) > 1:
            head = _head(word, inches, size, bold)
            lines[-1] = head
            lines.append("")
            word = word[len(head) :]
        lines[-1] = word
    return lines


def _head(word: str, inches: float, size: float, bold: bool) -> str:
    """As much of ``word`` as is ``inches`` wide, at least a character; broken after punctuation where that is near."""
    end, used = 0, 0.0
    for c in word:
        used += _advance(c, bold) * size
        if used > inches:
            break
        end += 1
    end = max(1, end)
    for back in range(end, max(1, end - 12), -1):
        if word[back - 1] in "/._-=,:":
            return word[:back]
    return word[:end]
