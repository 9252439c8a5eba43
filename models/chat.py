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

    A conversation is ``prefix``, then for each turn ``user_role``, the question, ``separator``,
    ``assistant_role``, ``before_answer``, the answer and ``answer_end``. A prompt ends with
    ``assistant_role``.
    """

    user_role: str
    """Beginning of a user's message."""
    assistant_role: str
    """Beginning of an answer."""
    separator: str
    """End of a question."""
    before_answer: str = ""
    """Beginning of an earlier answer that a prompt leaves for the model to write."""
    answer_end: str | None = None
    """End of an answer; None for the same as of a question."""
    name: str = "own"
    """Name of the format for `--prompt-format` and reports."""
    image_placeholder: str = IMAGE_PLACEHOLDER
    """Place of an image in a user's text; the tokenizer never gets it. Empty for a text model."""
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
    """Special token that begins every role; a tokenizer without it is refused."""
    keeps_special_tokens: bool = True
    """Special tokens in a user's text keep their meaning, as in LongLLaVA's original; otherwise they are text."""
    begins_with_bos: bool = False
    """The tokenizer's own beginning, such as `<s>`, stands once before everything."""
    joins_text: bool = False
    """Texts around images are tokenized as one text with `image_placeholder` as a token in it, as in Hugging Face's
    processors; otherwise each on its own, as in the original LLaVA."""
    piece_prefix: str = ""
    """Text before the start of the conversation and of the text after each image, unless a special token stands there."""
    reads_sentencepiece: bool = False
    """tokenizer.model decides where there is a tokenizer.json too, as in the original LLaVA."""
    strips_text: bool = False
    """White space around a user's text is left out."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, in addition to the end ids of the bundle."""
    original: OriginalFormat | None = None
    """Strings of the original code, if they differ; None if `official_compat` has no meaning."""

    @property
    def beginning(self) -> str:
        """Text before the first question."""
        return self.prefix + self.user_role

    @property
    def tail(self) -> str:
        """Text after the last question."""
        return self.separator + self.assistant_role

    def prompt(
        self, question: str, *, num_images: int = 0, turns: Sequence[tuple[str, str]] = ()
    ) -> str:
        """Return a whole prompt as one text.

        The runtime writes the same from parts; this is for comparisons with it and with others.

        Args:
            question: The last question.
            num_images: Images in front of it.
            turns: Earlier questions and answers.
        """
        image = self.image_open + self.image_placeholder + self.image_close + self.after_image
        earlier = "".join(q + self.separator + self.after_question(a) for q, a in turns)
        return self.beginning + earlier + image * num_images + question + self.tail

    def after_question(self, answer: str) -> str:
        """Return the text between a question's separator and the next question."""
        end = self.separator if self.answer_end is None else self.answer_end
        return self.assistant_role + self.before_answer + answer + end + self.user_role
