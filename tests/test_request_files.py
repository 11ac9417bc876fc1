"""Request files: the published ones read to their published figures, and bad ones refused at the right line."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.validation.runs import read_runs
from tokenfab.workloads.request_log import PER_REQUEST, RequestLog, plain
from tokenfab.workloads.requests import files, parse_requests, read_requests, records, write_csv

HEADER = "arrival_s,prompt,output"


def written(folder: Path, text: str | bytes, name: str = "requests.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
    return path


def refusal(path: Path, **settings) -> str:
    with pytest.raises(InputError) as caught:
        read_requests(path, **settings)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def assert_same(a: RequestLog, b: RequestLog) -> None:
    for name in (*PER_REQUEST, "prefix_tokens", "prefix_parent"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.classes == b.classes


# -- published files -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "requests", "span", "prompt", "output"),
    [("conv", 19366, 3501.721937, 1154.7, 211.1), ("code", 8819, 3435.948056, 2047.8, 27.9)],
)
def test_the_azure_traces_have_their_published_figures(truth, name, requests, span, prompt, output):
    """Counts and spans: NOTES.md beside the files; means: Lamina (arXiv 2405.01814), Table 4, to its digits."""
    log = read_requests(truth / "azure" / f"AzureLLMInferenceTrace_{name}.csv")
    assert len(log) == requests
    assert log.arrival_s[0] == 0
    assert log.arrival_s[-1] == pytest.approx(span, abs=1e-6)
    assert round(float(log.prompt.mean()), 1) == prompt
    assert round(float(log.output.mean()), 1) == output


def test_the_first_thousand_of_the_azure_conversations_come_at_the_rate_noted_beside_them(truth):
    head = read_requests(truth / "azure" / "AzureLLMInferenceTrace_conv.csv").head(1000)
    assert round(float(head.arrival_s[-1]), 1) == 216.0
    assert head.rate == pytest.approx(999 / 216.0, rel=1e-3)  # gaps, not requests: 4.625/s where they note 4.63


@pytest.mark.parametrize("name", ["conv", "code"])
def test_vidurs_copy_of_the_azure_traces_is_the_same_log(truth, name):
    azure = read_requests(truth / "azure" / f"AzureLLMInferenceTrace_{name}.csv")
    vidur = read_requests(truth / "vidur" / "processed_traces" / f"splitwise_{name}.csv")
    np.testing.assert_array_equal(azure.prompt, vidur.prompt)
    np.testing.assert_array_equal(azure.output, vidur.output)
    np.testing.assert_allclose(azure.arrival_s, vidur.arrival_s, atol=1e-6)  # they kept six digits


def test_a_trace_without_arrivals_asks_for_a_rate(truth):
    path = truth / "vidur" / "processed_traces" / "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv.gz"
    assert refusal(path) == (
        f"it does not say when requests arrive; give their rate, as in {path}@rate=2 (rate=inf: all at once)"
    )
    log = parse_requests(f"{path}@rate=4")
    assert len(log) == 28257
    assert log.prompt[:2].tolist() == [3772, 2015]
    assert log.rate == pytest.approx(4, rel=4 / math.sqrt(28257))


def test_a_served_workload_and_its_token_ids_tell_the_same_requests(truth):
    """The run of vLLM wrote what the workload asked; common blocks of ids are counted here pair by pair."""
    path = truth / "llmservingsim" / "workloads" / "sharegpt-llama-3.1-8b-300-sps10.jsonl.gz"
    asked = read_requests(path)
    ran = read_requests(truth / "llmservingsim/bench/examples/RTX4090/Llama-3.1-8B/vllm/requests.jsonl.gz")
    np.testing.assert_array_equal(np.sort(asked.prompt), np.sort(ran.prompt))
    assert ran.arrival_s[0] == 0
    assert ran.rate == pytest.approx(10, rel=0.1)
    assert len(asked.prefix_tokens) == 32
    prompts = [json.loads(line)["input_tok_ids"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    by_first: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_first.setdefault(tuple(prompt[:16]), []).append(i)
    pairs = [(i, j) for group in by_first.values() for i in group for j in group if i < j]
    assert len(pairs) >= 30
    for i, j in pairs:
        assert common(asked, i, j) == shared_blocks(prompts[i], prompts[j]) * 16


def test_a_replayed_run_has_the_prefixes_of_its_workload(truth, tmp_path):
    run = read_runs(truth, "rtx-pro-6000")[0]
    assert len(run.log.prefix_tokens) == 32
    folder = tmp_path / "llmservingsim"
    shutil.copytree(truth / "llmservingsim" / "bench" / "examples" / "RTXPRO6000", folder / "bench/examples/RTXPRO6000")
    assert not len(read_runs(tmp_path, "rtx-pro-6000")[0].log.prefix_tokens)  # no token ids, no prefixes
    row = {"arrival_time_ns": 0, "input_tok_ids": [1, 2], "output_tok_ids": [3, 4]}
    (folder / "workloads").mkdir()
    name = folder / "workloads" / "sharegpt-llama-3.1-8b-300-sps10.jsonl.gz"
    name.write_bytes(gzip.compress(json.dumps(row).encode()))
    with pytest.raises(InputError, match="other requests than the run's"):
        read_runs(tmp_path, "rtx-pro-6000")


def shared_blocks(a: list[int], b: list[int], block: int = 16) -> int:
    count = 0
    while (count + 1) * block <= min(len(a), len(b)) and a[: (count + 1) * block] == b[: (count + 1) * block]:
        count += 1
    return count


def ancestors(log: RequestLog, node: int) -> list[int]:
    found = []
    while node >= 0:
        found.append(node)
        node = int(log.prefix_parent[node])
    return found


def common(log: RequestLog, i: int, j: int) -> int:
    """Tokens that the prompts of two requests share, by the tree."""
    shared = set(ancestors(log, int(log.prefix[i]))) & set(ancestors(log, int(log.prefix[j])))
    return max((int(log.prefix_tokens[node]) for node in shared), default=0)


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=9), st.lists(st.integers(0, 1), max_size=4)),
                min_size=1, max_size=8))  # fmt: skip
def test_the_prefix_tree_says_of_any_two_prompts_how_many_blocks_they_share(tmp_path_factory, requests):
    rows = [{"arrival_time_ns": 0, "input_tok_ids": [5, *p], "output_tok_ids": [*o, 5]} for p, o in requests]
    path = written(tmp_path_factory.mktemp("ids"), "\n".join(map(json.dumps, rows)), "ids.jsonl")
    log = read_requests(path, block=2)
    prompts = [row["input_tok_ids"] for row in rows]
    wholes = [row["input_tok_ids"] + row["output_tok_ids"] for row in rows]
    assert log.prompt.tolist() == [len(p) for p in prompts]
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i == j:
                continue
            assert common(log, i, j) == 2 * shared_blocks(prompts[i], prompts[j], 2)
            # What request i leaves behind, as far as prompt j goes on with it.
            left = int(log.extends[i]) if log.extends[i] >= 0 else int(log.prefix[i])
            shared = set(ancestors(log, left)) & set(ancestors(log, int(log.prefix[j])))
            assert max((int(log.prefix_tokens[n]) for n in shared), default=0) == 2 * shared_blocks(
                wholes[i], prompts[j], 2
            )


# -- bad input -------------------------------------------------------------------------------------
def test_the_error_names_line_field_what_was_found_and_what_was_expected(tmp_path):
    path = written(tmp_path, f"{HEADER}\n0,1,1\n1,-3,1\n")
    assert refusal(path) == "line 3: prompt: found '-3', expected a whole number of tokens from 1 to 10000000"


BAD = {
    "prompt": ["", "-3", "0", "1.5", "nan", "inf", "many", "1_000", "١٢", "10000001", "1e99", '"'],
    "output": ["", "-1", "0", "0.5", "NaN", "--", "1e8"],
    "arrival_s": ["", "-0.5", "nan", "inf", "later", "2e9"],
}


@given(st.lists(st.sampled_from([(k, v) for k, vs in BAD.items() for v in vs]), min_size=1, max_size=4), st.data())
def test_any_bad_fields_are_refused_at_the_first_line_that_has_one(tmp_path_factory, bad, data):
    count = 30
    rows = [{"arrival_s": str(i), "prompt": "5", "output": "6"} for i in range(count)]
    order = data.draw(st.permutations(["arrival_s", "prompt", "output"]))
    lines = data.draw(st.lists(st.integers(0, count - 1), min_size=len(bad), max_size=len(bad), unique=True))
    for i, (field, value) in zip(lines, bad, strict=True):
        rows[i][field] = value
    text = "\n".join([",".join(order), *(",".join(row[name] for name in order) for row in rows)])
    packed = data.draw(st.booleans())
    folder = tmp_path_factory.mktemp("bad")
    path = written(folder, gzip.compress(text.encode()) if packed else text)
    first = min(lines)
    field, value = bad[lines.index(first)]
    message = refusal(path)
    assert message.startswith(f"line {first + 2}: ")
    if value != '"':  # a lone quote makes the whole line unreadable
        assert message.startswith(f"line {first + 2}: {field}: found {value!r}" if value else
                                  f"line {first + 2}: {field}: found nothing")  # fmt: skip
    log = read_requests(path, skip_bad=True)
    assert len(log) == count - len(bad)
    assert sorted(set(range(count)) - set(lines)) == sorted(
        (log.arrival_s - log.arrival_s[0]).astype(int) + min(set(range(count)) - set(lines))
    )
    assert [int(line.split(": line ")[1].split(":")[0]) for line in log.left_out] == [i + 2 for i in sorted(lines)]


def test_stamps_that_go_back_are_refused_and_only_they_are_left_out(tmp_path):
    path = written(tmp_path, f"{HEADER}\n0,1,1\n5,2,1\n4.5,3,1\n5,4,1\n4,5,1\n6,6,1\n")
    assert refusal(path) == "line 4: arrival_s: found '4.5' after '5', expected records in order of arrival"
    log = read_requests(path, skip_bad=True)
    assert log.prompt.tolist() == [1, 2, 4, 6]
    assert [line.split(": ")[1] for line in log.left_out] == ["line 4", "line 6"]


def test_going_back_is_seen_across_chunks_and_past_bad_records(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK", 2)
    path = written(tmp_path, f"{HEADER}\n0,1,1\n9,0,1\n3,1,1\n2,1,1\n1,1,1\n4,1,1\n")
    assert refusal(path).startswith("line 3: prompt")
    log = read_requests(path, skip_bad=True)
    assert log.arrival_s.tolist() == [0, 3, 4]  # the 9 was left out for its prompt, so 3 does not go back
    assert [line.split(": ", 2)[2][:36] for line in log.left_out[1:]] == [
        "arrival_s: found '2' after '3', expe",
        "arrival_s: found '1' after a later o",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        (f"{HEADER}\n", "no request in it"),
        (f"{HEADER}\n\n\n", "no request in it"),
        ("time,in,out\n0,1,1\n", "line 1: found the columns 'time,in,out'; expected arrival_s,prompt,output or TIMEST"),
        ("0,1,1\n", "line 1: found the columns '0,1,1'"),
        (f"{HEADER},priorty\n0,1,1,1\n", "line 1: unknown column 'priorty'; did you mean priority?"),
        (f"{HEADER},prompt\n0,1,1,1\n", "line 1: the column 'prompt' stands there twice"),
        (f"{HEADER}\n0,1\n", "line 2: found 2 fields, expected 3: arrival_s,prompt,output"),
        (f"{HEADER}\n0,1,1,1\n", "line 2: found 4 fields, expected 3"),
        (f"{HEADER}\n0,1,1\n1,\udcff,1\n", "line 3: prompt: found '\\udcff'"),
        (f"{HEADER}\n0,1,1\n\n\n1,x,1\n", "line 5: prompt: found 'x'"),
        (f'{HEADER}\n0,1,1\n1,"2\n2,3,3\n', "line 3: found '1,\"2', which is no line of a table"),
        (f"{HEADER}\r\n0,1,1\r\n1,2,x\r\n", "line 3: output: found 'x'"),
        (f"{HEADER}\r0,1,1\r1,2,x\r", "line 3: output: found 'x'"),
        (f"\ufeff{HEADER}\n0,1,x\n", "line 2: output: found 'x'"),
        (f"{HEADER},priority\n0,1,1,1.5\n", "line 2: priority: found '1.5', expected a whole number from -1000000"),
        (f"{HEADER},class\n0,1,1,\n", "line 2: class: found nothing, expected a name"),
        (f"{HEADER},after\n0,1,1,1\n1,1,1,-1\n", "request 0: it waits for request 1"),
        (f"{HEADER},after\n0,1,1,7\n", "record 0 waits for record 7 (counted from 0), which is not there"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-02-30 00:00:00,1,1\n", "line 2: TIMESTAMP: found '2023-02-30"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,1\n", "line 2: TIMESTAMP: found 'now', expected a time (UTC)"),
        ('{"input_toks": 3, "output_toks": true, "arrival_time_ns": 0}\n', "line 1: output_toks: found True"),
        ('{"input_toks": 3, "arrival_time_ns": 0}\n', "line 1: found the columns 'input_toks,arrival_time_ns'"),
        ('{"input_toks": 3, "output_toks": 1, "arrival_time_ns": 0}\n{"input_toks": 3', "line 2: found '{\"input_toks"),
        ('{"input_toks": 3, "output_toks": 1, "arrival_time_ns": 0}\n[1]', "line 2: found [1], expected an object"),
        ('{"input_toks": 3, "output_toks": 1, "arrival_time_ns": 0}\n{"output_toks": 1, "arrival_time_ns": 0}',
         "line 2: input_toks: found nothing"),
        ('{"arrival_time_ns": 0, "input_toks": 3, "input_tok_ids": [1, 2], "output_toks": 1}',
         "line 1: input_toks: found 3, expected 2, as many as input_tok_ids has"),
        ('{"arrival_time_ns": 0, "input_tok_ids": [1, -2], "output_toks": 1, "input_toks": 2}',
         "line 1: input_tok_ids: found [1, -2], expected a list of whole numbers from 0"),
        ("[1, 2]", "record 1: found 1, expected an object"),
        ("[", "no JSON list"),
        ("[]", "no request in it"),
        ("{" * 5000, "line 1: found '{{{"),
        ('{"messages": []}', "line 1: messages: found [], expected a list of turns"),
        ('{"messages": [{"role": "user", "tokens": 0}]}', "line 1: messages[0].tokens: found 0"),
        ('{"messages": [{"role": "user", "tokens": 3}]}', "line 1: no answer to a question"),
        ('{"messages": [{"tokens": 3}]}', "line 1: messages[0].role: found nothing, expected who speaks"),
        ('{"messages": [{"role": "user", "content": "Hello"}]}', "line 1: messages[0].content is text, and its tokens"),
    ],
)  # fmt: skip
def test_files_that_are_wrong_are_refused_in_one_line(tmp_path, text, message):
    assert refusal(written(tmp_path, text)).startswith(message)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    assert refusal(tmp_path / "none.csv") == "cannot be read: No such file or directory"
    assert refusal(tmp_path) == "cannot be read: Is a directory"


def test_a_packed_file_that_is_cut_off_is_refused_and_its_whole_lines_can_be_had(tmp_path):
    text = HEADER + "\n" + "".join(f"{i},{i * i % 9973 + 1},{i % 977 + 1}\n" for i in range(5000))
    packed = gzip.compress(text.encode())
    path = written(tmp_path, packed[: len(packed) // 2], "cut.csv.gz")
    message = refusal(path)
    assert "found the end of the packed data" in message
    line = int(message.split(":")[0].removeprefix("line "))
    log = read_requests(path, skip_bad=True)
    assert len(log) == line - 2 > 1000
    assert log.prompt.tolist() == [i * i % 9973 + 1 for i in range(len(log))]
    assert len(log.left_out) == 1
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 255
    assert "found the end of the packed data" in refusal(written(tmp_path, bytes(flipped), "flip.csv.gz"))


def test_a_packed_file_may_not_hide_a_huge_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    path = written(tmp_path, gzip.compress(b"0" * 1001), "bomb.csv.gz")
    assert refusal(path) == "more than 1000 bytes; expected at most that many"


def test_with_nothing_left_the_first_bad_record_is_told(tmp_path):
    path = written(tmp_path, f"{HEADER}\n0,0,1\n1,0,1\n")
    assert refusal(path, skip_bad=True).startswith(f"no request in it (2 left out, the first: {path}: line 2: prompt")


def test_those_who_wait_for_a_record_that_was_left_out_are_refused(tmp_path):
    path = written(tmp_path, f"{HEADER},after\n0,1,1,-1\n1,0,1,-1\n2,1,1,0\n")
    log = read_requests(path, skip_bad=True)
    assert log.after.tolist() == [-1, 0]
    path = written(tmp_path, f"{HEADER},after\n0,1,1,-1\n1,0,1,-1\n2,1,1,1\n")
    assert refusal(path, skip_bad=True).startswith("record 2 waits for record 1")


SAMPLES = (
    f"{HEADER},class,after\n0,5,6,a,-1\n1,7,8,b,0\n",
    '# tokenfab requests: {"prefix_tokens": [4], "prefix_parent": [-1]}\narrival_s,prompt,output,prefix\n0,5,6,0\n',
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n",
    '{"arrival_time_ns": 5, "input_tok_ids": [1, 2], "output_toks": 3}\n{"arrival_time_ns": 6, "input_tok_ids": [1]}\n',
    '[{"timestamp": 0, "input_length": 600, "output_length": 9, "hash_ids": [0, 1]}]',
    '{"arrival_s": 1, "messages": [{"role": "user", "tokens": 3}, {"role": "assistant", "token_ids": [1, 2]}]}',
    '{"turns": [{"prompt": 3, "output": 4, "think_s": 1}], "arrival_time": 9}',
)


@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 150), st.binary(max_size=4)), max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory, sample, edits, packed, skip_bad):
    data = bytearray(gzip.compress(sample.encode()) if packed else sample.encode())
    for at, piece in edits:
        data[at : at + max(len(piece) - 1, 0)] = piece
    path = written(tmp_path_factory.getbasetemp(), bytes(data), "fuzzed")
    with contextlib.suppress(InputError):
        read_requests(path, skip_bad=skip_bad).check()


# -- forms -----------------------------------------------------------------------------------------
def test_every_form_of_table_and_of_json_is_known_by_its_names(tmp_path):
    hundred_ns = "2023-11-16 18:15:46.6805900"
    cases = [
        (f"TIMESTAMP,ContextTokens,GeneratedTokens\n{hundred_ns},7,8\n2023-11-16 18:15:46.6805901,9,10", 1e-7),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-12T23:59:59Z,7,8\n2024-05-13 00:00:01+00:00,9,10", 2.0),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n0,7,8\n0.25,9,10", 0.25),
        ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n0,ChatGPT,7,8,15,API log\n"
         "3,GPT-4,9,10,19,Conversation log", 3.0),
        ('{"input_toks":7,"output_toks":8,"arrival_time":1787267980.0}\n'
         '{"input_toks":9,"output_toks":10,"arrival_time":1787267980.5}', 0.5),
        ('[{"arrival_s":0,"prompt":7,"output":8},{"arrival_s":1.5,"prompt":9,"output":10}]', 1.5),
        ('{"timestamp":0,"input_length":7,"output_length":8}\n{"timestamp":20,"input_length":9,"output_length":10}',
         0.02),
    ]  # fmt: skip
    for text, gap in cases:
        log = read_requests(written(tmp_path, text))
        assert log.prompt.tolist() == [7, 9], text
        assert log.output.tolist() == [8, 10]
        assert log.arrival_s[1] == pytest.approx(gap, rel=1e-12)


def test_classes_are_numbered_as_they_appear(tmp_path):
    log = read_requests(written(tmp_path, f"{HEADER},class,priority\n0,1,1,chat,0\n1,1,1,code,-5\n2,1,1,chat,7\n"))
    assert log.classes == ("chat", "code")
    assert log.klass.tolist() == [0, 1, 0]
    assert log.priority.tolist() == [0, -5, 7]


def test_ids_of_blocks_are_shared_in_blocks_of_512(tmp_path):
    """Mooncake's form: one id per 512 tokens and all before them; the last, part of a block, is not shared."""
    rows = [
        {"timestamp": 0, "input_length": 1500, "output_length": 9, "hash_ids": [0, 1, 2]},
        {"timestamp": 10, "input_length": 1500, "output_length": 9, "hash_ids": [0, 1, 2]},
        {"timestamp": 20, "input_length": 700, "output_length": 9, "hash_ids": [0, 3]},
    ]
    log = read_requests(written(tmp_path, "\n".join(map(json.dumps, rows)), "m.jsonl"))
    assert log.prefix_tokens.tolist() == [512, 1024]
    assert log.prefix.tolist() == [1, 1, 0]
    assert read_requests(tmp_path / "m.jsonl", block=256).prefix_tokens.tolist() == [256, 768]


def test_a_conversation_is_a_session_whose_prompts_hold_all_that_was_said(tmp_path):
    said = [("system", "s" * 40), ("human", "q" * 10), ("gpt", "a" * 20), ("human", "q" * 3), ("gpt", "b" * 8)]
    other = [said[0], ("human", "x" * 4), ("gpt", "y" * 4)]
    rows = [{"arrival_s": i, "conversations": [{"from": f, "value": v} for f, v in c]} for i, c in
            enumerate((said, other))]  # fmt: skip
    rows[0]["conversations"][3]["think_s"] = 7.5
    path = written(tmp_path, "\n".join(map(json.dumps, rows)), "c.jsonl")
    log = read_requests(path, chars_per_token=4)
    # 10 tokens of system; 3 and 5, then 1 and 2; the other: 1 and 1. In order of arrival: 0, 1, 7.5.
    assert log.arrival_s.tolist() == [0, 1, 7.5]
    assert log.prompt.tolist() == [13, 11, 19]
    assert log.output.tolist() == [5, 1, 2]
    assert log.after.tolist() == [-1, -1, 0]
    assert log.think_s.tolist() == [0, 0, 7.5]
    assert log.prefix_tokens.tolist() == [10, 18]
    assert log.prefix_parent.tolist() == [-1, 0]
    assert log.prefix.tolist() == [0, 0, 1]
    assert log.extends.tolist() == [1, -1, -1]
    assert log.source.endswith("(4 characters taken for a token)")


def test_counted_conversations_and_ids_give_the_same_sessions(tmp_path):
    counts = {"turns": [{"prompt": 32, "output": 16}, {"prompt": 16, "output": 16, "think_s": 2}]}
    row, at = [], 0
    for turn in counts["turns"]:
        for role, name in (("user", "prompt"), ("assistant", "output")):
            row.append({"role": role, "token_ids": list(range(at, at + turn[name]))})
            at += turn[name]
    row[2]["think_s"] = 2
    logs = []
    for name, value in {"counts": counts, "ids": {"messages": row}}.items():
        path = written(tmp_path, json.dumps(value), f"{name}.json")
        logs.append(parse_requests(f"{path}@rate=1"))
    for log in logs:
        assert log.prompt.tolist() == [32, 64]
        assert log.output.tolist() == [16, 16]
        assert log.after.tolist() == [-1, 0]
        assert log.arrival_s.tolist() == [0, 2]
        assert log.prefix_tokens[log.extends[0]] == 48
        assert log.prefix[1] == log.extends[0]
    # Of ids it is also known that the first prompt begins the second one.
    assert [log.prefix_tokens.tolist() for log in logs] == [[48], [32, 48]]


def test_a_bad_conversation_is_left_out_whole(tmp_path):
    good = {"messages": [{"role": "user", "tokens": 3}, {"role": "assistant", "tokens": 4}]}
    bad = {"messages": [*good["messages"], {"role": "user", "tokens": 3}, {"role": "assistant", "tokens": -4}]}
    path = written(tmp_path, "\n".join(map(json.dumps, [good, bad, good])), "c.jsonl")
    log = parse_requests(f"{path}@rate=inf", skip_bad=True)
    assert len(log) == 2
    assert log.left_out == (
        f"{path}: line 2: messages[3].tokens: found -4, expected a whole number of tokens from 1 to 10000000",
    )


# -- written and read again ------------------------------------------------------------------------
@given(st.integers(0, 2**32), st.sampled_from(["", ".gz"]))
def test_a_written_log_reads_back_to_the_same_arrays(tmp_path_factory, seed, packed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    log = parse_requests(f"sessions:rate=1,n={n},turns=1-4,think=exponential(3),system={seed % 3 * 50}", seed=seed)
    log = plain(
        **{name: getattr(log, name) for name in PER_REQUEST if name not in ("klass", "priority")},
        prefix_tokens=log.prefix_tokens, prefix_parent=log.prefix_parent, classes=("chat", "code, long", "none"),
        klass=rng.integers(0, 2, len(log)), priority=rng.integers(-3, 3, len(log)) * (seed % 2),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("round") / "log.csv"
    write_csv(log, path)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert_same(read_requests(path), log)


def test_a_plain_log_is_written_as_a_plain_table(tmp_path):
    write_csv(plain([0, 0.1], [5, 6], [7, 8]), tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "arrival_s,prompt,output\n0.0,5,7\n0.1,6,8\n"
    with pytest.raises(InputError, match="the class ' ' cannot be written"):
        write_csv(plain([0], [5], [7], classes=(" ",)), tmp_path / "x.csv")


@pytest.mark.parametrize(
    "line", ["# tokenfab requests: {", "# tokenfab requests: [1]", '# tokenfab requests: {"a": [1]}']
)
def test_a_first_line_of_ours_that_is_broken_is_refused(tmp_path, line):
    path = written(tmp_path, f"{line}\n{HEADER}\n0,1,1\n")
    assert refusal(path).startswith("line 1: found '# tokenfab requests")


def test_a_large_table_is_read_in_seconds(tmp_path):
    """A million lines take 4 CPU seconds, so these 100,000 take 0.4; the bound leaves room for a busy machine."""
    lines = [HEADER, *(f"{i / 8},{i % 4000 + 1},{i % 700 + 1}" for i in range(100_000))]
    path = written(tmp_path, "\n".join(lines))
    start = time.process_time()
    log = read_requests(path)
    assert time.process_time() - start < 3
    assert len(log) == 100_000
    assert log.rate == pytest.approx(8)
