"""A user's message as parts: texts, and groups of images with the text that belongs to them.

Built from query and media directly; tags are never written into a text and looked for again.
Headers are opened and video frames counted at once, so that a request that cannot fit is refused
before any work; pixels are decoded later, as `longllava_trt.runtime.inputs.images` is asked for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from longllava_trt.core.errors import InputError
from longllava_trt.models.chat import ChatFormat, OriginalFormat
from longllava_trt.models.image_policy import TileGrid, ViewTexts
from longllava_trt.runtime.inputs.image_files import ImageSource, read_image_size
from longllava_trt.runtime.inputs.images import ImageInput, ViewCutter, file_stamp
from longllava_trt.runtime.inputs.media import MediaOptions, OnBroken
from longllava_trt.runtime.inputs.sources import Images, Videos, image_sources, video_sources
from longllava_trt.runtime.inputs.video import VideoClip, open_clip, subsample

__all__ = [
    "ImageGroup",
    "MediaOptions",
    "Message",
    "MessageFormat",
    "OnBroken",
    "Text",
    "build_message",
]


class MessageFormat(NamedTuple):
    """How a model family writes a message."""

    chat: ChatFormat
    cutter: ViewCutter


@dataclass(frozen=True, slots=True)
class Text:
    """A text."""

    text: str

    def written(self, placeholder: str) -> str:
        """Return the text."""
        del placeholder
        return self.text


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """Images that are shown whole or, where one is broken, not at all: a still with its tiles, or a clip."""

    images: tuple[ImageInput, ...]
    closing: str
    """Text behind the last image that belongs to it."""

    def written(self, placeholder: str) -> str:
        """Return its text with a placeholder for each image."""
        return "".join(image.opening + placeholder for image in self.images) + self.closing


@dataclass(frozen=True, slots=True)
class Message:
    """A user's message."""

    parts: tuple[Text | ImageGroup, ...]

    def written(self, placeholder: str) -> str:
        """Return the whole as one text with a placeholder for each image; for people, not for ids."""
        return "".join(part.written(placeholder) for part in self.parts)

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
    images: Images = (),
    videos: Videos = (),
    options: MediaOptions,
    form: MessageFormat,
) -> Message:
    """Put together what one message says and shows.

    Each video becomes a clip of its own before the text, in the order given; stills stand at the
    placeholders of the query or, without any, in front of it. With `official_compat` and any video,
    all frames and then all stills become one clip, as in the original.

    Special tokens that are written out in the query keep their meaning, as in the original: a query
    can open a turn of its own. No role has privileges here, so this endangers the asker's own answer
    only; a service that pastes strangers' text into its prompts must clean that text itself.

    Args:
        query: What the message says; None if it goes on later.
        images: One image or several, as `image_sources` takes them.
        videos: One path or several.
        options: How they are shown.
        form: How the model family writes them.

    Raises:
        InputError: If the question is blank or no text, placeholders and stills do not match, or a file cannot be used.
    """
    if query is not None and not isinstance(query, str):
        raise InputError(f"prompt: expected a text, got {type(query).__name__}")
    if not isinstance(options, MediaOptions):
        raise InputError(f"media: expected MediaOptions, got {type(options).__name__}")
    if query is not None and not query.strip():
        raise InputError("prompt: the text is empty; type a question or an instruction")
    stills, clips = image_sources(images), video_sources(videos)
    writer = _Writer(options, form)
    if options.official_compat:
        return _original_message(query, stills, clips, writer)
    return Message((*writer.clips(clips), *writer.parts(query, stills)))


class _Slot(NamedTuple):
    """Place of one still: the text before it, and what belongs to the image itself."""

    before: str
    opening: str
    closing: str


class _Writer:
    """Writes stills and clips in one family's format."""

    def __init__(self, options: MediaOptions, form: MessageFormat) -> None:
        self.options = options
        self.chat, self.cutter = form

    def parts(
        self, query: str | None, stills: Sequence[ImageSource]
    ) -> Iterator[Text | ImageGroup]:
        """Yield a query with its stills."""
        slots, rest = self.slots(query, len(stills))
        for position, (slot, source) in enumerate(zip(slots, stills, strict=True), start=1):
            if slot.before:
                yield Text(slot.before)
            yield self.still(slot, source, position)
        if rest:
            yield Text(rest)

    def slots(self, query: str | None, num_stills: int) -> tuple[list[_Slot], str]:
        """Return where stills stand in a query, and the text behind the last.

        Raises:
            InputError: If there are placeholders but not one for each still.
        """
        chat = self.chat
        texts = [""] if query is None else query.split(chat.image_placeholder)
        # a query that holds a closing tag was marked up by its author, and is left as it is
        tags = (chat.image_open, chat.image_close)
        opening, closing = (
            ("", "") if chat.image_close and chat.image_close in (query or "") else tags
        )
        if len(texts) == 1:
            return [_Slot("", opening, closing + chat.after_image)] * num_stills, texts[0]
        if len(texts) - 1 != num_stills:
            raise InputError(
                f"prompt: the text must hold as many '{chat.image_placeholder}' as there are images, got "
                f"{len(texts) - 1} for {num_stills} images; write one for each image, or none at all "
                "to put the images before the text"
            )
        slots, before = [], texts[0]
        for after in texts[1:]:
            slot, before = self._slot(before, after, opening, closing)
            slots.append(slot)
        return slots, before

    def _slot(self, before: str, after: str, opening: str, closing: str) -> tuple[_Slot, str]:
        """Return the slot between two texts, and what is left of the second.

        The query's own tags around it, and a newline directly behind it, go with the image.
        """
        chat = self.chat
        if not opening and not closing:
            if chat.image_open and before.endswith(chat.image_open):
                before, opening = before.removesuffix(chat.image_open), chat.image_open
            if chat.image_close and after.startswith(chat.image_close):
                after, closing = after.removeprefix(chat.image_close), chat.image_close
        if after.startswith("\n"):
            after, closing = after[1:], closing + "\n"
        return _Slot(before, opening, closing), after

    def still(self, slot: _Slot, source: ImageSource, position: int) -> ImageGroup:
        """Return one still, tiled if that is asked for."""
        grid = self._grid(source, position) if self.options.high_resolution else None
        image = ImageInput(
            source=source,
            position=position,
            opening=slot.opening,
            ending=slot.closing,
            stamp=file_stamp(source),
        )
        if grid is None:
            return ImageGroup((image,), slot.closing)
        texts = self.cutter.policy.texts(grid, self.chat)
        return _tiled(image, grid, texts, slot, self.chat)

    def _grid(self, source: ImageSource, position: int) -> TileGrid | None:
        try:
            return self.cutter.grid(read_image_size(source, position=position))
        except InputError:
            if self.options.on_broken == "stop":
                raise
            # found to be broken once more when it is decoded, and skipped there
            return None

    def clips(self, videos: Sequence[Path]) -> Iterator[ImageGroup]:
        """Yield each video as a clip."""
        chat = self.chat
        for position, path in enumerate(videos, start=1):
            clip = self._open(path, position)
            ending = chat.image_close + chat.video_close
            between = chat.image_close + chat.between_frames + chat.image_open
            openings = [chat.video_open + chat.image_open, *[between] * (len(clip.indices) - 1)]
            yield ImageGroup(tuple(_frames(clip, position, openings, ending)), ending)

    def _open(self, path: Path, position: int) -> VideoClip:
        return open_clip(
            path,
            position=position,
            seconds_per_frame=self.options.seconds_per_frame,
            max_frames=self.options.max_frames,
        )


def _tiled(
    image: ImageInput, grid: TileGrid, texts: ViewTexts, slot: _Slot, chat: ChatFormat
) -> ImageGroup:
    """Return a still's overview and tiles; markup of the slot stays around them."""
    # the policy writes the usual tags: where the slot has none, or has the user's own, those count
    first = slot.opening + texts.openings[0].removeprefix(chat.image_open)
    tail = slot.closing.removeprefix(chat.image_close)
    outer = slot.closing.removesuffix(tail)
    closing = texts.closing.removesuffix(chat.image_close) + outer + tail
    views = [
        replace(image, opening=opening, ending=closing, grid=grid, tile=tile)
        for tile, opening in enumerate((first, *texts.openings[1:]))
    ]
    # the overview's tag is the outer one: were it the last image, no tile's would be open
    views[0] = replace(views[0], ending=outer + tail)
    return ImageGroup(tuple(views), closing)


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


def _original_message(
    query: str | None, stills: Sequence[ImageSource], videos: Sequence[Path], writer: _Writer
) -> Message:
    """Write a message as the original code does."""
    original = writer.chat.original
    if original is None:
        raise InputError("media: official_compat means nothing for this model; leave it out")
    if query is None:
        raise InputError(
            "media: official_compat needs images and question together; give the images with the question"
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
    writer: _Writer,
    original: OriginalFormat,
) -> Message:
    """Make all frames and then all stills one clip, capped again."""
    placeholder = writer.chat.image_placeholder
    if writer.options.high_resolution:
        raise InputError(
            "media: official_compat does not tile the frames of a video; leave out high_resolution"
        )
    if placeholder in query:
        raise InputError(
            f"prompt: official_compat makes a video and all images one clip, and got '{placeholder}' in the "
            "text; remove it, or leave out official_compat"
        )
    bare = _Slot("", "", "")
    groups = [*writer.clips(videos), *(writer.still(bare, s, i) for i, s in enumerate(stills, 1))]
    every = [image for group in groups for image in group.images]
    kept = [every[i] for i in subsample(len(every), limit=writer.options.max_frames)]
    return _around(original.clip(query, num_frames=len(kept)), kept, writer.chat)


def _original_tiles(
    query: str, stills: Sequence[ImageSource], writer: _Writer, original: OriginalFormat
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
