"""Images and videos as a caller may give them: brought into lists of sources, and a still's pixels read as RGB.

Pillow alone decodes. Knows no frame of a video, no tile, nothing of what the vision stage takes, and no prompt.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from longllava_trt.core.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MAX_IMAGE_PIXELS",
    "MAX_IMAGE_SIDE",
    "AnyImage",
    "ImageSource",
    "Images",
    "Videos",
    "check_file",
    "image_sources",
    "load_image",
    "read_image_size",
    "video_sources",
]

AnyImage: TypeAlias = "str | os.PathLike[str] | Image.Image | bytes | bytearray | NDArray[np.uint8]"
"""A path, a Pillow image, the bytes of an image file, or pixels [height, width, 3] uint8."""

Images: TypeAlias = "AnyImage | Iterable[AnyImage]"
Videos: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"

ImageSource = str | Path | Image.Image | bytes
"""A file's path, an image that is already open, or the bytes of a file."""

MAX_IMAGE_PIXELS = 178_956_970
"""Largest number of pixels in a header: above it, Pillow itself refuses."""

MAX_IMAGE_SIDE = 32_768
"""Longest side accepted: time grows with its square, even for a thin image of few pixels."""

_VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".flv", ".webm"})

_SINGLE = (str, os.PathLike, Image.Image, bytes, bytearray, memoryview)


def image_sources(images: Images) -> list[ImageSource]:
    """Return images as a list; a single one is a list of one.

    Pixels and bytes are copied, so that a caller may use the memory again.

    Raises:
        InputError: Names the image whose type or shape is wrong.
    """
    is_one = isinstance(images, _SINGLE) or (isinstance(images, np.ndarray) and images.ndim <= 3)
    return [_source(image, i) for i, image in enumerate(_items("images", images, is_one), start=1)]


def video_sources(videos: Videos) -> list[Path]:
    """Return videos as a list of paths; a single one is a list of one.

    Raises:
        InputError: Names the video that is no path.
    """
    paths = []
    is_one = isinstance(videos, str | os.PathLike)
    for i, video in enumerate(_items("videos", videos, is_one), start=1):
        if not isinstance(video, str | os.PathLike):
            raise InputError(f"video {i}: expected a path, got {type(video).__name__}")
        paths.append(Path(video))
    return paths


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


def _items(name: str, given: object, is_one: bool) -> Iterable[object]:
    if is_one:
        return [given]
    if isinstance(given, Mapping | bytes) or not isinstance(given, Iterable):
        raise InputError(
            f"{name}: expected one or a list of them, got {type(given).__name__}; "
            "give paths, or leave them out"
        )
    return given


def _source(image: object, position: int) -> ImageSource:
    if isinstance(image, str | Path | Image.Image | bytes):
        return image
    if isinstance(image, os.PathLike):
        return Path(image)
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return _picture(image, position)
    raise InputError(
        f"image {position}: expected a path, a Pillow image, the bytes of an image file or an array "
        f"[height, width, 3] uint8, got {type(image).__name__}"
    )


def _picture(pixels: NDArray[np.generic], position: int) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(
            f"image {position}: an array must be [height, width, 3] uint8, red first, got "
            f"{list(pixels.shape)} {pixels.dtype}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


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
