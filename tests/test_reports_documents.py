"""Are results read strictly, and refused in one line that names the file?"""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.reports.documents import MOST, load_documents, parse
from tokenfab.reports.parts import build

_spec = importlib.util.spec_from_file_location("reports_synthetic", Path(__file__).with_name("reports_synthetic.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)

GOOD = synthetic.estimate()
PLAIN = synthetic.estimate(explain=False)
JUNK = (
    None, True, False, 0, -1, 1.5, -2.5, 1e31, 1e-300, 10**400, "", "x" * 5000, "\ud800", "a\nb\x00", [], {}, [1],
    {"a": 1},
)  # fmt: skip


def file(folder: Path, content: object, name: str = "result.json") -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_documents([path])
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert "accepted:" in text
    return text


# -- what is accepted ------------------------------------------------------------------------------
def test_an_estimate_with_and_without_its_explanation_is_read(tmp_path):
    assert load_documents([file(tmp_path, GOOD)]) == [GOOD]
    assert load_documents([str(file(tmp_path, PLAIN))]) == [PLAIN]


def test_a_study_counts_as_all_of_its_estimates_in_order(tmp_path):
    first, second = synthetic.estimate("a"), synthetic.estimate("b")
    paths = [file(tmp_path, synthetic.study([second, first])), file(tmp_path, GOOD, "other.json")]
    assert load_documents(paths) == [second, first, GOOD]


def test_keys_that_a_report_does_not_use_may_stand_beside(tmp_path):
    extended = GOOD | {"placement": {"x": [1]}, "total": GOOD["total"] | {"new": 1}}
    assert load_documents([file(tmp_path, extended)]) == [extended]


def test_a_byte_order_mark_is_no_problem(tmp_path):
    assert load_documents([file(tmp_path, b"\xef\xbb\xbf" + json.dumps(PLAIN).encode())]) == [PLAIN]


def test_what_the_command_line_promises_is_what_the_reader_needs():
    """The reader asks only for keys that hw/result.py writes; a real estimate is read."""
    from tokenfab.hw.devices import load_device
    from tokenfab.hw.estimate import Request
    from tokenfab.hw.estimate import estimate as real
    from tokenfab.hw.result import estimate_document
    from tokenfab.workloads.capture import capture

    trace = capture("opt-125m")
    result = real(trace, load_device("h100-sxm"), Request(), explain=True)
    for explain in (True, False):
        document = json.loads(json.dumps(estimate_document(result, trace, explain=explain)))
        parsed = parse(document)
        assert bool(parsed.operators) == (parsed.curves is not None) == explain
        assert build([parsed], None, None)


# -- what is refused -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        (json.dumps(GOOD)[:-40], "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("[]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ("{}", "schema is missing"),
        ({"schema": "tokenfab.trace", "version": 1}, "schema is 'tokenfab.trace'"),
        (GOOD | {"version": 2}, "version is 2"),
        (GOOD | {"version": True}, "version is True"),
        (GOOD | {"version": "1"}, "version is '1'"),
        ({"schema": "tokenfab.study", "version": 1}, "estimates is not a list"),
        ({"schema": "tokenfab.study", "version": 1, "estimates": []}, "estimates is not a list"),
        ({"schema": "tokenfab.study", "version": 2, "estimates": [GOOD]}, "version is 2"),
        ({"schema": "tokenfab.study", "version": 1, "estimates": [GOOD, 7]}, "estimates[1]: not a JSON object"),
        (synthetic.study([GOOD, synthetic.study([GOOD])]), "estimates[1]: schema is 'tokenfab.study'"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path, content, said):
    assert said in refusal(file(tmp_path, content))


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused(tmp_path, word):
    text = json.dumps(GOOD).replace(json.dumps(GOOD["total"]["latency_s"]), word, 1)
    assert f"{word} is not a number" in refusal(file(tmp_path, text))


def test_a_number_too_large_for_a_float_is_refused(tmp_path):
    text = json.dumps(GOOD).replace(json.dumps(GOOD["total"]["energy_j"]), "1e999", 1)
    assert "total.energy_j" in refusal(file(tmp_path, text))


def test_what_cannot_be_read_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.json")
    assert "cannot be read" in refusal(tmp_path)


def test_no_results_are_refused():
    with pytest.raises(InputError, match="no results given"):
        load_documents([])


def test_both_sides_of_the_limit_on_estimates(tmp_path):
    many = file(tmp_path, synthetic.study([PLAIN] * MOST))
    assert len(load_documents([many])) == MOST
    with pytest.raises(InputError, match=f"at most {MOST}"):
        load_documents([many, many])


def leaves(value: object, path: tuple = ()) -> list[tuple]:
    """Paths of everything in a document, inner nodes too; of a list only the first element."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return ([path] if path else []) + [p for k, v in inner for p in leaves(v, (*path, k))]


OPTIONAL = {
    ("operators",), ("curves",), ("model", "max_context"), ("model", "applied"), ("model", "provenance"),
    ("model", "provenance", "capture"), ("device", "architecture"), ("total", "energy_interval_j"),
    ("total", "cost_basis"),
}  # fmt: skip


KEYS = [p for p in leaves(GOOD) if isinstance(p[-1], str) and not {"bound", "energy_parts_j"} & set(p[:-1])]


@pytest.mark.parametrize("path", KEYS, ids=lambda p: ".".join(map(str, p)))
def test_every_key_is_needed_or_known_to_be_optional(tmp_path, path):
    changed = copy.deepcopy(GOOD)
    node = changed
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    if path in OPTIONAL:
        assert load_documents([file(tmp_path, changed)])
    else:
        key = ".".join(map(str, path))
        assert key.replace("curves.", "", len(path) > 2 and path[1] == path[2]) in refusal(file(tmp_path, changed))


def set_at(document: dict, path: tuple, value: object) -> dict:
    changed = copy.deepcopy(document)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("total", "latency_s"), "1", "total.latency_s: Input should be a valid number"),
        (("total", "latency_s"), True, "total.latency_s"),
        (("total", "latency_s"), 0, "total.latency_s: Input should be greater than"),
        (("total", "latency_s"), -1, "total.latency_s"),
        (("total", "interval_s"), [2.0, 1.0], "total.interval_s: the low end exceeds"),
        (("total", "interval_s"), [1.0], "total.interval_s: expected a list of two"),
        (("total", "interval_s"), {"low": 1, "high": 2}, "total.interval_s: expected a list of two"),
        (("memory", "fits"), 1, "memory.fits"),
        (("device", "count"), 0, "device.count"),
        (("device", "count"), 1.0, "device.count"),
        (("device", "name"), "", "device.name"),
        (("device", "name"), " \n ", "device.name"),
        (("device", "name"), "\ud800", "device.name: Input should be a valid string"),
        (("operators", 0, "phase"), "training", "operators.0.phase"),
        (("curves", "batch", "fits"), [True], "curves.batch: the lists of a curve differ in length"),
        (("curves", "context", "context"), [1.0] * 9, "curves.context: the points of a curve must rise"),
        (("prefill", "bound"), {"dram": 2.0}, "prefill.bound.dram"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(tmp_path, path, value, said):
    assert said in refusal(file(tmp_path, set_at(GOOD, path, value)))


# -- whatever is thrown at it ----------------------------------------------------------------------
def accepted(path: Path) -> bool:
    """Whether a file is read, as a list of documents that a report can be built of; refusals are one line."""
    problem = ""
    try:
        documents = load_documents([path])
    except InputError as error:
        problem = str(error)
    if not problem:
        assert build([parse(d) for d in documents], None, None)
        return True
    assert problem.startswith(str(path))
    assert "\n" not in problem
    assert problem.encode("utf-8")
    return False


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, raw):
    assert not accepted(file(tmp_path_factory.mktemp("bytes"), raw))


@given(end=st.integers(0, len(json.dumps(GOOD)) - 1))
def test_a_result_cut_anywhere_is_refused(tmp_path_factory, end):
    assert not accepted(file(tmp_path_factory.mktemp("cut"), json.dumps(GOOD)[:end]))


@given(changes=st.lists(st.tuples(st.sampled_from(leaves(GOOD)), st.sampled_from(JUNK)), min_size=1, max_size=3))
def test_a_result_with_junk_anywhere_is_read_or_refused(tmp_path_factory, changes):
    changed = GOOD
    for path, junk in changes:
        try:
            changed = set_at(changed, path, junk)
        except (KeyError, TypeError, IndexError):  # the place is gone
            continue
    accepted(file(tmp_path_factory.mktemp("junk"), changed))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values, schema=st.sampled_from(["tokenfab.estimate", "tokenfab.study"]))
def test_any_json_under_our_schema_is_read_or_refused(tmp_path_factory, value, schema):
    whole = {"schema": schema, "version": 1, "estimates": value, "total": value, "model": value}
    assert not accepted(file(tmp_path_factory.mktemp("json"), whole))


def test_reading_results_imports_no_figures():
    code = "import sys, tokenfab.reports, tokenfab.reports.documents; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
