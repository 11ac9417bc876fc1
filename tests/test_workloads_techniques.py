"""Techniques: they change what they say they change, by the number of bits they say, and nothing else."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.hw.estimate import Request, estimate
from tokenfab.kernels.formats import format_names, load_format
from tokenfab.models.config import load_config
from tokenfab.workloads.capture import capture
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques, techniques
from tokenfab.workloads.trace import Operator, Tensor, Trace

POINT = (3, 40, 200)
MODELS = ["llama-2-7b", "mixtral-8x7b", "opt-6.7b", "bitnet-b1.58-3b", "mistral-7b"]


@cache
def trace_of(name: str) -> Trace:
    return capture(name)


def find(trace: Trace, name: str) -> Operator:
    return next(op for op, _ in trace.operators() if op.name == name)


def weight(op: Operator) -> Tensor:
    return next(w for w in op.weights if len(w.shape) > 1)


def moved(trace: Trace, *roles) -> float:
    return sum(float(op.moved(*roles)(*POINT)) * n for op, n in trace.operators())


# -- weight-only -------------------------------------------------------------------------------------
def test_four_bits_in_groups_of_128_cost_four_and_an_eighth():
    before, after = trace_of("llama-2-7b"), apply_techniques(trace_of("llama-2-7b"), ["weight-only"])
    stored = weight(find(after, "attention.qkv"))
    assert stored.bits == 4 + 16 / 128 == 4.125
    assert stored.format == "int4-g128"
    m = load_config("llama-2-7b")
    linear = m.layers * (4 * m.hidden**2 + 3 * m.hidden * m.inner)
    assert after.weights_bytes == linear * 4.125 / 8 + (before.parameters - linear) * 2
    assert after.parameters == before.parameters == 6738415616
    assert after.total("flops") == before.total("flops")
    assert find(after, "attention.qkv").format == "fp16"  # the arithmetic is unchanged
    assert after.applied == ("weight-only:bits=4,group=128,scale_bits=16,zero_bits=0,head=0",)


@pytest.mark.parametrize(
    ("setting", "bits", "label"),
    [
        ("bits=8", 8.125, "int8-g128"), ("bits=3,group=64", 3.25, "int3-g64"), ("bits=4,group=0", 4, "int4"),
        ("bits=4,group=128,zero_bits=4", 4 + 20 / 128, "int4-g128"), ("bits=2,group=32,scale_bits=8", 2.25, "int2-g32"),
    ],
)  # fmt: skip
def test_bits_follow_from_bits_group_scale_and_zero(setting, bits, label):
    stored = weight(find(apply_techniques(trace_of("llama-2-7b"), [f"weight-only:{setting}"]), "mlp.down"))
    assert (stored.bits, stored.format) == (bits, label)


@pytest.mark.parametrize("name", MODELS)
def test_embedding_norms_biases_routers_and_head_keep_their_format(name):
    before = trace_of(name)
    after = apply_techniques(before, ["weight-only"])
    for (old, _), (new, _) in zip(before.operators(), after.operators(), strict=True):
        for was, now in zip((*old.reads, *old.writes), (*new.reads, *new.writes), strict=True):
            narrowed = old.kind in ("matmul", "experts") and old.name not in ("head", "embedding#2", "embedding")
            narrowed = narrowed and was.role == "weight" and len(was.shape) > 1 and was.bits > 4.125
            assert (now.bits, now.format) == ((4.125, "int4-g128") if narrowed else (was.bits, was.format)), was.name
            assert (now.shape, now.touched, now.role, now.name) == (was.shape, was.touched, was.role, was.name)


def test_the_head_is_narrowed_only_when_asked_and_has_a_table_of_its_own_then():
    llama = apply_techniques(trace_of("llama-2-7b"), ["weight-only:head=1"])
    assert weight(find(llama, "head")).bits == 4.125
    opt = apply_techniques(trace_of("opt-6.7b"), ["weight-only:head=1"])
    table = [w for op, _ in opt.operators() for w in op.weights if w.name.startswith("embedding.weight")]
    assert [(w.name, w.bits) for w in table] == [("embedding.weight", 16), ("embedding.weight int4-g128", 4.125)]
    kept = apply_techniques(trace_of("opt-6.7b"), ["weight-only"])
    copy = 50272 * 4096 * 4.125 / 8
    assert opt.weights_bytes == pytest.approx(kept.weights_bytes + copy, rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_as_narrow_already_stays(name):
    once = apply_techniques(trace_of(name), ["weight-only"])
    twice = apply_techniques(once, ["weight-only"])
    wider = apply_techniques(once, ["weight-only:bits=8"])
    assert twice.blocks == wider.blocks == once.blocks
    if name.startswith("bitnet"):  # 2 bits are narrower than 4
        assert once.blocks == trace_of(name).blocks


@given(st.integers(1, 8), st.integers(0, 65536), st.integers(0, 32), st.integers(0, 32))
def test_weight_only_never_moves_more_and_never_changes_work(bits, group, scale, zero):
    setting = f"weight-only:bits={bits},group={group},scale_bits={scale},zero_bits={zero}"
    before = trace_of("mixtral-8x7b")
    after = apply_techniques(before, [setting])
    assert after.weights_bytes <= before.weights_bytes
    assert moved(after) <= moved(before)
    assert moved(after, "kv", "activation", "index") == moved(before, "kv", "activation", "index")
    assert after.total("flops") == before.total("flops")


@pytest.mark.parametrize("name", format_names())
@pytest.mark.parametrize("model", ["llama-2-7b", "mixtral-8x7b"])
def test_weights_take_any_format_with_the_bits_of_their_own_shape(name, model):
    before, after = trace_of(model), apply_techniques(trace_of(model), [f"weight-only:format={name}"])
    form, narrowed = load_format(name), 0
    for (old, _), (new, _) in zip(before.operators(), after.operators(), strict=True):
        for was, now in zip(old.weights, new.weights, strict=True):
            if old.kind not in ("matmul", "experts") or len(was.shape) < 2 or old.name == "head":
                assert now == was
                continue
            rows, k = (int(x.constant) for x in was.shape[-2:])
            bits = form.bits_per_weight((rows, k))
            assert (now.bits, now.format) == ((bits, name) if bits < was.bits else (was.bits, was.format))
            narrowed += bits < was.bits
    assert narrowed or form.bits_per_weight((4096, 4096)) >= 16
    assert after.total("flops") == before.total("flops")
    assert after.applied[0].startswith(f"weight-only:format={name},head=0")


@pytest.mark.parametrize(
    ("setting", "format"),
    [("bits=4", "int4-g128"), ("bits=8", "int8-g128"), ("bits=3,group=64", "int3-g64"), ("bits=2", "int2-g128")],
)
def test_bits_and_group_are_the_registry_s_format_of_the_same_name(setting, format):
    numbers, named = (
        apply_techniques(trace_of("llama-2-7b"), [f"weight-only:{x}"]) for x in (setting, f"format={format}")
    )
    assert numbers.blocks == named.blocks
    assert named.applied == (f"weight-only:format={format},head=0",)


@pytest.mark.parametrize("name", ["nf4-b64", "2:4", "bitmod-fp3-g128", "vptq-v8-k256", "mxfp4", "ovp4", "ternary-p5"])
def test_a_gpu_reads_what_is_stored_and_computes_as_before(name):
    device = load_device("h100-sxm")
    plain, narrow = (
        estimate(apply_techniques(trace_of("llama-2-7b"), spec), device, Request(1, 512, 128))
        for spec in ([], [f"weight-only:format={name}"])
    )
    bits = load_format(name).bits_per_weight((4096, 4096))
    assert bits / 16 < narrow.decode.latency_s / plain.decode.latency_s < 1
    assert narrow.memory.weights_bytes < plain.memory.weights_bytes * (bits / 16 + 0.06)


def test_arrays_say_what_would_help_for_a_format_that_their_unit_does_not_take():
    trace = apply_techniques(trace_of("llama-2-7b"), ["weight-only:format=nf4-b64,head=1", "kv-quant"])
    with pytest.raises(InputError, match=r"multiplies fp16 by nf4-b64: .*; \[arrays.weights\] and"):
        estimate(trace, load_device("bitmod"), Request(1, 16, 2))


# -- kv-quant ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("setting", "bits"), [("", 8 + 16 / 128), (":bits=4", 4.125), (":bits=2,scale_bits=32", 2.25)])
@pytest.mark.parametrize("name", ["llama-2-7b", "mistral-7b", "mixtral-8x7b"])
def test_the_cache_shrinks_to_the_bits_with_one_scale_per_head_vector(name, setting, bits):
    before, after = trace_of(name), apply_techniques(trace_of(name), [f"kv-quant{setting}"])
    assert after.kv_bytes_per_token == pytest.approx(before.kv_bytes_per_token * bits / 16)
    assert float(after.cache_bytes()(*POINT)) == pytest.approx(float(before.cache_bytes()(*POINT)) * bits / 16)
    assert moved(after, "kv") == pytest.approx(moved(before, "kv") * bits / 16)
    assert moved(after, "weight", "activation", "index") == moved(before, "weight", "activation", "index")
    assert after.total("flops") == before.total("flops")


@pytest.mark.parametrize(
    ("name", "bits"),
    [("value2-g32", 3), ("key2-g32", 3), ("value4", 4 + 32 / 128), ("int8-g128", 8.125), ("fp8-e4m3-tensor", 8),
     ("mxfp8-e4m3", 8.25)],
)  # fmt: skip
def test_a_cache_takes_any_format(name, bits):
    before, after = trace_of("llama-2-7b"), apply_techniques(trace_of("llama-2-7b"), [f"kv-quant:format={name}"])
    assert after.kv_bytes_per_token == pytest.approx(before.kv_bytes_per_token * bits / 16, rel=1e-6)
    assert moved(after, "kv") == pytest.approx(moved(before, "kv") * bits / 16, rel=1e-6)
    stored = {t.format for op, _ in after.operators() for t in (*op.reads, *op.writes) if t.role == "kv"}
    assert stored == {name}
    assert after.applied == (f"kv-quant:format={name}",)


def test_kv_quant_by_bits_is_the_registry_s_format_of_the_same_name():
    named, numbers = (
        apply_techniques(trace_of("llama-2-7b"), [f"kv-quant:{x}"]) for x in ("format=int4-g128", "bits=4")
    )
    assert named.blocks == numbers.blocks


def test_a_cache_as_narrow_already_stays():
    once = apply_techniques(trace_of("llama-2-7b"), ["kv-quant:bits=4"])
    assert apply_techniques(once, ["kv-quant:bits=8"]).blocks == once.blocks


# -- fuse-projections (on our presets there is nothing to fuse; the rest is in test_workloads_hf.py) --
@pytest.mark.parametrize("name", MODELS)
def test_our_presets_are_fused_already(name):
    assert apply_techniques(trace_of(name), ["fuse-projections"]).blocks == trace_of(name).blocks


# -- load --------------------------------------------------------------------------------------------
def test_load_is_noted_and_changes_nothing_else():
    before = trace_of("mixtral-8x7b")
    after = apply_techniques(before, ["load:imbalance=1.2,skew=3"])
    noted = {
        (op.kind, name): op.attrs[name]
        for op, _ in after.operators()
        for name in ("imbalance", "skew")
        if name in op.attrs
    }
    assert noted == {("experts", "imbalance"): 1.2, ("attention", "skew"): 3.0}
    assert moved(after) == moved(before)
    assert after.total("flops") == before.total("flops")


@pytest.mark.parametrize(("name", "value"), [("imbalance", -0.1), ("imbalance", "much"), ("skew", 0.9), ("skew", True)])
def test_a_trace_with_a_load_that_cannot_be_is_refused(name, value):
    op = next(op for op, _ in trace_of("mixtral-8x7b").operators() if op.kind == "experts")
    with pytest.raises(ValueError, match=f"the attribute {name} is .*; accepted: a number from"):
        type(op)(**{**dict(op), "attrs": op.attrs | {name: value}})


# -- context -----------------------------------------------------------------------------------------
def test_a_longer_context_changes_what_is_accepted_and_nothing_else():
    before = trace_of("llama-2-7b")
    after = apply_techniques(before, ["context:tokens=13616"])
    assert (before.max_context, after.max_context) == (4096, 13616)
    assert after.blocks == before.blocks
    assert after.applied == ("context:tokens=13616",)
    assert apply_techniques(before, ["context:tokens=4096"]).applied == ("context:tokens=4096 (no effect)",)


def test_a_learned_table_of_positions_ends_where_it_ends():
    assert apply_techniques(trace_of("opt-6.7b"), ["context:tokens=1024"]).max_context == 1024
    with pytest.raises(InputError, match=r"opt-6.7b has a table of positions; accepted: up to 2048"):
        apply_techniques(trace_of("opt-6.7b"), ["context:tokens=2049"])


# -- what is asked -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("weight-onl", "unknown technique 'weight-onl'; did you mean weight-only?"),
        ("magic", "unknown technique 'magic'; known: "),
        ("weight-only:bit=4", "unknown parameter of technique weight-only 'bit'; did you mean"),
        ("weight-only:bits", "technique weight-only: bits needs a value, as in bits=4"),
        ("weight-only:bits=", "technique weight-only: bits: '' is not an integer"),
        ("weight-only:bits=four", "technique weight-only: bits: 'four' is not an integer"),
        ("weight-only:bits=4.5", "technique weight-only: bits: '4.5' is not an integer"),
        ("weight-only:bits=0", "technique weight-only: bits: 0 is out of range; accepted: 1 to 8"),
        ("weight-only:bits=9", "technique weight-only: bits: 9 is out of range; accepted: 1 to 8"),
        ("weight-only:group=-1", "technique weight-only: group: -1 is out of range; accepted: 0 to 65536"),
        ("weight-only:head=2", "technique weight-only: head: '2'; accepted: 0, 1"),
        ("kv-quant:bits=16", "technique kv-quant: bits: 16 is out of range; accepted: 1 to 8"),
        ("kv-quant:bits=" + "9" * 5000, "is not an integer"),
        ("weight-only:format=nf4", "unknown number format 'nf4'; did you mean nf4-b"),
        ("weight-only:format=nf4-b64,bits=3", "technique weight-only: bits is part of format=nf4-b64; give one of"),
        ("kv-quant:scale_bits=8,format=int8", "technique kv-quant: scale_bits is part of format=int8; give one of"),
        ("load:imbalance=-1", "technique load: imbalance: -1 is out of range; accepted: 0 to 3"),
        ("load:skew=0.5", "technique load: skew: 0.5 is out of range; accepted: 1 to 1000"),
        ("fuse-projections:x=1", "unknown parameter of technique fuse-projections 'x'"),
        ("", "unknown technique ''"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_in_one_line_what_is_accepted(spec, message):
    with pytest.raises(InputError) as caught:
        apply_techniques(trace_of("llama-2-7b"), [spec])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_both_ends_of_a_range_are_accepted():
    for spec in ("weight-only:bits=1", "weight-only:bits=8", "weight-only:group=65536", "kv-quant:bits=1,scale_bits=0"):
        assert apply_techniques(trace_of("llama-2-7b"), [spec]).applied[0].startswith(spec.partition(":")[0])


def test_techniques_are_applied_in_order_and_written_down():
    done = apply_techniques(trace_of("llama-2-7b"), ["kv-quant", "weight-only:bits=3"])
    assert done.applied == (
        "kv-quant:bits=8,scale_bits=16", "weight-only:bits=3,group=128,scale_bits=16,zero_bits=0,head=0",
    )  # fmt: skip
    assert apply_techniques(trace_of("llama-2-7b"), []) == trace_of("llama-2-7b")


def test_every_technique_says_what_it_is_and_where_from():
    known = {"expert-order", "fuse-projections", "kv-quant", "load", "mixed-precision", "sparsity", "weight-only"}
    assert known <= set(techniques())
    for name, technique in techniques().items():
        assert technique.name == name
        assert technique.description
        assert technique.source
        assert all(p.meaning for p in technique.parameters.values())


# -- positions --------------------------------------------------------------------------------------
def test_positions_go_on_where_they_are_no_table():
    trace = load_trace("llama-2-7b")
    for setting, longest in (("positions", None), ("positions:longest=16384", 16384)):
        changed = apply_techniques(trace, [setting])
        assert changed.max_context == longest
        assert changed.blocks == trace.blocks
        assert "no effect" not in changed.applied[-1]
    assert "no effect" in apply_techniques(trace, ["positions:longest=4096"]).applied[-1]
    with pytest.raises(InputError, match="reads its positions from a table"):
        apply_techniques(load_trace("opt-125m"), ["positions"])
