"""A layer through the tile: activations and weights in outlier-victim pairs, each with one scale and one bias."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...kernels.ovp import FORMATS, fit, tile_matmul
from ...kernels.ovp import pack as pack_codes
from ..layer import Bytes, Floats, Input, Integers, Layer, Stream, every_pair, pack_rows, tiles, unpack_rows, untiled


def stream(layer: Layer, p: Mapping[str, int]) -> Stream:
    """Quantise, and cut into pairs of every row and column; raises ``InputError`` on what is not whole tiles."""
    (m, k), n = layer.activations.shape, layer.weights.shape[0]
    form = FORMATS[layer.format["weight"]]
    rows, cols = (p[side] * 4 // form.bits for side in ("ROWS", "COLS"))
    acts, weights = fit(layer.activations, form), fit(layer.weights, form)
    act, weight, beat = every_pair(m // rows, n // cols, k // 2)
    act_bytes, weight_bytes = (pack_codes(part.codes, form) for part in (acts, weights))
    pins = {
        "act_i": pack_rows(tiles(act_bytes, rows, form.bits // 4), 8)[act],
        "weight_i": pack_rows(tiles(weight_bytes, cols, form.bits // 4), 8)[weight],
        "act_bias_i": pack_rows(np.full((len(beat), 1), acts.bias), 4),
        "weight_bias_i": pack_rows(np.full((len(beat), 1), weights.bias), 4),
        "wide_i": pack_rows(np.full((len(beat), 1), form.bits == 8), 1),
        "last_i": pack_rows((beat == k // 2 - 1)[:, None], 1),
    }

    def read(found: Mapping[str, Bytes]) -> tuple[tuple[Integers, ...], Floats]:
        step = p["COLS"] // cols  # an 8-bit result is in every second word
        sums, flags = (
            untiled(unpack_rows(found[pin], width, p["COLS"], signed)[:, ::step], (m, n), rows, cols)
            for pin, width, signed in (("sum_o", p["ACC_WIDTH"], True), ("overflow_o", 1, False))
        )
        last = np.repeat(unpack_rows(found["last_o"], 1, 1, False), cols, axis=1)
        return (sums, flags, untiled(last, (m, n), rows, cols)), sums.astype(np.float64) * acts.scale * weights.scale

    outputs = {"sum_o": p["COLS"] * p["ACC_WIDTH"], "overflow_o": p["COLS"], "last_o": 1}
    last = np.broadcast_to((np.arange(m) % rows == rows - 1)[:, None], (m, n))
    expected = (*tile_matmul(acts.codes, weights.codes, form, (acts.bias, weights.bias), p["ACC_WIDTH"]), last)
    return Stream((Input("valid_i", "ready_o", pins),), outputs, m * n // cols, expected, read)
