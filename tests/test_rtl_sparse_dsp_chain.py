"""The sparse DSP chain: golden model and cycle model against formulas, and what synthesis infers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rtl_support import need_yosys

from tokenfab.errors import InputError
from tokenfab.kernels.sparse import Compressed, chain_dot, compress, decompress, prune
from tokenfab.rtl.area import area, cascades
from tokenfab.rtl.sparse_dsp_chain.cycles import beats, check, cycles, latency, stored_per_block
from tokenfab.rtl.units import load_unit

patterns = st.sampled_from([2, 4, 8, 16]).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))


def matrix(seed: int, rows: int, k: int, low: int = -128, high: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (rows, k))


# -- N:M ----------------------------------------------------------------------------------------------
@given(patterns, st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32))
def test_a_pruned_matrix_survives_compression(pattern, rows, blocks, seed):
    n, m = pattern
    weights = matrix(seed, rows, blocks * m)
    kept = prune(weights, n, m)
    stored = compress(kept, n, m)
    assert stored.values.shape == (rows, blocks * n)
    assert (np.diff(stored.index.reshape(rows, blocks, n), axis=-1) > 0).all()
    assert (decompress(stored) == kept).all()


@given(patterns, st.integers(0, 2**32))
def test_pruning_keeps_the_largest(pattern, seed):
    n, m = pattern
    weights = matrix(seed, 3, 4 * m)
    kept = prune(weights, n, m).reshape(3, 4, m)
    blocks = np.abs(weights.reshape(3, 4, m))
    assert (np.count_nonzero(kept, axis=-1) <= n).all()
    assert (np.abs(kept).sum(-1) == np.sort(blocks, axis=-1)[..., m - n :].sum(-1)).all()


def test_two_of_four_by_hand():
    assert prune([[1, -3, 2, 3]], 2, 4).tolist() == [[0, -3, 0, 3]]
    stored = compress([[0, -3, 0, 3, 0, 0, 7, 0]], 2, 4)
    assert (stored.values.tolist(), stored.index.tolist()) == ([[-3, 3, 0, 7]], [[1, 3, 0, 2]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: compress([[1, 1, 1, 0]], 2, 4), "has 3 non-zeros"),
        (lambda: compress([[1, 0, 1]], 1, 2), "a multiple of 2"),
        (lambda: prune([[1, 2]], 3, 2), "N must be from 1 to M"),
        (lambda: prune([1, 2], 1, 2), r"shape \(2,\)"),
        (lambda: chain_dot([[1, 2, 3]], compress([[1, 0]], 1, 2), 2, 32), "have 2 inputs"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


# -- the golden product ----------------------------------------------------------------------------
@given(patterns, st.sampled_from([2, 8, 16]), st.integers(0, 2**32))
def test_without_overflow_the_chain_computes_the_matrix_product(pattern, lanes, seed):
    n, m = pattern
    acts = matrix(seed, 3, 5 * m)
    kept = prune(matrix(seed + 1, 4, 5 * m), n, m)
    sums, met = chain_dot(acts, compress(kept, n, m), lanes, 32)
    assert (sums == acts @ kept.T).all()
    assert not met.any()


def test_the_accumulator_saturates_beat_by_beat():
    stored = Compressed(np.array([[100, 100, 0, 0, -100, 0]]), np.array([[0, 1, 0, 1, 0, 1]]), 2, 2, 6)
    acts = np.full((1, 6), 1)
    high = 2**7 - 1
    assert [v.tolist() for v in chain_dot(acts, stored, 2, 8)] == [[[high - 100]], [[True]]]  # 200 -> 127, then 27
    assert [v.tolist() for v in chain_dot(acts, stored, 6, 8)] == [[[100]], [[False]]]  # one beat: 100 exactly
    assert [v.tolist() for v in chain_dot(-acts, stored, 2, 8)] == [[[-28]], [[True]]]  # -200 -> -128, then -28


# -- cycles -------------------------------------------------------------------------------------------
def test_latency_and_cycles_by_hand():
    p = check({})
    assert latency(p) == 8 + 5 + 1
    shape = {"m": 1, "n": 1, "k": 1}
    assert cycles(shape, {}, p) == 15
    # 4096 x 4096 by 2 vectors, dense: 256 beats a row; 2:4 is 8:16 and takes half of them
    whole = {"m": 2, "n": 4096, "k": 4096}
    assert beats(whole, {}, p) == 4096 * 256
    assert beats(whole, {"sparsity": "2:4"}, p) == 4096 * 128
    assert beats(whole | {"m": 3}, {"sparsity": "2:16"}, p) == 2 * 4096 * 32
    assert beats(whole | {"k": 4097}, {"sparsity": "2:16"}, p) == 4096 * 33
    assert cycles(whole, {}, p) == 4096 * 256 + 14


@pytest.mark.parametrize(
    ("sparsity", "n_min", "stored"),
    [("dense", 2, 16), ("1:16", 2, 2), ("1:16", 1, 1), ("2:4", 2, 8), ("1:2", 2, 8), ("3:4", 2, 16), ("3:8", 2, 8),
     ("5:16", 2, 8), ("4:4", 2, 16), ("1:8", 4, 4)],
)  # fmt: skip
def test_stored_weights_per_block(sparsity, n_min, stored):
    assert stored_per_block(sparsity, check({"N_MIN": n_min})) == stored


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5000), st.sampled_from(["8:16", "4:16", "2:16"]))
def test_sparsity_is_m_over_n_times_as_fast_on_whole_windows(m, n, k, sparsity):
    p = check({})
    shape = {"m": m, "n": n, "k": k * 128}  # a multiple of the widest window
    ratio = 16 // int(sparsity.split(":")[0])
    assert beats(shape, {}, p) == ratio * beats(shape, {"sparsity": sparsity}, p)


@pytest.mark.parametrize(
    ("shape", "format", "config", "words"),
    [
        ({"m": 0, "n": 1, "k": 1}, {}, {}, "m must be at least 1"),
        ({"m": 1, "n": 1, "k": 1}, {"weight": "int8"}, {"WEIGHT_WIDTH": 4}, "weights int4"),
        ({"m": 1, "n": 1, "k": 1}, {"activation": "fp16"}, {}, "int8 activations"),
        ({"m": 1, "n": 1, "k": 1}, {"sparsity": "2/4"}, {}, "accepted: dense, or N:M"),
        ({"m": 1, "n": 1, "k": 1}, {"sparsity": "2:6"}, {}, "must divide the chain's block of 16"),
        ({"m": 1, "n": 1, "k": 1}, {}, {"LANES": 12}, "LANES must be a power of two"),
    ],
)
def test_the_cycle_model_refuses_what_the_unit_cannot_do(shape, format, config, words):
    with pytest.raises(InputError, match=words):
        cycles(shape, format, config)


# -- synthesis ----------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "links"),
    [({"SEGMENT": 8}, 7), ({"SEGMENT": 4}, 6), ({"SEGMENT": 4, "WEIGHT_WIDTH": 4}, 6), ({"SEGMENT": 1}, 0)],
)
def test_every_lane_is_one_dsp_slice_and_a_segment_is_one_cascade(given, links):
    need_yosys()
    unit = load_unit("sparse_dsp_chain")
    small = {"LANES": 8, "M": 2, "N_MIN": 1, "PACK": 1}
    assert cascades(unit, unit.check(small | given)) == (8, links)


@pytest.mark.slow
@pytest.mark.parametrize("pack", [1, 2])
def test_packing_does_twice_the_work_with_the_same_dsp_slices(pack):
    need_yosys()
    unit = load_unit("sparse_dsp_chain")
    row = area(unit, unit.check({"LANES": 4, "M": 2, "N_MIN": 1, "SEGMENT": 4, "PACK": pack}))
    assert (row["dsp"], row["bram"], row["area"]) == (4, 0, None)
    assert row["lut"] > 0
    assert row["ff"] > 0
    assert row["cells"] > 100
