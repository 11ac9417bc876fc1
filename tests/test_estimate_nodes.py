"""Are many devices billed right? Waiting replicas and stages, hops, links that are too narrow, long outputs."""

from __future__ import annotations

import functools

import pytest

from tokenfab.errors import InputError
from tokenfab.hw import estimate as module
from tokenfab.hw.collective import collective_time, fastest_link
from tokenfab.hw.devices import load_device
from tokenfab.hw.estimate import Request, estimate
from tokenfab.workloads.capture import capture
from tokenfab.workloads.parallel import Parallel
from tokenfab.workloads.trace import Trace


@functools.cache
def trace() -> Trace:
    return capture("llama-2-7b")


H100 = load_device("h100-sxm")
IDLE = H100.power.idle.value


def test_a_replica_without_a_sequence_idles() -> None:
    alone = estimate(trace(), H100, Request(1, 512, 16))
    four = estimate(trace(), H100, Request(1, 512, 16), Parallel(dp=4))
    assert four.latency_s == pytest.approx(alone.latency_s)
    assert four.energy_j == pytest.approx(alone.energy_j + 3 * IDLE * alone.latency_s)


def test_uneven_batches_fill_as_few_replicas_as_the_largest_share_allows() -> None:
    """Five sequences on four replicas: two each on two of them, one on the third; the fourth idles."""
    two = estimate(trace(), H100, Request(2, 512, 16))
    four = estimate(trace(), H100, Request(5, 512, 16), Parallel(dp=4))
    assert four.latency_s == pytest.approx(two.latency_s)
    assert four.energy_j == pytest.approx(3 * two.energy_j + IDLE * two.latency_s)


def test_a_pipelines_waiting_stages_are_in_the_phases_and_in_the_total() -> None:
    alone = estimate(trace(), H100, Request(1, 512, 1))
    staged = estimate(trace(), H100, Request(1, 512, 1), Parallel(pp=4))
    hop = 3 * float(collective_time("send", 512 * 4096 * 2, 4, H100))
    assert staged.latency_s == pytest.approx(alone.latency_s + hop)
    assert staged.prefill.energy_parts_j["waiting"] == pytest.approx(IDLE * (3 * staged.latency_s + hop))
    assert staged.energy_j == pytest.approx(staged.prefill.energy_j)
    assert sum(staged.prefill.energy_parts_j.values()) == pytest.approx(staged.prefill.energy_j)
    network = H100.intervals["network"]
    assert staged.interval_s[0] == pytest.approx(alone.interval_s[0] + hop * network.low.value)
    assert staged.interval_s[1] == pytest.approx(alone.interval_s[1] + hop * network.high.value)
    assert sum(staged.prefill.bound.values()) == pytest.approx(1)


def test_a_link_that_joins_eight_does_not_join_nine() -> None:
    assert fastest_link(H100, 8) is H100.links["nvlink"]
    assert fastest_link(H100, 9) is H100.links["pcie"]
    only_nvlink = H100.model_copy(update={"links": {"nvlink": H100.links["nvlink"]}})
    with pytest.raises(InputError, match="no link joins 16 of them; the widest joins 8"):
        estimate(trace(), only_nvlink, Request(1, 128, 2), Parallel(tp=16))


def test_a_long_output_is_the_sum_of_its_steps_however_they_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(1, 100, 3001)
    each = estimate(trace(), H100, request)
    monkeypatch.setattr(module, "MOST_STEPS", 100)
    gathered = estimate(trace(), H100, request)
    assert gathered.latency_s == pytest.approx(each.latency_s, rel=1e-4)
    assert gathered.energy_j == pytest.approx(each.energy_j, rel=1e-4)
