"""The plain description of a request log: what is filled in, what is sorted, what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.errors import InputError
from tokenfab.workloads.request_log import MOST_SECONDS, MOST_TOKENS, PER_REQUEST, plain


def refused(message: str, *arrays, **more):
    with pytest.raises(InputError, match=re.escape(message)):
        plain(*arrays, **more)


def test_three_arrays_are_a_log_with_defaults():
    log = plain([0, 0.5, 2.0], [10, 20, 30], [1, 2, 3])
    assert len(log) == 3
    assert log.classes == ("all",)
    assert (log.source, log.seed, log.left_out) == ("", None, ())
    for name, value in {"klass": 0, "priority": 0, "prefix": -1, "extends": -1, "after": -1, "think_s": 0}.items():
        assert getattr(log, name).tolist() == [value] * 3
    assert [getattr(log, n).dtype.name for n in PER_REQUEST] == ["float64", *["int64"] * 7, "float64"]
    assert log.prefix_tokens.dtype == np.int64
    assert log.rate == 2 / 2.0


def test_requests_are_sorted_by_arrival_and_those_at_once_keep_their_order():
    log = plain([3, 1, 1, 0], [30, 10, 11, 1], [1, 2, 3, 4], priority=[3, 1, 2, 0], after=[-1, -1, 1, -1])
    assert log.arrival_s.tolist() == [0, 1, 1, 3]
    assert log.prompt.tolist() == [1, 10, 11, 30]
    assert log.priority.tolist() == [0, 1, 2, 3]
    assert log.after.tolist() == [-1, -1, 1, -1]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_who_waits_for_whom_survives_the_sorting(arrival, data):
    """The request that another waits for is found again by its prompt, which here is its number as given."""
    may = [[j for j in range(i) if arrival[j] <= arrival[i]] for i in range(len(arrival))]
    after = [data.draw(st.sampled_from([-1, *m])) for m in may]
    log = plain(arrival, np.arange(1, len(arrival) + 1), np.ones(len(arrival)), after=after)
    waits = {int(p) - 1: (int(log.prompt[a]) - 1 if a >= 0 else -1) for p, a in zip(log.prompt, log.after, strict=True)}
    assert waits == dict(enumerate(after))
    assert (log.after < np.arange(len(log))).all()


def test_the_arrays_cannot_be_written_to_and_are_not_the_callers():
    mine = np.array([1, 2])
    log = plain([0.0, 1.0], mine, [1, 1])
    mine[0] = 7
    assert log.prompt.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        log.prompt[0] = 7


def test_a_head_keeps_whom_its_requests_wait_for():
    log = plain([0, 1, 2, 3], [5, 5, 5, 5], [1, 1, 1, 1], after=[-1, 0, 1, 2], think_s=[0, 1, 1, 1])
    head = log.head(3)
    head.check()
    assert len(head) == 3
    assert head.after.tolist() == [-1, 0, 1]
    assert len(log.head(9)) == 4
    with pytest.raises(InputError, match="the first 0 requests"):
        log.head(0)


def test_the_rate_of_requests_that_come_at_once_is_infinite():
    assert plain([0, 0], [1, 1], [1, 1]).rate == float("inf")


@pytest.mark.parametrize("field", ["prompt", "output"])
def test_token_counts_have_both_ends(field):
    good = {"prompt": [1, 1], "output": [1, 1]}
    assert len(plain([0, 1], **{**good, field: [1, MOST_TOKENS]})) == 2
    for wrong in (0, -3, MOST_TOKENS + 1):
        refused(
            f"request 1: {field} is {wrong}; expected 1 to {MOST_TOKENS} tokens", [0, 1], **{**good, field: [1, wrong]}
        )
    for wrong, shown in ((1.5, "1.5"), (float("nan"), "nan"), (float("inf"), "inf")):
        refused(f"request 1: {field} is {shown}; expected a whole number", [0, 1], **{**good, field: [1, wrong]})


def test_arrivals_and_pauses_are_finite_and_not_negative():
    for wrong in (-1e-9, float("nan"), float("inf"), 2 * MOST_SECONDS):
        refused("arrival_s is ", [wrong, 0], [1, 1], [1, 1])
        refused("think_s is ", [0, 0], [1, 1], [1, 1], think_s=[0, wrong])
    assert plain([0, MOST_SECONDS], [1, 1], [1, 1]).arrival_s[1] == MOST_SECONDS


def test_what_is_no_log_is_refused():
    refused("at least one request", [], [], [])
    refused("prompt has the shape (1,), arrival_s the shape (2,)", [0, 1], [1], [1, 1])
    refused("colour is no field", [0], [1], [1], colour=3)
    refused("prompt is no array of numbers", [0], ["many"], [1])
    refused("prompt has 2 dimensions", [0], [[1]], [1])
    refused("request 0: klass is 1; expected an index into classes", [0], [1], [1], klass=[1])
    refused("it waits for request 1", [0, 1], [1, 1], [1, 1], after=[1, -1])
    refused("it waits for request 0", [1, 0], [1, 1], [1, 1], after=[-1, 0])
    refused("after is 5; expected -1 or an earlier request", [0, 1], [1, 1], [1, 1], after=[-1, 5])


def test_the_prefix_tree_is_checked():
    tree = {"prefix_tokens": [4, 9], "prefix_parent": [-1, 0]}
    log = plain([0, 1], [4, 9], [5, 1], prefix=[0, 1], extends=[1, -1], **tree)
    assert log.extends.tolist() == [1, -1]
    refused("request 0: prefix is 2; expected -1 or a node below 2", [0], [9], [5], prefix=[2], **tree)
    refused("request 0: prefix_tokens of prefix is 9; expected no more", [0], [8], [5], prefix=[1], **tree)
    refused("request 0: prefix_tokens of extends is 9; expected no more", [0], [4], [4], extends=[1], **tree)
    refused("prefix node 0: prefix_parent is 1", [0], [1], [1], prefix_tokens=[4, 9], prefix_parent=[1, -1])
    refused("prefix node 1: prefix_tokens is 4", [0], [1], [1], prefix_tokens=[4, 4], prefix_parent=[-1, 0])
    apart = {"prefix_tokens": [4, 9], "prefix_parent": [-1, -1]}
    refused("request 0: extends is node 1; expected one below its prefix, node 0", [0], [4], [9], prefix=[0],
            extends=[1], **apart)  # fmt: skip
    refused("(2,) and prefix_parent (1,)", [0], [1], [1], prefix_tokens=[1, 2], prefix_parent=[-1])


def test_a_context_holds_prompt_and_answer():
    log = plain([0, 1], [10, 20], [5, 6])
    log.check(max_context=26)
    with pytest.raises(InputError, match="request 1: prompt \\+ output is 26; expected at most 25 tokens of context"):
        log.check(max_context=25)
