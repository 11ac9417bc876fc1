"""How large an accelerator's programs are for all lengths of a sequence, and what sharing them saves.

A design whose instructions name addresses and sizes needs a program per prompt length and per context. Instructions
are counted as they are in :mod:`.fpga`: one per tile of a product and share of its inputs that fits half of a buffer
(``vector_outputs`` outputs; ``matrix_tokens`` × ``matrix_outputs``), with loads, stores and element-wise instructions
in the proportions of the design's compiler (``vector_loads`` … in the device file), of ``*_size`` bytes each.

    each length, each region      Σ over prompts 1…L and contexts 1…L of a program's bytes, times regions
    ranges, each region           a program per range of ``matrix_range`` prompt tokens or ``vector_range`` of context
    ranges, shared by regions     regions run the same program on their own channels

Source: length-adaptive compilation, FlightLLM, arXiv:2401.03868, section 5. Left out: its merging of loads of
several channels into one, which the published compiler output does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..workloads.compiled import CompiledTrace, compile_trace
from ..workloads.expr import Expr
from ..workloads.expr_functions import Array
from ..workloads.trace import Trace
from .array import products_of
from .estimate import Estimate
from .fpga_design import design_of
from .parameters import parameter, whole
from .roofline import MATRIX_KINDS
from .spec import Device


@dataclass(frozen=True)
class ProgramBytes:
    """Bytes of all programs up to a length, without sharing, with ranges of lengths, and with regions sharing too."""

    each_length: float
    ranges: float
    shared: float

    @property
    def saving(self) -> float:
        return self.each_length / self.shared


def program_bytes(trace: Trace, device: Device, longest: int) -> ProgramBytes:
    """Instruction bytes for prompts and contexts of 1 … ``longest`` tokens, one sequence.

    Raises ``InputError`` for what the device file lacks.
    """
    compiled = compile_trace(trace)
    regions = design_of(device).regions
    each, ranges = 0.0, 0.0
    for decode, name in ((False, "matrix"), (True, "vector")):
        step = whole(device, f"{name}_range")
        ends = np.arange(step, longest + step, step, dtype=np.float64)
        ends[-1] = longest
        sizes = instructions(compiled, device, ends, decode=decode) @ _sizes(device, name)
        lengths = np.diff(ends, prepend=0.0)  # all lengths of a range round up to its end's tiles
        each += float(sizes @ lengths)
        ranges += float(sizes.sum())
    return ProgramBytes(each * regions, ranges * regions, ranges)


def instructions(compiled: CompiledTrace, device: Device, tokens: Array, *, decode: bool) -> Array:
    """Instructions of one region's program: (lengths, 4) of products, loads, stores, element-wise ones.

    ``tokens``: prompt lengths, or with ``decode`` contexts, the new token included.
    """
    name = "vector" if decode else "matrix"
    one = np.ones_like(tokens)
    basis = compiled.basis_at(one, one, tokens - 1) if decode else compiled.basis_at(one, tokens, 0 * tokens)
    outputs = whole(device, f"{name}_outputs")
    rows = 1 if decode else whole(device, "matrix_tokens")
    room = parameter(device, f"{name}_buffer") / 2

    def at(size: Expr) -> Array:
        return np.asarray(compiled.vector(size) @ basis)

    products = np.zeros_like(tokens)
    for row in compiled.rows:
        found = products_of(row.operator) if row.operator.kind in MATRIX_KINDS else None
        for p in found(at) if found else ():
            tiles = p.count * -(-p.m // rows) * -(-p.n // outputs)
            products += row.count * tiles * np.ceil(outputs * p.k / room)
    share = [parameter(device, f"{name}_{kind}") for kind in ("loads", "stores", "elements")]
    return np.asarray(products[:, None] * np.array([1.0, *share]))


def program_saving(estimate: Estimate, trace: Trace) -> float:
    """instruction bytes of a program per length and region over those of programs of ranges that regions share, all
    lengths to the request's"""
    request = estimate.request
    return program_bytes(trace, estimate.device, request.prompt + request.output).saving


METRICS = {"program_saving": program_saving}


def _sizes(device: Device, name: str) -> Array:
    sizes = [parameter(device, f"{kind}_size") for kind in ("compute", "load", "store", "element")]
    return np.array(sizes, dtype=np.float64)
