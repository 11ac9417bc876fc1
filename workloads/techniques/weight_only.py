"""Weight-only quantisation: weights stored narrow, arithmetic unchanged.

Matmul and expert weights are stored at ``bits`` with one scale (and for asymmetric grids one zero
point) per group of ``group`` weights along the reduction dimension, as AWQ (arXiv:2306.00978) and
GPTQ (arXiv:2210.17323) do. Bits per weight: bits + (scale_bits + zero_bits) / group. Or, with
``format``, in any format of :mod:`tokenfab.kernels.formats` (``nf4-b64``, ``bitmod-fp3-g128``,
``2:4``, …); bits per weight are then the format's own for each matrix's shape, every scale, index and
codebook included. Embedding, norms, biases and, unless ``head=1``, the output head stay as they are; a
head that shares the embedding's table then has a narrow copy of its own. Results are dequantised to
the activation format in the kernel; that work is counted by the device model. Sparse formats are
stored sparse and multiplied dense: FLOPs do not change.
"""

from __future__ import annotations

from ...errors import InputError
from ...kernels.formats import load_format
from ..rewrite import map_operators, map_tensors
from ..trace import Operator, Tensor, Trace
from . import Parameter, Technique


def apply(trace: Trace, format: str, bits: int, group: int, scale_bits: int, zero_bits: int, head: int) -> Trace:
    """``trace`` with linear weights stored in ``format``, or at ``bits`` + scales. Raises on an unknown format."""
    known = load_format(format) if format else None
    label = format or f"int{bits}" + (f"-g{group}" if group else "")
    tied = {w.name for op, _ in trace.operators() if op.kind == "embedding" for w in op.weights}
    heads = {id(op) for op in _heads(trace)}
    kept = set() if head else heads

    def stored_bits(t: Tensor) -> float:
        if known is None:
            return bits + ((scale_bits + zero_bits) / group if group else 0.0)
        sizes = [size.constant for size in t.shape[-2:]]  # experts are matrices of their own
        return known.bits_per_weight([int(x) for x in sizes if x]) if all(sizes) else t.bits

    def narrow(op: Operator) -> Operator:
        rank = {"matmul": 2, "experts": 3}.get(op.kind)  # fewer axes: biases
        if rank is None or id(op) in kept:
            return op
        if "density" in op.attrs:  # its bits hold indices, which do not get narrower
            raise InputError(f"{op.name} is sparse; accepted: quantise its weights before technique sparsity")

        def store(t: Tensor) -> Tensor:
            own = id(op) in heads  # a copy of the table it shares
            if t.role != "weight" or len(t.shape) < rank or (t.name in tied and not own):
                return t
            stored = stored_bits(t)
            if t.bits <= stored:
                return t
            name = f"{t.name} {label}" if t.name in tied else t.name
            return t.model_copy(update={"name": name, "format": label, "bits": stored})

        return map_tensors(op, store)

    return map_operators(trace, narrow)


def _heads(trace: Trace) -> list[Operator]:
    """The matmuls that make logits: those of the last block that are as wide as the vocabulary."""
    last = next(b for b in trace.blocks if b.name == trace.order[-1][0])
    matmuls = [op for op in last.operators if op.kind == "matmul"]
    return [op for op in matmuls if op.dims["n"] == trace.vocabulary or last.name == "head"]


TECHNIQUE = Technique(
    name="weight-only",
    description="store matmul and expert weights in few bits with group scales; arithmetic unchanged",
    source="AWQ, arXiv:2306.00978; GPTQ, arXiv:2210.17323; of a format: its own",
    parameters={
        "format": Parameter("", "a number format, such as nf4-b64, in place of the numbers below"),
        "bits": Parameter(4, "bits per weight, without scales", low=1, high=8, unless="format"),
        "group": Parameter(
            128, "weights that share a scale; 0 = one per output channel, not counted", low=0, high=65536,
            unless="format",
        ),
        "scale_bits": Parameter(16, "bits of a scale", low=0, high=32, unless="format"),
        "zero_bits": Parameter(0, "bits of a zero point; 0 = symmetric", low=0, high=32, unless="format"),
        "head": Parameter(0, "1 = quantise the output head too", choices=(0, 1)),
    },
    apply=apply,
)  # fmt: skip
