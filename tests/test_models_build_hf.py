"""Does ``build_hf`` build what a config.json says, offline, and refuse the rest in one line?"""

from __future__ import annotations

import json
import socket

import pytest
import torch

pytest.importorskip("transformers")
import transformers

from tokenfab.errors import InputError
from tokenfab.models.hf import build_hf, from_hf

GATED = {
    "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 80,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


def write_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(fields), encoding="utf-8")
    return file


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("_no_network")
def test_a_config_file_or_its_folder_builds_a_model_without_memory(tmp_path):
    file = write_config(tmp_path, model_type="llama", torch_dtype="bfloat16", **(GATED | {"num_hidden_layers": 80}))
    for path in (file, tmp_path, str(tmp_path)):
        model = build_hf(path)
        assert type(model).__name__ == "LlamaForCausalLM"
        assert len(model.model.layers) == 80
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert not model.training
    assert build_hf(file, attn_implementation="eager").config._attn_implementation == "eager"
    assert build_hf(file, attn_implementation="sdpa").config._attn_implementation == "sdpa"


@pytest.mark.usefixtures("_no_network")
def test_a_model_on_meta_translates_to_a_decoder_on_meta(tmp_path):
    model = build_hf(
        write_config(tmp_path, model_type="mistral", torch_dtype="float16", num_key_value_heads=2, **GATED)
    )
    config, decoder = from_hf(model)
    assert config.format == "fp16"
    assert decoder.num_parameters() == model.num_parameters() == 62640
    assert decoder(torch.empty(3, 5, dtype=torch.int64, device="meta"), logits_to_keep=2).shape == (3, 2, 97)


@pytest.mark.usefixtures("_no_network")
def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('was run')", encoding="utf-8")
    auto_map = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "someone/repo--modeling_evil.Model"}
    model = build_hf(write_config(tmp_path, model_type="llama", auto_map=auto_map, **GATED))
    assert type(model).__module__ == "transformers.models.llama.modeling_llama"
    for key in ("attn_implementation", "_attn_implementation"):  # a kernel from the hub is code too
        model = build_hf(write_config(tmp_path, model_type="llama", **{key: "someone/kernels"}, **GATED))
        assert model.config._attn_implementation in ("sdpa", "eager")
    with pytest.raises(InputError, match="model_type: 'evil' is unknown to transformers"):
        build_hf(write_config(tmp_path, model_type="evil", auto_map=auto_map))


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lama"}, "model_type: 'lama' is unknown to transformers"),
        ({"hidden_size": 8}, "model_type: None is unknown"),
        ({"model_type": ["llama"]}, "model_type: ['llama'] is unknown"),
        ({"model_type": "vit"}, "model_type: 'vit' is not a causal language model"),
        ({"model_type": "llama", **GATED, "hidden_size": 50}, "transformers rejects it:"),
        ({"model_type": "llama", **GATED, "hidden_size": "big"}, "transformers rejects it:"),
        (
            {"model_type": "llama", **GATED, "num_hidden_layers": 10**9},
            "num_hidden_layers: 1000000000 is out of range; accepted: 1 to 1000",
        ),
        ({"model_type": "llama", **GATED, "num_hidden_layers": -1}, "num_hidden_layers: -1 is out of range"),
        ({"model_type": "llama", **GATED, "vocab_size": -5}, "transformers rejects it:"),
    ],
)
def test_a_bad_config_is_one_line_naming_the_file(tmp_path, fields, message):
    file = write_config(tmp_path, **fields)
    with pytest.raises(InputError) as caught:
        build_hf(tmp_path)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("attention", ["nonsense", "someone/kernels"])
def test_an_unknown_attention_is_refused_without_asking_the_hub(tmp_path, attention):
    file = write_config(tmp_path, model_type="llama", **GATED)
    with pytest.raises(InputError, match="transformers rejects it:"):
        build_hf(file, attn_implementation=attention)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "llama",}', "config.json: not valid JSON: "),
        (b"\xff\xfe", "config.json: not valid JSON: "),
        (b"[1, 2]", "config.json: not a JSON object but a list"),
        (b"[" * 100000, "config.json: not valid JSON: "),
        (None, "config.json: cannot be read: No such file or directory; accepted: a config.json or its folder"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        build_hf(tmp_path)
    assert message in str(caught.value)


def test_without_transformers_the_message_says_what_to_install(tmp_path, monkeypatch):
    file = write_config(tmp_path, model_type="llama", **GATED)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"^transformers is not installed; install tokenfab\[hf\]$"):
        build_hf(file)


def test_the_offline_switch_is_put_back(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen = []
    real = transformers.AutoModelForCausalLM.from_config

    def spy(*args, **kwargs):
        seen.append(constants.is_offline_mode())
        return real(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", spy)
    build_hf(write_config(tmp_path, model_type="llama", **GATED))
    assert seen == [True]
    assert constants.HF_HUB_OFFLINE is False
