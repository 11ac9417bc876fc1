"""What the discrete-event level simulated, for a document and for Perfetto's viewer."""

from __future__ import annotations

from typing import Any

from .estimate import Estimate
from .event import SAMPLES, EventLevel, Pass, prompt_beside_decode
from .event_machine import TICKS


def event_document(level: EventLevel, result: Estimate) -> dict[str, Any]:
    """Utilisation and contention of the prefill and of the decode step at the mean context, and how it was sampled.

    ``utilisation``: seconds that all streams occupy a resource over seconds of the pass. ``contention``: of a pass
    of every stream, seconds together, of one alone, one after another; ``slowdown`` is together over alone, ``gain``
    one after another over together; ``waited_s`` what a stream's tiles waited for their turns.
    ``prompt_beside_decode``: one stream reads its prompt while the others decode (:func:`.event.prompt_beside_decode`);
    totals do not use it: they are of streams that arrive together.
    """
    phases = {name: level.passes[point] for name, point in points(result).items()}
    contexts = sorted(c for _, q, c in level.passes if q == 1)
    beside = prompt_beside_decode(phases["prefill"], phases["decode"], level.streams) if level.streams > 1 else None
    return {
        "streams": level.streams,
        "prompt_beside_decode": beside,
        "utilisation": {name: {r: s / p.seconds for r, s in p.busy_s.items()} for name, p in phases.items()},
        "contention": {name: _contention(p, level.streams) for name, p in phases.items()},
        "sampling": {
            "simulated_passes": len(level.passes),
            "decode_contexts": contexts,
            "repetitions_of_a_block": max(p.repetitions for p in phases.values()),
            "meaning": f"decode steps are simulated at {SAMPLES} contexts and the mean one; others take the closed "
            "form times the ratio interpolated between",
        },
    }


def points(result: Estimate) -> dict[str, tuple[float, float, float]]:
    """(batch, query, context) of the two passes that a document shows."""
    request = result.request
    b = float(-(-request.batch // result.parallel.dp))
    return {
        "prefill": (b, float(request.prompt), 0.0),
        "decode": (b, 1.0, request.prompt + max(request.output - 2, 0) / 2),
    }


def _contention(found: Pass, streams: int) -> dict[str, float]:
    serial = found.alone_s * streams
    return {
        "closed_s": found.closed_s, "alone_s": found.alone_s, "together_s": found.seconds, "serial_s": serial,
        "slowdown": found.seconds / found.alone_s, "gain": serial / found.seconds, "waited_s": found.waited_s,
    }  # fmt: skip


def perfetto_timeline(level: EventLevel, result: Estimate) -> dict[str, Any]:
    """Streams and resources of the simulated repetitions as a Perfetto (Chrome trace event) document, in µs.

    One process per phase, one track per stream and per resource.
    """
    events: list[dict[str, Any]] = []
    for pid, (phase, point) in enumerate(points(result).items(), 1):
        slices = level.passes[point].slices
        title = f"{phase}: {result.model} on {result.device.name}, {level.streams} streams (simulated repetitions)"
        events.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": title}})
        tracks = {name: i for i, name in enumerate(sorted({s.track for s in slices}), 1)}
        for name, tid in tracks.items():
            events.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}})
        for s in slices:
            start, length = s.start * 1e6 / TICKS, s.length * 1e6 / TICKS
            events.append({"ph": "X", "pid": pid, "tid": tracks[s.track], "name": s.name, "ts": start, "dur": length})
    return {"traceEvents": events, "displayTimeUnit": "ns"}
