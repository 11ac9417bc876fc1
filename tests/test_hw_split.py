"""A host and a near unit that share operators: rules by hand, the best division by brute force, the laws."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.hw.cost import Errors, OperatorModel, RowCosts, _costs
from tokenfab.hw.devices import load_device
from tokenfab.hw.gpu import prepare as prepare_gpu
from tokenfab.hw.roofline import prepare as prepare_roofline
from tokenfab.hw.spec import Device
from tokenfab.hw.split import ACTIVE, Link, Rule, SplitModel, shared_part, split_model, units_of
from tokenfab.workloads.compiled import CompiledTrace, compile_trace
from tokenfab.workloads.load import load_trace

RULES = (
    Rule(), Rule("intensity", threshold=8.0), Rule("always", frozenset({"attention"})),
    Rule(divide=True), Rule(divide=True, exclusive=True), Rule("intensity", threshold=64.0, divide=True),
)  # fmt: skip


@dataclass(frozen=True)
class Near:
    """Another device's model as a near unit, ``slower`` times as slow, that cannot do some kinds."""

    model: OperatorModel
    takes: np.ndarray
    slower: float = 1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def rows(self, basis: np.ndarray) -> RowCosts:
        costs = self.model.rows(basis)
        time = np.where(self.takes[:, None], costs.time_s * self.slower, np.inf)
        return replace(costs, time_s=time, busy_s={"banks": time - costs.launch_s})


@functools.cache
def compiled(name: str = "mixtral-8x7b") -> CompiledTrace:
    return compile_trace(load_trace(name))


@functools.cache
def sides(name: str = "mixtral-8x7b", host: str = "a100-80g-sxm", near: str = "tpu-v6e") -> tuple[Any, Any]:
    device = load_device(host)
    return prepare_gpu(compiled(name), device), prepare_roofline(compiled(name), load_device(near))


def beside(host: str = "a100-80g-sxm") -> Device:
    return load_device("h20").model_copy(update={"host": load_device(host)})


def model(rule: Rule, link: Link | None = None, slower: float = 1.0, no: tuple[str, ...] = ("norm",)) -> SplitModel:
    takes = np.array([row.operator.kind not in no for row in compiled().rows])
    host, near = sides()
    return split_model(compiled(), host, Near(near, takes, slower), rule=rule, device=beside(), link=link)


def basis(b: Any = (1, 8, 64, 256), q: Any = 1, c: Any = 1000) -> np.ndarray:
    return compiled().basis_at(b, q, c)


def test_fastest_takes_the_earlier_end_of_either_side_and_only_what_the_near_unit_can_do() -> None:
    split, at = model(Rule()), basis()
    host, near = split.host.rows(at), split.near.rows(at)
    got = split.rows(at)
    np.testing.assert_allclose(got.time_s, np.minimum(host.time_s, near.time_s), rtol=1e-12)
    kinds = [row.operator.kind for row in compiled().rows]
    norm = kinds.index("norm")
    np.testing.assert_array_equal(got.time_s[norm], host.time_s[norm])
    assert (got.time_s < host.time_s).any()


def test_intensity_moves_an_operator_at_its_operations_per_byte_and_not_one_above() -> None:
    at = basis(b=1)
    row = next(i for i, r in enumerate(compiled().rows) if r.operator.kind == "experts")
    moved = sum(compiled().quantity(q, at)[row, 0] for q in ("weight_bytes", "kv_bytes", "activation_bytes"))
    intensity = compiled().quantity("flops", at)[row, 0] / moved
    for threshold, side in ((intensity * 1.0001, "near"), (intensity * 0.9999, "host")):
        split = model(Rule("intensity", frozenset({"experts"}), threshold))
        want = getattr(split, side).rows(at).time_s[row, 0]
        assert split.rows(at).time_s[row, 0] == pytest.approx(want, rel=1e-12)


def test_only_allowed_kinds_go_near_whatever_they_take() -> None:
    split, at = model(Rule("always", frozenset({"attention"})), slower=50.0), basis()
    got, host, near = split.rows(at), split.host.rows(at), split.near.rows(at)
    for i, row in enumerate(compiled().rows):
        want = near if row.operator.kind == "attention" else host
        np.testing.assert_allclose(got.time_s[i], want.time_s[i], rtol=1e-12)


def test_activations_cross_the_link_with_its_latency_and_their_bytes() -> None:
    link = Link(3e-6, 50e9, 10e-12)
    split, at = model(Rule("always", frozenset({"attention"})), link), basis()
    row = next(i for i, r in enumerate(compiled().rows) if r.operator.kind == "attention")
    moved = compiled().quantity("activation_bytes", at)[row]
    got = split.rows(at)
    np.testing.assert_allclose(got.time_s[row], split.near.rows(at).time_s[row] + 3e-6 + moved / 50e9, rtol=1e-12)
    np.testing.assert_allclose(got.energy_j["transfer"][row], moved * 8 * 10e-12)
    np.testing.assert_allclose(got.busy_s["link"][row], 3e-6 + moved / 50e9)


def test_without_launches_and_with_many_parts_sharing_takes_the_harmonic_sum() -> None:
    one = np.ones(1)
    f, seconds = shared_part((0 * one, 0 * one), (3.0 * one, 6.0 * one), 3e6 * one, 0 * one)
    assert f[0] == pytest.approx(2 / 3, abs=1e-6)
    assert seconds[0] == pytest.approx(1 / (1 / 3 + 1 / 6), rel=1e-6)


@given(
    lh=st.floats(0, 2), ln=st.floats(0, 2), h=st.floats(0.01, 10), m=st.floats(0.01, 10),
    units=st.integers(2, 40), dram=st.floats(0, 1), exclusive=st.booleans(),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_the_division_is_the_best_of_all_whole_ones(lh, ln, h, m, units, dram, exclusive) -> None:
    a = [np.array([x]) for x in (lh, ln, h, m, float(units), dram * h)]
    f, seconds = shared_part((a[0], a[1]), (a[2], a[3]), a[4], a[5], exclusive=exclusive)

    def takes(g: float) -> float:
        t = max(lh + g * h, ln + (1 - g) * m)
        return max(t, max(lh, ln) + g * dram * h + (1 - g) * m) if exclusive else t

    assert seconds[0] == pytest.approx(min(takes(k / units) for k in range(1, units)), rel=1e-9)
    assert takes(f[0]) == pytest.approx(seconds[0], rel=1e-9)


def test_one_part_is_not_divided() -> None:
    one = np.ones(1)
    assert np.isinf(shared_part((0 * one, 0 * one), (one, one), one, 0 * one)[1][0])


def test_attention_is_divided_by_sequences_and_heads_of_keys_and_experts_by_those_that_work() -> None:
    at = basis(b=[1, 8], c=100)
    ops = {row.operator.kind: row.operator for row in compiled().rows}
    np.testing.assert_array_equal(units_of(ops["attention"], compiled(), at), [8, 64])
    np.testing.assert_array_equal(units_of(ops["norm"], compiled(), at), [1, 1])
    experts = units_of(ops["experts"], compiled(), at)
    assert experts[0] == 2  # one token goes to two
    assert 7 <= experts[1] <= 8


def test_exclusive_memory_leaves_nothing_to_gain_where_the_host_only_streams() -> None:
    one = np.ones(1)
    seconds = shared_part((0 * one, 0 * one), (4 * one, 2 * one), 100 * one, 4 * one, exclusive=True)[1]
    assert seconds[0] >= 2
    seconds = shared_part((0 * one, 0 * one), (4 * one, 2 * one), 3000 * one, 0 * one, exclusive=True)[1]
    assert seconds[0] == pytest.approx(4 / 3, rel=1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_shared_rows_are_faster_and_costs_stay_consistent(rule: Rule) -> None:
    split, at = model(rule), basis()
    got = split.rows(at)
    assert np.isfinite(got.time_s).all()
    assert (got.time_s >= got.launch_s).all()
    assert (got.launch_s >= 0).all()
    assert got.bound.max() < len(split.reasons)
    assert got.regime.max() < split.low.shape[0] == split.high.shape[0]
    for seconds in got.busy_s.values():
        assert np.isfinite(seconds).all()
        assert (seconds <= got.time_s - got.launch_s + 1e-15).all()
    costs = _costs(compiled(), split, at, detail=True)
    assert (costs.low_s <= costs.latency_s).all()
    assert (costs.latency_s <= costs.high_s).all()
    np.testing.assert_allclose(np.sum(list(costs.bound.values()), axis=0), 1.0)
    np.testing.assert_allclose(costs.energy_j, np.sum(list(costs.energy_parts_j.values()), axis=0))


def test_dividing_never_makes_a_row_slower_and_makes_some_faster() -> None:
    alone, shared = model(Rule()).rows(basis()).time_s, model(Rule(divide=True)).rows(basis()).time_s
    exclusive = model(Rule(divide=True, exclusive=True)).rows(basis()).time_s
    assert (shared <= alone * (1 + 1e-12)).all()
    assert (shared < 0.9 * alone).any()
    assert (shared <= exclusive * (1 + 1e-12)).all()
    assert (exclusive <= alone * (1 + 1e-12)).all()


def test_a_waiting_host_draws_idle_power_and_a_working_one_its_static_power() -> None:
    at, b = basis(), beside().host
    assert b is not None
    split = model(Rule("always", frozenset({"attention"})))
    assert split.static_power_w == pytest.approx(b.power.idle.value + split.near.static_power_w)
    got, beyond = split.rows(at), split.host.static_power_w - b.power.idle.value
    for i, row in enumerate(compiled().rows):
        want = 0.0 if row.operator.kind == "attention" else beyond * got.time_s[i]
        np.testing.assert_allclose(got.energy_j[ACTIVE][i], want)


def test_a_host_that_reports_nothing_occupies_what_bound_it_for_its_part() -> None:
    split, at = model(Rule(divide=True)), basis()
    host = replace(split.host.rows(at), busy_s={})
    object.__setattr__(split.host, "rows", lambda basis: host)
    sides.cache_clear()
    got = split.rows(at)
    row = next(i for i, r in enumerate(compiled().rows) if r.operator.kind == "norm")  # never near
    reason = split.host.reasons[host.bound[row, 0]]
    assert got.busy_s[reason][row, 0] == pytest.approx(host.time_s[row, 0] - host.launch_s[row, 0])
    assert sum(got.busy_s[r][row, 0] for r in split.host.reasons) == pytest.approx(got.busy_s[reason][row, 0])


def test_energy_of_a_row_is_that_of_the_side_that_does_it() -> None:
    split, at = model(Rule("always", frozenset({"experts"}))), basis()
    got, host, near = split.rows(at), split.host.rows(at), split.near.rows(at)
    for i, row in enumerate(compiled().rows):
        side = near if row.operator.kind == "experts" else host
        mine = sum(e[i] for name, e in got.energy_j.items() if name != ACTIVE)
        np.testing.assert_allclose(mine, sum(e[i] for e in side.energy_j.values()))


@given(
    rule=st.sampled_from(RULES), faster=st.floats(1, 8), b=st.integers(1, 300), q=st.sampled_from([1, 100]),
    c=st.integers(0, 4000), which=st.sampled_from(["near", "link", "host"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_faster_hardware_never_makes_a_row_slower(rule, faster, b, q, c, which) -> None:
    at = basis(b, q, c)
    slow = model(rule, Link(2e-6, 20e9), slower=2.0)
    if which == "near":
        fast = model(rule, Link(2e-6, 20e9), slower=2.0 / faster)
    elif which == "link":
        fast = model(rule, Link(2e-6 / faster, 20e9 * faster), slower=2.0)
    else:
        fast = replace(slow, host=Near(slow.host, np.ones(len(compiled().rows), bool), 1 / faster))
        at_host = fast.host.rows(at)
        object.__setattr__(fast.host, "rows", lambda basis: replace(at_host, launch_s=at_host.launch_s / faster))
    assert (fast.rows(at).time_s <= slow.rows(at).time_s * (1 + 1e-9)).all()


def test_errors_are_at_least_as_correlated_as_either_sides_and_shared_rows_have_the_wider_interval() -> None:
    split, at = model(Rule(divide=True)), basis()
    assert isinstance(split.errors, Errors)
    assert split.errors.within == max(split.host.errors.within, split.near.errors.within)
    got, n = split.rows(at), split.host.low.shape[0] + split.near.low.shape[0]
    shared = np.argwhere(got.regime >= n)
    assert shared.size
    host, near = split.host.rows(at), split.near.rows(at)
    for i, p in shared:
        assert split.high[got.regime[i, p], i] == max(
            split.host.high[host.regime[i, p], i], split.near.high[near.regime[i, p], i]
        )


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="accepted: fastest"):
        Rule("slowest")
