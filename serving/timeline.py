"""A run as a Perfetto timeline: what every replica computed, its cache and queue, and where requests were.

Chrome's trace event format: times in microseconds, a process per replica. Slices are runs of iterations; counters the
KV blocks held and the requests waiting; requests are asynchronous slices from arrival to end, with their first token
marked. Long runs are thinned: every slice of the first :data:`MOST_RUNS` runs, and the first :data:`MOST_REQUESTS`
requests; how many were left out is in the metadata.
"""

from __future__ import annotations

from typing import Any

from .outcome import FINISHED
from .simulation import Simulation

MOST_RUNS, MOST_REQUESTS = 100_000, 20_000
Event = dict[str, Any]


def timeline(simulation: Simulation) -> dict[str, Any]:
    """The document that ui.perfetto.dev opens."""
    events: list[Event] = []
    left_runs = MOST_RUNS
    total_runs = 0
    for replica in simulation.replicas:
        role = f" {replica.role}" if replica.role else ""
        events.append(_named(replica.number, f"replica {replica.number}{role} ({replica.steps.device.name})"))
        columns = replica.runs.columns()
        total_runs += columns.start_s.size
        for row in list(zip(*(x.tolist() for x in columns), strict=True))[: max(left_runs, 0)]:
            start, duration, steps, decoding, mean, tokens, ends, _, held, waiting = row
            mixed = tokens > 0
            name = f"{int(tokens)} tokens" if mixed else f"{int(steps)} × decode {int(decoding)}"
            arguments = {"decoding": int(decoding), "mean context": round(mean, 1), "prompts ending": int(ends)}
            events.append({
                "ph": "X", "pid": replica.number, "tid": 0, "name": name, "cat": "mixed" if mixed else "decode",
                "ts": start * 1e6, "dur": duration * 1e6, "args": arguments,
            })  # fmt: skip
            for counter, value in (("KV blocks", held), ("waiting", waiting)):
                events.append({
                    "ph": "C", "pid": replica.number, "name": counter, "ts": start * 1e6, "args": {counter: int(value)},
                })  # fmt: skip
        left_runs -= columns.start_s.size
    events += _requests(simulation)
    return {
        "traceEvents": events, "displayTimeUnit": "ms",
        "metadata": {
            "runs left out": max(total_runs - MOST_RUNS, 0),
            "requests left out": max(len(simulation.log) - MOST_REQUESTS, 0),
        },
    }  # fmt: skip


def _requests(simulation: Simulation) -> list[Event]:
    outcome, log = simulation.outcome, simulation.log
    pid = len(simulation.replicas)
    events = [_named(pid, "requests")]
    for i in range(min(len(log), MOST_REQUESTS)):
        if outcome.state[i] != FINISHED:
            continue
        common = {"pid": pid, "tid": 0, "id": i, "cat": "request"}
        name = f"request {i}"
        arguments = {
            "prompt": int(log.prompt[i]), "output": int(log.output[i]), "replica": outcome.replica[i],
            "preemptions": outcome.preemptions[i], "cached": outcome.cached[i],
        }  # fmt: skip
        events.append({**common, "ph": "b", "name": name, "ts": outcome.arrival_s[i] * 1e6, "args": arguments})
        events.append({**common, "ph": "n", "name": "first token", "ts": outcome.first_s[i] * 1e6})
        events.append({**common, "ph": "e", "name": name, "ts": outcome.finish_s[i] * 1e6})
    return events


def _named(pid: int, name: str) -> Event:
    return {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
