"""A layer through the array: FP16 activations by weights in groups of 128, each with its scale and special value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import InputError
from ...kernels.bitserial import BIAS, Widths, bitserial_dot, quantise
from ..layer import Bytes, Floats, Input, Integers, Layer, Stream, every_pair, pack_rows, tiles, unpack_rows, untiled

FORMATS = ("int4", "int5", "int6", "int8", "fp3", "fp4")
"""Weight formats in the order of ``format_i``."""
GROUP = 128


def stream(layer: Layer, p: Mapping[str, int]) -> Stream:
    """Quantise, and cut into beats of ROWS and COLS by LANES; raises ``InputError`` on what is not whole groups."""
    (m, k), n = layer.activations.shape, layer.weights.shape[0]
    if k % GROUP:
        raise InputError(f"{k} inputs are not whole groups of {GROUP}")
    rows, cols, lanes = p["ROWS"], p["COLS"], p["LANES"]
    acts = layer.activations.astype(np.float16).view(np.uint16).astype(np.int64)
    weights = quantise(layer.weights, layer.format["weight"], GROUP)
    act, weight, beat = every_pair(m // rows, n // cols, k // lanes)
    group = weight // (GROUP // lanes)
    pins = {
        "act_i": pack_rows(tiles(acts, rows, lanes), 16)[act],
        "int8_i": pack_rows(np.zeros((len(beat), 1)), 1),
        "weight_i": pack_rows(tiles(weights.codes, cols, lanes), 8)[weight],
        "format_i": pack_rows(np.full((len(beat), 1), FORMATS.index(weights.format)), 3),
        "special_i": pack_rows(tiles(weights.special, cols, 1), 2)[group],
        "scale_i": pack_rows(tiles(weights.scale, cols, 1), 8)[group],
        "group_i": pack_rows(((beat + 1) % (GROUP // lanes) == 0)[:, None], 1),
        "last_i": pack_rows((beat == k // lanes - 1)[:, None], 1),
    }
    widths = {"sum_o": p["SUM_WIDTH"], "exponent_o": 6, "overflow_o": 1}

    def read(found: Mapping[str, Bytes]) -> tuple[tuple[Integers, ...], Floats]:
        sums, exponents, flags = (
            untiled(unpack_rows(found[pin], width, cols, pin == "sum_o"), (m, n), rows, cols)
            for pin, width in widths.items()
        )
        invalid = untiled(np.repeat(unpack_rows(found["invalid_o"], 1, 1, False), cols, axis=1), (m, n), rows, cols)
        values = np.ldexp(sums.astype(np.float64), exponents - BIAS - p["GUARD"] - p["EXTRA"]) * weights.step
        return (sums, exponents, flags, invalid), values

    outputs = {pin: cols * width for pin, width in widths.items()} | {"invalid_o": 1}
    arithmetic = Widths(lanes, p["GUARD"], p["EXTRA"], p["ACC_WIDTH"], p["SUM_WIDTH"])
    sums = bitserial_dot(acts, weights, widths=arithmetic)
    expected = (sums.mantissa, sums.exponent, sums.overflow, np.repeat(sums.invalid[:, None], n, axis=1))
    return Stream((Input("valid_i", "ready_o", pins),), outputs, m * n // cols, expected, read)
