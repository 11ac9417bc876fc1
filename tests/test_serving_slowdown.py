"""Latencies over those of a request alone, capacity under their limits; engines with numbers replaced; admission."""

from __future__ import annotations

import numpy as np
import pytest
from serving_cluster_support import simulation, steps

from tokenfab.cli import run
from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.serving.apart import Apart, ApartSteps, projections
from tokenfab.serving.asked import asked
from tokenfab.serving.capacity import at_rate, capacity
from tokenfab.serving.engine import EngineProfile, load_profile
from tokenfab.serving.metrics import Latencies
from tokenfab.serving.run import simulate
from tokenfab.serving.slowdown import parse_slowdowns
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.parallel import Parallel, tensor_parallel
from tokenfab.workloads.request_log import plain

SMALL = {"parallel": None, "engine": "ideal", "seed": 0}


def small(requests: str, **more):
    return asked("opt-125m", "a100-80g-sxm", requests, **{**SMALL, **more})


def test_a_request_alone_has_no_slowdown() -> None:
    log, cluster = small("uniform:rate=0.1,n=3,prompt=300,output=40")
    limits = parse_slowdowns("ttft=1.001,tpot=1.001/1.001/1.001,e2e=1.001")
    assert limits is not None
    alone = limits.alone(log, cluster)
    found = limits.of(simulate(log, cluster, "vllm"), alone)
    for key in ("ttft", "tpot", "e2e"):
        assert found[key] == pytest.approx([1, 1, 1], rel=1e-9)
    faster = parse_slowdowns("ttft=1;h100-sxm;ideal:host_s=0.01")
    assert faster is not None
    other = faster.alone(log, small("uniform:rate=0.1,n=3,prompt=300,output=40", engine="ideal:host_s=0.01")[1])
    assert np.all(other["e2e"] < alone["e2e"] + 40 * 0.01)
    assert np.all(other["tpot"] > 0.01)
    assert faster.alone(log, cluster)["ttft"] == pytest.approx(other["ttft"])


def test_limits_hold_where_so_many_requests_keep_them() -> None:
    log, cluster = small("poisson:rate=60,n=400,prompt=lognormal(300;1),output=40")
    limits = parse_slowdowns("ttft=1.2/2/4,tpot=1.1")
    assert limits is not None
    done, alone = simulate(log, cluster, "vllm"), limits.alone(log, cluster)
    lat = Latencies.of(done)
    shares = [float((lat.ttft_s / alone["ttft"] <= x).mean()) / q for x, q in ((1.2, 0.5), (2, 0.9), (4, 0.99))]
    shares.append(float((lat.tpot_s / alone["tpot"] <= 1.1).mean()) / 0.5)
    assert limits.attained(done, alone) == pytest.approx(min(1.0, *shares))
    assert 0 < limits.attained(done, alone) < 1


def test_who_does_not_finish_breaks_every_limit() -> None:
    log, cluster = small("uniform:rate=1,n=4,prompt=2000,output=100")
    limits = parse_slowdowns("e2e=1e9")
    assert limits is not None
    done = simulate(log, cluster, "vllm")  # beyond the model's context: all are rejected
    assert limits.attained(done, limits.alone(log, cluster)) == 0


def test_capacity_under_slowdowns_lies_between_a_rate_that_holds_and_one_that_does_not() -> None:
    log, cluster = small("poisson:rate=60,n=200,prompt=400,output=20")
    limits = parse_slowdowns("ttft=1.5/3/6,tpot=1.25/1.5/5")
    assert limits is not None
    alone = limits.alone(log, cluster)
    found = capacity(log, cluster, "orca:batch=2048", {}, 1.0, slowdowns=limits)
    runs = (simulate(at_rate(log, rate), cluster, "orca:batch=2048") for rate in (found.rate, found.next))
    held = [limits.attained(each, alone) for each in runs]
    assert held[0] == found.attained == 1 > held[1]
    assert 1 < found.next / found.rate <= 1.01
    both = capacity(log, cluster, "orca:batch=2048", {"ttft": 1e-9}, 0.5, slowdowns=limits)
    assert both.rate == 0


@pytest.mark.parametrize("text", ["ttft", "ttft=0", "ttft=1/2/3/4", "x=1", "ttft=1,ttft=2", ";ideal", "ttft=1;a;b;c"])
def test_a_wrong_limit_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"slowdown: .*accepted"):
        parse_slowdowns(text)


def test_the_command_line_says_slowdowns_and_the_capacity_under_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["serve", "--model", "opt-125m", "--device", "a100-80g-sxm", "--no-interval"]
    words += ["--requests", "poisson:rate=60,n=60,prompt=400,output=20", "--slowdown", "ttft=1.5/3/6,tpot=1.25"]
    assert run(words) == 0
    assert "over the same request alone, p50/p90/p99: ttft 1" in capsys.readouterr().out
    assert run([*words, "--capacity", "1"]) == 0
    assert "requests/s keep the limits" in capsys.readouterr().out


# -- engines -------------------------------------------------------------------------------------------------
def test_numbers_of_an_engine_can_be_replaced() -> None:
    found = load_profile("vllm-0.19:seats=64,step_s=0.01")
    assert (found.name, found.seats, found.step_s) == ("vllm-0.19:seats=64,step_s=0.01", 64, 0.01)
    assert found.graphs == load_profile("vllm-0.19").graphs
    assert "given" in found.sources["seats"]
    for text, words in (("x=1", "accepted"), ("seats=1.5", "whole"), ("step_s=y", "number"), ("seats=0", "accepted")):
        with pytest.raises(InputError, match=words):
            load_profile(f"ideal:{text}")


def test_engines_of_2023_are_what_their_measurements_say(truth) -> None:
    from tokenfab.validation.requests import HARDWARE, MODES, fit, read_all

    for device in HARDWARE:
        rows, gpus, _ = read_all(truth, device)
        even = rows.row % 2 == 0
        run_ = fit(rows.pick(even), gpus.pick(even), MODES["run_tokens"])
        held = load_profile(f"dgx-{device.split('-')[0]}-2023")
        assert (held.host_s, held.step_s, held.sequence_s, held.prompt_token_s) == pytest.approx(
            (run_.launch_s, run_.step_s, run_.sequence_s, run_.token_s), rel=0.01
        )


# -- admission and routing -----------------------------------------------------------------------------------
def test_whole_prompts_join_to_a_limit_of_tokens() -> None:
    log = plain(np.zeros(5), np.array([100, 100, 100, 300, 50]), np.full(5, 2))
    done = simulation(log, "orca:batch=200", 1).done()
    first = sorted(set(np.round(np.array(done.outcome.first_s), 12)))
    of = [np.flatnonzero(np.isclose(done.outcome.first_s, t)).tolist() for t in first]
    assert of == [[0, 1], [2], [3], [4]]  # 100 + 300 is too much; so is 300, which goes alone; 300 + 50


def test_requests_go_to_the_fewest_tokens_of_prompts() -> None:
    prompts = np.array([900, 20, 20, 20])
    log = plain(np.array([0.0, 1e-6, 2e-6, 3e-6]), prompts, np.full(4, 30))
    for route, where in (("least", [0, 1, 0, 1]), ("tokens", [0, 1, 1, 1])):
        done = simulation(log, f"orca:route={route}", 2, blocks=400, budget=256).done()
        assert list(done.outcome.replica) == where


@pytest.mark.parametrize("policy", ["vllm", "vllm:admit=whole"])
def test_prompts_computed_elsewhere_bring_their_cache(policy: str) -> None:
    log = plain(np.zeros(3), np.full(3, 100), np.full(3, 5))
    name, _, rest = policy.partition(":")
    done = simulation(log, f"{name}:prompts=elsewhere{',' + rest if rest else ''}", 1).done()
    here = simulation(log, policy, 1).done()
    assert list(done.outcome.written) == [5, 5, 5]
    # The first token takes a step of three sequences at 99 cached tokens, as the following ones do.
    assert done.outcome.first_s[0] == pytest.approx(steps().decode_s(3, 99.0, 0.0), rel=0.02)
    assert done.outcome.first_s[0] < here.outcome.first_s[0]
    assert done.replicas[0].pool.free == done.replicas[0].pool.total


def test_who_is_admitted_whole_is_never_thrown_out() -> None:
    log = plain(np.zeros(12), np.full(12, 40), np.full(12, 150))
    runs = [simulation(log, p, 1, blocks=40).done() for p in ("vllm", "vllm:admit=whole")]
    preempted = [sum(r.outcome.preemptions) for r in runs]
    assert preempted[0] > 0 == preempted[1]
    for done in runs:
        assert list(done.outcome.written) == [150] * 12


# -- queries ahead of keys and values ------------------------------------------------------------------------
def test_queries_sent_ahead_hide_what_makes_keys_and_values() -> None:
    trace, device = load_trace("llama-33b"), load_device("h100-sxm")

    def made(overlap: bool, batches: int = 1) -> ApartSteps:
        apart = Apart(load_device("h20"), 2, batches, 1, True, 45.7e9, 16.5e-6, overlap)
        return ApartSteps(trace, device, Parallel(1), EngineProfile(), 2048, apart)

    ahead, after = made(True), made(False)
    share = projections(tensor_parallel(trace, 1))
    assert list(share.values()) == pytest.approx([2 / 3])  # keys and values of queries, keys and values alike
    n = 40
    wires = ahead.cached_bytes * n / 45.7e9
    behind = ahead._behind_s(n)
    qkv = (behind - wires) / (2 / 3)
    floor = 60 * 3 * 6656 * 6656 * 2 / 3.35e12  # weights at the memory's peak
    assert floor < qkv < 1.4 * floor
    gap = after.decode_s(n, 1000.0, 0.0) - ahead.decode_s(n, 1000.0, 0.0)
    assert gap == pytest.approx(behind, rel=1e-3)
    assert after.decode_s(1, 16.0, 0.0) - ahead.decode_s(1, 16.0, 0.0) < behind  # attention is too short to hide it
    assert made(True, 2).decode_s(n, 1000.0, 0.0) <= made(False, 2).decode_s(n, 1000.0, 0.0)
