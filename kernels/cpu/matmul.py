"""``matmul``: activations times packed weights, as fast as this processor can; needs numba (``tokenfab[kernels]``)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .compiled import instruction_sets, kernel, runners
from .emit import FIELDS
from .layout import BLOCK, QUAD, Packed
from .team import team

Floats = npt.NDArray[np.float32]
_ALIGN = 64


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    raw = np.empty(size + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + size]


@dataclass
class Plan:
    """Products of ``tokens`` vectors by weights of one shape: a kernel, and room for activations.

    One plan serves any number of packed matrices of the same shape and layout, one product at a time.
    """

    packed: Packed
    tokens: int = 1
    threads: int = 1
    isa: str | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.threads < 1:
            raise InputError(f"tokens = {self.tokens}, threads = {self.threads}: at least 1")
        p = self.packed
        n, k = p.shape
        lut = p.layout == "lut"
        name = "lut_gemv" if lut else "dot_gemv" if self.tokens == 1 else "dot_gemm"
        self.isa = self.isa or instruction_sets()[0]
        self._kernel = kernel(name, p.bits, p.odd, p.half, self.isa)
        self._team = team(self.threads - 1)
        self._begin, self._lead, _ = runners()
        width = -(-n // BLOCK) * BLOCK
        at_once = 1 if lut else self.tokens
        sizes = (at_once * k * (QUAD if lut else 1), 4 * at_once * p.groups, 4 * at_once * p.groups)  # 16 bytes per 4
        self._room = [_aligned(size) for size in sizes]
        self._padded = np.empty((self.tokens, width), np.float32)
        self._job = _aligned(8 * len(FIELDS)).view(np.int64)
        self._job[:] = 0
        acts, sums, factors = (room.ctypes.data for room in self._room)
        fields = {"prepared": at_once, "items": at_once + width // BLOCK, "acts": acts, "sums": sums,
                  "factors": factors, "groups": p.groups, "group": p.group, "tokens": at_once, "k": k,
                  "n": width}  # fmt: skip
        fields["next"] = fields["items"]  # nothing to take yet
        for field, value in fields.items():
            self._job[FIELDS.index(field)] = value

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
        self._job[_DATA] = packed.data.ctypes.data
        self._job[_SCALES] = packed.scales.ctypes.data
        if self.packed.layout == "lut":
            for t in range(self.tokens):
                self._product(x[t].ctypes.data, target[t].ctypes.data)
        else:
            self._product(x.ctypes.data, target.ctypes.data)
        if out is None:
            return target[:, :n].copy()
        if target is not out:
            out[:] = target[:, :n]
        return out

    def _product(self, x: int, out: int) -> None:
        self._job[_X], self._job[_OUT] = x, out
        address = self._job.ctypes.data
        self._begin(address)
        for helper in self._team:
            helper.call(self._kernel, self._job)
        while self._lead(self._kernel, address):
            time.sleep(0)  # a helper that holds an item may be waiting for this thread's processor


_DATA, _SCALES, _X, _OUT = (FIELDS.index(n) for n in ("data", "scales", "x", "out"))


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
