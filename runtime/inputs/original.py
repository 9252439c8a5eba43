"""A message as a model family's original code writes it, faults included: `official_compat`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from longllava_trt.core.errors import InputError
from longllava_trt.models.chat import ChatFormat, OriginalFormat
from longllava_trt.runtime.inputs.images import ImageGroup, ImageInput, Message
from longllava_trt.runtime.inputs.sources import ImageSource
from longllava_trt.runtime.inputs.video import subsample
from longllava_trt.runtime.inputs.writer import MessageWriter, Slot

__all__ = ["original_message"]


def original_message(
    query: str | None, stills: Sequence[ImageSource], videos: Sequence[Path], writer: MessageWriter
) -> Message:
    """Write a message as the original code does."""
    original = writer.chat.original
    if original is None:
        raise InputError("media: official_compat means nothing for this model; leave it out")
    if query is None:
        raise InputError(
            "media: official_compat needs images and question together; "
            "give the images with the question"
        )
    if videos:
        return _original_clip(query, stills, videos, writer, original)
    if not (writer.options.high_resolution and stills):
        return Message(tuple(writer.parts(query, stills)))
    return _original_tiles(query, stills, writer, original)


def _original_clip(
    query: str,
    stills: Sequence[ImageSource],
    videos: Sequence[Path],
    writer: MessageWriter,
    original: OriginalFormat,
) -> Message:
    """Make all frames and then all stills one clip, limited to `max_frames` again."""
    placeholder = writer.chat.image_placeholder
    if writer.options.high_resolution:
        raise InputError(
            "media: official_compat does not tile the frames of a video; leave out high_resolution"
        )
    if placeholder in query:
        raise InputError(
            f"prompt: official_compat makes a video and all images one clip, and got '{placeholder}' "
            "in the text; remove it, or leave out official_compat"
        )
    bare = Slot("", "", "")
    groups = [*writer.clips(videos), *(writer.still(bare, s, i) for i, s in enumerate(stills, 1))]
    every = [image for group in groups for image in group.images]
    kept = [every[i] for i in subsample(len(every), limit=writer.options.max_frames)]
    return _around(original.clip(query, num_frames=len(kept)), kept, writer.chat)


def _original_tiles(
    query: str, stills: Sequence[ImageSource], writer: MessageWriter, original: OriginalFormat
) -> Message:
    """Nest all tiles in the first image's tag, pixels in the images' order."""
    slots, rest = writer.slots(query, len(stills))
    texts = [slots[0].before + slots[0].opening]
    texts += [a.closing + b.before + b.opening for a, b in pairwise(slots)]
    texts.append(slots[-1].closing + rest)
    groups = [
        writer.still(slot, source, i)
        for i, (slot, source) in enumerate(zip(slots, stills, strict=True), 1)
    ]
    grids = [group.images[0].grid for group in groups]
    written = original.tiles(texts, [grid for grid in grids if grid is not None])
    return _around(written, [image for group in groups for image in group.images], writer.chat)


def _around(texts: Sequence[str], images: Sequence[ImageInput], chat: ChatFormat) -> Message:
    """Make one group of a whole message, from the texts around its images."""
    *openings, closing = texts
    shown = (
        replace(image, opening=opening, ending=chat.image_close)
        for image, opening in zip(images, openings, strict=True)
    )
    return Message((ImageGroup(tuple(shown), closing),))
