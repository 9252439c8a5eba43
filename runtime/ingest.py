"""From a prompt's segments to decoder inputs, lazily: few images and one chunk of embeddings exist at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from runtime.images import ImageSource, load_image
from runtime.pixels import ImageProcessorConfig, preprocess_batch
from runtime.prompt import PromptSegments, TextRun

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.onnxrt import OnnxSession

__all__ = ["embed_segments", "encode_images", "in_chunks"]


def encode_images(
    sources: Iterable[ImageSource],
    *,
    processor: ImageProcessorConfig,
    vision: OnnxSession,
    projector: OnnxSession,
    batch_size: int,
) -> Iterator[NDArray[np.float32]]:
    """Yield each image's tokens [num_image_tokens, hidden_size], encoding ``batch_size`` images at a time.

    Raises:
        InputError: Names the image that cannot be used by its position and path.
    """
    loaded = (load_image(source, position=i) for i, source in enumerate(sources, start=1))
    while batch := list(islice(loaded, batch_size)):
        pixels = preprocess_batch(batch, processor)
        features = vision.run({"pixel_values": pixels})["image_features"]
        yield from projector.run({"image_features": features})["image_embeds"]


def embed_segments(
    segments: PromptSegments, *, embed: OnnxSession, image_embeds: Iterator[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """Yield the embeddings [length, hidden_size] of each segment in order."""
    for segment in segments:
        if isinstance(segment, TextRun):
            ids = np.array([segment.ids], dtype=np.int64)
            yield embed.run({"input_ids": ids})["inputs_embeds"][0]
        else:
            yield next(image_embeds)


def in_chunks(
    pieces: Iterable[NDArray[np.float32]], chunk_size: int
) -> Iterator[NDArray[np.float32]]:
    """Regroup pieces of any length into chunks [1, chunk_size, hidden_size]; the last may be shorter."""
    waiting: list[NDArray[np.float32]] = []
    length = 0
    for piece in pieces:
        rest = piece
        while length + len(rest) >= chunk_size:
            cut = chunk_size - length
            yield np.concatenate([*waiting, rest[:cut]])[None]
            waiting, length, rest = [], 0, rest[cut:]
        if len(rest):
            waiting.append(rest)
            length += len(rest)
    if waiting:
        yield np.concatenate(waiting)[None]
