"""Do reports of serving runs show the documents' numbers, and are documents that are none refused in one line?"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

from tokenfab.cli import run
from tokenfab.hw.devices import load_device
from tokenfab.reports import html, latencies, overtime, pdf, served, serving_bars
from tokenfab.reports.blocks import Canvas, Listing, Picture, Table
from tokenfab.reports.documents import load_documents, parse_result
from tokenfab.reports.format import si
from tokenfab.reports.kinds import KINDS
from tokenfab.reports.parts import build
from tokenfab.reports.policy_figures import policy_figures
from tokenfab.reports.report import write_report
from tokenfab.reports.runs import MEASURES, Run, compared, headline, lead, runs_of, share_within
from tokenfab.reports.schema_serving import Served
from tokenfab.reports.style import DEVICES, house_style
from tokenfab.serving.cluster import Cluster
from tokenfab.serving.engine import load_profile
from tokenfab.serving.run import serve
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.requests import parse_requests

_spec = importlib.util.spec_from_file_location("reports_synthetic", Path(__file__).with_name("reports_synthetic.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)

Document = dict[str, Any]


@functools.cache
def _made(policy: str, requests: str, engine: str, interval: bool) -> str:
    log = parse_requests(requests, seed=3)
    trace = load_trace("opt-125m")
    cluster = Cluster(trace, load_device("a100-80g-sxm"), profile=load_profile(engine), longest=trace.max_context)
    document, _ = serve(
        log, cluster, policy, slo={"ttft": 1.0, "tpot": 1.0} if interval else {}, seed=3, interval=interval
    )
    document["command"] = "tokenfab serve --by hand"
    return json.dumps(document, allow_nan=False)


def made(
    policy: str = "vllm", requests: str = "poisson:rate=60,n=80,prompt=300,output=40", engine: str = "vllm-0.19",
    interval: bool = True,
) -> Document:  # fmt: skip
    """A run; where it has limits, one that all keep and one that half do not."""
    found = json.loads(_made(policy, requests, engine, interval))
    if interval and found["cdf"]["ttft_s"]:
        found["slo"]["limits"] = {"ttft": 2 * found["cdf"]["ttft_s"][-1], "tpot": found["tpot_s"]["p50"]}
    return found


def plain() -> Document:
    """Without limits, interval, capacity."""
    return made(engine="ideal", interval=False)


def refused() -> Document:
    """All requests are longer than the model's context."""
    return made(requests="poisson:rate=60,n=12,prompt=5000,output=40")


def typed(document: Document) -> Served:
    found = parse_result(document)
    assert isinstance(found, Served)
    return found


def named(*documents: Document) -> list[Run]:
    return runs_of([typed(d) for d in documents], DEVICES)


def drawn(draw, height: float, *arguments: Any) -> Figure:
    with house_style():
        figure = Figure(figsize=(10.7, height))
        draw(Canvas(figure, 0, 0, 10.7, height), *arguments)
        return figure


def tables(documents: list[Document]) -> list[Table]:
    return [b for p in build([typed(d) for d in documents], None, None) for b in p.blocks if isinstance(b, Table)]


def checked(*documents: Document, figures: bool = False) -> str:
    """All pages, and figures as the HTML has them, drawn with no text cut or covered; the pages' text."""
    parts = build([typed(d) for d in documents], None, "tokenfab report a.json")
    texts = []
    for page in pdf.pages(parts, "tokenfab"):
        assert synthetic.assert_nothing_clipped(page) > 3
        texts += [t.get_text() for t in page.texts]
    with house_style():
        for part in parts:
            for block in part.blocks:
                if figures and isinstance(block, Picture):
                    assert synthetic.assert_nothing_clipped(html.figure(block)) > 2
    return " ".join(texts)


# -- numbers ---------------------------------------------------------------------------------------
def test_the_table_of_latencies_has_the_documents_figures_and_intervals():
    d = made()
    (table,) = [t for t in tables([d]) if t.columns[0].title == "seconds of a request"]
    titles = [c.title for c in table.columns]
    assert titles == ["seconds of a request", *("mean", "interval", "p50", "interval", "p90", "interval", "p99"),
                      "interval", "limit", "within it"]  # fmt: skip
    rows = {r[0].text: [c.text for c in r[1:]] for r in table.rows}
    for key, name in (("ttft_s", "time to first token"), ("itl_s", "between two tokens"), ("queue_s", "in the queue")):
        assert rows[name][:8:2] == [si(d[key][q], "s") for q in ("mean", "p50", "p90", "p99")]
    low, high = (1e3 * x for x in d["interval"]["ttft_s.p99"])
    assert rows["time to first token"][7] == f"{low:.3g}–{high:.3g} ms"
    del d["interval"]["queue_s.p90"]
    (table,) = [t for t in tables([d]) if t.columns[0].title == "seconds of a request"]
    assert [r[6].text for r in table.rows if r[0].text == "in the queue"] == ["–"]  # of a figure that has none
    limits = d["slo"]["limits"]
    assert rows["time to first token"][8:] == [si(limits["ttft"], "s"), "100 %"]
    # The share within the limit on the time per token, counted from the hundred quantiles by hand.
    limits["tpot"] = (d["cdf"]["tpot_s"][71] + d["cdf"]["tpot_s"][72]) / 2
    below = np.interp(limits["tpot"], d["cdf"]["tpot_s"], np.linspace(0, 1, 101))
    assert below == pytest.approx(0.715)
    (table,) = [t for t in tables([d]) if t.columns[0].title == "seconds of a request"]
    assert table.rows[1][10].text == f"{100 * below:.0f} %"


def test_rates_energy_and_price_are_the_documents():
    d = made()
    (table,) = [t for t in tables([d]) if t.columns[0].title == "rates and costs"]
    rows = {r[0].text: [c.text for c in r[1:]] for r in table.rows}
    assert float(rows["tokens/s"][0].replace("\u2009", "")) == pytest.approx(d["throughput_tokens_per_s"], rel=5e-3)
    assert float(rows["goodput, requests/s"][0]) == pytest.approx(d["goodput_requests_per_s"], rel=5e-3)
    assert rows["energy per token"][0] == si(d["energy_per_token_j"], "J")
    assert float(rows["price per million tokens"][0][1:]) == pytest.approx(d["cost_usd_per_mtoken"], rel=5e-3)
    assert rows["power"][2].startswith(si(d["power_w"]["peak"], "W"))


def test_a_wait_within_the_limit_is_counted_as_the_quantiles_say():
    assert share_within([1.0, 2.0, 3.0], 2.5) == pytest.approx(0.75)
    assert (share_within([1.0, 2.0], 0.99), share_within([1.0, 2.0], 2.0), share_within([], 1.0)) == (0, 1, 0)
    assert share_within([1.0, 1.0, 3.0], 1.0) == pytest.approx(0.5)  # half of them wait exactly that long


@given(
    st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=2, max_size=30).map(sorted), st.floats(0, 1e3),
    st.floats(0, 1e3),
)  # fmt: skip
def test_a_wider_limit_never_holds_for_fewer(quantiles, one, other):
    small, large = (share_within(quantiles, x) for x in sorted((one, other)))
    assert 0 <= small <= large <= 1


def test_the_curves_are_the_documents_quantiles():
    d = made()
    figure = drawn(latencies.cdfs, latencies.HIGH, named(d))
    assert len(figure.axes) == 3
    for axes, name in zip(figure.axes, latencies.PANELS, strict=True):
        curve = axes.lines[0]
        assert np.allclose(curve.get_xdata(), d["cdf"][name])
        assert np.allclose(curve.get_ydata(), np.linspace(0, 1, 101))
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        assert [(x.get_xdata()[0], x.get_ydata()[0]) for x in dots] == [
            (d[name]["p50"], 0.5), (d[name]["p90"], 0.9), (d[name]["p99"], 0.99),
        ]  # fmt: skip
        strokes = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        limits = d["slo"]["limits"]
        assert strokes == {"ttft_s": [limits["ttft"]], "tpot_s": [limits["tpot"]], "e2e_s": []}[name]


def test_over_time_shows_the_series_and_what_it_is_held_against():
    d = made()
    figure = drawn(overtime.over_time, overtime.HIGH, named(d))
    wanted = [d["series"]["decoding"], d["series"]["waiting"], d["series"]["held"], d["power_w"]["series"]]
    for axes, values in zip(figure.axes, wanted, strict=True):
        steps = [a for a in axes.get_children() if isinstance(a, StepPatch)]
        assert len(steps) == 2  # area and outline
        for step in steps:
            assert np.allclose(step.get_data().values, values)
            assert step.get_data().edges[-1] == pytest.approx(d["simulated_s"])
    held, power = figure.axes[2:]
    assert held.lines[0].get_ydata()[0] == d["kv_blocks"]["total"]
    assert power.lines[0].get_ydata()[0] == d["power_w"]["mean"]
    assert held.get_ylim()[1] > d["kv_blocks"]["total"]


def test_the_energy_bar_has_the_documents_parts():
    d = made()
    figure = drawn(serving_bars.energy, 0.95, named(d)[0])
    bars = [a.get_width() for a in figure.axes[0].get_children() if isinstance(a, Rectangle)][:-1]
    parts = [d["energy_j"][n] for n in ("dynamic", "static", "idle")]
    assert bars == pytest.approx([x for x in parts if x > 1e-6 * sum(parts)])
    assert sum(bars) == pytest.approx(d["energy_j"]["total"], rel=1e-5)


def test_the_headline_says_what_users_see_and_with_what_interval():
    d = made()
    d["capacity"] = {"rate": 123.4, "next": 124.4, "attained": 0.9034, "runs": 9}
    text = headline(typed(d))
    assert text.startswith("opt-125m on a100-80g-sxm, policy vllm, engine vllm-0.19: half of the users see")
    for key in ("ttft_s", "tpot_s"):
        assert si(d[key]["p50"], "s") in text
        assert f"99 of 100 within {si(d[key]['p99'], 's')} (" in text
    assert "Up to 123 requests/s keep the limits for 90 % of the requests; 124 do not." in lead(typed(d))
    d["capacity"]["next"] = None  # JSON has no word for infinity
    assert "no rate was found that does not" in lead(typed(d))
    d["slo"]["attained"] = 0.9996
    d["slo"]["limits"] = {"ttft": 0.02, "tpot": 0.00075}
    assert ">99.5 % keep TTFT 20.0 ms, TPOT 750 µs: goodput" in headline(typed(d))


def test_every_number_of_the_engine_stands_with_its_source():
    d = made()
    profile = load_profile("vllm-0.19")
    numbers = d["profile"]["numbers"]
    assert {k: v["source"] for k, v in numbers.items()} == profile.sources
    assert numbers.pop("graphs")["value"] == list(profile.graphs)
    assert all(v["value"] == getattr(profile, k) for k, v in numbers.items())
    d = made()
    listings = [b for p in build([typed(d)], None, None) for b in p.blocks if isinstance(b, Listing)]
    (engine,) = [x for x in listings if x.title.startswith("Engine vllm-0.19: ")]
    told = dict(engine.items)
    assert told["block = 16"] == profile.sources["block"]
    assert told["graphs = 1, 2, 4 … 512 (51)"] == profile.sources["graphs"]
    (how,) = [x for x in listings if x.title == "Runs and their commands"]
    text = " ".join(t for _, t in how.items)
    assert "seed 3; made by tokenfab" in text
    assert "tokenfab serve --by hand" in text


# -- several runs ----------------------------------------------------------------------------------
def test_runs_are_named_by_as_few_facts_as_tell_them_apart():
    def labels(*documents: Document) -> list[str]:
        return [r.label for r in named(*documents)]

    one = made()
    assert labels(one) == ["vllm · a100-80g-sxm"]
    assert labels(one, made("orca")) == ["vllm", "orca"]
    assert labels(made("sarathi:chunk=256"), made("sarathi:chunk=128")) == ["sarathi:chunk=256", "sarathi:chunk=128"]
    assert labels(one, one) == ["vllm · a100-80g-sxm", "vllm · a100-80g-sxm (no. 2)"]
    faster = made(requests="poisson:rate=90,n=80,prompt=300,output=40")
    assert labels(one, faster) == ["rate=60", "rate=90"]
    other = copy.deepcopy(one) | {"device": "other", "engine": "third"}
    assert labels(one, other) == ["a100-80g-sxm", "other"]
    assert labels(one, other, made("orca")) == ["a100-80g-sxm · vllm", "other · vllm", "a100-80g-sxm · orca"]


def test_bars_of_a_comparison_are_the_documents_figures():
    documents = [made(), made("sarathi:chunk=128"), plain()]
    runs = named(*documents)
    figure = drawn(serving_bars.compare, serving_bars.heights(runs)[0], runs, runs)
    order = ["ttft_s", "throughput_tokens_per_s", "cost_usd_per_mtoken", "tpot_s", "goodput_requests_per_s",
             "energy_per_token_j"]  # fmt: skip
    for axes, key in zip(figure.axes, order, strict=True):
        limit = axes.get_xlim()[1]
        bars = [(round(a.get_y() + 0.31), a.get_width()) for a in axes.get_children()
                if isinstance(a, Rectangle) and a is not axes.patch]  # fmt: skip
        wanted = []
        for i, d in enumerate(documents):
            values = [d[key]["p99"], d[key]["p50"]] if key in serving_bars.LATENCY else [d[key]]
            wanted += [(i, min(v, limit)) for v in values]
        assert bars == [(i, pytest.approx(v)) for i, v in wanted]


def test_the_best_of_each_column_is_bold_and_said():
    slow = made()
    slow["device"] = "slow"
    for key in ("ttft_s", "tpot_s"):
        slow[key] = {q: 2 * v for q, v in slow[key].items()}
    slow["cost_usd_per_mtoken"] /= 2
    runs = named(made(), slow)
    table = served._summary(runs)
    bold = [[c.tone == "strong" for c in row[1:9]] for row in table.rows]
    assert bold[0] == [True, True, True, True, True, True, False, True]  # equal figures are both the best
    assert bold[1] == [False, False, False, False, True, True, True, True]
    text = compared(runs)
    assert text.startswith("Shortest p99 TTFT: a100-80g-sxm, ")
    assert "cheapest per token: slow, $" in text
    assert "goodput" not in text
    assert [m.key for m in MEASURES.values() if m.more] == ["throughput_tokens_per_s", "goodput_requests_per_s"]


def test_figures_that_differ_by_less_than_a_half_percent_win_nothing():
    near, off = made(), made()
    near["device"] = off["device"] = "other"
    near["energy_per_token_j"] *= 1.0049
    off["energy_per_token_j"] *= 1.0051
    assert compared(named(made(), near)) == "2 runs: none is better than another by more than 0.5 %."
    assert compared(named(made(), off)).startswith("Least energy per token: a100-80g-sxm")


# -- pages -----------------------------------------------------------------------------------------
def test_no_text_is_cut_or_covered_and_pages_are_few():
    text = checked(made(), figures=True)
    assert "What users see" in text
    assert "3 / 3" in text


def test_a_run_without_limits_interval_and_capacity():
    d = plain()
    assert "interval" not in d
    text = checked(d)
    assert "limit" not in text.replace("all limits", "").replace("no limits", "")
    (table,) = [t for t in tables([d]) if t.columns[0].title == "seconds of a request"]
    assert len(table.columns) == 5
    for key in ("command", "profile", "classes", "rejections", "memory", "applied"):
        del d[key]
    checked(d)


def test_a_run_that_rejects_everything_is_a_page_with_the_reasons(tmp_path):
    d = refused()
    text = checked(d)
    assert "none of 12 requests finished. All were rejected." in text
    assert "5000 + 40 tokens exceed the model's context of 2048" in text
    assert "2 more" in text  # a document lists ten
    runs = named(d, made(), d)
    synthetic.assert_nothing_clipped(drawn(serving_bars.compare, serving_bars.heights(runs)[0], runs, runs))
    synthetic.assert_nothing_clipped(drawn(latencies.cdfs, latencies.HIGH, runs[::2]))
    file = tmp_path / "r.json"
    file.write_text(json.dumps(d))
    assert run(["report", str(file), "-o", str(tmp_path / "r.pdf")]) == 0


def test_long_names_many_runs_and_times_far_apart():
    base, documents = made(), []
    for i in range(26):
        d = copy.deepcopy(base)
        d["device"] = f"an-accelerator-whose-name-does-not-end-{i}"
        scale = 3.0 ** (i - 13)
        for key in ("ttft_s", "tpot_s", "e2e_s"):
            d[key] = {q: v * scale for q, v in d[key].items()}
            d["cdf"][key] = [v * scale for v in d["cdf"][key]]
        documents.append(d)
    made_ = build([typed(d) for d in documents], None, None)
    assert sum(p.title.endswith("what users see") for p in made_) == served.OWN
    assert len([b for b in made_[0].blocks if isinstance(b, Picture)]) == 2 + 3 + 3
    with house_style():
        for block in [b for b in made_[0].blocks if isinstance(b, Picture)][::2]:
            synthetic.assert_nothing_clipped(html.figure(block))


@settings(max_examples=3, deadline=None)
@given(scale=st.floats(-9, 9), total=st.integers(0, 10**9), limit=st.floats(1e-9, 1e9))
def test_no_text_is_cut_whatever_the_numbers(scale, total, limit):
    d = made()
    for key in ("ttft_s", "tpot_s", "e2e_s"):
        d[key] = {q: v * 10**scale for q, v in d[key].items()}
        d["cdf"][key] = [v * 10**scale for v in d["cdf"][key]]
    d["slo"]["limits"] = {"ttft": limit, "e2e": limit * 3}
    d["kv_blocks"]["total"] = total
    checked(d)


def test_classes_of_requests_have_a_row_each():
    d = made()
    d["classes"] = [copy.deepcopy(d["classes"][0]) | {"class": name} for name in ("chat", "code")]
    d["classes"][1] |= {"requests": 7, "finished": 0, "ttft_s": dict.fromkeys(("mean", "p50", "p90", "p99"))}
    (table,) = [t for t in tables([d]) if t.title == "Classes of requests"]
    assert [r[0].text for r in table.rows] == ["chat", "code"]
    assert [c.text for c in table.rows[1][1:5]] == ["7", "0", "–", "–"]
    assert table.rows[0][3].text == si(d["classes"][0]["ttft_s"]["p50"], "s")
    checked(d)


# -- documents -------------------------------------------------------------------------------------
def put(key: str, value: Any = None, *, delete: bool = False):
    def change(document: Document) -> None:
        *way, last = key.split(".")
        node: Any = document
        for step in way:
            node = node[int(step)] if isinstance(node, list) else node[step]
        if delete:
            del node[last]
        else:
            node[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("ttft_s", delete=True), "ttft_s: Field required"),
        (put("tpot_s.p99", delete=True), "tpot_s.p99: Field required"),
        (put("cdf.e2e_s", delete=True), "cdf.e2e_s: Field required"),
        (put("version", 2), "version is 2"),
        (put("version", delete=True), "version is missing"),
        (put("schema", "tokenfab.serving"), "schema is 'tokenfab.serving'"),
        (put("ttft_s.p50", float("nan")), "NaN is not a number"),
        (put("power_w.mean", float("inf")), "Infinity is not a number"),
        (put("ttft_s.p50", 1e9), "ttft_s: the quantiles must rise"),
        (put("cdf.ttft_s", [2.0, 1.0]), "cdf: ttft_s: the quantiles must rise"),
        (put("cdf.ttft_s", [2.0]), "cdf: ttft_s has one quantile"),
        (put("series.held", [1.0]), "series: the lists of series differ in length"),
        (put("interval", {"ttft_s.p50": [2.0, 1.0]}), "the low end exceeds the high end"),
        (put("requests.finished", 81), "requests: more are finished and rejected than submitted"),
        (put("energy_j.total", delete=True), "energy_j.total is missing"),
        (put("energy_j.idle", -1.0), "energy_j.idle: Input should be greater than or equal to 0"),
        (put("slo.limits", {"speed": 1.0}), "slo.limits.speed"),
        (put("policy", "vllm"), "policy: Input should be"),
        (put("seed", 1.5), "seed: Input should be a valid integer"),
    ],
)
def test_a_wrong_document_is_one_clear_line(change, message, tmp_path, capsys):
    document = made()
    change(document)
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(document))
    assert run(["report", str(file), "-o", str(tmp_path / "r.pdf")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert "wrong.json" in said
    assert '"tokenfab serve --json"' in said
    assert not (tmp_path / "r.pdf").exists()


def test_kinds_of_results_stand_in_one_report_in_the_order_of_the_registry(tmp_path):
    assert list(KINDS) == ["tokenfab.estimate", "tokenfab.placement", "tokenfab.serve"]
    serving = {**made(), "of a later version": 1}
    (tmp_path / "s.json").write_text(json.dumps(serving))
    (tmp_path / "e.json").write_text(json.dumps(synthetic.study([synthetic.estimate(explain=False)] * 2)))
    documents = load_documents([tmp_path / "s.json", tmp_path / "e.json"])
    assert [d["schema"] for d in documents] == ["tokenfab.serve", "tokenfab.estimate", "tokenfab.estimate"]
    files = write_report(documents, tmp_path / "r.pdf", command="by hand")
    page = files.html.read_text(encoding="utf-8")
    titles = ("What toy-7b costs", "What users see", "What was assumed of the devices", "How these runs were made")
    places = [page.index(f"{title}</h2>") for title in titles]
    assert all(a < b for a, b in pairwise(places))


def test_the_report_of_a_run_from_the_command_line(tmp_path, capsys):
    result, target = tmp_path / "serve.json", tmp_path / "r.pdf"
    arguments = ["serve", "-m", "opt-125m", "-d", "l4", "--requests", "poisson:rate=20,n=20,prompt=64,output=8"]
    assert run([*arguments, "--slo", "ttft=1", "--quiet", "-o", str(result)]) == 0
    assert run(["report", str(result), "-o", str(target), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["pages"], written["figures"]) == (3, 3)
    page = target.with_suffix(".html").read_text(encoding="utf-8")
    document = json.loads(result.read_text())
    assert si(document["ttft_s"]["p99"], "s") in page
    assert document["command"] in page


def test_what_a_policy_says_of_itself_is_in_words_with_units():
    figures = {"transfers": 1234, "bytes": 16.1e9, "visible_s": 2.76e-4, "visible_share_of_prompt": 0.25,
               "peak_w": 691.6, "level_s": {"none": 54.0, "first": 0.0}, "stall_s": None, "device": "h20",
               "instance_hours": 0.5, "wire_bytes_per_s": 32e9, "tokens_per_s": 250.0,
               "slowdown": {"high": 1.0}}  # fmt: skip
    document = {"policy_figures": ["disaggregation", "missing", 7], "disaggregation": figures}
    [(name, told)] = policy_figures(document)
    assert name == "disaggregation"
    assert dict(told) == {
        "transfers": "1\u2009234", "bytes": "16.1 GB", "visible": "276 µs", "visible share of prompt": "25 %",
        "peak": "692 W", "level": "none 54.0 s, first 0 s", "stall": "–", "device": "h20", "instance": "0.500 h",
        "wire": "32.0 GB/s", "tokens": "250/s", "slowdown": "high 1.00",
    }  # fmt: skip
    assert policy_figures({"policy_figures": 3}) == []
