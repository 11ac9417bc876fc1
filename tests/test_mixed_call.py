"""The attention of a mixed iteration in plain numbers against the arrays' formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.hw.attention import attention_kernels
from tokenfab.hw.attention_mixed import MixedCall, mixed_parts
from tokenfab.hw.card import card_of
from tokenfab.hw.devices import load_device

SHAPES = [(32, 8, 128, 128), (32, 32, 128, 128), (64, 8, 64, 64), (8, 1, 256, 256)]


@settings(max_examples=150, deadline=None)
@given(
    device=st.sampled_from(["a100-80g-sxm", "h100-sxm", "rtx-4090", "rtx-pro-6000"]),
    shape=st.sampled_from(SHAPES),
    chunks=st.lists(st.tuples(st.integers(2, 4096), st.integers(0, 8192)), min_size=1, max_size=4),
    n=st.integers(0, 256),
    kv=st.floats(1, 8192),
    longer=st.sampled_from([0.0, 10.0, 3000.0]),
)
def test_plain_numbers_are_the_arrays_formula(
    device: str, shape: tuple[int, int, int, int], chunks: list[tuple[int, int]], n: int, kv: float, longer: float
) -> None:
    held = load_device(device)
    constants, kernel = attention_kernels(held)
    card = card_of(held)
    parts = mixed_parts(
        np.array([q for q, _ in chunks]), np.array([c for _, c in chunks]), n, kv, kv + longer, *shape, card, constants,
        kernel,
    )  # fmt: skip
    expected = float(parts.seconds - parts.write)
    found = MixedCall(*shape, card, constants, kernel, 16.0).seconds(chunks, n, kv, kv + longer)
    assert found == pytest.approx(expected, rel=1e-9)
