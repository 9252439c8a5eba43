"""From an image's size to its place in the decoder: the views the tower sees, and the order of their rows.

Numbers only, and no pixels: how many positions an image takes is known before anything of it is decoded. Source: section 4
of the LLaVA series' specification.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from longllava_trt.models.image_spec import ConnectorSpec, ImageSpec, VisionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Canvas", "ImageLayout", "PatchGrid", "Size", "best_resolution", "image_layout"]

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """Rows that the tower and the connector make of one view."""

    image_size: int
    """Side of the square that the tower sees, in pixels."""
    side: int
    """Rows of the decoder along one side of a view."""
    extra: int = 0
    """Rows in front of them: 1 where the class token is kept."""

    @classmethod
    def of(cls, vision: VisionSpec, connector: ConnectorSpec) -> PatchGrid:
        """Return what a tower and a connector make."""
        return cls(
            image_size=vision.image_size,
            side=vision.patches_per_side // connector.pooling,
            extra=int(vision.keep_class_token),
        )

    @property
    def num_rows(self) -> int:
        """Rows of one view."""
        return self.side**2 + self.extra


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """Area on which an image lies before it is cut into tiles of the tower's size."""

    size: Size
    """A multiple of the tower's size in both directions."""
    resized: Size
    """Size of the image on it; it lies in the middle, the smaller half of what is free first."""

    @property
    def corner(self) -> Size:
        """Left and top of the image."""
        return (self.size[0] - self.resized[0]) // 2, (self.size[1] - self.resized[1]) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLayout:
    """Views of one image, and its rows in the decoder."""

    num_views: int
    """Inputs of the tower: the whole image, then its tiles row by row."""
    num_positions: int
    """Rows of the decoder."""
    canvas: Canvas | None = None
    """None: the whole image is the only view."""
    order: NDArray[np.int32] | None = None
    """Index of the row at each position, counted over all views; one past the last is the newline.
    [num_positions], int32; not to be written. None: all rows of all views, one after another."""

    def arrange(
        self, rows: NDArray[np.float32], newline: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return the rows of the image in their order.

        Args:
            rows: Of each view, from the projector. [num_views, rows, hidden_size], float32.
            newline: Row that ends a line, where the model has one. [hidden_size], float32.

        Returns:
            [num_positions, hidden_size], float32.
        """
        joined = rows.reshape(-1, rows.shape[-1])
        if self.order is None:
            return joined
        if newline is not None:
            joined = np.concatenate([joined, newline.reshape(1, -1)])
        return joined[self.order]


@lru_cache(maxsize=256)
def image_layout(images: ImageSpec, size: Size, grid: PatchGrid) -> ImageLayout:
    """Return the layout of one image.

    Args:
        images: How the model takes images.
        size: Width and height of the image in pixels.
        grid: What becomes of one view.
    """
    unpad = images.merge == "spatial_unpad"
    if not images.pinpoints:
        num_positions = grid.num_rows + unpad
        order = _fixed(np.arange(num_positions, dtype=np.int32)) if unpad else None
        return ImageLayout(num_views=1, num_positions=num_positions, order=order)
    canvas = _canvas(size, best_resolution(size, images.pinpoints))
    columns, rows = (side // grid.image_size for side in canvas.size)
    num_views = 1 + rows * columns
    if images.merge == "flat":
        return ImageLayout(
            num_views=num_views, num_positions=num_views * grid.num_rows, canvas=canvas
        )
    order = _fixed(_spatial_order(size, rows, columns, grid, unpad=unpad))
    return ImageLayout(num_views=num_views, num_positions=len(order), canvas=canvas, order=order)


def best_resolution(size: Size, pinpoints: tuple[Size, ...]) -> Size:
    """Return the resolution that keeps most of an image, then wastes least, then is listed first."""
    width, height = size

    def worth(target: Size) -> tuple[int, int]:
        # the same floating-point steps as in both other implementations: they decide ties
        scale = min(target[0] / width, target[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - target[0] * target[1]

    return max(pinpoints, key=worth)


def _canvas(size: Size, target: Size) -> Canvas:
    """Return the image as large as fits: the side that binds is equal, the other rounded up."""
    width, height = size
    scale_x, scale_y = target[0] / width, target[1] / height
    if scale_x < scale_y:
        resized = target[0], min(math.ceil(height * scale_x), target[1])
    else:
        resized = min(math.ceil(width * scale_y), target[0]), target[1]
    return Canvas(size=target, resized=resized)


def _spatial_order(
    size: Size, tile_rows: int, tile_columns: int, grid: PatchGrid, *, unpad: bool
) -> NDArray[np.int32]:
    """Return the overview's rows, then the tiles' as one map, line by line."""
    side, view = grid.side, grid.num_rows
    lines = np.arange(tile_rows * side, dtype=np.int32)
    places = np.arange(tile_columns * side, dtype=np.int32)
    if unpad:
        lines, places = _unpadded(size, lines, places)
    tiles = lines[:, None] // side * tile_columns + places[None, :] // side
    inside = lines[:, None] % side * side + places[None, :] % side
    found = (1 + tiles) * view + inside
    if unpad:
        newline = (1 + tile_rows * tile_columns) * view
        found = np.pad(found, ((0, 0), (0, 1)), constant_values=newline)
    return np.concatenate([np.arange(view, dtype=np.int32), found.ravel().astype(np.int32)])


def _fixed(order: NDArray[np.int32]) -> NDArray[np.int32]:
    """Layouts are shared between images, so nobody may write to one."""
    order.flags.writeable = False
    return order


def _unpadded(
    size: Size, lines: NDArray[np.int32], places: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Leave out what holds padding alone. Whole numbers: a rounded quotient would give other counts."""
    width, height = size
    if width * len(lines) > height * len(places):
        padding = (len(lines) - height * len(places) // width) // 2
        return lines[padding : len(lines) - padding], places
    padding = (len(places) - width * len(lines) // height) // 2
    return lines, places[padding : len(places) - padding]
