"""Storage devices: weights or cache in flash, and drives that compute attention where the cache lies.

Three arrangements, told apart by the device file:

    phone, PC       no host: the device's own engines (roofline) with a ``flash`` level that holds far weights
    offloading      ``host``: its model does the arithmetic, what is far comes over ``links.pcie`` (:mod:`.far`)
    computational   ``host``, and a level that holds ``kv``: the cache is in the drive. Attention runs on the host,
                    which fetches it, or in the drive (:mod:`.split`), wherever it ends first

Attention in the drive (:class:`DriveAttention`; InstInfer, arXiv:2409.04992), all its units at work on a stream:

    flash    bytes of the context, whole pages (``overfetch``) / (bandwidth inside × ``channel_share``)
    filter   the same bytes / filter rate: drops what a page holds beside what was asked for
    gemv     FLOPs of the two products / GeMV rate
    softmax  scores of all heads / softmax rate
    time     launch + page read + max(flash, filter, gemv, softmax), and the link for queries and results

bandwidth inside = that of the channels and dies (:class:`.flash.Nand`). A prompt has no context yet: its attention is
the host's, and its keys and values are written to the drive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..workloads.compiled import CompiledTrace
from ..workloads.expr_functions import Array
from ..workloads.formulas import attention_flops
from . import roofline
from .cost import OperatorModel, RowCosts
from .cost import prepare as model_of
from .far import cache_transfer, far_model, level_of, path_of, transfers_of
from .flash import nand_of
from .parameters import parameter
from .parts import Certainty
from .roofline import errors_of, power_interval
from .spec import Device
from .split import Link, Rule, split_model

KINDS = ("storage",)
HOST_APART = True
REASONS = ("flash", "filter", "gemv", "softmax")


@dataclass(frozen=True)
class DriveAttention(Certainty):
    """See :class:`.cost.OperatorModel` and :class:`.split.NearModel`. Matrices are (rows, monomials)."""

    takes: npt.NDArray[np.bool_]
    context: tuple[Array, Array]
    cache: Array
    overfetch: Array
    flops: Array
    scores: Array
    launch_s: float
    rates: dict[str, float]
    read_j: float
    flop_j: float
    reasons: tuple[str, ...] = REASONS

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`; rows it does not take are zero."""
        cached, every = (x @ basis for x in self.context)
        share = np.divide(cached, every, out=np.zeros_like(every), where=every > 0)
        fetched = (self.cache @ basis) * share * self.overfetch[:, None]
        flops, scores = self.flops @ basis, self.scores @ basis
        work = {"flash": fetched, "filter": fetched, "gemv": flops, "softmax": scores}
        times = np.stack([work[name] / self.rates[name] for name in REASONS])
        overlapped, bound = np.max(times, axis=0), np.argmax(times, axis=0)
        launch = np.broadcast_to(np.where(self.takes, self.launch_s, 0.0)[:, None], overlapped.shape)
        energy = {"storage": fetched * 8 * self.read_j, "compute": flops * self.flop_j}
        regime = np.zeros_like(bound)
        return RowCosts(overlapped + launch, launch, bound, regime, energy, dict(zip(REASONS, times, strict=True)))


def prepare(compiled: CompiledTrace, device: Device) -> OperatorModel:
    """The model of a storage device. Raises ``InputError`` for what the device or its host lacks."""
    if device.host is None:
        base: OperatorModel = roofline.prepare(compiled, device)
    else:
        base = host_model(compiled, device)
    near = [name for name, level in device.memory.items() if "kv" in level.roles] if device.host is not None else []
    found = transfers_of(compiled, device)
    if not near:
        return far_model(base, device, found)
    drive = path_of(device, near[0])
    for i, row in enumerate(compiled.rows):
        if row.operator.kind in ("attention", "kv_append"):
            found.append(cache_transfer(i, row, compiled, drive, 1.0))
    return split_model(
        compiled, far_model(base, device, found, alone=False), drive_attention(compiled, device),
        rule=Rule("fastest", kinds=frozenset({"attention"})), device=device, link=_link(device),
    )  # fmt: skip


def host_model(compiled: CompiledTrace, device: Device) -> OperatorModel:
    """The model of ``device``'s host. Raises ``InputError`` for what the host lacks."""
    assert device.host is not None
    return model_of(compiled, device.host)[1]


def drive_attention(compiled: CompiledTrace, device: Device) -> DriveAttention:
    """What the attention units of ``device`` do of every row. Raises ``InputError`` for a parameter that is missing."""
    names = ("attention_units", "gemv_rate", "softmax_rate", "filter_rate", "channel_share")
    units, gemv, softmax, filtered, share = (parameter(device, name) for name in names)
    nand, n = nand_of(device), len(compiled.rows)
    width = len(compiled.basis)
    takes = np.array([r.operator.kind == "attention" and "latent_dim" not in r.operator.dims for r in compiled.rows])
    cached, every, scores = np.zeros((n, width)), np.zeros((n, width)), np.zeros((n, width))
    overfetch = np.ones(n)
    for i in np.flatnonzero(takes):
        op = compiled.rows[i].operator
        cached[i], every[i] = compiled.vector(op.dims["kv"] - op.dims["query"]), compiled.vector(op.dims["kv"])
        per_score = 2 * sum(op.dims[x].constant or 1 for x in ("head_dim", "value_dim"))
        scores[i] = compiled.vector(attention_flops(**op.dims) / per_score)  # of all keys, also where few are read
        overfetch[i] = float(op.attrs.get("overfetch", 1.0))
    mask = takes[:, None]
    interval = device.intervals.get("storage")
    if interval is None:
        raise InputError(f"device {device.name}: intervals.storage is missing; no estimate without an interval")
    level = level_of(device, "kv")
    energy = level.energy.value if level is not None and level.energy else 0.0
    return DriveAttention(
        takes=takes, context=(cached, every), cache=compiled.coefficients["kv_bytes"] * mask, overfetch=overfetch,
        flops=compiled.coefficients["flops"] * mask, scores=scores, launch_s=device.model.launch.value + nand.read_s,
        rates={
            "flash": nand.bandwidth * share, "filter": filtered * units,
            "gemv": gemv * units, "softmax": softmax * units,
        },
        read_j=energy, flop_j=(device.power.tdp.value - device.power.idle.value) / (gemv * units),
        low=np.full((1, n), interval.low.value), high=np.full((1, n), interval.high.value),
        errors=errors_of(compiled, device), static_power_w=device.power.idle.value,
        power_interval=power_interval(device),
    )  # fmt: skip


def _link(device: Device) -> Link:
    if "pcie" not in device.links:
        raise InputError(f"device {device.name}: links.pcie is missing; it is the way to the host")
    link = device.links["pcie"]
    return Link(link.latency.value, link.bandwidth.value * device.model.link_efficiency.value)
