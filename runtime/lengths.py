"""Positions that a message takes, counted before anything is decoded."""

from __future__ import annotations

import functools

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.content import SequenceContent
from longllava_trt.runtime.inputs.message import Message, Text
from longllava_trt.runtime.runner import Runner

__all__ = ["check_fits"]


def check_fits(
    runner: Runner,
    content: SequenceContent,
    turn: Message,
    *,
    tail: str,
    spare: int,
    where: str,
) -> int:
    """Return the number of positions of a sequence after a message.

    Args:
        runner: The loaded bundle.
        content: Content of the sequence.
        turn: The message.
        tail: Text directly after it.
        spare: Positions the answer may take.
        where: Beginning of the error.

    Raises:
        InputError: If that exceeds the longest sequence; gives the number of images that fit.
    """
    ends, length = _measure(runner, content, turn, tail)
    limit = runner.capacity
    if length + spare > limit:
        after = length - ends[-1]
        fitting = sum(end + after + spare <= limit for end in ends[1:])
        which = f" ({fitting} of the {turn.num_images} images fit)" if turn.num_images else ""
        raise InputError(
            f"{where} {length} positions and the answer up to {spare}, the cache has {limit}; "
            f"show fewer images{which}, ask for fewer tokens, or {runner.more_capacity}"
        )
    return length


def _measure(
    runner: Runner, content: SequenceContent, turn: Message, tail: str
) -> tuple[list[int], int]:
    """Return the positions before the first image and after each image, and after the tail."""
    count = functools.cache(lambda text: len(runner.tokenizer.encode(text)))
    ends, text = [content.state.past_len], content.pending
    for part in turn.parts:
        if isinstance(part, Text):
            text += part.text
            continue
        for image in part.images:
            step = count(text + image.opening) + runner.num_image_tokens
            ends.append(ends[-1] + step)
            text = ""
        text = part.closing
    return ends, ends[-1] + count(text + tail)
