"""Number formats: one registry, each format with exact quantise, pack and unpack, its bits per weight and its error.

A format is known by its name, which says its numbers: ``int4-g128``, ``nf4-b64``, ``2:4``, ``vptq-v8-k256``. Families
of names live one per module here; a module is found by being here and defining ``FORMATS``, a tuple of subclasses of
:class:`~.base.Format`. ``python -m tokenfab.kernels.formats`` prints a table of their bits and errors, with
``--names`` how names are written, and their sources.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from ...errors import unknown_name
from .base import Error, Format, Quantised, Section

__all__ = ["Error", "Format", "Quantised", "Section", "families", "format_names", "load_format"]


@cache
def families() -> tuple[type[Format], ...]:
    """All families of formats, by their modules' names."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return tuple(family for module in modules for family in getattr(module, "FORMATS", ()))


@cache
def format_names() -> tuple[str, ...]:
    """Names of formats in use, of every family: examples of what :func:`load_format` takes, not all of it."""
    return tuple(name for family in families() for name in family.examples)


@cache
def load_format(name: str) -> Format:
    """The format called ``name``. Raises ``InputError`` for a name that no family, or more than one, reads."""
    found = [(family, match) for family in families() if (match := family.pattern.fullmatch(name))]
    if len(found) != 1:
        raise unknown_name("number format", name, format_names(), "python -m tokenfab.kernels.formats --names")
    family, match = found[0]
    return family.named(match)
