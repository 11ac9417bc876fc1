"""Is it the optimum? Against trying everything, between solvers, and between ways to solve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mapping_support import brute_force

from tokenfab.errors import InputError
from tokenfab.mapping.baselines import evaluate_all
from tokenfab.mapping.dynamic import Chain, chain, lagrange, repair, sum_weights
from tokenfab.mapping.elastic import binding
from tokenfab.mapping.eliminate import TooWideError, eliminate, elimination_order
from tokenfab.mapping.ilp import formulate, solve_flat
from tokenfab.mapping.patterns import solve_patterns
from tokenfab.mapping.place import solve
from tokenfab.mapping.problem import Objective, Problem, evaluate, flat, scaled, unflatten
from tokenfab.mapping.solver import available, solve_model
from tokenfab.mapping.synthetic import layer_graph
from tokenfab.mapping.trials import OBJECTIVES, random_problem
from tokenfab.mapping.trials import place_case as case


@pytest.mark.parametrize("chunk", range(14))
def test_the_value_is_that_of_trying_everything(chunk):
    """210 random problems: capacities, links, costs, forbidden pairs of operator and device, limits."""
    for seed in range(15 * chunk, 15 * chunk + 15):
        problem = case(seed)
        best, _ = brute_force(problem)
        found = solve(problem, gap=0.0, time_limit=20)
        if np.isfinite(best):
            assert found.layers is not None, seed
            assert found.value == pytest.approx(best, rel=1e-6), seed
            assert evaluate(problem, found.layers).feasible, seed
            assert found.bound <= best * (1 + 1e-6), seed
            assert all(b is None or found.value <= b.value * (1 + 1e-9) for b in found.baselines.values()), seed
        else:
            assert found.status == "infeasible", seed
            assert found.layers is None, seed


def test_the_random_problems_are_of_both_kinds():
    """Of the 210 some fit nowhere and most have capacities that bind, or the test above would say little."""
    feasible = bound = 0
    for seed in range(0, 40):
        problem = case(seed)
        best, _ = brute_force(problem)
        roomy, _ = brute_force(replace(problem, capacity=problem.capacity * 100))
        feasible += np.isfinite(best)
        bound += np.isfinite(best) and best > roomy * (1 + 1e-9)
    assert 20 <= feasible < 40
    assert bound >= 6


@pytest.mark.parametrize("seed", [2, 3, 5, 8, 11])
def test_both_solvers_agree(seed):
    problem = replace(case(seed), objective=OBJECTIVES[seed % 5])
    values = {s: solve_flat(problem, solver=s)[1].value for s in available()}
    assert "highs" in values
    assert list(values.values()) == pytest.approx([values["highs"]] * len(values), rel=1e-5)


def test_a_solver_that_is_not_there_is_named():
    with pytest.raises(InputError, match="accepted here: highs"):
        solve_flat(case(2), solver="gurobi")


def test_the_extended_formulation_is_tight_and_the_textbooks_is_not():
    """Same optimum; but the relaxation with z ≥ x + y − 1 is nowhere above the other's, and below on half."""
    below = 0
    for seed in (2, 4, 6, 7, 12, 14):
        problem = scaled(replace(case(seed), objective=Objective({"cost": 1.0, "energy": 0.1})))[0]
        tight, weak = (
            solve_model(formulate(problem, tight=t, relaxed=True).lp, time_limit=10).value for t in (True, False)
        )
        assert weak <= tight * (1 + 1e-7)
        below += weak < tight * (1 - 1e-3)
        assert solve_flat(problem, tight=False)[1].value == pytest.approx(solve_flat(problem)[1].value, rel=1e-6)
    assert below >= 3


# -- bounds ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(12))
def test_prices_bound_the_optimum_from_below_and_repair_from_above(seed):
    problem = replace(case(seed), objective=OBJECTIVES[seed % 5])
    best, _ = brute_force(problem)
    found = lagrange(problem, rounds=40)
    assert found.bound <= best * (1 + 1e-9)
    assert found.value >= best * (1 - 1e-9)
    if found.layers is not None:
        assert evaluate(problem, found.layers).feasible


@pytest.mark.parametrize("seed", range(8))
def test_without_capacities_the_chain_is_exact(seed):
    """Of a sum: energy without idle power is one."""
    problem = random_problem(seed, 6, 3, objective=Objective({"cost": 1.0, "energy": 0.01}))
    problem = replace(problem, capacity=problem.capacity * 1000, idle_w=0.0)
    layers = chain(problem)
    assert layers is not None
    assert evaluate(problem, layers).value == pytest.approx(brute_force(problem)[0], rel=1e-9)


def layered(seed: int, objective: Objective | None = None) -> Problem:
    return random_problem(seed, 2, 2, phases=1 + seed % 2, layered=True, objective=objective)


@pytest.mark.parametrize("seed", range(10))
def test_patterns_bound_what_trying_everything_finds_and_never_claim_better(seed):
    problem = layered(seed, OBJECTIVES[seed % 5])
    seeds = [x for x in (*evaluate_all(problem).values(), chain(problem)) if x]
    best, _ = brute_force(problem)
    found = solve_patterns(problem, seeds, gap=1e-6)
    assert found.bound <= best * (1 + 1e-6)
    assert found.value >= best * (1 - 1e-6)
    if found.layers is not None:
        seen = evaluate(problem, found.layers)
        assert seen.feasible
        assert seen.value == pytest.approx(found.value, rel=1e-6)


def test_many_like_layers_close_the_gap_that_few_leave():
    """Rounding costs part of a layer, and the relaxation part of a change of device: of 60 layers about a per cent."""
    problem = layered(4)
    many = replace(problem, order=(0, *[1] * 60, 2))
    one = sum(float(op.memory.max()) for op in problem.blocks[1].operators)
    many = replace(many, capacity=np.array([0.55, 0.6]) * one * 60)
    found = solve(many, gap=0.002)
    assert found.layers is not None
    assert found.gap < 0.015
    assert len(set(found.layers[1:-1])) > 1  # one pattern for all layers does not fit


def test_layers_on_their_own_and_as_one_block_are_worth_the_same():
    for seed in range(6):
        problem = layered(seed)
        whole = flat(problem)
        rng = np.random.default_rng(seed)
        choice = tuple(int(rng.integers(len(op.options))) for op in whole.blocks[0].operators)
        a, b = evaluate(problem, unflatten(problem, choice)), evaluate(whole, [choice])
        assert a.value == pytest.approx(b.value, rel=1e-12)
        assert a.totals.memory == pytest.approx(b.totals.memory)
        assert a.metrics == pytest.approx(b.metrics)


def test_scaling_changes_no_value():
    for seed in range(5):
        problem = replace(case(seed), objective=OBJECTIVES[seed])
        small, unit = scaled(problem)
        choice = tuple(0 for _ in problem.blocks[0].operators)
        assert evaluate(small, [choice]).value * unit == pytest.approx(evaluate(problem, [choice]).value, rel=1e-9)


# -- infeasible ------------------------------------------------------------------------------------
def test_what_binds_is_named_with_the_least_excess():
    """All of 6 operators need 1.1 times what both memories hold together: no placement exceeds less in all."""
    problem = replace(random_problem(1, 6, 2, forbid=0.0), objective=Objective())
    sizes = [float(op.memory.max()) for op in problem.blocks[0].operators]
    problem = replace(problem, capacity=np.array([0.5, 0.5]) * sum(sizes) / 1.1)
    found = solve(problem)
    assert found.status == "infeasible"
    assert found.binding is not None
    assert found.binding.proven
    excess = sum(used - allowed for used, allowed in found.binding.exceeded.values())
    assert excess >= sum(sizes) * (1 - 1 / 1.1) * (1 - 1e-6)
    assert set(found.binding.exceeded) <= set(problem.pools)
    assert all(pool in found.binding.reason() for pool in found.binding.exceeded)


def test_a_limit_that_nothing_meets_is_named():
    problem = random_problem(3, 5, 2, forbid=0.0)
    problem = replace(problem, capacity=problem.capacity * 100)
    fastest, _ = brute_force(problem)
    for share, status in ((0.99, "infeasible"), (1.001, "optimal")):
        limited = replace(problem, objective=Objective({"cost": 1.0}, {"latency": share * fastest}))
        found = solve(limited)
        assert found.status == status
        if found.binding is not None:
            assert list(found.binding.exceeded) == ["latency"]
            assert found.binding.exceeded["latency"][0] == pytest.approx(fastest, rel=1e-6)


def test_patterns_name_what_binds_too():
    problem = layered(4)
    problem = replace(problem, capacity=problem.capacity * 0.2)
    seeds = [[tuple(0 for _ in problem.blocks[b].operators) for b in problem.order]]
    found = binding(problem, seeds)
    assert found is not None
    assert found.proven
    assert found.bound <= found.total * (1 + 1e-6)


# -- parts -----------------------------------------------------------------------------------------
def test_elimination_finds_the_least_of_a_random_graph():
    rng = np.random.default_rng(0)
    sizes = [3, 4, 2, 5, 3]
    scopes = [(0, 1), (1, 2), (0, 3), (2, 3), (3, 4)]
    tables = [(s, rng.random([sizes[v] for v in s])) for s in scopes]
    found = eliminate(sizes, tables, elimination_order(sizes, scopes, (0,)), (0,))
    whole = sum(np.expand_dims(t, tuple(v for v in range(5) if v not in s)) for s, t in tables)
    assert found.table == pytest.approx(whole.min(axis=(1, 2, 3, 4)))
    for at in range(3):
        values = found.assignment((at,))
        assert values[0] == at
        assert sum(t[tuple(values[v] for v in s)] for s, t in tables) == pytest.approx(found.table[at])


def test_a_graph_that_is_too_wide_is_refused():
    sizes = [20] * 8
    scopes = [(i, j) for i in range(8) for j in range(i + 1, 8)]
    with pytest.raises(TooWideError):
        elimination_order(sizes, scopes, ())


def test_repair_moves_until_all_fits_and_says_when_it_cannot():
    problem = replace(random_problem(5, 8, 3, forbid=0.0), objective=Objective())
    layers = Chain(problem, full=True).best(sum_weights(problem))[1]
    tight = replace(problem, capacity=np.array([1.0, 1.0, 1.0]) * 5)
    mended = repair(tight, layers)
    assert mended is not None
    assert evaluate(tight, mended).feasible
    assert repair(replace(problem, capacity=problem.capacity * 1e-3), layers) is None


def test_128_operators_on_8_devices_are_answered_within_five_per_cent():
    problem = layer_graph(16, 8, seed=1)
    found = solve(problem, time_limit=60, gap=0.05)
    assert found.status == "optimal"
    assert found.layers is not None
    assert evaluate(problem, found.layers).feasible
    assert found.value * 0.95 <= found.bound <= found.value
    assert found.solve_s <= 60
    free = chain(problem)
    assert free is not None
    assert not evaluate(problem, free).feasible  # the memories bind
    assert found.value > evaluate(problem, free).value


def test_out_of_time_there_is_still_an_answer_with_its_bound():
    problem = layer_graph(16, 8, seed=2)
    found = solve(problem, time_limit=1.0, gap=0.0)
    assert found.status == "feasible"
    assert found.layers is not None
    assert evaluate(problem, found.layers).feasible
    assert 0 < found.bound < found.value
    assert found.gap == pytest.approx(1 - found.bound / found.value)
