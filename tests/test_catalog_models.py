"""Every device of the catalogue costs every preset model, or says precisely why it cannot."""

from __future__ import annotations

from functools import cache

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


@cache
def compiled(model: str, narrow: bool) -> CompiledTrace:
    return compile_trace(apply_techniques(load_trace(model), list(NARROW) if narrow else []))


@pytest.mark.parametrize("name", device_names())
def test_a_device_costs_any_preset_or_says_why_not(name: str) -> None:
    device = load_device(name)
    done, refused = 0, []
    for model in model_names():
        for narrow in (False, True):
            try:
                costs = cost(compiled(model, narrow), device, [1, 4], [64, 1], [0, 256])
            except InputError as error:
                refused.append(str(error))
                continue
            done += 1
            assert np.isfinite(costs.latency_s).all()
            assert (costs.low_s > 0).all()
            assert (costs.low_s <= costs.latency_s).all()
            assert (costs.latency_s <= costs.high_s).all()
            assert np.isfinite(costs.energy_j).all()
            assert costs.energy_j == pytest.approx(sum(costs.energy_parts_j.values()), rel=1e-12)
            assert sum(costs.bound.values()) == pytest.approx(1, rel=1e-9)
    assert done, refused[0]
    for line in refused:
        assert line.startswith(f"device {name}: "), line
        assert "\n" not in line
