"""The table of a needle test as a picture, drawn with Pillow."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from examples.needle.report import NeedleReport
from longllava_trt.core.errors import InputError

__all__ = ["draw_heat_map", "save_heat_map"]

_CELL = (96, 34)
_MARGIN = (90, 70)
"""Left of the table and above it."""
_BELOW = 20
_INK, _PAPER = (32, 32, 32), (255, 255, 255)
_WRONG, _RIGHT = (200, 70, 60), (70, 160, 90)


def draw_heat_map(report: NeedleReport) -> Image.Image:
    """Draw a column a number of images and a row a depth; each cell's colour and text say how many were right."""
    counts, depths = report.image_counts, report.depths
    width = max(_MARGIN[0] + _CELL[0] * len(counts) + _BELOW, 480)
    image = Image.new("RGB", (width, _MARGIN[1] + _CELL[1] * len(depths) + _BELOW), _PAPER)
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    right = sum(trial.is_right for trial in report.trials)
    title = f"needle in a haystack: {right} of {len(report.trials)} right"
    draw.text((10, 8), title, _INK, font)
    draw.text((10, _MARGIN[1] - 26), "depth", _INK, small)
    draw.text((_MARGIN[0], _MARGIN[1] - 42), "images", _INK, small)
    for column, count in enumerate(counts):
        x = _MARGIN[0] + column * _CELL[0]
        draw.text((x + _CELL[0] / 2, _MARGIN[1] - 12), str(count), _INK, small, anchor="mm")
        for row, depth in enumerate(depths):
            y = _MARGIN[1] + row * _CELL[1]
            found, of = report.cell(count, depth)
            box = (x + 1, y + 1, x + _CELL[0] - 2, y + _CELL[1] - 2)
            draw.rectangle(box, fill=_blend(found / of if of else 0))
            middle = (x + _CELL[0] / 2, y + _CELL[1] / 2)
            draw.text(middle, f"{found}/{of}", _PAPER, small, anchor="mm")
    for row, depth in enumerate(depths):
        middle = (_MARGIN[0] - 10, _MARGIN[1] + (row + 0.5) * _CELL[1])
        draw.text(middle, f"{depth:.0%}", _INK, small, anchor="rm")
    return image


def save_heat_map(report: NeedleReport, path: Path) -> None:
    """Write the picture as PNG.

    Raises:
        InputError: If the file cannot be written.
    """
    try:
        draw_heat_map(report).save(path, format="PNG", optimize=True)
    except OSError as err:
        raise InputError(
            f"{path}: cannot be written ({err}); name a file in a folder that exists"
        ) from err


def _blend(share: float) -> tuple[int, int, int]:
    """Return the colour of a share of right answers."""
    red, green, blue = (
        round(bad + share * (good - bad)) for bad, good in zip(_WRONG, _RIGHT, strict=True)
    )
    return red, green, blue
