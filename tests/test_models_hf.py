"""Is our decoder the model it claims to be? Against Hugging Face's code, with the same random weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
import transformers
from transformers import (
    BitNetConfig,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
)

from tokenfab.errors import InputError
from tokenfab.models import ops
from tokenfab.models.decoder import KVCache
from tokenfab.models.hf import from_hf

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
GATED = SMALL | {"intermediate_size": 80, "rms_norm_eps": 1e-5}
GQA = GATED | {"num_key_value_heads": 2}
WINDOW = 5

CONFIGS = {
    "llama-mha": lambda: LlamaConfig(**GATED),
    "llama-gqa-tied-biased": lambda: LlamaConfig(
        **GQA, head_dim=10, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "mistral": lambda: MistralConfig(**GQA, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(**GQA),
    "mixtral": lambda: MixtralConfig(**GQA, num_local_experts=5, num_experts_per_tok=2, sliding_window=None),
    "bitnet-unquantised": lambda: BitNetConfig(**GQA),
    "bitnet-online": lambda: BitNetConfig(**GQA, hidden_act="silu"),
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=112, word_embed_proj_dim=48),
    "gpt2": lambda: GPT2Config(vocab_size=97, n_embd=48, n_layer=3, n_head=6, n_positions=64),
    "bloom-8-heads": lambda: BloomConfig(vocab_size=97, hidden_size=48, n_layer=3, n_head=8),
    "bloom-6-heads": lambda: BloomConfig(vocab_size=97, hidden_size=48, n_layer=3, n_head=6),
}


@pytest.fixture(autouse=True)
def _without_compiling():
    """BitNet's functions are under torch.compile, which would look for a C++ compiler."""
    with torch.compiler.set_stance("force_eager"):
        yield


def tiny(name: str, seed: int = 0) -> nn.Module:
    """A random model whose logits are of order one, so that 1e-4 is a tight bound."""
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager")
    if name == "bitnet-online":
        from transformers.integrations.bitnet import replace_with_bitnet_linear
        from transformers.utils.quantization_config import BitNetQuantConfig

        online = BitNetQuantConfig(linear_class="autobitlinear", quantization_mode="online")
        inv_freq = model.model.rotary_emb.inv_freq
        model = replace_with_bitnet_linear(model, ["lm_head"], online).to_empty(device="cpu")
        model.model.rotary_emb.inv_freq = inv_freq
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.5, 0.3, generator=generator)
            else:
                parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5, generator=generator)
    return model.eval()


def some_tokens(batch: int = 2, length: int = 16, vocabulary: int = 97, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def assert_equal_logits(name: str, a: torch.Tensor, b: torch.Tensor) -> float:
    """To 1e-4. Where activations are rounded to int8, a difference of 1e-7 before the rounding may be one
    step after it, once in some 100,000 values: there most logits are equal and the rest are near."""
    error = worst(a, b)
    if name == "bitnet-online":
        assert (a - b).abs().median() < 1e-5
        assert error < 0.1
    else:
        assert error < 1e-4
    return error


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_hugging_face_with_and_without_a_cache(name, record_property):
    theirs = tiny(name)
    config, ours = from_hf(theirs)
    tokens = some_tokens()
    with torch.no_grad():
        expected = theirs(tokens).logits
        whole = ours(tokens, logits_to_keep=0)
        assert 0.3 < expected.std() < 30
        record_property("max_abs_error", assert_equal_logits(name, whole, expected))

        # prefill of 7, five single tokens, four tokens appended at once
        cache = KVCache.empty(config, batch=2, device="cpu", dtype=torch.float32)
        their_cache = transformers.DynamicCache(config=theirs.config)
        pieces, their_pieces = [], []
        for piece in tokens.split([7, 1, 1, 1, 1, 1, 4], dim=1):
            pieces.append(ours(piece, cache, logits_to_keep=0))
            their_pieces.append(theirs(piece, past_key_values=their_cache, use_cache=True).logits)
        assert cache.length == 16
        for reference in (expected, torch.cat(their_pieces, 1), whole):
            assert_equal_logits(name, torch.cat(pieces, 1), reference)


def test_a_fused_ternary_projection_equals_three_of_hugging_face():
    from transformers.integrations.bitnet import AutoBitLinear

    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 5, 24, generator=generator)
    layers = [AutoBitLinear(24, rows, bias=False, online_quant=True) for rows in (12, 6, 6)]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            layer.weight.normal_(0, 0.1 + i, generator=generator)  # very different scales
        expected = torch.cat([layer(x) for layer in layers], -1)
        fused = torch.cat([layer.weight for layer in layers])
        assert worst(ops.bit_linear(x, fused, parts=(12, 6, 6)), expected) < 1e-5
        assert worst(ops.bit_linear(x, fused), expected) > 0.1  # one scale for all is another model


def test_translated_configs_carry_what_sets_the_family_apart():
    def read(name):
        return from_hf(tiny(name))[0]

    llama, mistral, mixtral, opt, bloom = map(
        read, ("llama-gqa-tied-biased", "mistral", "mixtral", "opt", "bloom-6-heads")
    )
    assert (llama.heads, llama.kv_heads, llama.head_dim, llama.tied, llama.qkv_bias, llama.bias) == (
        6,
        2,
        10,
        True,
        True,
        True,
    )
    assert (mistral.window, mistral.tied, mistral.qkv_bias) == (WINDOW, False, False)
    assert (mixtral.experts, mixtral.top_k, mixtral.window) == (5, 2, None)
    assert (opt.position, opt.position_offset, opt.act, opt.inner) == ("learned", 2, "relu", 112)
    assert (bloom.position, bloom.embedding_norm, bloom.act, bloom.inner) == ("alibi", True, "gelu_tanh", 192)
    assert (read("qwen2").qkv_bias, read("qwen2").bias) == (True, False)
    assert read("gpt2").position_offset == 0
    assert (read("bitnet-online").bit_linear, read("bitnet-online").weight_bits) == (True, 2.0)
    assert (read("bitnet-unquantised").bit_linear, read("bitnet-unquantised").sub_norms) == (False, True)
    assert llama.format == "fp32"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: GPTNeoXConfig(**GATED), "model type 'gpt_neox' cannot be translated; accepted: bitnet, bloom,"),
        (lambda: OPTConfig(**SMALL, ffn_dim=96, do_layer_norm_before=False), "do_layer_norm_before = False"),
        (lambda: OPTConfig(**SMALL, ffn_dim=96, word_embed_proj_dim=32), "'model.decoder.embed_tokens.weight'"),
        (lambda: LlamaConfig(**GATED, attention_bias=True), "'model.layers.0.self_attn.o_proj.bias' has no place"),
        (lambda: LlamaConfig(**GATED, mlp_bias=True), "no parameter 'model.layers.0.self_attn.o_proj.bias'"),
        (
            lambda: LlamaConfig(**GATED, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            "rope_type 'linear' is not supported",
        ),
        (lambda: LlamaConfig(**GATED, hidden_act="tanh"), "act: Input should be 'silu', 'gelu'"),
        (lambda: BloomConfig(vocab_size=97, apply_residual_connection_post_layernorm=True), "layernorm = True"),
    ],
)
def test_what_the_decoder_cannot_express_is_refused(config, message):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config())
    with pytest.raises(InputError) as caught:
        from_hf(model)
    assert message in str(caught.value)


def test_float64_and_stored_ternary_weights_are_refused():
    with pytest.raises(
        InputError, match=r"torch\.float64 are not supported; accepted: torch\.float16, torch\.bfloat16"
    ):
        from_hf(tiny("llama-mha").double())
    model = tiny("bitnet-online")
    model.model.layers[1].mlp.down_proj.online_quant = False
    with pytest.raises(InputError, match="stored ternary weights are not supported; accepted: online"):
        from_hf(model)
