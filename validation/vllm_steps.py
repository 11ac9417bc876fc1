"""Whole steps of Llama-3.1-8B: the sum of vLLM's measured kernels against the models' and the trace's.

    python -m tokenfab.validation.vllm_steps --truth DIR

A step of ``sequences`` that decode over ``context`` cached tokens, with a chunk of a prompt (``query`` new tokens over
``prefix``) or without, is 32 layers, the embedding, the last norm, the head and the sampler. ``measured`` adds up what
the tables of :mod:`.vllm_tables` have of each (the head and the sampler between two measured numbers of sequences on a
line); ``kernels`` what the models say of the same kernels; ``trace`` is :func:`tokenfab.hw.cost.cost` of the captured
model, without the sampler, whose norms and residual sums are kernels apart, at the steps that have no chunk or
nothing else. Gaps between kernels and the engine's host are in none of them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..hw.attention import attention_kernels
from ..hw.cost import cost
from ..hw.devices import load_device
from ..hw.gemm import gemm_kernels
from ..hw.sampler import sampler_time
from ..hw.spec import Device, Interval
from ..workloads.load import load_trace
from .intervals import Errors, joined_errors, unmeasured
from .part import Part
from .vllm_kernels import Model, batch_parts, before, errors, model_of, predict_elementwise, predict_linear
from .vllm_tables import (
    ELEMENTWISE,
    FOLDERS,
    LAYERS,
    LINEAR,
    SAMPLER,
    VOCABULARY,
    Array,
    Batches,
    Layers,
    Mask,
    read_batches,
    read_layers,
)

TRACE = "llama-3-8b"
"""The preset with the sizes of Llama-3.1-8B."""
ONCE = ("embedding", "final_layernorm")
PER_LAYER = {"layernorm": 2.0, "qkv_proj": 1.0, "rotary_emb": 1.0, "o_proj": 1.0, "gate_up_proj": 1.0, "act_fn": 1.0,
             "down_proj": 1.0}  # fmt: skip
"""Calls in a layer."""


@dataclass(frozen=True)
class Steps:
    """Steps by :attr:`batches`, (N,) rows of attention.csv whose tokens the dense table has too: seconds of their
    kernels as measured and as the models say, and of the trace (NaN where a chunk and decoding sequences share it)."""

    batches: Batches
    measured: Array
    kernels: Array
    trace: Array

    def pick(self, where: Mask) -> Steps:
        """Some of the steps."""
        return Steps(self.batches.pick(where), self.measured[where], self.kernels[where], self.trace[where])


def steps(truth: Path, name: str, model: Model | None = None) -> Steps:
    """Every step that the tables of the device ``name`` have; ``model``: constants, the device file's unless given."""
    device = load_device(name)
    model = model or model_of(device)
    layers, batches = read_layers(truth, name), read_batches(truth, name)
    dense = layers.of(tuple(PER_LAYER))
    batches = batches.pick(np.isin(batches.query + batches.sequences, dense.tokens))
    tokens, outputs = batches.query + batches.sequences, batches.sequences + (batches.query > 0)
    measured, predicted = np.zeros((2, tokens.size))
    for layer in (*PER_LAYER, *ONCE):
        times = LAYERS * PER_LAYER[layer] if layer in PER_LAYER else 1.0
        rows = layers.of((layer,))
        place = np.searchsorted(rows.tokens, tokens)
        measured += times * rows.seconds[place]
        predicted += times * _predict(rows, layer, model, gemm_kernels(device)[1])[place]
    for layer in ("lm_head", SAMPLER):
        rows = layers.of((layer,))
        measured += np.interp(outputs, rows.tokens, rows.seconds)
        asked = Layers(np.full(tokens.size, layer), outputs, measured, np.zeros(tokens.size, np.intp))
        predicted += _predict(asked, layer, model, gemm_kernels(device)[1])
    measured += LAYERS * batches.seconds
    predicted += LAYERS * batch_parts(batches, model, attention_kernels(device)[1]).seconds
    return Steps(batches, measured, predicted, _trace(name, batches, model))


def _predict(rows: Layers, layer: str, model: Model, kernels) -> Array:  # type: ignore[no-untyped-def]
    if layer in LINEAR:
        return np.asarray(predict_linear(rows, model, kernels)[0])
    assert layer in (*ELEMENTWISE, SAMPLER)
    return predict_elementwise(rows, model)


def _trace(name: str, batches: Batches, model: Model) -> Array:
    """The captured model's time and the sampler's; NaN where its batch and query cannot say the step."""
    kinds = batches.classes()
    out = np.full(batches.seconds.size, np.nan)
    decode, prefill = kinds["decode"], kinds["prefill"]
    batch = np.where(decode, batches.sequences, 1.0)
    query = np.where(decode, 1.0, batches.query)
    cached = np.where(decode, batches.context, batches.prefix)
    here = decode | prefill
    told = cost(load_trace(TRACE), load_device(name), batch[here], query[here], cached[here]).latency_s
    out[here] = told + sampler_time(batch[here], VOCABULARY, model.card, model.elementwise)
    return out


def main() -> None:
    """Print errors of steps by class, and some steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    for name in FOLDERS:
        all_steps = steps(truth, name)
        print(f"{name}: MAPE, (sum), of the kernels' models; of the trace")
        for kind, mask in all_steps.batches.classes().items():
            some = all_steps.pick(mask)
            print(f"  {kind:8} {some.measured.size:5}  {_error(some.kernels, some)}   {_error(some.trace, some)}")
        usual = all_steps.pick(_usual(all_steps.batches))
        print(f"  usual    {usual.measured.size:5}  {_error(usual.kernels, usual)}")
        print("  query prefix  sequences context   measured     kernels       trace   ms")
        for query, prefix, sequences, context in SHOWN:
            b = all_steps.batches
            at = (b.query == query) & (b.prefix == prefix) & (b.sequences == sequences) & (b.context == context)
            for one in np.flatnonzero(at):
                m, k, t = (1e3 * x[one] for x in (all_steps.measured, all_steps.kernels, all_steps.trace))
                print(
                    f"  {query:5} {prefix:6} {sequences:10} {context:7} {m:10.2f} {k:6.2f} {k / m - 1:+6.1%} "
                    f"{t:6.2f} {t / m - 1:+6.1%}"
                )


def compare_layers(truth: Path, name: str) -> Iterator[Part]:
    """Suite ``layers``: linear layers and element-wise kernels, odd rows, and ``sampler``; ``steps``: their sums."""
    for mode, device in (("calibrated", load_device(name)), ("physics", before(name))):
        found, held = errors(truth, name, model_of(device)), intervals_of(mode, device)
        layer = joined_errors([found["linear"], found["elementwise"]])
        families = ["matmul"] * found["linear"].ratio.size + ["vector"] * found["elementwise"].ratio.size
        yield _part("layers", mode, layer, families, held)
        yield _part("sampler", mode, found["sampler"], ["vector"] * found["sampler"].ratio.size, held)


def compare_calls(kind: str) -> Callable[[Path, str], Iterator[Part]]:
    """Suite of the attention calls of one :func:`.vllm_kernels.errors`: prefill, decode, mixed, skewed; odd rows.

    Even rows of the skewed calls have other lengths than odd ones, and nobody fitted anything on either.
    """
    own = "unseen" if kind == "skewed" else "calibrated"

    def compare(truth: Path, name: str) -> Iterator[Part]:
        for mode, device in ((own, load_device(name)), ("physics", before(name))):
            found, held = errors(truth, name, model_of(device))[kind], intervals_of(mode, device)
            part = _part(f"attention-{kind}", mode, found, ["attention"] * found.ratio.size, held)
            if kind == "mixed" and mode == "calibrated":  # no estimate has them: their own even rows
                bounds = errors(truth, name, odd=False)[kind].quantiles()
                low, high = np.array([bounds[regime] for regime in found.regime]).T
                part = part._replace(low=low, high=high)
            yield part

    return compare


def intervals_of(mode: str, device: Device) -> dict[str, Interval]:
    """The intervals that an estimate has, or would have on a card nobody measured."""
    return device.intervals if mode == "calibrated" else unmeasured()


def _part(suite: str, mode: str, found: Errors, families: list[str], held: dict[str, Interval]) -> Part:
    names = [
        family if family == "vector" else f"{family}_{regime}"
        for family, regime in zip(families, found.regime, strict=True)
    ]
    low, high = np.array([(held[name].low.value, held[name].high.value) for name in names]).T
    return Part(suite, mode, found.seconds, found.seconds / found.ratio, low, high, 0)


SHOWN = (
    (0, 0, 1, 1024), (0, 0, 8, 256), (0, 0, 32, 256), (0, 0, 32, 512), (0, 0, 64, 256), (0, 0, 64, 512),
    (0, 0, 128, 256), (0, 0, 128, 512), (0, 0, 256, 256), (0, 0, 256, 512), (256, 0, 64, 256), (256, 0, 128, 256),
    (512, 0, 0, 0), (1024, 0, 64, 256), (1024, 0, 128, 512), (2048, 0, 0, 0),
)  # fmt: skip
"""Steps that are printed, of those the tables have."""


def _usual(batches: Batches) -> Mask:
    """Steps as a loaded engine runs them: 16 sequences and more of 128 to 1024 tokens, chunks over short prefixes."""
    decoding = (batches.sequences >= 16) & (batches.context >= 128) & (batches.context <= 1024)
    return np.asarray(decoding & (batches.prefix <= 1024))


def _error(predicted: Array, some: Steps) -> str:
    known = np.isfinite(predicted)
    if not known.any():
        return "-"
    wrong = np.abs(predicted / some.measured - 1)[known].mean()
    return f"{wrong:.1%} ({predicted[known].sum() / some.measured[known].sum() - 1:+.1%})"


if __name__ == "__main__":
    main()
