"""A layer of a model through a unit's array: real numbers in, quantised by ``kernels/``, every output compared.

Who has a model makes a :class:`Layer` of a matrix and of the activations that reach it. The unit's ``layer.py``
quantises both and says what goes in beat by beat, what must come out, and what number it stands for
(:class:`Stream`); ``rtl/stream.py`` simulates it without Python in its loop; :func:`run_layer` compares.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .parameters import Parameters
from .units import Unit

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """``activations`` (m, k) and ``weights`` (n, k) of a linear layer, and the formats it is to be quantised to.

    ``format`` is what the unit's cycle model takes: ``weight``, ``activation``, ``sparsity``.
    """

    activations: Floats
    weights: Floats
    format: Mapping[str, str]

    @property
    def shape(self) -> dict[str, int]:
        """m, n and k, as a cycle model takes them."""
        return {"m": self.activations.shape[0], "n": self.weights.shape[0], "k": self.weights.shape[1]}

    def product(self) -> Floats:
        """The layer's output (m, n), in floating point."""
        return self.activations @ self.weights.T


@dataclass(frozen=True)
class Input:
    """A valid/ready input of a design: its pins' names, and the beats, one row of each pin's array per beat.

    A row holds the bits of the pin, lowest first, in whole words of 32 bits (:func:`pack_rows`).
    """

    valid: str
    ready: str
    pins: Mapping[str, Bytes]


@dataclass(frozen=True)
class Stream:
    """A product as one unit takes it.

    ``outputs``: pins of the output (``valid_o``, ``ready_i``) and their bits. ``results``: how many come.
    ``expected``: the kernel's answer, arrays (m, n) of sums, flags and the like. ``read`` makes the same
    arrays of the results, given as rows of bytes by pin, and the numbers (m, n) that they stand for.
    """

    inputs: tuple[Input, ...]
    outputs: Mapping[str, int]
    results: int
    expected: tuple[npt.NDArray[Any], ...]
    read: Callable[[Mapping[str, Bytes]], tuple[tuple[npt.NDArray[Any], ...], Floats]]


# -- bits ------------------------------------------------------------------------------------------
def pack_rows(values: npt.ArrayLike, width: int) -> Bytes:
    """Every row of a matrix as words of ``width`` bits, two's complement, the first lowest, in words of 32 bits."""
    matrix = np.asarray(values, np.int64)
    bits = (matrix[..., None] >> np.arange(width) & 1).astype(np.uint8).reshape(len(matrix), -1)
    return np.packbits(np.pad(bits, ((0, 0), (0, -bits.shape[1] % 32))), axis=1, bitorder="little")


def unpack_rows(data: Bytes, width: int, count: int, signed: bool = True) -> Integers:
    """The inverse: ``count`` words of ``width`` bits, at most 64, of every row."""
    bits = np.unpackbits(data, axis=1, bitorder="little")[:, : width * count].reshape(-1, count, width)
    value = np.left_shift(np.int64(1), np.arange(width, dtype=np.int64))
    if signed:
        value[-1] = -(1 << (width - 1))
    return np.asarray(bits.astype(np.int64) @ value, np.int64)


def tiles(matrix: npt.ArrayLike, rows: int, columns: int) -> Integers:
    """(r, c) cut into pieces of ``rows`` x ``columns``, one row of the result each, all of a strip in order.

    Raises ``InputError`` when they do not fill the matrix.
    """
    whole = np.asarray(matrix, np.int64)
    if whole.shape[0] % rows or whole.shape[1] % columns:
        raise InputError(f"{whole.shape[0]} x {whole.shape[1]} is not whole pieces of {rows} x {columns}")
    return whole.reshape(-1, rows, whole.shape[1] // columns, columns).swapaxes(1, 2).reshape(-1, rows * columns)


def untiled(pieces: npt.ArrayLike, shape: tuple[int, int], rows: int, columns: int) -> Integers:
    """The inverse of :func:`tiles`: the matrix of ``shape``."""
    found = np.asarray(pieces, np.int64).reshape(-1, shape[1] // columns, rows, columns)
    return found.swapaxes(1, 2).reshape(shape)


def every_pair(tops: int, lefts: int, beats: int) -> tuple[Integers, Integers, Integers]:
    """Order in which tiles go in, beat by beat: row of the activations' words, of the weights' words, beat in its tile.

    ``tops`` strips of activations; for each all ``lefts`` strips of weights; ``beats`` of each tile.
    """
    top, left, beat = np.meshgrid(np.arange(tops), np.arange(lefts), np.arange(beats), indexing="ij")
    return (top * beats + beat).ravel(), (left * beats + beat).ravel(), beat.ravel()


# -- a run -----------------------------------------------------------------------------------------
def relative_error(values: npt.ArrayLike, exact: npt.ArrayLike) -> float:
    """Root mean square of the difference, over that of ``exact``."""
    right = np.asarray(exact, np.float64)
    return float(np.sqrt(np.square(np.asarray(values) - right).mean() / np.square(right).mean()))


def layer_parameters(unit: Unit, number: int) -> Parameters:
    """Parameters of the unit's ``[[layer]]`` table ``number``: its keys in capitals, completed and checked."""
    return unit.check({key: value for key, value in unit.recipe["layer"][number].items() if key.isupper()})


def run_layer(unit: Unit, number: int, activations: npt.ArrayLike, weights: npt.ArrayLike) -> dict[str, Any]:
    """Simulate ``activations`` (m, k) times the transpose of ``weights`` (n, k) with ``[[layer]]`` table ``number``.

    Returns ``macs``, ``outputs``, ``mismatches`` (outputs of which any bit differs from the kernel's),
    ``cycles_rtl``, ``cycles_model``, ``error`` (:func:`relative_error` against the layer's own output),
    ``error_bound`` (the table's ``error``), ``parameters``, ``format`` and ``cpu_s`` of the simulation. Raises
    ``InputError`` when Verilator is missing, when the product is not whole tiles, and on results of another shape;
    ``RuntimeError`` when the unit does not build, hangs, or gives more results than it should.
    """
    from .stream import simulate

    table = unit.recipe["layer"][number]
    layer = Layer(np.asarray(activations, np.float64), np.asarray(weights, np.float64), table["format"])
    parameters = layer_parameters(unit, number)
    stream: Stream = importlib.import_module(f"{__package__}.{unit.name}.layer").stream(layer, parameters)
    done = simulate(unit, parameters, stream)
    got, values = stream.read(done.pins)
    outputs = (layer.shape["m"], layer.shape["n"])
    shapes = {np.shape(array) for array in (*got, *stream.expected, values)}
    if shapes != {outputs} or len(got) != len(stream.expected):
        raise InputError(f"{unit.name}: results of shapes {shapes}; the layer has {outputs}")
    differ = np.any([e != g for e, g in zip(stream.expected, got, strict=True)], axis=0)
    return {
        "unit": unit.name, "parameters": parameters, "format": dict(layer.format), "outputs": differ.size,
        "macs": differ.size * layer.shape["k"], "mismatches": int(differ.sum()), "cycles_rtl": done.cycles,
        "cycles_model": unit.cycles(layer.shape, layer.format, parameters), "cpu_s": done.cpu_s,
        "error": relative_error(values, layer.product()), "error_bound": table["error"],
    }  # fmt: skip
