"""Parallel degrees, and how a pipeline divides the layers. Tensor parallelism is in :mod:`.sharding`."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from .sharding import tensor_parallel
from .trace import Trace

__all__ = ["Parallel", "parse_parallel", "stage_blocks", "tensor_parallel"]

_STEMS = ("embed", "head", "stem")  # blocks of a capture that are no layers


@dataclass(frozen=True)
class Parallel:
    """Devices = tp × pp × dp: tensor, pipeline and data (replica) parallel degrees."""

    tp: int = 1
    pp: int = 1
    dp: int = 1

    @property
    def devices(self) -> int:
        return self.tp * self.pp * self.dp

    def __str__(self) -> str:
        return (
            ",".join(f"{k}={v}" for k, v in (("tp", self.tp), ("pp", self.pp), ("dp", self.dp)) if v > 1)
            or "one device"
        )


ONE_DEVICE = Parallel()


def parse_parallel(text: str | None, count: int | None) -> Parallel:
    """``tp=4,pp=2`` and a device count as :class:`Parallel`.

    Without ``text``, ``count`` devices share every layer (tp = count). Without ``count`` it is the
    product. A count that is a multiple of tp × pp adds replicas. Raises ``InputError`` otherwise.
    """
    degrees = {"tp": 1, "pp": 1, "dp": 1}
    given: set[str] = set()
    for item in filter(None, (text or "").split(",")):
        key, _, value = item.partition("=")
        if key not in degrees or not value.isdecimal() or not 1 <= int(value) <= 4096:
            raise InputError(
                f"--parallel: {item!r}; accepted: tp=N, pp=N, dp=N with N from 1 to 4096, joined by commas"
            )
        if key in given:
            raise InputError(f"--parallel: {key} is given twice")
        given.add(key)
        degrees[key] = int(value)
    if count is not None and not 1 <= count <= 65536:
        raise InputError(f"--count: {count}; accepted: 1 to 65536")
    if not text:
        return Parallel(tp=count or 1)
    product = degrees["tp"] * degrees["pp"] * degrees["dp"]
    if count is not None and count % product:
        raise InputError(f"--count {count} is not a multiple of {product} (= {text})")
    if count is not None:
        degrees["dp"] *= count // product
    return Parallel(**degrees)


def stage_blocks(trace: Trace, stages: int) -> list[dict[str, int]]:
    """Layers per pipeline stage: how often each block runs in each stage, stages as even as layers allow.

    What comes before the first layer (the embedding) is in the first stage, what follows the last
    (norm and head) in the last, what lies between layers in that of the layer before it. Raises
    ``InputError`` when there are fewer layers than stages.
    """
    names = [name for name, _ in trace.order if not name.startswith(_STEMS)] or [name for name, _ in trace.order]
    layers = sum(times for name, times in trace.order if name in names)
    if not 1 <= stages <= layers:
        raise InputError(f"{trace.model}: {layers} layers cannot be divided over {stages} pipeline stages")
    shares: list[dict[str, int]] = [{} for _ in range(stages)]
    done = 0
    for name, times in trace.order:
        is_layer = name in names
        for i in range(times):
            passed = done + i if is_layer else max(done - 1, 0)
            share = shares[passed * stages // layers]
            share[name] = share.get(name, 0) + 1
        done += times if is_layer else 0
    return shares
