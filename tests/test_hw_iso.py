"""Equal area and equal bandwidth: what is changed, what is not, and the laws."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.array import array_area, arrays_count, rtl_area
from tokenfab.hw.cost import cost
from tokenfab.hw.devices import load_device
from tokenfab.hw.die import area_of
from tokenfab.hw.iso import iso_area, iso_bandwidth
from tokenfab.reports.study import _file_names
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace

DEVICES = ["bitmod", "ant", "olive", "gobo", "fp16-array"]


def test_bitmods_comparison_is_of_one_area():
    """Arrays of the paper's table X and its simulator: all between 1.35 and 1.6 mm2 in 28 nm."""
    areas = {name: array_area(load_device(name)) * arrays_count(load_device(name)) for name in DEVICES}
    assert areas["bitmod"] == pytest.approx(16 * 0.099509)
    assert areas["fp16-array"] == pytest.approx(16 * 0.095498)
    assert areas["ant"] == pytest.approx(1.3502464, rel=1e-4)
    assert areas["olive"] == pytest.approx(1.5190272, rel=1e-4)
    assert 1.35 < min(areas.values()) < max(areas.values()) < 1.6


@pytest.mark.parametrize("name", DEVICES)
def test_as_many_arrays_as_the_area_holds(name):
    device, each = load_device(name), array_area(load_device(name))
    same = iso_area(device, each * arrays_count(device))
    assert same.compute.units.value == device.compute.units.value
    assert same.power.tdp.value == pytest.approx(device.power.tdp.value)
    for area in (3.0, each, 7.5 * each):
        changed = iso_area(device, area)
        units = changed.compute.units.value
        assert units * each <= area * (1 + 1e-9) < (units + 1) * each * (1 + 1e-9)
        assert changed.compute.units.source.startswith("derived: ")
        more = units - device.compute.units.value
        assert changed.die.area.value == pytest.approx(device.die.area.value + more * each, rel=1e-9)
        assert changed.power.tdp.value == pytest.approx(device.power.tdp.value + more * device.arrays.power.value)
        assert changed.memory == device.memory
        assert changed.digest != device.digest


def test_the_rtls_area_where_nobody_published_one():
    fp4 = {"weight": "fp4", "activation": "fp16"}
    whole = load_device("bitmod")
    bare = whole.model_copy(update={"arrays": whole.arrays.model_copy(update={"area": None})})
    assert iso_area(bare, 10.0, fp4).compute.units.value == 10.0 // rtl_area(bare, fp4)
    with pytest.raises(InputError, match=r"device bitmod: arrays\.area is missing; give a pair of formats"):
        iso_area(bare, 10.0)


def test_arrays_in_multiprocessors_stay_in_them():
    """An A100 with half the area of lookup units: 8 in each of its 108 multiprocessors instead of 16."""
    device = load_device("a100-lut-tensor-core")
    half = iso_area(device, array_area(device) * arrays_count(device) / 2)
    assert (half.compute.units.value, half.arrays.per_unit.value) == (108, 8)
    assert arrays_count(half) == 864


def test_bandwidth_changes_the_dram_alone():
    device = load_device("ant")
    changed = iso_bandwidth(device, 64e9)
    assert changed.dram.bandwidth.value == 64e9
    assert changed.dram.energy == device.dram.energy
    assert changed.power.tdp.value - device.power.tdp.value == pytest.approx(32e9 * 8 * 18.75e-12)
    assert changed.compute == device.compute


def test_a_name_may_carry_both():
    found = load_device("bitmod@area=3mm2,bandwidth=64GB/s")
    assert (found.compute.units.value, found.dram.bandwidth.value) == (30, 64e9)
    with pytest.raises(InputError, match="unknown change of a device 'are'; did you mean area"):
        load_device("bitmod@are=3mm2")
    with pytest.raises(InputError, match=r"bitmod@area=3: 3 has no unit; accepted: an area"):
        load_device("bitmod@area=3")
    with pytest.raises(InputError, match=r"its arrays take 0\.09951 mm2 at least; accepted: no less, not 0\.05"):
        load_device("bitmod@area=0.05mm2")
    with pytest.raises(
        InputError,
        match=r"^a100-80g-sxm@area=3mm2: only devices made of arrays \(\[arrays\] in their file\) take an area$",
    ):
        load_device("a100-80g-sxm@area=3mm2")
    with pytest.raises(InputError, match=r"^bitmod@area=3mm2,area=4mm2: area is given twice; accepted: once$"):
        load_device("bitmod@area=3mm2,area=4mm2")
    with pytest.raises(InputError, match="hbm-pim@area=3mm2: only devices made of arrays"):
        load_device("hbm-pim@area=3mm2")
    with pytest.raises(InputError, match="a bandwidth of 0 B/s"):
        iso_bandwidth(load_device("ant"), 0)


def test_a_change_is_told_by_name_description_and_files():
    changed, plain = load_device("bitmod@area=3mm2,bandwidth=64GB/s"), load_device("bitmod")
    assert changed.name == "bitmod@area=3mm2,bandwidth=64GB/s"
    assert changed.description == f"{plain.description}; here 30 arrays in 3mm2, DRAM of 64GB/s"
    assert load_device("bitmod@bandwidth=64GB/s").description.endswith("; here DRAM of 64GB/s")
    assert _file_names([plain, changed, changed]) == [
        "bitmod.json", "bitmod@area=3mm2,bandwidth=64GB-s.json", "bitmod@area=3mm2,bandwidth=64GB-s-2.json",
    ]  # fmt: skip


def test_area_parts_have_the_arrays_that_were_asked_for():
    """30 arrays of 0.099509 mm2 in 3; 64 GB/s of DDR, 2.39 mm2 per 25.6; the die: 4.76 and 14 arrays more."""
    found = area_of(load_device("bitmod@area=3mm2,bandwidth=64GB/s"))
    assert found.parts["arrays"] == pytest.approx(30 * 0.099509)
    assert found.parts["memory"] == pytest.approx(64 / 25.6 * 2.39)
    assert found.total == pytest.approx(4.76 + 14 * 0.099509) == pytest.approx(sum(found.parts.values()))
    assert found.parts["unexplained"] < 0
    assert found.note == "unexplained: stated area less the parts, negative where the stated area leaves parts out"


APPLIED = {"fp16-array": [], "ant": ["weight-only:bits=5,head=1"], "gobo": ["weight-only:bits=3,head=1"]}


@functools.cache
def trace_for(name: str) -> Trace:
    """OPT-125M as the device takes it."""
    return apply_techniques(load_trace("opt-125m"), APPLIED[name])


@given(
    st.sampled_from(sorted(APPLIED)), st.floats(0.2, 20), st.floats(1, 5), st.floats(1e9, 1e12), st.floats(1, 5),
    st.tuples(st.integers(1, 16), st.integers(1, 300), st.integers(0, 600)),
)  # fmt: skip
def test_more_area_or_bandwidth_never_slows(name, area, times, bandwidth, wider, point):
    trace, device = trace_for(name), load_device(name)
    before = cost(trace, iso_bandwidth(iso_area(device, area), bandwidth), *point)
    after = cost(trace, iso_bandwidth(iso_area(device, area * times), bandwidth * wider), *point)
    assert after.latency_s[0] <= before.latency_s[0] * (1 + 1e-9)
    assert before.latency_s[0] >= float(trace.total("bytes")(*point)) / bandwidth


def test_narrower_weights_on_the_same_silicon_pay_when_decoding():
    """Equal area and DRAM: a token takes 16, 5 and 3 bits a weight."""
    seconds = {}
    for name in APPLIED:
        device = iso_bandwidth(iso_area(load_device(name), 1.5), 32e9)
        seconds[name] = float(cost(trace_for(name), device, 1, 1, 256).latency_s[0])
    assert seconds["fp16-array"] > 2 * seconds["ant"] > 2 * seconds["gobo"]
