"""The catalogue: the numbers are the datasheets', and every one says where it comes from."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

import tokenfab.hw
from tokenfab.hw.devices import device_files, device_names, load_device
from tokenfab.hw.spec import DEFAULT, Device, parse_architecture
from tokenfab.hw.units import ARCHITECTURE_KEYS, KEYS

CATALOG = Path(str(tokenfab.hw.__file__)).parent / "catalog"
ARCHITECTURES = sorted(p.stem for p in (CATALOG / "architectures").glob("*.toml"))
PROMISED = [
    "v100s", "a100-40g-sxm", "a100-80g-sxm", "h100-sxm", "h100-pcie", "h200-sxm", "h20", "b200", "l4", "l20", "l40s",
    "a10", "a40", "a6000", "t4", "rtx-3090", "rtx-4090", "rtx-pro-6000", "titan-xp", "p40", "mi210", "mi250", "mi300x",
    "tpu-v3", "tpu-v5e", "tpu-v6e", "m2-ultra", "raspberry-pi-5", "xeon-2s",
]  # fmt: skip
NAMES = device_names()
GIB = 2**30


def number(device: Device, key: str) -> float:
    return dict(device.quantities())[key].value


# Literal datasheet values in base units, so that a wrong table fails.
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("v100s", "engines.matrix.fp16", 130e12),
        ("v100s", "memory.dram.bandwidth", 1134e9),
        ("a100-40g-sxm", "memory.dram.bandwidth", 1555e9),
        ("a100-40g-sxm", "memory.dram.capacity", 40 * GIB),
        ("a100-80g-sxm", "engines.matrix.bf16", 312e12),
        ("a100-80g-sxm", "engines.matrix.int8", 624e12),
        ("a100-80g-sxm", "engines.vector.fp32", 19.5e12),
        ("a100-80g-sxm", "memory.dram.bandwidth", 2039e9),
        ("a100-80g-sxm", "memory.dram.capacity", 80 * GIB),
        ("a100-80g-sxm", "memory.l2.capacity", 40 * 2**20),
        ("a100-80g-sxm", "links.nvlink.bandwidth", 300e9),
        ("a100-80g-sxm", "power.tdp", 400),
        ("h100-sxm", "engines.matrix.bf16", 989.4e12),
        ("h100-sxm", "engines.matrix.fp8", 1978.9e12),
        ("h100-sxm", "memory.dram.bandwidth", 3352e9),
        ("h100-sxm", "compute.units", 132),
        ("h100-sxm", "links.nvlink.bandwidth", 450e9),
        ("h100-sxm", "power.tdp", 700),
        ("h100-sxm", "price.hourly", 11.06),
        ("h100-pcie", "engines.matrix.fp16", 756.5e12),
        ("h100-pcie", "compute.units", 114),
        ("h200-sxm", "memory.dram.bandwidth", 4800e9),
        ("h200-sxm", "memory.dram.capacity", 141 * GIB),
        ("h20", "engines.matrix.fp16", 148e12),
        ("h20", "memory.dram.bandwidth", 4000e9),
        ("b200", "engines.matrix.bf16", 2250e12),
        ("b200", "engines.matrix.fp4", 9000e12),
        ("b200", "memory.dram.bandwidth", 8000e9),
        ("l4", "engines.matrix.fp16", 121e12),
        ("l4", "memory.dram.bandwidth", 300e9),
        ("l20", "engines.matrix.fp16", 119.5e12),
        ("l40s", "engines.matrix.fp16", 362.05e12),
        ("l40s", "memory.dram.bandwidth", 864e9),
        ("a10", "engines.matrix.fp16", 125e12),
        ("a10", "memory.dram.bandwidth", 600e9),
        ("a40", "memory.dram.bandwidth", 696e9),
        ("a6000", "engines.matrix.fp16", 154.8e12),
        ("a6000", "memory.dram.bandwidth", 768e9),
        ("t4", "engines.matrix.fp16", 65e12),
        ("t4", "memory.dram.bandwidth", 320e9),
        ("rtx-3090", "engines.matrix.fp16", 71e12),
        ("rtx-3090", "memory.dram.bandwidth", 936e9),
        ("rtx-4090", "engines.matrix.fp16", 165.2e12),
        ("rtx-4090", "memory.dram.bandwidth", 1008e9),
        ("rtx-pro-6000", "memory.dram.bandwidth", 1792e9),
        ("titan-xp", "engines.vector.fp32", 12.15e12),
        ("p40", "engines.vector.int8", 47e12),
        ("p40", "memory.dram.bandwidth", 346e9),
        ("mi210", "engines.matrix.fp16", 181e12),
        ("mi210", "memory.dram.bandwidth", 1638.4e9),
        ("mi250", "engines.matrix.fp16", 362.1e12),
        ("mi300x", "engines.matrix.fp16", 1307.4e12),
        ("mi300x", "memory.dram.capacity", 192 * GIB),
        ("tpu-v3", "engines.matrix.bf16", 123e12),
        ("tpu-v5e", "memory.dram.bandwidth", 819e9),
        ("tpu-v6e", "engines.matrix.bf16", 918e12),
        ("m2-ultra", "memory.dram.bandwidth", 800e9),
        ("raspberry-pi-5", "memory.dram.bandwidth", 17.1e9),
        ("xeon-2s", "memory.dram.bandwidth", 614.4e9),
    ],
)
def test_datasheet_values(name: str, key: str, value: float) -> None:
    assert number(load_device(name), key) == pytest.approx(value, rel=1e-9)


# Rate = units × clock × FLOPs per cycle and unit, where units and clock are stated on their own; a
# sparse rate, a wrong clock or a wrong count is off by a factor.
@pytest.mark.parametrize(
    ("name", "per_cycle"),
    [
        ("v100s", 1024), ("t4", 1024), ("a100-40g-sxm", 2048), ("a100-80g-sxm", 2048), ("a10", 1024), ("l4", 1024),
        ("l40s", 1024), ("rtx-3090", 512), ("rtx-4090", 512), ("mi210", 1024), ("mi250", 1024), ("mi300x", 2048),
    ],
)  # fmt: skip
def test_dense_matrix_rate_is_units_times_clock_times_width(name: str, per_cycle: int) -> None:
    device = load_device(name)
    peak = device.compute.units.value * device.compute.clock.value * per_cycle
    assert device.rate("fp16")[1].value == pytest.approx(peak, rel=0.015)


@pytest.mark.parametrize(
    ("name", "asked", "used", "rate"),
    [
        ("v100s", "bf16", "fp16", 130e12),
        ("t4", "bf16", "fp16", 65e12),
        ("p40", "fp16", "fp32", 11.76e12),
        ("p40", "int4", "int8", 47e12),
        ("titan-xp", "bf16", "fp32", 12.15e12),
        ("a100-80g-sxm", "fp8", "fp16", 312e12),
        ("a100-80g-sxm", "fp32", "fp32", 19.5e12),
        ("h100-sxm", "int4", "int8", 1978.9e12),
        ("tpu-v5e", "fp16", "bf16", 197e12),
        ("xeon-2s", "fp16", "bf16", 229.4e12),
        ("m2-ultra", "bf16", "fp16", 27.2e12),
    ],
)
def test_rates_fall_back_as_documented(name: str, asked: str, used: str, rate: float) -> None:
    name_used, quantity = load_device(name).rate(asked)
    assert (name_used, quantity.value) == (used, pytest.approx(rate))


def test_the_promised_names_are_there() -> None:
    assert set(PROMISED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_device_loads_and_every_number_has_a_unit_and_a_source(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    rows = list(device.quantities())
    assert len(rows) == len(dict(rows)) >= 15
    for key, quantity in rows:
        assert quantity.value > 0, key
        assert quantity.unit, key
        source = re.sub(r"^architecture [a-z0-9-]+: ", "", quantity.source)
        assert len(re.sub(r"^(assumed|derived): ", "", source)) >= 5, key
    json.dumps(device.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_plausible_to_the_cost_model(name: str) -> None:
    device = load_device(name)
    dram = device.dram
    assert dram.energy is not None, "the energy model needs it"
    memory_w = dram.bandwidth.value * 8 * dram.energy.value
    assert device.power.tdp.value > device.power.idle.value + memory_w, "nothing is left for arithmetic"
    if device.arrays or device.kind == "pim":
        return  # a published design, of which nobody sells or joins several
    assert device.links, "several of them must be able to work together"
    assert device.price.purchase is not None
    for kind in ("fp16", "bf16", "fp8", "int8", "int4", "fp32"):
        assert device.rate(kind)[1].value >= device.rate("fp32", "vector")[1].value * 0.99


@pytest.mark.parametrize("file", [*NAMES, *(f"architectures/{a}" for a in ARCHITECTURES)])
def test_every_source_in_the_list_is_cited(file: str) -> None:
    text = (CATALOG / f"{file}.toml").read_text(encoding="utf-8")
    for source in tomllib.loads(text).get("sources", {}):
        assert f'source = "{source}"' in text, f"{file}: {source} is listed and never cited"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_the_constants_of_the_model_and_is_used(name: str) -> None:
    given = parse_architecture((CATALOG / "architectures" / f"{name}.toml").read_bytes(), f"{name}.toml", name)
    if name == DEFAULT:
        own = {k for k in ARCHITECTURE_KEYS if k.startswith("intervals.experts_")}  # where absent: intervals.experts
        assert {k for k in ARCHITECTURE_KEYS if k.startswith("intervals.")} - own <= set(given)
        return
    assert {k for k in ARCHITECTURE_KEYS if k.startswith("model.") and KEYS[k].required} <= set(given)
    assert "memory.dram.energy" in given
    assert any(load_device(d).architecture == name for d in NAMES)


def test_a_number_in_the_device_file_wins_over_its_architecture() -> None:
    assert number(load_device("a40"), "model.memory_efficiency") == 0.88
    assert number(load_device("a10"), "model.memory_efficiency") == 0.78
    assert load_device("a40").model.memory_efficiency.source.startswith("architecture ampere-consumer: ")


def test_hbm2_costs_what_the_paper_says() -> None:
    energy = load_device("v100s").dram.energy
    assert energy is not None
    assert energy.value == pytest.approx(3.97e-12)
    assert "MICRO 2017" in energy.source


def test_ecc_and_driver_memory_is_not_usable() -> None:
    assert load_device("l40s").dram.usable == pytest.approx(46068 * 2**20)


def test_the_catalogue_on_disk_is_what_is_listed() -> None:
    assert sorted(device_files()) == sorted(p.stem for p in CATALOG.glob("*.toml"))
