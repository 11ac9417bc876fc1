"""The SRAM model against CACTI and Horowitz: fits its four factors and prints what was held back.

    python -m tokenfab.validation.sram

CACTI's six buffers are those of the rule book of BitMoD's simulator (512 KiB, 8 banks, one read and one write port, 28
nm; ``hw/catalog/rules/bitmod-2024.toml``). By width, every second one is fitted and the others are reported.
Horowitz (ISSCC 2014, 45 nm, 0.9 V, as quoted in several papers, which do not agree on 32 KiB): 10, 20 and 100 pJ per
64 bits of 8 KiB, 32 KiB and 1 MiB. They are not fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..hw.layer_rules import Port
from ..hw.sram import FIT, Factors, Sram, sram
from .bitmod import load_rules

CAPACITY = 512 * 1024
HOROWITZ = {8: 10.0, 32: 20.0, 1024: 100.0}
"""KiB: picojoules per 64 bits."""


@dataclass(frozen=True)
class Point:
    """A buffer of CACTI beside the model's; ``fitted``: its numbers were used."""

    width: int
    port: Port
    read_pj: float
    write_pj: float
    area_mm2: float
    fitted: bool


def ports() -> dict[int, Port]:
    """CACTI's buffers by width, ascending."""
    return {int(width): port for width, port in sorted(load_rules("bitmod-2024").sram.items(), key=lambda x: int(x[0]))}


def buffer(width: int, factors: Factors) -> Sram:
    """The model's of CACTI's buffer with a port of ``width`` bits."""
    return sram(CAPACITY, width, banks=8, ports=2, node_nm=28, factors=factors)


def fit() -> Factors:
    """The factors with the least squared errors on every second buffer; all four enter linearly, one after another."""
    held = [(w, p) for i, (w, p) in enumerate(ports().items()) if i % 2 == 0]
    one = Factors(1.0, 1.0, 1.0, 1.0)
    share = buffer(64, one).area_mm2 / float(np.mean([p.area_mm2 for _, p in held]))
    rows, target = [], []
    for width, port in held:
        alone = (Factors(1, 0, 0, share), Factors(0, 1, 0, share), Factors(0, 0, 1, share))
        parts = [_parts(width, factors) for factors in alone]
        rest = _parts(width, Factors(0.0, 0.0, 0.0, share))
        for side, value in enumerate((port.read_pj, port.write_pj)):
            rows.append([(p[side] - rest[side]) / value for p in parts])
            target.append(1 - rest[side] / value)
    found = np.linalg.lstsq(np.array(rows), np.array(target), rcond=None)[0]
    routed, sensed, written = (float(x) for x in found)
    return Factors(routed, sensed, written, share)


def _parts(width: int, factors: Factors) -> tuple[float, float]:
    made = buffer(width, factors)
    return made.read_j * 1e12, made.write_j * 1e12


def points(factors: Factors = FIT) -> list[Point]:
    """Every buffer of CACTI beside the model's."""
    found = []
    for i, (width, port) in enumerate(ports().items()):
        made = buffer(width, factors)
        found.append(Point(width, port, made.read_j * 1e12, made.write_j * 1e12, made.area_mm2, i % 2 == 0))
    return found


def horowitz(factors: Factors = FIT) -> dict[int, float]:
    """Picojoules per 64 bits of Horowitz's three memories, one bank and one port, 45 nm."""
    return {
        kib: sram(kib * 1024, 64, node_nm=45, factors=factors).read_j * 1e12 for kib in HOROWITZ
    }  # fmt: skip


def main() -> None:
    """Print the fit and both comparisons."""
    print(f"fit: {fit()}\nin use: {FIT}\n")
    print(" width  read pJ  ours   write pJ  ours     mm2  ours")
    for p in points():
        print(f"{p.width:6} {p.port.read_pj:8.1f} {p.read_pj:6.1f} {p.port.write_pj:9.1f} {p.write_pj:6.1f} "
              f"{p.port.area_mm2:8.3f} {p.area_mm2:5.3f}  {'fitted' if p.fitted else 'held back'}")  # fmt: skip
    print()
    for kib, ours in horowitz().items():
        print(f"{kib:5} KiB, 45 nm: {HOROWITZ[kib]:6.1f} pJ per 64 bits, ours {ours:6.1f}")


if __name__ == "__main__":
    main()
