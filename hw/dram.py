"""DRAM whose banks work on commands in lockstep: timing, geometry, and how long a train of commands takes.

A *set* is what one command reaches: ``units`` arithmetic units in lockstep, each fed by ``banks_per_unit`` banks,
over the pseudo channels and ranks of a channel. Opening a set's rows takes ``activates`` commands (each opens
``banks / activates`` banks of a rank); then every row's columns go to the units one command per ``interval``; then the
rows are closed. All times in clock cycles:

    a₁ = 0,  aᵢ = max(aᵢ₋₁ + tRRD, aᵢ₋₄ + tFAW)                i-th activate of a rank
    open  = a_A + max(tRCD + (C − 1)·interval + tRTP, tRAS)     first activate to precharge
    cycle = open + tRP                                           one set of C columns, closed again
    busy  = C · interval                                         of that, the units work

C: columns per row, times the banks of a unit, which it reads one after another. With ``interleave`` W sets of rows
(halves of the banks, ranks) open in turn, one's rows are opened while the units work on the others':

    W = 1     S sets take  S · cycle
    W > 1     S sets take  max(S · busy + cycle − busy, ⌈S / W⌉ · cycle)

and refresh takes the share tRFC/tREFI of the time (W > 1: (tRFC + cycle − busy)/tREFI, as all banks are closed for it
and nothing hides the first set's opening after it), unless a unit has banks that are not refreshed to go on with
(``refresh_hidden``): time / (1 − share). The command ``interval`` is tCCD of the level at which units sit, or
the power limit's, whichever is longer.

Sources: JEDEC parameter names; activates in a four-bank window and same-bank refresh: JESD238A (HBM3). Left out:
command bus conflicts (one command per cycle), temperature-dependent refresh.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..workloads.expr_functions import Array
from .parameters import parameter, whole
from .spec import Device


@dataclass(frozen=True)
class Timing:
    """Clock period in seconds; everything else in clock cycles, under its JEDEC name.

    ``ccd`` is the least distance of column commands of one unit (tCCD_S, tCCD_L or a power limit's, whichever holds),
    ``rrd`` of activates of one rank, ``read`` from a column command to its data (CL).
    """

    clock_s: float
    rcd: float
    rp: float
    ras: float
    rrd: float
    faw: float
    rtp: float
    ccd: float
    ccd_s: float
    read: float
    refi: float
    rfc: float


@dataclass(frozen=True)
class Geometry:
    """What one lockstep command reaches, and how many channels there are.

    ``channels``: of the whole device, each with commands of its own. ``units``: arithmetic units per channel that one
    command starts. ``banks_per_unit``: banks that a unit reads one after another. ``activates``: commands that open a
    row in all banks of a rank. ``interleave``: sets of rows that are open in turn. Sizes in bytes.
    """

    channels: int
    units: int
    banks_per_unit: int
    activates: int
    interleave: int
    row_bytes: float
    column_bytes: float

    @property
    def columns(self) -> int:
        """Column commands that read one row of every bank of a set: C."""
        return round(self.row_bytes / self.column_bytes) * self.banks_per_unit

    @property
    def set_bytes(self) -> float:
        """Bytes of one set of rows, all units and their banks."""
        return self.units * self.banks_per_unit * self.row_bytes


def last_activate(commands: int, t: Timing) -> float:
    """Cycles from the first to the last of ``commands`` activates of one rank: a_A."""
    times: list[float] = []
    for i in range(commands):
        earliest = times[-1] + t.rrd if times else 0.0
        times.append(max(earliest, times[i - 4] + t.faw) if i >= 4 else earliest)
    return times[-1] if times else 0.0


def row_cycle(columns: Array | float, g: Geometry, t: Timing, stretch: Array | float = 1.0) -> Array:
    """Cycles from a set's first activate until it can be opened again, with ``columns`` column commands between.

    ``stretch``: intervals that the units need for one column (operations per byte beyond what they do in one).
    """
    held = np.maximum(t.rcd + (np.asarray(columns) * stretch - 1) * t.ccd + t.rtp, t.ras)
    return np.asarray(last_activate(g.activates, t) + held + t.rp)


def train(columns: Array, g: Geometry, t: Timing, stretch: Array | float = 1.0) -> Array:
    """Cycles of ``columns`` column commands over as many sets of rows as they fill, without refresh.

    ``columns``: whole numbers ≥ 0, of one channel's commands. The last set may be a part of one.
    """
    columns, stretch = np.broadcast_arrays(np.asarray(columns, dtype=float), np.asarray(stretch, dtype=float))
    full = np.floor(columns / g.columns)
    rest = columns - full * g.columns
    whole = row_cycle(float(g.columns), g, t, stretch)
    part = np.where(rest > 0, row_cycle(rest, g, t, stretch), 0.0)
    if g.interleave == 1:
        return np.asarray(full * whole + part)
    sets, most = full + (rest > 0), g.interleave
    opened = np.where(full > 0, whole - g.columns * t.ccd * stretch, part - rest * t.ccd * stretch)
    ends_short = (rest > 0) & (sets % most == 1)
    banks = np.where(ends_short, (np.ceil(sets / most) - 1) * whole + part, np.ceil(sets / most) * whole)
    banks = np.where(full == 0, part, banks)
    return np.asarray(np.where(columns > 0, np.maximum(opened + columns * t.ccd * stretch, banks), 0.0))


def refresh_share(g: Geometry, t: Timing) -> float:
    """Share of the time that refresh takes: tRFC, and with sets in turn what it takes to open and close one unseen."""
    busy = g.columns * t.ccd
    again = float(row_cycle(float(g.columns), g, t)) - busy if g.interleave > 1 else 0.0
    return (t.rfc + again) / t.refi


def with_refresh(cycles: Array, g: Geometry, t: Timing, *, hidden: bool = False) -> Array:
    """Cycles with those that refresh takes, unless it is hidden behind other banks."""
    return np.asarray(cycles if hidden else cycles / (1 - refresh_share(g, t)))


def timing_of(device: Device) -> Timing:
    """Timing of ``device``'s [parameters]: ``clock_period``, and cycles ``t_rcd``, ``t_rp`` … as in the module's text.

    ``interval`` is the column commands' distance as the data sheet or the power limit has it, never below ``t_ccd_s``.
    Raises ``InputError`` for what is missing, for an interval below that, and where refresh would take all the time.
    """
    clock = device.parameters.get("clock_period")
    if clock is None or clock.unit != "s":
        raise InputError(f'device {device.name}: parameters.clock_period is missing or no time; e.g. "0.769 ns"')
    cycles = {
        name: parameter(device, f"t_{name}") for name in ("rcd", "rp", "ras", "rrd", "faw", "ccd_s", "refi", "rfc")
    }
    interval = parameter(device, "interval")
    if interval < cycles["ccd_s"]:
        raise InputError(f"device {device.name}: parameters.interval {interval:g} is below t_ccd_s {cycles['ccd_s']:g}")
    found = Timing(
        clock_s=clock.value, rtp=parameter(device, "t_rtp"), read=parameter(device, "t_cl"),
        ccd=interval, **cycles,
    )  # fmt: skip
    if found.rfc >= found.refi:
        raise InputError(f"device {device.name}: parameters.t_rfc is not below t_refi; nothing is left to work in")
    return found


def geometry_of(device: Device) -> Geometry:
    """Geometry of ``device``'s [parameters]. Raises ``InputError`` for what is missing or no whole number."""
    row, column = device.parameters.get("row"), device.parameters.get("column")
    for name, size in (("row", row), ("column", column)):
        if size is None or size.unit != "B":
            raise InputError(f'device {device.name}: parameters.{name} is missing or no size; e.g. "1 KiB", "32 B"')
    assert row is not None
    assert column is not None
    if row.value % column.value:
        raise InputError(f"device {device.name}: parameters.row {row.text} is no multiple of column {column.text}")
    return Geometry(
        channels=whole(device, "stacks") * whole(device, "channels"), units=whole(device, "units"),
        banks_per_unit=whole(device, "banks_per_unit"), activates=whole(device, "activates"),
        interleave=whole(device, "interleave", 1), row_bytes=row.value, column_bytes=column.value,
    )  # fmt: skip
