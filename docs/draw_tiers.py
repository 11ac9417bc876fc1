"""Draw docs/img/memory-tiers.svg, flash.svg and dataflow.svg: what docs/memory-tiers.md and docs/dataflow.md show.

The curves of flash.svg are computed by ``hw/flash.py`` and ``hw/flash_event.py`` from the device files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tokenfab.hw.devices import load_device
from tokenfab.hw.far import level_of, path_of
from tokenfab.hw.flash import nand_of
from tokenfab.hw.flash_event import play

IMAGES = Path(__file__).resolve().parent / "img"
INK, PALE = "#1d2330", "#5b6475"
COMPUTE, FAST, SLOW, LINK = "#dbe6f5", "#dcefe4", "#f4e6cf", "#3d6a9e"

Box = tuple[float, float, float, float, str, str, str]
Arrow = tuple[tuple[float, float], tuple[float, float], str, tuple[float, float]]


def picture(
    name: str, size: tuple[float, float], boxes: list[Box], arrows: list[Arrow], titles: list[tuple[float, float, str]]
) -> None:
    """Boxes (x, y, width, height, title, text, colour) and labelled arrows (from, to, label, where) as an SVG."""
    figure, axes = plt.subplots(figsize=size)
    axes.set_position((0.005, 0.005, 0.99, 0.99))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100 * size[1] / size[0])
    axes.axis("off")
    for x, y, w, h, title, text, colour in boxes:
        axes.add_patch(
            FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.8", fc=colour, ec=INK, lw=0.9)
        )
        if text:
            axes.text(x + w / 2, y + h - 1.0, title, ha="center", va="top", fontsize=8.5, weight="bold", color=INK)
            axes.text(x + w / 2, y + h - 4.0, text, ha="center", va="top", fontsize=7.6, color=INK, linespacing=1.35)
        else:
            axes.text(x + w / 2, y + h / 2, title, ha="center", va="center", fontsize=8, color=INK)
    for start, end, label, where in arrows:
        style = "<|-|>" if label.startswith("<>") else "-|>"
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=11, lw=1.3, color=LINK, shrinkA=0, shrinkB=0)
        )
        axes.text(*where, label.removeprefix("<>"), fontsize=7.6, color=LINK, ha="center", va="center", linespacing=1.3)
    for x, y, text in titles:
        axes.text(x, y, text, fontsize=9.5, weight="bold", color=PALE, ha="left", va="center")
    figure.savefig(IMAGES / name, metadata={"Date": None})
    plt.close(figure)


def tiers() -> None:
    """Three arrangements of a storage device."""
    boxes: list[Box] = [
        (2, 22, 13, 11, "CPU, NPU", "roofline", COMPUTE),
        (2, 3, 13, 13, "DRAM", "weights, kv,\nactivations,\ncached neurons", FAST),
        (20, 3, 11, 13, "flash", "far-weights", SLOW),
        (37, 22, 15, 11, "host GPU", "its own model", COMPUTE),
        (37, 3, 15, 13, "GPU memory", "weights, kv,\nactivations", FAST),
        (57, 3, 10, 13, "drive or\nhost DRAM", "\nfar-weights,\nfar-kv", SLOW),
        (71, 22, 11, 11, "host GPU", "its own model", COMPUTE),
        (71, 3, 11, 13, "GPU memory", "weights,\nactivations", FAST),
        (86, 3, 12.5, 13, "flash", "kv\n8 channels", SLOW),
        (86, 22, 12.5, 11, "attention units", "filter, GeMV,\nsoftmax", COMPUTE),
    ]
    arrows: list[Arrow] = [
        ((8.5, 16), (8.5, 22), "<>", (8.5, 19)), ((20, 9.5), (15, 9.5), "chunk,\ndepth", (17.5, 13)),
        ((44.5, 16), (44.5, 22), "<>", (44.5, 19)), ((57, 9.5), (52, 9.5), "PCIe", (54.5, 11.5)),
        ((76.5, 16), (76.5, 22), "<>", (76.5, 19)), ((92.2, 16), (92.2, 22), "pages", (95.2, 19)),
        ((82, 28), (86, 28), "<>queries,\nresults", (84, 36)), ((86, 8), (82, 8), "if faster", (84, 18)),
    ]  # fmt: skip
    titles = [(2, 40, "phone, PC"), (37, 40, "offloading"), (71, 40, "computational storage")]
    picture("memory-tiers.svg", (10, 4.3), boxes, arrows, titles)


def dataflow() -> None:
    """A fused section, its memories, and the unfused baseline."""
    stages = ("norm", "Q K V", "attention", "output", "norm", "gate up", "down")
    boxes: list[Box] = [(4, 20, 66, 14, "", "", COMPUTE)]
    boxes += [(6 + i * 9.1, 23, 7.6, 5, name, "", "#ffffff") for i, name in enumerate(stages)]
    boxes += [
        (4, 5, 20, 9, "HBM", "running model, cache", FAST), (30, 5, 20, 9, "DDR", "far-weights: other models", SLOW),
        (76, 20, 22, 14, "unfused", "one operator a section:\nevery operand through HBM,\na launch each", "#ffffff"),
    ]  # fmt: skip
    arrows: list[Arrow] = [((6 + i * 9.1 + 7.6, 25.5), (6 + (i + 1) * 9.1, 25.5), "", (0, -9)) for i in range(6)]
    arrows += [
        ((10, 14), (10, 20), "<>", (0, -9)), ((30, 9.5), (24, 9.5), "switch", (27, 11.5)),
    ]  # fmt: skip
    titles = [(6, 31.3, "a section: a layer on the chip, tokens stream through; results stay in SRAM")]
    picture("dataflow.svg", (10, 3.8), boxes, arrows, titles)


def flash() -> None:
    """Bandwidth against chunk and depth (laptop), and against outstanding pages (drive, closed form and events)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.7), layout="constrained")
    laptop = load_device("m1-max-flash")
    level = level_of(laptop, "far-weights")
    assert level is not None
    drive = path_of(laptop, level)
    chunks = np.geomspace(4096, 4 * 2**20, 60)
    for depth, colour in ((1, "#9db4d3"), (4, "#6d8fbf"), (32, "#31487a")):
        left.plot(chunks / 1024, drive.bandwidth(chunks, depth) / 1e9, color=colour, label=f"{depth} outstanding")
    left.plot([4, 32], [1.25, 2.25], "o", color="#c0392b", label="measured, many threads")
    left.set(xscale="log", xlabel="bytes per read [KiB]", ylabel="GB/s", title="m1-max-flash: reads from outside")
    nand = nand_of(load_device("instinfer-csd"))
    depths = [1, 4, 16, 64, 128, 256, 512]
    right.plot(depths, [nand.bandwidth_at(d) / 1e9 for d in depths], color="#31487a", label="closed form")
    for placement, marker, colour in (("striped", "o", "#4c9a7d"), ("random", "s", "#c08a3e")):
        rates = [play(nand, max(40 * d, 400), depth=d, placement=placement).bandwidth / 1e9 for d in depths]
        right.plot(depths, rates, marker, color=colour, label=f"events, pages {placement}")
    right.axhline(7.66, color=PALE, lw=0.9, ls=":")
    right.text(1, 7.8, "7.66 GB/s: mean while decoding (paper)", fontsize=7.5, color=PALE)
    right.set(xscale="log", xlabel="pages outstanding", title="instinfer-csd: inside, 8 channels")
    for axes in (left, right):
        axes.legend(fontsize=7.5, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0, None)
    figure.savefig(IMAGES / "flash.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """All three; each is printed as it is written."""
    plt.rcParams.update({"svg.hashsalt": "tokenfab", "font.family": "DejaVu Sans"})
    for draw in (tiers, dataflow, flash):
        draw()
        print(draw.__name__, file=sys.stderr)


if __name__ == "__main__":
    main()
