"""One attention call over chunks of prompts and decoding sequences together, as engines that chunk prefill run it.

The call of a step has sequences of two sorts: chunks of ``query`` new tokens over ``prefix`` cached ones, and
decoding sequences of one new token over ``context`` keys. A kernel for sequences of different lengths cuts all
of them into tiles of the same shape (:mod:`.attention`); what adds is their work, not their times:

    blocks  = units · (Σ tiles of chunks + decoding sequences), units: query heads, or KV heads where heads share tiles
    work    = (Σ steps · step + blocks · tile + empty · EMPTY_S) / multiprocessors
    compute = longest tile ≤ min(⌈blocks / multiprocessors⌉ · longest, work + longest − residual)
    memory  = (keys and values · reads + Q + O) / DRAM
    time    = launch + write + (compute⁴ + memory⁴)^¼

- Without packing, a decoding sequence takes as many tiles as it has *query* heads, each of one row: about group
  times the work of a pure decoding call, which packs the heads of a KV head into one tile and splits long keys.
  A mixed call does neither.
- ``empty``: the grid of a kernel that is not persistent has a block for every tile of the longest chunk and every
  sequence; those of short sequences start, find nothing and end.
- ``residual``: when the last tile starts, the others have E[l²] / 2E[l] still to run on average, l being the
  lengths of tiles (the mean residual life of a renewal process: D. R. Cox, Renewal Theory, 1962, section 5.2).
  Tiles start in the order of heads, and every head has its longest.
- ``reads``: the heads of one group read the same keys. Head h of a sequence starts T blocks (the tiles of one head)
  after the head before, and P run at once, so that the share min(1, T / P) of a head's reads is over when the next one
  comes. Until then W bytes have passed through L2: the keys of all sequences of one KV head. Taken as replaced at
  random, as hashed sets nearly are, each of C lines outlives W fills with (1 − 1/C)^W ≈ e^(−W/C):
  reads = 1 + (group − 1) · (1 − e^(−W / L2)) · min(1, T / P).

Constants are those of :mod:`.attention`; :data:`EMPTY_S` and the corner of the fourth power are of all cards. Measured
for FlashAttention 2 without multicast or persistence on two cards
(``python -m tokenfab.validation.vllm_kernels``); of FlashAttention 3 what its kernel facts say, unmeasured.
Left out: sliding windows, splits of long keys in mixed calls (FlashAttention 2 has none there).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, expm1

import numpy as np

from .attention import (
    FLASH3,
    Array,
    AttentionConstants,
    AttentionParts,
    Kernel,
    Size,
    attention_parts,
    causal_steps,
    tile_times,
    tiling,
    write_time,
)
from .card import Card

EMPTY_S = 0.4e-6
"""A block of threads that finds nothing to do, start to end. Fitted: 0.41 µs (RTX 4090), 0.35 µs (RTX PRO 6000)."""
CORNER = 4.0
"""Power mean of compute and memory: other sequences' tiles hide one's waiting better than its own (2, a call alone)."""


def mixed_time(
    query: Size, prefix: Size, sequences: Size, context: Size, context_max: Size | None,
    heads: int, kv_heads: int, head_dim: int, value_dim: int,
    card: Card, constants: AttentionConstants, kernel: Kernel = FLASH3, *, bits: float = 16,
) -> Array:  # fmt: skip
    """Seconds of one layer's attention, cache write included, over chunks of prompts and decoding sequences.

    ``query`` and ``prefix``, (…, chunks): new tokens of each chunk (0: no chunk there) and the tokens of its
    sequence that are in the cache already. ``sequences``, ``context``, ``context_max``, (…): decoding sequences,
    the keys each sees on average, its own included, and the most (``None``: all alike); 0 sequences for none.
    The last axis of ``query`` is summed over, all else broadcasts; the result is (…). ``heads`` query and
    ``kv_heads`` key heads of ``head_dim`` (values ``value_dim``) elements, ``bits`` per cached element.

    A call whose chunks all have one token is a decoding call. One with nothing at all takes its launch.
    """
    return mixed_parts(
        query, prefix, sequences, context, context_max, heads, kv_heads, head_dim, value_dim,
        card, constants, kernel, bits=bits,
    ).seconds  # fmt: skip


def mixed_parts(
    query: Size, prefix: Size, sequences: Size, context: Size, context_max: Size | None,
    heads: int, kv_heads: int, head_dim: int, value_dim: int,
    card: Card, constants: AttentionConstants, kernel: Kernel = FLASH3, *, bits: float = 16,
) -> AttentionParts:  # fmt: skip
    """Parts of :func:`mixed_time`."""
    q, c = (np.asarray(x, dtype=float) for x in np.broadcast_arrays(query, prefix))
    n, kv = np.asarray(sequences, dtype=float), np.asarray(context, dtype=float)
    kv_max = kv if context_max is None else np.asarray(context_max, dtype=float)
    alone = q == 1
    count = n + alone.sum(axis=-1)
    seen = np.where(alone, c + 1, 0.0)
    mean = (n * kv + seen.sum(axis=-1)) / np.maximum(count, 1.0)
    most = np.maximum(np.where(n > 0, kv_max, 0.0), seen.max(axis=-1))
    decode = attention_parts(
        np.maximum(count, 1.0), 1.0, np.maximum(mean, 1.0), heads, kv_heads, head_dim, value_dim,
        card, constants, kernel, kv_max=np.maximum(most, 1.0), bits=bits,
    )  # fmt: skip
    both = _mixed(q, c, n, kv, kv_max, (heads, kv_heads, head_dim, value_dim), card, constants, kernel, bits)
    chunked, nothing = q.max(axis=-1) > 1, count + q.max(axis=-1) == 0

    def chosen(of_both: Array | float, of_decode: Array | float) -> Array:
        return np.where(nothing, 0.0, np.where(chunked, of_both, of_decode))

    return AttentionParts(
        constants.launch_s, chosen(both.write, decode.write), chosen(both.compute, decode.compute),
        chosen(both.memory, decode.memory), chosen(both.rest, decode.rest), np.where(chunked, CORNER, 2.0),
    )  # fmt: skip


def _mixed(
    q: Array, c: Array, n: Array, kv: Array, kv_max: Array, shape: tuple[int, int, int, int],
    card: Card, constants: AttentionConstants, kernel: Kernel, bits: float,
) -> AttentionParts:  # fmt: skip
    """Where some chunk has more than one token; elsewhere numbers that mean nothing."""
    h, hk, d, dv = shape
    width, head, there = bits / 8, d + dv, q > 0
    longest_query = np.maximum(q.max(axis=-1), 2.0)
    group = np.asarray(float(h / hk))
    rows, keys, pack = tiling(kernel, longest_query, group, np.asarray(float(max(d, dv))), bits)
    share = np.where(pack, group, 1.0)
    step, tile = tile_times(rows, keys, head, width, card, constants)
    rows_, keys_, share_ = (np.asarray(x)[..., None] for x in (rows, keys, share))

    seen = q + c
    tiles = np.ceil(q * share_ / rows_)
    steps = np.where(there, causal_steps(np.maximum(tiles, 1.0), rows_ / share_, keys_, seen, q, None), 0.0)
    last = np.where(there, np.ceil(seen / keys_), 0.0)
    first = np.maximum(2 * steps / np.maximum(tiles, 1.0) - last, 0.0)  # of a series that ends with the last
    decode_steps = np.where(kv_max > kv, kv / keys + 0.5, np.ceil(kv / keys))

    # Lengths of tiles: sum and sum of squares, chunk by chunk an even series from its first to its last.
    each = steps / np.maximum(tiles, 1.0)
    length = each * step[..., None] + tile[..., None]
    spread = ((last - first) * step[..., None]) ** 2 / 12 * (tiles > 1)
    decode_length = decode_steps * step + tile
    per_unit = tiles.sum(axis=-1) + n
    total = (tiles * length).sum(axis=-1) + n * decode_length
    squares = (tiles * (length**2 + spread)).sum(axis=-1) + n * decode_length**2
    residual = squares / np.maximum(2 * total, 1e-30)
    longest = np.maximum(last.max(axis=-1), np.where(n > 0, np.ceil(kv_max / keys), 0.0)) * step + tile

    units = h / share
    empty = 0.0
    if not kernel.persistent:
        empty = np.maximum(tiles.max(axis=-1), 1.0) * (there.sum(axis=-1) + n) - per_unit
    work = units * (total + empty * EMPTY_S) / card.sms
    waves = np.ceil(units * per_unit / card.sms - 1e-9)
    compute = np.maximum(longest, np.minimum(waves * longest, work + np.maximum(longest - residual, 0.0)))

    tokens = q.sum(axis=-1) + n
    kv_bytes = (np.where(there, seen, 0.0).sum(axis=-1) + n * kv) * hk * head * width
    qo_bytes = tokens * h * (d * width + 2 * dv)
    reads: Array | float = 1.0
    if card.l2_bytes:
        missed = -np.expm1(-kv_bytes / (hk * card.l2_bytes))
        reads = 1 + (group / share - 1) * missed * np.minimum(per_unit / card.sms, 1.0)
    dram = constants.dram_share * card.dram_bytes_s
    loads = (kv_bytes * group / share + qo_bytes) / card.l2_bytes_s
    memory = np.maximum((kv_bytes * reads + qo_bytes) / dram, loads)
    written = write_time(tokens, hk * head, card, constants, bits)
    return AttentionParts(constants.launch_s, written, compute, memory, np.zeros(()))


BLOCK = 512
"""Lengths whose tiles are looked up at once."""


class MixedCall:
    """:func:`mixed_parts` without the cache write, of plain numbers: what a simulator asks once per iteration.

    One layer's kernel; ``heads`` … ``bits`` as there. Tests hold it equal to the arrays' formula.
    """

    def __init__(
        self, heads: int, kv_heads: int, head_dim: int, value_dim: int, card: Card, constants: AttentionConstants,
        kernel: Kernel, bits: float,
    ) -> None:  # fmt: skip
        self._group, self._heads, self._kv_heads = heads / kv_heads, heads, kv_heads
        self._head, self._width = head_dim + value_dim, bits / 8
        self._qo_row = heads * (head_dim * bits / 8 + 2 * value_dim)
        self._wide = np.asarray(float(max(head_dim, value_dim)))
        self._card, self._constants, self._kernel, self._bits = card, constants, kernel, bits
        self._key_bytes = self._head * self._width
        self._dram_s = 1 / (constants.dram_share * card.dram_bytes_s)
        self._tilings: dict[int, tuple[float, float, float, float, float]] = {}

    def _tiling(self, longest: int) -> tuple[float, float, float, float, float]:
        """Rows and keys of a tile, heads that share it, seconds of a step and of a tile's ends."""
        found = self._tilings.get(longest)
        if found is None:
            first = longest - longest % BLOCK
            queries = np.arange(first, first + BLOCK, dtype=float)
            group = np.full(BLOCK, self._group)
            rows, keys, pack = tiling(self._kernel, np.maximum(queries, 1.0), group, self._wide, self._bits)
            step, tile = tile_times(rows, keys, self._head, self._width, self._card, self._constants)
            share = np.where(pack, group, 1.0)
            columns = (np.broadcast_to(x, BLOCK).tolist() for x in (rows, keys, share, step, tile))
            self._tilings.update(zip(range(first, first + BLOCK), zip(*columns, strict=True), strict=True))
            found = self._tilings[longest]
        return found

    def seconds(self, chunks: Sequence[tuple[int, int]], n: int, kv: float, kv_max: float) -> float:
        """Of ``chunks`` (new tokens, cached tokens), one of which has more than one token, and ``n`` decoding
        sequences that see ``kv`` keys on average and ``kv_max`` at most; the launch included."""
        rows, keys, share, step, tile = self._tiling(chunks[0][0] if len(chunks) == 1 else max(chunks)[0])
        decode_steps = kv / keys + 0.5 if kv_max > kv else ceil(kv / keys)
        decode_length = decode_steps * step + tile
        longest_steps = ceil(kv_max / keys) if n else 0
        total, squares, per_unit, most, held, tokens = n * decode_length, n * decode_length**2, n, 1.0, n * kv, n
        span = rows / share  # queries of a tile
        ragged = 0.5 * (1 - min(span / keys, 1.0))
        for q, c in chunks:
            seen, tiles = q + c, ceil(q * share / rows)
            last = ceil(seen / keys)
            held, tokens, per_unit = held + seen, tokens + q, per_unit + tiles
            if last > longest_steps:
                longest_steps = last
            if tiles == 1:
                length = last * step + tile
                total += length
                squares += length**2
                continue
            full = tiles - 1
            series = full * c + span * full * tiles / 2
            steps = max(series / keys + full * ragged + last, tiles)
            each = steps / tiles
            length = each * step + tile
            rise = (last - max(2 * each - last, 0.0)) * step
            total += tiles * length
            squares += tiles * (length**2 + rise**2 / 12)
            if tiles > most:
                most = tiles
        sms, l2_bytes, l2_bytes_s = self._card.sms, self._card.l2_bytes, self._card.l2_bytes_s
        residual = squares / (2 * total)
        longest = longest_steps * step + tile
        units = self._heads / share
        empty = 0.0 if self._kernel.persistent else most * (len(chunks) + n) - per_unit
        work = units * (total + empty * EMPTY_S) / sms
        waves = ceil(units * per_unit / sms - 1e-9)
        compute = max(longest, min(waves * longest, work + max(longest - residual, 0.0)))
        of_head, qo_bytes = held * self._key_bytes, tokens * self._qo_row
        kv_bytes, repeats, reads = of_head * self._kv_heads, self._group / share, 1.0
        if l2_bytes and repeats > 1:
            reads = 1 - (repeats - 1) * expm1(-of_head / l2_bytes) * min(per_unit / sms, 1.0)
        loads = (kv_bytes * repeats + qo_bytes) / l2_bytes_s
        memory = max((kv_bytes * reads + qo_bytes) * self._dram_s, loads)
        return self._constants.launch_s + float((compute**CORNER + memory**CORNER) ** (1 / CORNER))
