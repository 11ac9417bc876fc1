"""A host and a unit near memory that share a trace's operators: who does what, and what that takes.

Both sides are operator models of one trace (:class:`.cost.OperatorModel`). Per row and point the work runs on the
host, near memory, or divided between them, by a :class:`Rule`:

    fastest     where it ends first:  T = min(host, near)
    intensity   near memory where FLOPs / bytes of the operator are below a threshold of the rule, else on the host
    always      near memory

    near = near model's time + link latency + bytes of activations / link bandwidth     (no link: the same memory)

Rows that the rule does not allow near, or the near unit cannot do (``takes``), run on the host. A row that can be
divided into n like units (experts, pairs of sequence and head of keys) may be shared, f being the host's part, a
multiple of 1/n; both start together:

    shared(f) = max(launchₕ + f·h, launchₙ + (1 − f)·m)      h, m: overlapped seconds of the whole on either side
    exclusive   and ≥ max(launchₕ, launchₙ) + f·dram + (1 − f)·m, as the host cannot read banks that work

the least of which lies at one of the f where two of these are equal (rounded down or up to 1/n); the row is shared
where that is less than either side alone needs (1/(1/h + 1/m) for n → ∞ and no launch).

Laws: min, max and sums keep the order, and the choices of ``intensity`` and ``always`` do not look at the hardware,
so faster hardware on either side never makes a row slower.

Energy: dynamic parts of either side in proportion to what it does, plus the link's. The static power of a host that
waits is its idle power: what it draws beyond that while it works is the part ``active``. Errors: a shared row has the
wider interval of the two regimes; rows go together as the host's do, at the larger of both correlations. Left out:
operators of different rows at once (the event level lets them contend by ``busy_s``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..workloads.compiled import CompiledTrace
from ..workloads.expr_functions import Array
from ..workloads.trace import Operator
from .cost import Errors, OperatorModel, RowCosts
from .spec import Device

Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]
TRANSFER = "transfer"
"""Reason: an operator near memory that takes longest to move its activations over the link."""
ACTIVE = "active"
"""Energy part: what the host draws beyond idle while it works, whatever it does."""


class NearModel(OperatorModel, Protocol):
    """An operator model that does some rows only."""

    @property
    def takes(self) -> Mask:
        """(rows,): which rows it can do; what it says of the others is not looked at."""


@dataclass(frozen=True)
class Link:
    """Between host and near memory: seconds per transfer, bytes/s, joules per bit. Infinite bandwidth: one memory."""

    latency_s: float = 0.0
    bytes_s: float = float("inf")
    energy_j: float = 0.0


@dataclass(frozen=True)
class Rule:
    """Who does what: ``choice`` is "fastest", "intensity" or "always".

    ``kinds``: kinds of operators that may run near memory (none: all). ``threshold``: FLOP per byte, for
    "intensity". ``divide``: rows may be shared. ``exclusive``: while the near unit works, the host cannot read.
    ``must``: kinds that run near memory whatever the choice, as their results have to lie there.
    """

    choice: str = "fastest"
    kinds: frozenset[str] = frozenset()
    threshold: float = 0.0
    divide: bool = False
    exclusive: bool = False
    must: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.choice not in ("fastest", "intensity", "always"):
            raise ValueError(f"choice {self.choice!r}; accepted: fastest, intensity, always")

    def allows(self, compiled: CompiledTrace) -> Mask:
        """(rows,): which rows may run near memory."""
        kinds = [row.operator.kind for row in compiled.rows]
        return np.array([not self.kinds or kind in self.kinds for kind in kinds], dtype=bool)


@dataclass(frozen=True)
class Division:
    """What each row becomes at points, (rows, points): ``host`` is the host's part f, from 0 (near) to 1 (host)."""

    host: Array
    time_s: Array


@dataclass(frozen=True)
class SplitModel:
    """See :class:`.cost.OperatorModel`; built by :func:`split_model`."""

    compiled: CompiledTrace
    host: OperatorModel
    near: NearModel
    rule: Rule
    link: Link
    near_allowed: Mask
    host_idle_w: float
    near_idle_w: float
    host_dram_bytes_s: float
    low: Array
    high: Array
    reasons: tuple[str, ...] = field(default=())

    @property
    def static_power_w(self) -> float:
        """Watts of both sides waiting."""
        return self.host_idle_w + self.near_idle_w

    @property
    def power_interval(self) -> tuple[float, float]:
        """The wider of both sides'."""
        ours, theirs = self.host.power_interval, self.near.power_interval
        return min(ours[0], theirs[0]), max(ours[1], theirs[1])

    @property
    def errors(self) -> Errors:
        """Families of the host; the larger of both correlations."""
        ours, theirs = self.host.errors, self.near.errors
        return Errors(ours.families, max(ours.within, theirs.within), max(ours.across, theirs.across))

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`."""
        host, near = self.host.rows(basis), self.near.rows(basis)
        joined = self._joined(host, near, basis)
        if host.staged is None or any(self.near_allowed[m.row] for m in host.moves):
            return joined  # where a row may run on either side, what it reads is not known beforehand
        return replace(joined, staged=self._joined(host.staged, near, basis), moves=host.moves)

    def _joined(self, host: RowCosts, near: RowCosts, basis: Array) -> RowCosts:
        moved = self.compiled.quantity("activation_bytes", basis)
        transfer = self.link.latency_s + moved / self.link.bytes_s
        done = self._divide(host, near, transfer, basis)
        f, time = done.host, done.time_s
        ours, theirs = f > 0, f < 1
        launch = np.where(
            ours, np.where(theirs, np.minimum(host.launch_s, near.launch_s), host.launch_s), near.launch_s
        )
        launch = np.minimum(launch, time)
        near_bound = np.where(transfer > near.time_s - near.launch_s, len(self.reasons) - 1, near.bound + self._offset)
        near_regime = near.regime + self.host.low.shape[0]
        both = self._pair(host.regime, near.regime)
        energy = self._energy(host, near, f, moved)
        return RowCosts(
            time_s=time, launch_s=launch,
            bound=np.where(f >= 0.5, host.bound, near_bound),
            regime=np.where(ours & theirs, both, np.where(ours, host.regime, near_regime)),
            energy_j=energy, busy_s=self._busy(host, near, f, transfer, time - launch, basis),
        )  # fmt: skip

    @property
    def _offset(self) -> int:
        return len(self.host.reasons)

    def _pair(self, ours: Index, theirs: Index) -> Index:
        """Regime of rows that both do: after the host's and the near unit's own, one for each pair."""
        n_host, n_near = self.host.low.shape[0], self.near.low.shape[0]
        return np.asarray(n_host + n_near + ours * n_near + theirs)

    def _divide(self, host: RowCosts, near: RowCosts, transfer: Array, basis: Array) -> Division:
        """The host's part of every row, and how long the row takes."""
        near_s = near.time_s + transfer
        chosen = self._choose(host, near, transfer, near_s, basis)
        must = np.array([row.operator.kind in self.rule.must for row in self.compiled.rows]) & self.near.takes
        if not must.any():
            return chosen
        return Division(np.where(must[:, None], 0.0, chosen.host), np.where(must[:, None], near_s, chosen.time_s))

    def _choose(self, host: RowCosts, near: RowCosts, transfer: Array, near_s: Array, basis: Array) -> Division:
        """What the rule's choice makes of every row."""
        may = self.near_allowed[:, None] & np.isfinite(near_s)  # infinite: no room near memory at this point
        if self.rule.choice == "always":
            return Division(np.where(may, 0.0, 1.0), np.where(may, near_s, host.time_s))
        if self.rule.choice == "intensity":
            moved = sum(self.compiled.quantity(q, basis) for q in ("weight_bytes", "kv_bytes", "activation_bytes"))
            may = may & (self.compiled.quantity("flops", basis) < self.rule.threshold * np.asarray(moved))
            best, part = np.where(may, near_s, host.time_s), np.where(may, 0.0, 1.0)
        else:
            here = may & (near_s < host.time_s)
            best, part = np.where(here, near_s, host.time_s), np.where(here, 0.0, 1.0)
        return self._share(host, near, transfer, basis, may, Division(part, best))

    def _share(
        self, host: RowCosts, near: RowCosts, transfer: Array, basis: Array, may: Mask, alone: Division
    ) -> Division:
        """Rows that end earlier when both sides work on them."""
        if not self.rule.divide:
            return alone
        part, best = alone.host.copy(), alone.time_s.copy()
        for i, row in enumerate(self.compiled.rows):
            if not may[i].any():
                continue
            units = units_of(row.operator, self.compiled, basis)
            launches = host.launch_s[i], near.launch_s[i] + self.link.latency_s
            wholes = host.time_s[i] - launches[0], near.time_s[i] + transfer[i] - launches[1]
            dram = self._host_dram(host, basis, i) if self.rule.exclusive else np.zeros_like(units)
            f, seconds = shared_part(launches, wholes, units, dram, exclusive=self.rule.exclusive)
            better = may[i] & (seconds < best[i])
            part[i], best[i] = np.where(better, f, part[i]), np.where(better, seconds, best[i])
        return Division(part, best)

    def _host_dram(self, host: RowCosts, basis: Array, row: int) -> Array:
        """Seconds for which row ``row`` occupies the memory when the host does all of it."""
        if "dram" in host.busy_s:
            return np.asarray(host.busy_s["dram"][row])
        names = ("weight_bytes", "kv_bytes", "activation_bytes")
        moved = np.sum([self.compiled.coefficients[q][row] for q in names], axis=0) @ basis
        return np.asarray(np.minimum(moved / self.host_dram_bytes_s, host.time_s[row] - host.launch_s[row]))

    def _energy(self, host: RowCosts, near: RowCosts, f: Array, moved: Array) -> dict[str, Array]:
        parts = {name: joules * f for name, joules in host.energy_j.items()}
        parts[ACTIVE] = (self.host.static_power_w - self.host_idle_w) * host.time_s * f
        for name, joules in near.energy_j.items():
            mine = np.where(f < 1, joules, 0.0) * (1 - f)
            parts[name] = parts[name] + mine if name in parts else mine
        if self.link.energy_j:
            parts[TRANSFER] = parts.get(TRANSFER, 0.0) + moved * 8 * self.link.energy_j * (1 - f)
        return parts

    def _busy(
        self, host: RowCosts, near: RowCosts, f: Array, transfer: Array, most: Array, basis: Array
    ) -> dict[str, Array]:
        """Occupied seconds by resource: the host's, the near unit's as ``near …``, and the link.

        Units that keep the host from reading (``exclusive``) occupy its ``dram`` where there is no link.
        """
        alone = host.time_s - host.launch_s  # a host that says nothing is taken to occupy what bound it
        said = host.busy_s or {r: np.where(host.bound == i, alone, 0.0) for i, r in enumerate(self.host.reasons)}
        apart = bool(np.isfinite(self.link.bytes_s) or self.link.latency_s)
        held = {name: s * f for name, s in said.items()}
        for name, seconds in near.busy_s.items():
            place = "dram" if self.rule.exclusive and not apart else f"near {name}"
            held[place] = held.get(place, 0.0) + np.where(f < 1, seconds, 0.0) * (1 - f)
        if apart:
            held["link"] = held.get("link", 0.0) + transfer * (1 - f)
        return {name: np.minimum(seconds, most) for name, seconds in held.items()}


def split_model(
    compiled: CompiledTrace,
    host: OperatorModel,
    near: NearModel,
    *,
    rule: Rule,
    device: Device,
    link: Link | None = None,
) -> SplitModel:
    """``host`` and ``near`` as one model. ``device`` is the near unit's; its host says the host's idle power and DRAM.

    The near unit's reasons become ``near REASON``; energies of parts of one name add up.
    """
    assert device.host is not None
    pairs_low = np.minimum(host.low[:, None], near.low[None]).reshape(-1, host.low.shape[1])
    pairs_high = np.maximum(host.high[:, None], near.high[None]).reshape(-1, host.high.shape[1])
    return SplitModel(
        compiled=compiled, host=host, near=near, rule=rule, link=link or Link(),
        near_allowed=rule.allows(compiled) & near.takes,
        host_idle_w=min(device.host.power.idle.value, host.static_power_w), near_idle_w=near.static_power_w,
        host_dram_bytes_s=device.host.dram.bandwidth.value,
        low=np.concatenate([host.low, near.low, pairs_low]), high=np.concatenate([host.high, near.high, pairs_high]),
        reasons=(*host.reasons, *(f"near {reason}" for reason in near.reasons), TRANSFER),
    )  # fmt: skip


def units_of(op: Operator, compiled: CompiledTrace, basis: Array) -> Array:
    """Into how many like units ``op`` can be divided at points, (points,): experts that work, or sequences times
    heads of keys; 1 for what cannot be divided."""
    one = np.ones(basis.shape[1])
    if op.kind == "attention":
        return np.asarray(
            np.maximum(compiled.vector(op.dims["batch"]) @ basis * (op.dims["kv_heads"].constant or 1), 1)
        )
    if op.kind == "experts":
        experts, first = op.dims["experts"].constant or 1, op.weights[0]
        if first.touched is None:
            return one * experts
        share = (first.elements.constant or 1) / experts
        return np.asarray(np.clip(np.floor(compiled.vector(first.touched) @ basis / share), 1, experts))
    return one


def shared_part(
    launches: tuple[Array, Array],
    wholes: tuple[Array, Array],
    units: Array,
    dram: Array,
    *,
    exclusive: bool = False,
) -> tuple[Array, Array]:
    """(the host's part f, seconds) of work of ``units`` like parts that both sides do, at least one part each.

    ``launches`` and ``wholes``: seconds to start, and of all the work, of (host, near); ``dram``: seconds of all the
    work in which the host reads memory, which counts where ``exclusive``. Infinite where there is one unit.
    """
    (lh, ln), (h, m) = launches, wholes
    start = np.maximum(lh, ln)

    def seconds(f: Array) -> Array:
        t = np.maximum(lh + f * h, ln + (1 - f) * m)
        return np.maximum(t, start + f * dram + (1 - f) * m) if exclusive else t

    with np.errstate(divide="ignore", invalid="ignore"):
        meets = [(ln + m - lh) / (h + m)]
        if exclusive:
            meets += [(start + m - lh) / (h + m - dram), (ln - start) / dram]
    best, part = np.full_like(h, np.inf), np.ones_like(h)
    for f in [np.nan_to_num(x, nan=0.5, posinf=1.0, neginf=0.0) for x in meets] + [np.zeros_like(h), np.ones_like(h)]:
        for whole in (np.floor, np.ceil):
            g = np.clip(whole(f * units), 1, np.maximum(units - 1, 1)) / units
            t = np.where(units >= 2, seconds(g), np.inf)
            best, part = np.minimum(best, t), np.where(t < best, g, part)
    return part, best
