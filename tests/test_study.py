"""The main job: the right number of each device, and a folder that holds what was promised."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

import tokenfab.hw
from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.hw.estimate import Request
from tokenfab.reports import study
from tokenfab.reports.report import ReportFiles
from tokenfab.reports.study import DEVICES, NODE, run_study, smallest_node
from tokenfab.workloads.capture import capture

CATALOG = Path(str(tokenfab.hw.__file__)).parent / "catalog"


@functools.cache
def trace(model: str):
    return capture(model)


@pytest.fixture
def undrawn(monkeypatch) -> list[Path]:
    """Reports are not drawn, only asked for."""
    asked: list[Path] = []

    def write(documents, pdf, title=None, command=None, refused=None) -> ReportFiles:
        asked.append(pdf)
        return ReportFiles(pdf, pdf.with_suffix(".html"), 1, 1)

    monkeypatch.setattr(study, "write_report", write)
    return asked


# -- how many devices ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "device", "count"),
    [
        ("llama-2-7b", "h100-sxm", 1),
        ("llama-2-7b", "t4", 1),  # 14.0 GB in 17.2 GB
        ("llama-2-7b", "titan-xp", 2),
        ("llama-2-70b", "h100-sxm", 2),  # 138 GB in 2 × 85.9 GB
        ("llama-2-70b", "b200", 1),
        ("llama-2-70b", "rtx-4090", 8),  # 138 GB in 8 × 25.8 GB
    ],
)
def test_a_device_that_is_too_small_is_given_the_fewest_of_its_kind(model, device, count):
    found = smallest_node(trace(model), load_device(device), Request())
    assert found.memory.fits
    assert (found.parallel.tp, found.parallel.devices) == (count, count)
    if count > 1:
        half = study.estimate(trace(model), load_device(device), Request(), study.Parallel(tp=count // 2))
        assert not half.memory.fits


@pytest.mark.parametrize("device", ["rtx-4090", "l4", "a10"])  # 24 GiB cards
def test_a_model_that_no_node_holds_is_reported_on_one_device_with_what_is_missing(device):
    found = smallest_node(trace("opt-175b"), load_device(device), Request())
    assert found.parallel.devices == 1
    assert not found.memory.fits
    assert found.memory.missing_bytes == found.memory.needed_bytes - load_device(device).dram.usable
    assert found.memory.missing_bytes > 2 * 175e9 - 24 * 2**30


def test_a_device_without_links_stays_alone():
    alone = load_device("titan-xp").model_copy(update={"links": {}})
    found = smallest_node(trace("llama-2-7b"), alone, Request())
    assert (found.parallel.devices, found.memory.fits) == (1, False)


def test_a_model_with_few_heads_is_divided_over_at_most_as_many(tmp_path):
    card = load_device("titan-xp")
    tiny = card.memory["dram"].capacity.model_copy(update={"value": 1e6})
    small = card.model_copy(update={"memory": {"dram": card.memory["dram"].model_copy(update={"capacity": tiny})}})
    assert NODE > 4
    (tmp_path / "few.toml").write_text(
        'name = "few"\ndescription = "four heads"\nsource = "test"\nhidden = 64\nlayers = 2\nheads = 4\nkv_heads = 4\n'
        'head_dim = 16\ninner = 96\nvocabulary = 10000\nmax_context = 1024\nnorm = "rms"\nnorm_eps = 1e-5\n'
        'act = "silu"\ngated = true\nposition = "rope"\nrope_theta = 10000.0\nformat = "fp16"\n'
    )
    found = smallest_node(trace(str(tmp_path / "few.toml")), small, Request(1, 64, 8))
    assert (found.parallel.devices, found.memory.fits) == (1, False)


# -- the folder ------------------------------------------------------------------------------------
def test_a_study_covers_at_least_six_gpus_when_nothing_is_asked(undrawn, trace_file, tmp_path):
    done = run_study(str(trace_file), tmp_path / "out")
    assert [d["device"]["name"] for d in done.documents] == list(DEVICES)
    assert len(DEVICES) >= 6
    assert {d["device"]["kind"] for d in done.documents} == {"gpu"}
    assert all(d["memory"]["fits"] for d in done.documents)
    assert undrawn == [tmp_path / "out" / "report.pdf"]


def test_the_files_of_a_study_hold_trace_command_and_estimates(undrawn, trace_file, tmp_path):
    steps: list[str] = []
    done = run_study(
        str(trace_file), tmp_path, devices=["l4", "l4", "a10"], output=4, command="tokenfab study", step=steps.append
    )
    whole = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert (whole["schema"], whole["version"], whole["command"]) == ("tokenfab.study", 1, "tokenfab study")
    assert whole["estimates"] == done.documents
    assert [d["device"]["name"] for d in done.documents] == ["l4", "a10"]  # asked twice is asked once
    assert json.loads((tmp_path / "estimates" / "a10.json").read_text(encoding="utf-8")) == done.documents[1]
    assert (tmp_path / "trace.json").read_text() == trace_file.read_text()
    assert steps == [
        f"capturing {trace_file}", "estimating on l4", "estimating on a10", "placing on l4 + a10", "writing the report",
    ]  # fmt: skip


def test_a_study_goes_on_without_a_device_that_cannot_compute_the_model(undrawn, trace_file, tmp_path):
    done = run_study(str(trace_file), tmp_path, devices=["h100-sxm", "bitmod", "a10"])  # bitmod takes narrow weights
    assert [d["device"]["name"] for d in done.documents] == ["h100-sxm", "a10"]
    assert list(done.refused) == ["bitmod"]
    assert done.placement.document["devices"] == ["h100-sxm", "a10"]
    assert done.placement.document["left_out"] == done.refused
    assert json.loads((tmp_path / "placement.json").read_text()) == done.placement.document
    assert json.loads((tmp_path / "study.json").read_text())["placement"] == done.placement.document
    assert done.placement.told.startswith(f"placed: {done.placement.document['model']}, batch 1, 512 + 128 tokens")
    assert done.refused["bitmod"].startswith("device bitmod: ")
    assert json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))["refused"] == done.refused
    assert not (tmp_path / "estimates" / "bitmod.json").exists()
    with pytest.raises(InputError, match="device bitmod: "):
        run_study(str(trace_file), tmp_path / "none", devices=["bitmod"])
    assert not (tmp_path / "none").exists()


def test_devices_left_out_are_on_a_page_of_the_report(trace_file, tmp_path):
    done = run_study(str(trace_file), tmp_path, devices=["h100-sxm", "bitmod"])
    assert done.placement.document is None  # one device: nothing to mix
    assert done.placement.told.startswith("no placement: one device")
    assert not (tmp_path / "placement.json").exists()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Devices left out" in page
    assert "device bitmod: " in page


def test_two_device_files_of_one_name_get_two_results(undrawn, trace_file, tmp_path):
    text = (CATALOG / "l4.toml").read_text(encoding="utf-8")
    for folder in ("mine", "yours"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "card.toml").write_text(text, encoding="utf-8")
    cards = ["l4", *(str(tmp_path / folder / "card.toml") for folder in ("mine", "yours"))]
    done = run_study(str(trace_file), tmp_path / "out", devices=cards, output=4)
    estimates = ["l4.json", "l4-2.json", "l4-3.json"]
    assert [r.name for r in done.results] == ["trace.json", "study.json", "placement.json", *estimates]
    assert all(r.is_file() for r in done.results)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("nothing", {}),
        (None, {"devices": ["l4", "nothing"]}),
        (None, {"batch": 0}),
        (None, {"prompt": 4096}),
        (None, {"techniques": ["nothing"]}),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(undrawn, trace_file, tmp_path, model, options):
    with pytest.raises(InputError):
        run_study(model or str(trace_file), tmp_path / "out", **options)
    assert undrawn == []
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folders_place_is_refused_before_any_work(undrawn, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match=r"out: cannot be written: is a file; accepted: a folder"):
        run_study("nothing", tmp_path / "out")
