"""A layer through the unit: INT8 activations, a scale per token, or binary16, by weights with a scale per output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...kernels.lut import LutFormat, Tile, as_floats, codes, lut_matmul, quantise
from ..layer import Bytes, Floats, Input, Layer, Stream, every_pair, pack_rows, tiles, unpack_rows, untiled
from .cycles import weight_bits


def stream(layer: Layer, p: Mapping[str, int]) -> Stream:
    """Quantise, and cut into groups of K and planes of bits; raises ``InputError`` on what is not whole tiles."""
    (m, k), n = layer.activations.shape, layer.weights.shape[0]
    form = LutFormat(p["K"], p["ACT_WIDTH"], p["ACC_WIDTH"], p["GUARD"], p["TABLE_WIDTH"], bool(p["HALF"]))
    bits = weight_bits(layer.format["weight"], p)
    weights = quantise(layer.weights, bits, k)
    integers = quantise(layer.activations, min(p["ACT_WIDTH"], 8), k)
    acts: npt.NDArray[Any] = layer.activations if form.is_float else integers.values
    scales = 1.0 if form.is_float else integers.scales
    words = acts.astype(np.float16).view(np.uint16) if form.is_float else acts
    count, lefts = k // p["K"], n // p["N"]  # groups of a tile, tiles beside one another

    act, _, beat = every_pair(m // p["M"], lefts, count)
    groups = {
        "act_i": pack_rows(tiles(words, p["M"], p["K"]), p["ACT_WIDTH"])[act],
        "bits_i": pack_rows(np.full((len(beat), 1), bits - 1), 3),
        "odd_i": pack_rows(np.full((len(beat), 1), weights.odd), 1),
        "last_i": pack_rows((beat == count - 1)[:, None], 1),
    }
    pieces = tiles(weights.values, p["N"], p["K"]).reshape(-1, p["K"])  # tile, group, column
    planes = codes(pieces, bits, weights.odd).reshape(bits, -1, p["N"]).swapaxes(0, 1).reshape(-1, p["N"])
    taken = np.tile(pack_rows(planes, p["K"]), (m // p["M"], 1))
    width = (16 if form.half else 32) if form.is_float else p["ACC_WIDTH"]
    at_once = p["COLUMNS"]

    def read(found: Mapping[str, Bytes]) -> tuple[tuple[npt.NDArray[Any], ...], Floats]:
        def matrix(pin: str, width: int, signed: bool = False) -> npt.NDArray[np.int64]:
            columns = unpack_rows(found[pin], width, p["M"] * at_once, signed).reshape(-1, p["M"])  # a column each
            return untiled(columns, (m, n), p["M"], 1)

        sums, flags = matrix("sum_o", width, not form.is_float), matrix("overflow_o", 1)
        columns = np.repeat(unpack_rows(found["invalid_o"], 1, p["M"], False), at_once, axis=0)
        invalid = untiled(columns, (m, n), p["M"], 1)
        told = as_floats(Tile(sums, flags != 0, invalid[:, 0] != 0), form) if form.is_float else sums
        return (sums, flags, invalid), np.asarray(told, np.float64) * scales * weights.scales.T

    tile = lut_matmul(acts, weights.values, bits, form, weights.odd)
    expected = (tile.results, tile.overflow, np.repeat(tile.invalid[:, None], n, axis=1))
    inputs = (
        Input("act_valid_i", "act_ready_o", groups),
        Input("weight_valid_i", "weight_ready_o", {"weight_i": taken}),
    )
    outputs = {"sum_o": p["M"] * at_once * width, "overflow_o": p["M"] * at_once, "invalid_o": p["M"]}
    return Stream(inputs, outputs, m // p["M"] * (n // at_once), expected, read)
