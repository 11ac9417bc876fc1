"""Policies that span replicas, their links and faults: numbers by hand, and what holds at every event."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_cluster_support import run_checked, simulation, steps, trace

from tokenfab.errors import InputError
from tokenfab.serving.faults import Fault, LinkFault, parse_fault
from tokenfab.serving.instances import DRAINING, Instances
from tokenfab.serving.links import Link, send
from tokenfab.serving.memory import CacheBytes
from tokenfab.workloads.request_log import plain

CACHE = 2 * 12 * 768 * 2
"""Bytes of cache per token of opt-125m: keys and values, 12 layers of 768 numbers of 2 bytes."""


# -- links ---------------------------------------------------------------------------------------
class Clock:
    """Enough of a simulation for links."""

    def __init__(self):
        import simpy

        self.env, self.links = simpy.Environment(), []

    now = property(lambda self: self.env.now)

    def after(self, delay, call, value=None):
        self.env.timeout(delay, value).callbacks.append(lambda e: call(e.value))


@pytest.fixture
def clock():
    return Clock()


def test_a_transfer_takes_bytes_over_bandwidth_and_latency_and_the_next_one_waits(clock):
    link, there = Link(clock, "a", 0, 100.0, 0.5), []
    for name in "ab":
        send((link,), 200.0, lambda n: there.append((n, clock.now)), name)
    clock.env.run()
    assert there == [("a", 2.5), ("b", 4.5)]
    assert link.busy_s == 4.0
    assert link.sent_bytes == 400.0


def test_two_ends_hold_a_transfer_and_the_slower_one_sets_its_rate(clock):
    fast, slow, there = Link(clock, "f", 0, 100.0, 0.1), Link(clock, "s", 1, 50.0, 0.2), []
    send((fast, slow), 100.0, there.append, "both")
    send((fast,), 100.0, lambda n: there.append(clock.now))
    clock.env.run()
    assert there == ["both", 3.1]  # 2 s behind the first, 1 s of its own, 0.1 s of latency


def test_a_slow_link_keeps_what_was_sent_and_goes_on_at_its_factor(clock):
    link, there = Link(clock, "a", 0, 100.0, 0.0), []
    send((link,), 400.0, lambda n: there.append(clock.now))
    clock.after(1.0, lambda _: link.slow(0.1))  # 100 of 400 are through
    clock.after(11.0, lambda _: link.mend(0.1))  # 200 are
    clock.env.run()
    assert there == [13.0]


def test_a_cut_link_sends_nothing_until_it_is_mended(clock):
    link, there = Link(clock, "a", 0, 100.0, 0.0), []
    link.slow(0.0)
    send((link,), 100.0, lambda n: there.append(clock.now))
    clock.after(5.0, lambda _: link.mend(0.0))
    clock.env.run()
    assert there == [6.0]


def test_a_cancelled_transfer_frees_the_link_for_the_next(clock):
    link, there = Link(clock, "a", 0, 100.0, 0.0), []
    first = send((link,), 1000.0, there.append, "first")
    send((link,), 100.0, lambda n: there.append(clock.now))
    clock.after(1.0, lambda _: first.cancel())
    clock.env.run()
    assert there == [2.0]
    assert link.sent_bytes == 200.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(1, 100)), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_transfers_over_pairs_of_links_never_wait_for_one_another_in_a_circle(sends):
    clock, there = Clock(), []
    links = [[Link(clock, f"{way}{i}", i, 10.0, 0.0) for i in range(4)] for way in ("out", "in")]
    for source, target, size in sends:
        send((links[0][source], links[1][target]), size, there.append, size)
    clock.env.run()
    assert sorted(there) == sorted(size for _, _, size in sends)
    assert sum(link.sent_bytes for link in clock.links) == pytest.approx(2 * sum(there))


# -- Splitwise -------------------------------------------------------------------------------------
def one(prompt=128, output=4):
    return plain([0.0], [prompt], [output])


@pytest.mark.parametrize(("overlap", "parts"), [("none", 1), ("layer", 12)])
def test_a_prompts_cache_reaches_the_token_replica_as_late_as_its_last_layer(overlap, parts):
    sim = simulation(one(), f"splitwise:network=1,overlap={overlap}").done()
    computed = steps().mixed_s([(128, 0)], 1, 0, 0.0, 0.0)
    arrival = computed + 128 * CACHE / 1e9 / parts + 10e-6  # the device's link has 10 µs
    if parts > 1:  # slower than layers come: everything behind the first
        arrival = max(arrival, computed / 12 + 128 * CACHE / 1e9 + 10e-6)
    decoded = sum(steps().decode_s(1, 128.0 + i, 0.0) for i in range(3))
    assert sim.outcome.first_s[0] == pytest.approx(computed)
    assert sim.outcome.last_s[0] == pytest.approx(arrival + decoded)
    told = sim.policy.result()["disaggregation"]
    assert told["transfers"] == 1
    assert told["bytes"] == 128 * CACHE
    assert told["visible_s"] == pytest.approx(arrival - computed)


def test_a_cache_that_is_sent_with_the_computation_shows_its_last_layer_alone():
    computed = steps().mixed_s([(128, 0)], 1, 0, 0.0, 0.0)
    fast = 128 * CACHE / computed * 4 / 1e9  # GB/s: a quarter of the computation
    sim = simulation(one(), f"splitwise:network={fast}").done()
    assert sim.policy.result()["disaggregation"]["visible_s"] == pytest.approx(computed / 4 / 12 + 10e-6)


def test_a_full_token_pool_leaves_tokens_to_the_prompt_replica():
    log = plain([0.0] * 6, [160] * 6, [60] * 6)
    sim = simulation(log, "splitwise:seats=2", blocks=80)
    run_checked(sim)
    assert sim.policy.stayed > 0
    assert sum(sim.outcome.written) == 360


def test_waiting_prompts_beyond_the_overflow_are_computed_at_token_replicas():
    log = plain([0.0] * 20, [200] * 20, [2] * 20)
    sim = simulation(log, "splitwise:overflow=400", blocks=400)
    run_checked(sim)
    assert sim.policy.helped > 0
    assert sim.policy.result()["disaggregation"]["transfers"] == 20 - sim.policy.helped


def test_pools_take_their_sizes_and_devices_from_settings():
    sim = simulation(one(), "splitwise:prompt=3,token=1,token_device=h100-sxm", replicas=4, blocks=None)
    assert [r.role for r in sim.replicas] == ["prompt"] * 3 + ["token"]
    assert sim.replicas[3].steps.device.name == "h100-sxm"
    with pytest.raises(InputError, match="1 replicas leave 1 for prompts and 0 for tokens"):
        simulation(one(), "splitwise:prompt=1", replicas=1)


def test_cache_bytes_are_those_of_the_trace():
    cache = CacheBytes(trace())
    assert cache(1) == CACHE
    assert cache(100) == 100 * CACHE
    assert cache.layers == 12


# -- Llumnix ---------------------------------------------------------------------------------------
def test_a_migration_stands_still_for_its_last_copy_alone():
    # Two long answers on one instance, nothing on the other; the first tick pairs them.
    log = plain([0.0, 0.0], [100, 100], [600, 600])
    sim = simulation(log, "llumnix:period=0.05,low=1e9,high=1e9,network=10,last=16", blocks=1000)
    sim.policy.freeness = lambda r: 0.0 if r.number == 0 else 2e9
    sim.policy.route = lambda s: sim.replicas[0] if not sim.now else sim.replicas[1]
    run_checked(sim)
    told = sim.policy.result()["migration"]
    assert told["migrations"] >= 1
    assert told["stages"] >= 2
    step = steps().decode_s(2, 300.0, 0.0)
    # The first copy takes less than a few steps; the last has the tokens written meanwhile, sixteen at most.
    assert told["stall_s"]["max"] <= 16 * CACHE / 10e9 + 10e-6 + 1e-12
    assert told["stall_s"]["mean"] >= CACHE / 10e9 + 10e-6 - 1e-12
    assert told["stall_s"]["max"] < step
    assert list(sim.outcome.written) == [600, 600]


def test_freeness_is_room_over_batch_and_counts_the_first_of_the_queue_and_urgent_requests():
    log = plain([0.0, 0.0], [160, 160], [50, 50], priority=[0, -1])
    sim = simulation(log, "llumnix:headroom=0.25", replicas=1, blocks=100)
    sim.start()
    while not sim.replicas[0].decoding:
        sim.env.step()
    assert sim.policy.freeness(sim.replicas[0]) == (100 - 20 - 25) * 16 / 2
    sim.policy.instances.state[0] = 3
    assert sim.policy.freeness(sim.replicas[0]) == float("-inf")


def test_requests_are_sent_and_instances_scaled_by_all_who_wait():
    log = plain([0.0, 0.0, 0.0], [160, 160, 160], [50, 50, 50], priority=[0, -1, -1])
    sim = simulation(log, "llumnix:headroom=0.25", replicas=1, blocks=25)
    sim.start()
    while not sim.replicas[0].decoding:
        sim.env.step()
    # Two of 10 blocks are in, the third waits for as many: 25 - 20 - 10 free, and what is kept beside urgent ones.
    waiting = len(sim.replicas[0].waiting)
    assert waiting == 1
    free = sim.replicas[0].free()
    assert sim.policy.whole(sim.replicas[0], urgent=True) == ((free - 10) * 16, 3)
    assert sim.policy.whole(sim.replicas[0]) == ((free - 10 - 6.25) * 16, 3)


def test_instances_are_scaled_by_all_of_them_together():
    """Of three that run one is empty, and two have 4 of 100 blocks free: 108 · 16 tokens for 20 requests are 86 each;
    without the empty one's memory 6."""
    sim = simulation(plain([0.0], [16], [4]), "llumnix:least=3", replicas=4, blocks=100)
    room = {0: (4 * 16.0, 10), 1: (4 * 16.0, 10), 2: (100 * 16.0, 0)}
    for grow, shrink, started, drained in ((87, 1e9, 1, 0), (86, 1e9, 0, 0), (0, 5, 0, 1), (0, 7, 0, 0)):
        these = Instances(sim, sim.replicas, {"least": 3, "grow": grow, "shrink": shrink, "window": 0.0, "start": 1.0})
        these.least = 2  # three run, and one may go
        these.tick(lambda r: room[r.number])
        assert (these.started, these.state.count(DRAINING)) == (started, drained)


def test_instances_are_started_under_load_shut_down_after_it_and_cost_only_their_hours():
    # A burst, then a trickle that needs one instance.
    at = [0.01 * i for i in range(60)] + [5.0 + 0.5 * i for i in range(40)]
    log = plain(at, [300] * 100, [200] * 60 + [20] * 40)
    sim = simulation(log, "llumnix:least=1,window=0.1,start=0.5,period=0.05", replicas=4, blocks=64)
    run_checked(sim)
    told = sim.policy.result()["migration"]
    assert told["started"] >= 1
    assert told["shut_down"] >= 1
    assert 1.0 <= told["instances_mean"] < 4.0
    # By hand: an instance that was never started has no hours.
    alone = simulation(plain([0.0], [16], [4]), "llumnix:least=1", replicas=4)
    alone.done()
    assert alone.policy.result()["migration"]["instance_hours"] == pytest.approx(alone.now / 3600)


# -- faults ----------------------------------------------------------------------------------------
def test_faults_are_read_from_text():
    assert parse_fault("replica=3,at=10,for=60") == Fault(3, 10.0, 70.0)
    assert parse_fault("replica=0,at=1") == Fault(0, 1.0, float("inf"))
    assert parse_fault("link,at=5,for=20,factor=0.1") == LinkFault("", 5.0, 25.0, 0.1)
    assert parse_fault("link=nic-out-1,at=5,factor=0") == LinkFault("nic-out-1", 5.0, float("inf"), 0.0)


@pytest.mark.parametrize(
    "text",
    ["", "disk,at=1", "replica,at=1", "replica=x,at=1", "replica=1", "replica=1,at=-1", "replica=1,at=nan",
     "replica=1,at=1,for=0", "replica=1,at=1,at=2", "link,at=1", "link,at=1,factor=2", "replica=1,at=1,factor=0.5",
     "replica=1,at=1e10", "replica=²,at=1"],
)  # fmt: skip
def test_bad_faults_say_what_is_accepted(text):
    with pytest.raises(InputError):
        parse_fault(text)


def test_faults_of_what_is_not_there_are_refused():
    with pytest.raises(InputError, match="there are 2, from 0"):
        simulation(one(), "vllm", faults=[Fault(2, 0.0, 1.0)])
    with pytest.raises(InputError, match="no such link"):
        simulation(one(), "vllm", faults=[parse_fault("link,at=0,factor=1")])


def test_a_replica_down_twice_at_once_returns_with_the_later_end():
    sim = simulation(one(64, 2), "vllm", 1, faults=[Fault(0, 0.0, 2.0), Fault(0, 1.0, 5.0)]).done()
    assert sim.outcome.first_s[0] == pytest.approx(5.0 + steps().mixed_s([(64, 0)], 1, 0, 0.0, 0.0))


def test_tokens_that_were_out_when_a_replica_died_are_not_written_again():
    log = plain([0.0], [64], [400])
    first = steps().mixed_s([(64, 0)], 1, 0, 0.0, 0.0)
    dies = first + steps().decode_s(1, 64.0, 0.0, 100) + 1e-6
    sim = simulation(log, "vllm", 1, faults=[Fault(0, dies, 1e3)], blocks=100)
    sim.start()
    while sim.env.now < dies:
        sim.env.step()
    (sequence,) = sim.homeless
    # 64 of the prompt and 101 tokens are out; all of them are to be computed again.
    assert (sequence.prompt, sequence.left, sequence.done) == (165, 299, 0)


def test_without_a_replica_that_comes_back_requests_are_rejected_with_a_reason():
    log = plain([0.0, 1.0], [64, 64], [2000 - 64, 4])
    for policy in ("vllm", "llumnix", "splitwise"):
        faults = [Fault(0, 0.5, float("inf")), Fault(1, 0.5, float("inf"))]
        outcome = simulation(log, policy, 2, blocks=200, faults=faults).done().outcome
        assert outcome.reasons == dict.fromkeys((0, 1), "no replica came back to serve it")


def test_a_request_longer_than_the_cache_of_either_pool_is_rejected():
    log = plain([0.0, 0.0], [64, 900], [10, 200])
    for policy in ("vllm", "llumnix", "splitwise"):
        outcome = simulation(log, policy, 2, blocks=64).done().outcome
        assert outcome.written[0] == 10
        assert outcome.reasons == {1: "900 + 200 tokens exceed the KV cache of 64 × 16"}


POLICIES = (
    "vllm", "splitwise:network=2", "splitwise:network=0.05,seats=3", "splitwise:overlap=none,overflow=300",
    "llumnix:period=0.02,low=200,high=200,network=1", "llumnix:period=0.02,least=1,window=0.02,start=0.1,network=0.1",
)  # fmt: skip


@st.composite
def workloads(draw):
    n = draw(st.integers(1, 24))
    arrival = sorted(draw(st.lists(st.floats(0, 0.5), min_size=n, max_size=n)))
    prompt = draw(st.lists(st.integers(1, 600), min_size=n, max_size=n))
    output = draw(st.lists(st.integers(1, 120), min_size=n, max_size=n))
    priority = draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n))
    return plain(arrival, prompt, output, priority=priority)


@st.composite
def troubles(draw, links=True):
    faults = []
    for _ in range(draw(st.integers(0, 3))):
        start, length = draw(st.floats(0, 0.6)), draw(st.one_of(st.floats(1e-3, 0.6), st.just(float("inf"))))
        if links and draw(st.booleans()):
            faults.append(LinkFault(draw(st.sampled_from(["", "0", "1"])), start, start + min(length, 1.0),
                                    draw(st.sampled_from([0.0, 0.01, 0.5]))))  # fmt: skip
        else:
            faults.append(Fault(draw(st.integers(0, 2)), start, start + length))
    return faults


@pytest.mark.parametrize("policy", POLICIES)
@given(log=workloads(), data=st.data(), blocks=st.integers(24, 90))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_fails_every_request_ends_once_and_no_block_is_lost(policy, log, data, blocks):
    faults = data.draw(troubles(links=policy != "vllm"))
    sim = simulation(log, policy, 3, blocks=blocks, seats=6, faults=faults)
    outcome = run_checked(sim)
    assert set(outcome.reasons) == {i for i, s in enumerate(outcome.state) if s == 2}
    for i, state in enumerate(outcome.state):
        if state == 1:
            assert outcome.arrival_s[i] <= outcome.first_s[i] <= outcome.last_s[i]
            assert outcome.written[i] == log.output[i]


@pytest.mark.parametrize("policy", POLICIES)
@given(log=workloads(), data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_jumps_over_decode_steps_change_nothing(policy, log, data):
    faults = data.draw(troubles(links=policy != "vllm"))
    one, many = (
        simulation(log, policy, 3, blocks=50, seats=6, faults=faults, longest_jump=k).done().outcome
        for k in (1, 1 << 30)
    )
    for name in ("first_s", "last_s", "finish_s", "preemptions"):
        np.testing.assert_allclose(np.array(getattr(one, name)), np.array(getattr(many, name)), rtol=1e-9)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_run(policy):
    rng = np.random.default_rng(5)
    log = plain(np.sort(rng.uniform(0, 1, 40)), rng.integers(1, 500, 40), rng.integers(1, 100, 40))
    faults = [Fault(1, 0.3, 0.6)]
    a, b = (simulation(log, policy, 3, blocks=50, faults=faults).done().outcome for _ in range(2))
    assert a.finish_s.tobytes() == b.finish_s.tobytes()
    assert a.first_s.tobytes() == b.first_s.tobytes()
