"""The best tiling of a matrix product or an attention on one device, beside the usual fixed ones.

    python -m tokenfab.mapping.tiling 2048 4096 4096 --device a100-40g-sxm
    python -m tokenfab.mapping.tiling 32 2048 1024 128 --device bitmod --weights int8      (heads queries keys width)
    python -m tokenfab.mapping.tiling --model llama-2-7b --query 2048 --device a100-40g-sxm

The search is :mod:`.tiling_search`, the cost :mod:`.nest`, memory levels and array :mod:`.hierarchy`; equations,
sources and figures are in ``docs/tiling.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from ..errors import InputError
from ..files import json_text
from ..hw.devices import load_device
from ..hw.spec import Device
from ..hw.units import number_format
from ..workloads.trace import Operator, Trace
from .hierarchy import ROLES, Hierarchy, hierarchy_of
from .nest import Cost, Mapping, Tile, evaluate, occupied_bytes
from .products import Attention, Matmul, Sizes, Tiled
from .tiling_search import OBJECTIVES, Found, divisors, score, search

NAIVE = {"output-stationary": 2, "weight-stationary": 0, "whole-k": 1}
"""Fixed tilings: the dimension of the innermost loop. Tiles are as near to cubes as divisors allow, as large as fits
with every role buffered doubly; ``whole-k`` (attention: all keys) never splits the third dimension."""


@dataclass(frozen=True)
class Tiling:
    """The best mapping, its cost, and the search that found it: ``found.bound`` proves it to ``gap``."""

    operator: Tiled
    hierarchy: Hierarchy
    objective: str
    mapping: Mapping
    cost: Cost
    found: Found

    @property
    def gap(self) -> float:
        """Share of the score by which it may at most be improved; 0 where the search ended."""
        return 1 - self.found.bound / self.found.score


def best_tiling(
    operator: Tiled, hierarchy: Hierarchy, objective: str = "time", *, padding: float = 0.0, time_limit_s: float = inf
) -> Tiling:
    """The tiling of least ``time``, ``energy`` or ``product`` of both.

    ``padding``: share by which a size with few divisors (a prime has no tiles) may grow to one with more. Raises
    InputError for an unknown objective and where nothing fits.
    """
    found = search(operator, hierarchy, objective, padding=padding, time_limit_s=time_limit_s)
    return Tiling(operator, hierarchy, objective, found.mapping, evaluate(operator, hierarchy, found.mapping), found)


def naive_tiling(operator: Tiled, hierarchy: Hierarchy, kind: str, objective: str = "time") -> tuple[Mapping, Cost]:
    """One of :data:`NAIVE`, with the array's block that suits ``objective`` best. Raises InputError where it does not
    fit."""
    if kind not in NAIVE:
        raise InputError(f"tiling {kind!r}; accepted: {', '.join(NAIVE)}")
    order: Sizes = ((1, 0, 2), (1, 2, 0), (2, 0, 1))[list(NAIVE).index(kind)]
    fixed = (2,) if kind == "whole-k" else ()
    found: list[tuple[Mapping, Cost]] = []
    for block in hierarchy.array.blocks:
        tiles: list[Tile] = []
        outer = operator.sizes
        for level in range(1, len(hierarchy.levels)):
            tile = _largest_cube(operator, hierarchy, outer, tiles, block, order, fixed, level)
            if tile is None:
                raise InputError(f"{hierarchy.name}: no {kind} tile fits its level {hierarchy.levels[level].name}")
            tiles.append(tile)
            outer = tile.sizes
        mapping = Mapping(operator.sizes, tuple(tiles), block)
        found.append((mapping, evaluate(operator, hierarchy, mapping)))
    return min(found, key=lambda x: float(score(objective, x[1].time_s, x[1].energy_j)))


def _largest_cube(
    operator: Tiled, hierarchy: Hierarchy, outer: Sizes, above: list[Tile], block: Sizes, order: Sizes,
    fixed: tuple[int, ...], level: int,
) -> Tile | None:  # fmt: skip
    """The tile whose sides are the largest divisors up to a common side, the largest that fits doubly buffered."""
    free = [divisors(size) if d not in fixed else [size] for d, size in enumerate(outer)]
    depth = len(hierarchy.levels) - 1
    for side in sorted({side for d in free for side in d}, reverse=True):
        sides = [max((s for s in d if s <= side), default=d[0]) for d in free]
        tile = Tile((sides[0], sides[1], sides[2]), order, frozenset(ROLES))
        tiles = (*above, *([tile] * (depth - len(above))))
        held = occupied_bytes(operator, hierarchy, Mapping(operator.sizes, tiles, block), level)
        if all(sum(held[r] for r in b.roles) <= b.capacity_bytes for b in hierarchy.levels[level].buffers):
            return tile
    return None


# ---------------------------------------------------------------- products of a model


@dataclass(frozen=True)
class ModelProduct:
    """A product of a model: its name, how often it runs in a pass, number formats of the arithmetic and of the
    weights (or cache) as stored."""

    name: str
    count: int
    operator: Tiled
    format: str
    weight_format: str


def products_of(trace: Trace, batch: int, query: int, context: int) -> list[ModelProduct]:
    """The matrix products and attentions of one pass, equal ones together; routers, experts and attention in latent
    space are left out. A causal attention gets the mean number of keys that a query sees."""
    from ..workloads.compiled import compile_trace

    at = {"b": batch, "q": query, "c": context}
    found: dict[tuple[Tiled, str, str], list[tuple[str, int]]] = {}
    for row in compile_trace(trace).rows:
        op = row.operator
        made = _product(op, at) if op.kind in ("matmul", "attention") and "latent_dim" not in op.dims else None
        if made is not None:
            stored = next(t.format for t in op.reads if t.role in ("weight", "kv")).partition("-g")[0]
            found.setdefault((made, op.format, stored), []).append((row.names[0], row.count))
    return [
        ModelProduct(rows[0][0], sum(n for _, n in rows), operator, format, stored)
        for (operator, format, stored), rows in found.items()
    ]


def _product(op: Operator, at: dict[str, int]) -> Tiled | None:
    def whole(name: str) -> int:
        return max(1, round(float(op.dims[name](**at))))

    second = next((t for t in op.reads if t.role in ("weight", "kv")), None)
    if second is None or (op.kind == "matmul" and "batch" in op.dims):
        return None
    first = next(float(t.bits) for t in op.reads if t.role == "activation")
    if op.kind == "matmul":
        return Matmul(whole("m"), whole("n"), whole("k"), first, float(second.bits), first)
    heads, kv_heads, dim, value = (whole(x) for x in ("heads", "kv_heads", "head_dim", "value_dim"))
    batch, query = whole("batch"), whole("query")
    seen = float(op.flops(**at)) / (2 * heads * (dim + value)) / batch / query
    keys = max(1, round(seen))
    return Attention(batch * kv_heads, query * heads // kv_heads, keys, dim, value, first, float(second.bits), first)


# ---------------------------------------------------------------- command line


def document(tiling: Tiling, name: str = "", count: int = 1) -> dict[str, Any]:
    """What ``--json`` prints of one tiling; seconds, joules and bytes of one run of the operator."""
    op, cost, found = tiling.operator, tiling.cost, tiling.found
    naive: dict[str, dict[str, float] | None] = {}
    for kind in NAIVE:
        try:
            _, other = naive_tiling(op, tiling.hierarchy, kind, tiling.objective)
            naive[kind] = {"time_s": other.time_s, "energy_j": other.energy_j}
        except InputError:
            naive[kind] = None
    return {
        "name": name, "count": count, "sizes": dict(zip(op.dims, op.sizes, strict=True)),
        "padded": dict(zip(op.dims, tiling.mapping.padded, strict=True)), "objective": tiling.objective,
        "time_s": cost.time_s, "energy_j": cost.energy_j, "array_s": cost.array_s, "gap": tiling.gap,
        "energy_parts_j": cost.parts, "dram_bytes": sum(cost.moved[0].values()), "block": tiling.mapping.block,
        "levels": [
            {"level": level.name, "tile": dict(zip(op.dims, tile.sizes, strict=True)),
             "order": [op.dims[d] for d in tile.order], "double": sorted(tile.double),
             "moved_bytes": moved, "port_s": port}
            for level, tile, moved, port in zip(
                tiling.hierarchy.levels[1:], tiling.mapping.tiles, cost.moved, cost.port_s[:-1], strict=True)
        ],
        "array_port_s": cost.port_s[-1], "naive": naive, "candidates": found.candidates,
        "evaluated": found.evaluated, "expanded": found.expanded, "search_s": found.seconds,
    }  # fmt: skip


def _line(entry: dict[str, Any]) -> str:
    best = entry["time_s"], entry["energy_j"]
    cells = [f"{entry['name'] or 'product':<26}", f"{'×'.join(map(str, entry['sizes'].values())):<17}",
             f"{entry['count']:>4}", f"{best[0] * 1e3:>9.4g} {best[1] * 1e3:>9.4g}"]  # fmt: skip
    for kind in NAIVE:
        other = entry["naive"][kind]
        cells.append(
            f"{other['time_s'] / best[0]:>8.2f} {other['energy_j'] / best[1]:>6.2f}" if other else f"{'-':>15}"
        )
    share = entry["evaluated"] / entry["candidates"]
    cells.append(f"{entry['candidates']:>12,} {entry['evaluated']:>9,} {100 * share:>7.2g}% {entry['search_s']:>7.3f}")
    return "  ".join(cells)


def _head() -> str:
    naive = "  ".join(f"{kind:>15}" for kind in ("output-stat.", "weight-stat.", "whole k"))
    return (f"{'':<26}  {'sizes':<17}  {'runs':>4}  {'ms':>9} {'mJ':>9}  {naive}  "
            f"{'candidates':>12} {'evaluated':>9} {'share':>8} {'s':>7}")  # fmt: skip


def _nest(entry: dict[str, Any]) -> str:
    """The loop nest of a tiling, outermost level first."""
    lines, outer = [], entry["padded"]
    for level in entry["levels"]:
        steps = ", ".join(f"{d} {outer[d] // level['tile'][d]}" for d in level["order"])
        moved = ", ".join(f"{name} {b / 1e6:.4g}" for name, b in level["moved_bytes"].items())
        doubly = ", ".join(level["double"]) or "nothing"
        lines.append(f"  loops {steps}; tile in {level['level']}: "
                     + " × ".join(f"{d} {n}" for d, n in level["tile"].items())
                     + f"; doubly buffered: {doubly}; MB moved: {moved}; {level['port_s'] * 1e3:.4g} ms")  # fmt: skip
        outer = level["tile"]
    lines.append(f"  array: block {'×'.join(map(str, entry['block']))}; arithmetic {entry['array_s'] * 1e3:.4g} ms, "
                 f"its operands {entry['array_port_s'] * 1e3:.4g} ms")  # fmt: skip
    parts = ", ".join(f"{name} {j * 1e3:.4g}" for name, j in entry["energy_parts_j"].items())
    proof = "proved" if entry["gap"] == 0 else f"within {entry['gap']:.2%}"
    return "\n".join([*lines, f"  mJ: {parts}; optimum of {entry['objective']} {proof}"])


def _work(args: argparse.Namespace, device: Device) -> list[ModelProduct]:
    sizes: list[int] = args.sizes
    if args.model:
        if sizes:
            raise InputError("sizes and --model: give one of them")
        from ..workloads.load import load_trace
        from ..workloads.techniques import apply_techniques

        trace = apply_techniques(load_trace(args.model), args.apply)
        return products_of(trace, args.batch, args.query, args.context)
    weights = args.weights or args.format
    first, second = number_format(args.format).bits, number_format(weights).bits
    if len(sizes) == 3:
        made: Tiled = Matmul(sizes[0], sizes[1], sizes[2], input_bits=first, weight_bits=second, output_bits=first)
    elif len(sizes) == 4:
        made = Attention(sizes[0], sizes[1], sizes[2], sizes[3], input_bits=first, cache_bits=second, output_bits=first)
    else:
        raise InputError(
            f"{len(sizes)} sizes; accepted: M N K of a product, or HEADS QUERIES KEYS WIDTH of an attention"
        )
    return [ModelProduct("", 1, made, args.format, weights)]


def parser() -> argparse.ArgumentParser:
    """The command line of this module."""
    p = argparse.ArgumentParser(prog="python -m tokenfab.mapping.tiling", description=(__doc__ or "").split("\n")[0])
    p.add_argument("sizes", nargs="*", type=int, help="M N K, or HEADS QUERIES KEYS WIDTH")
    p.add_argument("--device", required=True, help="a device's name or file")
    p.add_argument("--objective", choices=OBJECTIVES, default="product")
    p.add_argument("--padding", type=float, default=0.0, help="share by which sizes of few divisors may grow")
    p.add_argument("--format", default="fp16", help="number format of the arithmetic")
    p.add_argument("--weights", help="number format of weights (or cache) as stored; as --format unless given")
    p.add_argument("--model", help="all products of a model instead")
    p.add_argument("--apply", action="append", default=[], help="a technique applied to the model, as for tokenfab")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--query", type=int, default=1, help="tokens per sequence in this pass")
    p.add_argument("--context", type=int, default=0, help="tokens in the cache")
    p.add_argument("--time-limit", type=float, default=inf, help="seconds per product")
    p.add_argument("--json", action="store_true")
    return p


def run(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One document per product. Raises InputError for what cannot be used."""
    args = parser().parse_args(arguments)
    device = load_device(args.device)
    entries = []
    for product in _work(args, device):
        hierarchy = hierarchy_of(device, format=product.format, weight_format=product.weight_format)
        tiling = best_tiling(product.operator, hierarchy, args.objective, padding=args.padding,
                             time_limit_s=args.time_limit)  # fmt: skip
        entries.append(document(tiling, product.name, product.count))
    if args.json:
        sys.stdout.write(json_text(entries))
        return entries
    print(_head())
    for entry in entries:
        print(_line(entry))
    if len(entries) == 1:
        print(_nest(entries[0]))
    else:
        print(_sums(entries))
    return entries


def _sums(entries: list[dict[str, Any]]) -> str:
    """Times and energies of a whole pass."""

    def total(kind: str) -> str:
        values = [e["naive"][kind] if kind != "best" else e for e in entries]
        if not all(values):
            return f"{kind} does not fit"
        ms, mj = (1e3 * sum(e["count"] * v[key] for e, v in zip(entries, values, strict=True))
                  for key in ("time_s", "energy_j"))  # fmt: skip
        return f"{kind} {ms:.5g} ms {mj:.5g} mJ"

    return "all runs: " + "; ".join(total(kind) for kind in ("best", *NAIVE))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line for input that cannot be used."""
    try:
        run(arguments)
    except InputError as error:
        print(f"tiling: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
