"""Every preset: its trace's form, its file, and its shares on 2, 4 and 8 devices."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import jsonschema
import pytest

from tokenfab.models.config import load_config, model_names
from tokenfab.workloads.capture import capture
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.parallel import tensor_parallel
from tokenfab.workloads.trace import Operator, Trace

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "trace.schema.json"
POINT = (3, 17, 100)
SPLIT = ("matmul", "experts", "attention", "activation")


@cache
def trace_of(name: str) -> Trace:
    return capture(name)


def flops(trace: Trace, *kinds: str) -> float:
    return sum(float(op.flops(*POINT)) * n for op, n in trace.operators() if op.kind in kinds)


def collectives(trace: Trace) -> Counter[str]:
    return sum(
        (Counter({str(op.attrs["collective"]): n}) for op, n in trace.operators() if op.kind == "collective"), Counter()
    )


def find(trace: Trace, name: str) -> Operator:
    return next(op for op, _ in trace.operators() if op.name == name)


def ceil(a: int, b: int) -> int:
    return -(-a // b)


@pytest.mark.parametrize("name", model_names())
def test_every_preset_is_three_blocks_in_order_with_an_acyclic_graph(name):
    trace, layers = trace_of(name), load_config(name).layers
    assert [(b.name, b.repeat) for b in trace.blocks] == [("embed", 1), ("layer", layers), ("head", 1)]
    assert trace.order == (("embed", 1), ("layer", layers), ("head", 1))
    for block in trace.blocks:
        before: set[str] = set()
        for op in block.operators:
            assert set(op.deps) <= before
            before.add(op.name)
        assert block.output == block.operators[-1].name
    experts = [op for op, _ in trace.operators() if op.kind == "experts"]
    assert all("mlp.router" in op.deps for op in experts)  # experts wait for the routing
    assert trace.provenance["capture_s"] < 5


@pytest.mark.parametrize("name", model_names())
def test_every_preset_reads_back_equal_and_satisfies_the_schema(name, tmp_path):
    trace, path = trace_of(name), tmp_path / "t.json"
    trace.save(path)
    assert Trace.load(path) == trace == load_trace(str(path))
    again = tmp_path / "again.json"
    Trace.load(path).save(again)
    assert again.read_bytes() == path.read_bytes()
    jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), json.loads(SCHEMA.read_text(encoding="utf-8")))


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.parametrize("name", model_names())
def test_the_shares_of_all_devices_add_up_to_the_whole(name, world):
    whole, share, m = trace_of(name), tensor_parallel(trace_of(name), world), load_config(name)
    even = all(x % world == 0 for x in (m.heads, m.inner, m.vocabulary)) and m.kv_heads % world == 0
    if even:
        assert flops(share, *SPLIT) * world == pytest.approx(flops(whole, *SPLIT), rel=1e-12)
    else:  # the fullest device: more than its part, by less than one head or column of each matrix
        assert 1 < flops(share, *SPLIT) * world / flops(whole, *SPLIT) < 1.12

    # attention by heads, keys and values replicated where there are too few of them
    attention = find(share, "attention.attention")
    assert (attention.dims["heads"], attention.dims["kv_heads"]) == (ceil(m.heads, world), ceil(m.kv_heads, world))
    row = m.layers * 2 * ceil(m.kv_heads, world) * m.head_dim * 2
    assert share.kv_bytes_per_token == row
    assert float(share.cache_bytes()(2, 1, 64)) == 2 * 64 * row
    qkv = find(share, "attention.qkv")
    width = (ceil(m.heads, world) + 2 * ceil(m.kv_heads, world)) * m.head_dim
    assert qkv.dims["n"] == width
    assert qkv.weights[0].shape[0] == qkv.writes[0].shape[-1] == width
    assert find(share, "attention.output").dims["k"] == ceil(m.heads, world) * m.head_dim

    # two all-reduces per layer of b·q·d elements, one all-gather of the logits
    assert collectives(share) == {"all_reduce": 2 * m.layers, "all_gather": 1}
    for op, _ in share.operators():
        if op.kind == "collective":
            elements = m.hidden * POINT[1] if op.attrs["collective"] == "all_reduce" else m.vocabulary
            assert float(op.dims["bytes"](*POINT)) == POINT[0] * elements * 2
            assert op.dims["world"] == world
