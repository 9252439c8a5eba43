"""From images to embeddings in a bounded ring: worker threads decode, the vision stage and the projector follow in batches.

At any moment a handful of images' pixel values and one batch of embeddings exist, however many images are to come. Order is
that of the prompt, whichever thread is first. Knows no text and no decoder.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.inputs.images import ImageInput, Load, open_images
from longllava_trt.runtime.inputs.pixels import ImageProcessorConfig, preprocess
from longllava_trt.runtime.timings import StageTimer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.base import StageSession

__all__ = ["Decoded", "ImageEncoder", "decode_ahead"]

_MAX_WORKERS = 4


class Decoded(NamedTuple):
    """One image on its way, or why there is none."""

    values: NDArray[np.float32] | None
    """Pixel values [3, image_size, image_size], later embeddings [num_image_tokens, hidden_size]."""
    error: InputError | None = None
    """Stands for this image and for all that come from the same source after it."""
    seconds: float = 0.0


def decode_ahead(
    groups: Sequence[Sequence[ImageInput]],
    *,
    processor: ImageProcessorConfig,
    num_workers: int | None,
    depth: int,
) -> Iterator[Decoded]:
    """Yield the pixel values of each image in order, decoding at most ``depth`` images ahead.

    An exhibit that cannot be used yields one error in place of its remaining images; the next one goes on.

    Args:
        groups: Images that are shown together, such as a still's tiles.
        processor: What the vision stage expects.
        num_workers: Threads; by default one a core, up to four.
        depth: Images that may be decoded and not yet taken.
    """
    workers = min(num_workers or os.cpu_count() or 1, _MAX_WORKERS)
    ring: deque[Future[Decoded]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode-image")
    try:
        for job in _jobs(groups, lambda load: pool.submit(_decode, load, processor)):
            ring.append(job)
            if len(ring) >= depth:
                yield ring.popleft().result()
        while ring:
            yield ring.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _jobs(
    groups: Sequence[Sequence[ImageInput]], submit: Callable[[Load], Future[Decoded]]
) -> Iterator[Future[Decoded]]:
    for group in groups:
        try:
            for load in open_images(group):
                yield submit(load)
        except InputError as err:
            failed: Future[Decoded] = Future()
            failed.set_result(Decoded(None, err))
            yield failed


def _decode(load: Load, processor: ImageProcessorConfig) -> Decoded:
    begin = time.perf_counter()
    try:
        pixels = preprocess(load(), processor)
    except InputError as err:
        return Decoded(None, err)
    return Decoded(pixels, None, time.perf_counter() - begin)


class ImageEncoder:
    """Pixels to embeddings, a batch at a time.

    Args:
        vision: Returns the vision stage, which is loaded only if there is an image.
        projector: Returns the projector stage.
        processor: What the vision stage expects.
        batch_size: Images encoded at a time.
        num_workers: Threads that decode images; by default one a core, up to four.
    """

    def __init__(
        self,
        vision: Callable[[], StageSession],
        projector: Callable[[], StageSession],
        *,
        processor: ImageProcessorConfig,
        batch_size: int,
        num_workers: int | None,
    ) -> None:
        self._vision = vision
        self._projector = projector
        self._processor = processor
        self._batch_size = batch_size
        self._num_workers = num_workers

    def encode(
        self,
        groups: Sequence[Sequence[ImageInput]],
        *,
        timings: StageTimer,
        on_decoded: Callable[[int], None] = lambda _: None,
        on_encoded: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Decoded]:
        """Yield each image's embeddings in order, or errors as `decode_ahead` does.

        Args:
            groups: Images that are shown together.
            timings: Counts the stages' seconds.
            on_decoded: Called with the number of images decoded so far, after each batch.
            on_encoded: The same for images encoded.
        """
        decoded = decode_ahead(
            groups,
            processor=self._processor,
            num_workers=self._num_workers,
            depth=2 * self._batch_size,
        )
        count = 0
        try:
            while batch := list(islice(decoded, self._batch_size)):
                timings.add("decode_image", sum(image.seconds for image in batch))
                pixels = [image.values for image in batch if image.values is not None]
                count += len(pixels)
                on_decoded(count)
                embeds = iter(self._encode(np.stack(pixels), timings) if pixels else ())
                on_encoded(count)
                for image in batch:
                    yield image if image.error else Decoded(next(embeds))
        finally:
            decoded.close()  # type: ignore[attr-defined]

    def _encode(self, pixels: NDArray[np.float32], timings: StageTimer) -> NDArray[Any]:
        with timings.measure("vision"):
            features = self._vision().run({"pixel_values": pixels})["image_features"]
        with timings.measure("projector"):
            return self._projector().run({"image_features": features})["image_embeds"]
