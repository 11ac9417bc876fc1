"""Kernels measured on the machine this runs on, as tables that the readers of :mod:`tokenfab.validation` take.

What ``tokenfab measure`` does: GEMM and attention as PyTorch runs them, on CUDA where there is a device, else
on the CPU, written like aiconfigurator's tables: ``DIR/aiconfigurator/<name>/<suite>/torch_<version>/*.csv.gz``,
latency in milliseconds. GEMMs cycle through six weights and attention repeats each call on the same data, as
those tables do.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import math
import os
import platform
import random
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, unknown_name
from ..files import check_writable, write_whole
from .kernels import COPIES, FOLDERS
from .shapes import Attention, Shape, shapes
from .timing import CPU_REPEATS, CUDA_REPEATS, MINIMUM_S, Timer, cpu_timer, cuda_timer

if TYPE_CHECKING:
    import torch

Document = dict[str, Any]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
COMMON = ("framework", "version", "device", "op_name", "kernel_source")
HEADS = ("num_heads", "num_key_value_heads", "head_dim", "beam_width", "attn_dtype", "kv_cache_dtype")
ATTENTION_COLUMNS = (*COMMON, "batch_size", "isl", *HEADS, "step", "window_size", "latency")
COLUMNS = {
    "gemm": (*COMMON, "gemm_dtype", "m", "n", "k", "latency"),
    "context_attention": ATTENTION_COLUMNS,
    "generation_attention": ATTENTION_COLUMNS,
}
"""Tables and their columns, as in the newest of aiconfigurator's."""
SUITES = {"gemm": ("gemm",), "attention": ("context_attention", "generation_attention")}
"""What ``--suite`` names, and its tables."""
BLOCK = 1 << 20
"""Random numbers drawn; larger operands repeat them, which takes a memory copy and no generator."""
SHARE = {"cuda": 0.8, "cpu": 0.5}
"""Of the memory (on CUDA: that is free), what one kernel's operands may take."""
BUSY = 0.25
"""Load per processor from which a CPU's times are said to be disturbed: two threads that wait for each other
took 50 times as long for the smallest GEMM on two cores with a load of 2.5."""
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
"""PyTorch's attention kernels in the order in which they are tried; the first that runs measures all rows."""


# -- on what ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Machine:
    """What measures: ``kind`` is ``cuda`` or ``cpu``; ``memory`` its bytes; ``facts`` for the notes."""

    kind: str
    device: str
    torch: str
    dtypes: tuple[str, ...]
    memory: float
    facts: tuple[str, ...]


def this_machine() -> Machine:
    """The CUDA device that PyTorch would use, else the CPU."""
    import torch

    build = f"PyTorch {torch.__version__}"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        facts = [build, f"CUDA {torch.version.cuda or torch.version.hip}, compute capability {major}.{minor}"]
        if major < 8:
            facts.append("this card has no bfloat16 arithmetic: its times are of an emulation")
        free = torch.cuda.mem_get_info()[0]
        return Machine(
            "cuda", torch.cuda.get_device_name(), torch.__version__, ("bfloat16",), float(free), tuple(facts)
        )
    names = getattr(os, "sysconf_names", {})
    known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else math.inf
    dtypes = [d for d in ("bfloat16", "float32") if _runs(d)]
    facts = [build, f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    return Machine("cpu", _cpu_name(), torch.__version__, tuple(dtypes), float(memory), tuple(facts))


def _runs(dtype: str) -> bool:
    import torch

    x = torch.ones(4, 4, dtype=getattr(torch, dtype))
    try:
        torch.nn.functional.linear(x, x)
    except RuntimeError:
        return False
    return True


def _cpu_name() -> str:
    """The model's name; ``platform`` knows it on some systems, Linux writes it into a file."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        found = None
    return (found[1].strip() if found else "") or platform.processor() or platform.machine() or "cpu"


def slug(device: str) -> str:
    """A device's name as a folder's: ``NVIDIA GeForce RTX 4090`` is ``nvidia-geforce-rtx-4090``."""
    plain = re.sub(r"\((?:r|tm)\)", " ", device.lower())
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")[:80].strip("-") or "device"


# -- measuring -------------------------------------------------------------------------------------
def measure(
    out: Path,
    *,
    name: str | None = None,
    suites: Sequence[str] = (),
    quick: bool = False,
    seconds: float | None = None,
    force: bool = False,
    command: str | None = None,
    step: Callable[[str], None] = lambda text: None,
    machine: Machine | None = None,
    timer: Timer | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Document:
    """Measure ``suites`` (all if empty) and write tables and notes into ``out``; returns what was done.

    ``name``: the folder under ``aiconfigurator``, or a device whose folder :data:`FOLDERS` knows. ``seconds``:
    no shape is begun after so many; one is measured in any case. Shapes come in a shuffled order, so that a run
    that stops early has a sample of all tables, and a machine that grows warm does so for all sizes alike; rows
    are written in the order of :func:`shapes`.

    Raises ``InputError``, before anything is measured, for a wrong name, suite or number, and for a table that
    is there already, unless ``force``; afterwards, when no shape ran at all.
    """
    started, stamp = clock(), datetime.datetime.now(datetime.UTC)
    for suite in suites:
        if suite not in SUITES:
            raise unknown_name("suite", suite, SUITES)
    if seconds is not None and not seconds > 0:
        raise InputError(f"--seconds {seconds:g}: accepted: a number above 0")
    if name is not None and not NAME.fullmatch(name):
        raise InputError(
            f"--device-name {name[:80]!r}: accepted: at most 80 of letters, digits and . _ -, a letter or digit first"
        )
    _check_folder(out)
    notes = _old_notes(out / "NOTES.md")
    machine = machine or this_machine()
    chosen = [s for s in SUITES if s in suites] or list(SUITES)
    folder = FOLDERS.get(name or "", name) or slug(machine.device)
    files = {
        table: out / "aiconfigurator" / folder / suite / f"torch_{machine.torch}" / f"{table}_perf.csv.gz"
        for suite in chosen for table in SUITES[suite]
    }  # fmt: skip
    there = [path for path in files.values() if path.exists()]
    if there and not force:
        raise InputError(f"{there[0]}: there already; --force replaces it, --device-name names another folder")

    busy = _busy() if machine.kind == "cpu" else None
    planned = shapes(machine.kind, chosen, machine.dtypes, quick)
    times, source, left = _time_all(planned, machine, seconds, step, timer, clock)
    if not times:
        raise InputError(f"nothing could be measured on {machine.device}: {next(iter(left), 'no shapes')}")
    rows: dict[str, list[Document]] = {table: [] for table in files}
    for shape, latency in ((s, times[s]) for s in planned if s in times):
        kernel = source if isinstance(shape, Attention) else "torch.nn.functional.linear"
        given = ("TORCH", machine.torch, machine.device, shape.table, kernel)
        rows[shape.table].append(dict(zip(COMMON, given, strict=True)) | shape.row() | {"latency": latency * 1e3})
    wrote = {table: path for table, path in files.items() if rows[table]}
    stopped = len(planned) - len(times) - sum(left.values())
    document = {
        "name": folder, "device": machine.device, "kind": machine.kind, "torch": machine.torch,
        "files": [str(path) for path in wrote.values()], "notes": str(out / "NOTES.md"),
        "tables": [_summary(t, d, times) for t in wrote for d in machine.dtypes],
        "measured": len(times), "not_reached": stopped, "left_out": dict(left), "disturbed": busy,
        "utc": stamp.isoformat(timespec="seconds"), "wall_s": clock() - started, "command": command,
    }  # fmt: skip
    for table, path in wrote.items():
        write_whole(path, _csv(COLUMNS[table], rows[table]))
    write_whole(out / "NOTES.md", notes + _section(document, machine, source))
    return document


def _check_folder(out: Path) -> None:
    """That tables can be written there is asked before they are measured."""
    nearest = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise InputError(f"{out}: cannot be written: {nearest} is a file; accepted: a folder, made where there is none")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{out}: cannot be written: no permission in {nearest}")
    check_writable(out / "NOTES.md")


def _busy() -> str | None:
    """What to say when other work ran on this CPU in the minute before; ``None`` where it did not, or nobody knows."""
    load, processors = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load < BUSY * processors:
        return None
    return f"load average {load:.1f} on {processors} processors before the run: other work ran, times may be too long"


def _time_all(
    planned: list[Shape], machine: Machine, seconds: float | None, step: Callable[[str], None], timer: Timer | None,
    clock: Callable[[], float],
) -> tuple[dict[Shape, float], str, Counter[str]]:  # fmt: skip
    """Seconds of one call by shape, the attention kernel's name, and how many were left out by reason."""
    import torch

    fill, timer = _filler(machine.kind), timer or (cuda_timer if machine.kind == "cuda" else cpu_timer)
    times: dict[Shape, float] = {}
    left: Counter[str] = Counter()
    order = random.Random(0).sample(planned, len(planned))
    limit = SHARE[machine.kind] * machine.memory
    attends = any(isinstance(shape, Attention) for shape in planned)
    with torch.inference_mode(), _attention_kernel(fill, machine) if attends else nullcontext("") as source:
        start = clock()
        for number, shape in enumerate(order, 1):
            if times and seconds is not None and clock() - start >= seconds:
                break
            step(f"{number} of {len(order)}: {shape.table}, {shape.dtype}")
            if shape.held > limit:
                left[f"needs more than {SHARE[machine.kind]:.0%} of the memory"] += 1
                continue
            try:
                times[shape] = timer(shape.call(fill), shape.copies)
            except torch.cuda.OutOfMemoryError:  # its text has the sizes, one reason for each
                left["out of memory"] += 1
            except RuntimeError as error:  # what this device has no kernel for
                left[str(error).strip().partition("\n")[0][:200] or type(error).__name__] += 1
            if machine.kind == "cuda":
                torch.cuda.empty_cache()  # a graph's memory is given back only so
    return times, source, left


def _filler(kind: str) -> Callable[..., torch.Tensor]:
    """A function that makes operands: ``fill("bfloat16", 4, 8)`` is a random matrix of that type."""
    import torch

    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).to(kind)
    typed: dict[str, torch.Tensor] = {}

    def fill(dtype: str, *shape: int) -> torch.Tensor:
        if dtype not in typed:
            typed[dtype] = block.to(getattr(torch, dtype))
        made = torch.empty(math.prod(shape), dtype=typed[dtype].dtype, device=kind)
        whole = made.numel() // BLOCK * BLOCK
        made[:whole].view(-1, BLOCK).copy_(typed[dtype])
        made[whole:].copy_(typed[dtype][: made.numel() - whole])
        return made.view(shape)

    return fill


@contextmanager
def _attention_kernel(fill: Callable[..., torch.Tensor], machine: Machine) -> Iterator[str]:
    """Attention runs by the first kernel of ``BACKENDS`` that this device has; gives its name for the tables.

    PyTorch would choose anew for each call, and a table of several kernels has no one to say it of.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for backend in BACKENDS:
        if not hasattr(SDPBackend, backend):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of every reason why a kernel is not to be had
            try:
                with sdpa_kernel(getattr(SDPBackend, backend)):
                    for dtype in machine.dtypes:
                        Attention(dtype, 1, 16, 16, 4, 2).call(fill)(0)
            except (RuntimeError, TypeError):  # TypeError: a PyTorch that knows no grouped queries
                continue
        with sdpa_kernel(getattr(SDPBackend, backend)):
            yield f"torch_sdpa_{backend.lower()}"
        return
    raise InputError(f"{machine.device}: PyTorch {machine.torch} has no attention kernel for it (before 2.5: none)")


# -- what is written -------------------------------------------------------------------------------
def _csv(columns: Sequence[str], rows: list[Document]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return gzip.compress(text.getvalue().encode("utf-8"), mtime=0)


def _summary(table: str, dtype: str, times: dict[Shape, float]) -> Document:
    """Rows of a table in one type: the shortest and longest seconds, the most FLOP/s and bytes/s of any."""
    found = [(shape, t) for shape, t in times.items() if shape.table == table and shape.dtype == dtype]
    return {
        "table": table, "dtype": dtype, "rows": len(found),
        "shortest_s": min((t for _, t in found), default=None), "longest_s": max((t for _, t in found), default=None),
        "most_flops_s": max((s.flops / t for s, t in found), default=None),
        "most_bytes_s": max((s.moved / t for s, t in found), default=None),
    }  # fmt: skip


def _old_notes(path: Path) -> str:
    """The notes that are there, to write below them, or a heading."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else "# Kernels measured by tokenfab measure"
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return text.rstrip("\n") + "\n"


def _section(document: Document, machine: Machine, source: str) -> str:
    """What the notes say of this run."""
    how = (
        f"by CUDA events around replays of a CUDA graph of whole cycles, median of {CUDA_REPEATS} repeats"
        if machine.kind == "cuda"
        else f"by the clock (time.perf_counter) around calls from Python, median of {CPU_REPEATS} repeats"
    )
    tables = [f"{t['rows']} × {t['table']} {t['dtype']}" for t in document["tables"]]
    left = [document["disturbed"]] if document["disturbed"] else []
    left += [f"{count} shapes left out: {reason}" for reason, count in document["left_out"].items()]
    if document["not_reached"]:
        left.append(f"{document['not_reached']} shapes not reached in the time given")
    lines = [
        f"device: {machine.device} ({machine.kind})", *machine.facts,
        f"rows: {', '.join(tables)}; latency in MILLISECONDS",
        f"timed {how} of at least {MINIMUM_S * 1e3:g} ms each, after a warm-up; shapes in a shuffled order",
        f"gemm: torch.nn.functional.linear, cycling through {COPIES} weights; random normal operands",
    ]  # fmt: skip
    if source:
        lines += [
            f"attention: scaled_dot_product_attention by {source}, causal prefill, one query decoding; isl + step keys",
            "attention repeats each call on the same data, so keys that fit a cache stay there, as in aiconfigurator's",
        ]
    lines += [*([f"command: {document['command']}"] if document["command"] else []), *left]
    section = f"\n## {document['name']}, torch_{machine.torch}, {document['utc']}\n\n"
    return section + "".join(f"- {' '.join(line.split())}\n" for line in lines)
