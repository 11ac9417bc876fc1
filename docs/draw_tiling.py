"""Draw docs/img/tiling_nest.svg and docs/img/tiling_llama.svg, and print what docs/tiling.md says of GEMM kernels.

The first shows what a tiling decides; the second the matrix products of Llama-2-7B, best tiling beside fixed ones.
Run by ``make docs``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, Rectangle

from tokenfab.hw.card import card_of
from tokenfab.hw.devices import load_device
from tokenfab.hw.gemm import gemm_kernels, gemm_time
from tokenfab.mapping.hierarchy import Array, Buffer, Hierarchy, Level, hierarchy_of
from tokenfab.mapping.products import Attention, Matmul
from tokenfab.mapping.tiling import NAIVE, best_tiling, document, products_of
from tokenfab.mapping.tiling_search import OBJECTIVES
from tokenfab.workloads.capture import capture
from tokenfab.workloads.techniques import apply_techniques

IMAGES = Path(__file__).resolve().parent / "img"
INK, PALE = "#1d2330", "#5b6475"
OPERANDS = {"A": "#3d6a9e", "B": "#c08a3e", "C": "#4c9a7d"}
DEVICES = {"a100-40g-sxm": (), "bitmod": ("weight-only:bits=4,head=1", "kv-quant:bits=8")}
TOKENS = 2048
SHAPES = [(m, n, k) for m in (1, 64, 512, 2048, 8192)
          for n, k in ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008))]  # fmt: skip


def nest() -> plt.Figure:
    """Levels, the tile that each holds, the loops between them, and what moves."""
    figure, axes = plt.subplots(figsize=(10, 4.3))
    axes.set_position((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 43)
    axes.axis("off")
    boxes = [
        (1, 22, "DRAM", "whole operands\nM × N × K", ""),
        (38, 22, "level on the chip", "a tile of each operand\nm × n × k, once or twice", "energy / bit, capacity"),
        (75, 24, "array", "blocks bm × bn × bk\nthe stationary operand stays", "MAC/s, energy / MAC"),
    ]
    for left, width, title, text, small in boxes:
        axes.add_patch(Rectangle((left, 10), width, 26, facecolor="white", edgecolor=INK, linewidth=1.5))
        axes.text(left + width / 2, 33, title, fontsize=13, fontweight="bold", color=INK, ha="center", va="center")
        axes.text(left + width / 2, 27.6, text, fontsize=9.5, color=INK, ha="center", va="center", linespacing=1.5)
        axes.text(left + width / 2, 11.6, small, fontsize=8.5, color=PALE, ha="center", va="center")
    sizes = {1: (6.2, 6.2, 5.0), 38: (3.4, 3.4, 3.0), 75: (1.8, 1.8, 1.8)}
    for left, width, *_ in boxes:
        for i, (name, colour) in enumerate(OPERANDS.items()):
            side = sizes[left][i]
            x = left + width * (i + 0.5) / 3
            axes.add_patch(
                Rectangle((x - side / 2, 18.6 - side / 2), side, side, color=colour, alpha=0.85, linewidth=0)
            )
            axes.text(x, 18.6, name, fontsize=9.5, color="white", fontweight="bold", ha="center", va="center")
    for start, end, title, below in [
        (23, 38, "loops over tiles", "order: which operand\nstays while the others move"),
        (60, 75, "blocks of a tile", "every pass reads\nwhat is not held"),
    ]:
        for i, (name, colour) in enumerate(OPERANDS.items()):
            y = 23.6 - i * 5
            axes.add_patch(FancyArrowPatch(
                (start + 0.4, y), (end - 0.4, y), arrowstyle="<|-|>" if name == "C" else "-|>", mutation_scale=13,
                color=colour, linewidth=2.2, shrinkA=0, shrinkB=0,
            ))  # fmt: skip
        axes.text((start + end) / 2, 32.2, title, fontsize=10.5, color=INK, ha="center", va="center")
        axes.text((start + end) / 2, 28.0, "port: bytes / s", fontsize=8.5, color=PALE, ha="center", va="center")
        axes.text((start + end) / 2, 7.0, below, fontsize=9.5, color=PALE, ha="center", va="center", linespacing=1.4)
    axes.text(50, 40.2, "What a tiling decides: tile sizes and loop order per level, which roles are buffered twice, "
              "the array's block", fontsize=11.5, color=INK, ha="center", va="center")  # fmt: skip
    axes.text(50, 1.8, "C is written at every visit and read again at all but the first; "
              "one more level repeats the middle box", fontsize=9.5, color=PALE, ha="center", va="center")  # fmt: skip
    return figure


def llama() -> plt.Figure:
    """Time and energy of fixed tilings over those of the best one, per product and device."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.2))
    trace = capture("llama-2-7b")
    colours = dict(zip(NAIVE, ("#3d6a9e", "#c08a3e", "#8a9a45"), strict=True))
    for row, (name, techniques) in enumerate(DEVICES.items()):
        products = [p for p in products_of(apply_techniques(trace, techniques), 1, TOKENS, 0) if p.count > 1]
        entries = []
        for p in products:
            hierarchy = hierarchy_of(load_device(name), format=p.format, weight_format=p.weight_format)
            entries.append(document(best_tiling(p.operator, hierarchy, "product"), p.name.rpartition(".")[2], p.count))
        for column, (key, scale, unit) in enumerate((("time_s", 1e3, "ms"), ("energy_j", 1e3, "mJ"))):
            plot = axes[row, column]
            for i, kind in enumerate(NAIVE):
                for at, entry in enumerate(entries):
                    other = entry["naive"][kind]
                    x, ratio = at + (i - 1) * 0.26, other[key] / entry[key] if other else np.nan
                    plot.bar(x, ratio, 0.24, color=colours[kind], label=kind if at == 0 else None)
                    text = f"{ratio:.2f}" if other else "does not fit"
                    plot.text(x, (ratio if other else 1) * 1.04, text, fontsize=7, rotation=90, ha="center",
                              va="bottom", color=INK)  # fmt: skip
            plot.axhline(1, color=INK, linewidth=1)
            plot.set_yscale("log")
            top = max(e["naive"][k][key] / e[key] for e in entries for k in NAIVE if e["naive"][k])
            plot.set_ylim(0.9, top * 1.9)
            ticks = [t for t in (1, 1.5, 2, 5, 10, 20, 50) if t < top * 1.6]
            plot.set_yticks(ticks, [f"{t:g}×" for t in ticks])
            plot.minorticks_off()
            plot.set_xticks(range(len(entries)), [f"{e['name']}\n{e[key] * scale:.3g} {unit}" for e in entries],
                            fontsize=8.5)  # fmt: skip
            plot.set_title(f"{name}: {'time' if column == 0 else 'energy'} over the best tiling's", fontsize=10.5)
            plot.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=9.5)
    figure.suptitle(f"Llama-2-7B, {TOKENS} tokens: what a fixed tiling costs (below each product: the best tiling)",
                    fontsize=11.5)  # fmt: skip
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    return figure


def compare_with_kernels() -> None:
    """Print the best tiling's time over that of the GEMM model, which was fitted to measured kernels."""
    for name in ("a100-40g-sxm", "h100-sxm"):
        device = load_device(name)
        constants, kernels = gemm_kernels(device)
        hierarchy = hierarchy_of(device)
        best = np.array([best_tiling(Matmul(*shape), hierarchy, "time").cost.time_s for shape in SHAPES])
        fitted = np.array([gemm_time(*shape, card_of(device), constants, kernels)[0] for shape in SHAPES])
        ratio = best / fitted.ravel()
        print(f"{name}: best tiling over GEMM model, {len(SHAPES)} products: median {np.median(ratio):.2f}, "
              f"{ratio.min():.2f} to {ratio.max():.2f}")  # fmt: skip


def three_levels() -> None:
    """Print what the search takes where three levels on the chip hold tiles: 32 MB, 1 MB and 64 KB."""
    sizes = (
        ("dram", 1e12, 4e-12, 2e11),
        ("l3", 32e6, 1e-12, 8e11),
        ("l2", 1e6, 5e-13, 3e12),
        ("l1", 64e3, 1e-13, 12e12),
    )
    levels = tuple(Level(name, (Buffer(room, energy),), rate) for name, room, energy, rate in sizes)
    hierarchy = Hierarchy("three", levels, Array(((16, 16, 1),), 4.096e12, 16, mac_j=1e-12), 5.0)
    for op in (Matmul(2048, 4096, 4096), Matmul(2048, 11008, 4096), Attention(32, 2048, 2048, 128)):
        for objective in OBJECTIVES:
            t = best_tiling(op, hierarchy, objective)
            print(f"three levels, {'×'.join(map(str, op.sizes))}, {objective}: {t.found.candidates:.1e} candidates, "
                  f"{t.found.evaluated} evaluated, gap {t.gap:g}, {t.found.seconds:.2f} s")  # fmt: skip


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "tokenfab"  # the same picture gives the same file
    for name, figure in (("tiling_nest", nest()), ("tiling_llama", llama())):
        figure.savefig(IMAGES / f"{name}.svg", facecolor="white", metadata={"Date": None})
        print(IMAGES / f"{name}.svg")
    compare_with_kernels()
    three_levels()
