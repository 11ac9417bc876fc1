"""A run of ``tokenfab serve`` as text on a terminal."""

from __future__ import annotations

from typing import Any

from .policy_figures import policy_figures
from .terminal import say, si, span, table

Document = dict[str, Any]
ROWS = {"ttft_s": "time to first token", "tpot_s": "time per output token", "itl_s": "between two tokens",
        "e2e_s": "end to end", "queue_s": "in the queue"}  # fmt: skip


def serving_summary(document: Document) -> None:
    """Latencies, rates, memory, energy and cost of a run."""
    r, kv, energy = document["requests"], document["kv_blocks"], document["energy_j"]
    used = document["utilisation"]
    say(
        f"{document['model']} on {_devices(document)}, policy {document['policy']['name']}, "
        f"engine {document['engine']}{_asked(document)}",
        f"{document['workload']['source']}: {r['submitted']} requests, {r['finished']} finished, "
        f"{r['rejected']} rejected"
        + (f", {len(document['workload']['left_out'])} records left out" if document["workload"]["left_out"] else ""),
        "",
        table(
            ["", "mean", "90 % interval", "p50", "p90", "p99"],
            [_row(document, key, name) for key, name in ROWS.items()],
            right=("mean", "90 % interval", "p50", "p90", "p99"),
        ),
        "",
        f"{document['throughput_tokens_per_s']:.5g} tokens/s{_interval(document, 'throughput_tokens_per_s')}, "
        f"{document['throughput_requests_per_s']:.4g} requests/s, "
        f"goodput {document['goodput_requests_per_s']:.4g} requests/s ({_limits(document['slo'])})",
        f"KV cache: {kv['peak']} of {kv['total']} blocks of {kv['block_tokens']} tokens at the peak, "
        f"{kv['occupancy_mean']:.1%} on average; {document['preemptions']} preemptions, "
        f"{kv['cached_tokens']} prompt tokens found in the cache",
        f"energy {si(energy['total'], 'J')} ({si(energy['dynamic'], 'J')} dynamic, {si(energy['static'], 'J')} static, "
        f"{si(energy['idle'], 'J')} idle), {_per_token(document)}, "
        f"power {si(document['power_w']['mean'], 'W')} on average, {si(document['power_w']['peak'], 'W')} at the peak",
        f"{si(document['simulated_s'], 's')} simulated, {document['iterations']} iterations, busy "
        f"{used['busy']:.1%} of the time, {used['mean_batch']:.1f} sequences decoding; "
        f"seed {document['seed']}",
    )  # fmt: skip
    if (slower := document.get("slowdown")) is not None:
        say(f"over the same request alone, p50/p90/p99: {_slowdowns(slower)}")
    if (found := document.get("capacity")) is not None:
        above = "" if found["next"] is None else f", {found['next']:.4g} do not"
        note = f"; {found['note']}" if found["note"] else ""
        say(f"capacity: {found['rate']:.4g} requests/s keep the limits for {found['attained']:.1%} of the requests"
            f"{above} ({found['runs']} runs){note}")  # fmt: skip
    for name, figures in policy_figures(document):
        say(f"{name}: {', '.join(f'{what} {how}' for what, how in figures)}")
    for rejection in document["rejections"]:
        say(f"rejected: request {rejection['request']}: {rejection['reason']}")


def _devices(document: Document) -> str:
    """What there is: devices, those that compute attention alone apart, and how they make replicas."""
    count, apart = document["utilisation"]["devices"], document.get("attention_apart")
    beside = ""
    if apart is not None:
        there = apart["count"] * document["replicas"]
        count, beside = count - there, f" and {there} × {apart['device']}"
    replicas = f", {document['replicas']} replicas" if document["replicas"] > 1 else ""
    return f"{count} × {document['device']}{beside} ({document['parallel']}{replicas})"


def _asked(document: Document) -> str:
    """What else the run was asked for."""
    level = f", level {document['level']}" if document.get("level", "closed") != "closed" else ""
    host = f", {document['per_host']} per host" if document.get("per_host", 1) > 1 else ""
    return level + host + "".join(f", {technique.partition(':')[0]}" for technique in document["applied"])


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else si(seconds, "s")


def _row(document: Document, key: str, name: str) -> list[str]:
    mean, *quantiles = (_time(document[key][q]) for q in ("mean", "p50", "p90", "p99"))
    found = document.get("interval", {}).get(f"{key}.mean")
    return [name, mean, "" if found is None else span(found, "s"), *quantiles]


def _interval(document: Document, path: str, unit: str = "") -> str:
    """[low–high] of a figure that has an interval, to stand behind it."""
    found = document.get("interval", {}).get(path)
    return "" if found is None else f" [{span(found, unit)}]"


def _limits(slo: Document) -> str:
    told = ", ".join(f"{k} {si(v, 's')}" for k, v in slo["limits"].items())
    return f"{slo['attained']:.1%} within {told}" if told else "no --slo given"


def _slowdowns(found: Document) -> str:
    keys = [key for key in ("ttft", "tpot", "e2e") if found[key]["mean"] is not None]
    told = [f"{key} " + "/".join(f"{found[key][q]:.3g}" for q in ("p50", "p90", "p99")) for key in keys]
    return ", ".join(told) + ("; all limits hold" if found["held"] else "; not all limits hold")


def _per_token(document: Document) -> str:
    cost, joules = document["cost_usd_per_mtoken"], document["energy_per_token_j"]
    parts = []
    if joules is not None:
        parts.append(f"{si(joules, 'J')} per token{_interval(document, 'energy_per_token_j', 'J')}")
    if cost is not None:
        found = document.get("interval", {}).get("cost_usd_per_mtoken")
        parts.append(f"${cost:.3g} per million tokens" + (f" [${found[0]:.3g}–{found[1]:.3g}]" if found else ""))
    return ", ".join(parts) or "no token"
