"""A layer through the chain: INT8 activations, a scale per token, by INT8 or INT4 weights, a scale per output."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...kernels.lut import quantise
from ...kernels.sparse import chain_dot, compress, prune
from ..layer import Bytes, Floats, Input, Integers, Layer, Stream, every_pair, pack_rows, tiles, unpack_rows, untiled
from .cycles import stored_per_block


def stream(layer: Layer, p: Mapping[str, int]) -> Stream:
    """Quantise row by row, prune as the format says, compress; raises ``InputError`` on what does not fit."""
    (m, k), n = layer.activations.shape, layer.weights.shape[0]
    block, lanes, pack, bits = p["M"], p["LANES"], p["PACK"], p["WEIGHT_WIDTH"]
    acts = quantise(layer.activations, 8, k)
    weights = quantise(layer.weights, int(layer.format["weight"][3:]), k)
    sparsity = layer.format["sparsity"]
    kept, of = (1, 1) if sparsity == "dense" else (int(part) for part in sparsity.split(":"))
    stored = compress(prune(weights.values, kept, of), stored_per_block(sparsity, p), block)
    covered = lanes * block // stored.n  # inputs of a beat
    window = np.zeros((m // pack * (k // covered), pack, lanes * block // p["N_MIN"]), np.int64)
    window[..., :covered] = tiles(acts.values, pack, covered).reshape(-1, pack, covered)
    act, weight, beat = every_pair(m // pack, n, k // covered)
    pins = {
        "act_i": pack_rows(window.reshape(len(window), -1), 8)[act],
        "weight_i": pack_rows(tiles(stored.values, 1, lanes), bits)[weight],
        "index_i": pack_rows(tiles(stored.index, 1, lanes), block.bit_length() - 1)[weight],
        "sparsity_i": pack_rows(np.full((len(beat), 1), (block // stored.n).bit_length() - 1), 3),
        "last_i": pack_rows((beat == k // covered - 1)[:, None], 1),
    }

    def read(found: Mapping[str, Bytes]) -> tuple[tuple[Integers, ...], Floats]:
        sums, flags = (
            untiled(unpack_rows(found[pin], width, pack, signed), (m, n), pack, 1)
            for pin, width, signed in (("sum_o", p["ACC_WIDTH"], True), ("overflow_o", 1, False))
        )
        return (sums, flags), sums * acts.scales * weights.scales.T

    outputs = {"sum_o": pack * p["ACC_WIDTH"], "overflow_o": pack}
    expected = chain_dot(acts.values, stored, lanes, p["ACC_WIDTH"])
    return Stream((Input("valid_i", "ready_o", pins),), outputs, m // pack * n, expected, read)
