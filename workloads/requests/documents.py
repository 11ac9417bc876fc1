"""Requests from JSON: one object per request, or one per conversation; on lines of their own, or in one list."""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError
from ..request_log import MOST_TOKENS
from .conversations import TURNS, read_conversations
from .forms import Form, Kind, find_form, show
from .prefixes import PrefixTree, blocks_of, token_ids
from .records import CHUNK, Read, Records, Trouble


@dataclass(frozen=True)
class Counting:
    """How tokens are counted: ids in blocks of ``block`` (0: as the form says), text by ``chars_per_token`` (0: no)."""

    block: int = 0
    chars_per_token: float = 0.0


@dataclass(frozen=True)
class Broken:
    """What is no JSON object, and why."""

    why: str


Documents = Iterable[tuple[int, dict[str, Any] | Broken]]
"""Objects with the numbers of their lines."""
Blocks = tuple[list[Hashable], list[Hashable]]
"""The whole blocks of a prompt, and those that its answer adds."""
NO_BLOCKS: Blocks = [], []


def read_lines(lines: Sequence[str], counting: Counting, trouble: Trouble) -> Read:
    """The requests of JSON lines; blank ones are passed over."""
    return _read(((number, _decoded(line)) for number, line in enumerate(lines, 1) if line.strip()), counting, trouble)


def _decoded(line: str) -> dict[str, Any] | Broken:
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError) as error:
        return Broken(f"found {show(line.strip())}, which is no JSON: {error}")


def read_list(text: str, counting: Counting, trouble: Trouble) -> Read:
    """The requests of one JSON list, as ShareGPT is published; its records are counted from 1."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{trouble.path}: no JSON list: {error}") from None
    return _read([(i, _object(value)) for i, value in enumerate(values, 1)], counting, trouble)


def _object(value: Any) -> dict[str, Any] | Broken:
    return value if isinstance(value, dict) else Broken(f"found {show(value)}, expected an object")


def _read(documents: Documents, counting: Counting, trouble: Trouble) -> Read:
    waiting = iter(documents)
    seen = []
    for number, document in waiting:
        seen.append((number, document))
        if isinstance(document, dict):
            break
        if not trouble.skip_bad:
            trouble.bad(number, document.why)
    else:
        for number, document in seen:
            trouble.bad(number, document.why if isinstance(document, Broken) else "")
        raise trouble.nothing()
    documents = itertools.chain(seen, waiting)
    if any(key in document for key in TURNS):
        values = ((n, d.why if isinstance(d, Broken) else d) for n, d in documents)
        return read_conversations(list(values), counting.block or 16, counting.chars_per_token, trouble)
    form = find_form(document, f"{trouble.path}: {trouble.word} {number}")
    return _read_requests(documents, form, _names(form, document), counting.block or form.block, trouble)


def _names(form: Form, first: Mapping[str, Any]) -> dict[str, Kind]:
    """The columns that records have, going by the first."""
    return {n: kind for n, kind in form.columns.items() if n in first or n in (form.prompt, form.output)}


def _read_requests(documents: Documents, form: Form, names: dict[str, Kind], block: int, trouble: Trouble) -> Read:
    records = Records(form, names, trouble)
    blocks: list[Blocks] = []
    with_tokens = {*(form.ids or ()), *filter(None, [form.blocks])}
    waiting = iter(documents)
    while chunk := list(itertools.islice(waiting, CHUNK)):
        broken, objects = {}, []
        for i, (_, record) in enumerate(chunk):
            of_record = NO_BLOCKS
            if isinstance(record, Broken):
                broken[i], record = record.why, {}
            elif with_tokens and not with_tokens.isdisjoint(record):
                try:
                    record, of_record = _with_tokens(record, form, block)
                except InputError as error:
                    broken[i] = str(error)
            objects.append(record)
            blocks.append(of_record)
        columns = {name: [record.get(name) for record in objects] for name in names}
        records.add([number for number, _ in chunk], columns, broken)
    if not any(prompt for prompt, _ in blocks):
        return records.log()
    tree = PrefixTree()
    for i in records.kept.tolist():
        prompt, answer = blocks[i]
        tree.add(prompt, answer, block)
    prefix, extends, tokens, parents = tree.nodes()
    return records.log(prefix=prefix, extends=extends, prefix_tokens=tokens, prefix_parent=parents)


def _with_tokens(record: dict[str, Any], form: Form, block: int) -> tuple[dict[str, Any], Blocks]:
    """``record`` with counts where it has ids, and its blocks."""
    if form.blocks:
        hashes, prompt = token_ids(form.blocks, record.get(form.blocks, [])), record.get(form.prompt)
        whole = int(prompt // block) if isinstance(prompt, int | float) and 0 < prompt <= MOST_TOKENS else 0
        return record, ([int(h) for h in hashes[:whole]], [])
    rows = {}
    known = dict(record)
    for name, count in zip(form.ids or (), (form.prompt, form.output), strict=True):
        rows[count] = token_ids(name, record.get(name, []))
        if name in record and known.setdefault(count, len(rows[count])) != len(rows[count]):
            raise InputError(f"{count}: found {show(known[count])}, expected {len(rows[count])}, as many as {name} has")
    return known, of_tokens(rows[form.prompt], rows[form.output], block)


def of_tokens(prompt: Any, output: Any, block: int) -> Blocks:
    """The blocks of a request of which the tokens are known; none where those of the prompt are not."""
    blocks = blocks_of(prompt, block)
    if not len(prompt):
        return [], []
    return blocks, blocks_of(np.concatenate([prompt[len(blocks) * block :], output]), block)
