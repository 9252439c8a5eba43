"""One sequence: text and images that were fed, the decoder's state after them, and checkpoints.

All data of a sequence is one value, `content`, which is replaced in a single assignment. A call
works on a draft. If it ends early, the content has not changed, and the decoder's state is restored
to it before the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.backends.base import SequenceState, StateSnapshot
from longllava_trt.runtime.content import RememberedTurn, SequenceContent
from longllava_trt.runtime.draft import SequenceDraft, check_fits
from longllava_trt.runtime.inputs.encoder import EncodedImage
from longllava_trt.runtime.inputs.images import ImageInput, check_unchanged
from longllava_trt.runtime.inputs.message import Message, OnBroken
from longllava_trt.runtime.option_checks import check, whole_number
from longllava_trt.runtime.runner import Runner
from longllava_trt.runtime.text.quoting import quote
from longllava_trt.runtime.timings import ProgressReporter, RequestMetrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MultimodalSequence", "Prompted"]

_SLACK = 2048
"""Positions reserved in addition to those needed."""


class Prompted(NamedTuple):
    """A question that was fed but is not part of the sequence."""

    logits: NDArray[np.float32]
    """Logits of the answer's first token. [vocab_size], float32."""
    state: SequenceState
    """State after the question; it advances while the answer is generated."""
    num_positions: int
    num_images: int
    """Images in the sequence and the question together."""
    skipped: tuple[str, ...]
    """Images that were left out, each with the reason."""
    asked: SequenceContent | None
    """Content with the question, if it will be remembered."""


class MultimodalSequence:
    """One sequence.

    Args:
        runner: The loaded bundle.
        checkpoint_every: A chunk ends, and a checkpoint is made, after this many images.
        keep_checkpoints: Keep checkpoints; without them, `rewind` starts at the beginning.
    """

    def __init__(
        self, runner: Runner, *, checkpoint_every: int, keep_checkpoints: bool = True
    ) -> None:
        check("session", [whole_number("checkpoint_every", checkpoint_every, at_least=1)])
        self.runner = runner
        self.checkpoint_every = checkpoint_every
        self.keep_checkpoints = keep_checkpoints
        self._state = runner.new_state(capacity=_SLACK)
        self.content = SequenceContent.beginning(self._state.snapshot(), runner.chat.beginning)
        """Content of the sequence; replaced as a whole."""
        self._state_at: StateSnapshot | None = self.content.state
        """The decoder's state; None while a draft carries it on."""

    @classmethod
    def loaded(
        cls,
        runner: Runner,
        past_len: int,
        arrays: Iterable[tuple[str, NDArray[Any]]],
        content: Callable[[StateSnapshot], SequenceContent],
        *,
        checkpoint_every: int,
    ) -> MultimodalSequence:
        """Return a sequence with the state and content of another one, such as a saved one.

        Args:
            runner: The loaded bundle.
            past_len: Positions fed.
            arrays: The decoder's state by input name, as `state_dict` returns it.
            content: Returns the content for a snapshot of that state.
            checkpoint_every: As for the class.
        """
        made = cls(runner, checkpoint_every=checkpoint_every)
        made.reserve(past_len)
        made._state_at = None
        made._state.load_state_dict(past_len, arrays)
        made.content = content(made._state.snapshot())
        made._state_at = made.content.state
        return made

    @property
    def num_positions(self) -> int:
        """Positions fed."""
        return self.content.state.past_len

    @property
    def state(self) -> SequenceState:
        """The decoder's state that belongs to the content; restored first if a call ended early."""
        if self._state_at is not self.content.state:
            self._state.restore(self.content.state)
            self._state_at = self.content.state
        return self._state

    def check_fits(self, turn: Message, *, tail: str, spare: int, where: str) -> int:
        """Return the number of positions after a message; see `check_fits`."""
        return check_fits(self.runner, self.content, turn, tail=tail, spare=spare, where=where)

    def reserve(self, positions: int) -> None:
        """Make room for `positions` in all."""
        if positions > self._state.capacity:
            self._state.reserve(positions + _SLACK)

    def ingest(
        self, turn: Message, *, on_broken: OnBroken, work: RequestMetrics
    ) -> tuple[str, ...]:
        """Add a message up to its last image; text after it is fed later.

        Args:
            turn: The message; must fit.
            on_broken: Leave out a still that cannot be used, or end the call there.
            work: Measurements and progress of the call.

        Returns:
            Images that were left out, and why.

        Raises:
            InputError: Names the image that cannot be used. Images before it are in the sequence.
        """
        publish = self._publish if self.keep_checkpoints else None
        draft = self._draft(work, publish)
        with closing(self._encode([group.images for group in turn.groups], work)) as encoded:
            shown = draft.show(turn, encoded, on_broken)
        self._finish(draft.content())
        if shown.error is not None:
            raise shown.error
        return shown.skipped

    def prompt(
        self, turn: Message, *, on_broken: OnBroken, work: RequestMetrics, remember: bool
    ) -> Prompted:
        """Feed a question; the sequence does not change.

        Args:
            turn: The question; must fit.
            on_broken: As for `ingest`.
            work: Measurements and progress of the call.
            remember: Allow a call of `remember` after it.

        Raises:
            InputError: Names the image that cannot be used.
        """
        chat = self.runner.chat
        draft = self._draft(work, _ignore if remember and self.keep_checkpoints else None)
        with closing(self._encode([group.images for group in turn.groups], work)) as encoded:
            shown = draft.show(turn, encoded, on_broken)
        if shown.error is not None:
            raise shown.error
        draft.append_text(chat.separator)
        asked = None
        if remember:
            # a piece of the vocabulary may begin in the question and end in what comes after it
            draft.prefill_stable(chat.assistant_role)
            asked = draft.content()
        draft.append_text(chat.assistant_role)
        logits = draft.prefill_pending()
        return Prompted(
            logits, self._state, draft.num_positions, len(draft.images), shown.skipped, asked
        )

    def remember(self, prompted: Prompted, question: str, answer: str) -> None:
        """Make a question and its answer part of the sequence."""
        chat, asked = self.runner.chat, prompted.asked
        assert asked is not None, "Bug: the question was not fed to be remembered"
        turn = RememberedTurn(question, answer, prompted.num_images)
        text = answer if chat.keeps_special_tokens else quote(answer)
        pending = asked.pending + chat.after_question(text)
        self.content = asked._replace(pending=pending, turns=(*asked.turns, turn))

    def rewind(self, to_image: int, work: RequestMetrics) -> None:
        """Go back to the point after `to_image` images, before any later text.

        The images between the last checkpoint and that point are encoded and fed again.

        Raises:
            InputError: If one of them is gone or has changed; the sequence is then as it was.
        """
        before = self.content
        base = before.cut_to(
            max(
                (c for c in before.checkpoints if c.num_images <= to_image),
                key=lambda checkpoint: checkpoint.num_images,
            )
        )
        again = before.images[len(base.images) : to_image]
        if not again:
            self.content = base
            return
        rows = self._encode_again([image.shown for image in again], work)
        draft = self._draft(work, None, content=base)
        try:
            draft.replay(again, rows)
        except Exception:
            # the decoder may have written half of a chunk to the keys and values
            self.content = base
            raise
        self._finish(draft.content()._replace(turns=before.turns_before(to_image)))

    def fork(self) -> MultimodalSequence:
        """Return an independent copy."""
        content, state = self.content, self.state
        copy = MultimodalSequence.loaded(
            self.runner,
            content.state.past_len,
            state.state_dict().items(),
            lambda _: content,
            checkpoint_every=self.checkpoint_every,
        )
        copy.keep_checkpoints = self.keep_checkpoints
        return copy

    def _draft(
        self,
        work: RequestMetrics,
        on_checkpoint: Callable[[SequenceContent], None] | None,
        *,
        content: SequenceContent | None = None,
    ) -> SequenceDraft:
        """Return a draft that begins at ``content``, by default the present one."""
        state = self.state
        self._state_at = None
        if content is not None:
            state.restore(content.state)
        return SequenceDraft(
            self.runner,
            state,
            content or self.content,
            checkpoint_every=self.checkpoint_every,
            work=work,
            on_checkpoint=on_checkpoint,
        )

    def _publish(self, content: SequenceContent) -> None:
        self.content = content

    def _finish(self, content: SequenceContent) -> None:
        """Publish the content of a finished draft; the decoder's state belongs to it already."""
        self.content = content
        self._state_at = content.state

    def _encode_again(
        self, shown: Sequence[ImageInput], work: RequestMetrics
    ) -> list[EncodedImage]:
        """Return the embeddings of images that were shown before.

        Each is [num_positions, hidden_size], float32.
        """
        check_unchanged(shown)
        rows = []
        with closing(self._encode([shown], work)) as encoded:
            for row in encoded:
                if isinstance(row, InputError):
                    raise row
                rows.append(row)
        return rows

    def _encode(
        self, groups: Sequence[Sequence[ImageInput]], work: RequestMetrics
    ) -> Generator[EncodedImage | InputError, None, None]:
        """Yield embeddings [num_positions, hidden_size], float32, in order; report progress."""
        total = sum(map(len, groups))
        decoded = ProgressReporter(work.progress, "decode images", total=total, unit="images")
        encoded = ProgressReporter(work.progress, "encode images", total=total, unit="images")
        images = self.runner.encoder.encode(
            groups, timings=work.timings, on_decoded=decoded.at, on_encoded=encoded.at
        )
        yield from self.runner.backend.overlap(images)
        decoded.finish()
        encoded.finish()


def _ignore(_: SequenceContent) -> None:
    """Publish nothing: the checkpoint stays in the draft."""
