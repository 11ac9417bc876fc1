"""Traces for other tools: Chakra execution traces and Perfetto timelines.

Both are written for one point (batch, query, context). The Chakra document follows the ET schema of
MLCommons Chakra (chakra/schema/protobuf/et_def.proto) in its JSON form: one node per execution, data
dependencies by node id, sizes as attributes. Chakra's readers take the protobuf; its own converter
reads this JSON field by field, since names and enum texts are those of the schema. Kernel durations
are left to the simulator that reads it.

Perfetto shows durations, of which a trace has none: the track is laid out by FLOPs, which says so in
its name, with bytes and sizes as arguments of each slice.
"""

from __future__ import annotations

from typing import Any

from .trace import Block, Operator, Trace

COLLECTIVES = {"all_reduce": "ALL_REDUCE", "all_gather": "ALL_GATHER", "send": "POINT_TO_POINT"}


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
            collective = op.kind == "collective"
            nodes.append(
                {
                    "id": node_id,
                    "name": f"{block.name}[{repetition}].{op.name}",
                    "type": "COMM_COLL_NODE" if collective else "COMP_NODE",
                    "data_deps": parents,
                    "attr": _attributes(op, (batch, query, context)),
                }
            )
        previous = ids[block.output]
    return {
        "metadata": {"version": "0.0.4", "attr": [{"name": "model", "string_val": trace.model}]},
        "nodes": nodes,
    }


def _attributes(op: Operator, point: tuple[float, float, float]) -> list[dict[str, Any]]:
    def size(x: Any) -> int:
        return round(float(x(*point)))

    attributes: list[dict[str, Any]] = [
        {"name": "is_cpu_op", "bool_val": False},
        {"name": "num_ops", "int64_val": size(op.flops)},
        {"name": "tensor_size", "uint64_val": size(op.moved())},
        {"name": "op_kind", "string_val": op.kind},
    ]
    if op.kind == "collective":
        attributes += [
            {"name": "comm_type", "string_val": COLLECTIVES[str(op.attrs["collective"])]},
            {"name": "comm_size", "int64_val": size(op.dims["bytes"])},
        ]
    return attributes


def perfetto_json(trace: Trace, batch: float, query: float, context: float) -> dict[str, Any]:
    """The operators in execution order as a Perfetto (Chrome trace event) document; 1 µs = 1 GFLOP."""
    point = (batch, query, context)
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": f"{trace.model}: slice width = GFLOP, not time"}}
    ]
    start = 0.0
    for block, repetition in _executions(trace):
        began = start
        for op in block.operators:
            width = max(float(op.flops(*point)) / 1e9, 1e-3)
            sizes = {k: float(v(*point)) for k, v in op.dims.items()}
            arguments = {"flops": float(op.flops(*point)), "bytes": float(op.moved()(*point)), **sizes}
            events.append(
                {"ph": "X", "pid": 1, "tid": 2, "cat": op.kind, "name": op.name, "ts": start, "dur": width, "args": arguments}
            )
            start += width
        events.append({"ph": "X", "pid": 1, "tid": 1, "name": f"{block.name}[{repetition}]", "ts": began, "dur": start - began})
    return {"traceEvents": events, "displayTimeUnit": "ns"}


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
