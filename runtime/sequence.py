"""What one sequence holds: the decoder's state, the text and the images behind it, and points to which it can go back.

Text is fed up to the last image; what was said after it waits, because its ids depend on how it goes on. All calls leave the
context at a point where text, images and state belong together, an interrupt or a broken image included.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.backends.ort.decoder import StateSnapshot
from longllava_trt.runtime.inputs.encoder import Decoded
from longllava_trt.runtime.inputs.images import ImageInput, check_unchanged
from longllava_trt.runtime.inputs.message import ImageGroup, Message, OnBroken
from longllava_trt.runtime.prefill import ChunkedPrefill
from longllava_trt.runtime.text.chat import USER_ROLE
from longllava_trt.runtime.timings import ProgressReporter, RequestMetrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from longllava_trt.runtime.model import LongLLaVA

__all__ = ["MultimodalSequence", "SequenceImage", "SequenceSnapshot"]

_SLACK = 2048
"""Positions reserved beyond what is needed: memory that is never touched costs nothing, growing later a copy."""


class SequenceImage(NamedTuple):
    """An image that was fed."""

    shown: ImageInput
    before: str
    """All text since the image before it."""


class SequenceSnapshot(NamedTuple):
    """A point to which a context can go back, as long as it has not gone back beyond it."""

    state: StateSnapshot
    num_images: int
    fed_text: str
    """Text fed since the last image."""
    pending: str
    """Text not fed yet."""


class MultimodalSequence:
    """One sequence.

    Args:
        model: The loaded bundle.
        checkpoint_every: A chunk ends, and a checkpoint is made, after every so many images.
        keep_checkpoints: Keep all checkpoints, not only the last; `rewind` needs them.
    """

    def __init__(
        self, model: LongLLaVA, *, checkpoint_every: int, keep_checkpoints: bool = True
    ) -> None:
        if checkpoint_every < 1:
            raise InputError(
                f"session: checkpoint_every must be at least 1, got {checkpoint_every}"
            )
        self.model = model
        self.checkpoint_every = checkpoint_every
        self.keep_checkpoints = keep_checkpoints
        self.state = model.backend.new_state(capacity=_SLACK)
        self.images: list[SequenceImage] = []
        self.fed_text = ""
        self.pending = USER_ROLE
        self.checkpoints = [self.snapshot()]
        """The first is the beginning, without any image."""

    @property
    def num_positions(self) -> int:
        """Positions fed."""
        return self.state.past_len

    def check_fits(self, turn: Message, *, tail: str, spare: int, place: str) -> int:
        """Return the positions the context will have after a message.

        Args:
            turn: The message.
            tail: Text that follows it at once.
            spare: Positions the answer may take.
            place: Begins the error.

        Raises:
            InputError: If that exceeds the longest context; says how many of the images fit.
        """
        ends, length = self._measure(turn, tail)
        limit = self.model.options.max_context
        if length + spare > limit:
            after = length - ends[-1]
            fitting = sum(end + after + spare <= limit for end in ends[1:])
            which = f" ({fitting} of the {turn.num_images} images fit)" if turn.num_images else ""
            raise InputError(
                f"{place} {length} positions and the answer up to {spare}, the cache "
                f"has {limit}; show fewer images{which}, ask for fewer tokens, or raise --max-context"
            )
        return length

    def show(self, turn: Message, *, on_broken: OnBroken, work: RequestMetrics) -> list[str]:
        """Feed a message up to its last image; what follows that waits.

        Args:
            turn: The message; must fit.
            on_broken: Whether a still that cannot be used is left out, or ends the call where it stands.
            work: What is measured and reported.

        Returns:
            What was left out, and why.

        Raises:
            InputError: Names the image that cannot be used. Those before it are in the context.
        """
        safe = self.snapshot()
        encoded = self._encode([group.images for group in turn.groups], work)
        try:
            return self._show_parts(turn, encoded, on_broken, work)
        except InputError:
            raise
        except BaseException:
            self.restore(max(safe, self.checkpoints[-1], key=lambda mark: mark.num_images))
            raise
        finally:
            encoded.close()

    def append_text(self, text: str) -> None:
        """Add text, to be fed later."""
        self.pending += text

    def prefill_pending(self, work: RequestMetrics) -> NDArray[np.float32]:
        """Feed what was said. What is said after it must begin a message, or its ids could differ.

        Returns:
            Logits of the token that follows. [vocab_size].
        """
        feeder = self._feeder(work)
        self._push_text(self.pending, feeder, work)
        feeder.flush()
        self.fed_text, self.pending = self.fed_text + self.pending, ""
        assert feeder.logits is not None, "Bug: a message is never empty"
        return feeder.logits

    def reserve(self, positions: int) -> None:
        """Make room for so many positions in all."""
        if positions > self.state.capacity:
            self.state.reserve(positions + _SLACK)

    def snapshot(self) -> SequenceSnapshot:
        """Return the present point; copies the recurrent states alone."""
        return SequenceSnapshot(
            self.state.snapshot(), len(self.images), self.fed_text, self.pending
        )

    def restore(self, mark: SequenceSnapshot) -> None:
        """Go back to a point of this context, and forget what came after it."""
        self.state.restore(mark.state)
        del self.images[mark.num_images :]
        self.fed_text, self.pending = mark.fed_text, mark.pending
        self.checkpoints = [c for c in self.checkpoints if c.num_images <= mark.num_images]

    def rewind(self, to_image: int, work: RequestMetrics) -> None:
        """Go back to where so many images had been shown, and nothing said after them.

        The images since the last checkpoint before are encoded and fed again.

        Raises:
            InputError: If one of these is gone or has changed; the context is then as it was.
        """
        base = max(
            (c for c in self.checkpoints if c.num_images <= to_image), key=lambda c: c.num_images
        )
        again = self.images[base.num_images : to_image]
        shown = [image.shown for image in again]
        check_unchanged(shown)
        rows = [*self._encode([shown] if shown else [], work)]
        for row in rows:
            if row.error is not None:
                raise row.error
        self.restore(base)
        try:
            self._replay(again, rows, work)
        except BaseException:
            self.restore(base)
            raise

    def fork(self) -> MultimodalSequence:
        """Return an independent copy."""
        twin = MultimodalSequence(
            self.model,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
        )
        twin.reserve(self.num_positions)
        twin.state.load_state_dict(self.num_positions, self.state.state_dict().items())
        twin.images, twin.checkpoints = [*self.images], [*self.checkpoints]
        twin.fed_text, twin.pending = self.fed_text, self.pending
        return twin

    def _show_parts(
        self, turn: Message, encoded: Iterator[Decoded], on_broken: OnBroken, work: RequestMetrics
    ) -> list[str]:
        feeder = self._feeder(work)
        skipped: list[str] = []
        for part in turn.parts:
            if isinstance(part, str):
                self.pending += part
                continue
            broken = self._show_exhibit(part, encoded, feeder, work)
            if broken is None:
                continue
            # of a clip, frames may be in the context already
            if on_broken == "stop" or part.images[0].frame is not None:
                feeder.flush()
                raise broken
            skipped.append(str(broken))
        feeder.flush()
        return skipped

    def _show_exhibit(
        self,
        group: ImageGroup,
        encoded: Iterator[Decoded],
        feeder: ChunkedPrefill,
        work: RequestMetrics,
    ) -> InputError | None:
        """Feed one exhibit with the text before it; returns what is wrong with it."""
        last = None
        for image in group.images:
            item = next(encoded)
            if item.values is None:
                if last is not None:
                    self.pending = last.ending
                return item.error
            self._push_image(image, item.values, feeder, work)
            last = image
        self.pending = group.closing
        return None

    def _push_image(
        self,
        image: ImageInput,
        embeds: NDArray[np.float32],
        feeder: ChunkedPrefill,
        work: RequestMetrics,
    ) -> None:
        text = self.pending + image.opening
        self._push_text(text, feeder, work)
        feeder.push(embeds)
        self.images.append(SequenceImage(image, self.fed_text + text))
        self.fed_text, self.pending = "", ""
        if len(self.images) % self.checkpoint_every == 0:
            feeder.flush()
            checkpoint = self.snapshot()._replace(pending=image.ending)
            first = len(self.checkpoints) if self.keep_checkpoints else 1
            self.checkpoints[first:] = [checkpoint]

    def _replay(
        self, again: Sequence[SequenceImage], rows: Sequence[Decoded], work: RequestMetrics
    ) -> None:
        feeder = self._feeder(work)
        for image, row in zip(again, rows, strict=True):
            assert row.values is not None, "Bug: the caller has looked for errors"
            self._push_text(image.before, feeder, work)
            feeder.push(row.values)
            self.images.append(image)
            self.fed_text, self.pending = "", image.shown.ending
        feeder.flush()

    def _push_text(self, text: str, feeder: ChunkedPrefill, work: RequestMetrics) -> None:
        ids = self.model.tokenizer.encode(text)
        if ids:
            with work.timings.measure("embed"):
                feeder.push(self.model.embed_tokens(ids)[0])

    def _feeder(self, work: RequestMetrics) -> ChunkedPrefill:
        return ChunkedPrefill(
            self.model.decoder,
            self.state,
            plan=self.model.chunker,
            timings=work.timings,
            on_fed=work.fed,
        )

    def _encode(
        self, groups: Sequence[Sequence[ImageInput]], work: RequestMetrics
    ) -> Generator[Decoded, None, None]:
        """Yield embeddings in order, and report how many images are on their way."""
        total = sum(map(len, groups))
        decoded = ProgressReporter(work.progress, "decode images", total=total, unit="images")
        encoded = ProgressReporter(work.progress, "encode images", total=total, unit="images")
        images = self.model.encoder.encode(
            groups, timings=work.timings, on_decoded=decoded.at, on_encoded=encoded.at
        )
        yield from self.model.backend.overlap(images)
        decoded.finish()
        encoded.finish()

    def _measure(self, turn: Message, tail: str) -> tuple[list[int], int]:
        """Return the positions after each image, those before the first in front, and those after the tail."""
        count = functools.cache(lambda text: len(self.model.tokenizer.encode(text)))
        ends, text = [self.num_positions], self.pending
        for part in turn.parts:
            if isinstance(part, str):
                text += part
                continue
            for image in part.images:
                step = count(text + image.opening) + self.model.num_image_tokens
                ends.append(ends[-1] + step)
                text = ""
            text = part.closing
        return ends, ends[-1] + count(text + tail)
