"""Element-wise kernels of real layers: what is read, by hand, and the interval on measured ones."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest

from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.validation import vector

OPERATORS = ("input_layernorm", "post_attention_layernorm", "attn_rope", "mlp_act", "add")


def write(path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def test_bytes_by_hand_and_times_of_zero_are_counted(tmp_path) -> None:
    """10 tokens of 64 elements, 8 heads of which 2 hold keys, inner size 160, on 2 devices, fp16."""
    sizes = {
        "num_tokens": 10, "n_embd": 64, "n_expanded_embd": 160, "num_tensor_parallel_workers": 2,
        "n_kv_head": 2, "n_head": 8,
    }  # fmt: skip
    times = {f"time_stats.{name}.median": 0.001 * (i + 1) for i, name in enumerate(OPERATORS)}
    times["time_stats.post_attention_layernorm.median"] = 0
    write(tmp_path / "vidur/profiling/compute/a100/maker/model/mlp.csv.gz", [sizes | times])
    rows = vector.read_vector(tmp_path)
    assert dict(zip(rows.name, rows.bytes, strict=True)) == {
        "input_layernorm": 4 * 640, "attn_rope": 2 * 2 * 640 * 1.25 / 2, "mlp_act": 2 * 3 * 1600 / 2,
        "add": 6 * 640,
    }  # fmt: skip
    assert rows.seconds == pytest.approx([1e-6, 3e-6, 4e-6, 5e-6])
    assert rows.dropped == 1
    device = load_device(vector.DEVICE)
    stream = 6 * 640 / (device.dram.bandwidth.value * device.model.memory_efficiency.value)
    assert vector.predict(rows)[-1] == pytest.approx(device.model.launch.value + stream)
    with pytest.raises(InputError, match="no \\*/\\*/mlp"):
        vector.read_vector(tmp_path / "elsewhere")


def test_the_catalogues_interval_is_that_of_the_even_rows_and_holds_the_odd(truth) -> None:
    rows = vector.read_vector(truth)
    even, odd = rows.half(odd=False), rows.half(odd=True)
    held = load_device(vector.DEVICE).intervals["vector"]
    found = np.quantile(even.seconds / vector.predict(even), [0.05, 0.95])
    assert found == pytest.approx([held.low.value, held.high.value], abs=0.002)
    ratio = odd.seconds / vector.predict(odd)
    assert 0.85 <= np.mean((ratio >= held.low.value) & (ratio <= held.high.value)) <= 0.95
    assert np.mean(np.abs(1 / ratio - 1)) == pytest.approx(0.374, abs=0.003)
