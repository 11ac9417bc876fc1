"""Is the whole the sum of its steps? Totals, memory, energy and price by brute force and by hand."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.cost import cost
from tokenfab.hw.devices import find_architecture, load_device
from tokenfab.hw.estimate import Request, estimate
from tokenfab.hw.hourly import HOURS_OF_LIFE, USD_PER_KWH
from tokenfab.hw.result import estimate_document
from tokenfab.hw.spec import Device, parse_device
from tokenfab.workloads.capture import capture
from tokenfab.workloads.parallel import Parallel, parse_parallel, tensor_parallel
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace

WIDTHS = {"llama-2-7b": (32, 32, 128), "llama-2-70b": (80, 8, 128), "mistral-7b": (32, 8, 128)}
"""Layers, KV heads, head dimension."""


@functools.cache
def trace(model: str = "llama-2-7b") -> Trace:
    return capture(model)


def device(**changes: Any) -> Device:
    """A device with round numbers of a kind that the roofline models."""
    numbers = {
        "engines.matrix.fp16": "100 TFLOP/s", "engines.matrix.bf16": "100 TFLOP/s", "engines.vector.fp32": "10 TFLOP/s",
        "compute.units": 1, "compute.clock": "1 GHz", "memory.dram.capacity": "80 GiB",
        "memory.dram.bandwidth": "1 TB/s", "memory.dram.energy": "4 pJ/bit", "links.ring.bandwidth": "100 GB/s",
        "links.ring.latency": "1 ns", "power.tdp": "400 W", "power.idle": "60 W", "model.matmul_efficiency": 1,
        "model.attention_efficiency": 1, "model.vector_efficiency": 1, "model.memory_efficiency": 1,
        "model.launch": "5 us", "model.link_efficiency": 0.5,
    } | changes  # fmt: skip
    lines = ['name = "round"', 'description = "round numbers"', 'kind = "tpu"', 'vendor = "nobody"', "year = 2026"]
    for key, value in numbers.items():
        if value is not None:
            text = f'"{value}"' if isinstance(value, str) else value
            lines.append(f'{key} = {{ value = {text}, source = "assumed: test" }}')
    return parse_device("\n".join(lines).encode(), "round.toml", find_architecture)


def by_steps(model: Trace, card: Device, b: int, p: int, t: int) -> dict[str, float]:
    """Prefill and each of the t − 1 decode steps costed one by one and added up."""
    sides = ("latency_s", "low_s", "high_s", "energy_j", "energy_low_j", "energy_high_j")
    passes = [cost(model, card, b, p, 0)] + [cost(model, card, b, 1, p + i) for i in range(t - 1)]
    return {side: sum(float(getattr(x, side)[0]) for x in passes) for side in sides}


# -- totals ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("card", ["h100-sxm", "tpu-v5e", "xeon-2s"])
@pytest.mark.parametrize(("b", "p", "t"), [(1, 512, 1), (1, 100, 2), (3, 17, 9)])
def test_the_total_is_the_sum_of_prefill_and_every_decode_step(card, b, p, t):
    found, expected = (
        estimate(trace(), load_device(card), Request(b, p, t)),
        by_steps(trace(), load_device(card), b, p, t),
    )
    assert found.latency_s == pytest.approx(expected["latency_s"], rel=1e-9)
    assert found.interval_s == pytest.approx((expected["low_s"], expected["high_s"]), rel=1e-9)
    assert found.energy_j == pytest.approx(expected["energy_j"], rel=1e-9)
    assert found.energy_interval_j == pytest.approx((expected["energy_low_j"], expected["energy_high_j"]), rel=1e-9)


def test_one_token_is_the_prefill_alone():
    found = estimate(trace(), device(), Request(2, 64, 1))
    assert found.latency_s == found.prefill.latency_s
    assert found.energy_j == pytest.approx(found.prefill.energy_j)
    assert (found.tokens, found.tokens_per_s) == (2, 2 / found.prefill.latency_s)


def test_decode_is_the_step_at_the_mean_context():
    found = estimate(trace(), device(), Request(4, 100, 11))  # contexts 100 … 109
    assert found.decode.latency_s == pytest.approx(cost(trace(), device(), 4, 1, 104.5).latency_s[0])
    steps = cost(trace(), device(), 4, 1, 100 + np.arange(10)).latency_s
    assert found.decode.latency_s == pytest.approx(steps.mean(), rel=1e-3)
    document = estimate_document(found, trace())
    assert document["decode"]["context"] == 104.5
    assert document["total"]["tokens_per_s"] == pytest.approx(4 * 11 / found.latency_s)


@given(st.integers(1, 64), st.integers(1, 3000), st.integers(1, 1000))
def test_more_output_takes_longer_and_parts_of_energy_sum(b, p, t):
    found, longer = (estimate(trace(), device(), Request(b, p, n)) for n in (t, t + 1))
    assert longer.latency_s > found.latency_s
    for phase in (found.prefill, found.decode):
        assert phase.energy_j == pytest.approx(sum(phase.energy_parts_j.values()))
        assert sum(phase.bound.values()) == pytest.approx(1)
        assert phase.interval_s[0] <= phase.latency_s <= phase.interval_s[1]
    assert found.interval_s[0] <= found.latency_s <= found.interval_s[1]
    assert found.energy_interval_j[0] <= found.energy_j <= found.energy_interval_j[1]


@pytest.mark.parametrize(
    ("request_", "word"), [(Request(0), "batch"), (Request(1, 0), "prompt"), (Request(1, 1, 0), "output")]
)
def test_an_empty_request_is_refused(request_, word):
    with pytest.raises(InputError, match=f"{word} 0"):
        estimate(trace(), device(), request_)


def test_both_sides_of_the_longest_context():
    assert estimate(trace(), device(), Request(1, 4000, 96)).latency_s > 0
    with pytest.raises(InputError, match="4097 tokens exceed the 4096 of llama-2-7b"):
        estimate(trace(), device(), Request(1, 4000, 97))


# -- several devices -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "count", "degrees"),
    [(None, None, (1, 1, 1)), (None, 4, (4, 1, 1)), ("tp=2", None, (2, 1, 1)), ("tp=2", 8, (2, 1, 4)),
     ("tp=2,pp=2", 4, (2, 2, 1)), ("tp=2,pp=2", 12, (2, 2, 3)), ("pp=2", 2, (1, 2, 1)), ("dp=3", 6, (1, 1, 6))],
)  # fmt: skip
def test_a_count_is_tensor_parallel_and_multiples_are_replicas(text, count, degrees):
    parallel = parse_parallel(text, count)
    assert (parallel.tp, parallel.pp, parallel.dp) == degrees
    assert parallel.devices == (count or np.prod(degrees))


def test_replicas_divide_the_batch():
    one, four = (estimate(trace(), device(), Request(b, 64, 8), Parallel(dp=dp)) for b, dp in ((2, 1), (8, 4)))
    assert four.latency_s == one.latency_s
    assert four.energy_j == pytest.approx(4 * one.energy_j)
    assert four.tokens_per_s == pytest.approx(4 * one.tokens_per_s)
    assert four.memory == one.memory
    uneven = estimate(trace(), device(), Request(5, 64, 8), Parallel(dp=4))  # 2 + 1 + 1 + 1
    assert (uneven.latency_s, uneven.tokens) == (one.latency_s, 40)


def test_tensor_parallel_devices_each_do_their_share():
    found = estimate(trace(), device(), Request(2, 64, 8), Parallel(tp=4))
    expected = by_steps(tensor_parallel(trace(), 4), device(), 2, 64, 8)
    assert found.latency_s == pytest.approx(expected["latency_s"])
    assert found.energy_j == pytest.approx(4 * expected["energy_j"])
    assert found.memory.kv_bytes == pytest.approx(2 * 72 * 524288 / 4)
    embedding = 2 * 32000 * 4096  # may be kept whole on every device
    assert 0 <= found.memory.weights_bytes - trace().weights_bytes / 4 <= embedding


def test_heads_that_do_not_divide_are_rounded_up_on_the_fullest_device():
    """32 heads over 3 devices: 11, 11 and 10; the fullest sets time and memory."""
    found = estimate(trace(), device(), Request(1, 64, 8), Parallel(tp=3))
    assert found.memory.kv_bytes == pytest.approx(72 * 524288 * 11 / 32)
    assert trace().weights_bytes / 3 <= found.memory.weights_bytes <= trace().weights_bytes / 2
    assert estimate(trace(), device(), Request(1, 64, 8), Parallel(tp=32)).latency_s > 0
    with pytest.raises(InputError, match="32 attention heads cannot be divided over 33 devices"):
        estimate(trace(), device(), Request(1, 64, 8), Parallel(tp=33))


def test_a_pipeline_passes_activations_on_and_divides_the_layers():
    """Four stages, three hops of b × q × 4096 fp16 values at half of 100 GB/s; one stage works, three wait."""
    one, four = (estimate(trace(), device(), Request(2, 64, 8), Parallel(pp=pp)) for pp in (1, 4))
    hop = 3 * 4096 * 2 / 50e9
    launches = 3 * 5e-6
    assert four.prefill.latency_s == pytest.approx(one.prefill.latency_s + 2 * 64 * hop + launches, rel=1e-6)
    assert four.latency_s == pytest.approx(one.latency_s + (2 * 64 + 2 * 7) * hop + 8 * launches, rel=1e-6)
    assert four.energy_j == pytest.approx(one.energy_j + 3 * 60 * one.latency_s, rel=1e-3)
    d, inner, vocabulary = 4096, 11008, 32000
    layer = 2 * (4 * d * d + 3 * d * inner + 2 * d)
    assert four.memory.weights_bytes == 8 * layer + 2 * (d * vocabulary + d)  # the last stage: head and its norm
    assert four.memory.kv_bytes == one.memory.kv_bytes / 4
    with pytest.raises(InputError, match="32 layers cannot be divided over 33 pipeline stages"):
        estimate(trace(), device(), Request(1, 64, 8), Parallel(pp=33))


def test_devices_without_a_link_do_not_work_together():
    alone = device(**{"links.ring.bandwidth": None, "links.ring.latency": None})
    with pytest.raises(InputError, match="device round: has no \\[links\\]"):
        estimate(trace(), alone, Request(), Parallel(tp=2))


# -- memory ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", WIDTHS)
def test_memory_is_weights_and_the_kv_of_all_tokens_and_the_largest_activations(model):
    layers, kv_heads, width = WIDTHS[model]
    fit = estimate(trace(model), device(), Request(3, 1000, 24)).memory
    assert fit.weights_bytes == 2 * trace(model).parameters
    assert fit.kv_bytes == 2 * layers * 2 * kv_heads * width * 3 * 1024
    inner = {"llama-2-7b": 11008, "llama-2-70b": 28672, "mistral-7b": 14336}[model]
    assert fit.activation_bytes == 2 * 3 * 1000 * 3 * inner  # gate and up in, their product out
    assert fit.capacity_bytes == 80 * 2**30
    assert fit.needed_bytes == fit.weights_bytes + fit.kv_bytes + fit.activation_bytes


@pytest.mark.parametrize(("prompt", "held"), [(4000, 4032), (4064, 4096), (4065, 4096), (20000, 4096)])
def test_a_window_caps_the_cache(prompt, held):
    fit = estimate(trace("mistral-7b"), device(), Request(1, prompt, 32)).memory
    assert fit.kv_bytes == 2 * 32 * 2 * 8 * 128 * held


def test_both_sides_of_the_capacity():
    needed = int(estimate(trace(), device(), Request()).memory.needed_bytes)
    fits, short = (
        estimate(trace(), device(**{"memory.dram.capacity": f"{needed - less} B"}), Request()).memory for less in (0, 1)
    )
    assert (fits.fits, fits.missing_bytes) == (True, 0)
    assert (short.fits, short.missing_bytes) == (False, 1)
    reserved = device(**{"memory.dram.capacity": f"{needed} B", "memory.dram.reserved": "1 KiB"})
    assert estimate(trace(), reserved, Request()).memory.missing_bytes == 1024


def test_narrow_weights_and_caches_need_less_memory():
    narrow = apply_techniques(trace(), ["weight-only:bits=4,group=128", "kv-quant:bits=8,scale_bits=16"])
    fit, plain = (estimate(t, device(), Request()).memory for t in (narrow, trace()))
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert fit.weights_bytes == plain.weights_bytes - linear * (2 - (4 + 16 / 128) / 8)
    assert fit.kv_bytes == pytest.approx(plain.kv_bytes * (8 + 16 / 128) / 16)


# -- price -----------------------------------------------------------------------------------------
def test_a_bought_device_is_written_off_and_its_electricity_paid():
    found = estimate(trace(), device(**{"price.purchase": "17520 USD"}), Request(1, 64, 8), Parallel(dp=1))
    assert (HOURS_OF_LIFE, USD_PER_KWH) == (35040, 0.10)
    kilowatts = found.energy_j / found.latency_s / 1000
    hourly = 17520 / 35040 + kilowatts * 0.10  # half a dollar an hour, and electricity
    assert found.hourly_usd == (pytest.approx(hourly), "bought, written off in 4 years, electricity")
    assert found.cost_usd_per_mtoken == pytest.approx(hourly * found.latency_s / 3600 / 8 * 1e6)


def test_a_rented_device_is_paid_by_the_hour_and_all_devices_are_paid():
    rented = device(**{"price.hourly": "1.8 USD/h"})
    one = estimate(trace(), rented, Request(1, 64, 8))
    assert one.hourly_usd == (1.8, "rented")
    assert one.cost_usd_per_mtoken == pytest.approx(1.8 / 3600 * one.latency_s / 8 * 1e6)
    assert estimate(trace(), rented, Request(1, 64, 8), Parallel(tp=2, pp=2)).hourly_usd == (4 * 1.8, "rented")


def test_a_price_to_buy_comes_before_one_to_rent_and_without_any_there_is_none():
    both = device(**{"price.purchase": "17520 USD", "price.hourly": "99 USD/h"})
    assert estimate(trace(), both, Request()).hourly_usd[0] < 1
    none = estimate(trace(), device(), Request())
    assert (none.hourly_usd, none.cost_usd_per_mtoken) == (None, None)
    assert estimate_document(none, trace())["total"]["cost_usd_per_mtoken"] is None
