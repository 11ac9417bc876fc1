"""ONNX models with MatMulNBits operators, written as protocol buffers by hand: no ``onnx`` package is needed.

Field numbers are those of onnx.proto3 (ONNX 1.16); the operator is ONNX Runtime's ``com.microsoft.MatMulNBits``:
K, N, bits, block_size, accuracy_level; weights (N, K / block_size, block_size · bits / 8) bytes, scales
(N, K / block_size).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

FLOAT, UINT8, INT_ATTRIBUTE = 1, 2, 2
IR_VERSION, OPSET, DOMAIN = 8, 18, "com.microsoft"
Weights = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]
"""Packed weights and their scales."""


def matmul_chain(layers: Sequence[Weights], *, n: int, bits: int, block: int, accuracy_level: int) -> bytes:
    """A model of ``layers`` products in a row, each (n, n) so that one's outputs are the next one's inputs.

    Its input is ``x0`` (tokens, n), its output ``x`` with the number of layers, both binary32.
    """
    options = {"K": n, "N": n, "bits": bits, "block_size": block, "accuracy_level": accuracy_level}
    graph = b""
    for i in range(len(layers)):
        graph += _bytes(1, _node(f"x{i}", f"w{i}", f"s{i}", f"x{i + 1}", options))
    graph += _bytes(2, b"chain")
    for i, (weights, scales) in enumerate(layers):
        graph += _bytes(5, _tensor(f"w{i}", UINT8, weights)) + _bytes(5, _tensor(f"s{i}", FLOAT, scales))
    graph += _bytes(11, _value("x0", n)) + _bytes(12, _value(f"x{len(layers)}", n))
    opsets = _bytes(8, _bytes(1, b"") + _int(2, OPSET)) + _bytes(8, _bytes(1, DOMAIN.encode()) + _int(2, 1))
    return _int(1, IR_VERSION) + _bytes(7, graph) + opsets


def _node(x: str, weights: str, scales: str, out: str, options: Mapping[str, int]) -> bytes:
    names = b"".join(_bytes(1, name.encode()) for name in (x, weights, scales)) + _bytes(2, out.encode())
    attributes = (_bytes(1, key.encode()) + _int(3, value) + _int(20, INT_ATTRIBUTE) for key, value in options.items())
    return names + _bytes(4, b"MatMulNBits") + b"".join(_bytes(5, a) for a in attributes) + _bytes(7, DOMAIN.encode())


def _tensor(name: str, kind: int, values: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> bytes:
    dims = b"".join(_int(1, d) for d in values.shape)
    return dims + _int(2, kind) + _bytes(8, name.encode()) + _bytes(9, values.tobytes())


def _value(name: str, width: int) -> bytes:
    shape = _bytes(1, _bytes(2, b"tokens")) + _bytes(1, _int(1, width))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _int(1, FLOAT) + _bytes(2, shape)))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
