"""Number formats, family by family: values by hand, published tables, brute force, and the golden kernels."""

from __future__ import annotations

from itertools import product
from math import log2

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.kernels import bitserial, lut, ovp, sparse
from tokenfab.kernels.formats import load_format
from tokenfab.kernels.formats.ant import TYPES, values_of
from tokenfab.kernels.formats.minifloat import KINDS
from tokenfab.kernels.formats.minifloat import values_of as float_values
from tokenfab.kernels.formats.normal_float import levels
from tokenfab.models.ops import _ternary

seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, rows: int, k: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, k))


def through(name: str, tensor) -> np.ndarray:
    form = load_format(name)
    return form.dequantise(form.quantise(tensor))


def fields(name: str, tensor):
    return load_format(name).quantise(tensor).fields


# -- bits per weight ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4-g128", 4 + 16 / 128), ("int4", 4 + 16 / 4096), ("int8-tensor", 8 + 16 / 2**24),
        ("int4-asym-g128", 4 + (16 + 4) / 128), ("fp6-e3m2-g32", 6 + 16 / 32), ("mxfp4", 4 + 8 / 32),
        ("mxfp8-e4m3", 8 + 8 / 32), ("nvfp4", 4 + 8 / 16 + 32 / 2**24), ("nf4-b64", 4 + 32 / 64),
        ("nf4-b64-dq", 4 + 8 / 64 + 32 / (64 * 256) + 32 / 2**24), ("ternary", 2 + 16 / 2**24),
        ("ternary-p5", 8 * 820 / 4096 + 16 / 2**24), ("bipolar1-g128", 1.125), ("shiftadd3-g128", 3 + 3 * 8 / 128),
        ("bitmod-fp3-g128", 3 + (8 + 2) / 128 + 32 / 4096), ("bitmod-int6-g128", 6 + 8 / 128 + 32 / 4096),
        ("ant4-g128", 4 + (16 + 2) / 128), ("ovp4", 4 + 32 / 2**24), ("vptq-v8-k256", 1 + 16 * 8 * 256 / 2**24),
        ("vptq-v6-k100-r3", (683 * (7 + 2)) / 4096 + 16 * 6 * 103 / 2**24), ("squeeze4", 4 + 16 * 16 / 4096),
        ("squeeze3-s0.45", 3 + 16 * 8 / 4096 + (75497 * 32 + 32 * 4097) / 2**24), ("2:4", 0.5 * (16 + 2)),
        ("2:4-int8", 0.5 * (8 + 2) + 16 / 4096), ("4:16-int4", 0.25 * (4 + 4) + 16 / 4096), ("1:4", 0.25 * 18),
        ("sparse80-bitmap", 1 + 16 * 3355443 / 2**24), ("sparse80-csr", (32 * 3355443 + 32 * 4097) / 2**24),
        ("sparse80-csl", (32 * 3355443 + 32 * (16 * 64 + 1)) / 2**24), ("sparse80-v8", (2**21 + 128 * 419430) / 2**24),
        ("key2-g32", 2 + 32 / 32), ("value4", 4 + 32 / 4096), ("bf16", 16),
    ],
)  # fmt: skip
def test_bits_of_a_weight_of_4096_by_4096_by_hand(name, bits):
    assert load_format(name).bits_per_weight((4096, 4096)) == pytest.approx(bits, abs=2e-7)


def test_a_column_beyond_65536_has_32_bits():
    for name, kept in (("sparse90-csr", 0.1), ("squeeze2-s10", 0.1)):
        narrow, wide = (load_format(name).layout(8, k) for k in (65536, 65540))
        assert [{s.name: s.bits for s in x}["columns"] for x in (narrow, wide)] == [16, 32]
        assert {s.name: s.shape for s in narrow}["columns"] == (round(kept * 8 * 65536),)


# -- integers ----------------------------------------------------------------------------------------
def test_symmetric_integers_by_hand():
    row = [[7.0, -7.0, 3.5, 1.2, -2.5, 0.5]]
    assert through("int4-g8", row).tolist() == [[7, -7, 4, 1, -2, 0]]  # scale 1; halves go to the even one
    assert fields("int4-g8", row)["codes"].tolist() == [[7, 9, 4, 1, 14, 0]]
    assert fields("int4-g8", row)["scales"].tolist() == [[0x3C00]]
    assert through("int2", [[3.0, -1.0, -2.0, 1.5]]).tolist() == [[3, 0, -3, 0]]
    assert through("int4-g2", [[7.0, 1.0, 14.0, 3.0, 0.0]]).tolist() == [[7, 1, 14, 4, 0]]  # 3 / 2 = 1.5 -> 2


def test_asymmetric_integers_by_hand():
    found = fields("int2-asym", [[-1.0, 0.0, 2.0, 0.6]])  # scale 1, zero point 1
    assert (found["codes"].tolist(), found["zeros"].tolist()) == ([[0, 1, 3, 2]], [[1]])
    assert through("int2-asym", [[-1.0, 0.0, 2.0, 0.6]]).tolist() == [[-1, 0, 2, 1]]
    assert through("int4-asym", [[15.0, 30.0, 14.9]]).tolist() == [[16, 30, 14]]  # zero stays a value: scale 2


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 8), st.sampled_from(["", "-g32", "-tensor"]))
def test_no_weight_is_further_than_half_a_step(seed, bits, group):
    for name, ends in (("int{}", 2 ** (bits - 1) - 1), ("int{}-asym", 2**bits - 1)):
        form, tensor = load_format(name.format(bits) + group), normal(seed, 3, 64)
        span = tensor.max() - min(tensor.min(), 0) if "asym" in name else np.abs(tensor).max()
        # A zero point is rounded too, so one end may lie half a step further, and scales are rounded by 2^-11.
        slack = span / ends * ((1.0 if "asym" in name else 0.5) + 2**-11 * 2**bits)
        assert np.abs(form.dequantise(form.quantise(tensor)) - tensor).max() <= slack


# -- small floating point ----------------------------------------------------------------------------
def test_the_grids_of_fp4_and_fp6_are_the_specification_s():
    assert float_values("fp4").tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    for kind, greatest, least, subnormal in (("fp6-e3m2", 28, 0.25, 0.0625), ("fp6-e2m3", 7.5, 1, 0.125)):
        values = float_values(kind)
        mantissa = KINDS[kind][1]
        assert (values.max(), values[1 << mantissa], values[1]) == (greatest, least, subnormal)
        assert len(set(values)) == 63
        assert (values[32:] == -values[:32]).all()


@pytest.mark.parametrize(("kind", "dtype"), [("fp8-e4m3", torch.float8_e4m3fn), ("fp8-e5m2", torch.float8_e5m2)])
def test_fp8_is_torch_s(kind, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    theirs = codes.view(dtype).to(torch.float64).numpy()
    finite = np.isfinite(theirs)
    assert (float_values(kind)[finite] == theirs[finite]).all()
    assert (float_values(kind)[~finite] == 0).all()
    assert {"fp8-e4m3": 448, "fp8-e5m2": 57344}[kind] == float_values(kind).max()
    # Rounding: with a scale of 1, that of the greatest value, codes are those of torch's conversion.
    sample = normal(0, 1, 4000) * np.exp2(np.random.default_rng(1).integers(-18, 7, (1, 4000)))
    sample[0, :2] = float_values(kind).max()
    mine = fields(kind, np.float32(sample))["codes"]
    other = torch.tensor(sample, dtype=torch.float32).to(dtype).view(torch.uint8).numpy()
    assert ((mine == other) | ((mine == 0) & (other == 128))).all()  # -0 is never made


@pytest.mark.parametrize("name", ["fp4", "fp6-e3m2", "fp6-e2m3", "fp8-e4m3", "flint4", "pot4", "bipolar3", "int3"])
@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_codes_are_those_of_the_nearest_values_by_brute_force(name, seed):
    form = load_format(name)
    rng = np.random.default_rng(seed)
    tensor = rng.standard_normal(40)
    tensor[:2] = np.abs(tensor).max() * np.array([1, -1])
    stored = form.quantise(tensor)
    scale = float(np.array(stored.fields["scales"][0, 0], np.uint16).view(np.float16))
    for weight, code in zip(tensor, stored.fields["codes"][0], strict=True):
        distance = np.abs(form.values * scale - weight)
        if name == "int3":
            distance[4] = np.inf  # the least value is never made
        assert distance[code] == pytest.approx(distance.min(), abs=1e-12)


def test_halves_go_to_the_even_code():
    # fp4 with a scale of 1: between 4 (code 6) and 6 (7), 2 (4) and 3 (5), 1 (2) and 1.5 (3), 0.5 (1) and 1 (2)
    assert through("fp4", [[6.0, 5.0, 2.5, 1.25, 0.75, -5.0, 0.25]]).tolist() == [[6, 4, 2, 1, 1, -4, 0]]


# -- microscaling ------------------------------------------------------------------------------------
def test_microscaling_by_hand():
    block = np.zeros(40)
    block[:4], block[32] = (5.0, -0.3, 7.9, 0.2), 0.1
    found = fields("mxfp4", block)
    assert found["scales"].tolist() == [[127, 121]]  # 2^(2 - 2); 0.1 is 2^-4 times 1.6: 2^(-4 - 2)
    assert through("mxfp4", block)[[0, 1, 2, 3, 32]].tolist() == [4, -0.5, 6, 0, 6 / 64]
    assert through("mxint8", [1.5, 127.9 / 64, 0.01]).tolist() == [1.5, 127 / 64, 1 / 64]
    assert through("mxfp8-e5m2", [57344.0, 1.0]).tolist() == [57344, 1]
    assert fields("mxfp4", np.zeros(32))["scales"].tolist() == [[0]]


def test_nvfp4_by_hand():
    tensor = np.zeros(32)
    tensor[[0, 1, 16, 17]] = 2688, 1000, 12, -2  # tensor 1; blocks 448 and 2
    found = fields("nvfp4", tensor)
    assert float_values("fp8-e4m3")[found["scales"]].tolist() == [[448, 2]]
    assert found["tensor"].tolist() == [[0x3F800000]]
    assert through("nvfp4", tensor)[[0, 1, 16, 17]].tolist() == [2688, 896, 12, -2]


# -- BitMoD ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "basic", "special"),
    [("fp3", [0, 1, 2, 4], [3, -3, 6, -6]), ("fp4", [0, 0.5, 1, 1.5, 2, 3, 4, 6], [5, -5, 8, -8])],
)
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_special_value_is_the_best_by_brute_force(kind, basic, special, seed):
    tensor = normal(seed, 2, 64) ** 3
    chosen = fields(f"bitmod-{kind}-g32", tensor)["special"]
    for row, group in product(range(2), range(2)):
        weights, errors = tensor[row, 32 * group : 32 * group + 32], []
        for value in special:
            grid = np.array([*basic, *(-x for x in basic), value])
            scale = max(max(weights.max(), 0) / grid.max(), min(weights.min(), 0) / grid.min())
            errors.append(np.square(np.abs(weights[:, None] - scale * grid).min(axis=1)).sum())
        assert errors[chosen[row, group]] == pytest.approx(min(errors), rel=1e-9)


@pytest.mark.parametrize("kind", ["fp3", "fp4", "int6"])
def test_bitmod_is_the_bit_serial_kernel_s_to_the_last_bit(kind):
    form, tensor = load_format(f"bitmod-{kind}-g32"), normal(0, 4, 96)
    stored = form.unpack(form.pack(form.quantise(tensor)), tensor.shape)
    theirs = bitserial.quantise(tensor, kind, 32)
    assert (stored.fields["codes"] == theirs.codes).all()
    assert form.dequantise(stored) == pytest.approx(theirs.values(), rel=2**-23)
    acts = np.random.default_rng(1).integers(-128, 128, (5, 96))
    sums = bitserial.bitserial_dot(acts, form.weights(stored.fields), int8=True)
    steps = form.weights(stored.fields).step
    assert not sums.overflow.any()
    assert sums.values() * steps == pytest.approx(acts @ form.dequantise(stored).T, rel=1e-12, abs=1e-12)


# -- ANT ---------------------------------------------------------------------------------------------
def test_the_types_of_ant_are_the_published_ones():
    assert values_of("flint", 4)[:8].tolist() == [0, 1, 2, 3, 16, 8, 4, 6]
    assert sorted(values_of("flint", 5)[:16].tolist()) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32, 64]
    assert values_of("flint", 5)[[8, 9, 10, 11, 12]].tolist() == [64, 32, 16, 24, 8]  # the first one says the exponent
    assert values_of("pot", 4)[:8].tolist() == [0, 1, 2, 4, 8, 16, 32, 64]
    assert values_of("int", 4).tolist() == [*range(8), *(-x for x in range(8))]


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_type_of_a_group_is_the_best_of_the_three(seed):
    tensor = normal(seed, 1, 64) ** np.random.default_rng(seed).choice([1, 3, 5])
    errors = [np.square(through(f"{x}4-g64", tensor) - tensor).sum() for x in TYPES]
    assert fields("ant4-g64", tensor)["types"].item() == np.argmin(errors)
    assert np.square(through("ant4-g64", tensor) - tensor).sum() == pytest.approx(min(errors), rel=1e-12)


# -- OliVe -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", [ovp.OVP4, ovp.OVP8], ids=lambda f: f.name)
def test_ovp_is_the_kernel_s_codes_and_bytes(form):
    tensor = normal(0, 6, 32)
    tensor[2, 5] = 12
    stored = load_format(form.name).quantise(tensor)
    scale = float(np.array(stored.fields["scale"][0], np.uint32).view(np.float32))
    theirs = ovp.fit(tensor, form)
    assert scale == np.float32(theirs.scale)
    assert (stored.fields["codes"] == ovp.quantise(tensor, form, scale, theirs.bias)).all()
    packed = load_format(form.name).pack(stored)
    assert packed[:-4] == ovp.pack(stored.fields["codes"], form).tobytes()
    acts = np.random.default_rng(1).integers(-7, 8, (3, 32)) & (2 * form.identifier - 1)
    sums, flags = ovp.tile_matmul(acts, stored.fields["codes"], form, (0, theirs.bias), 48)
    assert not flags.any()
    whole = np.where(acts >= form.identifier, acts - 2 * form.identifier, acts)
    assert sums * scale == pytest.approx(whole @ load_format(form.name).dequantise(stored).T, rel=1e-12)


def test_an_odd_column_has_a_partner_that_is_stored():
    assert load_format("ovp4").bits_per_weight((3, 5)) == 8 * (3 * 3 + 4) / 15
    assert through("ovp8", normal(0, 3, 5)).shape == (3, 5)


# -- NormalFloat -------------------------------------------------------------------------------------
def test_the_levels_of_nf4_are_the_published_ones():
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert levels(4) == pytest.approx(published, abs=3e-7)  # theirs are binary32
    assert np.count_nonzero(levels(3) == 0) == 1
    assert len(levels(3)) == 8


def test_nf4_by_hand():
    assert through("nf4-b4", [2.0, -1.0, 0.1, 0.02]) == pytest.approx([2, -2 * 0.5250730514, 2 * 0.0795802996, 0])
    assert fields("nf4-b2", [2.0, -1.0, 0.1, 0.0])["codes"].tolist() == [[15, 2, 15, 7]]


def test_double_quantisation_changes_block_maxima_a_little():
    tensor = normal(0, 64, 512)
    most = np.abs(tensor.reshape(-1, 64)).max(axis=1)
    form = load_format("nf4-b64-dq")
    stored = form.quantise(tensor)
    grid = np.abs(form.dequantise(stored).reshape(-1, 64)).max(axis=1)
    assert len(stored.fields["second"]) == 2
    # e4m3 keeps 3 bits of the difference from the mean: at most 1/16 of it is lost.
    assert np.abs(grid - most).max() <= np.abs(most - most.mean()).max() / 16
    assert form.error(tensor).sqnr_db == pytest.approx(load_format("nf4-b64").error(tensor).sqnr_db, abs=0.1)


# -- ternary and bipolar -----------------------------------------------------------------------------
def test_five_trits_are_a_byte():
    row = [-1.0, 0.0, 1.0, 1.0, -1.0, 1.0]
    assert fields("ternary-p5", row)["codes"].tolist() == [[0 + 3 + 18 + 54 + 0, 2 + 3 + 9 + 27 + 81]]
    assert fields("ternary", row)["codes"].tolist() == [[0, 1, 2, 2, 0, 2]]
    digits = np.array(list(product((-1.0, 0.0, 1.0), repeat=5)))
    digits = digits[np.abs(digits).sum(1) > 0]
    found = fields("ternary-p5-row", digits)
    assert len(set(found["codes"].ravel().tolist())) == 242
    assert (np.sign(through("ternary-p5-row", digits)) == digits).all()


def test_ternary_is_the_layer_s_of_the_reference_model():
    tensor = np.float32(normal(0, 32, 64))
    layer = _ternary(torch.tensor(tensor)).numpy().astype(np.float64)
    for name in ("ternary", "ternary-p5"):
        mine = through(name, tensor)
        assert (np.sign(mine) == np.sign(layer)).mean() > 0.999  # a weight at a half may differ: the scale is binary16
        assert np.abs(mine).max() == pytest.approx(np.abs(layer).max(), rel=2**-11)


def test_bipolar_by_hand():
    assert through("bipolar1", [1.0, -2.0, 0.0, 3.0]).tolist() == [1.5, -1.5, 1.5, 1.5]
    assert through("bipolar2", [3.0, -0.2, 0.2, -1.9]).tolist() == [3, -1, 1, -1]
    assert fields("bipolar2", [3.0, -0.2, 0.2, -2.1])["codes"].tolist() == [[3, 1, 2, 0]]


@pytest.mark.parametrize(("name", "odd"), [("int2", False), ("int4", False), ("int8", False), ("bipolar1", True),
                                           ("bipolar4", True)])  # fmt: skip
def test_the_lookup_kernel_gives_the_dequantised_product(name, odd):
    form, tensor = load_format(name), normal(0, 8, 48)
    stored = form.unpack(form.pack(form.quantise(tensor)), tensor.shape)
    whole = np.int64(form.values[stored.fields["codes"]])
    acts = np.random.default_rng(1).integers(-128, 128, (4, 48))
    tile = lut.lut_matmul(acts, whole, form.bits, lut.LutFormat(), odd)
    assert not tile.overflow.any()
    scales = stored.fields["scales"].astype(np.uint16).view(np.float16).astype(np.float64)
    assert tile.results * scales.T == pytest.approx(acts @ form.dequantise(stored).T, rel=1e-12, abs=1e-12)
    if name != "bipolar4":  # the kernel's own quantiser has the same numbers, but for scales that are not rounded
        off = np.abs(lut.quantise(tensor, form.bits, 48).values - whole)
        assert off.max() <= 1
        assert (off > 0).mean() < 0.05


# -- binary bases ------------------------------------------------------------------------------------
@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 4))
def test_shift_add_scales_are_powers_of_two_and_signs_the_best_for_them(seed, bases):
    tensor = normal(seed, 2, 40)
    found = fields(f"shiftadd{bases}-g16", tensor)
    back = through(f"shiftadd{bases}-g16", tensor)
    for row, column in product(range(2), range(40)):
        scales = 2.0 ** (found["exponents"][row, column // 16] - 127.0)
        sums = [sum(s * a for s, a in zip(signs, scales, strict=True)) for signs in product((1, -1), repeat=bases)]
        best = min(abs(x - tensor[row, column]) for x in sums)
        assert abs(back[row, column] - tensor[row, column]) == pytest.approx(best, abs=1e-12)


def test_one_base_is_the_mean_magnitude_as_a_power_of_two():
    tensor = normal(0, 1, 64)
    assert fields("shiftadd1-g64", tensor)["exponents"].item() == 127 + round(log2(np.abs(tensor).mean()))
    exact = np.array([[3.0, 1.0, -1.0, -3.0, 3.0, -3.0, 1.0, -1.0]])
    assert (through("shiftadd2-g8", exact) == exact).all()  # 2 and 1
    exact = np.array([[7.0, 5.0, -3.0, -1.0, 1.0, 3.0, -5.0, -7.0]])
    assert (through("shiftadd3-g8", exact) == exact).all()  # 4, 2 and 1


# -- codebooks ---------------------------------------------------------------------------------------
def test_as_many_vectors_as_the_codebook_has_are_kept():
    vectors = np.float16(normal(0, 16, 4)).astype(np.float64)
    tensor = vectors[np.random.default_rng(1).integers(0, 16, 96)].reshape(8, 48)
    assert (through("vptq-v4-k16", tensor) == tensor).all()
    assert load_format("vptq-v4-k15").error(tensor).max_error > 0


def test_vectors_are_those_nearest_and_the_same_every_time():
    tensor = normal(0, 16, 64)
    form = load_format("vptq-v4-k16-r8")
    stored, again = form.quantise(tensor), form.quantise(tensor)
    assert form.pack(stored) == form.pack(again)
    book = stored.fields["book"].astype(np.uint16).view(np.float16).astype(np.float64)
    distance = np.square(tensor.reshape(-1, 1, 4) - book).sum(-1)
    assert (distance.argmin(1) == stored.fields["codes"].ravel()).all()
    rest = stored.fields["rest book"].astype(np.uint16).view(np.float16).astype(np.float64)
    left = tensor.reshape(-1, 4) - book[stored.fields["codes"].ravel()]
    assert (np.square(left[:, None] - rest).sum(-1).argmin(1) == stored.fields["rest"].ravel()).all()


def test_a_row_of_few_numbers_is_kept_and_outliers_are_apart():
    tensor = np.random.default_rng(0).choice([-1.5, 0.25, 0.5, 3.0], (4, 50))
    assert (through("squeeze2", tensor) == tensor).all()
    tensor[1, 7], tensor[3, 2] = 100.0, -50.0
    found = fields("squeeze2-s1", tensor)
    assert found["columns"].tolist() == [7, 2]
    assert found["starts"].tolist() == [0, 0, 1, 1, 2]
    assert (through("squeeze2-s1", tensor) == tensor).all()


# -- sparsity ----------------------------------------------------------------------------------------
def test_two_of_four_by_hand():
    row = [[0.5, -3.0, 2.0, 1.0, 0.0, 0.0, 0.0, -7.0]]
    assert through("2:4", row).tolist() == [[0, -3, 2, 0, 0, 0, 0, -7]]
    found = fields("2:4-int4", row)
    assert (found["codes"].tolist(), found["places"].tolist()) == ([[13, 2, 0, 9]], [[1, 2, 0, 3]])
    packed = load_format("2:4-int4").pack(load_format("2:4-int4").quantise(row))
    assert packed == bytes([0x2D, 0x90, 0b11_00_10_01, 0x00, 0x3C])


@pytest.mark.parametrize("name", ["2:4-int8", "4:16-int4", "1:4-int8"])
def test_sparse_integers_are_the_sparse_kernel_s(name):
    form, tensor = load_format(name), normal(0, 6, 64)
    stored = form.unpack(form.pack(form.quantise(tensor)), tensor.shape)
    small = form.compressed(stored.fields, 64)
    acts = np.random.default_rng(1).integers(-128, 128, (3, 64))
    sums, met = sparse.chain_dot(acts, small, 4, 48)
    scales = stored.fields["scales"].astype(np.uint16).view(np.float16).astype(np.float64)
    assert not met.any()
    assert sums * scales.T == pytest.approx(acts @ form.dequantise(stored).T, rel=1e-12, abs=1e-12)
    kept = np.abs(tensor).reshape(6, -1, form.m)
    threshold = np.sort(kept, axis=-1)[..., -form.n]
    assert (form.dequantise(stored).reshape(kept.shape)[kept < threshold[..., None]] == 0).all()


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([(3, 70), (260, 65), (1, 1), (5, 64)]), st.integers(0, 99))
def test_three_indices_keep_the_same_weights(seed, shape, percent):
    tensor = normal(seed, *shape)
    same = [through(f"sparse{percent}-{index}", tensor) for index in ("bitmap", "csr", "csl")]
    assert (same[0] == same[1]).all()
    assert (same[0] == same[2]).all()
    kept = (tensor.size * (100 - percent) + 50) // 100
    assert np.count_nonzero(same[0]) == kept
    if kept:
        assert np.abs(tensor[same[0] != 0]).min() >= np.abs(tensor[same[0] == 0]).max(initial=0)
        assert (same[0][same[0] != 0] == np.float16(tensor[same[0] != 0])).all()


def test_indices_by_hand():
    tensor = np.zeros((257, 65))
    tensor[0, 3], tensor[0, 64], tensor[256, 1], tensor[255, 63] = 5, 6, 7, 8
    name = f"sparse{99}-"
    count = (tensor.size + 50) // 100
    csr, csl = fields(name + "csr", tensor), fields(name + "csl", tensor)
    assert len(csr["values"]) == count == 167
    assert csl["starts"][[0, -1]].tolist() == [0, 167]
    assert len(csl["starts"]) == 2 * 2 + 1
    tile = csl["places"][csl["starts"][0] : csl["starts"][1]]
    assert tile[-1] == 255 * 64 + 63
    assert csl["places"][csl["starts"][1]] == 0  # row 0, column 64
    assert csl["places"][csl["starts"][2]] == 1  # row 256, column 1
    assert csr["columns"][-1] == 1


def test_whole_groups_go_or_stay():
    tensor = normal(0, 8, 64)
    back = through("sparse75-v8", tensor).reshape(-1, 8)
    norms = np.square(tensor.reshape(-1, 8)).sum(1)
    assert (np.flatnonzero(back.any(1)) == np.sort(np.argsort(-norms)[:16])).all()
    assert (back[back.any(1)] == np.float16(tensor.reshape(-1, 8)[back.any(1)])).all()


# -- caches ------------------------------------------------------------------------------------------
def test_keys_are_values_the_other_way_round():
    cache = normal(0, 96, 64) * np.exp2(np.arange(64) % 7)
    assert (through("key2-g32", cache) == through("value2-g32", cache.T).T).all()
    keys, values = (load_format(f"{x}2-g32").error(cache).sqnr_db for x in ("key", "value"))
    assert keys > values + 3  # channels that differ in size want a scale each


def test_a_cache_by_hand():
    assert through("value2", [[1.0, 2.0, 4.0, 3.4]]).tolist() == [[1, 2, 4, 3]]
    assert fields("value2", [[1.0, 2.0, 4.0, 3.4]])["offsets"].tolist() == [[0x3C00]]
    assert through("key2-g2", [[0.0], [3.0], [10.0], [13.0], [5.0]]).tolist() == [[0], [3], [10], [13], [5]]


# -- plain -------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(seeds)
def test_bfloat16_is_torch_s(seed):
    tensor = np.float32(normal(seed, 1, 200) * np.exp2(np.random.default_rng(seed).integers(-140, 100, (1, 200))))
    theirs = torch.tensor(tensor).to(torch.bfloat16)
    assert (through("bf16", tensor) == theirs.to(torch.float64).numpy()).all()
    assert (through("fp32", tensor) == tensor).all()
    assert (through("fp16", np.float32(np.float16(tensor / 2**90))) == np.float16(tensor / 2**90)).all()
