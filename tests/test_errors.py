"""Does an error say what was meant, on one printable line?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import LONGEST, MOST, InputError, nearest, unknown_name

DEVICES = ["a10", "a100-40g-sxm", "a100-80g-sxm", "h100-pcie", "h100-sxm", "h200-sxm", "rtx-4090", "v100s"]
MODELS = ["llama-2-13b", "llama-2-70b", "llama-2-7b", "llama-3-70b", "mistral-7b", "opt-6.7b"]


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("a100", DEVICES, ["a100-40g-sxm", "a100-80g-sxm"]),  # begin with it
        ("A100", DEVICES, ["a100-40g-sxm", "a100-80g-sxm"]),
        ("h100_sxm", DEVICES, ["h100-sxm"]),  # whatever the punctuation
        ("rtx 4090", DEVICES, ["rtx-4090"]),
        ("4090", DEVICES, ["rtx-4090"]),  # contain it
        ("sxm 80g", DEVICES, ["a100-80g-sxm"]),  # contain all of its words
        ("llama-7b", MODELS, ["llama-2-7b"]),
        ("llama 70b", MODELS, ["llama-2-70b", "llama-3-70b"]),
        ("h100-smx", DEVICES, ["h100-sxm", "h200-sxm", "v100s"]),  # spelt alike
        ("llamma-2-7b", MODELS, ["llama-2-7b", "llama-2-70b", "llama-3-70b"]),
        ("zzz", DEVICES, []),
        ("", DEVICES, []),
        ("--", DEVICES, []),
    ],
)
def test_the_nearest_names(typed, known, meant):
    assert nearest(typed, known) == meant


def test_what_is_near_is_suggested_and_the_hint_follows():
    error = unknown_name("device", "a100", DEVICES, "or a file")
    assert str(error) == "unknown device 'a100'; did you mean a100-40g-sxm, a100-80g-sxm?; or a file"


def test_both_sides_of_the_number_of_suggestions():
    names = [f"x{i}" for i in range(MOST + 1)]
    assert "…" not in str(unknown_name("name", "x", names[:-1]))
    assert str(unknown_name("name", "x", names)).endswith(f"x{MOST - 1}, … ({MOST + 1} in all)?")


def test_where_nothing_is_near_the_known_names_are_listed():
    assert str(unknown_name("device", "zzz", ["b", "a"])) == "unknown device 'zzz'; known: a, b"
    assert str(unknown_name("device", "zzz", [])) == "unknown device 'zzz'"


@given(st.text())
def test_an_error_is_one_printable_line(text):
    for error in (InputError(text), unknown_name("device", text, DEVICES, text)):
        assert str(error).isprintable()
    assert len(str(unknown_name("device", text * 100, DEVICES))) < 10 * LONGEST + 200  # as escapes
