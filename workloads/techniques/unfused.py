"""Operator at a time: a dataflow device runs every operator as a kernel of its own, results through memory.

The baseline that fusion is compared with (SN40L, arXiv:2405.07518). Only dataflow models (:mod:`tokenfab.hw.dataflow`)
look at the marks: what other kinds run is unfused already.
"""

from __future__ import annotations

from ..rewrite import map_operators
from ..trace import Trace
from . import Parameter, Technique


def apply(trace: Trace, launch: str) -> Trace:
    """``trace`` with every operator marked to run alone, started by ``launch``."""
    return map_operators(
        trace, lambda op: op.model_copy(update={"attrs": op.attrs | {"fused": False, "launch": launch}})
    )


TECHNIQUE = Technique(
    name="unfused",
    description="a dataflow device runs one operator at a time, intermediate results through memory",
    source="SN40L, arXiv:2405.07518: the unfused baseline",
    parameters={
        "launch": Parameter(
            "software", "who starts kernels: the host, or a sequencer on the chip", choices=("software", "hardware")
        )
    },
    apply=apply,
)
