"""GPUs: matmuls and attention by what their kernels must do, element-wise kernels by rows, collectives by step.

The roofline (:mod:`.roofline`) supplies the sizes, energies and whatever has no kernel model: scans,
attention in latent space. Over it:

    matmul, router       :mod:`.gemm`: best of a library's tiles and splits
    experts              :mod:`.moe`: two grouped GEMMs over padded tiles
    attention, kv_append :mod:`.attention`: the cache write is the append's, everything else attention's
    everything else      :mod:`.elementwise`

Weights narrower than the arithmetic are moved as stored and cost their dequantisation on the vector units,
which overlaps. Their kernels (of a third library) are taken to be as good as the 16-bit ones.
Left out: overlap between operators, programmatic launches, and kernels that fuse neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..workloads.compiled import CompiledTrace, Row
from ..workloads.expr import Expr, expr
from ..workloads.expr_functions import Array
from ..workloads.trace import Operator, Tensor
from . import elementwise, roofline
from .attention import attention_kernels, attention_parts, write_time
from .attention_mixed import MixedCall
from .card import card_of
from .cost import Errors, RowCosts
from .gemm import LIMITS, gemm_kernels, gemm_kernels_8bit, gemm_time
from .gemm_table import Place, experts_table, gemm_table, place
from .moe import NAIVE_OVERHEAD, moe_kernels
from .sampler import sampler_time
from .spec import Device
from .units import Quantity, number_format

KINDS = ("gpu",)
ROOFLINE_KINDS = frozenset({"collective", "scan", "attention"})
"""Operators without a kernel model of their own (attention: in latent space)."""
REASONS = ("compute", "dram", "l2", "dequantisation", "network")
WORK = ("compute", "dram")
"""Resources whose time is known of every row, whatever binds it: the roofline's."""
ONE = expr(1)
SMALL = 0.25
"""Share of its start in a kernel's time from which its errors are those of small kernels."""
_BOUND = {"compute": "compute", "power": "compute", "load": "l2"}
_BY_LIMIT = np.array([REASONS.index(_BOUND.get(limit, "dram")) for limit in LIMITS])

Index = npt.NDArray[np.intp]
Answer = tuple[Array, Index | int]
"""Seconds beyond the launch, and index into :data:`REASONS` of what bound them."""


class Points:
    """Points of a trace, (monomials, points), and sizes at them, each worked out once."""

    def __init__(self, compiled: CompiledTrace, basis: Array) -> None:
        self._compiled, self._basis = compiled, basis
        self._sizes: dict[Expr, Array] = {}
        self._places: dict[Expr, Place] = {}

    def __call__(self, size: Expr) -> Array:
        """``size`` at every point, (points,)."""
        if size not in self._sizes:
            self._sizes[size] = self._compiled.vector(size) @ self._basis
        return self._sizes[size]

    def place(self, size: Expr) -> Place:
        """Where ``size`` is in the tables of GEMMs."""
        if size not in self._places:
            self._places[size] = place(self(size))
        return self._places[size]

    def of(self, coefficients: Array) -> Array:
        """A quantity by its coefficients over the basis."""
        return np.asarray(coefficients @ self._basis)


@dataclass(frozen=True)
class Kernel:
    """A row with a kernel model: what it takes at points, (points,)."""

    row: int
    launch_s: float
    time: Callable[[Points], Answer]


@dataclass(frozen=True)
class GpuModel:
    """See :class:`.cost.OperatorModel`; built by :func:`prepare`."""

    compiled: CompiledTrace
    base: roofline.RooflineModel
    kernels: tuple[Kernel, ...]
    launch: Array
    low: Array
    high: Array
    work: Array
    reasons: tuple[str, ...] = REASONS

    @property
    def static_power_w(self) -> float:
        return self.base.static_power_w

    @property
    def power_interval(self) -> tuple[float, float]:
        return self.base.power_interval

    @property
    def errors(self) -> Errors:
        return self.base.errors

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`."""
        times = self.base.resources(basis)
        overlapped, of_base = roofline.longest(times)
        bound = np.array([REASONS.index(r) for r in self.base.reasons])[of_base]
        at = Points(self.compiled, basis)
        for kernel in self.kernels:
            seconds, reason = kernel.time(at)
            # What the roofline still charges (dequantisation, flat streams) overlaps with the kernel.
            slower = seconds >= overlapped[kernel.row]
            bound[kernel.row] = np.where(slower, reason, bound[kernel.row])
            overlapped[kernel.row] = np.where(slower, seconds, overlapped[kernel.row])
        launch = np.broadcast_to(self.launch[:, None], overlapped.shape)
        time = overlapped + launch
        regime = np.where(launch > SMALL * time, len(REASONS), bound)
        energy = self.base.energies(basis, time)
        return RowCosts(time, launch, bound, regime, energy, self.busy(basis, times, overlapped, bound))

    def busy(self, basis: Array, times: Array, overlapped: Array, bound: Index) -> dict[str, Array]:
        """Seconds that a row keeps each resource: its operations and bytes at the share of the rate that large
        kernels reach, never longer than the row itself; the L2 all the time where it binds.

        What a kernel takes beyond that (a last wave that fills few multiprocessors, pipelines that fill) keeps
        nothing that another kernel could not use.
        """
        work = (self.work @ basis).reshape(len(WORK), *overlapped.shape)
        busy = {reason: np.minimum(w, overlapped) for reason, w in zip(WORK, work, strict=True)}
        busy["l2"] = np.where(bound == REASONS.index("l2"), overlapped, 0.0)
        others = {r: t for r, t in zip(self.base.reasons, times, strict=True) if r not in WORK}
        return busy | {reason: np.minimum(t, overlapped) for reason, t in others.items()}


def constants(device: Device) -> list[str]:
    """What the times of ``device``'s kernels rest on, a line per family."""
    lines = []
    for family, held in device.kernels.items():
        sources = dict.fromkeys(q.source for q in held.values() if isinstance(q, Quantity))
        library = f" of {held['library']}" if "library" in held else ""
        lines.append(f"kernels.{family}{library}: {'; '.join(sources)}")
    return lines


def prepare(compiled: CompiledTrace, device: Device) -> GpuModel:
    """Kernel models of every row on ``device``. Raises ``InputError`` for what the device lacks."""
    base = roofline.prepare(compiled, device)
    maker = _Maker(compiled, device)
    times, launch, kernels = (
        base.matrix.reshape(len(base.reasons), len(compiled.rows), -1).copy(),
        base.launch.copy(),
        [],
    )
    compute, dram = (base.reasons.index(reason) for reason in WORK)
    work = np.concatenate([times[compute], times[dram]])
    for i, row in enumerate(compiled.rows):
        kernel = maker.kernel(i, row)
        if kernel is not None:
            times[[compute, dram], i] = 0.0
            launch[i] = kernel.launch_s
            kernels.append(kernel)
        elif row.operator.kind not in ROOFLINE_KINDS:
            launch[i] = maker.flat.launch_s
            if maker.flat.cache_share:  # no longer proportional to bytes
                times[dram, i] = 0.0
            else:
                times[dram, i] = maker.moved(i) / elementwise.bandwidth(row.operator.kind, maker.card, maker.flat)
            if maker.flat.cache_share or row.operator.kind in elementwise.SHARES:
                kernels.append(maker.by_rows(i, row))
    low, high = roofline.sides(compiled, device, (*REASONS, "small"))
    base = replace(base, matrix=times.reshape(base.matrix.shape))
    return GpuModel(compiled, base, tuple(kernels), launch, low, high, work)


def sampling(device: Device, vocabulary: float) -> Callable[[Array], Array]:
    """Seconds of the greedy sampler over the number of sequences (:mod:`.sampler`)."""
    card, flat = card_of(device), elementwise.elementwise_constants(device)
    return lambda sequences: sampler_time(sequences, vocabulary, card, flat)


def mixed_attention(compiled: CompiledTrace, device: Device) -> Callable[..., float] | None:
    """Seconds of all attention of one pass over (chunks, n, keys on average, keys at most), as
    :meth:`.attention_mixed.MixedCall.seconds`; ``None`` where some layer has a window or a latent cache."""
    calls = []
    for row in compiled.rows:
        op, d = row.operator, row.operator.dims
        if op.kind == "scan" or (op.kind == "attention" and ("latent_dim" in d or "window" in d)):
            return None
        if op.kind == "attention":
            bits = _bits(op.reads, "kv")
            h, hk, width, value = (int(d[x].constant or 1) for x in ("heads", "kv_heads", "head_dim", "value_dim"))
            call = MixedCall(h, hk, width, value, card_of(device), *attention_kernels(device, bits), bits)
            calls.append((row.count, call))

    if len(calls) == 1:  # all layers alike: no sum to make at every iteration
        [(count, call)] = calls
        return lambda chunks, n, kv, kv_max: count * call.seconds(chunks, n, kv, kv_max)

    def seconds(chunks: Sequence[tuple[int, int]], n: int, kv: float, kv_max: float) -> float:
        return sum(count * call.seconds(chunks, n, kv, kv_max) for count, call in calls)

    return seconds


class _Maker:
    """Kernels of one trace on one device."""

    def __init__(self, compiled: CompiledTrace, device: Device) -> None:
        self.compiled, self.device = compiled, device
        self.card, self.flat = card_of(device), elementwise.elementwise_constants(device)

    def rate(self, op: Operator) -> float:
        """Peak FLOP/s of the arithmetic of ``op`` at the clock the card runs at."""
        return self.device.rate(op.format)[1].value * self.card.boost

    def moved(self, i: int) -> Array:
        """Coefficients of the bytes that row ``i`` moves."""
        c = self.compiled.coefficients
        moved: Array = c["weight_bytes"][i] + c["kv_bytes"][i] + c["activation_bytes"][i]
        return moved

    def kernel(self, i: int, row: Row) -> Kernel | None:
        """The kernel of a row that has a model of its own."""
        op = row.operator
        if op.kind in ("matmul", "router"):
            return self.gemm(i, op)
        if op.kind == "attention" and "latent_dim" not in op.dims:
            return self.attention(i, op)
        if op.kind == "experts":
            return self.experts(i, op)
        return self.append(i, op) if op.kind == "kv_append" else None

    def gemm(self, i: int, op: Operator) -> Kernel:
        """A linear layer: its table by m; any other product, shape by shape."""
        constants, kernels = gemm_kernels(self.device)
        rate, bits = self.rate(op), _bits(op.reads, "activation")
        if number_format(op.format).bits <= 8:
            eight, kernels = gemm_kernels_8bit(self.device)
            rate *= eight.rate_share
        weight_bits, out_bits = _bits(op.weights, "weight", bits), _bits(op.writes, "activation")
        launch_s = constants.launch_clocks / self.card.clock_hz
        sizes = [op.dims.get(name, ONE) for name in ("m", "n", "k", "batch")]
        n, k, batch = (x.constant for x in sizes[1:])
        if n is not None and k is not None and batch is not None:
            table = gemm_table(
                n, k, self.card, constants, kernels,
                rate=rate, bits=bits, weight_bits=weight_bits, out_bits=out_bits, batch=batch,
            )  # fmt: skip

            def of_weights(at: Points) -> Answer:
                seconds, limit = table.at(at.place(sizes[0]))
                return seconds - launch_s, reason_of_limit(limit)

            return Kernel(i, launch_s, of_weights)

        def of_shapes(at: Points) -> Answer:
            shapes = np.stack([at(size) for size in sizes])
            unique, back = np.unique(shapes, axis=1, return_inverse=True)
            seconds, limit = gemm_time(
                unique[0], unique[1], unique[2], self.card, constants, kernels,
                rate=rate, bits=bits, weight_bits=weight_bits, out_bits=out_bits, batch=unique[3],
            )  # fmt: skip
            return seconds[back] - launch_s, reason_of_limit(limit[back])

        return Kernel(i, launch_s, of_shapes)

    def experts(self, i: int, op: Operator) -> Kernel:
        """Fused experts: their table by tokens. The shortest start is the one that all times have in them."""
        bits, weight_bits = number_format(op.format).bits, _bits(op.weights, "weight")
        constants, kernels = moe_kernels(self.device, bits, weight_bits)
        hidden, inner, experts, top_k = (op.dims[x].constant or 1 for x in ("hidden", "inner", "experts", "top_k"))
        launch_s = NAIVE_OVERHEAD * constants.overhead_s
        table = experts_table(
            hidden, inner, experts, top_k, self.card, gemm_kernels(self.device)[0], constants, kernels,
            rate=self.rate(op), bits=bits, weight_bits=weight_bits,
            gated=bool(op.attrs["gated"]), imbalance=float(op.attrs.get("imbalance", 0.0)),
        )  # fmt: skip

        def time(at: Points) -> Answer:
            seconds, stream = table.at(at.place(op.dims["tokens"]))
            return seconds - launch_s, stream

        return Kernel(i, launch_s, time)

    def attention(self, i: int, op: Operator) -> Kernel:
        d, bits = op.dims, _bits(op.reads, "kv")
        constants, kernel = attention_kernels(self.device, bits)
        heads, kv_heads, head_dim, value_dim = (
            d[x].constant or 1 for x in ("heads", "kv_heads", "head_dim", "value_dim")
        )
        window = d["window"].constant if "window" in d else None
        skew, longer = float(op.attrs.get("skew", 1.0)), float(op.attrs.get("longer", 0.0))

        def time(at: Points) -> Answer:
            batch, kv = at(d["batch"]), at(d["kv"])
            most = np.minimum(skew, batch) * kv + longer
            parts = attention_parts(
                batch, at(d["query"]), kv, heads, kv_heads, head_dim, value_dim,
                self.card, constants, kernel, kv_max=most, window=window, bits=bits,
            )  # fmt: skip
            return np.hypot(parts.compute, parts.memory) + parts.rest, np.where(parts.compute > parts.memory, 0, 1)

        return Kernel(i, constants.launch_s, time)

    def append(self, i: int, op: Operator) -> Kernel:
        """The cache write: its launch is in attention's."""
        bits = _bits(op.writes, "kv")
        constants, _ = attention_kernels(self.device, bits)
        d, elements = op.dims, op.dims["row_elements"].constant or 1

        def time(at: Points) -> Answer:
            return write_time(at(d["batch"]) * at(d["tokens"]), elements, self.card, constants, bits), REASONS.index(
                "dram"
            )

        return Kernel(i, 0.0, time)

    def by_rows(self, i: int, row: Row) -> Kernel:
        """A kernel with a block of threads per token: the elements of a token are the factor of its size.

        Where L2 keeps operands its stream is here too, and kinds without rows are nothing but that.
        """
        kind, moved, dram = row.operator.kind, self.moved(i), REASONS.index("dram")
        elements = row.operator.dims.get("elements", ONE)
        width = float(np.abs(self.compiled.vector(elements)).max())

        def time(at: Points) -> Answer:
            rows, operands = at(elements) / width, at.of(moved)
            seconds = elementwise.row_time(kind, rows, operands / rows, self.card, self.flat)
            if self.flat.cache_share:
                seconds = np.maximum(seconds, elementwise.stream_time(kind, operands, self.card, self.flat))
            return seconds, dram

        return Kernel(i, self.flat.launch_s, time)


def reason_of_limit(limit: Index) -> Index:
    """Index into :data:`REASONS` of a GEMM's limit; its fixed times go with DRAM."""
    return np.asarray(_BY_LIMIT[limit])


def _bits(tensors: tuple[Tensor, ...], role: str, otherwise: float = 16.0) -> float:
    """Stored bits per element of the first tensor of ``role``."""
    return next((float(t.bits) for t in tensors if t.role == role), otherwise)
