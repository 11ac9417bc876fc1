"""Attention over chunks and decoding sequences at once: hand cases, limits, laws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.hw.attention import (
    EXPONENTIALS_PER_CLOCK,
    FLASH2,
    FLASH3,
    SOFTMAX_SHARE,
    AttentionConstants,
    decode_time,
    prefill_time,
)
from tokenfab.hw.attention_mixed import CORNER, EMPTY_S, mixed_parts, mixed_time
from tokenfab.hw.card import Card

CARD = Card(sms=100, clock_hz=1e9, matrix_flops=1e14, dram_bytes_s=1e12, l2_bytes=4e7, l2_bytes_s=np.inf)
FREE = AttentionConstants(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
SHAPE = (32, 8, 128, 128)
SIZES = st.integers(0, 2048)
STEP = 64 * 128 * (2 * 256 / 1e12 + SOFTMAX_SHARE / (EXPONENTIALS_PER_CLOCK * 1e9))
"""Of 64 rows and 128 keys on one multiprocessor: slower than loading 128 keys and values through its port."""
TILE = 256 * (128 + 64) * 2 / 64e9


def time(query, prefix, sequences, context, longest=None, card=CARD, kernel=FLASH2, constants=FREE):
    return mixed_time(query, prefix, sequences, context, longest, *SHAPE, card, constants, kernel)


def test_by_hand_one_chunk_of_two_tiles_and_three_sequences() -> None:
    """32 heads × (2 + 3) tiles on 100 multiprocessors, in two waves; each walks one step, and 3 blocks find nothing."""
    parts = mixed_parts([128], [0], 3, 128, None, *SHAPE, CARD, FREE, FLASH2)
    length = STEP + TILE
    work = (160 * length + 32 * (2 * 4 - 5) * EMPTY_S) / 100
    assert float(parts.compute) == pytest.approx(min(2 * length, work + length / 2))
    keys = 128 + 3 * 128
    reads = 1 + 3 * (1 - math.exp(-keys * 256 * 2 / 4e7)) * 5 / 100  # 5 of 100 multiprocessors a head
    moved = keys * 8 * 256 * 2 * reads + 131 * 32 * (128 * 2 + 2 * 128)
    assert float(parts.memory) == pytest.approx(moved / 1e12)
    whole = parts.write + (parts.compute**CORNER + parts.memory**CORNER) ** (1 / CORNER)
    assert float(parts.seconds) == pytest.approx(float(whole))


def test_keys_of_a_group_are_read_again_as_l2_forgets_them_and_heads_do_not_run_together() -> None:
    """120 sequences fill more than the 100 multiprocessors per head: four heads read up to four times the keys."""
    for l2_fills, survive in ((0.1, 0.904837), (1.0, 0.367879), (10.0, 0.0000454)):  # e^-fills
        kv = l2_fills * 4e7 / (256 * 2) / 120  # of all sequences, one KV head
        queries = 136 * 32 * 512 / 1e12
        once = l2_fills * 4e7 * 8 / 1e12
        parts = mixed_parts([16], [0], 120, kv, None, *SHAPE, CARD, FREE, FLASH2)
        assert float(parts.memory) - queries == pytest.approx((4 - 3 * survive) * once, rel=0.02)
        packed = mixed_parts([16], [0], 120, kv, None, *SHAPE, CARD, FREE, FLASH3)  # a group shares its tiles
        assert float(packed.memory) - queries == pytest.approx(once, rel=0.02)
        few = mixed_parts([16], [0], 24, 5 * kv, None, *SHAPE, CARD, FREE, FLASH2)  # a quarter of a wave per head
        assert float(few.memory) - 40 * 32 * 512 / 1e12 == pytest.approx((1.75 - 0.75 * survive) * once, rel=0.02)


def test_without_chunks_it_is_a_decoding_call_and_chunks_of_one_token_decode_too() -> None:
    n, kv = np.array([1, 8, 100]), np.array([128, 700, 4000])
    alone = decode_time(n, kv, *SHAPE, CARD, FREE, FLASH2)
    assert mixed_time(np.zeros((3, 1)), 0, n, kv, None, *SHAPE, CARD, FREE, FLASH2) == pytest.approx(alone)
    skewed = decode_time(n, kv, *SHAPE, CARD, FREE, FLASH2, kv_max=2 * kv)
    assert mixed_time(np.zeros((3, 1)), 0, n, kv, 2 * kv, *SHAPE, CARD, FREE, FLASH2) == pytest.approx(skewed)
    three = decode_time(3, (99 + 1 + 2 * 40) / 3, *SHAPE, CARD, FREE, FLASH2, kv_max=100)
    assert float(time([1, 0], [99, 5], 2, 40)) == pytest.approx(float(three))


@pytest.mark.parametrize("kernel", [FLASH2, FLASH3])
def test_nothing_to_do_takes_the_launch(kernel) -> None:
    assert float(time([0, 0], [7, 0], 0, 0, kernel=kernel, constants=replace(FREE, launch_s=3e-6))) == 3e-6


@pytest.mark.parametrize("query", [256, 1024, 4096])
def test_one_chunk_alone_is_near_a_prefill(query) -> None:
    """The tail differs (mean residual life, or half the longest tile), and the corner."""
    alone = prefill_time(1, query, query + 512, *SHAPE, CARD, FREE, FLASH2)
    assert float(time([query], [512], 0, 0)) == pytest.approx(float(alone), rel=0.1)


def test_a_mixed_call_costs_a_decoding_sequence_more_than_a_call_of_its_own() -> None:
    """Query heads do not share tiles there: group times the work."""
    added = time([64], [0], 100, 1000) - time([64], [0], 0, 0)
    assert float(added) > 2 * float(decode_time(100, 1000, *SHAPE, CARD, FREE, FLASH2))


def test_arrays_broadcast_and_equal_single_calls() -> None:
    query = np.array([[512, 0], [64, 100]])
    both = time(query, [0, 300], np.array([[3], [40]]), 777.0)
    assert both.shape == (2, 2)
    assert both[1, 0] == time([512, 0], [0, 300], 40, 777.0)
    assert both[0, 1] == time([64, 100], [0, 300], 3, 777.0)


@given(SIZES, SIZES, st.integers(0, 200), st.integers(1, 4000), st.sampled_from([FLASH2, FLASH3]))
def test_never_below_the_arithmetic_or_the_bytes(query, prefix, n, context, kernel) -> None:
    pairs = query * (prefix + (query + 1) / 2) + n * context
    moved = ((query + prefix) * (query > 0) + n * context) * 8 * 256 * 2
    bound = max(4 * 32 * 128 * pairs / 1e14, moved / 1e12)
    assert float(time([query], [prefix], n, context, kernel=kernel)) >= bound * (1 - 1e-9)


@given(st.integers(2, 2048), SIZES, st.integers(1, 200), st.integers(1, 4000), st.integers(1, 500))
def test_longer_contexts_and_slower_memory_never_make_it_faster(query, prefix, n, context, more) -> None:
    once = float(time([query], [prefix], n, context))
    assert float(time([query], [prefix], n, context + more)) >= once * (1 - 1e-9)
    assert float(time([query], [prefix], n, context, card=replace(CARD, dram_bytes_s=5e11))) >= once * (1 - 1e-9)
    assert float(time([query], [prefix], n, context, card=replace(CARD, matrix_flops=5e13))) >= once * (1 - 1e-9)
