"""The arithmetic of the fast kernels in numpy: what they compute, operation for operation.

Activations are binary32 and are made integers group by group, one scale per token and group:

    dot   a = round(x · 127 / max |x|), 8 bits; S = Σ w a
    lut   q = round(x · 32508 / max over quads of Σ |x|); a quad's table is :func:`tokenfab.kernels.lut.half_table`
          of its q, less 8 bits, so that entries have 8; S = Σ_i 2^i Σ_quads ± T[code], and for two's complement
          (S - Σ_quads T[all plus]) / 2.

Integers are exact. Results are Σ_groups (S · scale of the activations) · scale of the weights, in binary32, from the
first group on; each group's addition is fused with the multiplication before it. A group whose largest activation
is below 2^-100 counts as zero; one with an infinity or a NaN makes the token's results NaN.

Sources: integer products with a scale per group as ONNX Runtime's accuracy level 4; tables as T-MAC (EuroSys 2025,
arXiv:2407.00088) and LUT Tensor Core (ISCA 2025, arXiv:2408.06003), whose entries are 8 bits with one scale too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..lut import codes, group_sums, half_table
from .layout import QUAD, Packed

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
DOT_TOP = np.float32(127)
LUT_TOP = np.float32(32508)
"""Σ |q| of a quad is at most 2 more, and (32510 + 128) >> 8 = 127."""
LUT_DROPPED = 8
LEAST = np.float32(2.0**-100)


@dataclass(frozen=True)
class Activations:
    """Integers (tokens, groups, group) and the scale of each group (tokens, groups)."""

    values: Integers
    scales: Floats


def as_groups(x: npt.ArrayLike, k: int, group: int) -> Floats:
    """``x`` (tokens, k) as binary32 (tokens, groups, group). Raises ``InputError``."""
    acts = np.asarray(x, np.float32)
    if acts.ndim != 2 or acts.shape[1] != k or not len(acts):
        raise InputError(f"activations have shape {acts.shape}; wanted (tokens, {k})")
    return acts.reshape(len(acts), -1, group)


def quantise_dot(groups: Floats) -> Activations:
    """Activations (tokens, groups, group) as 8-bit integers."""
    top = np.abs(groups).max(-1)
    return Activations(_rounded(groups, top, DOT_TOP), top * (np.float32(1) / DOT_TOP))


def quantise_lut(groups: Floats) -> Activations:
    """Activations (tokens, groups, group) as integers whose sums of four make tables."""
    size = np.abs(groups).reshape(*groups.shape[:2], -1, QUAD)
    top = ((size[..., 0] + size[..., 1]) + (size[..., 2] + size[..., 3])).max(-1)
    return Activations(_rounded(groups, top, LUT_TOP), top * (np.float32(2**LUT_DROPPED) / LUT_TOP))


def _rounded(groups: Floats, top: Floats, limit: np.float32) -> Integers:
    with np.errstate(all="ignore"):
        factor = np.where(top >= LEAST, limit / top, np.float32(0)).astype(np.float32)
        whole = np.nan_to_num(np.rint(groups * factor[..., None]), posinf=0, neginf=0)
    return np.asarray(whole, np.int64)


def integer_sums(acts: Activations, packed: Packed) -> Integers:
    """S of every token, group and output, (tokens, groups, n); twice that for two's complement in tables."""
    n, _ = packed.shape
    weights = packed.quantised.values.reshape(n, -1, packed.group)
    if packed.layout == "dot":
        return np.asarray(np.einsum("tgk,ngk->tgn", acts.values, weights), np.int64)
    tokens, groups, group = acts.values.shape
    total = np.zeros((tokens, groups, n), np.int64)
    for g in range(groups):
        for first in range(0, group, QUAD):
            table = half_table(acts.values[:, g, first : first + QUAD], LUT_DROPPED)
            code = codes(weights[:, g, first : first + QUAD], packed.bits, packed.odd)
            found = group_sums(table, code, True)
            total[:, g] += found if packed.odd else found - table[:, -1:]
    return total


def golden_matmul(x: npt.ArrayLike, packed: Packed) -> Floats:
    """``x`` (tokens, k) times the transpose of the weights, (tokens, n) in binary32. Raises ``InputError``."""
    n, k = packed.shape
    groups = as_groups(x, k, packed.group)
    acts = (quantise_dot if packed.layout == "dot" else quantise_lut)(groups)
    sums = integer_sums(acts, packed).astype(np.float32)
    side = acts.scales if packed.layout == "dot" or packed.odd else acts.scales * np.float32(0.5)
    scales = packed.quantised.scales.astype(np.float32)
    out = np.zeros((len(groups), n), np.float32)
    with np.errstate(all="ignore"):
        for g in range(sums.shape[1]):
            product = (sums[:, g] * side[:, g, None]).astype(np.float64) * scales[None, :, g]
            out = (product + out).astype(np.float32)  # the product of two binary32 is exact in binary64
    return out


def error_bound(x: npt.ArrayLike, packed: Packed) -> npt.NDArray[np.float64]:
    """Bound (tokens, n) on how far rounding of the activations takes the product from that by ``packed.quantised``.

    dot: half a step of each activation, Σ |w| scale · step / 2. lut: an entry is off by half a step of the table
    and by half a step of each of its 4 activations, at most 1/2 + 4/512 steps, for each quad and each bit plane
    (Σ_i 2^i = 2^bits - 1), and once more for the constant of two's complement, all halved there. Binary32
    rounding comes on top.
    """
    n, k = packed.shape
    groups = as_groups(x, k, packed.group)
    weights = np.abs(packed.quantised.values).reshape(n, -1, packed.group)
    scales = packed.quantised.scales
    if packed.layout == "dot":
        step = quantise_dot(groups).scales.astype(np.float64)
        return np.asarray((step / 2) @ (weights.sum(-1) * scales).T)
    step = quantise_lut(groups).scales.astype(np.float64)
    planes = 2**packed.bits - 1
    entries = packed.group // QUAD * (planes if packed.odd else (planes + 1) / 2)
    return np.asarray((step * (0.5 + QUAD / 2 / 2**LUT_DROPPED) * entries) @ scales.T)
