"""Settings of an image processor: read from a bundle, and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from longllava_trt.core.errors import ConfigError
from longllava_trt.core.json_file import read_json_object

__all__ = ["RESCALE_FACTOR", "Fit", "ImageProcessorConfig", "load_processor_config"]

Fit: TypeAlias = Literal["pad", "crop", "stretch"]
"""How an image becomes a square: padded with the mean colour and resized; resized by its shorter
side and cropped in the middle; or resized in both directions by themselves."""

RESCALE_FACTOR = 0.00392156862745098
"""Factor of a byte's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcessorConfig:
    """Format of the pixels that the vision tower expects."""

    image_size: int
    """Side of the square the tower sees, in pixels."""
    image_mean: tuple[float, float, float]
    """Mean of red, green and blue, on a scale of 0 to 1."""
    image_std: tuple[float, float, float]
    """Standard deviation of red, green and blue, on the same scale."""
    fit: Fit = "pad"
    """How an image that is not square becomes one."""

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
    "rescale_factor": RESCALE_FACTOR,
}
"""Keys that change the pixels, with the values that older files mean when they leave them out."""

_REQUIRED = ("image_mean", "image_std", "size")

_IGNORED = {"_processor_class", "_valid_processor_keys", "default_to_square"} | {
    "feature_extractor_type",
    "image_grid_pinpoints",
    "image_processor_type",
    "processor_class",
}
"""Keys that say nothing about pixels, or what config.json says."""

_SHAPING = {"crop_size", "do_center_crop", "do_pad"}

_PADS_TO_SQUARE = "LlavaImageProcessor"
"""The one type of image processor whose `do_pad` means a square; others fill up batches by it."""


def load_processor_config(bundle: Path, *, aspect_ratio: str = "pad") -> ImageProcessorConfig:
    """Read and check a bundle's preprocessor_config.json, in its older or newer spelling.

    Args:
        bundle: Folder.
        aspect_ratio: What config.json says of images that are not square: `pad`, or anything else
            for what the image processor says.

    Raises:
        ConfigError: Lists every key that is missing, unknown, or has a value that is not supported.
    """
    path = bundle / "preprocessor_config.json"
    raw = read_json_object(path, whose="a bundle carries its image processor's settings")
    problems = [f"missing key '{key}'" for key in _REQUIRED if key not in raw]
    unknown = raw.keys() - _FIXED.keys() - set(_REQUIRED) - _IGNORED - _SHAPING
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
    fit = "pad" if aspect_ratio == "pad" else _fit(raw)
    if fit is None:
        problems.append(
            "'do_center_crop' must be true where 'size' is of the shortest edge, got false"
        )
    if problems or size is None or fit is None:
        raise ConfigError(f"{path}: " + "; ".join(problems))
    return ImageProcessorConfig(
        image_size=size,
        image_mean=tuple(raw["image_mean"]),
        image_std=tuple(raw["image_std"]),
        fit=fit,
    )


def _fit(raw: dict[str, Any]) -> Fit | None:
    """Return how the image processor itself makes a square; None if it would make none."""
    kind = str(raw.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    if raw.get("do_pad") and kind == _PADS_TO_SQUARE:
        return "pad"
    if isinstance(raw.get("size"), dict) and "height" in raw["size"]:
        return "stretch"
    return "crop" if raw.get("do_center_crop", True) else None


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
