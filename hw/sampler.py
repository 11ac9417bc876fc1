"""The greedy sampler of a serving engine: what the GPU does between the last matrix product and the next tokens.

    time   = START_S + bytes / rate

The logits of every sequence, ``vocabulary`` numbers of 16 bits, are widened to 32 bits and the largest is found:
2 + 4 bytes, then 4. They stream as other element-wise operands do (:mod:`.elementwise`), from L2 while it holds the
widened ones, which are read again. :data:`START_S` is that of the ten or so small kernels and copies around it.
Against vLLM 0.19 on two cards, 1 to 256 sequences of 128256 tokens: ``python -m tokenfab.validation.vllm_kernels``.
No trace has this: it belongs to an engine's step, once per step. Left out: temperature, top-k and top-p, which sort;
penalties; log probabilities.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .card import Card
from .elementwise import Array, ElementwiseConstants, stream_time

START_S = 25.5e-6
"""Of a step, however few sequences. Fitted on the even rows of both cards."""
WIDE = 4
"""Bytes of a widened logit."""
BYTES_PER_LOGIT = 2 + WIDE + WIDE


def sampler_time(sequences: npt.ArrayLike, vocabulary: float, card: Card, c: ElementwiseConstants) -> Array:
    """Seconds in which the most likely of ``vocabulary`` tokens is found for each of ``sequences``; 0 for none."""
    n = np.asarray(sequences, np.float64)
    streamed = stream_time("elementwise", n * vocabulary * BYTES_PER_LOGIT, card, c, WIDE / BYTES_PER_LOGIT)
    return np.where(n > 0, START_S + streamed, 0.0)
