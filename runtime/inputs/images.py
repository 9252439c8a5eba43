"""Content of a message, as data: images with the text around them, groups of images, texts; and what decodes an image.

A still, a tile of one and a frame of a video are all one image here. Nothing is decoded before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from PIL import Image

from longllava_trt.core.errors import InputError
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.image_layout import ImageLayout, PatchGrid, Size, image_layout
from longllava_trt.models.image_policy import ImagePolicy, TileGrid, ViewTexts
from longllava_trt.models.image_spec import ImageSpec
from longllava_trt.runtime.inputs.sources import ImageSource, load_image
from longllava_trt.runtime.inputs.tiles import overview_and_tiles
from longllava_trt.runtime.inputs.video import VideoClip
from longllava_trt.runtime.text.quoting import unquote

__all__ = [
    "FileStamp",
    "ImageGroup",
    "ImageInput",
    "Load",
    "Message",
    "MessageFormat",
    "Text",
    "ViewCutter",
    "check_unchanged",
    "file_stamp",
    "open_images",
]

Load: TypeAlias = Callable[[], Image.Image]
"""Decodes one image, in the thread that calls it; raises `InputError` if it cannot."""

FileStamp: TypeAlias = tuple[int, int]
"""Length in bytes and time of the last change in nanoseconds; differs if a file was replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """One image, and the text that belongs to it."""

    source: ImageSource | None
    """A file's path, or the image itself; None in a saved session if it came from memory."""
    position: int
    """Position among the stills, or the videos, of its message, counted from 1; errors name it."""
    opening: str
    """Text directly before the image that belongs to it: `<img>`."""
    ending: str
    """Text that closes all open tags if this is the last image: `</img>`."""
    grid: TileGrid | None = None
    """Tile grid of the still, if its tiles are shown."""
    tile: int = 0
    """Index of the tile, counted from 1; 0 is the still itself."""
    frame: int | None = None
    """Index of the frame in its video, counted from 0."""
    size: Size | None = None
    """Width and height in pixels, where the number of positions depends on them."""
    stamp: FileStamp | None = None
    """Stamp of the file when it was shown."""

    @property
    def where(self) -> str:
        """Name of the image in errors."""
        kind = "image" if self.frame is None else "video"
        where = f" ({self.source})" if isinstance(self.source, str | Path) else ""
        return f"{kind} {self.position}{where}"


@dataclass(frozen=True, slots=True)
class Text:
    """A text."""

    text: str
    is_marked: bool = False
    """It has marks around what a user wrote, because the format keeps no special tokens (`quoting.py`)."""

    def written(self, placeholder: str) -> str:
        """Return the text without marks."""
        del placeholder
        return unquote(self.text) if self.is_marked else self.text


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """Images that are shown together or not at all: a still with its tiles, or a clip."""

    images: tuple[ImageInput, ...]
    closing: str
    """Text behind the last image that belongs to it."""

    def written(self, placeholder: str) -> str:
        """Return the group's text with a placeholder for each image."""
        return "".join(image.opening + placeholder for image in self.images) + self.closing


@dataclass(frozen=True, slots=True)
class Message:
    """A user's message."""

    parts: tuple[Text | ImageGroup, ...]

    def written(self, placeholder: str) -> str:
        """Return the message as one text with a placeholder for each image.

        For people to read; not for tokenization.
        """
        return "".join(part.written(placeholder) for part in self.parts)

    @property
    def groups(self) -> list[ImageGroup]:
        """Images and videos, in order."""
        return [part for part in self.parts if isinstance(part, ImageGroup)]

    @property
    def num_images(self) -> int:
        """Stills, tiles and frames together."""
        return sum(len(group.images) for group in self.groups)


def file_stamp(source: ImageSource | None) -> FileStamp | None:
    """Return a stamp that changes when the file is replaced; None if there is no file."""
    if not isinstance(source, str | Path):
        return None
    try:
        found = Path(source).stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def check_unchanged(images: Sequence[ImageInput]) -> None:
    """Raise an error if a file has changed since it was shown.

    Raises:
        InputError: Names the first such image.
    """
    for image in images:
        if image.stamp is not None and file_stamp(image.source) != image.stamp:
            raise InputError(
                f"rewind: {image.where} is gone or has changed since it was shown, and it must be "
                "encoded again; put it back, or rewind to a checkpoint"
            )


class ViewCutter(NamedTuple):
    """Rules by which images are cut: those of the model for every image, and those of `high_resolution`."""

    images: ImageSpec
    patches: PatchGrid
    policy: ImagePolicy | None
    """None where `high_resolution` means nothing."""

    @property
    def needs_sizes(self) -> bool:
        """Whether the number of positions depends on an image's size."""
        return bool(self.images.pinpoints)

    def layout(self, image: ImageInput) -> ImageLayout:
        """Return the views and positions of an image."""
        # without a size it cannot be decoded, and only its place is counted
        size = image.size or (self.patches.image_size, self.patches.image_size)
        return image_layout(self.images, size, self.patches)

    def grid(self, size: Size) -> TileGrid:
        """Return the tiles of a still in high resolution, of this width and height."""
        return self._required().grid(size, image_size=self.patches.image_size)

    def cut(self, image: Image.Image) -> Iterator[Image.Image]:
        """Yield a still and its tiles in high resolution."""
        return overview_and_tiles(image, self._required(), image_size=self.patches.image_size)

    def texts(self, grid: TileGrid, chat: ChatFormat) -> ViewTexts:
        """Return the text around a still and its tiles in high resolution."""
        return self._required().texts(grid, chat)

    def _required(self) -> ImagePolicy:
        if self.policy is None:
            why = "cuts images into tiles by itself" if self.needs_sizes else "has no tiles"
            raise InputError(f"media: high_resolution means nothing for this model, which {why}")
        return self.policy


class MessageFormat(NamedTuple):
    """Format in which a model family writes a message."""

    chat: ChatFormat
    cutter: ViewCutter | None
    """None for a text model."""

    def require_cutter(self) -> ViewCutter:
        """Return the rules by which images are cut; `InputError` if the model takes none."""
        if self.cutter is None:
            raise InputError("media: this model takes text alone; leave out images and videos")
        return self.cutter


def open_images(shown: Sequence[ImageInput], cutter: ViewCutter) -> Iterator[Load]:
    """Yield a function for each image, in order, that decodes it.

    Stills in files are decoded when that is called, so that threads can share the work. Images of
    one source are decoded here, once: a still with its tiles, the frames of a clip.

    Args:
        shown: Images that are shown together.
        cutter: Cuts stills in high resolution.

    Raises:
        InputError: If a source with several images cannot be used.
    """
    for run in _runs(shown):
        first = run[0]
        if first.source is None:
            raise InputError(
                f"{first.where}: was shown from memory, and a saved session keeps no pixels; "
                "rewind to a checkpoint"
            )
        if first.frame is not None:
            yield from _frames(run)
        elif first.grid is not None:
            yield from _tiles(run, first.grid, cutter)
        elif isinstance(first.source, Image.Image):
            # Pillow reads lazily, and two threads must not read one image that is shown twice
            yield partial(_same, load_image(first.source, position=first.position))
        else:
            yield partial(load_image, first.source, position=first.position)


def _runs(shown: Sequence[ImageInput]) -> Iterator[list[ImageInput]]:
    """Group neighbours that come from one pass over one source."""
    run: list[ImageInput] = []
    for image in shown:
        if run and not _continues(run[-1], image):
            yield run
            run = []
        run.append(image)
    if run:
        yield run


def _continues(last: ImageInput, image: ImageInput) -> bool:
    same = last.source is image.source or (
        isinstance(image.source, str | Path) and last.source == image.source
    )
    if not same or last.position != image.position:
        return False
    if last.frame is not None and image.frame is not None:
        return image.frame > last.frame
    return last.grid is not None and last.grid == image.grid and image.tile > last.tile


def _frames(run: Sequence[ImageInput]) -> Iterator[Load]:
    source = run[0].source
    assert isinstance(source, str | Path), "Bug: a video is always a file"
    indices = tuple(image.frame for image in run if image.frame is not None)
    clip = VideoClip(path=Path(source), where=run[0].where, indices=indices)
    return (partial(_same, frame) for frame in clip.frames())


def _tiles(run: Sequence[ImageInput], grid: TileGrid, cutter: ViewCutter) -> Iterator[Load]:
    source = run[0].source
    assert source is not None, "Bug: the caller has checked the source"
    image = load_image(source, position=run[0].position)
    if cutter.grid(image.size) != grid:
        raise InputError(f"{run[0].where}: is not the size its header says; save it again")
    wanted = {shown.tile for shown in run}
    every = enumerate(cutter.cut(image))
    return (partial(_same, tile) for number, tile in every if number in wanted)


def _same(image: Image.Image) -> Image.Image:
    return image
