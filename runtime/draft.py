"""Additions of one call to a sequence: whether they fit, and their feeding.

Nothing of it counts until the sequence publishes its content. A draft feeds the decoder's working state; where it is given
up, the sequence restores that state from its own content before the next call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.backends.base import SequenceState
from longllava_trt.runtime.content import SequenceContent, SequenceImage, SequenceSnapshot
from longllava_trt.runtime.inputs.encoder import EncodedImage
from longllava_trt.runtime.inputs.images import ImageInput
from longllava_trt.runtime.inputs.message import ImageGroup, Message, OnBroken, Text
from longllava_trt.runtime.prefill import ChunkedPrefill
from longllava_trt.runtime.runner import Runner
from longllava_trt.runtime.text.tokenizer import Place
from longllava_trt.runtime.timings import RequestMetrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SequenceDraft", "Shown", "check_fits", "place_after"]


class Shown(NamedTuple):
    """Result of feeding a message's images."""

    skipped: tuple[str, ...]
    """Images that were left out, and why."""
    error: InputError | None
    """Fault of the image at which feeding ended."""


class SequenceDraft:
    """One call's additions.

    Args:
        runner: The loaded bundle.
        state: The decoder's state that belongs to ``content``; changed in place.
        content: Content of the sequence.
        checkpoint_every: A chunk ends, and a checkpoint is made, after this many images.
        work: Measurements and progress of the call.
        on_checkpoint: Called with the content at each checkpoint; without it, none is kept.
    """

    def __init__(
        self,
        runner: Runner,
        state: SequenceState,
        content: SequenceContent,
        *,
        checkpoint_every: int,
        work: RequestMetrics,
        on_checkpoint: Callable[[SequenceContent], None] | None,
    ) -> None:
        self.images = [*content.images]
        self.fed_text, self.pending = content.fed_text, content.pending
        self._checkpoints = [*content.checkpoints]
        self._turns = content.turns
        self._runner, self._state, self._work = runner, state, work
        self._every, self._on_checkpoint = checkpoint_every, on_checkpoint
        self._feeder = ChunkedPrefill(
            runner.decoder,
            state,
            plan=runner.chunker,
            timings=work.timings,
            on_fed=work.fed,
        )

    @property
    def num_positions(self) -> int:
        """Positions fed."""
        return self._state.past_len

    @property
    def _place(self) -> Place:
        """Kind of what is before the pending text."""
        return place_after(self.images, self.fed_text)

    def content(self) -> SequenceContent:
        """Return the whole content; copies only conv and recurrent states."""
        return SequenceContent(
            self._state.snapshot(),
            tuple(self.images),
            self.fed_text,
            self.pending,
            tuple(self._checkpoints),
            self._turns,
        )

    def show(
        self, turn: Message, encoded: Iterator[EncodedImage | InputError], on_broken: OnBroken
    ) -> Shown:
        """Feed a message up to its last image; text after it is fed later.

        Args:
            turn: The message; must fit.
            encoded: Its images.
            on_broken: Leave out a still that cannot be used, or end the message there.

        Returns:
            Images that were left out. The images before one that cannot be used are fed.
        """
        skipped: list[str] = []
        error = None
        for part in turn.parts:
            if isinstance(part, Text):
                self.pending += part.text
                continue
            broken = self._show_group(part, encoded)
            if broken is None:
                continue
            # some frames of a clip may be in the sequence already
            if on_broken == "stop" or part.images[0].frame is not None:
                error = broken
                break
            skipped.append(str(broken))
        self._feeder.flush()
        return Shown(tuple(skipped), error)

    def append_text(self, text: str) -> None:
        """Add text, to be fed later."""
        self.pending += text

    def prefill_stable(self, following: str) -> None:
        """Feed the pending text whose ids no later text can change, and leave the rest pending.

        Args:
            following: Text after it that is known.
        """
        length = self._runner.tokenizer.stable_length(self.pending, following, after=self._place)
        if length:
            self._feed_text(length)

    def prefill_pending(self) -> NDArray[np.float32]:
        """Feed all pending text; the ids of text after it are those of a new text.

        Returns:
            Logits of the token that follows. [vocab_size], float32.
        """
        self._feed_text(len(self.pending))
        assert self._feeder.logits is not None, "Bug: a message is never empty"
        return self._feeder.logits

    def _feed_text(self, length: int) -> None:
        """Feed so much of the pending text."""
        text, self.pending = self.pending[:length], self.pending[length:]
        self._push_text(text)
        self._feeder.flush()
        self.fed_text += text

    def replay(self, again: Sequence[SequenceImage], rows: Sequence[EncodedImage]) -> None:
        """Feed images again, with the text before each.

        Args:
            again: Images that were fed before.
            rows: Their embeddings. Each [num_positions, hidden_size], float32.
        """
        for image, row in zip(again, rows, strict=True):
            self._push_text(image.before)
            self._feeder.push(row.embeddings)
            self.images.append(image)
            self.fed_text, self.pending = "", image.shown.ending
        self._feeder.flush()

    def _show_group(
        self, group: ImageGroup, encoded: Iterator[EncodedImage | InputError]
    ) -> InputError | None:
        """Feed one group with the text before it; return its fault, or None."""
        last = None
        for image in group.images:
            item = next(encoded)
            if isinstance(item, InputError):
                if last is not None:
                    self.pending = last.ending
                return item
            self._push_image(image, item)
            last = image
        self.pending = group.closing
        return None

    def _push_image(self, image: ImageInput, item: EncodedImage) -> None:
        text = self.pending + image.opening
        self._push_text(text)
        self._feeder.push(item.embeddings)
        self.images.append(SequenceImage(image, self.fed_text + text))
        self.fed_text, self.pending = "", ""
        if len(self.images) % self._every == 0:
            # also if it is not kept: chunks must be the same in both cases
            self._feeder.flush()
            if self._on_checkpoint is not None:
                self._checkpoint(image.ending, self._on_checkpoint)

    def _checkpoint(self, ending: str, publish: Callable[[SequenceContent], None]) -> None:
        reached = self.content()._replace(pending=ending)
        mark = SequenceSnapshot(reached.state, len(self.images), "", ending)
        self._checkpoints.append(mark)
        publish(reached._replace(checkpoints=tuple(self._checkpoints)))

    def _push_text(self, text: str) -> None:
        ids = self._runner.tokenizer.encode(text, after=self._place)
        if ids:
            with self._work.timings.measure("embed"):
                self._feeder.push(self._runner.embed_tokens(ids)[0])


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
    count = functools.cache(lambda text, after: len(runner.tokenizer.encode(text, after=after)))
    ends, text = [content.state.past_len], content.pending
    place = place_after(content.images, content.fed_text)
    for part in turn.parts:
        if isinstance(part, Text):
            text += part.text
            continue
        for image in part.images:
            layout = runner.cutter.layout(image)
            step = count(text + image.opening, place) + layout.num_positions
            ends.append(ends[-1] + step)
            text, place = "", "image"
        text = part.closing
    return ends, ends[-1] + count(text + tail, place)


def place_after(images: Sequence[SequenceImage], fed_text: str) -> Place:
    """Return what is before the pending text of a sequence.

    Args:
        images: Images that were fed.
        fed_text: Text fed since the last of them.
    """
    if fed_text:
        return "token"
    return "image" if images else "start"
