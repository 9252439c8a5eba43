"""Images and videos in any form that a caller may give, as lists of sources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.inputs.image_files import ImageSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AnyImage", "Images", "Videos", "image_sources", "video_sources"]

AnyImage: TypeAlias = "str | os.PathLike[str] | Image.Image | bytes | bytearray | NDArray[np.uint8]"
"""A path, a Pillow image, the bytes of an image file, or pixels [height, width, 3] uint8."""

Images: TypeAlias = "AnyImage | Iterable[AnyImage]"
Videos: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"

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
