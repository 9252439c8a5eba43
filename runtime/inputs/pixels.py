"""RGB images to the pixel values the vision stage takes.

Pillow and numpy only. The result must equal that of the original's padding to a square and the
tower's own image processor, so the resampling filter and the rounding to bytes between its two
passes are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from longllava_trt.core.errors import ConfigError
from longllava_trt.core.json_file import read_json_object

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ImageProcessorConfig", "load_processor_config", "preprocess", "preprocess_batch"]

_RESCALE_FACTOR = 0.00392156862745098
_STRIP_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcessorConfig:
    """Format of the pixels that the vision tower expects."""

    image_size: int
    """Side of the square the tower sees, in pixels."""
    image_mean: tuple[float, float, float]
    """Mean of red, green and blue, on a scale of 0 to 1."""
    image_std: tuple[float, float, float]
    """Standard deviation of red, green and blue, on the same scale."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"image processor: size must be positive, got {self.image_size}")
        for name, values in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if len(values) != 3:
                raise ConfigError(f"image processor: {name} must hold 3 numbers, got {values}")
        if not all(0 <= mean <= 1 for mean in self.image_mean):
            raise ConfigError(f"image processor: image_mean must be 0…1, got {self.image_mean}")
        if not all(std > 0 for std in self.image_std):
            raise ConfigError(f"image processor: image_std must be positive, got {self.image_std}")

    @property
    def pad_colour(self) -> tuple[int, int, int]:
        """Colour of the padding: the mean, truncated to bytes; (122, 116, 104) for CLIP."""
        red, green, blue = (int(255 * mean) for mean in self.image_mean)
        return red, green, blue


_FIXED: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": int(Image.Resampling.BICUBIC),
    "rescale_factor": _RESCALE_FACTOR,
}
"""Keys that change the pixels, with the values that older files mean when they leave them out."""

_REQUIRED = ("image_mean", "image_std", "size")

_IGNORED = {"_processor_class", "_valid_processor_keys", "default_to_square", "do_center_crop"} | {
    "feature_extractor_type",
    "image_processor_type",
    "processor_class",
}
"""Keys without influence on a square image whose crop is as large as itself."""


def load_processor_config(bundle: Path) -> ImageProcessorConfig:
    """Read and check a bundle's preprocessor_config.json, in its older or newer spelling.

    Raises:
        ConfigError: Lists every key that is missing, unknown, or has a value that is not supported.
    """
    path = bundle / "preprocessor_config.json"
    raw = read_json_object(path, whose="a bundle carries its image processor's settings")
    problems = [f"missing key '{key}'" for key in _REQUIRED if key not in raw]
    unknown = raw.keys() - _FIXED.keys() - set(_REQUIRED) - _IGNORED - {"crop_size"}
    problems += [f"unknown key '{key}'" for key in sorted(unknown)]
    problems += [
        f"'{key}' must be {want!r}, got {raw[key]!r}"
        for key, want in _FIXED.items()
        if raw.get(key, want) != want
    ]
    size = _side(raw.get("size"))
    if "size" in raw and size is None:
        problems.append(f"'size' must be one positive number or a square, got {raw['size']!r}")
    if "crop_size" in raw and _side(raw["crop_size"]) != size:
        problems.append(f"'crop_size' must equal 'size', got {raw['crop_size']!r}")
    for key in ("image_mean", "image_std"):
        if key in raw and not _is_rgb(raw[key]):
            problems.append(f"'{key}' must be a list of 3 numbers, got {raw[key]!r}")
    if problems or size is None:
        raise ConfigError(f"{path}: " + "; ".join(problems))
    return ImageProcessorConfig(
        image_size=size, image_mean=tuple(raw["image_mean"]), image_std=tuple(raw["image_std"])
    )


def preprocess(image: Image.Image, config: ImageProcessorConfig) -> NDArray[np.float32]:
    """Pad to a square, resize, and normalise.

    Args:
        image: RGB, as `load_image` returns it.
        config: The tower's image processor.

    Returns:
        Pixel values. [3, image_size, image_size], float32.

    Note:
        The official runtime rounds these values to float16 before its float32 tower; they stay
        float32 here.
    """
    square = _resize_on_square(image, config)
    mean, std = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
    pixels = np.asarray(square, dtype=np.float32) * np.float32(_RESCALE_FACTOR)
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


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


def _side(value: Any) -> int | None:
    """Return the side of the square that `size` or `crop_size` describes, or None."""
    if isinstance(value, dict):
        square = value.keys() == {"height", "width"} and value["height"] == value["width"]
        value = value["height"] if square else value.get("shortest_edge")
    is_positive_int = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_positive_int else None


def _is_rgb(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(
            isinstance(number, int | float) and not isinstance(number, bool) for number in value
        )
    )
