"""A layer of a small Llama through every unit's array in Verilator: every bit as the kernel's, every cycle as told.

``pytest tests/test_rtl_layer.py -s`` prints what each unit made of it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rtl_support import UNITS, need_simulator, sets

from tokenfab.errors import InputError
from tokenfab.models.config import ModelConfig
from tokenfab.models.decoder import build
from tokenfab.rtl.flow import run
from tokenfab.rtl.layer import LAYER_TEST, Layer, compare, relative_error, run_layer
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
    found = Layer(acts, qkv.weight[:256].detach().double().numpy())
    np.testing.assert_allclose(found.product(), outputs[:, :256], rtol=0, atol=1e-4)
    return found


@pytest.mark.parametrize(("name", "number"), sets("layer"))
def test_a_layer_of_a_model_is_bit_exact_in_the_cycles_of_the_model(name, number, layer, record_property):
    need_simulator("verilator")
    found = run_layer(load_unit(name), number, layer.activations, layer.weights)
    assert found["failed"] == {}
    for key in ("macs", "cycles_rtl", "cycles_model", "mismatches", "error"):
        record_property(key, found[key])
    print(
        f"\n{name} {'/'.join(found['format'].values())}: {found['macs']} MACs, {found['cycles_rtl']} cycles (model"
        f" {found['cycles_model']}), {found['mismatches']} of {found['outputs']} outputs differ, error"
        f" {found['error']:.4f}"
    )
    assert (found["macs"], found["outputs"], found["mismatches"]) == (64 * 256 * 256, 64 * 256, 0)
    assert found["cycles_rtl"] == found["cycles_model"]
    # A bound far above what is seen would not notice a quantiser that went wrong.
    assert 0.8 * found["error_bound"] < found["error"] <= found["error_bound"]


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_has_a_layer(name):
    assert load_unit(name).recipe["layer"]
