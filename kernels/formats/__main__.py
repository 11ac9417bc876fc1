"""``python -m tokenfab.kernels.formats``: a table of formats, their bits per weight and their error on two tensors."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from ...errors import InputError
from . import families, format_names, load_format
from .bits import Floats

WIDTH = 1024
"""Columns of the tensors, the reduction."""
EVERY, GAIN = 500, 10.0
"""One weight in so many is an outlier, and how much larger it is."""


def tensors(elements: int, seed: int) -> tuple[Floats, Floats]:
    """Numbers of a standard normal distribution, (elements / 1024, 1024), and the same with outliers at random places.

    Raises ``InputError`` where there would be no row.
    """
    if elements < WIDTH:
        raise InputError(f"{elements} elements; at least {WIDTH}")
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((elements // WIDTH, WIDTH))
    outliers = np.where(rng.random(normal.shape) < 1 / EVERY, GAIN, 1.0)
    return normal, normal * outliers


def table(names: tuple[str, ...], elements: int, seed: int) -> str:
    """One line per format: bits per weight of the tensor and of one of 4096 × 4096, SQNR in dB and greatest errors."""
    normal, outliers = tensors(elements, seed)
    lines = [
        f"{normal.shape[0]} x {normal.shape[1]} standard normal numbers, seed {seed}; outliers: one in {EVERY}, "
        f"{GAIN:g} times as large",
        "",
        f"{'format':18}{'bits/weight':>12}{'of 4096^2':>11}{'SQNR dB':>9}{'max error':>11}{'outliers: SQNR':>16}"
        f"{'max error':>11}",
    ]
    for name in names:
        form = load_format(name)
        bits, large = form.bits_per_weight(normal.shape), form.bits_per_weight((4096, 4096))
        plain, hard = form.error(normal), form.error(outliers)
        lines.append(
            f"{name:18}{bits:12.4f}{large:11.4f}{plain.sqnr_db:9.2f}{plain.max_error:11.4g}{hard.sqnr_db:16.2f}"
            f"{hard.max_error:11.4g}"
        )
    return "\n".join(lines)


def spellings() -> str:
    """How names of every family are written, what they are, and where from."""
    return "\n".join(f"{f.spelling}\n    {f.description}\n    {f.source}" for f in families())


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 2 and one line on stderr where the input was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tokenfab.kernels.formats", description=__doc__)
    parser.add_argument("names", nargs="*", help="formats; all by default")
    parser.add_argument("--elements", type=int, default=2**18, help="of each tensor, in rows of 1024")
    parser.add_argument("--seed", type=int, default=0, help="of the tensors")
    parser.add_argument("--names", dest="spellings", action="store_true", help="print how names are written instead")
    given = parser.parse_args(arguments)
    try:
        names = tuple(given.names) or format_names()
        print(spellings() if given.spellings else table(names, given.elements, given.seed))
    except InputError as error:
        print(f"tokenfab: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
