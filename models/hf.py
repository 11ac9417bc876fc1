"""Hugging Face models: translated to our decoder, or built as they are, always offline.

``transformers`` is imported when a function is called; no function here reaches a network or runs
code that comes with a model.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..errors import InputError
from ..files import first_problem
from .config import ModelConfig
from .decoder import DTYPES, Decoder
from .hf_families import ACTS, FAMILIES, Family

MAX_LAYERS = 1000
# Keys of a config.json that name code to run or kernels to fetch.
_IGNORED = {"auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal"}


def from_hf(hf_model: nn.Module) -> tuple[ModelConfig, Decoder]:
    """The same model as our decoder, with the same weights, on the same device and in the same dtype.

    ``hf_model`` is a causal language model of one of :data:`FAMILIES`, not packed or quantised but for
    BitNet layers that quantise on the fly. Raises ``InputError`` where the decoder cannot express it.
    """
    hf: Any = hf_model.config
    family = FAMILIES.get(hf.model_type)
    if family is None:
        raise InputError(f"model type {hf.model_type!r} cannot be translated; accepted: {', '.join(sorted(FAMILIES))}")
    for key, value in family.requires.items():
        if getattr(hf, key, value) != value:
            raise InputError(f"{hf.model_type}: {key} = {getattr(hf, key)!r} is not supported; accepted: {value!r}")
    theirs = dict(hf_model.named_parameters())
    sample = next(iter(theirs.values()))
    config = _translate(hf, family, sample.dtype, _quantises_on_the_fly(hf_model))

    with torch.device(sample.device):
        decoder = Decoder(config, sample.dtype)
    used: set[str] = set()
    for name, parameter in decoder.named_parameters():
        names, combine = _sources(name, family)
        if missing := [n for n in names if n not in theirs]:
            raise InputError(f"{hf.model_type}: the model has no parameter {missing[0]!r}")
        value = combine([theirs[n].detach() for n in names], config)
        if value.shape != parameter.shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(parameter.shape)}"
            raise InputError(f"{hf.model_type}: {names[0]!r} and what is fused with it has shape {shapes}")
        parameter.copy_(value)
        used.update(names)
    if unused := sorted(theirs.keys() - used):
        raise InputError(f"{hf.model_type}: parameter {unused[0]!r} has no place in the decoder")
    return config, decoder


def _translate(hf: Any, family: Family, dtype: torch.dtype, bit_linear: bool) -> ModelConfig:
    formats = {v: k for k, v in DTYPES.items()}
    if dtype not in formats:
        raise InputError(
            f"{hf.model_type}: weights in {dtype} are not supported; accepted: {', '.join(map(str, formats))}"
        )
    fields = {
        "name": hf.name_or_path or hf.model_type,
        "description": f"{type(hf).__name__} of transformers",
        "source": "translated from a transformers model",
        "hidden": hf.hidden_size,
        "layers": hf.num_hidden_layers,
        "heads": hf.num_attention_heads,
        "kv_heads": getattr(hf, "num_key_value_heads", None) or hf.num_attention_heads,
        "head_dim": getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        "vocabulary": hf.vocab_size,
        "tied": hf.tie_word_embeddings,
        "format": formats[dtype],
    } | family.fields(hf)
    fields["act"] = ACTS.get(fields["act"], fields["act"])
    if bit_linear:
        fields |= {"bit_linear": True, "weight_format": "ternary", "weight_bits": 2.0}
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"{hf.model_type}: {first_problem(error)}") from None


def _sources(name: str, family: Family) -> tuple[list[str], Callable[[list[Tensor], ModelConfig], Tensor]]:
    """Hugging Face parameters that our parameter ``name`` is made of, and how."""
    parts = name.split(".")
    layer = parts[1] if parts[0] == "layers" else ""
    generic = ".".join([parts[0], "{i}", *parts[2:]]) if layer else name
    suffix = ""
    if generic not in family.weights:
        generic, _, last = generic.rpartition(".")
        suffix = f".{last}"
    source = family.weights[generic]
    return [n.replace("{i}", layer) + suffix for n in source.names], source.combine


def _quantises_on_the_fly(hf_model: nn.Module) -> bool:
    """Whether the projections are BitNet layers that round their weights in every forward pass."""
    modes = {getattr(m, "online_quant", None) for n, m in hf_model.named_modules() if "_proj" in n}
    if modes & {False} or (True in modes and None in modes):
        raise InputError(
            "bitnet: projections with stored ternary weights are not supported; accepted: online quantisation"
        )
    return True in modes


# -- a Hugging Face model as it is ----------------------------------------------------------------
def build_hf(path: str | os.PathLike[str], attn_implementation: str | None = None) -> nn.Module:
    """The causal language model that a ``config.json`` (or its folder) describes, on ``meta``, without weights.

    ``attn_implementation`` is transformers' own ("eager", "sdpa", …; default: its choice). Raises
    ``InputError``: missing or broken file, unknown or not causal ``model_type``, or a config that
    transformers rejects. Code that comes with a model (``auto_map``) is never run.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    fields = _read_json(file)
    transformers = _import_transformers()
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in known:
        raise InputError(f"{file}: model_type: {model_type!r} is unknown to transformers {transformers.__version__}")
    try:
        with _offline(), torch.device("meta"):
            config = known[model_type].from_dict({k: v for k, v in fields.items() if k not in _IGNORED})
            _check_layers(config)
            if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
                raise InputError(f"model_type: {model_type!r} is not a causal language model")
            options = {"attn_implementation": attn_implementation} if attn_implementation else {}
            model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except Exception as error:  # whatever a config can provoke in a library we do not own
        raise InputError(f"{file}: transformers rejects it: {type(error).__name__}: {_short(error)}") from None
    return model.eval()


def _check_layers(config: Any) -> None:
    """A number of layers that would take hours to build is a mistake."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        raise InputError(f"num_hidden_layers: {layers!r} is out of range; accepted: 1 to {MAX_LAYERS}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}; accepted: a config.json or its folder") from None
    except (ValueError, RecursionError) as error:  # a JSONDecodeError or UnicodeDecodeError is a ValueError
        raise InputError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{file}: not a JSON object but a {type(fields).__name__}")
    return fields


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "…"


def _import_transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise InputError("transformers is not installed; install tokenfab[hf]") from None


@contextmanager
def _offline() -> Iterator[None]:
    """Hold huggingface_hub to its offline mode, whatever the environment says."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
