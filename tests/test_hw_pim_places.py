"""Where weights, keys and values of a PIM device lie: what crosses its link, what units reach, what files may say."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.cost import kind_models
from tokenfab.hw.devices import load_device
from tokenfab.hw.pim import constants, pim_model
from tokenfab.hw.spec import Device
from tokenfab.workloads.compiled import CompiledTrace, compile_trace
from tokenfab.workloads.load import load_trace


@functools.cache
def compiled(model: str) -> CompiledTrace:
    return compile_trace(load_trace(model))


def changed(device: Device, **values: float) -> Device:
    """``device`` with other [parameters]; 0 takes one out."""
    held = dict(device.parameters)
    for name, value in values.items():
        one = held.pop(name, device.parameters["stacks"])
        if value:
            held[name] = one.model_copy(update={"value": value})
    return device.model_copy(update={"parameters": held})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"near_matmuls": 1.0}, r"near_matmuls; accepted: near_matmul, near_attention, near_experts, near_intensity"),
        ({"near_attention": 2.0}, r"near_attention 2; accepted: 1"),
        ({"exclusive": 0.5}, r"exclusive 0.5; accepted: 1"),
        ({"divide": 3.0}, r"divide 3; accepted: 1"), ({"spread_tokens": 2.0}, r"spread_tokens 2; accepted: 1"),
        ({"holds_columns": 2.0}, r"holds_columns 2; accepted: 1"),
        ({"interval": 1.0}, r"interval 1 is below t_ccd_s 2"),
    ],
)  # fmt: skip
def test_parameters_that_mean_nothing_are_refused(value: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pim_model(compiled("llama-2-7b"), changed(load_device("attacc-bank"), **value))


def row_of(trace: CompiledTrace, name: str) -> int:
    return next(i for i, row in enumerate(trace.rows) if any(n.endswith(name) for n in row.names))


def test_weights_on_the_card_cross_the_link_when_the_host_computes() -> None:
    device, trace = load_device("gddr6-aim"), compiled("llama-2-7b")
    model, basis = kind_models()["pim"](trace, device), trace.basis_at(1, 512, 0)
    got, i = model.rows(basis), row_of(trace, "mlp.gate_up")
    crossing = 2 * 11008 * 4096 * 2 / (64e9 * 0.74)  # bytes of fp16 / (link's rate x efficiency)
    assert got.time_s[i, 0] - got.launch_s[i, 0] == pytest.approx(crossing, rel=1e-9)
    assert model.reasons[got.bound[i, 0]] == "network"
    assert got.busy_s["link"][i, 0] == pytest.approx(crossing, rel=1e-9)
    assert got.busy_s["near banks"][i, 0] == pytest.approx(crossing, rel=1e-9)  # exclusive: units wait
    assert got.energy_j["transfer"][i, 0] == pytest.approx(2 * 11008 * 4096 * 2 * 8 * 10e-12, rel=1e-9)
    assert (model.low[got.regime[i, 0], i], model.high[got.regime[i, 0], i]) == (0.5, 2.0)
    norm = row_of(trace, "attention_norm.norm")  # vectors stay with the host
    assert model.reasons[got.bound[norm, 0]] != "network"


def test_only_what_the_device_holds_crosses_and_not_what_the_host_has_just_made() -> None:
    device, trace = load_device("attacc-bank"), compiled("llama-2-7b")
    host = kind_models()["pim"](trace, device).host
    got, attention = (
        host.crossing(trace.basis_at(2, [512, 512, 1], [0, 100, 1000])),
        row_of(trace, "attention.attention"),
    )
    token = 2 * 2 * 32 * 128 * 2  # 2 sequences, keys and values of 32 heads of 128, fp16
    np.testing.assert_allclose(got[attention], [0, 100 * token, 1000 * token])
    kinds = np.array([row.operator.kind in ("attention", "kv_append") for row in trace.rows])
    assert (got[~kinds] == 0).all()


@given(faster=st.floats(1, 50), b=st.integers(1, 64), q=st.sampled_from([1, 300]), c=st.integers(0, 4000))
@settings(max_examples=15, deadline=None)
def test_a_faster_link_is_never_slower_and_the_host_never_beats_it(faster: float, b: int, q: int, c: int) -> None:
    device, trace = load_device("gddr6-aim"), compiled("llama-2-7b")
    link = device.links["host"]
    rate = link.bandwidth.model_copy(update={"value": link.bandwidth.value * faster})
    fast = device.model_copy(update={"links": {"host": link.model_copy(update={"bandwidth": rate})}})
    basis = trace.basis_at(b, q, c)
    before, after = (kind_models()["pim"](trace, d) for d in (device, fast))
    assert (after.rows(basis).time_s <= before.rows(basis).time_s * (1 + 1e-9)).all()
    assert (before.host.rows(basis).time_s >= before.host.crossing(basis) / (64e9 * 0.74) * (1 - 1e-9)).all()


def test_products_beyond_the_reach_of_units_run_on_the_host() -> None:
    device, trace = load_device("hbm-pim"), compiled("llama-2-7b")
    near = pim_model(trace, device)
    names = {trace.rows[i].names[0].removeprefix("layer.") for i in near.work}
    # 3.22 + 1.07 GB, 5.77 GB find no room in the 8 GB, then 2.89 and 0.26 GB
    assert names == {"attention.qkv", "attention.output", "mlp.down", "head.head", "attention.attention"}
    layers = 32 * 2 * (3 * 4096**2 + 4096**2 + 11008 * 4096)
    assert near.kv_room_bytes == pytest.approx(8e9 - layers - 2 * 32000 * 4096)
    i, token = row_of(trace, "attention.attention"), 32 * 2 * 32 * 128 * 2
    most = int(near.kv_room_bytes // token)
    assert np.isfinite(near.rows(trace.basis_at(1, 1, [most - 1, most])).time_s[i]).tolist() == [True, False]
    whole = pim_model(trace, changed(device, reach=0))
    assert row_of(trace, "mlp.gate_up") in whole.work
    assert np.isinf(whole.kv_room_bytes)


def test_units_that_exclude_the_host_occupy_its_memory() -> None:
    device, trace = load_device("hbm-pim"), compiled("llama-2-7b")
    got, i = kind_models()["pim"](trace, device).rows(trace.basis_at(1, 1, 500)), row_of(trace, "attention.qkv")
    assert "near banks" not in got.busy_s
    assert got.busy_s["dram"][i, 0] == pytest.approx(got.time_s[i, 0] - got.launch_s[i, 0])


def test_provenance_says_what_times_rest_on() -> None:
    assert "0.769 ns a cycle, a column every 6" in constants(load_device("attacc-bank-group"))[0]
    assert constants(load_device("attacc-bank-group"))[1].startswith("stall 0.966: derived: fitted")
    assert any("64 GB/s at 0.74" in line for line in constants(load_device("gddr6-aim")))
    assert any(line.startswith("units reach 8 GB") for line in constants(load_device("hbm-pim")))
