"""Units: a number means what the datasheet means, and nothing out of range gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.hw.units import DIMENSIONS, KEYS, Key, measure


@pytest.mark.parametrize(
    ("dimension", "text", "value"),
    [
        ("bandwidth", "2039 GB/s", 2.039e12),
        ("bandwidth", "1 GiB/s", 1073741824),
        ("bandwidth", "400 Gbit/s", 50e9),
        ("size", "80 GB", 80e9),
        ("size", "80 GiB", 85899345920),
        ("size", "1 kB", 1000),
        ("size", "1 KiB", 1024),
        ("size", "1 TiB", 2**40),
        ("rate", "1.5 PFLOP/s", 1.5e15),
        ("rate", "624 TOP/s", 624e12),
        ("time", "2.4 us", 2.4e-6),
        ("time", "2.4 µs", 2.4e-6),
        ("time", "560ns", 560e-9),
        ("energy per bit", "3.97 pJ/bit", 3.97e-12),
        ("energy per bit", "8 pJ/B", 1e-12),
        ("power", "0.4 kW", 400),
        ("area", "826 mm²", 826),
        ("area", "1507.7 um2", 1507.7e-6),
        ("fraction", 0.88, 0.88),
        ("fraction", "88 %", 0.88),
        ("count", 108, 108),
        ("price", "1e4 USD", 10000),
    ],
)
def test_a_unit_means_what_the_datasheet_means(dimension: str, text: str | float, value: float) -> None:
    key = next(k for k in KEYS.values() if k.dimension == dimension)
    assert measure(text, key)[0] == pytest.approx(value, rel=1e-12)


def test_a_unit_belongs_to_one_dimension_so_a_parameter_needs_no_other_declaration() -> None:
    seen: dict[str, str] = {}
    for name, dimension in DIMENSIONS.items():
        for unit in dimension.units:
            if unit not in ("", "%"):
                assert seen.setdefault(unit, name) == name


def test_the_bounds_and_the_example_of_every_key_are_themselves_accepted() -> None:
    for name, key in KEYS.items():
        if key.dimension in DIMENSIONS:
            for text in (key.low, key.high, key.example):
                assert measure(text, key), name


def test_both_sides_of_a_bound() -> None:
    bandwidth, efficiency = KEYS["memory.dram.bandwidth"], KEYS["model.matmul_efficiency"]
    assert measure("1 PB/s", bandwidth)[0] == 1e15
    with pytest.raises(ValueError, match="out of range"):
        measure("1000.001 TB/s", bandwidth)
    assert measure(1, efficiency)[0] == 1
    for bad in (1.0001, 0, -0.5):
        with pytest.raises(ValueError, match="out of range"):
            measure(bad, efficiency)


UNITS = st.sampled_from([u for d in DIMENSIONS.values() for u in d.units])
MEASURES = st.builds(lambda n, u: f"{n} {u}", st.floats() | st.integers(-(10**6), 10**6), UNITS)
RAW = st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=30) | MEASURES


@given(RAW, st.sampled_from(sorted(KEYS)))
def test_measuring_gives_a_number_in_range_or_a_value_error(raw: object, name: str) -> None:
    key: Key = KEYS[name]
    if key.dimension not in DIMENSIONS:
        return
    try:
        value, unit, text = measure(raw, key)
    except ValueError:
        return
    assert measure(key.low, key)[0] <= value <= measure(key.high, key)[0]
    assert unit == DIMENSIONS[key.dimension].base
    assert measure(text, key)[0] == value
