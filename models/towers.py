"""Published vision towers: their sizes, by the names that checkpoints give them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from longllava_trt.models.spec import VisionSpec

__all__ = ["TOWERS", "known_tower", "published_tower"]

_BASE = VisionSpec(
    hidden_size=768,
    intermediate_size=3072,
    num_layers=12,
    num_heads=12,
    image_size=224,
    patch_size=16,
)
_LARGE = replace(_BASE, hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16)
_HUGE = replace(_BASE, hidden_size=1280, intermediate_size=5120, num_layers=32, num_heads=16)

TOWERS = {
    "vit-b-16": _BASE,
    "vit-l-16": _LARGE,
    "vit-l-14": replace(_LARGE, patch_size=14),
    "vit-l-14-336": replace(_LARGE, patch_size=14, image_size=336),
    "vit-h-14": replace(_HUGE, patch_size=14, activation="gelu"),
}
"""The vision transformers of the series; of L/16 there is no published CLIP."""

_HUB = {
    "openai/clip-vit-base-patch16": "vit-b-16",
    "openai/clip-vit-large-patch14": "vit-l-14",
    "openai/clip-vit-large-patch14-336": "vit-l-14-336",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "vit-h-14",
}
_BY_LAST_PART = {Path(name).name.lower(): TOWERS[tower] for name, tower in _HUB.items()}


def known_tower(name: str) -> VisionSpec | None:
    """Return a tower by the last part of its name on the hub or of its folder."""
    return _BY_LAST_PART.get(Path(name).name.replace("_", "-").lower())


def published_tower(spec: VisionSpec) -> str | None:
    """Return the hub's name of a tower, whatever is taken as its feature; None if there is none."""
    plain = replace(spec, feature_layers=(-2,), keep_class_token=False)
    return next((name for name, tower in _HUB.items() if TOWERS[tower] == plain), None)
