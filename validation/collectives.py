"""The constants of collectives, earned on measured ones.

    python -m tokenfab.validation.collectives --truth DIR

fits :mod:`tokenfab.hw.collective` on the even rows of NCCL's tables (all-reduce, all-gather, reduce-scatter,
all-to-all) and of the serving engine's own all-reduce in CUDA graphs, A100 and H100 together, since the
steps of a ring cost both the same. Prints the constants, the error on the odd rows, the interval from the
even rows with its coverage of the odd ones, and what one card's constants say of the other card.
Rows of the engine's table that a host launches one by one (``eager``) show that host, not the links, and
rows beyond its own kernel's limit are NCCL again or another kernel: both are left out and counted.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from ..hw.collective import (
    BOUNDS,
    DIRECT_LIMIT,
    SHARED,
    SHARED_BOUNDS,
    CollectiveConstants,
    SharedConstants,
    collective_time,
    constants_of,
    direct_time,
    fastest_link,
    library_time,
)
from ..hw.devices import load_device
from ..hw.spec import Device
from .kernels import FOLDERS, MissingTableError, folder_of, opened

Array = npt.NDArray[np.float64]

NAMES = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter",
         "alltoall": "all_to_all"}  # fmt: skip
ELEMENT_BYTES = {"half": 2, "int8": 1, "bfloat16": 2}
"""The tables count elements: a row of int8 takes as long as the row of half its count in half."""
LIBRARY, DIRECT = "nccl_*/nccl_perf.csv.gz", "vllm_*/custom_*.csv.gz"
"""Tables of NCCL, and of the serving engine's own all-reduce."""
FITTED = tuple(f.name for f in fields(CollectiveConstants))


@dataclass(frozen=True)
class Measured:
    """Collectives of one device: which (a name of ``COLLECTIVES``, or ``direct``), ranks, bytes, seconds; (N,)."""

    device: str
    name: npt.NDArray[np.str_]
    world: Array
    size: Array
    seconds: Array
    dropped: int = 0

    def half(self, odd: bool) -> Measured:
        """Even rows (to fit on) or odd rows (to report)."""
        pick = slice(1 if odd else 0, None, 2)
        return Measured(
            self.device, self.name[pick], self.world[pick], self.size[pick], self.seconds[pick], self.dropped
        )


def read_collectives(truth: Path, device: str) -> Measured:
    """NCCL's rows, then the serving engine's own all-reduce.

    Raises ``InputError`` when NCCL's are not under ``truth``.
    """
    folder = folder_of(truth, device) / "comm"
    library, direct = sorted(folder.glob(LIBRARY)), sorted(folder.glob(DIRECT))
    if not library:
        raise MissingTableError(f"{folder}: no {LIBRARY} there; --truth names the folder of measurements")
    rows, dropped = [], 0
    for path, own in [(library[-1], False)] + [(p, True) for p in direct[-1:]]:
        with opened(path) as file:
            for row in file:
                element = ELEMENT_BYTES.get(row["allreduce_dtype" if own else "nccl_dtype"])
                size, seconds = float(int(row["message_size"])) * (element or 0), float(row["latency"]) / 1e3
                name = "direct" if own else NAMES.get(row["op_name"])
                left_out = own and (not row["backend"].endswith("_graph") or size >= DIRECT_LIMIT)
                if left_out or not name or size <= 0 or not 0 < seconds < np.inf or int(row["num_gpus"]) < 2:
                    dropped += 1
                else:
                    rows.append((name, int(row["num_gpus"]), size, seconds))
    if not rows:
        raise MissingTableError(f"{library[-1]}: no row of a collective that the model knows")
    names, worlds, sizes, times = zip(*rows, strict=True)
    return Measured(
        device, np.array(names), np.array(worlds, float), np.array(sizes, float), np.array(times), dropped
    )  # fmt: skip


def predict(
    rows: Measured,
    constants: CollectiveConstants | None = None,
    shared: SharedConstants = SHARED,
    device: Device | None = None,
) -> Array:
    """Seconds of each row over the fastest link of ``device`` (the catalogue's of that name unless given), with
    its file's constants unless given."""
    device = device or load_device(rows.device)
    link = fastest_link(device, 2)
    c = constants or constants_of(device, link)
    out = np.empty(rows.size.size)
    if c is None:  # as an estimate has it; nothing is known of an engine's own kernel over such links
        for name, world in {*zip(rows.name, rows.world, strict=True)}:
            at = (rows.name == name) & (rows.world == world)
            plain = "all_reduce" if name == "direct" else str(name)
            out[at] = collective_time(plain, rows.size[at], int(world), device)
        return out
    for name in np.unique(rows.name):
        at = rows.name == name
        size, world = rows.size[at], rows.world[at]
        if name == "direct":
            out[at] = direct_time(size, world, link.bandwidth.value, c, shared)
        else:
            out[at] = library_time(str(name), size, world, link.bandwidth.value, c, shared)
    return out


def fit(
    tables: dict[str, Measured],
    devices: dict[str, Device] | None = None,
    names: tuple[str, ...] = FITTED,
    shared: SharedConstants | None = None,
    starts: dict[str, CollectiveConstants] | None = None,
) -> tuple[SharedConstants, dict[str, CollectiveConstants]]:
    """The common constants and each card's ``names``, on ``tables`` (pass the even halves), all at once.

    Minimises a smoothed absolute log error. Begins at ``starts`` (the constants of ``devices`` unless given,
    which are the catalogue's unless given). Common constants that are given as ``shared`` stay, and so do a
    card's that are not in ``names``.
    """
    devices = devices or {d: load_device(d) for d in tables}
    if starts is None:
        own = {d: constants_of(device, fastest_link(device, 2)) for d, device in devices.items()}
        starts = {d: c for d, c in own.items() if c}
    begin = starts
    free = [(d, f) for d, c in begin.items() for f in names if getattr(c, f) is not None]
    common = () if shared else tuple(SHARED_BOUNDS)
    bounds = np.log([*(SHARED_BOUNDS[f][:2] for f in common), *(BOUNDS[f][:2] for _, f in free)]).T

    def unpack(x: Array) -> tuple[SharedConstants, dict[str, CollectiveConstants]]:
        values = [float(v) for v in np.exp(x)]
        cards = dict(begin)
        for (d, f), value in zip(free, values[len(common) :], strict=True):
            cards[d] = replace(cards[d], **{f: value})
        return shared or SharedConstants(*values[: len(common)]), cards

    def residuals(x: Array) -> Array:
        both, cards = unpack(x)
        return np.concatenate(
            [np.log(predict(t, cards[d], both, devices[d]) / t.seconds) for d, t in tables.items()]
        )  # fmt: skip

    # Starts off the answer, so that a constant that does not move shows.
    first = np.log([*(getattr(SHARED, f) for f in common), *(getattr(begin[d], f) for d, f in free)]) + 0.1
    first = np.clip(first, bounds[0] + 1e-3, bounds[1] - 1e-3)
    found = least_squares(residuals, first, bounds=bounds, loss="soft_l1", f_scale=0.05, diff_step=0.01)
    return unpack(found.x)


def interval(rows: Measured, predicted: Array) -> tuple[float, float]:
    """5 % and 95 % quantile of measured over predicted time."""
    low, high = np.quantile(rows.seconds / predicted, [0.05, 0.95])
    return float(low), float(high)


def _line(name: str, rows: Measured, predicted: Array) -> str:
    error = np.abs(predicted / rows.seconds - 1)
    bias = np.mean(np.log(predicted / rows.seconds))
    return f"{name}: n={error.size} MAPE {error.mean():.2%}, bias {bias:+.1%}, p90 {np.quantile(error, 0.9):.1%}"


def main() -> None:
    """Print constants, errors, intervals and their coverage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    tables = {device: read_collectives(truth, device) for device in FOLDERS}
    shared, cards = fit({d: t.half(odd=False) for d, t in tables.items()})
    print("shared: " + " ".join(f"{n}={v:.4g}" for n, v in zip(SHARED_BOUNDS, astuple(shared), strict=True)))
    for device, card in cards.items():
        values = zip(FITTED, astuple(card), strict=True)
        print(f"{device}: " + " ".join(f"{n}={v:.4g}" for n, v in values if v is not None))
    for device, table in tables.items():
        even, odd = table.half(odd=False), table.half(odd=True)
        predicted = predict(odd)
        print(_line(f"{device}, odd rows", odd, predicted) + f" ({table.dropped} rows left out)")
        for name in np.unique(odd.name):
            at = odd.name == name
            part = Measured(device, odd.name[at], odd.world[at], odd.size[at], odd.seconds[at])
            print("  " + _line(str(name), part, predicted[at]))
        low, high = interval(even, predict(even))
        ratio = odd.seconds / predicted
        covered = np.mean((ratio >= low) & (ratio <= high))
        print(f"  interval of the even rows {low:.3f} to {high:.3f} covers {covered:.1%} of the odd rows")
        for other in tables:
            if other != device:
                there = tables[other].half(odd=True)
                ours = replace(cards[device], in_switch_share=cards[other].in_switch_share)
                borrowed = predict(there, ours)
                low, high = interval(there, borrowed)
                print("  " + _line(f"its constants on {other}", there, borrowed) + f", {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
