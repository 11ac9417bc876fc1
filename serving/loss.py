"""What a replica that goes down loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .sequence import Sequence

if TYPE_CHECKING:
    from .replica import Replica


def thrown_out(replica: Replica) -> list[Sequence]:
    """Empty ``replica``: every sequence that was there, without its cache, to start over with the tokens it has."""
    lost = [s for _, _, s in sorted(replica.waiting, key=lambda w: w[:2])]
    here = [s for _, _, s in replica.decoding] + replica.held + replica.prefilling
    for sequence in sorted(here, key=lambda s: s.serial):
        held = sequence in replica.held
        replica.withdraw(sequence)
        if held:  # the answer is lost before it was returned: its last token is written again
            sequence.prompt, sequence.left = sequence.prompt - 1 + sequence.left, 1
            replica.simulation.outcome.last_s[sequence.index] = float("nan")
        lost.append(sequence)
    lost += replica.entering + (replica.tiers.fail() if replica.tiers is not None else [])
    for sequence in lost:
        if sequence.parked or sequence in replica.entering:  # it has tokens, the last of them not cached
            sequence.prompt = sequence.done + 1
        sequence.done = sequence.blocks = sequence.shared = 0
        sequence.used, sequence.parked = {}, False
    replica.waiting, replica.entering = [], []
    replica.load = replica.reserved = 0
    replica.pool.clear()
    return lost
