"""The device file format: what is read, what is refused and in which words, and how rates fall back."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.hw.spec import Device, parse_architecture, parse_device
from tokenfab.hw.units import Quantity, number_format

VALID = """\
name = "foo"
description = "A device for tests"
kind = "gpu"
vendor = "Nobody"
year = 2024
[sources]
datasheet = "Foo datasheet, page 1"
[engines.matrix]
fp16 = { value = "312 TFLOP/s", source = "datasheet" }
int8 = { value = "624 TOP/s", source = "datasheet" }
[engines.vector]
fp32 = { value = "19.5 TFLOP/s", source = "datasheet" }
[compute]
units = { value = 108, source = "datasheet" }
clock = { value = "1410 MHz", source = "datasheet" }
[memory.dram]
technology = "HBM2e"
capacity = { value = "80 GiB", source = "datasheet" }
bandwidth = { value = "2039 GB/s", source = "datasheet" }
reserved = { value = "512 MiB", source = "assumed: driver" }
[memory.l2]
capacity = { value = "40 MiB", source = "datasheet" }
[links.nvlink]
bandwidth = { value = "300 GB/s", source = "datasheet" }
latency = { value = "3 us", source = "assumed: a guess" }
peers = { value = 8, source = "datasheet" }
topology = "switched"
[power]
tdp = { value = "400 W", source = "datasheet" }
idle = { value = "90 W", source = "assumed: a guess" }
[die]
area = { value = "826 mm2", source = "datasheet" }
process = "TSMC 7 nm"
[price]
purchase = { value = "15000 USD", source = "assumed: a guess" }
[model]
matmul_efficiency = { value = 0.88, source = "derived: median of measurements" }
attention_efficiency = { value = 0.6, source = "assumed: a guess" }
vector_efficiency = { value = "70 %", source = "assumed: a guess" }
memory_efficiency = { value = 0.85, source = "assumed: a guess" }
launch = { value = "2.4 us", source = "assumed: a guess" }
link_efficiency = { value = 0.74, source = "assumed: a guess" }
[parameters]
burst = { value = "1.5 ns", source = "datasheet" }
banks = { value = 16, source = "datasheet" }
"""


def read(text: str) -> Device:
    return parse_device(text.encode(), "foo.toml")


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        read(text)
    return str(caught.value)


def edited(old: str, new: str) -> str:
    assert VALID.count(old) == 1, old
    return VALID.replace(old, new)


# -- does it read ----------------------------------------------------------------------------------
def test_a_valid_file_reads_into_base_units_with_text_and_source_kept() -> None:
    device = read(VALID)
    assert device.engines["matrix"]["fp16"].value == 312e12
    assert device.memory["dram"].bandwidth == Quantity(
        value=2.039e12, unit="B/s", text="2039 GB/s", source="Foo datasheet, page 1"
    )
    assert device.dram.capacity.value == 80 * 2**30
    assert device.dram.usable == 80 * 2**30 - 512 * 2**20
    assert device.compute.units.value == 108
    assert device.compute.clock.value == 1.41e9
    assert device.die is not None
    assert device.die.area.value == 826
    assert device.die.area.unit == "mm2"
    assert device.model.launch.value == pytest.approx(2.4e-6)
    assert device.model.vector_efficiency.value == pytest.approx(0.7)
    assert device.constant("vector_efficiency") == pytest.approx(0.7)
    assert device.links["nvlink"].topology == "switched"
    assert device.parameters["burst"].unit == "s"
    assert device.parameters["banks"].value == 16


def test_every_number_is_listed_once_with_its_dotted_key() -> None:
    rows = dict(read(VALID).quantities())
    assert rows["memory.dram.bandwidth"].text == "2039 GB/s"
    assert rows["model.launch"].assumed
    assert not rows["model.matmul_efficiency"].assumed
    assert len(rows) == VALID.count("{ value =")


def test_a_device_is_json_and_keeps_the_dram_bandwidth_there() -> None:
    fields = json.loads(json.dumps(read(VALID).to_dict()))
    assert fields["memory"]["dram"]["bandwidth"]["value"] == 2.039e12
    assert fields["power"]["tdp"]["text"] == "400 W"
    assert len(fields["digest"]) == 64


def test_a_device_cannot_be_changed() -> None:
    device = read(VALID)
    with pytest.raises(ValueError, match="frozen"):
        device.power.tdp = device.power.idle  # type: ignore[misc]


def test_the_digest_is_of_the_bytes() -> None:
    assert read(VALID).digest == read(VALID).digest
    assert read(VALID).digest != read(VALID + "# a comment\n").digest


def test_a_byte_order_mark_and_dos_line_ends_are_no_trouble() -> None:
    data = b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode()
    assert parse_device(data, "foo.toml").name == "foo"


# -- what is refused, and in which words -----------------------------------------------------------
def test_the_message_names_file_key_value_range_and_an_example() -> None:
    assert refusal(edited('"2039 GB/s"', '"-5 GB/s"')) == (
        "foo.toml: memory.dram.bandwidth: -5 GB/s is out of range; "
        'accepted: a bandwidth between 1 MB/s and 1 PB/s, e.g. "3.35 TB/s"'
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"2039 GB/s"', '"0 GB/s"', "memory.dram.bandwidth: 0 GB/s is out of range"),
        ('"2039 GB/s"', '"2039"', "memory.dram.bandwidth: 2039 has no unit"),
        ('"2039 GB/s"', "2039", "memory.dram.bandwidth: 2039 has no unit"),
        ('"2039 GB/s"', '"2039 GBps"', "2039 GBps is not a bandwidth (did you mean GB/s?)"),
        ('"2039 GB/s"', '"2039 MHz"', "2039 MHz is not a bandwidth"),
        ('"2039 GB/s"', '"nan GB/s"', "nan GB/s is not a bandwidth"),
        ('"2039 GB/s"', "nan", "memory.dram.bandwidth: nan is not a bandwidth"),
        ('"2039 GB/s"', '"inf GB/s"', "inf GB/s is not a bandwidth"),
        ('"2039 GB/s"', '"1e999 GB/s"', "1e999 GB/s is out of range"),
        ('"2039 GB/s"', "true", "true is not a bandwidth"),
        ('"2039 GB/s"', "[1]", "a list is not a bandwidth"),
        ('"2039 GB/s"', '"2,039 GB/s"', "2,039 GB/s is not a bandwidth"),
        ("value = 108", "value = 108.5", "compute.units: 108.5 is not a whole number; accepted: a whole"),
        ("value = 108", "value = 0", "compute.units: 0 is out of range"),
        ("value = 0.88", "value = 1.2", "model.matmul_efficiency: 1.2 is out of range; accepted: a fraction between"),
        ("value = 0.88", "value = inf", "model.matmul_efficiency: inf is not a fraction"),
        ('{ value = "2039 GB/s", source = "datasheet" }', '"2039 GB/s"', "has no source; accepted: { value = …"),
        ('value = "2039 GB/s", source = "datasheet"', 'value = "2039 GB/s"', "memory.dram.bandwidth: has no source"),
        ('"2039 GB/s", source = "datasheet"', '"2039 GB/s", source = "website"', "source website is unknown; acc"),
        ('"2039 GB/s", source = "datasheet"', '"2039 GB/s", source = "derived:"', "source derived: is unknown"),
        ('"2039 GB/s", source = "datasheet"', '"2039 GB/s", source = 3', "source 3 is unknown"),
        ('value = "2039 GB/s", source = "datasheet"', 'source = "datasheet"', "dram.bandwidth: value is missing"),
        ('value = "2039 GB/s", source', 'valeu = "2039 GB/s", source', "unknown key 'valeu'; did you mean value?"),
        ('bandwidth = { value = "2039', 'bandwith = { value = "2039', "memory.dram: unknown key 'bandwith'; did"),
        ("[power]", "[powr]", "foo.toml: unknown key 'powr'; did you mean power?"),
        ('capacity = { value = "80 GiB", source = "datasheet" }', "", "dram.capacity: missing; accepted: a size"),
        ('launch = { value = "2.4 us", source = "assumed: a guess" }', "", "model.launch: missing; accepted: a time"),
        ("[memory.dram]", "[memory.sram]", "memory.dram.capacity: missing"),
        ('name = "foo"', "", "foo.toml: name: missing"),
        ('name = "foo"', 'name = "Foo Bar"', "name: Foo Bar is not accepted; accepted: a name of lower-case"),
        ('kind = "gpu"', 'kind = "gpuu"', "kind: gpuu is not accepted; accepted: one of gpu, tpu"),
        ("year = 2024", "year = 1066", "year: 1066 is not accepted; accepted: a year between 1990 and 2100"),
        ("year = 2024", "year = true", "year: true is not accepted"),
        ('vendor = "Nobody"', 'vendor = ""', "vendor: '' is not accepted; accepted: one line of text"),
        ('vendor = "Nobody"', 'vendor = "No\\nbody"', "vendor: 'No\\nbody' is not accepted"),
        ('fp16 = { value = "312', 'fp17 = { value = "312', "engines.matrix: unknown number format 'fp17'; did"),
        ("[links.nvlink]", '[links."NV Link"]', "links: NV Link is not a name"),
        ('"512 MiB"', '"80 GiB"', "memory.dram: reserved 80 GiB leaves nothing of the capacity 80 GiB"),
        ('"90 W"', '"401 W"', "power: idle 401 W exceeds tdp 400 W; accepted: idle at most tdp"),
        ('"1.5 ns"', '"1.5 parsec"', "parameters.burst: 1.5 parsec is not a number with a known unit"),
        ('"1.5 ns"', '"-1.5 ns"', "parameters.burst: -1.5 ns is out of range"),
        ("[die]", "[[die]]", "die: a list is not a table; accepted: a table [die] with area, process"),
        ("[sources]\n", "sources = 3\n[parameters.x]\n", "sources: 3 is not a table"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(old: str, new: str, said: str) -> None:
    message = refusal(edited(old, new))
    assert message.startswith("foo.toml: ")
    assert "\n" not in message
    assert said in message


def test_an_engine_needs_a_rate_and_a_device_an_engine() -> None:
    engines = VALID[VALID.index("[engines.matrix]") : VALID.index("[compute]")]
    assert "engines.matrix: no rate" in refusal(edited(engines, "[engines.matrix]\n"))
    assert "engines: no rate" in refusal(edited(engines, ""))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"# only a comment\n", "empty"),
        (b"name = \xff\xfe", "not UTF-8 text (byte 7)"),
        (b"name = ", "not TOML: "),
        (b'name = "a"\nname = "b"\n', "not TOML: "),
        (b"a = " + b"[" * 100_000, "not TOML: "),
        (b"a = " + b"9" * 10_000, "not TOML: "),
        (b"year = 0x" + b"f" * 10_000, "a very large number"),
        (b"\x00", "not TOML: "),
    ],
)
def test_a_file_that_is_no_toml_says_so(data: bytes, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_device(data, "foo.toml")
    assert str(caught.value).startswith("foo.toml: ")
    assert said in str(caught.value)


# -- files and names -------------------------------------------------------------------------------
def test_a_path_that_holds_no_file_is_one_line(tmp_path: Path) -> None:
    for path, said in [
        (tmp_path / "none.toml", "No such file"),
        (tmp_path, "directory"),
        ("foo\0.toml", "not a path"),
        ("/", "directory"),
    ]:
        with pytest.raises(InputError) as caught:
            load_device(path)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.toml"
    file.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(InputError, match="larger than 1 MiB"):
        load_device(file)


def test_a_file_of_ones_own_loads_by_path(tmp_path: Path) -> None:
    (tmp_path / "foo.toml").write_text(VALID)
    assert load_device(tmp_path / "foo.toml") == load_device(str(tmp_path / "foo.toml"))


@pytest.mark.parametrize("name", ["a100-80g", "", "h100_sxm", "A100-80G-SXM", ".."])
def test_an_unknown_name_is_refused_with_near_names(name: str) -> None:
    with pytest.raises(InputError, match="unknown device"):
        load_device(name)


def test_near_names_are_near() -> None:
    with pytest.raises(InputError, match="a100-80g-sxm"):
        load_device("a100-80g-smx")


# -- inheritance -----------------------------------------------------------------------------------
def with_architecture(name: str, text: str = VALID) -> str:
    return text.replace('vendor = "Nobody"\n', f'vendor = "Nobody"\narchitecture = "{name}"\n')


def test_what_a_device_lacks_comes_from_its_architecture_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "architectures").mkdir()
    (tmp_path / "architectures" / "bar.toml").write_text(
        'description = "Bar"\n[sources]\npaper = "A paper"\n[model]\n'
        'launch = { value = "9 us", source = "paper" }\n'
        'matmul_efficiency = { value = 0.1, source = "assumed: for the test" }\n'
        '[memory.dram]\nenergy = { value = "4 pJ/bit", source = "paper" }\n'
        '[power]\nidle = { value = "33 W", source = "assumed: for the test" }\n'
    )
    text = edited('launch = { value = "2.4 us", source = "assumed: a guess" }\n', "")
    text = text.replace('idle = { value = "90 W", source = "assumed: a guess" }\n', "")
    (tmp_path / "foo.toml").write_text(with_architecture("bar", text))
    device = load_device(tmp_path / "foo.toml")
    assert device.model.launch.value == pytest.approx(9e-6)
    assert device.model.launch.source == "architecture bar: A paper"
    assert device.model.matmul_efficiency.value == 0.88, "a number in the device file wins"
    assert device.dram.energy is not None
    assert device.dram.energy.value == pytest.approx(4e-12)
    assert device.power.idle.source == "architecture bar: assumed: for the test"
    assert device.power.idle.assumed
    before = device.digest
    with (tmp_path / "architectures" / "bar.toml").open("a") as file:
        file.write("# changed\n")
    assert load_device(tmp_path / "foo.toml").digest != before


def test_an_unknown_architecture_is_refused_with_near_names(tmp_path: Path) -> None:
    (tmp_path / "foo.toml").write_text(with_architecture("ampree"))
    with pytest.raises(
        InputError, match=r"foo\.toml: architecture: unknown architecture 'ampree'; did you mean ampere"
    ):
        load_device(tmp_path / "foo.toml")


def test_a_fault_in_the_architecture_names_the_architecture() -> None:
    with pytest.raises(InputError, match=r"^bar\.toml: model\.launch: 3 has no unit"):
        parse_device(
            with_architecture("bar").encode(),
            "foo.toml",
            lambda name: ("bar.toml", b'description = "B"\n[model]\nlaunch = { value = 3, source = "assumed: x" }\n'),
        )
    with pytest.raises(InputError, match="unknown key 'engines'"):
        parse_architecture(b'description = "B"\n[engines.matrix]\n', "bar.toml", "bar")


# -- rates -----------------------------------------------------------------------------------------
FORMATS = ["int1", "int2", "int4", "int8", "int16", "fp4", "fp6", "fp8", "fp16", "bf16", "tf32", "fp32", "fp64"]

CAST = {"bf16": "fp16", "fp16": "bf16"}


def with_rates(matrix: dict[str, float], vector: dict[str, float]) -> Device:
    engines = ""
    for engine, rates in (("matrix", matrix), ("vector", vector)):
        lines = [f'{f} = {{ value = "{rate} TFLOP/s", source = "datasheet" }}\n' for f, rate in rates.items()]
        engines += "".join([f"[engines.{engine}]\n", *lines]) if rates else ""
    return read(VALID[: VALID.index("[engines.matrix]")] + engines + VALID[VALID.index("[compute]") :])


@pytest.mark.parametrize(
    ("matrix", "vector", "asked", "used"),
    [
        ({"fp16": 312, "int8": 624, "int4": 1248}, {"fp32": 19}, "int4", "int4"),
        ({"fp16": 312, "int8": 624}, {"fp32": 19}, "int4", "int8"),
        ({"fp16": 312, "int8": 624}, {"fp32": 19}, "int2", "int8"),
        ({"fp16": 989, "fp8": 1979, "int8": 1979}, {"fp32": 67}, "int4", "int8"),  # equal rates: the same kind
        ({"fp16": 989, "fp8": 1979}, {"fp32": 67}, "int4", "fp8"),
        ({"fp16": 989, "fp8": 1979}, {"fp32": 67}, "int8", "fp16"),  # fp8 has 4 significant bits
        ({"fp16": 312, "bf16": 312, "int8": 624}, {"fp32": 19}, "fp8", "fp16"),  # a float never in integers
        ({"fp16": 125}, {"fp32": 15}, "bf16", "fp16"),  # V100, T4: cast
        ({"bf16": 197, "int8": 393}, {"fp32": 6}, "fp16", "bf16"),  # TPU: cast
        ({"tf32": 156}, {"fp32": 19}, "fp16", "tf32"),
        ({"fp16": 125}, {"fp32": 15}, "fp32", "fp32"),  # no holder on the matrix engine: vector
        ({"fp16": 312, "fp64": 19}, {"fp32": 19}, "fp32", "fp32"),  # the narrower of equally fast
        ({"fp16": 130}, {"fp32": 16, "int8": 65}, "int8", "fp16"),  # V100: the matrix engine is faster
        ({"fp16": 125}, {"fp32": 15}, "tf32", "fp32"),
        ({}, {"fp32": 12, "int8": 47}, "fp16", "fp32"),  # P40
        ({}, {"fp32": 12, "int8": 47}, "int4", "int8"),
        ({"fp16": 312, "fp32": 400}, {"fp32": 19}, "fp16", "fp16"),  # what is there is used, faster or not
        ({"fp16": 312, "tf32": 100, "fp32": 400}, {"fp32": 19}, "fp8", "fp32"),  # the fastest that holds it
    ],
)
def test_a_rate_falls_back_to_the_fastest_format_that_holds_the_values(
    matrix: dict[str, float], vector: dict[str, float], asked: str, used: str
) -> None:
    device = with_rates(matrix, vector)
    name, rate = device.rate(asked)
    assert name == used
    assert rate.value == pytest.approx((matrix.get(used) or vector[used]) * 1e12)


@given(
    matrix=st.dictionaries(st.sampled_from(FORMATS), st.integers(1, 5000)),
    vector=st.dictionaries(st.sampled_from(FORMATS), st.integers(1, 5000), min_size=1),
    asked=st.sampled_from(FORMATS),
    engine=st.sampled_from(["matrix", "vector"]),
)
def test_a_fallback_is_never_narrower_and_a_format_that_is_there_is_used(
    matrix: dict[str, float], vector: dict[str, float], asked: str, engine: str
) -> None:
    device = with_rates(matrix, vector)
    if not {asked, CAST.get(asked)} & set(device.engines.get(engine, vector)) and not [
        f for f in (*vector, *(matrix if engine == "matrix" else ())) if number_format(f).holds(number_format(asked))
    ]:
        with pytest.raises(InputError, match=f"cannot compute in {asked}"):
            device.rate(asked, engine)
        return
    used, rate = device.rate(asked, engine)
    assert number_format(used).bits >= number_format(asked).bits
    assert used == asked or number_format(used).holds(number_format(asked)) or {used, asked} == {"fp16", "bf16"}
    assert rate in (device.engines.get("matrix", {}).get(used), device.engines["vector"].get(used))
    if asked in device.engines.get(engine, {}):
        assert (used, rate) == (asked, device.engines[engine][asked])


def test_a_rate_nobody_has_is_refused_in_one_line() -> None:
    device = read(VALID)
    with pytest.raises(
        InputError, match="device foo cannot compute in fp64 on its matrix engine; it has matrix: fp16, int8"
    ):
        device.rate("fp64")
    with pytest.raises(InputError, match="unknown number format 'fp17'"):
        device.rate("fp17")
    with pytest.raises(InputError, match=r"unknown engine 'matrx'; did you mean matrix.*device foo"):
        device.rate("fp16", "matrx")


def test_a_mixed_format_is_its_own_only_substitute() -> None:
    device = with_rates({"w2a8": 1248, "fp16": 312}, {"fp32": 19})
    assert device.rate("w2a8")[0] == "w2a8"
    with pytest.raises(InputError, match="cannot compute in w4a16"):
        device.rate("w4a16")


def test_a_host_is_loaded_with_the_device(tmp_path: Path) -> None:
    text = (resources.files("tokenfab.hw") / "catalog/t4.toml").read_text(encoding="utf-8")
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace('name = "t4"', 'name = "mine"\nhost = "h100-sxm"'), encoding="utf-8")
    device = load_device(mine)
    assert device.host is not None
    assert device.host.name == "h100-sxm"
    assert device.digest != load_device("t4").digest
    assert {key for key, _ in device.quantities()} >= {"host.power.tdp", "power.tdp"}
    (tmp_path / "other.toml").write_text(text.replace('name = "t4"', 'name = "other"\nhost = "mine"'), encoding="utf-8")
    with pytest.raises(InputError, match=r"other.toml: host: .*mine.toml: host: .*a host has no host of its own"):
        load_device(tmp_path / "other.toml")
    (tmp_path / "other.toml").write_text(text.replace('name = "t4"', 'name = "other"\nhost = "h10"'), encoding="utf-8")
    with pytest.raises(InputError, match="did you mean"):
        load_device(tmp_path / "other.toml")
