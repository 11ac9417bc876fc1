"""Measured times between measured times: what ``validate`` calls the mode ``measured``.

A :class:`Table` is built from the even rows of a user's table and answers for sizes *between* two measured ones of
the same shape, by a straight line in seconds over the size; it never extrapolates, and never interpolates in
logarithms. What is one shape, and the size that varies:

    GEMM        same n and k                                      m
    prefill     same batch, heads, KV heads, head size, prefix    pairs of a query and a key it sees
    decode      same batch, heads, KV heads, head size            keys

Time grows with the pairs of a prefill, not with its length: a line over the length is off by 18 to 29 % where one
over the pairs is by 10 to 12 %.
Everything outside is the kernel model's. The interval of what is inside is that of the even rows, each
interpolated from its neighbours without itself; those gaps are twice as wide as the ones between an odd row's
neighbours, so it errs to the wide side.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .attention import Calls
from .gemm import Measured

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Points:
    """Kernels by shape, (N, K) numbers that must agree exactly, and size, (N,)."""

    shape: Array
    size: Array


class Table:
    """Seconds by shape and size; several rows of one point are averaged."""

    def __init__(self, points: Points, seconds: Array) -> None:
        both = np.column_stack([points.shape, points.size])
        unique, at = np.unique(both, axis=0, return_inverse=True)  # sorted by shape, then by size
        at = at.ravel()
        self._seconds = np.bincount(at, seconds, len(unique)) / np.bincount(at, minlength=len(unique))
        self._shape, self._size = unique[:, :-1], unique[:, -1]
        changes = np.flatnonzero(np.any(self._shape[1:] != self._shape[:-1], axis=1)) + 1
        ends = [0, *changes.tolist(), len(unique)] if len(unique) else []
        self._groups = {tuple(self._shape[a].tolist()): slice(a, b) for a, b in itertools.pairwise(ends)}

    def seconds(self, points: Points) -> tuple[Array, Mask]:
        """Seconds at ``points``, (N,), NaN where they are not ``inside``: between two measured sizes, or on one."""
        out = np.full(points.size.size, np.nan)
        shapes, at = np.unique(points.shape, axis=0, return_inverse=True)
        order = np.argsort(at.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(at.ravel(), minlength=len(shapes)))
        for shape, end, count in zip(shapes, ends, np.diff(ends, prepend=0), strict=True):
            group = self._groups.get(tuple(shape.tolist()))
            if group is not None:
                here = order[end - count : end]
                known, size = self._size[group], points.size[here]
                line = np.interp(size, known, self._seconds[group])
                out[here] = np.where((size >= known[0]) & (size <= known[-1]), line, np.nan)
        return out, ~np.isnan(out)

    def left_out(self) -> tuple[Array, Array]:
        """Measured seconds of every point that has a neighbour on both sides, and the line between these two."""
        measured, line = [np.empty(0)], [np.empty(0)]
        for group in self._groups.values():
            x, y = self._size[group], self._seconds[group]
            if x.size > 2:
                share = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
                measured.append(y[1:-1])
                line.append(y[:-2] + share * (y[2:] - y[:-2]))
        return np.concatenate(measured), np.concatenate(line)


def gemm_points(rows: Measured) -> Points:
    """GEMMs by n and k, over m."""
    return Points(np.column_stack([rows.n, rows.k]), rows.m)


def attention_points(calls: Calls) -> Points:
    """Calls of one phase as the module text has it."""
    shape = [calls.batch, calls.heads, calls.kv_heads, calls.head_dim]
    if calls.phase == "decode":
        return Points(np.column_stack(shape), calls.kv)
    pairs = calls.query * (calls.kv - (calls.query - 1) / 2)
    return Points(np.column_stack([*shape, calls.kv - calls.query]), pairs)
