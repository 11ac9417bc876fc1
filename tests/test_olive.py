"""Arrays of outlier-victim pairs, and what the card computes for each design that OliVe is compared with."""

from __future__ import annotations

import functools

import pytest

from tokenfab.errors import InputError
from tokenfab.hw.array import arrays_count, engine_of
from tokenfab.rtl.areas import macs_per_cycle
from tokenfab.systems.spec import load_system
from tokenfab.validation.pair_arrays import pair_arrays, pair_arrays_speed
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace


@functools.cache
def run_of(name: str) -> Trace:
    run = load_system("olive").runs[name][0]
    return apply_techniques(load_trace(run.model), list(run.apply))


def test_the_card_computes_what_each_design_does():
    formats = {name: {op.format for op, _ in run_of(name).operators() if op.kind == "matmul"}
               for name in ("olive", "gobo", "int8")}  # fmt: skip
    assert formats["gobo"] == {"fp16"}
    assert "int4" in formats["olive"]
    assert "int8" in formats["int8"]
    assert run_of("gobo").weights_bytes < run_of("olive").weights_bytes < run_of("int8").weights_bytes


@pytest.mark.parametrize(("elements", "bits", "macs"), [(4096, 4, 4096), (4096, 8, 1024), (3584, 8, 896)])
def test_arrays_multiply_as_many_as_they_have_elements(elements: int, bits: int, macs: int):
    device = pair_arrays(elements, bits, 500e6, 64e9)
    engine, pair = engine_of(device), {"weight": f"ovp{bits}", "activation": f"ovp{bits}"}
    assert arrays_count(device) * macs_per_cycle(engine.unit, engine.config, pair) == pytest.approx(macs, rel=1e-3)
    assert (device.compute.clock.value, device.dram.bandwidth.value) == (500e6, 64e9)


def test_other_widths_and_less_than_an_array_are_refused():
    with pytest.raises(InputError, match="pairs of 5 bits; accepted: 4 or 8"):
        pair_arrays(4096, 5, 500e6, 64e9)
    with pytest.raises(InputError, match="accepted: no less"):
        pair_arrays(100, 4, 500e6, 64e9)


def test_a_prompt_goes_with_the_elements_where_memory_binds_neither():
    """OPT-125M, 512 tokens, 1 TB/s: half as many elements take twice as long; as 8-bit ones four times."""
    asked = {"model": "opt-125m", "batch": 4, "prompt": 512, "clock_mhz": 500, "bandwidth_gb_s": 1e6}
    half = pair_arrays_speed(elements=4096, bits=4, over_elements=2048, over_bits=4, **asked)
    wide = pair_arrays_speed(elements=4096, bits=4, over_elements=4096, over_bits=8, **asked)
    assert half == pytest.approx(2, rel=0.2)
    assert wide == pytest.approx(4, rel=0.2)
