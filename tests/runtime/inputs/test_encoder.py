"""The ring decodes ahead, but never far, in order, and past what is broken; chunks hold what the pieces held."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from longllava_trt.core.errors import InputError
from longllava_trt.models.image_layout import PatchGrid
from longllava_trt.models.image_spec import ImageSpec
from longllava_trt.models.llava_jamba.image_policy import IMAGE_POLICY
from longllava_trt.runtime.backends.ort.decoder import Decoder, DecoderState
from longllava_trt.runtime.inputs import encoder as ingest
from longllava_trt.runtime.inputs import pixels
from longllava_trt.runtime.inputs.encoder import (
    DecodedImage,
    EncodedImage,
    ImageEncoder,
    Projected,
    decode_images,
)
from longllava_trt.runtime.inputs.images import ImageInput, ViewCutter
from longllava_trt.runtime.inputs.pixels import preprocess
from longllava_trt.runtime.inputs.processor import ImageProcessorConfig
from longllava_trt.runtime.prefill import ChunkedPrefill, PrefillChunker
from longllava_trt.runtime.timings import StageTimer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

PROCESSOR = ImageProcessorConfig(
    image_size=8, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5)
)


CUTTER = ViewCutter(
    ImageSpec(aspect_ratio="pad"),
    PatchGrid(image_size=PROCESSOR.image_size, side=2),
    IMAGE_POLICY,
)


def shown(source: Path | Image.Image, position: int = 1) -> tuple[ImageInput]:
    return (ImageInput(source=source, position=position, opening="", ending=""),)


def write_stills(folder: Path, count: int) -> list[Path]:
    """Write grey stills, each a little brighter; the first is large, so that it is decoded last."""
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("L", (900, 900) if i == 0 else (9, 9), 5 * i).save(path)
    return paths


def ahead(
    paths: list[Path], *, workers: int = 4, depth: int = 6
) -> Iterator[DecodedImage | InputError]:
    groups = [shown(path, i) for i, path in enumerate(paths, start=1)]
    return decode_images(
        groups, processor=PROCESSOR, cutter=CUTTER, num_workers=workers, depth=depth
    )


@pytest.mark.parametrize("depth", [1, 3, 40])
def test_order_is_that_of_the_images(tmp_path: Path, depth: int) -> None:
    found = [
        i for i in ahead(write_stills(tmp_path, 13), depth=depth) if isinstance(i, DecodedImage)
    ]
    levels = [image.pixels.mean() for image in found]
    assert len(levels) == 13
    assert levels == sorted(levels)
    assert all(image.seconds > 0 for image in found)


def test_a_broken_image_takes_its_place_and_no_other(tmp_path: Path) -> None:
    paths = write_stills(tmp_path, 5)
    paths[2].write_bytes(paths[2].read_bytes()[:50])
    found = list(ahead(paths))
    assert [isinstance(image, InputError) for image in found] == [False, False, True, False, False]
    assert str(found[2]).startswith(f"image 3 ({paths[2]}): ")


def test_only_so_many_are_decoded_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    lock = threading.Lock()

    def counted(image: Image.Image, config: ImageProcessorConfig) -> NDArray[np.float32]:
        with lock:
            decoded.append(1)
        return preprocess(image, config)

    monkeypatch.setattr(pixels, "preprocess", counted)
    ring = ahead(write_stills(tmp_path, 30), depth=5)
    for taken in range(1, 11):
        next(ring)
        assert len(decoded) <= taken + 4
    ring.close()  # type: ignore[attr-defined]
    assert len(decoded) < 20


def test_threads_end_with_the_ring(tmp_path: Path) -> None:
    before = threading.active_count()
    ring = ahead(write_stills(tmp_path, 9))
    next(ring)
    ring.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


class RecordingDecoder:
    """Keeps what it is fed."""

    def __init__(self) -> None:
        self.chunks: list[NDArray[np.float32]] = []

    def step(self, inputs_embeds: NDArray[np.float32], state: DecoderState) -> NDArray[np.float32]:
        self.chunks.append(inputs_embeds[0])
        state.advance(inputs_embeds.shape[1])
        return np.zeros(1, np.float32)


def fed(lengths: list[int], plan: PrefillChunker) -> list[NDArray[np.float32]]:
    decoder = RecordingDecoder()
    feeder = ChunkedPrefill(
        cast("Decoder", decoder),
        DecoderState((), capacity=1),
        plan=plan,
        timings=StageTimer(),
        on_fed=lambda _: None,
    )
    for piece in pieces(lengths):
        feeder.push(piece)
    feeder.flush()
    return decoder.chunks


def pieces(lengths: list[int]) -> list[NDArray[np.float32]]:
    rows = np.arange(2 * sum(lengths), dtype=np.float32).reshape(-1, 2)
    return np.split(rows, np.cumsum(lengths)[:-1]) if lengths else []


@given(lengths=st.lists(st.integers(0, 40), max_size=8), size=st.integers(1, 17))
def test_chunks_concatenate_to_the_pieces(lengths: list[int], size: int) -> None:
    chunks = fed(lengths, PrefillChunker(longest=size, num_heads=1, weight_bytes=0))
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= size for chunk in chunks)
    joined = np.concatenate(chunks) if chunks else np.empty((0, 2), np.float32)
    want = np.concatenate(pieces(lengths)) if lengths else joined
    np.testing.assert_array_equal(joined, want)


def test_chunks_become_shorter_so_that_scores_keep_their_size() -> None:
    plan = PrefillChunker(longest=512, num_heads=32, weight_bytes=0)
    sizes = [plan.size_at(past) for past in (0, 1000, 10_000, 40_000, 10_000_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[1] > sizes[2] > sizes[-1] == 1
    scores = [size * past for size, past in zip(sizes[1:4], (1000, 10_000, 40_000), strict=True)]
    assert max(scores) * 32 * 12 <= 16 * 2**20
    large = PrefillChunker(longest=512, num_heads=32, weight_bytes=36 * 10**9)
    assert large.size_at(0) == 512
    assert large.size_at(100_000) > 40


TILED = ViewCutter(
    ImageSpec(
        aspect_ratio="anyres",
        pinpoints=((8, 16), (16, 8), (16, 16)),
        merge="spatial_unpad",
    ),
    PatchGrid(image_size=8, side=2),
    None,
)
NEWLINE = -7.0


def encoded(
    images: list[ImageInput], *, batch_size: int, sizes: list[int]
) -> list[EncodedImage | InputError]:
    """Encode with stages whose rows are a view's mean level, and note how many views are given at once."""

    def vision(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        sizes.append(len(pixels))
        levels: NDArray[np.float32] = pixels.mean(axis=(1, 2, 3), dtype=np.float32)
        return np.broadcast_to(levels[:, None, None], (len(levels), 4, 1))

    encoder = ImageEncoder(
        vision,
        lambda features: Projected(features, np.full(1, NEWLINE, np.float32)),
        processor=PROCESSOR,
        cutter=TILED,
        batch_size=batch_size,
        num_workers=2,
    )
    return list(encoder.encode([(image,) for image in images], timings=StageTimer()))


def tiled(
    size: tuple[int, int], level: int, *, claimed: tuple[int, int] | None = None
) -> ImageInput:
    image = Image.new("RGB", size, (level,) * 3)
    return ImageInput(source=image, position=1, opening="", ending="", size=claimed or size)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_views_of_all_images_share_batches_and_go_back_to_their_image(batch_size: int) -> None:
    images = [tiled((16, 8), 0), tiled((16, 16), 255), tiled((8, 16), 128)]
    sizes: list[int] = []
    found = encoded(images, batch_size=batch_size, sizes=sizes)
    views = [TILED.layout(image).num_views for image in images]
    assert views == [3, 5, 3]
    assert sum(sizes) == 11
    assert max(sizes) <= batch_size
    for image, item, level in zip(images, found, [-1.0, 1.0, 0.0], strict=True):
        assert isinstance(item, EncodedImage)
        rows = item.embeddings[:, 0]
        layout = TILED.layout(image)
        assert len(rows) == layout.num_positions
        assert (rows == NEWLINE).any()
        np.testing.assert_allclose(rows[rows != NEWLINE], level, atol=0.01)


def test_an_image_of_another_size_than_was_counted_is_an_error_at_its_place() -> None:
    images = [tiled((16, 8), 9), tiled((16, 8), 9, claimed=(8, 16)), tiled((8, 16), 9)]
    first, wrong, last = encoded(images, batch_size=4, sizes=[])
    assert isinstance(first, EncodedImage)
    assert isinstance(last, EncodedImage)
    assert str(wrong) == "image 1: is not the size its header says; save it again"
    frame = replace(images[1], frame=3)
    with pytest.raises(InputError, match="its frames must all have one size"):
        ingest._check_size(frame, (16, 8))
