"""The original's steps from a question to ids: tags are written into a string, which is then cut.

The reference for `longllava_trt.runtime`, which builds a message from parts and never writes the
tags of images into a text. Strings and ids only. The markers `<img>` and `</img>` are plain text
for the tokenizer; `<image>` is cut out, and an image's embeddings take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from longllava_trt.core.errors import InputError

__all__ = [
    "ASSISTANT_ROLE",
    "IMAGE_PLACEHOLDER",
    "IMAGE_TOKEN_INDEX",
    "SEPARATOR",
    "USER_ROLE",
    "WRAPPED_IMAGE",
    "TextEncoder",
    "build_prompt",
    "expand_tiles",
    "prompt_length",
    "tokenize_prompt",
    "video_clip",
    "wrap_images",
    "wrap_video",
]


class TextEncoder(Protocol):
    """A tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with no special token added."""


IMAGE_PLACEHOLDER = "<image>"
"""Placeholder for an image in a text."""

IMAGE_TOKEN_INDEX = -200
"""Placeholder for an image among ids; never an id of the vocabulary."""

USER_ROLE = "<|startoftext|><|User|>\n"
ASSISTANT_ROLE = "<|startoftext|><|Assistant|>\n"
SEPARATOR = "\n"
"""End of every message."""

_OPEN, _CLOSE = "<img>", "</img>"
WRAPPED_IMAGE = f"{_OPEN}{IMAGE_PLACEHOLDER}{_CLOSE}"
_OPEN_VIDEO, _CLOSE_VIDEO = "<vid>", "</vid>"
_BETWEEN_FRAMES = "<t>"


def wrap_images(query: str, *, num_images: int) -> str:
    """Return the user's text with one wrapped placeholder for each image.

    A query without any placeholder gets `<image>` and a newline for each image in front (the
    original encodes such images and never shows them to the model). Then, unless the text already
    holds a `</img>`, each `<image>` becomes `<img><image></img>`.

    Special tokens in the query's text keep their meaning, as in the original, so a query can open
    another turn. No role has privileges here, since there are no system prompts, so users can harm
    only their own answers. A service that puts strangers' text into its prompts must clean that
    text itself.

    Raises:
        InputError: If the query is blank, or has placeholders but not one for each image.
    """
    _check_not_blank(query)
    num_placeholders = query.count(IMAGE_PLACEHOLDER)
    if num_placeholders == 0:
        query = f"{IMAGE_PLACEHOLDER}\n" * num_images + query
    elif num_placeholders != num_images:
        raise InputError(
            f"prompt: the text must hold as many '{IMAGE_PLACEHOLDER}' as there are images, got "
            f"{num_placeholders} for {num_images} images; write one for each image, or none at all "
            "to put the images before the text"
        )
    return _wrap_placeholders(query)


def wrap_video(text: str, *, num_frames: int, official_compat: bool = False) -> str:
    """Return the user's text with a clip of `num_frames` in front, no newline between them.

    Args:
        text: The question; with still images in it, as `wrap_images` returns it.
        num_frames: Placeholders in the clip.
        official_compat: Write the original's text. It strips the last separator as a set of
            characters, and so also the end of the tag before it: `</img</vid>`. A clip of one
            frame then has no `</img>`, and its placeholder is wrapped a second time.

    Raises:
        InputError: If the text is blank.
    """
    _check_not_blank(text)
    if not official_compat:
        return video_clip(num_frames) + text
    clip = _OPEN_VIDEO + (WRAPPED_IMAGE + _BETWEEN_FRAMES) * num_frames
    return _wrap_placeholders(clip.rstrip(_BETWEEN_FRAMES) + _CLOSE_VIDEO + text)


def video_clip(num_frames: int) -> str:
    """Return the text of a clip of `num_frames`."""
    return _OPEN_VIDEO + _BETWEEN_FRAMES.join([WRAPPED_IMAGE] * num_frames) + _CLOSE_VIDEO


def expand_tiles(
    text: str, grids: Sequence[tuple[int, int]], *, official_compat: bool = False
) -> str:
    """Return the text with each image's tiles after its overview.

    `<img><image></img>` becomes `<img><image>`, a newline, the rows of wrapped tiles with newlines
    between them, and `</img>`: the outer tag closes after the tiles, as in the original.

    Args:
        text: As `wrap_images` returns it, with a placeholder for each image.
        grids: Each image's rows and columns of tiles, in the order of the placeholders.
        official_compat: Write the original's text for several images: each expansion replaces the
            first placeholder of the present text, so all nest in the first image, while their
            pixels stay in the images' order. For one image there is no difference.
    """
    expansions = [
        f"{IMAGE_PLACEHOLDER}\n" + "\n".join([WRAPPED_IMAGE * columns] * rows)
        for rows, columns in grids
    ]
    if official_compat:
        for expansion in expansions:
            text = text.replace(IMAGE_PLACEHOLDER, expansion, 1)
        return text
    first, *rest = text.split(IMAGE_PLACEHOLDER)
    return first + "".join(e + after for e, after in zip(expansions, rest, strict=True))


def _check_not_blank(query: str) -> None:
    if not query.strip():
        raise InputError("prompt: the text is empty; type a question or an instruction")


def _wrap_placeholders(text: str) -> str:
    return text if _CLOSE in text else text.replace(IMAGE_PLACEHOLDER, WRAPPED_IMAGE)


def build_prompt(user_text: str, history: Sequence[tuple[str, str]] = ()) -> str:
    """Return the prompt that asks for the assistant's next turn.

    Args:
        user_text: The new message, as `wrap_images` returns it.
        history: Earlier turns, oldest first: the user's text, wrapped too, and the assistant's
            answer.

    Raises:
        InputError: If an earlier answer holds `<image>`, which would take one of the user's images.
    """
    prompt = ""
    for turn, (question, answer) in enumerate(history, start=1):
        if IMAGE_PLACEHOLDER in answer:
            raise InputError(
                f"history: the answer of turn {turn} holds '{IMAGE_PLACEHOLDER}', and only the "
                "user shows images; remove it from the answer"
            )
        prompt += USER_ROLE + question + SEPARATOR + ASSISTANT_ROLE + answer + SEPARATOR
    return prompt + USER_ROLE + user_text + SEPARATOR + ASSISTANT_ROLE


def tokenize_prompt(prompt: str, tokenizer: TextEncoder) -> list[int]:
    """Return the prompt's ids, with `IMAGE_TOKEN_INDEX` for each image.

    The texts between placeholders are tokenized separately: if they were joined, the `>` before an
    image and the `</` after it would become one piece.
    """
    first, *rest = prompt.split(IMAGE_PLACEHOLDER)
    ids = tokenizer.encode(first)
    for chunk in rest:
        ids.append(IMAGE_TOKEN_INDEX)
        ids += tokenizer.encode(chunk)
    return ids


def prompt_length(ids: Sequence[int], num_image_tokens: int) -> int:
    """Return a prompt's number of positions in the decoder, `num_image_tokens` for each image."""
    num_images = sum(token_id == IMAGE_TOKEN_INDEX for token_id in ids)
    return len(ids) + num_images * (num_image_tokens - 1)
