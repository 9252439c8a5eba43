"""Still images: from a file or a PIL image to RGB, or to an error that names it.

Uses Pillow only. Knows nothing about video, tiles, the vision stage or the prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from longllava_trt.core.errors import InputError

__all__ = [
    "MAX_IMAGE_PIXELS",
    "MAX_IMAGE_SIDE",
    "ImageSource",
    "check_file",
    "load_image",
    "read_image_size",
]

ImageSource = str | Path | Image.Image | bytes
"""A file's path, an image that is already open, or the bytes of a file."""

MAX_IMAGE_PIXELS = 178_956_970
"""Largest number of pixels in a header: above it, Pillow itself refuses."""

MAX_IMAGE_SIDE = 32_768
"""Longest side accepted: time grows with its square, even for a thin image of few pixels."""

_VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".flv", ".webm"})


def load_image(source: ImageSource, *, position: int) -> Image.Image:
    """Read one still image as RGB.

    Alpha is dropped, not blended; 16-bit grey keeps its upper byte; an animation gives its first
    frame. The size in the header is checked before anything is decoded.

    Args:
        source: A file's path, an image that is already open, or the bytes of a file.
        position: The image's place among the user's images, counted from 1; errors name it.

    Raises:
        InputError: Names the position and the path, and the image's fault.
    """
    with _opened(source, position) as (image, where):
        return _convert_to_rgb(image, where)


def read_image_size(source: ImageSource, *, position: int) -> tuple[int, int]:
    """Return one still image's width and height, from its header alone; see `load_image`."""
    with _opened(source, position) as (image, _):
        return image.size


@contextmanager
def _opened(source: ImageSource, position: int) -> Iterator[tuple[Image.Image, str]]:
    """Yield an open image of acceptable size, and its name in errors."""
    if isinstance(source, Image.Image):
        where = f"image {position}"
        _check_size(source.size, where)
        yield source, where
        return
    if isinstance(source, bytes):
        where = f"image {position}"
        if not source:
            raise InputError(f"{where}: the file is empty (0 bytes)")
        opened = _read_header(BytesIO(source), where)
    elif isinstance(source, str | Path):
        path = Path(source)
        where = f"image {position} ({path})"
        check_file(path, where)
        opened = _read_header(path, where)
    else:
        raise InputError(
            f"image {position}: expected a path, bytes or a Pillow image, got {type(source).__name__}"
        )
    with opened as image:
        _check_size(image.size, where)
        yield image, where


def _read_header(file: Path | BytesIO, where: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # the caller checks our own limit; Pillow warns at half of it
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file)
    except UnidentifiedImageError as err:
        raise InputError(f"{where}: {_explain_unidentified(file)}") from err
    except Image.DecompressionBombError as err:
        raise InputError(f"{where}: too large ({err}); scale it down first") from err
    except Exception as err:
        # header parsers of about thirty formats raise many kinds of exceptions
        raise InputError(f"{where}: its header cannot be read ({err}); check the file") from err


def _convert_to_rgb(image: Image.Image, where: str) -> Image.Image:
    # the EXIF orientation is ignored, as in the original, which sees the pixels as they are stored
    if image.mode in ("I", "F"):
        raise InputError(
            f"{where}: pixels are 32-bit (mode {image.mode}), whose range is not known; "
            "save it with 8 bits a channel"
        )
    try:
        if image.mode.startswith("I;16"):
            # Pillow's own conversion clips at 255, which turns almost every 16-bit picture white
            image = Image.fromarray((np.asarray(image.convert("I")) >> 8).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            # converting directly to RGB gives the same colours and a warning
            image = image.convert("RGBA")
        return image.convert("RGB")
    except Exception as err:
        # decoders of about thirty formats raise many kinds of exceptions
        raise InputError(f"{where}: cannot be decoded ({err}); is it cut off or damaged?") from err


def check_file(path: Path, where: str) -> None:
    """Raise an error if a path is no file or the file is empty.

    Raises:
        InputError: Begins with ``where``.
    """
    try:
        num_bytes = path.stat().st_size
    except (OSError, ValueError) as err:
        raise InputError(f"{where}: cannot be opened ({err}); check the path") from err
    if not path.is_file():
        raise InputError(f"{where}: expected a file, got a folder or a device; name one file")
    if num_bytes == 0:
        raise InputError(f"{where}: the file is empty (0 bytes); was its download cut off?")


def _check_size(size: tuple[int, int], where: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{where}: has no pixels ({width}x{height})")
    if width * height > MAX_IMAGE_PIXELS or max(size) > MAX_IMAGE_SIDE:
        raise InputError(
            f"{where}: {width}x{height} is too large; at most {MAX_IMAGE_PIXELS:,} pixels and "
            f"{MAX_IMAGE_SIDE:,} a side are accepted: scale it down first"
        )


def _explain_unidentified(file: Path | BytesIO) -> str:
    if isinstance(file, Path) and file.suffix.lower() in _VIDEO_SUFFIXES:
        return "this is a video, and a still image is expected; show it with --video (in Python: videos=)"
    return "not an image in a format Pillow knows; give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
