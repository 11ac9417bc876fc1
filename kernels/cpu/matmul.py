"""``matmul``: activations times packed weights, as fast as this processor can; needs numba (``tokenfab[kernels]``)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .compiled import instruction_sets, kernel, most_threads, runners
from .emit import FIELDS
from .layout import BLOCK, QUAD, Packed

Floats = npt.NDArray[np.float32]
_ALIGN = 64


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    raw = np.empty(size + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + size]


@dataclass
class Plan:
    """Products of ``tokens`` vectors by weights of one shape: kernels chosen, and room for activations.

    One plan serves any number of packed matrices of the same shape and layout, one product at a time.
    """

    packed: Packed
    tokens: int = 1
    threads: int = 1
    isa: str | None = None
    _room: list[npt.NDArray[np.uint8]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"tokens = {self.tokens}: at least 1")
        if not 1 <= self.threads <= most_threads():
            raise InputError(f"threads = {self.threads}: 1 to {most_threads()} here (NUMBA_NUM_THREADS)")
        p, isa = self.packed, self.isa or instruction_sets()[0]
        n, k = p.shape
        traits = (p.bits, p.odd, p.half, isa)
        self._alone, self._shared = runners()
        self._prepare = kernel(f"{p.layout}_acts", *traits)
        one = p.layout == "lut" or self.tokens == 1
        self._product = kernel(f"{p.layout}_gemv" if one else "dot_gemm", *traits)
        width = -(-n // BLOCK) * BLOCK
        bytes_per_weight = QUAD if p.layout == "lut" else 1  # a table of 16 bytes per 4
        many = 1 if p.layout == "lut" else self.tokens
        self._room = [_aligned(size) for size in
                      (many * k * bytes_per_weight, 4 * many * p.groups, 4 * many * p.groups)]  # fmt: skip
        self._padded = np.empty((self.tokens, width), np.float32)
        self._jobs = [np.zeros(len(FIELDS), np.int64) for _ in range(2)]
        acts, sums, factors = (room.ctypes.data for room in self._room)
        fields = {"acts": acts, "sums": sums, "factors": factors, "groups": p.groups, "group": p.group,
                  "tokens": many, "k": k, "n": width, "grain": 1}  # fmt: skip
        for job in self._jobs:
            for name, value in fields.items():
                job[FIELDS.index(name)] = value
        self._set(0, blocks=many)
        self._set(1, blocks=width // BLOCK)

    def _set(self, which: int, **fields: int) -> None:
        for name, value in fields.items():
            self._jobs[which][FIELDS.index(name)] = value

    def run(self, x: Floats, packed: Packed, out: Floats | None = None) -> Floats:
        """``x`` (tokens, k), binary32 in C order, times the transpose of ``packed``: (tokens, n).

        Writes to ``out`` if one is given. Raises ``InputError`` for operands that are not the plan's.
        """
        n, k = self.packed.shape
        if x.shape != (self.tokens, k) or x.dtype != np.float32 or not x.flags.c_contiguous:
            raise InputError(f"activations {x.dtype} {x.shape}; wanted binary32 ({self.tokens}, {k}) in C order")
        if packed is not self.packed and _traits(packed) != _traits(self.packed):
            raise InputError("the weights are not like those of the plan")
        target = self._padded
        if out is not None:
            if out.shape != (self.tokens, n) or out.dtype != np.float32 or not out.flags.c_contiguous:
                raise InputError(f"out {out.dtype} {out.shape}; wanted binary32 ({self.tokens}, {n}) in C order")
            target = out if n % BLOCK == 0 else target
        self._jobs[1][_DATA] = packed.data.ctypes.data
        self._jobs[1][_SCALES] = packed.scales.ctypes.data
        if self.packed.layout == "lut":
            for t in range(self.tokens):
                self._product_of(x[t].ctypes.data, target[t].ctypes.data)
        else:
            self._product_of(x.ctypes.data, target.ctypes.data)
        if out is None:
            return target[:, :n].copy()
        if target is not out:
            out[:] = target[:, :n]
        return out

    def _product_of(self, x: int, out: int) -> None:
        prepare, product = self._jobs
        prepare[_NEXT] = product[_NEXT] = 0
        prepare[_X], product[_OUT] = x, out
        if self.threads == 1:
            self._alone(self._prepare, prepare.ctypes.data)
            self._alone(self._product, product.ctypes.data)
            return
        if prepare[_BLOCKS] == 1:
            self._alone(self._prepare, prepare.ctypes.data)
        else:
            self._shared(self._prepare, prepare.ctypes.data, self.threads)
        self._shared(self._product, product.ctypes.data, self.threads)


_NEXT, _DATA, _SCALES, _X, _OUT, _BLOCKS = (FIELDS.index(n) for n in ("next", "data", "scales", "x", "out", "blocks"))


def _traits(p: Packed) -> tuple[object, ...]:
    return p.layout, p.bits, p.odd, p.half, p.group, p.shape


def matmul(x: npt.ArrayLike, packed: Packed, threads: int = 1, isa: str | None = None) -> Floats:
    """``x`` (tokens, k) times the transpose of the packed weights (n, k): (tokens, n) in binary32.

    What it computes is :func:`.golden.golden_matmul`. ``isa``: an instruction set of
    :func:`.compiled.instruction_sets`, the best if none is named. Raises ``InputError`` for shapes that do not fit
    and for what this processor has not. Repeated products are faster with a :class:`Plan`.
    """
    acts = np.ascontiguousarray(x, np.float32)
    if acts.ndim != 2 or acts.shape[1] != packed.shape[1] or not len(acts):
        raise InputError(f"activations have shape {acts.shape}; wanted (tokens, {packed.shape[1]})")
    return Plan(packed, len(acts), threads, isa).run(acts, packed)
