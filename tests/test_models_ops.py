"""Is each composite operator what its docstring says? Against loops and hand-worked numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from tokenfab.models import ops
from tokenfab.models.decoder import alibi_slopes, inverse_frequencies


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 31 * len(shape)))


# -- attention --------------------------------------------------------------------------------------
def attention_by_loops(q, k, v, scale, window=None, alibi=None):
    """One query, one head, one key at a time."""
    b, h, new, _ = q.shape
    kv_heads, total = k.shape[1], k.shape[2]
    out = torch.zeros_like(q)
    for n in range(b):
        for head in range(h):
            kv = head // (h // kv_heads)
            for i in range(new):
                here = total - new + i
                first = 0 if window is None else max(0, here - window + 1)
                scores = []
                for j in range(first, here + 1):
                    bias = 0.0 if alibi is None else -alibi[head].item() * (here - j)
                    scores.append(scale * torch.dot(q[n, head, i], k[n, kv, j]).item() + bias)
                peak = max(scores)
                weights = [math.exp(s - peak) for s in scores]
                for w, j in zip(weights, range(first, here + 1), strict=True):
                    out[n, head, i] += w / sum(weights) * v[n, kv, j]
    return out


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("slopes", [None, [0.5, 0.25, 0.1, 0.02]])
@pytest.mark.parametrize(("kv_heads", "new", "cached"), [(4, 5, 0), (2, 5, 0), (1, 1, 6), (2, 3, 4)])
def test_attention_equals_loops(kv_heads, new, cached, window, slopes):
    q = random(2, 4, new, 6)
    k, v = random(2, kv_heads, cached + new, 6, seed=1), random(2, kv_heads, cached + new, 6, seed=2)
    alibi = None if slopes is None else torch.tensor(slopes)
    got = ops.attention(q, k, v, 0.4, window=window, alibi=alibi)
    torch.testing.assert_close(got, attention_by_loops(q, k, v, 0.4, window, alibi), atol=1e-5, rtol=0)


def test_a_query_sees_its_own_key_and_never_the_next():
    q, k, v = random(1, 1, 3, 4), random(1, 1, 5, 4, seed=1), random(1, 1, 5, 4, seed=2)
    before = ops.attention(q, k, v, 0.5)
    v[:, :, 3] += 1.0  # the key of the second new token
    moved = (ops.attention(q, k, v, 0.5) - before).abs().amax(-1).flatten()
    assert moved[0] == 0
    assert moved[1] > 0.01
    assert moved[2] > 0.01


def test_a_window_of_one_returns_the_value_itself():
    v = random(2, 3, 4, 5)
    assert torch.equal(ops.attention(random(2, 3, 4, 5), random(2, 3, 4, 5), v, 1.0, window=1), v)


def test_attention_keeps_half_precision_but_not_in_the_softmax():
    q = torch.full((1, 1, 1, 4), 100.0, dtype=torch.float16)
    k = torch.full((1, 1, 2, 4), 10.0, dtype=torch.float16)
    out = ops.attention(q, k, torch.tensor([[[[1.0] * 4, [3.0] * 4]]], dtype=torch.float16), 20.0)  # scores 80,000
    assert out.dtype == torch.float16
    assert out.flatten().tolist() == [2.0] * 4


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_alibi_slopes_of_a_power_of_two_are_geometric(heads):
    assert alibi_slopes(heads).tolist() == pytest.approx([2 ** (-8 * (i + 1) / heads) for i in range(heads)])


def test_alibi_slopes_of_twelve_heads_are_those_of_the_authors():
    expected = [2.0**-n for n in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    assert alibi_slopes(12).tolist() == pytest.approx(expected)


# -- the other operators ----------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400), st.integers(0, 2**31 - 1))
def test_rope_scores_depend_on_relative_position_only(m, n, shift, seed):
    q, k = random(1, 1, 1, 16, seed=seed), random(1, 1, 1, 16, seed=seed + 1)
    inv_freq = inverse_frequencies(10000.0, 16)

    def score(at_q: int, at_k: int) -> float:
        turned_q, _ = ops.rope(q, k, torch.tensor([at_q]), inv_freq)
        _, turned_k = ops.rope(q, k, torch.tensor([at_k]), inv_freq)
        return (turned_q * turned_k).sum().item()

    assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=2e-3)
    assert score(m, m) == pytest.approx((q * k).sum().item(), abs=2e-3)


def test_rope_turns_dimension_i_with_i_plus_half():
    q = torch.tensor([[[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]]])
    turned, same = ops.rope(q, q.clone(), torch.tensor([3, 5]), torch.tensor([1.0, 0.1]))
    expected = [[math.cos(3), 0, math.sin(3), 0], [0, math.cos(0.5), 0, math.sin(0.5)]]
    torch.testing.assert_close(turned[0, 0], torch.tensor(expected))
    assert torch.equal(turned, same)
    assert inverse_frequencies(10000.0, 4).tolist() == pytest.approx([1.0, 0.01])


def test_norms_equal_their_definition():
    x, weight, bias = random(2, 3, 8), random(8, seed=1), random(8, seed=2)
    for row, rms, layer in zip(
        x.view(-1, 8),
        ops.rms_norm(x, weight, 0.1).view(-1, 8),
        ops.layer_norm(x, weight, bias, 0.1).view(-1, 8),
        strict=True,
    ):
        values = row.tolist()
        mean_square = sum(v * v for v in values) / 8
        torch.testing.assert_close(rms, row * weight / math.sqrt(mean_square + 0.1))
        mean = sum(values) / 8
        variance = sum((v - mean) ** 2 for v in values) / 8
        torch.testing.assert_close(layer, (row - mean) / math.sqrt(variance + 0.1) * weight + bias)


@pytest.mark.parametrize(
    ("act", "at_one", "at_minus_two"),
    [("silu", 0.7310586, -0.2384058), ("gelu", 0.8413447, -0.0455003), ("gelu_tanh", 0.8411920, -0.0454023),
     ("relu", 1.0, 0.0), ("relu2", 1.0, 0.0)],
)  # fmt: skip
def test_activations_and_which_half_is_the_gate(act, at_one, at_minus_two):
    x = torch.tensor([1.0, -2.0])
    assert ops.activation(x, act).tolist() == pytest.approx([at_one, at_minus_two], abs=1e-6)
    gate_up = torch.tensor([[1.0, -2.0, 10.0, 100.0]])
    assert ops.gated_activation(gate_up, act)[0].tolist() == pytest.approx([10 * at_one, 100 * at_minus_two], abs=1e-4)


def test_relu2_squares():
    assert ops.activation(torch.tensor([3.0, -3.0]), "relu2").tolist() == [9.0, 0.0]


def test_kv_append_keeps_everything_even_with_a_window():
    past, new = random(2, 3, 4, 5), random(2, 3, 2, 5, seed=1)
    k, v = ops.kv_append(past, -past, new, -new, window=1)
    assert torch.equal(k[:, :, :4], past)
    assert torch.equal(k[:, :, 4:], new)
    assert torch.equal(v, -k)


def test_embedding_and_add():
    table = random(7, 3)
    assert torch.equal(ops.embedding(torch.tensor([[6, 0]]), table), torch.stack([table[6], table[0]])[None])
    assert ops.add(torch.tensor([1.0]), torch.tensor([2.0])).tolist() == [3.0]


def test_mixture_of_experts_equals_a_loop_over_tokens():
    t, d, f, e, top_k = 9, 6, 10, 5, 2
    x, router = random(t, d), random(e, d, seed=1)
    w_in, w_out = random(e, 2 * f, d, seed=2), random(e, d, f, seed=3)
    indices, weights = ops.route(x, router, top_k)
    assert weights.dtype == torch.float32
    got = ops.experts(x, indices, weights, w_in, w_out, "silu")
    for n in range(t):
        logits = [torch.dot(router[i], x[n]).item() for i in range(e)]
        best = sorted(range(e), key=lambda i: -logits[i])[:top_k]
        assert indices[n].tolist() == best
        total = sum(math.exp(logits[i]) for i in best)
        expected = torch.zeros(d)
        for slot, i in enumerate(best):
            share = math.exp(logits[i]) / total
            assert weights[n, slot].item() == pytest.approx(share, abs=1e-6)
            expected += share * (w_out[i] @ (F.silu(w_in[i, :f] @ x[n]) * (w_in[i, f:] @ x[n])))
        torch.testing.assert_close(got[n], expected, atol=1e-4, rtol=1e-4)


def test_bit_linear_by_hand():
    weight = torch.tensor([[0.9, -0.15, 0.15], [-1.8, 0.6, 0.0]])  # mean magnitude 0.6; of the rows 0.4 and 0.8
    x = torch.tensor([[[1.0, 0.5, -0.25]]])  # as int8: 127, 63.5 to even 64, -31.75 to -32
    first, second = 1.0, -1.0 + 64 / 127  # ternary rows (1, 0, 0) and (-1, 1, 0) times x
    assert ops.bit_linear(x, weight).flatten().tolist() == pytest.approx([0.6 * first, 0.6 * second], abs=1e-6)
    fused = ops.bit_linear(x, weight, parts=(1, 1))
    assert fused.flatten().tolist() == pytest.approx([0.4 * first, 0.8 * second], abs=1e-6)


# -- dispatch ---------------------------------------------------------------------------------------
class Listing(TorchFunctionMode):
    """Names of the calls that reach a mode: composite operators and linears."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if hasattr(func, "kind"):
            self.calls.append(func.kind)
        elif func is F.linear:
            self.calls.append("linear")
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_each_operator_once_and_the_body_still_runs():
    x, weight = random(2, 4), torch.ones(4)
    with Listing() as seen:
        out = ops.rms_norm(x, weight=weight, eps=0.0)
        ops.add(y=x, x=x)
    assert seen.calls == ["rms_norm", "add"]
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2))
    assert ops.rms_norm.kind == "rms_norm"
    assert ops.rms_norm.__name__ == "rms_norm"


def test_every_operator_is_named_after_its_function():
    names = [
        "embedding", "rms_norm", "layer_norm", "rope", "kv_append", "attention", "gated_activation", "activation",
        "add", "route", "experts", "bit_linear",
    ]  # fmt: skip
    assert [getattr(ops, n).kind for n in names] == names


def test_a_tensor_subclass_may_answer_for_an_operator():
    class Shape(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return getattr(func, "kind", "other")

    assert ops.add(torch.ones(2), random(2).as_subclass(Shape)) == "add"
