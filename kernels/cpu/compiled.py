"""Kernels compiled by Numba: one function per layout and kind of weights.

A kernel is a function of one argument, the address of a job (:data:`.emit.FIELDS`). Its work is cut into items,
first those that make activations integers, then blocks of outputs, which begin when the activations are done.
Threads that run it take the next items from a counter in the job until none is left: one that comes late or is
held up does less, and one that comes after the end does nothing.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from ...errors import InputError
from .layout import stored_bits


@cache
def instruction_sets() -> tuple[str, ...]:
    """Instruction sets of this processor that kernels can use, best first."""
    import_module("numba")
    from .vector import ISAS

    features = import_module("llvmlite.binding").get_host_cpu_features()
    return tuple(isa for isa, needed in ISAS.items() if all(features.get(f) for f in needed))


@cache
def kernel(name: str, bits: int, odd: bool, half: bool, isa: str) -> int:
    """Address of a compiled kernel: ``dot_gemv``, ``dot_gemm`` or ``lut_gemv``.

    Raises ``InputError`` where the processor has not the instruction set.
    """
    if isa not in instruction_sets():
        raise InputError(f"instruction set {isa!r}: this processor has {', '.join(instruction_sets())}")
    numba = import_module("numba")
    from .emit import emit_kernel
    from .vector import I64, Code

    stored = stored_bits(bits, "dot")

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        emit_kernel(Code(builder, isa), arguments[0], name, stored if name != "lut_gemv" else bits, bits, odd, half)
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
def runners() -> tuple[Any, Any, Any]:
    """``(begin, lead, assist)``: make a job's items available; take part in kernel and job until none is left to
    take, ``lead`` until others are done too or a while has passed: it says how many they still hold."""
    numba = import_module("numba")
    from .emit import emit_begin, emit_wait
    from .vector import I64, Code, ir

    kind = ir.FunctionType(I64, [I64]).as_pointer()

    def call(_context: Any, address: Any, job: Any) -> Any:
        def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.call(builder.inttoptr(arguments[0], kind), [arguments[1]])

        return numba.types.int64(address, job), codegen

    def on_job(emit: Any) -> Any:
        def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            found = emit(Code(builder, "portable"), arguments[0])
            return I64(0) if found is None else found

        return numba.extending.intrinsic(lambda _context, job: (numba.types.int64(job), codegen))

    run, reset, wait = numba.extending.intrinsic(call), on_job(emit_begin), on_job(emit_wait)

    def begin(job: int) -> None:
        reset(job)

    def lead(address: int, job: int) -> int:
        run(address, job)
        return int(wait(job))

    def assist(address: int, job: int) -> None:
        run(address, job)

    return (numba.njit("void(int64)", nogil=True)(begin), numba.njit("int64(int64, int64)", nogil=True)(lead),
            numba.njit("void(int64, int64)", nogil=True)(assist))  # fmt: skip
