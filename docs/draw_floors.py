"""Draw docs/img/floors.svg: the rooms of the package, floor by floor. Run by ``make docs``.

A room whose folder is not a package yet is drawn dashed, so the picture says what there is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "img" / "floors.svg"

# floor → rooms as (label, what lives there, the file that shows the room is built)
FLOORS: dict[int, list[tuple[str, str, str]]] = {
    6: [("cli.py", "the command line: thin, no modelling", "cli.py")],
    5: [
        ("reports/", "figures, tables, PDF, HTML", "reports/__init__.py"),
        ("systems/", "published claims, recomputed", "systems/__init__.py"),
        ("sweep/", "design-space exploration", "sweep/__init__.py"),
    ],
    4: [
        ("mapping/", "placement and tiling", "mapping/__init__.py"),
        ("serving/", "discrete-event serving", "serving/__init__.py"),
        ("validation/", "measurements, intervals", "validation/__init__.py"),
    ],
    3: [
        ("hw/", "cost models, catalogue of devices", "hw/__init__.py"),
        ("workloads/", "capture, techniques, request logs", "workloads/capture.py"),
    ],
    2: [
        ("models/", "reference PyTorch implementations, presets", "models/__init__.py"),
        ("rtl/", "SystemVerilog units with their cycle models", "rtl/__init__.py"),
    ],
    1: [
        ("hw/spec.py   workloads/trace.py", "the two descriptions: Device and Trace, plain data", "workloads/trace.py"),
        ("kernels/", "number formats, low-bit golden models", "kernels/__init__.py"),
    ],
    0: [("errors.py   files.py", "what every floor stands on", "errors.py")],
}
COLOURS = {6: "#31487a", 5: "#3d6a9e", 4: "#3f8598", 3: "#4c9a7d", 2: "#8a9a45", 1: "#c08a3e", 0: "#8c8c8c"}
INK, PALE = "#1d2330", "#5b6475"
WIDTH, HEIGHT, GAP, LEFT, RIGHT = 100.0, 9.0, 2.4, 7.0, 90.0


def tint(colour: str, share: float) -> tuple[float, float, float]:
    """``colour`` on white, ``share`` of it."""
    return tuple(1 - share * (1 - c) for c in matplotlib.colors.to_rgb(colour))


def draw() -> plt.Figure:
    """The picture: one band per floor, one box per room, one arrow for the law."""
    figure, axes = plt.subplots(figsize=(10, 7.4))
    axes.set_position((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(-7.5, 7 * (HEIGHT + GAP) - GAP + 1)
    axes.axis("off")
    boxes: dict[str, tuple[float, float, float]] = {}
    texts = []
    for floor, rooms in FLOORS.items():
        bottom = floor * (HEIGHT + GAP)
        axes.add_patch(
            Rectangle((0.6, bottom - 0.7), RIGHT - 0.6, HEIGHT + 1.4, color=tint(COLOURS[floor], 0.13), linewidth=0)
        )
        axes.text(
            LEFT / 2 + 0.2, bottom + HEIGHT / 2, str(floor), fontsize=19, fontweight="bold", color=COLOURS[floor],
            ha="center", va="center",
        )  # fmt: skip
        between = 7.0 if floor == 3 else 2.2
        width = (RIGHT - LEFT - 1.5 - (len(rooms) - 1) * between) / len(rooms)
        for i, (label, purpose, proof) in enumerate(rooms):
            left = LEFT + i * (width + between)
            built = (ROOT / proof).exists()
            axes.add_patch(
                FancyBboxPatch(
                    (left, bottom),
                    width,
                    HEIGHT,
                    boxstyle="round,pad=0,rounding_size=1.0",
                    linewidth=1.5,
                    edgecolor=COLOURS[floor],
                    facecolor="white" if built else tint(COLOURS[floor], 0.06),
                    linestyle="-" if built else (0, (4, 3)),
                )
            )
            middle = left + width / 2
            name = axes.text(
                middle, bottom + 0.66 * HEIGHT, label, fontsize=12.5, fontweight="bold", family="monospace",
                color=INK if built else PALE, ha="center", va="center",
            )  # fmt: skip
            what = axes.text(
                middle,
                bottom + 0.29 * HEIGHT,
                purpose,
                fontsize=10,
                color=INK if built else PALE,
                ha="center",
                va="center",
            )
            texts += [(name, left, width), (what, left, width)]
            boxes[label] = (left, bottom, width)

    # the one arrow between two rooms of one floor
    left, bottom, width = boxes["hw/"]
    start, end, middle = left + width, boxes["workloads/"][0], bottom + HEIGHT / 2
    arrow = {"arrowstyle": "-|>", "mutation_scale": 15, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(
        FancyArrowPatch(
            (start + 0.9, bottom + HEIGHT / 2),
            (end - 0.6, bottom + HEIGHT / 2),
            color=COLOURS[3],
            linewidth=2.2,
            **arrow,
        )
    )
    # the law
    top = 7 * (HEIGHT + GAP) - GAP
    arrow["mutation_scale"] = 26
    axes.add_patch(FancyArrowPatch((93.2, top), (93.2, 0), color=INK, linewidth=2.6, **arrow))
    axes.text(96.8, top / 2, "imports point down only", fontsize=13, color=INK, rotation=270, ha="center", va="center")
    axes.text(
        LEFT, -4.6, "A room imports rooms of lower floors and itself. One arrow on a level: hw reads what workloads "
        "compiles.\nDashed: planned, not built yet. tests, benchmarks and docs may import everything.",
        fontsize=10, color=PALE, ha="left", va="center", linespacing=1.5,
    )  # fmt: skip
    refuse_clipping(figure, axes, texts)
    return figure


def refuse_clipping(figure: plt.Figure, axes: plt.Axes, texts: list[tuple[plt.Text, float, float]]) -> None:
    """Stop with the label that does not fit its box, or the picture."""
    renderer = figure.canvas.get_renderer()
    inverse = axes.transData.inverted()
    for text, left, width in texts:
        box = text.get_window_extent(renderer).transformed(inverse)
        if box.x0 < left + 0.5 or box.x1 > left + width - 0.5:
            sys.exit(f"{text.get_text()!r} is {box.width:.1f} wide; its box is {width:.1f}")
    for text in axes.texts:
        box, frame = text.get_window_extent(renderer), figure.bbox
        if box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1:
            sys.exit(f"{text.get_text()!r} leaves the picture")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    matplotlib.rcParams["svg.hashsalt"] = "tokenfab"  # the same picture gives the same file
    figure = draw()
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if target.suffix == ".svg" else None
    figure.savefig(target, facecolor="white", dpi=110, metadata=metadata)
    print(target)
