"""What a policy did, as it says itself: the groups of figures that it adds to a serving document, in words.

A key says what its figure is by its end: ``_s`` seconds, ``_w`` watts, ``bytes`` bytes, ``_per_s`` rates, ``share`` and
``busy`` shares, ``_hours`` hours; what else there is are counts, numbers and names. Groups may have groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .format import NONE, count, number, percent, si

UNITS = {"_bytes_per_s": "B/s", "_per_s": "/s", "_s": "s", "_w": "W", "_bytes": "B", "_hours": " h"}
"""Ends of keys, and the units of their figures."""


def policy_figures(document: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of a serving document's policy, each with its figures: (what, how much)."""
    names = document.get("policy_figures")
    groups = {n: document.get(n) for n in names if isinstance(n, str)} if isinstance(names, list) else {}
    return [(_plain(n), [_told(k, v) for k, v in g.items()]) for n, g in groups.items() if isinstance(g, Mapping)]


def _told(key: str, value: Any) -> tuple[str, str]:
    if isinstance(value, Mapping):
        inner = [_told(f"{k}{_end(key)}", v) for k, v in value.items()]
        return _plain(key.removesuffix(_end(key))), ", ".join(f"{name} {text}" for name, text in inner)
    end = _end(key)
    name = _plain(key.removesuffix(end))
    if value is None:
        return name, NONE
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _plain(key), str(value)
    if end == "_per_s":
        return name, f"{number(float(value))}/s"
    if end == "_hours":
        return name, f"{number(float(value))} h"
    if end:
        return name, si(float(value), UNITS[end])
    words = key.split("_")
    if words[0] == "bytes":
        return name, si(float(value), "B")
    if "share" in words or words[-1] == "busy":
        return name, percent(float(value))
    return name, count(value) if isinstance(value, int) else number(float(value))


def _end(key: str) -> str:
    return next((end for end in UNITS if key.endswith(end)), "")


def _plain(key: str) -> str:
    return key.replace("_", " ")
