"""The vision transformers of the series, counted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from longllava_trt.models.parameters import VISION, parameter_shapes
from longllava_trt.models.registry import find_preset
from longllava_trt.models.towers import TOWERS, known_tower, published_tower


@pytest.mark.parametrize(
    ("name", "parameters", "patches"),
    [
        ("vit-b-16", 85_799_424, 196),
        ("vit-l-16", 303_302_656, 196),
        ("vit-l-14", 303_179_776, 256),
        ("vit-l-14-336", 303_507_456, 576),
        ("vit-h-14", 630_766_080, 256),
    ],
)
def test_towers_have_their_published_sizes(name: str, parameters: int, patches: int) -> None:
    tower = TOWERS[name]
    spec = replace(find_preset("llava-1.5-tiny"), vision=tower)
    counted = sum(math.prod(s) for p, s in parameter_shapes(spec).items() if p.startswith(VISION))
    assert counted == parameters
    assert tower.num_patches == patches


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("openai/clip-vit-large-patch14-336", "vit-l-14-336"),
        ("./clip/clip_vit_large_patch14", "vit-l-14"),
        ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "vit-h-14"),
        ("somebody/vit", None),
    ],
)
def test_towers_are_known_by_the_end_of_their_name(name: str, tower: str | None) -> None:
    assert known_tower(name) == (TOWERS[tower] if tower else None)


def test_a_tower_has_its_name_whatever_its_feature_is() -> None:
    tower = replace(TOWERS["vit-l-14"], feature_layers=(-1,), keep_class_token=True)
    assert published_tower(tower) == "openai/clip-vit-large-patch14"
    assert published_tower(replace(tower, num_layers=23)) is None
