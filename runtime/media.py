"""What the user shows, put in order: stills, tiles and videos become one text and one sequence of images.

Opens headers and counts video frames at once, so that a request that cannot fit is refused before any work; pixels are
decoded one at a time as they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from longllava_trt.errors import InputError
from runtime.images import ImageSource, load_image, read_image_size
from runtime.prompt import IMAGE_PLACEHOLDER, expand_tiles, wrap_images, wrap_video
from runtime.tiles import TileGrid, overview_and_tiles, tile_grid
from runtime.video import VideoClip, open_clip, subsample

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MediaOptions", "UserTurn", "prepare_turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaOptions:
    """How images and videos are shown."""

    high_resolution: bool = False
    """Show each still as an overview and its tiles of 336 pixels. Frames of a video are never tiled."""
    seconds_per_frame: float = 1.0
    """One frame is shown for so many seconds of video."""
    max_frames: int = 128
    """At most so many frames of a video, evenly spread; the model was shown up to 1200."""
    official_compat: bool = False
    """Write the original's strings byte for byte, faults included."""

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise InputError(f"media: max_frames must be at least 1, got {self.max_frames}")
        if not 0 <= self.seconds_per_frame < math.inf:
            raise InputError(
                "media: seconds_per_frame must be a number from 0 (every frame), got "
                f"{self.seconds_per_frame}"
            )


@dataclass(frozen=True, slots=True)
class UserTurn:
    """A user's message, ready for `build_prompt`, and what it shows."""

    text: str
    """Holds a placeholder for each image."""
    num_images: int
    """Stills, tiles and frames together."""
    images: Iterator[Image.Image]
    """In the order of the placeholders, decoded as they are taken."""


def prepare_turn(
    query: str,
    *,
    images: Sequence[ImageSource] = (),
    videos: Sequence[str | Path] = (),
    options: MediaOptions,
) -> UserTurn:
    """Put together what one message says and shows.

    Each video becomes a clip of its own before the text, in the order given; stills stand where the text says. With
    `official_compat` and any video, all frames and then all stills become one clip, as in the original.

    Raises:
        InputError: If the question is blank, placeholders and stills do not match, or a file cannot be used.
    """
    if options.official_compat and videos:
        return _official_clip(query, images, videos, options)
    text = wrap_images(query, num_images=len(images))
    shown, num_images = _plain(images), len(images)
    if options.high_resolution:
        sizes = [read_image_size(source, position=i) for i, source in enumerate(images, start=1)]
        grids = [tile_grid(size) for size in sizes]
        text = expand_tiles(text, grids, official_compat=options.official_compat)
        shown, num_images = _tiled(images, grids), sum(1 + g.rows * g.columns for g in grids)
    clips = _open_clips(videos, options)
    for clip in reversed(clips):
        text = wrap_video(text, num_frames=len(clip.indices))
    num_frames = sum(len(clip.indices) for clip in clips)
    return UserTurn(text, num_frames + num_images, chain(_frames(clips), shown))


def _official_clip(
    query: str, images: Sequence[ImageSource], videos: Sequence[str | Path], options: MediaOptions
) -> UserTurn:
    if options.high_resolution:
        raise InputError(
            "media: official_compat does not tile the frames of a video; leave out high_resolution"
        )
    if IMAGE_PLACEHOLDER in query:
        raise InputError(
            f"prompt: official_compat makes a video and all images one clip, and got '{IMAGE_PLACEHOLDER}' in the "
            "text; remove it, or leave out official_compat"
        )
    clips = _open_clips(videos, options)
    total = sum(len(clip.indices) for clip in clips) + len(images)
    kept = frozenset(subsample(total, limit=options.max_frames))
    every = chain(_frames(clips), _plain(images))
    shown = (image for i, image in enumerate(every) if i in kept)
    text = wrap_video(query, num_frames=len(kept), official_compat=True)
    return UserTurn(text, len(kept), shown)


def _open_clips(videos: Sequence[str | Path], options: MediaOptions) -> list[VideoClip]:
    return [
        open_clip(
            source,
            position=i,
            seconds_per_frame=options.seconds_per_frame,
            max_frames=options.max_frames,
        )
        for i, source in enumerate(videos, start=1)
    ]


def _frames(clips: Sequence[VideoClip]) -> Iterator[Image.Image]:
    for clip in clips:
        yield from clip.frames()


def _plain(images: Sequence[ImageSource]) -> Iterator[Image.Image]:
    return (load_image(source, position=i) for i, source in enumerate(images, start=1))


def _tiled(images: Sequence[ImageSource], grids: Sequence[TileGrid]) -> Iterator[Image.Image]:
    for i, (image, grid) in enumerate(zip(_plain(images), grids, strict=True), start=1):
        if tile_grid(image.size) != grid:
            raise InputError(f"image {i}: is not the size its header says; save it again")
        yield from overview_and_tiles(image)
