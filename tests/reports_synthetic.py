"""Made-up estimate documents of the shape that hw/result.py gives, and what to hold a figure against."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

KINDS = ("matmul", "attention", "norm", "rope", "activation", "elementwise", "embedding", "kv_append", "collective")
FREE = {"embedding", "kv_append", "collective"}  # compute nothing


def estimate(
    device: str = "one", *, model: str = "toy-7b", batch: int = 1, prompt: int = 512, output: int = 128, count: int = 1,
    parallel: str | None = None, applied: tuple[str, ...] = (), fits: bool = True, price: float | None = 1.25,
    speed: float = 1.0, wide: float = 0.25, explain: bool = True, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """One document; ``speed`` scales every rate, ``wide`` is half the interval's width."""
    rng = random.Random(f"{device}{model}{seed}")
    prefill, decode = 0.02 * batch / speed, 0.005 * (1 + 0.02 * batch) / speed
    latency = prefill + decode * (output - 1)
    tokens = batch * output
    weights, kv, activations = 13.5e9 / count, 5e5 * (prompt + output) * batch / count, 3e7 * batch
    needed = weights + kv + activations
    capacity = needed * 2.5 if fits else needed * 0.4
    phases = {"prefill": _phase(prefill, wide, rng, "compute"), "decode": _phase(decode, wide, rng, "dram")}
    energy = phases["prefill"]["energy_j"] + (output - 1) * phases["decode"]["energy_j"]
    made: dict[str, Any] = {
        "schema": "tokenfab.estimate", "version": 1, "tokenfab": "0.0.1",
        "model": {
            "name": model, "parameters": 6_700_000_000, "format": "bf16", "weights_bytes": 13.5e9,
            "kv_bytes_per_token": 5e5, "max_context": 4096, "layers": 32, "hidden": 4096, "operators": 12,
            "applied": list(applied), "provenance": {"capture": "made up"},
        },
        "device": {
            "name": device, "description": f"the device {device}", "kind": "gpu", "architecture": None, "count": count,
            "parallel": parallel or ("one device" if count == 1 else f"tp={count}"),
            "peak_flops": 1e15 * speed, "peak_format": "bf16", "achievable_flops": 8e14 * speed,
            "bandwidth": 3.35e12 * speed, "achievable_bandwidth": 2.9e12 * speed, "capacity_bytes": capacity,
            "tdp_w": 700.0, "digest": f"{rng.getrandbits(256):064x}", "quantities": _quantities(rng, device),
        },
        "request": {"batch": batch, "prompt": prompt, "output": output},
        "prefill": phases["prefill"],
        "decode": phases["decode"] | {"context": prompt + (output - 2) / 2},
        "total": {
            "latency_s": latency, "interval_s": [latency * (1 - wide), latency * (1 + wide)],
            "tokens_per_s": tokens / latency, "energy_j": energy, "energy_interval_j": [0.8 * energy, 1.5 * energy],
            "energy_per_token_j": energy / tokens, "cost_usd_per_mtoken": price, "cost_basis": "rented, by the hour",
        },
        "memory": {
            "weights_bytes": weights, "kv_bytes": kv, "activation_bytes": activations, "needed_bytes": needed,
            "capacity_bytes": capacity, "missing_bytes": max(0.0, needed - capacity), "fits": fits,
        },
        "provenance": [
            f"trace of {model}: made up", f"device {device}: made up too",
            "1 numbers of this device are assumed: memory.dram.energy",
        ],
    }  # fmt: skip
    if explain:
        made["operators"] = [o for p in phases for o in _operators(p, phases[p]["latency_s"], rng)]
        made["curves"] = _curves(batch, prefill / prompt, decode, wide, fits)
    return made


def study(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schema": "tokenfab.study", "version": 1, "command": "made up", "estimates": documents}


def devices(number: int, **keys: Any) -> list[dict[str, Any]]:
    """A study's documents: ``number`` devices, each 1.4 times as fast as the last; every fourth does not fit."""
    return [
        estimate(
            f"device-{i}", speed=1.4**i, count=2 if i % 3 == 2 else 1, fits=i % 4 != 3,
            price=None if i % 5 == 4 else 2.0 / (i + 1), **keys,
        )
        for i in range(number)
    ]  # fmt: skip


def _phase(latency: float, wide: float, rng: random.Random, main: str) -> dict[str, Any]:
    rest = rng.uniform(0.1, 0.4)
    bound = {"compute": 0.0, "dram": 0.0, main: 1 - rest, "network": rest * 0.3, "launch": rest * 0.7}
    parts = {"compute": 0.9, "dram": 0.6, "static": 120 * latency}
    return {
        "latency_s": latency, "interval_s": [latency * (1 - wide), latency * (1 + wide)],
        "energy_j": sum(parts.values()), "energy_parts_j": parts, "bound": bound, "flops": 1e12, "bytes": 1e10,
    }  # fmt: skip


def _operators(phase: str, latency: float, rng: random.Random) -> list[dict[str, Any]]:
    found = []
    for i, kind in enumerate(KINDS):
        time = latency * 0.5 ** (i + 1)
        moved = 2.9e12 * time * rng.uniform(0.01, 0.9)
        intensity = (
            0.0 if kind in FREE else rng.uniform(50, 600) if phase == "prefill" and i < 2 else rng.uniform(0.2, 2)
        )
        found.append({
            "phase": phase, "name": f"layer.{kind}", "kind": kind, "count": 32, "time_s": time,
            "bound": rng.choice(("compute", "dram", "launch")), "flops": moved * intensity, "bytes": moved,
        })  # fmt: skip
    return found


def _curves(batch: int, per_token: float, decode: float, wide: float, fits: bool) -> dict[str, Any]:
    lengths = [float(x) for x in np.unique(np.round(np.geomspace(16, 4096, 9)))]
    batches = [float(2**i) for i in range(10)]

    def series(latencies: list[float]) -> dict[str, list[float]]:
        ends = {"low_s": [v * (1 - wide) for v in latencies], "high_s": [v * (1 + wide) for v in latencies]}
        return {"latency_s": latencies} | ends

    steps = [decode * (1 + 0.01 * b) for b in batches]
    return {
        "context": {"context": lengths, **series([decode * (1 + x / 8000) for x in lengths])},
        "prompt": {"prompt": lengths, **series([decode + per_token * x for x in lengths])},
        "batch": {
            "batch": batches, **series(steps), "tokens_per_s": [b / s for b, s in zip(batches, steps, strict=True)],
            "fits": [fits and b <= 64 for b in batches],
        },
    }  # fmt: skip


def _quantities(rng: random.Random, device: str) -> list[dict[str, Any]]:
    def number(key: str, value: float, unit: str, text: str, source: str) -> dict[str, Any]:
        assumed = source.startswith("assumed:")
        return {"key": key, "value": value, "unit": unit, "text": text, "source": source, "assumed": assumed}

    engines = [
        number(f"engines.matrix.{f}", 1e15, "FLOP/s", "1000 TFLOP/s", "a datasheet, recalled")
        for f in ("fp8", "bf16", "tf32")
    ]
    return [
        *engines,
        number("memory.dram.bandwidth", 3.35e12, "B/s", "3.35 TB/s", f"the datasheet of {device}"),
        number("memory.dram.energy", 4e-12, "J/bit", "", "assumed: as others of its kind, because nobody published it"),
        number("power.tdp", 700.0, "W", f"{rng.randint(100, 900)} W", "a datasheet, recalled"),
    ]


# -- what holds for every figure -------------------------------------------------------------------
def assert_nothing_clipped(figure: Any, slack: float = 1.0) -> int:
    """No text leaves the figure, no two level texts cover each other; returns how many were looked at."""
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(t, t.get_window_extent(renderer)) for t in texts]
    for text, box in boxes:
        inside = box.x0 >= -slack and box.y0 >= -slack
        inside = inside and box.x1 <= figure.bbox.x1 + slack and box.y1 <= figure.bbox.y1 + slack
        assert inside, f"{text.get_text()!r} leaves the figure: {box} in {figure.bbox}"
    level = [(t, b) for t, b in boxes if t.get_rotation() % 90 == 0]
    edges = np.array([[b.x0, b.y0, b.x1, b.y1] for _, b in level])
    for i, (text, _) in enumerate(level):
        x0, y0, x1, y1 = edges[i]
        across = np.minimum(edges[i + 1 :, 2], x1) - np.maximum(edges[i + 1 :, 0], x0)
        up = np.minimum(edges[i + 1 :, 3], y1) - np.maximum(edges[i + 1 :, 1], y0)
        hit = np.flatnonzero((across > slack) & (up > slack + 1))
        others = [level[i + 1 + j][0].get_text() for j in hit]
        assert not others, f"{text.get_text()!r} covers {others}"
    return len(texts)
