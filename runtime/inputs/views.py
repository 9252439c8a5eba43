"""The views of one image, as its layout says: the whole image, and tiles of a canvas on which it lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from longllava_trt.models.image_layout import Canvas, ImageLayout
from longllava_trt.runtime.inputs.pixels import ImageProcessorConfig, normalise, preprocess

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["view_pixels"]

_CANVAS_COLOUR = (0, 0, 0)
"""Before pixels are normalised, so that the free part is -mean / std."""


def view_pixels(
    image: Image.Image, layout: ImageLayout, processor: ImageProcessorConfig
) -> NDArray[np.float32]:
    """Return the pixel values of every view of an image.

    Args:
        image: RGB, of the size that the layout was made for.
        layout: Its layout.
        processor: Format of the pixels that the vision stage expects.

    Returns:
        [num_views, 3, image_size, image_size], float32.
    """
    if layout.canvas is None:
        return preprocess(image, processor)[None]
    # the overview takes the whole image, its proportions are not kept
    views = [preprocess(image, replace(processor, fit="stretch"))]
    views += [normalise(tile, processor) for tile in _tiles(image, layout.canvas, processor)]
    return np.stack(views)


def _tiles(
    image: Image.Image, canvas: Canvas, processor: ImageProcessorConfig
) -> Iterator[Image.Image]:
    """Yield the tiles row by row."""
    width, height = canvas.size
    laid = Image.new("RGB", canvas.size, _CANVAS_COLOUR)
    laid.paste(image.resize(canvas.resized, Image.Resampling.BICUBIC), canvas.corner)
    side = processor.image_size
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield laid.crop((left, top, left + side, top + side))
