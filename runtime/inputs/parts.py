"""A user's message as parts: texts, and groups of images with the text that belongs to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from longllava_trt.models.chat import ChatFormat
from longllava_trt.runtime.inputs.images import ImageInput, ViewCutter

__all__ = ["ImageGroup", "Message", "MessageFormat", "Text"]


class MessageFormat(NamedTuple):
    """Format in which a model family writes a message."""

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
