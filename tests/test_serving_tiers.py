"""Swapped sequences and spilled prefixes: seconds by hand, and what holds at every event."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_cluster_support import BLOCK, run_checked, simulation, steps

from tokenfab.serving.faults import Fault, LinkFault
from tokenfab.serving.tiers import Store
from tokenfab.workloads.request_log import plain

CACHE = 2 * 12 * 768 * 2
"""Bytes of cache per token of opt-125m: keys and values, 12 layers of 768 numbers of 2 bytes."""
PCIE, LATENCY = 32e9, 10e-6
"""Of the A100's device file."""


def decoded(n, first, steps_, longer=0.0):
    return steps(budget=512).decode_s(n, first, longer, steps_)


def prompts(tokens):
    """Both prompts together."""
    return steps(budget=512).mixed_s([(tokens, 0), (tokens, 0)], 2, 0, 0.0, 0.0)


def test_a_swapped_sequence_leaves_and_returns_at_the_links_rate_and_computes_nothing_twice():
    # Two sequences of 8 blocks that both want another; the 17th is the last. The younger goes with 128 tokens in its
    # cache, and comes back when the older has ended.
    sim = simulation(plain([0.0, 0.0], [128, 128], [40, 40]), "vllm:preempt=swap", 1, blocks=17, budget=512)
    run_checked(sim)
    o, told = sim.outcome, sim.policy.result()["tiers"]
    assert list(o.preemptions) == [0, 1]
    assert (told["swapped_out"], told["swapped_in"]) == (1, 1)
    assert told["host_link_busy_s"] == pytest.approx(2 * 128 * CACHE / PCIE)
    older = prompts(128) + decoded(1, 128.0, 39)
    assert o.last_s[0] == pytest.approx(older)
    assert o.last_s[1] == pytest.approx(older + 128 * CACHE / PCIE + LATENCY + decoded(1, 128.0, 39))
    assert sim.replicas[0].runs.columns().tokens.sum() == 256


def test_decoding_waits_for_the_copy_whose_blocks_it_needs():
    # With 128 tokens in their caches two sequences want a ninth block; all 16 are taken.
    sim = simulation(
        plain([0.0, 0.0], [120, 120], [40, 40]), "vllm:preempt=swap,host_gb_s=0.5", 1, blocks=16, budget=512
    )
    run_checked(sim)
    out = 128 * CACHE / 0.5e9 + LATENCY
    assert sim.outcome.last_s[0] == pytest.approx(prompts(120) + decoded(2, 120.0, 8) + out + decoded(1, 128.0, 31))


def test_a_host_without_room_lets_sequences_recompute():
    log = plain([0.0, 0.0], [128, 128], [40, 40])
    sim = simulation(log, "vllm:preempt=swap,host_gb=0.001", 1, blocks=17, budget=512)
    run_checked(sim)
    assert sim.policy.result()["tiers"]["swapped_out"] == 0
    assert list(sim.outcome.preemptions) == [0, 1]
    assert sim.replicas[0].runs.columns().tokens.sum() == 256 + 129


def sessions(turns=2, n=2, prefix=160, gap=1.0):
    """``n`` prompts with prefixes of their own, each of them asked ``turns`` times, in turns."""
    return plain(
        [gap * i for i in range(turns * n)], [prefix + 16] * (turns * n), [2] * (turns * n),
        prefix=[i % n for i in range(turns * n)], prefix_tokens=[prefix] * n, prefix_parent=[-1] * n,
    )  # fmt: skip


@pytest.mark.parametrize(("spill", "rate"), [("host", PCIE), ("ssd", 1e9)])
def test_an_evicted_prefix_is_fetched_and_only_the_rest_is_computed(spill, rate):
    # 12 blocks hold one prompt of 11: each turn evicts the other's prefix.
    host = 0.02 if spill == "host" else 10.5 * BLOCK * CACHE / 1e9  # GB: both prefixes, or one of 10 blocks
    sim = simulation(sessions(), f"vllm:spill={spill},host_gb={host},ssd_gb_s=1", 1, blocks=12, budget=512)
    run_checked(sim)
    o, told = sim.outcome, sim.policy.result()["tiers"]
    assert told["fetched_blocks"] >= 18
    assert list(o.cached)[:2] == [0, 0]
    assert min(list(o.cached)[2:]) >= 144
    s = steps(budget=512)
    blocks = o.cached[3] // BLOCK
    near = 10 - blocks  # none of it stayed on the device
    assert near == 0
    expected = 160 * CACHE / rate + LATENCY + s.mixed_s([(16, 160)], 1, 0, 0.0, 0.0)
    if spill == "host":
        assert o.first_s[3] - o.arrival_s[3] == pytest.approx(expected)
    else:  # some of it was still in the host
        assert s.mixed_s([(16, 160)], 1, 0, 0.0, 0.0) < o.first_s[3] - o.arrival_s[3] <= expected


def test_a_store_drops_the_ends_of_what_was_used_least_recently():
    store = Store(10)
    assert store.put(1, 0, 6) == []
    assert store.put(2, 2, 6) == []
    assert store.until(1, 0) == 6
    assert store.until(2, 0) == 0
    assert store.until(2, 2) == 6
    store.touch(1)  # 2 is the older one now
    assert store.put(3, 0, 3) == [(2, 3, 6)]
    assert store.until(2, 2) == 3
    assert store.free == 0
    assert store.put(1, 6, 7) == [(2, 2, 3)]
    assert store.until(1, 0) == 7
    assert store.until(3, 0) == 3


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(1, 6)), max_size=40), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_a_store_never_holds_more_than_its_capacity(puts, capacity):
    store = Store(capacity)
    for node, low, length in puts:
        store.put(node, low, low + length)
        assert 0 <= store.held == sum(e.blocks for e in store.extents.values()) <= capacity
        assert all(e.blocks > 0 for e in store.extents.values())


POLICIES = (
    "vllm:preempt=swap", "vllm:preempt=swap,host_gb=0.03,host_gb_s=0.2", "sarathi:chunk=64,tile=16,preempt=swap",
    "vllm:spill=host,host_gb=0.03,preempt=swap", "vllm:spill=ssd,host_gb=0.005,host_gb_s=1",
)  # fmt: skip


@st.composite
def prefixed(draw):
    n, nodes = draw(st.integers(1, 24)), draw(st.integers(1, 5))
    parent = [draw(st.integers(-1, i - 1)) for i in range(nodes)]
    tokens: list[int] = []
    for p in parent:
        tokens.append((tokens[p] if p >= 0 else 0) + draw(st.integers(1, 60)))
    node = [draw(st.integers(-1, nodes - 1)) for _ in range(n)]
    prompt = [draw(st.integers(max(tokens[k], 1) if k >= 0 else 1, 400)) for k in node]
    return plain(
        sorted(draw(st.lists(st.floats(0, 0.4), min_size=n, max_size=n))), prompt,
        [draw(st.integers(1, 120)) for _ in range(n)], prefix=node, prefix_tokens=tokens, prefix_parent=parent,
    )  # fmt: skip


@st.composite
def troubles(draw):
    faults: list[Fault | LinkFault] = []
    for _ in range(draw(st.integers(0, 2))):
        start, length = draw(st.floats(0, 0.5)), draw(st.floats(1e-3, 0.5))
        if draw(st.booleans()):
            faults.append(LinkFault("", start, start + length, draw(st.sampled_from([0.0, 0.1]))))
        else:
            faults.append(Fault(draw(st.integers(0, 1)), start, start + length))
    return faults


@pytest.mark.parametrize("policy", POLICIES)
@given(log=prefixed(), faults=troubles(), blocks=st.integers(34, 60))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_with_tiers_every_request_ends_once_and_no_block_is_lost(policy, log, faults, blocks):
    sim = simulation(log, policy, 2, blocks=blocks, seats=6, faults=faults)
    outcome = run_checked(sim)
    assert list(outcome.state) == [1] * len(log)
    assert list(outcome.written) == log.output.tolist()
    for r in sim.replicas:
        assert r.tiers.host.other == 0
        assert r.tiers.host.free >= 0
        assert not r.tiers.moving


@pytest.mark.parametrize("policy", POLICIES)
@given(log=prefixed(), faults=troubles())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_jumps_over_decode_steps_change_nothing(policy, log, faults):
    one, many = (
        simulation(log, policy, 2, blocks=36, seats=6, faults=faults, longest_jump=k).done().outcome
        for k in (1, 1 << 30)
    )
    for name in ("first_s", "last_s", "preemptions", "cached"):
        np.testing.assert_allclose(np.array(getattr(one, name)), np.array(getattr(many, name)), rtol=1e-9)
