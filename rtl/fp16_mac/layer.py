"""A layer through the array: activations and weights rounded to binary16, nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...kernels.fp16 import mac_dot
from ..layer import Bytes, Floats, Input, Integers, Layer, Stream, every_pair, pack_rows, tiles, unpack_rows, untiled


def stream(layer: Layer, p: Mapping[str, int]) -> Stream:
    """Cut into beats of ROWS and COLS by LANES; raises ``InputError`` on what is not whole tiles."""
    (m, k), n = layer.activations.shape, layer.weights.shape[0]
    rows, cols, lanes = p["ROWS"], p["COLS"], p["LANES"]
    acts, weights = (x.astype(np.float16).view(np.uint16).astype(np.int64) for x in (layer.activations, layer.weights))
    act, weight, beat = every_pair(m // rows, n // cols, k // lanes)
    pins = {
        "act_i": pack_rows(tiles(acts, rows, lanes), 16)[act],
        "weight_i": pack_rows(tiles(weights, cols, lanes), 16)[weight],
        "last_i": pack_rows((beat == k // lanes - 1)[:, None], 1),
    }

    def read(found: Mapping[str, Bytes]) -> tuple[tuple[Integers, ...], Floats]:
        sums = untiled(unpack_rows(found["sum_o"], 32, cols, False), (m, n), rows, cols)
        return (sums,), sums.astype(np.uint32).view(np.float32).astype(np.float64)

    expected = mac_dot(acts, weights, lanes=lanes, guard=p["GUARD"]).astype(np.int64)
    return Stream((Input("valid_i", "ready_o", pins),), {"sum_o": cols * 32}, m * n // cols, (expected,), read)
