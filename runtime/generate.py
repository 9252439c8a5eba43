"""Greedy decoding: the original's only mode (spec 5.7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.decoder import Decoder, DecoderState

__all__ = ["greedy_tokens"]


def greedy_tokens(
    decoder: Decoder,
    state: DecoderState,
    logits: NDArray[np.float32],
    *,
    embed: Callable[[int], NDArray[np.float32]],
    eos_token_id: int,
    max_new_tokens: int,
) -> Iterator[int]:
    """Yield the most likely token again and again, until the end-of-sequence token or the limit.

    The end-of-sequence token is forbidden as the first token (min_new_tokens 1), and is not yielded.

    Args:
        decoder: The decoder.
        state: After the prompt; carried on in place. The last token yielded has not been fed.
        logits: Of the position after the prompt. [vocab_size].
        embed: Returns a token's embedding. [1, 1, hidden_size].
        eos_token_id: Ends the answer.
        max_new_tokens: At most so many tokens.
    """
    scores = logits.copy()
    scores[eos_token_id] = -np.inf
    for step in range(max_new_tokens):
        token = int(scores.argmax())
        if token == eos_token_id:
            return
        yield token
        if step + 1 < max_new_tokens:
            scores = decoder.step(embed(token), state)
