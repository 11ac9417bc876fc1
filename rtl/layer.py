"""A layer of a model through a unit's array: real numbers in, quantised by ``kernels/``, every output compared.

Who has a model makes a :class:`Layer` of the activations that reach one of its matrices; :func:`run_layer`
simulates the unit on the whole product, with the parameters and formats of one of its ``[[layer]]`` tables, and
tells what came of it. In the simulator the unit's test ``a_layer_of_a_model`` quantises, streams and compares.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files import write_whole
from .flow import build_root, run
from .parameters import Parameters
from .units import Unit

LAYER_TEST = "a_layer_of_a_model"
"""The cocotb test of that name takes a layer."""
SIMULATOR = "verilator"


@dataclass(frozen=True)
class Layer:
    """``activations`` (m, k) and ``weights`` (n, k) of a linear layer, and the formats it is to be quantised to.

    ``format`` is what the unit's cycle model takes: ``weight``, ``activation``, ``sparsity``.
    """

    activations: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    format: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> dict[str, int]:
        """m, n and k, as a cycle model takes them."""
        return {"m": self.activations.shape[0], "n": self.weights.shape[0], "k": self.weights.shape[1]}

    def product(self) -> npt.NDArray[np.float64]:
        """The layer's output (m, n), in floating point."""
        return self.activations @ self.weights.T

    def save(self, path: Path) -> None:
        """Write it as an npz file."""
        data = io.BytesIO()
        np.savez(data, activations=self.activations, weights=self.weights, format=json.dumps(dict(self.format)))
        write_whole(path, data.getvalue())

    @classmethod
    def load(cls, path: Path) -> Layer:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as held:
            return cls(held["activations"], held["weights"], json.loads(str(held["format"])))


def relative_error(values: npt.ArrayLike, exact: npt.ArrayLike) -> float:
    """Root mean square of the difference, over that of ``exact``."""
    right = np.asarray(exact, np.float64)
    return float(np.sqrt(np.square(np.asarray(values) - right).mean() / np.square(right).mean()))


def compare(
    layer: Layer, expected: Sequence[npt.ArrayLike], got: Sequence[npt.ArrayLike], values: npt.ArrayLike,
    cycles_rtl: int, cycles_model: int,
) -> dict[str, Any]:  # fmt: skip
    """What a unit made of a layer: MACs, outputs, outputs that differ in any of their arrays, cycles, error.

    ``expected`` and ``got``: the kernel's arrays and the RTL's, (m, n) each. ``values`` (m, n): the numbers that
    the RTL's results stand for; ``error`` is their :func:`relative_error` against the layer's own output.
    Raises ``InputError`` when the arrays are not the layer's outputs, one by one.
    """
    outputs = (layer.shape["m"], layer.shape["n"])
    pairs = [(np.asarray(e), np.asarray(g)) for e, g in zip(expected, got, strict=True)]
    if not pairs or any(a.shape != outputs for pair in pairs for a in pair) or np.shape(values) != outputs:
        shapes = [a.shape for pair in pairs for a in pair]
        raise InputError(f"results of shapes {shapes} and {np.shape(values)}; the layer has {outputs}")
    differ = np.any([e != g for e, g in pairs], axis=0)
    return {
        "macs": outputs[0] * outputs[1] * layer.shape["k"], "outputs": differ.size, "mismatches": int(differ.sum()),
        "cycles_rtl": cycles_rtl, "cycles_model": cycles_model, "error": relative_error(values, layer.product()),
    }  # fmt: skip


def layer_parameters(unit: Unit, number: int) -> Parameters:
    """Parameters of the unit's ``[[layer]]`` table ``number``: its keys in capitals, completed and checked."""
    table = unit.recipe["layer"][number]
    return unit.check({key: value for key, value in table.items() if key.isupper()})


def run_layer(unit: Unit, number: int, activations: npt.ArrayLike, weights: npt.ArrayLike) -> dict[str, Any]:
    """Simulate ``activations`` (m, k) times the transpose of ``weights`` (n, k) with ``[[layer]]`` table ``number``.

    Returns what :func:`compare` does, with ``unit``, ``parameters``, ``format``, ``error_bound`` (the table's
    ``error``) and ``failed``, messages of the test by name. Raises as :func:`.flow.run`.
    """
    table = unit.recipe["layer"][number]
    layer = Layer(np.asarray(activations, np.float64), np.asarray(weights, np.float64), table["format"])
    digest = hashlib.sha256(layer.activations.tobytes() + layer.weights.tobytes())
    digest.update(json.dumps([layer.shape, layer.format]).encode())
    path = build_root() / "layers" / f"{digest.hexdigest()[:16]}.npz"
    layer.save(path)
    parameters = layer_parameters(unit, number)
    done = run(unit, SIMULATOR, parameters, tests=f"{LAYER_TEST}$", layer=path)
    return {
        "unit": unit.name, "parameters": parameters, "format": dict(layer.format), "error_bound": table["error"],
        "failed": done.failed, **(done.document("layer") or {}),
    }  # fmt: skip
