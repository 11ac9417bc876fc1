"""Measured kernels as arrays: what each had to compute and move, and how long it took.

Reads the kernel tables under ``TRUTH/aiconfigurator/<gpu>/<operation>/<framework>/`` (see the NOTES.md
there): latencies in milliseconds. Rows that cannot be true are dropped and counted: a size of zero,
a non-positive time.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..hw.devices import device_names
from ..workloads.expr_functions import Array
from ..workloads.formulas import attention_flops, matmul_flops

FOLDERS = {"a100-80g-sxm": "a100_sxm", "h100-sxm": "h100_sxm"}
"""Cards whose tables the catalogue's constants are fitted on, and their folder."""
FRAMEWORKS = ("vllm", "torch", "trtllm", "sglang")
"""Whose table is read when nobody says: vLLM's where there is one, else that of ``tokenfab measure``, else others'."""
COPIES = 6
"""Weights that a GEMM benchmark cycles through (aiconfigurator, collector/vllm/collect_gemm.py)."""
BYTES = {"bfloat16": 2, "float16": 2, "fp8": 1}


class MissingTableError(InputError):
    """There is no such table, or no row of what was asked for in it; a table that cannot be read is none of this."""


def folder_of(truth: Path, device: str) -> Path:
    """The folder of a device's tables: its name, as it is, with ``_`` for ``-`` or with the form factor too."""
    root, name = truth / "aiconfigurator", device.replace("-", "_")
    places = [root / x for x in (FOLDERS.get(device, device), device, name, f"{name}_sxm")]
    return next((place for place in places if place.is_dir()), places[0])


def devices_in(truth: Path) -> tuple[list[str], list[str]]:
    """Devices of the catalogue that have tables under ``truth``, those of :data:`FOLDERS` first and in any case;
    and folders of devices that the catalogue does not have."""
    there = {path.name for path in (truth / "aiconfigurator").glob("*") if path.is_dir()}
    places = {device: folder_of(truth, device).name for device in device_names()}
    others = [d for d in device_names() if d not in FOLDERS and places[d] in there - set(FOLDERS.values())]
    return [*FOLDERS, *others], sorted(there - {places[d] for d in (*FOLDERS, *others)})


@dataclass(frozen=True)
class Kernels:
    """Measured kernels of one suite on one device: FLOPs, bytes to and from DRAM, seconds; (N,) each."""

    suite: str
    device: str
    source: str
    flops: Array
    bytes: Array
    seconds: Array
    dropped: int

    def half(self, odd: bool) -> Kernels:
        """Even rows (to fit on) or odd rows (to report)."""
        pick = slice(1 if odd else 0, None, 2)
        return Kernels(
            self.suite, self.device, self.source, self.flops[pick], self.bytes[pick], self.seconds[pick], self.dropped
        )


def joined(parts: list[Kernels], name: str) -> Kernels:
    """Several suites of one device as one."""
    return Kernels(
        name, parts[0].device, " + ".join(p.source for p in parts),
        np.concatenate([p.flops for p in parts]), np.concatenate([p.bytes for p in parts]),
        np.concatenate([p.seconds for p in parts]), sum(p.dropped for p in parts),
    )  # fmt: skip


Row = dict[str, str]


def read_kernels(truth: Path, device: str, suite: str) -> Kernels:
    """``suite`` (``gemm-bf16``, ``attention-prefill``, ``attention-decode``) as measured on ``device``.

    Raises ``InputError`` when the tables of that device are not under ``truth``, or without a row of the suite.
    """
    operation, file, sizes = SUITES[suite]
    path = table_path(truth, device, operation, file)
    rows, dropped = [], 0
    with opened(path) as table:
        for row in table:
            work = sizes(row)
            if work is None:
                continue
            flops, moved = work
            seconds = float(row["latency"]) / 1e3
            if flops > 0 and moved > 0 and seconds > 0:
                rows.append((flops, moved, seconds))
            else:
                dropped += 1
    if not rows:
        raise MissingTableError(f"{path}: no rows of {suite}")
    flops, moved, seconds = np.array(rows).T
    return Kernels(suite, device, f"{path.parent.name}/{file}", flops, moved, seconds, dropped)


def table_path(truth: Path, device: str, operation: str, file: str, frameworks: tuple[str, ...] = FRAMEWORKS) -> Path:
    """The table ``file`` of ``device`` by the first of ``frameworks`` that has one, of its newest version.

    ``device``: a name of :data:`FOLDERS` or a folder's. Raises ``InputError`` when there is no such table.
    """
    folder = folder_of(truth, device) / operation
    for framework in frameworks:
        paths = sorted(folder.glob(f"{framework}_*/{file}"), key=lambda path: _version(path.parent.name))
        if paths:
            return paths[-1]
    wanted = " or ".join(f"{framework}_*/{file}" for framework in frameworks)
    raise MissingTableError(f"{folder}: no {wanted} there; --truth or TOKENFAB_TRUTH names the folder of measurements")


def _version(folder: str) -> list[int]:
    """``vllm_0.14.0`` as [0, 14, 0], so that 0.9 comes before 0.14; what a build adds (``+cu126``) is left out."""
    return [int(part) for part in folder.partition("_")[2].partition("+")[0].split(".") if part.isdecimal()]


def _whole(rows: Iterator[Row]) -> Iterator[Row]:
    for number, row in enumerate(rows, 2):
        if None in row.values():
            raise ValueError(f"line {number} has too few fields")
        yield row


@contextmanager
def opened(path: Path) -> Iterator[Iterator[Row]]:
    """The rows of a table. Raises ``InputError`` for a file that is none, or that lacks what is asked of it."""
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            yield _whole(csv.DictReader(file))
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{path}: no column {error} there, or a type that is not known") from None
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: not a table of measured kernels: {error}") from None


def _gemm(row: Row) -> tuple[float, float] | None:
    if row["gemm_dtype"] != "bfloat16":
        return None
    m, n, k = (int(row[x]) for x in "mnk")
    return matmul_flops(m, n, k).constant or 0.0, 2.0 * (m * k + k * n + m * n)


def _attention(row: Row) -> tuple[int, int, int, int, int] | None:
    if row["attn_dtype"] != "bfloat16" or row["kv_cache_dtype"] != "bfloat16" or int(row.get("window_size") or 0):
        return None
    return tuple(int(row[x]) for x in ("batch_size", "num_heads", "num_key_value_heads", "head_dim", "isl"))  # type: ignore[return-value]


def _prefill(row: Row) -> tuple[float, float] | None:
    sizes = _attention(row)
    if sizes is None:
        return None
    b, h, hk, d, q = sizes
    kv = q + int(row["step"])
    flops = attention_flops(b, h, q, kv, d, d).constant or 0.0
    return flops, 2.0 * b * d * (2 * h * q + 2 * hk * kv)


def _decode(row: Row) -> tuple[float, float] | None:
    sizes = _attention(row)
    if sizes is None:
        return None
    b, h, hk, d, _ = sizes
    kv = int(row["isl"]) + int(row["step"])
    flops = attention_flops(b, h, 1, kv, d, d).constant or 0.0
    return flops, 2.0 * b * d * (2 * h + 2 * hk * kv)


Sizes = Callable[[Row], tuple[float, float] | None]
SUITES: dict[str, tuple[str, str, Sizes]] = {
    "gemm-bf16": ("gemm", "gemm_perf.csv.gz", _gemm),
    "attention-prefill": ("attention", "context_attention_perf.csv.gz", _prefill),
    "attention-decode": ("attention", "generation_attention_perf.csv.gz", _decode),
}
