"""Kernels of real layers: what is read, by hand; element-wise kernels by hand; errors on measured ones."""

from __future__ import annotations

import csv
import gzip
from dataclasses import astuple

import numpy as np
import pytest

from tokenfab.errors import InputError
from tokenfab.hw.card import Card
from tokenfab.hw.devices import load_device
from tokenfab.hw.elementwise import BOUNDS, ElementwiseConstants, elementwise_constants, elementwise_time
from tokenfab.validation import layers

CARD = Card(sms=100, clock_hz=1e9, matrix_flops=1e14, dram_bytes_s=1e12, l2_bytes=4e7, l2_bytes_s=4e12)
ROUND = ElementwiseConstants(1e-6, 2e-7, 1.0, 0.8, 0.5, 0.4)


def test_a_wave_of_rows_by_hand() -> None:
    """200 blocks of 1000 bytes at 1 GB/s each: 1 µs beyond their start of 0.2 µs; the 201st waits for them."""
    assert elementwise_time("activation", 200, 1000, CARD, ROUND) == pytest.approx(1e-6 + 1.2e-6)
    assert elementwise_time("activation", 201, 1000, CARD, ROUND) == pytest.approx(1e-6 + 2.4e-6)
    assert elementwise_time("norm", 200, 1000, CARD, ROUND) == pytest.approx(1e-6 + 1.7e-6)  # reads its input twice


def test_streams_by_hand() -> None:
    """A gigabyte at a share of 1 TB/s."""
    row = 1e9 / 200
    slow = ElementwiseConstants(1e-6, 2e-7, 1e4, 0.8, 0.5, 0.4)
    for kind, share in (("elementwise", 0.8), ("activation", 0.5), ("rope", 0.4), ("norm", 0.5 / 1.5), ("copy", 0.8)):
        assert elementwise_time(kind, 200, row, CARD, slow) == pytest.approx(1e-6 + 1e9 / (share * 1e12)), kind


def write(path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def test_sizes_by_hand_and_times_of_zero_are_counted(tmp_path) -> None:
    """10 tokens of 64 elements, 8 heads of which 2 hold keys, inner size 160, on 2 devices, fp16."""
    sizes = {
        "num_tokens": 10, "n_embd": 64, "n_expanded_embd": 160, "num_tensor_parallel_workers": 2,
        "n_kv_head": 2, "n_head": 8,
    }  # fmt: skip
    times = {f"time_stats.{name}.median": 0.001 * (i + 1) for i, name in enumerate(layers.NAMES)}
    whole, part = sizes | times, sizes | times | {"time_stats.post_attention_layernorm.median": 0}
    write(tmp_path / "vidur/profiling/compute/a100/maker/model/mlp.csv.gz", [whole, part])
    rows = layers.read_layers(tmp_path)
    first = rows.half(odd=False)
    assert {name: (n, k) for name, n, k in zip(first.name, first.n, first.k, strict=True)} == {
        "attn_pre_proj": (64 * 1.5 / 2, 64), "attn_post_proj": (64, 32), "mlp_up_proj": (160, 64),
        "mlp_down_proj": (64, 80), "input_layernorm": (256, 0), "post_attention_layernorm": (256, 0),
        "attn_rope": (2 * 64 * 1.25, 0), "mlp_act": (3 * 160, 0), "add": (6 * 64, 0),
    }  # fmt: skip
    assert first.seconds == pytest.approx([1e-6 * (i + 1) for i in range(9)])
    assert rows.dropped == 1
    total, place = layers.layer_sums(rows, rows.seconds)
    assert total == pytest.approx([45e-6])  # the second row lacks a kernel
    assert (place >= 0).tolist() == [True] * 9 + [False] * 8
    flat = elementwise_constants(load_device(layers.DEVICE))
    assert layers.predict(first)[-1] == pytest.approx(elementwise_time("elementwise", 10, 384, layers.CARD, flat))
    with pytest.raises(InputError, match="no \\*/\\*/mlp"):
        layers.read_layers(tmp_path / "elsewhere")


def test_constants_lie_within_their_bounds() -> None:
    held = elementwise_constants(load_device(layers.DEVICE))
    assert all(low <= getattr(held, name) <= high for name, (low, high, _) in BOUNDS.items())
    assert (held.cache_share, held.cache_speedup) == (0, 1)  # it says nothing of L2


@pytest.mark.slow
def test_the_catalogues_constants_are_those_that_the_fit_finds(truth) -> None:
    even = layers.read_layers(truth).half(odd=False)
    held = elementwise_constants(load_device(layers.DEVICE))
    assert astuple(layers.fit(even)) == pytest.approx(astuple(held), rel=0.02)
    assert layers.fit_sustained(even) == pytest.approx(0.765, abs=0.002)


def test_the_catalogues_interval_is_that_of_the_even_rows_and_holds_the_odd(truth) -> None:
    rows = layers.read_layers(truth)
    rows = rows.pick(~rows.linear)
    even, odd = rows.half(odd=False), rows.half(odd=True)
    held = load_device(layers.DEVICE).intervals["vector"]
    found = np.quantile(even.seconds / layers.predict(even), [0.05, 0.95])
    assert found == pytest.approx([held.low.value, held.high.value], abs=0.002)
    ratio = odd.seconds / layers.predict(odd)
    assert 0.85 <= np.mean((ratio >= held.low.value) & (ratio <= held.high.value)) <= 0.95
    assert np.mean(np.abs(1 / ratio - 1)) == pytest.approx(0.096, abs=0.002)
