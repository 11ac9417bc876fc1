"""A replayed placement for Perfetto's viewer: every span of a prefill, a handover and a decode step."""

from __future__ import annotations

from typing import Any

from ..workloads.export import named_tracks, trace_slice
from .options import Built
from .pictures import label, labels
from .replay import Replay


def perfetto_placement(built: Built, played: Replay) -> dict[str, Any]:
    """The replay as a Perfetto (Chrome trace event) document, in µs.

    One process per phase that takes time, which begins at 0; one track per engine and per port of a link that works in
    it. A slice's category is its operator's kind, ``transfer`` on a link; its arguments say the layer.
    """
    problem, known = built.problem, labels(built)
    resources = {r: i for i, r in enumerate(problem.resources)}
    events: list[dict[str, Any]] = []
    node = " + ".join(e.name for e in built.node.engines)
    for pid, (phase, repeats) in enumerate(zip(problem.phases, problem.repeats, strict=True), 1):
        spans = [s for s in played.spans if s.phase == phase]
        if not spans:
            continue
        times = f", {repeats:.0f} times" if repeats != 1 else ""
        used = sorted({s.resource for s in spans}, key=resources.__getitem__)
        tracks = {resource: i for i, resource in enumerate(used, 1)}
        events += named_tracks(pid, f"{phase}{times}: {built.trace.model} on {node}", tracks)
        for s in sorted(spans, key=lambda s: (tracks[s.resource], s.start_s)):
            number, name, kind = label(s, known, len(built.node.engines), resources)
            start, length = s.start_s * 1e6, (s.end_s - s.start_s) * 1e6
            made = trace_slice(tracks[s.resource], name, start, length, pid)
            events.append(made | {"cat": kind, "args": {"layer": number}})
    return {"traceEvents": events, "displayTimeUnit": "ns"}
