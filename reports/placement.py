"""A placement as text on a terminal."""

from __future__ import annotations

from typing import Any

from .terminal import number, say, si, table

Document = dict[str, Any]
MOST = 12
"""Patterns shown; the JSON has all."""


def placement_summary(document: Document) -> None:
    """The value with its bound, the baselines, who does what, who holds what, and what the replay says."""
    r = document["request"]
    head = (
        f"{document['model']} on {' + '.join(document['devices'])}: batch {r['batch']}, "
        f"{r['prompt']} prompt + {r['output']} output tokens; least {document['objective']}"
    )
    notes = [f"assumed: {note}" for note in document["notes"]]
    if not document["assignment"]:
        say(head, *notes, f"{document['status']}: {document['reason']}")
        return
    units = {"energy": "J", "cost": "USD", "loss": ""}
    m = {k: v for k, v in document["metrics"].items() if v or k != "cost"}  # zero: no device file has a price
    metrics = ", ".join(f"{name} {si(value, units.get(name, 's'))}" for name, value in m.items())
    say(
        head, *notes, "",
        f"value {document['value']:.5g}, bound {document['bound']:.5g}, gap {document['gap']:.2%}: "
        f"{document['status']} in {document['solve_s']:.1f} s CPU", metrics, "",
        table(["baseline", "value", "worse by"], [_baseline(name, v, document["value"])
              for name, v in document["baselines"].items()], right=("value", "worse by")),
    )  # fmt: skip
    patterns = sorted(document["patterns"], key=lambda p: -p["layers"])
    for p in patterns[:MOST]:
        rows = [
            [
                o["name"],
                o["place"] + (f" in {o['format']}" if "format" in o else ""),
                si(o["prefill_s"], "s"),
                si(o["decode_s"], "s"),
            ]
            for o in p["operators"]
        ]
        title = f"{p['layers']} × {p['block']}"
        say(
            "",
            table(
                ["operator", "runs on", "prefill", "decode step"], rows, right=("prefill", "decode step"), title=title
            ),
        )
    if len(patterns) > MOST:
        say("", f"and {len(patterns) - MOST} more patterns")
    if "formats" in document:
        f = document["formats"]
        say("", f"formats {', '.join(f['names'])}: {f['bits']:.4g} bits per weight on average, loss {f['loss']:.3g}")
    held = [
        [h["device"], *(si(h[f"{k}_bytes"], "B") for k in ("weights", "kv", "reserve", "capacity"))]
        for h in document["memory"]
    ]
    say("", table(["memory", "weights", "KV cache", "reserve", "capacity"], held,
                  right=("weights", "KV cache", "reserve", "capacity")))  # fmt: skip
    moved = [[t["phase"], t["from"], t["to"], si(t["bytes"], "B")] for t in document["transfers"]]
    if moved:
        say("", table(["phase", "from", "to", "bytes"], moved, right=("bytes",)))
    replay = document["replay"]
    say("", f"predicted {si(replay['predicted_s'], 's')}, replayed event by event {si(replay['replayed_s'], 's')}")


def _baseline(name: str, value: float | None, ours: float) -> list[str]:
    if value is None:
        return [name.replace("_", " "), "does not fit", ""]
    return [name.replace("_", " "), number(value) if value >= 100 else f"{value:.4g}", f"{value / ours - 1:.2%}"]
