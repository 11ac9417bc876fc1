"""Operators timed one call at a time by LLMCompass on an A100, against the kernel models: nothing is fitted.

    python -m tokenfab.validation.llmcompass --truth DIR

Reads ``TRUTH/llmcompass`` (see the NOTES.md there): GEMM, softmax, LayerNorm and GELU by size, and the operators
of one GPT-3 layer on 4 GPUs, prefill and decode. A call from PyTorch and the wait for it are timed by the host's
clock, so every time holds what such a call takes when there is nothing to do. That is a convention of the run,
which LLMCompass measured and states (:data:`CALL_S`); the kernel's time of the device file's constants is added:

    time = call + kernel        QKV: three such calls        all-reduce: NCCL's kernel alone, timed back to back

Operands are the same in every call, so what fits L2 stays there (``copies=1``). PyTorch's softmax and the compiled
LayerNorm and GELU are streams here, loaded in wide words, and not the serving engine's norms; long rows of softmax
are read three times. All rows are reported, since none was fitted on; two of each layer repeat another (both norms,
both all-reduces) and are left out. These are kernels of another library than the constants are of, so the interval
is that of kernels nobody measured (``architectures/default.toml``); the stated call is known no better.

Source of method and constants: github.com/PrincetonUniversity/LLMCompass, software_model/matmul.py (``run_on_gpu``:
three warm calls, median of single ones), softmax.py, layernorm.py and gelu.py (both compiled),
hardware_model/compute_module.py (``overhead_dict``), ae/figure5 (shapes); PyTorch, aten/src/ATen/native/cuda/
SoftMax.cu (rows of up to 1024 elements by a warp, longer ones by a block in three passes).
"""

from __future__ import annotations

import argparse
import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..hw.card import card_of
from ..hw.collective import constants_of, fastest_link, library_time
from ..hw.devices import load_device
from ..hw.elementwise import elementwise_constants, elementwise_time
from ..hw.gemm import gemm_kernels, gemm_time
from ..hw.gpu import reason_of_limit
from ..workloads.expr_functions import Array
from . import gemm
from .intervals import regimes, unmeasured
from .kernels import MissingTableError
from .part import Part

DEVICE = "a100-80g-sxm"
CARD = card_of(load_device(DEVICE))
FLOAT16 = 2
"""Bytes per element."""
CALL_S = {"matmul": 21e-6, "softmax": 12e-6, "layernorm": 45e-6, "gelu": 45e-6, "all_reduce": 0.0}
"""Seconds of a call with nothing to do, by operator, as stated (``overhead_dict["A100"]``)."""
KINDS = {"softmax": "elementwise", "layernorm": "elementwise", "gelu": "elementwise"}
"""Operators without a GEMM, and the kernel that is closest: PyTorch's and the compiler's load 16 bytes at a time."""
IN_REGISTERS, SWEEPS = 1024, 3
"""Longest row that PyTorch's softmax keeps in registers, and how often it reads a longer one: maximum, sum, result."""
FILES = {
    "matmul": "ab__matmul_A100.csv", "softmax": "cf__softmax_A100.csv", "layernorm": "de__layernorm_A100.csv",
    "gelu": "g__gelu_A100.csv",
}  # fmt: skip
LAYERS = {"ijkl__transformer_A100.csv": (2048, 2048), "ijkl__transformerAR_A100.csv": (1, 2048 + 1024 + 1)}
"""Prefill and decode: new tokens per sequence, and keys they attend to."""
BATCH, HIDDEN, HEADS, GPUS = 8, 12288, 96, 4
"""Of the layer; the inner size is four times the hidden one."""
OPERATORS = ("QKV", "QK", "AV", "Wo", "W1", "W2", "softmax", "LN_MHA", "LN_FFN", "GeLU", "AR_MHA", "AR_FFN")
"""Rows of a layer's file."""
REPEATED = ("LN_FFN", "AR_FFN")
"""Rows that repeat another's time: it was measured once."""


@dataclass(frozen=True)
class Calls:
    """Calls of operators, (N,) each: name, operator (a key of :data:`CALL_S`), how many calls are in the time,
    GEMMs in one call, and m, n, k of a GEMM; or tokens, elements per token and 0; or bytes, 0, 0; seconds."""

    name: list[str]
    operator: list[str]
    calls: Array
    batch: Array
    m: Array
    n: Array
    k: Array
    seconds: Array


def read_calls(truth: Path, operator: str) -> Calls:
    """Calls of one operator by size. Raises ``InputError`` for a file that is missing or a value that is none."""
    rows = _numbers(truth, FILES[operator])
    one = np.ones(len(rows))
    if operator == "matmul":
        m, n, k, seconds = np.array([row[:4] for row in rows]).T * [[1], [1], [1], [1e-3]]
    elif operator == "gelu":
        m, n, k = np.array([row[0] for row in rows]), one, one * 0
        seconds = np.array([row[0] / (row[1] * 1e9) for row in rows])
    else:
        m, n = np.array([row[:2] for row in rows]).T
        k, seconds = one * 0, np.array([row[0] * row[1] / (row[2] * 1e9) for row in rows])
    names = [f"{a:.0f} × {b:.0f}" + (f" × {c:.0f}" if c else "") for a, b, c in zip(m, n, k, strict=True)]
    return Calls(names, [operator] * len(rows), one, one, m, n, k, seconds)


def read_layer(truth: Path, file: str) -> Calls:
    """The operators of one layer in ``file`` of :data:`LAYERS`, without the repeated ones. Raises as
    :func:`read_calls`."""
    seconds = [row[0] for row in _numbers(truth, file)]
    if len(seconds) != len(OPERATORS):
        raise InputError(f"{truth / 'llmcompass' / file}: {len(seconds)} rows, not {len(OPERATORS)}")
    query, kv = LAYERS[file]
    tokens, heads, head = BATCH * query, BATCH * HEADS // GPUS, HIDDEN // HEADS
    inner = 4 * HIDDEN // GPUS
    of = {
        "QKV": ("matmul", 3, 1, tokens, HIDDEN // GPUS, HIDDEN),
        "QK": ("matmul", 1, heads, query, kv, head),
        "AV": ("matmul", 1, heads, query, head, kv),
        "Wo": ("matmul", 1, 1, tokens, HIDDEN, HIDDEN // GPUS),
        "W1": ("matmul", 1, 1, tokens, inner, HIDDEN),
        "W2": ("matmul", 1, 1, tokens, HIDDEN, inner),
        "softmax": ("softmax", 1, 1, heads * query, kv, 0),
        "LN_MHA": ("layernorm", 1, 1, tokens, HIDDEN, 0),
        "GeLU": ("gelu", 1, 1, tokens, inner, 0),
        "AR_MHA": ("all_reduce", 1, 1, tokens * HIDDEN * FLOAT16, 0, 0),
    }
    kept = [i for i, name in enumerate(OPERATORS) if name not in REPEATED]
    names = [OPERATORS[i] for i in kept]
    calls, batch, m, n, k = np.array([of[name][1:] for name in names], np.float64).T
    return Calls(names, [str(of[name][0]) for name in names], calls, batch, m, n, k, np.array(seconds)[kept])


def _numbers(truth: Path, file: str) -> list[list[float]]:
    """Rows of numbers, whose units (``ms``, ``Tflops``) are letters behind them."""
    path = truth / "llmcompass" / file
    if not path.is_file():
        raise MissingTableError(f"{truth}: no llmcompass/{file} there")
    rows = []
    with path.open(newline="", encoding="utf-8") as table:
        for row in filter(None, csv.reader(table)):
            try:
                rows.append([float(re.sub(r"(?<=\d)[A-Za-z]+$", "", cell.strip())) for cell in row])
            except ValueError as error:
                raise InputError(f"{path}: a row of numbers, not {row}") from error
            if min(rows[-1]) <= 0:
                raise InputError(f"{path}: numbers above 0, not {row}")
    return rows


def predict(calls: Calls) -> tuple[Array, Array, Array]:
    """Seconds of ``calls``, and the ends of their 90 % intervals over them."""
    held = load_device(DEVICE)
    kernel, family = np.empty(calls.m.size), np.empty(calls.m.size, dtype=object)
    operator = np.array(calls.operator)
    constants, library = gemm_kernels(held)
    gemms = operator == "matmul"
    if gemms.any():
        m, n, k, batch = (x[gemms] for x in (calls.m, calls.n, calls.k, calls.batch))
        kernel[gemms], limit = gemm_time(m, n, k, CARD, constants, library, batch=batch, copies=1)
        regime = regimes(reason_of_limit(limit), constants.launch_clocks / CARD.clock_hz, kernel[gemms])
        family[gemms] = np.char.add("matmul_", regime)
    for name, kind in KINDS.items():
        here = operator == name
        sweeps = np.where((name == "softmax") & (calls.n[here] > IN_REGISTERS), SWEEPS, 1)
        row_bytes = (sweeps + 1) * FLOAT16 * calls.n[here]  # read, and written once
        kernel[here] = elementwise_time(kind, calls.m[here], row_bytes, CARD, elementwise_constants(held))
        family[here] = "vector"
    sums = operator == "all_reduce"
    kernel[sums], family[sums] = _nccl(calls.m[sums]), "network"
    seconds = calls.calls * (kernel + np.array([CALL_S[name] for name in calls.operator]))
    ends = [np.array([getattr(unmeasured()[f], side).value for f in family]) for side in ("low", "high")]
    return seconds, ends[0], ends[1]


def _nccl(size: Array) -> Array:
    """Seconds of the library's all-reduce, which the serving engine's own kernel would beat for short messages."""
    held = load_device(DEVICE)
    link = fastest_link(held, GPUS)
    constants = constants_of(held, link)
    assert constants is not None
    return library_time("all_reduce", size, GPUS, link.bandwidth.value, constants)


def read_all(truth: Path) -> Iterator[tuple[str, Calls, int]]:
    """Each suite's name, its calls, and how many rows were left out."""
    for operator in FILES:
        yield f"llmcompass-{operator}", read_calls(truth, operator), 0
    for phase, file in zip(("prefill", "decode"), LAYERS, strict=True):
        yield f"llmcompass-{phase}", read_layer(truth, file), len(REPEATED)


def compare(truth: Path, device: str) -> Iterator[Part]:
    """Every suite, all rows. Raises ``InputError`` as :func:`read_calls`; nothing for another device."""
    if device == DEVICE:
        for suite, calls, dropped in read_all(truth):
            yield Part(suite, "library", calls.seconds, *predict(calls), dropped)


def tables(truth: Path, calls: Calls) -> dict[str, float]:
    """Seconds, the call added, of the GEMMs whose shapes the tables of :mod:`.gemm` hold too, by name: what another
    A100 and another version of the library make of them. Raises ``InputError`` where there are no tables."""
    rows = gemm.read_gemm(truth, DEVICE, "bfloat16")
    held = dict(zip(zip(rows.m, rows.n, rows.k, strict=True), rows.seconds, strict=True))
    shapes = zip(calls.name, zip(calls.m, calls.n, calls.k, strict=True), strict=True)
    return {name: float(held[shape]) + CALL_S["matmul"] for name, shape in shapes if shape in held}


def main() -> None:
    """Print every call, and the tables' own times of the same GEMMs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    gemms = read_calls(truth, "matmul")
    theirs, took = tables(truth, gemms), dict(zip(gemms.name, gemms.seconds, strict=True))
    off = [abs(seconds / took[name] - 1) for name, seconds in theirs.items()]
    print(f"{len(theirs)} GEMMs are in the tables of the GEMM model too, which miss these times by {np.mean(off):.1%}")
    for suite, calls, dropped in read_all(truth):
        seconds, low, high = predict(calls)
        ratio = calls.seconds / seconds
        held = np.mean((ratio >= low) & (ratio <= high))
        print(
            f"{suite}: n={ratio.size}, {dropped} left out, MAPE {np.abs(1 / ratio - 1).mean():.1%}, the interval holds "
            f"{held:.0%}; sum {seconds.sum() / calls.seconds.sum() - 1:+.1%}"
        )
        for name, measured, predicted in zip(calls.name, calls.seconds, seconds, strict=True):
            line = f"  {name}: {measured * 1e6:.1f} us measured, {predicted * 1e6:.1f} predicted"
            other = f", {theirs[name] * 1e6:.1f} by the tables" if suite.endswith("matmul") and name in theirs else ""
            print(f"{line}{other}, {predicted / measured - 1:+.1%}")


if __name__ == "__main__":
    main()
