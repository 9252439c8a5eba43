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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.inputs.images import ImageInput, Load, ViewCutter, open_images
from longllava_trt.runtime.inputs.pixels import ImageProcessorConfig, preprocess
from longllava_trt.runtime.timings import StageTimer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DecodedImage", "EncodedImage", "ImageEncoder", "decode_images"]

_MAX_WORKERS = 4

Rows: TypeAlias = "NDArray[np.float32]"


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """Pixels of one image, ready for the vision stage."""

    pixels: NDArray[np.float32]
    """[3, image_size, image_size], float32."""
    seconds: float = 0.0
    """Time it took to decode and resize."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """Embeddings of one image, ready for the decoder."""

    embeddings: NDArray[np.float32]
    """[num_image_tokens, hidden_size], float32."""


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
    try:
        for job in _jobs(groups, cutter, lambda load: pool.submit(_decode, load, processor)):
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
    submit: Callable[[Load], Future[DecodedImage | InputError]],
) -> Iterator[Future[DecodedImage | InputError]]:
    for group in groups:
        try:
            for load in open_images(group, cutter):
                yield submit(load)
        except InputError as err:
            failed: Future[DecodedImage | InputError] = Future()
            failed.set_result(err)
            yield failed


def _decode(load: Load, processor: ImageProcessorConfig) -> DecodedImage | InputError:
    begin = time.perf_counter()
    try:
        pixels = preprocess(load(), processor)
    except InputError as err:
        return err
    return DecodedImage(pixels, time.perf_counter() - begin)


class ImageEncoder:
    """Pixels to embeddings, a batch at a time.

    Args:
        vision: Runs the vision stage on pixels [num_images, 3, image_size, image_size] float32.
        projector: Runs the projector on the result of ``vision``; returns embeddings
            [num_images, num_image_tokens, hidden_size] float32.
        processor: Format of the pixels that the vision stage expects.
        cutter: Cuts stills in high resolution.
        batch_size: Images encoded at a time.
        num_workers: Threads that decode images; by default one for each core, up to four.
    """

    def __init__(
        self,
        vision: Callable[[Rows], Rows],
        projector: Callable[[Rows], Rows],
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
            while batch := list(islice(decoded, self._batch_size)):
                images = [item for item in batch if isinstance(item, DecodedImage)]
                timings.add("decode_image", sum(image.seconds for image in images))
                count += len(images)
                on_decoded(count)
                encoded = iter(self._encode([image.pixels for image in images], timings))
                on_encoded(count)
                for item in batch:
                    yield item if isinstance(item, InputError) else EncodedImage(next(encoded))
        finally:
            decoded.close()  # type: ignore[attr-defined]

    def _encode(self, pixels: Sequence[Rows], timings: StageTimer) -> Iterable[Rows]:
        if not pixels:
            return ()
        with timings.measure("vision"):
            features = self._vision(np.stack(pixels))
        with timings.measure("projector"):
            return self._projector(features)
