"""Laws of the serving room over random requests, policies, cache sizes, replicas and faults."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_support import StubSteps, cluster_of, random_log

from tokenfab.hw.devices import load_device
from tokenfab.serving.cluster import Cluster
from tokenfab.serving.memory import KvMemory
from tokenfab.serving.outcome import FINISHED, REJECTED, WAITING
from tokenfab.serving.policies import parse_policy, policies
from tokenfab.serving.run import serve, simulate
from tokenfab.serving.simulation import Fault, Simulation
from tokenfab.workloads.capture import capture
from tokenfab.workloads.request_log import RequestLog, plain

ALL = sorted(policies())
WITHIN_A_REPLICA = [name for name in ("orca", "sarathi", "vllm") if name in ALL]
"""Policies whose sequences are always in one of a replica's three places."""
TIMES = ("arrival_s", "scheduled_s", "first_s", "last_s", "finish_s")
COUNTS = ("written", "preemptions", "cached", "replica", "state")
cases = st.integers(0, 10**6)


@cache
def real() -> Cluster:
    """A small model on a real device; its tables fill once."""
    return Cluster(capture("opt-125m"), load_device("a100-80g-sxm"), longest=2048)


def case(seed: int, faults: bool = False) -> tuple[RequestLog, Cluster, tuple[Fault, ...]]:
    """Requests, replicas with few blocks and seats, and faults that end."""
    rng = np.random.default_rng(seed)
    log = random_log(rng)
    fast = plain(
        log.arrival_s / 30, log.prompt, log.output, priority=log.priority, prefix=log.prefix, extends=log.extends,
        after=log.after, think_s=log.think_s / 30, prefix_tokens=log.prefix_tokens, prefix_parent=log.prefix_parent,
    )  # fmt: skip
    size = int(rng.choice([1, 4, 16]))
    longest = int((log.prompt + log.output).max())
    blocks = max(-(-longest // size) + int(rng.choice([-1, 0, 2, 20, 1000])), 1)
    memory = KvMemory.given(blocks, size, int(rng.choice([1, 3, 50])))
    cluster = replace(
        real(), replicas=int(rng.integers(1, 4)), blocks=memory, profile=replace(real().profile, block=size)
    )
    found = []
    for k in range(cluster.replicas if faults else 0):
        cuts = np.sort(rng.uniform(0, 0.1, 2 * int(rng.integers(0, 3))))
        found += [Fault(k, *pair) for pair in zip(cuts[::2].tolist(), cuts[1::2].tolist(), strict=True)]
    return fast, cluster, tuple(found)


def build(name: str, log: RequestLog, cluster: Cluster, **more) -> Simulation:
    kind, given_ = parse_policy(name)
    return Simulation(log, kind(cluster, **given_), longest=cluster.longest, **more)


def check_times(simulation: Simulation) -> None:
    o, log = simulation.outcome, simulation.log
    arrival, scheduled, first, last, finish = (np.array(getattr(o, name)) for name in TIMES)
    state = np.frombuffer(bytes(o.state), dtype=np.uint8)
    done = state == FINISHED
    assert not np.isnan(np.stack([arrival, scheduled, first, last, finish])[:, done]).any()
    for earlier, later in ((log.arrival_s, arrival), (arrival, scheduled), (scheduled, first), (first, last)):
        both = ~(np.isnan(earlier) | np.isnan(later))
        assert (earlier[both] <= later[both] * (1 + 1e-12) + 1e-12).all()
    assert (last[done] <= finish[done]).all()
    assert (first[~np.isnan(first)] > arrival[~np.isnan(first)]).all()  # a token takes time
    assert (np.array(o.written)[done] == log.output[done]).all()
    assert set(o.reasons) == set(np.flatnonzero(state == REJECTED).tolist())
    assert all(o.reasons.values())


def ask_while_running(simulation: Simulation, question) -> None:
    """``question(simulation)`` after every event of a run."""
    step = simulation.env.step

    def asked() -> None:
        step()
        question(simulation)

    simulation.env.step = asked
    simulation.run()


@pytest.mark.parametrize("name", ALL)
@given(seed=cases, stop=st.floats(0.001, 0.2))
@settings(max_examples=25)
def test_requests_in_are_finished_rejected_or_in_flight_whenever_the_clock_stops(name, seed, stop):
    log, cluster, faults = case(seed, faults=True)
    simulation = simulate(log, cluster, name, until_s=stop, faults=faults)
    check_times(simulation)
    state = np.frombuffer(bytes(simulation.outcome.state), dtype=np.uint8)
    arrived = ~np.isnan(np.array(simulation.outcome.arrival_s))
    assert (state[~arrived] == WAITING).all()
    assert simulation.ended == (state != WAITING).sum()
    if name in WITHIN_A_REPLICA:
        here = [s.index for s in simulation.homeless]
        for r in simulation.replicas:
            mine = [w[2].index for w in r.waiting] + [s.index for s in r.prefilling]
            mine += [d[2].index for d in r.decoding]
            assert r.load == len(mine)
            here += mine
        assert sorted(here) == np.flatnonzero(arrived & (state == WAITING)).tolist()


@pytest.mark.parametrize("name", ALL)
@given(seed=cases)
@settings(max_examples=25)
def test_every_request_ends_once_and_all_blocks_are_given_back_faults_or_not(name, seed):
    log, cluster, faults = case(seed, faults=True)
    simulation = simulate(log, cluster, name, faults=faults)
    check_times(simulation)
    state = np.frombuffer(bytes(simulation.outcome.state), dtype=np.uint8)
    assert (state != WAITING).all()
    assert simulation.ended == len(log)
    assert not any("came back" in reason for reason in simulation.outcome.reasons.values())  # all came back
    for r in simulation.replicas:
        assert (r.pool.held, r.load, len(r.waiting), len(r.prefilling), len(r.decoding)) == (0, 0, 0, 0, 0)
        assert 0 <= r.pool.kept <= r.pool.total
        assert r.pool.peak <= r.pool.total
        assert not r.longer
        assert not r.mean


@pytest.mark.parametrize("name", ALL)
@given(seed=cases)
@settings(max_examples=15)
def test_blocks_are_held_kept_or_free_at_every_event(name, seed):
    log, cluster, faults = case(seed, faults=True)

    def blocks(simulation: Simulation) -> None:
        for r in simulation.replicas:
            pool = r.pool
            assert min(pool.held, pool.kept) >= 0
            assert pool.held + pool.kept <= pool.total
            if name in WITHIN_A_REPLICA:
                tree = sum(max(depths, default=0) for depths in pool._depths.values())
                own = sum(s.blocks for s in r.prefilling)
                for _, _, s in r.decoding:
                    own += -(-r.context(s) // pool.size) - s.shared if s.grows else s.blocks
                assert pool.held == tree + own
                assert pool.kept == sum(pool._resident.values()) - tree

    ask_while_running(build(name, log, cluster, faults=faults), blocks)


@pytest.mark.parametrize("name", ALL)
@given(seed=cases)
@settings(max_examples=15)
def test_jumping_over_decode_steps_equals_taking_them_one_by_one(name, seed):
    log, cluster, faults = case(seed, faults=True)
    jumped, stepped = (simulate(log, cluster, name, faults=faults, longest_jump=n) for n in (1 << 30, 1))
    for field in TIMES:
        one, other = (np.array(getattr(s.outcome, field)) for s in (jumped, stepped))
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12, err_msg=field)
    for field in COUNTS:
        assert list(getattr(jumped.outcome, field)) == list(getattr(stepped.outcome, field)), field
    gaps = [sum((g * c).sum() for g, c in (r.gaps.columns() for r in s.replicas)) for s in (jumped, stepped)]
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ALL)
@given(seed=cases)
@settings(max_examples=5)
def test_the_same_seed_gives_the_same_document_byte_for_byte(name, seed):
    log, cluster, faults = case(seed, faults=True)
    texts = []
    for _ in range(2):
        document = serve(log, cluster, name, seed=seed, faults=faults, slo={"ttft": 0.05})[0]
        texts.append(json.dumps({k: v for k, v in document.items() if k != "wall_s"}))
    assert texts[0] == texts[1]


@given(seed=cases, gone=st.floats(0.0, 0.1))
@settings(max_examples=25)
def test_requests_end_with_a_reason_where_no_replica_comes_back(seed, gone):
    log, cluster, _ = case(seed)
    faults = [Fault(k, gone, float("inf")) for k in range(cluster.replicas)]
    simulation = simulate(log, cluster, "vllm", faults=faults)
    check_times(simulation)
    state = Counter(simulation.outcome.state)
    assert state[FINISHED] + state[REJECTED] == len(log)
    late = np.array(simulation.outcome.finish_s) > gone
    assert not late.any()


@given(seed=cases, name=st.sampled_from(WITHIN_A_REPLICA))
def test_twice_as_fast_devices_never_lower_throughput_first_come_first_served(seed, name):
    rng = np.random.default_rng(seed)
    log = random_log(rng)
    size = int(rng.choice([1, 4, 16]))
    blocks = -(-int((log.prompt + log.output).max()) // size) + int(rng.choice([0, 2, 20, 1000]))
    seats = int(rng.choice([1, 3, 50]))
    ends = []
    for scale in (1.0, 0.5):
        simulation = simulate(log, cluster_of(StubSteps(scale=scale), blocks, size, seats), name)
        ends.append(np.nanmax(simulation.outcome.finish_s))
        assert set(simulation.outcome.state) == {FINISHED}
    assert ends[1] <= ends[0] * (1 + 1e-12)
