"""Real runs of a serving engine, replayed: 300 requests on vLLM, with this package's own model of the card.

    python -m tokenfab.validation.runs --truth DIR

Reads ``TRUTH/llmservingsim/bench/examples/CARD/MODEL/vllm`` (see the NOTES.md there): when each request was queued, got
its first and its last token. The same arrivals and lengths go through the simulator with the engine's flags as the run
recorded them; KV blocks are those that the run reported, else counted from memory. The prompts' token ids
(``workloads/NAME.jsonl.gz``, NAME being the run's data set) say which prefixes they share: vLLM caches those, 7.6 % of
the prompts' tokens. Compared are the means over the requests of time to first token, time per following token and time
to the last token. Nothing is fitted to these runs. Modes: ``run`` with the card as its kernel tables calibrate it;
``physics`` with its datasheet and its architecture's constants, as if nobody had measured it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..hw.devices import load_device
from ..hw.spec import Device
from ..serving.cluster import Cluster
from ..serving.engine import EngineProfile, load_profile
from ..serving.memory import KvMemory
from ..serving.metrics import Latencies
from ..serving.run import ends_of, simulate
from ..serving.simulation import Simulation
from ..workloads.expr_functions import Array
from ..workloads.load import load_trace
from ..workloads.request_log import RequestLog, plain
from ..workloads.requests.files import read_requests
from .kernels import MissingTableError
from .part import Part
from .vllm_kernels import before

FOLDER = "llmservingsim/bench/examples"
CARDS = {"rtx-4090": "RTX4090", "rtx-pro-6000": "RTXPRO6000"}
"""Devices and their folders."""
MODELS = {"Llama-3.1-8B": "llama-3-8b"}
"""Folders and presets; of one architecture, the later model only accepts longer contexts."""
ENGINE = "vllm-0.19"
QUANTITIES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True)
class Run:
    """One run: its requests, what they took (N,) in seconds, and the engine's flags."""

    model: str
    log: RequestLog
    ttft_s: Array
    tpot_s: Array
    e2e_s: Array
    flags: dict[str, Any]
    blocks: int | None


def read_runs(truth: Path, device: str) -> list[Run]:
    """The runs of ``device``. Raises ``InputError`` where there are none, or a record is not as promised."""
    folder = truth / FOLDER / CARDS[device]
    found = []
    for model, preset in MODELS.items():
        path = folder / model / "vllm" / "requests.jsonl.gz"
        if path.is_file():
            found.append(_read(path, preset))
    if not found:
        raise MissingTableError(f"{folder}: no run of {', '.join(MODELS)} there")
    return found


def _read(path: Path, preset: str) -> Run:
    keys = ("queued_ts", "first_token_ts", "last_token_ts", "input_toks", "output_toks")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file if line.strip()]
        table = np.array([[float(r[key]) for key in keys] for r in records])
        with gzip.open(path.with_name("meta.json.gz"), "rt", encoding="utf-8") as file:
            meta = json.load(file)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path.parent}: not a recorded run: {error}") from None
    table = table[np.argsort(table[:, 0], kind="stable")]
    queued, first, last, prompt, output = table.T
    if not (np.all(first >= queued) and np.all(last >= first) and output.min() > 1):
        raise InputError(f"{path}: a token before its request, or an answer of one token")
    shared = _prefixes(path.parents[5] / "workloads" / f"{Path(meta.get('dataset_path', '')).name}.gz", prompt, output)
    log = plain(queued - queued[0], prompt.astype(int), output.astype(int), source=str(path.name), **shared)
    blocks = meta.get("kv_cache", {}).get("num_gpu_blocks")
    took = first - queued, (last - first) / (output - 1), last - queued
    return Run(preset, log, *took, meta["engine_kwargs"], blocks)


def _prefixes(path: Path, prompt: Array, output: Array) -> dict[str, Any]:
    """Which prefixes the prompts of a run share, as arguments of :func:`.plain`; nothing where their ids are not there.

    Raises ``InputError`` for a workload that is not this run's.
    """
    if not path.is_file():
        return {}
    asked = read_requests(path)
    if not (np.array_equal(asked.prompt, prompt) and np.array_equal(asked.output, output)):
        raise InputError(f"{path}: other requests than the run's")
    return {name: getattr(asked, name) for name in ("prefix", "extends", "prefix_tokens", "prefix_parent")}


def cluster_of(run: Run, device: Device) -> Cluster:
    """What the run was served with."""
    named = load_profile(ENGINE)
    profile = replace(named, seats=run.flags["max_num_seqs"], budget=run.flags["max_num_batched_tokens"])
    trace = load_trace(run.model).model_copy(update={"max_context": None})
    longest = int((run.log.prompt + run.log.output).max())
    return Cluster(trace, device, profile=profile, longest=longest, blocks=_blocks(run, profile))


def _blocks(run: Run, profile: EngineProfile) -> KvMemory | None:
    if run.blocks is None:
        return None
    return KvMemory.given(run.blocks, profile.block, profile.seats)


def means(simulation: Simulation) -> tuple[float, float, float]:
    """Mean seconds to the first token, per following one, to the last."""
    found = Latencies.of(simulation)
    return tuple(float(np.nanmean(x)) for x in (found.ttft_s, found.tpot_s, found.e2e_s))  # type: ignore[return-value]


def compare(truth: Path, device: str) -> Iterator[Part]:
    """A part per quantity: measured and simulated means of each run. Raises as :func:`read_runs`."""
    runs = read_runs(truth, device)
    for mode, card in (("run", load_device(device)), ("physics", before(device))):
        rows = []
        for run in runs:
            cluster = cluster_of(run, card)
            first = simulate(run.log, cluster, "vllm")
            ends = [means(simulate(run.log, replace(cluster, slower=s), "vllm")) for s in ends_of(first)]
            rows.append(([float(x.mean()) for x in (run.ttft_s, run.tpot_s, run.e2e_s)], means(first), *ends))
        table = np.array(rows)  # (runs, what, quantities)
        for i, name in enumerate(QUANTITIES):
            measured, now, low, high = table[:, :, i].T
            sides = np.minimum(low, high) / now, np.maximum(low, high) / now
            yield Part(f"serving-{name}", mode, measured, now, *sides, 0)


def main() -> None:
    """Print measured and simulated means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", default=os.environ.get("TOKENFAB_TRUTH", "../shared/truth"))
    truth = Path(parser.parse_args().truth)
    for device in CARDS:
        for part in compare(truth, device):
            for m, p, low, high in zip(part.measured, part.predicted, part.low, part.high, strict=True):
                print(
                    f"{device} {part.suite}, {part.mode}: measured {m:.4g} s, simulated {p:.4g} s ({p / m - 1:+.1%}), "
                    f"interval {p * low:.4g} … {p * high:.4g} s"
                )


if __name__ == "__main__":
    main()
