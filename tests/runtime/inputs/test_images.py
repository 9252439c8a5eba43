"""Pixels against transformers' CLIP image processor on a square that numpy padded, and bad images."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from longllava_trt.core.errors import ConfigError, InputError
from longllava_trt.runtime.inputs import pixels as pixel_values
from longllava_trt.runtime.inputs.pixels import preprocess, preprocess_batch
from longllava_trt.runtime.inputs.processor import ImageProcessorConfig, load_processor_config
from longllava_trt.runtime.inputs.sources import MAX_IMAGE_SIDE, load_image, read_image_size

CLIP = ImageProcessorConfig(
    image_size=336,
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
SIZES = [
    (1, 1),
    (1, 2000),
    (2000, 1),
    (3, 2),
    (2, 3),
    (17, 336),
    (336, 17),
    (335, 337),
    (336, 336),
    (337, 336),
    (511, 640),
    (641, 512),
    (1021, 333),
    (333, 1021),
]
CLIP_JSON: dict[str, Any] = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
# as published with openai/clip-vit-large-patch14-336
CLIP_JSON_OLD: dict[str, Any] = {
    "crop_size": 336,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 336,
}


def noise(width: int, height: int, *, channels: int = 3) -> NDArray[np.uint8]:
    rng = np.random.default_rng([width, height])
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def pad_to_square(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width, _ = pixels.shape
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = (122, 116, 104)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


@pytest.fixture(scope="module")
def oracle() -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = clip.CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )

    def process(square: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = processor(Image.fromarray(square), return_tensors="np")
        return np.asarray(batch["pixel_values"][0])

    return process


Oracle = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@pytest.mark.parametrize(("width", "height"), SIZES, ids=str)
def test_pixels_equal_those_of_the_clip_processor(width: int, height: int, oracle: Oracle) -> None:
    pixels = noise(width, height)
    actual = preprocess(load_image(Image.fromarray(pixels), position=1), CLIP)
    assert actual.shape == (3, 336, 336)
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    np.testing.assert_allclose(actual, oracle(pad_to_square(pixels)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("width", "height"), [(97, 2 * 256 + 1), (300, 256), (20, 4001)], ids=["odd", "even", "long"]
)
def test_strips_of_rows_give_the_whole_square_to_the_bit(width: int, height: int) -> None:
    pixels = noise(width, height)
    square = Image.fromarray(pad_to_square(pixels))
    whole = np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC))
    strips = pixel_values._resize_on_square(Image.fromarray(pixels), CLIP)
    np.testing.assert_array_equal(np.asarray(strips), whole)


@pytest.mark.parametrize("fault", ["ceil-offset", "black-pad", "bilinear"])
def test_comparison_notices_a_wrong_recipe(fault: str, oracle: Oracle) -> None:
    pixels = noise(200, 101)
    square = pad_to_square(pixels)
    if fault == "ceil-offset":
        square = np.roll(square, 1, axis=0)
    elif fault == "black-pad":
        square[:49] = 0
    else:
        small = Image.fromarray(square).resize((336, 336), Image.Resampling.BILINEAR)
        square = np.asarray(small)
    actual = preprocess(Image.fromarray(pixels), CLIP)
    assert np.abs(actual - oracle(square)).max() > 0.01


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "PA"])
def test_other_modes_are_made_rgb_before_the_padding(mode: str, oracle: Oracle) -> None:
    image = Image.fromarray(noise(50, 31)).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    actual = preprocess(load_image(image, position=1), CLIP)
    np.testing.assert_allclose(actual, oracle(pad_to_square(expected)), rtol=0, atol=1e-6)


def test_alpha_is_dropped_and_not_blended() -> None:
    pixels = noise(9, 7, channels=4)
    loaded = load_image(Image.fromarray(pixels, "RGBA"), position=1)
    np.testing.assert_array_equal(np.asarray(loaded), pixels[..., :3])


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    grey = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "depth.png")
    loaded = np.asarray(load_image(tmp_path / "depth.png", position=1))
    np.testing.assert_array_equal(loaded, np.repeat([[[0], [0], [1], [128], [255]]], 3, axis=2))


def test_palette_with_transparency_keeps_its_colours_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(noise(8, 8)).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    image.save(tmp_path / "icon.png", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(tmp_path / "icon.png", position=1)
    np.testing.assert_array_equal(np.asarray(loaded), expected)


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(30, 20)).save(tmp_path / "phone.png", exif=exif)
    assert load_image(tmp_path / "phone.png", position=1).size == (30, 20)


def test_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (5, 5), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    assert load_image(tmp_path / "two.gif", position=1).getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("as_type", [str, Path])
@pytest.mark.parametrize("name", ["a.png", "b.bmp", "c.webp", "no-suffix"])
def test_file_gives_the_same_pixels_as_the_image_in_it(
    tmp_path: Path, name: str, as_type: Callable[[Path], str | Path]
) -> None:
    image = Image.fromarray(noise(21, 13))
    formats = {".bmp": "BMP", ".webp": "WEBP"}
    image.save(tmp_path / name, formats.get(Path(name).suffix, "PNG"), lossless=True)
    loaded = load_image(as_type(tmp_path / name), position=1)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image))


def test_batch_stacks_single_images_of_any_size() -> None:
    stills = [Image.fromarray(noise(width, height)) for width, height in SIZES[3:7]]
    batch = preprocess_batch(stills, CLIP)
    assert batch.shape == (4, 3, 336, 336)
    assert batch.dtype == np.float32
    for row, still in zip(batch, stills, strict=True):
        np.testing.assert_array_equal(row, preprocess(still, CLIP))
    assert preprocess_batch([], CLIP).shape == (0, 3, 336, 336)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that announces a size and holds almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 48)).save(buffer, image_format)
    return buffer.getvalue()


BAD_FILES = {
    "zero-bytes": (b"", "photo.jpg", r"empty \(0 bytes\)"),
    "text": (b"hello, this is no image\n" * 9, "notes.txt", "not an image in a format"),
    "text-named-jpg": (b"<html>404</html>", "photo.jpg", "not an image in a format"),
    "video": (b"\0\0\0\x18ftypmp42" + b"\0" * 64, "clip.MP4", "this is a video"),
    "truncated-jpeg": (encoded("JPEG")[:900], "photo.jpg", "cut off or damaged"),
    "truncated-png": (encoded("PNG")[:900], "photo.png", "cut off or damaged"),
    "header-only": (encoded("PNG")[:20], "photo.png", "header cannot be read"),
    "bomb": (png_header(100_000, 100_000), "bomb.png", "too large"),
    "bomb-above-our-limit": (png_header(13_378, 13_378), "bomb.png", "too large"),
    "thin-bomb": (png_header(1, 40_000), "thin.png", "too large"),
    "no-pixels": (png_header(0, 5), "none.png", "not an image in a format"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_one_clear_paragraph(tmp_path: Path, case: str) -> None:
    content, name, message = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_image(path, position=3)
    assert str(caught.value).startswith(f"image 3 ({path}): ")
    assert "\n" not in str(caught.value)


def test_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(InputError, match="20000x20000 is too large"):
        load_image(tmp_path / "bomb.png", position=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "No such file"),
        (".", "expected a file"),
        ("nul\0byte.png", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
    ],
    ids=["missing", "folder", "nul", "endless-name"],
)
def test_bad_path_is_reported(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_image(tmp_path / name, position=2)
    assert str(caught.value).startswith("image 2 (")


@pytest.mark.parametrize("source", [None, 7, np.zeros((4, 4, 3))], ids=lambda s: type(s).__name__)
def test_unsupported_source_is_reported(source: Any) -> None:
    with pytest.raises(InputError, match="image 1: expected a path, bytes or a Pillow image"):
        load_image(source, position=1)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (0, 5)), "has no pixels"),
        (Image.new("1", (MAX_IMAGE_SIDE + 1, 1)), "too large"),
        (Image.new("F", (4, 4)), "32-bit"),
        (Image.new("I", (4, 4)), "32-bit"),
    ],
    ids=["no-pixels", "too-long", "float", "int32"],
)
def test_bad_image_object_is_reported(image: Image.Image, message: str) -> None:
    with pytest.raises(InputError, match=f"image 4: .*{message}"):
        load_image(image, position=4)


def write_config(folder: Path, raw: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


SQUARE_SIZE = CLIP_JSON | {"size": {"height": 336, "width": 336}}


@pytest.mark.parametrize(
    "raw", [CLIP_JSON, CLIP_JSON_OLD, SQUARE_SIZE], ids=["new", "published", "height-width"]
)
def test_config_is_read_in_every_spelling(tmp_path: Path, raw: dict[str, Any]) -> None:
    config = load_processor_config(write_config(tmp_path, raw))
    assert config == CLIP
    assert config.pad_colour == (122, 116, 104)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 2}, "'resample' must be 3, got 2"),
        ({"do_normalize": False}, "'do_normalize' must be True"),
        ({"rescale_factor": 0.5}, "'rescale_factor' must be 0.0039"),
        ({"size": {"height": 336, "width": 224}}, "'size' must be"),
        ({"size": {"longest_edge": 336}}, "'size' must be"),
        ({"size": True}, "'size' must be"),
        ({"size": 0}, "'size' must be"),
        ({"crop_size": 224}, "'crop_size' must equal 'size'"),
        ({"image_mean": [0.5, 0.5]}, "'image_mean' must be a list of 3"),
        ({"image_std": [1, "x", 1]}, "'image_std' must be a list of 3"),
        ({"image_std": [0.2, 0, 0.2]}, "image_std must be positive"),
        ({"image_mean": [104, 116, 122]}, "image_mean must be 0…1"),
        ({"do_flip": True, "zoom": 2}, "unknown key 'do_flip'; unknown key 'zoom'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_config_that_cannot_be_honoured_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_processor_config(write_config(tmp_path, CLIP_JSON | change))


def test_every_missing_key_is_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'image_mean'.*'image_std'.*'size'"):
        load_processor_config(write_config(tmp_path, {}))


@pytest.mark.parametrize("content", [None, "", "[1]"], ids=["missing", "empty", "list"])
def test_unreadable_config_is_reported(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        load_processor_config(tmp_path)


def test_size_is_read_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (61, 40)).save(path, exif=exif)
    shown = load_image(path, position=1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    assert read_image_size(path, position=1) == shown.size == (61, 40)
    with pytest.raises(InputError, match=r"image 3 .*cannot be opened"):
        read_image_size(tmp_path / "none.png", position=3)
