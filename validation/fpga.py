"""FPGA designs against what was published of them: every figure beside the model's, nothing fitted.

    python -m tokenfab.validation.fpga            # all tables
    python -m tokenfab.validation.fpga flightllm  # or m3vit, later

The published figures are inputs of the comparison only; no constant of the model is taken from them. Where they
contradict one another, what each would imply is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log

from ..hw.cost import cost
from ..hw.devices import load_device
from ..hw.estimate import Estimate, Request, estimate
from ..hw.fpga_design import resource_lines
from ..hw.fpga_experts import expert_memory
from ..hw.fpga_placement import placement
from ..hw.fpga_program import program_bytes
from ..hw.spec import Device
from ..hw.units import Quantity
from ..models.config import ModelConfig
from ..models.vit_config import vit_config
from ..workloads.capture import capture
from ..workloads.techniques import apply_techniques
from ..workloads.trace import Trace
from ..workloads.vision import all_activated, capture_vision

MODEL = "llama-2-7b"
PAPER = ("mixed-precision:head=1", "sparsity:pattern=blocks,m=16,density=0.8,where=qkv", "kv-quant:bits=8")
"""FlightLLM's compression: 3.5 bits on average, q and k at a density of 0.7 (of the three projections, 0.8)."""
SIMULATED = ("weight-only:group=0,head=1", "sparsity:pattern=blocks,m=16,density=0.8,where=qkv",
             "kv-quant:bits=8,scale_bits=0")  # fmt: skip
"""What its published simulator runs: INT4 everywhere, no scales."""
CASES = (
    (128, 512, 289.9, 4946.4), (128, 1024, 289.9, 10318.6), (128, 1536, 289.9, 16103.1),
    (512, 512, 1181.4, 5269.0), (512, 1024, 1181.4, 10950.5), (512, 1536, 1181.4, 17044.3),
)  # fmt: skip
"""Prompt and output tokens, milliseconds of prompt and of decoding: its simulator's output for the VHK158
(FlightLLM/flightllm_test_demo at 4a96251, profile/README.md), every time divided by 3.2 in there."""
VLLM_A100 = ((17.6, 5727.0), (15.5, 11645.2), (15.5, 17561.8), (40.4, 5879.7), (40.4, 11899.8), (40.7, 17627.1))
"""The same cases on an A100 with vLLM, from the same page."""


@dataclass(frozen=True)
class Row:
    """One line of a table; ``paper`` is None where the model alone says something."""

    what: str
    paper: float | None
    model: float
    unit: str = ""
    note: str = ""

    def __str__(self) -> str:
        paper = "" if self.paper is None else f"{self.paper:10.4g}"
        ratio = "" if self.paper is None else f"{self.model / self.paper:6.2f}"
        return f"{self.what:<58}{paper:>10}{self.model:10.4g} {self.unit:<9}{ratio:>6}  {self.note}".rstrip()


@cache
def traced(*techniques: str, model: str = MODEL) -> Trace:
    """A model with techniques applied, captured once."""
    return apply_techniques(capture(model), list(techniques))


def decode_rate(found: Estimate) -> float:
    """Tokens per second without the prompt, as the publications count."""
    return (found.request.output - 1) * found.request.batch / (found.latency_s - found.prefill.latency_s)


def decode_power(found: Estimate) -> float:
    """Mean watts while decoding."""
    return (found.energy_j - found.prefill.energy_j) / (found.latency_s - found.prefill.latency_s)


def simulated_cases() -> list[Row]:
    """The published simulator's cases on the VHK158."""
    device, rows = load_device("vhk158-flightllm"), []
    for prompt, output, prefill, decode in CASES:
        found = estimate(traced(*SIMULATED), device, Request(1, prompt, output))
        if output == CASES[0][1]:
            rows.append(Row(f"prompt {prompt}", prefill, found.prefill.latency_s * 1e3, "ms"))
        rows.append(Row(f"prompt {prompt}, decode {output}", decode, output / decode_rate(found) * 1e3, "ms"))
    return rows


def flightllm() -> list[Row]:
    """FlightLLM's claims."""
    u280, vhk158 = load_device("u280-flightllm"), load_device("vhk158-flightllm")
    request = Request(1, 128, 512)
    card, board = (estimate(traced(*PAPER), d, request) for d in (u280, vhk158))
    gpus = {name: estimate(traced(), load_device(name), request) for name in ("v100s", "a100-80g-sxm")}
    rate, power = decode_rate(card), decode_power(card)
    versal = [decode_rate(estimate(traced(*SIMULATED), vhk158, Request(1, p, o))) for p, o, *_ in CASES]
    vllm = [o / ms * 1e3 for (_, o, *_), (_, ms) in zip(CASES, VLLM_A100, strict=True)]
    v100s = gpus["v100s"]
    gpu_rate, gpu_power = decode_rate(v100s), decode_power(v100s)
    price = _price(u280), _price(load_device("v100s"))
    assert board.latency_s < card.latency_s
    return [
        Row("U280: decode, 3.5 bits", 55, rate, "token/s"),
        Row("U280: power", 45, power, "W"),
        Row("U280: energy", 1.22, rate / power, "token/J"),
        Row("VHK158: decode, 3.5 bits", 92.5, decode_rate(board), "token/s"),
        Row("VHK158: decode, simulator's six cases, geometric mean", _mean([o / d * 1e3 for _, o, _, d in CASES]),
            _mean(versal), "token/s"),
        Row("V100S: decode, FP16 by the model, SmoothQuant and vLLM by the paper", 45, gpu_rate, "token/s"),
        Row("V100S: power", 220, gpu_power, "W"),
        Row("energy efficiency, U280 over V100S", 6.0, rate / power / (gpu_rate / gpu_power), "x"),
        Row("energy efficiency, U280 over V100S as measured in the paper", 6.0, rate / power / (45 / 220), "x"),
        Row("cost efficiency, U280 over V100S", 1.8, rate / price[0] / (gpu_rate / price[1]), "x",
            f"at ${price[0]:.0f}, assumed, and ${price[1]:.0f}"),
        Row("cost efficiency, U280 over V100S as measured in the paper", 1.8, rate / price[0] / (45 / price[1]), "x"),
        Row("throughput, VHK158 over A100 by the model", 1.2, _mean(versal) / decode_rate(gpus["a100-80g-sxm"]), "x"),
        Row("throughput, VHK158 over A100 as printed by its simulator", 1.2, _mean(versal) / _mean(vllm), "x",
            f"its own output is {_mean([o / d * 1e3 for _, o, _, d in CASES]) / _mean(vllm):.2f}"),
        *readings(u280), *on_chip(u280), *chains(u280), *programs(u280),
    ]  # fmt: skip


def readings(u280: Device) -> list[Row]:
    """What 55 token/s and 65.9 % of HBM's bandwidth each imply of the other: they contradict one another."""
    peak, rows = u280.dram.bandwidth.value, []
    for bits in (3.5, 4.0, 8.0):
        width = f"mixed-precision:average={bits},widest=8,head=1"
        moved = float(traced(width, "kv-quant:bits=8").total("bytes")(1, 1, 384))
        rows.append(Row(f"HBM use at 55 token/s with {bits:g}-bit weights", 65.9, 55 * moved / peak * 100, "%"))
        rows.append(Row(f"token/s at 65.9 % HBM use with {bits:g}-bit weights", 55, 0.659 * peak / moved, "token/s"))
    found = estimate(traced(*PAPER), u280, Request(1, 128, 512))
    used = decode_rate(found) * found.decode.bytes / peak * 100
    return [*rows, Row("HBM use, the model's decoding", 65.9, used, "%", "24 of 32 channels at 70 %: at most 52.5 %")]


def on_chip(u280: Device) -> list[Row]:
    """Activations on the chip against all of them through HBM."""
    request = Request(1, 128, 512)
    memory = dict(u280.memory)
    level = memory["activations"]
    tiny = Quantity(value=1.0, unit="B", text="1 B", source="derived: nothing stays on the chip")
    memory["activations"] = level.model_copy(update={"capacity": tiny})
    spilled = u280.model_copy(update={"memory": memory})
    with_, without = (decode_rate(estimate(traced(*PAPER), d, request)) for d in (u280, spilled))
    wide = decode_rate(estimate(traced("weight-only:bits=8,head=1", "kv-quant:bits=8"), spilled, request))
    return [
        Row("decode, activations on the chip over through HBM", None, with_ / without, "x"),
        Row("decode, on the chip and 3.5 bits over through HBM and INT8", 0.659 / 0.356, with_ / wide, "x",
            "the paper's is of bandwidth used"),
    ]  # fmt: skip


def chains(u280: Device) -> list[Row]:
    """What skipping zeros gains of the prompt, where chains are what binds."""
    dense, sparse = (
        float(cost(traced("weight-only:head=1", "kv-quant", *more), u280, 1, 512, 0).latency_s[0])
        for more in ((), ("sparsity:n=8,m=16",))
    )
    return [Row("prompt of 512, 8:16 weights over dense", 1.6, dense / sparse, "x", "the paper's mix is not known")]


def programs(u280: Device) -> list[Row]:
    """Instruction bytes of length-adaptive compilation."""
    found = program_bytes(traced(), u280, 2048)
    return [
        Row("programs of all lengths to 2048 and regions", None, found.each_length / 1e12, "TB", "paper: TB"),
        Row("programs of ranges, shared by regions", None, found.shared / 1e9, "GB", "paper: GB"),
        Row("saving of instruction storage", 500, found.saving, "x", "without merged loads"),
    ]


def m3vit() -> list[Row]:
    """M3ViT's claims, and the ablation of its follow-on for the effect of reordering."""
    config, device = vit_config("m3vit-small"), load_device("zcu104-m3vit")
    image = (1, config.tokens, 0)
    one, every = (float(capture_vision(c).total("flops")(*image)) for c in (config, all_activated(config)))
    trace = apply_techniques(capture_vision(config), ["weight-only:bits=8,head=1"])
    by_token = apply_techniques(trace, ["expert-order:by=token"])
    queued, loaded = (cost(t, device, *image) for t in (trace, by_token))
    tiny = vit_config("edge-moe-tiny")
    wide = capture_vision(tiny)  # 16-bit weights, as the follow-on has
    again = apply_techniques(wide, ["expert-order:by=token"])
    saved = float((again.total("bytes") - wide.total("bytes"))(1, tiny.tokens, 0))
    bandwidth = device.dram.bandwidth.value * device.model.memory_efficiency.value
    return [
        Row("FLOPs saved by one task's path: every expert active", 88, (1 - one / every) * 100, "%",
            "the paper's baselines are multi-task CNNs, not known here"),
        Row("FLOPs saved: an encoder of this size for each of five tasks", 88, (1 - 1 / 5) * 100, "%"),
        Row("FLOPs saved: the same with every expert active", 88, (1 - one / every / 5) * 100, "%"),
        Row("backbone FLOPs, one image of 480 x 640", None, one / 1e9, "GFLOP"),
        Row("memory, all experts of a layer held over two", 2.4, expert_memory(trace, 1, config.tokens).saving, "x",
            "what else the paper counts is not known"),
        Row("latency, one image", None, float(queued.latency_s[0]) * 1e3, "ms", "paper's own: not found"),
        Row("energy efficiency, by expert over by token", 9.23, float(loaded.energy_j[0] / queued.energy_j[0]), "x",
            "up to, over an FPGA baseline that is not known"),
        Row("Edge-MoE: saved by reordering (650.3 to 433.4 ms)", 216.9, saved / bandwidth * 1e3, "ms",
            f"{saved / 1e6:.0f} MB less; the base would load at {saved / 216.9e-3 / 1e9:.1f} GB/s"),
    ]  # fmt: skip


def later() -> list[Row]:
    """Later designs on such boards, with the catalogue's design in their place: how far one design is from another."""
    u280, zcu104 = load_device("u280-flightllm"), load_device("zcu104-m3vit")
    request = Request(1, 128, 512)
    narrow = traced("weight-only:bits=2,head=1", "sparsity:n=2,m=4", "kv-quant:bits=4")
    four = traced("weight-only:head=1", "kv-quant:bits=8")
    gpt2 = apply_techniques(capture(GPT2_345M), ["weight-only:bits=8,head=1", "kv-quant:bits=8"])
    dimm = zcu104.dram.bandwidth.model_copy(update={"value": 34.1e9, "text": "34.1 GB/s"})
    memory = zcu104.memory | {"dram": zcu104.dram.model_copy(update={"bandwidth": dimm})}
    wide = zcu104.model_copy(update={"memory": memory})
    return [
        Row("AccLLM, U280 at 225 MHz: 2:4, W2A8KV4 (simulated)", 164, _rate(narrow, u280, request), "token/s",
            "indices are counted here: 2.06 bits per weight"),
        Row("KV260 at 19.2 GB/s: Llama-2-7B, W4 (84 % of bandwidth)", 4.9, _rate(four, zcu104, request), "token/s",
            "the ZCU104's chains and 85 %"),
        Row("ZCU104 at 34.1 GB/s: Llama-2-7B, W4", None, _rate(four, wide, request), "token/s",
            "Hummingbird reaches 93 % of it"),
        Row("Chen et al., U280: GPT-2 345M, W8", 204, _rate(gpt2, u280, request), "token/s"),
    ]  # fmt: skip


GPT2_345M = ModelConfig(
    name="gpt2-345m", description="GPT-2 medium", source="GPT-2 report, 2019, table 2 (recalled)", hidden=1024,
    layers=24, heads=16, kv_heads=16, head_dim=64, inner=4096, vocabulary=50257, max_context=1024, norm="layer",
    norm_eps=1e-5, act="gelu_tanh", gated=False, position="learned", qkv_bias=True, bias=True, tied=True, format="fp16",
)  # fmt: skip
TABLES: dict[str, Callable[[], list[Row]]] = {
    "simulator": simulated_cases, "flightllm": flightllm, "m3vit": m3vit, "later": later,
}  # fmt: skip


def _rate(trace: Trace, device: Device, request: Request) -> float:
    return decode_rate(estimate(trace, device, request))


def _price(device: Device) -> float:
    price = device.price.purchase
    assert price is not None
    return price.value


def _mean(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def main(arguments: list[str]) -> int:
    """Print the tables named, all of them without names; 2 for a name there is not."""
    if unknown := [a for a in arguments if a not in TABLES]:
        print(f"error: {unknown[0]!r}: no such table; accepted: {', '.join(TABLES)}", file=sys.stderr)
        return 2
    for name in arguments or TABLES:
        print(f"{name:<58}{'published':>10}{'model':>10}  {'':<8} {'ratio':>6}")
        for row in TABLES[name]():
            print(row)
        print()
    if not arguments:
        for device in ("u280-flightllm", "vhk158-flightllm", "zcu104-m3vit"):
            print(f"{device}: {resource_lines(load_device(device))[0]}")
        for place in placement(traced(*PAPER), load_device("u280-flightllm"), 1, 1, 384):
            where = f"{place.where}, {place.channels} channels" if place.channels else "buffers on the chip"
            rate = f", {place.bytes_s / 1e9:.4g} GB/s" if place.bytes_s else ""
            print(f"u280-flightllm: {place.size / 1e6:.4g} MB of {place.data} in {where}{rate}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
