"""Draw docs/img/fpga.svg: what the FPGA model knows of a design, one region in full. Run by hand after a change."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

TARGET = Path(__file__).resolve().parent / "img" / "fpga.svg"
INK, PALE = "#1d2330", "#5b6475"
MEMORY, CHAINS, ENGINE, REGION = "#c08a3e", "#31487a", "#4c9a7d", "#8c8c8c"

# label, second line, x, y, width, height, colour
BOXES = (
    ("HBM", "weights, KV cache", 1, 22, 12, 22, MEMORY),
    ("DDR", "instructions;\nweights HBM\ndoes not hold", 1, 4, 12, 15, MEMORY),
    ("weight buffer", "UltraRAM, banks × channels", 23, 36, 21, 9, MEMORY),
    ("dequantisation", "3, 4, 5 bits → INT8", 47, 36, 16, 9, ENGINE),
    ("sparse DSP chains", "lanes of 2 products per slice;\ncycles(m, n, k) of the RTL unit", 66, 29, 21, 16, CHAINS),
    ("input buffer", "block RAM", 47, 22, 16, 9, MEMORY),
    ("output buffer", "block RAM: activations stay", 47, 8, 21, 9, MEMORY),
    ("element-wise engine", "softmax, norms:\ntwo passes", 71, 8, 16, 9, ENGINE),
    ("regions 2 … R", "the same", 91, 4, 8, 41, REGION),
)
# from, to (x, y), label, label's place
ARROWS = (
    ((13, 42), (23, 42), "70 % of its\nchannels", (17, 43)),
    ((13, 16), (24, 36), "what is over", (17, 31)),
    ((44, 40.5), (47, 40.5), "", (0, 0)),
    ((63, 40.5), (66, 40.5), "", (0, 0)),
    ((63, 27), (70, 29), "", (0, 0)),
    ((74, 29), (64, 17), "", (0, 0)),
    ((68, 12.5), (71, 12.5), "", (0, 0)),
    ((71, 10), (68, 10), "", (0, 0)),
    ((55, 17), (55, 22), "", (0, 0)),
    ((13, 26), (47, 26), "gather: one channel across regions, 35 %", (34.5, 27.2)),
    ((47, 11), (13, 23.5), "what spills", (37, 16)),
)


def draw() -> plt.Figure:
    """The picture."""
    figure, axes = plt.subplots(figsize=(10, 5))
    axes.set_position((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 52)
    axes.axis("off")
    axes.add_patch(
        FancyBboxPatch((21, 4), 68, 43, boxstyle="round,pad=0.2,rounding_size=1", fill=False, edgecolor=REGION, ls="--")
    )
    axes.text(22, 48.2, "region 1 (super logic region)", color=PALE, fontsize=9)
    for name, what, x, y, width, height, colour in BOXES:
        shade = tuple(1 - 0.16 * (1 - c) for c in matplotlib.colors.to_rgb(colour))
        style = "round,pad=0,rounding_size=0.7"
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=shade, edgecolor=colour))
        middle = x + width / 2
        turn = 90 if name.startswith("regions") else 0
        if turn:
            axes.text(
                middle, y + height / 2, f"{name}: {what}", ha="center", va="center", rotation=90, color=INK, fontsize=9
            )
            continue
        axes.text(middle, y + height - 1.4, name, ha="center", va="top", color=INK, fontsize=9, weight="bold")
        axes.text(middle, y + height - 4.4, what, ha="center", va="top", color=PALE, fontsize=7)
    for start, end, label, (x, y) in ARROWS:
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=PALE, linewidth=1))
        if label:
            axes.text(x, y, label, ha="center", color=PALE, fontsize=7.5)
    return figure


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "tokenfab"
    draw().savefig(TARGET, metadata={"Date": None})
