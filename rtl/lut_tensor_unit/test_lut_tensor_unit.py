"""cocotb tests of the LUT tensor unit; the plan is in the README. Golden model: ``kernels/lut.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cocotb
import numpy as np

from ...kernels.lut import Group, LutFormat, codes, lut_tile
from ..bench import Bench, check_equal, cover, pack, record_case, run_cases, run_parameters, unpack
from . import cycles as model

P = run_parameters()
M, N, K, COLUMNS, MAX_BITS, ACC = P["M"], P["N"], P["K"], P["COLUMNS"], P["MAX_BITS"], P["ACC_WIDTH"]
FORMAT = LutFormat(K, P["ACT_WIDTH"], ACC, P["GUARD"], P["TABLE_WIDTH"], bool(P["HALF"]))
IS_FLOAT = FORMAT.is_float
WIDTH = (16 if FORMAT.half else 32) if IS_FLOAT else ACC
LOW, HIGH = -(2 ** (P["ACT_WIDTH"] - 1)), 2 ** (P["ACT_WIDTH"] - 1) - 1
ONE, GREATEST, INFINITE, NAN = 0x3C00, 0x7BFF, 0x7C00, 0x7E01
Result = tuple[tuple[int, ...], tuple[bool, ...], tuple[bool, ...]]


class LutBench(Bench):
    """The bench with the unit's two inputs and one output."""

    def __init__(self, dut: Any, name: str) -> None:
        super().__init__(dut, name)
        self.np_random = np.random.default_rng(self.random.getrandbits(64))
        self.acts = self.source("act_valid_i", "act_ready_o", ("act_i", "bits_i", "odd_i", "last_i"))
        self.planes = self.source("weight_valid_i", "weight_ready_o", ("weight_i",))
        self.output = self.sink("valid_o", "ready_i", ("sum_o", "overflow_o", "invalid_o"))

    def idle(self, probability: float) -> None:
        """How often each input offers nothing."""
        self.acts.idle = self.planes.idle = probability

    def results(self) -> list[Result]:
        """Results taken so far, a beat each: values and overflows, row by row in a column; invalid rows."""
        found = []
        for r in self.output.results:
            values = unpack(r["sum_o"], WIDTH, M * COLUMNS)
            if IS_FLOAT:
                values = [v % 2**WIDTH for v in values]
            flags = tuple(bool(r["overflow_o"] >> i & 1) for i in range(M * COLUMNS))
            found.append((tuple(values), flags, tuple(bool(r["invalid_o"] >> i & 1) for i in range(M))))
        return found


def enqueue(bench: LutBench, groups: Sequence[Group], bits_pin: int | None = None) -> list[Result]:
    """Queue one tile; returns the beats that must come out."""
    for i, group in enumerate(groups):
        last = i == len(groups) - 1
        beat = {
            "act_i": pack(group.activations.ravel().tolist(), P["ACT_WIDTH"]),
            "bits_i": group.bits - 1 if bits_pin is None else bits_pin,
            "odd_i": int(group.odd),
            "last_i": int(last),
        }
        bench.acts.queue.append(beat)
        for plane in codes(group.weights, group.bits, group.odd):
            bench.planes.queue.append({"weight_i": pack(plane.tolist(), K)})
        cover(f"{'odd' if group.odd else 'signed'} {group.bits}")
    tile = lut_tile(groups, FORMAT)
    values, overflow = tile.results.T, tile.overflow.T
    negative = values >> (WIDTH - 1) & 1 if IS_FLOAT else values < 0
    for point, seen in (
        ("one group", len(groups) == 1), ("several groups", len(groups) > 1),
        ("overflow upwards", (overflow & (negative == 0)).any()),
        ("overflow downwards", (overflow & (negative == 1)).any()),
        ("no overflow", not overflow.all()), ("an invalid row", tile.invalid.any()),
        ("invalid and valid rows of one tile", tile.invalid.any() and not tile.invalid.all()),
    ):  # fmt: skip
        if seen:
            cover(point)
    return [
        (tuple(values[n : n + COLUMNS].ravel().tolist()), tuple(overflow[n : n + COLUMNS].ravel().tolist()),
         tuple(tile.invalid.tolist()))
        for n in range(0, N, COLUMNS)
    ]  # fmt: skip


def random_activations(bench: LutBench, special: float = 0.0) -> np.ndarray:
    """(M, K) activations; binary16: of exponents near one another in most rows, far apart in others."""
    rng = bench.np_random
    if not IS_FLOAT:
        return rng.integers(LOW, HIGH + 1, (M, K))
    spread = rng.choice([1, 4, 30], (M, 1))
    field = np.clip(rng.integers(0, 31, (M, 1)) + rng.integers(-spread, spread + 1, (M, K)), 0, 30)
    field = np.where(rng.random((M, K)) < special, 31, field)
    words = rng.integers(0, 2, (M, K)) << 15 | field << 10 | rng.integers(0, 1024, (M, K))
    return np.where(rng.random((M, K)) < 0.1, words & 0x8000, words)


def random_weights(bench: LutBench, bits: int, odd: bool) -> np.ndarray:
    """(N, K) weights of all values."""
    drawn = bench.np_random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (N, K))
    return 2 * drawn + 1 if odd else drawn


def random_group(bench: LutBench, special: float = 0.0) -> Group:
    """A group of random numbers of a random width."""
    bits, odd = bench.random.randint(1, MAX_BITS), bench.random.random() < 0.5
    return Group(random_activations(bench, special), random_weights(bench, bits, odd), bits, odd)


def random_tile(bench: LutBench, most: int = 5, special: float = 0.0) -> list[Group]:
    """Up to ``most`` groups, each of a width of its own."""
    return [random_group(bench, special) for _ in range(bench.random.randint(1, most))]


def even_group(act: int, weight: int, bits: int = MAX_BITS, odd: bool = False) -> Group:
    """All activations and all weights the same."""
    return Group(np.full((M, K), act), np.full((N, K), weight), bits, odd)


@cocotb.test()
async def random_tiles_with_idles_and_stalls(dut: Any) -> None:
    """Tiles of mixed weight widths, one after another, under every kind of handshake."""
    bench = LutBench(dut, "random")
    await bench.start()
    for idle, stall in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.3), (0.9, 0.1), (0.1, 0.9)):
        bench.idle(idle)
        bench.output.stall = stall
        bench.output.results.clear()
        expected = []
        for _ in range(6):
            expected += enqueue(bench, random_tile(bench, special=0.02))
        await bench.drain(len(expected))
        check_equal(expected, bench.results())
        cover(f"idle {idle > 0}, stall {stall > 0}")


@cocotb.test()
async def one_weight_at_a_time(dut: Any) -> None:
    """Every column and input by itself: one weight is 1, the rest 0; every row has activations of its own."""
    bench = LutBench(dut, "wiring")
    await bench.start()
    expected = []
    for n in range(N) if N <= 8 else sorted(bench.random.sample(range(N), 8)):
        for k in range(K):
            weights = np.zeros((N, K), int)
            weights[n, k] = -1  # the one value that every width has
            expected += enqueue(bench, [Group(random_activations(bench), weights, bench.random.randint(1, MAX_BITS))])
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def every_entry_of_the_table_is_looked_up(dut: Any) -> None:
    """All 2^K sign patterns of one-bit odd weights, in rotation over the columns."""
    bench = LutBench(dut, "table")
    await bench.start()
    expected = []
    for first in range(2**K):
        signs = (np.arange(first, first + N)[:, None] >> np.arange(K) & 1) * 2 - 1
        expected += enqueue(bench, [Group(random_activations(bench), signs, 1, True)])
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def extremes_of_activations_and_weights(dut: Any) -> None:
    """Least, greatest, and what lies about zero, of both, at every width: the ends of every adder."""
    bench = LutBench(dut, "extremes")
    await bench.start()
    bench.output.stall = 0.1
    acts: tuple[int, ...] = (LOW, -1, 0, 1, HIGH)
    if IS_FLOAT:
        acts = (0, 0x8000, 1, 0x8001, 0x03FF, 0x0400, ONE, GREATEST, GREATEST | 0x8000)
    expected = []
    for bits in sorted({1, 2, MAX_BITS} & {*range(1, MAX_BITS + 1)}):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        for act in acts:
            for weight in sorted({low, -1, 0, high} & {*range(low, high + 1)}):
                expected += enqueue(bench, [even_group(act, weight, bits)])
            for weight in (1 - 2**bits, 2**bits - 1):
                expected += enqueue(bench, [even_group(act, weight, bits, True)])
        for _ in range(8):  # each at one of its ends
            mixed = bench.np_random.choice(acts, (M, K))
            expected += enqueue(bench, [Group(mixed, bench.np_random.choice((low, high), (N, K)), bits)])
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def alignment_and_special_numbers(dut: Any) -> None:
    """binary16: exponents at every distance, zeros, infinity and NaN. Integers: one input far from the rest."""
    bench = LutBench(dut, "alignment")
    await bench.start()
    expected = []
    if IS_FLOAT:
        for far in range(31):
            for near in {0, far, 30}:
                acts = np.zeros((M, K), int)
                acts[:, 0] = far << 10 | bench.random.getrandbits(10)
                acts[:, 1] = near << 10 | 0x83FF
                expected += enqueue(bench, [Group(acts, random_weights(bench, 1, True), 1, True)])
                cover("exponents apart" if far != near else "exponents alike")
        for word in (INFINITE, INFINITE | 0x8000, NAN, 0xFFFF):
            acts = random_activations(bench)
            acts[bench.random.randrange(M), bench.random.randrange(K)] = word
            tile = [Group(acts, random_weights(bench, 1, False), 1), random_group(bench), random_group(bench)]
            expected += enqueue(bench, bench.random.sample(tile, 3)) + enqueue(bench, random_tile(bench))
    else:
        for act in sorted({LOW, HIGH, 0, *bench.np_random.integers(LOW, HIGH + 1, 12).tolist()}):
            acts = np.full((M, K), LOW)
            acts[:, bench.random.randrange(K)] = act
            expected += enqueue(bench, [Group(acts, random_weights(bench, MAX_BITS, False), MAX_BITS)])
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def the_accumulator_saturates_and_says_so(dut: Any) -> None:
    """Sums up to one step from both bounds, onto them, beyond them, and back again from a bound."""
    bench = LutBench(dut, "overflow")
    await bench.start()
    bench.output.stall = 0.2
    expected = []
    for sign in (1, -1):
        if IS_FLOAT:
            # Steps of 65504 (2^bits - 1), until the accumulator or binary16 has no room for more.
            heavy = even_group(GREATEST, sign * (2**MAX_BITS - 1), odd=True)
            for count in (1, 2, 3, 40):
                expected += enqueue(bench, [heavy] * count)
                expected += enqueue(bench, [heavy] * count + [even_group(GREATEST, -sign, 1, True)])
        else:
            bound = 2 ** (ACC - 1) - (sign > 0)
            step = K * -LOW * (2**MAX_BITS - 1)
            if bound // step <= 600:  # a wider accumulator is not filled by a tile of reasonable length
                full = even_group(LOW, -sign * (2**MAX_BITS - 1), odd=True)
                count, rest = divmod(bound, step)
                for beyond in (-1, 0, 1):
                    tile = (
                        [full] * count + small_groups(sign * (rest + beyond)) + [even_group(-1, -1, 1)] * (beyond % 2)
                    )
                    result = enqueue(bench, tile)
                    expected += result
                    cover(f"bound {sign}, {beyond} beyond")
    expected += enqueue(bench, [even_group(0, -1, 1)])  # the flag is cleared
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


def small_groups(total: int) -> list[Group]:
    """Groups of two's complement weights that add up to ``total`` in steps of one sign."""
    left, pairs = abs(total), []
    most = -LOW if total > 0 else HIGH
    while left:
        weight = min(2 ** (MAX_BITS - 1), left)
        act = min(most, left // weight)
        pairs.append((-act if total > 0 else act, -weight))
        left -= act * weight
    pairs += [(0, 0)] * (-len(pairs) % K)
    lists = [pairs[i : i + K] for i in range(0, len(pairs), K)]
    return [Group(np.tile([a for a, _ in x], (M, 1)), np.tile([w for _, w in x], (N, 1)), MAX_BITS) for x in lists]


@cocotb.test()
async def more_bits_than_there_are_are_the_most(dut: Any) -> None:
    """The pins of bits_i can hold more than MAX_BITS - 1."""
    bench = LutBench(dut, "bits")
    await bench.start()
    expected = []
    for value in range(MAX_BITS - 1, 8):
        group = Group(random_activations(bench), random_weights(bench, MAX_BITS, False), MAX_BITS)
        expected += enqueue(bench, [group], bits_pin=value)
        cover("bits beyond the most" if value >= MAX_BITS else "the most bits")
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def reset_drops_what_is_under_way(dut: Any) -> None:
    """A reset in the middle of tiles, at several depths of the pipeline; afterwards all is as new."""
    bench = LutBench(dut, "reset")
    await bench.start()
    for pause in (1, 2, 3, 4, 5, 6, 8, 11, 17, 25):
        bench.output.stall = bench.random.choice((0.0, 0.7, 1.0))
        for _ in range(3):
            enqueue(bench, random_tile(bench))
        await bench.steps(pause)
        cover("a result waits at reset" if bench.output.waiting else "no result waits at reset")
        await bench.reset()
        bench.output.results.clear()
        bench.output.stall = 0.2
        expected = enqueue(bench, random_tile(bench))
        await bench.drain(len(expected))
        check_equal(expected, bench.results())


@cocotb.test()
async def a_full_bank_holds_the_lanes_and_nothing_else(dut: Any) -> None:
    """With no result taken, the unit swallows a known amount and stops; then all comes out, unharmed."""
    bench = LutBench(dut, "full")
    await bench.start()
    bench.output.stall = 1.0
    expected = []
    for _ in range(12):
        expected += enqueue(bench, [random_group(bench) for _ in range(2)])
    await bench.steps(40 * MAX_BITS)
    # One tile is in the bank and one waits at the accumulator. Behind it the planes of two groups were
    # taken, of which the second may be of the next tile; then two groups of activations.
    waiting = len(bench.planes.queue)
    assert bench.output.waiting is not None
    assert not bench.planes.taken_at or bench.cycle - bench.planes.taken_at[-1] > 10
    assert 4 <= len(bench.acts.taken_at) <= 10
    bench.output.stall = 0.0
    await bench.drain(len(expected))
    assert waiting > 0
    check_equal(expected, bench.results())


@cocotb.test()
async def tables_are_made_behind_the_lookups(dut: Any) -> None:
    """With inputs at hand and no stall a plane is taken in every cycle, across groups and tiles; latency is fixed."""
    bench = LutBench(dut, "overlap")
    await bench.start()
    bits = max(1, -(-N // COLUMNS))  # planes of a tile, one group of one bit each
    expected = []
    for _ in range(4):
        expected += enqueue(bench, [even_group(ONE if IS_FLOAT else -1, -1, 1) for _ in range(bits)])
    await bench.drain(len(expected))
    check_equal(expected, bench.results())
    taken = bench.planes.taken_at
    assert taken[0] == bench.acts.taken_at[0] + model.TABLE_CYCLES
    check_equal(list(range(taken[0], taken[0] + 4 * bits)), taken)
    first = bench.output.given_at[:: N // COLUMNS]
    check_equal([taken[bits * (i + 1) - 1] + model.RESULT_CYCLES for i in range(4)], first)


@cocotb.test()
async def cycles_equal_the_model(dut: Any) -> None:
    """Random products with no stall on either side take exactly as long as ``cycles.py`` says."""
    bench = LutBench(dut, "cycles")
    await bench.start()
    wrong = []
    for _ in range(run_cases(8)):
        shape = {
            "m": bench.random.randint(1, 2 * M), "n": bench.random.randint(1, 2 * N),
            "k": bench.random.randint(1, 6 * K),
        }  # fmt: skip
        bits, odd = bench.random.randint(1, MAX_BITS), bench.random.random() < 0.5
        format = {
            "weight": f"{'odd' if odd else 'int'}{bits}",
            "activation": "fp16" if IS_FLOAT else f"int{P['ACT_WIDTH']}",
        }
        bench.output.results.clear()
        expected = []
        groups = -(-shape["k"] // K)
        for _ in range(model.tiles(shape, P)):
            tile = [
                Group(random_activations(bench), random_weights(bench, bits, odd), bits, odd) for _ in range(groups)
            ]
            expected += enqueue(bench, tile)
        first = len(bench.acts.taken_at)
        await bench.drain(len(expected))
        took = bench.output.given_at[-1] - bench.acts.taken_at[first] + 1
        told = model.cycles(shape, format, P)
        values_equal = bench.results() == expected
        record_case({"shape": shape, "format": format}, values_equal, took, told)
        if took != told or not values_equal:
            wrong.append(f"{shape} {format}: {took} cycles, model {told}, values equal: {values_equal}")
    assert not wrong, wrong[0]
