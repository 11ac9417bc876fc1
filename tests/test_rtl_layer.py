"""A layer of a small Llama through every unit's array in Verilator: every bit as the kernel's, every cycle as told.

``pytest tests/test_rtl_layer.py -s`` prints what each unit made of it.
"""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rtl_support import UNITS, need_simulator, sets

from tokenfab.errors import InputError
from tokenfab.kernels.ovp import OVP4, fit
from tokenfab.models.config import ModelConfig
from tokenfab.models.decoder import build
from tokenfab.rtl.layer import Layer, Stream, layer_parameters, pack_rows, run_layer, tiles, unpack_rows, untiled
from tokenfab.rtl.stream import simulate
from tokenfab.rtl.units import load_unit

TOKENS = 64
CONFIG = ModelConfig.model_validate({
    "name": "small", "description": "for tests", "source": "none", "hidden": 256, "layers": 2, "heads": 4,
    "kv_heads": 2, "head_dim": 64, "inner": 512, "vocabulary": 499, "max_context": TOKENS, "norm": "rms",
    "norm_eps": 1e-5, "act": "silu", "gated": True, "position": "rope", "rope_theta": 1e4, "format": "fp32",
})  # fmt: skip


@pytest.fixture(scope="module")
def layer() -> Layer:
    """The query projection of the second layer, 256 x 256, and the 64 activation vectors that reach it.

    Random weights have no outliers, and trained ones do, which is what outlier-victim pairs are for. So four
    channels of the norm before it have a gain of 10, as in trained models (LLM.int8(), arXiv:2208.07339: few
    channels, the same for all tokens), and one weight in 500 is six times as great.
    """
    decoder = build(CONFIG, device="cpu", dtype=torch.float32, seed=1)
    generator = torch.Generator().manual_seed(2)
    last = decoder.layers[1]
    qkv = last.attention.qkv
    seen = []
    with torch.no_grad():
        last.attention_norm.weight[torch.randperm(256, generator=generator)[:4]] = 10.0
        qkv.weight[torch.rand(qkv.weight.shape, generator=generator) < 1 / 500] *= 6.0
        qkv.register_forward_hook(lambda module, given, told: seen.append((given[0][0], told[0])))
        decoder(torch.randint(0, CONFIG.vocabulary, (1, TOKENS), generator=generator))
    acts, outputs = (tensor.double().numpy() for tensor in seen[0])
    found = Layer(acts, qkv.weight[:256].detach().double().numpy(), {})
    np.testing.assert_allclose(found.product(), outputs[:, :256], rtol=0, atol=1e-4)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), sets("layer"))
def test_a_layer_of_a_model_is_bit_exact_in_the_cycles_of_the_model(name, number, layer, record_property):
    need_simulator("verilator")
    found = run_layer(load_unit(name), number, layer.activations, layer.weights)
    for key in ("macs", "cycles_rtl", "cycles_model", "mismatches", "error"):
        record_property(key, found[key])
    print(
        f"\n{name} {'/'.join(found['format'].values())}: {found['macs']} MACs, {found['cycles_rtl']} cycles, model"
        f" {found['cycles_model']}, {found['mismatches']} of {found['outputs']} outputs differ, error"
        f" {found['error']:.4f}, {found['cpu_s']:.2f} s"
    )
    assert (found["macs"], found["outputs"], found["mismatches"]) == (64 * 256 * 256, 64 * 256, 0)
    assert found["cycles_rtl"] == found["cycles_model"]
    # A bound far above what is seen would not notice a quantiser that went wrong.
    assert 0.85 * found["error_bound"] < found["error"] <= found["error_bound"]


def test_the_layer_has_outliers_that_pairs_are_for(layer):
    acts, weights = (fit(values, OVP4).codes for values in (layer.activations, layer.weights))
    assert (acts == OVP4.identifier).sum() > 100
    assert (weights == OVP4.identifier).sum() > 50


def test_every_unit_has_a_layer():
    assert [name for name in UNITS if not load_unit(name).recipe.get("layer")] == []


# -- what would be noticed --------------------------------------------------------------------------
def chain_stream(layer: Layer) -> Stream:
    table = Layer(layer.activations, layer.weights, load_unit("sparse_dsp_chain").recipe["layer"][1]["format"])
    module = importlib.import_module("tokenfab.rtl.sparse_dsp_chain.layer")
    return module.stream(table, layer_parameters(load_unit("sparse_dsp_chain"), 1))


def test_one_wrong_weight_is_a_mismatch_in_its_column_only(layer):
    need_simulator("verilator")
    unit = load_unit("sparse_dsp_chain")
    right = chain_stream(layer)
    (port,) = right.inputs
    weights = port.pins["weight_i"].copy()
    beats = len(weights) // 32 // 256  # of a row; 32 pairs of tokens, 256 rows
    weights[5 * beats, 0] ^= 1  # row 5, first pair of tokens
    wrong = replace(right, inputs=(replace(port, pins={**port.pins, "weight_i": weights}),))
    (sums, _), _ = wrong.read(simulate(unit, layer_parameters(unit, 1), wrong).pins)
    rows, columns = np.nonzero(sums != right.expected[0])
    assert {*columns.tolist()} == {5}
    assert {*rows.tolist()} <= {0, 1}


def test_too_few_results_and_beats_left_are_told(layer):
    need_simulator("verilator")
    unit = load_unit("sparse_dsp_chain")
    right = chain_stream(layer)
    (port,) = right.inputs
    cut = replace(port, pins={pin: data[:-1] for pin, data in port.pins.items()})
    for wrong in (replace(right, results=right.results - 1), replace(right, inputs=(cut,))):
        with pytest.raises(RuntimeError, match=rf"of {wrong.results} results came"):
            simulate(unit, layer_parameters(unit, 1), wrong)


# -- bits and tiles ---------------------------------------------------------------------------------
@given(st.integers(1, 64), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32))
def test_words_come_back_from_rows_of_bytes(width, count, rows, seed):
    half = 2 ** (width - 1)
    values = np.random.default_rng(seed).integers(-half, half - 1, (rows, count), endpoint=True)
    data = pack_rows(values, width)
    assert data.shape == (rows, -(-width * count // 32) * 4)
    assert (unpack_rows(data, width, count) == values).all()
    whole = sum((int(v) & (2 * half - 1)) << (i * width) for i, v in enumerate(values[0]))
    assert int.from_bytes(data[0].tobytes(), "little") == whole


def test_tiles_by_hand_and_back():
    matrix = np.arange(24).reshape(4, 6)
    assert tiles(matrix, 2, 3).tolist() == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20],
                                            [15, 16, 17, 21, 22, 23]]  # fmt: skip
    assert (untiled(tiles(matrix, 2, 3), (4, 6), 2, 3) == matrix).all()
    with pytest.raises(InputError, match="4 x 6 is not whole pieces of 3 x 3"):
        tiles(matrix, 3, 3)
