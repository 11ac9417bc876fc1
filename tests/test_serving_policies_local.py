"""Do policies within a replica keep their equations: static batches, nano-batches, attention apart, speculation,
fine-tuning beside inference?"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.cost import prepare
from tokenfab.hw.devices import load_device
from tokenfab.hw.event import busy_of, simulate_pass
from tokenfab.serving.apart import Apart, ApartSteps, context_part
from tokenfab.serving.cluster import Cluster
from tokenfab.serving.engine import EngineProfile
from tokenfab.serving.memory import KvMemory
from tokenfab.serving.metrics import metrics
from tokenfab.serving.nano import NanoSteps
from tokenfab.serving.outcome import FINISHED, REJECTED
from tokenfab.serving.policies import policies
from tokenfab.serving.run import serve, simulate
from tokenfab.serving.simulation import Fault, Simulation
from tokenfab.serving.speculation import SpeculativeReplica, SpeculativeSteps, expected_tokens, uniforms
from tokenfab.serving.steps import StepModel
from tokenfab.serving.tuning import ATTENTION_BACKWARD, TuningSteps
from tokenfab.workloads.compiled import compile_trace
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.parallel import ONE_DEVICE, Parallel
from tokenfab.workloads.request_log import RequestLog, plain

MINE = ("static", "nanoflow", "lamina:device=l4", "smartspec", "flexllm")


@functools.cache
def cluster(device: str = "a100-80g-sxm", model: str = "opt-125m", **more: object) -> Cluster:
    return Cluster(load_trace(model), load_device(device), longest=2048, **more)  # type: ignore[arg-type]


def blocks(count: int, seats: int = 256) -> KvMemory:
    return KvMemory(count, 16, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, seats)


def at_once(prompts: list[int], outputs: list[int]) -> RequestLog:
    return plain([0.0] * len(prompts), prompts, outputs)


def some(n: int = 60, rate: float = 40.0, seed: int = 3) -> RequestLog:
    rng = np.random.default_rng(seed)
    return plain(np.cumsum(rng.exponential(1 / rate, n)), rng.integers(1, 500, n), rng.integers(1, 120, n))


def ran(log: RequestLog, policy: str, on: Cluster | None = None, **more: object) -> Simulation:
    return simulate(log, on or cluster(), policy, **more)  # type: ignore[arg-type]


# -- a limit on sequences, attention in two calls ---------------------------------------------------------
@pytest.mark.parametrize("policy", ["vllm", "sarathi:chunk=64", "orca"])
@pytest.mark.parametrize("most", [1, 3])
def test_at_most_so_many_sequences_are_in_a_batch(policy: str, most: int):
    log = at_once([100] * 8, [30] * 8)
    limited = ran(log, f"{policy}{',' if ':' in policy else ':'}most={most}")
    done = limited.outcome
    starts, ends = np.array(done.scheduled_s), np.array(done.finish_s)
    together = [int(((starts <= t) & (ends > t)).sum()) for t in starts]
    assert max(together) == most
    assert limited.now > ran(log, policy).now


def test_a_limit_above_the_engines_seats_changes_nothing():
    log = at_once([100] * 8, [30] * 8)
    on = replace(cluster(), profile=EngineProfile(seats=3))
    assert ran(log, "vllm:most=5", on).outcome.finish_s == ran(log, "vllm", on).outcome.finish_s


def test_an_iteration_of_sarathi_is_a_whole_number_of_tiles_with_the_tokens_that_ride_along():
    log = at_once([10, 2000], [40, 5])
    runs = ran(log, "sarathi:chunk=300,tile=128").replicas[0].runs.columns()
    mixed = runs.tokens[runs.tokens > 0]
    assert set(mixed[:-1].tolist()) == {256.0}  # of 300, the sequence that decodes among them
    assert mixed[-1] < 256


def test_attention_in_two_calls_is_its_parts_and_takes_longer_than_in_one():
    trace, device = load_trace("llama-2-7b"), load_device("a100-80g-sxm")
    one, two = (StepModel(trace, device, profile=EngineProfile(one_attention=x), longest=2048) for x in (1, 0))
    chunk, n, mean = (251, 0), 5, 1000.0
    parts = two.contexts.chunk(*chunk)[0] + two.contexts.decode_s(n, mean, 0.0) - two.contexts.launch_s
    assert two.contexts_s([chunk], n, mean, 0.0) == pytest.approx(parts, rel=1e-12)
    assert one.contexts_s([chunk], n, mean, 0.0) < parts
    for chunks, count in (([chunk], 0), ([], n)):  # nothing mixed
        assert one.contexts_s(chunks, count, mean, 0.0) == two.contexts_s(chunks, count, mean, 0.0)


# -- static batches ------------------------------------------------------------------------------------
def test_a_static_batch_takes_its_prompts_and_as_many_steps_as_its_longest_answer():
    steps = cluster().steps()
    done = ran(at_once([100, 100, 100], [2, 5, 9]), "static:batch=3").outcome
    prefill = steps.mixed_s([(100, 0)] * 3, 3, 0, 0.0, 0.0)
    assert done.first_s[0] == pytest.approx(prefill, rel=1e-12)
    assert set(done.finish_s) == {done.finish_s[0]}
    assert done.finish_s[0] == pytest.approx(prefill + steps.decode_s(3, 100, 0.0, 8), rel=1e-12)
    for i, output in enumerate((2, 5, 9)):  # each is written earlier than it is returned
        assert done.last_s[i] == pytest.approx(prefill + steps.decode_s(3, 100, 0.0, output - 1), rel=1e-12)


def test_padding_makes_prompts_as_long_as_the_longest_and_without_it_they_stay():
    steps = cluster().steps()
    log = at_once([10, 300], [1, 1])
    padded, bare = (ran(log, f"static:batch=2,padding={p}").outcome.finish_s[0] for p in ("longest", "none"))
    assert padded == pytest.approx(steps.mixed_s([(300, 0)] * 2, 2, 0, 0.0, 0.0), rel=1e-12)
    assert bare == pytest.approx(steps.mixed_s([(10, 0), (300, 0)], 2, 0, 0.0, 0.0), rel=1e-12)
    assert bare < padded


def test_a_batch_that_is_not_full_starts_when_its_first_request_has_waited():
    log = plain([1.0, 1.5, 2.0], 50, 4)
    assert ran(log, "static:batch=4,timeout_s=3").outcome.scheduled_s.tolist() == pytest.approx([4.0] * 3, abs=1e-8)
    full = ran(log, "static:batch=2,timeout_s=3").outcome
    assert full.scheduled_s[0] == full.scheduled_s[1] == 1.5  # full: nobody waits longer
    assert full.scheduled_s[2] == pytest.approx(5.0, abs=1e-8)
    assert ran(log, "static:batch=4").outcome.scheduled_s[0] == 1.0


def test_who_comes_while_a_static_batch_runs_waits_for_its_end():
    done = ran(plain([0.0, 0.0, 1e-6], 50, [40, 2, 2]), "static:batch=2").outcome
    assert done.scheduled_s[2] == done.finish_s[0] == done.finish_s[1]


def test_tokens_that_nobody_asked_for_are_no_gaps_between_tokens():
    outputs = [1, 2, 7, 30]
    simulation = ran(at_once([20] * 4, outputs), "static:batch=4")
    gaps, counts = simulation.replicas[0].gaps.columns()
    assert counts.sum() == sum(outputs) - len(outputs)
    assert (gaps > 0).all()
    assert simulation.replicas[0].runs.columns().decoding.max() == 4  # the seats stay taken to the end


def test_a_static_batch_has_no_more_members_than_room():
    """30 blocks: two sequences of (300 + 20) / 16 = 20 blocks do not fit, two of 15 do."""
    small = replace(cluster(), blocks=blocks(30))
    done = ran(at_once([300, 300], [20, 20]), "static:batch=2", small).outcome
    assert done.scheduled_s[1] == done.finish_s[0]
    done = ran(at_once([220, 220], [20, 20]), "static:batch=2", small).outcome
    assert done.scheduled_s[1] == 0.0


def test_answers_that_were_held_back_when_a_replica_died_are_written_again():
    log = at_once([50, 50], [2, 400])
    alone = ran(log, "static:batch=2").outcome
    middle = (alone.last_s[0] + alone.finish_s[0]) / 2
    done = ran(log, "static:batch=2", faults=[Fault(0, middle, middle + 1.0)]).outcome
    assert list(done.state) == [FINISHED] * 2
    assert list(done.written) == [2, 400]
    assert min(done.finish_s) > middle + 1.0
    assert done.last_s[0] > middle + 1.0


# -- speculation ------------------------------------------------------------------------------------------
def test_without_proposals_speculation_is_vllm_exactly():
    log = some()
    a, b = (serve(log, cluster(), p, interval=False)[0] for p in ("vllm", "smartspec:gamma=0"))
    for document in (a, b):
        for key in ("policy", "policy_figures", "wall_s", "speculation"):
            document.pop(key, None)
    assert a == b


@pytest.mark.parametrize(("alpha", "gamma", "tokens"), [(0.0, 4, 1), (1.0, 4, 5), (1.0, 1, 2)])
def test_certain_proposals_give_whole_rounds(alpha: float, gamma: int, tokens: int):
    simulation = ran(at_once([64], [101]), f"smartspec:gamma={gamma},acceptance={alpha}")
    assert simulation.replicas[0].rounds == -(-100 // tokens)  # type: ignore[attr-defined]
    assert list(simulation.outcome.written) == [101]


def test_rounds_give_as_many_tokens_as_the_acceptance_promises():
    """(1 − α^(γ+1)) / (1 − α) a round, within five standard errors; ends of answers cut rounds short, so long ones."""
    alpha, gamma, n, output = 0.7, 3, 20, 2000
    simulation = ran(at_once([16] * n, [output] * n), f"smartspec:gamma={gamma},acceptance={alpha}",
                     replace(cluster(), longest=4096, _made={}))  # fmt: skip
    result = simulation.policy.result()["speculation"]
    expected = expected_tokens(alpha, gamma)
    assert expected == pytest.approx(1 + 0.7 + 0.49 + 0.343)
    rounds = n * (output - 1) / expected
    assert result["tokens_per_sequence"] == pytest.approx(expected, abs=5 * 1.3 / rounds**0.5 + 3 * n / rounds)
    assert result["accepted"] + rounds * 0 <= result["proposed"]
    written = np.array(simulation.outcome.written)
    assert (written == output).all()
    _gaps, counts = simulation.replicas[0].gaps.columns()
    assert counts.sum() == n * (output - 1)


def test_draws_are_uniform_and_belong_to_the_request():
    index, left = (x.ravel() for x in np.meshgrid(np.arange(200), np.arange(1, 201)))
    u = uniforms(7, index, left)
    assert u.min() > 0
    assert u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=5 * 12**-0.5 / u.size**0.5)
    histogram = np.histogram(u, bins=20)[0]
    assert ((histogram - 2000) ** 2 / 2000).sum() < 45  # chi squared, 19 degrees: 0.1 % beyond 43.8
    assert uniforms(7, index[5:6], left[5:6])[0] == u[5]
    assert (uniforms(8, index, left) != u).all()


def test_more_load_means_fewer_proposals():
    """One sequence leaves the arithmetic idle, 250 do not: each proposal then costs what it computes."""
    few, many = (
        ran(at_once([100] * n, [100] * n), "smartspec:acceptance=0.5", cluster("l4", "opt-6.7b")).policy.result()
        for n in (1, 96)
    )
    assert few["speculation"]["mean_proposals"] > many["speculation"]["mean_proposals"]


def test_a_round_costs_the_draft_s_steps_and_one_wide_pass():
    c = cluster()
    steps = SpeculativeSteps(c.trace, c.device, ONE_DEVICE, c.profile, 2048, load_trace("opt-125m"), 1)
    plain_steps = c.steps()
    n, mean, gamma = 8, 300.0, 3
    bare = SpeculativeSteps(c.trace, c.device, ONE_DEVICE, c.profile, 2048, None, 1)
    drafted = steps.round_s((), 0, n, mean, 0.0, gamma) - bare.round_s((), 0, n, mean, 0.0, gamma)
    assert drafted == pytest.approx(plain_steps.decode_s(n, mean, 0.0, gamma), rel=1e-12)  # the draft is the model
    verified = bare.round_s((), 0, n, mean, 0.0, gamma)
    assert plain_steps.decode_s(n, mean, 0.0) <= verified < (gamma + 1) * plain_steps.decode_s(n, mean, 0.0)
    assert bare.round_s((), 0, n, mean, 0.0, 0) == plain_steps.decode_s(n, mean, 0.0)


def test_a_draft_takes_room_from_the_cache():
    on = cluster("a100-80g-sxm", "opt-6.7b")
    with_draft, without = (
        ran(at_once([10], [2]), f"smartspec:{x}", on).policy.memory[""] for x in ("draft=opt-125m", "draft=none")
    )
    assert with_draft.blocks < without.blocks
    draft = load_trace("opt-125m")
    assert with_draft.weights_bytes - without.weights_bytes == pytest.approx(2 * 125.2e6, rel=0.01)
    per_token = float(draft.cache_bytes()(1, 0, 1024)) / 1024
    assert with_draft.token_bytes - without.token_bytes == pytest.approx(per_token)


# -- nano-batches --------------------------------------------------------------------------------------------
@functools.cache
def nano(most: int = 4, model: str = "llama-2-7b", device: str = "a100-80g-sxm", tp: int = 2) -> NanoSteps:
    return NanoSteps(load_trace(model), load_device(device), Parallel(tp), EngineProfile(), 2048, most)


@given(
    busy=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    idle=st.floats(0, 1),
    k=st.integers(1, 8),
)
def test_overlap_lies_between_its_bounds(busy: list[float], idle: float, k: int):
    """No resource does two things at once, none is quicker than alone, and nothing is worse than one after another."""
    alone = sum(busy) + idle + 1e-9
    together = float(nano().overlapped_s(np.array([alone]), np.array(busy)[:, None], k)[0])
    assert max(alone, k * max(busy)) <= together * (1 + 1e-12)
    assert together <= k * alone * (1 + 1e-12)


def test_two_equal_resources_and_two_nano_batches_by_hand():
    """D = 1, 1: alone R = 2; the second finds half of the first at each, R = 1.5 each: T = 3 of at most 4."""
    assert nano().overlapped_s(np.array([2.0]), np.array([[1.0], [1.0]]), 2)[0] == pytest.approx(3.0)
    assert nano().overlapped_s(np.array([2.0]), np.array([[1.0], [1.0]]), 1)[0] == pytest.approx(2.0)
    counts = np.arange(1, 5)  # several numbers of nano-batches at once
    alone, busy = np.linspace(2.0, 5.0, 4), np.array([[1.0, 0.5, 0.4, 0.1], [0.2, 1.5, 0.4, 2.0]])
    each = [nano().overlapped_s(alone[[i]], busy[:, [i]], int(k))[0] for i, k in enumerate(counts)]
    assert nano().overlapped_s(alone, busy, counts).tolist() == each


def test_nano_batches_are_never_slower_than_one_after_another_nor_quicker_than_a_resource():
    steps, plain_steps = nano(), Cluster(load_trace("llama-2-7b"), load_device("a100-80g-sxm"), Parallel(2)).steps()
    gained = False
    for n, mean in ((1, 10.0), (16, 500.0), (200, 300.0), (1000, 700.0)):
        overlapped, sequential = steps.device_decode_s(n, mean, 0.0), plain_steps.device_decode_s(n, mean, 0.0)
        assert overlapped <= sequential * (1 + 1e-9)
        gained |= overlapped < 0.95 * sequential
        # Whole batches read weights least: no division of the iteration occupies a resource for less.
        whole = steps._decode_tokens.busy(n) + steps.contexts.decode_busy(n, mean)
        assert overlapped >= whole.max() * (1 - 0.02)
        chunks = [(512, 0), (256, 512)]
        assert steps.device_mixed_s(chunks, 1, n, mean, 0.0) <= plain_steps.device_mixed_s(chunks, 1, n, mean, 0.0)
    assert gained


def test_one_nano_batch_is_vllm_and_jumps_are_steps():
    log = some(30)
    on = cluster()
    one, vllm = ran(log, "nanoflow:most=1", on).outcome, ran(log, "vllm:budget=2048", on).outcome
    assert list(one.finish_s) == list(vllm.finish_s)
    whole, stepped = ran(log, "nanoflow", on), ran(log, "nanoflow", on, longest_jump=1)
    assert list(whole.outcome.finish_s) == pytest.approx(list(stepped.outcome.finish_s), rel=1e-9)
    assert len(whole.replicas[0].runs) < len(stepped.replicas[0].runs)
    energy = [metrics(s)["energy_j"]["dynamic"] for s in (whole, stepped)]
    assert energy[0] == pytest.approx(energy[1], rel=0.01)


def test_nano_batches_agree_with_streams_of_the_event_level():
    """Four streams of a quarter of the batch, Llama-2-7B on two A100s: within a tenth."""
    steps = nano()
    compiled, model = prepare(compile_trace(steps.share), steps.device)
    rows = model.rows(compiled.basis_at(128.0, 1.0, 700.0))
    alone = compiled.counts @ rows.time_s
    found = busy_of(rows, model.reasons)
    closed = float(steps.overlapped_s(alone, np.stack([compiled.counts @ found[r] for r in steps.resources]), 4)[0])
    event = simulate_pass(compiled, rows, model.reasons, 0, 4).seconds
    assert closed == pytest.approx(event, rel=0.1)
    assert event < 4 * float(alone[0])


# -- attention apart --------------------------------------------------------------------------------------------
@functools.cache
def apart(batches: int = 1, models: int = 1, **more: object) -> ApartSteps:
    c = cluster()
    where = Apart(c.device, 1, batches, models, bandwidth=1e30, latency_s=0.0)
    return ApartSteps(c.trace, c.device, ONE_DEVICE, c.profile, 2048, replace(where, **more))  # type: ignore[arg-type]


def test_attention_on_a_like_device_over_a_perfect_network_is_the_plain_iteration():
    plain_steps = cluster().steps()
    for n, mean, longer in ((1, 1.0, 0.0), (7, 300.0, 200.0), (64, 1500.0, 0.0)):
        assert apart().decode_s(n, mean, longer, 5) == pytest.approx(plain_steps.decode_s(n, mean, longer, 5), rel=1e-6)
        mixed = [(200, 0), (64, 128)]
        # Prompts and the decoding batch are two calls on two devices, not one.
        own, mine = plain_steps.contexts, apart().mixed_s(mixed, 1, n, mean, longer)
        calls = own.chunk(200, 0)[0] + own.chunk(64, 128)[0] - own.launch_s + own.decode_s(n, mean, longer)
        rows = plain_steps._mixed_tokens.time(n + 264) + plain_steps._sequences.time(n + 1)
        assert mine == pytest.approx(rows + calls, rel=1e-6)


def test_batches_alternate_between_model_and_attention():
    """P of two batches on one replica of the model, by hand from its parts; the network's bytes and messages too."""
    plain_steps, n, mean = cluster().steps(), 64, 1000.0
    t_m = plain_steps._decode_tokens.time(32) + apart().rest.decode_s(32, mean, 0.0)  # positions depend on the context
    t_a = plain_steps.contexts.decode_s(32, mean, 0.0) - apart().rest.decode_s(32, mean, 0.0)
    assert apart(2).decode_s(n, mean, 0.0) == pytest.approx(max(t_m + t_a, 2 * t_m, 2 * t_a), rel=1e-6)
    assert apart(2, 2).decode_s(n, mean, 0.0) == pytest.approx(max(t_m + t_a, 2 * t_a), rel=1e-6)
    # OPT-125M: 12 layers; q, k, v and the result are 768 wide in 16 bits.
    slow = apart(1, 1, bandwidth=1e6, latency_s=1e-3)
    assert slow.sent_bytes == 12 * 3 * 768 * 2
    assert slow.back_bytes == 12 * 768 * 2
    wires = 64 * (slow.sent_bytes + slow.back_bytes) / 1e6 + 2 * 12 * 1e-3
    assert slow.decode_s(n, mean, 0.0) == pytest.approx(plain_steps.decode_s(n, mean, 0.0) + wires, rel=1e-6)


def test_the_cache_lies_in_the_attention_devices_memory():
    on = cluster("a100-80g-sxm", "opt-6.7b")
    memory = {
        count: ran(at_once([10], [2]), f"lamina:device=l4,count={count}", on).policy.memory[""] for count in (1, 2, 4)
    }
    assert memory[1].weights_bytes == 0
    capacity = load_device("l4").memory["dram"].usable
    per_token = float(load_trace("opt-6.7b").cache_bytes()(1, 0, 1024)) / 1024
    kept = 0.9 * capacity - memory[1].activation_bytes
    assert memory[1].blocks == int(kept / (16 * per_token))
    assert memory[4].blocks == pytest.approx(4 * memory[1].blocks, rel=0.01)
    whole = ran(at_once([10], [2]), "lamina:device=l4,count=4,split=sequences", on).policy.memory[""]
    assert whole.blocks == 4 * memory[1].blocks


@pytest.mark.parametrize("device", ["hbm-pim", "instinfer-csd", "tpu-v6e", "xeon-2s"])
def test_attention_runs_on_any_device(device: str):
    document, simulation = serve(some(8), cluster(), f"lamina:device={device},count=2", interval=False)
    assert document["requests"]["finished"] == 8
    assert document["attention_apart"]["device"] == device
    assert document["energy_j"]["dynamic"] > 0
    assert simulation.replicas[0].steps.devices == 3


def test_only_context_rows_are_taken_apart():
    names = {op.kind for op, _ in context_part(load_trace("llama-2-7b")).operators()}
    assert names == {"attention", "kv_append"}


# -- fine-tuning beside inference ------------------------------------------------------------------------------------
def test_training_never_makes_an_iteration_longer_than_its_limit():
    limit = 0.02
    simulation = ran(some(), f"flexllm:limit_s={limit}", cluster("l4", "opt-1.3b"))
    alone = ran(some(), "vllm", cluster("l4", "opt-1.3b"))
    c = simulation.replicas[0].runs.columns()
    schedule = simulation.replicas[0].schedule
    longer = c.duration_s > limit * (1 + 1e-9)
    assert longer.sum() == schedule.over  # type: ignore[attr-defined]
    assert schedule.windows > 50  # type: ignore[attr-defined]
    assert (c.duration_s > 0.8 * limit).sum() > 50  # and it fills most of it
    assert list(simulation.outcome.written) == list(alone.outcome.written)
    assert metrics(simulation)["energy_j"]["dynamic"] > metrics(alone)["energy_j"]["dynamic"]


def test_training_goes_on_while_nobody_asks():
    """Two short requests ten seconds apart: what is trained between them is what full iterations alone train."""
    simulation = ran(plain([0.0, 10.0], 10, 2), "flexllm:limit_s=0.05,length=512")
    result = simulation.policy.result()["tuning"]
    steps = simulation.replicas[0].steps
    assert isinstance(steps, TuningSteps)
    # A window of 512 fits into an iteration, so that a sequence takes one forward and one backward.
    pair = sum(steps.beside_s((), 0, 0, 0.0, 0.0, 512, 0, back) for back in (False, True))
    assert result["tokens_per_s"] == pytest.approx(512 / pair, rel=0.02)
    assert result["of_these_without_inference"] > 0.99 * result["iterations_with_training"]
    assert simulation.now == pytest.approx(10.0, abs=0.2)


def test_a_limit_that_leaves_no_time_trains_nothing_and_changes_nothing():
    log = some(20)
    busy, alone = ran(log, "flexllm:limit_s=0.000001"), ran(log, "vllm")
    assert busy.policy.result()["tuning"]["tokens"] == 0
    assert list(busy.outcome.finish_s) == pytest.approx(list(alone.outcome.finish_s), rel=1e-12)


def test_work_of_a_window_follows_from_the_trace():
    """OPT-125M, rank 8: adapters on q, k, v (fused), output, two of the MLP and the head; frozen weights go backward
    at the forward work, trained ones at twice."""
    c = cluster()
    steps = TuningSteps(c.trace, c.device, ONE_DEVICE, c.profile, 2048, 8, 1.0)
    layers = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    inside = 12 * sum(n + k for n, k in layers) + 768 + 50272
    weights = 12 * sum(n * k for n, k in layers) + 768 * 50272
    assert steps.adapter_parameters == 8 * inside
    assert steps.work == pytest.approx((1 + 8 * inside / weights, 1 + 16 * inside / weights))
    trained = TuningSteps(c.trace, c.device, ONE_DEVICE, c.profile, 2048, 8, 2.0)
    assert trained.work[1] - steps.work[1] == pytest.approx(1.0)
    forward, backward = (steps.window_j(0, 0, 256, 512, back) for back in (False, True))
    attention = steps.contexts.chunk(256, 512)[1]
    assert backward > forward + (ATTENTION_BACKWARD - 1) * attention * 0.999
    assert steps.kept_bytes(1024) - steps.kept_bytes(512) == pytest.approx(
        steps.kept_bytes(512) - 16 * steps.adapter_parameters
    )


# -- all of them --------------------------------------------------------------------------------------------------
@settings(max_examples=8)
@given(
    policy=st.sampled_from([*MINE, "smartspec:gamma=3", "static:batch=5,timeout_s=0.3", "flexllm:limit_s=0.01"]),
    seed=st.integers(0, 10**6),
    room=st.integers(20, 200),
    fault=st.booleans(),
)
def test_every_request_ends_once(policy: str, seed: int, room: int, fault: bool):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    log = plain(np.sort(rng.uniform(0, 1, n)), rng.integers(1, 600, n), rng.integers(1, 80, n))
    on = replace(cluster(), blocks=blocks(room, 8), replicas=2)
    faults = [Fault(0, 0.3, 0.6)] if fault else []
    simulation = simulate(log, on, policy, faults=faults, seed=seed)
    state = np.frombuffer(bytes(simulation.outcome.state), np.uint8)
    assert ((state == FINISHED) | (state == REJECTED)).all()
    here = state == FINISHED
    assert (np.array(simulation.outcome.written)[here] == log.output[here]).all()
    assert (-(-(log.prompt + log.output)[~here] // 16) > room).all()
    for replica in simulation.replicas:
        assert replica.pool.held == 0
        assert replica.load == 0
        assert not replica.held
    again = simulate(log, on, policy, faults=faults, seed=seed)
    assert (
        list(simulation.outcome.finish_s)[: n * int(here.all())] == list(again.outcome.finish_s)[: n * int(here.all())]
    )


def test_results_are_the_same_with_the_same_seed():
    for policy in MINE:
        a, b = (serve(some(25), cluster(), policy, seed=5, interval=False)[0] for _ in range(2))
        a.pop("wall_s"), b.pop("wall_s")
        assert a == b
    one, two = (ran(some(25), "smartspec:gamma=3", seed=s).outcome.finish_s for s in (1, 2))
    assert list(one) != list(two)
    assert isinstance(ran(some(3), "smartspec").replicas[0], SpeculativeReplica)
    assert {p.partition(":")[0] for p in MINE} <= set(policies())


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("lamina:device=nosuch", "unknown device 'nosuch'"),
        ("lamina:count=0", "count: 0 is out of range"),
        ("smartspec:draft=nosuch", "unknown model 'nosuch'"),
        ("smartspec:draft=opt-125m,draft_tp=2", "draft_tp: 2 devices of 1"),
        ("smartspec:acceptance=1.5", "acceptance: 1.5 is out of range"),
        ("smartspec:draft=llama-2-70b", "llama-2-70b beside it"),
        ("static:timeout_s=-1", "timeout_s: -1 is out of range"),
        ("static:padding=some", "padding: 'some'; accepted: longest, none"),
        ("nanoflow:most=0", "most: 0 is out of range"),
        ("flexllm:limit_s=0", "limit_s: 0 is out of range"),
        ("flexllm:length=1000000", "no room for a KV block"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(policy: str, message: str):
    with pytest.raises(InputError) as error:
        ran(at_once([10], [2]), policy)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_attention_apart_refuses_pipelines_and_models_that_do_not_fit():
    piped = Cluster(load_trace("opt-125m"), load_device("a100-80g-sxm"), Parallel(1, 2), longest=2048)
    with pytest.raises(InputError, match="pipeline"):
        ran(at_once([10], [2]), "lamina:device=l4", piped)
    with pytest.raises(InputError, match="does not fit l4"):
        ran(at_once([10], [2]), "lamina:device=h20", cluster("l4", "opt-30b"))
