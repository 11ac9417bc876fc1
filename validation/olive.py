"""OliVe (ISCA 2023) over GOBO, 8-bit integers, ANT, AdaFloat and OLAccel: published speed and energy, and the models'.

    python -m tokenfab.validation.olive

On a GPU: the catalogue's RTX 2080 Ti. OliVe multiplies 4-bit pairs by 4-bit pairs at the rate of 4-bit integers, its
decoders in the pipeline's shadow; GOBO stores weights in 3 bits (and an outlier in a thousand in 32) and multiplies in
binary16; ANT takes most layers of these models in 8 bits. As accelerators: arrays of the pair unit of ``rtl/``
at 500 MHz and 64 GB/s, as many elements as the ANT simulator's files give each design at one area: 4096 4-bit ones
of OliVe, as many of ANT, which eight bits take in fours; AdaFloat 32 x 28 of 8 bits; OLAccel 16 x 18 of 4 x 4 bits.

OPT-6.7B, 512 tokens, two sequences; the paper's figures are means over several models, of which it is one. Published:
OliVe, abstract (GOBO) and section 5 as read in notes of others; nothing is fitted.
"""

from __future__ import annotations

from ..errors import unknown_name
from ..hw.cost import cost
from ..hw.devices import load_device
from ..hw.iso import iso_area, iso_bandwidth
from ..hw.spec import Device
from ..workloads.capture import capture
from ..workloads.techniques import apply_techniques
from ..workloads.trace import Trace
from .lut_tensor_core import Line

MODEL, CARD = "opt-6.7b", "rtx-2080-ti"
BATCH, PROMPT = 2, 512
PUBLISHED_GPU = {"GOBO": (4.5, 4.0), "int8": (2.7, 2.3), "ANT": (2.4, 2.0)}
"""Speed-up and energy of OliVe over it."""
PUBLISHED_ARRAYS = {"AdaFloat": 4.8, "OLAccel": 3.8, "ANT": 3.7}
ELEMENTS = {"OliVe": (4096, 4), "ANT": (4096, 8), "AdaFloat": (32 * 28 * 4, 8), "OLAccel": (16 * 18 * 4, 4)}
"""4-bit elements at one area, and the bits of most products (ANT-Quantization, ant_simulator, conf_*.ini)."""
CLOCK_HZ, BANDWIDTH = 500e6, 64e9


def gpu_traces() -> dict[str, Trace]:
    """What the card computes by design."""
    wide = capture(MODEL)
    outliers = "weight-only:bits=3,head=1,group=128,scale_bits=4"  # 32 bits of one weight in a thousand
    return {
        "OliVe": apply_techniques(wide, ["integer-arithmetic:bits=4"]), "GOBO": apply_techniques(wide, [outliers]),
        **dict.fromkeys(("int8", "ANT"), apply_techniques(wide, ["integer-arithmetic:bits=8"])),
    }  # fmt: skip


def gpu_lines() -> list[Line]:
    """Speed-up and energy of OliVe over the others on the card."""
    card = load_device(CARD)
    costs = {name: cost(trace, card, BATCH, PROMPT, 0) for name, trace in gpu_traces().items()}
    lines = []
    for name, (speed, energy) in PUBLISHED_GPU.items():
        own, other = costs["OliVe"], costs[name]
        lines.append(Line(f"{CARD}, speed over {name}", speed, float(other.latency_s[0] / own.latency_s[0])))
        lines.append(Line(f"{CARD}, energy of {name}", energy, float(other.energy_j[0] / own.energy_j[0])))
    return lines


def array_device(elements: int, bits: int) -> Device:
    """The pair unit's arrays with so many 4-bit elements that take ``bits``-bit operands; clock and DRAM alike."""
    olive = load_device("olive")
    arrays, clock = olive.arrays, olive.compute.clock
    assert arrays is not None
    assert arrays.area is not None
    sixteen = {name: q.model_copy(update={"value": 16.0, "text": "16"}) for name, q in arrays.parameters.items()}
    kinds = {f"int{bits}": f"ovp{bits}"}
    changed = olive.model_copy(update={
        "arrays": arrays.model_copy(update={
            "parameters": sixteen, "weights": kinds, "activations": {"fp16": f"ovp{bits}", "bf16": f"ovp{bits}"},
        }),
        "compute": olive.compute.model_copy(update={
            "clock": clock.model_copy(update={
                "value": CLOCK_HZ, "text": "500 MHz", "source": "derived: the ANT simulator's clock",
            }),
        }),
    })  # fmt: skip
    return iso_bandwidth(iso_area(changed, elements / 256 * arrays.area.value), BANDWIDTH)


def array_seconds(name: str) -> float:
    """Seconds of a prompt on the arrays of a design."""
    elements, bits = ELEMENTS[name]
    trace = apply_techniques(capture(MODEL), [f"weight-only:bits={bits},head=1", f"kv-quant:bits={bits}"])
    return float(cost(trace, array_device(elements, bits), BATCH, PROMPT, 0).latency_s[0])


def array_lines() -> list[Line]:
    """Speed-up of OliVe over the other accelerators."""
    own = array_seconds("OliVe")
    return [Line(f"arrays, speed over {name}", x, array_seconds(name) / own) for name, x in PUBLISHED_ARRAYS.items()]


def array_speed(over: str) -> float:
    """speed of arrays of 4-bit outlier-victim pairs over those of another design (``ANT``, ``AdaFloat``, ``OLAccel``)
    of as much area, a prompt of OPT-6.7B"""
    if over not in ELEMENTS:
        raise unknown_name("design", over, ELEMENTS)
    return array_seconds(over) / array_seconds("OliVe")


FIGURES = {"pair_arrays_speed": array_speed}


def main() -> None:
    """Print both."""
    print(f"{'':36} {'paper':>7} {'ours':>7}  error")
    for line in gpu_lines() + array_lines():
        print(f"{line.what:36} {line.published:7.2f} {line.ours:7.2f} {line.error:+6.0%}")


if __name__ == "__main__":
    main()
