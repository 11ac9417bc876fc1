"""Collectives: hand formulas, what physics forbids, and measured ones."""

from __future__ import annotations

import csv
import dataclasses
import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.collective import (
    BOUNDS,
    COLLECTIVES,
    DIRECT_LIMIT,
    SHARED,
    SHARED_BOUNDS,
    CollectiveConstants,
    SharedConstants,
    collective_time,
    constants_of,
    direct_time,
    fastest_link,
    library_time,
)
from tokenfab.hw.devices import device_names, load_device
from tokenfab.validation import collectives
from tokenfab.validation.kernels import FOLDERS

A100, H100 = load_device("a100-80g-sxm"), load_device("h100-sxm")
ROUND = CollectiveConstants(10e-6, 0.25, 0.5, 4e-6, 5e-6, 7e-6)
PLAIN = SharedConstants(hop_s=1e-6, hop_chunk_s=0.5e-6, pairing_s=2e-6, local=0.4, peer_s=0.1e-6, peer_share=0.5)


def test_a_library_takes_the_faster_protocol_by_hand() -> None:
    """100 GB/s, 4 ranks: 1 KB in low latency, 1 GB in the simple protocol."""
    small, large = library_time("all_reduce", np.array([1024.0, 1e9]), 4, 100e9, ROUND, PLAIN)
    stream = 1024 * (1.5 + 0.4 / 4) / 100e9
    assert small == pytest.approx(10e-6 + 6 * (1e-6 + 0.5e-6 * 256 / 8192) + stream / 0.25)
    bulk = 1e9 * 1.6 / 100e9 / 0.5
    assert large == pytest.approx(10e-6 + 6 * 1.5e-6 + bulk + np.sqrt(bulk * 4e-6))


@pytest.mark.parametrize(
    ("name", "sent", "steps", "pairing"),
    [("all_gather", 7 / 8 + 0.05, 7, 0), ("reduce_scatter", 7 / 8 + 0.05, 7, 0),
     ("all_to_all", 7 / 8 + 0.05, 3, 1), ("send", 1, 1, 1)],
)  # fmt: skip
def test_volumes_and_steps_of_eight_ranks(name: str, sent: float, steps: int, pairing: int) -> None:
    time = library_time(name, np.array(1e9), 8, 100e9, ROUND, PLAIN)
    bulk = sent * 1e9 / 50e9
    assert time == pytest.approx(10e-6 + steps * 1.5e-6 + pairing * 2e-6 + bulk + np.sqrt(bulk * 4e-6))


def test_direct_kernel_by_hand() -> None:
    """50 GB/s reached, 8 ranks: 10 KB in one stage (7 reads), 4 MB in two (2·7/8 of it, one barrier)."""
    one, two = direct_time(np.array([1e4, 4e6]), 8, 100e9, ROUND, PLAIN)
    assert one == pytest.approx(5e-6 + 0.7e-6 + 7e4 / 50e9)
    assert two == pytest.approx(5e-6 + 0.7e-6 + 7e-6 + 1.75 * 4e6 / 50e9)


def test_a_switch_that_adds_helps_eight_ranks_and_not_two() -> None:
    adds = dataclasses.replace(ROUND, in_switch_share=0.5)
    size = np.array(1e9)
    moved = 1.125e9 / 50e9
    assert library_time("all_reduce", size, 8, 100e9, adds, PLAIN) == pytest.approx(
        10e-6 + 14 * 1.5e-6 + moved + np.sqrt(moved * 4e-6)
    )
    assert library_time("all_reduce", size, 2, 100e9, adds, PLAIN) == library_time(
        "all_reduce", size, 2, 100e9, ROUND, PLAIN
    )
    assert library_time("all_gather", size, 8, 100e9, adds, PLAIN) == library_time(
        "all_gather", size, 8, 100e9, ROUND, PLAIN
    )


def test_small_all_reduces_take_the_direct_kernel_up_to_its_limit() -> None:
    link, c = fastest_link(A100, 8), constants_of(A100, fastest_link(A100, 8))
    assert c is not None
    for size, expected in (
        (DIRECT_LIMIT, direct_time(np.array(float(DIRECT_LIMIT)), 8, link.bandwidth.value, c)),
        (DIRECT_LIMIT + 1, library_time("all_reduce", np.array(DIRECT_LIMIT + 1.0), 8, link.bandwidth.value, c)),
    ):
        assert collective_time("all_reduce", size, 8, A100) == pytest.approx(float(expected))


def test_a_link_off_a_host_takes_alpha_and_beta() -> None:
    """16 H100 are joined by PCIe alone: 2·log₂ 16 hops and ring volume behind one launch."""
    link, m = H100.links["pcie"], H100.model
    assert fastest_link(H100, 16) is link
    ring = 2 * 15 / 16 * 1e8 / (link.bandwidth.value * m.link_efficiency.value)
    expected = m.launch.value + 8 * link.latency.value + ring
    assert collective_time("all_reduce", 1e8, 16, H100) == pytest.approx(expected)
    assert collective_time("all_reduce", 1e8, 1, H100) == 0


@given(
    st.sampled_from([n for n in device_names() if load_device(n).links]), st.sampled_from(COLLECTIVES),
    st.sampled_from([2, 4, 8]), st.floats(1, 1e10), st.floats(1, 4),
)  # fmt: skip
def test_never_above_the_link_and_more_bytes_never_faster(
    name: str, collective: str, world: int, size: float, factor: float
) -> None:
    device = load_device(name)
    try:
        link = fastest_link(device, world)
    except InputError:
        return
    least = {"all_reduce": 2 * (world - 1) / world, "send": 1.0}.get(collective, (world - 1) / world)
    if collective == "all_reduce" and device.model.collective_in_switch:
        least = min(least, 1 + 1 / world)
    time, longer = collective_time(collective, np.array([size, size * factor]), world, device)
    assert time >= least * size / link.bandwidth.value
    # The engine's own all-reduce may be slower at its limit than the library just above it.
    if not (collective == "all_reduce" and size <= DIRECT_LIMIT < size * factor):
        assert longer >= time


@given(st.sampled_from([A100, H100]), st.sampled_from(["all_gather", "reduce_scatter"]), st.floats(1, 1e10))
def test_more_ranks_around_a_ring_never_take_less(device, collective: str, size: float) -> None:
    times = [float(collective_time(collective, size, n, device)) for n in (2, 4, 8)]
    assert times == sorted(times)


# -- fitting and measured rows ---------------------------------------------------------------------
COLUMNS = ["op_name", "nccl_dtype", "num_gpus", "message_size", "latency"]
DIRECT = ["allreduce_dtype", "num_gpus", "message_size", "latency", "backend"]


def write(path, columns, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_reading_counts_elements_and_leaves_out_what_is_not_the_links(tmp_path) -> None:
    comm = tmp_path / "aiconfigurator/a100_sxm/comm"
    write(
        comm / "nccl_2.0/nccl_perf.csv.gz", COLUMNS,
        [["all_gather", "half", 4, 100, 0.01], ["alltoall", "int8", 2, 100, 0.02], ["all_gather", "half", 4, 0, 0.01],
         ["all_gather", "half", 4, 8, 0], ["broadcast", "half", 4, 8, 1]],
    )  # fmt: skip
    write(
        comm / "vllm_1.0/custom_allreduce_perf.csv.gz", DIRECT,
        [["bfloat16", 8, 50, 0.005, "vllm_graph"], ["bfloat16", 8, 50, 0.05, "vllm_eager"],
         ["bfloat16", 8, 2**23, 1, "vllm_graph"]],
    )  # fmt: skip
    rows = collectives.read_collectives(tmp_path, "a100-80g-sxm")
    assert rows.name.tolist() == ["all_gather", "all_to_all", "direct"]
    assert rows.size.tolist() == [200, 100, 100]
    assert rows.world.tolist() == [4, 2, 8]
    assert rows.seconds == pytest.approx([1e-5, 2e-5, 5e-6])
    assert rows.dropped == 5
    with pytest.raises(InputError, match="no nccl_"):
        collectives.read_collectives(tmp_path, "h100-sxm")


def test_fitting_finds_planted_constants() -> None:
    planted = CollectiveConstants(7e-6, 0.2, 0.7, 2e-5, 6e-6, 5e-6)
    names, worlds, sizes = np.meshgrid(
        ["all_reduce", "all_gather", "all_to_all", "direct"], [2, 4, 8], 2.0 ** np.arange(9, 29)
    )
    empty = collectives.Measured(
        "a100-80g-sxm", names.ravel(), worlds.ravel().astype(float), sizes.ravel(), np.ones(names.size)
    )
    rows = dataclasses.replace(empty, seconds=collectives.predict(empty, planted, PLAIN))
    shared, cards = collectives.fit({"a100-80g-sxm": rows})
    again = collectives.predict(rows, cards["a100-80g-sxm"], shared)
    assert np.abs(again / rows.seconds - 1).max() < 0.02
    assert cards["a100-80g-sxm"].start_s == pytest.approx(7e-6, rel=0.05)
    assert cards["a100-80g-sxm"].low_latency_share == pytest.approx(0.2, rel=0.05)


@pytest.fixture(scope="module")
def tables(truth):
    return {device: collectives.read_collectives(truth, device) for device in FOLDERS}


def test_measured_collectives_are_within_twelve_percent_and_the_interval_holds(tables) -> None:
    known = {"a100-80g-sxm": 0.067, "h100-sxm": 0.070}
    for device, table in tables.items():
        odd = table.half(odd=True)
        predicted = collectives.predict(odd)
        ratio = odd.seconds / predicted
        assert np.mean(np.abs(1 / ratio - 1)) == pytest.approx(known[device], abs=0.002)
        interval = load_device(device).intervals["network"]
        assert 0.85 <= np.mean((ratio >= interval.low.value) & (ratio <= interval.high.value)) <= 0.95
        even = table.half(odd=False)
        assert collectives.interval(even, collectives.predict(even)) == pytest.approx(
            (interval.low.value, interval.high.value), abs=0.002
        )


def test_the_catalogue_holds_what_the_fit_finds(tables) -> None:
    shared, cards = collectives.fit({d: t.half(odd=False) for d, t in tables.items()})
    assert dataclasses.astuple(shared) == pytest.approx(dataclasses.astuple(SHARED), rel=0.02)
    for device, found in cards.items():
        held = constants_of(load_device(device), fastest_link(load_device(device), 2))
        assert held is not None
        for name, (low, high, _) in BOUNDS.items():
            value = getattr(found, name)
            if value is not None:
                assert value == pytest.approx(getattr(held, name), rel=0.02)
                assert low < value < high
    for name, (low, high, _) in SHARED_BOUNDS.items():
        assert low < getattr(shared, name) < high
