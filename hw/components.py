"""What chips are made of: processes, memory technologies and operations, as data with sources.

The tables are ``processes/*.toml``, read like device files: every number carries its unit and its source. Lookups are
by the names that device files use (``die.process``, ``memory.*.technology``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

from ..errors import InputError
from .spec import read_tables
from .units import Key, Quantity

_NODE: Final = Key("number", "1", "500", "7")
_PRICE: Final = Key("price", "0.001 USD", "1000000 USD", "9346 USD")
_AREA: Final = Key("area", "1 um2", "1000 mm2", "2.5 mm2")
_NUMBER: Final = Key("number", "0.000001", "1000000", "0.1")
_ENERGY: Final = Key("energy per operation", "0.001 fJ/op", "1 nJ/op", "0.4 pJ/op")
_BIT: Final = Key("energy per bit", "1 fJ/bit", "1 nJ/bit", "4 pJ/bit")
_BANDWIDTH: Final = Key("bandwidth", "1 MB/s", "1 PB/s", "409.6 GB/s")

KEYS: Final[Mapping[str, Mapping[str, Key]]] = {
    "silicon": {
        "sources.*": Key("text", example="paper"),
        "silicon.*.names": Key("text", example="TSMC 7 nm"), "silicon.*.node": _NODE,
        "silicon.*.wafer_price": _PRICE, "silicon.*.defects_per_cm2": _NUMBER, "silicon.*.cluster": _NUMBER,
        "silicon.*.logic_density": _NUMBER, "silicon.*.sram": _AREA,
        "area.mac": _AREA, "area.core": _AREA, "area.hbm_stack": _AREA, "area.hbm_stack_bandwidth": _BANDWIDTH,
        "area.ddr_channel": _AREA, "area.ddr_channel_bandwidth": _BANDWIDTH, "area.link_per_gb": _AREA,
        "package.wafer_diameter": _NUMBER, "package.reticle": _AREA, "package.interposer": _NUMBER,
        "package.flip_chip": _PRICE, "package.board_per_watt": _PRICE,
        "package.gross_margin": Key("fraction", "0", "0.99", "0.6"),
    },
    "memory": {
        "sources.*": Key("text", example="paper"), "memories.*.energy": _BIT, "memories.*.price_per_gb": _PRICE,
    },
    "operations": {
        "sources.*": Key("text", example="paper"),
        **{f"operations.{f}_{o}": _ENERGY for f in ("int8", "int32", "fp16", "fp32") for o in ("add", "multiply")},
        "operations.sram_32k": _BIT, "operations.sram_1m": _BIT,
        "scaling.*.node": _NODE, "scaling.*.energy": _NUMBER,
    },
}  # fmt: skip
"""Keys of each file; ``silicon.*.logic_density`` is in million transistors per mm², ``sram`` in mm² per MiB."""


@cache
def tables(file: str) -> dict[str, Any]:
    """``processes/FILE.toml``, numbers as quantities. Raises ``InputError`` for a file that says something else."""
    path = resources.files(__package__) / "processes" / f"{file}.toml"
    return read_tables(path.read_bytes(), f"hw/processes/{file}.toml", KEYS[file])


def silicon(process: str | None) -> dict[str, Quantity]:
    """The process a device file names: by name, else the nearest of the nanometres in it.

    Raises ``InputError`` without a name, and for one that is unknown and says no nanometres.
    """
    if process is None:
        raise InputError("die.process is missing; accepted: the name of a process, such as TSMC 7 nm")
    known = tables("silicon")["silicon"]
    for entry in known.values():
        if process in (name.strip() for name in entry["names"].split(",")):
            return {name: q for name, q in entry.items() if name != "names"}
    found = re.search(r"(\d+(?:\.\d+)?) ?nm\b", process)
    if found is None:
        names = ", ".join(entry["names"] for entry in known.values())
        raise InputError(f"process {process!r} is unknown; accepted: a name with its nanometres, or one of {names}")
    node = float(found[1])
    nearest = min(known.values(), key=lambda entry: (abs(entry["node"].value - node), entry["node"].value))
    return {name: q for name, q in nearest.items() if name != "names"}


def memory(technology: str | None) -> dict[str, Quantity]:
    """The memory technology that ``technology`` names (HBM2e: hbm2, DDR5-4800: ddr5).

    Raises ``InputError`` for one that is not in the table.
    """
    asked = re.sub(r"[^a-z0-9]", "", (technology or "").lower())
    known: dict[str, dict[str, Quantity]] = tables("memory")["memories"]
    fits = [name for name in known if asked and (asked.startswith(name) or name.startswith(asked))]
    if not fits:
        raise InputError(f"memory technology {technology!r} is unknown; accepted: {', '.join(known)}")
    return known[max(fits, key=len)]
