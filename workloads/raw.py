"""What one run of a module leaves behind: operators with integer sizes, and who made each tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

FORMATS = {
    torch.float64: ("fp64", 64), torch.float32: ("fp32", 32), torch.float16: ("fp16", 16),
    torch.bfloat16: ("bf16", 16), torch.float8_e4m3fn: ("fp8", 8), torch.float8_e5m2: ("fp8", 8),
    torch.int64: ("int64", 64), torch.int32: ("int32", 32), torch.int16: ("int16", 16),
    torch.int8: ("int8", 8), torch.uint8: ("uint8", 8), torch.bool: ("bool", 8),
}  # fmt: skip
POINTWISE = frozenset({"norm", "rope", "activation", "elementwise"})


class CaptureError(Exception):
    """The module did something a trace cannot hold; the text names the operation or module."""


@dataclass(eq=False)
class Root:
    """What a tensor and all its views stand for: who made it, and which role it has.

    ``shared``: a weight that several layers use; it keeps its own name wherever it is read. ``whole``:
    shape of a weight, of which an operator may read a part.
    """

    name: str
    role: str
    producer: RawOp | None
    format: str
    bits: float
    rotary: bool = False
    shared: bool = False
    whole: tuple[int, ...] | None = None


@dataclass
class RawTensor:
    """An operand at one point. ``key`` tells views of one root apart."""

    root: Root
    shape: tuple[int, ...]
    key: tuple[Any, ...]
    touched: int | None = None


@dataclass(eq=False)
class RawOp:
    """An operator with integer sizes. ``flops`` is set for pointwise work; formulas give the others."""

    name: str
    kind: str
    scope: str
    format: str
    sizes: dict[str, int]
    reads: list[RawTensor]
    writes: list[RawTensor]
    flops: int = 0
    attrs: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass
class RawBlock:
    """Operators of one layer, or of what runs before, between or after layers (``prefix`` is empty)."""

    operators: list[RawOp]
    output: RawOp | None = None
    result: Any = None
    prefix: str = ""


def format_of(dtype: torch.dtype) -> tuple[str, int]:
    """Name and bits of a number format."""
    return FORMATS.get(dtype) or (str(dtype).removeprefix("torch."), dtype.itemsize * 8)
