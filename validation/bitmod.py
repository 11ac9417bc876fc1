"""The published rows of BitMoD's simulator (HPCA 2025) beside its own rules: cycles, energy, speed over FP16.

    python -m tokenfab.validation.bitmod --truth DIR [--rules bitmod-2025]

Reads ``TRUTH/accel/bitmod_sim_*.csv`` (see the NOTES.md there) and prints every published row beside the rule book's
(:mod:`tokenfab.hw.layer_rules`): these are the paper's own rules, which nothing else uses, and must be met exactly.
What the catalogue's devices make of the same comparison is ``tokenfab reproduce bitmod``.

Means: the artifact's notebooks label the arithmetic mean "GeoMean"; both are given here.
"""

from __future__ import annotations

import argparse
import csv
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from .. import hw
from ..errors import InputError, unknown_name
from ..files import first_problem
from ..hw.layer_rules import Layer, RuleBook, Tally, attention_layers, tally
from ..models.config import load_config
from .kernels import MissingTableError

FILES = {"bitmod-2024": "bitmod_sim_6b68523_fig7_fig8.csv", "bitmod-2025": "bitmod_sim_e445a5f_current.csv"}
PHASES = {"prefill256": "prefill", "decode1tok": "decode"}
TASKS = {"256 in": 0, "256 in, 20 out": 20}
ROUNDING_J = 1.1e-6
"""Energies are published in whole microjoules, and constants of ports to six digits."""


def load_rules(name: str) -> RuleBook:
    """The rule book ``name``. Raises ``InputError`` for one that is unknown or cannot be read."""
    folder = resources.files(hw) / "catalog" / "rules"
    names = sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
    if name not in names:
        raise unknown_name("rule book", name[:80], names)
    try:
        return RuleBook(**tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"hw/catalog/rules/{name}.toml: {problem}") from None


def model_layers(book: RuleBook, model: str, phase: str) -> list[Layer]:
    """Linear layers and attention of a model of the book, one token or the whole context at a time."""
    held = book.models[model]
    if "preset" in held:
        c = load_config(str(held["preset"]))
        sizes = {key: getattr(c, key) for key in ("hidden", "layers", "heads", "kv_heads", "inner", "vocabulary")}
        sizes["projections"] = 2 if c.gated else 1
    else:
        sizes = {key: int(value) for key, value in held.items()}
    hidden, layers, heads, kv_heads, inner = (sizes[x] for x in ("hidden", "layers", "heads", "kv_heads", "inner"))
    head_dim, m = hidden // heads, book.context if phase == "prefill" else 1
    keys = kv_heads * head_dim
    shapes = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden), (hidden, inner)]
    shapes += [(inner, hidden)] * sizes["projections"]
    found = [Layer(layers, 1, m, n, k, k) for n, k in shapes]
    found.append(Layer(1, 1, m, sizes["vocabulary"], hidden, hidden))
    return found + attention_layers(book, heads, kv_heads, head_dim, layers, m)


def ruled(book: RuleBook, accelerator: str, phase: str, model: str) -> Tally:
    """A pass of ``model`` by the rules of the book. ``phase``: ``"prefill"`` or ``"decode"``."""
    return tally(book, accelerator, phase, model, model_layers(book, model, phase))


@dataclass(frozen=True)
class Row:
    """A published row beside the rules': cycles and joules."""

    accelerator: str
    phase: str
    model: str
    cycles: int
    compute: int
    chip_j: float
    total_j: float
    ours: Tally

    @property
    def same_cycles(self) -> bool:
        """Whether cycles of the pass and of its array are equal."""
        return (self.cycles, self.compute) == (self.ours.cycles, self.ours.compute)

    @property
    def energy_known(self) -> bool:
        """Whether the ports of both buffers are in the book."""
        return self.ours.chip_j > 0

    @property
    def same_energy(self) -> bool:
        """On the chip and in DRAM, to the rounding of what is published; without ports only DRAM's."""
        dram = abs(self.ours.dram_j - (self.total_j - self.chip_j)) < ROUNDING_J
        return dram and (not self.energy_known or abs(self.ours.chip_j - self.chip_j) < ROUNDING_J)


def published_rows(truth: Path, rules: str) -> list[Row]:
    """All rows of the rule book's table. Raises ``MissingTableError`` where it is not there."""
    path = truth / "accel" / FILES.get(rules, "")
    if not path.is_file():
        raise MissingTableError(f"{path}: not there")
    book, rows = load_rules(rules), []
    with path.open(newline="", encoding="utf-8") as file:
        for r in csv.DictReader(file):
            phase = PHASES[r["phase"]]
            rows.append(Row(
                r["accel"], phase, r["model"], int(r["total_cycles"]), int(r["compute_cycles"]),
                float(r["onchip_energy_uJ"]) * 1e-6, float(r["total_energy_uJ"]) * 1e-6,
                ruled(book, r["accel"], phase, r["model"]),
            ))  # fmt: skip
    return rows


def rules_speedups(book: RuleBook, generated: int) -> dict[str, dict[str, float]]:
    """Over FP16 by the book's rules: accelerator → model → ratio, ``generated`` tokens after the prompt."""

    def whole(accelerator: str, model: str) -> float:
        prompt, token = (ruled(book, accelerator, phase, model) for phase in ("prefill", "decode"))
        return float(prompt.cycles + generated * token.cycles)

    return {a: {m: whole("FP16", m) / whole(a, m) for m in book.models} for a in book.accelerators}


def rules_energy(book: RuleBook, generated: int) -> dict[str, dict[str, float]]:
    """FP16's energy over each accelerator's by the book's rules; models with a buffer whose port is unknown are
    left out."""

    def whole(accelerator: str, model: str) -> float:
        prompt, token = (ruled(book, accelerator, phase, model) for phase in ("prefill", "decode"))
        known = prompt.chip_j > 0 and (token.chip_j > 0 or not generated)
        return prompt.total_j + generated * token.total_j if known else 0.0

    return {
        a: {m: whole("FP16", m) / joules for m in book.models if (joules := whole(a, m)) > 0} for a in book.accelerators
    }


def means(ratios: Iterable[float]) -> tuple[float, float]:
    """Arithmetic and geometric mean."""
    values = np.array(list(ratios))
    return float(values.mean()), float(np.exp(np.log(values).mean()))


def main(arguments: list[str] | None = None) -> None:
    """Print rows and means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, default=Path(os.environ.get("TOKENFAB_TRUTH", "../shared/truth")))
    parser.add_argument("--rules", default="bitmod-2024", choices=list(FILES))
    told = parser.parse_args(arguments)
    book = load_rules(told.rules)
    rows = published_rows(told.truth, told.rules)
    print(f"{book.description}: {book.source}\n")
    print(f"{'accelerator':11} {'phase':8} {'model':12} {'cycles':>11} {'ours':>11} {'uJ':>10} {'ours':>12}")
    for r in rows:
        ours = f"{r.ours.total_j * 1e6:12.1f}" if r.energy_known else f"{'port unknown':>12}"
        line = f"{r.cycles:11} {r.ours.cycles:11} {r.total_j * 1e6:10.0f}"
        print(f"{r.accelerator:11} {r.phase:8} {r.model:12} {line} {ours}")
    known = [r for r in rows if r.energy_known]
    print(f"\ncycles equal: {sum(r.same_cycles for r in rows)} of {len(rows)}; "
          f"energies equal to 1 uJ: {sum(r.same_energy for r in known)} of {len(known)}\n")  # fmt: skip
    for task, generated in TASKS.items():
        for label, found in (
            ("speed, rules", rules_speedups(book, generated)),
            ("energy of FP16 over it, rules", rules_energy(book, generated)),
        ):
            print(f"over FP16, {task}, {label}: arithmetic mean / geometric mean")
            for name, ratios in found.items():
                arithmetic, geometric = means(ratios.values())
                each = "  ".join(f"{m} {x:.2f}" for m, x in ratios.items())
                print(f"  {name:10} {arithmetic:.3f} / {geometric:.3f}   {each}")


if __name__ == "__main__":
    main()
