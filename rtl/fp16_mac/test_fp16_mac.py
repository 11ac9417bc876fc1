"""cocotb tests of the binary16 multiply-accumulate array; plan in the README. Golden model: ``kernels/fp16.py``."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np

from ...kernels.fp16 import mac_dot
from ..bench import Bench, check_equal, cover, pack, record_case, run_cases, run_parameters
from . import cycles as model

P = run_parameters()
ROWS, COLS, LANES, GUARD, FRACTION = P["ROWS"], P["COLS"], P["LANES"], P["GUARD"], P["FRACTION"]
WIDTH, CUT = FRACTION + 6, 10 - FRACTION  # of an operand; bits of binary16 it does not have
NAN, INFINITY, MINUS = 0x7FC00000, 0x7F800000, 1 << 31  # binary32
SIGN, NORMAL, TINY = 1 << WIDTH - 1, 1 << FRACTION, 1
INF, ONE, TOP = 31 * NORMAL, 15 * NORMAL, 31 * NORMAL - 1
EDGES = tuple(s | x for x in (0, TINY, NORMAL - 1, NORMAL, ONE, TOP) for s in (0, SIGN))
NANS = (INF | 1, INF | NORMAL - 1, SIGN | INF | 1, SIGN | INF | NORMAL >> 1)
KINDS = ("every exponent", "alike", "edges", "special")
Result = tuple[int, ...]

_noted: set[str] = set()


def note(point: str) -> None:
    """A functional coverage point, told once: telling writes a file."""
    if point not in _noted:
        _noted.add(point)
        cover(point)


class MacBench(Bench):
    """The bench with the array's one input and one output."""

    def __init__(self, dut: Any, name: str) -> None:
        super().__init__(dut, name)
        self.rng = np.random.default_rng(self.random.getrandbits(64))
        self.input = self.source("valid_i", "ready_o", ("act_i", "weight_i", "last_i"))
        self.output = self.sink("valid_o", "ready_i", ("sum_o",))

    def results(self) -> list[Result]:
        """Results taken so far, a row of binary32 numbers each."""
        return [tuple(r["sum_o"] >> 32 * c & 0xFFFFFFFF for c in range(COLS)) for r in self.output.results]

    def numbers(self, shape: tuple[int, ...], kind: str) -> np.ndarray:
        """Bits of operands: of every exponent, of size about 1, of the format's edges, or with infinities and NaNs."""
        if kind == "alike":
            return self.rng.normal(size=shape).astype(np.float16).view(np.uint16).astype(np.int64) >> CUT
        bits = self.rng.integers(0, 1 << WIDTH, shape)
        if kind == "edges":
            bits = np.where(self.rng.random(shape) < 0.7, self.rng.choice(EDGES, shape), bits)
        bits = np.where(bits & INF == INF, bits ^ NORMAL, bits)
        rare = self.rng.random(shape) < (0.03 if kind == "special" else 0)
        return np.where(rare, self.rng.choice((*NANS, INF, SIGN | INF), shape), bits)


def enqueue(bench: MacBench, acts: np.ndarray, weights: np.ndarray) -> list[Result]:
    """Queue the product of activations (m, k) and weights (n, k); returns what must come out."""
    m, n, k = acts.shape[0], weights.shape[0], acts.shape[1]
    more = -k % LANES
    act = np.pad(acts, ((0, -m % ROWS), (0, more)))
    weight = np.pad(weights, ((0, -n % COLS), (0, more)))
    sums = mac_dot(act, weight, LANES, GUARD, FRACTION)
    expected: list[Result] = []
    for top in range(0, act.shape[0], ROWS):
        for left in range(0, weight.shape[0], COLS):
            for first in range(0, k, LANES):
                beat = slice(first, first + LANES)
                bench.input.queue.append(
                    {
                        "act_i": pack(act[top : top + ROWS, beat].ravel().tolist(), WIDTH),
                        "weight_i": pack(weight[left : left + COLS, beat].ravel().tolist(), WIDTH),
                        "last_i": int(first + LANES >= k),
                    }
                )
            expected += [tuple(row) for row in sums[top : top + ROWS, left : left + COLS].tolist()]
    note("one beat" if k <= LANES else "several beats")
    return expected


def enqueue_terms(bench: MacBench, terms: list[list[tuple[int, int]]]) -> list[Result]:
    """Queue one dot product in all elements alike: beats of (activation, weight) in the lanes, the rest zeros."""
    acts = np.zeros((ROWS, len(terms) * LANES), np.int64)
    weights = np.zeros((COLS, len(terms) * LANES), np.int64)
    for beat, pairs in enumerate(terms):
        places = beat * LANES + bench.rng.permutation(LANES)[: len(pairs)]
        acts[:, places] = [a for a, _ in pairs]
        weights[:, places] = [w for _, w in pairs]
    return enqueue(bench, acts, weights)


def random_product(bench: MacBench, kind: str, most: int) -> list[Result]:
    """Queue a product of random size."""
    m, n, k = (int(bench.rng.integers(1, end)) for end in (ROWS + 2, COLS + 2, most + 1))
    expected = enqueue(bench, bench.numbers((m, k), kind), bench.numbers((n, k), kind))
    for row in expected:
        for value in row:
            note("a NaN" if value == NAN else "an infinity" if value & ~MINUS == INFINITY else "a finite sum")
    return expected


def single(value: float) -> int:
    """Bits of a binary32 number, which ``value`` must be."""
    assert float(np.float32(value)) == value
    return int(np.float32(value).view(np.uint32))


# -- values -----------------------------------------------------------------------------------------
@cocotb.test()
async def random_products_with_idles_and_stalls(dut: Any) -> None:
    """Products of all kinds of numbers, one after another without a gap, under every kind of handshake."""
    bench = MacBench(dut, "random")
    await bench.start()
    for idle, stall in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.3), (0.9, 0.1), (0.1, 0.9)):
        bench.input.idle, bench.output.stall = idle, stall
        bench.output.results.clear()
        expected = []
        for kind in bench.random.sample(KINDS, len(KINDS)):
            expected += random_product(bench, kind, most=bench.random.choice((3, 8)) * LANES)
        await bench.drain(len(expected))
        check_equal(expected, bench.results())
        note(f"idle {idle > 0}, stall {stall > 0}")


@cocotb.test()
async def one_product_at_a_time_is_exact(dut: Any) -> None:
    """Each lane alone, operands of every exponent: the product as float64 arithmetic has it."""
    bench = MacBench(dut, "products")
    await bench.start()
    operands = [e << FRACTION | bench.random.choice((0, 1, NORMAL // 3, NORMAL - 1)) for e in range(31)]
    operands += [1 << i for i in range(FRACTION)]
    pairs = [(a, bench.random.choice(operands)) for a in operands] + [(a, b) for a in EDGES[::2] for b in EDGES[::2]]
    wanted: list[Result] = []
    for place, (a, w) in enumerate(pairs):
        a, w = (x ^ bench.random.getrandbits(1) << WIDTH - 1 for x in (a, w))
        acts, weights = np.zeros((ROWS, LANES), np.int64), np.zeros((COLS, LANES), np.int64)
        acts[:, place % LANES], weights[:, place % LANES] = a, w
        enqueue(bench, acts, weights)
        value = np.prod((np.array([a, w], np.uint16) << CUT).view(np.float16).astype(np.float64))
        wanted += [(single(float(value)) if value else 0,) * COLS] * ROWS
    await bench.drain(len(wanted))
    check_equal(wanted, bench.results())


ROUNDINGS = {
    # terms, one after another, and their sum in binary32
    "a tie goes down to even": ([1, 2**-24], 1.0),
    "a tie goes up to even": ([1, 2**-23, 2**-24], 1 + 2**-22),
    "just above a tie": ([1, 2**-24 * (1 + 2**-10)], 1 + 2**-23),
    "just below a tie": ([1, 2**-24 * (1 - 2**-11)], 1.0),
    "a tie broken from far below": ([1, 2**-24 * (1 + 2**-18)], 1 + 2**-23),
    "a tie below a power of two": ([1, -(2**-25)], 1.0),
    "beyond a tie below a power of two": ([1, -(2**-25) * (1 + 2**-10)], 1 - 2**-24),
    "a carry out of the fraction": ([1, 1 - 2**-11, 2**-11 - 2**-21, 2**-21 - 2**-23, 2**-23], 2.0),
    "rounded up to a power of two": ([2 - 2**-10, 2**-10 - 2**-20, 2**-20 - 2**-23, 2**-24], 2.0),
    "cancellation to zero": ([1.5, -1.5], 0.0),
    "cancellation to the last bit": ([1, 2**-23, -1], 2**-23),
    "a term far below": ([2**15, 2**-48], 2.0**15),
    "a term far above": ([2**-48, 2**30], 2.0**30),
}


def factors(value: float) -> tuple[int, int]:
    """Bits of two binary16 numbers whose product is ``value``."""
    whole, over = abs(value).as_integer_ratio()
    low = whole & -whole
    whole, scale = whole // low, low / over  # an odd number, and a power of two
    for a in range(1, 2048, 2):
        if whole % a == 0 and whole // a < 2048:
            for e in range(-24, 16):
                pair = np.array([a * 2.0**e, whole // a * scale / 2.0**e])
                with np.errstate(over="ignore"):
                    half = pair.astype(np.float16)
                if (half == pair).all():
                    first, second = half.view(np.uint16).tolist()
                    return first | (value < 0) << 15, second
    raise AssertionError(f"{value} is not a product")


@cocotb.test()
async def sums_are_rounded_to_nearest_ties_to_even(dut: Any) -> None:
    """Sums on both sides of a tie, up and down, with carries and cancellation, of both signs: values written out."""
    bench = MacBench(dut, "rounding")
    await bench.start()
    wanted: list[Result] = []
    for name, (values, total) in ROUNDINGS.items() if FRACTION == 10 else ():
        for sign in (1, -1):
            enqueue_terms(bench, [[factors(sign * v)] for v in values])
            wanted += [(single(sign * total) if total else 0,) * COLS] * ROWS
        note(name)
    await bench.drain(len(wanted))
    check_equal(wanted, bench.results())


def lane_cases() -> dict[str, tuple[list[list[tuple[int, int]]], float]]:
    """Beats of several lanes, and their sum in binary32 by hand."""
    full = NORMAL | 1  # 2^-14 + 2^(-14-FRACTION)
    square = 1 + 2.0 ** (1 - FRACTION) + 2.0 ** (-2 * FRACTION)
    last = 2 * FRACTION + GUARD  # places from a product's leading one to the last one that is kept
    cases: dict[str, tuple[list[list[tuple[int, int]]], float]] = {
        "a zero moves no other lane": ([[(0, TOP), (full, full)]], square * 2.0**-28),
        "lanes cancel above the accumulator": (
            [[(TINY, TINY)], [(TOP, TOP), (TOP, SIGN | TOP)]], 2.0 ** (-28 - 2 * FRACTION),
        ),
    }  # fmt: skip
    for name, place, left in (
        ("the last place is kept", last, -(2.0**-last)), ("what is below it is cut", last + 1, 0.0),
    ):  # fmt: skip
        high = (place + 1) // 2
        if high < 15:
            low = [ONE - (high << FRACTION), SIGN | ONE - (place - high << FRACTION)]
            cases[name] = ([[(SIGN | ONE, ONE)], [(ONE, ONE), (low[0], low[1])]], left)
    if (FRACTION, GUARD) == (10, 3):
        # 2047^2 * 8 + 1025 * 2046 = 4 * 8904705 + 2: a tie that would go up
        near = [(TOP, TOP), (TOP ^ 0x3FE, TOP - 1 - (3 << FRACTION))]
        cases["a tie broken from very far below"] = ([[(TINY, SIGN | TINY)], near], 8904705 * 2.0**9)
    return cases


@cocotb.test()
async def lanes_are_aligned_and_cut(dut: Any) -> None:
    """Zeros, cancellation, the last guard bit, and a sum that is a tie by itself: values by hand, both signs."""
    bench = MacBench(dut, "lanes")
    await bench.start()
    wanted: list[Result] = []
    for name, (terms, total) in lane_cases().items() if LANES > 1 else ():
        for sign in (0, SIGN):
            enqueue_terms(bench, [[(a ^ sign, w) for a, w in pairs] for pairs in terms])
            wanted += [(single(-total if sign and total else total),) * COLS] * ROWS
        note(name)
    await bench.drain(len(wanted))
    check_equal(wanted, bench.results())


SPECIALS = {
    "infinity times zero": ([(INF, 0)], NAN),
    "zero times infinity": ([(0, SIGN | INF)], NAN),
    "infinity times a number": ([(INF, SIGN | ONE)], INFINITY | MINUS),
    "minus infinity times a negative number": ([(SIGN | TOP, SIGN | INF)], INFINITY),
    "infinity plus a number": ([(INF, ONE), (TOP, SIGN | TOP)], INFINITY),
    "a number plus infinity": ([(TOP, TOP), (ONE, SIGN | INF)], INFINITY | MINUS),
    "infinity plus infinity": ([(INF, ONE), (ONE, INF)], INFINITY),
    "infinity minus infinity": ([(INF, ONE), (ONE, SIGN | INF)], NAN),
    "a NaN times a number": ([(NANS[1], ONE)], NAN),
    "a number times a NaN": ([(ONE, NANS[0])], NAN),
    "a NaN times zero": ([(NANS[2], 0)], NAN),
    "a NaN plus infinity": ([(NANS[3], ONE), (INF, ONE)], NAN),
    "infinity plus a NaN": ([(INF, ONE), (ONE, ONE), (ONE, NANS[3])], NAN),
    "a NaN plus a number": ([(NANS[1], SIGN | ONE), (ONE, ONE)], NAN),
    "minus zero": ([(SIGN, ONE), (SIGN, TOP)], 0),
}


@cocotb.test()
async def infinities_and_nans_follow_ieee(dut: Any) -> None:
    """Every case by itself, in one beat and in several, between products that are not touched by it."""
    bench = MacBench(dut, "special")
    await bench.start()
    wanted: list[Result] = []
    for name, (pairs, value) in SPECIALS.items():
        shapes = [[[pair] for pair in pairs]]
        shapes += [[pairs]] if 1 < len(pairs) <= LANES else []
        for terms in shapes:
            enqueue_terms(bench, terms)
            enqueue_terms(bench, [[(ONE, ONE)]])
            wanted += [(value,) * COLS] * ROWS + [(single(1.0),) * COLS] * ROWS
        note(name)
    await bench.drain(len(wanted))
    check_equal(wanted, bench.results())


@cocotb.test()
async def the_extremes_stay_finite(dut: Any) -> None:
    """The greatest products, many of them, the least, both together, and all lanes of the adder at their ends."""
    bench = MacBench(dut, "extremes")
    await bench.start()
    expected: list[Result] = []
    for a, w in ((TOP, TOP), (TOP, SIGN | TOP)):
        expected += enqueue_terms(bench, [[(a, w)] * LANES] * 130)
        expected += enqueue_terms(bench, [[(a, w)] * LANES, [(TINY, TINY)] * LANES, [(a, w ^ SIGN)] * LANES])
        expected += enqueue_terms(bench, [[(TINY, TINY ^ (w & SIGN))] * LANES] * 40)
        mixed = [(a, w), (TINY, TINY), (a, w ^ SIGN), (TINY, TOP)] * 2
        expected += enqueue_terms(bench, [mixed[:LANES]] * 3)
    assert all(value & INFINITY != INFINITY for row in expected for value in row)
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


# -- time -------------------------------------------------------------------------------------------
@cocotb.test()
async def the_next_product_goes_in_while_a_result_waits(dut: Any) -> None:
    """Nobody takes the result: the array takes beats until the next product is through, and not one more."""
    bench = MacBench(dut, "decoupled")
    await bench.start()
    for beats in (1, 2, 9):
        bench.output.results.clear()
        bench.output.stall = 1.0
        before = len(bench.input.taken_at)
        expected = []
        for _ in range(4):
            size = (ROWS, beats * LANES), (COLS, beats * LANES)
            expected += enqueue(bench, bench.numbers(size[0], "alike"), bench.numbers(size[1], "alike"))
        await bench.steps(4 * beats + 20)
        stages = model.latency(P) - 2  # before the one in which the second product's last beat waits
        check_equal([2 * beats + stages], [len(bench.input.taken_at) - before])
        bench.output.stall = 0.0
        await bench.drain(len(expected))
        check_equal(expected, bench.results())


@cocotb.test()
async def reset_drops_what_is_under_way(dut: Any) -> None:
    """A reset in the middle of products, at several depths; afterwards all is as new."""
    bench = MacBench(dut, "reset")
    await bench.start()
    for pause in (1, 2, 3, 4, 5, 7, 10, 15):
        bench.output.stall = bench.random.choice((0.0, 0.7, 1.0))
        for _ in range(3):
            random_product(bench, "special", most=3 * LANES)
        await bench.steps(pause)
        note("a result waits at reset" if bench.output.waiting else "no result waits at reset")
        await bench.reset()
        bench.output.results.clear()
        bench.output.stall = 0.2
        expected = random_product(bench, "alike", most=3 * LANES)
        await bench.drain(len(expected))
        check_equal(expected, bench.results())


@cocotb.test()
async def cycles_equal_the_model(dut: Any) -> None:
    """Random products with no stall on either side take exactly as long as ``cycles.py`` says."""
    bench = MacBench(dut, "cycles")
    await bench.start()
    wrong = []
    for _ in range(run_cases(6)):
        draw = bench.random.randint
        most = bench.random.choice((2, 14)) * LANES
        shape = {"m": draw(1, 2 * ROWS), "n": draw(1, 2 * COLS), "k": draw(1, most)}
        name = "fp16" if FRACTION == 10 else f"e5m{FRACTION}"
        format = {"weight": name, "activation": name}
        kind = bench.random.choice(KINDS)
        bench.output.results.clear()
        expected = enqueue(
            bench, bench.numbers((shape["m"], shape["k"]), kind), bench.numbers((shape["n"], shape["k"]), kind)
        )
        first = len(bench.input.taken_at)
        await bench.drain(len(expected))
        took = bench.output.given_at[-1] - bench.input.taken_at[first] + 1
        told = model.cycles(shape, format, P)
        tiles = len(expected) // ROWS
        if tiles > 1:
            note("rows leave in time" if -(-shape["k"] // LANES) > ROWS else "rows hold the next tile up")
        values_equal = bench.results() == expected
        record_case({"shape": shape, "format": format}, values_equal, took, told)
        if took != told or not values_equal:
            wrong.append(f"{shape}: {took} cycles, model {told}, values equal: {values_equal}")
    assert not wrong, wrong[0]
