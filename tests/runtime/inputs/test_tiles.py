"""Tiles against a plain version that pads the whole image with NumPy and slices it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from longllava_trt.models.llava_jamba.image_policy import IMAGE_POLICY
from longllava_trt.runtime.inputs.tiles import overview_and_tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZES = {
    "one-tile": (336, 336),
    "pixel": (1, 1),
    "smaller": (200, 101),
    "portrait": (337, 800),
    "landscape": (1001, 335),
    "exact": (672, 1008),
    "odd-remainders": (501, 999),
    "line": (1, 700),
}


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def sliced(image: Image.Image, side: int) -> list[NDArray[np.uint8]]:
    """Pad by the floor of half of what is missing, on both sides, and cut; slices end where the array does."""
    width, height = image.size
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    x, y = (columns * side - width) // 2, (rows * side - height) // 2
    padded = np.pad(np.asarray(image), ((y, y), (x, x), (0, 0)), constant_values=255)
    return [
        padded[r * side : (r + 1) * side, c * side : (c + 1) * side]
        for r in range(rows)
        for c in range(columns)
    ]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("side", [336, 64, 7])
def test_tiles_are_those_of_the_padded_image_in_rows(size: tuple[int, int], side: int) -> None:
    image = picture(size)
    overview, *tiles = overview_and_tiles(image, IMAGE_POLICY, image_size=side)
    assert overview is image
    expected = sliced(image, side)
    grid = IMAGE_POLICY.grid(size, image_size=side)
    assert len(tiles) == len(expected) == grid.rows * grid.columns
    for tile, pixels in zip(tiles, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(tile), pixels)


def test_odd_remainder_leaves_the_last_row_and_column_one_pixel_short() -> None:
    _, *tiles = overview_and_tiles(picture((501, 999)), IMAGE_POLICY, image_size=336)
    assert [t.size for t in tiles] == [(336, 336), (335, 336)] * 2 + [(336, 335), (335, 335)]


@pytest.mark.parametrize(
    ("size", "grid"),
    [((336, 337), (2, 1)), ((1, 1), (1, 1)), ((1920, 1080), (4, 6)), ((672, 336), (1, 2))],
)
def test_grid_is_rows_by_columns(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert IMAGE_POLICY.grid(size, image_size=336) == grid


def test_borders_are_white_and_the_comparison_sees_another_colour() -> None:
    black = Image.new("RGB", (100, 50), "black")
    _, tile = overview_and_tiles(black, IMAGE_POLICY, image_size=336)
    pixels = np.asarray(tile)
    assert pixels[0].min() == 255
    assert pixels[143:193, 118:218].max() == 0
    assert (pixels == 0).all(axis=-1).sum() == 100 * 50
