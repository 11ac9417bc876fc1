"""A host whose weights or keys and values lie in another memory, behind a link: what it reads of them has to cross.

The host's own model (:class:`.cost.OperatorModel`) has every byte in the host's memory. Here a row takes, in its
overlapped part,

    max(host's seconds, crossing / rate)         rate: link bandwidth × link efficiency, bytes/s

    crossing    bytes of weights of two or more dimensions, where weights lie behind the link (vectors, as those of
                norms, are few and stay with the host); bytes of cached keys and values but for those of the tokens at
                work, which the host has just made, where they lie there

and is bound by ``network`` where the link sets it, with the interval of [intervals.network]. The link is occupied for
crossing / rate. A faster link or host is never slower, as max keeps the order. Left out: the latency of a read, as
addresses are known beforehand and reads stream; a copy kept in the host's memory, as the device file says what it
holds; energy in the far memory beyond the link's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..workloads.compiled import CompiledTrace
from ..workloads.expr import product
from ..workloads.expr_functions import Array
from ..workloads.trace import Operator
from .cost import Errors, OperatorModel, RowCosts
from .spec import Device

NETWORK = "network"
LINK = "link"
TRANSFER = "transfer"


@dataclass(frozen=True)
class CrossingModel:
    """``host`` with what crosses the link; built by :func:`crossing_model`. ``weights``: (rows, monomials), bytes of
    each row's weights that cross; ``keys``: 1 for a row whose cache crosses, (rows, 1); ``fresh``: as ``weights``,
    bytes of keys and values that the host has just made; ``blocks``: resources that a crossing occupies beside the
    link; ``energy_j``: joules per bit."""

    compiled: CompiledTrace
    host: OperatorModel
    weights: Array
    keys: Array
    fresh: Array
    bytes_s: float
    energy_j: float
    blocks: tuple[str, ...]
    low: Array
    high: Array
    reasons: tuple[str, ...]

    @property
    def static_power_w(self) -> float:
        """The host's, W."""
        return self.host.static_power_w

    @property
    def power_interval(self) -> tuple[float, float]:
        """The host's."""
        return self.host.power_interval

    @property
    def errors(self) -> Errors:
        """The host's."""
        return self.host.errors

    def crossing(self, basis: Array) -> Array:
        """Bytes that cross the link where the host does a row, (rows, points)."""
        cached = self.compiled.quantity("kv_bytes", basis) - self.fresh @ basis
        return np.asarray(self.weights @ basis + self.keys * np.maximum(cached, 0.0))

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`."""
        host, moved = self.host.rows(basis), self.crossing(basis)
        alone, link = host.time_s - host.launch_s, moved / self.bytes_s
        crosses = link > alone
        said = host.busy_s or {r: np.where(host.bound == i, alone, 0.0) for i, r in enumerate(self.host.reasons)}
        energy = dict(host.energy_j)
        if self.energy_j:
            energy[TRANSFER] = energy.get(TRANSFER, 0.0) + moved * 8 * self.energy_j
        return replace(
            host, time_s=host.launch_s + np.maximum(alone, link), energy_j=energy,
            bound=np.where(crosses, self.reasons.index(NETWORK), host.bound),
            regime=np.where(crosses, self.host.low.shape[0], host.regime),
            busy_s=said | {name: said.get(name, 0.0) + link for name in (LINK, *self.blocks)},
        )  # fmt: skip


def crossing_model(
    compiled: CompiledTrace, host: OperatorModel, device: Device, roles: Iterable[str], *,
    bytes_s: float, energy_j: float = 0.0, blocks: tuple[str, ...] = (),
) -> CrossingModel:  # fmt: skip
    """``host`` with ``roles`` ("weights", "kv") behind a link of ``bytes_s`` bytes/s and ``energy_j`` joules per bit.

    ``device`` says the interval of rows that the link sets.
    """
    held, shape = set(roles), (len(compiled.rows), len(compiled.basis))
    weights, fresh, keys = np.zeros(shape), np.zeros(shape), np.zeros((shape[0], 1))
    for i, row in enumerate(compiled.rows):
        op = row.operator
        for w in op.weights:
            if "weights" in held and len(w.shape) > 1:
                weights[i] += compiled.vector(w.bytes)
        if "kv" in held and any(t.role == "kv" for t in (*op.reads, *op.writes)):
            keys[i], fresh[i] = 1.0, _fresh(op, compiled)
    regime = np.ones((1, shape[0]))
    spread = device.intervals[NETWORK]
    own = host.reasons
    return CrossingModel(
        compiled, host, weights, keys, fresh, bytes_s, energy_j, blocks,
        low=np.concatenate([host.low, regime * spread.low.value]),
        high=np.concatenate([host.high, regime * spread.high.value]),
        reasons=own if NETWORK in own else (*own, NETWORK),
    )  # fmt: skip


def _fresh(op: Operator, compiled: CompiledTrace) -> Array:
    """Coefficients of the bytes that ``op`` reads of keys and values of the tokens at work; zeros for an append."""
    found = np.zeros(len(compiled.basis))
    query, length = op.dims.get("query"), op.dims.get("kv")
    if query is None or length is None:
        return found
    for t in op.reads:
        if t.role == "kv" and length in t.shape:
            sizes = [query if size == length else size for size in t.shape]
            found += compiled.vector(product(sizes) * (t.bits / 8))
    return found
