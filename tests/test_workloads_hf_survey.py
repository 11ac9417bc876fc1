"""What cannot be captured says why in one line, and the page lists what can."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tokenfab.errors import InputError
from tokenfab.workloads.hf_capture import capture_hf
from tokenfab.workloads.hf_survey import END, START, main, model_types, replace_table, survey, table, write_config
from tokenfab.workloads.load import load_trace

DOCS = Path(__file__).resolve().parents[1] / "docs" / "workloads.md"
REFUSED = {
    "openai-gpt": "OpenAIGPTLMHeadModel takes no cache; decoding with it is not a pass of one token",
    "bart": "model.decoder.layers.0.encoder_attn.k_proj.weight is not used by a pass over text",
    "deepseek_v32": "DeepseekV32Indexer: attention to keys that an indexer selects is not supported",
    "hrm_text": "runs more than once in a pass; looped layers are not something a trace holds",
    "gpt_neo": "a window_size inside the mask of spelled-out attention is not seen",
    "blt": "the configuration has no hidden_size",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_in_one_line(name, tmp_path):
    with pytest.raises(InputError) as caught:
        capture_hf(write_config(name, tmp_path / name))
    assert REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_transformers_it_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.modeling_utils", None)
    with pytest.raises(InputError, match=r"transformers is not installed; install tokenfab\[hf\]"):
        capture_hf(tmp_path)


def test_the_library_is_quiet_while_it_runs_and_as_loud_as_before_afterwards(tmp_path, capfd):
    from transformers.utils import logging

    logging.set_verbosity_warning()
    capture_hf(write_config("mamba", tmp_path / "mamba", num_hidden_layers=1))
    assert logging.get_verbosity() == logging.WARNING
    assert capfd.readouterr() == ("", "")


def test_attention_that_looks_ahead_is_refused(tmp_path):
    file = write_config("bert", tmp_path / "bert", is_decoder=False, num_hidden_layers=1)
    with pytest.raises(InputError, match="attention that is not causal"):
        capture_hf(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("{}", "model_type: None is unknown"), ('{"model_type": "t5"}', "not a causal language")],
)
def test_a_broken_configuration_names_its_file(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_trace(f"hf:{tmp_path}")
    assert message in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


# -- the survey ---------------------------------------------------------------------------------------
def told() -> dict[str, str]:
    """Status by model type, as the page has it."""
    page = DOCS.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    return dict(re.findall(r"^\| ([\w-]+) \| (captured|refused|broken) \|", page, re.MULTILINE))


def test_the_page_lists_every_model_type_and_none_is_broken():
    assert list(told()) == model_types()
    assert "broken" not in told().values()
    assert {told()[name] for name in ("llama", "gpt2", "gemma3", "deepseek_v3", "mamba2", "qwen3_next")} == {"captured"}
    assert {told()[name] for name in REFUSED} == {"refused"}


def test_the_survey_prints_and_replaces_its_table(tmp_path, capsys):
    rows = survey(["openai-gpt", "gpt2"])
    assert [(r.model_type, r.status) for r in rows] == [("openai-gpt", "refused"), ("gpt2", "captured")]
    assert "2 model types, 1 captured, 1 refused." in table(rows)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    assert main(["openai-gpt", "--write", str(page)]) == 0
    assert main(["openai-gpt"]) == 0
    assert page.read_text(encoding="utf-8") == f"before\n{START}\n{capsys.readouterr().out}{END}\nafter\n"
    with pytest.raises(InputError, match="no table to replace"):
        replace_table("nothing", "x")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("TOKENFAB_SURVEY"), reason="takes five minutes; set TOKENFAB_SURVEY")
def test_the_survey_gives_what_the_page_says():
    assert {r.model_type: r.status for r in survey(model_types())} == told()
