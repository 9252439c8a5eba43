"""Pixels of the LLaVA series' views, to the last bit, against transformers' Pillow processors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from longllava_trt.models.image_layout import ImageLayout, PatchGrid, image_layout
from longllava_trt.models.spec import ImageSpec
from longllava_trt.runtime.inputs import pixels as pixel_values
from longllava_trt.runtime.inputs.pixels import preprocess, view_pixels
from longllava_trt.runtime.inputs.processor import ImageProcessorConfig
from longllava_trt.runtime.inputs.sources import load_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RELEASED = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
HD = [[224 * h, 224 * w] for h in range(1, 7) for w in range(1, 7) if h * w <= 6]
PHOTOGRAPHS = [
    "astronaut.png",
    "hubble_deep_field.jpg",
    "coffee.png",
    "rocket.jpg",
    "chelsea.png",
    "camera.png",
    "page.png",
]
PORTRAITS = [("coffee.png", (200, 0, 301, 400)), ("rocket.jpg", (0, 3, 57, 420))]
SMALL = [("chelsea.png", (10, 20, 310, 140)), ("astronaut.png", (20, 3, 351, 500))]
ODD = [
    *[(1, 1), (1, 2), (2, 1), (5000, 20), (20, 5000), (336, 336), (337, 337), (335, 337)],
    *[(224, 224), (225, 223), (672, 336), (336, 672), (1009, 336), (17, 1300), (333, 777)],
]


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(size)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def photograph(name: str, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image is not installed: pixels of photographs stay unproven")
    image = Image.open(Path(spec.origin).parent / "data" / name)
    return image.crop(box) if box else image


def images() -> list[Any]:
    every = {name: partial(photograph, name) for name in PHOTOGRAPHS}
    every |= {f"{name}{box}": partial(photograph, name, box) for name, box in PORTRAITS + SMALL}
    made = {f"{w}x{h}": partial(noise, (w, h)) for w, h in ODD}
    made |= {mode: partial(noise, (301, 450), mode) for mode in ("L", "RGBA", "LA", "P")}
    return [pytest.param(make, id=name) for name, make in (every | made).items()]


def test_there_are_thirty_images() -> None:
    assert len(images()) >= 30


@cache
def processor(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    side = 224 if kind == "hd" else 336
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if kind in {"crop", "pad"}:
        return transformers.LlavaImageProcessorPil(**sizes, do_pad=kind == "pad")
    pinpoints = HD if kind == "hd" else RELEASED
    return transformers.LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=pinpoints)


def expected(kind: str, image: Image.Image) -> NDArray[np.float32]:
    # an image of few pixels does not show which of its axes is the colour
    batch = processor(kind)(image, return_tensors="np", input_data_format="channels_last")
    pixels = np.asarray(batch["pixel_values"])
    return pixels if kind in {"crop", "pad"} else pixels[0]


def actual(kind: str, image: Image.Image) -> NDArray[np.float32]:
    side = 224 if kind == "hd" else 336
    config = ImageProcessorConfig(
        image_size=side, image_mean=MEAN, image_std=STD, fit="pad" if kind == "pad" else "crop"
    )
    rgb = load_image(image, position=1)
    return view_pixels(rgb, layout_of(kind, rgb.size), config)


def layout_of(kind: str, size: tuple[int, int]) -> ImageLayout:
    if kind in {"crop", "pad"}:
        return image_layout(ImageSpec(), size, PatchGrid(image_size=336, side=24))
    pinpoints = tuple((w, h) for h, w in (HD if kind == "hd" else RELEASED))
    spec = ImageSpec(aspect_ratio="anyres", pinpoints=pinpoints, merge="spatial_unpad")
    side = 224 if kind == "hd" else 336
    return image_layout(spec, size, PatchGrid(image_size=side, side=side // 14))


@pytest.mark.parametrize("make", images())
@pytest.mark.parametrize("kind", ["crop", "pad", "next", "hd"])
def test_views_equal_those_of_transformers_to_the_bit(
    kind: str, make: Callable[[], Image.Image]
) -> None:
    image = make()
    found, wanted = actual(kind, image), expected(kind, image.convert("RGB"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("fault", ["overview-last", "transposed", "kept-aspect", "white"])
def test_the_comparison_notices_a_wrong_recipe(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise((640, 480))
    wanted = expected("next", image)
    if fault == "kept-aspect":
        kept = lambda picture, config: preprocess(picture, replace(config, fit="pad"))  # noqa: E731
        monkeypatch.setattr(pixel_values, "preprocess", kept)
    elif fault == "white":
        monkeypatch.setattr(pixel_values, "_CANVAS_COLOUR", (255, 255, 255))
    found = actual("next", image)
    if fault == "overview-last":
        found = np.roll(found, -1, axis=0)
    elif fault == "transposed":
        found = found[[0, 1, 3, 2, 4]]
    assert not np.array_equal(found, wanted)
