"""Text of a size expression: read without ``eval``, in time linear in its length.

A trace is a file from somewhere, so its reader must neither run code nor be stalled. Python's own
parser gives the syntax tree; only numbers, the symbols, ``+ - * / **`` and the functions of
:data:`.expr_functions.FUNCTIONS` are accepted. Multiplying out is what can blow up, so the number of products of
terms is bounded by the length of the text: whatever :class:`.expr.Expr` prints needs far fewer.
"""

from __future__ import annotations

import ast
import math
import re
import warnings

from .expr import MAX_DEGREE, Expr, expr, function, symbol
from .expr_functions import FUNCTIONS

MAX_TEXT = 4000
"""Characters. The longest size of a captured trace has about 300."""
_MAX_DEPTH = 100
_PRODUCTS = 256
_PRODUCTS_PER_CHARACTER = 4
_CHARACTERS = re.compile(r"[A-Za-z0-9_\s.+\-*/(),]+", re.ASCII)


def read(text: str) -> Expr:
    """The expression that ``text`` spells. Raises ``ValueError`` with what is wrong."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"expression of {len(text)} characters; accepted: at most {MAX_TEXT}")
    if not _CHARACTERS.fullmatch(text):
        raise ValueError(f"not an expression: {text[:60]!r}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of numbers run into names
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an expression: {text[:60]!r}") from error
    return _Reader(_PRODUCTS + _PRODUCTS_PER_CHARACTER * len(text)).read(tree.body, 0)


class _Reader:
    """Walks a syntax tree; ``budget`` is the number of products of terms it may still form."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def read(self, node: ast.expr, depth: int) -> Expr:
        if depth > _MAX_DEPTH:
            raise ValueError(f"expression nested too deeply; accepted: {_MAX_DEPTH} levels")
        match node:
            case ast.Constant(value=bool()):
                raise ValueError("a number was expected, not a truth value")
            case ast.Constant(value=int() | float() as value):
                return expr(_number(value))
            case ast.Name(id=name):
                return symbol(name)
            case ast.UnaryOp(op=ast.USub(), operand=x):
                return -self.read(x, depth + 1)
            case ast.BinOp(op=ast.Add() | ast.Sub()):
                return self._sum(node, depth)
            case ast.BinOp(op=ast.Mult() | ast.Div()):
                return self._product(node, depth)
            case ast.BinOp(left=x, op=ast.Pow(), right=ast.Constant(value=int() as power)):
                if not 0 <= power <= MAX_DEGREE:
                    raise ValueError(f"power {power}; accepted: 0 to {MAX_DEGREE}")
                base, out = self.read(x, depth + 1), expr(1)
                for _ in range(power):
                    out = self._times(out, base)
                return out
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
                return function(name, *(self.read(a, depth + 1) for a in args))
        raise ValueError(f"{type(node).__name__} is not part of a size expression")

    def _sum(self, node: ast.expr, depth: int) -> Expr:
        """A chain of + and −, which the tree nests to the left once per term."""
        terms: dict[object, float] = {}
        signed: list[tuple[ast.expr, int]] = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            signed.append((node.right, 1 if isinstance(node.op, ast.Add) else -1))
            node = node.left
        signed.append((node, 1))
        for part, sign in reversed(signed):
            for monomial, value in self.read(part, depth + 1).terms:
                terms[monomial] = terms.get(monomial, 0.0) + sign * value
        return Expr(terms)  # type: ignore[arg-type]

    def _product(self, node: ast.expr, depth: int) -> Expr:
        """A chain of × and ÷, nested likewise."""
        factors: list[tuple[ast.expr, bool]] = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            factors.append((node.right, isinstance(node.op, ast.Mult)))
            node = node.left
        out = self.read(node, depth + 1)
        for part, multiply in reversed(factors):
            factor = self.read(part, depth + 1)
            if multiply:
                out = self._times(out, factor)
            elif divisor := factor.constant:
                out = out / divisor
            else:
                raise ValueError("division only by a number other than zero")
        return out

    def _times(self, x: Expr, y: Expr) -> Expr:
        self.budget -= len(x.terms) * len(y.terms)
        if self.budget < 0:
            raise ValueError("expression too large once multiplied out")
        return x * y


def _number(value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("numbers must be finite")
    return number
