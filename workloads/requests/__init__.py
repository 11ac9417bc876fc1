"""Request logs read from files or generated: ``parse_requests`` for whatever one text asks for."""

from __future__ import annotations

from .files import read_requests
from .generators import GENERATORS
from .lengths import LognormalFit, fit_lognormal
from .spec import REPLAY, parse_requests
from .tables import write_csv

__all__ = [
    "GENERATORS",
    "REPLAY",
    "LognormalFit",
    "fit_lognormal",
    "parse_requests",
    "read_requests",
    "write_csv",
]
