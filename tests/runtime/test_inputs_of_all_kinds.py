"""Python callers may give every kind of image; everything else gets an error of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.inputs.media import MediaOptions
from longllava_trt.runtime.inputs.sources import image_sources, video_sources
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.sampling import SamplingParams

PIXELS = np.random.default_rng(3).integers(0, 256, (21, 34, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> LongLLaVA:
    return LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "a.png"
    Image.fromarray(PIXELS).save(path)
    return path


def reused(path: Path) -> Iterator[Any]:
    """Yield one array, and write over it afterwards."""
    pixels = PIXELS.copy()
    yield pixels
    pixels[:] = 0


KINDS: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "path": lambda p: p,
    "list": lambda p: [p],
    "tuple": lambda p: (str(p),),
    "picture": lambda _: Image.fromarray(PIXELS),
    "bytes": lambda p: p.read_bytes(),
    "bytearray": lambda p: [bytearray(p.read_bytes())],
    "array": lambda _: PIXELS,
    "sliced-array": lambda _: [np.repeat(PIXELS, 2, axis=0)[::2]],
    "stack": lambda _: PIXELS[None],
    "generator": reused,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_the_same_image(model: LongLLaVA, path: Path, kind: str) -> None:
    expected = model.session().score("What?", [5, 7], images=[path])
    found = model.session().score("What?", [5, 7], images=KINDS[kind](path))
    np.testing.assert_array_equal(found, expected)


def test_bytes_may_be_tiled(model: LongLLaVA, path: Path) -> None:
    media = MediaOptions(high_resolution=True)
    session = model.session(media=media)
    session.ingest(path.read_bytes())
    assert session.num_images == 2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (7, "images: expected one or a list of them, got int"),
        (None, "images: expected one or a list of them, got NoneType"),
        ({"a": "b"}, "images: expected one or a list of them, got dict"),
        ([None], "image 1: expected a path, a Pillow image"),
        (["a.png", 3.5], "image 2: expected a path, .* got float"),
        (PIXELS.astype(np.float32), r"image 1: an array must be \[height, width, 3\] uint8"),
        (PIXELS[..., 0], r"got \[21, 34\] uint8"),
        (np.zeros((0, 4, 3), np.uint8), r"got \[0, 4, 3\] uint8"),
    ],
    ids=str,
)
def test_what_is_no_image_is_named(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        image_sources(images)


def test_bytes_that_are_no_image_are_named(model: LongLLaVA) -> None:
    with pytest.raises(InputError, match="image 1: not an image in a format Pillow knows"):
        model.generate("What?", b"nothing")
    with pytest.raises(InputError, match="image 1: the file is empty"):
        model.generate("What?", b"")


def test_a_text_is_one_video(path: Path) -> None:
    assert video_sources("film.mp4") == [Path("film.mp4")]
    assert video_sources(iter([path])) == [path]
    for wrong in (7, b"film.mp4", {"a": 1}):
        with pytest.raises(InputError, match="videos: expected one or a list of them"):
            video_sources(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="video 1: expected a path, got int"):
        video_sources([7])  # type: ignore[list-item]


OPEN: Any = LongLLaVA.from_bundle

CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "query": (lambda m: m.generate(b"Hi"), "prompt: expected a text, got bytes"),
    "no-query": (lambda m: m.generate(None), "prompt: expected a text, got NoneType"),
    "sampling": (lambda m: m.generate("Hi", sampling={"top_k": 1}), "expected SamplingParams"),
    "media": (lambda m: m.generate("Hi", media={"max_frames": 1}), "expected MediaOptions"),
    "tokens": (lambda m: m.generate("Hi", max_new_tokens="9"), "max_new_tokens must be at least 1"),
    "options": (lambda _: OPEN("b", {"a": 1}), "options: expected RunOptions"),
    "bundle": (lambda _: OPEN(7), "bundle: expected a folder's path, got int"),
    "score": (lambda m: m.session().score("Hi", 7), "token_ids must be a list of ids"),
    "score-none": (lambda m: m.session().score("Hi", []), "at least one"),
    "score-id": (lambda m: m.session().score("Hi", [1, 512]), "from 0 to 511, .* got 512"),
    "score-text": (lambda m: m.session().score("Hi", ["a"]), "from 0 to 511, .* got 'a'"),
    "rewind": (lambda m: m.session().rewind("0"), "rewind: must be from 0 to 0, .* got '0'"),
    "rewind-bool": (lambda m: m.session().rewind(False), "rewind: must be from 0 to 0"),
    "every": (lambda m: m.session(checkpoint_every="4"), "checkpoint_every must be at least 1"),
}


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_wrong_types_are_our_errors(
    model: LongLLaVA, call: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(model)


WRONG: list[tuple[Any, str, Any]] = [
    (RunOptions, "backend", 3),
    (RunOptions, "kernels", "quick"),
    (RunOptions, "kernels", None),
    (RunOptions, "num_threads", 0),
    (RunOptions, "num_threads", "2"),
    (RunOptions, "chunk_size", 1.5),
    (RunOptions, "vision_batch", True),
    (RunOptions, "max_context", "4096"),
    (SamplingParams, "temperature", "hot"),
    (SamplingParams, "temperature", None),
    (SamplingParams, "top_k", 2.0),
    (SamplingParams, "top_p", "1"),
    (SamplingParams, "repetition_penalty", 1e9),
    (SamplingParams, "seed", 1.0),
    (SamplingParams, "stop", [7]),
    (SamplingParams, "stop", 7),
    (SamplingParams, "max_new_tokens", "9"),
    (SamplingParams, "min_new_tokens", None),
    (MediaOptions, "high_resolution", "yes"),
    (MediaOptions, "official_compat", 1),
    (MediaOptions, "seconds_per_frame", "1"),
    (MediaOptions, "max_frames", 2.5),
    (MediaOptions, "on_broken", 7),
]
VALUES: dict[str, tuple[Callable[[], Any], str]] = {
    f"{made.__name__}-{name}-{value}": (partial(made, **{name: value}), name)
    for made, name, value in WRONG
}


@pytest.mark.parametrize(("make", "name"), VALUES.values(), ids=VALUES)
def test_wrong_option_values_name_the_option(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be"):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    size: Any = np.int64(64)
    half: Any = np.float32(0.5)
    assert RunOptions(chunk_size=size).chunk_size == 64
    assert SamplingParams(temperature=half, top_k=size).top_k == 64


def test_kernels_have_an_old_name() -> None:
    assert RunOptions(kernels="bodies") == RunOptions(kernels="onnx")
    assert RunOptions(kernels="bodies").kernels == "onnx"
