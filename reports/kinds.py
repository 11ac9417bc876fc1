"""Kinds of results that a report is made of: each is one entry of :data:`KINDS`, and nothing else lists them.

An entry says how a document is recognised and typed, and which parts it gives. What draws is imported when it draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .format import listed, plural
from .schema import Data, Document
from .schema_placement import Nowhere, Placement
from .schema_serving import Served

if TYPE_CHECKING:
    from .blocks import Part

Raw = Mapping[str, Any]
Documents = Sequence[Any]
"""Typed documents of one kind."""


@dataclass(frozen=True)
class Kind:
    """``schema`` and ``version`` of a document; ``command`` that prints it; ``models``: the types it may have.

    ``model`` chooses one of them for a document not yet checked. ``parts`` answer: from documents, the report's title
    (of the first part, where there is one) and devices left out elsewhere in the report with the reason. ``background``
    says how they were made: from documents, the report's command, and whether another kind's stands before it.
    ``title`` names a report.
    """

    schema: str
    command: str
    models: tuple[type[Data], ...]
    parts: Callable[[Documents, str | None, Mapping[str, str]], list[Part]]
    background: Callable[[Documents, str | None, bool], list[Part]]
    title: Callable[[Documents], str]
    model: Callable[[Raw], type[Data]] | None = None
    version: int = 1

    def type_of(self, raw: Raw) -> type[Data]:
        """The type to check ``raw`` against."""
        return self.model(raw) if self.model else self.models[0]


# -- estimates -------------------------------------------------------------------------------------
def _estimates(documents: Documents, title: str | None, refused: Mapping[str, str]) -> list[Part]:
    from .parts import estimates

    return estimates(documents, title)


def _estimates_made(documents: Documents, command: str | None, after: bool) -> list[Part]:
    from .parts import background

    return background(documents, command)


def _estimates_title(documents: Documents) -> str:
    return _on_devices([d.model.name for d in documents], {d.device.name for d in documents})


# -- placements ------------------------------------------------------------------------------------
def _placements(documents: Documents, title: str | None, refused: Mapping[str, str]) -> list[Part]:
    from .placed import parts

    return parts(documents, title, refused)


def _placements_made(documents: Documents, command: str | None, after: bool) -> list[Part]:
    from .blocks import Paragraph, Part

    if after:  # a study: the estimates' background is of the same command
        return []
    made_by = f"Placements made by tokenfab {listed(sorted({p.tokenfab for p in documents}))}."
    commands = dict.fromkeys(p.command for p in documents if p.command)
    told = (Paragraph(text) for text in (made_by, *(f"Command: {c}" for c in commands)))
    return [Part("How this report was made", "", tuple(told), joins=True)]


def _placements_title(documents: Documents) -> str:
    return _on_devices([p.model for p in documents], {n.partition("#")[0] for p in documents for n in p.devices})


def _placement_model(raw: Raw) -> type[Data]:
    return Nowhere if raw.get("status") in ("infeasible", "unknown") else Placement


# -- streams of requests ---------------------------------------------------------------------------
def _served(documents: Documents, title: str | None, refused: Mapping[str, str]) -> list[Part]:
    from .served import parts

    return parts(documents, title)


def _served_made(documents: Documents, command: str | None, after: bool) -> list[Part]:
    from .served_background import background

    return background(documents)


def _served_title(documents: Documents) -> str:
    models = list(dict.fromkeys(d.model for d in documents))
    what = models[0] if len(models) == 1 else plural(len(models), "model")
    return f"{what} serving requests" + (f": {plural(len(documents), 'run')}" if len(documents) > 1 else "")


def _on_devices(models: Sequence[str], devices: set[str]) -> str:
    different = list(dict.fromkeys(models))
    what = different[0] if len(different) == 1 else plural(len(different), "model")
    return f"{what} on {plural(len(devices), 'device')}"


ESTIMATE, PLACEMENT, SERVE = "tokenfab.estimate", "tokenfab.placement", "tokenfab.serve"
KINDS = {
    kind.schema: kind
    for kind in (
        Kind(ESTIMATE, "tokenfab estimate --json", (Document,), _estimates, _estimates_made, _estimates_title),
        Kind(
            PLACEMENT, "tokenfab place --json", (Placement, Nowhere), _placements, _placements_made,
            _placements_title, _placement_model,
        ),
        Kind(SERVE, "tokenfab serve --json", (Served,), _served, _served_made, _served_title),
    )
}  # fmt: skip
"""Kinds by schema, in the order in which a report has them."""


def grouped(documents: Sequence[Data]) -> list[tuple[Kind, list[Data]]]:
    """Typed documents by kind, kinds in the order of :data:`KINDS`; those without documents are left out."""
    found = [(kind, [d for d in documents if isinstance(d, kind.models)]) for kind in KINDS.values()]
    return [(kind, own) for kind, own in found if own]
