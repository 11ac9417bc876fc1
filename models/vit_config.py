"""What a vision transformer with mixtures of experts is, as plain data. Importing this module does not import torch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

from ..errors import InputError, unknown_name


@dataclass(frozen=True)
class VitConfig:
    """Sizes of one model. ``tokens``: patches and the class token; ``patch``: values of one patch; ``inner`` of a dense
    feed-forward, ``expert_inner`` of an expert; ``experts`` = 0: no mixtures."""

    name: str
    source: str
    hidden: int
    layers: int
    heads: int
    inner: int
    tokens: int
    patch: int
    classes: int
    experts: int
    top_k: int
    expert_inner: int

    def check(self) -> None:
        """Raises ``InputError`` for sizes that do not go together."""
        if self.hidden % self.heads:
            raise InputError(f"{self.name}: heads {self.heads}; accepted: a divisor of hidden = {self.hidden}")
        if self.experts and not 1 <= self.top_k <= self.experts:
            raise InputError(f"{self.name}: top_k {self.top_k}; accepted: 1 to {self.experts} (experts)")

    @property
    def digest(self) -> str:
        """SHA-256 of all fields: what a trace says it was captured from."""
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()


VITS = {
    config.name: config
    for config in (
        VitConfig(
            "m3vit-small", "VITA-Group/M3ViT: configs/nyud/vit_moe (480 x 640, 16 x 16 patches), README (16 experts, "
            "top 4, experts of 1 x hidden)", hidden=384, layers=12, heads=12, inner=1536, tokens=1201, patch=768,
            classes=40, experts=16, top_k=4, expert_inner=384,
        ),
        VitConfig(
            "edge-moe-tiny", "sharc-lab/Edge-MoE, include/model.hpp: Cityscapes at 128 x 256; 19 classes",
            hidden=192, layers=12, heads=3, inner=768, tokens=129, patch=768, classes=19, experts=16, top_k=2,
            expert_inner=384,
        ),
    )
}  # fmt: skip
"""Published sizes by name."""


def vit_config(name: str) -> VitConfig:
    """The model ``name`` of :data:`VITS`. Raises ``InputError`` for another."""
    if name not in VITS:
        raise unknown_name("vision model", name, VITS)
    return VITS[name]
