"""Tiles, positions, rows, logits and tokens of the original LLaVA code, through the reference."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from longllava_trt.models.image_layout import ImageLayout, PatchGrid, image_layout
from longllava_trt.models.registry import load_model_spec
from longllava_trt.models.spec import ModelSpec
from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.generate import assemble_embeds, greedy_tokens
from longllava_trt.reference.image_rows import image_rows
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.runtime.inputs.pixels import view_pixels
from longllava_trt.runtime.inputs.processor import load_processor_config
from tests.models.llava.gold import CASES, DATA, GoldCase, gold_case

if TYPE_CHECKING:
    from numpy.typing import NDArray

every_case = pytest.mark.parametrize(("name", "case"), CASES)


@cache
def spec_of(name: str) -> ModelSpec:
    return load_model_spec(DATA / name)


@cache
def model_of(name: str) -> LongLLaVA:
    return load_model(DATA / name)


def layouts(name: str, gold: GoldCase) -> list[ImageLayout]:
    spec = spec_of(name)
    patches = PatchGrid.of(spec.require_vision(), spec.require_connector())
    return [image_layout(spec.images, picture.size, patches) for picture in gold.pictures]


def pixels(name: str, gold: GoldCase) -> list[NDArray[np.float32]]:
    aspect = spec_of(name).images.aspect_ratio
    processor = load_processor_config(DATA / name, aspect_ratio=aspect)
    return [
        view_pixels(picture, layout, processor)
        for picture, layout in zip(gold.pictures, layouts(name, gold), strict=True)
    ]


def embeds(name: str, gold: GoldCase) -> torch.Tensor:
    model = model_of(name)
    rows = [
        image_rows(model, torch.from_numpy(views), layout, picture.size)
        for views, layout, picture in zip(
            pixels(name, gold), layouts(name, gold), gold.pictures, strict=True
        )
    ]
    return assemble_embeds(model, gold.ids, rows)


@every_case
def test_views_and_positions(name: str, case: str) -> None:
    gold = gold_case(name, case)
    found = layouts(name, gold)
    assert [layout.num_views for layout in found] == gold.tiles
    images = gold.ids.count(-200)
    assert images == len(found)
    total = len(gold.ids) - images + sum(layout.num_positions for layout in found)
    assert total == gold.positions


@every_case
def test_pixels(name: str, case: str) -> None:
    gold = gold_case(name, case)
    if gold.pixels_sample is None:
        assert not gold.pictures
        return
    found = np.concatenate(pixels(name, gold))[:, :, ::37, ::41]
    np.testing.assert_array_equal(found, gold.pixels_sample)


@every_case
@torch.no_grad()
def test_rows_logits_and_tokens(name: str, case: str) -> None:
    gold = gold_case(name, case)
    model, rows = model_of(name), embeds(name, gold)
    sums = rows[0].double().sum(-1).numpy()
    scale = np.abs(gold.embeds_sum).max()
    np.testing.assert_allclose(sums, gold.embeds_sum, rtol=0, atol=1e-5 * scale)
    cache_ = empty_cache(model.config.decoder, batch=1, dtype=rows.dtype)
    output = model.decode(rows, cache_, all_logits=True)
    found = output.logits[0, gold.at].numpy()
    scale = np.abs(gold.logits).max()
    assert np.abs(found - gold.logits).max() <= 1e-4 * scale
    tokens = [token for token, _ in greedy_tokens(model, rows, max_new_tokens=len(gold.tokens))]
    assert tokens == gold.tokens
