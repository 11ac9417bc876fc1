"""Trace files changed at random: each loads and can be used, or is refused; nothing else, and never slowly."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.hw.estimate import Request, estimate
from tokenfab.models.config import load_config
from tokenfab.workloads.capture import capture
from tokenfab.workloads.compiled import compile_trace
from tokenfab.workloads.export import chakra_json, perfetto_json
from tokenfab.workloads.parallel import stage_blocks, tensor_parallel
from tokenfab.workloads.techniques import apply_techniques
from tokenfab.workloads.trace import Trace

# Every kind of operand in few operators: experts, a window, grouped heads.
SMALL = {"hidden": 64, "layers": 2, "heads": 8, "kv_heads": 2, "head_dim": 8, "inner": 96, "window": 100}
DOCUMENT = capture(load_config("mixtral-8x7b").model_copy(update=SMALL)).to_json()
DEVICE = load_device("h100-sxm")


def use(trace: Trace) -> None:
    """Everything that is done with a trace. What loads must not break here, though it may be refused."""
    compiled = compile_trace(trace)
    compiled.quantity("flops", compiled.basis_at([1, 4], [1, 64], [100, 0]))
    trace.total("bytes")(2, 3, 5), trace.cache_bytes()(2, 3, 5), trace.kv_bytes_per_token, trace.weights_bytes
    for attempt in (
        lambda: use_share(trace),
        lambda: estimate(trace, DEVICE, Request(batch=2, prompt=16, output=4)),
        lambda: apply_techniques(trace, ["weight-only", "kv-quant:bits=4", "fuse-projections"]).to_json(),
        lambda: (chakra_json(trace, 1, 2, 3), perfetto_json(trace, 1, 2, 3)) if len(trace.order) < 9 else None,
    ):
        with contextlib.suppress(InputError):
            attempt()


def use_share(trace: Trace) -> None:
    Trace.model_validate_json(tensor_parallel(trace, 2).to_json())
    stage_blocks(trace, 2)


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a document: the path of every value."""
    found = [path] if path else []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


PLACES = places(json.loads(DOCUMENT))
values = st.one_of(
    st.none(), st.booleans(), st.integers(-10, 10), st.integers(-(10**400), 10**400), st.floats(), st.text(max_size=8),
    st.sampled_from(["b", "b*q", "-c", "min(c, 7)", "distinct(8, 2, b)", "weight", "kv", "matmul", "1e30"]),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
)  # fmt: skip
changes = st.tuples(st.sampled_from(PLACES), st.sampled_from(["delete", "replace", "insert", "copy"]), values)


def alter(document: Any, change: tuple) -> None:
    """One change somewhere; a place that an earlier change took away is left alone."""
    path, what, value = change
    node = document
    try:
        for key in path[:-1]:
            node = node[key]
        if what == "delete":
            del node[path[-1]]
        elif what == "replace":
            node[path[-1]] = value
        elif what == "copy":
            node[path[-1]] = json.loads(json.dumps(node[PLACES[hash(path) % len(PLACES)][-1]]))
        elif isinstance(node, list):
            node.insert(0, value)
        else:
            node[str(value)] = value
    except (KeyError, IndexError, TypeError):
        pass


def load_or_refuse(path: Path, content: bytes) -> Trace | None:
    path.write_bytes(content)
    started, trace, refused = time.process_time(), None, f"{path}: "
    try:
        trace = Trace.load(path)
    except InputError as error:
        refused = str(error)
    assert time.process_time() - started < 5  # a collection of all that other tests left may fall into it
    assert refused.startswith(f"{path}: ")
    assert "\n" not in refused
    return trace


@settings(max_examples=150)
@given(change=st.lists(changes, min_size=1, max_size=3))
def test_an_altered_file_loads_and_can_be_used_or_is_refused(change, tmp_path_factory):
    document = json.loads(DOCUMENT)
    for one in change:
        alter(document, one)
    path = tmp_path_factory.getbasetemp() / "altered.json"
    trace = load_or_refuse(path, json.dumps(document).encode())
    if trace is not None:
        use(trace)


@given(cut=st.integers(0, len(DOCUMENT)), noise=st.binary(max_size=20), tail=st.booleans())
def test_a_file_with_bytes_cut_or_inserted_loads_or_is_refused(cut, noise, tail, tmp_path_factory):
    whole = DOCUMENT.encode()
    content = whole[:cut] + noise + (whole[cut:] if tail else b"")
    load_or_refuse(tmp_path_factory.getbasetemp() / "cut.json", content)
