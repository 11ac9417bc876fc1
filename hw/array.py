"""Devices made of arrays of a hardware unit: products by the unit's own cycle model, the rest on a vector engine.

The unit is a folder of ``rtl/``; its ``cycles(shape, format, config)`` is the function that is held equal to the
RTL. A product of m vectors, n outputs and k inputs is cut into tiles of what the unit computes at a time
(``tile``: R × C outputs); P arrays take ⌈tiles / P⌉ of them each, one after another:

    compute = cycles(m = R, n = C · ⌈tiles / P⌉, k) / clock
    tiles   = products · ⌈m / R⌉ · ⌈n / C⌉

    time = launch + max(compute, vector, dram, network)

    matmul      one product (``batch`` of them); router: on the vector engine where the arrays do not take its format
    attention   per sequence and head of keys two products, the keys or values being the weights: n = attended
                tokens, k = head size, and the reverse; the query heads of a group are rows. Tiles above the
                diagonal are skipped: n is the mean over the queries. Softmax: 5 operations per score on the
                vector engine. Scales of cached vectors are taken into queries and probabilities
    experts     for every expert that is routed to, products of its mean number of tokens: gate and up, then down
    dram        bytes of the trace, and what is fetched again: where neither a product's weights nor its inputs fit
                in their buffers, the cheaper of the two is read once for every bufferful of the other

Formats that the unit does not take run on the matrix engine if the device has one; else they are refused.

Energy: an array's power for the tiles it computes; SRAM per bit that tiles read; DRAM per bit; vector operations;
idle power over the whole time. Left out: overlap between operators, activations that stay on the chip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..errors import InputError
from ..rtl.areas import macs_per_cycle, relative_area
from ..rtl.units import Unit, load_unit
from ..workloads.compiled import CompiledTrace, Row, compile_trace
from ..workloads.expr import Expr
from ..workloads.expr_functions import Array
from ..workloads.trace import Operator, Tensor, Trace
from .cost import RowCosts
from .parameters import parameter
from .parts import Certainty, certainty, collectives_of, dram_rate, launches, network_s, vector_rate
from .roofline import MATRIX_KINDS, Collective, dram_energy, longest
from .spec import Arrays, Device, Memory

KINDS = ("bit-serial", "systolic")
REASONS = ("compute", "dram", "network")
SOFTMAX_FLOPS = 5
"""Operations per score: subtract the maximum, exponential, sum, and twice a share for maximum and division."""

At = Callable[[Expr], Array]


@dataclass(frozen=True)
class Product:
    """``count`` products of ``m`` vectors, ``n`` outputs and ``k`` inputs, whole numbers, (points,) each."""

    count: Array
    m: Array
    n: Array
    k: Array


@dataclass(frozen=True)
class Work:
    """What the arrays do of a row: its products at points, their formats, stored bits of their operands.

    ``group``: weights that share a scale, 0 where the trace does not say.
    """

    row: int
    products: Callable[[At], list[Product]]
    format: dict[str, str]
    weight_bits: float
    activation_bits: float
    group: int = 0


@dataclass(frozen=True)
class Engine:
    """The arrays of a device: unit, its parameters, how many, clock (Hz), watts of one that works.

    ``buffers`` are capacities in bytes, of weights and of activations; ``sram_j`` their energies per bit.
    """

    unit: Unit
    config: dict[str, int]
    count: int
    clock_hz: float
    power_w: float
    buffers: tuple[float, float]
    sram_j: tuple[float, float]

    def cost(self, product: Product, work: Work) -> tuple[Array, Array, Array, Array]:
        """Of the product: seconds, joules of arrays, joules of SRAM, bytes that are fetched again."""
        rows, columns = self.unit.tile(work.format, self.config)
        tiles = product.count * -(-product.m // rows) * -(-product.n // columns)
        each = -(-tiles // self.count)
        shape = {"m": rows, "n": columns * each, "k": product.k} | ({"group": work.group} if work.group else {})
        seconds = self.unit.cycles(shape, work.format, self.config) / self.clock_hz
        bits = rows * work.activation_bits * self.sram_j[1] + columns * work.weight_bits * self.sram_j[0]
        held = product.n * product.k * work.weight_bits / 8, product.m * product.k * work.activation_bits / 8
        fills = [np.maximum(np.ceil(size / room) - 1, 0) for size, room in zip(held, self.buffers, strict=True)]
        again = product.count * np.minimum(fills[1] * held[0], fills[0] * held[1])
        return seconds, self.power_w * seconds * tiles / each, tiles * product.k * bits, again


@dataclass(frozen=True)
class ArrayModel(Certainty):
    """See :class:`.cost.OperatorModel`; built by :func:`prepare`.

    ``fixed_s`` are seconds and ``moved`` bytes that are linear in the basis, (rows, monomials).
    """

    compiled: CompiledTrace
    engine: Engine
    work: tuple[Work, ...]
    fixed_s: Array
    moved: Array
    collectives: tuple[Collective, ...]
    launch: Array
    dram_bytes_s: float
    dram_j: float
    vector_j: Array
    reasons: tuple[str, ...] = REASONS

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`."""
        compute, moved = self.fixed_s @ basis, self.moved @ basis
        arrays_j, sram_j = np.zeros_like(compute), np.zeros_like(compute)
        network = network_s(self.collectives, basis, len(compute))

        def at(size: Expr) -> Array:
            return np.asarray(self.compiled.vector(size) @ basis)

        for work in self.work:
            spent = np.zeros(basis.shape[1])
            for product in work.products(at):
                seconds, joules, sram, again = self.engine.cost(product, work)
                spent += seconds
                arrays_j[work.row] += joules
                sram_j[work.row] += sram
                moved[work.row] += again
            compute[work.row] = np.maximum(compute[work.row], spent)
        times = np.stack([compute, moved / self.dram_bytes_s, network])
        busy = dict(zip(REASONS, times, strict=True))
        overlapped, bound = longest(times)
        launch = np.broadcast_to(self.launch[:, None], overlapped.shape)
        energy = {
            "compute": arrays_j + self.vector_j @ basis, "sram": sram_j, "dram": moved * 8 * self.dram_j,
        }  # fmt: skip
        return RowCosts(overlapped + launch, launch, bound, bound, energy, busy)


def prepare(compiled: CompiledTrace, device: Device) -> ArrayModel:
    """What every row does on ``device``. Raises ``InputError`` for what the device lacks or its unit cannot do."""
    engine = engine_of(device)
    coefficients = compiled.coefficients
    fixed, flops = np.zeros_like(coefficients["flops"]), np.zeros_like(coefficients["flops"])
    work = []
    for i, row in enumerate(compiled.rows):
        op = row.operator
        if op.kind == "collective":
            continue
        if op.kind in MATRIX_KINDS and (found := work_of(i, row, engine, device)) is not None:
            work.append(found)
            if op.kind == "attention":
                flops[i] = coefficients["flops"][i] * SOFTMAX_FLOPS / _flops_per_score(op)
        elif op.kind in MATRIX_KINDS and "matrix" in device.engines:
            rate = device.rate(op.format)[1].value
            fixed[i] = coefficients["flops"][i] / (rate * device.model.matmul_efficiency.value)
        else:
            flops[i] = coefficients["flops"][i]
    return ArrayModel(
        compiled=compiled, engine=engine, work=tuple(work), fixed_s=fixed + flops / vector_rate(device),
        moved=coefficients["weight_bytes"] + coefficients["kv_bytes"] + coefficients["activation_bytes"],
        collectives=collectives_of(compiled, device), launch=launches(compiled, device),
        dram_bytes_s=dram_rate(device), dram_j=dram_energy(device),
        vector_j=flops * parameter(device, "vector_energy") + fixed * _matrix_power(device),
        **certainty(compiled, device, REASONS),
    )  # fmt: skip


def engine_of(device: Device) -> Engine:
    """The arrays of ``device``. Raises ``InputError`` where it has none, or parameters its unit refuses."""
    arrays = _arrays(device)
    try:
        unit = load_unit(arrays.unit)
    except InputError as error:
        raise InputError(f"device {device.name}: arrays.unit: {error}") from None
    try:
        config = unit.check({name.upper(): round(q.value) for name, q in arrays.parameters.items()})
    except InputError as error:
        raise InputError(f"device {device.name}: arrays.parameters: {error}") from None
    levels = [device.memory.get(name) for name in ("weights", "activations")]
    return Engine(
        unit, config, arrays_count(device), device.compute.clock.value, arrays.power.value,
        (levels[0].capacity.value if levels[0] else np.inf, levels[1].capacity.value if levels[1] else np.inf),
        (_bit_energy(levels[0]), _bit_energy(levels[1])),
    )  # fmt: skip


def arrays_count(device: Device) -> int:
    """How many arrays ``device`` has."""
    per_unit = _arrays(device).per_unit
    return round(device.compute.units.value * (per_unit.value if per_unit else 1))


def constants(device: Device) -> list[str]:
    """What the times of ``device`` rest on, a line each."""
    m = device.model
    return [
        f"products take the cycles of {_arrays(device).unit}'s cycle model, which its RTL is held equal to",
        f"streams reach {m.memory_efficiency.text} of bandwidth: {m.memory_efficiency.source}",
    ]


def peak(trace: Trace, device: Device) -> tuple[str, float]:
    """The arrays' fastest pair of formats among the products of ``trace``, and their FLOP/s in it."""
    engine = engine_of(device)
    rows = compile_trace(trace).rows
    work = [found for i, row in enumerate(rows) if row.operator.kind in MATRIX_KINDS
            if (found := work_of(i, row, engine, device)) is not None]  # fmt: skip
    rates = {tuple(w.format.values()): macs_per_cycle(engine.unit, engine.config, w.format) for w in work}
    if not rates:
        name, quantity = device.rate(trace.format)
        return name, quantity.value
    pair, rate = max(rates.items(), key=lambda x: x[1])
    return " by ".join(pair), 2 * rate * engine.count * engine.clock_hz


def array_area(device: Device, format: Mapping[str, str] | None = None) -> float:
    """Square millimetres of one array: as its designers give it, else of this RTL (:func:`rtl_area`).

    Raises ``InputError`` where the device file has no ``arrays.area`` and no ``format`` is given.
    """
    arrays = _arrays(device)
    if arrays.area is not None:
        return arrays.area.value
    if format is None:
        raise InputError(f"device {device.name}: arrays.area is missing; give a pair of formats for that of the RTL")
    return rtl_area(device, format)


def arrays_area(device: Device, format: Mapping[str, str]) -> float:
    """Square millimetres of all arrays of ``device`` by :func:`rtl_area`."""
    return rtl_area(device, format) * engine_of(device).count


def rtl_area(device: Device, format: Mapping[str, str]) -> float:
    """Square millimetres of one array, by the area of its unit relative to a binary16 multiplier-accumulator.

    ``format``: of the unit, one whose area was compared (``tokenfab rtl area --compare``); the arrays are taken to
    be as large per multiply-accumulate as those that were. Raises ``InputError`` without ``arrays.mac_area``.
    """
    engine, arrays = engine_of(device), _arrays(device)
    if arrays.mac_area is None:
        raise InputError(f"device {device.name}: arrays.mac_area is missing; the arrays' area cannot be told")
    each = macs_per_cycle(engine.unit, engine.config, format) * relative_area(arrays.unit, format, engine.config)
    return each * arrays.mac_area.value


def work_of(i: int, row: Row, engine: Engine, device: Device) -> Work | None:
    """What the arrays do of a row; None where another engine does it."""
    op, arrays = row.operator, _arrays(device)
    products = _PRODUCTS.get(op.kind if "latent_dim" not in op.dims else "latent")
    second = _second(op)
    stored, _, group = second.format.partition("-g")
    format = {
        "weight": arrays.weights.get(stored, stored),
        "activation": arrays.activations.get(op.format, op.format),
    }  # fmt: skip
    problem = (
        "its arrays have no product for attention in latent space" if products is None else _refusal(engine, format)
    )
    if products is not None and not problem:
        activation = next((t.bits for t in op.reads if t.role == "activation"), 16.0)
        shared = int(group) if group and second.role == "weight" else 0  # scales of the cache are taken elsewhere
        return Work(i, partial(products, op), format, float(second.bits), float(activation), shared)
    if "matrix" in device.engines or op.kind == "router":
        return None
    raise InputError(
        f"device {device.name}: {row.names[0]} multiplies {op.format} by {second.format}: {problem}; "
        + _hint(second, arrays)
    )


def _hint(second: Tensor, arrays: Arrays) -> str:
    """What would make a refused product possible."""
    if second.bits < 16:
        return f"[arrays.weights] and [arrays.activations] say as what {arrays.unit} takes a format"
    return {"weight": "try --apply weight-only:head=1", "kv": "try --apply kv-quant"}.get(
        second.role, "another device is needed"
    )


def _second(op: Operator) -> Tensor:
    """The operand that takes the place of weights: weights, cached keys and values, or the other activation."""
    by_role = [t for role in ("weight", "kv") for t in op.reads if t.role == role and len(t.shape) > 1]
    return (by_role or [t for t in op.reads if t.role == "activation"][1:] or list(op.reads))[0]


def _refusal(engine: Engine, format: dict[str, str]) -> str:
    """Why the unit does not take ``format``; empty where it does."""
    try:
        engine.unit.cycles({"m": 1, "n": 1, "k": 1}, format, engine.config)
    except InputError as error:
        return str(error)
    return ""


def _whole(size: Array) -> Array:
    return np.maximum(np.ceil(np.round(size, 6)), 1).astype(np.int64)


def _matmul(op: Operator, at: At) -> list[Product]:
    count = at(op.dims["batch"]) if "batch" in op.dims else np.ones(())
    m, n, k = (at(op.dims[name]) for name in ("m", "n", "k"))
    return [Product(*map(_whole, (count, m, n, k)))]


def _attention(op: Operator, at: At) -> list[Product]:
    d = op.dims
    heads, kv_heads, head_dim, value_dim = (
        int(d[x].constant or 1) for x in ("heads", "kv_heads", "head_dim", "value_dim")
    )
    batch, query = at(d["batch"]), at(d["query"])
    attended = at(op.flops) / (2 * heads * (head_dim + value_dim)) / batch / query  # tokens a query sees, on average
    count, m, n = _whole(batch * kv_heads), _whole(query * heads / kv_heads), _whole(attended)
    one = np.ones_like(n)
    return [Product(count, m, n, one * head_dim), Product(count, m, one * value_dim, n)]


def _experts(op: Operator, at: At) -> list[Product]:
    d = op.dims
    hidden, inner, experts, top_k = (int(d[x].constant or 1) for x in ("hidden", "inner", "experts", "top_k"))
    first = op.weights[0]
    share = (first.elements.constant or 1) / experts
    busy = np.minimum(at(first.touched) / share if first.touched is not None else experts, experts)
    count, m = _whole(busy), _whole(at(d["tokens"]) * top_k / busy)
    one = np.ones_like(m)
    up = inner * (2 if op.attrs["gated"] else 1)
    return [Product(count, m, one * up, one * hidden), Product(count, m, one * hidden, one * inner)]


_PRODUCTS: dict[str, Callable[[Operator, At], list[Product]]] = {
    "matmul": _matmul, "router": _matmul, "attention": _attention, "experts": _experts,
}  # fmt: skip


def _flops_per_score(op: Operator) -> float:
    return 2 * sum(op.dims[name].constant or 1 for name in ("head_dim", "value_dim"))


def _arrays(device: Device) -> Arrays:
    if device.arrays is None:
        raise InputError(f"device {device.name}: a {device.kind} device needs [arrays], the unit it is made of")
    return device.arrays


def _bit_energy(level: Memory | None) -> float:
    return level.energy.value if level and level.energy else 0.0


def _matrix_power(device: Device) -> float:
    """Watts of the matrix engine while it works: what is left of the rated power."""
    return device.power.tdp.value - device.power.idle.value if "matrix" in device.engines else 0.0


def products_of(op: Operator) -> Callable[[At], list[Product]] | None:
    """Products of ``op`` at points; None where no unit computes it (attention in latent space, what is no product)."""
    found = _PRODUCTS.get(op.kind if "latent_dim" not in op.dims else "latent")
    return None if found is None else partial(found, op)


def second_operand(op: Operator) -> Tensor:
    """The operand of a product that takes the place of weights: weights, the cache, or the other activation."""
    return _second(op)
