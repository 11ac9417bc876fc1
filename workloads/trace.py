"""The trace: what has to be computed, as plain data.

A :class:`Trace` is a list of :class:`Block`; a block is a DAG of :class:`Operator` with a repeat
count (identical layers are stored once). Operators sit at the level hardware people think in: a
matmul with its weight, an attention with its KV cache, a norm. All sizes are expressions in batch
``b``, query length ``q`` (new tokens per sequence) and context ``c`` (tokens already cached), so
one trace answers prefill (``q`` = prompt, ``c`` = 0) and decode (``q`` = 1, ``c`` = tokens so far)
alike.

Counting conventions (the tests hold them):

* one multiply–accumulate is 2 FLOPs;
* attention is causal: query *i* of ``q`` sees ``c + i`` keys, so the score matrix has
  ``q·c + q(q+1)/2`` entries, not ``q·(c+q)``;
* attention reads each cached K and V element once and writes ``q × heads × head_dim``: the score
  matrix never leaves the chip (FlashAttention, arXiv:2205.14135, section 3.1);
* ``kv_append`` writes the ``q`` new K and V rows; the cache is read by attention only;
* the head computes logits for the last position of each sequence only, as serving engines do;
* an embedding reads the rows it looks up, experts read the expected number of distinct experts.

This module imports nothing above it: readers need only pydantic.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import InputError
from ..files import first_problem, write_whole
from .expr import C, Expr, expr, minimum, product
from .kinds import problem

SCHEMA: Final = "tokenfab.trace"
VERSION: Final = 1
MAX_FILE_BYTES = 64 * 2**20
MAX_LAYERS = 100_000

Role = Literal["activation", "weight", "kv", "state", "index"]
Kind = Literal[
    "matmul", "attention", "experts", "router", "norm", "rope", "activation", "elementwise",
    "embedding", "kv_append", "scan", "convolution", "copy", "collective",
]  # fmt: skip
Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Attr = str | int | float | bool


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


class Tensor(_Data):
    """One operand. ``bits`` is what an element costs to store, scales and indices included.

    ``touched`` is the number of elements moved per execution where that is not the whole tensor
    (rows of an embedding, experts that were routed to).
    """

    name: Name
    shape: tuple[Expr, ...]
    role: Role
    format: Name
    bits: Annotated[float, Field(gt=0, le=128)]
    touched: Expr | None = None

    @property
    def elements(self) -> Expr:
        return product(list(self.shape))

    @property
    def bytes(self) -> Expr:
        """Bytes moved by one execution."""
        return (self.elements if self.touched is None else self.touched) * (self.bits / 8)

    @property
    def stored_bytes(self) -> Expr:
        """Bytes held in memory."""
        return self.elements * (self.bits / 8)


class Operator(_Data):
    """One unit of work. ``deps`` names operators of the same block that must finish first.

    ``dims`` holds the sizes the kind is known by, listed in :mod:`.kinds`. ``format`` is the number
    format the arithmetic runs in.
    """

    name: Name
    kind: Kind
    format: Name
    dims: dict[Name, Expr]
    flops: Expr
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    deps: tuple[Name, ...] = ()
    attrs: dict[Name, Attr] = {}

    @model_validator(mode="after")
    def _can_be_costed(self) -> Self:
        if wrong := problem(self):
            raise ValueError(f"operator {self.name}: {wrong}")
        return self

    def moved(self, *roles: Role) -> Expr:
        """Bytes read and written by one execution, of the given roles (all of them by default)."""
        tensors = (t for t in (*self.reads, *self.writes) if not roles or t.role in roles)
        return sum((t.bytes for t in tensors), expr(0))

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return tuple(t for t in self.reads if t.role == "weight")


class Block(_Data):
    """Operators in execution order, run ``repeat`` times in sequence. ``output`` feeds the next block."""

    name: Name
    repeat: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    operators: tuple[Operator, ...]
    output: Name

    @model_validator(mode="after")
    def _is_a_dag(self) -> Self:
        seen: set[str] = set()
        for op in self.operators:
            if op.name in seen:
                raise ValueError(f"block {self.name}: operator {op.name} appears twice")
            late = [d for d in op.deps if d not in seen]
            if late:
                raise ValueError(f"block {self.name}: {op.name} depends on {late[0]}, which does not precede it")
            seen.add(op.name)
        if self.output not in seen:
            raise ValueError(f"block {self.name}: output {self.output} is not one of its operators")
        return self


class Trace(_Data):
    """A whole model, forward pass, inference. ``max_context`` is the longest sequence it accepts.

    ``order`` is the execution order of the blocks as (name, times) runs, for models whose layer
    kinds alternate; times sum to each block's repeat.
    """

    schema_: Literal["tokenfab.trace"] = Field(default=SCHEMA, alias="schema")
    version: Literal[1] = VERSION
    model: Name
    format: Name
    hidden: Count
    vocabulary: Count
    max_context: Count | None = None
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    order: tuple[tuple[Name, Count], ...]
    applied: tuple[str, ...] = ()
    provenance: dict[str, Attr] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, arbitrary_types_allowed=True)

    @model_validator(mode="after")
    def _order_covers_blocks(self) -> Self:
        names = [b.name for b in self.blocks]
        if len(set(names)) != len(names):
            raise ValueError("two blocks have one name")
        runs = dict.fromkeys(names, 0)
        for name, times in self.order:
            if name not in runs:
                raise ValueError(f"order names the unknown block {name}")
            runs[name] += times
        for b in self.blocks:
            if runs[b.name] != b.repeat:
                raise ValueError(f"block {b.name} repeats {b.repeat} times but order runs it {runs[b.name]} times")
        if sum(runs.values()) > MAX_LAYERS:
            raise ValueError(f"{sum(runs.values())} blocks are run; accepted: at most {MAX_LAYERS}")
        return self

    # -- reading ---------------------------------------------------------------------------
    def operators(self) -> Iterator[tuple[Operator, int]]:
        """Every distinct operator with the number of times it runs in one forward pass."""
        for block in self.blocks:
            for op in block.operators:
                yield op, block.repeat

    def weights(self) -> dict[str, tuple[Tensor, int]]:
        """Stored weights by unique name, with their count; a tied weight appears once."""
        found: dict[str, tuple[Tensor, int]] = {}
        for block in self.blocks:
            for op in block.operators:
                for w in op.weights:
                    found.setdefault(w.name, (w, block.repeat))
        return found

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return round(sum(_value(w.elements) * n for w, n in self.weights().values()))

    @property
    def weights_bytes(self) -> float:
        """Bytes of all weights as stored, scales included."""
        return sum(_value(w.stored_bytes) * n for w, n in self.weights().values())

    def total(self, quantity: Literal["flops", "bytes"]) -> Expr:
        """FLOPs or bytes moved by one forward pass, as an expression."""
        of = (lambda op: op.flops) if quantity == "flops" else Operator.moved
        return sum((of(op) * count for op, count in self.operators()), expr(0))

    def cache_bytes(self) -> Expr:
        """Bytes of cache that ``b`` sequences of ``c`` tokens hold (windows cap it; states do not grow)."""
        out = expr(0)
        for op, count in self.operators():
            if op.kind == "kv_append":
                window = op.dims.get("window")
                tokens = C if window is None else minimum(C, window)
                out = out + op.dims["batch"] * tokens * _row_bytes(op) * count
            for t in op.writes:
                if t.role == "state":
                    out = out + t.stored_bytes * count
        return out

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes one more token of one sequence adds to the cache, before any window is full."""
        return sum(_row_bytes(op) * n for op, n in self.operators() if op.kind == "kv_append")

    # -- files -----------------------------------------------------------------------------
    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        write_whole(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace file. Raises ``InputError`` naming the file, the place and what was expected."""
        where = Path(path)
        data = _read_json(where)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise InputError(f'{where}: not a tokenfab trace (its "schema" is not "{SCHEMA}")')
        if data.get("version") != VERSION or isinstance(data.get("version"), bool):
            found = repr(data.get("version"))[:40]
            raise InputError(f"{where}: trace version {found}; this release reads version {VERSION}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(f"{where}: {first_problem(error)}") from None
        except RecursionError:
            raise InputError(f"{where}: nested too deeply for a trace") from None


def _read_json(where: Path) -> Any:
    try:
        with where.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"{where}: cannot be read: {reason}; a trace file was expected") from None
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"{where}: larger than {MAX_FILE_BYTES >> 20} MiB, which no trace is")
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text; a trace file was expected") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not a complete JSON document ({error}); a trace file was expected") from None


def check_point(trace: Trace, batch: float, query: float, context: float) -> None:
    """Raises ``InputError`` unless batch, query ≥ 1, context ≥ 0 and the model accepts context + query."""
    for name, value, least in (("batch", batch, 1), ("query", query, 1), ("context", context, 0)):
        if not least <= value <= 1e9:
            raise InputError(f"{name} {value:g}; accepted: {least} to 1e9")
    if trace.max_context is not None and context + query > trace.max_context:
        raise InputError(
            f"context {context:g} + query {query:g} = {context + query:g} tokens exceed "
            f"the {trace.max_context} of {trace.model}"
        )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number a trace may hold")


def _row_bytes(op: Operator) -> float:
    """Bytes one token of one sequence writes to the cache in one ``kv_append``."""
    return _value(op.dims["row_elements"]) * next(t.bits for t in op.writes if t.role == "kv") / 8


def _value(size: Expr) -> float:
    constant = size.constant
    if constant is None:
        raise ValueError(f"{size} still depends on batch, query or context")
    return constant
