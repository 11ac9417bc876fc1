"""Area per operation: throughput by the cycle models, areas made again, ratios as kept for the cost models."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rtl_support import need_yosys

from tokenfab.errors import InputError
from tokenfab.rtl import areas, compare
from tokenfab.rtl.area import find_liberty
from tokenfab.rtl.units import chosen_units, load_unit, unit_names

FORMATS = {
    "bit_serial_pe": {"weight": "fp4", "activation": "fp16"},
    "fp16_mac": {"weight": "fp16", "activation": "fp16"},
    "lut_tensor_unit": {"weight": "int3", "activation": "int8"},
    "ovp_decoder": {"weight": "ovp4", "activation": "ovp4"},
    "sparse_dsp_chain": {"weight": "int8", "activation": "int8", "sparsity": "2:16"},
}


@pytest.mark.parametrize("name", unit_names())
def test_arrays_of_products_have_the_cycles_of_each(name):
    """Cost models ask for many products at once."""
    unit = load_unit(name)
    random = np.random.default_rng(1)
    shape = {size: random.integers(1, 700, 200) for size in "mnk"}
    many = unit.cycles(shape, FORMATS[name], unit.check({}))
    for i in range(200):
        one = {size: int(values[i]) for size, values in shape.items()}
        assert many[i] == unit.cycles(one, FORMATS[name], unit.check({}))
    with pytest.raises(InputError, match="m must be at least 1; it is 0"):
        unit.cycles(shape | {"m": shape["m"] * 0}, FORMATS[name], unit.check({}))


@pytest.mark.parametrize("name", unit_names())
def test_tiles_follow_one_another_whatever_their_order(name):
    """A product is its tiles: cost models deal them out to arrays."""
    unit, format = load_unit(name), FORMATS[name]
    rows, columns = unit.tile(format, unit.check({}))
    for a, b, k in ((1, 1, 5), (2, 3, 64), (7, 5, 300), (13, 1, 1000)):
        square = unit.cycles({"m": rows * a, "n": columns * b, "k": k}, format, unit.check({}))
        assert square == unit.cycles({"m": rows, "n": columns * a * b, "k": k}, format, unit.check({}))
        ragged = unit.cycles({"m": rows * (a - 1) + 1, "n": columns * (b - 1) + 1, "k": k}, format, unit.check({}))
        assert square == ragged


@pytest.mark.parametrize(
    ("name", "parameters", "format", "macs"),
    [
        ("bit_serial_pe", {}, {"weight": "fp4", "activation": "fp16"}, 8 * 8 * 4 / 2),
        ("bit_serial_pe", {"ROWS": 16, "COLS": 16}, {"weight": "int6", "activation": "fp16"}, 16 * 16 * 4 / 3),
        ("lut_tensor_unit", {}, {"weight": "int2", "activation": "int8"}, 2 * 64 * 4 / 2),
        ("ovp_decoder", {}, {"weight": "ovp4", "activation": "ovp4"}, 16),
        ("ovp_decoder", {}, {"weight": "ovp8", "activation": "ovp8"}, 4),
        ("sparse_dsp_chain", {}, {"weight": "int8", "activation": "int8", "sparsity": "2:4"}, 16 * 2 * 2),
        ("fp16_mac", {"ROWS": 7, "COLS": 12, "LANES": 4}, {"weight": "fp16", "activation": "fp16"}, 7 * 12 * 4),
        ("lut_tensor_unit", {"K": 3, "M": 3}, {"weight": "int2", "activation": "int8"}, 3 * 64 * 3 / 2),
        ("fp16_mac", {"ROWS": 8, "COLS": 8, "LANES": 1}, {"weight": "fp16", "activation": "fp16"}, 64),
    ],
)
def test_throughput_by_hand(name, parameters, format, macs):
    unit = load_unit(name)
    assert areas.macs_per_cycle(unit, unit.check(parameters), format) == pytest.approx(macs, rel=1e-12)


def test_areas_are_those_kept():
    """``areas.json``, which cost models read, is what Yosys says of the RTL as it is."""
    need_yosys()
    library = find_liberty(None)
    kept = json.loads(areas.AREAS.read_text(encoding="utf-8"))
    if library is None or library.name != kept["liberty"]:
        pytest.skip(f"needs the liberty file {kept['liberty']}: apt-get install qflow-tech-osu018")
    rows = compare.compare_rows(chosen_units([]), library, lambda name: None)
    assert len(rows) == len(kept["rows"])
    for row, old in zip(rows, kept["rows"], strict=True):
        for key, value in old.items():
            assert row[key] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), (row, key)


def test_ratios_are_areas_at_equal_throughput():
    rows = areas.kept_areas()
    (base,) = [row for row in rows if row["unit"] == "fp16_mac" and row["relative"] == 1]
    for row in rows:
        assert row["relative"] == pytest.approx(row["gates_per_mac"] / base["gates_per_mac"], rel=1e-3)
    fp4, int8 = (areas.relative_area("bit_serial_pe", {"weight": w, "activation": "fp16"}) for w in ("fp4", "int8"))
    assert int8 == pytest.approx(2 * fp4, rel=1e-3)  # the same array, four cycles instead of two
    assert areas.relative_area("fp16_mac", {}) == 1
    pairs = {"weight": "ovp4", "activation": "ovp4"}
    narrow, wide = (areas.relative_area("ovp_decoder", pairs, {"WIDE": w, "ROWS": 16}) for w in (0, 1))
    assert narrow < wide


def test_an_area_that_nobody_compared_is_refused():
    with pytest.raises(InputError, match="no area of ovp_decoder for int3 by fp16; compared: ovp4 by ovp4"):
        areas.relative_area("ovp_decoder", {"weight": "int3", "activation": "fp16"})
    with pytest.raises(InputError, match="compared: nothing"):
        areas.relative_area("nothing", {"weight": "int3"})


def test_areas_without_a_liberty_file_are_refused(monkeypatch):
    monkeypatch.setattr(compare, "find_liberty", lambda given: None)
    with pytest.raises(InputError, match="areas are compared in a liberty file: --liberty FILE, or apt-get install"):
        compare.compare_rows(chosen_units([]), None, lambda name: None)
