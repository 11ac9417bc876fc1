"""What a replica draws at a moment of a simulation; what it drew in all is worked out afterwards (:mod:`.metrics`)."""

from __future__ import annotations

import numpy as np

from .replica import Replica


def power_w(replica: Replica) -> float:
    """Watts of all devices of ``replica`` now, on average over the iteration that runs: static + dynamic joules / its
    seconds; what it draws idle while it waits; nothing while it is down."""
    steps, running = replica.steps, replica.running()
    if running is None:
        return steps.idle_w if replica.up else 0.0
    plan, seconds, passed = running
    n = len(replica.decoding) if plan.decode else 0
    mean = replica.mean + passed if n else 0.0
    if plan.chunks:
        chunks, ends = plan.parts()
        tokens = sum(q for q, _ in chunks)
        joules = steps.chunks_j(chunks, ends, n, mean, replica.longer if n else 0.0)
        found = steps.mixed_j(*(np.array([x]) for x in (tokens + n, ends, n, mean, joules)))
    else:
        found = steps.decode_j(np.array([n]), np.array([mean]))
    return steps.static_w + float(found[0]) * replica.energy_scale / seconds
