"""The prompt of a question as one text, for people: what the model reads, with a placeholder for each image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from longllava_trt.runtime.content import SequenceContent
from longllava_trt.runtime.inputs.message import Message, Text
from longllava_trt.runtime.runner import Runner
from longllava_trt.runtime.text.quoting import unquote

__all__ = ["WrittenPrompt", "written_prompt"]


class WrittenPrompt(NamedTuple):
    """A prompt."""

    text: str
    """Everything from the beginning of the sequence, a placeholder for each image."""
    num_ids: int
    """Ids of the text, without those of images."""
    num_images: int


def written_prompt(runner: Runner, content: SequenceContent, turn: Message) -> WrittenPrompt:
    """Return the prompt of a question in a sequence.

    Args:
        runner: The loaded bundle.
        content: Content of the sequence.
        turn: The question.
    """
    chat, encode = runner.chat, runner.tokenizer.encode
    first, *rest = _texts(content, turn, chat.tail)
    whole = chat.image_placeholder.join([first, *rest])
    return WrittenPrompt(
        text=whole if chat.keeps_special_tokens else unquote(whole),
        num_ids=len(encode(first)) + sum(len(encode(text, after="image")) for text in rest),
        num_images=len(rest),
    )


def _texts(content: SequenceContent, turn: Message, tail: str) -> Iterator[str]:
    """Yield the texts before, between and after images; one more than there are images."""
    yield from (image.before for image in content.images)
    text = content.fed_text + content.pending
    for part in turn.parts:
        if isinstance(part, Text):
            text += part.text
            continue
        for image in part.images:
            yield text + image.opening
            text = ""
        text = part.closing
    yield text + tail
