"""Families of kernels whose constants a card can have of its own: what is read, fitted and held against it.

Each :class:`Family` joins a model of :mod:`tokenfab.hw` with its tables and its fit. :data:`CARD` are the constants
that :mod:`.calibrate` fits to one card, twelve in all; the others stay those of its architecture. They were chosen
by adding, one at a time, the constant that lowers the error on the even rows of both measured cards most, with
everything else as on the *other* architecture: what a card of a known architecture can differ by is less than that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..hw import attention as attention_model
from ..hw import collective as collective_model
from ..hw import gemm as gemm_model
from ..hw.attention import attention_kernels
from ..hw.card import card_of
from ..hw.collective import SHARED, fastest_link
from ..hw.gemm import gemm_kernels
from ..hw.spec import Device
from . import attention, collectives, gemm
from .intervals import Errors, errors_of_calls, errors_of_gemms
from .kernels import folder_of, table_path

Constants = Any
"""One of the models' dataclasses of constants."""
Rows = Any
"""What one of the readers returns; it has ``seconds``."""

CARD: dict[str, tuple[str, ...]] = {
    "gemm": ("dram_share", "launch_clocks", "depth_clocks", "sustained"),
    "attention": ("matrix_share", "tile_s", "next_launch_s", "token_s"),
    "collectives": ("start_s", "low_latency_share", "tail_s", "direct_start_s"),
}
"""Constants of a card by family; meaning and bounds are in the ``BOUNDS`` of the family's model."""
FOLDER_NAMES = ("gemm", "attention", "comm")
"""Where a card's tables are, in its folder."""
MODEL_KEYS = {
    "start_s": "collective_launch", "low_latency_share": "collective_low_latency", "tail_s": "collective_tail",
    "share": "link_efficiency", "in_switch_share": "collective_in_switch", "direct_start_s": "direct_launch",
    "barrier_s": "direct_barrier",
}  # fmt: skip
"""Keys in ``[model]`` of a device file of the constants of collectives."""


@dataclass(frozen=True)
class Table:
    """One measured suite: its name, the table's as sources show it, and both halves of its rows."""

    suite: str
    source: str
    even: Rows
    odd: Rows


@dataclass(frozen=True)
class Family:
    """Kernels of one model.

    ``bounds``: low, high and meaning of every constant; ``tables(truth, device)``: what there is, (empty where a
    table has no row for the model; ``InputError`` where there is none); ``constants(device)``: those of a file
    (``InputError`` where it has none); ``fit(even halves, device, start, names)``; ``errors(rows, device, constants)``.
    """

    name: str
    interval: str
    bounds: Mapping[str, tuple[float, float, str]]
    tables: Callable[[Path, Device], list[Table]]
    constants: Callable[[Device], Constants]
    fit: Callable[[list[Rows], Device, Constants, tuple[str, ...]], Constants]
    errors: Callable[[Rows, Device, Constants], Errors]

    @property
    def names(self) -> tuple[str, ...]:
        """Constants that belong to a card."""
        return CARD[self.name]

    def key(self, name: str) -> str:
        """Where a device file has the constant ``name``."""
        return f"model.{MODEL_KEYS[name]}" if self.name == "collectives" else f"kernels.{self.name}.{_plain(name)}"

    def regime(self, name: str) -> str:
        """The interval of the device file that holds for kernels of a regime."""
        return self.interval if self.name == "collectives" else f"{self.interval}_{name}"


def _plain(name: str) -> str:
    return name.removesuffix("_s")


def _shown(path: Path) -> str:
    """A table by its last folder and its name, printable."""
    text = f"{path.parent.name}/{path.name}"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


# -- GEMM ------------------------------------------------------------------------------------------
def _gemm_tables(truth: Path, device: Device) -> list[Table]:
    source = _shown(table_path(truth, device.name, "gemm", gemm.FILE))
    rows = gemm.read_gemm(truth, device.name)
    return [Table("gemm-bf16", source, rows.rows(slice(0, None, 2)), rows.rows(slice(1, None, 2)))]


def _gemm_fit(parts: list[Rows], device: Device, start: Constants, names: tuple[str, ...]) -> Constants:
    return gemm.fit(parts[0], card_of(device), gemm_kernels(device)[1], start, names)


# -- attention -------------------------------------------------------------------------------------
def _attention_tables(truth: Path, device: Device) -> list[Table]:
    """Prefill and decoding, or the one of them that was measured."""
    found, missing = [], None
    for phase, file in attention.FILES.items():
        try:
            source = _shown(table_path(truth, device.name, "attention", file))
            calls = attention.read_calls(truth, device.name, phase, card=card_of(device))
        except InputError as error:
            missing = missing or error
            continue
        found.append(Table(f"attention-{phase}", source, calls.half(odd=False), calls.half(odd=True)))
    if missing and not found:
        raise missing
    return found


def _attention_fit(parts: list[Rows], device: Device, start: Constants, names: tuple[str, ...]) -> Constants:
    return attention.fit(parts, card_of(device), attention_kernels(device)[1], start, names)


# -- collectives -----------------------------------------------------------------------------------
def _collective_tables(truth: Path, device: Device) -> list[Table]:
    rows = collectives.read_collectives(truth, device.name)
    folder = folder_of(truth, device.name) / "comm"
    paths = [sorted(folder.glob(pattern))[-1:] for pattern in (collectives.LIBRARY, collectives.DIRECT)]
    source = " and ".join(_shown(path) for found in paths for path in found)
    return [Table("all-reduce", source, rows.half(odd=False), rows.half(odd=True))]


def _collective_constants(device: Device) -> Constants:
    link = fastest_link(device, 2)
    found = collective_model.constants_of(device, link)
    if found is None:
        why = "hang off a host" if link.topology == "host" else "have none in its file or its architecture's"
        raise InputError(f"device {device.name}: no constants of collectives to start from: its links {why}")
    return found


def _collective_fit(parts: list[Rows], device: Device, start: Constants, names: tuple[str, ...]) -> Constants:
    name = parts[0].device
    return collectives.fit({name: parts[0]}, {name: device}, names, SHARED, {name: start})[1][name]


def _collective_errors(rows: Rows, device: Device, constants: Constants) -> Errors:
    seconds = collectives.predict(rows, constants, device=device)
    return Errors(rows.seconds / seconds, np.full(seconds.size, "network"), rows.seconds, np.zeros(seconds.size))


FAMILIES = (
    Family(
        "gemm", "matmul", gemm_model.BOUNDS, _gemm_tables, lambda d: gemm_kernels(d)[0], _gemm_fit, errors_of_gemms
    ),
    Family(
        "attention", "attention", attention_model.BOUNDS, _attention_tables, lambda d: attention_kernels(d)[0],
        _attention_fit, errors_of_calls,
    ),
    Family(
        "collectives", "network", collective_model.BOUNDS, _collective_tables, _collective_constants,
        _collective_fit, _collective_errors,
    ),
)  # fmt: skip
assert all(set(f.names) <= set(f.bounds) for f in FAMILIES)
assert sum(map(len, CARD.values())) <= 12
