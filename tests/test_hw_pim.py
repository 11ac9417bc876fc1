"""Units near DRAM banks: command trains by hand, one by one and against measured runs; devices, rules and the laws."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.cost import cost, kind_models
from tokenfab.hw.devices import load_device
from tokenfab.hw.dram import Geometry, Timing, geometry_of, last_activate, row_cycle, timing_of, train, with_refresh
from tokenfab.hw.dram_events import Command, HostReads, broken_rules, simulate
from tokenfab.hw.pim import host_of, pim_model, rule_of
from tokenfab.hw.pim_unit import Unit, unit_of
from tokenfab.hw.spec import Device
from tokenfab.hw.tiers import levels
from tokenfab.validation import pim as measured
from tokenfab.workloads.compiled import CompiledTrace, compile_trace
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.parallel import tensor_parallel

DEVICES = ("attacc-bank", "attacc-bank-group", "attacc-buffer", "duplex-logic-pim", "hbm-pim", "gddr6-aim")
ROUND = Timing(1e-9, rcd=14, rp=14, ras=34, rrd=4, faw=20, rtp=5, ccd=4, ccd_s=2, read=14, refi=3900, rfc=260)
PLAIN = Geometry(channels=2, units=16, banks_per_unit=1, activates=4, interleave=1, row_bytes=1024, column_bytes=32)


@functools.cache
def compiled(model: str = "mixtral-8x7b", tp: int = 1) -> CompiledTrace:
    return compile_trace(tensor_parallel(load_trace(model), tp))


def changed(device: Device, **values: float) -> Device:
    """``device`` with other [parameters]; 0 takes one out."""
    held = dict(device.parameters)
    for name, value in values.items():
        one = held.pop(name, device.parameters["stacks"])
        if value:
            held[name] = one.model_copy(update={"value": value})
    return device.model_copy(update={"parameters": held})


# ---------------------------------------------------------------- timing by hand


def test_activates_keep_trrd_until_the_fifth_meets_the_window_of_four() -> None:
    assert [last_activate(n, ROUND) for n in (1, 2, 4)] == [0, 4, 12]
    assert last_activate(5, ROUND) == 20  # tFAW, not 4 × tRRD = 16
    assert last_activate(5, replace(ROUND, faw=16)) == 16  # both
    assert last_activate(8, ROUND) == 32
    assert last_activate(9, ROUND) == 40


def test_a_row_cycle_is_activate_column_precharge_and_never_below_tras() -> None:
    assert row_cycle(32, PLAIN, ROUND) == 12 + (14 + 31 * 4 + 5) + 14
    assert row_cycle(4, PLAIN, ROUND) == 12 + 34 + 14  # 14 + 3 × 4 + 5 = 31 < tRAS
    assert row_cycle(5, PLAIN, ROUND) == 12 + 35 + 14


def test_a_train_opens_one_set_more_for_one_column_more_than_its_rows_hold() -> None:
    one = float(row_cycle(32, PLAIN, ROUND))
    assert train(np.array([32]), PLAIN, ROUND)[0] == one
    assert train(np.array([33]), PLAIN, ROUND)[0] == one + float(row_cycle(1, PLAIN, ROUND))
    assert train(np.array([0]), PLAIN, ROUND)[0] == 0


def test_sets_in_turn_hide_their_opening_behind_columns_where_those_are_long_enough() -> None:
    two = replace(PLAIN, interleave=2)
    hidden = float(row_cycle(32, two, ROUND)) - 32 * 4
    assert train(np.array([320]), two, ROUND)[0] == 320 * 4 + hidden
    slow = replace(ROUND, rp=200)
    assert train(np.array([320]), two, slow)[0] == 5 * float(row_cycle(32, two, slow))


def test_refresh_takes_its_share_and_a_set_again_where_opening_is_hidden() -> None:
    assert with_refresh(np.array([1000.0]), PLAIN, ROUND)[0] == pytest.approx(1000 / (1 - 260 / 3900))
    two = replace(PLAIN, interleave=2)
    again = float(row_cycle(32, two, ROUND)) - 128
    assert with_refresh(np.array([1000.0]), two, ROUND)[0] == pytest.approx(1000 / (1 - (260 + again) / 3900))
    assert with_refresh(np.array([1000.0]), two, ROUND, hidden=True)[0] == 1000


LEGAL = [Command(x * 4.0, "ACT", "units", 0) for x in range(4)] + [
    Command(26, "COL", "units", 0), Command(30, "COL", "units", 0), Command(46, "PRE", "units", 0),
    Command(60, "ACT", "units", 0),
]  # fmt: skip
SHIFTS = (  # command moved one cycle earlier (later for tRAS, tRTP), the rule it breaks
    (1, -1, "tRRD"), (4, -1, "not 14"), (5, -1, "COL 3 after the last, not 4"), (6, -1, "not 34"), (7, -1, "not 14"),
)  # fmt: skip


@pytest.mark.parametrize(("place", "by", "rule"), SHIFTS)
def test_every_rule_is_kept_at_its_cycle_and_broken_one_before(place: int, by: int, rule: str) -> None:
    assert broken_rules(LEGAL, ROUND) == []
    log = [c._replace(cycle=c.cycle + by) if i == place else c for i, c in enumerate(LEGAL)]
    assert any(rule in line for line in broken_rules(log, ROUND))


def test_a_fifth_activate_is_legal_at_tfaw_and_not_before() -> None:
    log = [Command(x * 4.0, "ACT", "units", x) for x in range(4)]
    assert broken_rules([*log, Command(20, "ACT", "units", 4)], ROUND) == []
    assert "tFAW" in broken_rules([*log, Command(19, "ACT", "units", 4)], ROUND)[0]


def test_a_precharge_is_legal_at_trtp_after_the_last_column_and_not_before() -> None:
    log = [Command(0, "ACT", "units", 0), Command(40, "COL", "units", 0)]
    assert broken_rules([*log, Command(45, "PRE", "units", 0)], ROUND) == []
    assert "tRTP" in broken_rules([*log, Command(44, "PRE", "units", 0)], ROUND)[0]


# ---------------------------------------------------------------- command by command


@given(
    columns=st.integers(1, 400), interleave=st.integers(1, 4), activates=st.sampled_from([1, 2, 4, 8, 16]),
    banks=st.sampled_from([1, 2, 4]), rcd=st.integers(5, 40), rp=st.integers(5, 60), ras=st.integers(10, 90),
    rrd=st.integers(1, 10), faw=st.integers(4, 60), ccd=st.integers(2, 8),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_commands_one_by_one_keep_all_rules_and_take_the_closed_form(
    columns, interleave, activates, banks, rcd, rp, ras, rrd, faw, ccd
) -> None:
    t = replace(ROUND, rcd=rcd, rp=rp, ras=ras, rrd=rrd, faw=faw, ccd=ccd)
    g = replace(PLAIN, interleave=interleave, activates=activates, banks_per_unit=banks)
    outcome = simulate([columns], g, t, refresh=False)
    assert broken_rules(outcome.log, t) == []
    assert sum(c.name == "COL" for c in outcome.log) == columns
    closed = float(train(np.array([columns]), g, t)[0])
    if interleave == 1:
        # activates of one set may fall into the last one's window of four, which the closed form leaves out
        inside = faw <= row_cycle(1, g, t)
        assert outcome.cycles == pytest.approx(closed, rel=1e-12 if inside else 0.05)
    else:  # sets that are open at once share tRRD and tFAW too: that is contention, never gain
        assert outcome.cycles >= closed * (1 - 1e-12)


@pytest.mark.parametrize("name", DEVICES)
def test_devices_commands_agree_with_the_closed_form_within_two_percent(name: str) -> None:
    unit = unit_of(load_device(name))
    g, t = unit.geometry, unit.timing
    columns = g.columns * 2 + 7
    outcome = simulate([columns, columns], g, t, refresh=False)
    assert broken_rules(outcome.log, t) == []
    assert outcome.cycles == pytest.approx(2 * float(train(np.array([columns]), g, t)[0]), rel=0.02)


@pytest.mark.parametrize("name", ["attacc-bank", "duplex-logic-pim", "hbm-pim", "gddr6-aim"])
def test_refresh_one_by_one_takes_its_share_within_two_percent(name: str) -> None:
    unit = unit_of(load_device(name))
    g, t = unit.geometry, unit.timing
    columns = g.columns * (40_000 // g.columns)
    outcome = simulate([columns], g, t)
    assert broken_rules(outcome.log, t) == []
    assert sum(c.name == "REF" for c in outcome.log) >= 15
    closed = float(with_refresh(train(np.array([columns]), g, t), g, t)[0])
    assert outcome.cycles == pytest.approx(closed, rel=0.02)


def test_moves_wait_before_a_train_or_run_beside_it() -> None:
    one = float(train(np.array([320]), PLAIN, ROUND)[0])
    assert simulate([320, 320], PLAIN, ROUND, moves=[100, 100], refresh=False).cycles == 2 * (one + 100)
    beside = simulate([320, 320], PLAIN, ROUND, moves=[100, 5000], refresh=False, double_buffer=True)
    assert beside.cycles == one + 5000


def test_a_host_that_reads_the_same_banks_waits_for_units_and_they_for_it() -> None:
    alone = simulate([3200], PLAIN, ROUND, refresh=False)
    seldom = simulate([3200], PLAIN, ROUND, refresh=False, host=HostReads(2000, 8))
    often = simulate([3200], PLAIN, ROUND, refresh=False, host=HostReads(500, 8))
    assert alone.cycles < seldom.cycles < often.cycles
    own = 14 + 8 * 2  # of an idle bank: tRCD and its columns
    assert np.mean(often.host_cycles) > 2 * own
    assert broken_rules(often.log, ROUND) == []
    reads = len(often.host_cycles)
    each = ROUND.rcd + 8 * 2 + ROUND.rp  # what one takes from the units, at least tRAS + tRP
    assert often.cycles - alone.cycles == pytest.approx(reads * max(each, ROUND.ras + ROUND.rp), rel=0.2)


def test_the_same_commands_come_every_time() -> None:
    a, b = (simulate([700], PLAIN, ROUND, host=HostReads(300, 4)) for _ in range(2))
    assert a.log == b.log


# ---------------------------------------------------------------- devices


def test_published_peaks_follow_from_the_geometry() -> None:
    units = {name: unit_of(load_device(name)) for name in DEVICES}
    assert units["hbm-pim"].peak_flops() / 4 == pytest.approx(1.2e12, rel=0.03)  # 1.2 TFLOPS per cube
    assert units["hbm-pim"].peak_bytes_s() == pytest.approx(4.9e12, rel=0.01)
    assert units["gddr6-aim"].peak_flops() / 16 == pytest.approx(1e12, rel=0.03)  # 1 TFLOPS per chip
    duplex = units["duplex-logic-pim"]
    assert duplex.peak_flops() / 5 == pytest.approx(21.3e12, rel=0.01)
    assert duplex.peak_bytes_s() == pytest.approx(4 * 3352e9, rel=0.01)
    assert units["attacc-buffer"].peak_bytes_s() / 5 == pytest.approx(670.4e9, rel=0.01)
    attacc = units["attacc-bank"].unlimited(4)
    assert attacc.peak_bytes_s() / 5 == pytest.approx(16 * 670.4e9, rel=0.01)


@pytest.mark.parametrize("name", DEVICES)
def test_a_devices_rate_is_what_its_geometry_gives(name: str) -> None:
    device = load_device(name)
    assert device.rate("fp16")[1].value == pytest.approx(unit_of(device).peak_flops(), rel=0.001)


def test_an_attacc_head_takes_the_commands_that_the_published_runs_count() -> None:
    # 512 heads of 552 tokens, 128 elements of 2 bytes: 71696 MAC commands in 16 channels, 16 of them for no head
    bank, group, buffer = (unit_of(load_device(f"attacc-{x}")) for x in ("bank", "bank-group", "buffer"))
    assert 512 * 2 * bank.columns(256, np.array([552.0])) == 71696 - 16
    # 157 heads of 2056 tokens of 160 bytes: 204481 at bank groups, where odd columns are shared out
    assert 157 * 2 * group.columns(160, np.array([2056.0])) == pytest.approx(204481, rel=0.011)
    assert 188 * 2 * buffer.columns(256, np.array([2049.0])) == pytest.approx(3116016, rel=0.011)


def test_attention_by_hand_for_pairs_and_for_a_last_head_alone() -> None:
    unit = unit_of(load_device("attacc-bank"))
    unit = replace(unit, geometry=replace(unit.geometry, channels=16))
    one = np.ones(1)
    set_, share = 12 + 19 + 31 * 6 + 5 + 19, 1 - 260 / 5070
    part = 12 + 19 + 3 * 6 + 5 + 19  # 4 columns, above tRAS or not
    part = 12 + max(19 + 3 * 6 + 5, 45) + 19
    # 1056 tokens of 256 B: 8 columns / 4 slices x 66 lines = 132 columns = 4 sets and 4 columns, twice
    head = 2 * (4 * set_ + part)
    clock = 0.769e-9
    two = unit.attention(32 * one, 1056 * one, (128, 128), one, 2, 2).seconds[0]
    assert two == pytest.approx(2 * head / share * clock, rel=1e-12)
    alone = unit.attention(16 * one, 1056 * one, (128, 128), one, 2, 2).seconds[0]
    moves = 5 * 33 * 2  # 5 tiles of 256 tokens, each time 1056 x 2 B / 64 B moves of 2 cycles
    assert alone == pytest.approx((head / share + moves) * clock, rel=1e-12)
    assert alone < two


def test_a_last_head_never_costs_more_than_another_one() -> None:
    unit, one = unit_of(load_device("attacc-buffer")), np.ones(1)
    pair, alone = (unit.attention(h * 80 * one, 60000 * one, (128, 128), one, 2, 2).seconds[0] for h in (2, 1))
    assert alone <= pair


def test_a_product_by_hand() -> None:
    unit = replace(unit_of(load_device("gddr6-aim")), buffer=np.inf)
    one = np.ones(1)
    spent = unit.product(4096 * one, 4096 * one, one, 2, 2)
    columns = (8192 / 32) * (4096 / 32 / 16)  # columns of a line x lines of a bank
    set_ = 39 + max(35 + 63 * 2 + 4, 69) + 35
    moves = 2 * (8192 / 32) + 2 * (4096 / 32 * 2 / 32)
    assert spent.seconds[0] == pytest.approx((columns / 64 * set_ + moves) / (1 - 241 / 3800) * 0.5e-9, rel=1e-12)
    assert spent.rows[0] == 4096 * 8192 / 2048
    assert spent.macs[0] == 4096**2
    twice = unit.product(4096 * one, 4096 * one, 2 * one, 2, 2)
    assert twice.read_bytes[0] == 2 * spent.read_bytes[0]


def test_logic_die_units_read_a_column_once_for_all_vectors() -> None:
    unit, one = unit_of(load_device("duplex-logic-pim")), np.ones(1)
    few, many = (unit.product(14336 * one, 4096 * one, m * one, 2, 2) for m in (8, 9))
    assert many.read_bytes[0] == few.read_bytes[0]
    assert many.seconds[0] == pytest.approx(2 * few.seconds[0], rel=0.02)
    assert unit.product(14336 * one, 4096 * one, one, 2, 2).seconds[0] == pytest.approx(few.seconds[0], rel=1e-9)


# ---------------------------------------------------------------- a model on a device


@pytest.mark.parametrize("name", DEVICES)
def test_costs_hold_together_on_every_device(name: str) -> None:
    device = load_device(name)
    for q, c in ((1, [10, 1000, 4000]), (512, [0, 0, 0])):
        costs = cost(compiled("llama-3-8b"), device, [1, 8, 64], q, c)
        assert np.isfinite(costs.latency_s).all()
        assert (costs.low_s <= costs.latency_s).all()
        assert (costs.latency_s <= costs.high_s).all()
        np.testing.assert_allclose(np.sum(list(costs.bound.values()), axis=0), 1.0)
        np.testing.assert_allclose(costs.energy_j, np.sum(list(costs.energy_parts_j.values()), axis=0))


@pytest.mark.parametrize("name", DEVICES)
def test_units_never_beat_their_banks_nor_their_arithmetic(name: str) -> None:
    device, trace = load_device(name), compiled("llama-3-8b")
    near, unit = pim_model(trace, device), unit_of(device)
    basis = trace.basis_at([1, 16, 256], 1, [500, 2000, 8000])
    got = near.rows(basis)
    for i in near.work:
        if trace.rows[i].operator.kind == "kv_append":
            continue
        held = trace.quantity("weight_bytes", basis)[i] + trace.quantity("kv_bytes", basis)[i]
        assert (got.time_s[i] >= held / unit.peak_bytes_s() * 0.999 * unit.stall).all()
        assert (got.time_s[i] >= trace.quantity("flops", basis)[i] / unit.peak_flops() * 0.999 * unit.stall).all()


FASTER = {"clock_period": 0.5, "t_rcd": 0.5, "t_rp": 0.5, "t_ras": 0.5, "t_rrd": 0.5, "t_faw": 0.5, "t_rfc": 0.5,
          "t_rtp": 0.5, "interval": 0.5, "move_interval": 0.5, "channels": 2, "reuse": 2, "stacks": 2}  # fmt: skip


@given(
    name=st.sampled_from(DEVICES), what=st.sampled_from(sorted(FASTER)), b=st.integers(1, 200),
    q=st.sampled_from([1, 64]), c=st.integers(0, 6000),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_faster_banks_never_make_anything_slower(name: str, what: str, b: int, q: int, c: int) -> None:
    slow = load_device(name)
    if what not in slow.parameters:
        return
    least = slow.parameters["t_ccd_s"].value if what == "interval" else 0.0
    fast = changed(slow, **{what: max(slow.parameters[what].value * FASTER[what], least)})
    trace = compiled("llama-3-8b")
    basis = trace.basis_at(b, q, c)
    before, after = (kind_models()["pim"](trace, d).rows(basis).time_s for d in (slow, fast))
    assert (after <= before * (1 + 1e-9)).all()


def test_prefill_stays_on_the_host_and_decoding_attention_goes_to_the_banks() -> None:
    device, trace = load_device("attacc-bank"), compiled("gpt-3-175b", 8)
    model = kind_models()["pim"](trace, device)
    row = next(i for i, r in enumerate(trace.rows) if r.operator.kind == "attention")
    costs = model.rows(trace.basis_at([1, 32], [2048, 1], [0, 2000]))
    names = [model.reasons[k] for k in costs.bound[row]]
    assert not names[0].startswith("near")
    assert names[1].startswith("near")


def test_rows_in_formats_that_units_lack_stay_on_the_host() -> None:
    device = load_device("attacc-bank")
    bare = device.model_copy(update={"engines": {**device.engines, "matrix": {"int4": device.rate("int8")[1]}}})
    assert not any(
        compiled("llama-3-8b").rows[i].operator.kind == "attention"
        for i in pim_model(compiled("llama-3-8b"), bare).work
    )


def test_memory_is_one_where_banks_are_the_hosts_and_two_where_they_hang_off_a_link() -> None:
    duplex, attacc, aim = (load_device(x) for x in ("duplex-logic-pim", "attacc-bank", "gddr6-aim"))

    def rooms(device: Device) -> list[tuple[tuple[str, ...], float]]:
        return [(level.roles, level.capacity_bytes) for level in levels(device)]

    assert rooms(duplex) == [(("weights", "kv", "activations"), 80e9)]
    assert rooms(attacc) == [(("kv",), 80e9), (("weights", "activations"), 80e9)]
    assert rooms(aim) == [(("weights", "kv"), 16e9), (("activations",), 2.0**40)]
    assert host_of(duplex).dram is duplex.dram
    assert host_of(attacc).dram.bandwidth.value == 3352e9


def test_energy_of_banks_by_hand() -> None:
    device, trace = load_device("attacc-bank"), compiled("gpt-3-175b", 8)
    basis = trace.basis_at(32, 1, 2000)
    row = next(i for i, r in enumerate(trace.rows) if r.operator.kind == "attention")
    parts = pim_model(trace, device).rows(basis).energy_j
    size = trace.quantity("kv_bytes", basis)[row, 0]
    assert parts["dram"][row, 0] == pytest.approx(size * 8 * 0.44e-12, rel=1e-3)
    assert parts["activate"][row, 0] == pytest.approx(size / 1024 * 0.909e-9, rel=1e-3)
    assert parts["compute"][row, 0] == pytest.approx(trace.quantity("flops", basis)[row, 0] * 0.32e-12, rel=1e-3)
    # 4.4 pJ per byte in all, as the simulator's table has it, before the multipliers
    assert (parts["dram"] + parts["activate"])[row, 0] / size == pytest.approx(4.4e-12, rel=0.01)


def test_what_a_device_lacks_is_said() -> None:
    device, trace = load_device("attacc-bank"), compiled("llama-3-8b")
    with pytest.raises(InputError, match="host is missing"):
        host_of(device.model_copy(update={"host": None}))
    with pytest.raises(InputError, match=r"parameters\.t_rcd is missing"):
        pim_model(trace, changed(device, t_rcd=0))
    with pytest.raises(InputError, match="nothing runs near memory"):
        rule_of(changed(device, near_attention=0))
    with pytest.raises(InputError, match="accepted: a whole number"):
        geometry_of(changed(device, units=1.5))
    with pytest.raises(InputError, match="nothing is left to work in"):
        timing_of(changed(device, t_rfc=5070))
    with pytest.raises(InputError, match="does not divide"):
        unit_of(changed(device, slices=7))
    with pytest.raises(InputError, match="no multiple of column"):
        geometry_of(changed(device, row=1000))
    with pytest.raises(InputError, match="no time"):
        timing_of(changed(device, clock_period=0))
    with pytest.raises(InputError, match="is below"):
        unit_of(changed(device, stall=0.1))


def test_refresh_leaves_something_to_work_in_one_cycle_below_the_bound() -> None:
    assert timing_of(changed(load_device("attacc-bank"), t_rfc=5069)).rfc == 5069


# ---------------------------------------------------------------- measured runs


@pytest.mark.truth
@pytest.mark.parametrize("device", measured.DEVICES)
def test_odd_runs_are_within_three_percent_and_files_say_what_even_ones_give(truth: Path, device: str) -> None:
    (part,) = measured.compare(truth, device)
    error = np.abs(part.predicted / part.measured - 1)
    assert error.mean() <= 0.03
    ratio = part.measured / part.predicted
    assert 0.85 <= np.mean((ratio >= part.low) & (ratio <= part.high)) <= 0.95
    even = measured.read_runs(truth, device).rows(slice(0, None, 2))
    held = load_device(device)
    assert measured.fit_stall(even, device) == pytest.approx(held.parameters["stall"].value, abs=0.01)
    stated = held.intervals["attention_dram"]
    assert measured.quantiles(even, device) == pytest.approx((stated.low.value, stated.high.value), abs=0.002)


def test_a_table_that_is_absent_short_or_broken_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not there"):
        measured.read_runs(tmp_path, "attacc-bank")
    table = tmp_path / measured.FILE
    table.parent.mkdir()
    head = "L,nhead,dhead,dbyte,pim_type,power_constraint,cycle\n"
    table.write_text(head + "100,3,128,2,BA,True,900\n")
    with pytest.raises(InputError, match="fewer than two"):
        measured.read_runs(tmp_path, "attacc-bank")
    table.write_text(head + "100,3,128,2,BA,True,900\n" * 3 + "0,3,128,2,BA,True,900\n")
    assert (
        measured.read_runs(tmp_path, "attacc-bank").seconds.size,
        measured.read_runs(tmp_path, "attacc-bank").dropped,
    ) == (3, 1)
    table.write_text(head + "100,3,128,two,BA,True,900\n")
    with pytest.raises(InputError, match="line 2"):
        measured.read_runs(tmp_path, "attacc-bank")


def test_the_unlimited_unit_is_the_same_but_for_its_interval() -> None:
    unit: Unit = measured.stack_of("attacc-bank", limited=True)
    free = measured.stack_of("attacc-bank", limited=False)
    assert (unit.timing.ccd, free.timing.ccd, unit.geometry.channels) == (6, 4, 16)
    assert replace(free, timing=unit.timing) == unit
