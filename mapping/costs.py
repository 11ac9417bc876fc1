"""What shares of operators take on engines, by the cost models: seconds and joules at the points of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..hw.cost import prepare
from ..workloads.compiled import CompiledTrace, compile_trace
from ..workloads.trace import Block as TraceBlock
from ..workloads.trace import Operator as TraceOperator
from ..workloads.trace import Trace
from .node import Engine
from .problem import Array
from .shares import share
from .spreads import Spread


@dataclass(frozen=True)
class Piece:
    """One operator of the problem: the trace's operators in it, how it may be divided, and in how many units."""

    name: str
    kind: str
    operators: tuple[TraceOperator, ...]
    mode: str | None
    units: int


class Costs:
    """Seconds and joules of every share of every piece on every engine, at the prefill and the decode point."""

    def __init__(
        self, trace: Trace, engines: Sequence[Engine], points: Sequence[tuple[float, float, float]], pieces: list[Piece]
    ) -> None:
        self.names: dict[tuple[int, str, float], str] = {}
        operators: list[TraceOperator] = []
        for piece in pieces:
            for op in piece.operators:
                fractions = [(m, s / piece.units) for m in [piece.mode] if m for s in range(1, piece.units)]
                for mode, fraction in [("whole", 1.0), *fractions]:
                    key = (id(op), mode, fraction)
                    if key not in self.names:
                        self.names[key] = f"{op.name[:150]} ({len(operators)})"
                        operators.append(share(op, mode, fraction, self.names[key]))
        one = TraceBlock(name="share", repeat=1, operators=tuple(operators), output=operators[-1].name)
        trace = trace.model_copy(update={"blocks": (one,), "order": (("share", 1),)})
        compiled = compile_trace(trace)
        row = {name.partition(".")[2]: i for i, r in enumerate(compiled.rows) for name in r.names}
        self.row = {key: row[name] for key, name in self.names.items()}
        basis = compiled.basis_at(*zip(*points, strict=True))
        self.time: list[Array] = []
        self.energy: list[Array] = []
        for engine in engines:
            same = next((i for i, e in enumerate(engines[: len(self.time)])
                         if e.device is engine.device and e.part == engine.part), None)  # fmt: skip
            if same is not None:
                self.time.append(self.time[same])
                self.energy.append(self.energy[same])
                continue
            time, energy = engine_costs(engine, compiled, basis)
            self.time.append(time)
            self.energy.append(energy)

    def of(self, piece: Piece, spread: Spread, engine: int, phase: int) -> tuple[float, float]:
        """Seconds and joules of ``engine``'s share of a piece; infinity where it cannot."""
        mode = "whole" if spread.mode in ("whole", "replicated") else spread.mode
        seconds = joules = 0.0
        for op in piece.operators:
            i = self.row[id(op), mode, spread.fraction(engine)]
            seconds += float(self.time[engine][i, phase])
            joules += float(self.energy[engine][i, phase])
        return seconds, joules

    def seconds(self, piece: Piece, spread: Spread) -> tuple[float, float]:
        """Seconds of a piece at both points, all engines of the spread having done their share."""
        first, second = (
            max((self.of(piece, spread, a, phase)[0] for a in spread.engines), default=0.0) for phase in (0, 1)
        )
        return first, second


def engine_costs(engine: Engine, compiled: CompiledTrace, basis: Array) -> tuple[Array, Array]:
    """Seconds and joules beyond idle of every row at the points, infinity for rows the engine does not take.

    A near unit that attends but does not append (a drive) is given what its host takes to write the cache to it.
    """
    try:
        _, model = prepare(compiled, engine.device)
    except InputError:
        return _row_by_row(engine, compiled, basis)
    taken = np.ones(len(compiled.rows), dtype=bool)
    if engine.part:
        split: Any = model
        model = split.near if engine.part == "near" else split.host
        if engine.part == "near":
            taken = split.near.takes & split.near_allowed
    costs = model.rows(basis)
    beyond = max(0.0, model.static_power_w - engine.idle_w)
    spent = np.where(np.isfinite(costs.time_s), costs.time_s, 0.0)
    time = np.where(taken[:, None], costs.time_s, np.inf)
    energy = np.sum(list(costs.energy_j.values()), axis=0) + beyond * spent
    appends = np.array([row.operator.kind == "kv_append" for row in compiled.rows]) & ~taken
    if engine.part == "near" and appends.any():
        written = split.host.rows(basis)
        time[appends] = written.time_s[appends]
        energy[appends] = np.sum(list(written.energy_j.values()), axis=0)[appends]
    return time, np.asarray(energy)


def _row_by_row(engine: Engine, compiled: CompiledTrace, basis: Array) -> tuple[Array, Array]:
    """As :func:`engine_costs` of an engine that refuses some operators: infinity for these.

    Raises ``InputError``, the first refusal, where it refuses all that do arithmetic on a matrix.
    """
    time = np.full((len(compiled.rows), basis.shape[1]), np.inf)
    energy = np.zeros_like(time)
    refusal: InputError | None = None
    useful = False
    for i, row in enumerate(compiled.rows):
        one = replace(
            compiled, rows=(row,), coefficients={q: m[i : i + 1] for q, m in compiled.coefficients.items()},
            counts=compiled.counts[i : i + 1],
        )  # fmt: skip
        try:
            prepare(one, engine.device)
        except InputError as error:
            refusal = refusal or error
            continue
        time[i], energy[i] = (x[0] for x in engine_costs(engine, one, basis))
        useful = useful or row.operator.kind in ("matmul", "attention", "experts")
    if not useful and refusal is not None:
        raise refusal
    return time, energy
