"""Do the fast kernels compute what the golden arithmetic says, to the last bit, however they are shared out?"""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed: the fast kernels were NOT tested")

from tokenfab.errors import InputError
from tokenfab.kernels import bitserial, lut
from tokenfab.kernels.cpu.compiled import instruction_sets
from tokenfab.kernels.cpu.golden import (
    LUT_DROPPED,
    Activations,
    error_bound,
    golden_matmul,
    integer_sums,
    quantise_dot,
    quantise_lut,
)
from tokenfab.kernels.cpu.layout import BITS, LAYOUTS, pack
from tokenfab.kernels.cpu.matmul import Plan, matmul

ISAS = ("avx512", "avx2", "portable")


def weights(bits: int, n: int, k: int, group: int, seed: int = 0) -> lut.Quantised:
    """Random codes over the whole range of ``bits``, the least value too, and random scales."""
    rng = np.random.default_rng(seed)
    low = 2 ** (bits - 1)
    values = rng.integers(0, 2, (n, k)) * 2 - 1 if bits == 1 else rng.integers(-low, low, (n, k))
    return lut.Quantised(values, rng.uniform(0.5, 2, (n, k // group)), bits, bits == 1)


def activations(tokens: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, k)).astype(np.float32)


# -- the golden arithmetic against what was there before --------------------------------------------
@pytest.mark.parametrize("bits", BITS)
def test_without_rounding_tables_and_products_are_the_lookup_units_integers(bits):
    q = weights(bits, 5, 64, 32)
    values = np.random.default_rng(2).integers(-7, 8, (3, 2, 32))
    exact = lut.lut_matmul(values.reshape(3, 64), q.values, bits, lut.LutFormat(k=4, activation_bits=8), q.odd)
    dot = integer_sums(Activations(values, np.ones((3, 2), np.float32)), pack(q, "dot"))
    assert (dot.sum(axis=1) == exact.results).all()
    # Multiples of what entries lose are not rounded.
    coarse = Activations(values << LUT_DROPPED, np.ones((3, 2), np.float32))
    looked_up = integer_sums(coarse, pack(q, "lut"))
    assert (looked_up.sum(axis=1) == exact.results * (1 if q.odd else 2)).all()


def test_four_bit_products_are_the_bit_serial_units_integers():
    q = weights(4, 6, 64, 64)
    values = np.random.default_rng(3).integers(-127, 128, (2, 1, 64))
    ours = integer_sums(Activations(values, np.ones((2, 1), np.float32)), pack(q))
    one = np.ones((6, 1), np.int64)
    serial = bitserial.Quantised(q.values & 15, one, one * 0, np.ones(6), "int4", 64)
    wide = bitserial.Widths(guard=8, extra=2, acc_width=48, sum_width=62)
    assert (bitserial.bitserial_dot(values[:, 0], serial, int8=True, widths=wide).values() == ours[:, 0]).all()


def test_activations_are_rounded_to_nearest_and_their_largest_is_the_top():
    x = np.array([[[1.0, -2.0, 0.5, 0.0] * 8]], np.float32)
    dot, table = quantise_dot(x), quantise_lut(x)
    assert dot.values[0, 0, :4].tolist() == [64, -127, 32, 0]  # 63.5 to the even one, 31.75 up
    assert dot.scales[0, 0] == np.float32(2) * (np.float32(1) / np.float32(127))
    assert np.abs(table.values).reshape(-1, 4).sum(1).max() == 32508 + (np.abs(table.values[0, 0, :4]).sum() - 32508)
    assert abs(np.abs(table.values[0, 0, :4]).sum() - 32508) <= 2


def test_tables_stay_within_signed_bytes_at_the_worst():
    for seed in range(20):
        x = np.random.default_rng(seed).laplace(size=(1, 4, 32)).astype(np.float32)
        entries = lut.half_table(quantise_lut(x).values.reshape(-1, 4), LUT_DROPPED)
        assert entries.min() >= -127
        assert entries.max() <= 127
        assert np.abs(entries).max() >= 126


# -- kernels against the golden arithmetic ----------------------------------------------------------
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", BITS)
def test_kernels_equal_the_golden_arithmetic_bit_for_bit(bits, layout, isa):
    if isa not in instruction_sets():
        pytest.skip(f"this processor has no {isa}: its kernels were NOT tested")
    for (n, k, group), tokens in (((64, 256, 128), 1), ((70, 128, 32), 1), ((1, 64, 64), 1), ((130, 128, 64), 9)):
        packed = pack(weights(bits, n, k, group), layout)
        x = activations(tokens, k)
        assert np.array_equal(matmul(x, packed, isa=isa), golden_matmul(x, packed)), (n, k, group, tokens)


@pytest.mark.parametrize("tokens", [2, 5, 6, 7, 13, 64, 65, 130])
def test_any_number_of_tokens_is_cut_into_tiles_and_panels_without_loss(tokens):
    packed, x = pack(weights(2, 64, 64, 32)), activations(tokens, 64)
    assert np.array_equal(matmul(x, packed), golden_matmul(x, packed))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_may_be_binary32(layout):
    q = weights(4, 64, 128, 32)
    half, full = pack(q, layout), pack(q, layout, half=False)
    x = activations(1, 128)
    assert np.array_equal(matmul(x, full), golden_matmul(x, full))
    assert not np.array_equal(matmul(x, full), matmul(x, half))
    assert full.nbytes == half.nbytes + 2 * 64 * 4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", BITS)
def test_the_error_against_the_real_product_is_within_its_bound_and_small(bits, layout):
    q = lut.quantise(np.random.default_rng(5).standard_normal((64, 1024)), bits, 128)
    packed, x = pack(q, layout), activations(3, 1024)
    real = x.astype(np.float64) @ packed.quantised.dequantised().T
    error = np.abs(matmul(x, packed) - real)
    assert (error <= error_bound(x, packed) + 1e-5 * np.abs(real).max()).all()
    assert np.sqrt((error**2).mean() / (real**2).mean()) < (0.02 if layout == "lut" else 0.01)


def test_extremes_do_not_overflow():
    for bits in BITS:
        for value in [-1, 1] if bits == 1 else [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]:
            q = lut.Quantised(np.full((64, 128), value), np.ones((64, 1)), bits, bits == 1)
            x = np.full((1, 128), -3.0, np.float32)
            for layout in LAYOUTS:
                packed = pack(q, layout)
                found = matmul(x, packed)
                assert np.array_equal(found, golden_matmul(x, packed))
                assert np.allclose(found, -3.0 * 128 * value, rtol=0.01)


def test_a_group_of_zeros_is_zero_and_one_with_a_nan_makes_its_token_nan():
    packed = pack(weights(4, 64, 64, 32))
    x = activations(3, 64)
    x[0] = 0
    x[1, 40] = np.nan
    found = matmul(x, packed)
    assert (found[0] == 0).all()
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[2]).all()
    tables = pack(weights(2, 64, 64, 32), "lut")
    assert (matmul(x[:1], tables) == 0).all()
    assert np.isnan(matmul(x[1:2], tables)).all()


# -- threads ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_change_nothing(layout):
    packed = pack(weights(2, 64 * 9, 128, 64), layout)
    for tokens in (1, 20):
        x = activations(tokens, 128)
        expected = golden_matmul(x, packed)
        for threads in (1, 2, 5):
            plan = Plan(packed, tokens, threads)
            for _ in range(50):
                assert np.array_equal(plan.run(x, packed), expected)


def test_helpers_that_come_late_find_the_next_product_whole():
    a, b = (pack(weights(4, 64 * 5, 64, 32, seed)) for seed in (1, 2))
    x = activations(1, 64)
    expected = {id(p): golden_matmul(x, p) for p in (a, b)}
    plans = [Plan(a, 1, 3), Plan(b, 1, 2)]
    for i in range(400):
        p = (a, b)[i % 2]
        assert np.array_equal(plans[i // 3 % 2].run(x, p), expected[id(p)])


def test_two_callers_at_once_do_not_disturb_each_other():
    wrong = []

    def work(seed: int) -> None:
        packed, x = pack(weights(4, 256, 64, 32, seed)), activations(4, 64, seed)
        plan, expected = Plan(packed, 4, 2), golden_matmul(x, packed)
        wrong.extend(i for i in range(100) if not np.array_equal(plan.run(x, packed), expected))

    callers = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert wrong == []
    assert not any(caller.is_alive() for caller in callers)


# -- layout and refusals ---------------------------------------------------------------------------
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", BITS)
def test_weights_take_their_bits(bits, layout):
    packed = pack(weights(bits, 128, 256, 128), layout)
    stored = 4 if (bits, layout) == (3, "dot") else bits
    assert packed.data.nbytes == 128 * 256 * stored / 8
    assert packed.scales.nbytes == 128 * 2 * 2
    assert packed.nbytes == packed.data.nbytes + packed.scales.nbytes


def test_a_plan_writes_to_a_given_array_and_takes_other_weights_of_its_kind():
    a, b = (pack(weights(4, 65, 64, 32, seed)) for seed in (1, 2))
    x, out = activations(1, 64), np.zeros((1, 65), np.float32)
    plan = Plan(a)
    assert plan.run(x, b, out) is out
    assert np.array_equal(out, golden_matmul(x, b))


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: pack(weights(4, 4, 48, 48)), "48 weights in 1 groups: accepted are groups of 32, 64, 128"),
        (lambda: lut.quantise(np.ones((2, 100)), 4, 32), "a multiple of the group, 32"),
        (lambda: pack(lut.Quantised(np.zeros((2, 32)), np.ones((2, 1)), 5, False)), "5 bits: fast kernels are for"),
        (lambda: pack(weights(4, 2, 32, 32), "row"), "layout 'row'; accepted: dot, lut"),
        (lambda: pack(lut.Quantised(np.ones((2, 32)), np.full((2, 1), 1e6), 4, False)), "beyond binary16"),
        (lambda: pack(lut.Quantised(np.ones((2, 32), int), np.ones((2, 1)), 2, True)), "lut layout only"),
        (lambda: matmul(np.ones((1, 31)), pack(weights(4, 2, 32, 32))), r"shape \(1, 31\); wanted \(tokens, 32\)"),
        (lambda: matmul(np.ones((1, 32)), pack(weights(4, 2, 32, 32)), isa="mmx"), "instruction set 'mmx'"),
        (lambda: matmul(np.ones((1, 32)), pack(weights(4, 2, 32, 32)), threads=0), "threads = 0: at least 1"),
    ],
)  # fmt: skip
def test_what_no_kernel_does_is_refused_in_one_line(refused, message):
    with pytest.raises(InputError, match=message) as found:
        refused()
    assert "\n" not in str(found.value)


def test_a_plan_refuses_operands_of_other_shapes():
    plan = Plan(pack(weights(4, 64, 64, 32)))
    x = activations(1, 64)
    other = pack(weights(4, 64, 64, 64))
    short = np.zeros((1, 63), np.float32)
    for wrong in (lambda: plan.run(x.astype(np.float64), plan.packed), lambda: plan.run(x[:, ::2], plan.packed),
                  lambda: plan.run(x, other), lambda: plan.run(x, plan.packed, short)):  # fmt: skip
        with pytest.raises(InputError):
            wrong()
