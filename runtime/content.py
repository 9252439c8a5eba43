"""Content of a sequence at one moment, as one value that never changes."""

from __future__ import annotations

from typing import NamedTuple

from longllava_trt.runtime.backends.base import StateSnapshot
from longllava_trt.runtime.inputs.images import ImageInput

__all__ = ["RememberedTurn", "SequenceContent", "SequenceImage", "SequenceSnapshot"]


class SequenceImage(NamedTuple):
    """An image that was fed."""

    shown: ImageInput
    before: str
    """All text between the image before and this one."""


class SequenceSnapshot(NamedTuple):
    """Checkpoint that a sequence can go back to, until it goes back to an earlier one."""

    state: StateSnapshot
    num_images: int
    fed_text: str
    """Text fed since the last image."""
    pending: str
    """Text not fed yet."""


class RememberedTurn(NamedTuple):
    """An earlier question of the sequence, with its answer."""

    question: str
    """The question, with a placeholder for each image that was shown with it."""
    answer: str
    num_images: int
    """Images in the sequence when the question was answered."""


class SequenceContent(NamedTuple):
    """Everything a sequence holds."""

    state: StateSnapshot
    """Snapshot of the decoder's state that belongs to the rest."""
    images: tuple[SequenceImage, ...]
    fed_text: str
    """Text fed since the last image."""
    pending: str
    """Text not fed yet: its ids depend on the text after it."""
    checkpoints: tuple[SequenceSnapshot, ...]
    """The first is the beginning, without any image."""
    turns: tuple[RememberedTurn, ...] = ()
    """Questions and answers that are remembered, oldest first."""

    @classmethod
    def beginning(cls, state: StateSnapshot, pending: str) -> SequenceContent:
        """Return the content of a new sequence."""
        return cls(state, (), "", pending, (SequenceSnapshot(state, 0, "", pending),))

    def cut_to(self, checkpoint: SequenceSnapshot) -> SequenceContent:
        """Return the content as it was at a checkpoint."""
        count = checkpoint.num_images
        return SequenceContent(
            checkpoint.state,
            self.images[:count],
            checkpoint.fed_text,
            checkpoint.pending,
            tuple(c for c in self.checkpoints if c.num_images <= count),
            self.turns_before(count),
        )

    def turns_before(self, image: int) -> tuple[RememberedTurn, ...]:
        """Return the turns that were complete when image number ``image`` was shown."""
        return tuple(turn for turn in self.turns if turn.num_images < image)
