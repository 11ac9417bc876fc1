"""Is every page whole: nothing clipped, nothing covered, the right numbers and the right words?"""

from __future__ import annotations

import importlib.util
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tokenfab.reports import bars, html, pdf, plot, roofline, style
from tokenfab.reports import format as fmt
from tokenfab.reports.blocks import Canvas, Cell, Column, Paragraph, Picture, Table
from tokenfab.reports.documents import parse
from tokenfab.reports.parts import build
from tokenfab.reports.sections import certainty, headline, sections

_spec = importlib.util.spec_from_file_location("reports_synthetic", Path(__file__).with_name("reports_synthetic.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
estimate, devices, whole = synthetic.estimate, synthetic.devices, synthetic.assert_nothing_clipped

LONG = "a-device-with-a-name-as-long-as-the-catalogue-takes-64-letters-"


def parts(documents: list[dict], command: str | None = "tokenfab report out/study.json -o report.pdf"):
    return build([parse(d) for d in documents], None, command)


def check(documents: list[dict], command: str | None = None, figures: bool = True) -> list[str]:
    """Hold every page, and every figure as the HTML has it, against the checker; returns the pages' texts."""
    made, texts = parts(documents, command), []
    for page in pdf.pages(made, f"tokenfab  ·  {command}"):
        assert whole(page) > 4
        texts.append(" ".join(t.get_text() for t in page.texts))
    with style.house_style():
        for part in made:
            for block in part.blocks:
                if figures and isinstance(block, Picture):
                    assert whole(html.figure(block)) > 2
    return texts


# -- pages ---------------------------------------------------------------------------------------
STUDIES = {
    "one device": [estimate()],
    "the usual eight": devices(8),
    "twelve": devices(12),
    "thirty, which take several pictures": devices(30, explain=False),
    "none that fits": [estimate(f"d{i}", fits=False) for i in range(3)],
    "without operators and curves": devices(8, explain=False),
    "some explained, some not": [*devices(3), estimate("plain", explain=False)],
    "long names": [
        estimate(f"{LONG}{i}", speed=1.1**i, fits=i != 2, applied=("weight-only:bits=4,group=128",) * (i % 2))
        for i in range(8)
    ],
    "several questions": [
        estimate("a"), estimate("b", model="other", batch=64), estimate("a", prompt=64, count=8),
        estimate("a", model="other", batch=64, speed=3),
    ],
    "the same twice": [estimate("a"), estimate("a")],
    "speeds far apart": [estimate(f"d{i}", speed=1000.0**i) for i in range(4)],
    "letters of other scripts, dollars and markup": [estimate("$α$ <b>&amp;</b> _x^2 ×"), estimate("naïve-θ")],
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_nothing_is_clipped_and_nothing_covers_anything(name):
    documents = STUDIES[name]
    figures = name in ("one device", "the usual eight", "long names", "speeds far apart")
    texts = " ".join(check(documents, "tokenfab report " + "a/rather/long/path/" * 20, figures))
    for document in documents:
        short = document["device"]["name"]
        assert len(short) > 40 or short in texts


@pytest.mark.slow
@settings(max_examples=5, phases=[Phase.explicit, Phase.generate])
@given(
    number=st.integers(1, 12), speed=st.floats(0.3, 3), wide=st.floats(0, 0.95), batch=st.sampled_from([1, 7, 256]),
    names=st.lists(st.text("abcdefgWM-. ", min_size=1, max_size=64).map(lambda t: f"x{t}x"), min_size=12, max_size=12),
)  # fmt: skip
def test_nothing_is_clipped_whatever_the_names_and_numbers(number, speed, wide, batch, names):
    documents = [estimate(names[i], speed=speed**i, wide=wide, batch=batch, fits=i % 3 != 1) for i in range(number)]
    check(documents, figures=False)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_nothing_breaks_at_extreme_speeds(scale):
    check([estimate("a", speed=scale), estimate("b", speed=scale * 1.5, price=1e-9)], figures=False)


def test_the_usual_study_has_its_pages():
    titles = [part.title for part in parts(devices(8))]
    assert titles == [
        "What toy-7b costs", "Roofline", "Rooflines of the other devices", "Where the time goes",
        "Operators on device-6, longest first", "Latency against length", "Latency and throughput against batch",
        "Memory, energy and price", "Models, provenance and conventions", "What was assumed of the devices",
    ]  # fmt: skip
    assert len(pdf.pages(parts(devices(8)), "")) >= 6


def test_a_plain_estimate_gives_a_shorter_report():
    titles = [part.title for part in parts([estimate(explain=False)])]
    assert "Roofline" not in titles
    assert "Latency against length" not in titles
    assert len(titles) >= 4


def test_the_first_of_several_questions_is_an_overview():
    made = parts(STUDIES["several questions"])
    assert made[0].title == "Overview"
    (table,) = made[0].blocks
    assert [row[0].text for row in table.rows] == [
        "toy-7b, batch 1, 512 + 128 tokens", "other, batch 64, 512 + 128 tokens", "toy-7b, batch 1, 64 + 128 tokens",
    ]  # fmt: skip


def test_a_device_keeps_its_colour_on_all_pages_and_in_all_sections():
    made = sections([parse(d) for d in STUDIES["several questions"]], style.DEVICES)
    colours = {(e.label, e.colour) for s in made for e in s.entries}
    assert len(colours) == len({label for label, _ in colours}) == len({colour for _, colour in colours}) == 3


# -- the answer ------------------------------------------------------------------------------------
def section(documents: list[dict]):
    (only,) = sections([parse(d) for d in documents], style.DEVICES)
    return only


def test_rows_are_sorted_by_throughput_with_those_that_do_not_fit_last():
    entries = section(devices(8)).entries
    assert [e.label for e in entries] == [
        "device-6", "device-5 ×2", "device-4", "device-2 ×2", "device-1", "device-0", "device-7", "device-3",
    ]  # fmt: skip


def test_the_headline_names_the_winners_among_those_that_fit():
    small = estimate("too-small", speed=9, price=0.1, fits=False)
    text = headline(section([estimate("fast", speed=4, price=3.0), estimate("cheap", price=0.5), small]))
    assert text.startswith("toy-7b, batch 1, 512 + 128 tokens: fast is fastest with 767 tokens/s (90 % interval 613–1")
    assert "cheap is cheapest at $0.500 per million tokens" in text
    assert "too-small" not in text
    assert text.endswith("2 of 3 devices hold the model.")


def test_the_headline_says_when_none_fits_and_what_is_missing():
    text = headline(section(STUDIES["none that fits"]))
    assert "none of 3 devices holds the model; d0 comes closest, 8.31 GB short" in text


def test_the_order_is_called_uncertain_exactly_when_intervals_overlap():
    assert "overlaps that of a" in certainty(section([estimate("a", speed=1.2), estimate("b")]))
    assert "larger than the intervals" in certainty(section([estimate("a", speed=2), estimate("b")]))
    assert certainty(section([estimate("a")])) == ""


def test_a_device_that_does_not_fit_is_never_a_silent_number():
    made = parts([estimate("small", fits=False), estimate("large")])
    table = next(b for b in made[0].blocks if isinstance(b, Table))
    small = table.rows[1]
    assert small[1] == Cell("NO, 8.31 GB short", "warn")
    assert all(re.fullmatch(r"\[.*\]", cell.text) for cell in small[2:-1])
    assert "In brackets" in table.note


def test_a_device_without_a_price_shows_a_dash_and_wins_no_price():
    made = section([estimate("a", price=None, speed=3), estimate("b", price=9.0)])
    assert made.cheapest.label == "b"
    assert section([estimate("a", price=None)]).cheapest is None


def test_energy_parts_sum_to_the_total():
    document = estimate()
    entry = section([document]).best
    assert sum(entry.energy_parts.values()) == pytest.approx(document["total"]["energy_per_token_j"])
    document["total"]["energy_per_token_j"] *= 1.5
    parts_of = section([document]).best.energy_parts
    assert sum(parts_of.values()) == pytest.approx(document["total"]["energy_per_token_j"])
    assert parts_of["waiting devices"] > 0


def test_a_roofline_shows_each_operator_that_computes_and_names_the_others():
    entry = section([estimate()]).best
    found = roofline.points(entry.document.operators)
    assert len(found) == 12
    assert roofline.omitted(entry.document.operators) == ["collective", "embedding", "kv_append"]
    limits = roofline.limits([entry])
    for p in found:
        assert limits[0] < p.intensity < limits[1]
        assert limits[2] < p.achieved < limits[3]
    lead = next(p.lead for p in parts([estimate()]) if p.title == "Roofline")
    assert "compute nothing: collective, embedding and kv_append." in lead


def test_every_number_of_every_device_file_is_listed_with_its_source():
    made = parts(devices(9))
    blocks = made[-1].blocks
    tables = [b for b in blocks if isinstance(b, Table)]
    assert [len(t.columns) - 1 for t in tables] == [5, 4]
    sources = dict(blocks[-1].items)
    assumed = next(row for row in tables[0].rows if row[0].text == "memory.dram.energy")
    for cell in assumed[1:]:
        assert cell.tone == "warn"
        mark = re.fullmatch(r"4\.00 pJ/bit\* \[(\d+)\]", cell.text).group(1)
        assert sources[mark].startswith("assumed: ")
    assert made[-1].lead == "54 numbers of 9 device files; 9 of them are assumed."


def test_a_number_that_one_device_alone_has_goes_where_its_file_has_it():
    first, second = estimate("a"), estimate("b")
    extra = second["device"]["quantities"][0] | {"key": "engines.matrix.int4"}
    second["device"]["quantities"].insert(1, extra)
    table = next(b for b in parts([first, second])[-1].blocks if isinstance(b, Table))
    keys = [row[0].text for row in table.rows]
    assert keys[:3] == ["engines.matrix.fp8", "engines.matrix.int4", "engines.matrix.bf16"]
    assert [cell.text for cell in table.rows[1][1:]] == ["–", "1000 TFLOP/s [1]"]


def test_operators_beyond_the_longest_are_summed_up():
    document = estimate()
    one = document["operators"][-1]
    document["operators"] += [one | {"name": f"tiny-{i}", "time_s": 1e-6} for i in range(6)]
    table = next(b for p in parts([document]) if p.title.startswith("Operators") for b in p.blocks)
    assert table.rows[-1][1].text == "3 others"
    assert table.rows[-1][4].text == "3.00 µs"


def test_a_question_that_no_device_answers_has_dashes_in_the_overview():
    made = parts([estimate("a", fits=False), estimate("a", batch=2)])
    first = made[0].blocks[0].rows[0]
    assert [cell.text for cell in first[1:]] == ["0 of 1", *["–"] * 6]


def test_the_same_device_in_two_arrangements_is_told_apart():
    made = section([estimate("a", count=4, parallel="tp=4"), estimate("a", count=4, parallel="pp=4", speed=0.5)])
    assert [e.label for e in made.entries] == ["a ×4 tp=4", "a ×4 pp=4"]
    techniques = section([estimate("a", applied=("w4:group=128",), speed=2), estimate("a")])
    assert [e.label for e in techniques.entries] == ["a · w4:group=128", "a · as is"]


# -- pieces ----------------------------------------------------------------------------------------
@given(value=st.floats(1e-11, 1e17))
def test_a_number_reads_back_to_three_digits(value):
    number, _, unit = fmt.si(value, "B").partition(" ")
    scale = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1, "m": 1e-3, "µ": 1e-6, "n": 1e-9, "p": 1e-12}
    assert float(number.replace("\u2009", "")) * scale[unit.removesuffix("B")] == pytest.approx(value, rel=0.00501)
    assert len(re.sub(r"\D|^0\.0*", "", number)) <= 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fmt.si(0.00123, "s"), "1.23 ms"),
        (fmt.si(999.96e-6, "s"), "1.00 ms"),
        (fmt.si(9400, "s"), "9\u2009400 s"),
        (fmt.si(0, "J"), "0 J"),
        (fmt.si(3.352e12, "B/s"), "3.35 TB/s"),
        (fmt.interval(0.0091, 0.0124, "s"), "9.10–12.4 ms"),
        (fmt.interval(0.9, 1.2, ""), "0.900–1.20"),
        (fmt.number(2.5e6), "2.50×10⁶"),
        (fmt.number(1.25e-5), "1.25×10⁻⁵"),
        (fmt.dollars(None), "–"),
        (fmt.dollars(1234.5), "$1\u2009230"),
        (fmt.percent(0.0004), "<0.1 %"),
        (fmt.percent(0.004), "0.4 %"),
        (fmt.percent(0.5), "50 %"),
        (fmt.percent(0), "0 %"),
        (fmt.size(6_738_415_616), "6.74 B"),
        (fmt.short(4096.0), "4\u2009096"),
        (fmt.short(20.0), "20"),
        (fmt.short(0.5), "0.5"),
        (fmt.short(2e6), "2×10⁶"),
        (fmt.listed(["a", "b", "c"]), "a, b and c"),
        (fmt.shares({"dram": 0.87, "launch": 0.13}), "DRAM 87 %, launch 13 %"),
    ],
)
def test_numbers_are_written_as_the_field_writes_them(text, expected):
    assert text == expected


@given(
    wanted=st.lists(st.floats(0, 5), min_size=1, max_size=25), gap=st.floats(0.05, 0.3),
)  # fmt: skip
def test_labels_are_moved_apart_and_keep_their_order(wanted, gap):
    placed = plot.spread(wanted, gap, 0.0, 5.0)
    least = min(gap, 5.0 / max(1, len(wanted) - 1))
    ordered = [placed[i] for i in sorted(range(len(wanted)), key=lambda i: wanted[i])]
    assert all(b - a >= least * 0.999 for a, b in pairwise(ordered))
    assert min(placed) >= -1e-9
    assert max(placed) <= 5 + 1e-9


@given(text=st.text("abc .-/ ", max_size=200), inches=st.floats(0.3, 4))
def test_wrapped_lines_fit_and_lose_no_letter(text, inches):
    lines = style.wrap(text, inches, 8)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(style.width(line, 8) <= inches for line in lines)


def test_a_number_stays_with_its_unit():
    for inches in (x / 20 for x in range(12, 60)):
        lines = style.wrap("takes 22.8 ms at 67 % of 3.35 TB/s", inches, 8)
        assert not any(line.startswith(("ms", "%", "TB/s")) for line in lines)


def test_measured_width_is_the_drawn_width():
    for text, bold in (("launch 13 % of 9.10–12.4 ms", False), ("What llama-2-70b costs", True)):
        figure = Figure(figsize=(6, 1), dpi=300)
        with style.house_style():
            artist = figure.text(0, 0, text, fontsize=10, weight="bold" if bold else "normal")
            drawn = artist.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / 300
        assert style.width(text, 10, bold) == pytest.approx(drawn, rel=0.03)


@given(values=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=12))
def test_an_axis_ends_at_the_largest_value_unless_it_is_an_outlier(values):
    end = plot.axis_end(values)
    kept = [v for v in values if v <= end]
    assert kept
    assert max(kept) <= end <= 1.15 * max(kept)
    assert all(v > 10 * sorted(values)[(len(values) - 1) // 2] for v in values if v > end)


@given(limit=st.floats(1e-9, 1e9), most=st.integers(2, 8))
def test_linear_ticks_are_round_and_on_the_axis(limit, most):
    ticks, labels, _ = plot.linear_ticks(limit, "s", most)
    assert 2 <= len(ticks) <= most + 1
    assert len(set(labels)) == len(labels)
    assert ticks[-1] <= limit * 1.001
    first = ticks[1] / 10 ** math.floor(math.log10(ticks[1] * 1.001))
    assert first == pytest.approx(round(first))
    assert round(first) in (1, 2, 5)


# -- the checker can fail --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("x", "y", "text"), [(0.95, 0.5, "leaves to the right"), (0.5, 0.99, "leaves at the top"), (-0.1, 0.5, "x")]
)
def test_a_text_that_leaves_the_figure_is_found(x, y, text):
    figure = Figure(figsize=(4, 2))
    figure.text(x, y, text)
    with pytest.raises(AssertionError, match="leaves the figure"):
        whole(figure)


def test_texts_that_cover_one_another_are_found():
    figure = Figure(figsize=(4, 2))
    figure.text(0.5, 0.5, "one")
    figure.text(0.52, 0.52, "two")
    with pytest.raises(AssertionError, match="covers"):
        whole(figure)


def test_a_table_too_narrow_for_its_words_still_has_no_overlap():
    words = tuple(Cell("a-single-unbreakable-word-of-forty-letters-xx") for _ in range(9))
    table = Table(tuple(Column(f"column {i}", "right" if i % 2 else "left", grow=True) for i in range(9)), (words,) * 3)
    writer = pdf._Writer()
    with style.house_style():
        writer.begin()
        writer.block(table)
        writer.block(Paragraph("after the table"))
        assert whole(writer.page.figure) > 50


def test_bars_beyond_the_axis_are_marked_as_cut():
    documents = [estimate("a"), estimate("b"), estimate("c", speed=0.001)]
    figure = Figure(figsize=(9, 4))
    with style.house_style():
        bars.breakdown(Canvas(figure, 0, 0, 9, 4), section(documents), section(documents).entries)
    assert sum(t.get_text().startswith("» ") for t in figure.texts) == 2
