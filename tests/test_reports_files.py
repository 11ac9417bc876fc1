"""Are the files written: whole, the same each time, and the HTML on its own feet?"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tokenfab.errors import InputError
from tokenfab.reports import html, pdf
from tokenfab.reports.blocks import Listing, Paragraph, Picture, Table
from tokenfab.reports.documents import parse
from tokenfab.reports.parts import build
from tokenfab.reports.report import write_report

_spec = importlib.util.spec_from_file_location("reports_synthetic", Path(__file__).with_name("reports_synthetic.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
estimate, devices = synthetic.estimate, synthetic.devices

COMMAND = "tokenfab report out/study.json -o report.pdf"
EIGHT = devices(8)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The usual study, written once."""
    started = time.process_time()
    files = write_report(EIGHT, tmp_path_factory.mktemp("report") / "report.pdf", command=COMMAND)
    return files, time.process_time() - started


class Reader(HTMLParser):
    """Checks that tags close in order; collects text, ids, links and what would be fetched."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "data", "srcset", "poster", "action"):
                self.targets.append(value)
            self.targets += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(written):
    return Reader(written[0].html.read_text(encoding="utf-8"))


# -- the files -------------------------------------------------------------------------------------
def test_both_files_are_written_and_counted(written):
    files, _ = written
    data = files.file.read_bytes()
    assert data.startswith(b"%PDF-")
    assert data.rstrip().endswith(b"%%EOF")
    assert files.pages == len(re.findall(rb"/Type /Page\b", data)) >= 6
    assert files.html == files.file.with_suffix(".html")
    assert files.figures == files.html.read_text(encoding="utf-8").count("<figure>") == 8
    assert sorted(p.name for p in files.file.parent.iterdir()) == ["report.html", "report.pdf"]


def test_the_pdf_embeds_truetype_and_holds_no_bitmap(written):
    data = written[0].file.read_bytes()
    assert b"/FontFile2" in data
    assert b"/Type3" not in data
    assert b"/Subtype /Image" not in data


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs pdftotext")
def test_every_device_and_the_command_can_be_found_in_the_pdf(written):
    done = subprocess.run(["pdftotext", "-layout", written[0].file, "-"], capture_output=True, text=True, check=True)
    for document in EIGHT:
        assert document["device"]["name"] in done.stdout
    assert COMMAND in done.stdout


def test_a_study_is_written_in_less_than_fifteen_seconds_of_one_core(written):
    assert written[1] < 15


def test_the_same_input_gives_the_same_bytes_in_another_process(written, tmp_path):
    files, _ = written
    (tmp_path / "study.json").write_text(json.dumps(synthetic.study(EIGHT)))
    code = (
        "import sys; from pathlib import Path; from tokenfab.reports.documents import load_documents; "
        "from tokenfab.reports.report import write_report; "
        f"write_report(load_documents([sys.argv[1]]), Path(sys.argv[2]), command={COMMAND!r})"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    call = [sys.executable, "-c", code, tmp_path / "study.json", tmp_path / "again.pdf"]
    subprocess.run(call, check=True, env=environment)
    assert (tmp_path / "again.pdf").read_bytes() == files.file.read_bytes()
    assert (tmp_path / "again.html").read_bytes() == files.html.read_bytes()


def test_the_reader_s_own_matplotlib_settings_do_not_matter(tmp_path):
    import matplotlib

    first = write_report([estimate()], tmp_path / "a.pdf")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "text.usetex": False}):
        second = write_report([estimate()], tmp_path / "b.pdf")
        assert matplotlib.rcParams["font.size"] == 30
    assert first.file.read_bytes() == second.file.read_bytes()
    assert first.html.read_bytes() == second.html.read_bytes()


# -- the HTML --------------------------------------------------------------------------------------
def test_the_html_is_well_formed_and_fetches_nothing(written, page):
    text = written[0].html.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//\w", text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "image", "base", "form"} & set(page.tags)
    assert "@import" not in text
    assert all(target.startswith("#") for target in page.targets)


def test_ids_are_unique_and_every_link_lands(page):
    assert len(set(page.ids)) == len(page.ids)
    assert {target[1:] for target in page.targets} <= set(page.ids)


def test_everything_that_the_pdf_says_in_words_stands_in_the_html(page):
    said = " ".join(" ".join(page.texts).split())
    for part in build([parse(d) for d in EIGHT], None, COMMAND):
        assert part.title in said
        assert part.lead in said
        for block in part.blocks:
            if isinstance(block, Table):
                texts = [c.text for row in block.rows for c in row] + [c.title for c in block.columns] + [block.note]
            elif isinstance(block, Paragraph):
                texts = [block.text]
            elif isinstance(block, Listing):
                texts = [t for item in block.items for t in item]
            else:
                assert isinstance(block, Picture)
                texts = [block.title]
            for text in texts:
                assert " ".join(text.split()) in said


def test_pictures_can_be_read_aloud_and_sized_by_the_page(written):
    text = written[0].html.read_text(encoding="utf-8")
    heads = re.findall(r"<svg[^>]*>", text)
    assert len(heads) == 8
    for head in heads:
        assert re.fullmatch(r'<svg viewBox="[\d. ]+" role="img" aria-label="[^"]{20,}">', head)


def test_markup_in_names_stays_text(tmp_path):
    files = write_report([estimate('<script>"x"</script>&')], tmp_path / "r.pdf", title="<i>t</i>", command="a < b & c")
    reader = Reader(files.html.read_text(encoding="utf-8"))
    assert not {"script", "i"} & set(reader.tags)
    assert '<script>"x"</script>&' in " ".join(reader.texts)
    assert "<i>t</i>" in reader.texts


# -- titles ----------------------------------------------------------------------------------------
def test_a_title_replaces_ours_and_the_footer_names_version_and_command(tmp_path):
    import tokenfab

    made = write_report([estimate(explain=False)], tmp_path / "r.pdf", title="  A  study\n of two ", command=COMMAND)
    text = made.html.read_text(encoding="utf-8")
    assert "<h1>A study of two</h1>" in text
    assert f"<footer>tokenfab {tokenfab.__version__}  ·  {COMMAND}</footer>" in text
    parts = build([parse(estimate(explain=False))], "A study of two", COMMAND)
    pages = pdf.pages(parts, f"tokenfab  ·  {COMMAND}")
    for number, figure in enumerate(pages, 1):
        texts = [t.get_text() for t in figure.texts]
        assert f"{number} / {len(pages)}" in texts
        assert f"tokenfab  ·  {COMMAND}" in texts
    assert "A study of two" in [t.get_text() for t in pages[0].texts]


def test_a_command_with_bytes_that_are_no_text_is_printed_as_far_as_it_goes(tmp_path):
    files = write_report(
        [estimate(explain=False)], tmp_path / "r.pdf", title="\udcff", command="tokenfab \udcff\x1b[1m x"
    )
    assert "Command: tokenfab [1m x" in files.html.read_text(encoding="utf-8")
    assert "<h1>toy-7b on 1 device</h1>" in files.html.read_text(encoding="utf-8")


# -- what is refused -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["report", "report.html", "report.txt", ""])
def test_only_names_that_end_in_pdf_are_accepted(tmp_path, name):
    with pytest.raises(InputError, match=r"ends in \.pdf"):
        write_report([estimate()], tmp_path / name if name else Path(name))
    assert list(tmp_path.iterdir()) == []


def test_upper_case_is_accepted(tmp_path):
    assert write_report([estimate(explain=False)], tmp_path / "R.PDF").file.is_file()


def test_an_empty_list_and_a_document_that_is_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="no results"):
        write_report([], tmp_path / "r.pdf")
    with pytest.raises(InputError, match="result 2: schema is missing"):
        write_report([estimate(), {}], tmp_path / "r.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "r.html").mkdir()
    with pytest.raises(InputError, match=r"r\.html: cannot be written"):
        write_report([estimate(explain=False)], tmp_path / "r.pdf")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_failure_while_drawing_leaves_old_files_alone(tmp_path, monkeypatch):
    for name in ("r.pdf", "r.html"):
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(html, "render", lambda *a: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        write_report([estimate(explain=False)], tmp_path / "r.pdf")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"r.pdf": "old", "r.html": "old"}
