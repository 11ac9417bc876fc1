"""Kernels compiled by Numba, and how threads share them.

A kernel is a function of one argument, the address of a job (:data:`.emit.FIELDS`). Threads take the next blocks
from a counter in it until none is left, so that a thread that starts late or is held up does less.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any

from ...errors import InputError
from .layout import stored_bits


@cache
def _numba() -> Any:
    """Numba, which reads how many threads there may be when it is imported: all that this process may use.

    OMP_NUM_THREADS, which other libraries go by, would be its limit else; a product says how many it takes.
    """
    os.environ.setdefault("NUMBA_NUM_THREADS", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                                                   else os.cpu_count() or 1))  # fmt: skip
    return import_module("numba")


@cache
def instruction_sets() -> tuple[str, ...]:
    """Instruction sets of this processor that kernels can use, best first."""
    _numba()
    from .vector import ISAS

    features = import_module("llvmlite.binding").get_host_cpu_features()
    return tuple(isa for isa, needed in ISAS.items() if all(features.get(f) for f in needed))


def most_threads() -> int:
    """Threads that a product can take."""
    return int(_numba().config.NUMBA_NUM_THREADS)


@cache
def kernel(name: str, bits: int, odd: bool, half: bool, isa: str) -> int:
    """Address of a compiled kernel: ``dot_acts``, ``lut_acts``, ``dot_gemv``, ``lut_gemv`` or ``dot_gemm``.

    Raises ``InputError`` where the processor has not the instruction set.
    """
    if isa not in instruction_sets():
        raise InputError(f"instruction set {isa!r}: this processor has {', '.join(instruction_sets())}")
    numba = _numba()
    from . import emit
    from .vector import I64, Code

    stored = stored_bits(bits, "dot")

    def emit_block(code: Code, job: emit.Job, block: Any) -> None:
        match name:
            case "dot_acts":
                emit.emit_dot_activations(code, job, block, bits, odd)
            case "lut_acts":
                emit.emit_tables(code, job, bits, odd)
            case "dot_gemv":
                emit.emit_dot_gemv(code, job, block, stored, odd, half)
            case "lut_gemv":
                emit.emit_lut_gemv(code, job, block, bits, half)
            case "dot_gemm":
                emit.emit_dot_gemm(code, job, block, stored, odd, half)
            case _:
                raise KeyError(name)

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        code = Code(builder, isa)
        job = emit.Job(code, arguments[0])
        total, grain = job.blocks, job.grain
        counter = builder.inttoptr(arguments[0], I64.as_pointer())
        head, body, end = (builder.append_basic_block(label) for label in ("take", "work", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        first = builder.atomic_rmw("add", counter, grain, "monotonic")
        builder.cbranch(builder.icmp_signed("<", first, total), body, end)
        builder.position_at_end(body)
        left = builder.sub(total, first)
        count = builder.select(builder.icmp_signed("<", left, grain), left, grain)
        with code.loop(count) as i:
            emit_block(code, job, builder.add(first, i))
        builder.branch(head)
        builder.position_at_end(end)
        return I64(0)

    def typed(_context: Any, job: Any) -> Any:
        return numba.types.int64(job), codegen

    run = numba.extending.intrinsic(typed)
    compiled = numba.cfunc("int64(int64)", nopython=True)(lambda job: run(job))
    _KEPT.append(compiled)
    return int(compiled.address)


_KEPT: list[Any] = []
"""Compiled functions live as long as something refers to them."""


@cache
def runners() -> tuple[Any, Any]:
    """``(alone, shared)``: run (kernel, job) in this thread, or (kernel, job, threads) in several."""
    numba = _numba()
    from llvmlite import ir

    word = ir.IntType(64)
    kind = ir.FunctionType(word, [word]).as_pointer()

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.call(builder.inttoptr(arguments[0], kind), [arguments[1]])

    def typed(_context: Any, address: Any, job: Any) -> Any:
        return numba.types.int64(address, job), codegen

    call = numba.extending.intrinsic(typed)

    def alone(address: int, job: int) -> int:
        return int(call(address, job))

    def shared(address: int, job: int, threads: int) -> None:
        for _ in numba.prange(threads):
            call(address, job)

    return (numba.njit("int64(int64, int64)", nogil=True)(alone),
            numba.njit("void(int64, int64, int64)", nogil=True, parallel=True)(shared))  # fmt: skip
