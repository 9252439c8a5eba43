"""Chat format of a model family: role texts, separators and media markers, as data.

Runtime code reads the strings from here and has none itself. Opens no tokenizer and no image.
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
    """Strings of a chat format.

    A conversation is ``prefix``, then for each message its role, its text and ``separator``.
    """

    user_role: str
    """Beginning of a user's message."""
    assistant_role: str
    """Beginning of an answer."""
    separator: str
    """End of every message."""
    image_placeholder: str = IMAGE_PLACEHOLDER
    """Place of an image in a user's text; the tokenizer never gets it."""
    image_open: str = ""
    image_close: str = ""
    """Texts before and after every image."""
    after_image: str = "\n"
    """Text after each image that is put before a text without placeholders."""
    video_open: str = ""
    video_close: str = ""
    between_frames: str = ""
    """A clip is ``video_open``, frames as images with ``between_frames``, ``video_close``."""
    prefix: str = ""
    """Beginning of every conversation, such as a system prompt."""
    role_token: str | None = None
    """Special token that begins every role: a text may be tokenized in two parts before it."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, in addition to the end ids of the bundle."""
    original: OriginalFormat | None = None
    """Strings of the original code, if they differ; None if `official_compat` has no meaning."""
