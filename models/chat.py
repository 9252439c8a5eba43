"""Chat format of a model family: role texts, separators and media markers, as data.

Runtime code reads the strings from here and knows none itself. No tokenizer and no image is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["IMAGE_PLACEHOLDER", "ChatFormat", "OriginalFormat"]

IMAGE_PLACEHOLDER = "<image>"
"""Placeholder that a user writes where an image goes, unless a family has another."""


class OriginalFormat(Protocol):
    """Texts that a family's original code writes for media, faults included; for `official_compat`.

    Each method returns the texts around the images: one more than there are images.
    """

    def clip(self, query: str, *, num_frames: int) -> list[str]:
        """Return the texts around the frames of one clip that is followed by the query."""

    def tiles(self, texts: Sequence[str], grids: Sequence[tuple[int, int]]) -> list[str]:
        """Return the texts around all overviews and tiles.

        Args:
            texts: Texts around the images before they are tiled, markers included.
            grids: Rows and columns of each image's tiles.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """Strings of a chat protocol.

    A conversation is ``prefix``, then for each message its role, its text and ``separator``.
    """

    user_role: str
    """Opens a user's message."""
    assistant_role: str
    """Opens an answer."""
    separator: str
    """Ends every message."""
    image_placeholder: str = IMAGE_PLACEHOLDER
    """Marks in a user's text where an image goes; never reaches the tokenizer."""
    image_open: str = ""
    image_close: str = ""
    """Text before and behind every image."""
    after_image: str = "\n"
    """Text behind each image that is put in front of a text without placeholders."""
    video_open: str = ""
    video_close: str = ""
    between_frames: str = ""
    """A clip is ``video_open``, frames as images with ``between_frames``, ``video_close``."""
    prefix: str = ""
    """Opens every conversation, such as a system prompt."""
    role_token: str | None = None
    """Special token that begins every role: ids may be cut in front of it."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, beside the end ids of the bundle."""
    original: OriginalFormat | None = None
    """Strings of the original code, where they differ; None if `official_compat` means nothing."""
