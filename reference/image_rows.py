"""Rows of one image from its views, as the LLaVA series does it: tensors are reshaped, cut and joined.

The reference for the index lists of `longllava_trt.models.image_layout`.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from longllava_trt.models.image_layout import ImageLayout, Size
from longllava_trt.reference.model import LongLLaVA

__all__ = ["image_rows", "merge_views"]


def image_rows(model: LongLLaVA, pixels: Tensor, layout: ImageLayout, size: Size) -> Tensor:
    """Return the rows of one image for the decoder.

    Args:
        model: The model.
        pixels: Pixel values of its views. [num_views, 3, image_size, image_size], float32.
        layout: Says on which canvas its tiles lie.
        size: Width and height of the image in pixels.

    Returns:
        [num_positions, hidden_size], T.
    """
    views = model.project(model.encode_images(pixels))
    images, side = model.config.images, model.config.require_vision().image_size
    tiles = (0, 0)
    if layout.canvas is not None:
        tiles = layout.canvas.size[1] // side, layout.canvas.size[0] // side
    newline = model.image_newline if images.merge == "spatial_unpad" else None
    return merge_views(views, tiles, size, newline, is_map=images.merge != "flat")


def merge_views(
    views: Tensor, tiles: tuple[int, int], size: Size, newline: Tensor | None, *, is_map: bool
) -> Tensor:
    """Join the rows of an overview and its tiles.

    Args:
        views: The overview, then the tiles row by row. [num_views, rows, hidden_size], T.
        tiles: Rows and columns of tiles; zeros if there is the overview alone.
        size: Width and height of the image in pixels.
        newline: Row behind each line of the map, which is then cut to the image; None for neither.
            [hidden_size], T.
        is_map: Lines go through all tiles beside each other, instead of tile after tile.

    Returns:
        [num_positions, hidden_size], T.
    """
    if not is_map:
        return views.flatten(0, 1)
    if len(views) == 1:
        return views[0] if newline is None else torch.cat([views[0], newline[None]])
    side = round(views.shape[1] ** 0.5)
    grid = views[1:].unflatten(0, tiles).unflatten(2, (side, side))
    whole = grid.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2)
    if newline is not None:
        whole = _unpad(whole, size)
        column = newline.expand(whole.shape[0], 1, -1)
        whole = torch.cat([whole, column], dim=1)
    return torch.cat([views[0], whole.flatten(0, 1)])


def _unpad(whole: Tensor, size: Size) -> Tensor:
    """Cut a map [lines, places, hidden_size] to the shape of an image that lies in its middle."""
    lines, places = whole.shape[:2]
    proportion = Fraction(*size)
    if proportion > Fraction(places, lines):
        free = (lines - int(places / proportion)) // 2
        return whole[free : lines - free]
    free = (places - int(lines * proportion)) // 2
    return whole[:, free : places - free]
