"""Clocks, the power of a replica at a moment, and capping of a row of servers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from serving_cluster_support import run_checked, simulation, steps, trace

from tokenfab.errors import InputError
from tokenfab.hw.cost import cost
from tokenfab.hw.devices import load_device
from tokenfab.hw.frequency import FLOOR, KNEE, Clock, scaled, slowed
from tokenfab.hw.gpu import GpuModel
from tokenfab.serving.figures import loss_at_power_saved, power_saved_at_loss
from tokenfab.serving.metrics import energy_of
from tokenfab.serving.power import power_w
from tokenfab.serving.steps import StepModel
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.request_log import plain

A100 = "a100-80g-sxm"


def at(share):
    return StepModel(trace(), load_device(A100), longest=2048, clock=Clock.at(share))


# -- clocks --------------------------------------------------------------------------------------
def test_the_voltage_falls_with_the_clock_to_its_floor_at_the_knee():
    assert Clock.at(1.0) == Clock(1.0, 1.0)
    assert Clock.at(KNEE).voltage == pytest.approx(FLOOR)
    assert Clock.at(0.3).voltage == FLOOR
    halfway = Clock.at((1 + KNEE) / 2)
    assert halfway.voltage == pytest.approx((1 + FLOOR) / 2)
    assert halfway.power == pytest.approx((1 + KNEE) / 2 * ((1 + FLOOR) / 2) ** 2)
    for share in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(InputError, match="clock of"):
            Clock.at(share)


def test_a_slowed_device_keeps_its_memory_and_loses_rates():
    device, slow = load_device(A100), slowed(load_device(A100), Clock.at(0.5))
    assert slow.rate("bf16")[1].value == 0.5 * device.rate("bf16")[1].value
    assert slow.compute.clock.value == 0.5 * device.compute.clock.value
    assert slow.dram.bandwidth == device.dram.bandwidth
    assert slow.links == device.links
    with pytest.raises(InputError, match="modelled for GPUs"):
        slowed(load_device("u280-flightllm"), Clock.at(0.5))


def test_arithmetic_waits_for_the_clock_and_memory_does_not():
    from tokenfab.workloads.load import load_trace

    clock, device, model = Clock.at(0.8), load_device(A100), load_trace("llama-2-7b")
    slow = slowed(device, clock)
    prefill, decode = ((1, 2048, 0), (1, 1, 1024))
    longer = [
        float(cost(model, slow, *p).latency_s[0] / cost(model, device, *p).latency_s[0]) for p in (prefill, decode)
    ]
    assert 1.1 < longer[0] < 1.25  # less than 1 / 0.8: the power limit, which cost the fast clock something, is away
    assert 1.0 <= longer[1] < 1.1


def test_energies_at_a_clock_are_those_of_the_law():
    from tokenfab.hw.cost import prepare

    clock, device = Clock.at(0.8), load_device(A100)
    compiled, full = prepare(trace(), device)
    slow = scaled(prepare(compiled, slowed(device, clock))[1], device, clock)
    assert isinstance(full, GpuModel)
    assert isinstance(slow, GpuModel)
    for part, factor in {"compute": clock.voltage**2, "dram": 1.0, "transport": clock.voltage**2}.items():
        np.testing.assert_allclose(slow.base.energy[part], full.base.energy[part] * factor, rtol=1e-12)
    idle = device.power.idle.value
    assert slow.static_power_w - idle == pytest.approx((full.static_power_w - idle) * clock.power)
    assert slow.static_power_w + slow.base.dynamic_limit_w == pytest.approx(device.power.tdp.value)


def test_lower_clocks_never_make_a_step_faster_nor_draw_more():
    seconds = [[m.mixed_s([(512, 0)], 1, 0, 0.0, 0.0), m.decode_s(8, 500.0, 0.0)] for m in map(at, (0.3, 0.6, 1.0))]
    assert all(a >= b for slow, fast in itertools.pairwise(seconds) for a, b in zip(slow, fast, strict=True))
    watts = [m.static_w for m in map(at, (0.3, 0.6, 1.0))]
    assert watts == sorted(watts)


def test_what_a_clock_costs_and_saves_is_told_both_ways():
    asked = ("opt-125m", A100)
    saved = power_saved_at_loss(*asked, loss=7, prompt=1024, output=128)[0]
    assert loss_at_power_saved(*asked, saved=saved, prompt=1024, output=128)[0] == pytest.approx(7)
    # By hand at nine tenths of the clock, one of those that are timed.
    seconds, watts = [], []
    for share in (1.0, 0.9):
        s = StepModel(load_trace("opt-125m"), load_device(A100), longest=1152, clock=Clock.at(share))
        prompt_s = s.mixed_s([(1024, 0)], 1, 0, 0.0, 0.0)
        whole = s.mixed_j(*(np.array([x]) for x in (1024, 1, 0, 0.0, s.contexts.chunk(1024, 0)[1])))[0]
        watts.append(s.static_w + whole / prompt_s)
        seconds.append(prompt_s + 127 * s.decode_s(1, 1088.0, 0.0))
    loss, less = 100 * (seconds[1] / seconds[0] - 1), 100 * (1 - watts[1] / watts[0])
    assert power_saved_at_loss(*asked, loss=loss, prompt=1024, output=128)[0] == pytest.approx(less)
    assert less > loss > 0


# -- power of a replica --------------------------------------------------------------------------
def test_power_now_is_static_and_the_joules_of_the_step_over_its_seconds():
    sim = simulation(plain([0.0], [128], [100]), "vllm", 1)
    r, s = sim.replicas[0], steps()
    assert power_w(r) == s.idle_w
    sim.start()
    whole = s.mixed_j(*(np.array([x]) for x in (128, 1, 0, 0.0, s.contexts.chunk(128, 0)[1])))[0]
    assert power_w(r) == pytest.approx(s.static_w + whole / s.mixed_s([(128, 0)], 1, 0, 0.0, 0.0))
    while not r.decoding:
        sim.env.step()
    step = s.decode_j(np.array([1]), np.array([128.0]))[0] / s.decode_s(1, 128.0, 0.0)
    assert power_w(r) == pytest.approx(s.static_w + step)
    r.fail()
    assert power_w(r) == 0.0


def test_readings_of_power_add_up_to_the_energy_of_the_run():
    rng = np.random.default_rng(3)
    log = plain(np.sort(rng.uniform(0, 1, 30)), rng.integers(50, 400, 30), rng.integers(20, 200, 30))
    sim = simulation(log, "polca:caps=no,period=0.01", 2, blocks=None)
    read = []
    tell = sim.policy.power_w
    sim.policy.power_w = lambda: read.append(tell()) or read[-1]
    sim.done()
    joules = sum(energy_of(r, sim.now).total_j for r in sim.replicas)
    assert np.mean(read) * sim.now == pytest.approx(joules, rel=0.03)


# -- POLCA -----------------------------------------------------------------------------------------
def test_a_row_over_its_thresholds_is_capped_after_the_latency_and_freed_below_them():
    # Power as it is told to the policy, in watts of a budget of 800.
    sim = simulation(plain([0.0], [16], [1900]), "polca:period=1,latency=3,brake_latency=1", 2, blocks=200)
    p = sim.policy
    p._model = lambda share: p.rated  # the times of the only request are of no interest here
    told = {0: 0.7, 1: 0.82, 5: 0.9, 9: 0.9, 13: 1.01, 15: 0.83, 16: 0.8, 22: 0.7}
    levels = []

    def watts():
        now = len(levels) + 1
        levels.append(p.level)
        return 800 * told[max(t for t in told if t <= now)]

    p.power_w = watts
    sim.env.timeout(40.0)
    sim.policy.begin(sim)
    sim.env.run(until=40)
    assert p.budget_w == 800
    # The first cap is asked for at 1 and there at 4, the second at 5 and 8, both at 9 (a period after) and 12, the
    # brake at 13 and 14. At 15 the row is below free2: both from 18, the first asked for at 19, there from 22; below
    # free1: none is asked for at 23, from 26 on.
    assert levels[:27] == [0] * 3 + [1] * 4 + [2] * 4 + [3] * 2 + [4] * 4 + [3] * 4 + [1] * 4 + [0] * 2
    assert p.brakes == 1


def test_clocks_of_each_level_are_those_of_the_settings():
    sim = simulation(plain([0.0], [16], [2]), "polca:low1=0.9,low2=0.8,high2=0.95,brake=0.2", 2)
    found = []
    for level in range(5):
        sim.policy.level = level
        found.append((sim.policy.clock("high"), sim.policy.clock("low")))
    assert found == [(1.0, 1.0), (1.0, 0.9), (1.0, 0.8), (0.95, 0.8), (0.2, 0.2)]


def test_low_priority_requests_go_to_low_priority_servers_and_only_those_slow_down():
    rng = np.random.default_rng(1)
    n = 200
    log = plain(
        np.sort(rng.uniform(0, 2.0, n)), rng.integers(200, 500, n), rng.integers(20, 60, n), priority=np.arange(n) % 2
    )
    sim = simulation(log, "polca:t1=0.3,free1=0.1,free2=0.2,low1=0.5,period=0.05,latency=0.1", 4, blocks=None)
    run_checked(sim)
    roles = [sim.replicas[k].role for k in sim.outcome.replica]
    assert roles == ["low" if i % 2 else "high" for i in range(n)]
    told = sim.policy.result()["power_capping"]
    assert told["slowdown"]["high"] == 1.0
    assert told["slowdown"]["low"] > 1.02
    assert told["level_s"]["first"] > 1.0
    # What was drawn is counted with the clocks that held.
    free = simulation(log, "polca:caps=no", 4, blocks=None).done()
    capped, whole = (sum(energy_of(r, 2.0).power_w.mean() for r in s.replicas) for s in (sim, free))
    assert capped < whole
    with pytest.raises(InputError, match="free1 ≤ t1"):
        simulation(log, "polca:t1=0.9,t2=0.8", 4)


def test_thirty_percent_more_servers_keep_the_power_that_fewer_were_given():
    sim = simulation(plain([0.0], [16], [2]), "polca:servers=10,other=100", 13)
    assert sim.policy.budget_w == 10 * (400 + 100)
    sim = simulation(plain([0.0], [16], [2]), "polca:servers=10,other=100,rated=700", 13)
    assert sim.policy.budget_w == 10 * 700
