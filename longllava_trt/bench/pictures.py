"""Images to show: files that were given, or drawn ones."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from longllava_trt.bench.settings import BenchSettings
from longllava_trt.runtime.inputs.sources import load_image

__all__ = ["DRAWN_FILES", "PICTURE_SIZE", "draw_pictures", "in_turns", "shown_pictures"]

DRAWN_FILES = 16
"""Largest number of different images; then they are shown again, and read and decoded again."""
PICTURE_SIZE = (640, 480)
_COARSE = (12, 16, 3)
_SEED = 0


def shown_pictures(settings: BenchSettings, folder: Path) -> tuple[Path, ...]:
    """Return the files to show in turn: given ones, or new ones in ``folder``.

    Raises:
        InputError: If one that was given cannot be used.
    """
    for position, path in enumerate(settings.images, 1):
        load_image(path, position=position)
    if settings.images:
        return settings.images
    return draw_pictures(folder, min(max(settings.image_counts), DRAWN_FILES))


def draw_pictures(folder: Path, count: int) -> tuple[Path, ...]:
    """Write seeded patches of colour, JPEG and PNG in turn; fewer images are the first of more."""
    random = np.random.default_rng(_SEED)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, _COARSE, dtype=np.uint8))
        path = folder / f"{number:02}.{'png' if number % 2 else 'jpg'}"
        coarse.resize(PICTURE_SIZE, Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return tuple(paths)


def in_turns(pictures: tuple[Path, ...], count: int) -> list[Path]:
    """Return N files, in turn."""
    return list(islice(cycle(pictures), count))
