"""What the user shows, put in order: stills, tiles and videos become one text and the images in it.

Opens headers and counts video frames at once, so that a request that cannot fit is refused before any work; pixels are
decoded later, as `longllava_trt.runtime.inputs.images` is asked for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.inputs.image_files import ImageSource, read_image_size
from longllava_trt.runtime.inputs.images import ImageInput, file_stamp
from longllava_trt.runtime.inputs.tiles import TileGrid, tile_grid
from longllava_trt.runtime.inputs.video import VideoClip, open_clip, subsample
from longllava_trt.runtime.text.chat import (
    IMAGE_PLACEHOLDER,
    WRAPPED_IMAGE,
    expand_tiles,
    video_clip,
    wrap_images,
    wrap_video,
)

__all__ = ["ImageGroup", "MediaOptions", "Message", "OnBroken", "build_message"]

OnBroken = Literal["stop", "skip"]

# a newline directly behind an image goes with it
_STILL = re.compile(r"(?:<img>)?<image>(?:</img>)?\n?")
_CLOSE_IMAGE = "</img>"


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
    on_broken: OnBroken = "stop"
    """What a still that cannot be used does: `stop` with an error, or `skip` it and say so in the result."""

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise InputError(f"media: max_frames must be at least 1, got {self.max_frames}")
        if not 0 <= self.seconds_per_frame < math.inf:
            raise InputError(
                "media: seconds_per_frame must be a number from 0 (every frame), got "
                f"{self.seconds_per_frame}"
            )
        if self.on_broken not in ("stop", "skip"):
            raise InputError(f"media: on_broken must be 'stop' or 'skip', got '{self.on_broken}'")
        if self.official_compat and self.on_broken == "skip":
            raise InputError(
                "media: official_compat writes one text for all images; leave out on_broken='skip'"
            )


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """What is shown whole or, where it is broken, not at all: a still with its tiles, or a clip."""

    images: tuple[ImageInput, ...]
    closing: str
    """Text behind the last image that belongs to it."""

    @property
    def text(self) -> str:
        """With a placeholder for each image."""
        return "".join(image.opening + IMAGE_PLACEHOLDER for image in self.images) + self.closing


@dataclass(frozen=True, slots=True)
class Message:
    """A user's message: text, and what stands in it."""

    parts: tuple[str | ImageGroup, ...]

    @property
    def text(self) -> str:
        """The whole, ready for `build_prompt`; holds a placeholder for each image."""
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    @property
    def groups(self) -> list[ImageGroup]:
        """What is shown, in order."""
        return [part for part in self.parts if isinstance(part, ImageGroup)]

    @property
    def num_images(self) -> int:
        """Stills, tiles and frames together."""
        return sum(len(group.images) for group in self.groups)


def build_message(
    query: str | None,
    *,
    images: Sequence[ImageSource] = (),
    videos: Sequence[str | Path] = (),
    options: MediaOptions,
) -> Message:
    """Put together what one message says and shows.

    Each video becomes a clip of its own before the text, in the order given; stills stand where the text says. With
    `official_compat` and any video, all frames and then all stills become one clip, as in the original.

    Args:
        query: What the message says; None if it goes on later.
        images: Paths or Pillow images.
        videos: Paths.
        options: How they are shown.

    Raises:
        InputError: If the question is blank, placeholders and stills do not match, or a file cannot be used.
    """
    if options.official_compat:
        if query is None:
            raise InputError(
                "media: official_compat needs images and question together; give the images with the question"
            )
        if videos:
            return _official_clip(query, images, videos, options)
    if query is None:
        text = f"{WRAPPED_IMAGE}\n" * len(images)
    else:
        text = wrap_images(query, num_images=len(images))
    if options.official_compat and options.high_resolution and images:
        return _official_tiles(text, images)
    clips = [_show_clip(clip, i) for i, clip in enumerate(_open_clips(videos, options), start=1)]
    return Message((*clips, *_stills(text, images, options)))


def _stills(
    text: str, images: Sequence[ImageSource], options: MediaOptions
) -> Iterator[str | ImageGroup]:
    """Yield the text, each placeholder with its markers an exhibit."""
    begin = 0
    for i, found in enumerate(_STILL.finditer(text)):
        if found.start() > begin:
            yield text[begin : found.start()]
        begin = found.end()
        source, position = images[i], i + 1
        grid = _grid(source, position, options) if options.high_resolution else None
        yield _show_still(found.group(), source, position, grid)
    if text[begin:]:
        yield text[begin:]


def _grid(source: ImageSource, position: int, options: MediaOptions) -> TileGrid | None:
    try:
        return tile_grid(read_image_size(source, position=position))
    except InputError:
        if options.on_broken == "stop":
            raise
        # found to be broken once more when it is decoded, and skipped there
        return None


def _show_still(text: str, source: ImageSource, position: int, grid: TileGrid | None) -> ImageGroup:
    stamp = file_stamp(source)
    if grid is None:
        opening, ending = text.split(IMAGE_PLACEHOLDER)
        still = ImageInput(
            source=source, position=position, opening=opening, ending=ending, stamp=stamp
        )
        return ImageGroup((still,), ending)
    *openings, closing = expand_tiles(text, [grid]).split(IMAGE_PLACEHOLDER)
    overview, *tiles = (
        ImageInput(
            source=source,
            position=position,
            opening=opening,
            ending=closing,
            grid=grid,
            tile=tile,
            stamp=stamp,
        )
        for tile, opening in enumerate(openings)
    )
    # the overview's tag is the outer one: were it the last image, no tile's would be open
    overview = replace(overview, ending=closing.removeprefix(_CLOSE_IMAGE))
    return ImageGroup((overview, *tiles), closing)


def _show_clip(clip: VideoClip, position: int) -> ImageGroup:
    *openings, closing = video_clip(len(clip.indices)).split(IMAGE_PLACEHOLDER)
    return ImageGroup(tuple(_frames(clip, position, openings, closing)), closing)


def _frames(
    clip: VideoClip, position: int, openings: Sequence[str], ending: str
) -> Iterator[ImageInput]:
    stamp = file_stamp(clip.path)
    for frame, opening in zip(clip.indices, openings, strict=True):
        yield ImageInput(
            source=clip.path,
            position=position,
            opening=opening,
            ending=ending,
            frame=frame,
            stamp=stamp,
        )


def _official_clip(
    query: str, images: Sequence[ImageSource], videos: Sequence[str | Path], options: MediaOptions
) -> Message:
    if options.high_resolution:
        raise InputError(
            "media: official_compat does not tile the frames of a video; leave out high_resolution"
        )
    if IMAGE_PLACEHOLDER in query:
        raise InputError(
            f"prompt: official_compat makes a video and all images one clip, and got '{IMAGE_PLACEHOLDER}' in the "
            "text; remove it, or leave out official_compat"
        )
    clips = [_show_clip(clip, i) for i, clip in enumerate(_open_clips(videos, options), start=1)]
    stills = [_show_still(WRAPPED_IMAGE, source, i, None) for i, source in enumerate(images, 1)]
    every = [image for group in (*clips, *stills) for image in group.images]
    kept = [every[i] for i in subsample(len(every), limit=options.max_frames)]
    return _as_written(wrap_video(query, num_frames=len(kept), official_compat=True), kept)


def _official_tiles(text: str, images: Sequence[ImageSource]) -> Message:
    """Nest all tiles in the first image's tag, pixels in the images' order."""
    grids = [tile_grid(read_image_size(source, position=i)) for i, source in enumerate(images, 1)]
    every = [
        tile
        for i, (source, grid) in enumerate(zip(images, grids, strict=True), start=1)
        for tile in _show_still(WRAPPED_IMAGE, source, i, grid).images
    ]
    return _as_written(expand_tiles(text, grids, official_compat=True), every)


def _as_written(text: str, images: Sequence[ImageInput]) -> Message:
    """Make one exhibit of a whole message, whose text is not made of its images' texts."""
    *openings, closing = text.split(IMAGE_PLACEHOLDER)
    shown = (
        replace(image, opening=opening, ending=_CLOSE_IMAGE)
        for image, opening in zip(images, openings, strict=True)
    )
    return Message((ImageGroup(tuple(shown), closing),))


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
