"""Embeddings to the decoder in chunks, whatever pieces they come in.

Attention in ONNX Runtime's own operators holds a score for every position fed at once times every position of the context. There
chunks become shorter as the context grows, so that the memory stays within a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longllava_trt.runtime.timings import StageTimer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.base import SequenceState, StepDecoder

__all__ = ["ChunkedPrefill", "PrefillChunker"]

_BYTES_PER_SCORE = 12
"""ONNX Runtime's attention holds scores, mask and weights at once, in float32."""

_LEAST_BUDGET = 16 * 2**20
_SHARE_OF_WEIGHTS = 20
"""A large model affords long chunks: one twentieth of its weights is little beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunker:
    """How many positions are fed at a time."""

    longest: int
    """Positions of a chunk while the context is short; never more."""
    num_heads: int
    """Attention heads of one layer."""
    weight_bytes: int
    """Of the whole model."""
    materialises_scores: bool = True
    """Whether attention holds its scores at all; if not, chunks stay as long as they are."""

    def size_at(self, past_len: int) -> int:
        """Return the length of a chunk after `past_len` positions; it depends on nothing else."""
        if not self.materialises_scores:
            return self.longest
        budget = max(_LEAST_BUDGET, self.weight_bytes // _SHARE_OF_WEIGHTS)
        context = past_len + self.longest
        return min(self.longest, max(budget // (_BYTES_PER_SCORE * self.num_heads * context), 1))


class ChunkedPrefill:
    """Feeds one sequence.

    Args:
        decoder: The decoder.
        state: The sequence.
        plan: How long chunks are.
        timings: Counts the seconds of `prefill`.
        on_fed: Called with the positions of the sequence after each chunk.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        state: SequenceState,
        *,
        plan: PrefillChunker,
        timings: StageTimer,
        on_fed: Callable[[int], None],
    ) -> None:
        self.logits: NDArray[np.float32] | None = None
        """Of the token after the last position fed. [vocab_size]."""
        self._decoder = decoder
        self._state = state
        self._plan = plan
        self._timings = timings
        self._on_fed = on_fed
        self._waiting: list[NDArray[np.float32]] = []
        self._length = 0

    def push(self, rows: NDArray[np.float32]) -> None:
        """Take the next embeddings [length, hidden_size], and feed what makes whole chunks."""
        self._waiting.append(rows)
        self._length += len(rows)
        if self._length < self._plan.size_at(self._state.past_len):
            return
        joined = np.concatenate(self._waiting)
        while len(joined) >= (size := self._plan.size_at(self._state.past_len)):
            self._feed(joined[:size])
            joined = joined[size:]
        self._waiting, self._length = [joined], len(joined)

    def flush(self) -> None:
        """Feed what is left, as a shorter chunk."""
        if self._length:
            self._feed(np.concatenate(self._waiting))
        self._waiting, self._length = [], 0

    def _feed(self, rows: NDArray[np.float32]) -> None:
        with self._timings.measure("prefill"):
            self.logits = self._decoder.step(rows[None], self._state)
        self._on_fed(self._state.past_len)
