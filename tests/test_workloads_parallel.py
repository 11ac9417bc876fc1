"""Tensor and pipeline parallelism: the shares add up to the whole, and what is exchanged is what Megatron says."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.models.config import load_config
from tokenfab.workloads.capture import capture
from tokenfab.workloads.parallel import Parallel, parse_parallel, stage_blocks, tensor_parallel
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Operator, Trace


@cache
def trace_of(name: str) -> Trace:
    return capture(name)


@cache
def share_of(name: str, world: int) -> Trace:
    return tensor_parallel(trace_of(name), world)


def find(trace: Trace, name: str) -> Operator:
    return next(op for op, _ in trace.operators() if op.name == name)


def ceil(a: int, b: int) -> int:
    return -(-a // b)


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.parametrize("name", ["llama-2-7b", "llama-2-70b", "mixtral-8x7b", "opt-6.7b", "bloom-176b"])
def test_weights_are_divided_but_for_embeddings_norms_routers_and_added_biases(name, world):
    whole, share = trace_of(name), share_of(name, world)
    replicated = 0.0
    for op, n in whole.operators():
        for w in op.weights:
            added = op.kind == "matmul" and len(w.shape) == 1 and op.name in ("attention.output", "mlp.down")
            if op.kind in ("embedding", "norm", "router") or added:
                replicated += float(w.stored_bytes(1, 1, 0)) * n
    tied = "head" not in {op.name for op, _ in whole.operators()}
    assert replicated + (share.weights_bytes - replicated) * world == pytest.approx(whole.weights_bytes)
    head = next(op for op in share.blocks[-1].operators if op.kind == "matmul")
    assert head.weights[0].shape[0] == ceil(load_config(name).vocabulary, world)
    assert head.weights[0].name == ("embedding.weight" if tied else "head.weight")


def test_keys_and_values_are_replicated_where_there_are_fewer_than_devices():
    """llama-2-70b on 16 devices: 4 query heads each, and one of the 8 key/value heads on two devices."""
    share = share_of("llama-2-70b", 16)
    assert find(share, "attention.qkv").dims["n"] == (4 + 2 * 1) * 128
    assert share.kv_bytes_per_token * 16 == 2 * trace_of("llama-2-70b").kv_bytes_per_token
    append = find(share, "attention.kv_append")
    assert append.dims["row_elements"] == 2 * 128
    assert [str(x) for x in append.writes[0].shape] == ["b", "1", "c + q", "128"]


def test_a_decode_step_reads_a_share_of_the_cache_and_of_the_weights():
    whole, share = trace_of("llama-2-70b"), share_of("llama-2-70b", 8)

    def read(trace: Trace, role: str, kind: str) -> float:
        return sum(float(op.moved(role)(8, 1, 2000)) * n for op, n in trace.operators() if op.kind == kind)

    for role, kind in (("kv", "attention"), ("kv", "kv_append"), ("weight", "matmul"), ("activation", "rope")):
        assert read(share, role, kind) * 8 == pytest.approx(read(whole, role, kind))
    for kind in ("norm", "elementwise", "embedding"):
        assert read(share, "activation", kind) == read(whole, "activation", kind)


def test_experts_are_sliced_inside():
    whole, share = trace_of("mixtral-8x7b"), share_of("mixtral-8x7b", 8)
    experts = find(share, "mlp")
    assert (experts.dims["inner"], experts.dims["experts"], experts.dims["top_k"]) == (14336 // 8, 8, 2)
    shapes = [[str(x) for x in w.shape] for w in experts.weights]
    assert shapes == [["8", "3584", "4096"], ["8", "4096", "1792"]]
    for point in ((1, 1, 0), (64, 128, 0)):
        assert float(experts.moved("weight")(*point)) * 8 == float(find(whole, "mlp").moved("weight")(*point))
    assert find(share, "mlp.router") == find(whole, "mlp.router")


@pytest.mark.parametrize("name", ["llama-2-7b", "mixtral-8x7b"])
def test_what_follows_an_all_reduce_waits_for_it(name):
    share = share_of(name, 4)
    layer = share.blocks[1]
    exchanges = [op.name for op in layer.operators if op.kind == "collective"]
    assert len(exchanges) == 2
    for op in layer.operators:
        if op.kind == "elementwise":
            assert any(d in exchanges for d in op.deps)
    assert share.blocks[-1].output == share.blocks[-1].operators[-1].name
    assert share.blocks[-1].operators[-1].attrs == {"collective": "all_gather"}


def test_one_device_is_the_trace_itself_and_a_share_is_not_shared_again():
    assert tensor_parallel(trace_of("llama-2-7b"), 1) is trace_of("llama-2-7b")
    assert share_of("llama-2-7b", 2).applied == ("tensor-parallel:world=2",)
    with pytest.raises(InputError, match="llama-2-7b: is one device's share already"):
        tensor_parallel(share_of("llama-2-7b", 2), 2)


def test_as_many_devices_as_heads_and_one_more():
    assert find(share_of("llama-2-7b", 32), "attention.attention").dims["heads"] == 1
    with pytest.raises(InputError, match="llama-2-7b: 32 attention heads cannot be divided over 33 devices"):
        tensor_parallel(trace_of("llama-2-7b"), 33)


def test_quantised_weights_are_divided_like_others():
    narrow = apply_techniques(trace_of("llama-2-7b"), ["weight-only", "kv-quant"])
    share = tensor_parallel(narrow, 4)
    for op, _ in share.operators():
        if op.kind == "matmul" and op.name != "head":
            assert {w.bits for w in op.weights} == {4.125}
    assert share.kv_bytes_per_token * 4 == narrow.kv_bytes_per_token


# -- pipelines ---------------------------------------------------------------------------------------
@given(st.sampled_from(["llama-2-7b", "opt-125m"]), st.integers(1, 34))
def test_stages_divide_the_layers_exactly_and_as_evenly_as_they_go(name, stages):
    trace, layers = trace_of(name), load_config(name).layers
    if stages > layers:
        with pytest.raises(InputError, match=f"{layers} layers cannot be divided over {stages} pipeline stages"):
            stage_blocks(trace, stages)
        return
    shares = stage_blocks(trace, stages)
    assert len(shares) == stages
    assert sum((Counter(s) for s in shares), Counter()) == {b.name: b.repeat for b in trace.blocks}
    assert {s.get("layer", 0) for s in shares} <= {layers // stages, ceil(layers, stages)}
    assert "embed" in shares[0]
    assert "head" in shares[-1]
    assert sum("embed" in s or "head" in s for s in shares) == min(stages, 2)


@given(st.lists(st.tuples(st.sampled_from(["layer0", "layer1", "stem4"]), st.integers(1, 9)), min_size=1, max_size=9))
def test_alternating_layers_are_divided_too(runs):
    order = [("embed", 1), *runs, ("head", 1)]
    counts = Counter({name: 0 for name, _ in order})
    for name, times in order:
        counts[name] += times
    block = trace_of("opt-125m").blocks[0]
    blocks = tuple(block.model_copy(update={"name": n, "repeat": t}) for n, t in counts.items())
    trace = trace_of("opt-125m").model_copy(update={"blocks": blocks, "order": tuple(order)})
    layers = counts["layer0"] + counts["layer1"]
    for stages in (1, 2, 3):
        if layers < stages:
            continue
        shares = stage_blocks(trace, stages)
        assert sum((Counter(s) for s in shares), Counter()) == counts
        held = [s.get("layer0", 0) + s.get("layer1", 0) for s in shares]
        if layers:
            assert max(held) - min(held) <= 1


def test_a_hundred_thousand_layers_are_divided_at_once():
    blocks = tuple(
        b.model_copy(update={"repeat": 99_998}) if b.name == "layer" else b for b in trace_of("opt-125m").blocks
    )
    order = (("embed", 1), ("layer", 99_998), ("head", 1))
    shares = stage_blocks(trace_of("opt-125m").model_copy(update={"blocks": blocks, "order": order}), 8)
    assert sum(s["layer"] for s in shares) == 99_998


# -- degrees -----------------------------------------------------------------------------------------
def test_degrees_are_read_and_counted():
    assert parse_parallel("tp=4,pp=2", None) == Parallel(4, 2, 1)
    assert parse_parallel("tp=4,pp=2", 16) == Parallel(4, 2, 2)
    assert parse_parallel(None, 8) == Parallel(tp=8)
    assert parse_parallel(None, None) == parse_parallel("", None) == Parallel()
    assert parse_parallel("dp=3", 6).devices == 6
    assert str(Parallel(4, 1, 2)) == "tp=4,dp=2"
    assert str(Parallel()) == "one device"


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("tp=0", None, "'tp=0'; accepted: tp=N, pp=N, dp=N with N from 1 to 4096"), ("tp=4097", None, "'tp=4097'"),
        ("ep=2", None, "'ep=2'; accepted"), ("tp=two", None, "'tp=two'"), ("tp", None, "'tp'"),
        ("tp=-1", None, "'tp=-1'"),
        ("tp=3", 8, "--count 8 is not a multiple of 3 (= tp=3)"), (None, 0, "--count: 0; accepted: 1 to 65536"),
        (None, 65537, "--count: 65537"),
    ],
)  # fmt: skip
def test_wrong_degrees_are_refused(text, count, message):
    with pytest.raises(InputError) as caught:
        parse_parallel(text, count)
    assert message in str(caught.value)
