"""Does every command answer, with the keys that scripts were promised, and nothing else on stdout?"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tokenfab import __version__

COMMANDS = (
    "models", "devices", "techniques", "trace", "estimate", "report", "study", "validate", "measure", "calibrate"
)  # fmt: skip
REASONS = {"compute", "dram", "dequantisation", "network", "launch"}
PROGRAM = [sys.executable, "-c", "from tokenfab.cli import main; main()"]


def number(document: dict, key: str, low: float = 0.0) -> float:
    """The promised number ``document[key]``, finite and at least ``low``."""
    value = document[key]
    assert isinstance(value, int | float), key
    assert not isinstance(value, bool), key
    assert math.isfinite(value), key
    assert value >= low, key
    return value


def check_phase(phase: dict) -> None:
    low, high = phase["interval_s"]
    assert 0 < low <= number(phase, "latency_s") <= high < math.inf
    assert phase["energy_interval_j"][0] <= number(phase, "energy_j") <= phase["energy_interval_j"][1]
    assert sum(phase["bound"].values()) == pytest.approx(1)
    assert all(isinstance(reason, str) and share >= 0 for reason, share in phase["bound"].items())


def check_estimate(document: dict) -> None:
    """The keys of ``tokenfab estimate --json`` in the contract."""
    check_phase(document["prefill"])
    check_phase(document["decode"])
    total = document["total"]
    for key in ("latency_s", "tokens_per_s", "energy_j", "energy_per_token_j"):
        assert number(total, key) > 0
    assert total["cost_usd_per_mtoken"] is None or number(total, "cost_usd_per_mtoken") > 0
    memory = document["memory"]
    assert number(memory, "weights_bytes") > 0
    assert number(memory, "kv_bytes") >= 0
    assert memory["fits"] is (number(memory, "missing_bytes") == 0)
    assert document["provenance"]
    assert all(isinstance(line, str) for line in document["provenance"])


# -- lists -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["models", "devices", "techniques"])
def test_a_list_has_names_and_descriptions(tokenfab, kind):
    answer = tokenfab(kind, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.json
    for entry in answer.json:
        assert entry["name"]
        assert entry["description"]
    names = [entry["name"] for entry in answer.json]
    assert names == sorted(set(names))
    assert tokenfab(kind, "--quiet").out.split() == names
    text = tokenfab(kind).out
    assert all(name in text for name in names)


def test_every_promised_name_is_there(tokenfab):
    models = set(tokenfab("models", "--quiet").out.split())
    promised = (
        "llama-2-7b llama-2-13b llama-2-70b llama-3-8b llama-3-70b mistral-7b qwen2-7b qwen2-72b opt-125m opt-1.3b \
        opt-6.7b opt-13b opt-30b opt-66b opt-175b gpt-3-175b bloom-176b mixtral-8x7b bitnet-b1.58-3b"
    )
    assert set(promised.split()) <= models
    devices = set(tokenfab("devices", "--quiet").out.split())
    promised = (
        "v100s a100-40g-sxm a100-80g-sxm h100-sxm h100-pcie h200-sxm h20 b200 l4 l20 l40s a10 a40 a6000 t4 rtx-3090 \
        rtx-4090 rtx-pro-6000 titan-xp p40 mi210 mi250 mi300x tpu-v3 tpu-v5e tpu-v6e m2-ultra raspberry-pi-5 xeon-2s"
    )
    assert set(promised.split()) <= devices


def test_one_of_a_list_shows_all_its_fields(tokenfab):
    model = tokenfab("models", "llama-2-7b", "--json").json
    assert (model["layers"], model["hidden"], model["heads"]) == (32, 4096, 32)
    device = tokenfab("devices", "tpu-v5e", "--json").json
    assert device["memory"]["dram"]["bandwidth"]["value"] == 819e9
    assert device["memory"]["dram"]["bandwidth"]["source"]
    technique = tokenfab("techniques", "weight-only", "--json").json
    assert technique["parameters"]["bits"] == {
        "default": 4, "meaning": "bits per weight, without scales", "choices": [], "range": [1, 8],
    }  # fmt: skip
    assert tokenfab("devices", "tpu-v5e").out.count("819 GB/s") == 1
    assert tokenfab("devices", "h100-sxm", "--quiet").out == ""


# -- trace -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("llama-2-7b", 6738415616),
        ("llama-2-70b", 68976648192),
        ("mixtral-8x7b", 46702792704),
        ("opt-6.7b", 6658473984),
    ],
)
def test_a_trace_counts_the_published_parameters(tokenfab, model, parameters):
    answer = tokenfab("trace", model, "--json")
    assert (answer.code, answer.err) == (0, "")
    document = answer.json
    assert document["model"] == model
    assert number(document, "parameters") == parameters
    assert number(document, "weights_bytes") == 2 * parameters
    for key in ("operators", "flops", "bytes", "kv_bytes_per_token"):
        assert number(document, key) > 0
    assert 0 < number(document, "capture_s") < 60


def test_a_trace_is_evaluated_at_the_given_point(tokenfab, trace_file):
    document = tokenfab("trace", trace_file, "--batch", 3, "--query", 5, "--context", 7, "--json").json
    d, inner, layers, vocabulary = 4096, 11008, 32, 32000
    matmuls = 2 * 15 * layers * (4 * d * d + 3 * d * inner) + 2 * 3 * d * vocabulary
    attention = layers * 4 * 3 * d * (5 * 7 + 15)  # 5 queries see 8 … 12 keys
    assert document["point"] == {"batch": 3, "query": 5, "context": 7}
    assert document["flops"] == pytest.approx(matmuls + attention, rel=2e-3)


def test_a_trace_file_is_a_model_like_the_preset_it_came_from(tokenfab, tmp_path):
    file = tmp_path / "deep" / "trace.json"
    written = tokenfab("trace", "opt-125m", "-o", file, "--json")
    assert written.json["file"] == str(file)
    again = tokenfab("trace", file, "--json").json
    assert {k: v for k, v in again.items() if k not in ("file", "command")} == {
        k: v for k, v in written.json.items() if k not in ("file", "command")
    }
    first, second = (tokenfab("estimate", "-m", m, "-d", "l4", "--json").json for m in ("opt-125m", file))
    assert first["total"] == second["total"]


def test_exports_are_json_documents(tokenfab, trace_file, tmp_path):
    chakra, perfetto = tmp_path / "chakra.json", tmp_path / "perfetto.json"
    answer = tokenfab("trace", trace_file, "--chakra", chakra, "--perfetto", perfetto, "--quiet")
    assert answer == (0, "", "")
    assert json.loads(chakra.read_text())
    assert json.loads(perfetto.read_text())["traceEvents"]


def test_a_hugging_face_config_is_a_model(tokenfab, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=100,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    document = tokenfab("trace", f"hf:{tmp_path}/config.json", "--json").json
    layer = 4 * 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert document["parameters"] == 2 * layer + 2 * 100 * 64 + 64


# -- estimate --------------------------------------------------------------------------------------
@pytest.mark.parametrize("device", ["h100-sxm", "tpu-v5e", "raspberry-pi-5"])
def test_an_estimate_has_the_promised_keys(tokenfab, trace_file, device):
    answer = tokenfab("estimate", "--model", trace_file, "--device", device, "--level", "closed", "--json")
    assert (answer.code, answer.err) == (0, "")
    check_estimate(answer.json)
    assert "operators" not in answer.json
    assert answer.json["command"].startswith(f"tokenfab estimate --model {trace_file} --device {device}")


def test_explain_adds_operators_whose_times_sum_to_the_phase(tokenfab, trace_file):
    document = tokenfab("estimate", "-m", trace_file, "-d", "l4", "--explain", "--json").json
    for phase in ("prefill", "decode"):
        chosen = [o for o in document["operators"] if o["phase"] == phase]
        assert sum(o["time_s"] for o in chosen) == pytest.approx(document[phase]["latency_s"])
        assert all(o["name"] and o["count"] >= 1 and isinstance(o["bound"], str) for o in chosen)


def test_techniques_and_parallelism_are_said_in_the_answer(tokenfab, trace_file):
    plain, answer = (
        tokenfab("estimate", "-m", trace_file, "-d", "l4", *more, "--json").json
        for more in ((), ("--count", 2, "--apply", "weight-only:bits=4", "--apply", "kv-quant"))
    )
    assert answer["device"]["count"] == 2
    assert answer["device"]["parallel"] == "tp=2"
    applied = answer["model"]["applied"]
    assert [a.split(":")[0] for a in applied if not a.startswith("tensor-parallel")] == ["weight-only", "kv-quant"]
    assert answer["memory"]["weights_bytes"] < plain["memory"]["weights_bytes"] / 6
    assert answer["memory"]["kv_bytes"] < plain["memory"]["kv_bytes"] / 3


def test_a_model_that_does_not_fit_is_said_not_hidden(tokenfab, trace_file):
    answer = tokenfab("estimate", "-m", trace_file, "-d", "titan-xp", "--json")
    memory = answer.json["memory"]
    assert (answer.code, memory["fits"]) == (0, False)
    needed = memory["weights_bytes"] + memory["kv_bytes"] + memory["activation_bytes"]
    assert memory["missing_bytes"] == pytest.approx(needed - memory["capacity_bytes"])
    assert "DOES NOT FIT" in tokenfab("estimate", "-m", trace_file, "-d", "titan-xp").out


# -- report and study ------------------------------------------------------------------------------
def test_an_estimate_becomes_a_report(tokenfab, trace_file, tmp_path):
    result, pdf = tmp_path / "result.json", tmp_path / "report.pdf"
    assert tokenfab("estimate", "-m", trace_file, "-d", "l4", "-o", result, "--quiet") == (0, "", "")
    answer = tokenfab("report", result, "-o", pdf, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.json["file"] == str(pdf)
    assert number(answer.json, "pages") >= 1
    assert number(answer.json, "figures") >= 1
    assert pdf.read_bytes().startswith(b"%PDF")
    assert "<html" in pdf.with_suffix(".html").read_text(encoding="utf-8")[:500]


@pytest.fixture(scope="module")
def study(trace_file, tmp_path_factory):
    """The main job on two devices, in a process of its own: the answer, and the folder."""
    folder = tmp_path_factory.mktemp("study") / "out"
    command = ["study", trace_file, "-d", "l4", "-d", "titan-xp", "--tokens", "8", "-o", folder, "--json"]
    done = subprocess.run([*PROGRAM, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout), folder


def test_a_study_writes_trace_results_and_report(study):
    document, folder = study
    assert document["report"] == str(folder / "report.pdf")
    assert number(document, "wall_s") > 0
    assert {Path(r).relative_to(folder).as_posix() for r in document["results"]} == {
        "trace.json", "study.json", "placement.json", "estimates/l4.json", "estimates/titan-xp.json",
    }  # fmt: skip
    for file in (*document["results"], document["report"], document["html"]):
        assert Path(file).stat().st_size > 0
    for estimate in json.loads((folder / "study.json").read_text(encoding="utf-8"))["estimates"]:
        check_estimate(estimate)
        assert estimate["request"] == {"batch": 1, "prompt": 512, "output": 8}


def test_results_of_a_study_are_input_to_report_and_its_trace_to_trace(study, tokenfab, tmp_path):
    _, folder = study
    assert tokenfab("report", folder / "study.json", "-o", tmp_path / "r.pdf", "--json").json["pages"] >= 1
    assert tokenfab("trace", folder / "trace.json", "--json").json["parameters"] == 6738415616


# -- the program -----------------------------------------------------------------------------------
@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_starts_with_the_command(tokenfab, command):
    answer = tokenfab(command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert f"Example: tokenfab {command}" in answer.out
    for option in ("--json", "--quiet", "--help"):
        assert option in answer.out


def test_no_command_and_help_list_all_commands(tokenfab):
    assert tokenfab() == tokenfab("--help") == tokenfab("-h")
    assert all(f"\n  {command} " in tokenfab().out for command in COMMANDS)
    assert tokenfab("--version") == (0, f"tokenfab {__version__}\n", "")


def test_help_answers_within_half_a_second_of_cpu():
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*PROGRAM, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) <= 0.5


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_any_terminal_gets_text_and_valid_json(trace_file, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for more in ((), ("--json",)):
        command = [*PROGRAM, "estimate", "-m", trace_file, "-d", "l4", *more]
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        assert done.stderr == b""
        if more:
            assert json.loads(done.stdout.decode(encoding))["model"]["name"] == "llama-2-7b"


def test_a_reader_that_stops_early_is_no_error():
    program = subprocess.Popen([*PROGRAM, "devices", "h100-sxm"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.close()
    assert program.stderr.read() == b""
    program.stderr.close()
    assert program.wait() in (0, 1)


def test_the_text_names_techniques_and_those_without_effect(tokenfab, trace_file):
    twice = ("--apply", "kv-quant:bits=4", "--apply", "kv-quant:bits=8")
    answer = tokenfab("estimate", "--model", trace_file, "--device", "h100-sxm", *twice)
    assert answer.code == 0
    assert "\nwith kv-quant:bits=4,scale_bits=16\nwith kv-quant:bits=8,scale_bits=16 (no effect)\n" in answer.out
