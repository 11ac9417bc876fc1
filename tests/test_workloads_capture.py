"""Does the trace say what the module does? At points it was not captured at, layer by layer, and in time."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tokenfab.errors import InputError
from tokenfab.models import ops
from tokenfab.models.config import ModelConfig, load_config
from tokenfab.workloads import capture as capturing
from tokenfab.workloads.capture import Subject, capture, capture_subject, our_subject
from tokenfab.workloads.interpolation import interpolate, points_for
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.raw import RawOp
from tokenfab.workloads.trace import Trace

SMALL = {"hidden": 64, "layers": 3, "heads": 8, "head_dim": 8, "inner": 96, "vocabulary": 97, "max_context": 4096}
TINY = {
    "llama": ("llama-2-7b", {"kv_heads": 8}), "gqa": ("llama-2-70b", {"kv_heads": 2}),
    "window": ("mistral-7b", {"kv_heads": 2, "window": 11}), "qwen": ("qwen2-7b", {"kv_heads": 4}),
    "opt": ("opt-125m", {"kv_heads": 8}), "gpt-3": ("gpt-3-175b", {"kv_heads": 8}),
    "bloom": ("bloom-176b", {"kv_heads": 8}), "experts": ("mixtral-8x7b", {"kv_heads": 2, "experts": 5, "top_k": 2}),
    "bitnet": ("bitnet-b1.58-3b", {"kv_heads": 8}),
}  # fmt: skip
points = st.tuples(st.integers(1, 33), st.integers(1, 60), st.integers(0, 300))


def tiny(family: str, **changes) -> ModelConfig:
    preset, own = TINY[family]
    fields = load_config(preset).model_dump() | SMALL | own | changes | {"name": family}
    return ModelConfig.model_validate(fields)


@cache
def tiny_trace(family: str) -> Trace:
    return capture(tiny(family))


@cache
def subject_of(family: str) -> Subject:
    return our_subject(tiny(family))


# -- one run at one point, counted in integers --------------------------------------------------------
def flops_of(op: RawOp) -> float:
    s = op.sizes
    if op.kind in ("matmul", "router"):
        return 2 * s["m"] * s["n"] * s["k"] * s.get("batch", 1)
    if op.kind == "attention":
        past = s["kv"] - s["query"]
        if "latent_dim" in s:
            new, width = s["query"] * (s["query"] + 1) // 2, s["head_dim"] + s["value_dim"]
            cached = s["query"] * past * (s["latent_dim"] + s["latent_value"])
            return 2 * s["batch"] * s["heads"] * (new * width + cached)
        seen = sum(min(past + i + 1, s.get("window", past + i + 1)) for i in range(s["query"]))
        return 2 * s["batch"] * s["heads"] * seen * (s["head_dim"] + s["value_dim"])
    if op.kind == "experts":
        return (6 if op.attrs["gated"] else 4) * s["tokens"] * s["top_k"] * s["hidden"] * s["inner"]
    return op.flops


def bytes_of(op: RawOp) -> float:
    total, s = 0.0, op.sizes
    for t in (*op.reads, *op.writes):
        elements = math.prod(t.shape) if t.touched is None else t.touched
        if op.kind == "experts" and t.root.role == "weight":
            elements *= 1 - (1 - s["top_k"] / s["experts"]) ** s["tokens"]
        if op.kind == "attention" and t.root.role == "kv":
            elements = elements // s["kv"] * min(s["kv"], s.get("window", s["kv"]) + s["query"] - 1)
        total += elements * t.root.bits / 8
    return total


def assert_equal_at(trace: Trace, subject: Subject, point: tuple[int, int, int]) -> int:
    """Every operator, size, FLOP count and byte count of ``trace`` at ``point`` is that of a run there."""
    run = capturing._run(subject, point, True)
    compared = 0
    assert len(run.blocks) == len(trace.blocks)
    for block, (raws, _, _) in zip(trace.blocks, run.blocks, strict=True):
        for op, (raw, _) in zip(block.operators, raws, strict=True):
            where = (block.name, op.name, point)
            assert op.kind == raw.kind, where
            assert {k: float(v(*point)) for k, v in op.dims.items()} == pytest.approx(raw.sizes), where
            assert float(op.flops(*point)) == pytest.approx(flops_of(raw), rel=1e-9), where
            assert float(op.moved()(*point)) == pytest.approx(bytes_of(raw), rel=1e-9), where
            for t, r in zip((*op.reads, *op.writes), (*raw.reads, *raw.writes), strict=True):
                assert [float(x(*point)) for x in t.shape] == list(r.shape), where
            compared += 1
    return compared


@pytest.mark.parametrize("family", TINY)
def test_a_trace_equals_a_run_at_any_point(family):
    counted = []

    @settings(max_examples=25)
    @given(points)
    def holds(point):
        counted.append(assert_equal_at(tiny_trace(family), subject_of(family), point))

    holds()
    assert sum(counted) >= 10 * len(counted) > 0


@pytest.mark.parametrize("name", ["llama-2-70b", "mistral-7b"])
def test_a_trace_of_a_real_model_equals_a_run_far_from_where_it_was_captured(name):
    trace, subject = capture(name), our_subject(load_config(name))
    for point in ((1, 1, 2047), (256, 1, 1000), (1, 2048, 0), (3, 700, 1300), (1, 1, 20000)):
        assert assert_equal_at(trace, subject, point) > 10


# -- models of transformers ---------------------------------------------------------------------------
HF = {
    "gpt_neox": {"num_hidden_layers": 2}, "qwen3_moe": {"num_hidden_layers": 2},
    "deepseek_v3": {"num_hidden_layers": 4}, "qwen3_next": {"num_hidden_layers": 4}, "bloom": {"n_layer": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", HF)
def test_a_trace_of_a_transformers_model_equals_a_run_at_any_point(name, tmp_path):
    pytest.importorskip("transformers")
    from tokenfab.models.hf import build_hf
    from tokenfab.workloads.hf_capture import hf_subject
    from tokenfab.workloads.hf_survey import write_config

    path = write_config(name, tmp_path, **HF[name])
    implementation = "eager" if name == "bloom" else "tokenfab"
    trace = load_trace(f"hf:{tmp_path}")
    subject = hf_subject(build_hf(path, attn_implementation=implementation), path)

    @settings(max_examples=5)
    @given(points)
    def holds(point):
        assert assert_equal_at(trace, subject, point) > 10

    holds()


# -- layers -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", TINY)
def test_running_every_layer_gives_the_same_totals_as_running_each_distinct_one_once(family):
    shared, full = tiny_trace(family), capture(tiny(family), share_layers=False)
    assert [b.repeat for b in shared.blocks] == [1, 3, 1]
    assert [b.repeat for b in full.blocks] == [1, 1, 1, 1, 1]
    assert full.total("flops") == shared.total("flops")
    assert full.total("bytes") == shared.total("bytes")
    assert full.cache_bytes() == shared.cache_bytes()
    assert full.kv_bytes_per_token == shared.kv_bytes_per_token
    assert (full.parameters, full.weights_bytes) == (shared.parameters, shared.weights_bytes)
    assert sum(count for _, count in full.operators()) == sum(count for _, count in shared.operators())


def test_capturing_the_largest_llama_in_a_fresh_process_takes_less_than_five_seconds_of_processor_time():
    """About half a second, and two for importing torch, which a busy machine may stretch."""
    code = "import tokenfab.workloads.capture as c; print(c.capture('llama-2-70b').provenance['capture_s'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 5


# -- what cannot be a trace ---------------------------------------------------------------------------
class Odd(nn.Module):
    """One linear layer and something that a trace cannot hold."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.up = nn.Linear(8, 16, device="meta")
        self.unused = nn.Linear(3, 3, device="meta") if what == "unused" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        match self.what:
            case "value":
                y = y * float(y.sum())
            case "cubic":
                n = x.shape[1]
                y = ops.add(y.new_zeros(n, n, n), y.new_zeros(n, n, n))
            case "branch":
                y = ops.add(y, y) if x.shape[1] > 1 else ops.rms_norm(y, y[0, 0], 1e-6)
            case "einsum":
                y = torch.einsum("bqk,nk->bqn", x, self.up.weight) + torch.einsum("bqn,n->bqn", y, self.up.bias)
            case "three":
                y = torch.einsum("bqn,n,n->bqn", y, self.up.bias, self.up.bias)
            case "left":
                y = (self.up.weight @ x.transpose(1, 2)).transpose(1, 2) + self.up.bias
            case "threshold":
                y = ops.add(y[:, :1000], y[:, :1000])
        return y


def odd_subject(what: str) -> Subject:
    module = Odd(what)

    def run(recorder, point) -> None:
        with recorder.watch(module):
            module(torch.empty(*point[:2], 8, device="meta"))

    count = capturing.count_parameters(module)
    return Subject("odd", "fp32", 8, 8, None, module, run, count, "a test", "0" * 64)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("value", "odd: the model: __float__ cannot be run on shapes alone"),
        ("three", "odd: the model: einsum 'bqn,n,n->bqn' is not an operator a trace knows"),
        ("cubic", "odd: add: elements is no polynomial in batch, query and context: "),
        ("branch", "runs different operators at batch, query, context (2, 5, 6) and (1, 1, 9); its structure depends"),
        ("threshold", "no polynomial in batch, query and context: 32000 at (2, 2053, 9001)"),
        ("unused", "the captured operators hold 144 of 156 parameters; unused.weight is not used by a pass over text"),
    ],
)
def test_what_a_trace_cannot_hold_is_refused_in_one_line(what, message):
    with pytest.raises(InputError) as caught:
        capture_subject(odd_subject(what))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plain_module_is_captured():
    trace = capture_subject(odd_subject("nothing"))
    (op, count), *rest = trace.operators()
    assert (op.kind, count, rest) == ("matmul", 1, [])
    assert op.flops == 2 * op.dims["m"] * 8 * 16


@pytest.mark.parametrize(("what", "matmuls"), [("einsum", 2), ("left", 2)])
def test_a_product_is_a_matmul_however_it_is_spelled(what, matmuls):
    trace = capture_subject(odd_subject(what))
    found = [op for op, _ in trace.operators() if op.kind == "matmul"]
    assert len(found) == matmuls
    for op in found:
        assert {k: str(v) for k, v in op.dims.items()} == {"m": "b*q", "n": "16", "k": "8"}
        assert op.flops == 2 * 16 * 8 * op.dims["m"]
        assert [w.name for w in op.weights if len(w.shape) > 1] == ["up.weight"]


def test_an_unknown_model_is_told_with_its_neighbours():
    with pytest.raises(InputError, match="unknown model 'llama-2-7'; did you mean llama-2-70b, llama-2-7b"):
        capture("llama-2-7")


def test_hooks_are_gone_after_a_capture_that_failed():
    before = len(nn.modules.module._global_forward_pre_hooks)
    with pytest.raises(InputError):
        capture_subject(odd_subject("value"))
    assert len(nn.modules.module._global_forward_pre_hooks) == before
    decoder = subject_of("llama").module
    assert not any("forward" in vars(m) for m in decoder.modules())


# -- interpolation ------------------------------------------------------------------------------------
@given(st.lists(st.integers(-50, 50), min_size=12, max_size=12))
def test_every_polynomial_of_the_kind_is_found_exactly(coefficients):
    powers = [(i, j, k) for i in range(2) for j in range(3) for k in range(2)]

    def value(b, q, c):
        return sum(a * b**i * q**j * c**k for a, (i, j, k) in zip(coefficients, powers, strict=True))

    grid = points_for(None)
    found = interpolate([value(*p) for p in grid], grid, "x")
    for point in ((1, 1, 0), (64, 1, 4095), (1, 8192, 0), (7, 11, 13)):
        assert float(found(*point)) == value(*point)


@pytest.mark.parametrize("longest", [None, 10**6, 512, 64])
def test_the_far_point_stays_within_the_models_context(longest):
    grid = points_for(longest)
    assert len(grid) == len(set(grid)) == 16
    assert all(q + c <= (longest or 10**9) for _, q, c in grid)
