"""High-resolution stills: an image's overview and its tiles, in memory.

Geometry and pixels only; `longllava_trt.runtime.text.chat.expand_tiles` says where the tiles stand in the text. The original writes each
tile to a JPEG file and reads it back; that loss is not reproduced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

__all__ = ["TILE_SIDE", "TileGrid", "overview_and_tiles", "tile_grid"]

TILE_SIDE = 336
"""Side of a tile in pixels: the vision tower's own."""

_WHITE = (255, 255, 255)


class TileGrid(NamedTuple):
    """How many tiles cover an image."""

    rows: int
    columns: int


def tile_grid(size: tuple[int, int], *, side: int = TILE_SIDE) -> TileGrid:
    """Return the grid that covers an image of this width and height."""
    width, height = size
    return TileGrid(rows=-(-height // side), columns=-(-width // side))


def overview_and_tiles(image: Image.Image, *, side: int = TILE_SIDE) -> Iterator[Image.Image]:
    """Yield the image as it is, then its tiles row by row.

    The tiles are cut from the image on white, with borders of equal width on opposite sides. Where an odd number of
    pixels is missing, that is one short: the last row's or column's tiles are then one pixel smaller, as the original's.

    Args:
        image: RGB.
        side: Side of a tile.
    """
    yield image
    grid = tile_grid(image.size, side=side)
    left, top = (grid.columns * side - image.width) // 2, (grid.rows * side - image.height) // 2
    right, bottom = image.width + left, image.height + top
    for y in range(-top, bottom, side):
        for x in range(-left, right, side):
            yield _on_white(image, (x, y, min(x + side, right), min(y + side, bottom)))


def _on_white(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Cut a box that may reach beyond the image."""
    left, top, right, bottom = box
    inner = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    tile = Image.new("RGB", (right - left, bottom - top), _WHITE)
    tile.paste(image.crop(inner), (inner[0] - left, inner[1] - top))
    return tile
