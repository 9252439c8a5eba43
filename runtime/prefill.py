"""Embeddings to the decoder in chunks, for pieces of any length.

Attention in ONNX Runtime's own operators stores a score for each pair of a position in the chunk
and a position in the context. So chunks become shorter when the context grows, and memory stays
within a budget.
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
"""A large model may have long chunks: one twentieth of its weights is little memory for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunker:
    """Number of positions that are fed at a time."""

    longest: int
    """Positions of a chunk while the context is short; never more."""
    num_heads: int
    """Attention heads of one layer."""
    weight_bytes: int
    """Bytes of all weights of the model."""
    materialises_scores: bool = True
    """Whether attention stores its scores; if not, all chunks have the full length."""

    def size_at(self, past_len: int) -> int:
        """Return the length of a chunk after `past_len` positions; it depends on nothing else."""
        if not self.materialises_scores:
            return self.longest
        budget = max(_LEAST_BUDGET, self.weight_bytes // _SHARE_OF_WEIGHTS)
        context = past_len + self.longest
        return min(self.longest, max(budget // (_BYTES_PER_SCORE * self.num_heads * context), 1))


class ChunkedPrefill:
    """Feeds one sequence in chunks.

    Args:
        decoder: The decoder.
        state: The sequence.
        plan: Lengths of the chunks.
        timings: Counts the seconds of `prefill`.
        on_fed: Called after each chunk with the number of positions of the sequence.
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
        """Logits of the token after the last position fed. [vocab_size], float32."""
        self._decoder = decoder
        self._state = state
        self._plan = plan
        self._timings = timings
        self._on_fed = on_fed
        self._waiting: list[NDArray[np.float32]] = []
        self._length = 0

    def push(self, rows: NDArray[np.float32]) -> None:
        """Take the next embeddings [length, hidden_size], float32, and feed all whole chunks."""
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
        """Feed the remaining embeddings, as a shorter chunk."""
        if self._length:
            self._feed(np.concatenate(self._waiting))
        self._waiting, self._length = [], 0

    def _feed(self, rows: NDArray[np.float32]) -> None:
        with self._timings.measure("prefill"):
            self.logits = self._decoder.step(rows[None], self._state)
        self._on_fed(self._state.past_len)
