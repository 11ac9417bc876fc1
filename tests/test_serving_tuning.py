"""Fine-tuning beside inference: what it keeps for its backward pass, by hand, and that it waits for no request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.serving.cluster import Cluster
from tokenfab.serving.run import serve
from tokenfab.serving.tuning_memory import activation_bytes, activation_gb, tuning_memory_saved
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.request_log import plain


@pytest.mark.parametrize(
    ("way", "vectors"),
    [  # of a layer and token, in vectors of 8192 numbers: 64 heads x 1024 tokens are 8 of them, the middle layer is 3.5
        ("all", 1 + 1.25 + 1.125 + 1 + 1 + 1 + 1 + 7 + 3.5 + 1 + 1 + 6 * 8),
        ("pruned", 1 + 1 + 1.25 + 8 + 7 + 3.5),
        ("rematerialised", 1 + 1 + 1.25 + 8 + 7),
        ("windows", 1 + 1 + 1.25 + 7),
    ],
)
def test_what_a_backward_pass_keeps_by_hand(way: str, vectors: float) -> None:
    """Outside the layers: the embedding, and the last norm's input or, of all, its result and 32000 logits a token."""
    outside = {"all": 1 + 1 + 32000 / 8192}.get(way, 1)
    told = activation_bytes(load_trace("llama-2-70b"), 1024, way, "mlp.down")
    assert told == pytest.approx((80 * vectors + outside) * 8192 * 2 * 1024)


def test_what_is_kept_is_asked_for_by_name() -> None:
    trace = load_trace("llama-2-7b")
    more = [activation_bytes(trace, 64, "pruned", x) for x in ("mlp.down", "mlp.down+attention.output")]
    assert more[1] - more[0] == 32 * 64 * 4096 * 2
    for way, adapted, words in (
        ("most", "mlp.down", "unknown way of keeping activations 'most'"),
        ("all", "mlp.dwn", "unknown linear layer 'mlp.dwn'; did you mean mlp.down"),
    ):
        with pytest.raises(InputError, match=words):
            activation_bytes(trace, 64, way, adapted)
    with pytest.raises(InputError, match="a training sequence of 0 tokens"):
        activation_bytes(trace, 0, "all", "mlp.down")
    assert tuning_memory_saved("llama-2-7b", 1024) == pytest.approx(
        100 * (1 - (2 * 6738415616 + 1e9 * activation_gb("llama-2-7b", 1024, "windows"))
               / (2 * 6738415616 + 1e9 * activation_gb("llama-2-7b", 1024, "all"))), rel=1e-3
    )  # fmt: skip


def test_a_replica_without_requests_trains_from_the_start():
    log = plain([0.0, 1.0], 10, 2)
    here = Cluster(load_trace("opt-125m"), load_device("l4"), longest=2048)
    told = [
        serve(log, replace(here, replicas=n), "flexllm", interval=False)[0]["tuning"]["tokens_per_s"] for n in (1, 4)
    ]
    assert told[1] == pytest.approx(4 * told[0], rel=0.05)
