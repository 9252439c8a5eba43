"""The reference against numbers that the original LLaVA code made on four tiny checkpoints.

Pixels and tiles come from transformers' processors here; our own are tested elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.generate import IMAGE_TOKEN_INDEX, greedy_tokens
from longllava_trt.reference.model import LongLLaVA
from tests.reference.against_transformers import relative_error

_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared/data/original-gold-llava"
GOLD = Path(os.environ.get("LONGLLAVA_GOLD_LLAVA", _BESIDE_THE_CHECKOUT))
MODELS = {
    "llava-1": "LLaVA-1",
    "llava-1.5": "LLaVA-1.5",
    "llava-1.5-hd": "LLaVA-1.5-HD",
    "llava-1.6": "LLaVA-1.6",
}
MEAN = (122, 116, 104)

pytestmark = pytest.mark.skipif(
    not GOLD.is_dir(), reason=f"no {GOLD}: equality with the original code stays unproven here"
)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[LongLLaVA, dict[str, Any]]:
    """A checkpoint of the original's format, and what the original makes of it."""
    folder = GOLD / request.param
    loaded = load_model(folder)
    assert loaded.config.title == MODELS[request.param]
    with np.load(folder / "gold.npz") as gold:
        return loaded, dict(gold)


def check(model: LongLLaVA, gold: dict[str, Any], case: str, embeds: Tensor) -> None:
    """Compare rows, logits and greedy tokens of a prompt."""
    assert embeds.shape[1] == gold[f"{case}.positions"]
    sums = embeds[0].double().sum(-1).numpy()
    np.testing.assert_allclose(sums, gold[f"{case}.embeds_sum"], rtol=0, atol=2e-4)
    cache = empty_cache(model.config.decoder)
    logits = model.decode(embeds, cache, all_logits=True).logits[0, gold[f"{case}.at"]]
    assert relative_error(logits, torch.from_numpy(gold[f"{case}.logits"])) <= 1e-4
    tokens = [token for token, _ in greedy_tokens(model, embeds, max_new_tokens=16)]
    assert tokens == gold[f"{case}.tokens"].tolist()


@torch.no_grad()
def test_text_alone(model: tuple[LongLLaVA, dict[str, Any]]) -> None:
    loaded, gold = model
    check(loaded, gold, "text", loaded.embed(torch.from_numpy(gold["text.ids"])[None]))


@torch.no_grad()
def test_one_picture(model: tuple[LongLLaVA, dict[str, Any]]) -> None:
    loaded, gold = model
    data = pytest.importorskip("skimage.data")
    picture = Image.fromarray(data.astronaut()[3:500, 20:351])
    tiles = tiles_of(loaded, picture)
    assert len(tiles) == gold["one.tiles"][0]
    sample = tiles[:, :, ::37, ::41].numpy()
    np.testing.assert_allclose(sample, gold["one.pixels_sample"], rtol=0, atol=1e-5)
    rows = rows_of(loaded, loaded.project(loaded.encode_images(tiles)), picture.size)
    ids = gold["one.ids"]
    (place,) = np.flatnonzero(ids == IMAGE_TOKEN_INDEX)
    before, after = (
        loaded.embed(torch.from_numpy(part)) for part in (ids[:place], ids[place + 1 :])
    )
    check(loaded, gold, "one", torch.cat([before, rows, after])[None])


def tiles_of(model: LongLLaVA, picture: Image.Image) -> Tensor:
    """Return the pixels that the tower gets, by transformers. [tiles, 3, size, size], float32."""
    transformers = pytest.importorskip("transformers")
    images, size = model.config.images, model.config.require_vision().image_size
    sizes = {
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
    }
    if images.aspect_ratio == "anyres":
        points = [[height, width] for width, height in images.pinpoints]
        processor = transformers.LlavaNextImageProcessorPil(image_grid_pinpoints=points, **sizes)
        return processor(picture, return_tensors="pt")["pixel_values"][0]
    if images.aspect_ratio == "pad":
        side = max(picture.size)
        canvas = Image.new("RGB", (side, side), MEAN)
        width, height = picture.size
        canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
        picture = canvas
    processor = transformers.CLIPImageProcessorPil(**sizes)
    return processor(picture, return_tensors="pt")["pixel_values"]


def rows_of(model: LongLLaVA, tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """Put tiles [tiles, patches, hidden_size] together: rows [n, hidden_size]."""
    if len(tiles) == 1:
        return tiles[0]
    from transformers.models.llava_next import modeling_llava_next as theirs

    vision = model.config.require_vision()
    points = [[height, width] for width, height in model.config.images.pinpoints]
    rows, columns = theirs.get_anyres_image_grid_shape(size[::-1], points, vision.image_size)  # type: ignore[no-untyped-call]
    side = vision.patches_per_side
    grid = tiles[1:].unflatten(1, (side, side)).unflatten(0, (rows, columns))
    grid = theirs.unpad_image(grid.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3), size[::-1])  # type: ignore[no-untyped-call]
    newline = model.image_newline[:, None, None].expand(*grid.shape[:-1], 1)
    return torch.cat([tiles[0], torch.cat([grid, newline], -1).flatten(1).T])
