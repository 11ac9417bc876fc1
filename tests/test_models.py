"""Presets against known parameter counts, a decoder on ``meta`` and off it, and what a bad config says."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from tokenfab.errors import InputError
from tokenfab.models import ops
from tokenfab.models.config import ModelConfig, load_config, model_names
from tokenfab.models.decoder import KVCache, build

# Exact counts of the published weights, but for gpt-3-175b, opt-1.3b, -13b, -30b, -66b, -175b and
# bitnet-b1.58-3b: there the published size is rounded, and this is what the figures give.
PARAMETERS = {
    "bitnet-b1.58-3b": 3324387840,
    "bloom-176b": 176247271424,
    "gpt-3-175b": 174604259328,
    "llama-13b": 13015864320,
    "llama-2-13b": 13015864320,
    "llama-2-70b": 68976648192,
    "llama-2-7b": 6738415616,
    "llama-3-70b": 70553706496,
    "llama-33b": 32528943616,
    "llama-65b": 65285660672,
    "llama-3-8b": 8030261248,
    "mistral-7b": 7241732096,
    "grok-1": 315684034560,
    "mixtral-8x7b": 46702792704,
    "open-llama-3b": 3426473600,
    "opt-1.3b": 1315758080,
    "opt-125m": 125239296,
    "opt-13b": 12853473280,
    "opt-175b": 174604468224,
    "opt-30b": 29974540288,
    "opt-6.7b": 6658473984,
    "opt-66b": 65719701504,
    "qwen2-72b": 72706203648,
    "qwen2-7b": 7615616512,
    "yi-6b": 6061035520,
}


# -- presets ----------------------------------------------------------------------------------------
def test_every_preset_has_its_count_here():
    assert model_names() == sorted(PARAMETERS)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_counts(name):
    decoder = build(name)
    assert decoder.num_parameters() == PARAMETERS[name]
    assert load_config(name).name == name
    assert decoder.config.hidden == decoder.config.heads * decoder.config.head_dim


def test_figures_that_no_parameter_count_would_notice():
    def of(key):
        return {n: getattr(load_config(n), key) for n in model_names()}

    assert {n: w for n, w in of("window").items() if w} == {"mistral-7b": 4096}
    assert {n: (load_config(n).experts, k) for n, k in of("top_k").items() if k} == {
        "mixtral-8x7b": (8, 2), "grok-1": (8, 2),
    }  # fmt: skip
    assert {n: h for n, h in of("kv_heads").items() if h != load_config(n).heads} == {
        "llama-2-70b": 8, "llama-3-8b": 8, "llama-3-70b": 8, "mistral-7b": 8, "qwen2-7b": 4, "qwen2-72b": 8,
        "mixtral-8x7b": 8, "yi-6b": 4, "grok-1": 8,
    }  # fmt: skip
    assert {n: d for n, d in of("head_dim").items() if d != 128} == {
        "opt-125m": 64, "opt-1.3b": 64, "bitnet-b1.58-3b": 100, "open-llama-3b": 100,
    }  # fmt: skip
    bf16 = {"llama-3-8b", "llama-3-70b", "mistral-7b", "qwen2-7b", "qwen2-72b", "mixtral-8x7b", "bloom-176b",
            "yi-6b", "grok-1"}  # fmt: skip
    assert {n for n, f in of("format").items() if f == "bf16"} == bf16
    assert {n: t for n, t in of("rope_theta").items() if t not in (None, 10000.0)} == {
        "llama-3-8b": 5e5, "llama-3-70b": 5e5, "qwen2-7b": 1e6, "qwen2-72b": 1e6, "mixtral-8x7b": 1e6,
        "yi-6b": 5e6,
    }  # fmt: skip
    assert {n for n, b in of("bit_linear").items() if b} == {"bitnet-b1.58-3b"}
    assert {n for n, b in of("position").items() if b == "alibi"} == {"bloom-176b"}


def test_building_a_70b_model_takes_no_time():
    build("opt-125m")  # what torch imports on first use of meta tensors is not ours
    start = time.process_time()
    decoder = build("llama-2-70b")
    assert time.process_time() - start < 2  # with weights it would be minutes, and 140 GB
    assert {t.device.type for t in (*decoder.parameters(), *decoder.buffers())} == {"meta"}
    assert {p.dtype for p in decoder.parameters()} == {torch.float16}
    assert decoder.inv_freq.dtype == torch.float32
    assert decoder.layers[0].attention.qkv.weight.shape == (8192 + 2 * 1024, 8192)
    assert decoder.layers[0].mlp.gate_up.weight.shape == (2 * 28672, 8192)


# -- the decoder ------------------------------------------------------------------------------------
TINY = {
    "name": "tiny", "description": "for tests", "source": "none", "hidden": 16, "layers": 2, "heads": 4, "kv_heads": 2,
    "head_dim": 4, "inner": 24, "vocabulary": 31, "max_context": 40, "norm": "rms", "norm_eps": 1e-5, "act": "silu",
    "gated": True, "position": "rope", "rope_theta": 1e4, "format": "fp32",
}  # fmt: skip
GPT = TINY | {"norm": "layer", "gated": False, "position": "learned", "rope_theta": None, "bias": True, "tied": True}
BITNET = TINY | {"sub_norms": True, "bit_linear": True, "weight_format": "ternary", "weight_bits": 2.0}
KINDS = {
    "llama": TINY,
    "gpt": GPT,
    "bloom": GPT | {"position": "alibi", "embedding_norm": True},
    "mixtral": TINY | {"experts": 4, "top_k": 2, "window": 3},
    "bitnet": BITNET,
}
ATTENTION = ["rope", "kv_append", "attention"]
LAYER = {
    "llama": ["rms_norm", "linear", *ATTENTION, "linear", "add",
              "rms_norm", "linear", "gated_activation", "linear", "add"],
    "gpt": ["layer_norm", "linear", *ATTENTION[1:], "linear", "add",
            "layer_norm", "linear", "activation", "linear", "add"],
    "mixtral": ["rms_norm", "linear", *ATTENTION, "linear", "add", "rms_norm", "route", "experts", "add"],
    "bitnet": ["rms_norm", "bit_linear", *ATTENTION, "rms_norm", "bit_linear", "add",
               "rms_norm", "bit_linear", "gated_activation", "rms_norm", "bit_linear", "add"],
}  # fmt: skip
LAYER["bloom"] = LAYER["gpt"]
STEM = {"gpt": ["embedding", "embedding", "add"], "bloom": ["embedding", "layer_norm"]}


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


class Recording(Listing):
    """Supplies what experts would return, as a capture does, so that all runs on meta."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (ops.route, ops.experts):
            with torch._C.DisableTorchFunction():
                self.calls.append(func.kind)
                x = args[0]
                pair = torch.empty(x.shape[0], args[-1], device="meta") if func is ops.route else None
                return torch.empty_like(x) if pair is None else (pair.long(), pair)
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_operators_are_the_same_at_every_batch_length_and_context(kind):
    decoder = build(ModelConfig(**KINDS[kind]))
    head = [LAYER[kind][0], "linear"]
    expected = STEM.get(kind, ["embedding"]) + 2 * LAYER[kind] + head
    for b, q, c in [(1, 1, 0), (1, 7, 0), (3, 1, 9), (2, 5, 4)]:
        cache = KVCache.empty(decoder.config, b, context=c)
        with Recording() as seen:
            logits = decoder(torch.empty(b, q, dtype=torch.int64, device="meta"), cache)
        assert seen.calls == expected
        assert logits.shape == (b, 1, 31)
        assert cache.length == c + q
        assert {t.shape for pair in cache.layers for t in pair} == {(b, 2, c + q, 4)}


def test_a_70b_model_runs_on_meta():
    decoder = build("llama-2-70b")
    cache = KVCache.empty(decoder.config, batch=8, context=1000)
    logits = decoder(torch.empty(8, 1, dtype=torch.int64, device="meta"), cache)
    assert logits.shape == (8, 1, 32000)
    assert logits.dtype == torch.float16
    assert cache.layers[79][1].shape == (8, 8, 1001, 128)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cached", [0, 4])
def test_the_head_runs_on_the_kept_positions_only(kind, cached):
    decoder = build(ModelConfig(**KINDS[kind]), device="cpu")
    tokens = torch.arange(2, 14).view(2, 6)
    cache = KVCache.empty(decoder.config, 2, context=cached, device="cpu")
    everything = decoder(tokens, cache, logits_to_keep=0)
    assert everything.shape == (2, 6, 31)
    for keep in (1, 2, 6):
        cache = KVCache.empty(decoder.config, 2, context=cached, device="cpu")
        torch.testing.assert_close(
            decoder(tokens, cache, logits_to_keep=keep), everything[:, -keep:], atol=1e-5, rtol=1e-5
        )
    sizes = []
    with Sizes(decoder.config.vocabulary, sizes):
        decoder(tokens, logits_to_keep=2)
    assert sizes == [2 * 2]


class Sizes(TorchFunctionMode):
    """Rows that go into projections of a given width."""

    def __init__(self, width, rows):
        super().__init__()
        self.width, self.rows = width, rows

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and args[1].shape[0] == self.width:
            self.rows.append(args[0].numel() // args[0].shape[-1])
        return func(*args, **(kwargs or {}))


def test_without_a_cache_every_call_starts_anew():
    decoder = build(ModelConfig(**TINY), device="cpu")
    tokens = torch.tensor([[3, 1, 4]])
    assert torch.equal(decoder(tokens), decoder(tokens))


def test_random_weights_are_reproducible_and_norms_start_at_one():
    one, same, other = (build(ModelConfig(**GPT), device="cpu", seed=s) for s in (5, 5, 6))
    for (name, a), b in zip(one.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
        if "norm" in name and name.endswith("weight"):
            assert a.tolist() == [1.0] * 16
        elif a.dim() == 2:
            assert 0.01 < a.std() < 0.03
    assert not torch.equal(one.embedding.weight, other.embedding.weight)
    assert not any(p.requires_grad for p in one.parameters())


def test_the_dtype_may_be_chosen():
    decoder = build(ModelConfig(**TINY), dtype=torch.bfloat16)
    assert {p.dtype for p in decoder.parameters()} == {torch.bfloat16}
    assert decoder(torch.empty(1, 2, dtype=torch.int64, device="meta")).dtype == torch.bfloat16
    assert KVCache.empty(load_config("llama-3-8b"), 1).layers[0][0].dtype == torch.bfloat16


# -- config errors ----------------------------------------------------------------------------------
def test_an_unknown_model_suggests_the_nearest():
    with pytest.raises(InputError, match=r"^unknown model 'llama-2-8b'; did you mean .*llama-2-7b"):
        load_config("llama-2-8b")
    with pytest.raises(InputError, match=r"^unknown model 'opt-350m'"):
        build("opt-350m")


def as_toml(fields):
    def value(v):
        return str(v).lower() if isinstance(v, bool) else f'"{v}"' if isinstance(v, str) else repr(v)

    return "".join(f"{k} = {value(v)}\n" for k, v in fields.items() if v is not None)


def test_a_file_is_a_model_too(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(as_toml(BITNET), encoding="utf-8")
    assert load_config(file) == load_config(str(file)) == ModelConfig(**BITNET)
    assert build(file).config.weight_bits == 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "kv_heads: 3 does not divide heads = 4; accepted: a divisor of 4"),
        ({"hidden": 0}, "hidden: Input should be greater than or equal to 1"),
        ({"hidden": "16"}, "hidden: Input should be a valid integer"),
        ({"layers": 1001}, "layers: Input should be less than or equal to 1000"),
        ({"colour": 1}, "colour: Extra inputs are not permitted"),
        ({"source": None}, "source: Field required"),
        ({"norm": "batch"}, "norm: Input should be 'rms' or 'layer'"),
        ({"rope_theta": None}, 'rope_theta: missing; accepted: a number above 1 where position = "rope"'),
        ({"position": "alibi"}, 'rope_theta: accepted only where position = "rope", not "alibi"'),
        ({"head_dim": 5}, 'rope_theta: position = "rope" turns pairs; accepted: an even head_dim, not 5'),
        ({"position_offset": 2}, 'position_offset: accepted above 0 only where position = "learned"'),
        ({"experts": 4}, "top_k: 0 is out of range; accepted: 1 to 4 (experts)"),
        ({"experts": 4, "top_k": 5}, "top_k: 5 is out of range; accepted: 1 to 4 (experts)"),
        ({"top_k": 1}, "top_k: 1 is out of range; accepted: 0 where experts = 0"),
        ({"experts": 4, "top_k": 2, "gated": False}, "experts: accepted above 0 only where gated = true"),
        ({"experts": 4, "top_k": 2, "bias": True}, "experts: accepted above 0 only where bias = false"),
        ({"bit_linear": True}, "weight_format: required where bit_linear = true, accepted nowhere else (and 1 more)"),
        ({"weight_bits": 2.0}, "weight_bits: required where bit_linear = true, accepted nowhere else"),
        (BITNET | {"qkv_bias": True}, "bit_linear: accepted as true only without qkv_bias"),
    ],
)  # fmt: skip
def test_a_bad_field_is_one_line_with_file_key_and_what_is_accepted(tmp_path, changes, message):
    file = tmp_path / "mine.toml"
    file.write_text(as_toml(TINY | changes), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hidden = ", "mine.toml: not valid TOML: Invalid value (at end of document)"),
        (b"\xff", "mine.toml: not UTF-8 text; accepted: a model description in TOML"),
        (b"x = " + b"9" * 5000, "mine.toml: not valid TOML: Exceeds the limit"),
        (b"x = " + b"[" * 100000, "mine.toml: not valid TOML: "),
        (None, "mine.toml: cannot be read: No such file or directory; accepted: a model description in TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_one_line(tmp_path, content, message):
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_config(file)
    assert message in str(caught.value)
