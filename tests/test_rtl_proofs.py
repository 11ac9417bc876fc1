"""Would the tests and proofs of every unit notice a fault? And does synthesis make of it what it should?"""

from __future__ import annotations

import pytest
from rtl_support import UNITS, need_simulator, need_yosys, sets

from tokenfab.rtl import mutants
from tokenfab.rtl.units import load_unit
from tokenfab.rtl.yosys import YosysError, prove_netlist

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "number"), sets("mutant"))
def test_a_planted_fault_is_found(name, number):
    need_simulator("icarus")
    verdict = mutants.try_mutant(load_unit(name), number)
    assert verdict.killed_by, f"survived: {verdict.file}: {verdict.replace}"


@pytest.mark.parametrize(("name", "number"), sets("formal"))
def test_the_netlist_does_what_the_rtl_does(name, number):
    need_yosys()
    unit = load_unit(name)
    assert prove_netlist(unit, unit.sets("formal")[number]) > 100


@pytest.mark.parametrize("name", UNITS)
def test_the_proof_fails_for_a_netlist_with_a_fault(name, tmp_path):
    need_yosys()
    unit = load_unit(name)
    number = next(i for i, m in enumerate(unit.recipe["mutant"]) if m.get("formal"))
    sources = mutants.mutated_sources(unit, unit.recipe["mutant"][number], tmp_path)
    with pytest.raises(YosysError, match="unproven"):
        prove_netlist(unit, unit.sets("formal")[0], sources)


def test_a_mutant_that_fits_no_source_is_an_error(tmp_path):
    from tokenfab.errors import InputError

    unit = load_unit(UNITS[0])
    with pytest.raises(InputError, match="stands 0 times"):
        mutants.mutated_sources(unit, {"file": unit.sources[-1].name, "find": "no such text", "replace": ""}, tmp_path)
