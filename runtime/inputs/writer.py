"""Writes stills and clips as parts of a message, in one model family's format.

Tags are never written into a text and searched there: a query is cut at its placeholders once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from longllava_trt.core.errors import InputError
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.image_layout import Size
from longllava_trt.models.image_policy import TileGrid, ViewTexts
from longllava_trt.runtime.inputs.images import (
    ImageGroup,
    ImageInput,
    MessageFormat,
    Text,
    ViewCutter,
    file_stamp,
)
from longllava_trt.runtime.inputs.media import MediaOptions
from longllava_trt.runtime.inputs.sources import ImageSource, read_image_size
from longllava_trt.runtime.inputs.video import VideoClip, open_clip
from longllava_trt.runtime.text.quoting import quote

__all__ = ["MessageWriter", "Slot"]


class Slot(NamedTuple):
    """Place of one still: the text before it, and the text that belongs to the image."""

    before: str
    opening: str
    closing: str


class MessageWriter:
    """Writes stills and clips in one family's format."""

    def __init__(self, options: MediaOptions, form: MessageFormat) -> None:
        self.options = options
        self.chat, self._form = form.chat, form

    @property
    def cutter(self) -> ViewCutter:
        """Rules by which images are cut."""
        return self._form.require_cutter()

    def parts(
        self, query: str | None, stills: Sequence[ImageSource]
    ) -> Iterator[Text | ImageGroup]:
        """Yield a query with its stills."""
        if query is not None and self.chat.strips_text:
            query = query.strip()
        slots, rest = self.slots(query, len(stills))
        for position, (slot, source) in enumerate(zip(slots, stills, strict=True), start=1):
            if slot.before:
                yield self._user_text(slot.before)
            yield self.still(slot, source, position)
        if rest:
            yield self._user_text(rest)

    def _user_text(self, text: str) -> Text:
        """Return a user's text as a part of the prompt."""
        return Text(text) if self.chat.keeps_special_tokens else Text(quote(text), is_marked=True)

    def slots(self, query: str | None, num_stills: int) -> tuple[list[Slot], str]:
        """Return the places of the stills in a query, and the text after the last.

        Raises:
            InputError: If there are placeholders but not one for each still.
        """
        chat = self.chat
        place, opening, closing = chat.image_placeholder, chat.image_open, chat.image_close
        texts = (query or "").split(place) if place else [query or ""]
        # a query with a closing tag has its author's own markup, and is left as it is
        if chat.keeps_special_tokens and closing and closing in (query or ""):
            opening = closing = ""
        if len(texts) == 1:
            return [Slot("", opening, closing + chat.after_image)] * num_stills, texts[0]
        if len(texts) - 1 != num_stills:
            raise InputError(
                f"prompt: the text must hold as many '{chat.image_placeholder}' as there are images, got "
                f"{len(texts) - 1} for {num_stills} images; write one for each image, or none at all "
                "to put the images before the text"
            )
        slots, before = [], texts[0]
        for after in texts[1:]:
            slot, before = self._slot_between(before, after, opening, closing)
            slots.append(slot)
        return slots, before

    def _slot_between(
        self, before: str, after: str, opening: str, closing: str
    ) -> tuple[Slot, str]:
        """Return the slot between two texts, and the rest of the second.

        The query's own tags around it, and a newline directly after it, belong to the image.
        """
        chat = self.chat
        if chat.keeps_special_tokens and not opening and not closing:
            if chat.image_open and before.endswith(chat.image_open):
                before, opening = before.removesuffix(chat.image_open), chat.image_open
            if chat.image_close and after.startswith(chat.image_close):
                after, closing = after.removeprefix(chat.image_close), chat.image_close
        if after.startswith("\n"):
            after, closing = after[1:], closing + "\n"
        return Slot(before, opening, closing), after

    def still(self, slot: Slot, source: ImageSource, position: int) -> ImageGroup:
        """Return one still, with tiles if the options say so."""
        size = self._size(source, position)
        image = ImageInput(
            source=source,
            position=position,
            opening=slot.opening,
            ending=slot.closing,
            stamp=file_stamp(source),
            size=size if self.cutter.needs_sizes else None,
        )
        if size is None or not self.options.high_resolution:
            return ImageGroup((image,), slot.closing)
        grid = self.cutter.grid(size)
        return _tiled(image, grid, self.cutter.texts(grid, self.chat), slot, self.chat)

    def _size(self, source: ImageSource, position: int) -> Size | None:
        """Return a still's size if anything depends on it; None too if it cannot be read."""
        if not (self.options.high_resolution or self.cutter.needs_sizes):
            return None
        try:
            return read_image_size(source, position=position)
        except InputError:
            if self.options.on_broken == "stop":
                raise
            # decoding it later will fail too, and it is skipped then
            return None

    def clips(self, videos: Sequence[Path]) -> Iterator[ImageGroup]:
        """Yield each video as a clip."""
        chat = self.chat
        for position, path in enumerate(videos, start=1):
            clip = self._open(path, position)
            ending = chat.image_close + chat.video_close
            between = chat.image_close + chat.between_frames + chat.image_open
            openings = [chat.video_open + chat.image_open, *[between] * (len(clip.indices) - 1)]
            size = clip.size if self.cutter.needs_sizes else None
            yield ImageGroup(tuple(_frames(clip, position, openings, ending, size)), ending)

    def _open(self, path: Path, position: int) -> VideoClip:
        return open_clip(
            path,
            position=position,
            seconds_per_frame=self.options.seconds_per_frame,
            max_frames=self.options.max_frames,
        )


def _tiled(
    image: ImageInput, grid: TileGrid, texts: ViewTexts, slot: Slot, chat: ChatFormat
) -> ImageGroup:
    """Return a still's overview and tiles; the slot's markup stays around them."""
    # the policy writes the usual tags: if the slot has none, or the user's own, the slot's are used
    first = slot.opening + texts.openings[0].removeprefix(chat.image_open)
    tail = slot.closing.removeprefix(chat.image_close)
    outer = slot.closing.removesuffix(tail)
    closing = texts.closing.removesuffix(chat.image_close) + outer + tail
    views = [
        replace(image, opening=opening, ending=closing, grid=grid, tile=tile)
        for tile, opening in enumerate((first, *texts.openings[1:]))
    ]
    # the overview's tag is the outer one: if it were the last image, no tile's tag would be open
    views[0] = replace(views[0], ending=outer + tail)
    return ImageGroup(tuple(views), closing)


def _frames(
    clip: VideoClip, position: int, openings: Sequence[str], ending: str, size: Size | None
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
            size=size,
        )
