"""What other tools get: Chakra nodes with the schema's names and types, Perfetto slices that do not overlap."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache

import pytest

from tokenfab.models.config import load_config
from tokenfab.workloads.capture import capture
from tokenfab.workloads.export import chakra_json, perfetto_json
from tokenfab.workloads.parallel import tensor_parallel
from tokenfab.workloads.trace import Operator, Trace

POINT = (2, 64, 100)
# From schema/protobuf/et_def.proto of mlcommons/chakra, and the fields its feeder reads attributes from
# (src/feeder/et_feeder_node.cpp).
NODE_TYPES = {"COMP_NODE": 4, "COMM_SEND_NODE": 5, "COMM_COLL_NODE": 7}
NODE_FIELDS = {"id": int, "name": str, "type": str, "data_deps": list, "attr": list}
ATTRIBUTES = {
    "is_cpu_op": ("bool_val", bool), "num_ops": ("int64_val", int), "tensor_size": ("uint64_val", int),
    "comm_type": ("int64_val", int), "comm_size": ("int64_val", int), "op_kind": ("string_val", str),
}  # fmt: skip
COLLECTIVE_COMM_TYPE = {"all_reduce": 0, "all_gather": 2}


@cache
def trace_of(name: str, world: int = 1) -> Trace:
    return tensor_parallel(capture(name), world)


def executions(trace: Trace) -> int:
    return sum(count for _, count in trace.operators())


def attributes(node: dict) -> dict:
    return {a["name"]: next(v for k, v in a.items() if k != "name") for a in node["attr"]}


@pytest.mark.parametrize(("name", "world"), [("llama-2-7b", 1), ("mixtral-8x7b", 8), ("opt-125m", 2)])
def test_chakra_has_one_node_per_execution_with_the_schemas_names_and_types(name, world):
    trace = trace_of(name, world)
    document = json.loads(json.dumps(chakra_json(trace, *POINT)))
    assert set(document) == {"metadata", "nodes"}
    assert set(document["metadata"]) == {"version", "attr"}
    assert len(document["nodes"]) == executions(trace)
    for node in document["nodes"]:
        assert {k: type(v) for k, v in node.items()} == NODE_FIELDS
        assert node["type"] in NODE_TYPES
        for attribute in node["attr"]:
            field, kind = ATTRIBUTES[attribute["name"]]
            assert set(attribute) == {"name", field}
            assert type(attribute[field]) is kind
        needed = {"is_cpu_op", "num_ops", "tensor_size", "op_kind"}
        if node["type"] == "COMM_COLL_NODE":
            needed |= {"comm_type", "comm_size"}
        assert set(attributes(node)) == needed
        assert attributes(node)["is_cpu_op"] is False


@pytest.mark.parametrize("world", [1, 4])
def test_chakra_dependencies_precede_and_join_one_block_to_the_next(world):
    trace = trace_of("llama-2-7b", world)
    nodes = chakra_json(trace, *POINT)["nodes"]
    ids = [n["id"] for n in nodes]
    assert ids == list(range(1, len(nodes) + 1))
    for node in nodes:
        assert all(1 <= d < node["id"] for d in node["data_deps"])
        assert len(set(node["data_deps"])) == len(node["data_deps"])
    assert [n["id"] for n in nodes if not n["data_deps"]] == [1]  # only the embedding waits for nothing
    names = {n["id"]: n["name"] for n in nodes}
    first = next(n for n in nodes if n["name"] == "layer[7].attention_norm.norm")
    assert [names[d] for d in first["data_deps"]] == ["layer[6].add#2"]


def test_chakra_sums_are_those_of_the_trace():
    trace = trace_of("llama-2-7b", 4)
    nodes = chakra_json(trace, *POINT)["nodes"]
    assert sum(attributes(n)["num_ops"] for n in nodes) == round(float(trace.total("flops")(*POINT)))
    moved = sum(attributes(n)["tensor_size"] for n in nodes)
    assert moved == pytest.approx(float(trace.total("bytes")(*POINT)), abs=len(nodes))
    m = load_config("llama-2-7b")
    exchanged = defaultdict(list)
    for node in nodes:
        if node["type"] == "COMM_COLL_NODE":
            exchanged[attributes(node)["comm_type"]].append(attributes(node)["comm_size"])
    assert exchanged == {
        COLLECTIVE_COMM_TYPE["all_reduce"]: [2 * 64 * m.hidden * 2] * (2 * m.layers),
        COLLECTIVE_COMM_TYPE["all_gather"]: [2 * m.vocabulary * 2],
    }


def test_a_send_is_a_send_node():
    trace = trace_of("opt-125m", 2)
    head = trace.blocks[-1]
    last = head.operators[-1]
    send = Operator.model_validate(last.model_dump() | {"attrs": {"collective": "send"}})
    blocks = (*trace.blocks[:-1], head.model_copy(update={"operators": (*head.operators[:-1], send)}))
    node = chakra_json(trace.model_copy(update={"blocks": blocks}), *POINT)["nodes"][-1]
    assert node["type"] == "COMM_SEND_NODE"
    assert "comm_type" not in attributes(node)
    assert attributes(node)["comm_size"] == 2 * load_config("opt-125m").vocabulary * 2


@pytest.mark.parametrize(("name", "world"), [("llama-2-7b", 1), ("mixtral-8x7b", 4)])
def test_perfetto_slices_follow_one_another_on_each_track(name, world):
    trace = trace_of(name, world)
    document = json.loads(json.dumps(perfetto_json(trace, *POINT)))
    named = [e for e in document["traceEvents"] if e["ph"] == "M"]
    assert [e["args"]["name"] for e in named] == [f"{name}: slice width = GFLOP, not time", "blocks", "operators"]
    tracks = defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            tracks[event["tid"]].append(event)
    blocks, operators = tracks[1], tracks[2]
    assert len(operators) == executions(trace)
    assert len(blocks) == sum(b.repeat for b in trace.blocks)
    for track in tracks.values():
        end = 0.0
        for event in track:
            assert event["dur"] > 0
            assert event["ts"] == pytest.approx(end, abs=1e-6)
            end = event["ts"] + event["dur"]
    assert operators[-1]["ts"] + operators[-1]["dur"] == pytest.approx(blocks[-1]["ts"] + blocks[-1]["dur"])
    assert sum(e["args"]["flops"] for e in operators) == pytest.approx(float(trace.total("flops")(*POINT)))
    assert sum(e["args"]["bytes"] for e in operators) == pytest.approx(float(trace.total("bytes")(*POINT)))
    assert operators[1]["args"]["dims"]["elements"] == float(trace.blocks[1].operators[0].dims["elements"](*POINT))
