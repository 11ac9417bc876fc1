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
like the formula. :func:`parse` reads that text back without ``eval``. Coefficients are finite
and degrees at most :data:`MAX_DEGREE`; what would go beyond raises ``ValueError``.

sympy would do it, but reads text through ``eval`` and costs half a second to import.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from .expr_functions import FUNCTIONS

SYMBOLS: Mapping[str, str] = {
    "b": "batch: sequences",
    "q": "query length: new tokens per sequence",
    "c": "context: tokens per sequence already in the KV cache",
}
MAX_DEGREE = 16

Array: TypeAlias = npt.NDArray[np.float64]
Monomial: TypeAlias = "tuple[tuple[Atom, int], ...]"
Number: TypeAlias = "int | float"


@dataclass(frozen=True, slots=True)
class Atom:
    """A symbol (no arguments) or a function of expressions. Ordered by its text."""

    name: str
    args: tuple[Expr, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})" if self.args else self.name

    def evaluate(self, env: Mapping[str, Array]) -> Array:
        if not self.args:
            return env[self.name]
        return FUNCTIONS[self.name][1](*(np.asarray(a.evaluate(env), dtype=float) for a in self.args))


class Expr:
    """A polynomial over atoms. Immutable; ``+ - *`` combine, ``/`` divides by a number."""

    __slots__ = ("_hash", "_text", "terms")
    terms: tuple[tuple[Monomial, float], ...]

    def __init__(self, terms: Mapping[Monomial, float]) -> None:
        kept = [(m, float(v)) for m, v in terms.items() if v != 0]
        if len(kept) > 1:
            kept.sort(key=lambda t: (-_degree(t[0]), [(str(a), p) for a, p in t[0]]))
        if kept and _degree(kept[0][0]) > MAX_DEGREE:
            raise ValueError(f"expression of degree {_degree(kept[0][0])}; accepted: at most {MAX_DEGREE}")
        self._set(kept)

    def _set(self, terms: list[tuple[Monomial, float]]) -> None:
        """Take ``terms`` as they are: in order, none of them 0."""
        for _, v in terms:
            if not math.isfinite(v):
                raise ValueError("a size must be finite")
        self.terms = tuple(terms)
        self._text: str | None = None
        self._hash: int | None = None

    def _scaled(self, factor: float) -> Expr:
        """This times a number: whatever the number, terms keep their order."""
        if not math.isfinite(factor):
            raise ValueError("a size must be finite")
        out = Expr.__new__(Expr)
        out._set([(m, value) for m, v in self.terms if (value := v * factor) != 0])
        return out

    # -- algebra ---------------------------------------------------------------------------
    def __add__(self, other: ExprLike) -> Expr:
        terms = dict(self.terms)
        for m, v in expr(other).terms:
            terms[m] = terms.get(m, 0.0) + v
        return Expr(terms)

    __radd__ = __add__

    def __mul__(self, other: ExprLike) -> Expr:
        if not isinstance(other, Expr):
            return self._scaled(float(other))
        if (factor := other.constant) is not None:
            return self._scaled(factor)
        if (factor := self.constant) is not None:
            return other._scaled(factor)
        terms: dict[Monomial, float] = {}
        for m1, v1 in self.terms:
            for m2, v2 in other.terms:
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
        if isinstance(other, Expr):
            return self.terms == other.terms
        return isinstance(other, int | float) and self.constant == other

    def __hash__(self) -> int:
        if self._hash is None:
            constant = self.constant
            self._hash = hash(self.terms if constant is None else constant)  # equal to a number, hashed as one
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
        """Value at points (batch, query, context); a constant is one number however many points there are."""
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

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        text = "a polynomial in b (batch), q (query), c (context) with min, max, ceil, distinct"
        return {"anyOf": [{"type": "number"}, {"type": "string", "maxLength": 4000, "description": text}]}


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
    """An atom of :data:`.expr_functions.FUNCTIONS`; folded to a number when every argument is one."""
    if name not in FUNCTIONS or FUNCTIONS[name][0] != len(args):
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
    if name == "ceil" and all(v.is_integer() and not any(a.args for a, _ in m) for m, v in exprs[0].terms):
        return exprs[0]  # whole wherever b, q and c are
    return Expr({((atom, 1),): 1.0})


def minimum(x: ExprLike, y: ExprLike) -> Expr:
    """The smaller of two sizes."""
    return function("min", x, y)


def maximum(x: ExprLike, y: ExprLike) -> Expr:
    """The larger of two sizes."""
    return function("max", x, y)


def ceil_div(x: ExprLike, divisor: int) -> Expr:
    """``x / divisor``, rounded up."""
    return function("ceil", expr(x) / divisor)


def product(values: Sequence[Expr]) -> Expr:
    """All of ``values`` multiplied; 1 for none."""
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


def _degree(monomial: Monomial) -> int:
    return sum(p for _, p in monomial)


def _number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e18 else repr(value)


def _term_text(monomial: Monomial, value: float) -> str:
    factors = [str(a) if p == 1 else f"{a}**{p}" for a, p in monomial]
    if not factors:
        return _number_text(value)
    if abs(value) == 1:
        return ("-" if value < 0 else "") + "*".join(factors)
    return "*".join([_number_text(value), *factors])


def _join(terms: list[str]) -> str:
    if not terms:
        return "0"
    text = terms[0]
    for t in terms[1:]:
        text += f" - {t[1:]}" if t.startswith("-") else f" + {t}"
    return text


# -- text and files ----------------------------------------------------------------------------
@lru_cache(maxsize=4096)
def parse(text: str) -> Expr:
    """Read the text form. Raises ``ValueError`` with what is wrong; never evaluates code."""
    from .expr_text import read

    return read(text)


def _validate(value: object) -> Expr:
    if isinstance(value, Expr):
        return value
    if isinstance(value, str):
        return parse(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"a size is a number or an expression, not {type(value).__name__}")
    return expr(value if abs(value) < 1e300 else math.inf)


def _serialise(value: Expr) -> int | float | str:
    constant = value.constant
    if constant is None:
        return str(value)
    return int(constant) if constant.is_integer() and abs(constant) < 1e18 else constant


B, Q, C = symbol("b"), symbol("q"), symbol("c")
