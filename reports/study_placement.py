"""The placement of a study: the model over a mixed node of its devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..hw.estimate import Request
from ..mapping.place import place
from ..mapping.spreads import FINE
from ..workloads.trace import Trace
from .documents import parse_placement
from .placed import headline, question
from .schema_placement import Placement

SECONDS = 5.0
"""CPU seconds for the solver."""
LEFT = (
    "estimated, not placed on: the node has the fastest device, the cheapest, the one that needs least energy, then "
    f"the next fastest, {FINE} in all"
)


@dataclass(frozen=True)
class Mixed:
    """The placement ``document``, or nothing, and in ``told`` what came of it, one line."""

    document: dict[str, Any] | None
    told: str


def place_study(
    trace: Trace, names: Sequence[str], estimates: Sequence[dict[str, Any]], refused: dict[str, str], request: Request,
    command: str | None, step: Callable[[str], None],
) -> Mixed:  # fmt: skip
    """``trace`` placed for least latency over at most :data:`.spreads.FINE` of the devices ``names``, which
    ``estimates`` are of; up to so many every division of an operator over two is tried. One of each, but of the fastest
    as many as its estimate took to hold the model: then there is a placement where there is an estimate that fits.

    Links are those that :mod:`..mapping.node` takes without a node file. The document says in ``left_out`` which
    devices of the study are not in the node, and why.
    """
    if len(names) < 2:
        return Mixed(None, "no placement: one device can compute the model, and there is nothing to mix")
    chosen = choose(estimates)
    devices = [f"{names[i]}:{n}" for i, n in chosen.items()]
    labels = [e["device"]["name"] for e in estimates]
    step("placing on " + " + ".join(labels[i] + (f" ×{n}" if n > 1 else "") for i, n in chosen.items()))
    try:
        document = place(trace, devices, request, time_limit=SECONDS)
    except InputError as error:
        return Mixed(None, f"no placement: {error}")
    others = {labels[i]: LEFT for i in range(len(names)) if i not in chosen}
    document |= {"left_out": {**others, **refused}, "command": command}
    found = parse_placement(document)
    if isinstance(found, Placement):
        return Mixed(document, f"placed: {headline(found)}")
    return Mixed(document, f"not placed: {question(found)}: {found.status}; {found.reason}")


def choose(estimates: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Which devices make the node, as the study lists them, and how many of each.

    The fastest, the cheapest, the one that needs least energy, then the next fastest, those first whose estimate fits.
    """

    def least(of: Callable[[dict[str, Any]], float | None]) -> list[int]:
        known = [(not e["memory"]["fits"], value, i) for i, e in enumerate(estimates) if (value := of(e)) is not None]
        return [i for _, _, i in sorted(known)]

    fastest = least(lambda e: -e["total"]["tokens_per_s"])
    cheapest = least(lambda e: e["total"]["cost_usd_per_mtoken"])
    thriftiest = least(lambda e: e["total"]["energy_per_token_j"])
    order = list(dict.fromkeys([*fastest[:1], *cheapest[:1], *thriftiest[:1], *fastest]))
    return {i: estimates[i]["device"]["count"] if i == fastest[0] else 1 for i in sorted(order[:FINE])}
