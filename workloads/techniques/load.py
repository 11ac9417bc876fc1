"""Uneven load: popular experts, and sequences of a batch that differ in length.

A router sends more tokens to some experts than to others: their popularity has the density x^−imbalance, 0 being
even (:mod:`tokenfab.hw.routing`). The longest sequence of a decoding batch holds ``skew`` times as many keys as
the mean (all of the batch's, where that is fewer), and no batch is faster than its longest sequence. Work, bytes
and energy stay those of the even load; device models with kernels of their own (GPUs) answer with a longer time,
rooflines do not.
"""

from __future__ import annotations

from ..rewrite import map_operators
from ..trace import Operator, Trace
from . import Parameter, Technique

ATTRIBUTES = {"experts": "imbalance", "attention": "skew"}
"""By the kind of operator that carries it."""


def apply(trace: Trace, imbalance: float, skew: float) -> Trace:
    """``trace`` with the load of its experts and attention noted on them."""
    values = {"experts": imbalance, "attention": skew}

    def note(op: Operator) -> Operator:
        if op.kind not in ATTRIBUTES:
            return op
        return op.model_copy(update={"attrs": op.attrs | {ATTRIBUTES[op.kind]: values[op.kind]}})

    return map_operators(trace, note)


TECHNIQUE = Technique(
    name="load",
    description="uneven load: popular experts, sequences of different lengths in a decoding batch",
    source="popularity: NVIDIA aiconfigurator, collector/helper.py; lengths: longest over mean of a batch",
    parameters={
        "imbalance": Parameter(0.0, "exponent of experts' popularity; 0 = even, benchmarks take 1.2", low=0, high=3),
        "skew": Parameter(1.0, "longest over mean number of keys in a batch", low=1, high=1000),
    },
    apply=apply,
)
