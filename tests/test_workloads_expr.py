"""Size expressions: the algebra is right, the text says the same, and no text can do harm."""

from __future__ import annotations

import copy
import pickle
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfab.workloads.expr import (
    MAX_DEGREE,
    B,
    C,
    Expr,
    Q,
    ceil_div,
    expr,
    function,
    maximum,
    minimum,
    parse,
    product,
    symbol,
)
from tokenfab.workloads.expr_functions import expected_distinct

POINTS = {"b": np.array([1.0, 2, 7, 64]), "q": np.array([1.0, 5, 128, 2048]), "c": np.array([0.0, 9, 77, 4095])}


def at(x: Expr) -> np.ndarray:
    return np.broadcast_to(x(*POINTS.values()), (4,))


# -- random expressions, with the value numpy gives them ---------------------------------------------
numbers = st.one_of(st.integers(-1000, 1000), st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-6 or x == 0))


def leaf() -> st.SearchStrategy:
    symbols = [(symbol(n), POINTS[n]) for n in POINTS]
    return st.one_of(st.sampled_from(symbols), numbers.map(lambda v: (expr(v), np.full(4, float(v)))))


def grow(children: st.SearchStrategy) -> st.SearchStrategy:
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: (p[0][0] + p[1][0], p[0][1] + p[1][1])),
        pairs.map(lambda p: (p[0][0] - p[1][0], p[0][1] - p[1][1])),
        pairs.map(lambda p: (p[0][0] * p[1][0], p[0][1] * p[1][1])),
        pairs.map(lambda p: (minimum(p[0][0], p[1][0]), np.minimum(p[0][1], p[1][1]))),
        pairs.map(lambda p: (maximum(p[0][0], p[1][0]), np.maximum(p[0][1], p[1][1]))),
        st.tuples(children, st.integers(1, 64)).map(lambda p: (p[0][0] / p[1], p[0][1] / p[1])),
    )


expressions = st.recursive(leaf(), grow, max_leaves=6)


@given(expressions)
def test_an_expression_has_the_value_that_numpy_computes(pair):
    x, expected = pair
    scale = max(1.0, float(np.abs(expected).max()))
    assert np.allclose(at(x), expected, rtol=1e-9, atol=1e-9 * scale)


@given(expressions)
def test_the_text_of_an_expression_reads_back_equal_to_the_last_bit(pair):
    x, _ = pair
    assert parse(str(x)) == x
    assert hash(parse(str(x))) == hash(x)
    assert pickle.loads(pickle.dumps(x)) == copy.deepcopy(x) == x


@given(expressions, expressions, expressions)
def test_the_algebra_is_a_ring_up_to_rounding(x, y, z):
    x, y, z = x[0], y[0], z[0]
    assert x + y == y + x
    assert x - x == 0
    assert expr(0) - (-x) == x
    assert x * 1 == x + 0 == x
    scale = (np.abs(at(x)) + 1) * (np.abs(at(y)) + np.abs(at(z)) + 1)
    for difference in (x * (y + z) - (x * y + x * z), x * y - y * x):
        largest = sum((np.abs(v) * np.abs(at(Expr({m: 1.0}))) for m, v in (x * y).terms), scale)
        assert (np.abs(at(difference)) <= 1e-9 * largest).all()


def test_equality_is_structural_and_numbers_are_numbers():
    assert B * Q + C == C + Q * B
    assert B + Q != B + C
    assert minimum(B, Q) != minimum(Q, B)  # equal in value, told apart in form
    assert expr(5) == 5 == expr(5.0)
    assert hash(expr(5)) == hash(5)
    assert {expr(5): "five"}[5] == "five"
    assert B != 1
    assert B is not None
    assert (B == None) is False  # noqa: E711 - an expression is never None, whatever it holds
    assert expr(0) == 0
    assert str(expr(0)) == "0"


def test_text_reads_like_the_formula():
    assert str(2 * B * Q * 4096 - C * Q + 1) == "8192*b*q - c*q + 1"
    assert str(minimum(C + Q, 4096) * B * B) == "b**2*min(c + q, 4096)"
    assert str(ceil_div(B, 8)) == "ceil(0.125*b)"
    assert str(function("distinct", 8, 2, B * Q)) == "distinct(8, 2, b*q)"
    assert str(-B + 0.5) == "-b + 0.5"
    assert repr(B) == "Expr(b)"


def test_functions_fold_where_they_can():
    assert minimum(3, 4) == 3
    assert maximum(3, 4) == 4
    assert minimum(C, C) == C
    assert ceil_div(7, 2) == 4
    assert ceil_div(8 * B, 4) == 2 * B  # whole whatever b is
    assert function("distinct", 8, 8, 1) == 8
    assert product([]) == 1
    assert product([B, Q, B]) == B * B * Q
    assert (B * 0).constant == 0
    assert B.constant is None


@pytest.mark.parametrize("world", [2, 3, 5, 7, 8, 12])
def test_rounding_up_is_exact_at_multiples_and_never_below(world):
    values = np.arange(1, 3000)
    shares = function("ceil", C / world)(1, 1, values)
    assert (shares == -(-values // world)).all()
    large = values * 10**9
    assert (function("ceil", C / world)(1, 1, large * world) == large).all()


# -- distinct experts --------------------------------------------------------------------------------
@pytest.mark.parametrize(("experts", "k"), [(8, 2), (8, 1), (64, 6), (128, 8), (16, 16)])
def test_distinct_experts_agree_with_drawing_them(experts, k):
    generator = np.random.default_rng(7)
    tokens = np.array([1, 2, 3, 8, 40])
    drawn = np.zeros(len(tokens))
    trials = 400
    for _ in range(trials):
        chosen = generator.random((tokens[-1], experts)).argpartition(k - 1, axis=1)[:, :k]
        for i, n in enumerate(tokens):
            drawn[i] += len(np.unique(chosen[:n]))
    expected = expected_distinct(experts, k, tokens)
    assert np.allclose(drawn / trials, expected, rtol=0.03)
    assert expected[0] == pytest.approx(k)  # one token touches k
    assert expected_distinct(experts, k, 1e7) == pytest.approx(experts)  # many touch all
    assert expected_distinct(experts, k, 0) == 0
    assert (np.diff(expected_distinct(experts, k, np.arange(50))) >= 0).all()


@pytest.mark.parametrize("wrong", [(8, 9, B), (8, 0, B), (0, 0, B), (B, 2, Q), (8, C, B)])
def test_distinct_needs_numbers_of_experts(wrong):
    with pytest.raises(ValueError, match="1 ≤ k ≤ E"):
        function("distinct", *wrong)


# -- reading -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2*b*q", 2 * B * Q), ("(b + 1)*(q - 1)", B * Q - B + Q - 1), ("b**3", B * B * B), ("-b**2", -(B * B)),
        ("b - -3", B + 3), ("b/4", B / 4), ("1e3*c", 1000 * C), ("min(c + q, 4096)", minimum(C + Q, 4096)),
        (" b ", B), ("(((b)))", B), ("2**10", expr(1024)), ("b*q/2*c", B * Q * C / 2), ("0*b", expr(0)),
        ("(b+q+c+1)**3", (B + Q + C + 1) * (B + Q + C + 1) * (B + Q + C + 1)), ("q" + "+b" * 1500, Q + 1500 * B),
    ],
)  # fmt: skip
def test_text_is_read(text, value):
    assert parse(text) == value


HOSTILE = {
    "power": "10**400", "digits": "1" * 400, "float": "1e999", "overflow": "1e300*1e300*b", "parentheses": "(" * 4000,
    "nested": "(" * 1999 + "b" + ")" * 1999, "minus": "-" * 3999 + "b", "long": "b" * 4001, "min": "min(" * 500,
    "powers": "(b+q+c+1)**16", "product": "(b+q+c+1)**8*(b+q+c+1)**8", "chain": "b" + "*q" * 1900,
    "sums of products": "+".join(["(b+q+c+1)**6*(b+q+c+1)**6"] * 140), "tower": "b**(b**(b**b))",
    "double power": "((b+1)**8)**8", "fullwidth": "ｂ*2", "greek": "β", "emoji": "b*😀", "null": "b\0",
    "import": "__import__('os').system('true')", "dunder": "b.__class__", "call": "eval(b)", "lambda": "(lambda: 1)()",
    "walrus": "(b:=1)", "string": "'b'", "bytes": "b'q'", "index": "b[0]", "if": "b if q else c", "and": "b and q",
    "compare": "b < q", "bool": "True", "none": "None", "complex": "1j", "tuple": "b,q", "star": "min(*b)",
    "keyword": "min(b, y=q)", "floor": "b//2", "modulo": "b%2", "matrix": "b@q", "zero": "b/0", "symbol": "b/q",
    "unknown": "d", "arity": "min(b)", "no function": "sqrt(b)", "empty": "", "blank": "  ", "newline": "b\nq",
    "comment": "b # q", "fraction power": "b**0.5", "negative power": "b**-1", "name": "nan", "inf": "inf",
    "deep function": "ceil(" * 150 + "b" + ")" * 150, "degree": "b**16*b",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_with_a_value_error_and_at_once(name):
    text = HOSTILE[name]
    parse.cache_clear()
    started = time.process_time()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text differs
        parse(text)
    assert time.process_time() - started < 0.5
    assert type(caught.value) in (ValueError, UnicodeEncodeError)
    assert len(str(caught.value)) < 250


@given(st.text(alphabet="bqc0123456789+-*/(). ,minaxceldst_\n", max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        x = parse(text)
    except ValueError:
        return
    assert parse(str(x)) == x


@given(st.text(max_size=40))
def test_any_unicode_text_is_read_or_refused(text):
    try:
        parse(text)
    except ValueError:
        return
    assert text.isascii()


def test_reading_warns_of_nothing(recwarn):
    with pytest.raises(ValueError, match="not an expression"):
        parse("1b + 2")
    assert not recwarn.list


def test_the_largest_degree_that_algebra_makes_can_be_read_back():
    power = product([B] * MAX_DEGREE)
    assert parse(str(power)) == power
    with pytest.raises(ValueError, match=f"at most {MAX_DEGREE}"):
        power * Q


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308 * 10])
def test_a_size_is_finite(value):
    with pytest.raises(ValueError, match="finite"):
        expr(value)


def test_unknown_symbols_and_functions_are_named():
    with pytest.raises(ValueError, match="unknown symbol 'd'; known: b, q, c"):
        symbol("d")
    with pytest.raises(ValueError, match="no function sqrt of 1 arguments"):
        function("sqrt", B)
