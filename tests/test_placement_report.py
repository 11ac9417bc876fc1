"""Do the pictures of a placement show its numbers: schedule, memory, links, timeline, pages, and a study's node."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import shutil
import subprocess
import warnings
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tokenfab.cli import run
from tokenfab.errors import InputError
from tokenfab.hw.estimate import Request
from tokenfab.mapping.build import Built
from tokenfab.mapping.pictures import STRETCHES, _edges
from tokenfab.mapping.place import place
from tokenfab.mapping.replay import Replay
from tokenfab.mapping.solver import available, solve_model
from tokenfab.mapping.timeline import perfetto_placement
from tokenfab.reports import gantt, holdings, pdf, placed, topology
from tokenfab.reports.blocks import Canvas
from tokenfab.reports.documents import load_documents, parse_placement
from tokenfab.reports.report import write_report
from tokenfab.reports.schema_placement import Nowhere, Placement
from tokenfab.reports.study_placement import choose
from tokenfab.reports.style import house_style
from tokenfab.workloads.load import load_trace

_spec = importlib.util.spec_from_file_location("reports_synthetic", Path(__file__).with_name("reports_synthetic.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)

trace = functools.cache(load_trace)
NODES: dict[str, tuple[str, list[str], Request, dict[str, Any]]] = {
    "moved": (
        "opt-1.3b",
        ["h100-sxm", "a10"],
        Request(4, 256, 32),
        {"pins": dict.fromkeys(("matmul", "attention"), "h100-sxm|a10")},
    ),
    "shared": ("llama-2-7b", ["h100-sxm", "h20"], Request(8, 512, 64), {"pins": {"mlp.down": "h100-sxm:4+h20:4"}}),
    "six": ("opt-125m", ["h100-sxm:2", "l4:2", "a10:2"], Request(2, 128, 8), {"pins": {"attention": "l4#0"}}),
    "alone": ("opt-125m", ["h100-sxm", "t4"], Request(1, 64, 4), {}),
    "near": ("opt-125m", ["instinfer-csd"], Request(2, 128, 8), {}),
    "once": ("opt-125m", ["h100-sxm", "l4"], Request(1, 64, 1), {"pins": {"attention": "l4"}}),
}


@functools.cache
def made(name: str) -> tuple[dict[str, Any], Built, Replay]:
    model, devices, request, options = NODES[name]
    seen: list[tuple[Built, Replay]] = []
    document = place(
        trace(model), devices, request, time_limit=3.0, watch=lambda *both: seen.append(both), **options
    )  # fmt: skip
    return json.loads(json.dumps(document, allow_nan=False)), *seen[0]


def typed(name: str) -> Placement:
    found = parse_placement(made(name)[0])
    assert isinstance(found, Placement)
    return found


def drawn(draw, height: float, *arguments: Any) -> Figure:
    with house_style():
        figure = Figure(figsize=(10.7, height))
        draw(Canvas(figure, 0, 0, 10.7, height), *arguments)
        return figure


def rectangles(axes) -> list[Rectangle]:
    return [a for a in axes.get_children() if isinstance(a, Rectangle) and a is not axes.patch]


# -- the schedule ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["moved", "shared", "near"])
def test_the_schedule_works_as_long_as_the_replay_in_every_lane(name):
    document, _, played = made(name)
    replayed: dict[tuple[str, str], float] = defaultdict(float)
    for s in played.spans:
        replayed[s.phase, s.resource] += s.end_s - s.start_s
    told = {
        (s["phase"], lane): sum(kinds.values())
        for s in document["replay"]["schedule"]
        for lane, kinds in s["busy_s"].items()
    }
    assert told.keys() == replayed.keys()
    assert told == {key: pytest.approx(seconds, rel=1e-9) for key, seconds in replayed.items()}
    for s in document["replay"]["schedule"]:
        assert s["seconds"] == document["replay"]["phases"][s["phase"]]
        assert (s["edges_s"][0], s["edges_s"][-1]) == (0, s["seconds"])
        wide = np.diff(s["edges_s"])
        assert (wide > 0).all()
        for lane, kinds in s["whole"].items():
            for kind, shares in kinds.items():
                assert float(shares @ wide) == pytest.approx(s["busy_s"][lane][kind], abs=1e-4 * s["seconds"])


def test_the_layers_shown_in_full_have_every_span_of_theirs():
    document, built, played = made("shared")
    for s in document["replay"]["schedule"]:
        if s["phase"] == "handover":  # a span per layer: shown whole
            continue
        first, count = s["window"]["first"], s["window"]["layers"]
        assert (first, count, s["layers"]) == (16, 2, 34)  # 32 alike, after the embedding
        assert s["window"]["alike"] == 32
        heads = tuple(f"{n}.{built.problem.blocks[built.problem.order[n]].name}." for n in (first, first + 1))
        own = [x for x in played.spans if x.phase == s["phase"] and x.what.rpartition(" → ")[2].startswith(heads)]
        kept = {(x[0], x[4], x[5]) for x in s["spans"]}
        assert len(own) >= 20
        assert {(x.resource, x.start_s, x.end_s) for x in own} <= kept
        assert s["window"]["start_s"] == min(x.start_s for x in own)
        assert s["window"]["end_s"] == max(x.end_s for x in own)


def test_a_short_pass_is_shown_whole():
    document, _, played = made("alone")
    prefill = next(s for s in document["replay"]["schedule"] if s["phase"] == "prefill")
    assert prefill["window"]["alike"] is None
    assert len(prefill["spans"]) == sum(s.phase == "prefill" for s in played.spans)


@pytest.mark.parametrize(("layers", "stretches"), [(1, 1), (STRETCHES, STRETCHES), (STRETCHES + 1, 51), (5000, 100)])
def test_a_document_has_a_bounded_number_of_stretches(layers, stretches):
    edges = _edges([(i, i / layers) for i in range(layers)], layers, 1.0)
    assert len(edges) - 1 == stretches
    assert (edges[0], edges[-1]) == (0, 1)


def test_the_gantt_draws_the_spans_of_the_window():
    found = typed("shared")
    schedules = gantt.drawn(found)
    figure = drawn(gantt.gantt, gantt.height(found, schedules), found, schedules)
    zooms = figure.axes[1::2]
    assert [s.phase for s in schedules] == ["prefill", "decode"]
    for schedule, axes in zip(schedules, zooms, strict=True):
        w, rows = schedule.window, gantt.lanes(schedule, found)
        wanted = sorted(
            (rows.index(s.lane) - 0.4, max(s.start_s, w.start_s) - w.start_s, min(s.end_s, w.end_s) - w.start_s)
            for s in schedule.spans if s.lane in rows
        )  # fmt: skip
        got = sorted((r.get_y(), r.get_x(), r.get_x() + r.get_width()) for r in rectangles(axes))
        assert len(wanted) > 20
        assert np.allclose(got, wanted, atol=1e-12)
        assert axes.get_xlim() == (0, pytest.approx(w.end_s - w.start_s))


# -- memory ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["moved", "shared", "near"])
def test_memory_bars_are_the_documents_bytes(name):
    document, found = made(name)[0], typed(name)
    rows = holdings.memories(found)
    figure = drawn(holdings.held, holdings.heights(rows)[0], rows)
    bars = [
        r for r in rectangles(figure.axes[0]) if r.get_facecolor()[:3] != pytest.approx((243 / 255,) * 2 + (245 / 255,))
    ]
    for i, held in enumerate(document["memory"]):
        here = [r.get_width() for r in bars if abs(r.get_y() + r.get_height() / 2 - i) < 1e-9]
        wanted = held["weights_bytes"] + held["kv_bytes"] + held["reserve_bytes"]
        assert sum(here) == pytest.approx(wanted, rel=1e-9)
        twice = held["replicated_bytes"]
        parts = [held["weights_bytes"] - twice, twice, held["kv_bytes"], held["reserve_bytes"]]
        assert here == pytest.approx([x for x in parts if x > 0])


def test_weights_lie_twice_where_prefill_and_decode_run_elsewhere_and_once_where_they_are_divided():
    def weights(model: str, kinds: str = "") -> float:
        return sum(
            float(w.stored_bytes.constant) * n
            for op, n in trace(model).operators() if not kinds or op.kind == kinds for w in op.weights
        )  # fmt: skip

    twice = [m["replicated_bytes"] for m in made("moved")[0]["memory"]]
    assert min(twice) >= weights("opt-1.3b", "matmul") > 2.5e9  # and the norms and embeddings that both have
    assert max(twice) <= weights("opt-1.3b") * (1 + 1e-9)  # the head is the embedding's, and counted at both
    document = made("shared")[0]
    down = [p for p in document["patterns"] if p["block"] == "layer"]
    assert {o["place"] for p in down for o in p["operators"] if o["name"] == "mlp.down"} == {"h100-sxm:4+h20:4"}
    held, own = sum(m["weights_bytes"] for m in document["memory"]), weights("llama-2-7b")
    again = [m["replicated_bytes"] for m in document["memory"]]
    assert again[0] == pytest.approx(again[1])  # of two memories both have what lies twice
    assert held - own == pytest.approx(again[0], rel=1e-6)


def test_a_memory_says_which_level_of_its_device_it_is():
    assert [(m["device"], m["tier"]) for m in made("near")[0]["memory"]] == [
        ("a6000", "dram"), ("instinfer-csd", "flash"),
    ]  # fmt: skip


# -- links -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["moved", "shared", "six"])
def test_links_carry_the_transfers_and_keep_their_ports_busy(name):
    document = made(name)[0]
    assert sum(x["bytes"] for x in document["links"]) == pytest.approx(sum(t["bytes"] for t in document["transfers"]))
    leaving: dict[str, float] = defaultdict(float)
    for link in document["links"]:
        leaving[f"{link['from']} {link['network']} out"] += link["busy_s"]
        assert link["busy_s"] == pytest.approx(link["bytes"] / link["bandwidth_bytes_s"])
    assert sum(leaving.values()) > 0
    assert leaving == {port: pytest.approx(document["busy_s"][port]) for port in leaving}


def test_arrows_join_memories_and_carry_what_the_links_do():
    found = typed("six")
    arrows = topology.arrows(found)
    assert sum(a.bytes for a in arrows) == pytest.approx(sum(x.bytes for x in found.links))
    assert len(arrows) == 6 * 5
    assert max(a.busy for a in arrows) == pytest.approx(max(x.busy_s for x in found.links) / found.latency_s)


# -- the timeline ----------------------------------------------------------------------------------
def test_the_timeline_has_a_track_per_device_and_port_and_lasts_as_long_as_the_replay():
    _, built, played = made("moved")
    events = json.loads(json.dumps(perfetto_placement(built, played)))["traceEvents"]
    phases = {e["pid"]: e["args"]["name"].partition(":")[0] for e in events if e["name"] == "process_name"}
    assert list(phases.values()) == ["prefill", "handover", "decode, 31 times"]
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    slices = [e for e in events if e["ph"] == "X"]
    assert len(slices) == len(played.spans)
    micros: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for e in slices:
        micros[phases[e["pid"]].partition(",")[0], tracks[e["pid"], e["tid"]]].append((e["ts"], e["dur"]))
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for s in played.spans:
        seconds[s.phase, s.resource] += s.end_s - s.start_s
    assert micros.keys() == seconds.keys()
    for key, found in micros.items():
        assert sum(length for _, length in found) == pytest.approx(seconds[key] * 1e6, rel=1e-9)
        assert all(a[0] + a[1] <= b[0] + 1e-6 for a, b in pairwise(sorted(found)))
    ends = [e["ts"] + e["dur"] for e in slices if phases[e["pid"]] == "prefill"]
    assert max(ends) == pytest.approx(played.path_s[0] * 1e6, rel=0.01)  # a latency may follow the last
    assert {e["cat"] for e in slices} >= {"matmul", "attention", "transfer"}
    assert {e["args"]["layer"] for e in slices} == set(range(len(built.problem.order)))


def test_the_command_writes_the_timeline_and_the_report_reads_its_result(tmp_path, capsys):
    result, timeline = tmp_path / "p.json", tmp_path / "t.json"
    arguments = ("-m", "opt-125m", "-d", "h100-sxm", "-d", "l4", "--output", "4")
    assert run(["place", *arguments, "-o", str(result), "--timeline", str(timeline), "--quiet"]) == 0
    events = json.loads(timeline.read_text())["traceEvents"]
    spans = sum(e["dur"] for e in events if e["ph"] == "X" and e["pid"] == 1) / 1e6
    schedule = json.loads(result.read_text())["replay"]["schedule"][0]
    assert spans == pytest.approx(sum(sum(lane.values()) for lane in schedule["busy_s"].values()), rel=1e-9)
    assert run(["report", str(result), "-o", str(tmp_path / "p.pdf"), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["figures"] == 3
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    for title in ("opt-125m on mixed hardware", "Who runs what", "What runs when", "The node and its traffic"):
        assert f"{title}</h2>" in html
    assert run(["place", *arguments, "--timeline", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


# -- pages -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", list(NODES))
def test_no_text_of_a_placements_pages_is_cut_or_covered(name):
    with house_style():
        pages = pdf.pages(placed.parts([typed(name)]), "tokenfab")
        assert 2 <= len(pages) <= 8
        assert all(synthetic.assert_nothing_clipped(page) > 3 for page in pages)


def test_the_table_names_shares_and_counts_layers():
    found = typed("shared")
    (table,) = [b for p in placed.parts([found]) for b in p.blocks if p.title == "Who runs what"]
    rows = [[c.text for c in row] for row in table.rows]
    down = next(r for r in rows if r[1] == "mlp.down")
    assert down[3:6] == ["32", "4/8 h100-sxm + 4/8 h20", "the same"]
    qkv = [r for r in rows if r[2] == "attention"]
    assert sum(int(r[3]) for r in qkv) == 32
    moved = next(b for p in placed.parts([typed("moved")]) for b in p.blocks if p.title == "Who runs what")
    assert next(r for r in moved.rows if r[2].text == "matmul")[4].text == "h100-sxm"
    assert next(r for r in moved.rows if r[2].text == "matmul")[5].text == "a10"
    assert placed.said("a+b") == "a and b"
    assert placed.said("x:2+y:3+z:3") == "2/8 x + 3/8 y + 3/8 z"


def test_baselines_bound_and_replay_stand_on_the_first_page():
    found = typed("moved")
    times, baselines = [b for b in placed.parts([found])[0].blocks if hasattr(b, "rows")]
    rows = {r[0].text: [c.text for c in r[1:]] for r in baselines.rows}
    assert list(rows)[:2] == ["ours", "bound"]
    assert {"best single device", "greedy, in order of execution", "HEFT", "dynamic programming on the chain"} < set(
        rows
    )
    assert rows["best single device"][0] == "does not fit"  # the pins forbid one device
    assert [r[0].text for r in times.rows] == ["prefill", "handover", "decode step", "request"]
    assert times.rows[2][4].text == "31"


def test_the_verdict_says_when_mixing_gains_nothing():
    alone = typed("alone")
    assert placed.verdict(alone) == "Mixing does not beat the best single device: all of it is on h100-sxm."
    worse = alone.model_copy(
        update={"baselines": {"best_single": alone.value * 1.25}, "busy_s": {"h100-sxm": 1, "t4": 1}}
    )
    assert placed.verdict(worse).startswith("The best single device is 25 % worse")
    none = worse.model_copy(update={"baselines": {"best_single": None}, "devices": ["h100-sxm", "t4", "l4"]})
    share = "No single device holds the model with its caches: h100-sxm and t4 share it; l4 is not used."
    assert placed.verdict(none) == share
    assert "proven best" in placed.headline(alone.model_copy(update={"gap": 0.0}))
    close = placed.headline(alone.model_copy(update={"gap": 0.004}))
    assert "none of the divisions weighed is more than 0.40 % better" in close
    loose = alone.model_copy(update={"gap": 6.1, "bound": -1.0, "status": "feasible"})
    assert "with no useful bound when the time was over" in placed.headline(loose)


def test_a_placement_that_fits_nowhere_is_a_page_with_the_reason(tmp_path, capsys):
    result = tmp_path / "bad.json"
    assert run(["place", "-m", "llama-2-7b", "-d", "titan-xp", "--quiet", "-o", str(result)]) == 1
    document = json.loads(result.read_text())
    (needed, allowed) = document["exceeded"]["titan-xp"]
    assert needed > trace("llama-2-7b").weights_bytes
    found = parse_placement(document)
    assert isinstance(found, Nowhere)
    (row,) = holdings.lacking(found)
    assert (row.used, row.capacity) == (needed, allowed)
    assert run(["report", str(result), "-o", str(tmp_path / "bad.pdf")]) == 0
    page = (tmp_path / "bad.html").read_text(encoding="utf-8")
    assert "it does not fit" in page
    assert f"titan-xp: {needed / 1e9:.2f} GB needed, {allowed / 1e9:.2f} GB allowed" in page
    if shutil.which("pdftotext"):
        text = subprocess.run(["pdftotext", str(tmp_path / "bad.pdf"), "-"], capture_output=True, text=True).stdout
        assert " short" in text
    with house_style():
        for sheet in pdf.pages(placed.parts([found]), "tokenfab"):
            synthetic.assert_nothing_clipped(sheet)


def without(key: str):
    def change(document: dict[str, Any]) -> None:
        *way, last = key.split(".")
        for step in way:
            document = document[step]
        del document[last]

    return change


def put(key: str, value: Any):
    def change(document: dict[str, Any]) -> None:
        *way, last = key.split(".")
        for step in way:
            document = document[int(step)] if isinstance(document, list) else document[step]
        document[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("links"), "links: Field required"),
        (without("replay.schedule"), "replay.schedule: Field required"),
        (without("metrics.latency"), "metrics.latency is missing"),
        (without("status"), "status: Field required"),
        (put("status", "wonderful"), "status: Input should be 'optimal' or 'feasible'"),
        (put("version", 2), "version is 2"),
        (put("links.0.from", "nobody"), "unknown device 'nobody'; devices: h100-sxm, a10"),
        (put("replay.schedule.0.spans", [["nobody", 1, "x", "matmul", 0.0, 1.0]]), "lane 'nobody' is not in whole"),
        (put("replay.schedule.0.edges_s", [0.0, 1.0]), "one number per stretch"),
        (put("memory.0.kv_bytes", -1.0), "memory.0.kv_bytes: Input should be greater than or equal to 0"),
        (put("value", None), "value: Input should be a valid number"),
    ],
)
def test_a_wrong_document_is_one_clear_line(change, message, tmp_path, capsys):
    document = copy.deepcopy(made("moved")[0])
    change(document)
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(document))
    assert run(["report", str(file), "-o", str(tmp_path / "r.pdf")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert "wrong.json" in said
    assert not (tmp_path / "r.pdf").exists()


def test_estimates_and_placements_stand_in_one_report_and_foreign_keys_are_let_be(tmp_path):
    document = {**copy.deepcopy(made("shared")[0]), "of a later version": 1}
    (tmp_path / "p.json").write_text(json.dumps(document))
    study = {**synthetic.study(synthetic.devices(2)), "placement": document}
    (tmp_path / "s.json").write_text(json.dumps(study))
    assert len(load_documents([tmp_path / "s.json", tmp_path / "p.json"])) == 4
    files = write_report([*synthetic.devices(2), document], tmp_path / "r.pdf")
    page = files.html.read_text(encoding="utf-8")
    assert page.index("What toy-7b costs") < page.index("llama-2-7b on mixed hardware") < page.index("What was assumed")
    study["placement"] = {"schema": "nothing"}
    (tmp_path / "s.json").write_text(json.dumps(study))
    with pytest.raises(InputError, match=r"s\.json: placement is no placement"):
        load_documents([tmp_path / "s.json"])


# -- a study's node --------------------------------------------------------------------------------
def test_a_study_places_on_the_fastest_cheapest_and_thriftiest():
    def estimate(speed: float, price: float | None, energy: float, fits: bool = True, count: int = 1) -> dict[str, Any]:
        total = {"tokens_per_s": speed, "cost_usd_per_mtoken": price, "energy_per_token_j": energy}
        return {"total": total, "memory": {"fits": fits}, "device": {"count": count}}

    five = [estimate(5, 9, 9), estimate(9, 8, 8), estimate(1, 1, 7), estimate(2, 7, 1), estimate(99, 0.1, 0.1, False)]
    assert choose(five) == {1: 1, 2: 1, 3: 1}  # the last holds the model nowhere
    same = [estimate(3, None, 5, count=4), estimate(2, None, 6, count=2), estimate(1, None, 7), estimate(0.5, None, 8)]
    assert choose(same) == {0: 4, 1: 1, 2: 1}  # of the fastest as many as hold the model


# -- the solvers' library --------------------------------------------------------------------------
@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_solving_warns_of_nothing(solver):
    import pulp

    if solver not in available():
        pytest.skip(f"{solver} is not here")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lp = pulp.LpProblem("two", pulp.LpMinimize)
        x = lp.add_variable("x", 0, 5, pulp.LpInteger)
        lp += 2 * x
        lp += x >= 1.5, "least"
        found = solve_model(lp, time_limit=2, solver=solver)
        assert [c.name for c in lp.constraints()] == ["least"]
    assert (found.status, found.value) == ("optimal", 4.0)
