"""Every device of the catalogue costs every preset model, or says precisely why it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from tokenfab.errors import InputError
from tokenfab.hw.cost import cost
from tokenfab.hw.devices import device_names, load_device
from tokenfab.models.config import model_names
from tokenfab.workloads.compiled import CompiledTrace, compile_trace
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques

NARROW = ("weight-only:bits=4,head=1", "kv-quant:bits=4")
"""What accelerators of narrow weights ask for."""


CARDS = {name: load_device(name) for name in device_names()}


@pytest.mark.parametrize("model", model_names())  # by model: a capture is what takes time
def test_any_device_costs_a_preset_or_says_why_not(model: str) -> None:
    wide = load_trace(model)
    traces = [compile_trace(t) for t in (wide, apply_techniques(wide, list(NARROW)))]
    costed = {name: [_costs(trace, name) for trace in traces] for name in CARDS}
    never = {name for name, done in costed.items() if not any(done)}
    if model in ("llama-2-7b", "opt-125m", "mixtral-8x7b"):
        assert not never


def _costs(trace: CompiledTrace, name: str) -> bool:
    """Whether the device costs the trace; if so sensibly, if not with a reason of one line that names it."""
    try:
        costs = cost(trace, CARDS[name], [1, 4], [64, 1], [0, 256])
    except InputError as error:
        line = str(error)
    else:
        line = ""
    if line:
        assert line.startswith(f"device {name}: ")
        assert "\n" not in line
        return False
    assert np.isfinite(costs.latency_s).all()
    assert (costs.low_s > 0).all()
    assert (costs.low_s <= costs.latency_s).all()
    assert (costs.latency_s <= costs.high_s).all()
    assert np.isfinite(costs.energy_j).all()
    assert costs.energy_j == pytest.approx(sum(costs.energy_parts_j.values()), rel=1e-12)
    assert sum(costs.bound.values()) == pytest.approx(1, rel=1e-9)
    return True
