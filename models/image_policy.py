"""Image policy of a model family: the views that a still is cut into, and the text around them.

Plain arithmetic and strings: pixels are cut in `longllava_trt.runtime.inputs.tiles`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

from longllava_trt.models.chat import ChatFormat

__all__ = ["Box", "ImagePolicy", "TileGrid", "ViewTexts"]

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the image; may reach beyond it."""


class TileGrid(NamedTuple):
    """Number of tiles that cover an image."""

    rows: int
    columns: int


class ViewTexts(NamedTuple):
    """Text around the views of one still."""

    openings: tuple[str, ...]
    """Text between the view before and this one, one for each view; the first is the overview's."""
    closing: str
    """Text after the last view."""


class ImagePolicy(Protocol):
    """Rules for a still in high resolution, which is shown as an overview and tiles."""

    background: tuple[int, int, int]
    """Red, green and blue of the part of a tile that is beyond the image."""

    def grid(self, size: tuple[int, int], *, image_size: int) -> TileGrid:
        """Return the tiles of an image.

        Args:
            size: Width and height of the image in pixels.
            image_size: Side of the square that the vision tower sees, in pixels.
        """

    def boxes(self, size: tuple[int, int], *, image_size: int) -> list[Box]:
        """Return the tiles' boxes row by row, for all tiles of `grid`."""

    def texts(self, grid: TileGrid, chat: ChatFormat) -> ViewTexts:
        """Return the text around an overview and its tiles."""
