"""The JSON schema of trace files, for readers in other languages.

    python -m tokenfab.workloads.trace_schema docs/trace.schema.json

It says what a file looks like. What it cannot say (that dependencies precede, that sizes are not
negative, which sizes a kind needs) the reader checks: :meth:`.trace.Trace.load`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from ..files import write_whole
from .trace import Trace


def schema_text() -> str:
    """The schema (draft 2020-12) as text, the same for the same release."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Trace.model_json_schema()
    schema["required"] = ["schema", "version", *schema["required"]]
    return json.dumps(_untitled(schema), indent=1, ensure_ascii=False) + "\n"


def _untitled(node: Any) -> Any:
    """Without the titles that repeat each key."""
    if isinstance(node, list):
        return [_untitled(x) for x in node]
    if isinstance(node, dict):
        return {k: _untitled(v) for k, v in node.items() if k != "title" or isinstance(v, dict)}
    return node


def main(arguments: Sequence[str]) -> int:
    """Write the schema to the file named, or print it."""
    if arguments:
        write_whole(arguments[0], schema_text())
    else:
        print(schema_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
