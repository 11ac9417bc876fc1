"""The registry of number formats: laws that every format keeps, whatever it is."""

from __future__ import annotations

import re
from math import inf, log10
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.kernels.formats import families, format_names, load_format
from tokenfab.kernels.formats.__main__ import main, tensors
from tokenfab.kernels.formats.bits import num_bytes, pack_bits, unpack_bits

every_format = pytest.mark.parametrize("name", format_names())
SHAPES = ((1, 1), (1, 5), (3, 64), (2, 70), (5, 129), (260, 67))


def numbers(seed: int, rows: int, k: int) -> np.ndarray:
    """Numbers as weights have them: a spread of 2^-6 to 2^3 by row, a few outliers, zeros, equal ones."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((rows, k)) * np.exp2(rng.integers(-6, 4, (rows, 1)))
    found[rng.random((rows, k)) < 0.02] *= 20
    found[rng.random((rows, k)) < 0.1] = 0
    found[rng.random((rows, k)) < 0.1] = 0.25
    return found


# -- names -------------------------------------------------------------------------------------------
def test_a_name_is_read_by_one_family_and_kept():
    assert len(set(format_names())) == len(format_names()) >= 60
    for name in format_names():
        assert [f for f in families() if f.pattern.fullmatch(name)] == [type(load_format(name))]
        assert load_format(name).name == name


def test_every_family_says_what_it_is_and_where_from():
    for family in families():
        assert family.description
        assert family.source
        assert family.spelling
        assert family.examples


@every_format
def test_a_group_stands_at_the_end_of_a_name_so_that_readers_find_it(name):
    stem, _, group = name.partition("-g")
    assert "-g" not in stem
    assert not group or re.fullmatch("[1-9][0-9]*", group)


@pytest.mark.parametrize(
    "name",
    ["int9", "int1-g128", "int4-g0", "int4-g128-tensor", "nf4", "nf5-b64", "bitmod-fp5-g128", "3:2", "4:128", "0:4",
     "vptq-v0-k4", "vptq-v8-k1", "vptq-v8-k65537", "squeeze4-s0", "sparse80", "sparse100-csr", "shiftadd5-g8",
     "ternary-tensor", "key4-tensor", "mxfp5", "", "fp8", "int4-G128", "int4-g128 "],
)  # fmt: skip
def test_other_names_are_refused_in_one_line(name):
    with pytest.raises(InputError) as caught:
        load_format(name)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_a_name_spelt_wrongly_is_told_what_was_meant():
    with pytest.raises(InputError, match="unknown number format 'nf4'; did you mean nf4-b"):
        load_format("nf4")


# -- packing -----------------------------------------------------------------------------------------
@given(st.integers(1, 32), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_packed_integers_come_back(bits, count, seed):
    values = np.random.default_rng(seed).integers(0, 1 << bits, count)
    data = pack_bits(values, bits)
    assert len(data) == num_bytes(bits, count) == -(-bits * count // 8)
    assert (unpack_bits(data, bits, count) == values).all()
    assert int.from_bytes(data, "little") == sum(int(v) << bits * i for i, v in enumerate(values))


def test_a_long_array_is_packed_like_a_short_one():
    values = np.random.default_rng(0).integers(0, 8, 200001)
    assert (unpack_bits(pack_bits(values, 3), 3, values.size) == values).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="do not fit in 3 bits"):
        pack_bits(np.array([8]), 3)
    with pytest.raises(InputError, match="5 integers of 3 bits are 2 bytes, not 3"):
        unpack_bits(b"abc", 3, 5)
    with pytest.raises(InputError, match="must be zero"):
        unpack_bits(b"\x00\x80", 3, 5)


# -- laws --------------------------------------------------------------------------------------------
@every_format
@settings(max_examples=12, deadline=None)
@given(st.sampled_from(SHAPES[:-1]), st.integers(0, 2**32 - 1))
def test_bytes_say_everything_and_are_as_many_as_the_bits_per_weight(name, shape, seed):
    form, matrix = load_format(name), numbers(seed, *shape)
    stored = form.quantise(matrix)
    data = form.pack(stored)
    assert form.bits_per_weight(shape) == 8 * len(data) / matrix.size
    back = form.unpack(data, shape)
    assert all((back.fields[key] == field).all() for key, field in stored.fields.items())
    assert len(back.fields) == len(stored.fields)
    assert (form.dequantise(back) == form.dequantise(stored)).all()
    assert form.pack(back) == data


@pytest.mark.parametrize("name", [n for n in format_names() if load_format(n).settles])
@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SHAPES[:-1]), st.integers(0, 2**32 - 1))
def test_quantising_what_was_quantised_changes_nothing(name, shape, seed):
    form = load_format(name)
    # Powers of two keep scales normal numbers of binary16, where the law is claimed.
    once = form.dequantise(form.quantise(numbers(seed, *shape) * 64))
    assert (form.dequantise(form.quantise(once)) == once).all()
    assert form.error(once).sqnr_db == inf


def test_most_formats_settle_and_those_that_do_not_are_known():
    """Those whose scale is a mean, a search or rounded twice, or whose two parts are found one after the other."""
    moving = {type(load_format(n)).__module__.rpartition(".")[2] for n in format_names() if not load_format(n).settles}
    assert moving == {"bitmod", "cache", "dense_and_sparse", "integer", "normal_float", "olive", "shift_add", "ternary",
                      "vector"}  # fmt: skip


@every_format
@pytest.mark.parametrize("shape", SHAPES)
def test_zeros_stay_zero_and_shapes_are_kept(name, shape):
    form = load_format(name)
    assert (form.dequantise(form.quantise(np.zeros(shape))) == 0).all()
    assert form.dequantise(form.quantise(numbers(1, *shape))).shape == shape


@every_format
def test_a_tensor_of_more_axes_is_its_rows_one_after_another(name):
    form, tensor = load_format(name), numbers(2, 6, 32)
    deep = form.dequantise(form.quantise(tensor.reshape(2, 3, 32)))
    assert deep.shape == (2, 3, 32)
    assert (deep.reshape(6, 32) == form.dequantise(form.quantise(tensor))).all()
    assert form.bits_per_weight((2, 3, 32)) == form.bits_per_weight((6, 32))
    assert form.dequantise(form.quantise(tensor[0])).shape == (32,)


@every_format
def test_a_power_of_two_goes_through(name):
    """Scales are floating-point numbers (or exponents), so twice the weights are twice the result, to the last bit."""
    # Of binary16, so that a second codebook is not left with numbers too small for it.
    form, tensor = load_format(name), np.float16(numbers(3, 4, 96) * 16).astype(np.float64)
    once, twice = (form.dequantise(form.quantise(x)) for x in (tensor, 4 * tensor))
    assert (twice == 4 * once).all()


@every_format
def test_the_error_is_what_it_says(name):
    form, tensor = load_format(name), numbers(4, 8, 128)
    difference = tensor - form.dequantise(form.quantise(tensor))
    told = form.error(tensor)
    assert told.max_error == np.abs(difference).max()
    assert told.sqnr_db == pytest.approx(10 * log10((tensor**2).sum() / (difference**2).sum()), rel=1e-12)
    assert form.error(np.random.default_rng(0).standard_normal((8, 128))).sqnr_db > 1


@every_format
def test_what_is_no_tensor_of_numbers_is_refused(name):
    form = load_format(name)
    for wrong in (np.zeros((0, 4)), np.float64(1), np.array([[1.0, np.nan]]), np.array([[np.inf, 0]])):
        with pytest.raises(InputError):
            form.quantise(wrong)
    with pytest.raises(InputError):
        form.bits_per_weight((4, 0))
    with pytest.raises(InputError, match="bytes, not"):
        form.unpack(form.pack(form.quantise(np.ones((2, 8)))) + b"\0", (2, 8))


@pytest.mark.parametrize("name", ["int4-g128", "int4-asym", "fp4-g128", "ternary", "value4", "2:4", "fp16", "bf16"])
def test_a_scale_beyond_its_type_is_told(name):
    with pytest.raises(InputError, match="is beyond"):
        load_format(name).quantise(np.full((1, 8), 1e300))


# -- errors ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "names",
    [
        [f"int{b}-g128" for b in range(2, 9)], [f"int{b}-asym-g64" for b in range(2, 9)],
        [f"int{b}-tensor" for b in range(2, 9)], [f"bipolar{b}-g128" for b in range(1, 9)],
        ["mxfp4", "mxfp6-e2m3", "mxint8"], ["fp4-g32", "fp6-e2m3-g32"], ["nf3-b64", "nf4-b64"],
        [f"value{b}-g32" for b in range(2, 9)], [f"squeeze{b}" for b in range(2, 9)],
        [f"shiftadd{b}-g64" for b in range(1, 5)], ["bitmod-fp3-g128", "bitmod-fp4-g128", "bitmod-int6-g128"],
        ["vptq-v8-k4", "vptq-v8-k16", "vptq-v8-k64", "vptq-v8-k64-r64"], ["1:4", "2:4", "3:4"], ["ovp4", "ovp8"],
        [f"sparse{p}-csr" for p in (90, 80, 60, 20)], ["sparse80-v16", "sparse80-v4", "sparse80-v1"],
        ["int8-tensor", "int8", "int8-g128", "int8-g32"], ["squeeze3", "squeeze3-s0.45", "squeeze3-s5"],
    ],
    ids=lambda names: names[0],
)  # fmt: skip
def test_more_bits_lose_less(names):
    tensor = np.random.default_rng(0).standard_normal((16, 512))
    found = [load_format(name).error(tensor).sqnr_db for name in names]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("bits", range(3, 9))
def test_uniform_numbers_lose_what_theory_says(bits):
    """A step d loses d²/12 of 1/3: 20 log10(2^B - 1) dB with all 2^B levels, 6.02 dB per bit."""
    tensor = np.random.default_rng(0).uniform(-1, 1, (1, 1 << 17))
    expected = {"int{}-asym-tensor": 2**bits - 1, "int{}-tensor": 2**bits - 2, "bipolar{}-tensor": 2**bits - 1}
    for name, steps in expected.items():
        told = load_format(name.format(bits)).error(tensor).sqnr_db
        assert told == pytest.approx(20 * log10(steps), abs=0.12)  # binary16 scales and 131072 numbers


def test_normal_numbers_lose_what_the_best_quantisers_lose():
    """Lloyd-Max levels of a normal distribution (Max, 1960): 4.40, 9.30, 14.62, 20.22 dB for 1 to 4 bits."""
    tensor = np.random.default_rng(0).standard_normal((1, 1 << 17))
    for bits, best in ((2, 9.30), (3, 14.62), (4, 20.22)):
        assert load_format(f"squeeze{bits}").error(tensor).sqnr_db == pytest.approx(best, abs=0.06)
    assert load_format("bipolar1-tensor").error(tensor).sqnr_db == pytest.approx(4.396, abs=0.02)
    # One index of 256 for 8 weights is a bit each, where no code loses less than 6.02 dB.
    assert 4.396 < load_format("vptq-v8-k256").error(tensor).sqnr_db < 6.02


# -- the table ---------------------------------------------------------------------------------------
def test_the_table_says_bits_and_errors_of_the_tensors(capsys):
    assert main(["int4-g128", "2:4", "--elements", "4096", "--seed", "3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("4 x 1024 standard normal numbers, seed 3")
    plain, hard = tensors(4096, 3)
    form = load_format("int4-g128")
    first, second = form.error(plain), form.error(hard)
    assert out[3].split() == [
        "int4-g128", "4.1250", "4.1250", f"{first.sqnr_db:.2f}", f"{first.max_error:.4g}", f"{second.sqnr_db:.2f}",
        f"{second.max_error:.4g}",
    ]  # fmt: skip
    assert [line.split()[0] for line in out[3:]] == ["int4-g128", "2:4"]


def test_the_table_lists_every_family_and_refuses_what_it_cannot_do(capsys):
    assert main(["--names"]) == 0
    out = capsys.readouterr().out
    assert all(f.spelling in out and f.source in out for f in families())
    assert main(["int4-g12x"]) == 2
    assert main(["--elements", "1000"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == "tokenfab: 1000 elements; at least 1024"


def test_the_page_has_the_table_that_the_command_prints(capsys):
    """For the formats that take no time, one of each kind."""
    quick = ["int4-g128", "int8-tensor", "int4-asym-g128", "ant4", "bipolar1-g128", "nf4-b64", "2:4", "ternary-p5"]
    assert main(quick) == 0
    head, *lines = (line for line in capsys.readouterr().out.splitlines() if line)
    page = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8").splitlines()
    assert head in page
    assert [line for line in lines if line not in page] == []
    rows = page[page.index(head) : page.index("```", page.index(head))]
    assert [row.split()[0] for row in rows[3:]] == list(format_names())
