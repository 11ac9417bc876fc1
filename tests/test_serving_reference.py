"""The engine that jumps against one that does not: every iteration, token and KV block of small random cases."""

from __future__ import annotations

import numpy as np
import pytest
from serving_support import NaiveEngine, StubSteps, cluster_of, random_log

from tokenfab.serving.engine import EngineProfile
from tokenfab.serving.run import simulate
from tokenfab.serving.simulation import Fault, Simulation

TIMES = ("arrival_s", "scheduled_s", "first_s", "last_s", "finish_s")
COUNTS = ("written", "preemptions", "cached", "state")


def both(seed: int, faulty: bool = False) -> tuple[NaiveEngine, Simulation]:
    """A random case on the plain engine and on the simulator."""
    rng = np.random.default_rng(seed)
    log = random_log(rng)
    size = int(rng.choice([1, 2, 4, 16]))
    longest = int((log.prompt + log.output).max())
    blocks = -(-longest // size) + int(rng.choice([-1, 0, 1, 3, 40, 1000]))
    seats, budget = int(rng.choice([1, 2, 3, 100])), int(rng.choice([1, 7, 32, 1000]))
    order = str(rng.choice(["fcfs", "priority", "shortest", "shortest-prompt"]))
    sharing = bool(rng.random() < 0.8)
    tile = int(rng.choice([1, 8]))
    cuts = np.sort(rng.uniform(0, 3, 2 * int(rng.integers(1, 4)))) if faulty else np.empty(0)
    faults = tuple(zip(cuts[::2].tolist(), cuts[1::2].tolist(), strict=True))
    policy = f"vllm:order={order},budget={budget}"
    if tile > 1:
        policy = f"sarathi:order={order},chunk={budget},tile={tile}"
    steps = StubSteps(EngineProfile(keeps=int(rng.integers(2))))
    naive = NaiveEngine(log, steps, max(blocks, 1), size, seats, budget, order, tile, sharing, faults).run()
    cluster = cluster_of(steps, max(blocks, 1), size, seats, prefix_caching=sharing)
    jump = int(rng.choice([1 << 30, 1 << 30, 1 << 30, 3]))
    found = simulate(log, cluster, policy, longest_jump=jump, faults=[Fault(0, *f) for f in faults])
    return naive, found


def difference(naive: NaiveEngine, found: Simulation) -> str:
    """What differs, in words; nothing where all is equal."""
    for name in TIMES:
        mine, theirs = np.array(getattr(naive, name)), np.array(getattr(found.outcome, name))
        if not np.allclose(mine, theirs, rtol=1e-9, atol=1e-12, equal_nan=True):
            i = int(np.flatnonzero(~np.isclose(mine, theirs, rtol=1e-9, atol=1e-12, equal_nan=True))[0])
            return f"{name} of request {i}: {mine[i]} token by token, {theirs[i]}"
    for name in COUNTS:
        mine, theirs = getattr(naive, name), np.array(list(getattr(found.outcome, name)))
        if (mine != theirs).any():
            return f"{name}: {mine} token by token, {theirs}"
    gaps, counts = found.replicas[0].gaps.columns()
    if counts.sum() != len(naive.gaps):
        return f"{len(naive.gaps)} gaps between tokens, {counts.sum()}"
    if not np.isclose((gaps * counts).sum(), sum(naive.gaps), rtol=1e-9):
        return f"gaps between tokens add up to {sum(naive.gaps)}, {(gaps * counts).sum()}"
    return ""


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_the_simulator_does_what_an_engine_does_token_by_token(first):
    preempted = cached = 0
    for seed in range(first, first + 50):
        naive, found = both(seed)
        assert not (said := difference(naive, found)), f"seed {seed}: {said}"
        preempted += naive.preemptions.sum()
        cached += naive.cached.sum()
    assert preempted > 20  # the cases are of the kind that matters
    assert cached > 20


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_the_same_when_the_replica_goes_down_and_comes_back(first):
    for seed in range(first, first + 50):
        naive, found = both(seed, faulty=True)
        assert not (said := difference(naive, found)), f"seed {seed}: {said}"
