"""Which causal models of ``transformers`` can be captured: every model type, with its default configuration.

    python -m tokenfab.workloads.hf_survey             # all, about five minutes
    python -m tokenfab.workloads.hf_survey llama opt   # some
    python -m tokenfab.workloads.hf_survey --write docs/workloads.md

A type is *captured* or *refused* with one line that says why; anything else would be a bug. With
``--write`` the table in that file, between its two markers, is replaced.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_whole

START, END = "<!-- survey -->", "<!-- /survey -->"
_DECODER: dict[str, Any] = {"is_decoder": True}
_CONVOLUTIONS = ["conv", "conv", "full_attention"] * 10 + ["conv", "full_attention"]
# Where the default configuration describes no causal model, or one that takes minutes to run.
SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
            "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl",
        ),
        _DECODER,
    ),
    "big_bird": _DECODER | {"attention_type": "original_full"},
    "dbrx": {"attn_config": {"kv_n_heads": 8, "rope_theta": 5e5, "clip_qkv": 8}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 1, "num_experts_per_tok": 6},
    "inkling2_text": {"num_hidden_layers": 6, "layer_types": ["hybrid_sliding"] * 5 + ["hybrid"]},
    "lfm2": {"layer_types": _CONVOLUTIONS},
    "lfm2_moe": {"layer_types": _CONVOLUTIONS},
    "xmod": _DECODER | {"default_language": "en_XX"},
    "reformer": _DECODER | {"attn_layers": ["local", "lsh"]},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One model type. ``status`` is captured, refused or broken (a bug of ours)."""

    model_type: str
    status: str
    note: str


def model_types() -> list[str]:
    """Every causal model type this ``transformers`` knows, sorted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def survey(types: Iterable[str], told: Callable[[Row], None] = lambda row: None) -> list[Row]:
    """Try each type; ``told`` hears of every row as it is done."""
    rows = []
    for name in types:
        rows.append(_try(name))
        told(rows[-1])
    return rows


def write_config(name: str, folder: Path, **settings: Any) -> Path:
    """The default configuration of a model type, with ``settings`` changed, as a ``config.json``."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[name](**(SETTINGS.get(name, {}) | settings))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(config.to_dict(), default=str), encoding="utf-8")
    return file


def _try(name: str) -> Row:
    from .hf_capture import capture_hf

    with tempfile.TemporaryDirectory() as folder:
        try:
            file = write_config(name, Path(folder) / name)
        except Exception as error:
            return Row(name, "refused", f"transformers has no valid default configuration: {_short(error, folder)}")
        try:
            trace = capture_hf(file)
        except InputError as error:
            return Row(name, "refused", _short(error, folder, f"{name}/config.json:", f"{name}:"))
        except Exception as error:
            return Row(name, "broken", f"{type(error).__name__}: {_short(error, folder)}")
    kinds = Counter(op.kind for op, _ in trace.operators())
    what = [f"{trace.parameters / 1e9:.3g} B parameters", f"{len(trace.blocks)} blocks"]
    what += [k for k in ("attention", "scan", "convolution", "experts") if kinds[k]]
    if left := trace.provenance.get("left_out"):
        what.append(f"without {left}")
    return Row(name, "captured", ", ".join(what))


def _short(error: Exception, folder: str, *prefixes: str) -> str:
    text = " ".join(str(error).replace(f"{folder}/", "").split())
    for prefix in (*prefixes, *prefixes):
        text = text.removeprefix(prefix).strip()
    return text if len(text) <= 160 else text[:159] + "…"


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table under a line of counts."""
    import transformers

    counts = Counter(r.status for r in rows)
    told = ", ".join(f"{counts[s]} {s}" for s in ("captured", "refused", "broken") if counts[s])
    lines = [f"transformers {transformers.__version__}: {len(rows)} model types, {told}.", ""]
    lines += ["| model type | | |", "|---|---|---|"]
    lines += [f"| {r.model_type} | {r.status} | {r.note.replace('|', '/')} |" for r in rows]
    return "\n".join(lines)


def replace_table(page: str, text: str) -> str:
    """``page`` with what stands between the markers replaced. Raises ``InputError`` without markers."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise InputError(f"no table to replace: {START} … {END} are not both there")
    return f"{before}{START}\n{text}\n{END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit code, 1 when a type is broken."""
    types, target = list(arguments), None
    if "--write" in types:
        place = types.index("--write")
        target = Path(types[place + 1])
        del types[place : place + 2]
    progress = sys.stderr.isatty()
    rows = survey(types or model_types(), lambda row: print(row, file=sys.stderr) if progress else None)
    text = table(rows)
    if target is None:
        print(text)
    else:
        write_whole(target, replace_table(target.read_text(encoding="utf-8"), text))
    return int(any(r.status == "broken" for r in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
