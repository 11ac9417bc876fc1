"""cocotb tests of the bit-serial array; the plan is in the README. Golden model: ``kernels/bitserial.py``."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np

from ...kernels.bitserial import BITS, Quantised, Widths, bitserial_dot, num_terms
from ..bench import Bench, check_equal, cover, pack, record_case, run_cases, run_parameters, unpack
from . import cycles as model

P = run_parameters()
ROWS, COLS, LANES, GUARD, EXTRA = P["ROWS"], P["COLS"], P["LANES"], P["GUARD"], P["EXTRA"]
ACC, SUM = P["ACC_WIDTH"], P["SUM_WIDTH"]
WIDTHS = Widths(LANES, GUARD, EXTRA, ACC, SUM)
FORMATS = ("int4", "int5", "int6", "int8", "fp3", "fp4")  # in the order of format_i
ONE = 0x3C00
EDGES = (0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x8400, ONE, 0xBC00, 0x7BFF, 0xFBFF)
NOT_FINITE = (0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF)
Beat = dict[str, int]
Result = tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...], bool]


_noted: set[str] = set()


def note(point: str) -> None:
    """A functional coverage point, told once: telling writes a file."""
    if point not in _noted:
        _noted.add(point)
        cover(point)


class ArrayBench(Bench):
    """The bench with the array's one input and one output."""

    def __init__(self, dut: Any, name: str) -> None:
        super().__init__(dut, name)
        self.rng = np.random.default_rng(self.random.getrandbits(64))
        pins = ("act_i", "int8_i", "weight_i", "format_i", "special_i", "scale_i", "group_i", "last_i")
        self.input = self.source("valid_i", "ready_o", pins)
        self.output = self.sink("valid_o", "ready_i", ("sum_o", "exponent_o", "overflow_o", "invalid_o"))

    def results(self) -> list[Result]:
        """Results taken so far, a row each: mantissas, exponents, overflows, invalid."""
        return [
            (
                tuple(unpack(r["sum_o"], SUM, COLS)),
                tuple(r["exponent_o"] >> 6 * c & 63 for c in range(COLS)),
                tuple(bool(r["overflow_o"] >> c & 1) for c in range(COLS)),
                bool(r["invalid_o"]),
            )
            for r in self.output.results
        ]

    def finite(self, shape: tuple[int, ...]) -> np.ndarray:
        """Bits of FP16 numbers of every exponent, some at the edges of the format."""
        bits = self.rng.integers(0, 65536, shape)
        edge = self.rng.random(shape) < 0.1
        bits = np.where(edge, self.rng.choice(EDGES, shape), bits)
        return np.where(bits >> 10 & 31 == 31, bits ^ 0x4000, bits)


def weights_of(
    codes: np.ndarray, format: str, group: int, scale: np.ndarray | int = 1, special: np.ndarray | int = 0
) -> Quantised:
    """Weights from codes (rows, k)."""
    shape = (codes.shape[0], -(-codes.shape[1] // group))
    scales, specials = np.broadcast_to(scale, shape), np.broadcast_to(special, shape)
    return Quantised(codes, scales, specials, np.ones(shape[0]), format, group)


def random_weights(bench: ArrayBench, n: int, k: int, format: str, group: int) -> Quantised:
    """Every code, scale and special value."""
    shape = (n, -(-k // group))
    codes = bench.rng.integers(0, 1 << BITS[format], (n, k))
    special = bench.rng.integers(0, 4, shape) if format[0] == "f" else 0
    return weights_of(codes, format, group, bench.rng.integers(0, 256, shape), special)


def tile_beats(bench: ArrayBench, acts: np.ndarray, weights: Quantised, int8: bool) -> list[Beat]:
    """The beats of one tile: ROWS activation vectors, COLS rows of weights. What is to be ignored is garbage."""
    rng, bits = bench.rng, BITS[weights.format]
    k = acts.shape[1]
    found = []
    for first in range(0, k, LANES):
        group = first // weights.group
        end = min(first + LANES, k, (group + 1) * weights.group)
        act = rng.integers(-128, 128, (ROWS, LANES)) if int8 else bench.finite((ROWS, LANES))
        act[:, : end - first] = acts[:, first:end]
        if int8:
            act = act & 255 | rng.integers(0, 256, act.shape) << 8
        code = np.zeros((COLS, LANES), np.int64)
        code[:, : end - first] = weights.codes[:, first:end]
        ends = end in (k, (group + 1) * weights.group)
        special = weights.special[:, group] if weights.format[0] == "f" else rng.integers(0, 4, COLS)
        number = FORMATS.index(weights.format)
        found.append(
            {
                "act_i": pack(act.ravel().tolist(), 16),
                "int8_i": int(int8),
                "weight_i": pack((code | rng.integers(0, 256, code.shape) << bits).ravel().tolist(), 8),
                "format_i": number | (2 * int(rng.integers(0, 2)) if number >= 4 else 0),
                "special_i": pack(special.tolist(), 2),
                "scale_i": pack((weights.scale[:, group] if ends else rng.integers(0, 256, COLS)).tolist(), 8),
                "group_i": int(ends and (end < k or bool(rng.integers(0, 2)))),
                "last_i": int(end == k),
            }
        )
    return found


def in_beats(acts: np.ndarray, weights: Quantised) -> tuple[np.ndarray, Quantised]:
    """Zeros added, so that groups are whole beats, and rows and outputs whole tiles."""
    group, k = weights.group, acts.shape[1]
    wide = -(-group // LANES) * LANES
    place = np.arange(k) // group * wide + np.arange(k) % group
    more = -(-k // LANES) * LANES if k <= group else k // group * wide + -(-(k % group) // LANES) * LANES
    tall, deep = -(-acts.shape[0] // ROWS) * ROWS, -(-weights.codes.shape[0] // COLS) * COLS
    act = np.zeros((tall, more), np.int64)
    act[: acts.shape[0], place] = acts
    code = np.zeros((deep, more), np.int64)
    code[: weights.codes.shape[0], place] = weights.codes
    rest = ((0, deep - weights.codes.shape[0]), (0, 0))
    scale, special = np.pad(weights.scale, rest), np.pad(weights.special, rest)
    return act, Quantised(code, scale, special, np.ones(deep), weights.format, wide)


def enqueue(bench: ArrayBench, acts: np.ndarray, weights: Quantised, int8: bool = False) -> list[Result]:
    """Queue the product of activations (m, k) and weights (n, k); returns what must come out."""
    acts, weights = in_beats(acts, weights)
    sums = bitserial_dot(acts, weights, int8, WIDTHS)
    expected: list[Result] = []
    for top in range(0, acts.shape[0], ROWS):
        for left in range(0, weights.codes.shape[0], COLS):
            cols = slice(left, left + COLS)
            part = Quantised(
                weights.codes[cols], weights.scale[cols], weights.special[cols], weights.step[cols], weights.format,
                weights.group,
            )  # fmt: skip
            bench.input.queue.extend(tile_beats(bench, acts[top : top + ROWS], part, int8))
            for r in range(top, top + ROWS):
                row = (sums.mantissa[r, cols], sums.exponent[r, cols], sums.overflow[r, cols])
                expected.append((*(tuple(v.tolist()) for v in row), bool(sums.invalid[r])))  # type: ignore[arg-type]
    note(f"{weights.format} by {'int8' if int8 else 'fp16'}")
    note("one group" if weights.scale.shape[1] == 1 else "several groups")
    if sums.invalid.any():
        note("an infinity or a NaN")
    return expected


def random_product(bench: ArrayBench, format: str, int8: bool, most: int) -> list[Result]:
    """Queue a product of random size."""
    m, n, k = (int(bench.rng.integers(1, end)) for end in (ROWS + 2, COLS + 2, most + 1))
    acts = bench.rng.integers(-128, 128, (m, k)) if int8 else bench.finite((m, k))
    if not int8 and bench.random.random() < 0.3:
        acts[bench.random.randrange(m), bench.random.randrange(k)] = bench.random.choice(NOT_FINITE)
    return enqueue(bench, acts, random_weights(bench, n, k, format, bench.random.randint(1, most)), int8)


@cocotb.test()
async def random_products_with_idles_and_stalls(dut: Any) -> None:
    """Products of all types, one after another without a gap between them, under every kind of handshake."""
    bench = ArrayBench(dut, "random")
    await bench.start()
    for idle, stall in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.3), (0.9, 0.1), (0.1, 0.9)):
        bench.input.idle, bench.output.stall = idle, stall
        bench.output.results.clear()
        expected = []
        for format in bench.random.sample(FORMATS, len(FORMATS)):
            expected += random_product(bench, format, bench.random.random() < 0.3, most=4 * LANES)
        await bench.drain(len(expected))
        check_equal(expected, bench.results())
        note(f"idle {idle > 0}, stall {stall > 0}")


@cocotb.test()
async def every_code_of_every_type_by_one(dut: Any) -> None:
    """Each code, with each special value, alone in its lane, times 1.0: the sum is the weight's value."""
    bench = ArrayBench(dut, "codes")
    await bench.start()
    expected: list[Result] = []
    values: list[list[float]] = []
    seen = min(ROWS, LANES)  # row r looks at lane r
    for format in FORMATS:
        for special in range(4 if format[0] == "f" else 1):
            code = bench.rng.permutation(1 << BITS[format])
            if special and not code.max() < 8:  # the others of FP4 were seen with the first one
                code = np.array([8, *bench.rng.integers(0, 16, 3)])
            code = code[: 20 * seen * COLS]  # all of them, but in the smallest arrays
            code = np.pad(code, (0, -len(code) % (seen * COLS)))
            for first in range(0, len(code), seen * COLS):
                lane = bench.rng.permutation(LANES)[np.arange(ROWS) % seen]
                acts = np.zeros((ROWS, LANES), np.int64)
                acts[np.arange(ROWS), lane] = ONE
                codes = bench.rng.integers(0, 1 << BITS[format], (COLS, LANES))
                codes[:, lane[:seen]] = code[first : first + seen * COLS].reshape(COLS, seen)
                expected += enqueue(bench, acts, weights_of(codes, format, LANES, 1, special))
                values += exact_values(codes[:, lane].T, format, special).tolist()
    await bench.drain(len(expected))
    check_equal(expected, bench.results())
    scale = 26 + GUARD + EXTRA
    got = [[m * 2.0 ** (e - scale) for m, e in zip(r[0], r[1], strict=True)] for r in bench.results()]
    check_equal(values, got)


def exact_values(code: np.ndarray, format: str, special: int) -> np.ndarray:
    """Values of codes, written out here and not taken from the golden model."""
    bits = BITS[format]
    if format[0] == "i":
        return np.where(code >> bits - 1, code - (1 << bits), code).astype(float)
    table = [0, 1, 2, 4] if format == "fp3" else [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    extra = ([3, -3, 6, -6] if format == "fp3" else [5, -5, 8, -8])[special]
    found: np.ndarray = np.array([*table, extra, *(-v for v in table[1:])])[code]
    return found


@cocotb.test()
async def int8_activations_are_exact(dut: Any) -> None:
    """Extremes and random numbers of INT8: the result is the integer product, whatever the type of weight."""
    bench = ArrayBench(dut, "int8")
    await bench.start()
    for format in FORMATS:
        top = (1 << BITS[format]) - 1
        for acts_of, codes_of in (
            ((-128, 127, -1, 0, 1), (0, 1, top >> 1, (top >> 1) + 1, top)),
            (range(-128, 128), range(top + 1)),
        ):
            bench.output.results.clear()
            k = 5 * LANES
            acts = bench.rng.choice(list(acts_of), (ROWS, k))
            special = bench.rng.integers(0, 4, (COLS, 3)) if format[0] == "f" else 0
            scale = bench.rng.choice([0, 1, 128, 255], (COLS, 3))
            weights = weights_of(bench.rng.choice(list(codes_of), (COLS, k)), format, 2 * LANES, scale, special)
            expected = enqueue(bench, acts, weights, int8=True)
            await bench.drain(len(expected))
            check_equal(expected, bench.results())
            exact = acts @ weights.values().T
            got = [
                [m * 2.0 ** (e - 26 - GUARD - EXTRA) for m, e in zip(r[0], r[1], strict=True)] for r in bench.results()
            ]
            if not any(any(r[2]) for r in expected):
                check_equal(exact.tolist(), got)
                note("integer products exact")


@cocotb.test()
async def only_the_row_with_it_is_invalid(dut: Any) -> None:
    """An infinity or a NaN in one beat of one row, at each place of a dot product; the next product is clean."""
    bench = ArrayBench(dut, "invalid")
    await bench.start()
    expected = []
    for number, bits in enumerate(NOT_FINITE):
        for row in {number % ROWS, ROWS - 1}:
            acts = bench.finite((ROWS, 4 * LANES))
            acts[row, bench.random.randrange(4 * LANES)] = bits
            weights = random_weights(bench, COLS, 4 * LANES, "fp4", bench.random.choice((1, 2, 4)) * LANES)
            result = enqueue(bench, acts, weights)
            assert [r[3] for r in result] == [r == row for r in range(ROWS)]
            clean = weights_of(weights.codes[:, :LANES], "fp4", LANES)
            expected += result + enqueue(bench, bench.finite((ROWS, LANES)), clean)
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


# -- overflow ---------------------------------------------------------------------------------------
FULL = LANES * 2047 << GUARD + EXTRA  # the greatest sum of a cycle, in units of the accumulator
Pair = tuple[int, int]  # bits of an activation, sign of its weight


def power(exponent: int) -> int:
    """Bits of the activation that, times 1, adds 2^exponent to an accumulator at the exponent of a full beat."""
    field = 20 + exponent - GUARD - EXTRA
    return field << 10 if field >= 1 else 1 << 9 + field


def exact_group(total: int) -> list[list[Pair]]:
    """Beats that bring a group's accumulator to ``total``, at the greatest exponent."""
    sign = 1 if total >= 0 else -1
    count, left = divmod(abs(total), FULL)
    beats = [[(0x7BFF, sign)] * LANES] * count or [[(0x7BFF, sign)] * LANES, [(0x7BFF, -sign)] * LANES]
    while left:
        beats.append([(power(left.bit_length() - 1), sign)] + [(0, sign)] * (LANES - 1))
        left -= 1 << left.bit_length() - 1
    return beats


def enqueue_groups(bench: ArrayBench, groups: list[tuple[list[list[Pair]], int]]) -> list[Result]:
    """Queue one dot product of groups (beats, scale), the same in all rows; the columns have both signs in turn."""
    longest = max(len(beats) for beats, _ in groups)
    idle = [[(0, 1)] * LANES]
    pairs = np.array([beats + idle * (longest - len(beats)) for beats, _ in groups]).reshape(-1, 2)
    acts = np.repeat(pairs[None, :, 0], ROWS, axis=0)
    turn = np.where(np.arange(COLS) % 2, -1, 1)
    codes = (pairs[None, :, 1] * turn[:, None]) & 15
    scale = np.repeat(np.array([[scale for _, scale in groups]]), COLS, axis=0)
    return enqueue(bench, acts, weights_of(codes, "int4", longest * LANES, scale))


@cocotb.test()
async def a_group_saturates_and_says_so(dut: Any) -> None:
    """A group's accumulator one step before both bounds, onto them, beyond them, and back again."""
    bench = ArrayBench(dut, "group overflow")
    await bench.start()
    bench.output.stall = 0.2
    expected = []
    if (1 << ACC - 1) // FULL <= 70:  # a wider accumulator is not filled by a group of reasonable length
        for sign in (1, -1):
            for beyond in (-1, 0, 1):
                bound = (1 << ACC - 1) - (sign > 0)
                beats = [*exact_group(sign * (bound + beyond)), [(power(0), -sign)] * LANES]
                result = enqueue_groups(bench, [(beats, 255)])
                assert result[0][2][0] is (beyond == 1), (sign, beyond)
                expected += result
                note(f"group bound {sign}, {beyond} beyond")
    expected += enqueue_groups(bench, [(exact_group(1), 1)])  # the flag is cleared
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def a_column_saturates_and_says_so(dut: Any) -> None:
    """A column's accumulator one step before both bounds, onto them, beyond them, and back again."""
    bench = ArrayBench(dut, "column overflow")
    await bench.start()
    expected = []
    top = min(4, ((1 << ACC - 1) - 1) // FULL) * FULL
    if (1 << SUM - 1) // (255 * top) <= 70:
        for sign in (1, -1):
            for beyond in (-1, 0, 1):
                count, left = divmod((1 << SUM - 1) - (sign > 0) + beyond, 255 * top)
                groups = [(exact_group(sign * top), 255)] * count
                groups += [(exact_group(sign * (left // 255)), 255), (exact_group(sign * (left % 255)), 1)]
                result = enqueue_groups(bench, [*groups, (exact_group(-sign), 1)])
                assert result[0][2][0] is (beyond == 1), (sign, beyond)
                expected += result
                note(f"column bound {sign}, {beyond} beyond")
    expected += enqueue_groups(bench, [(exact_group(-1), 1)])
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


# -- time -------------------------------------------------------------------------------------------
@cocotb.test()
async def the_next_product_goes_in_while_a_result_waits(dut: Any) -> None:
    """Nobody takes the result: the array takes beats until the next group is through, and not one more."""
    bench = ArrayBench(dut, "decoupled")
    await bench.start()
    for format in ("int8", "int6", "fp3"):  # 4, 3, 2 cycles
        bench.output.results.clear()
        bench.output.stall = 1.0
        before = len(bench.input.taken_at)
        expected = []
        for beats in (1, 9):
            acts = bench.finite((ROWS, beats * LANES))
            expected += enqueue(bench, acts, random_weights(bench, COLS, beats * LANES, format, beats * LANES))
        expected += enqueue(bench, acts, random_weights(bench, COLS, beats * LANES, format, LANES))
        await bench.steps(10 * num_terms(format) + ROWS + 20)
        one_row = ROWS == 1  # the result has left the array's own registers: one more group goes in
        check_equal([1 + 9 + 1 + one_row], [len(bench.input.taken_at) - before])
        bench.output.stall = 0.0
        await bench.drain(len(expected))
        check_equal(expected, bench.results())


@cocotb.test()
async def reset_drops_what_is_under_way(dut: Any) -> None:
    """A reset in the middle of products, at several depths; afterwards all is as new."""
    bench = ArrayBench(dut, "reset")
    await bench.start()
    for pause in [*range(1, 26, 4), 40, 60]:
        bench.output.stall = bench.random.choice((0.0, 0.7, 1.0))
        for format in ("int4", "fp3"):
            random_product(bench, format, False, most=2 * LANES)
        await bench.steps(pause)
        note("a result waits at reset" if bench.output.waiting else "no result waits at reset")
        await bench.reset()
        bench.output.results.clear()
        bench.output.stall = 0.2
        expected = random_product(bench, "int5", False, most=3 * LANES)
        await bench.drain(len(expected))
        check_equal(expected, bench.results())


@cocotb.test()
async def cycles_equal_the_model(dut: Any) -> None:
    """Random products with no stall on either side take exactly as long as ``cycles.py`` says."""
    bench = ArrayBench(dut, "cycles")
    await bench.start()
    wrong = []
    for _ in range(run_cases(5)):
        draw = bench.random.randint
        shape = {"m": draw(1, ROWS + 1), "n": draw(1, COLS + 1), "k": draw(1, 16 * LANES), "group": draw(1, 12 * LANES)}
        format = {"weight": bench.random.choice(FORMATS), "activation": bench.random.choice(("fp16", "int8"))}
        int8 = format["activation"] == "int8"
        size = (shape["m"], shape["k"])
        acts = bench.rng.integers(-128, 128, size) if int8 else bench.finite(size)
        bench.output.results.clear()
        weights = random_weights(bench, shape["n"], shape["k"], format["weight"], shape["group"])
        expected = enqueue(bench, acts, weights, int8)
        first = len(bench.input.taken_at)
        await bench.drain(len(expected))
        took = bench.output.given_at[-1] - bench.input.taken_at[first] + 1
        told = model.cycles(shape, format, P)
        whole, length, rest = model.group_cycles(shape, format, P)
        hidden = (not whole or length >= ROWS + 9) and (not rest or rest >= ROWS + 9)
        note("dequantisation hidden" if hidden else "groups too short to hide dequantisation")
        values_equal = bench.results() == expected
        record_case({"shape": shape, "format": format}, values_equal, took, told)
        if took != told or not values_equal:
            wrong.append(f"{shape} {format}: {took} cycles, model {told}, values equal: {values_equal}")
    assert not wrong, wrong[0]
