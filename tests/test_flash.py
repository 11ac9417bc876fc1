"""Flash: the closed form by hand, against the event level, and against measured reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.hw.far import level_of, paths_of
from tokenfab.hw.flash import WHOLE, Drive, Nand, command_and_stream, drive_of, nand_of
from tokenfab.hw.flash_event import play

ROUND = Drive(latency_s=100e-6, depth=10, command_s=2e-6, stream_bytes_s=2e9, sequential_bytes_s=4e9, write_bytes_s=1e9)
PAGE = 4096


# -- outside --------------------------------------------------------------------------------------------
def test_a_small_read_is_bound_by_commands_a_shallow_queue_by_latency_a_large_read_by_the_stream():
    assert ROUND.read_s(20_000) == pytest.approx(2e-6 + 20_000 / 2e9)  # 12 us; (100 + 5) / 10 = 10.5 us
    assert ROUND.read_s(4000) == pytest.approx((100e-6 + 1e-6) / 10)
    assert ROUND.read_s(4000, depth=1) == pytest.approx(101e-6)
    assert ROUND.bandwidth(1e9) == pytest.approx(2e9, rel=1e-3)
    assert ROUND.load_s(4e9) == pytest.approx(1 + 100e-6)  # whole: at the sequential rate
    assert ROUND.load_s(4e9, 20_000) == pytest.approx(100e-6 + 200_000 * 12e-6)
    assert ROUND.load_s(0.0) == 0.0
    assert ROUND.store_s(5e8) == pytest.approx(0.5)


@given(st.floats(512, 1e7), st.floats(1, 64), st.floats(1.0, 4.0))
def test_larger_reads_and_deeper_queues_are_never_slower(chunk: float, depth: float, more: float):
    assert ROUND.bandwidth(chunk * more, depth) >= ROUND.bandwidth(chunk, depth) * (1 - 1e-12)
    assert ROUND.bandwidth(chunk, depth * more) >= ROUND.bandwidth(chunk, depth)
    assert ROUND.bandwidth(chunk, depth) <= ROUND.sequential_bytes_s


def test_two_measured_reads_give_command_and_stream():
    command, stream = command_and_stream((4096, 4096 / 4e-6), (32768, 32768 / 11e-6))
    assert (command, stream) == (pytest.approx(3e-6), pytest.approx(4.096e9))
    refused = ((0, 1e9), (1, 1e9)), ((8, 1e9), (4, 1e9)), ((4096, 1e9), (32768, 9e9)), ((4e3, 1e9), (4e4, 5e8))
    for small, large in refused:
        with pytest.raises(InputError):
            command_and_stream(small, large)


UFS = {  # PowerInfer-2, section 2.3.2 and table 1; MB/s. Even rows (0, 2, 4) were fitted, odd ones are predicted
    ("sequential", 4): 450.0, ("sequential", 512): 4000.0, ("random", 512): 3500.0,
    ("random 4 KB", "big"): 1076.10, ("random 4 KB", "mid"): 1007.95, ("random 4 KB", "little"): 761.87,
}  # fmt: skip
CLOCKS = {"big": 3.3e9, "mid": 3.07e9, "little": 2.27e9}


def ufs() -> Drive:
    phone = load_device("phone-powerinfer2")
    level = level_of(phone, "far-weights")
    assert level is not None
    return drive_of(phone, level)


def test_the_phones_constants_are_solved_from_the_even_rows():
    drive = ufs()
    assert drive.command_s == pytest.approx(4096 / 1007.95e6 - 4096 / drive.stream_bytes_s, rel=0.003)
    assert drive.latency_s == pytest.approx(524288 / 3.5e9 - 524288 / drive.sequential_bytes_s, rel=0.003)


@pytest.mark.parametrize(("core", "error"), [("big", 0.01), ("little", 0.04)])
def test_random_reads_of_other_cores_go_with_their_clock(core: str, error: float):
    """A command is so many cycles of the core that submits it: fitted on a mid core, predicted for the others."""
    drive = ufs()
    command = drive.command_s * CLOCKS["mid"] / CLOCKS[core]
    rate = 4096 / (command + 4096 / drive.stream_bytes_s) / 1e6
    assert rate == pytest.approx(UFS["random 4 KB", core], rel=error)


def test_a_large_sequential_read_is_latency_and_stream():
    """One read at a time: latency from the 4 KB row, 512 KB predicted 8 % above what was measured."""
    rate = ufs().sequential_bytes_s
    latency = 4096 / 450e6 - 4096 / rate
    predicted = 524288 / (latency + 524288 / rate) / 1e6
    assert predicted == pytest.approx(UFS["sequential", 512], rel=0.09)
    assert predicted > UFS["sequential", 512]


def test_the_laptop_reaches_both_of_its_measured_points():
    """Two constants from two points: no test of the law, but the file must hold what was measured."""
    laptop = load_device("m1-max-flash")
    drive = paths_of(laptop, "far-weights")[0].drive
    assert drive.bandwidth(4096) == pytest.approx(1.25e9, rel=0.005)
    assert drive.bandwidth(32768) == pytest.approx(2.25e9, rel=0.005)
    assert drive.load_s(6e9) == pytest.approx(1, rel=1e-3)
    assert drive.load_s(6e9, WHOLE) < drive.load_s(6e9, 1e6)


# -- inside ---------------------------------------------------------------------------------------------
def test_channels_bind_with_many_dies_dies_with_few():
    few, many = Nand(2, 2, PAGE, 40e-6, 409.6e6), Nand(2, 16, PAGE, 40e-6, 409.6e6)
    assert few.transfer_s == pytest.approx(10e-6)
    assert few.bandwidth == pytest.approx(2 * PAGE * 2 / 50e-6)
    assert many.bandwidth == pytest.approx(2 * 409.6e6)
    assert many.bandwidth_at(1) == pytest.approx(PAGE / 50e-6)
    assert few.pages_s([0, 1, 2, 4, 5, 8]).tolist() == pytest.approx([0, 50e-6, 50e-6, 60e-6, 100e-6, 110e-6])


@given(
    st.integers(1, 8), st.integers(1, 24), st.integers(1, 600), st.floats(1e-6, 1e-4), st.floats(1e8, 3e9),
)  # fmt: skip
def test_event_level_and_closed_form_agree_where_nothing_contends(channels, dies, pages, read_s, rate):
    nand = Nand(channels, dies, PAGE, read_s, rate)
    found = play(nand, pages)
    assert found.pages == pages
    assert found.seconds == pytest.approx(float(nand.pages_s(pages)), rel=1e-9)
    assert found.bandwidth <= nand.bandwidth * (1 + 1e-9)


@pytest.mark.parametrize("depth", [1, 4, 16, 64])
def test_event_level_and_closed_form_agree_at_any_depth(depth: int):
    nand = nand_of(load_device("instinfer-csd"))
    found = play(nand, 64 * depth, depth=depth)
    assert found.bandwidth == pytest.approx(nand.bandwidth_at(depth), rel=0.02)


def test_random_pages_queue_behind_one_another_and_the_queue_shows():
    """The measured mean of a busy drive is 68 % of its channels' rate; random placement alone leaves 70 to 85 %."""
    nand = nand_of(load_device("instinfer-csd"))
    even, random = play(nand, 4000), play(nand, 4000, placement="random", seed=1)
    assert even.bandwidth / nand.bandwidth > 0.95
    assert 0.65 < random.bandwidth / nand.bandwidth < 0.9
    assert random.mean_latency_s > even.mean_latency_s
    assert play(nand, 4000, placement="random", seed=1) == random
    assert play(nand, 500, placement="random", seed=2) != play(nand, 500, placement="random", seed=3)


def test_a_link_slower_than_the_channels_binds():
    nand = nand_of(load_device("instinfer-csd"))
    found = play(nand, 5000, link_bytes_s=7e9)
    assert found.bandwidth == pytest.approx(7e9, rel=0.02)
    assert found.channel_busy == pytest.approx(7 / 11.2, rel=0.03)


def test_what_no_drive_has_is_refused():
    nand = Nand(1, 1, PAGE, 1e-5, 1e9)
    for arguments in ({"pages": 0}, {"pages": 5, "depth": 0}, {"pages": 5, "placement": "middle"}):
        with pytest.raises(InputError):
            play(nand, **arguments)
    with pytest.raises(InputError):
        Nand(0, 1, PAGE, 1e-5, 1e9)
    with pytest.raises(InputError, match=r"parameters\.channels is missing"):
        nand_of(load_device("a6000-ssd"))
