"""``tokenfab bench kernels``: the fast CPU kernels beside ONNX Runtime, torch, and what the CPU model predicts.

All run on this machine in one run: repetitions are interleaved, so that what disturbs one disturbs all. Weights are
square matrices in groups of 128 with a scale each; enough different ones are gone through in turn that they come
from memory and not from a cache. Activations are binary32 and are quantised inside what is timed, on both sides.

ONNX Runtime runs one model of as many MatMulNBits in a row (accuracy level 4, the fastest), so that what a call
costs is spread over them; ours pay for a call each time. It has no 1-bit product: 1 bit stands beside its 2 bits,
and 3 bits beside its 4. With one thread times are of the thread's CPU, else of the clock on the wall.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import InputError
from ..kernels.cpu.layout import BITS, GROUPS, LAYOUTS, Packed, pack
from ..kernels.lut import Quantised
from .onnx_model import matmul_chain
from .this_cpu import Machine, clock_of, device_of, find_machine, l3_bytes, predict

GROUP = 128
ACCURACY_LEVEL = 4
ROTATED = 100_000_000
"""Bytes of weights gone through before any is used again; twice the last cache if that is more."""
SAMPLE_S = 0.03
"""Least seconds of one sample."""
SETTLE_S = 0.005
"""Rest before a sample of several threads: pools of the one before spin for a while."""
REPEATS = 9
RIVAL_BITS = {1: 2, 2: 2, 3: 4, 4: 4}
"""Bits of the MatMulNBits beside which ours stand."""
BARS = {1: 1.0, 2: 1.0, 4: 1.2}
"""Greatest ratio of our time to ONNX Runtime's that is asked for."""
ORT, FP32, BF16 = "onnxruntime", "torch-fp32", "torch-bf16"


@dataclass
class Contender:
    """``run()`` does ``products`` of them once."""

    name: str
    run: Callable[[], object]
    products: int


def bench(
    bits: str, tokens: str, threads: str, size: int = 4096, *,
    repeats: int = REPEATS, seed: int = 1, step: Callable[[str], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure every combination; the document ``tokenfab bench kernels --json`` prints.

    The first three are whole numbers with commas between. Raises ``InputError`` for what no kernel does. Without
    onnxruntime or torch, ``not_compared`` says so.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    widths, counts = _numbers("--bits", bits, BITS), _numbers("--tokens", tokens, range(1, 4097))
    teams = _numbers("--threads", threads, range(1, cores + 1))
    if size % GROUP or not GROUP <= size <= 16384:
        raise InputError(f"--size {size}: accepted: a multiple of {GROUP}, to 16384")
    if not 1 <= repeats <= 1000:
        raise InputError(f"--repeats {repeats}: accepted: 1 to 1000")
    from ..kernels.cpu.compiled import instruction_sets

    say = step or (lambda text: None)
    isa = instruction_sets()[0]
    say("measuring the machine")
    machine = find_machine(isa, cores, teams)
    ort, torch = _library("onnxruntime"), _library("torch")
    rows = []
    for b in widths:
        rng = np.random.default_rng(seed)
        weights = random_weights(rng, b, size)
        packed = {layout: pack(weights, layout) for layout in LAYOUTS}
        copies = {layout: _copies(p) for layout, p in packed.items()}
        for t in teams:
            session = _ort_session(ort, rng, RIVAL_BITS[b], size, t) if ort else None
            for m in counts:
                say(f"{b} bits, {m} tokens, {t} threads")
                x = rng.standard_normal((m, size)).astype(np.float32)
                contenders = [_ours(layout, copies[layout], x, t) for layout in LAYOUTS if layout == "dot" or m == 1]
                contenders += [_ort(session, x)] if session else []
                contenders += _torch(torch, rng, x, t) if torch else []
                seconds = measure(contenders, t, repeats)
                rows.append(_row(b, m, t, size, packed, seconds, machine))
        del copies
    if disturbed := [str(t) for t in teams if machine.stream[t] < machine.stream[teams[0]]]:
        disturbed = [f"{', '.join(disturbed)} threads read less than {teams[0]}: other programs run, and what is "
                     "predicted for so many says little"]  # fmt: skip
    missing = [] if ort else ["onnxruntime is not installed: NOTHING is compared with it (install tokenfab[kernels])"]
    missing += [] if torch else ["torch is not installed: nothing is compared with it"]
    return {
        "machine": machine.to_dict(), "size": size, "group": GROUP, "repeats": repeats, "seed": seed, "rows": rows,
        "versions": {name: library.__version__ for name, library in ((ORT, ort), ("torch", torch)) if library},
        "not_compared": missing, "disturbed": disturbed,
    }  # fmt: skip


def random_weights(rng: np.random.Generator, bits: int, size: int) -> Quantised:
    """Random codes and scales; a chain of such products neither grows nor dies."""
    shape = (size, size)
    high = 2 ** (bits - 1)
    values = rng.integers(0, 2, shape) * 2 - 1 if bits == 1 else rng.integers(1 - high, high, shape)
    rms = np.sqrt(np.mean(values.astype(np.float64) ** 2))
    scales = rng.uniform(0.5, 1.5, (size, size // GROUP)) / (rms * np.sqrt(size))
    return Quantised(values, scales, bits, bits == 1)


def _numbers(option: str, text: str, accepted: Sequence[int]) -> list[int]:
    """Different numbers in ``text``, in order."""
    parts = text.split(",")
    wrong = [p for p in parts if not (p.strip().isdecimal() and len(p) < 9 and int(p) in accepted)]
    if wrong:
        what = f"{accepted[0]} to {accepted[-1]}" if len(accepted) > 1 else str(accepted[0])
        raise InputError(f"{option}: {wrong[0][:40]!r} is not accepted; accepted: {what}, with commas between")
    return sorted({int(p) for p in parts})


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None


def num_copies(nbytes: float) -> int:
    """Matrices of ``nbytes`` that are gone through in turn."""
    return max(2, int(-(-max(ROTATED, 2 * l3_bytes()) // nbytes)))


# -- who is measured -------------------------------------------------------------------------------
def _copies(packed: Packed) -> list[Packed]:
    """The matrix again and again, each in memory of its own, as the layers of a model lie side by side."""
    count = num_copies(packed.nbytes)
    data = np.repeat(packed.data[None], count, axis=0)
    scales = np.repeat(packed.scales[None], count, axis=0)
    return [replace(packed, data=d, scales=s) for d, s in zip(data, scales, strict=True)]


class Turns:
    """Goes through things in turn, ``products`` of them at a time."""

    def __init__(self, things: list[Any], product: Callable[[Any], object]) -> None:
        self.things, self.product, self.place, self.products = things, product, 0, 1
        product(things[0])
        while True:
            start = time.perf_counter()
            self()
            if time.perf_counter() - start >= SAMPLE_S or self.products >= 4 * len(things):
                break
            self.products *= 2

    def __call__(self) -> None:
        for _ in range(self.products):
            self.product(self.things[self.place])
            self.place = (self.place + 1) % len(self.things)


def _ours(layout: str, copies: list[Packed], x: Any, threads: int) -> Contender:
    from ..kernels.cpu.matmul import Plan

    plan = Plan(copies[0], len(x), threads)
    out = np.empty((len(x), copies[0].shape[0]), np.float32)
    turns = Turns(copies, lambda packed: plan.run(x, packed, out))
    return Contender(layout, turns, turns.products)


def _ort_session(ort: Any, rng: np.random.Generator, bits: int, size: int, threads: int) -> tuple[Any, int]:
    row = size // GROUP * (GROUP * bits // 8)
    count = num_copies(size * (row + 4 * size // GROUP))
    scale = 2 / (2**bits * np.sqrt(size))
    layers = [
        (rng.integers(0, 256, (size, size // GROUP, GROUP * bits // 8), dtype=np.uint8),
         rng.uniform(0.5 * scale, 1.5 * scale, (size, size // GROUP)).astype(np.float32))
        for _ in range(count)
    ]  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    model = matmul_chain(layers, n=size, bits=bits, block=GROUP, accuracy_level=ACCURACY_LEVEL)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]), count


def _ort(session: tuple[Any, int], x: Any) -> Contender:
    chain, count = session
    binding = chain.io_binding()
    binding.bind_cpu_input("x0", x)
    binding.bind_output(f"x{count}")
    chain.run_with_iobinding(binding)
    return Contender(ORT, lambda: chain.run_with_iobinding(binding), count)


def _torch(torch: Any, rng: np.random.Generator, x: Any, threads: int) -> list[Contender]:
    found = []
    size = x.shape[1]
    for name, kind in ((FP32, torch.float32), (BF16, torch.bfloat16)):
        acts = torch.from_numpy(x).to(kind)
        layer = torch.from_numpy(rng.standard_normal((size, size), dtype=np.float32)).to(kind)
        copies = [layer.clone() for _ in range(num_copies(layer.nbytes))]

        def product(weights: Any, acts: Any = acts) -> object:
            torch.set_num_threads(threads)
            return torch.nn.functional.linear(acts, weights)

        turns = Turns(copies, product)
        found.append(Contender(name, turns, turns.products))
    return found


# -- measuring -------------------------------------------------------------------------------------
def measure(contenders: Sequence[Contender], threads: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of one product, each contender's ``repeats`` samples, taken in turn."""
    clock = clock_of(threads)
    seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
    for _ in range(repeats):
        for contender in contenders:
            if threads > 1:
                time.sleep(SETTLE_S)
            start = clock()
            contender.run()
            seconds[contender.name].append((clock() - start) / contender.products)
    return seconds


def _row(
    bits: int, tokens: int, threads: int, size: int, packed: dict[str, Packed], seconds: dict[str, list[float]],
    machine: Machine,
) -> dict[str, Any]:  # fmt: skip
    measured = {name: _summary(values) for name, values in seconds.items()}
    for layout in LAYOUTS:
        if layout in measured:
            p = packed[layout]
            measured[layout] |= _prediction(machine, layout, p, tokens, threads, size, measured[layout]["median_s"])
    best = min((n for n in LAYOUTS if n in measured), key=lambda n: measured[n]["median_s"])
    rival = measured.get(ORT)
    ratio = measured[best]["median_s"] / rival["median_s"] if rival else None
    bar = BARS.get(bits)
    return {
        "bits": bits, "tokens": tokens, "threads": threads, "kernel": best, "seconds": measured[best]["median_s"],
        "rival_bits": RIVAL_BITS[bits], "ratio": ratio, "bar": bar,
        "met": None if ratio is None or bar is None else ratio <= bar, "measured": measured,
    }  # fmt: skip


def _summary(values: list[float]) -> dict[str, Any]:
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"median_s": float(median), "best_s": min(values), "spread_s": [float(low), float(high)]}


_STARTS: dict[tuple[str, int], float] = {}


def _prediction(
    machine: Machine, layout: str, packed: Packed, tokens: int, threads: int, size: int, seconds: float
) -> dict[str, Any]:
    device = device_of(machine, layout, threads, _start(layout, threads))
    if device is None:
        return {"predicted_s": None, "interval_s": None, "measured_over_predicted": None}
    predicted, low, high = predict(device, tokens, size, size, packed.bits, packed.nbytes)
    return {"predicted_s": predicted, "interval_s": [low, high], "measured_over_predicted": seconds / predicted}


def _start(layout: str, threads: int) -> float:
    """Seconds of the smallest product: what a call costs."""
    key = layout, threads
    if key not in _STARTS:
        values = np.ones((64, min(GROUPS)), np.int64)
        contender = _ours(layout, [pack(Quantised(values, np.ones((64, 1)), 1, True), layout)] * 2,
                          np.ones((1, min(GROUPS)), np.float32), threads)  # fmt: skip
        _STARTS[key] = float(np.median(measure([contender], threads, 5)[layout]))
    return _STARTS[key]
