"""Is the CPU model right? Hand values on a core with round numbers, the choice of kernels, and T-MAC's speeds."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw import roofline
from tokenfab.hw.cost import cost, kind_models, prepare
from tokenfab.hw.devices import find_architecture, load_device
from tokenfab.hw.lut_cpu import TABLE_OPS, lookup_rate
from tokenfab.hw.spec import Device, parse_device
from tokenfab.validation.cores import decode_rate_of_cores, with_cores
from tokenfab.validation.this_cpu import Machine, device_of, predict
from tokenfab.workloads.compiled import CompiledTrace, compile_trace
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques

ROUND = """
name = "round"
description = "a core with round numbers"
kind = "cpu"
vendor = "nobody"
year = 2026
[engines.vector]
fp32 = {{ value = "32 GFLOP/s", source = "assumed: test" }}
int8 = {{ value = "{int8} GOP/s", source = "assumed: test" }}
[compute]
units = {{ value = {cores}, source = "assumed: test" }}
clock = {{ value = "1 GHz", source = "assumed: test" }}
[parameters]
vector_bytes = {{ value = 32, source = "assumed: test" }}
vector_pipes = {{ value = {pipes}, source = "assumed: test" }}
shuffles_per_clock = {{ value = {shuffles}, source = "assumed: test" }}
{kernels}
[memory.dram]
capacity = {{ value = "8 GiB", source = "assumed: test" }}
bandwidth = {{ value = "{bandwidth} GB/s", source = "assumed: test" }}
energy = {{ value = "4 pJ/bit", source = "assumed: test" }}
[power]
tdp = {{ value = "10 W", source = "assumed: test" }}
idle = {{ value = "1 W", source = "assumed: test" }}
[model]
matmul_efficiency = {{ value = 0.5, source = "assumed: test" }}
attention_efficiency = {{ value = 1, source = "assumed: test" }}
vector_efficiency = {{ value = 1, source = "assumed: test" }}
memory_efficiency = {{ value = 0.5, source = "assumed: test" }}
launch = {{ value = "{launch} us", source = "assumed: test" }}
link_efficiency = {{ value = 1, source = "assumed: test" }}
"""
LOOKUP = 'lookup_ops = { value = 4, source = "assumed: test" }\n'
UNPACK = 'unpack_ops = { value = 2, source = "assumed: test" }\n'
CORE = 'core_bandwidth = { value = "3 GB/s", source = "assumed: test" }\n'
PLAIN = {"cores": 1, "pipes": 2, "shuffles": 1, "kernels": LOOKUP, "bandwidth": 1000, "launch": 1, "int8": 1}


def device(**changes: object) -> Device:
    return parse_device(ROUND.format(**PLAIN | changes).encode(), "test", find_architecture)


def seconds(card: Device, tokens: int, bits: int, stored: float | None = None, size: int = 1024) -> float:
    return predict(card, tokens, size, size, bits, round(size * size * (stored or bits) / 8))[0]


def test_lookups_take_the_hand_computed_time():
    # min(1, 2 / 4) vectors of 32 lookups per clock at 1 GHz.
    assert lookup_rate(device()) == 16e9
    lookups = 1024 * 1024 * 2 / 4 / 16e9
    tables = 1024 * 4 * 2 * TABLE_OPS / (32 * 2 * 1e9)
    assert seconds(device(), 1, 2) == pytest.approx(1e-6 + (lookups + tables) / 0.5, rel=1e-12)
    assert seconds(device(), 3, 2) == pytest.approx(1e-6 + 3 * (lookups + tables) / 0.5, rel=1e-12)


def test_shuffles_bound_lookups_where_there_are_fewer_than_the_rest_allows():
    assert lookup_rate(device(pipes=8, shuffles=1)) == 32e9
    assert lookup_rate(device(pipes=8, shuffles=3)) == 64e9
    assert lookup_rate(device(cores=4)) == 64e9


def test_integer_products_take_the_hand_computed_time():
    card = device(kernels=UNPACK, int8=100)
    products, unpacking = 2 * 1024 * 1024 / 100e9, 1024 * 1024 * 2 / (32 * 2 * 1e9)
    assert seconds(card, 1, 4) == pytest.approx(1e-6 + (products + unpacking) / 0.5, rel=1e-12)
    assert seconds(card, 5, 4) == pytest.approx(1e-6 + (5 * products + unpacking) / 0.5, rel=1e-12)


def test_memory_bounds_where_it_is_slower_and_one_core_may_draw_only_part_of_it():
    slow = device(bandwidth=1)
    moved = 1024 * 1024 / 4 + 8 * 1024
    assert seconds(slow, 1, 2) == pytest.approx(1e-6 + moved / 0.5e9, rel=1e-12)
    fast = device(bandwidth=1000, shuffles=1000, pipes=4000, kernels=LOOKUP + CORE)
    assert seconds(fast, 1, 2) == pytest.approx(1e-6 + moved / 3e9, rel=1e-12)
    assert seconds(device(bandwidth=4, shuffles=1000, pipes=4000, kernels=LOOKUP + CORE), 1, 2) == pytest.approx(
        1e-6 + moved / 2e9, rel=1e-12
    )


def test_the_quickest_kernel_is_taken_and_named():
    card = device(kernels=LOOKUP + UNPACK, int8=400)
    trace = apply_techniques(load_trace("llama-2-7b"), ["weight-only:bits=1,head=1"])
    one = cost(trace, card, 1, 1, 8)
    many = cost(trace, card, 64, 1, 8)
    assert one.bound["lookup"][0] > 0.9
    assert many.bound["lookup"][0] == 0
    assert many.bound["compute"][0] > 0.9
    # Per weight of one token: a bit costs 16 ps by lookup; integers cost 5 ps and 31 ps to unpack.
    by_bits = [seconds(card, 1, bits) for bits in (1, 2, 3, 4)]
    assert by_bits == sorted(by_bits)
    assert by_bits[3] == seconds(device(kernels=UNPACK, int8=400), 1, 4)
    assert by_bits[0] == seconds(device(kernels=LOOKUP, int8=400), 1, 1)


def test_wide_weights_and_files_without_kernels_cost_what_the_roofline_says():
    for trace, card in (
        (load_trace("llama-2-7b"), load_device("raspberry-pi-5")),
        (apply_techniques(load_trace("llama-2-7b"), ["weight-only:bits=8"]), load_device("raspberry-pi-5")),
        (apply_techniques(load_trace("llama-2-7b"), ["weight-only:bits=2"]), device(kernels="")),
    ):
        ours = kind_models()["cpu"](compile_trace(trace), card)
        assert type(ours) is roofline.RooflineModel
        plain = roofline.prepare(compile_trace(trace), card)
        assert np.array_equal(ours.matrix, plain.matrix)


def test_a_file_that_names_kernels_says_what_they_need():
    text = ROUND.format(**PLAIN).replace("shuffles_per_clock", "shuffles")
    card = parse_device(text.encode(), "test", find_architecture)
    with pytest.raises(InputError, match=r"parameters\.shuffles_per_clock is missing"):
        seconds(card, 1, 2)


@functools.cache
def bitnet() -> CompiledTrace:
    return compile_trace(load_trace("bitnet-b1.58-3b"))


numbers = st.floats(0.5, 64)


@settings(max_examples=20)
@given(numbers, numbers, numbers, st.floats(1, 3), st.integers(1, 128), st.integers(1, 4))
def test_more_of_anything_is_never_slower_and_never_below_the_bytes(pipes, shuffles, bandwidth, more, tokens, bits):
    given_ = {"pipes": pipes, "shuffles": shuffles, "bandwidth": bandwidth, "kernels": LOOKUP + UNPACK, "int8": 50}
    base = seconds(device(**given_), tokens, bits)
    moved = 1024 * 1024 * bits / 8 + 8 * 1024 * tokens
    assert base >= moved / (bandwidth * 0.5e9) * (1 - 1e-9)
    for name in ("pipes", "shuffles", "bandwidth"):
        assert seconds(device(**given_ | {name: given_[name] * more}), tokens, bits) <= base * (1 + 1e-9)
    assert seconds(device(**given_ | {"kernels": ""}), tokens, bits) >= base * (1 - 1e-9)
    assert seconds(device(**given_ | {"cores": 2}), tokens, bits) <= base * (1 + 1e-9)


@settings(max_examples=20)
@given(st.integers(1, 256), st.integers(1, 4))
def test_energy_is_the_sum_of_its_parts_and_within_the_rated_power(tokens, bits):
    found = cost(bitnet(), load_device("raspberry-pi-5"), tokens, 1, 64 * bits)
    assert found.energy_j[0] == pytest.approx(sum(part[0] for part in found.energy_parts_j.values()))
    assert found.energy_j[0] <= 12.0 * found.latency_s[0] * (1 + 1e-9)
    assert sum(share[0] for share in found.bound.values()) == pytest.approx(1)


def test_lookups_keep_the_units_of_arithmetic_busy_and_never_longer_than_the_row_takes():
    trace = apply_techniques(load_trace("llama-2-7b"), ["weight-only:bits=2"])
    compiled, model = prepare(trace, with_cores(load_device("raspberry-pi-5"), 1))
    rows = model.rows(compiled.basis_at([1, 64], [1, 1], [8, 8]))
    assert set(rows.busy_s) == {"compute", "dram", "dequantisation"}
    assert all((busy <= (rows.time_s - rows.launch_s) * (1 + 1e-12)).all() for busy in rows.busy_s.values())
    looked_up = rows.bound == model.reasons.index("lookup")
    assert looked_up.any()
    assert np.allclose(rows.busy_s["compute"][looked_up], (rows.time_s - rows.launch_s)[looked_up])


# -- some cores of a CPU -----------------------------------------------------------------------------
def test_llama_at_two_bits_on_one_core_of_the_raspberry_pi_is_the_hand_computed_lookups():
    rate, low, high = decode_rate_of_cores("llama-2-7b", "raspberry-pi-5", 1, 64, "weight-only:bits=2,head=1")
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 32000 * 4096
    lookups_s = weights * 2 / 4 / (16 * 2 / 4 * 2.4e9 * 0.8)
    assert 1 / rate == pytest.approx(lookups_s, rel=0.04)  # the rest: attention, element-wise, launches
    assert low < rate < high


def test_more_cores_than_there_are_is_refused():
    for count in (0, 5):
        with pytest.raises(InputError, match=f"{count} threads: raspberry-pi-5 has 4 cores"):
            with_cores(load_device("raspberry-pi-5"), count)


# -- the processor at hand -------------------------------------------------------------------------
def test_a_machine_becomes_a_device_that_reads_as_fast_as_was_measured():
    machine = Machine("a processor", "avx512", 2, 2.5e9, 2**25, {1: 10e9, 2: 15e9})
    card = device_of(machine, "lut", 1, 2e-6)
    assert card is not None
    assert lookup_rate(card) == pytest.approx(2.5e9 * 64 * 2 / 5.5)
    time, low, high = predict(card, 1, 4096, 4096, 4, 9_000_000)
    assert time == pytest.approx(2e-6 + (9e6 + 8 * 4096) / 10e9, rel=1e-6)
    assert low < time < high
    assert device_of(Machine("another", "portable", 2, 2.5e9, 0, {1: 1e10}), "dot", 1, 1e-6) is None
