"""Models of ``transformers``: the same architecture gives the same numbers, and many others hold the same laws."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from tokenfab.models.config import ModelConfig, load_config
from tokenfab.workloads.capture import capture
from tokenfab.workloads.expr import B, C, Expr, Q, expr
from tokenfab.workloads.hf_capture import capture_hf
from tokenfab.workloads.hf_survey import write_config
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.parallel import tensor_parallel
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


# -- the same architecture, described to both ---------------------------------------------------------
def hf_config(m: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` of a preset's architecture."""
    family = re.match(r"llama|mistral|qwen2|opt|mixtral|bloom", m.name).group()  # type: ignore[union-attr]
    fields = {
        "model_type": family, "dtype": DTYPES[m.format], "hidden_size": m.hidden, "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads, "vocab_size": m.vocabulary, "max_position_embeddings": m.max_context,
        "tie_word_embeddings": m.tied,
    }  # fmt: skip
    if family == "bloom":
        return fields | {"n_layer": m.layers, "n_head": m.heads, "seq_length": m.max_context}
    if family == "opt":
        return fields | {"ffn_dim": m.inner, "word_embed_proj_dim": m.hidden}
    fields |= {"num_key_value_heads": m.kv_heads, "head_dim": m.head_dim, "intermediate_size": m.inner}
    fields |= {"sliding_window": m.window} if family in ("mistral", "mixtral") else {}
    return fields | ({"num_local_experts": m.experts, "num_experts_per_tok": m.top_k} if m.experts else {})


TINY = {"hidden": 96, "layers": 3, "heads": 6, "head_dim": 16, "inner": 160, "vocabulary": 119, "max_context": 512}
SAME = [
    "llama-2-7b", "mistral-7b", "qwen2-7b", "opt-6.7b", "mixtral-8x7b",
    "tiny bloom-176b",
    "tiny llama-2-7b", "tiny llama-2-70b", "tiny mistral-7b", "tiny qwen2-7b", "tiny opt-6.7b", "tiny mixtral-8x7b",
]  # fmt: skip


@cache
def both(name: str, folder: Path) -> tuple[ModelConfig, Trace, Trace]:
    """A preset (or a tiny model of its family), our trace, and the trace of transformers' modules."""
    preset = name.removeprefix("tiny ")
    m = load_config(preset)
    if preset != name:
        kv = {"kv_heads": 6 if m.kv_heads == m.heads else 2} | ({"window": 40} if m.window else {})
        kv |= {"inner": 4 * TINY["hidden"]} if "bloom" in name else {}
        m = ModelConfig.model_validate(m.model_dump() | TINY | kv)
    file = folder / name / "config.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(hf_config(m)), encoding="utf-8")
    return m, capture(m), load_trace(f"hf:{file.parent}")


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp()


def total(trace: Trace, *kinds: str) -> Expr:
    return sum((op.flops * n for op, n in trace.operators() if op.kind in kinds), expr(0))


def moved(trace: Trace, role: str, *kinds: str) -> Expr:
    return sum((op.moved(role) * n for op, n in trace.operators() if op.kind in kinds), expr(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SAME)
def test_our_decoder_and_transformers_modules_give_the_same_work_weights_and_cache(name, folder):
    m, ours, theirs = both(name, folder)
    assert theirs.parameters == ours.parameters
    assert theirs.weights_bytes == ours.weights_bytes
    assert theirs.kv_bytes_per_token == ours.kv_bytes_per_token == 2 * m.layers * m.kv_heads * m.head_dim * 2
    assert theirs.cache_bytes() == ours.cache_bytes()
    for kind in ("matmul", "router", "experts", "attention"):
        assert total(theirs, kind) == total(ours, kind), kind
    for kind in ("matmul", "router", "experts"):
        assert moved(theirs, "weight", kind) == moved(ours, "weight", kind), kind
    for kind in ("attention", "kv_append"):
        assert moved(theirs, "kv", kind) == moved(ours, "kv", kind), kind
        assert moved(theirs, "activation", kind) == moved(ours, "activation", kind), kind
    assert (theirs.hidden, theirs.vocabulary, theirs.max_context) == (ours.hidden, ours.vocabulary, ours.max_context)
    assert theirs.format == ours.format
    assert [b.repeat for b in theirs.blocks] == [1, m.layers, 1]


@pytest.mark.parametrize("name", [n for n in SAME if "bloom" not in n])  # bloom's is written fused
def test_once_projections_are_fused_the_matmuls_are_ours(name, folder):
    _, ours, theirs = both(name, folder)
    fused = apply_techniques(theirs, ["fuse-projections"])

    def matmuls(trace: Trace) -> Counter:
        dims: Counter = Counter()
        for op, n in trace.operators():
            if op.kind == "matmul":
                dims[tuple(str(op.dims[k]) for k in "mnk")] += n
        return dims

    assert matmuls(theirs) != matmuls(ours)
    assert matmuls(fused) == matmuls(ours)
    assert fused.total("flops") == theirs.total("flops")
    assert (fused.parameters, fused.weights_bytes) == (theirs.parameters, theirs.weights_bytes)
    assert moved(fused, "activation", "matmul") == moved(ours, "activation", "matmul")
    saved = moved(theirs, "activation", "matmul") - moved(fused, "activation", "matmul")
    assert float(saved(1, 100, 0)) > 0
    for role in ("weight", "kv"):
        kinds = {op.kind for op, _ in theirs.operators()}
        assert moved(fused, role, *kinds) == moved(theirs, role, *kinds)


def test_a_head_is_narrowed_only_when_asked_and_a_tied_one_as_a_copy(folder):
    for name, copies in (("tiny opt-6.7b", 1), ("tiny llama-2-7b", 0)):
        _, _, theirs = both(name, folder)
        narrowed = apply_techniques(theirs, ["weight-only:head=1"])
        head = narrowed.blocks[-1].operators[-1]
        assert [w.bits for w in head.weights] == [4.125]
        assert len(narrowed.weights()) == len(theirs.weights()) + copies
        plain = apply_techniques(theirs, ["weight-only"])
        assert [w.bits for w in plain.blocks[-1].operators[-1].weights] == [16.0]
        assert {w.bits for w in plain.blocks[1].operators[1].weights if len(w.shape) > 1} == {4.125}


def test_a_quantization_config_is_said_to_be_left_out(tmp_path):
    m = ModelConfig.model_validate(load_config("llama-2-7b").model_dump() | TINY | {"kv_heads": 6})
    fields = hf_config(m) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    trace = capture_hf(tmp_path)
    assert trace.provenance["quantization_config"].startswith("not applied")
    assert trace.weights_bytes == 2 * trace.parameters


# -- breadth ------------------------------------------------------------------------------------------
LAYERS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"num_hidden_layers": 5}, "gpt_oss": {"num_hidden_layers": 4}, "gpt_neox": {"num_hidden_layers": 4},
    "gemma2": {"num_hidden_layers": 4}, "gemma3_text": {"num_hidden_layers": 12}, "jamba": {"num_hidden_layers": 8},
    "qwen3_moe": {"num_hidden_layers": 3}, "qwen2_moe": {"num_hidden_layers": 2},
    "llama4_text": {"num_hidden_layers": 4}, "dbrx": {"n_layers": 2},
    "mamba2": {"num_hidden_layers": 3}, "mamba": {"num_hidden_layers": 3},
}  # fmt: skip
REPRESENTATIVE = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "falcon", "bloom", "opt",
    "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "mamba", "mamba2", "jamba",
]  # fmt: skip


@cache
def default_trace(name: str, folder: Path) -> Trace:
    return capture_hf(write_config(name, folder / "defaults" / name, **LAYERS.get(name, {})))


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_representative_models_are_captured_with_work_that_follows_from_their_weights(name, folder):
    trace = default_trace(name, folder)
    kinds = Counter(op.kind for op, _ in trace.operators())
    for op, _ in trace.operators():
        if op.kind in ("matmul", "router") and op.weights:
            matrix = max(op.weights, key=lambda w: len(w.shape))
            elements = matrix.elements if matrix.touched is None else matrix.touched
            assert op.flops == 2 * op.dims["m"] * elements, op.name
            assert op.dims["n"] * op.dims["k"] == elements
        for monomial, _ in op.moved().terms:
            assert sum(p for a, p in monomial if a.name in "qc") <= 1, op.name
    assert kinds["scan" if name.startswith("mamba") else "attention"] >= 1
    assert kinds["kv_append"] == kinds["attention"]
    assert Trace.model_validate_json(trace.to_json()) == trace
    head = trace.blocks[-1].operators[-1]
    assert float(head.flops(3, 50, 9)) in (  # logits of the last position only, soft-capped by some
        2 * 3 * trace.hidden * trace.vocabulary, *(k * 3 * trace.vocabulary for k in range(1, 6))
    )  # fmt: skip


def test_sinks_windows_and_grouped_heads_of_gpt_oss(folder):
    trace = default_trace("gpt_oss", folder)
    attention = [op for op, _ in trace.operators() if op.kind == "attention"]
    assert [op.dims.get("window") for op in attention] == [128, None]
    for op in attention:
        assert [w.name.rpartition(".")[2] for w in op.weights] == ["sinks"]
        assert (op.dims["heads"], op.dims["kv_heads"]) == (64, 8)
    experts = next(op for op, _ in trace.operators() if op.kind == "experts")
    assert (experts.dims["top_k"], experts.attrs["gated"]) == (4, True)


def test_latent_attention_caches_one_vector_per_token_and_expands_the_new_ones_only(folder):
    """DeepSeek-V3: 512 + 64 elements per token and layer, where 128 heads would cache 128·(192 + 128)."""
    trace = default_trace("deepseek_v3", folder)
    assert trace.kv_bytes_per_token == 5 * (512 + 64) * 4
    attention = next(op for op, _ in trace.operators() if op.kind == "attention")
    assert attention.flops == 2 * B * 128 * ((Q * (Q + 1) / 2) * (192 + 128) + Q * C * (576 + 512))
    assert attention.moved("kv") == B * (C + Q) * 576 * 4
    expansion = next(op for op, _ in trace.operators() if op.name.endswith("kv_b_proj"))
    assert expansion.dims["m"] == B * Q
    assert expansion.deps == ("self_attn.kv_a_layernorm.norm",)
    assert set(attention.deps) == {"self_attn.rope", "self_attn.kv_append", "self_attn.kv_b_proj"}


@pytest.mark.parametrize(
    ("name", "experts", "top_k", "inner", "spelling"),
    [
        ("llama4_text", 16, 1, 8192, "every token once per expert, masked"),
        ("dbrx", 4, 1, 3584, "stacked along their rows"),
        ("mixtral", 8, 2, 14336, "stacked in one tensor"),
    ],
)
def test_experts_are_one_operator_however_they_are_spelled(name, experts, top_k, inner, spelling, folder):
    trace = default_trace(name, folder)
    op = next(op for op, _ in trace.operators() if op.kind == "experts")
    d = op.dims
    assert (d["experts"], d["top_k"], d["inner"], d["tokens"]) == (experts, top_k, inner, B * Q), spelling
    assert op.flops == 6 * top_k * B * Q * d["hidden"] * inner
    assert sum((w.elements for w in op.weights), expr(0)) == 3 * experts * d["hidden"] * inner
    assert float(op.moved("weight")(1, 1, 0)) == pytest.approx(float(3 * top_k * d["hidden"](1, 1, 0) * inner * 4))


def test_low_rank_projections_latents_and_narrow_gates_are_replicated_over_devices(folder):
    latent = default_trace("deepseek_v3", folder)
    share = tensor_parallel(latent, 8)
    for name in ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.q_b_proj", "self_attn.kv_b_proj"):
        whole, part = (next(op for op in t.blocks[1].operators if op.name == name) for t in (latent, share))
        assert whole.dims["n"] == part.dims["n"] * (1 if "_a_" in name else 8)
    attention = [next(op for op, _ in t.operators() if op.kind == "attention") for t in (latent, share)]
    assert attention[0].flops == 8 * attention[1].flops
    assert share.kv_bytes_per_token == latent.kv_bytes_per_token  # every head needs the whole latent

    gated = apply_techniques(default_trace("qwen2_moe", folder), ["fuse-projections"])
    layer = gated.blocks[1].operators
    assert "mlp.shared_expert.gate_proj+mlp.shared_expert.up_proj" in [op.name for op in layer]
    gathered = [op for op, _ in tensor_parallel(gated, 4).operators() if op.attrs.get("collective") == "all_gather"]
    assert [op.deps for op in gathered] == [("lm_head",)]


@pytest.mark.parametrize("name", ["tiny llama-2-7b", "tiny qwen2-7b", "tiny mixtral-8x7b", "tiny mistral-7b"])
def test_fused_shares_of_transformers_models_are_ours(name, folder):
    _, ours, theirs = both(name, folder)
    share, fused = tensor_parallel(ours, 2), tensor_parallel(apply_techniques(theirs, ["fuse-projections"]), 2)
    for kind in ("matmul", "attention", "experts", "router"):
        assert total(fused, kind) == total(share, kind), kind
    assert fused.weights_bytes == share.weights_bytes
    assert fused.kv_bytes_per_token == share.kv_bytes_per_token
    exchanged = [
        [(str(op.dims["bytes"]), n) for op, n in t.operators() if op.kind == "collective"] for t in (share, fused)
    ]
    assert exchanged[0] == exchanged[1]


def test_a_state_is_read_and_written_once_however_many_tokens_there_are(folder):
    trace = default_trace("mamba2", folder)
    scan = next(op for op, _ in trace.operators() if op.kind == "scan")
    m = {"channels": 8192, "state": 128, "width": 4, "mixed": 8192 + 2 * 8 * 128}
    assert scan.moved("state") == 2 * B * m["channels"] * m["state"] * 4
    assert scan.flops == 8 * m["state"] * m["channels"] * B * Q
    convolution = next(op for op, _ in trace.operators() if op.kind == "convolution")
    assert convolution.flops == 2 * m["width"] * m["mixed"] * B * Q
    assert trace.cache_bytes() == 3 * B * (m["channels"] * m["state"] + m["mixed"] * m["width"]) * 4
    assert trace.kv_bytes_per_token == 0
