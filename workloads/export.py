"""Traces for other tools: Chakra execution traces and Perfetto timelines.

Both are written for one point (batch, query, context).

The Chakra document holds the messages of MLCommons Chakra (schema/protobuf/et_def.proto, package
ChakraProtoMsg) in protobuf's JSON mapping: ``metadata`` is a GlobalMetadata, each element of ``nodes`` a
Node. Attributes are those that Chakra's feeder, and through it ASTRA-sim, takes from a node, in the
fields it takes them from: ``is_cpu_op`` (bool_val), ``num_ops`` (int64_val), ``tensor_size``
(uint64_val), and for communication ``comm_type`` (int64_val, a CollectiveCommType) and ``comm_size``
(int64_val). Verified: names and field types, against the schema's text, by the tests; that protobuf's
own JSON reader takes every node, once, by hand. Not verified: a run of ASTRA-sim. Its feeder reads
length-delimited binary messages, which this is not; turn each element into one with protobuf's
``json_format``. A send has no ``comm_src`` and ``comm_dst``: a trace is one device's. Durations are
left to the simulator that reads it.

Perfetto shows durations, of which a trace has none: slices are as wide as their FLOPs, which the
process name says, with bytes and sizes as arguments of each slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .trace import Block, Operator, Trace

COLLECTIVES = {"all_reduce": 0, "all_gather": 2}
"""CollectiveCommType of et_def.proto."""
_INT64 = 2**63 - 1


def chakra_json(trace: Trace, batch: float, query: float, context: float) -> dict[str, Any]:
    """The trace as a Chakra execution trace: one node per executed operator."""
    nodes: list[dict[str, Any]] = []
    previous: int | None = None
    for block, repetition in _executions(trace):
        ids: dict[str, int] = {}
        for op in block.operators:
            node_id = len(nodes) + 1
            ids[op.name] = node_id
            parents = [ids[d] for d in op.deps] or ([previous] if previous is not None else [])
            nodes.append(
                {
                    "id": node_id,
                    "name": f"{block.name}[{repetition}].{op.name}",
                    "type": _node_type(op),
                    "data_deps": parents,
                    "attr": _attributes(op, (batch, query, context)),
                }
            )
        previous = ids[block.output]
    return {
        "metadata": {"version": "0.0.4", "attr": [{"name": "model", "string_val": trace.model}]},
        "nodes": nodes,
    }


def _node_type(op: Operator) -> str:
    if op.kind != "collective":
        return "COMP_NODE"
    return "COMM_SEND_NODE" if op.attrs["collective"] == "send" else "COMM_COLL_NODE"


def _attributes(op: Operator, point: tuple[float, float, float]) -> list[dict[str, Any]]:
    def size(x: Any) -> int:
        return min(round(float(x(*point))), _INT64)

    attributes: list[dict[str, Any]] = [
        {"name": "is_cpu_op", "bool_val": False},
        {"name": "num_ops", "int64_val": size(op.flops)},
        {"name": "tensor_size", "uint64_val": size(op.moved())},
        {"name": "op_kind", "string_val": op.kind},
    ]
    if op.kind == "collective":
        kind = COLLECTIVES.get(str(op.attrs["collective"]))
        attributes += [{"name": "comm_type", "int64_val": kind}] if kind is not None else []
        attributes.append({"name": "comm_size", "int64_val": size(op.dims["bytes"])})
    return attributes


def perfetto_json(trace: Trace, batch: float, query: float, context: float) -> dict[str, Any]:
    """The operators in execution order as a Perfetto (Chrome trace event) document; 1 µs = 1 GFLOP."""
    point = (batch, query, context)
    title = f"{trace.model}: slice width = GFLOP, not time"
    events = named_tracks(1, title, {"blocks": _BLOCKS, "operators": _OPERATORS})
    start = 0.0
    for block, repetition in _executions(trace):
        began = start
        for op in block.operators:
            flops = float(op.flops(*point))
            width = max(flops / 1e9, 1e-3)
            sizes = {k: float(v(*point)) for k, v in op.dims.items()}
            arguments = {"flops": flops, "bytes": float(op.moved()(*point)), "dims": sizes}
            events.append(trace_slice(_OPERATORS, op.name, start, width) | {"cat": op.kind, "args": arguments})
            start += width
        events.append(trace_slice(_BLOCKS, f"{block.name}[{repetition}]", began, start - began))
    return {"traceEvents": events, "displayTimeUnit": "ns"}


_BLOCKS, _OPERATORS = 1, 2


def named_tracks(pid: int, title: str, tracks: Mapping[str, int]) -> list[dict[str, Any]]:
    """The events that give a process its title, and its tracks (name → number) their names."""
    found: list[dict[str, Any]] = [{"ph": "M", "pid": pid, "name": "process_name", "args": {"name": title}}]
    for name, track in tracks.items():
        found.append({"ph": "M", "pid": pid, "tid": track, "name": "thread_name", "args": {"name": name}})
    return found


def trace_slice(track: int, name: str, start: float, width: float, pid: int = 1) -> dict[str, Any]:
    """A complete event: ``start`` and ``width`` are µs."""
    return {"ph": "X", "pid": pid, "tid": track, "name": name, "ts": start, "dur": width}


def _executions(trace: Trace) -> list[tuple[Block, int]]:
    """Blocks in execution order, each with its repetition number."""
    blocks = {b.name: b for b in trace.blocks}
    seen = dict.fromkeys(blocks, 0)
    out = []
    for name, times in trace.order:
        for _ in range(times):
            out.append((blocks[name], seen[name]))
            seen[name] += 1
    return out
