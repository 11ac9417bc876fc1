"""What a decoder-only transformer is, as plain data: one TOML file per published model.

Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from ..errors import InputError, unknown_name
from ..files import first_problem

Size = Annotated[int, Field(ge=1, le=2**31 - 1)]
Text = Annotated[str, Field(min_length=1)]


class ModelConfig(BaseModel):
    """One model. Sizes count elements; the defaults are the plain Llama-style choice.

    ``bias`` covers every projection but the fused q, k, v one, which has ``qkv_bias``; layer norms
    always have a bias, RMS norms never. The head has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    name: Text
    description: Text
    source: Text  # where the figures come from

    hidden: Size
    layers: Annotated[int, Field(ge=1, le=1000)]
    heads: Size
    kv_heads: Size
    head_dim: Size
    inner: Size  # width of the feed-forward layer, or of one expert
    vocabulary: Size
    max_context: Size  # tokens

    norm: Literal["rms", "layer"]
    norm_eps: Annotated[float, Field(gt=0, lt=1)]
    act: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
    gated: bool
    position: Literal["rope", "learned", "alibi"]
    rope_theta: Annotated[float, Field(gt=1)] | None = None
    position_offset: Annotated[int, Field(ge=0, le=16)] = 0  # unused first rows of a learned table (OPT: 2)

    qkv_bias: bool = False
    bias: bool = False
    embedding_norm: bool = False  # BLOOM
    sub_norms: bool = False  # BitNet: a norm before the output and the down projection
    tied: bool = False  # the head is the embedding table
    window: Size | None = None  # sliding-window attention, tokens

    experts: Annotated[int, Field(ge=0, le=4096)] = 0
    top_k: Annotated[int, Field(ge=0)] = 0

    format: Literal["fp16", "bf16", "fp32"]  # the number format it is published in
    bit_linear: bool = False  # BitNet b1.58: projections of the layers are ternary times int8
    weight_format: Literal["ternary"] | None = None  # of those projections
    weight_bits: Annotated[float, Field(gt=0, le=16)] | None = None  # as stored, bits per element

    @field_validator("kv_heads")
    @classmethod
    def _kv_heads_divide_heads(cls, kv_heads: int, info: ValidationInfo) -> int:
        heads = info.data.get("heads", kv_heads)
        if heads % kv_heads:
            raise ValueError(f"{kv_heads} does not divide heads = {heads}; accepted: a divisor of {heads}")
        return kv_heads

    @field_validator("rope_theta")
    @classmethod
    def _rope_has_a_base(cls, theta: float | None, info: ValidationInfo) -> float | None:
        position, head_dim = info.data.get("position"), info.data.get("head_dim", 2)
        if position == "rope" and theta is None:
            raise ValueError('missing; accepted: a number above 1 where position = "rope"')
        if position == "rope" and head_dim % 2:
            raise ValueError(f'position = "rope" turns pairs; accepted: an even head_dim, not {head_dim}')
        if position in ("learned", "alibi") and theta is not None:
            raise ValueError(f'accepted only where position = "rope", not "{position}"')
        return theta

    @field_validator("position_offset")
    @classmethod
    def _offset_needs_a_table(cls, offset: int, info: ValidationInfo) -> int:
        if offset and info.data.get("position") != "learned":
            raise ValueError('accepted above 0 only where position = "learned"')
        return offset

    @field_validator("experts")
    @classmethod
    def _experts_are_plain_gated(cls, experts: int, info: ValidationInfo) -> int:
        wrong = [k for k in ("bias", "sub_norms") if info.data.get(k)]
        if experts and (wrong or not info.data.get("gated", True)):
            rule = f"{wrong[0]} = false" if wrong else "gated = true"
            raise ValueError(f"accepted above 0 only where {rule}")
        return experts

    @field_validator("top_k")
    @classmethod
    def _top_k_of_the_experts(cls, top_k: int, info: ValidationInfo) -> int:
        experts = info.data.get("experts", top_k)
        if not (1 <= top_k <= experts if experts else top_k == 0):
            accepted = f"1 to {experts} (experts)" if experts else "0 where experts = 0"
            raise ValueError(f"{top_k} is out of range; accepted: {accepted}")
        return top_k

    @field_validator("bit_linear")
    @classmethod
    def _bit_linear_is_bare(cls, bit_linear: bool, info: ValidationInfo) -> bool:
        wrong = [k for k in ("qkv_bias", "bias", "experts") if info.data.get(k)]
        if bit_linear and wrong:
            raise ValueError(f"accepted as true only without {wrong[0]}")
        return bit_linear

    @field_validator("weight_format", "weight_bits")
    @classmethod
    def _weights_of_bit_linear(cls, value: object, info: ValidationInfo) -> object:
        if info.data.get("bit_linear", value is not None) != (value is not None):
            raise ValueError("required where bit_linear = true, accepted nowhere else")
        return value

    @property
    def digest(self) -> str:
        """SHA-256 of all fields: what a trace says it was captured from."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def model_names() -> list[str]:
    """Names of the models that come with the package, sorted."""
    presets = resources.files(__package__) / "presets"
    return sorted(f.name.removesuffix(".toml") for f in presets.iterdir() if f.name.endswith(".toml"))


def load_config(name_or_path: str | os.PathLike[str]) -> ModelConfig:
    """The model of that name, or the one described by a TOML file.

    A string is a path if it ends in ``.toml`` or has a directory part, else a name from
    :func:`model_names`. Raises ``InputError``: unknown name, unreadable file, broken TOML, bad field.
    """
    text = os.fspath(name_or_path)
    is_path = isinstance(name_or_path, os.PathLike) or text.endswith(".toml") or Path(text).name != text
    if is_path:
        return _parse(text, Path(text))
    names = model_names()
    if text not in names:
        forms = "or a preset file (.toml), a trace file (.json), hf:PATH/config.json; `tokenfab models` lists all"
        raise unknown_name("model", text, names, hint=forms)
    return _parse(f"{text}.toml", resources.files(__package__) / "presets" / f"{text}.toml")


def _parse(where: str, file: Any) -> ModelConfig:
    """Read one file (a path or a packaged resource); ``where`` names it in errors."""
    try:
        fields = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}; accepted: a model description in TOML") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text; accepted: a model description in TOML") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is one; so is an absurdly long integer
        raise InputError(f"{where}: not valid TOML: {error}") from None
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"{where}: {first_problem(error)}") from None
