"""LUT Tensor Core (ISCA 2025): its areas and end-to-end times beside the models'.

    python -m tokenfab.validation.lut_tensor_core

Areas: gates counted from cells (:mod:`tokenfab.hw.gates`), as ratios, since square micrometres of their library are
not known. Times: BitNet b1.58 3B on the catalogue's A100 and on the same card with lookup units, and a 16-bit model
of the same shape as the baseline; layers of large models with weights of one bit. Published: arXiv:2408.06003, table
1 (28 nm, 1.41 GHz), table 2, sections 4.2 to 4.4. Nothing is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..hw.cost import cost
from ..hw.devices import load_device
from ..hw.gates import float_mac, integer_mac, lookup_array, lookup_mac
from ..workloads.capture import capture
from ..workloads.compiled import compile_trace
from ..workloads.techniques import apply_techniques
from ..workloads.trace import Trace

CARD = "a100-80g-sxm"
LOOKUP = {"4X": "a100-lut-tensor-core", "8X": "a100-lut-tensor-core-8x"}
PUBLISHED_MS = {
    "FP16": (106.71, 41.15), "INT8": (67.06, 21.7), "4X": (42.49, 11.41), "8X": (38.02, 7.47),
}  # fmt: skip
"""Table 1, milliseconds: one sequence of 2048 tokens; 1024 sequences of one."""
LARGE = ("opt-175b", "bloom-176b", "llama-2-70b")


@dataclass(frozen=True)
class Line:
    """One published figure and the model's."""

    what: str
    published: float
    ours: float

    @property
    def error(self) -> float:
        """Ours over published, less 1."""
        return self.ours / self.published - 1


def area_lines() -> list[Line]:
    """Compute densities of lookup units over multipliers, and each step of table 2 over the one before."""
    whole = lookup_array(conventional=True, negated=True, tables=True)
    symmetric, offline = lookup_array(negated=True, tables=True), lookup_array(tables=True)
    one, two, eight = lookup_mac(1, floats=True), lookup_mac(2, floats=True), lookup_mac(2)
    return [
        Line("W2 A8 over INT8 tensor core (table 1: 61.84 / 17.73)", 61.84 / 17.73, integer_mac() / eight),
        Line("W2 A8 over FP16 tensor core (table 1: 61.84 / 2.96)", 61.84 / 2.96, float_mac() / eight),
        Line("INT8 over FP16 tensor core (table 1: 17.73 / 2.96)", 17.73 / 2.96, float_mac() / integer_mac()),
        Line("W2 A-FP8 over FP8 tensor core (table 1, H100: 23.69 / 12.59)", 23.69 / 12.59,
             float_mac(4, 4) / two),
        Line("W1 A16 over FP16 tensor core (section 4.3: 1 / 0.143)", 1 / 0.143, float_mac() / one),
        Line("W1 A16 over FP16 tensor core (figure 19: 4 / 0.584)", 4 / 0.584, float_mac() / one),
        Line("W1 A16 over FP16, dot product of 4 (section 4.2.1: 61.55 / 3.39)", 61.55 / 3.39,
             float_mac() / one),
        Line("W2 A8 over FP16 tensor core, energy (section 4.4: up to 11.2)", 11.2, float_mac() / eight),
        Line("table 2: half the entries over UNPU", 17271.71 / 13116.6, whole / symmetric),
        Line("table 2: indices negated offline", 13116.6 / 12780.05, symmetric / offline),
        Line("table 2: tables made before the unit", 12780.05 / 11991.29, offline / lookup_array()),
        Line("table 2: all of them, area", 1.44, whole / lookup_array()),
        Line("table 2: all of them, power (gates that switch alike)", 1.442, whole / lookup_array()),
    ]  # fmt: skip


def densities() -> list[tuple[str, float]]:
    """Gates per product and cycle, of which no figure is published."""
    found = [("FP16 multiplier", float_mac()), ("FP8 multiplier", float_mac(4, 4)), ("INT8 multiplier", integer_mac())]
    for bits in (1, 2, 4):
        found += [(f"lookup W{bits} A8", lookup_mac(bits)), (f"lookup W{bits} A16", lookup_mac(bits, floats=True))]
    return found


def bitnet_ms() -> dict[str, dict[str, tuple[float, float]]]:
    """Milliseconds of table 1's two runs by part: ``all``, all but ``attention``, and the ``layers``' products."""
    plain, ternary = capture("open-llama-3b"), capture("bitnet-b1.58-3b")
    runs = {"FP16": (plain, CARD), "INT8": (ternary, CARD), **{k: (ternary, d) for k, d in LOOKUP.items()}}
    return {name: _parts(trace, device) for name, (trace, device) in runs.items()}


def _parts(trace: Trace, device: str) -> dict[str, tuple[float, float]]:
    compiled = compile_trace(trace)
    costs = cost(compiled, load_device(device), [1, 1024], [2048, 1], [0, 0], detail=True)
    assert costs.operator_time_s is not None
    of = {"attention": np.zeros(2), "layers": np.zeros(2)}
    for row, seconds in zip(compiled.rows, costs.operator_time_s, strict=True):
        if row.operator.kind == "attention":
            of["attention"] += seconds
        elif row.operator.kind == "matmul" and row.count > 1:
            of["layers"] += seconds
    parts = {"all": costs.latency_s, "but attention": costs.latency_s - of["attention"], "layers": of["layers"]}
    return {name: (float(t[0]) * 1e3, float(t[1]) * 1e3) for name, t in parts.items()}


def time_lines() -> list[Line]:
    """Table 1's times and speed-ups; those of single tokens without attention, which the paper does not state."""
    ours, lines = bitnet_ms(), []
    for i, (run, part) in enumerate((("1 x 2048 tokens", "all"), ("1024 x 1 token, no attention", "but attention"))):
        for name, published in PUBLISHED_MS.items():
            lines.append(Line(f"{run}: {name}, ms", published[i], ours[name][part][i]))
        for what, of in (("", part), (", products of the layers alone", "layers")):
            for name in ("INT8", "4X", "8X"):
                speedup = PUBLISHED_MS["FP16"][i] / PUBLISHED_MS[name][i]
                lines.append(Line(f"{run}: {name} over FP16{what}", speedup, ours["FP16"][of][i] / ours[name][of][i]))
    for part, what in (("all", ""), ("layers", ", products of the layers alone")):
        best = max(large_speedups(part).values())
        lines.append(Line(f"most of OPT-175B, BLOOM-176B, Llama-2-70B, W1 A8, 8X over FP16{what}", 8.2, best))
    return lines


def large_speedups(part: str = "all", bits: int = 1) -> dict[str, float]:
    """8X over the card's own tensor cores, the better of the two runs, ``bits``-bit weights by
    8-bit activations against 16 by 16."""
    found = {}
    for name in LARGE:
        wide = capture(name)
        narrow = apply_techniques(wide, ["integer-arithmetic:bits=8", f"weight-only:bits={bits}"])
        before, after = _parts(wide, CARD)[part], _parts(narrow, LOOKUP["8X"])[part]
        found[name] = max(a / b for a, b in zip(before, after, strict=True))
    return found


def main() -> None:
    """Print both tables."""
    for title, lines in (("density, a ratio", area_lines()), ("time", time_lines())):
        print(f"{title:84} {'paper':>9} {'ours':>9}  error")
        for line in lines:
            print(f"{line.what:84} {line.published:9.2f} {line.ours:9.2f} {line.error:+6.0%}")
        print()
    for what, gates in densities():
        print(f"{what:30} {gates:8.0f} gates per product and cycle")


if __name__ == "__main__":
    main()
