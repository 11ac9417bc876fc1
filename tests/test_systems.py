"""Published systems: what a file may say, and that paper beside model is what the estimates say."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.cli import run
from tokenfab.errors import InputError
from tokenfab.hw.devices import load_device
from tokenfab.hw.estimate import Request, estimate
from tokenfab.hw.gates import integer_mac, lookup_mac
from tokenfab.serving.asked import asked
from tokenfab.serving.capacity import capacity
from tokenfab.serving.run import serve
from tokenfab.serving.simulation import Simulation
from tokenfab.serving.slowdown import parse_slowdowns
from tokenfab.systems.metrics import MEANS, METRICS, Value, at_level, known_figures, known_metrics, mean
from tokenfab.systems.runner import STATUSES, reproduce, status
from tokenfab.systems.served import SERVED, Served, weight_flops
from tokenfab.systems.spec import Run, load_system, system_names
from tokenfab.workloads.load import load_trace
from tokenfab.workloads.techniques import apply_techniques

VALID = """
name = "mine"
title = "A paper"
source = "somewhere"
description = "4-bit weights on one card"
year = 2024

[runs.narrow]
model = "opt-125m"
device = "a100-80g-sxm"
apply = ["weight-only:bits=4"]
prompt = [128, 512]
output = 64

[runs.wide]
model = "opt-125m"
device = "a100-80g-sxm"
prompt = [128, 512]
output = 64

[runs.one]
model = "opt-125m"
device = "h100-sxm"
prompt = 512
output = 64

[[claims]]
claim = "mean speed-up"
source = "abstract"
paper = 1.5
metric = "speed"
of = "narrow"
over = "wide"
mean = "geometric"

[[claims]]
claim = "at most"
source = "abstract"
paper = 1.5
metric = "speed"
of = "narrow"
over = "one"
mean = "maximum"
reason = "another card"

[[claims]]
claim = "tokens"
source = "table 1"
paper = 3000
metric = "decode_tokens_per_s"
of = "one"

[[claims]]
claim = "accuracy"
source = "table 2"
not_modelled = "accuracy is not a cost"
"""


def written(folder: Path, text: str = VALID) -> Path:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return file


def latency(device: str, prompt: int, *techniques: str) -> float:
    trace = apply_techniques(load_trace("opt-125m"), list(techniques))
    return estimate(trace, load_device(device), Request(1, prompt, 64)).latency_s


def test_a_claim_is_what_the_estimates_say(tmp_path: Path) -> None:
    rows = reproduce(load_system(written(tmp_path)))
    wide, narrow = ([latency("a100-80g-sxm", p, *t) for p in (128, 512)] for t in ((), ("weight-only:bits=4",)))
    one = latency("h100-sxm", 512)
    assert rows[0]["model"] == pytest.approx(math.sqrt(wide[0] * wide[1] / narrow[0] / narrow[1]), rel=1e-12)
    assert rows[1]["model"] == pytest.approx(one / min(narrow), rel=1e-12)
    step = estimate(load_trace("opt-125m"), load_device("h100-sxm"), Request(1, 512, 64)).decode
    assert rows[2]["model"] == pytest.approx(1 / step.latency_s, rel=1e-12)
    assert rows[2]["interval"] == pytest.approx([1 / step.interval_s[1], 1 / step.interval_s[0]], rel=1e-12)
    assert rows[2]["ratio"] == pytest.approx(rows[2]["model"] / 3000, rel=1e-12)
    assert rows[3]["status"] == "not-modelled"
    assert rows[3]["reason"] == "accuracy is not a cost"
    assert rows[1]["reason"] == "another card"
    assert rows[0]["runs"][1] == (
        "tokenfab estimate --model opt-125m --device a100-80g-sxm --apply weight-only:bits=4 --batch 1 --prompt 512 "
        "--output 64"
    )
    for row in rows[:3]:
        assert row["interval"][0] < row["model"] < row["interval"][1]


def test_the_commands_printed_beside_a_claim_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = reproduce(load_system(written(tmp_path)))[2]
    assert run([*row["runs"][0].split()[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decode"]["latency_s"] == pytest.approx(1 / row["model"], rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "word"),
    [(1, "within-10%"), (0.9, "within-10%"), (1.1, "within-10%"), (0.89, "within-25%"), (1.25, "within-25%"),
     (0.75, "within-25%"), (0.74, "off"), (1.26, "off"), (12, "off")],
)  # fmt: skip
def test_the_status_is_the_distance(ratio: float, word: str) -> None:
    assert status(ratio) == word


POSITIVE = st.floats(1e-3, 1e3)
VALUES = st.builds(lambda v, a, b: Value(v, v / a, v * b), POSITIVE, st.floats(1, 10), st.floats(1, 10))


@given(VALUES, VALUES)
def test_a_ratio_of_values_is_wider_than_each_and_narrower_than_both(a: Value, b: Value) -> None:
    ratio = a.over(b)
    assert ratio.value == pytest.approx(a.value / b.value)
    assert a.low / b.high * (1 - 1e-9) <= ratio.low <= ratio.value * (1 + 1e-9)
    assert ratio.value * (1 - 1e-9) <= ratio.high <= a.high / b.low * (1 + 1e-9)
    assert ratio.high / ratio.value >= max(a.high / a.value, b.value / b.low) * (1 - 1e-9)


@given(st.lists(VALUES, min_size=1, max_size=5), st.sampled_from(sorted(MEANS)))
def test_a_mean_lies_in_its_interval(values: list[Value], kind: str) -> None:
    told = mean(values, kind)
    assert told.low <= told.value * (1 + 1e-9)
    assert told.value <= told.high * (1 + 1e-9)
    if kind == "arithmetic":
        assert told.value == pytest.approx(np.mean([v.value for v in values]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('of = "one"\n', 'of = "on"\n'), "claim 'tokens': unknown run 'on'; did you mean one"),
        (('mean = "maximum"\n', ""), "several runs need a mean; accepted: arithmetic, geometric, maximum, minimum"),
        (('metric = "decode_tokens_per_s"\n', ""), "accepted: paper with metric and of, or with figure"),
        (("paper = 3000\n", "paper = -1\n"), "claims.2.paper"),
        (('over = "one"\n', ""), "runs.one|claim"),
        (("prompt = 512\n", "prompt = []\n"), "runs.one: 0 runs"),
        (('metric = "decode_tokens_per_s"\nof = "one"\n', 'figure = "x"\nof = "one"\n'), "a figure is of no run"),
        (
            ('metric = "decode_tokens_per_s"\n', 'metric = "speed"\narguments = { a = 1 }\n'),
            "arguments are of a figure",
        ),
        (("year = 2024", "year = 2024\nscale = 2"), "scale: Extra inputs"),
        (('name = "mine"', 'name = "mine"\nname = 2'), "not TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    text = VALID.replace(*change)
    if words.startswith("runs.one|"):
        text = text.replace('of = "one"', 'of = "wide"\nmean = "minimum"')
        words = r"runs.one: no claim asks for it"
    with pytest.raises(InputError, match=words) as caught:
        load_system(written(tmp_path, text))
    assert "\n" not in str(caught.value)


SERVING = """
name = "stream"
title = "A paper"
source = "somewhere"
description = "a stream of requests"
year = 2024

[runs.one]
model = "opt-125m"
device = "a100-80g-sxm"
requests = ["poisson:rate=80,n=60,prompt=300,output=20", "poisson:rate=90,n=60,prompt=300,output=20"]
slowdown = "ttft=1.5/3/6;a100-80g-sxm;ideal"
share = 1.0

[runs.two]
model = "opt-125m"
device = "a100-80g-sxm"
requests = "poisson:rate=80,n=60,prompt=300,output=20"
count = 2
slowdown = "ttft=1.5/3/6;a100-80g-sxm;ideal"
share = 1.0

[runs.more]
model = "opt-125m"
device = "a100-80g-sxm"
requests = "poisson:rate=90,n=60,prompt=300,output=20"
count = 2

[[claims]]
claim = "capacity"
source = "abstract"
paper = 2
metric = "served_capacity"
of = "two"

[[claims]]
claim = "sooner by"
source = "abstract"
paper = 0.1
metric = "served_ttft_s"
of = "one"
over = ["two", "more"]
gain = true
mean = "maximum"
"""


def test_a_claim_may_be_a_gain_over_several_runs_and_a_capacity_under_slowdowns(tmp_path: Path) -> None:
    rows = reproduce(load_system(written(tmp_path, SERVING)))
    log, cluster = asked("opt-125m", "a100-80g-sxm", "poisson:rate=80,n=60,prompt=300,output=20", count=2)
    limits = parse_slowdowns("ttft=1.5/3/6;a100-80g-sxm;ideal")
    found = capacity(log, cluster, "vllm", {}, 1.0, slowdowns=limits)
    assert rows[0]["model"] == found.rate
    assert rows[0]["interval"] == [found.rate, found.next]
    assert "--slowdown 'ttft=1.5/3/6;a100-80g-sxm;ideal' --capacity 1.0" in rows[0]["runs"][0]
    ratios = []
    for rate in (80, 90):
        logs = [
            asked("opt-125m", "a100-80g-sxm", f"poisson:rate={rate},n=60,prompt=300,output=20", count=k) for k in (1, 2)
        ]
        one, two = (serve(*each, "vllm", interval=False)[0]["ttft_s"]["mean"] for each in logs)
        ratios.append(one / two)
    assert rows[1]["model"] == pytest.approx(max(ratios) - 1)
    for change, words in (
        (('over = ["two", "more"]', 'over = ["two", "less"]'), "unknown run 'less'"),
        (('over = ["two", "more"]\n', ""), "gain is over another run|runs.more"),
    ):
        with pytest.raises(InputError, match=words):
            load_system(written(tmp_path, SERVING.replace(*change)))


def test_an_unknown_metric_names_the_claim(tmp_path: Path) -> None:
    system = load_system(written(tmp_path, VALID.replace('"decode_tokens_per_s"', '"decode_token_per_s"')))
    with pytest.raises(
        InputError,
        match=r"system mine, claim 'tokens': unknown metric .*did you mean .*decode_tokens_per_s,",
    ):
        reproduce(system)


def test_a_run_that_cannot_be_is_said(tmp_path: Path) -> None:
    system = load_system(written(tmp_path, VALID.replace("prompt = 512\n", "prompt = 4000\n")))
    with pytest.raises(InputError, match=r"system mine, claim 'at most': prompt 4000 .* exceed the 2048 of opt-125m"):
        reproduce(system)


def test_metrics_are_described_and_told(tmp_path: Path) -> None:
    trace = load_trace("opt-125m")
    e = estimate(trace, load_device("a100-80g-sxm"), Request(2, 128, 32), explain=True)
    with pytest.raises(InputError, match="no switch between models; accepted: a run with composition"):
        METRICS["switch_speed"][1](e, trace)
    told = {name: metric(e, trace) for name, (_, metric) in METRICS.items() if name != "switch_speed"}
    values = {name: v.value if isinstance(v, Value) else v for name, v in told.items()}
    assert values["tokens_per_s"] == pytest.approx(e.tokens_per_s)
    assert values["energy_per_token_j"] * values["tokens_per_joule"] == pytest.approx(1)
    assert values["decode_tokens_per_joule"] == pytest.approx(2 / e.decode.energy_j)
    assert values["decode_power_w"] == pytest.approx(e.decode.energy_j / e.decode.latency_s)
    assert values["bandwidth_utilisation"] == pytest.approx(e.decode.bytes / e.decode.latency_s / 2039e9)
    assert values["decode_tokens_per_s_per_mm2"] == pytest.approx(2 / e.decode.latency_s / 826)
    assert values["machines_needed"] == 1
    assert all(text for text, _ in known_metrics().values())


def test_a_figure_is_what_its_function_says(tmp_path: Path) -> None:
    asked = 'metric = "decode_tokens_per_s"\nof = "one"\n'
    of = 'figure = "density_ratio"\narguments = { of = "lut-w2a8", over = "int8" }\n'
    text = VALID.replace(asked, of).replace("paper = 3000", "paper = 3.5").replace('over = "one"', 'over = "wide"')
    one = text.index("[runs.one]")
    text = text[:one] + text[text.index("[[claims]]") :]
    row = reproduce(load_system(written(tmp_path, text)))[2]
    assert row["model"] == pytest.approx(integer_mac() / lookup_mac(2))
    assert row["interval"] == [row["model"], row["model"]]
    assert row["runs"] == []
    with pytest.raises(InputError, match=r"figure density_ratio: missing a required argument: 'over'; accepted: \(of"):
        reproduce(load_system(written(tmp_path, text.replace(', over = "int8"', ""))))
    with pytest.raises(InputError, match="unknown unit 'int9'"):
        reproduce(load_system(written(tmp_path, text.replace('"int8"', '"int9"'))))
    with pytest.raises(InputError, match="unknown figure 'densities'"):
        reproduce(load_system(written(tmp_path, text.replace('"density_ratio"', '"densities"'))))


STREAM = """
name = "streams"
title = "A paper"
source = "somewhere"
description = "two loads"
year = 2024

[runs.loads]
model = "opt-125m"
device = "l4"
requests = ["poisson:rate=20,n=60,urgent=0.3", "poisson:rate=60,n=60,urgent=0.3"]
ends = false

[runs.one]
model = "opt-125m"
device = "l4"
requests = "poisson:rate=20,n=60,urgent=0.3"

[[claims]]
claim = "seconds to the last token at so many tokens per second"
source = "abstract"
paper = 1
metric = "served_e2e_s"
of = "loads"
at = { served_tokens_per_s = LEVEL }

[[claims]]
claim = "of urgent requests"
source = "abstract"
paper = 1
metric = "served_e2e_s"
of = "one"
of_class = "urgent"

[[claims]]
claim = "of all"
source = "abstract"
paper = 1
metric = "served_e2e_s"
of = "one"
"""


def served_alone(requests: str) -> dict:
    log, cluster = asked("opt-125m", "l4", requests)
    return serve(log, cluster, "vllm", interval=False)[0]


def test_a_stream_is_asked_at_a_level_by_class_and_without_ends(tmp_path: Path) -> None:
    slow, fast = (served_alone(f"poisson:rate={rate},n=60,urgent=0.3") for rate in (20, 60))
    low, high = (d["throughput_tokens_per_s"] for d in (slow, fast))
    file = written(tmp_path, STREAM.replace("LEVEL", str(low + 0.25 * (high - low))))
    at, urgent, whole = reproduce(load_system(file))
    assert at["model"] == pytest.approx(0.75 * slow["e2e_s"]["mean"] + 0.25 * fast["e2e_s"]["mean"], rel=1e-9)
    assert at["interval"] is None
    assert at["runs"][0].endswith("--seed 0 --no-interval")
    part = next(c for c in slow["classes"] if c["class"] == "urgent")
    assert urgent["model"] == part["e2e_s"]["mean"] != whole["model"]
    assert urgent["interval"] is None
    assert whole["interval"][0] < whole["model"] < whole["interval"][1]
    for change, words in (
        (("LEVEL", "1"), "at: 1 is not between the runs, which have"),
        (('of_class = "urgent"', 'of_class = "urgnt"'), "unknown class of requests 'urgnt'; did you mean urgent"),
        (('metric = "served_e2e_s"\nof = "one"\nof', 'metric = "served_speed"\nof = "one"\nof'),
         "metric served_speed: not told of a class; accepted: served_goodput, served_ttft_s"),
        (('metric = "served_e2e_s"\nof = "loads"', 'metric = "served_instances"\nof = "loads"'),
         "policy vllm says nothing of migration.instances_mean"),
    ):  # fmt: skip
        text = STREAM.replace(*change).replace("LEVEL", str(low))
        with pytest.raises(InputError, match=words):
            reproduce(load_system(written(tmp_path, text)))
    for change, words in (
        (('of = "loads"\n', 'of = "loads"\nmean = "maximum"\n'), "at reads one curve"),
        (('of = "loads"\n', 'of = "one"\n'), "a curve of one run; accepted: at least 2 runs"),
    ):
        with pytest.raises(InputError, match=words):
            load_system(written(tmp_path, STREAM.replace(*change, 1).replace("LEVEL", "1")))


def test_a_curve_is_read_in_the_order_of_its_levels() -> None:
    values = [Value(x, x / 2, 2 * x) for x in (8.0, 2.0, 4.0)]
    assert at_level([3.0, 1.0, 2.0], values, 1.5) == Value(3.0, 1.5, 6.0)
    assert at_level([3.0, 1.0, 2.0], values, 3.0) == values[0]
    with pytest.raises(InputError, match=r"at: 0.5 is not between the runs, which have 1 to 3"):
        at_level([3.0, 1.0, 2.0], values, 0.5)


def test_a_stream_tells_its_arithmetic_and_its_bubbles() -> None:
    run = Run(model="opt-125m", device="a100-80g-sxm", parallel="tp=1,pp=2", policy="orca:most=2",
              requests="poisson:rate=inf,n=9,prompt=300,output=20")  # fmt: skip
    document = Served(run)
    flops, idle = SERVED["served_flops_per_s_per_device"][1](document), SERVED["served_bubble_s"][1](document)
    seconds = document["simulated_s"]
    assert flops.value == pytest.approx(9 * 320 * weight_flops(load_trace("opt-125m")) / seconds / 2)
    assert flops.low < flops.value < flops.high
    assert idle.value == pytest.approx(SERVED["served_bubbles"][1](document).value * seconds / 9)
    assert 0 < idle.value < seconds / 9
    # Two per weight that a token meets: of Mixtral's 46.7e9 parameters 12.9e9, less the embedding and the router.
    assert weight_flops(load_trace("mixtral-8x7b")) == pytest.approx(2 * 12.74e9, rel=2e-3)
    trace = load_trace("llama-2-7b")
    assert weight_flops(trace) == pytest.approx(2 * (trace.parameters - 32000 * 4096), rel=1e-4)


# -- those that come with the package ----------------------------------------------------------------
STANDING = {
    "attacc": (1, 1, 0, 0), "bitmod": (8, 0, 0, 1), "duplex": (1, 0, 1, 3), "flightllm": (3, 10, 4, 1),
    "flexgen": (0, 1, 2, 0), "flexllm": (5, 2, 4, 0), "flover": (0, 1, 1, 0), "instinfer": (0, 1, 0, 0),
    "lamina": (2, 2, 4, 0), "llm-in-a-flash": (2, 2, 1, 1), "llumnix": (2, 2, 9, 1),
    "lut-tensor-core": (10, 11, 13, 0), "m3vit": (0, 0, 4, 0),
    "marlin": (8, 0, 0, 1), "nanoflow": (2, 1, 2, 0), "olive": (3, 3, 3, 0), "polca": (7, 2, 0, 1),
    "powerinfer-2": (4, 2, 2, 0), "sarathi": (4, 2, 2, 0), "sn40l": (5, 1, 1, 1), "spikegpt": (2, 0, 1, 0),
    "splitwise": (3, 1, 5, 0), "t-mac": (3, 5, 4, 0),
}  # fmt: skip
"""Claims of each system within 10 %, within 25 %, off, and not modelled: who moves one says so here."""
LONG = {"splitwise": "served_capacity"}
"""Systems whose claims of a metric take half a minute: they are left out here, and all say why they are off."""


LONG_RUNS = {
    "flexllm": ({"heavy-four", "light-four"}, (5, 2, 2, 0)),
    "llumnix": ({"in-turns", "dispatched", "scaled-dispatched"}, (1, 0, 3, 1)),
    "nanoflow": ({"models"}, (1, 1, 1, 0)),
    "polca": ({"capped"}, (1, 2, 0, 1)),
}  # fmt: skip
"""Runs that take long together, and how the claims of the others stand. TOKENFAB_SYSTEMS=1 holds all of them."""


@pytest.mark.parametrize("name", system_names())
def test_a_system_of_the_package_is_reproduced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def once(*asked: Any, **more: Any) -> tuple[dict[str, Any], Simulation]:
        """Without the two further runs that give a stream's figures their interval, and tell no status."""
        return serve(*asked, **{**more, "interval": False})

    monkeypatch.setattr("tokenfab.systems.served.serve", once)
    system = load_system(name)
    long, standing = [c for c in system.claims if c.metric == LONG.get(name, "")], STANDING[name]
    assert all(c.reason for c in long)
    if name in LONG_RUNS and os.environ.get("TOKENFAB_SYSTEMS") != "1":
        left_out, standing = LONG_RUNS[name]
        long += [c for c in system.claims if c.of in left_out]
    rows = reproduce(system.model_copy(update={"claims": tuple(c for c in system.claims if c not in long)}))
    found = [row["status"] for row in rows]
    assert tuple(found.count(status) for status in STATUSES) == standing
    for row in rows:
        if row["status"] in ("off", "not-modelled"):
            assert row["reason"], f"{row['claim']}: {row['ratio']} without a reason"
        if row["status"] != "not-modelled" and row["interval"] is not None:
            assert row["interval"][0] <= row["model"] <= row["interval"][1]


def test_the_command_line_prints_the_promised_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(tmp_path))
    assert run(["reproduce", file, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(r.keys() >= {"system", "claim", "paper", "model", "ratio", "interval", "status"} for r in rows)
    assert run(["reproduce", file]) == 0
    text = capsys.readouterr().out
    assert "within-" in text or "off" in text
    assert "mine, accuracy: accuracy is not a cost" in text
    pdf = tmp_path / "out" / "mine.pdf"
    assert run(["reproduce", file, "-o", str(pdf), "--quiet"]) == 0
    assert pdf.read_bytes().startswith(b"%PDF")
    page = pdf.with_suffix(".html").read_text(encoding="utf-8")
    assert "accuracy is not a cost" in page
    assert f"{rows[0]['ratio']:.2f}" in page
    assert run(["reproduce", file, "-o", str(tmp_path / "mine.txt")]) == 2
    assert "accepted: a file name that ends in .pdf" in capsys.readouterr().err
    assert run(["systems", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"]["wide"][1]["prompt"] == 512
    assert run(["reproduce", "no-such"]) == 2
    assert "unknown system" in capsys.readouterr().err


def test_the_page_lists_every_metric_and_figure() -> None:
    page = (Path(__file__).parents[1] / "docs/systems.md").read_text(encoding="utf-8")
    for name, (text, _) in {**known_metrics(), **known_figures(), **SERVED}.items():
        assert f"| `{name}` | {text} |" in page
