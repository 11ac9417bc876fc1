"""Small clusters for the tests of serving, and the invariants that hold at every event."""

from __future__ import annotations

from collections import Counter
from functools import cache

from tokenfab.hw.devices import load_device
from tokenfab.serving.cluster import Cluster
from tokenfab.serving.engine import EngineProfile
from tokenfab.serving.memory import KvMemory
from tokenfab.serving.outcome import FINISHED, REJECTED
from tokenfab.serving.policies import parse_policy
from tokenfab.serving.simulation import Simulation
from tokenfab.serving.steps import StepModel
from tokenfab.workloads.load import load_trace

MODEL, DEVICE = "opt-125m", "a100-80g-sxm"
BLOCK = 16


@cache
def trace():
    return load_trace(MODEL)


@cache
def steps(device=DEVICE, budget=256):
    return StepModel(trace(), load_device(device), profile=EngineProfile(budget=budget), longest=2048)


def small(blocks=64, seats=16):
    """A cache of so many blocks."""
    return KvMemory.given(blocks, BLOCK, seats)


def simulation(log, policy, replicas=2, *, blocks=64, seats=16, budget=256, device=DEVICE, **more):
    """``log`` under ``policy`` on replicas of a tiny model with a tiny cache; tables of step times are shared."""
    kind, settings = parse_policy(policy)
    cluster = Cluster(
        trace(), load_device(device), replicas=replicas, profile=EngineProfile(budget=budget, seats=seats),
        longest=2048, blocks=small(blocks, seats) if blocks else None,
    )  # fmt: skip
    made = kind(cluster, **settings)
    made.step_model = lambda: steps(device, budget)
    return Simulation(log, made, longest=2048, **more)


def transfers(sim):
    """Caches on their way: of Splitwise's moves, of Llumnix's migrations."""
    policy = sim.policy
    return list(getattr(policy, "moves", {}).values()) + list(getattr(policy, "active", []))


def places(sim):
    """Where each request is: (request, what holds it), once per place."""
    found = []
    for r in sim.replicas:
        found += [(s.index, ("waiting", r.number)) for _, _, s in r.waiting]
        found += [(s.index, ("prefilling", r.number)) for s in r.prefilling]
        found += [(s.index, ("decoding", r.number)) for _, _, s in r.decoding]
        found += [(s.index, ("entering", r.number)) for s in r.entering]
        found += [(s.index, ("parked", r.number)) for s in getattr(r.tiers, "moving", ())] if r.tiers else []
    found += [(s.index, ("homeless", -1)) for s in sim.homeless]
    found += [(m.sequence.index, ("sent", m.source.number)) for m in transfers(sim) if m.held is not None]
    return found


def own_blocks(replica, sequence):
    if sequence.place == 2 and sequence.grows:
        return -(-replica.context(sequence) // replica.pool.size) - sequence.shared
    return sequence.blocks


def check(sim):
    """Requests are in one place each; blocks and seats are those of somebody. What holds at every event."""
    where = Counter(i for i, _ in places(sim))
    assert not where or max(where.values()) == 1, [p for p in places(sim) if where[p[0]] > 1]
    states = sim.outcome.state
    arrived = {i for i, at in enumerate(sim.outcome.arrival_s) if at == at}
    assert {i for i in arrived if states[i] not in (FINISHED, REJECTED)} == set(where)
    assert sim.ended == sum(s in (FINISHED, REJECTED) for s in states)
    for r in sim.replicas:
        pool = r.pool
        here = [s for _, _, s in r.decoding] + r.prefilling + r.entering
        blocks = sum(own_blocks(r, s) for s in here)
        blocks += sum(max(depths) for depths in pool._depths.values() if depths)
        moves = transfers(sim)
        blocks += sum(m.blocks for m in moves if m.target is r)
        blocks += sum(m.held[0] for m in moves if m.held is not None and m.source is r)
        seats = sum(m.target is r and m.blocks > 0 for m in moves) + len(r.entering)
        if r.tiers:
            blocks += r.tiers.blocks_here()
            seats += r.tiers.seats_here()
        assert pool.held == blocks, (r.number, pool.held, blocks)
        assert pool.held >= 0
        assert pool.held + pool.kept <= pool.total
        assert r.reserved == seats
        assert len(r.prefilling) + len(r.decoding) + r.reserved <= r.seats
        load = len(here) + len(r.waiting) + sum(m.target is r and m.blocks > 0 for m in moves)
        load += len(r.tiers.moving) if r.tiers else 0
        assert r.load == load, (r.number, r.load, load)
        assert all(s.home is r for _, _, s in r.decoding)


def run_checked(sim):
    """``sim`` to its end, event by event, every one followed by :func:`check`; then nothing is held any more."""
    sim.start()
    while sim.env.peek() < float("inf"):
        sim.env.step()
        check(sim)
    sim.finish()
    assert not transfers(sim)
    states = sim.outcome.state
    assert all(s in (FINISHED, REJECTED) for s in states)
    for r in sim.replicas:
        if r.up:
            assert r.pool.held == 0
            assert r.load == 0
            assert r.reserved == 0
    return sim.outcome
