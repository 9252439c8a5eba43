"""RGB images to the pixel values the vision stage takes: the whole image, and tiles as its layout says.

Pillow and numpy only. The result equals, to the last bit, that of the original's padding and the
tower's own image processor, so the resampling filter, the rounding to bytes between its two passes
and the arithmetic of a byte's value are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from longllava_trt.models.image_layout import Canvas, ImageLayout
from longllava_trt.runtime.inputs.processor import RESCALE_FACTOR, ImageProcessorConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["normalise", "preprocess", "preprocess_batch", "view_pixels"]

_CANVAS_COLOUR = (0, 0, 0)
"""Before pixels are normalised, so that the free part is -mean / std."""
_STRIP_ROWS = 256
_STRIP_BYTES = 2**24


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


def preprocess(image: Image.Image, config: ImageProcessorConfig) -> NDArray[np.float32]:
    """Make an image a square of the tower's size, and normalise it.

    Args:
        image: RGB, as `load_image` returns it.
        config: The tower's image processor.

    Returns:
        Pixel values. [3, image_size, image_size], float32.

    Note:
        The official runtime rounds these values to float16 before its float32 tower; they stay
        float32 here.
    """
    if config.fit == "pad":
        square = _resize_on_square(image, config)
    elif config.fit == "crop":
        square = _resize_and_crop(image, config.image_size)
    else:
        square = image.resize((config.image_size,) * 2, Image.Resampling.BICUBIC)
    return normalise(square, config)


def normalise(square: Image.Image, config: ImageProcessorConfig) -> NDArray[np.float32]:
    """Return the pixel values of an image of the tower's size. [3, image_size, image_size], float32."""
    pixels, levels = np.asarray(square), _levels(config)
    values = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel, taken in enumerate(values):
        np.take(levels[channel], pixels[..., channel], out=taken)
    return values


@cache
def _levels(config: ImageProcessorConfig) -> NDArray[np.float32]:
    """Return the value of every byte: scaled in float64, rounded, then normalised. [3, 256], float32."""
    scaled = (np.arange(256) * RESCALE_FACTOR).astype(np.float32)
    mean, std = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
    return (scaled - mean[:, None]) / std[:, None]


def preprocess_batch(
    images: Sequence[Image.Image], config: ImageProcessorConfig
) -> NDArray[np.float32]:
    """Return the pixel values of several images; see `preprocess`.

    Returns:
        [num_images, 3, image_size, image_size], float32.
    """
    shape = (len(images), 3, config.image_size, config.image_size)
    pixel_values = np.empty(shape, dtype=np.float32)
    for i, image in enumerate(images):
        pixel_values[i] = preprocess(image, config)
    return pixel_values


def _resize_on_square(image: Image.Image, config: ImageProcessorConfig) -> Image.Image:
    """Pad to a square with the image in its centre, and resize it, without storing the square.

    Pillow resizes the rows first, rounds to bytes, then the columns. Rows are independent of each
    other, so they are padded and resized a strip at a time; rows of padding alone stay as they are.
    The result is bit for bit the same, and memory grows with the longest side instead of its
    square.
    """
    size, colour = config.image_size, config.pad_colour
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    narrowed = Image.new("RGB", (size, side), colour)
    for row in range(0, image.height, _STRIP_ROWS):
        end = min(row + _STRIP_ROWS, image.height)
        strip = Image.new("RGB", (side, end - row), colour)
        strip.paste(image.crop((0, row, image.width, end)), (left, 0))
        strip = strip.resize((size, end - row), Image.Resampling.BICUBIC)
        narrowed.paste(strip, (0, top + row))
    return narrowed.resize((size, size), Image.Resampling.BICUBIC)


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to ``size``, and keep the middle of the longer one.

    As in `_resize_on_square`, what is cut away is not stored: the first of Pillow's two passes is
    cropped before the second, and a tall image takes the second in strips of columns.
    """
    if image.width >= image.height:
        width = int(size * image.width / image.height)
        left = (width - size) // 2
        rows = image.resize((width, image.height), Image.Resampling.BICUBIC)
        rows = rows.crop((left, 0, left + size, image.height))
        return rows.resize((size, size), Image.Resampling.BICUBIC)
    height = int(size * image.height / image.width)
    top = (height - size) // 2
    rows = image.resize((size, image.height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size))
    step = max(_STRIP_BYTES // (3 * height), 1)
    for left in range(0, size, step):
        strip = rows.crop((left, 0, min(left + step, size), image.height))
        strip = strip.resize((strip.width, height), Image.Resampling.BICUBIC)
        square.paste(strip.crop((0, top, strip.width, top + size)), (left, 0))
    return square
