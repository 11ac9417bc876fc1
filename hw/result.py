"""An estimate as a JSON document: what the command line prints and what reports are made from."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from .. import __version__
from ..workloads.compiled import compile_trace
from ..workloads.expr_functions import Array
from ..workloads.parallel import tensor_parallel
from ..workloads.trace import Trace
from .cost import Costs, cost, kind_modules
from .die import area_document, price_document
from .energy import energy_document
from .estimate import Estimate, Phase, Request, memory_fit
from .event import EventLevel
from .hourly import USD_PER_KWH
from .spec import Device
from .timeline import event_document, points

SCHEMA = "tokenfab.estimate"
VERSION = 1
LONGEST_CURVE = 131072
"""Tokens to which curves run for models that state no longest context."""


def estimate_document(
    result: Estimate, trace: Trace, *, explain: bool = False, event: EventLevel | None = None
) -> dict[str, Any]:
    """``result`` of ``trace`` as a document with the promised keys; ``explain`` adds operators and curves.

    ``event`` is the level that costed the passes, where it was not the closed form; curves are the closed form's.
    """
    device, share = result.device, tensor_parallel(trace, result.parallel.tp)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "tokenfab": __version__,
        "model": model_facts(trace),
        "device": device_facts(device, trace) | {"count": result.parallel.devices, "parallel": str(result.parallel)},
        "level": "event" if event else "closed",
        "request": {
            "batch": result.request.batch, "prompt": result.request.prompt, "output": result.request.output,
        } | ({"streams": result.streams} if result.streams > 1 else {}),
        "prefill": _phase(result.prefill),
        "decode": _phase(result.decode) | {"context": result.request.prompt + max(result.request.output - 2, 0) / 2},
        "total": {
            "latency_s": result.latency_s,
            "interval_s": list(result.interval_s),
            "tokens_per_s": result.tokens_per_s,
            "energy_j": result.energy_j,
            "energy_interval_j": list(result.energy_interval_j),
            "energy_per_token_j": result.energy_j / result.tokens,
            "cost_usd_per_mtoken": result.cost_usd_per_mtoken,
            "cost_basis": result.hourly_usd[1] if result.hourly_usd else None,
        },
        "memory": {
            "weights_bytes": result.memory.weights_bytes,
            "kv_bytes": result.memory.kv_bytes,
            "activation_bytes": result.memory.activation_bytes,
            "buffer_bytes": result.memory.buffer_bytes,
            "needed_bytes": result.memory.needed_bytes,
            "capacity_bytes": result.memory.capacity_bytes,
            "missing_bytes": result.memory.missing_bytes,
            "fits": result.memory.fits,
            "levels": [
                {
                    "device": h.level.device,
                    "level": h.level.name,
                    "capacity_bytes": h.level.capacity_bytes,
                    "holds": h.bytes,
                    "missing_bytes": h.missing_bytes,
                }
                for h in result.memory.levels
            ],
        },
        "area": area_document(device),
        "price": price_document(device),
        "components": energy_document(compile_trace(share), device, points(result)),
        "provenance": provenance(result, trace),
    }  # fmt: skip
    if event is not None:
        document["event"] = event_document(event, result)
    if explain:
        document["operators"] = [
            {
                "phase": o.phase, "name": o.name, "kind": o.kind, "count": o.count, "time_s": o.time_s,
                "bound": o.bound, "flops": o.flops, "bytes": o.bytes,
                "energy_j": o.energy_j, "energy_parts_j": o.energy_parts_j,
            }
            for o in result.operators
        ]  # fmt: skip
        document["curves"] = curves(result, trace)
        told = getattr(kind_modules().get(device.kind), "placement", None)
        if told is not None:
            document["placement"] = [asdict(place) for place in told(share, device, *points(result)["decode"])]
    return document


def lines(document: dict[str, Any], explain: bool) -> list[str]:
    """What a person wants to know of a document beyond times: what streams cost each other, where area and price go."""
    found: list[str] = []
    for phase, c in document["event"]["contention"].items() if "event" in document else ():
        use = document["event"]["utilisation"][phase]
        busy = ", ".join(f"{name} {share:.0%}" for name, share in sorted(use.items(), key=lambda x: -x[1]))
        beside = (
            f": {document['event']['streams']} streams take {c['slowdown']:.2f} times one alone, "
            f"{c['gain']:.2f} times as fast as one after another"
        )
        found.append(f"{phase}: in use {busy}{beside if document['event']['streams'] > 1 else ''}")
    if (mixed := document.get("event", {}).get("prompt_beside_decode")) is not None:
        found.append(
            f"a prompt beside {document['event']['streams'] - 1} decoding: prompt {mixed['prompt_slowdown']:.2f} and "
            f"decode {mixed['decode_slowdown']:.2f} times as long, together {mixed['gain']:.2f} times as fast"
        )
    for place in document.get("placement", ()):
        where = f"{place['where']}, {place['channels']} channels" if place["channels"] else "buffers on the chip"
        rate = f", {place['bytes_s'] / 1e9:.4g} GB/s" if place["bytes_s"] else ""
        found.append(f"placement: {place['size'] / 1e6:.4g} MB of {place['data']} in {where}{rate}")
    for key, unit in (("area", "mm2"), ("price", "usd")) if explain else ():
        parts = ", ".join(f"{name} {x:.4g}" for name, x in document[key][f"parts_{unit}"].items())
        total = document[key][f"total_{unit}"]
        said = f"{total:.5g} {unit}{f' = {parts}' if parts else ''}" if total is not None else document[key]["reason"]
        if document[key][f"parts_{unit}"].get("unexplained", 0.0) < 0 and document[key]["note"]:
            said += f" ({document[key]['note']})"
        found.append(f"{key}: {said}")
    return found


def model_facts(trace: Trace) -> dict[str, Any]:
    """What a reader wants to know of the model itself."""
    return {
        "name": trace.model,
        "parameters": trace.parameters,
        "format": trace.format,
        "weights_bytes": trace.weights_bytes,
        "kv_bytes_per_token": trace.kv_bytes_per_token,
        "max_context": trace.max_context,
        "layers": max(b.repeat for b in trace.blocks),
        "hidden": trace.hidden,
        "operators": sum(len(b.operators) for b in trace.blocks),
        "applied": list(trace.applied),
        "provenance": dict(trace.provenance),
    }


def device_facts(device: Device, trace: Trace) -> dict[str, Any]:
    """The device's numbers, each with its source, and its (or its host's) roofline for the model's format."""
    worker, used, rate = _peak(trace, device)
    return {
        "name": device.name,
        "description": device.description,
        "kind": device.kind,
        "architecture": device.architecture,
        "peak_flops": rate,
        "peak_format": used,
        "achievable_flops": rate * worker.model.matmul_efficiency.value,
        "bandwidth": worker.dram.bandwidth.value,
        "achievable_bandwidth": worker.dram.bandwidth.value * worker.model.memory_efficiency.value,
        "capacity_bytes": device.dram.capacity.value,
        "tdp_w": device.power.tdp.value,
        "digest": device.digest,
        "quantities": [
            {"key": key, "value": q.value, "unit": q.unit, "text": q.text, "source": q.source, "assumed": q.assumed}
            for key, q in device.quantities()
        ],
    }


def _peak(trace: Trace, device: Device) -> tuple[Device, str, float]:
    """Who does most of the arithmetic, device or host, and its fastest format and FLOP/s for the trace."""
    told = getattr(kind_modules().get(device.kind), "peak", None)
    if told is not None:
        return device, *told(trace, device)
    worker = device.host or device
    used, rate = worker.rate(trace.format)
    return worker, used, rate.value


def provenance(result: Estimate, trace: Trace) -> list[str]:
    """Where the answer comes from, one line each: trace, device, constants, assumptions."""
    device = result.device
    assumed = [key for key, q in device.quantities() if q.assumed]
    lines = [
        f"trace of {trace.model}: {trace.provenance.get('capture', 'read from a file')}",
        *(f"technique: {text}" for text in result.applied),
        f"device {device.name}: file with sha256 {device.digest[:12]}",
        *_constants(device),
        f"interval: 5 % and 95 % quantiles of measured over predicted kernel time{_together(device)}",
    ]
    if (hourly := result.hourly_usd) is not None:
        lines.append(f"price: ${hourly[0]:.3g} per hour ({hourly[1]}, ${USD_PER_KWH:.2f} per kWh)")
    if assumed:
        lines.append(f"{len(assumed)} numbers of this device are assumed: {', '.join(assumed)}")
    return lines


def _constants(device: Device) -> list[str]:
    """Where the constants of its times are from: what its kind's module says, else the roofline's shares."""
    told = getattr(kind_modules().get(device.kind), "constants", None)
    if told is not None:
        return list(told(device))
    m = device.model
    return [
        f"matmul reaches {m.matmul_efficiency.text} of peak: {m.matmul_efficiency.source}",
        f"streams reach {m.memory_efficiency.text} of bandwidth: {m.memory_efficiency.source}",
    ]


def _together(device: Device) -> str:
    """How errors of operators go together, as the device file has it."""
    within, across = device.model.correlation, device.model.correlation_across
    if within is None:
        return ", operators taken as fully correlated"
    other = across.text if across else within.text
    return f", composed with a correlation of {within.text} within and {other} across families of operators"


def curves(result: Estimate, trace: Trace, points: int = 25) -> dict[str, dict[str, list[Any]]]:
    """Decode step against context, prefill against prompt, and decode against batch, for plots."""
    device, request, parallel = result.device, result.request, result.parallel
    share = tensor_parallel(trace, parallel.tp)
    compiled = compile_trace(share)
    longest = trace.max_context or LONGEST_CURVE
    replica = -(-request.batch // parallel.dp)
    lengths = np.unique(np.round(np.geomspace(16, longest, points)))
    batches = np.unique(np.round(np.geomspace(1, 512, 19)))
    by_context = cost(compiled, device, replica, 1, lengths - 1)
    by_prompt = cost(compiled, device, replica, lengths, 0)
    context = request.prompt + max(request.output - 2, 0) / 2
    by_batch = cost(compiled, device, batches, 1, context)
    fits = [memory_fit(share, device, _with_batch(result, int(b)), parallel.pp).fits for b in batches]
    return {
        "context": {"context": lengths.tolist(), **_series(by_context)},
        "prompt": {"prompt": lengths.tolist(), **_series(by_prompt)},
        "batch": {
            "batch": (batches * parallel.dp).tolist(), **_series(by_batch),
            "tokens_per_s": _list(batches * parallel.dp / by_batch.latency_s), "fits": fits,
        },
    }  # fmt: skip


def _with_batch(result: Estimate, batch: int) -> Request:
    return replace(result.request, batch=batch)


def _series(costs: Costs) -> dict[str, list[float]]:
    return {"latency_s": _list(costs.latency_s), "low_s": _list(costs.low_s), "high_s": _list(costs.high_s)}


def _list(values: Array) -> list[float]:
    return [float(v) for v in values]


def _phase(phase: Phase) -> dict[str, Any]:
    return {
        "latency_s": phase.latency_s,
        "interval_s": list(phase.interval_s),
        "energy_j": phase.energy_j,
        "energy_interval_j": list(phase.energy_interval_j),
        "energy_parts_j": phase.energy_parts_j,
        "bound": phase.bound,
        "flops": phase.flops,
        "bytes": phase.bytes,
    }
