"""What all cocotb benches share: clock and reset, handshakes with random idles, scoreboard, coverage, cases.

Runs inside a simulator. One loop owns the clock: in every cycle the sources and sinks set their pins at the
falling edge, everything settles, and then all of them look at the handshakes that the next rising edge
will see. So Icarus and Verilator, which call back at different moments of an edge, see the same thing.

The run's parameters, seed and files come from the environment (``rtl/flow.py`` sets it).
"""

from __future__ import annotations

import atexit
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any, TextIO

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly
from cocotb.types import LogicArray

FOUR_STATE = not cocotb.SIM_NAME.lower().startswith("verilator")
"""Whether the simulator knows X."""
PATIENCE = 2_000
"""Cycles without any handshake after which a bench gives up."""


def run_parameters() -> dict[str, int]:
    """Parameters the design under test was built with."""
    return dict(json.loads(os.environ["TOKENFAB_RTL_PARAMETERS"]))


def run_random(name: str) -> Random:
    """A random generator that depends on the run's seed and on ``name`` only."""
    return Random(f"{os.environ.get('TOKENFAB_RTL_SEED', '1')} {name}")


def run_cases(quick: int) -> int:
    """Cases a test with random cases should run: what the run asks for, else ``quick``."""
    return int(os.environ.get("TOKENFAB_RTL_CASES", quick))


def pack(values: Iterable[int], width: int) -> int:
    """Words of ``width`` bits, two's complement, the first in the lowest bits, as one number."""
    total, mask = 0, (1 << width) - 1
    for place, value in enumerate(values):
        total |= (int(value) & mask) << (place * width)
    return total


def unpack(word: int, width: int, count: int) -> list[int]:
    """The ``count`` signed words of ``width`` bits in ``word``, lowest first."""
    half = 1 << (width - 1)
    return [(((word >> (i * width)) & ((1 << width) - 1)) ^ half) - half for i in range(count)]


class Source:
    """Drives one valid/ready input of the design.

    ``queue`` holds beats, each a dict from pin name to number. ``idle`` is the probability that a cycle
    offers nothing. A beat on offer stays until it is taken. While nothing is on offer the pins hold X,
    or garbage where the simulator knows no X: a design that looks at them is found out.
    """

    def __init__(self, dut: Any, valid: str, ready: str, pins: Iterable[str], random: Random) -> None:
        self.valid, self.ready = getattr(dut, valid), getattr(dut, ready)
        self.pins: dict[str, Any] = {pin: getattr(dut, pin) for pin in pins}
        self.random, self.idle = random, 0.0
        self.queue: deque[Mapping[str, int]] = deque()
        self.taken_at: list[int] = []  # cycle in which each beat was taken
        self.offering = False
        self.held: dict[str, int] = {}  # what the pins hold: a pin that stays is not driven again
        self.clear()

    def clear(self) -> None:
        """Offer nothing."""
        self.offering = False
        self.valid.value = 0
        self.held.clear()
        for handle in self.pins.values():
            width = len(handle)
            handle.value = LogicArray("X" * width) if FOUR_STATE else self.random.getrandbits(width)

    def drive(self) -> None:
        """Offer the next beat, or, with probability ``idle``, nothing."""
        if self.offering:
            return
        if not self.queue or self.random.random() < self.idle:
            self.clear()
            return
        self.offering = True
        beat = self.queue[0]
        if not self.held:
            self.valid.value = 1
        for pin, handle in self.pins.items():
            if self.held.get(pin) != beat[pin]:
                handle.value = self.held[pin] = beat[pin]

    def sample(self, cycle: int) -> bool:
        """Whether the coming edge takes the beat on offer."""
        ready = self.ready.value
        assert ready.is_resolvable, f"ready is {ready} in cycle {cycle}"
        if not (self.offering and ready):
            return False
        self.queue.popleft()
        self.taken_at.append(cycle)
        self.offering = False
        return True


class Sink:
    """Takes results from one valid/ready output; ``stall`` is the probability that a cycle is not ready.

    Checks the protocol: valid is never X, what is offered is never X, and an offer neither goes away nor
    changes before it is taken.
    """

    def __init__(self, dut: Any, valid: str, ready: str, pins: Iterable[str], random: Random) -> None:
        self.valid, self.ready = getattr(dut, valid), getattr(dut, ready)
        self.pins: dict[str, Any] = {pin: getattr(dut, pin) for pin in pins}
        self.random, self.stall = random, 0.0
        self.results: list[dict[str, int]] = []
        self.given_at: list[int] = []  # cycle in which each result was taken
        self.waiting: dict[str, int] | None = None
        self.is_ready = False
        self.ready.value = 0

    def drive(self) -> None:
        """Be ready, or, with probability ``stall``, not."""
        was_ready, self.is_ready = self.is_ready, self.random.random() >= self.stall
        if self.is_ready != was_ready:
            self.ready.value = int(self.is_ready)

    def sample(self, cycle: int) -> bool:
        """Whether the coming edge takes a result."""
        valid = self.valid.value
        assert valid.is_resolvable, f"valid is {valid} in cycle {cycle}"
        if not valid:
            assert self.waiting is None, f"an offer was withdrawn in cycle {cycle}"
            return False
        offer = {}
        for pin, handle in self.pins.items():
            value = handle.value
            assert value.is_resolvable, f"{pin} is {value} in cycle {cycle}"
            offer[pin] = int(value) if len(handle) == 1 else value.to_unsigned()
        assert self.waiting in (None, offer), f"an offer changed before it was taken, cycle {cycle}"
        self.waiting = None if self.is_ready else offer
        if self.is_ready:
            self.results.append(offer)
            self.given_at.append(cycle)
        return self.is_ready


class Bench:
    """Owns clock, reset, sources and sinks of one design."""

    def __init__(self, dut: Any, name: str) -> None:
        self.dut, self.random = dut, run_random(name)
        self.sources: list[Source] = []
        self.sinks: list[Sink] = []
        self.cycle = 0
        self.watchers: list[Callable[[], None]] = []  # called in every cycle when all has settled

    def source(self, valid: str, ready: str, pins: Iterable[str]) -> Source:
        """A driver of an input."""
        self.sources.append(Source(self.dut, valid, ready, pins, self.random))
        return self.sources[-1]

    def sink(self, valid: str, ready: str, pins: Iterable[str]) -> Sink:
        """A monitor of an output."""
        self.sinks.append(Sink(self.dut, valid, ready, pins, self.random))
        return self.sinks[-1]

    async def start(self) -> None:
        """Start the clock and reset for two cycles, synchronously; forget what is under way."""
        self.dut.clk_i.value = 0
        Clock(self.dut.clk_i, 2, unit="ns").start()
        await self.reset()

    async def reset(self) -> None:
        """Two cycles of reset; what sources hold and what the design was doing is dropped."""
        self.dut.rst_ni.value = 0
        for source in self.sources:
            source.queue.clear()
            source.clear()
        for sink in self.sinks:
            sink.waiting = None
            sink.is_ready = False
            sink.ready.value = 0
        for _ in range(2):
            await FallingEdge(self.dut.clk_i)
        self.dut.rst_ni.value = 1

    async def step(self) -> bool:
        """One cycle; whether any handshake took place."""
        drivers: list[Source | Sink] = [*self.sources, *self.sinks]
        for driver in drivers:
            driver.drive()
        await ReadOnly()
        moved = [driver.sample(self.cycle) for driver in drivers]
        for watch in self.watchers:
            watch()
        self.cycle += 1
        await FallingEdge(self.dut.clk_i)
        return any(moved)

    async def steps(self, count: int) -> None:
        """``count`` cycles."""
        for _ in range(count):
            await self.step()

    async def drain(self, results: int) -> None:
        """Run until the first sink has ``results`` results and every source is empty, then a little longer.

        Fails when nothing moves for ``PATIENCE`` cycles, or when there are more results than expected.
        """
        still = 0
        while any(s.queue for s in self.sources) or len(self.sinks[0].results) < results:
            still = 0 if await self.step() else still + 1
            assert still < PATIENCE, f"nothing moves: {len(self.sinks[0].results)} of {results} results came"
        await self.steps(4)
        got = len(self.sinks[0].results)
        assert got == results, f"{got} results came, {results} were expected"


def check_equal(expected: list[Any], got: list[Any]) -> None:
    """Scoreboard: as many as expected, and each equal, in order; the first that differs is named."""
    assert len(got) == len(expected), f"{len(got)} results came, {len(expected)} were expected"
    for place, (want, have) in enumerate(zip(expected, got, strict=True)):
        assert want == have, f"result {place}: expected {want}, got {have}"


# -- what a run leaves behind ----------------------------------------------------------------------
_hits: Counter[str] = Counter()


def cover(*points: str) -> None:
    """Count functional coverage points; the goals are in the unit's ``verification.toml``.

    The counts are written when a point is hit first and when the simulation ends: after a crash
    ``functional.json`` names every point that was hit, with counts of some moment before.
    """
    known = len(_hits)
    _hits.update(points)
    if len(_hits) > known:
        _write_hits()


@atexit.register
def _write_hits() -> None:
    if _hits:
        _write("functional.json", dict(_hits))


_cases: list[dict[str, Any]] = []


def record_case(what: Mapping[str, Any], values_equal: bool, cycles_rtl: int, cycles_model: int) -> None:
    """One case in which the RTL was compared with golden model and cycle model (``tokenfab rtl cycles``)."""
    case = {"case": dict(what), "values_equal": values_equal, "cycles_rtl": cycles_rtl, "cycles_model": cycles_model}
    _cases.append(case)
    _write("cases.json", _cases)


_files: dict[str, TextIO] = {}


def _write(name: str, document: Any) -> None:
    """Write ``name`` anew. Its file stays open, for opening takes longest; what stands in it only ever grows."""
    folder = os.environ.get("TOKENFAB_RTL_RUN")
    if folder:
        if name not in _files:
            _files[name] = Path(folder, name).open("w", encoding="utf-8")  # noqa: SIM115
        file = _files[name]
        file.seek(0)
        file.write(json.dumps(document))
        file.flush()
