"""cocotb tests of the sparse DSP chain; the plan is in the README. Golden model: ``kernels/sparse.py``."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np

from ...kernels.sparse import Compressed, chain_dot, compress, prune
from ..bench import Bench, check_equal, cover, pack, record_case, run_cases, run_parameters, unpack
from . import cycles as model

P = run_parameters()
LANES, M, PACK, BITS, ACC = P["LANES"], P["M"], P["PACK"], P["WEIGHT_WIDTH"], P["ACC_WIDTH"]
WINDOW = LANES * M // P["N_MIN"]
MODES = (M // P["N_MIN"]).bit_length()
LOW, HIGH = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
Beat = dict[str, int]
Result = tuple[tuple[int, ...], tuple[bool, ...]]


class ChainBench(Bench):
    """The bench with the chain's one input and one output."""

    def __init__(self, dut: Any, name: str) -> None:
        super().__init__(dut, name)
        self.np_random = np.random.default_rng(self.random.getrandbits(64))
        self.input = self.source("valid_i", "ready_o", ("act_i", "weight_i", "index_i", "sparsity_i", "last_i"))
        self.output = self.sink("valid_o", "ready_i", ("sum_o", "overflow_o"))

    def results(self) -> list[Result]:
        """Results taken so far: (sums, overflows) over the vectors of a beat."""
        return [
            (tuple(unpack(r["sum_o"], ACC, PACK)), tuple(bool(r["overflow_o"] >> p & 1) for p in range(PACK)))
            for r in self.output.results
        ]


def padded(stored: Compressed, acts: np.ndarray) -> tuple[Compressed, np.ndarray]:
    """Weights and activations with zeros added up to whole beats."""
    covered = LANES * M // stored.n
    k = -(-stored.k // covered) * covered
    more = k // M * stored.n - stored.values.shape[1]
    values = np.pad(stored.values, ((0, 0), (0, more)))
    index = np.pad(stored.index, ((0, 0), (0, more)))
    return Compressed(values, index, stored.n, M, k), np.pad(acts, ((0, 0), (0, k - acts.shape[1])))


def beats_of(bench: ChainBench, acts: np.ndarray, stored: Compressed, row: int, mode: int) -> list[Beat]:
    """The beats of one row with PACK activation vectors; what the unit must ignore is garbage."""
    covered = LANES * M // stored.n
    found = []
    for first in range(0, stored.values.shape[1], LANES):
        window = bench.np_random.integers(-128, 128, (PACK, WINDOW))
        window[:, :covered] = acts[:, first // stored.n * M :][:, :covered]
        index = stored.index[row, first : first + LANES]
        if mode == 0:
            index = bench.np_random.integers(0, M, LANES)
        found.append(
            {
                "act_i": pack(window.ravel().tolist(), 8),
                "weight_i": pack(stored.values[row, first : first + LANES].tolist(), BITS),
                "index_i": pack(index.tolist(), M.bit_length() - 1),
                "sparsity_i": mode,
                "last_i": int(first + LANES >= stored.values.shape[1]),
            }
        )
    return found


def enqueue(bench: ChainBench, acts: np.ndarray, stored: Compressed, mode: int | None = None) -> list[Result]:
    """Queue the product of activations (m, k) and stored weights (n, k); returns what must come out."""
    stored, acts = padded(stored, acts)
    mode = (M // stored.n).bit_length() - 1 if mode is None else mode
    acts = np.pad(acts, ((0, -acts.shape[0] % PACK), (0, 0)))
    sums, met = chain_dot(acts, stored, LANES, ACC)
    expected: list[Result] = []
    for first in range(0, acts.shape[0], PACK):
        for row in range(stored.values.shape[0]):
            bench.input.queue.extend(beats_of(bench, acts[first : first + PACK], stored, row, mode))
            chosen = slice(first, first + PACK)
            expected.append((tuple(sums[chosen, row].tolist()), tuple(met[chosen, row].tolist())))
    for point, seen in (
        (f"mode {(M // stored.n).bit_length() - 1}", True),
        ("overflow upwards", bool((met & (sums > 0)).any())),
        ("overflow downwards", bool((met & (sums < 0)).any())),
        ("no overflow", not met.all()),
        ("one beat", stored.values.shape[1] == LANES),
        ("several beats", stored.values.shape[1] > LANES),
        ("a block with fewer non-zeros than N", bool((stored.values == 0).any())),
    ):
        if seen:
            cover(point)
    return expected


def random_product(bench: ChainBench, n: int, most: int = 3) -> tuple[np.ndarray, Compressed]:
    """Activations and stored weights of random size, N:M with ``n`` stored per block."""
    rng = bench.np_random
    m_, n_, k = rng.integers(1, 4), rng.integers(1, 4), M * int(rng.integers(1, most * LANES // n + 1))
    acts = rng.integers(-128, 128, (m_, k))
    return acts, compress(prune(rng.integers(LOW, HIGH + 1, (n_, k)), n, M), n, M)


@cocotb.test()
async def random_products_with_idles_and_stalls(dut: Any) -> None:
    """Products of all modes, one after another without a gap between them, under every kind of handshake."""
    bench = ChainBench(dut, "random")
    await bench.start()
    for idle, stall in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.3), (0.9, 0.1), (0.1, 0.9)):
        bench.input.idle, bench.output.stall = idle, stall
        bench.output.results.clear()
        expected = []
        for mode in [*range(MODES), *reversed(range(MODES))]:
            expected += enqueue(bench, *random_product(bench, M >> mode))
        await bench.drain(len(expected))
        check_equal(expected, bench.results())
        cover(f"idle {idle > 0}, stall {stall > 0}")


@cocotb.test()
async def extremes_fill_every_field(dut: Any) -> None:
    """All operands at their ends, in every combination: the widest cascade sums and borrows of the packing."""
    bench = ChainBench(dut, "extremes")
    await bench.start()
    expected = []
    for mode in range(MODES):
        n, k = M >> mode, LANES << mode
        for weight in (LOW, -1, 0, 1, HIGH):
            weights = np.zeros((1, k), int).reshape(1, -1, M)
            weights[:, :, M - n :] = weight
            stored = compress(weights.reshape(1, -1), n, M)
            for low in (-128, -1, 0, 1, 127):
                for high in (-128, -1, 0, 1, 127):
                    acts = np.full((PACK, k), high)
                    acts[0] = low
                    expected += enqueue(bench, acts, stored)
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def one_lane_at_a_time(dut: Any) -> None:
    """A single non-zero weight walks over all lanes, and its index over all places of the block."""
    bench = ChainBench(dut, "lanes")
    await bench.start()
    expected = []
    for mode in range(MODES):
        n = M >> mode
        for lane in range(LANES):
            places = range(M) if LANES * M <= 64 else {0, M - 1, lane % M, bench.random.randrange(M)}
            for place in places if mode else (lane % M,):
                stored = Compressed(np.zeros((1, LANES), int), np.full((1, LANES), place), n, M, LANES << mode)
                stored.values[0, lane] = bench.random.choice((LOW, HIGH))
                acts = bench.np_random.integers(-128, 128, (PACK, stored.k))
                expected += enqueue(bench, acts, stored)
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def the_accumulator_saturates_and_says_so(dut: Any) -> None:
    """Sums up to one step from both bounds, onto them, beyond them, and back again from a bound."""
    bench = ChainBench(dut, "overflow")
    await bench.start()
    bench.output.stall = 0.2
    top = 2 ** (ACC - 1) - 1
    step = LANES * 128 * -LOW  # the greatest sum of one beat
    expected = []
    if top // step <= 2000:  # a wider accumulator is not filled by a product of reasonable length
        for sign in (1, -1):
            full = [(-128 if sign > 0 else 127, LOW)] * LANES
            per_beat = sum(a * w for a, w in full)
            count = (top if sign > 0 else top + 1) // abs(per_beat)
            rest = (top if sign > 0 else top + 1) - count * abs(per_beat)
            for beyond in (-1, 0, 1):
                lists = [full] * count + exact_beats(sign * (rest + beyond)) + [[(1, -sign)] * LANES]
                acts = np.array([[a for beat in lists for a, _ in beat]])
                weights = np.array([[w for beat in lists for _, w in beat]])
                stored = compress(weights, M, M)
                result = enqueue(bench, np.repeat(acts, PACK, axis=0), stored)
                assert result[0][1][0] is (beyond == 1)
                expected += result
                cover(f"bound {sign}, {beyond} beyond")
    expected += enqueue(bench, np.ones((PACK, LANES), int), compress(np.ones((1, LANES), int), M, M))  # flag is cleared
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


def exact_beats(total: int) -> list[list[tuple[int, int]]]:
    """Beats of (activation, weight) pairs that add up to ``total``, all of one sign."""
    sign = 1 if total >= 0 else -1
    left, pairs = abs(total), []
    while left:
        weight = min(HIGH, left)
        act = min(127, left // weight)
        pairs.append((sign * act, weight))
        left -= act * weight
    pairs += [(0, 0)] * (-len(pairs) % LANES)
    return [pairs[i : i + LANES] for i in range(0, len(pairs), LANES)]


@cocotb.test()
async def a_mode_beyond_the_last_is_the_last(dut: Any) -> None:
    """The pins of sparsity_i can hold more than there are modes."""
    bench = ChainBench(dut, "modes")
    await bench.start()
    expected = []
    for value in range(MODES - 1, 8):
        expected += enqueue(bench, *random_product(bench, P["N_MIN"]), mode=value)
        cover("a mode beyond the last" if value >= MODES else "the last mode")
    await bench.drain(len(expected))
    check_equal(expected, bench.results())


@cocotb.test()
async def reset_drops_what_is_under_way(dut: Any) -> None:
    """A reset in the middle of products, at several depths of the pipeline; afterwards all is as new."""
    bench = ChainBench(dut, "reset")
    await bench.start()
    pauses = range(1, model.latency(P) + 6)
    for pause in sorted(bench.random.sample(pauses, min(len(pauses), 12))):
        bench.output.stall = bench.random.choice((0.0, 0.7, 1.0))
        for _ in range(2):
            enqueue(bench, *random_product(bench, M))
        await bench.steps(pause)
        cover("a result waits at reset" if bench.output.waiting else "no result waits at reset")
        await bench.reset()
        bench.output.results.clear()
        bench.output.stall = 0.2
        expected = enqueue(bench, *random_product(bench, M))
        await bench.drain(len(expected))
        check_equal(expected, bench.results())


@cocotb.test()
async def stalled_time_is_not_counted(dut: Any) -> None:
    """Every result is offered after exactly ``latency`` cycles in which the unit was not held up."""
    bench = ChainBench(dut, "latency")
    await bench.start()
    enabled = 0
    offered_at: list[int] = []
    taken_at: list[int] = []
    was_waiting = False

    def watch() -> None:
        nonlocal enabled, was_waiting
        free = bench.output.is_ready or not bench.output.valid.value
        assert bool(bench.input.ready.value) is free, "ready_o is high unless a result waits"
        if bench.output.valid.value and not was_waiting:
            offered_at.append(enabled)
        was_waiting = bool(bench.output.valid.value) and not bench.output.is_ready
        if len(bench.input.taken_at) > len(taken_at):
            taken_at.append(enabled)
        enabled += bool(bench.input.ready.value)

    bench.watchers.append(watch)
    bench.input.idle = bench.output.stall = 0.4
    acts, stored = random_product(bench, M)
    expected = []
    lasts: list[int] = []
    for _ in range(12):
        before = len(bench.input.queue)
        expected += enqueue(bench, acts, stored)
        lasts += [i for i in range(before, len(bench.input.queue)) if bench.input.queue[i]["last_i"]]
    await bench.drain(len(expected))
    check_equal(expected, bench.results())
    check_equal([taken_at[i] + model.latency(P) for i in lasts], offered_at)


@cocotb.test()
async def cycles_equal_the_model(dut: Any) -> None:
    """Random products with no stall on either side take exactly as long as ``cycles.py`` says."""
    bench = ChainBench(dut, "cycles")
    await bench.start()
    wrong = []
    for _ in range(run_cases(8)):
        block = 2 ** bench.random.randint(1, M.bit_length() - 1)
        kept = bench.random.randint(1, block)
        sparsity = "dense" if bench.random.random() < 0.2 else f"{kept}:{block}"
        if sparsity == "dense":
            kept = block
        shape = {"m": bench.random.randint(1, 3), "n": bench.random.randint(1, 3), "k": bench.random.randint(1, 200)}
        format = {"weight": "int8" if BITS == 8 else "int4", "activation": "int8", "sparsity": sparsity}
        acts = bench.np_random.integers(-128, 128, (shape["m"], shape["k"]))
        weights = bench.np_random.integers(LOW, HIGH + 1, (shape["n"], shape["k"]))
        whole = ((0, 0), (0, -shape["k"] % M))
        pruned = prune(np.pad(weights, whole), kept, block)
        stored = compress(pruned, model.stored_per_block(sparsity, P), M)
        bench.output.results.clear()
        expected = enqueue(bench, np.pad(acts, whole), stored)
        first = len(bench.input.taken_at)
        await bench.drain(len(expected))
        took = bench.output.given_at[-1] - bench.input.taken_at[first] + 1
        told = model.cycles(shape, format, P)
        values_equal = bench.results() == expected
        record_case({"shape": shape, "format": format}, values_equal, took, told)
        if took != told or not values_equal:
            wrong.append(f"{shape} {format}: {took} cycles, model {told}, values equal: {values_equal}")
    assert not wrong, wrong[0]
