"""FPGAs: products on DSP chains that skip the zeros of N:M weights, weights from HBM, activations on the chip.

The chains are a unit of ``rtl/``; a chain takes the cycles of the unit's own cycle model, the function that is held
equal to the RTL. :mod:`.fpga_design` says how many there are, how they are fed, and whether the part holds them.

    time    = gather + max(first load + compute, stream + last tile, vector, dequantisation, network)
    compute = the faster of two arrangements of the chains, instructions dealt out to R regions:
              vector  cycles(m,            n = outputs/chain · ⌈products · ⌈n / N_v⌉ / R⌉, k)
              matrix  cycles(m = packed,   n = outputs/chain · ⌈products · ⌈m / M_m⌉ · ⌈n / N_m⌉ / R⌉, k)
    stream  = (weights + cache) / channels of the weight buffers, within a region, + spilled / the same across regions

    sparse weights  blocks of the pattern take the beats of their mode of the chain, one after another; a pattern the
                    chain has no mode for, unstructured or of other groups, runs dense (its bytes are still fewer)
    gather          the first packed vectors are exchanged between regions, on one channel across regions, before the
                    first product can start; nothing hides it when decoding. None with one region, none for attention
                    (a head stays in its region)
    first load      a product finds its weight buffer empty: the first instruction's weights, of all regions at once
    last tile       the last instruction's cycles, after the stream has ended
    again           weights are streamed once per group of tokens whose inputs fit the weight buffer (matrix)
    spilled         activations of an operator beyond what stays on the chip (``memory.activations``), to and fro
    DDR             where weights and cache exceed HBM, what is over streams from ``memory.ddr``, beside HBM
    experts         one after another, each loaded while the one before computes; with the order by token
                    (technique ``expert-order``) loads and products take turns
    vector          norms and softmax pass twice; others once; ``element_lanes`` results per cycle and region. Softmax
                    is spread over the regions with its heads, the rest runs in each region on its own outputs

Formats: ``[arrays.weights]`` says as what the chain takes a stored format; narrower than that, weights are widened on
their way (``dequantisation_lanes`` per cycle and region). Activations are INT8 whatever the trace says.

Energy: DSP energy per multiply-accumulate that is done, weights and inputs read from buffers, DRAM per bit, energy
per element-wise operation, idle power (board, clocks, static) all the time.

Source: FlightLLM, FPGA 2024, arXiv:2401.03868, sections 3 to 5, and the configuration of its published simulator
(FlightLLM/flightllm_test_demo at 4a96251), not its correction factor. Left out: overlap between operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..rtl.areas import macs_per_cycle
from ..workloads.compiled import CompiledTrace, Row, compile_trace
from ..workloads.expr import Expr
from ..workloads.expr_functions import Array
from ..workloads.techniques.sparsity import blocks_of
from ..workloads.trace import Operator, Tensor, Trace
from . import array, fpga_placement
from .array import At, Product, products_of, second_operand
from .cost import RowCosts
from .fpga_design import ACTIVATION_BITS, Design, activation_bytes, design_of, resource_lines
from .parameters import parameter
from .parts import Certainty, certainty, collectives_of, launches, network_s
from .roofline import MATRIX_KINDS, Collective, dram_energy, longest
from .spec import Device

KINDS = ("fpga",)
placement = fpga_placement.placement
REASONS = ("compute", "dram", "vector", "dequantisation", "network")
REGIME = {"vector": "compute", "dequantisation": "compute"}
"""Reasons whose errors are those of another."""
MOVES = frozenset({"copy", "kv_append", "embedding"})
"""Kinds that move data and pass no engine."""
STEPWISE = frozenset({"scan", "convolution"})
"""Kinds that take a step of a lane per multiply-accumulate."""
PASSES = {"norm": 2, "attention": 2}
"""Times an element passes the element-wise engine; once where nothing is said (softmax and norms: section 3.3)."""


@dataclass(frozen=True)
class Work:
    """What the chains do of a row. ``modes``: (share of the inputs, sparsity of the chain's format), in any order.

    ``density`` of the multiply-accumulates is done. ``weight_bits`` are stored ones; ``exchanged``: inputs come from
    all regions; ``serial``: loads and products take turns.
    """

    row: int
    operator: Operator
    format: dict[str, str]
    modes: tuple[tuple[float, str], ...]
    weight_bits: float
    density: float
    exchanged: bool
    serial: bool


@dataclass(frozen=True)
class Spent:
    """Of one product at points: seconds of compute, of its first load and last tile, bytes fetched again, joules of
    multiply-accumulates are ``macs`` × an energy, ``read_bits`` those read from buffers."""

    compute: Array
    first: Array
    last: Array
    again: Array
    macs: Array
    read_bits: Array


@dataclass(frozen=True)
class FpgaModel(Certainty):
    """See :class:`.cost.OperatorModel`; built by :func:`prepare`. Matrices are (rows, monomials)."""

    compiled: CompiledTrace
    design: Design
    work: tuple[Work, ...]
    vector_s: Array
    widened_s: Array
    streamed: Array
    activations: Array
    cache: Array
    capacity: tuple[float, float]
    ddr_bytes_s: float
    weights_bytes: float
    collectives: tuple[Collective, ...]
    launch: Array
    energy_j: dict[str, float]
    vector_j: Array
    reasons: tuple[str, ...] = REASONS

    def rows(self, basis: Array) -> RowCosts:
        """See :class:`.cost.OperatorModel`."""
        d = self.design
        streamed, spilled = self.streamed @ basis, np.maximum(self.activations @ basis - d.resident, 0.0)
        vector, widened = self.vector_s @ basis, self.widened_s @ basis
        zero = np.zeros_like(streamed)
        compute, first, last = zero.copy(), zero.copy(), zero.copy()
        macs, read, launch = zero.copy(), zero.copy(), np.broadcast_to(self.launch[:, None], zero.shape).copy()
        serial = np.zeros(len(self.compiled.rows), bool)

        def at(size: Expr) -> Array:
            return np.asarray(self.compiled.vector(size) @ basis)

        for work in self.work:
            products = products_of(work.operator)
            assert products is not None
            i, serial[work.row] = work.row, work.serial
            for n, product in enumerate(products(at)):
                if work.serial:  # by token, one row at a time
                    product = _one_by_one(product, work.operator, at)
                spent = spend(d, product, work)
                compute[i] += spent.compute
                if n == 0:  # the second product's weights are loaded during the first
                    first[i], launch[i] = spent.first, launch[i] + self._gather(product, work)
                last[i] = spent.last
                streamed[i] += spent.again
                macs[i] += spent.macs
                read[i] += spent.read_bits
        stream = self._stream(streamed, basis) + spilled / d.crossing_bytes_s
        network = network_s(self.collectives, basis, len(zero))
        working = np.where(serial[:, None], compute + stream, compute + first)
        times = np.stack([working, stream + np.where(stream > 0, last, 0.0), vector, widened, network])
        overlapped, bound = longest(times)
        bound = np.where(serial[:, None] & (bound == 0) & (stream > compute), 1, bound)
        energy = {
            "dsp": macs * self.energy_j["mac"],
            "buffers": read * self.energy_j["buffer"],
            "vector": self.vector_j @ basis,
            "dram": (streamed + spilled) * 8 * self.energy_j["dram"],
        }
        busy = {"compute": np.minimum(compute, overlapped), "dram": np.minimum(stream, overlapped),
                "vector": vector, "dequantisation": widened, "network": network}  # fmt: skip
        return RowCosts(overlapped + launch, launch, bound, bound, energy, busy)

    def _gather(self, product: Product, work: Work) -> Array | float:
        """Seconds until the first packed vectors are in every region."""
        if not work.exchanged or self.design.regions == 1:
            return 0.0
        vectors = np.minimum(product.m, self.design.config["PACK"])
        return np.asarray(vectors * product.k * ACTIVATION_BITS / 8 / self.design.gather_bytes_s)

    def _stream(self, moved: Array, basis: Array) -> Array:
        """Seconds of weights and cache from HBM, and from DDR what HBM does not hold."""
        hbm, ddr = self.capacity
        held = self.weights_bytes + self.cache @ basis
        over = np.maximum(1 - hbm / np.maximum(held, 1.0), 0.0) if ddr else np.zeros_like(held)
        within = moved * (1 - over) / self.design.stream_bytes_s
        return np.asarray(np.maximum(within, moved * over / self.ddr_bytes_s) if ddr else within)


def prepare(compiled: CompiledTrace, device: Device) -> FpgaModel:
    """What every row does on ``device``. Raises ``InputError`` for what the device lacks, a design its part does not
    hold, and formats its chains do not take."""
    design = design_of(device)
    c, constants = compiled.coefficients, device.model
    lanes = design.element_lanes * design.regions * design.clock_hz
    vector, flops, activations = np.zeros_like(c["flops"]), np.zeros_like(c["flops"]), np.zeros_like(c["flops"])
    widened = c["weight_elements"] / (design.dequantisation_lanes * design.regions * design.clock_hz)
    work = []
    for i, row in enumerate(compiled.rows):
        op = row.operator
        activations[i] = compiled.vector(activation_bytes(op))
        if op.kind == "collective":
            continue
        if op.kind in MATRIX_KINDS:
            work.append(_work(i, row, design, device))
            widened[i] *= work[-1].density  # what is pruned is not there to be widened
            if op.kind == "attention":  # softmax: one element per score
                scores = c["flops"][i] / (2 * sum(op.dims[x].constant or 1 for x in ("head_dim", "value_dim")))
                vector[i], flops[i] = scores * PASSES["attention"] / lanes, scores * 5
        elif op.kind not in MOVES:
            written = sum((t.elements for t in op.writes), op.flops * 0)
            steps = op.flops / 2 if op.kind in STEPWISE else written * PASSES.get(op.kind, 1)
            vector[i] = compiled.vector(steps) / lanes
            flops[i] = c["flops"][i]
    regimes = [REGIME.get(reason, reason) for reason in REASONS]
    ddr = device.memory.get("ddr")
    buffer = device.memory["weights"].energy if "weights" in device.memory else None
    return FpgaModel(
        compiled=compiled, design=design, work=tuple(work), vector_s=vector, widened_s=widened,
        streamed=c["weight_bytes"] + c["kv_bytes"], activations=activations, cache=_cache(compiled),
        capacity=(device.dram.usable, ddr.usable if ddr else 0.0),
        ddr_bytes_s=ddr.bandwidth.value * constants.memory_efficiency.value if ddr and ddr.bandwidth else np.inf,
        weights_bytes=compiled.trace.weights_bytes, collectives=collectives_of(compiled, device),
        launch=launches(compiled, device),
        energy_j={"mac": _mac_energy(design, device), "buffer": buffer.value if buffer else 0.0,
                  "dram": dram_energy(device)},
        vector_j=flops * parameter(device, "vector_energy"),
        **certainty(compiled, device, regimes),
    )  # fmt: skip


def spend(design: Design, product: Product, work: Work) -> Spent:
    """What ``product`` takes of the chains of ``design``, in the faster of their two arrangements."""
    p, d = product, design
    pack = d.config["PACK"]
    tiles = p.count * -(-p.n // d.vector_outputs)
    each = -(-tiles // d.regions)
    vector = _cycles(d, p.m, d.outputs_per_chain * each, p.k, work)
    blocks = -(-p.count * -(-p.m // d.matrix_tokens) * -(-p.n // d.matrix_outputs) // d.regions)
    per_block = d.matrix_tokens * d.matrix_outputs // (d.chains * pack)
    matrix = _cycles(d, np.full_like(p.m, pack), per_block * blocks, p.k, work)
    by_vector = vector <= matrix
    cycles = np.where(by_vector, vector, matrix)
    rows = np.where(by_vector, pack, d.matrix_tokens)
    outputs = np.where(by_vector, d.vector_outputs, d.matrix_outputs)
    split = np.maximum(np.ceil(2 * outputs * p.k / d.vector_buffer), 1)  # of k: half the buffer holds what comes next
    weights = p.count * p.n * p.k * work.weight_bits / 8
    first = np.minimum(d.regions * outputs * p.k / split * work.weight_bits / 8, weights)
    groups = np.where(by_vector, 1, np.maximum(np.ceil(p.m * p.k * ACTIVATION_BITS / 8 / d.weight_buffer), 1))
    macs = 1.0 * p.count * p.m * p.n * p.k
    passes = np.ceil(p.m / rows)
    read = p.count * (p.n * p.k * work.density * passes + p.m * p.k * np.ceil(p.n / outputs)) * 8.0
    instructions = np.where(by_vector, each * passes, blocks) * split
    return Spent(
        compute=cycles / d.clock_hz, first=first / d.stream_bytes_s, last=cycles / instructions / d.clock_hz,
        again=(groups - 1) * weights, macs=macs * work.density, read_bits=read,
    )  # fmt: skip


def _one_by_one(product: Product, op: Operator, at: At) -> Product:
    """The products of experts that are loaded per token: one row each."""
    uses: Any = np.maximum(np.round(at(op.dims["tokens"]) * (op.dims["top_k"].constant or 1)), 1).astype(np.int64)
    one: Any = np.ones_like(product.m)
    return Product(uses, one, product.n, product.k)


def _cycles(design: Design, m: Array, n: Array, k: Array, work: Work) -> Array:
    """Cycles of one chain for ``m`` vectors and ``n`` outputs of ``k`` inputs, which are of all the ``modes``.

    The modes follow one another beat by beat, so that only the last has to drain."""
    block = design.config["M"]
    drain = design.unit.cycles({"m": 1, "n": 1, "k": 1}, work.format, design.config) - 1
    total = np.zeros(np.broadcast_shapes(np.shape(m), np.shape(n), np.shape(k)))
    for share, sparsity in work.modes:
        part = k if share == 1 else np.minimum(np.ceil(k * share / block).astype(np.int64) * block, k)
        format = work.format | {"sparsity": sparsity}
        total = total + design.unit.cycles({"m": m, "n": n, "k": part}, format, design.config)
    return np.asarray(total - (len(work.modes) - 1) * drain, np.float64)


def _mac_energy(design: Design, device: Device) -> float:
    """Joules of a multiply-accumulate: what a chain draws that does as many as it can."""
    assert device.arrays is not None
    dense = {"weight": "int4", "activation": "int8"}
    return device.arrays.power.value / (macs_per_cycle(design.unit, design.config, dense) * design.clock_hz)


def constants(device: Device) -> list[str]:
    """What the times of ``device`` rest on, and what its design takes of the part, a line each."""
    return [*array.constants(device), *resource_lines(device)]


def peak(trace: Trace, device: Device) -> tuple[str, float]:
    """The chains' fastest pair of formats among the products of ``trace``, and their dense OP/s in it."""
    design = design_of(device)
    rows = enumerate(compile_trace(trace).rows)
    work = [_work(i, row, design, device) for i, row in rows if row.operator.kind in MATRIX_KINDS]
    rates = {(w.format["weight"], w.format["activation"]): macs_per_cycle(design.unit, design.config, w.format)
             for w in work}  # fmt: skip
    if not rates:
        return device.rate(trace.format)[0], device.rate(trace.format)[1].value
    pair, rate = max(rates.items(), key=lambda x: x[1])
    return " by ".join(pair), 2 * rate * design.chains * design.regions * design.clock_hz


def _work(i: int, row: Row, design: Design, device: Device) -> Work:
    """What the chains do of a row. Raises ``InputError`` for formats they do not take."""
    op, arrays = row.operator, device.arrays
    assert arrays is not None
    second = second_operand(op)
    stored = second.format.partition("-g")[0]
    taken = arrays.activations if second.role == "activation" or op.kind == "router" else arrays.weights
    format = {"weight": taken.get(stored, stored), "activation": arrays.activations.get(op.format, op.format)}
    refused = "attention in latent space is no product of chains" if products_of(op) is None else ""
    try:
        design.unit.cycles({"m": 1, "n": 1, "k": 1}, format, design.config)
    except InputError as error:
        refused = refused or str(error)
    if refused:
        hint = {"weight": "try --apply mixed-precision:head=1", "kv": "try --apply kv-quant"}.get(second.role, "")
        raise InputError(
            f"device {device.name}: {row.names[0]} multiplies {op.format} by {second.format}: {refused}"
            + (f"; {hint}" if hint else "")
        )
    modes = _modes(op, design) if second.role == "weight" else ((1.0, "dense"),)
    return Work(
        row=i, operator=op, format=format, modes=modes, weight_bits=_bits(op, second),
        density=sum(share * _kept(sparsity) for share, sparsity in modes),
        exchanged=second.role == "weight", serial=op.attrs.get("order") == "token",
    )  # fmt: skip


def _modes(op: Operator, design: Design) -> tuple[tuple[float, str], ...]:
    """The chain's modes for a row's weights: shares of the inputs, and the pattern that each runs as."""
    pattern, block = str(op.attrs.get("sparsity", "dense")), design.config["M"]
    if pattern == f"blocks:{block}":
        first, second, mode = blocks_of(float(op.attrs["density"]))
        names = [f"{max(block >> s, design.config['N_MIN'])}:{block}" if s else "dense" for s in (mode, mode + 1)]
        return tuple((share, name) for share, name in zip((first, second), names, strict=True) if share > 0)
    kept, _, of = pattern.partition(":")
    if kept.isdecimal() and of.isdecimal() and block % int(of) == 0:
        return ((1.0, pattern),)
    return ((1.0, "dense"),)


def _kept(sparsity: str) -> float:
    kept, _, of = sparsity.partition(":")
    return int(kept) / int(of) if of else 1.0


def _bits(op: Operator, second: Tensor) -> float:
    return float(second.bits) if second.role != "activation" else float(min(second.bits, ACTIVATION_BITS))


def _cache(compiled: CompiledTrace) -> Array:
    """Bytes of cache after the pass over the basis: context and new tokens of every sequence."""
    total = np.zeros(len(compiled.basis))
    for row in compiled.rows:
        if row.operator.kind == "attention":
            held = sum((t.bytes for t in row.operator.reads if t.role == "kv"), row.operator.flops * 0)
            total += row.count * compiled.vector(held)
    return total
