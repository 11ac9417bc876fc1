"""Do units with a direct statement (``formal/direct.sv``) agree with it, and would a fault be seen?"""

from __future__ import annotations

import pytest
from rtl_support import UNITS, need_yosys, sets

from tokenfab.rtl import mutants
from tokenfab.rtl.direct import prove_direct
from tokenfab.rtl.units import load_unit
from tokenfab.rtl.yosys import YosysError

pytestmark = pytest.mark.slow
STATED = [name for name in UNITS if (load_unit(name).folder / "formal" / "direct.sv").is_file()]
FAULTS = [
    pytest.param(name, number, id=f"{name}-{number}")
    for name in STATED
    for number, mutant in enumerate(load_unit(name).recipe["mutant"])
    if "direct" in mutant
]


@pytest.mark.parametrize(("name", "number"), sets("direct"))
def test_the_unit_computes_what_is_stated_directly(name, number):
    need_yosys()
    table = load_unit(name).recipe["direct"][number]
    assert prove_direct(load_unit(name), table) == table["frames"] > 5


@pytest.mark.parametrize("name", STATED)
def test_every_statement_has_a_fault_that_it_must_see(name):
    recipe = load_unit(name).recipe
    assert {m["direct"] for m in recipe["mutant"] if "direct" in m} == {*range(len(recipe["direct"]))}


@pytest.mark.parametrize(("name", "number"), FAULTS)
def test_the_proof_finds_a_planted_fault(name, number, tmp_path):
    need_yosys()
    unit = load_unit(name)
    mutant = unit.recipe["mutant"][number]
    sources = mutants.mutated_sources(unit, mutant, tmp_path)
    with pytest.raises(YosysError, match="differs from its direct statement in cycle"):
        prove_direct(unit, unit.recipe["direct"][mutant["direct"]], sources)
