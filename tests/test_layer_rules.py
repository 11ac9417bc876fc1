"""Rule books of published simulators: by hand, layer by layer, and every published figure of BitMoD's."""

from __future__ import annotations

import csv
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.layer_rules import Layer, fetches, ports, tally
from tokenfab.validation.bitmod import (
    FILES,
    load_rules,
    means,
    model_layers,
    published_rows,
    ruled,
    rules_energy,
    rules_speedups,
)

BOOK = load_rules("bitmod-2024")


# -- by hand --------------------------------------------------------------------------------------------
def test_a_projection_of_llama_2_7b_on_the_fp16_array():
    """4096 x 4096 by 256 tokens on 32 x 24 elements: 4096 · 128 · 11 tiles; 32 MiB of weights four times."""
    found = tally(BOOK, "FP16", "prefill", "Llama-2-7B", [Layer(1, 1, 256, 4096, 4096, 4096)])
    assert found.compute == 4096 * 128 * 11
    assert found.cycles == max(found.compute, (4 * 2 * 4096**2 + 2 * 2 * 256 * 4096) // 32)
    joules = 1.5 * 0.77e-12 * 768 * found.compute + found.compute * (92.7944 + 82.8304) * 1e-12
    writes = 4 * 4096 * 1024 * 83.3536 * 64 / 512 + 2 * 256 * 1024 * 64.04792 * 64 / 384
    assert found.chip_j == pytest.approx(joules + writes * 1e-12, rel=1e-12)
    assert found.dram_j == pytest.approx((4 * 2 * 4096**2 + 2 * 2 * 256 * 4096) * 8 * 18.75e-12, rel=1e-12)


def test_bit_serial_elements_take_half_the_bits_in_cycles():
    layer = [Layer(1, 1, 256, 4096, 4096, 4096)]
    lossless, lossy = (tally(BOOK, f"BitMoD-{x}", "prefill", "Llama-2-7B", layer).compute for x in ("LL", "LY"))
    assert (lossless, lossy) == (3 * 1024 * 128 * 8, 2 * 1024 * 128 * 8)


def test_ports_are_as_wide_as_what_all_rows_take():
    assert ports(BOOK.accelerators["FP16"], "prefill", "Llama-2-7B") == (512, 384)
    assert ports(BOOK.accelerators["BitMoD-LL"], "decode", "Llama-2-7B") == (1024, 512)
    assert ports(BOOK.accelerators["OliVe"], "decode", "Yi-6B") == (576, 256)  # a port that nobody published


def test_prompts_of_the_old_rules_count_attention_once_per_head():
    """All 32 heads' scores by the whole hidden size, where the new ones have 128 inputs a head."""
    old, new = (model_layers(load_rules(f"bitmod-{year}"), "Llama-2-7B", "prefill")[-2] for year in (2024, 2025))
    work = [x.count * x.m * x.n * x.k for x in (old, new)]
    assert work[0] == 32 * work[1] == 32 * 32 * 256 * 256 * 128


@given(st.floats(1, 1e9), st.floats(1, 1e9), st.floats(1, 1e8))
def test_fetches_move_the_least(weights, inputs, room):
    """Brute force over both ways; nothing is fetched again where either operand fits."""
    of_weights, of_inputs = fetches(weights, inputs, room)
    moved = of_weights * weights + of_inputs * inputs
    if weights <= room or inputs <= room:
        assert (of_weights, of_inputs) == (1, 1)
        return
    ways = [ceil(inputs / room) * weights + inputs, ceil(weights / room) * inputs + weights]
    assert moved == pytest.approx(min(ways))
    assert fetches(weights, inputs, 2 * room)[0] <= max(of_weights, ceil(inputs / room))


@given(
    st.integers(1, 3),
    st.integers(1, 600),
    st.integers(1, 9000),
    st.integers(1, 9000),
    st.sampled_from(sorted(BOOK.accelerators)),
)
def test_more_work_takes_no_fewer_cycles_and_energy_is_its_parts(count, m, n, k, name):
    def at(*sizes):
        return tally(BOOK, name, "prefill", "Llama-2-7B", [Layer(2, count, *sizes, sizes[2])])

    one, more = at(m, n, k), at(m + 1, n + 1, k + 1)
    assert more.cycles >= one.cycles >= one.compute > 0
    assert one.total_j == one.chip_j + one.dram_j > 0
    twice = tally(BOOK, name, "prefill", "Llama-2-7B", [Layer(4, count, m, n, k, k)])
    assert twice.cycles == 2 * one.cycles


# -- everything published -------------------------------------------------------------------------------
@pytest.mark.truth
@pytest.mark.parametrize(("rules", "with_ports"), [("bitmod-2024", 59), ("bitmod-2025", 53)])
def test_every_published_cycle_and_energy_is_met(truth, rules, with_ports):
    """60 rows each; where both buffers' ports are known, energies to the microjoule they are rounded to."""
    rows = published_rows(truth, rules)
    assert len(rows) == 60
    assert [r for r in rows if not r.same_cycles] == []
    assert [r for r in rows if not r.same_energy] == []
    assert sum(r.energy_known for r in rows) == with_ports


@pytest.mark.truth
def test_every_published_layer_is_met(truth):
    """Compute and DRAM cycles of single layers at the artifact's later state, linear and attention."""
    book, seen = load_rules("bitmod-2025"), 0
    for r in csv.DictReader((truth / "accel/bitmod_sim_e445a5f_layers.csv").read_text().splitlines()):
        name = {"FP16": "FP16", "BitMoDLL": "BitMoD-LL"}[r["accel"]]
        count, n, k = (int(float(x)) for x in r["w_dim"].strip("[]").split(","))
        m = int(float(r["o_dim"].strip("[]").split(",")[1]))
        found = tally(book, name, r["phase"], r["model"], [Layer(1, count, m, n, k, k, "attn_" in r["layer"])])
        assert found.compute == int(r["compute_cycles"]), r
        assert found.cycles == max(int(r["compute_cycles"]), int(float(r["dram_cycles"]))), r
        seen += 1
    assert seen == 232


@pytest.mark.truth
@pytest.mark.parametrize("rules", sorted(FILES))
def test_published_means_are_arithmetic(truth, rules):
    """The notebooks say "GeoMean" and take np.mean; the table has both."""
    name = FILES[rules].replace("_current", "_current_speedup").replace("fig8", "fig8_speedup")
    ours = {"256 in)": rules_speedups(load_rules(rules), 0), "20 out)": rules_speedups(load_rules(rules), 20)}
    seen = 0
    for r in csv.DictReader((truth / "accel" / name).read_text().splitlines()):
        if r["quantity"] != "speedup_vs_FP16":
            continue
        found = ours["20 out)" if "20 out" in r["task"] else "256 in)"][r["accel"]]
        arithmetic, geometric = means(found.values())
        assert (arithmetic, geometric) == pytest.approx((float(r["arith_mean"]), float(r["geomean"])), abs=6e-5)
        seen += 1
    assert seen == 10


def test_the_papers_headline():
    """1.99x and 2.41x over FP16 lossless; 2.31x less energy (mean over models, lossless, both tasks' mean)."""
    short, long = rules_speedups(BOOK, 0), rules_speedups(BOOK, 20)
    assert means(short["BitMoD-LL"].values())[0] == pytest.approx(1.99, abs=0.005)
    assert means(long["BitMoD-LL"].values())[0] == pytest.approx(2.41, abs=0.005)
    energy = [means(rules_energy(BOOK, n)["BitMoD-LL"].values())[0] for n in (0, 20)]
    assert sum(energy) / 2 == pytest.approx(2.31, abs=0.02)
    assert set(rules_energy(BOOK, 20)["OliVe"]) == set(BOOK.models) - {"Yi-6B"}


def test_an_unknown_rule_book_is_named():
    with pytest.raises(InputError, match=r"unknown rule book 'bitmod'.*did you mean bitmod-202"):
        load_rules("bitmod")


def test_no_estimate_uses_rules():
    """Rules are a paper's; the catalogue has them apart from devices, and its phases are the book's only."""
    from tokenfab.hw.devices import device_names

    assert not {"bitmod-2024", "bitmod-2025"} & set(device_names())
    assert ruled(BOOK, "FP16", "decode", "Llama-2-7B").cycles == 413518608
