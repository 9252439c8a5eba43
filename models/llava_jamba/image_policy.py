"""Image policy of LongLLaVA: a still as it is, then tiles of the tower's own size, row by row."""

from __future__ import annotations

from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.image_policy import Box, TileGrid, ViewTexts

__all__ = ["IMAGE_POLICY", "OverviewAndTiles", "tile_texts"]

_ROW_END = "\n"


class OverviewAndTiles:
    """Overview and tiles, cut from the image on white."""

    background = (255, 255, 255)

    def grid(self, size: tuple[int, int], *, image_size: int) -> TileGrid:
        """Return the fewest tiles that cover an image of this width and height."""
        width, height = size
        return TileGrid(rows=-(-height // image_size), columns=-(-width // image_size))

    def boxes(self, size: tuple[int, int], *, image_size: int) -> list[Box]:
        """Return the tiles' boxes.

        Borders are of equal width on opposite sides. If an odd number of pixels is missing, the
        last row or column of tiles is one pixel smaller, as in the original.
        """
        width, height = size
        grid = self.grid(size, image_size=image_size)
        left = (grid.columns * image_size - width) // 2
        top = (grid.rows * image_size - height) // 2
        right, bottom = width + left, height + top
        return [
            (x, y, min(x + image_size, right), min(y + image_size, bottom))
            for y in range(-top, bottom, image_size)
            for x in range(-left, right, image_size)
        ]

    def texts(self, grid: TileGrid, chat: ChatFormat) -> ViewTexts:
        """Return the text around an overview and its tiles.

        After the overview follow a newline and the rows of tiles, each tile in its own tag; the
        overview's tag closes after all of them, as in the original.
        """
        _, *between, closing = tile_texts(grid, chat.image_open, chat.image_close)
        return ViewTexts((chat.image_open, *between), closing + chat.image_close)


def tile_texts(grid: TileGrid, image_open: str, image_close: str) -> list[str]:
    """Return the texts around an overview and its tiles, inside the overview's tag."""
    row = [image_close + image_open] * (grid.columns - 1)
    texts = ["", _ROW_END + image_open]
    for number in range(grid.rows):
        texts += row
        if number < grid.rows - 1:
            texts.append(image_close + _ROW_END + image_open)
    return [*texts, image_close]


IMAGE_POLICY = OverviewAndTiles()
