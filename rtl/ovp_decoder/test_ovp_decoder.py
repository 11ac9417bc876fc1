"""cocotb tests of the outlier-victim pair tile; the plan is in the README. Golden model: ``kernels/ovp.py``."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import cocotb
import numpy as np

from ...kernels.ovp import BIAS_LIMIT, OVP4, OVP8, Format, decode, tile_matmul
from ...kernels.ovp import pack as pack_codes
from ..bench import Bench, check_equal, cover, pack, record_case, run_cases, run_parameters, unpack
from . import cycles as model

P = run_parameters()
ROWS, COLS, ACC = P["ROWS"], P["COLS"], P["ACC_WIDTH"]
FORMATS = (OVP4, OVP8) if P["WIDE"] else (OVP4,)
Row = tuple[tuple[int, ...], tuple[bool, ...], int]


class TileBench(Bench):
    """The bench with the tile's one input and one output."""

    def __init__(self, dut: Any, name: str) -> None:
        super().__init__(dut, name)
        self.np_random = np.random.default_rng(self.random.getrandbits(64))
        pins = ("act_i", "weight_i", "act_bias_i", "weight_bias_i", "wide_i", "last_i")
        self.input = self.source("valid_i", "ready_o", pins)
        self.output = self.sink("valid_o", "ready_i", ("sum_o", "overflow_o", "last_o"))

    def results(self) -> list[Row]:
        """Rows taken so far: (sums, overflows, last) over the words of a row."""
        return [
            (
                tuple(unpack(r["sum_o"], ACC, COLS)),
                tuple(bool(r["overflow_o"] >> c & 1) for c in range(COLS)),
                r["last_o"],
            )
            for r in self.output.results
        ]


def side(form: Format) -> tuple[int, int]:
    """Rows and columns of a tile of this format."""
    return (ROWS, COLS) if form.bits == 4 else (ROWS // 2, COLS // 2)


def some_codes(bench: TileBench, form: Format, rows: int, k: int, share: float = 0.3) -> np.ndarray:
    """Random codes, every pair with an identifier, in either place or in both, with probability ``share``."""
    rng = bench.np_random
    codes = rng.integers(0, 2 * form.identifier, (rows, k))
    for place in (0, 1):
        pairs = codes[:, place::2]
        pairs[rng.random(pairs.shape) < share / 2] = form.identifier
    return codes


def a_tile(bench: TileBench, form: Format, acts: np.ndarray, weights: np.ndarray, biases: tuple[int, int]) -> list[Row]:
    """Queue one tile of codes, exactly as large as the tile; returns the rows that must come out."""
    beats = acts.shape[1] // 2
    act_bytes, weight_bytes = (
        pack_codes(codes, form).reshape(codes.shape[0], beats, -1).astype(int) for codes in (acts, weights)
    )
    free = form.bits == 4 and not P["WIDE"]  # then wide_i is ignored
    for b in range(beats):
        beat = {
            "act_i": pack(act_bytes[:, b].ravel().tolist(), 8),
            "weight_i": pack(weight_bytes[:, b].ravel().tolist(), 8),
            "act_bias_i": biases[0],
            "weight_bias_i": biases[1],
            "wide_i": bench.random.getrandbits(1) if free else int(form.bits == 8),
            "last_i": int(b == beats - 1),
        }
        bench.input.queue.append(beat)
    sums, flags = tile_matmul(acts, weights, form, biases, ACC)
    observe(form, acts, weights, beats, sums, flags)
    step = COLS // sums.shape[1]
    expected = []
    for r in range(len(sums)):
        words, over = [0] * COLS, [False] * COLS
        words[::step], over[::step] = sums[r].tolist(), flags[r].tolist()
        expected.append((tuple(words), tuple(over), int(r == len(sums) - 1)))
    return expected


def observe(
    form: Format, acts: np.ndarray, weights: np.ndarray, beats: int, sums: np.ndarray, flags: np.ndarray
) -> None:
    """Functional coverage of one tile."""
    marked = [codes.reshape(-1, 2) == form.identifier for codes in (acts, weights)]
    for point, seen in (
        (f"{form.name}", True),
        ("a tile shorter than its drain", beats < ROWS),
        ("a tile as long as its drain", beats == ROWS),
        ("a tile longer than its drain", beats > ROWS),
        ("the first is the victim", any((m[:, 0] & ~m[:, 1]).any() for m in marked)),
        ("the second is the victim", any((~m[:, 0] & m[:, 1]).any() for m in marked)),
        ("two identifiers", any(m.all(axis=1).any() for m in marked)),
        ("outliers on both sides", all((m[:, 0] ^ m[:, 1]).any() for m in marked)),
        (f"{form.name}: exact", not flags.all()),
        (f"{form.name}: wrapped", bool(flags.any())),
    ):
        if seen:
            cover(point)


def random_tile(bench: TileBench, form: Format, most: int = 2 * ROWS) -> list[Row]:
    """Queue a tile of random codes with random biases, of at most ``most`` beats; returns its rows."""
    k = 2 * bench.random.randint(1, most)
    biases = (bench.random.randint(0, BIAS_LIMIT), bench.random.randint(0, BIAS_LIMIT))
    acts, weights = (some_codes(bench, form, count, k) for count in side(form))
    return a_tile(bench, form, acts, weights, biases)


@cocotb.test()
async def random_tiles_with_idles_and_stalls(dut: Any) -> None:
    """Tiles of both formats and many lengths without a gap between them, under every kind of handshake."""
    bench = TileBench(dut, "random")
    await bench.start()
    for idle, stall in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.3), (0.9, 0.1), (0.1, 0.9)):
        bench.input.idle, bench.output.stall = idle, stall
        bench.output.results.clear()
        expected = []
        for _ in range(3):
            for form in (*FORMATS, *reversed(FORMATS)):
                expected += random_tile(bench, form, bench.random.choice((1, ROWS, 2 * ROWS)))
        await bench.drain(len(expected))
        check_equal(expected, bench.results())
        cover(f"idle {idle > 0}, stall {stall > 0}")


def against_integers(bench: TileBench, form: Format, pairs: np.ndarray, bias: int) -> list[Row]:
    """Queue tiles that multiply ``pairs`` (any number, 2), on either edge, by random integers other than 0."""
    expected = []
    rows, columns = side(form)
    for on_rows, lanes, others in ((True, rows, columns), (False, columns, rows)):
        for first in range(0, len(pairs), 8 * lanes):
            chosen = np.resize(pairs[first : first + 8 * lanes], (lanes, 16))
            integers = bench.np_random.integers(1, form.identifier, (others, 16))
            integers = np.where(bench.np_random.random(integers.shape) < 0.5, integers, 2 * form.identifier - integers)
            acts, weights = (chosen, integers) if on_rows else (integers, chosen)
            expected += a_tile(bench, form, acts, weights, (bias, bias))
    return expected


@cocotb.test()
async def every_pair_of_four_bits_is_decoded(dut: Any) -> None:
    """All 256 bytes on both edges, with biases of all sizes."""
    bench = TileBench(dut, "bytes")
    await bench.start()
    expected = []
    for bias in (2, bench.random.randint(9, 10), bench.random.randint(0, BIAS_LIMIT)):
        order = bench.np_random.permutation(256)
        expected += against_integers(bench, OVP4, np.stack([order & 15, order >> 4], axis=1), bias)
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def eight_bit_codes_are_decoded(dut: Any) -> None:
    """Every 8-bit code beside an identifier and beside another code, in either place, on both edges."""
    bench = TileBench(dut, "codes")
    await bench.start()
    expected = []
    for bias, count in ((4, 256), (bench.random.randint(0, BIAS_LIMIT), 64)) if P["WIDE"] else ():
        for place in (0, 1):
            pairs = np.full((count, 2), OVP8.identifier)
            pairs[:, place] = bench.np_random.permutation(256)[:count]
            expected += against_integers(bench, OVP8, pairs, bias)
        expected += against_integers(bench, OVP8, some_codes(bench, OVP8, 64, 2), bias)
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def extremes_of_every_operand(dut: Any) -> None:
    """Greatest and least integers and outliers on both sides, in every combination and place."""
    bench = TileBench(dut, "extremes")
    await bench.start()
    expected = []
    for form in FORMATS:
        top, mark = form.top, form.identifier
        pairs = np.array([(top, mark + 1), (mark + 1, top), (top, mark), (2 * mark - 1, mark), (mark, top),
                          (mark, mark + 1), (mark, mark), (mark, 0), (0, 0), (1, mark)])  # fmt: skip
        rows, columns = side(form)
        for i in range(0, len(pairs), rows):
            for j in range(0, len(pairs), columns):
                acts, weights = (np.resize(np.roll(pairs, -n, axis=0), (m, 2)) for n, m in ((i, rows), (j, columns)))
                biases = bench.random.choice(((2, 2), (4, 4), (BIAS_LIMIT, BIAS_LIMIT), (0, BIAS_LIMIT)))
                expected += a_tile(bench, form, acts, weights, biases)
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def one_lane_at_a_time(dut: Any) -> None:
    """A single row or column that is not zero walks over the tile."""
    bench = TileBench(dut, "lanes")
    await bench.start()
    expected = []
    for form in FORMATS:
        rows, columns = side(form)
        for r in range(rows):
            for c in range(columns):
                acts, weights = np.zeros((rows, 4), int), np.zeros((columns, 4), int)
                acts[r] = some_codes(bench, form, 1, 4)
                weights[c] = some_codes(bench, form, 1, 4)
                expected += a_tile(bench, form, acts, weights, (2, 3))
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


def pairs_by_value(form: Format, bias: int) -> dict[int, tuple[int, int]]:
    """Pairs whose second value is 0, by their first one: outliers, and small integers above 0.

    All of them are one operand of a multiplier; a negative 8-bit integer is two.
    """
    found = {code: (code, 0) for code in range(1, min(16, form.identifier))}
    for code in range(1, 2 * form.identifier):
        found[int(decode([[code, form.identifier]], form, bias)[0, 0])] = (code, form.identifier)
    return {value: pair for value, pair in found.items() if value}


def factors_of(total: int, values: list[int], form: Format) -> list[tuple[int, int]]:
    """Pairs of ``values`` whose products add up to ``total``; on the way no sum is beyond it."""

    def greedy(left: int, firsts: list[int]) -> list[tuple[int, int]]:
        products = {v * w: (v, w) for v in firsts for w in sizes}
        order, found = sorted(products), []
        while left >= order[0]:
            product = order[bisect_right(order, left) - 1]
            found.append(products[product])
            left -= product
        return found

    sizes = [v for v in values if v > 0]
    if total > 0:
        return greedy(total, sizes)
    outliers = [v for v in sizes if v > form.top]
    found = greedy(-total, outliers)
    found.append((outliers[0], 1))  # only outliers are negative: one too many, and what is too much before it
    too_much = sum(v * w for v, w in found) + total
    return greedy(too_much, sizes) + [(-v, w) for v, w in found]


@cocotb.test()
async def sums_up_to_the_bounds_and_beyond(dut: Any) -> None:
    """Sums one below, on and one beyond each bound, from great outliers and small integers; then back again."""
    bench = TileBench(dut, "bounds")
    await bench.start()
    bench.output.stall = 0.1
    form, bias = (OVP8, 4) if P["WIDE"] else (OVP4, 8)
    pairs = pairs_by_value(form, bias)
    least = min(v for v in pairs if v > form.top)
    rows, columns = side(form)
    expected: list[Row] = []
    for sign in (1, -1):
        bound = 2 ** (ACC - 1) - 1 if sign > 0 else 2 ** (ACC - 1)
        for beyond in (-1, 0, 1) if ACC < 37 else (int(sign > 0),):  # a wide accumulator takes long to fill
            for back in ([], [(-sign * least, 1)]) if beyond == 1 and ACC < 37 else ([],):
                factors = factors_of(sign * (bound + beyond), sorted(pairs), form) + back
                acts = np.array([np.ravel([pairs[v] for v, _ in factors])] * rows)
                weights = np.array([np.ravel([pairs[w] for _, w in factors])] * columns)
                told = a_tile(bench, form, acts, weights, (bias, bias))
                assert told[0][1][0] is (beyond == 1), "the flag stays"
                total = sum(v * w for v, w in factors)
                assert (told[0][0][0] == total) is (beyond < 1 or bool(back)), "a sum that wrapped comes back"
                expected += told
                cover(f"bound {sign}, {beyond} beyond")
    expected += a_tile(bench, form, np.ones((rows, 2), int), np.ones((columns, 2), int), (bias, bias))
    assert not any(expected[-1][1]), "the flag is cleared"
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def the_sum_of_four_elements_overflows_alone(dut: Any) -> None:
    """8-bit results whose four sums fit, and their sum does just, or just does not; or of which one wrapped."""
    bench = TileBench(dut, "four")
    await bench.start()
    rows, columns = side(OVP8)
    expected: list[Row] = []
    outlier, code = 15 << 11, 7 << 3 | 7  # with bias 4
    bound = 2 ** (ACC - 1)
    most = bound // (127 * outlier)
    more = bound // (112 * outlier) + 1  # 127 is 7 * 16 + 15: the high half alone fills an accumulator
    cases = [
        (0, most, True), (128, most + 1, True), (128, most, False), (0, most + 1, False), (0, more, True),
        (128, more, False),
    ]  # fmt: skip
    for sign, count, on_rows in cases if P["WIDE"] and most < 500 else ():
        lanes, others = (rows, columns) if on_rows else (columns, rows)
        outliers = np.array([[code | sign, OVP8.identifier] * count] * lanes)
        integers = np.array([[127, 0] * count] * others)
        acts, weights = (outliers, integers) if on_rows else (integers, outliers)
        expected += a_tile(bench, OVP8, acts, weights, (4, 4))
        assert expected[-1][1][0] is (count > most)
        cover(
            "the sum of four fits just" if count == most
            else "four sums fit, theirs does not" if count < more
            else "one of four wrapped, on a row" if on_rows else "one of four wrapped, on a column"
        )  # fmt: skip
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def reset_drops_what_is_under_way(dut: Any) -> None:
    """A reset in the middle of tiles, at several depths; afterwards all is as new."""
    bench = TileBench(dut, "reset")
    await bench.start()
    pauses = range(1, model.latency(P) + 4 * ROWS + 4)
    for pause in sorted(bench.random.sample(pauses, min(len(pauses), 16))):
        bench.output.stall = bench.random.choice((0.0, 0.7, 1.0))
        for _ in range(3):
            random_tile(bench, bench.random.choice(FORMATS), ROWS)
        await bench.steps(pause)
        cover("a result waits at reset" if bench.output.waiting else "no result waits at reset")
        await bench.reset()
        bench.output.results.clear()
        bench.output.stall = 0.2
        expected = random_tile(bench, bench.random.choice(FORMATS))
        await bench.drain(len(expected))
        check_equal(expected, bench.results())


@cocotb.test()
async def stalled_time_is_not_counted(dut: Any) -> None:
    """Every row is offered at its time, counted in cycles in which the unit was not held up."""
    bench = TileBench(dut, "latency")
    await bench.start()
    enabled = 0
    offered_at: list[int] = []
    taken_at: list[int] = []
    was_waiting = False

    def watch() -> None:
        nonlocal enabled, was_waiting
        free = bench.output.is_ready or not bench.output.valid.value
        assert free or not bench.input.ready.value, "ready_o is low while a result waits"
        if bench.output.valid.value and not was_waiting:
            offered_at.append(enabled)
        was_waiting = not free
        if len(bench.input.taken_at) > len(taken_at):
            taken_at.append(enabled)
        enabled += free

    bench.watchers.append(watch)
    expected: list[Row] = []
    lasts: list[tuple[int, int]] = []  # place of a last beat, rows of the tile
    for idle, stall in ((0.4, 0.4), (0.0, 0.6), (0.0, 0.0)):
        bench.input.idle, bench.output.stall = idle, stall
        for _ in range(8):
            rows = random_tile(bench, bench.random.choice(FORMATS), bench.random.choice((1, ROWS + 2)))
            lasts.append((len(bench.input.taken_at) + len(bench.input.queue) - 1, len(rows)))
            expected += rows
        await bench.drain(len(expected))
    check_equal(expected, bench.results())
    told, free_at = [], 0
    for place, count in lasts:
        decoded = max(taken_at[place] + 1, free_at)
        free_at = decoded + 2 * ROWS
        end = decoded - 1 + model.latency(P)
        told += [end - 2 * ROWS // count * (count - 1 - r) for r in range(count)]
    check_equal(told, offered_at)


@cocotb.test()
async def cycles_equal_the_model(dut: Any) -> None:
    """Random products, tiled, with no stall on either side, take exactly as long as ``cycles.py`` says."""
    bench = TileBench(dut, "cycles")
    await bench.start()
    wrong = []
    for _ in range(run_cases(8)):
        form = bench.random.choice(FORMATS)
        shape = {
            "m": bench.random.randint(1, 2 * ROWS),
            "n": bench.random.randint(1, COLS + 2),
            "k": bench.random.randint(1, 4 * ROWS),
        }
        format = {"weight": form.name, "activation": form.name}
        height, width = side(form)
        whole = [(-(-shape[n] // s) * s, shape["k"] + shape["k"] % 2) for n, s in (("m", height), ("n", width))]
        acts, weights = (np.zeros(s, int) for s in whole)
        for codes, count in ((acts, shape["m"]), (weights, shape["n"])):
            codes[:count] = some_codes(bench, form, count, codes.shape[1])
        biases = (bench.random.randint(0, 12), bench.random.randint(0, 12))
        bench.output.results.clear()
        first, expected = len(bench.input.taken_at), []
        for i in range(0, len(acts), height):
            for j in range(0, len(weights), width):
                expected += a_tile(bench, form, acts[i : i + height], weights[j : j + width], biases)
        await bench.drain(len(expected))
        took = bench.output.given_at[-1] - bench.input.taken_at[first] + 1
        told = model.cycles(shape, format, P)
        values_equal = bench.results() == expected
        record_case({"shape": shape, "format": format}, values_equal, took, told)
        if took != told or not values_equal:
            wrong.append(f"{shape} {format}: {took} cycles, model {told}, values equal: {values_equal}")
    assert not wrong, wrong[0]
