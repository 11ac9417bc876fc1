"""Faults: a replica that dies and returns, a link that becomes slow.

As text: ``replica=3,at=10,for=60`` (without ``for`` it does not come back), ``link,at=5,for=20,factor=0.1`` for all
links, ``link=3,…`` for those of replica 3, ``link=nic-in-3,…`` for one; ``factor=0`` cuts it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError, unknown_name
from .links import Link

if TYPE_CHECKING:
    from .replica import Replica
    from .simulation import Simulation

LONGEST_S = 1e9
"""Seconds of a start or a duration at most."""


@dataclass(frozen=True)
class Fault:
    """Replica ``replica`` is down from ``start_s`` until ``end_s``; infinite: it does not come back."""

    replica: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class LinkFault:
    """Links ``link`` have ``factor`` of their bandwidth from ``start_s`` until ``end_s``.

    ``link``: a link's name, the number of the replica whose links they are, or nothing for all.
    """

    link: str
    start_s: float
    end_s: float
    factor: float


def parse_fault(text: str) -> Fault | LinkFault:
    """See the module's text. Raises ``InputError``."""
    items = [item.partition("=") for item in text.split(",")]
    kind, _, which = items[0]
    accepted = {"replica": ("at", "for"), "link": ("at", "for", "factor")}
    if kind not in accepted:
        raise unknown_name("fault", kind, accepted)
    if kind == "replica" and not (which.isascii() and which.isdigit() and len(which) < 10):
        raise InputError(f"fault {text!r}: replica={which!r} is no number of a replica, from 0")
    given: dict[str, float] = {}
    for key, _, value in items[1:]:
        if key not in accepted[kind] or key in given:
            raise InputError(f"fault {text!r}: {key!r}; accepted once each: {', '.join(accepted[kind])}")
        try:
            given[key] = float(value)
        except ValueError:
            given[key] = math.nan
        most = 1.0 if key == "factor" else LONGEST_S
        if not 0 <= given[key] <= most or (key == "for" and not given[key]):
            raise InputError(f"fault {text!r}: {key}={value!r}; accepted: 0 to {most:g}")
    if missing := [key for key in accepted[kind] if key not in given and key != "for"]:
        raise InputError(f"fault {text!r}: {missing[0]} is missing")
    end = given["at"] + given.get("for", math.inf)
    if kind == "replica":
        return Fault(int(which), given["at"], end)
    return LinkFault(which, given["at"], end, given["factor"])


class Faults:
    """Lets ``faults`` happen in ``simulation``. Raises ``InputError`` for replicas and links that are not there."""

    def __init__(self, simulation: Simulation, faults: Many[Fault | LinkFault]) -> None:
        self.simulation, self.faults = simulation, tuple(faults)
        self._down: dict[int, int] = {}
        count = len(simulation.replicas)
        for fault in self.faults:
            if isinstance(fault, Fault):
                if not 0 <= fault.replica < count:
                    raise InputError(f"fault of replica {fault.replica}: there are {count}, from 0")
            elif not self._links(fault):
                names = ", ".join(link.name for link in simulation.links[:8]) or "none: the policy uses no links"
                raise InputError(f"fault of link {fault.link or '(all)'}: no such link; there are {names}")

    def _links(self, fault: LinkFault) -> list[Link]:
        return [x for x in self.simulation.links if fault.link in ("", x.name, str(x.owner))]

    def begin(self) -> None:
        """Put every fault on the clock."""
        for fault in self.faults:
            down = isinstance(fault, Fault)
            self.simulation.after(fault.start_s, self._fail if down else self._slow, fault)
            if math.isfinite(fault.end_s):
                self.simulation.after(fault.end_s, self._return if down else self._mend, fault)

    def _fail(self, fault: Fault) -> None:
        self._down[fault.replica] = self._down.get(fault.replica, 0) + 1
        if self._down[fault.replica] == 1:
            fail(self.simulation, self.simulation.replicas[fault.replica])

    def _return(self, fault: Fault) -> None:
        self._down[fault.replica] -= 1
        if not self._down[fault.replica]:
            self.simulation.recovered(self.simulation.replicas[fault.replica])

    def _slow(self, fault: LinkFault) -> None:
        for link in self._links(fault):
            link.slow(fault.factor)

    def _mend(self, fault: LinkFault) -> None:
        for link in self._links(fault):
            link.mend(fault.factor)


def fail(simulation: Simulation, replica: Replica) -> None:
    """``replica`` goes down; what was in it, and on its way to or from it, starts over elsewhere."""
    lost = replica.fail() + simulation.policy.failed(replica)
    with simulation.at_once():
        for sequence in lost:
            simulation.place(sequence)
