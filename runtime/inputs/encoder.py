"""Images to embeddings with bounded memory.

Worker threads decode images; the vision stage and the projector then run on batches. At any moment
there are the pixel values of a few images and one batch of embeddings, for any number of images.
The order is that of the prompt, even if a later image is decoded first. Knows no text and no
decoder.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from longllava_trt.core.errors import InputError
from longllava_trt.models.image_layout import ImageLayout, Size
from longllava_trt.runtime.inputs.images import ImageInput, Load, ViewCutter, open_images
from longllava_trt.runtime.inputs.pixels import view_pixels
from longllava_trt.runtime.inputs.processor import ImageProcessorConfig
from longllava_trt.runtime.timings import StageTimer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DecodedImage", "EncodedImage", "ImageEncoder", "Projected", "decode_images"]

_MAX_WORKERS = 4

Rows: TypeAlias = "NDArray[np.float32]"


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """Pixels of one image, ready for the vision stage."""

    pixels: NDArray[np.float32]
    """[num_views, 3, image_size, image_size], float32."""
    layout: ImageLayout
    """Order of the rows that the views become."""
    seconds: float = 0.0
    """Time it took to decode and resize."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """Embeddings of one image, ready for the decoder."""

    embeddings: NDArray[np.float32]
    """[num_positions, hidden_size], float32."""


class Projected(NamedTuple):
    """Result of the projector stage."""

    rows: Rows
    """Of each view. [num_views, num_image_tokens, hidden_size], float32."""
    newline: Rows | None
    """Row that ends a line of an image, where the model has one. [hidden_size], float32."""


def decode_images(
    groups: Sequence[Sequence[ImageInput]],
    *,
    processor: ImageProcessorConfig,
    cutter: ViewCutter,
    num_workers: int | None,
    depth: int,
) -> Iterator[DecodedImage | InputError]:
    """Yield each image in order, decoding at most ``depth`` images ahead.

    A group that cannot be used yields one error instead of its remaining images; then the next
    group follows.

    Args:
        groups: Images that are shown together, such as a still's tiles.
        processor: Format of the pixels that the vision stage expects.
        cutter: Cuts stills in high resolution.
        num_workers: Threads; by default one for each core, up to four.
        depth: Largest number of decoded images that wait.
    """
    workers = min(num_workers or os.cpu_count() or 1, _MAX_WORKERS)
    ring: deque[Future[DecodedImage | InputError]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode-image")

    def submit(image: ImageInput, load: Load) -> Future[DecodedImage | InputError]:
        return pool.submit(_decode, load, image, cutter.layout(image), processor)

    try:
        for job in _jobs(groups, cutter, submit):
            ring.append(job)
            if len(ring) >= depth:
                yield ring.popleft().result()
        while ring:
            yield ring.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _jobs(
    groups: Sequence[Sequence[ImageInput]],
    cutter: ViewCutter,
    submit: Callable[[ImageInput, Load], Future[DecodedImage | InputError]],
) -> Iterator[Future[DecodedImage | InputError]]:
    for group in groups:
        try:
            for image, load in zip(group, open_images(group, cutter), strict=True):
                yield submit(image, load)
        except InputError as err:
            failed: Future[DecodedImage | InputError] = Future()
            failed.set_result(err)
            yield failed


def _decode(
    load: Load, image: ImageInput, layout: ImageLayout, processor: ImageProcessorConfig
) -> DecodedImage | InputError:
    begin = time.perf_counter()
    try:
        picture = load()
        _check_size(image, picture.size)
        pixels = view_pixels(picture, layout, processor)
    except InputError as err:
        return err
    return DecodedImage(pixels, layout, time.perf_counter() - begin)


def _check_size(image: ImageInput, size: Size) -> None:
    """Raise an error if positions were counted for another size."""
    if image.size in {None, size}:
        return
    if image.frame is None:
        raise InputError(f"{image.where}: is not the size its header says; save it again")
    raise InputError(f"{image.where}: its frames must all have one size; convert it to MP4")


class ImageEncoder:
    """Pixels to embeddings, a batch at a time.

    Args:
        vision: Runs the vision stage on pixels [num_images, 3, image_size, image_size] float32.
        projector: Runs the projector on the result of ``vision``.
        processor: Format of the pixels that the vision stage expects.
        cutter: Cuts stills in high resolution.
        batch_size: Views encoded at a time.
        num_workers: Threads that decode images; by default one for each core, up to four.
    """

    def __init__(
        self,
        vision: Callable[[Rows], Rows],
        projector: Callable[[Rows], Projected],
        *,
        processor: ImageProcessorConfig,
        cutter: ViewCutter,
        batch_size: int,
        num_workers: int | None,
    ) -> None:
        self._vision = vision
        self._projector = projector
        self._processor = processor
        self._cutter = cutter
        self._batch_size = batch_size
        self._num_workers = num_workers

    def encode(
        self,
        groups: Sequence[Sequence[ImageInput]],
        *,
        timings: StageTimer,
        on_decoded: Callable[[int], None] = lambda _: None,
        on_encoded: Callable[[int], None] = lambda _: None,
    ) -> Iterator[EncodedImage | InputError]:
        """Yield each image's embeddings in order, or errors as `decode_images` does.

        Args:
            groups: Images that are shown together.
            timings: Counts the stages' seconds.
            on_decoded: Called with the number of images decoded so far, after each batch.
            on_encoded: The same for images encoded.
        """
        decoded = decode_images(
            groups,
            processor=self._processor,
            cutter=self._cutter,
            num_workers=self._num_workers,
            depth=2 * self._batch_size,
        )
        count = 0
        try:
            while batch := list(self._take(decoded)):
                images = [item for item in batch if isinstance(item, DecodedImage)]
                timings.add("decode_image", sum(image.seconds for image in images))
                count += len(images)
                on_decoded(count)
                encoded = self._encode(images, timings)
                on_encoded(count)
                for item in batch:
                    yield item if isinstance(item, InputError) else next(encoded)
        finally:
            decoded.close()  # type: ignore[attr-defined]

    def _take(
        self, decoded: Iterator[DecodedImage | InputError]
    ) -> Iterator[DecodedImage | InputError]:
        """Yield the next images, until their views fill a batch."""
        room = self._batch_size
        while room > 0 and (item := next(decoded, None)) is not None:
            room -= len(item.pixels) if isinstance(item, DecodedImage) else 1
            yield item

    def _encode(
        self, images: Sequence[DecodedImage], timings: StageTimer
    ) -> Iterator[EncodedImage]:
        """Return each image's embeddings; the views of all images share the batches."""
        views = [view for image in images for view in image.pixels]
        batches = range(0, len(views), self._batch_size)
        projected = [self._project(views[i : i + self._batch_size], timings) for i in batches]
        rows = iter([row for batch in projected for row in batch.rows])
        for image in images:
            own = np.stack(list(islice(rows, image.layout.num_views)))
            yield EncodedImage(image.layout.arrange(own, projected[0].newline))

    def _project(self, views: Sequence[Rows], timings: StageTimer) -> Projected:
        with timings.measure("vision"):
            features = self._vision(np.stack(views))
        with timings.measure("projector"):
            return self._projector(features)
