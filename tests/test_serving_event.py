"""Iterations at the event level: one request against its estimate on every kind of device, layers read ahead, and a
host's link that replicas, layers and caches share."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_support import random_log
from test_serving_steps import CASES, captured

from tokenfab.cli import run
from tokenfab.errors import InputError
from tokenfab.hw.cost import kind_modules
from tokenfab.hw.devices import load_device
from tokenfab.hw.estimate import Request, estimate
from tokenfab.hw.event import EventLevel
from tokenfab.serving.bus import fair_level
from tokenfab.serving.cluster import Cluster
from tokenfab.serving.faults import Fault
from tokenfab.serving.memory import KvMemory
from tokenfab.serving.run import serve, simulate
from tokenfab.serving.streamed import EventSteps, StreamedSteps
from tokenfab.workloads.request_log import plain
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace

LINK = 7e9 * 0.9
"""Bytes per second of the A6000's drive and host memory, over its link."""


@cache
def offloaded(model: str, *told: str) -> Trace:
    return apply_techniques(captured(model), list(told))


def cluster(trace: Trace, device: str, level: str = "event", blocks: int = 4000, **more) -> Cluster:
    room = KvMemory.given(blocks, 16, 64)  # whether the model fits is not the question
    return Cluster(trace, load_device(device), longest=2048, blocks=room, level=level, **more)


def one(on: Cluster, prompt: int = 700, output: int = 90) -> tuple[float, float]:
    outcome = simulate(plain([0.0], prompt, output), on, "vllm").outcome
    return outcome.first_s[0], outcome.finish_s[0]


# -- one request on a device that nothing else wants ---------------------------------------------------------
def test_there_is_a_case_of_every_kind_of_device():
    assert {load_device(c.device).kind for c in CASES.values()} >= set(kind_modules())


@pytest.mark.parametrize("name", CASES)
def test_one_request_at_the_event_level_takes_what_the_closed_form_says_within_a_hundredth(name):
    case = CASES[name]
    trace = offloaded(case.model, *case.applied)
    device = load_device(case.device)
    closed = estimate(trace, device, Request(1, 700, 90))
    event = estimate(trace, device, Request(1, 700, 90), level=EventLevel())
    assert event.latency_s == pytest.approx(closed.latency_s, rel=0.01)
    first, finish = one(cluster(trace, case.device))
    of_closed = one(cluster(trace, case.device, "closed"))
    assert finish == pytest.approx(of_closed[1], rel=0.01)
    assert first == pytest.approx(of_closed[0], rel=0.01)
    assert finish == pytest.approx(event.latency_s, rel=0.01)
    assert finish > of_closed[1]  # never faster than the closed form


STREAMED = (
    ("opt-6.7b", "a6000-ssd", "offload:what=weights,kv=1"), ("opt-6.7b", "m1-max-flash", "offload:what=weights"),
    ("opt-6.7b", "t4-ssd", "offload:what=weights,miss=0.8,cached=0.2,kv=0.5,ahead=2"),
)  # fmt: skip


@pytest.mark.parametrize(("model", "device", "told"), STREAMED)
def test_one_request_whose_layers_are_read_ahead_takes_what_its_estimate_says(model, device, told):
    trace = offloaded(model, told)
    event = estimate(trace, load_device(device), Request(1, 300, 2), level=EventLevel())
    on = cluster(trace, device)
    assert isinstance(on.steps(), StreamedSteps)
    first, finish = one(on, 300, 2)
    assert first == pytest.approx(event.prefill.latency_s, rel=0.01)
    assert finish == pytest.approx(event.latency_s, rel=0.01)
    assert finish < one(cluster(trace, device, "closed"), 300, 2)[1]  # what is read ahead is hidden


def test_a_laptop_serves_faster_by_what_it_hides():
    """Closed: reads and operators one after another; event: the longer of both, and the first layer's reads."""
    trace, plain_trace = offloaded("opt-6.7b", "offload:what=weights"), captured("opt-6.7b")
    closed, event = (cluster(trace, "m1-max-flash", level).steps() for level in ("closed", "event"))
    near = cluster(plain_trace, "m1-max-flash", "closed").steps().decode_s(1, 200, 0.0)
    reading = (32 * (4 * 4096**2 + 2 * 4096 * 16384) + 50272 * 4096) * 2 / 6e9
    assert closed.decode_s(1, 200, 0.0) == pytest.approx(near + reading, rel=0.01)
    assert event.decode_s(1, 200, 0.0) == pytest.approx(max(near, reading) + min(near, reading) / 33, rel=0.01)


def test_what_fires_is_read_when_it_is_known_and_leaves_the_tables_as_they_are():
    sparse = "activation-sparsity:active=0.03,predictor=0.0194", "offload:what=ffn,miss=0.8,cached=0.24,bundle=1"
    steps = cluster(offloaded("opt-6.7b", *sparse), "m1-max-flash").steps()
    assert isinstance(steps, EventSteps)
    assert not isinstance(steps, StreamedSteps)


@pytest.mark.parametrize(("model", "device", "told"), STREAMED)
def test_steps_at_once_equal_steps_one_by_one(model, device, told):
    on = cluster(offloaded(model, told), device)
    log = plain([0.0, 0.1, 2.0, 30.0], [700, 50, 300, 200], [90, 20, 30, 60])
    many, single = (simulate(log, on, "vllm", longest_jump=jump).outcome for jump in (1 << 30, 1))
    for name in ("first_s", "finish_s"):
        np.testing.assert_allclose(np.array(getattr(many, name)), np.array(getattr(single, name)), rtol=1e-9)


# -- a link that is shared -----------------------------------------------------------------------------------
@given(st.lists(st.floats(0, 1), max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_link_is_used_up_or_everybody_has_what_is_wanted(wants):
    level = fair_level(wants)
    given_out = sum(min(w, level) for w in wants)
    assert given_out == pytest.approx(min(sum(wants), 1.0))


def test_shares_by_hand():
    assert fair_level([1.0, 1.0]) == 0.5
    assert fair_level([0.2, 1.0]) == pytest.approx(0.8)
    assert fair_level([0.2, 1.0, 1.0]) == pytest.approx(0.4)
    assert fair_level([0.2, 0.3]) == 1.0
    assert fair_level([]) == 1.0


def test_replicas_that_wait_for_their_layers_slow_one_another_and_others_do_not():
    """Four replicas with a request each: on the A6000 a step is all link, so two on a host take twice, four four times
    as long; who is alone with requests has the link alone."""
    trace = offloaded("opt-6.7b", "offload:what=weights")
    log = plain([0.0] * 4, [100] * 4, [6] * 4)
    found = {}
    for per_host in (1, 2, 4):
        on = cluster(trace, "a6000-ssd", replicas=4, per_host=per_host)
        outcome = simulate(log, on, "vllm:route=turns").outcome
        assert np.ptp(outcome.finish_s) < 1e-9
        found[per_host] = outcome.finish_s[0]
    assert found[1] == pytest.approx(one(cluster(trace, "a6000-ssd"), 100, 6)[1], rel=1e-9)
    assert found[2] == pytest.approx(2 * found[1], rel=0.002)
    assert found[4] == pytest.approx(4 * found[1], rel=0.002)
    alone = simulate(plain([0.0], 100, 6), cluster(trace, "a6000-ssd", replicas=4, per_host=4), "vllm").outcome
    assert alone.finish_s[0] == pytest.approx(found[1], rel=1e-9)


def test_prompts_that_compute_longer_than_they_read_leave_the_rest_of_the_link():
    """Four prompts of 1,900 tokens on a T4 want less than half of the link: two replicas with four each notice nothing
    of one another. Their decode steps want all of it."""
    trace = offloaded("opt-6.7b", "offload:what=weights")
    log = plain([0.0] * 8, [1900] * 8, [4] * 8)
    apart, together = (
        simulate(log, cluster(trace, "t4-ssd", replicas=2, per_host=n), "vllm:route=turns,budget=8192").outcome
        for n in (1, 2)
    )
    assert apart.first_s[0] > 2 * cluster(trace, "t4-ssd").steps().decode_s(4, 1900, 0.0)
    assert list(together.first_s) == pytest.approx(list(apart.first_s), rel=1e-9)
    decode = [o.finish_s[0] - o.first_s[0] for o in (apart, together)]
    assert decode[1] == pytest.approx(2 * decode[0], rel=0.1)  # some of it is the cache's, of the card's own memory


def test_a_cache_that_comes_back_slows_the_layers_by_its_bytes():
    """The third sequence is preempted and comes back while the first decodes: each has half of the link until the
    cache is here, so the first ends later by the seconds of the cache, and the cache takes twice its seconds."""
    trace = offloaded("opt-6.7b", "offload:what=weights")
    log = plain([0.0] * 3, [128] * 3, [30, 6, 30])
    seconds = 128 * 2 * 4096 * 2 * 32 / 0.05e9
    fast, slow = (
        simulate(log, cluster(trace, "a6000-ssd", blocks=26), f"vllm:preempt=swap,host_gb_s={rate}")
        for rate in (1e4, 0.05)
    )
    for found in (fast, slow):
        told = found.policy.result()["tiers"]
        assert (told["swapped_out"], told["swapped_in"]) == (1, 1)
    assert slow.policy.result()["tiers"]["host_link_busy_s"] == pytest.approx(
        3 * seconds, rel=0.02
    )  # out alone, in beside
    assert slow.outcome.finish_s[0] - fast.outcome.finish_s[0] == pytest.approx(seconds, rel=0.05)


def test_energy_and_busy_time_of_shared_replicas_add_up():
    trace = offloaded("opt-6.7b", "offload:what=weights")
    log = plain([0.0] * 4, [100] * 4, [6] * 4)
    document, simulation = serve(
        log, cluster(trace, "a6000-ssd", replicas=2, per_host=2), "vllm:route=turns", interval=False
    )
    assert document["level"] == "event"
    assert document["per_host"] == 2
    for replica in simulation.replicas:
        assert replica.pipeline is not None
        assert replica.pipeline.work_s == pytest.approx(replica.runs.columns().duration_s.sum(), rel=1e-9)
    assert document["utilisation"]["busy"] == pytest.approx(1.0, rel=1e-6)


def test_a_replica_that_fails_leaves_the_link_to_the_others():
    trace = offloaded("opt-6.7b", "offload:what=weights")
    on = cluster(trace, "a6000-ssd", replicas=2, per_host=2)
    log = plain([0.0] * 2, [100] * 2, [6] * 2)
    alone = one(cluster(trace, "a6000-ssd"), 100, 6)[1]
    found = simulate(log, on, "vllm:route=turns", faults=[Fault(1, 2.0, 1e4)]).outcome
    # Two seconds at half of the link, the rest alone; the other's request starts over with the next iteration.
    assert min(found.finish_s) == pytest.approx(alone + 1.0, rel=0.01)
    assert max(found.finish_s) == pytest.approx(alone + 1.0 + alone / 6, rel=0.01)


@pytest.mark.parametrize("seed", range(16))
def test_random_requests_on_shared_links_all_end_and_steps_are_the_same_at_once(seed):
    """Swaps, prefixes kept on the host, failures, one to three replicas on a host: everybody ends, links and replicas
    are busy for what they did, and how many steps an event stands for changes nothing."""
    rng = np.random.default_rng(seed)
    log = random_log(rng, most=10)
    per_host = int(rng.integers(1, 4))
    policy = (
        "vllm:preempt=swap,host_gb_s=0.01", "vllm:spill=host,host_gb=0.01,host_gb_s=0.02", "orca",
        "sarathi:chunk=32,preempt=swap",
    )[seed % 4]  # fmt: skip
    start = float(rng.uniform(0, 1))
    faults = [Fault(0, start, start + 0.5)] if seed % 3 == 0 else []
    trace = offloaded("opt-125m", "offload:what=weights,kv=0.5")
    on = cluster(trace, "a6000-ssd", blocks=int(rng.integers(8, 30)), replicas=3, per_host=per_host)
    many, single = (simulate(log, on, policy, faults=faults, longest_jump=jump) for jump in (1 << 30, 1))
    assert all(many.outcome.state)
    np.testing.assert_allclose(np.array(many.outcome.finish_s), np.array(single.outcome.finish_s), rtol=1e-9)
    for replica in many.replicas:
        busy = replica.runs.columns().duration_s.sum()
        assert busy <= many.now * (1 + 1e-9)
        if replica.pipeline is not None and not faults:
            assert replica.pipeline.work_s == pytest.approx(busy, rel=1e-9)


def test_what_does_not_go_together_is_refused(capsys):
    trace = captured("opt-6.7b")
    log = plain([0.0], 10, 2)
    for on, policy, told in (
        (cluster(trace, "a6000", "closed", replicas=2, per_host=2), "vllm", "with --level closed"),
        (cluster(trace, "a6000", replicas=2, per_host=2), "vllm", "nothing passes the host's link"),
        (cluster(trace, "a6000"), "nanoflow", "policy nanoflow"),
    ):
        with pytest.raises(InputError, match=told):
            simulate(log, on, policy)
    base = ["serve", "-m", "opt-125m", "-d", "a6000", "--requests", "poisson:rate=1,n=3,prompt=10,output=3"]
    for more, told in ((["--level", "rtl"], "--level rtl: accepted: closed, event"), (["--per-host", "2"], "1 to 1")):
        assert run([*base, *more]) == 2
        assert told in capsys.readouterr().err
    assert run([*base, "--level", "event", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["level"] == "event"
