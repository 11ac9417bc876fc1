"""Sparse, mixed-precision and reordered weights: bytes by hand, what is noted, what is refused; the vision traces."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.models.vit import Vit, plain_experts
from tokenfab.models.vit_config import VitConfig, vit_config
from tokenfab.workloads import vision
from tokenfab.workloads.capture import capture
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.techniques.sparsity import blocks_of, index_bits
from tokenfab.workloads.trace import Trace
from tokenfab.workloads.vision import all_activated, capture_vision


@functools.cache
def traced(*techniques: str, model: str = "llama-2-7b") -> Trace:
    return apply_techniques(capture(model), list(techniques))


def bits_of(trace: Trace, operator: str) -> float:
    return next(w.bits for op, _ in trace.operators() if op.name == operator for w in op.weights if len(w.shape) > 1)


@pytest.mark.parametrize(("setting", "bits"), [
    ("n=2,m=4", 16 / 2 + 1),  # half of the values, two bits of index each
    ("n=1,m=4", 16 / 4 + 0.5), ("n=8,m=16", 8 + 2), ("n=4,m=4", 16),
    ("pattern=unstructured,density=0.3", 0.3 * 16 + 1),
    ("pattern=group,m=32,density=0.25", 4 + 1 / 32),
    ("pattern=blocks,m=16,density=0.75", 0.75 * 16 + 0.25 * 4),  # half of the blocks are full
    ("pattern=blocks,m=16,density=0.375", 0.375 * 16 + 0.375 * 4),
])  # fmt: skip
def test_sparse_weights_cost_their_values_and_indices(setting: str, bits: float):
    assert bits_of(traced(f"sparsity:{setting}"), "mlp.down") == pytest.approx(bits)


def test_sparsity_says_what_may_be_skipped_and_changes_no_work():
    before, after = traced(), traced("sparsity:n=2,m=4,where=qkv+output")
    noted = {
        op.name: (op.attrs["density"], op.attrs["sparsity"]) for op, _ in after.operators() if "density" in op.attrs
    }
    assert noted == {"attention.qkv": (0.5, "2:4"), "attention.output": (0.5, "2:4")}
    assert after.total("flops") == before.total("flops")
    assert after.parameters == before.parameters
    assert bits_of(after, "mlp.down") == bits_of(before, "mlp.down")


def test_sparsity_on_quantised_weights_keeps_the_narrow_values():
    """4-bit weights at 2:4: half of 4.125 bits and two bits of index per kept value. At 7:8 indices cost more than
    they save: the weights stay as they are stored."""
    assert bits_of(traced("weight-only", "sparsity:n=2,m=4"), "mlp.down") == pytest.approx(4.125 / 2 + 1)
    assert bits_of(traced("weight-only", "sparsity:n=7,m=8"), "mlp.down") == 4.125


@pytest.mark.parametrize(("specs", "message"), [
    (["sparsity", "weight-only"], "quantise its weights before technique sparsity"),
    (["sparsity", "mixed-precision"], "quantise its weights before"),
    (["sparsity", "sparsity"], "sparse already"),
    (["sparsity:n=3,m=2"], "3 of 2 weights"),
    (["sparsity:m=6"], "6 is no power of two"),
    (["sparsity:pattern=blocks,m=4,density=0.1"], "less than one weight of a block"),
    (["mixed-precision:average=6"], "6 is above widest = 5"),
])  # fmt: skip
def test_what_does_not_go_together_is_told_in_one_line(specs: list[str], message: str):
    with pytest.raises(InputError, match=message) as caught:
        apply_techniques(traced(), specs)
    assert "\n" not in str(caught.value)


@given(st.floats(0.07, 1.0))
def test_mixed_blocks_keep_their_mean_and_never_more_indices_than_values(density: float):
    first, second, mode = blocks_of(density)
    assert first + second == pytest.approx(1)
    assert 0 <= first <= 1
    assert first * 0.5**mode + second * 0.5 ** (mode + 1) == pytest.approx(density)
    assert 0 <= index_bits(density, 16, "blocks") <= 4 * density + 1e-12


@settings(max_examples=15)
@given(st.integers(1, 64), st.sampled_from([2, 4, 8, 16, 32, 64]))
def test_sparser_weights_never_move_more(n: int, m: int):
    if n <= m:
        assert traced(f"sparsity:n={n},m={m}").weights_bytes <= traced().weights_bytes


def test_a_mix_of_widths_costs_its_average_and_scales():
    mixed = traced("mixed-precision:head=1")
    weight = next(w for op, _ in mixed.operators() if op.name == "head" for w in op.weights)
    assert (weight.bits, weight.format) == (3.5 + 16 / 128, "int5-g128")
    assert bits_of(traced("mixed-precision"), "head") == 16
    assert apply_techniques(mixed, ["mixed-precision:head=1"]).blocks == mixed.blocks


def test_projections_of_different_density_are_not_fused():
    mixed = traced("sparsity:where=qkv")
    assert apply_techniques(mixed, ["fuse-projections"]).blocks == mixed.blocks


# -- experts -------------------------------------------------------------------------------------------------
def test_by_token_every_use_loads_its_expert():
    before, after = traced(model="mixtral-8x7b"), traced("expert-order:by=token", model="mixtral-8x7b")
    op = next(op for op, _ in after.operators() if op.kind == "experts")
    assert float(op.moved("weight")(1, 1000, 0)) == 1000 * 2 * 3 * 4096 * 14336 * 2
    assert op.attrs["order"] == "token"
    assert after.weights_bytes == before.weights_bytes
    assert after.total("flops") == before.total("flops")
    assert traced("expert-order", model="mixtral-8x7b").blocks == before.blocks
    one = [float(t.total("bytes")(1, 1, 0)) for t in (before, after)]
    assert one[0] == pytest.approx(one[1], rel=1e-12)  # a single token's experts are loaded once either way


# -- vision --------------------------------------------------------------------------------------------------
def small() -> VitConfig:
    return VitConfig("small", "test", hidden=8, layers=4, heads=2, inner=16, tokens=5, patch=12, classes=3, experts=4,
                     top_k=2, expert_inner=6)  # fmt: skip


def filled(config: VitConfig, tasks: int = 1) -> Vit:
    model = Vit(config, torch.float64, tasks)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.normal_(0, 0.5, generator=generator)
    return model


def test_the_vision_traces_flops_are_those_of_its_layers():
    c = vit_config("m3vit-small")
    found = float(capture_vision("m3vit-small").total("flops")(1, c.tokens, 0))
    layer = c.tokens * (4 * c.hidden**2 + 2 * c.tokens * c.hidden)
    dense, mixture = 2 * c.hidden * c.inner, c.top_k * 2 * c.hidden * c.expert_inner + c.hidden * c.experts
    macs = c.layers * layer + c.tokens * (c.layers // 2 * (dense + mixture) + c.patch * c.hidden + c.hidden * c.classes)
    assert 2 * macs <= found <= 2 * macs * 1.04  # and element-wise work


def test_four_of_sixteen_experts_of_a_quarter_are_the_work_of_a_dense_layer():
    c = vit_config("m3vit-small")
    assert c.top_k * c.expert_inner == c.inner
    one, every = (float(capture_vision(x).total("flops")(1, c.tokens, 0)) for x in (c, all_activated(c)))
    assert 1 - one / every == pytest.approx(0.393, abs=0.002)


def test_a_trace_of_parameters_is_complete():
    c = small()
    assert capture_vision(c).parameters == sum(p.numel() for p in filled(c).parameters())


def test_experts_in_any_order_are_every_tokens_own_sum():
    """By expert, as the hardware queues them, against token by token."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, 8, generator=generator, dtype=torch.float64)
    w_in = torch.randn(4, 6, 8, generator=generator, dtype=torch.float64)
    w_out = torch.randn(4, 8, 6, generator=generator, dtype=torch.float64)
    indices = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(7)])
    weights = torch.rand(7, 2, generator=generator, dtype=torch.float64)
    found = plain_experts(x, indices, weights, w_in, w_out, "gelu")
    for t in range(7):
        own = sum(
            weights[t, s] * (w_out[e] @ torch.nn.functional.gelu(w_in[e] @ x[t])) for s, e in enumerate(indices[t])
        )
        assert torch.allclose(found[t], own)


def test_attention_of_an_image_is_torchs_without_a_mask():
    model = filled(small())
    attention = model.layers[0].attention
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    q, k, v = (p.view(2, 5, 2, 4).transpose(1, 2) for p in attention.qkv(x).chunk(3, dim=-1))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 8)
    assert torch.allclose(attention(x), attention.output(expected))


def test_tasks_share_everything_but_routers_and_heads():
    model = filled(small(), tasks=2)
    patches = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert model(patches, 0).shape == model(patches, 1).shape == (1, 5, 3)
    assert not torch.allclose(model(patches, 0), model(patches, 1))
    with torch.no_grad():
        for layer in (1, 3):
            model.layers[layer].experts.routers[1].copy_(model.layers[layer].experts.routers[0])
        for mine, theirs in zip(model.heads[1].parameters(), model.heads[0].parameters(), strict=True):
            mine.copy_(theirs)
    assert torch.allclose(model(patches, 0), model(patches, 1))


def test_a_vision_trace_is_written_and_read(tmp_path, capsys):
    file = tmp_path / "tiny.json"
    assert vision.main(["edge-moe-tiny", str(file)]) == 0
    assert load_trace(str(file)).parameters == capture_vision("edge-moe-tiny").parameters
    assert load_trace("edge-moe-tiny").blocks == capture_vision("edge-moe-tiny").blocks
    assert vision.main(["nothing", str(file)]) == 2
    assert vision.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize(("change", "message"), [({"heads": 3}, "divisor of hidden = 8"), ({"top_k": 5}, "1 to 4")])
def test_sizes_that_do_not_go_together_are_refused(change: dict[str, int], message: str):
    from dataclasses import replace

    with pytest.raises(InputError, match=message):
        Vit(replace(small(), **change))
