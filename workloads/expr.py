"""Symbolic sizes: polynomials in batch, query length and context that evaluate as arrays.

A size in a trace (a dimension, a FLOP count, a byte count) is an :class:`Expr`: a polynomial with
real coefficients over *atoms*. An atom is a symbol or a function of expressions:

========================  =====================================================================
``b``, ``q``, ``c``       batch; new tokens per sequence; tokens already in the KV cache
``min(x, y)``             the smaller one (sliding windows)
``max(x, y)``             the larger one
``ceil(x)``               rounded up (a shard that does not divide)
``distinct(E, k, n)``     expected number of distinct experts that ``n`` tokens touch when each
                          picks ``k`` different ones of ``E`` uniformly: E·(1 − (1 − k/E)^n)
========================  =====================================================================

The canonical form makes equality structural, gives each trace one small basis of monomials (so a
whole trace is evaluated at a million points by one matrix product) and prints as text that reads
like the formula. :func:`parse` reads that text back without ``eval``.

sympy would do the algebra, but reads text through ``eval``, costs half a second to import, and
evaluates arrays through generated code; a trace needs none of its breadth.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

SYMBOLS: Mapping[str, str] = {
    "b": "batch: sequences",
    "q": "query length: new tokens per sequence",
    "c": "context: tokens per sequence already in the KV cache",
}
_ARITY = {"min": 2, "max": 2, "ceil": 1, "distinct": 3}
_MAX_TEXT = 4000
_MAX_DEPTH = 200
_MAX_POWER = 8
_MAX_DEGREE = 16
_MAX_PRODUCT = 10_000

Array: TypeAlias = npt.NDArray[np.float64]
Monomial: TypeAlias = "tuple[tuple[Atom, int], ...]"
Number: TypeAlias = "int | float"


@dataclass(frozen=True, slots=True)
class Atom:
    """A symbol (no arguments) or a function of expressions. Ordered and hashed by its text."""

    name: str
    args: tuple[Expr, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})" if self.args else self.name

    def evaluate(self, env: Mapping[str, Array]) -> Array:
        if not self.args:
            return env[self.name]
        values = [np.asarray(a.evaluate(env), dtype=float) for a in self.args]
        if self.name == "min":
            return np.minimum(*values)
        if self.name == "max":
            return np.maximum(*values)
        if self.name == "ceil":
            return np.ceil(values[0] - 1e-9)
        experts, k, tokens = values
        return expected_distinct(experts, k, tokens)


def expected_distinct(experts: npt.ArrayLike, k: npt.ArrayLike, tokens: npt.ArrayLike) -> Array:
    """Expected distinct experts touched by ``tokens`` tokens with ``k`` different experts each.

    Under uniform routing one token misses a given expert with probability 1 − k/E, independently
    of the others, so an expert stays untouched with probability (1 − k/E)^n; linearity of
    expectation gives E·(1 − (1 − k/E)^n). Skewed routing touches fewer.
    """
    e, kk, n = (np.asarray(x, dtype=float) for x in (experts, k, tokens))
    miss = np.clip(1.0 - kk / e, 0.0, 1.0)
    return np.asarray(e * (1.0 - np.power(miss, np.maximum(n, 0.0))))


class Expr:
    """A polynomial over atoms. Immutable; ``+ - *`` combine, ``/`` divides by a number."""

    __slots__ = ("_hash", "_text", "terms")
    terms: tuple[tuple[Monomial, float], ...]

    def __init__(self, terms: Mapping[Monomial, float]) -> None:
        kept = [(m, float(v)) for m, v in terms.items() if v != 0]
        kept.sort(key=lambda t: (-sum(p for _, p in t[0]), [(str(a), p) for a, p in t[0]]))
        self.terms = tuple(kept)
        self._text: str | None = None
        self._hash = hash(self.terms)

    # -- algebra ---------------------------------------------------------------------------
    def __add__(self, other: ExprLike) -> Expr:
        terms = dict(self.terms)
        for m, v in expr(other).terms:
            terms[m] = terms.get(m, 0.0) + v
        return Expr(terms)

    __radd__ = __add__

    def __mul__(self, other: ExprLike) -> Expr:
        terms: dict[Monomial, float] = {}
        for m1, v1 in self.terms:
            for m2, v2 in expr(other).terms:
                m = _times(m1, m2)
                terms[m] = terms.get(m, 0.0) + v1 * v2
        return Expr(terms)

    __rmul__ = __mul__

    def __neg__(self) -> Expr:
        return self * -1

    def __sub__(self, other: ExprLike) -> Expr:
        return self + -expr(other)

    def __rsub__(self, other: ExprLike) -> Expr:
        return expr(other) - self

    def __truediv__(self, divisor: Number) -> Expr:
        return Expr({m: v / divisor for m, v in self.terms})

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int | float):
            other = expr(other)
        return isinstance(other, Expr) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return parse, (str(self),)

    # -- reading ---------------------------------------------------------------------------
    @property
    def constant(self) -> float | None:
        """The value when no symbol is left, else ``None``."""
        if not self.terms:
            return 0.0
        if len(self.terms) == 1 and not self.terms[0][0]:
            return self.terms[0][1]
        return None

    def evaluate(self, env: Mapping[str, Array]) -> Array | float:
        """Value with the symbols bound to arrays of one (broadcast) shape."""
        total: Array | float = 0.0
        for monomial, value in self.terms:
            total = total + value * monomial_value(monomial, env)
        return total

    def __call__(self, b: npt.ArrayLike, q: npt.ArrayLike, c: npt.ArrayLike) -> Array:
        env = {n: np.asarray(v, dtype=float) for n, v in (("b", b), ("q", q), ("c", c))}
        return np.asarray(self.evaluate(env), dtype=float)

    def __str__(self) -> str:
        if self._text is None:
            self._text = _join([_term_text(m, v) for m, v in self.terms])
        return self._text

    def __repr__(self) -> str:
        return f"Expr({self})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """In files an expression is a number or its text; both are read without ``eval``."""
        return core_schema.no_info_plain_validator_function(
            _validate,
            serialization=core_schema.plain_serializer_function_ser_schema(_serialise),
        )


ExprLike: TypeAlias = "Expr | int | float"


def expr(value: ExprLike) -> Expr:
    """``value`` as an expression; numbers become constants."""
    return value if isinstance(value, Expr) else Expr({(): float(value)})


def symbol(name: str) -> Expr:
    """One of the symbols of :data:`SYMBOLS`."""
    if name not in SYMBOLS:
        raise ValueError(f"unknown symbol {name!r}; known: {', '.join(SYMBOLS)}")
    return Expr({((Atom(name), 1),): 1.0})


def function(name: str, *args: ExprLike) -> Expr:
    """An atom of :data:`_ARITY`; folded to a number when every argument is one."""
    if _ARITY.get(name) != len(args):
        raise ValueError(f"no function {name} of {len(args)} arguments")
    exprs = tuple(expr(a) for a in args)
    if name == "distinct":
        experts, k = exprs[0].constant, exprs[1].constant
        if experts is None or k is None or not 1 <= k <= experts:
            raise ValueError(f"distinct({exprs[0]}, {exprs[1]}, …): needs numbers with 1 ≤ k ≤ E")
    atom = Atom(name, exprs)
    if all(e.constant is not None for e in exprs):
        return expr(float(atom.evaluate({})))
    if name in ("min", "max") and exprs[0] == exprs[1]:
        return exprs[0]
    if name == "ceil" and exprs[0].terms and all(v == int(v) and not any(a.args for a, _ in m) for m, v in exprs[0].terms):
        return exprs[0]
    return Expr({((atom, 1),): 1.0})


def minimum(x: ExprLike, y: ExprLike) -> Expr:
    return function("min", x, y)


def maximum(x: ExprLike, y: ExprLike) -> Expr:
    return function("max", x, y)


def ceil_div(x: ExprLike, divisor: int) -> Expr:
    return function("ceil", expr(x) / divisor)


def product(values: tuple[Expr, ...] | list[Expr]) -> Expr:
    out = expr(1)
    for v in values:
        out = out * v
    return out


def monomial_value(monomial: Monomial, env: Mapping[str, Array]) -> Array | float:
    """Value of one monomial: the product of its atoms' powers."""
    value: Array | float = 1.0
    for atom, power in monomial:
        a = atom.evaluate(env)
        for _ in range(power):
            value = value * a
    return value


def _times(left: Monomial, right: Monomial) -> Monomial:
    if not left or not right:
        return left or right
    powers: dict[Atom, int] = {}
    for atom, power in left + right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: str(item[0])))


def _number_text(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e18 else repr(value)


def _term_text(monomial: Monomial, value: float) -> str:
    factors = [str(a) if p == 1 else f"{a}**{p}" for a, p in monomial]
    if not factors:
        return _number_text(value)
    if value == 1:
        return "*".join(factors)
    if value == -1:
        return "-" + "*".join(factors)
    return "*".join([_number_text(value), *factors])


def _join(terms: list[str]) -> str:
    if not terms:
        return "0"
    text = terms[0]
    for t in terms[1:]:
        text += f" - {t[1:]}" if t.startswith("-") else f" + {t}"
    return text


# -- text → expression -------------------------------------------------------------------------
@lru_cache(maxsize=4096)
def parse(text: str) -> Expr:
    """Read the text form. Raises ``ValueError`` with what is wrong; never evaluates code."""
    if len(text) > _MAX_TEXT:
        raise ValueError(f"expression of {len(text)} characters; at most {_MAX_TEXT}")
    if not re.fullmatch(r"[\w\s.+\-*/(),]+", text):
        raise ValueError(f"not an expression: {text[:60]!r}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an expression: {text[:60]!r}") from error
    return _from_ast(tree.body, 0)


def _from_ast(node: ast.expr, depth: int) -> Expr:
    if depth > _MAX_DEPTH:
        raise ValueError("expression nested too deeply")
    match node:
        case ast.Constant(value=bool()):
            raise ValueError("a number was expected, not a truth value")
        case ast.Constant(value=int() | float() as value):
            number = float(value)
            if not math.isfinite(number):
                raise ValueError("numbers must be finite")
            return expr(number)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=x):
            return -_from_ast(x, depth + 1)
        case ast.BinOp(left=x, op=ast.Add(), right=y):
            return _from_ast(x, depth + 1) + _from_ast(y, depth + 1)
        case ast.BinOp(left=x, op=ast.Sub(), right=y):
            return _from_ast(x, depth + 1) - _from_ast(y, depth + 1)
        case ast.BinOp(left=x, op=ast.Mult(), right=y):
            return _bounded_product(_from_ast(x, depth + 1), _from_ast(y, depth + 1))
        case ast.BinOp(left=x, op=ast.Div(), right=y):
            divisor = _from_ast(y, depth + 1).constant
            if not divisor:
                raise ValueError("division only by a number other than zero")
            return _from_ast(x, depth + 1) / divisor
        case ast.BinOp(left=x, op=ast.Pow(), right=ast.Constant(value=int() as power)):
            if not 0 <= power <= _MAX_POWER:
                raise ValueError(f"powers are 0 to {_MAX_POWER}, not {power}")
            base, out = _from_ast(x, depth + 1), expr(1)
            for _ in range(power):
                out = _bounded_product(out, base)
            return out
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _ARITY:
            return function(name, *(_from_ast(a, depth + 1) for a in args))
    raise ValueError(f"not part of a size expression: {ast.unparse(node)[:60]!r}")


def _bounded_product(x: Expr, y: Expr) -> Expr:
    """Product that refuses to blow up: a file must not be able to stall its reader."""
    if len(x.terms) * len(y.terms) > _MAX_PRODUCT or _degree(x) + _degree(y) > _MAX_DEGREE:
        raise ValueError("expression too large")
    return x * y


def _degree(x: Expr) -> int:
    return max((sum(p for _, p in m) for m, _ in x.terms), default=0)


def _validate(value: object) -> Expr:
    if isinstance(value, Expr):
        return value
    if isinstance(value, bool):
        raise ValueError("a size is a number or an expression, not a truth value")
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise ValueError("a size must be finite")
        return expr(value)
    if isinstance(value, str):
        try:
            return parse(value)
        except (RecursionError, OverflowError) as error:
            raise ValueError("expression too large") from error
    raise ValueError(f"a size is a number or an expression, not {type(value).__name__}")


def _serialise(value: Expr) -> int | float | str:
    constant = value.constant
    if constant is None:
        return str(value)
    return int(constant) if constant == int(constant) else constant


B, Q, C = symbol("b"), symbol("q"), symbol("c")
