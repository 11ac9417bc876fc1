"""Generated logs: random numbers by their laws, arrivals by their rates, sessions by what they share."""

from __future__ import annotations

import contextlib
import doctest
import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from request_support import N, kolmogorov, within

from tokenfab.errors import InputError
from tokenfab.workloads import requests
from tokenfab.workloads.request_log import PER_REQUEST, RequestLog
from tokenfab.workloads.requests import GENERATORS, fit_lognormal, parse_requests, read_requests, write_csv
from tokenfab.workloads.requests.draws import Draws, exp, ln
from tokenfab.workloads.requests.generators import COUNT, arrivals
from tokenfab.workloads.requests.lengths import distribution


def gaps(log: RequestLog) -> np.ndarray:
    return np.diff(log.arrival_s)


def cv(values: np.ndarray) -> float:
    return float(values.std() / values.mean())


# -- random numbers --------------------------------------------------------------------------------
@given(st.floats(1e-300, 1e300))
def test_the_logarithm_is_that_of_the_library(x):
    assert ln(np.array([x]))[0] == pytest.approx(math.log(x), rel=1e-15, abs=1e-16)


@given(st.floats(-700, 700))
def test_the_exponential_is_that_of_the_library(x):
    assert exp(np.array([x]))[0] == pytest.approx(math.exp(x), rel=1e-15)


def test_the_ends_of_the_exponential():
    assert exp(np.array([-1e9, 0.0, 1e9])).tolist() == [0.0, 1.0, math.inf]


def test_numbers_follow_their_distributions():
    draws = Draws(5, "test")
    assert kolmogorov(draws.uniform(N), lambda x: x) < 2.2
    assert kolmogorov(draws.exponential(N), lambda x: 1 - math.exp(-x)) < 2.2
    assert kolmogorov(draws.normal(N), lambda x: math.erfc(-x / math.sqrt(2)) / 2) < 2.2
    assert kolmogorov(draws.gamma(N, 1.0), lambda x: 1 - math.exp(-x)) < 2.2
    assert kolmogorov(draws.gamma(N, 0.5), lambda x: math.erf(math.sqrt(x))) < 2.2
    assert kolmogorov(draws.gamma(N, 3.0), lambda x: 1 - math.exp(-x) * (1 + x + x * x / 2)) < 2.2
    assert np.bincount(draws.index(N, 4)).tolist() == pytest.approx([N / 4] * 4, abs=4 * math.sqrt(N * 3 / 16))


def test_uniform_numbers_never_touch_the_ends():
    u = Draws(1, "ends").uniform(N)
    assert 0 < u.min() < 4 / N
    assert 1 - 4 / N < u.max() < 1
    assert (np.floor(u * 2**53) == u * 2**53).all()


@pytest.mark.parametrize("draw", [Draws.uniform, Draws.exponential, Draws.normal, lambda d, n: d.gamma(n, 0.3)])
def test_the_first_of_many_are_the_few_and_purposes_are_apart(draw):
    few, many = draw(Draws(9, "a"), 10), draw(Draws(9, "a"), 1000)
    np.testing.assert_array_equal(few, many[:10])
    assert not np.isin(draw(Draws(9, "b"), 1000), many).any()
    assert not np.isin(draw(Draws(8, "a"), 1000), many).any()
    assert abs(np.corrcoef(draw(Draws(9, "b"), 1000), many)[0, 1]) < 4 / math.sqrt(1000)


# -- arrivals --------------------------------------------------------------------------------------
def test_poisson_arrivals_have_their_rate_and_their_scatter():
    log = parse_requests(f"poisson:rate=2,n={N}", seed=1)
    assert log.arrival_s[0] == 0
    within(gaps(log).mean(), 0.5, 0.5 / math.sqrt(N))
    within(cv(gaps(log)), 1, 1 / math.sqrt(N))
    assert set(log.prompt.tolist()) == {512}
    assert set(log.output.tolist()) == {128}
    counts = np.bincount((log.arrival_s / 10).astype(int))[:-1]
    within(counts.var() / counts.mean(), 1, math.sqrt(2 / len(counts)))


@pytest.mark.parametrize("spread", [0.25, 1, 3])
def test_gamma_gaps_have_their_cv(spread):
    """The cv of n gamma gaps scatters by about √((1 + cv²·(2 + 1.5·cv²)) / 2n)·cv or less: excess kurtosis 6·cv²."""
    log = parse_requests(f"gamma:rate=4,cv={spread},n={N}", seed=2)
    within(gaps(log).mean(), 0.25, 0.25 * spread / math.sqrt(N))
    within(cv(gaps(log)), spread, spread * math.sqrt((2 + 6 * spread**2 + 4 * spread**2) / (4 * N)))


def test_gamma_gaps_without_scatter_are_even_ones():
    even = parse_requests("uniform:rate=4,n=9").arrival_s
    assert even.tolist() == [i / 4 for i in range(9)]
    np.testing.assert_allclose(parse_requests("gamma:rate=4,cv=0,n=9").arrival_s, even, rtol=1e-15)


def test_bursts_keep_the_mean_rate_and_their_shares():
    """On for d = (1 - 0.2) / (4 - 0.2) of 10 s at 4 times the rate: d·4 = 0.842 of all arrivals come then."""
    rate, n = 5, N
    log = parse_requests(f"burst:rate={rate},burst=4,period=10,quiet=0.2,n={n}", seed=3)
    share = 0.8 / 3.8
    in_period = log.arrival_s % 10
    on = in_period < 10 * share
    within(on.mean(), 4 * share, math.sqrt(4 * share * (1 - 4 * share) / n))
    within(log.rate, rate, rate / math.sqrt(n))
    for part in (in_period[on] / (10 * share), (in_period[~on] - 10 * share) / (10 - 10 * share)):
        assert kolmogorov(part, lambda x: x) < 2.2
    silent = parse_requests("burst:rate=5,burst=4,period=10,n=4000", seed=3).arrival_s % 10
    assert silent.max() < 2.5 + 1e-9
    same = parse_requests("burst:rate=5,burst=1,period=10,n=50", seed=3)
    np.testing.assert_array_equal(same.arrival_s, parse_requests("poisson:rate=5,n=50", seed=3).arrival_s)


def test_an_infinite_rate_is_all_at_once():
    for text in ("poisson:rate=inf", "gamma:rate=inf,cv=2", "uniform:rate=inf", "sessions:rate=inf,turns=1"):
        assert set(parse_requests(f"{text},n=5").arrival_s.tolist()) == {0.0}


# -- lengths ---------------------------------------------------------------------------------------
def test_lengths_follow_what_was_asked():
    log = parse_requests(f"poisson:rate=2,n={N},prompt=100-900,output=lognormal(200;0.5)", seed=4)
    assert (log.prompt.min(), log.prompt.max()) == (100, 900)
    within(log.prompt.mean(), 500, math.sqrt((801**2 - 1) / 12 / N))
    within(log.output.mean(), 200, 100 / math.sqrt(N))
    sigma = math.sqrt(math.log(1.25))
    assert kolmogorov(log.output - 0.5 + Draws(1, "x").uniform(N),
                      lambda x: math.erfc(-(math.log(max(x, 1e-9)) - math.log(200) + sigma**2 / 2)
                                          / sigma / math.sqrt(2)) / 2) < 2.2  # fmt: skip
    assert abs(np.corrcoef(log.prompt, log.output)[0, 1]) < 4 / math.sqrt(N)
    log = parse_requests(f"poisson:rate=2,n={N},prompt=gamma(300;2),output=exponential(100)", seed=4)
    within(log.prompt.mean(), 300, 600 / math.sqrt(N))
    within(log.output.mean(), 100, 100 / math.sqrt(N))
    assert log.prompt.min() == 1


def test_longer_prompts_leave_arrivals_and_answers_as_they_were():
    a = parse_requests("poisson:rate=2,n=50,prompt=10-20,output=5-9", seed=4)
    b = parse_requests("poisson:rate=2,n=80,prompt=lognormal(900;1),output=5-9", seed=4)
    np.testing.assert_array_equal(a.arrival_s, b.arrival_s[:50])
    np.testing.assert_array_equal(a.output, b.output[:50])


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "lengths.csv"
    rows = "".join(f"{i},{10 * (i + 1)},{i + 1}\n" for i in range(20))
    path.write_text(f"arrival_s,prompt,output\n{rows}")
    return path


def test_records_of_a_file_are_drawn_whole(table):
    for text in (f"lengths=@{table}", f"prompt=@{table},output=@{table}"):
        log = parse_requests(f"poisson:rate=1,n=4000,{text}", seed=1)
        np.testing.assert_array_equal(log.prompt, 10 * log.output)
        assert np.bincount(log.output)[1:].tolist() == pytest.approx([200] * 20, abs=4 * math.sqrt(200))
    apart = parse_requests(f"poisson:rate=1,n=4000,prompt=@{table},output=7", seed=1)
    assert set(apart.output.tolist()) == {7}
    assert set(apart.prompt.tolist()) == {10 * (i + 1) for i in range(20)}


def test_a_fit_finds_the_lognormal_numbers_it_was_given():
    """Two lognormal numbers with a known correlation of their logarithms; standard errors of the estimates."""
    z, w = Draws(1, "z").normal(N), Draws(1, "w").normal(N)
    prompt = np.round(np.exp(6.5 + 0.9 * z)).astype(np.int64)
    output = np.round(np.exp(5.5 + 0.5 * (0.6 * z + 0.8 * w))).astype(np.int64)
    fit = fit_lognormal(prompt, output)
    within(fit.mu[0], 6.5, 0.9 / math.sqrt(N))
    within(fit.mu[1], 5.5, 0.5 / math.sqrt(N))
    within(fit.sigma[0], 0.9, 0.9 / math.sqrt(2 * N))
    within(fit.correlation, 0.6, (1 - 0.36) / math.sqrt(N))
    assert max(fit.distance) * math.sqrt(N) < 1.4  # parameters were estimated: closer than 2.2
    again = fit_lognormal(*fit.draw(1, N))
    assert again.mu == pytest.approx(fit.mu, abs=4 * 0.9 / math.sqrt(N))
    assert again.correlation == pytest.approx(0.6, abs=0.02)


def test_the_distance_of_a_fit_is_that_of_a_count_over_all_whole_numbers():
    prompt = np.array([3, 3, 4, 9, 40, 41])
    fit = fit_lognormal(prompt, np.full(6, 5))
    shares = []
    for k in range(100):
        fitted = 1.0 if k >= 41 else 0.0 if k < 1 else (
            math.erfc(-(math.log(k + 0.5) - fit.mu[0]) / fit.sigma[0] / math.sqrt(2)) / 2)  # fmt: skip
        shares.append(abs((prompt <= k).mean() - fitted))
    assert fit.distance[0] == pytest.approx(max(shares), rel=1e-12)
    assert (fit.sigma[1], fit.distance[1], fit.correlation) == (0, 0, 0)
    assert set(fit.draw(1, 50)[1].tolist()) == {5}


def test_the_azure_conversations_are_no_lognormal_numbers_and_the_log_says_so(truth):
    path = truth / "azure" / "AzureLLMInferenceTrace_conv.csv"
    log = parse_requests(f"poisson:rate=2,n={N},lengths=fit@{path}", seed=1)
    found = re.search(r"KS distance ([\d.]+), output .* KS distance ([\d.]+), correlation ([\d.]+)$", log.source)
    assert found
    assert [float(x) for x in found.groups()] == [0.159, 0.182, 0.087]
    azure = read_requests(path)
    assert log.prompt.max() <= azure.prompt.max()
    assert np.log(log.prompt).mean() == pytest.approx(np.log(azure.prompt).mean(), abs=0.03)


# -- files replayed --------------------------------------------------------------------------------
def test_a_file_is_replayed_at_another_rate_in_its_own_order(table):
    for text in (f"{table}@rate=5", f"{table}:rate=5"):
        log = parse_requests(text, seed=6)
        assert log.prompt.tolist() == [10 * (i + 1) for i in range(20)]
        np.testing.assert_array_equal(log.arrival_s, parse_requests("poisson:rate=5,n=20", seed=6).arrival_s)
        assert (log.seed, log.source) == (6, text)
    assert parse_requests(f"{table}@rate=5,n=3,seed=8").seed == 8
    assert parse_requests(f"{table}@n=3").arrival_s.tolist() == [0, 1, 2]
    scaled = parse_requests(f"{table}@scale=4,n=3")
    assert scaled.arrival_s.tolist() == [0, 0.25, 0.5]
    assert scaled.seed is None
    assert parse_requests(str(table)).seed is None


def test_a_file_with_the_signs_of_settings_in_its_name_is_a_file(tmp_path, table):
    odd = tmp_path / "a:b@rate=3.csv"
    odd.write_bytes(table.read_bytes())
    assert len(parse_requests(str(odd))) == 20
    assert len(parse_requests(f"{odd}@n=4")) == 4


def test_sessions_in_a_file_start_at_another_rate_and_their_turns_follow(tmp_path):
    log = parse_requests("sessions:rate=1,n=30,turns=3,think=5,system=64", seed=2)
    write_csv(log, tmp_path / "s.csv")
    again = parse_requests(f"{tmp_path / 's.csv'}@rate=100,think=2", seed=2)
    assert len(again) == 90
    waits = again.after >= 0
    np.testing.assert_allclose(again.arrival_s[waits], again.arrival_s[again.after[waits]] + 2)
    assert again.arrival_s[~waits].max() < 2
    np.testing.assert_array_equal(np.sort(again.prefix), np.sort(log.prefix))


# -- sessions --------------------------------------------------------------------------------------
@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from([0, 512]), st.sampled_from([0, 2048]))
def test_every_turn_asks_with_the_whole_history(seed, n, system, context):
    log = parse_requests(
        f"sessions:rate=2,n={n},turns=1-5,think=exponential(4),system={system},systems=2,context={context},"
        f"prompt=20-200,output=lognormal(150;1),seed={seed}"
    )
    assert log.seed == seed
    roots = 2 if system else 0
    for i in range(len(log)):
        before, node = int(log.after[i]), int(log.prefix[i])
        if before < 0:
            assert node == -1 if not system else log.prefix_tokens[node] == 512
            assert 20 <= log.prompt[i] - system <= 200
        else:
            assert node == log.extends[before] >= roots
            assert log.prefix_tokens[node] == log.prompt[before] + log.output[before]
            assert log.prefix_parent[node] == log.prefix[before]
            assert 20 <= log.prompt[i] - log.prefix_tokens[node] <= 200
            assert log.arrival_s[i] == pytest.approx(log.arrival_s[before] + log.think_s[i])
    followed = set(log.after[log.after >= 0].tolist())
    assert [e >= 0 for e in log.extends] == [i in followed for i in range(len(log))]
    assert (log.after < 0).sum() == n
    assert len(log.prefix_tokens) == roots + len(followed)
    if context:
        log.check(max_context=context)


def test_sessions_have_their_turns_pauses_and_rate():
    log = parse_requests(f"sessions:rate=3,n={N // 4},turns=1-7,think=exponential(10),system=64,systems=4", seed=5)
    n = N // 4
    starts = log.arrival_s[log.after < 0]
    assert len(starts) == n
    within(np.diff(starts).mean(), 1 / 3, 1 / 3 / math.sqrt(n))
    within(len(log) / n, 4, 2 / math.sqrt(n))
    pauses = log.think_s[log.after >= 0]
    within(pauses.mean(), 10, 10 / math.sqrt(len(pauses)))
    first = log.prefix[log.after < 0]
    assert np.bincount(first).tolist() == pytest.approx([n / 4] * 4, abs=4 * math.sqrt(n * 3 / 16))


def test_sessions_without_room_are_refused():
    with pytest.raises(InputError, match="no session has room for its first turn"):
        parse_requests("sessions:rate=1,context=100")


# -- the text --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poison:rate=2", "unknown request generator 'poison'; did you mean poisson?; or give a file of requests"),
        ("", "unknown request generator ''"),
        ("poisson", "poisson needs rate: requests per second"),
        ("poisson:", "poisson needs rate"),
        ("poisson:rate", "poisson: rate needs a value"),
        ("poisson:rate=0", "poisson: rate: found '0', expected a number more than 0 to inf"),
        ("poisson:rate=-1", "poisson: rate: found '-1'"),
        ("poisson:rate=nan", "poisson: rate: found 'nan'"),
        ("poisson:rate=2,rate=3", "poisson: rate is given twice"),
        ("poisson:rate=2,cv=3", "unknown setting of poisson 'cv'"),
        ("poisson:rate=2,n=0", "poisson: n: found '0', expected a whole number from 1 to 1e+07"),
        ("poisson:rate=2,n=1.5", "poisson: n: found '1.5'"),
        ("poisson:rate=2,n=1e9", "poisson: n: found '1e9'"),
        ("poisson:rate=2,seed=-1", "poisson: seed: found '-1'"),
        ("poisson:rate=2,prompt=0", "prompt: found '0', expected 1 to 1e+07 tokens, the smaller first"),
        ("poisson:rate=2,prompt=9-4", "prompt: found '9-4'"),
        ("poisson:rate=2,prompt=1.5", "prompt: found '1.5', expected whole numbers of tokens"),
        ("poisson:rate=2,prompt=many", "prompt: found 'many', expected a number of tokens, a range as 100-900, lognor"),
        ("poisson:rate=2,prompt=normal(3;1)", "unknown distribution 'normal'; did you mean lognormal?"),
        ("poisson:rate=2,prompt=lognormal(3)", "prompt: found 'lognormal(3)', expected lognormal(mean;cv)"),
        ("poisson:rate=2,prompt=lognormal(0;1)", "prompt: found 'lognormal(0;1)', expected a mean of 1 to 1e+07"),
        ("poisson:rate=2,prompt=lognormal(9;1e3)", "prompt: found 'lognormal(9;1e3)'"),
        ("poisson:rate=2,prompt=zipf(9;1)", "prompt: found 'zipf(9;1)', expected zipf(mean;exponent;ranks;most)"),
        (
            "poisson:rate=2,prompt=zipf(9;21;5;9)",
            "prompt: found 'zipf(9;21;5;9)', expected a mean of 1 to 1e+07 and a ",
        ),
        ("poisson:rate=2,prompt=zipf(9;2;0;9)", "prompt: found 'zipf(9;2;0;9)'"),
        ("poisson:rate=2,urgent=0.6,background=0.5", "urgent=0.6 and background=0.5: expected at most 1 together"),
        ("swing:rate=2,low=2,period=3", "swing: low: found '2', expected a number from 0 to 1"),
        ("poisson:rate=2,lengths=5", "lengths: found '5', expected @FILE or fit@FILE"),
        ("poisson:rate=2,prompt=@none.csv", "none.csv: cannot be read"),
        ("poisson:rate=2,lengths=@x.csv,prompt=4", "prompt is part of lengths"),
        ("gamma:rate=2", "gamma needs cv"),
        ("burst:rate=inf,burst=2,period=1", "burst: rate: found 'inf'"),
        ("sessions:rate=1,turns=0", "turns: found '0'"),
        ("sessions:rate=1,think=-1", "think: found '-1', expected a number of seconds"),
        ("sessions:rate=1,n=10000000,turns=9", "sessions: 90000000 turns; expected at most 10000000"),
        ("sessions:rate=1,turns=10001", "sessions: a session of 10001 turns; expected at most 10000"),
        ("none.csv", "none.csv: no such file of requests"),
        ("none.csv@rate=2", "none.csv: no such file of requests"),
        ("a" * 5000, "unknown request generator 'aaa"),
    ],
)
def test_texts_that_are_wrong_are_refused_in_one_line(text, message):
    with pytest.raises(InputError) as caught:
        parse_requests(text)
    assert str(caught.value).startswith(message)


KEYS = sorted({key for one in GENERATORS.values() for key in one.settings} - {"n"})
VALUES = (
    *("", "0", "1", "2.5", "7", "-1", "1e-300", "1e9", "1e300", "inf", "nan", "1-3", "0.5-2", "9" * 400),
    *(
        "lognormal(9;2)",
        "lognormal(1e7;100)",
        "gamma(50;100)",
        "exponential(1e7)",
        "x",
        "@",
        "fit@",
        "@.",
        "=",
        ":",
        "ü",
    ),
)


@given(st.sampled_from([*GENERATORS, "other", "."]), st.sampled_from(":@"),
       st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), max_size=5))  # fmt: skip
def test_whatever_a_text_says_it_is_a_log_or_refused(name, sign, given_settings):
    text = f"{name}{sign}n=3," + ",".join(f"{key}={value}" for key, value in given_settings)
    with contextlib.suppress(InputError):
        parse_requests(text).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("@rate=2,scale=3", "scale is of the file's own arrivals"),
        ("@n=21", "n: found 21, expected at most the 20 requests of the file"),
        ("@speed=2", "unknown setting of"),
        ("@scale=0", "scale: found '0'"),
        ("@scale=1e-9", "the last request would arrive after 1.9e+10 s"),
    ],
)
def test_replays_that_are_wrong_are_refused(table, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parse_requests(f"{table}{settings}")


def test_a_seed_in_the_text_goes_before_the_one_beside_it():
    a, b = parse_requests("poisson:rate=1,n=9,seed=5", seed=7), parse_requests("poisson:rate=1,n=9", seed=5)
    np.testing.assert_array_equal(a.arrival_s, b.arrival_s)
    assert (a.seed, b.seed) == (5, 5)
    assert parse_requests("poisson:rate=1,n=9").seed == 0
    with pytest.raises(InputError, match="seed: found -1"):
        parse_requests("poisson:rate=1", seed=-1)


def test_what_files_of_lengths_had_wrong_is_told(table):
    table.write_text(table.read_text() + "99,0,1\n")
    with pytest.raises(InputError, match="line 22: prompt: found '0'"):
        parse_requests(f"poisson:rate=1,n=9,lengths=@{table}")
    log = parse_requests(f"poisson:rate=1,n=9,lengths=@{table}", skip_bad=True)
    assert len(log.left_out) == 1
    assert parse_requests(f"{table}@rate=1", skip_bad=True).left_out == log.left_out


def test_a_generator_is_one_function_and_known_by_being_there():
    try:
        arrivals("test-pairs", "two at a time", n=COUNT)(lambda values, _, n: np.arange(n) // 2 / values["rate"])
        assert parse_requests("test-pairs:rate=2,n=5,prompt=3").arrival_s.tolist() == [0, 0, 0.5, 0.5, 1]
        assert "seed" in GENERATORS["test-pairs"].settings
    finally:
        GENERATORS.pop("test-pairs", None)


def digest(log: RequestLog) -> str:
    arrays = [getattr(log, name) for name in (*PER_REQUEST, "prefix_tokens", "prefix_parent")]
    return hashlib.sha256(b"".join(a.astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays)).hexdigest()[:16]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("poisson:rate=2,n=20000,prompt=lognormal(512;1.5),output=exponential(100)", "0c1e43a32f0a27cf"),
        ("gamma:rate=2,cv=3,n=20000,prompt=gamma(900;.5)", "5f3e2c0928b0195a"),
        ("burst:rate=5,burst=4,period=10,quiet=0.2,n=20000", "e503558908b4863e"),
        ("swing:rate=5,low=.2,period=60,n=20000,prompt=zipf(256;1.5;511;6144),urgent=.1", "e9e66e866da249de"),
        ("sessions:rate=1,n=1000,turns=2-6,think=lognormal(10;2),system=512", "dd96c134c8b79afa"),
    ],
)
def test_the_same_seed_gives_the_same_bytes_everywhere(text, expected):
    """Written down from numpy 2.4; the same with 1.26 and 2.0, and with the processor's vector units left unused."""
    assert digest(parse_requests(text, seed=7)) == expected


def test_seconds_may_be_fractions_and_ranges_of_them():
    drawn = distribution("think", "0.5-1.5", tokens=False).seconds(Draws(1, "s"), N)
    assert kolmogorov(drawn - 0.5, lambda x: x) < 2.2


# -- the page --------------------------------------------------------------------------------------
PAGE = Path(__file__).resolve().parents[1] / "docs" / "requests.md"
BLOCKS = re.findall(r"^```pycon\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
MEASURED = re.compile("truth|azure")


def run_examples(blocks: list[str], names: dict[str, object]) -> None:
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), names, PAGE.name, None, 0)
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.failed == 0, "".join(report)
    assert result.attempted > 3


def test_the_page_prints_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_examples([block for block in BLOCKS if not MEASURED.search(block)], {})


def test_the_page_prints_what_it_says_of_measured_traces(truth):
    run_examples([block for block in BLOCKS if MEASURED.search(block)], {**vars(requests), "truth": truth})


def test_the_page_names_every_generator_and_every_setting():
    text = PAGE.read_text(encoding="utf-8")
    for one in GENERATORS.values():
        assert f"`{one.name}:" in text
        for key in one.settings:
            assert f"`{key}=" in text, key
