"""The main job: one model, captured once, estimated on many devices, placed over a mixed node of them, written up.

A device that cannot hold the model alone is given as many of its kind as it takes (a power of two,
at most eight: a node), sharing every layer; one that still cannot is reported as it is, with how
much is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import check_writable, json_text, write_whole
from ..hw.devices import load_device
from ..hw.estimate import Estimate, Request, estimate
from ..hw.result import estimate_document
from ..hw.spec import Device
from ..workloads.load import load_trace
from ..workloads.parallel import Parallel
from ..workloads.techniques import apply_techniques
from ..workloads.trace import Trace
from .report import write_report
from .study_placement import Mixed, place_study

DEVICES = ("h200-sxm", "b200", "h100-sxm", "mi300x", "a100-80g-sxm", "l40s", "rtx-4090", "a10")
"""What a study covers when nothing is asked: data-centre cards of four generations and three cheaper ones."""
NODE = 8
SCHEMA = "tokenfab.study"


@dataclass(frozen=True)
class Study:
    """Files and documents (of estimates) of a finished study; ``refused``: why a device was left out, by its name;
    ``placement``: the document of the mixed node, or nothing, and what came of it in a line."""

    report: Path
    results: list[Path]
    documents: list[dict[str, Any]]
    pages: int
    wall_s: float
    refused: dict[str, str]
    placement: Mixed


def run_study(
    model: str,
    folder: Path,
    *,
    devices: Sequence[str] | None = None,
    batch: int = 1,
    prompt: int = 512,
    output: int = 128,
    techniques: Sequence[str] = (),
    command: str | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> Study:
    """Capture ``model``, estimate it on every device, place it over some of them (:mod:`.study_placement`), write
    trace, results and report into ``folder``.

    A device that cannot compute the model (in these formats) is left out, and why is said. Raises ``InputError``
    before anything is written when the model, a device's file or the request is wrong, or no device can.
    """
    started = time.perf_counter()
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder}: cannot be written: is a file; accepted: a folder, which is made where it is not there"
        )
    check_writable(folder / "report.pdf")
    names = list(dict.fromkeys(devices or DEVICES))
    cards = [load_device(name) for name in names]
    request = Request(batch, prompt, output)
    step(f"capturing {model}")
    trace = apply_techniques(load_trace(model), techniques)
    request.check(trace)
    documents: list[dict[str, Any]] = []
    costed, refused = [], {}
    for name, card in zip(names, cards, strict=True):
        step(f"estimating on {card.name}")
        try:
            found = smallest_node(trace, card, request)
        except InputError as error:
            refused[card.name] = str(error)
            continue
        costed.append((name, card))
        documents.append(estimate_document(found, trace, explain=True))
    if not documents:
        raise InputError("; ".join(refused.values()))
    mixed = place_study(trace, [name for name, _ in costed], documents, refused, request, command, step)
    step("writing the report")
    placements = [mixed.document] if mixed.document else []
    report = write_report([*documents, *placements], folder / "report.pdf", command=command, refused=refused)
    files = {
        folder / "trace.json": trace.to_json() + "\n",
        folder / "study.json": json_text(_study(documents, refused, command, mixed)),
    }
    if mixed.document:
        files[folder / "placement.json"] = json_text(mixed.document)
    for name, document in zip(_file_names([card for _, card in costed]), documents, strict=True):
        files[folder / "estimates" / name] = json_text(document)
    for path, text in files.items():
        write_whole(path, text)
    return Study(report.file, list(files), documents, report.pages, time.perf_counter() - started, refused, mixed)


def smallest_node(trace: Trace, device: Device, request: Request) -> Estimate:
    """The estimate on the fewest devices (1, 2, 4 or 8, tensor parallel) that hold the model.

    When none does, or the device has no link, the single device's estimate, which says what is missing.
    """
    alone = estimate(trace, device, request, explain=True)
    world = 2
    while not alone.memory.fits and device.links and world <= NODE:
        try:
            result = estimate(trace, device, request, Parallel(tp=world), explain=True)
        except InputError:  # fewer heads than devices
            break
        if result.memory.fits:
            return result
        world *= 2
    return alone


def _study(
    documents: list[dict[str, Any]], refused: dict[str, str], command: str | None, mixed: Mixed
) -> dict[str, Any]:
    return {"schema": SCHEMA, "version": 1, "command": command, "estimates": documents, "refused": refused,
            "placement": mixed.document, "placed": mixed.told}  # fmt: skip


def _file_names(cards: Sequence[Device]) -> list[str]:
    """One file name per device (``64GB/s`` as ``64GB-s``); two device files may give their devices one name."""
    names: list[str] = []
    for card in cards:
        plain = card.name.replace("/", "-")
        name, n = plain, 2
        while name in names:
            name, n = f"{plain}-{n}", n + 1
        names.append(name)
    return [f"{name}.json" for name in names]
