"""Accelerators by the rules of simulators that go from layer to layer: tiles, bytes, and the larger of the two.

Several published accelerators are compared in simulators of this form. They are no model of a chip (nothing is
filled or drained, nothing but products takes time), but their published figures are theirs, so that a claim can only
be checked under them. No estimate uses them; a rule book (``catalog/rules/NAME.toml``) is asked for by name, in
:mod:`tokenfab.validation.layer_rules`. Per layer, ``count`` products of m vectors, n outputs and k inputs:

    tiles   = count · ⌈k / lanes⌉ · ⌈n / rows⌉ · ⌈m / columns⌉
    compute = tiles · cycles of an element, 1 or, bit-serial, ⌈⌊weight bits⌋ / 2⌉
    dram    = ⌊(weights · fetches of them + inputs · fetches of them + outputs) · 8 / bits per cycle⌋
    fetches = where neither fits its buffer, either once for every bufferful of the other, whichever moves less
    cycles  = Σ over layers of max(compute, dram)

    energy  = elements · joules of one cycle · layout factor · compute
            + tiles · (a read of the weights' buffer + one of the inputs')
            + writes of 64 bits or so of what is fetched and put out
            + bits moved · joules of a bit of DRAM

A buffer's width is what all rows (columns) take per cycle: lanes · ⌈weight bits / 4⌉ · 4 · rows bits, half of it where
elements are bit-serial. Source: abdelfattah-lab/BitMoD-HPCA-25, bitmod_sim/accelerator.py and pe_array.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Shape(_Data):
    """Elements of an array: ``rows`` outputs by ``columns`` vectors."""

    rows: Count
    columns: Count


class Accelerator(_Data):
    """One array of a rule book, in picojoules and µm². ``weight_bits`` by phase, then by model or ``all``."""

    lanes: Count
    bit_serial: bool
    element_pj: Positive
    element_um2: Positive
    layout: Positive
    activation_bits: Positive
    kv_bits: Positive
    shapes: dict[str, Shape]
    weight_bits: dict[str, dict[str, Positive]]

    def bits(self, phase: str, model: str) -> float:
        """Bits of a stored weight of ``model`` in ``phase``, scales included."""
        found = self.weight_bits[phase]
        return found.get(model, found.get("all", 0.0))


class Port(_Data):
    """A buffer with a port of some width: picojoules of a read and a write of it, mm²."""

    read_pj: Positive
    write_pj: Positive
    area_mm2: Positive


class RuleBook(_Data):
    """The rules and constants of one simulator at one state. ``attention``: ``"whole"``, all heads as one product of
    the hidden size, or ``"per-head"``. ``buffer_bytes`` of each of two buffers; ``sram`` by width of the port, bits."""

    name: str
    description: str
    source: str
    attention: Annotated[str, Field(pattern="^(whole|per-head)$")]
    context: Count
    generated: Count
    dram_bits_per_cycle: Positive
    dram_pj_per_bit: Positive
    buffer_bytes: Positive
    write_bits: Positive
    sram_source: str
    sram: dict[str, Port]
    models: dict[str, dict[str, Count | str]]
    accelerators: dict[str, Accelerator]


@dataclass(frozen=True)
class Layer:
    """``count`` products of ``m`` vectors, ``n`` outputs and ``k`` inputs, that a model holds ``repeat`` times.

    ``inputs``: width of an input vector as the rules move it; ``cached``: the weights are cached keys or values.
    """

    repeat: int
    count: int
    m: int
    n: int
    k: int
    inputs: int
    cached: bool = False


@dataclass(frozen=True)
class Tally:
    """What a pass takes: cycles in all and of the array, joules on the chip and in all (0 where ports are unknown)."""

    cycles: int
    compute: int
    chip_j: float
    dram_j: float

    @property
    def total_j(self) -> float:
        return self.chip_j + self.dram_j


def attention_layers(book: RuleBook, heads: int, kv_heads: int, head_dim: int, layers: int, query: int) -> list[Layer]:
    """The two products of attention as the rule book has them; the context is there, whatever ``query`` is.

    ``"whole"`` multiplies the hidden size once per head (all scores as if one head were as wide as all), so that it
    counts the arithmetic of a prompt ``heads`` times; an input vector is as wide as the keys of all heads.
    """
    group, c = heads // kv_heads, book.context
    if book.attention == "per-head":
        m = group * query
        return [
            Layer(layers, kv_heads, m, c, head_dim, head_dim, True),
            Layer(layers, kv_heads, m, head_dim, c, c, True),
        ]
    hidden, keys = heads * head_dim, kv_heads * head_dim
    return [
        Layer(layers, 1, heads * query, query, hidden, keys, True),
        Layer(layers, 1, query, heads * query, c, keys, True),
    ]


def fetches(weights: float, inputs: float, room: float) -> tuple[int, int]:
    """How often (weights, inputs) of so many bytes are read from DRAM by buffers of ``room`` bytes each."""
    if weights <= room or inputs <= room:
        return 1, 1
    again = ceil(inputs / room), ceil(weights / room)
    return (again[0], 1) if again[0] * weights + inputs < again[1] * inputs + weights else (1, again[1])


def ports(accelerator: Accelerator, phase: str, model: str) -> tuple[int, int]:
    """Widths in bits of the weights' and the inputs' buffer."""
    shape, serial = accelerator.shapes[phase], 2 if accelerator.bit_serial else 1
    weight = accelerator.lanes * ceil(accelerator.bits(phase, model) / 4) * 4 * shape.rows / serial
    return round(weight), round(accelerator.lanes * accelerator.activation_bits * shape.columns / serial)


def tally(book: RuleBook, name: str, phase: str, model: str, layers: Iterable[Layer]) -> Tally:
    """A pass of ``model`` on the accelerator ``name`` of the book. ``phase``: ``"prefill"`` or ``"decode"``."""
    a = book.accelerators[name]
    shape, linear, wide = a.shapes[phase], a.bits(phase, model), a.activation_bits
    widths = ports(a, phase, model)
    known = all(str(width) in book.sram for width in widths)
    total = compute = tiles = weight_writes = input_writes = 0
    moved = 0.0
    for layer in layers:
        bits = a.kv_bits if layer.cached else linear
        # Until attention was counted by head, all of a pass took the linear layers' cycles and writes.
        own = bits if book.attention == "per-head" else linear
        per_tile = ceil(floor(own) / 2) if a.bit_serial else 1
        here = layer.count * ceil(layer.k / a.lanes) * ceil(layer.n / shape.rows) * ceil(layer.m / shape.columns)
        weights = layer.count * ceil(layer.k * bits / 8) * layer.n
        inputs = layer.count * ceil(layer.inputs * wide / 8) * layer.m
        outputs = layer.count * ceil(layer.n * wide / 8) * layer.m
        of_weights, of_inputs = fetches(weights, inputs, book.buffer_bytes)
        bytes_ = weights * of_weights + inputs * of_inputs + outputs
        total += layer.repeat * max(here * per_tile, int(bytes_ * 8 / book.dram_bits_per_cycle))
        compute += layer.repeat * here * per_tile
        tiles += layer.repeat * here
        moved += layer.repeat * bytes_
        times = layer.repeat * layer.count
        weight_writes += times * ceil(layer.k * own / book.write_bits) * layer.n * of_weights
        input_writes += times * layer.m * (
            ceil(layer.inputs * wide / book.write_bits) * of_inputs + ceil(layer.n * wide / book.write_bits)
        )  # fmt: skip
    chip = 0.0
    if known:
        left, right = (book.sram[str(width)] for width in widths)
        chip = a.element_pj * a.layout * shape.rows * shape.columns * compute + tiles * (left.read_pj + right.read_pj)
        chip += weight_writes * left.write_pj * book.write_bits / widths[0]
        chip += input_writes * right.write_pj * book.write_bits / widths[1]
    return Tally(total, compute, chip * 1e-12, moved * 8 * book.dram_pj_per_bit * 1e-12)
