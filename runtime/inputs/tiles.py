"""Tiles of a still in high resolution, cut in memory.

Pixels only: `longllava_trt.models.image_policy` gives the tiles' boxes and the text around them.
The original writes each tile to a JPEG file and reads it back; that loss is not reproduced.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from longllava_trt.models.image_policy import Box, ImagePolicy

__all__ = ["overview_and_tiles"]


def overview_and_tiles(
    image: Image.Image, policy: ImagePolicy, *, image_size: int
) -> Iterator[Image.Image]:
    """Yield the image as it is, then its tiles in the policy's order.

    Args:
        image: RGB.
        policy: Gives the tiles' boxes.
        image_size: Side of the square that the vision tower sees, in pixels.
    """
    yield image
    for box in policy.boxes(image.size, image_size=image_size):
        yield _on_background(image, box, policy.background)


def _on_background(image: Image.Image, box: Box, colour: tuple[int, int, int]) -> Image.Image:
    """Cut a box that may reach beyond the image."""
    left, top, right, bottom = box
    inner = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    tile = Image.new("RGB", (right - left, bottom - top), colour)
    tile.paste(image.crop(inner), (inner[0] - left, inner[1] - top))
    return tile
