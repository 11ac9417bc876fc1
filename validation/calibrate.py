"""A card's own constants, fitted on its measured kernels and written as a device file.

    tokenfab calibrate DEVICE --truth DIR -o FILE.toml
    python -m tokenfab.validation.calibrate --truth DIR

The first fits at most twelve constants (:data:`.families.CARD`) on the even rows of whatever tables the card has
and writes them, with intervals, into a copy of its file; odd rows are only reported. A constant that the rows say
nothing of stays the architecture's, and so do all the others. The second shows what the twelve are worth: both
measured cards, with the other's architecture, with the twelve fitted, and with all constants fitted.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from .. import hw
from ..errors import InputError
from ..files import check_writable, write_whole
from ..hw.devices import ARCHITECTURES, find_architecture, load_device, read_device
from ..hw.spec import Device, parse_device
from ..hw.units import KEYS
from .device_text import Entry, with_numbers, written
from .families import FAMILIES, FOLDER_NAMES, Constants, Family, Rows, Table
from .intervals import Errors, joined_errors
from .kernels import FOLDERS, folder_of

Document = dict[str, Any]
LEAST = 20
"""Even rows without which a family is not fitted, and a regime gets no interval."""
LARGEST_ERROR = 100.0
"""Factor that no interval reaches (a device file accepts none that is wider)."""
TELLS = 2e-3
"""Least change of some row's logarithm that says that the rows depend on a constant."""


@dataclass(frozen=True)
class Fitted:
    """A family's result: constants by name, as they were and as the file says them (value read again)."""

    family: Family
    tables: list[Table]
    start: Constants
    found: Constants
    texts: dict[str, str | float | int]
    silent: tuple[str, ...]

    @property
    def source(self) -> str:
        return " and ".join(dict.fromkeys(t.source for t in self.tables))


def calibrate(
    name: str, truth: Path, out: Path | None = None, *, force: bool = False, step: Callable[[str], None] | None = None
) -> Document:
    """Constants of the device ``name`` (of the catalogue, or a file) from its tables under ``truth``.

    Writes the device file ``out`` if one is given and returns what ``tokenfab calibrate --json`` prints. Raises
    ``InputError`` for a device that is no GPU, without tables, with too few rows in all of them, and for an
    ``out`` that exists (unless ``force``), is in the catalogue, or would find other architectures than ``name``.
    """
    data, file, own = read_device(name)
    device = parse_device(data, file, lambda wanted: find_architecture(wanted, own))
    if device.kind != "gpu":
        raise InputError(f"device {device.name}: its kind is {device.kind}; accepted: gpu, whose kernels have models")
    if out is not None:
        _check_out(out, force, device, data, own)
    fitted: list[Fitted] = []
    kept: list[str] = []
    for family, tables in _tables(truth, device, kept):
        if step:
            step(f"fitting {family.name}")
        fitted.append(fit_card(family, tables, device))
    if not fitted:
        raise InputError(f"nothing to fit for {device.name}: {'; '.join(kept)}")
    numbers: dict[str, Entry] = {}
    for family_fit in fitted:
        numbers |= _constants(family_fit, device) | _intervals(family_fit, device)
    changed = with_numbers(data.decode("utf-8-sig"), numbers, file)
    after = parse_device(changed.encode(), file, lambda wanted: find_architecture(wanted, own))
    document = _document(device, after, fitted, kept, [key for key in numbers if key.startswith("intervals.")])
    if out is not None:
        write_whole(out, changed)
        document["file"] = str(out)
    return document


def _check_out(out: Path, force: bool, device: Device, data: bytes, own: Path | None) -> None:
    if out.suffix != ".toml":
        raise InputError(f"{out}: accepted: the path of a device file, which ends in .toml")
    catalog = resources.files(hw) / "catalog"
    if isinstance(catalog, Path) and catalog.resolve() in out.resolve().parents:
        raise InputError(f"{out}: in the catalogue, which is not written to; accepted: a path of your own")
    if out.exists() and not force:
        raise InputError(f"{out}: there already; --force replaces it")
    check_writable(out)
    beside = out.parent / ARCHITECTURES
    if parse_device(data, str(out), lambda wanted: find_architecture(wanted, beside)).digest != device.digest:
        raise InputError(f"{out}: other architecture files there than in {own or 'the catalogue'}; copy them along")


def _tables(truth: Path, device: Device, kept: list[str]) -> Iterator[tuple[Family, list[Table]]]:
    """Families that can be fitted; why others, or tables of one, cannot goes into ``kept``."""
    folder = folder_of(truth, device.name)
    if not any((folder / name).is_dir() for name in FOLDER_NAMES):
        raise InputError(f"no tables of {device.name}: no folder {', '.join(FOLDER_NAMES)} in {folder}")
    for family in FAMILIES:
        try:
            tables = family.tables(truth, device)
            family.constants(device)
        except InputError as error:
            kept.append(f"{family.name}: {str(error).partition('; --truth')[0]}")
            continue
        full = []
        for table in tables:
            rows = table.even.seconds.size
            if rows >= LEAST:
                full.append(table)
            else:
                kept.append(f"{family.name}: {table.source}: {rows} even rows of {table.suite}, fewer than {LEAST}")
        if full:
            yield family, full


def fit_card(family: Family, tables: list[Table], device: Device) -> Fitted:
    """A card's constants of one family, from the device's present ones."""
    start, names, rows = family.constants(device), family.names, [t.even for t in tables]
    for t in tables:
        with np.errstate(all="ignore"):
            ratio = np.concatenate([family.errors(half, device, start).ratio for half in (t.even, t.odd)])
        if not (np.isfinite(ratio) & (ratio > 0)).all():
            raise InputError(f"{t.source}: sizes or times of {t.suite} that no kernel of this device can have")
    found = family.fit(rows, device, start, names)
    silent = tuple(n for n in names if not _tells(family, rows, device, found, n))
    found = replace(found, **{n: getattr(start, n) for n in silent})
    texts = {}
    for n in names:
        if n not in silent:
            texts[n], value = written(max(getattr(found, n), 1e-12), family.key(n))
            found = replace(found, **{n: value})
    return Fitted(family, tables, start, found, texts, silent)


def _tells(family: Family, rows: list[Rows], device: Device, found: Constants, name: str) -> bool:
    """Whether some row's time depends on the constant ``name``: moved by a fifth, within its bounds."""
    (low, high, _), value = family.bounds[name], getattr(found, name)
    for moved in (value * 1.2 + 1e-3 * (high - low), value / 1.2):
        other = replace(found, **{name: min(max(moved, low), high)})
        for r in rows:
            ratio = family.errors(r, device, found).ratio / family.errors(r, device, other).ratio
            if float(np.abs(np.log(ratio)).max()) > TELLS:
                return True
    return False


# -- the file --------------------------------------------------------------------------------------
def _constants(f: Fitted, device: Device) -> dict[str, Entry]:
    """The fitted constants of a family, as a file takes them."""
    mapes = [(t.suite, _mape(f.family.errors(t.odd, device, f.found))) for t in f.tables]
    total = sum(half.seconds.size for t in f.tables for half in (t.even, t.odd))
    source = (
        f"derived: fitted on even rows of {total} rows, {f.source}; "
        f"odd rows MAPE {', '.join(f'{suite} {100 * mape:.1f} %' for suite, mape in mapes)}; tokenfab calibrate"
    )
    return {f.family.key(name): {"value": text, "source": source} for name, text in f.texts.items()}


def _intervals(f: Fitted, device: Device) -> dict[str, Entry]:
    """5 % and 95 % of measured over predicted time of the even rows, by regime, as a file takes them."""
    even = joined_errors([f.family.errors(t.even, device, f.found) for t in f.tables])
    odd = joined_errors([f.family.errors(t.odd, device, f.found) for t in f.tables])
    numbers: dict[str, Entry] = {}
    for regime, (low, high) in even.quantiles().items():
        rows = int((even.regime == regime).sum())
        key = f"intervals.{f.family.regime(regime)}"
        if rows < LEAST:
            continue
        if low < LARGEST_ERROR**-1 or high > LARGEST_ERROR:
            times = f"{low:.2g} to {high:.2g} times the model's"
            raise InputError(f"{f.source}: after fitting too, rows take {times}; are they of {device.name}?")
        low, high = min(round(low, 3), 1.0), max(round(high, 3), 1.0)
        here = odd.ratio[odd.regime == regime]
        held = 100 * np.mean((here >= low) & (here <= high)) if here.size else None
        share = "" if held is None else f", which hold {held:.1f} % of the odd ones"
        source = (
            f"derived: 5 % and 95 % of measured over predicted time of {rows} even rows, {f.source}"
            f"{share}; tokenfab calibrate"
        )
        for side, value in (("low", low), ("high", high)):
            numbers[f"{key}.{side}"] = {"value": written(value, f"{key}.{side}")[0], "source": source}
    return numbers


# -- what it says ----------------------------------------------------------------------------------
def _document(before: Device, after: Device, fitted: list[Fitted], kept: list[str], intervals: list[str]) -> Document:
    constants: list[Document] = []
    suites: list[Document] = []
    for f in fitted:
        was, now = asdict(f.start), asdict(f.family.constants(after))
        for name in (*f.texts, *f.silent):
            low, high, meaning = f.family.bounds[name]
            key = f.family.key(name)
            constants.append(
                {"key": key, "meaning": meaning, "low": low, "high": high, "before": was[name], "after": now[name],
                 "unit": "s" if KEYS[key].dimension == "time" else "1", "fitted": name in f.texts,
                 "at_bound": name in f.texts and not 1.005 * low < now[name] < 0.995 * high}
            )  # fmt: skip
        for t in f.tables:
            row: Document = {"suite": t.suite, "source": t.source, "even_rows": int(t.even.seconds.size)}
            for when, device in (("before", before), ("after", after)):
                row[when] = _summary(f.family, t.odd, device)
            suites.append(row | {"n": int(t.odd.seconds.size)})
    sides = dict.fromkeys(key.split(".")[1] for key in intervals)
    shown = {name: [after.intervals[name].low.value, after.intervals[name].high.value] for name in sides}
    return {
        "device": before.name, "architecture": before.architecture, "constants": constants, "suites": suites,
        "intervals": shown, "kept": kept, "file": None,
    }  # fmt: skip


def _summary(family: Family, rows: Rows, device: Device) -> Document:
    """Errors of the odd rows under the constants and the intervals of a device file."""
    errors = family.errors(rows, device, family.constants(device))
    bounds = {}
    for regime in np.unique(errors.regime):
        held = device.intervals.get(family.regime(str(regime)))
        if held is None:
            raise InputError(f"device {device.name}: intervals.{family.regime(str(regime))} is missing")
        bounds[str(regime)] = (held.low.value, held.high.value)
    wrong = np.abs(1 / errors.ratio - 1)
    return {
        "mape": _mape(errors), "bias": float(-np.log(errors.ratio).mean()), "p90": float(np.quantile(wrong, 0.9)),
        "coverage90": errors.coverage(bounds),
    }  # fmt: skip


def _mape(errors: Errors) -> float:
    return float(np.mean(np.abs(1 / errors.ratio - 1)))


def main() -> None:
    """Print what the constants of a card are worth, from the other card's architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    first, second = (load_device(d) for d in FOLDERS)
    for device, other in ((first, second), (second, first)):
        print(f"{device.name}, odd rows, MAPE: constants of {other.name}; the card's fitted; all fitted; its file's")
        for family in FAMILIES:
            tables = family.tables(truth, device)
            start = family.constants(other)
            own = family.constants(device)
            if family.name == "collectives":  # what the switch does is no constant of the other card
                start = replace(start, in_switch_share=own.in_switch_share)
            every = tuple(n for n in family.bounds if getattr(start, n) is not None)
            rows = [t.even for t in tables]
            found = [start, *(family.fit(rows, device, start, names) for names in (family.names, every)), own]
            for t in tables:
                errors = "  ".join(f"{_mape(family.errors(t.odd, device, c)):6.1%}" for c in found)
                print(f"  {t.suite:18} {errors}   {len(family.names)} of {len(every)}", flush=True)


if __name__ == "__main__":
    main()
