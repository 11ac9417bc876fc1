"""Kernels of one layer of Llama-3.1-8B as vLLM 0.19 runs them, on two cards: the tables, read strictly.

``TRUTH/llmservingsim/profiler/perf/<card>/meta-llama/Llama-3.1-8B/bf16/tp1/`` (see the NOTES.md there), microseconds:

    dense.csv         one sequence of 1 to 2048 new tokens: linear layers, norms, rotary embedding, activation,
                      embedding
    per_sequence.csv  1 to 256 sequences of one token: the head's product and the greedy sampler
    attention.csv     one chunk of a prompt, decoding sequences of one length, or both in one call, cache write included
    skew.csv          the same with decoding sequences of two lengths

What a time is: the sum of the durations of a module's CUDA kernels, mean of three forwards of one layer without CUDA
graphs, after a forward of the same (the profiler's ``timings.py``; vLLM's layerwise profile). Gaps between kernels are
not in it. Weights come from DRAM: the 436 MB of a layer and the head's 1.05 GB pass between two uses. The tables say so
themselves: the head's product of one token takes 1.05 GB / 957 GB/s on the RTX 4090, and an activation of few tokens
2.6 µs, a third of the launch that the other cards' tables have in them. Activations are as the kernel before left them:
mostly in L2, up to 2.7 times as fast as DRAM.

The times of skew.csv are sums of :data:`SKEW_FORWARDS` forwards: its rows of one length repeat rows of attention.csv,
at 2.98 to 3.06 times their time (5 and 95 %).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .kernels import MissingTableError, opened

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.str_]

FOLDERS = {"rtx-4090": "RTX4090", "rtx-pro-6000": "RTXPRO6000"}
"""Devices that have tables, and their folder."""
MODEL = "meta-llama/Llama-3.1-8B"
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY, LAYERS = 4096, 14336, 32, 8, 128, 128256, 32
"""Sizes of the model."""
WIDTH = 2
"""Bytes of an element."""
LINEAR = {
    "qkv_proj": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN), "o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER), "lm_head": (VOCABULARY, HIDDEN),
}  # fmt: skip
"""n and k of the linear layers."""
NORM, ADD_NORM = 2 * HIDDEN * WIDTH, 4 * HIDDEN * WIDTH
ELEMENTWISE = {
    "act_fn": ("activation", (3 * INNER * WIDTH,)),
    "layernorm": ("norm", (NORM, ADD_NORM)),  # the one layer's first norm adds nothing, its second adds the residual
    "final_layernorm": ("norm", (ADD_NORM,)),
    "rotary_emb": ("rope", (2 * (HEADS + KV_HEADS) * HEAD_DIM * WIDTH,)),
    "embedding": ("elementwise", (2 * HIDDEN * WIDTH,)),
}
"""Other layers: operator kind, and bytes per token of the kernels whose mean the table has."""
SAMPLER = "sampler"
SKEW_FORWARDS = 3


@dataclass(frozen=True)
class Layers:
    """Rows of dense.csv and per_sequence.csv, (N,): layer, tokens or sequences, seconds, place in its table."""

    layer: Words
    tokens: Array
    seconds: Array
    row: npt.NDArray[np.intp]

    def pick(self, where: Mask) -> Layers:
        """Some of the rows."""
        return Layers(*(getattr(self, f.name)[where] for f in fields(self)))

    def half(self, odd: bool) -> Layers:
        """Even rows of each table (to fit on) or odd ones (to report)."""
        return self.pick(self.row % 2 == odd)

    def of(self, names: tuple[str, ...]) -> Layers:
        """Rows of some layers."""
        return self.pick(np.isin(self.layer, names))


@dataclass(frozen=True)
class Batches:
    """Attention calls, (N,): a chunk of ``query`` new tokens over ``prefix`` (0: no chunk), ``sequences`` that decode
    over ``context`` cached tokens on average and ``longest`` at most, seconds."""

    query: Array
    prefix: Array
    sequences: Array
    context: Array
    longest: Array
    seconds: Array

    def pick(self, where: Mask | slice | npt.NDArray[np.intp]) -> Batches:
        """Some of the rows."""
        return Batches(*(getattr(self, f.name)[where] for f in fields(self)))

    def half(self, odd: bool) -> Batches:
        """Even rows (to fit on) or odd rows (to report)."""
        return self.pick(slice(1 if odd else 0, None, 2))

    def classes(self) -> dict[str, Mask]:
        """Which rows are prefill, decode or both at once."""
        chunk, decoding = self.query > 0, self.sequences > 0
        return {"prefill": chunk & ~decoding, "decode": ~chunk, "mixed": chunk & decoding}


def table_folder(truth: Path, device: str) -> Path:
    """The folder of a device's tables. Raises ``InputError`` for a device that has none."""
    folder = truth / "llmservingsim" / "profiler" / "perf" / FOLDERS.get(device, device) / MODEL / "bf16" / "tp1"
    if not folder.is_dir():
        raise MissingTableError(f"{folder}: no tables of {device} there; --truth names the folder of measurements")
    return folder


def devices_there(truth: Path) -> list[str]:
    """Devices of :data:`FOLDERS` that have tables under ``truth``."""
    root = truth / "llmservingsim" / "profiler" / "perf"
    return [device for device, folder in FOLDERS.items() if (root / folder / MODEL / "bf16" / "tp1").is_dir()]


def read_layers(truth: Path, device: str) -> Layers:
    """dense.csv and per_sequence.csv. Raises ``InputError`` for a row that is not one of theirs."""
    found: list[tuple[str, float, float, int]] = []
    known = {"dense.csv.gz": ("tokens", {*LINEAR, *ELEMENTWISE} - {"lm_head"}),
             "per_sequence.csv.gz": ("sequences", {"lm_head", SAMPLER})}  # fmt: skip
    for file, (column, layers) in known.items():
        path = table_folder(truth, device) / file
        seen = set()
        for number, row in _rows(path, ("layer", column, "time_us")):
            layer, size, us = row["layer"], _whole(path, number, column, row, 1), _time(path, number, "time_us", row)
            if layer not in layers or (layer, size) in seen:
                wrong = "is there twice" if layer in layers else f"is none of {', '.join(sorted(layers))}"
                raise InputError(f"{path}: row {number}: {layer} of {size:g} {column} {wrong}")
            seen.add((layer, size))
            found.append((layer, size, us / 1e6, number))
    layer_, tokens, seconds, row_ = zip(*found, strict=True)
    return Layers(np.array(layer_), np.array(tokens), np.array(seconds), np.array(row_, np.intp))


def read_batches(truth: Path, device: str) -> Batches:
    """attention.csv: decoding sequences of one length."""
    path = table_folder(truth, device) / "attention.csv.gz"
    columns = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    rows = [
        (*(_whole(path, number, c, row) for c in columns), _time(path, number, "time_us", row) / 1e6)
        for number, row in _rows(path, (*columns, "time_us"))
    ]
    query, prefix, sequences, context, seconds = np.array(rows).T
    return Batches(query, prefix, sequences, context, context, seconds)


def read_skewed(truth: Path, device: str) -> Batches:
    """skew.csv: decoding sequences of two lengths, seconds of one forward."""
    path = table_folder(truth, device) / "skew.csv.gz"
    columns = ("pc", "kp", "n", "kv_mean", "kv_big")
    rows = [
        (*(_whole(path, number, c, row) for c in columns), _time(path, number, "t_skew_us", row) / SKEW_FORWARDS / 1e6)
        for number, row in _rows(path, (*columns, "t_skew_us"))
    ]
    return Batches(*np.array(rows).T)


def skew_repeats(truth: Path, device: str) -> Array:
    """Times of skew.csv's calls of one length, over those that attention.csv has of the same calls."""
    path, known = table_folder(truth, device) / "skew.csv.gz", read_batches(truth, device)
    keys = zip(known.query, known.prefix, known.sequences, known.context, strict=True)
    times = dict(zip(keys, known.seconds, strict=True))
    found = []
    for number, row in _rows(path, ("pc", "kp", "n", "kv_big", "t_max_us")):
        key = tuple(np.float64(_whole(path, number, c, row)) for c in ("pc", "kp", "n", "kv_big"))
        if key in times:
            found.append(_time(path, number, "t_max_us", row) / 1e6 / times[key])
    return np.array(found)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows with their place, counted from 0, that have all of ``columns``; at least one."""
    if not path.is_file():
        raise MissingTableError(f"{path}: there is none; --truth names the folder of measurements")
    number = -1
    with opened(path) as table:
        for number, row in enumerate(table):
            for column in columns:
                row[column]  # a missing column is told by its name
            yield number, row
    if number < 0:
        raise InputError(f"{path}: no rows there")


def _whole(path: Path, number: int, column: str, row: dict[str, str], least: int = 0) -> float:
    text = row[column]
    if not text.isascii() or not text.isdigit() or int(text) < least or len(text) > 9:
        raise InputError(f"{path}: row {number}: {column} {text[:40]!r}; accepted: a whole number of at least {least}")
    return float(text)


def _time(path: Path, number: int, column: str, row: dict[str, str]) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{path}: row {number}: {column} {row[column][:40]!r}; accepted: microseconds above 0")
    return value
