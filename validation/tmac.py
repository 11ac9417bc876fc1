"""T-MAC's published decoding speeds against the CPU model, with lookup kernels and without.

    python -m tokenfab.validation.tmac [--table FILE.csv]

The figures are those of microsoft/T-MAC, docs/profiling_data.md (llama.cpp b2794), tokens per second of one sequence.
Nothing is fitted to lookups: their rate follows from the instruction set (:mod:`tokenfab.hw.lut_cpu`). One constant
is not independent: the share of DRAM bandwidth of the Raspberry Pi 5 was derived from its 2-bit, 2-thread row.

``--table`` reads further rows (columns model, device, threads, tmac_tok_s) and shows those of devices and models
that there are descriptions of; the rows of the two devices of the catalogue are built in.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..hw.cost import cost
from ..hw.devices import load_device
from ..hw.spec import Device
from ..hw.units import Quantity
from ..workloads.load import load_trace
from ..workloads.techniques import apply_techniques
from ..workloads.trace import Trace

CONTEXT = 64
"""Tokens in the cache: T-MAC does not say how long its runs are."""
DEVICES = {"Raspberry Pi 5": "raspberry-pi-5", "M2-Ultra": "m2-ultra-cpu"}
MODELS = {
    "BitNet-3B": ("bitnet-b1.58-3b", ()),
    "Llama-2-7B (W2)": ("llama-2-7b", ("weight-only:bits=2,head=1",)),
    "Llama-2-7B (W4)": ("llama-2-7b", ("weight-only:bits=4,head=1",)),
}
PUBLISHED = """model,device,threads,tmac_tok_s
BitNet-3B,M2-Ultra,1,22.08
BitNet-3B,M2-Ultra,4,54.46
Llama-2-7B (W2),M2-Ultra,1,16.68
Llama-2-7B (W2),M2-Ultra,8,51.01
Llama-2-7B (W4),M2-Ultra,1,8.97
Llama-2-7B (W4),M2-Ultra,8,35.65
BitNet-3B,Raspberry Pi 5,1,8.03
BitNet-3B,Raspberry Pi 5,2,11.09
Llama-2-7B (W2),Raspberry Pi 5,1,4.40
Llama-2-7B (W2),Raspberry Pi 5,2,5.92
Llama-2-7B (W4),Raspberry Pi 5,1,2.42
Llama-2-7B (W4),Raspberry Pi 5,2,3.35
"""


@dataclass(frozen=True)
class Decode:
    """One row: tokens per second published, modelled, and modelled without lookup kernels; the 90 % interval."""

    model: str
    device: str
    threads: int
    published: float
    modelled: float
    low: float
    high: float
    dequantising: float
    bound: str

    @property
    def ratio(self) -> float:
        return self.modelled / self.published


def with_cores(device: Device, count: int) -> Device:
    """``device`` with ``count`` of its cores at work; DRAM and power stay."""
    share = count / device.compute.units.value
    if share > 1:
        raise InputError(f"{count} threads: {device.name} has {device.compute.units.text} cores")

    def scaled(q: Quantity) -> Quantity:
        return q.model_copy(update={"value": q.value * share})

    engines = {place: {f: scaled(rate) for f, rate in rates.items()} for place, rates in device.engines.items()}
    compute = device.compute.model_copy(update={"units": scaled(device.compute.units)})
    return device.model_copy(update={"engines": engines, "compute": compute})


def without_lookup(device: Device) -> Device:
    """``device`` with no kernels but those that dequantise."""
    kept = {k: v for k, v in device.parameters.items() if k not in ("lookup_ops", "unpack_ops")}
    return device.model_copy(update={"parameters": kept})


def compare(lines: list[str]) -> list[Decode]:
    """Rows of a table in CSV whose model and device are known here. Raises ``InputError`` for a table that is none."""
    traces: dict[str, Trace] = {}
    found = []
    try:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            if row["model"] not in MODELS or row["device"] not in DEVICES:
                continue
            if row["model"] not in traces:
                name, techniques = MODELS[row["model"]]
                traces[row["model"]] = apply_techniques(load_trace(name), list(techniques))
            device = with_cores(load_device(DEVICES[row["device"]]), int(row["threads"]))
            trace = traces[row["model"]]
            costs = cost(trace, device, 1, 1, CONTEXT)
            plain = cost(trace, without_lookup(device), 1, 1, CONTEXT).latency_s[0]
            bound = max(costs.bound, key=lambda reason: float(costs.bound[reason][0]))
            rate, low, high = (1 / float(x[0]) for x in (costs.latency_s, costs.high_s, costs.low_s))
            found.append(Decode(row["model"], row["device"], int(row["threads"]), float(row["tmac_tok_s"]),
                                rate, low, high, 1 / float(plain), bound))  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        wanted = "wanted columns model, device, threads, tmac_tok_s"
        raise InputError(f"no table of decoding speeds: {error}; {wanted}") from None
    return found


def lookup_decode_rate(model: str, device: str, threads: int) -> tuple[float, float, float]:
    """tokens per second of decoding with lookup kernels on so many cores of a CPU"""
    rows = compare(["model,device,threads,tmac_tok_s", f"{model},{device},{threads},1"])
    if not rows:
        raise InputError(f"{model} on {device} is not known; accepted: {', '.join(MODELS)} on {', '.join(DEVICES)}")
    return rows[0].modelled, rows[0].low, rows[0].high


FIGURES = {"lookup_decode_rate": lookup_decode_rate}


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path)
    path = parser.parse_args().table
    text = path.read_text(encoding="utf-8") if path else PUBLISHED
    head = ("model", "device", "threads", "T-MAC", "model", "ratio", "90 %", "dequant.", "bound")
    print("{:16} {:15} {:>7} {:>7} {:>7} {:>6} {:>13} {:>8}  {}".format(*head))
    rows = compare(text.splitlines())
    for r in rows:
        within = f"{r.low:.1f} to {r.high:.1f}"
        print(f"{r.model:16} {r.device:15} {r.threads:7} {r.published:7.2f} {r.modelled:7.2f} {r.ratio:6.2f} "
              f"{within:>13} {r.dequantising:8.2f}  {r.bound}")  # fmt: skip
    errors = sorted(abs(r.ratio - 1) for r in rows)
    inside = sum(r.low <= r.published <= r.high for r in rows)
    if rows:
        print(f"tokens/s; mean error {sum(errors) / len(rows):.0%}, {inside} of {len(rows)} inside the 90 % interval")


if __name__ == "__main__":
    main()
